"""The bookkeeping of TSER's Table 4, which is that of syops-counter, and the same without batch normalisation."""

from export import graph as g
from export.conventions_terms import CannotCount, Charge, Dense, Origin, Terms, drivers, events_of, size
from hardware.chip import Chip


UNKNOWN = "whether it had a bias and a batch normalisation before export is not known of a Graph alone"


def tser_compat(graph: g.Graph, origin: Origin | None, chip: Chip) -> tuple[Charge, ...]:
    """Operations by the shape of a layer, times the rate of its input, as in TSER's Table 4 (syops-counter).

    In one step a convolution has outputs x (weights of one output + 1 if it has a bias) operations, zero padding
    counted; a dense layer likewise; a batch normalisation 2 a value; a LIF layer 1 a neuron; a pooling 1 a value that
    it reads. Sums of branches are not counted. Where the input is 0 or 1 an operation is an AC and happens at the rate
    of the input: nonzero values / values. Where it is graded (the image, an average, a sum of spikes; the input of a
    batch normalisation) every operation is a MAC. A LIF layer accumulates always. What sees the constant image is
    counted at every step. The ANN is counted in one step, with a ReLU of 1 operation a value for each LIF layer, and
    all its operations are MACs.
    """
    return _charges(graph, origin, fused=False)


def bn_fused(graph: g.Graph, origin: Origin | None, chip: Chip) -> tuple[Charge, ...]:
    """As tser_compat, but every batch normalisation is folded into its convolution, in the SNN and in the ANN.

    A folded convolution has the weights that it had and a bias, if it had none: one operation an output, at the rate
    of its input as all its operations. Nothing else changes.
    """
    return _charges(graph, origin, fused=True)


def _charges(graph: g.Graph, origin: Origin | None, *, fused: bool) -> tuple[Charge, ...]:
    if origin is None:
        raise CannotCount(f"{graph.synapses[0].name}: {UNKNOWN}")
    binary = g.is_binary(graph)
    charges: list[Charge] = []
    for node in graph:
        match node:
            case g.Conv() | g.Dense():
                charges.append(_synapse(graph, node, origin, binary=binary[node.inputs[0]], fused=fused))
            case g.LIF():
                neurons = size(node)
                charges.append(Charge(name=node.name, acs=Terms(per_step=neurons), ann=Dense(macs=neurons)))
            case g.AvgPool() | g.MaxPool() | g.Mean():
                charges.append(_pool(graph, node, binary=binary[node.inputs[0]]))
    return tuple(charges)


def _synapse(graph: g.Graph, node: g.Conv | g.Dense, origin: Origin, *, binary: bool, fused: bool) -> Charge:
    """A layer with weights, and the batch normalisation behind it."""
    norm = node.name in origin.normalised
    bias = node.name in origin.biased or (norm and fused)
    operations = size(node) * (node.weight[0].size + bias)
    normalising = 0 if fused else 2 * size(node) * norm
    ann = Dense(macs=operations + normalising)
    if not binary:
        return Charge(name=node.name, macs=Terms(per_step=operations + normalising), ann=ann)
    return Charge(
        name=node.name,
        synapse=drivers(graph)[node.name],
        acs=Terms(per_nonzero=operations / size(graph[node.inputs[0]])),
        macs=Terms(per_step=normalising),
        ann=ann,
    )


def _pool(graph: g.Graph, node: g.Node, *, binary: bool) -> Charge:
    """One operation for each value read: of spikes, one for each spike."""
    values = size(graph[node.inputs[0]])
    if not binary:
        return Charge(name=node.name, macs=Terms(per_step=values), ann=Dense(macs=values))
    synapse, lif = events_of(graph, node.inputs[0])
    if synapse is None and lif is None:
        raise CannotCount(
            f"{node.name}: it pools the spikes of {node.inputs[0]}, which is no LIF layer and is read by no layer with"
            " weights, so their rate is not observed"
        )
    one = Terms(per_nonzero=1) if lif is None else Terms(per_spike=1)
    return Charge(name=node.name, synapse=synapse, lif=lif, acs=one, ann=Dense(macs=values))
