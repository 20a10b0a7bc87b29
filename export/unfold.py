"""Pooling as sums again: an integer twin whose weights hold a pooling, as the same twin without the repeated weights.

The chip's weights after average pooling are those of `export.fold`: every weight stands there once for each value of
the window. A server sums the window's spikes first and multiplies once, which gives the same integers from a fraction
of the weights.
"""

import dataclasses

from export import graph as g
from export.integer import SumPool
from export.prepare import sources, weigh_shortcuts


def unfold(original: g.Graph, twin: g.Graph) -> g.Graph:
    """The twin of `original` with its poolings as SumPool nodes; all spikes and logits are equal to the twin's.

    original: the Graph before export.prepare; its nodes keep their names, shapes and order. twin: of its prepared form.
    """
    nodes: list[g.Node] = []
    for node in weigh_shortcuts(original):
        match node:
            case g.Conv() | g.Dense():
                nodes.append(unrepeated(original, twin, node))
            case g.AvgPool():
                nodes.append(SumPool(name=node.name, inputs=node.inputs, shape=node.shape, kernel=node.kernel))
            case g.Mean():
                rows, columns = original[node.inputs[0]].shape[1:]
                nodes.append(SumPool(name=node.name, inputs=node.inputs, shape=node.shape, kernel=(rows, columns)))
            case g.LIF() | g.Input():
                nodes.append(twin[node.name])
            case _:
                nodes.append(node)
    return g.Graph(nodes=tuple(nodes), T=twin.T)


def unrepeated(original: g.Graph, twin: g.Graph, node: g.Conv | g.Dense) -> g.Node:
    """A synapse of the original with the twin's integers."""
    whole = twin[node.name]
    assert isinstance(whole, g.Conv | g.Dense)
    if whole.weight.shape == node.weight.shape:
        return dataclasses.replace(node, weight=whole.weight, bias=whole.bias)
    (c, h, w), kh, kw = folding(original, twin, node)
    spread = whole.weight.reshape(len(whole.weight), c, h, kh, w, kw)
    weight = spread[:, :, :, :1, :, :1]
    assert (spread == weight).all(), f"{node.name}: the weights of one window of the pooling before it differ"
    return dataclasses.replace(node, weight=weight.reshape(node.weight.shape), bias=whole.bias)


def folding(original: g.Graph, folded: g.Graph, node: g.Conv | g.Dense) -> tuple[tuple[int, int, int], int, int]:
    """What folding did to a layer's weights.

    Their shape (C, h, w) for one output, and how often rows and columns of it were repeated.
    """
    before, after = original[node.name].weight, folded[node.name].weight  # type: ignore[attr-defined]
    if isinstance(node, g.Conv):
        shape = before.shape[1:]
        return shape, after.shape[2] // shape[1], after.shape[3] // shape[2]
    source = next(sources(folded, folded[node.name].inputs[0]))
    c, height, width = source.shape
    pooled = original[original[node.name].inputs[0]]
    while isinstance(pooled, g.Flatten):
        pooled = original[pooled.inputs[0]]
    h, w = pooled.shape[1:] or (1, 1)
    return (c, h, w), height // h, width // w
