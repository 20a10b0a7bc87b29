"""The convention of this project's own figures: synaptic operations that happen, counted exactly."""

from export import graph as g
from export.conventions_terms import NOTHING, Charge, Dense, Origin, Terms, drivers
from export.counts import dense_macs, sops_per_tap
from hardware.chip import Chip


def event_exact(graph: g.Graph, origin: Origin | None, chip: Chip) -> tuple[Charge, ...]:
    """Every synaptic operation that happens is counted once, and nothing else is priced.

    A layer whose input is 0 or 1 adds: ACs = SOPs. A layer whose input is graded (after average pooling, a sum of
    spikes, or counts of events) multiplies its nonzero inputs: MACs = SOPs. A layer that sees the constant image
    multiplies densely, once an image, in the first step. The ANN is the same network with ReLU, run once: it multiplies
    densely in every layer. Neither is charged for zero padding, and the ANN does not skip zeros. Batch normalisation is
    folded. Biases, neuron updates, pooling and residual additions are listed and not priced; memory accesses are
    neither listed nor priced.
    """
    static, binary, places = g.is_static(graph), g.is_binary(graph), drivers(graph)
    charges: list[Charge] = []
    for node in graph.synapses:
        dense = dense_macs(node, graph[node.inputs[0]].shape)
        ann = Dense(macs=dense)
        if static[node.inputs[0]]:
            charges.append(Charge(name=node.name, macs=Terms(once=dense), ann=ann))
            continue
        sops = Terms(per_tap=sops_per_tap(node))
        acs, macs = (sops, NOTHING) if binary[node.inputs[0]] else (NOTHING, sops)
        charges.append(Charge(name=node.name, synapse=places[node.name], acs=acs, macs=macs, ann=ann))
    return tuple(charges)
