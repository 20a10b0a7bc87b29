"""Graph passes that make a student sequential synapse-LIF pairs: average pooling becomes part of the next weights."""

import dataclasses

import numpy as np

from export import graph as g


class CannotFold(ValueError):
    """A pooling that cannot become part of the next layer's weights; the message names it."""


def fold_pooling(graph: g.Graph) -> g.Graph:
    """An equal Graph without AvgPool and Mean: each is folded into the convolution or dense layer that reads it.

    Pool k then convolution K, stride s, padding p is one convolution of K*k, stride s*k, padding p*k with
    weight[u*k + j] = w[u] / k^2. Raises CannotFold where nothing linear follows or a remainder is dropped.
    """
    while pools := [node for node in graph if isinstance(node, g.AvgPool | g.Mean)]:
        graph = fold_one(graph, pools[-1])
    return graph


def fold_one(graph: g.Graph, pool: g.AvgPool | g.Mean) -> g.Graph:
    """Fold one pooling into its reader."""
    source = graph[pool.inputs[0]]
    readers = graph.readers(pool.name)
    flatten = readers[0] if len(readers) == 1 and isinstance(readers[0], g.Flatten) else None
    target = graph.readers(flatten.name) if flatten else readers
    if len(target) != 1 or not isinstance(target[0], g.Conv | g.Dense):
        raise CannotFold(
            f"{pool.name}: pooling must be read by one convolution or dense layer to become part of its weights, "
            f"it is read by {', '.join(f'{r.name} ({type(r).__name__})' for r in target) or 'nothing'}"
        )
    kernel = pool.kernel if isinstance(pool, g.AvgPool) else source.shape[1:]
    if any(size % k for size, k in zip(source.shape[1:], kernel, strict=True)):
        raise CannotFold(f"{pool.name}: {source.shape[1:]} is not a multiple of the window {kernel}; pad or resize")
    reader = target[0]
    merged = into_conv(reader, kernel) if isinstance(reader, g.Conv) else into_dense(reader, pool, source, kernel)
    nodes: list[g.Node] = []
    for node in graph:
        if node is pool or node is flatten:
            continue
        if node is not reader:
            nodes.append(node)
        elif isinstance(merged, g.Conv):
            nodes.append(dataclasses.replace(merged, inputs=(source.name,)))
        else:
            name = flatten.name if flatten else f"{pool.name}/flatten"
            size = (int(np.prod(source.shape)),)
            nodes.append(g.Flatten(name=name, inputs=(source.name,), shape=size))
            nodes.append(dataclasses.replace(merged, inputs=(name,)))
    return g.Graph(nodes=tuple(nodes), T=graph.T)


def into_conv(conv: g.Conv, kernel: tuple[int, ...]) -> g.Conv:
    """The convolution that reads what the pooling read."""
    kh, kw = kernel
    return dataclasses.replace(
        conv,
        weight=np.kron(conv.weight, np.ones((1, 1, kh, kw))) / (kh * kw),
        stride=(conv.stride[0] * kh, conv.stride[1] * kw),
        padding=(conv.padding[0] * kh, conv.padding[1] * kw),
    )


def into_dense(dense: g.Dense, pool: g.Node, source: g.Node, kernel: tuple[int, ...]) -> g.Dense:
    """The dense layer that reads what the pooling read, flattened."""
    kh, kw = kernel
    c, h, w = source.shape
    weight = dense.weight.reshape(len(dense.weight), c, h // kh, w // kw)
    spread = np.kron(weight, np.ones((1, 1, kh, kw))) / (kh * kw)
    return dataclasses.replace(dense, weight=spread.reshape(len(weight), -1))
