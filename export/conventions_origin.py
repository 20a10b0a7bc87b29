"""What a student was before its batch normalisation was folded: the networks of papers are counted unfolded."""

from export import graph as g
from export.conventions_terms import Origin
from export.lower import BatchNorm, trace
from train.networks import Network


def origin_of(network: Network, graph: g.Graph) -> Origin:
    """Which layers of the Graph of a network have a bias of their own, and which a batch normalisation behind them."""
    nodes: list[g.Node] = [graph.input]
    for part in ("stem", "body"):
        nodes += trace(network.get_submodule(part), part, nodes[-1])
    layers = (node.name for node in graph.synapses)
    return Origin(
        biased=frozenset(name for name in layers if network.get_submodule(name).bias is not None),
        normalised=frozenset(node.inputs[0] for node in nodes if isinstance(node, BatchNorm)),
    )
