"""Count what a spiking network does on given images: events, not estimates.

A synaptic operation (SOP) is one nonzero input value that reaches one output through one weight. Its number is exact:
positions of a kernel that fall outside the map (zero padding) do not count, borders and strides are followed, and a
weight that happens to be zero is a synapse like any other. How events become additions, multiplications and joules
is a matter of convention: export/conventions.py. What is counted here is what the ONNX model reports of an image.
"""

from dataclasses import dataclass

import numpy as np

from export import graph as g
from export import reference


@dataclass(frozen=True, kw_only=True)
class SynapseCounts:
    """The events of one Conv or Dense, for T steps and N images.

    `nonzero`, `taps` and `sops` are int64 [T, N], and zero where `static` (before the first LIF nothing spikes).
    """

    name: str
    kind: str
    """conv or dense."""
    static: bool
    """Whether the layer's input is the same at every step, so that it is computed once an image."""
    binary: bool
    """Whether the layer's input is 0 or 1, so that the layer adds and never multiplies."""
    inputs: int
    """Input values of one image at one step."""
    outputs: int
    """Output values of one image at one step: what a bias is added to."""
    dense_macs: int
    """Multiplications of the same layer in an ANN for one image; zero padding excluded, zeros not skipped."""
    nonzero: np.ndarray
    """Input values that are not zero."""
    taps: np.ndarray
    """Pairs of such a value and a kernel position inside the output map."""
    sops: np.ndarray
    """Synaptic operations: nonzero input values times their fan-out, taps times `sops_per_tap`."""


@dataclass(frozen=True, kw_only=True)
class NeuronCounts:
    """The spikes of one LIF layer, int64 [T, N]; every neuron is updated at every step."""

    name: str
    neurons: int
    spikes: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a network of T steps does on N images, and what it does besides its synapses in one image."""

    T: int
    num_images: int
    synapses: tuple[SynapseCounts, ...]
    neurons: tuple[NeuronCounts, ...]
    bias_additions: int
    """Additions of a bias in one image: every output at every step, once where the input is static."""
    neuron_updates: int
    """Updates of a membrane in one image: T times the neurons."""
    pooled_values: int
    """Values that average and maximum pooling read in one image, each once however many windows hold it."""
    residual_additions: int
    """Additions of Add nodes in one image."""


def fan_map(node: g.Conv | g.Dense, in_shape: tuple[int, ...]) -> np.ndarray:
    """How many outputs of one output channel each input position reaches: int64 [H, W]; for Dense one: int64 [1].

    A convolution is separable here: row h is read by the outputs i with i * stride + u - padding = h for some
    kernel row u, and the same holds for columns.
    """
    if isinstance(node, g.Dense):
        return np.ones(1, np.int64)
    return np.outer(*fan_out(node, in_shape))


def fan_out(node: g.Conv, in_shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """How many rows of outputs each input row reaches, and columns each column: int64 [H], [W]."""
    rows, columns = (
        _fan_out(in_shape[axis + 1], node.shape[axis + 1], node.weight.shape[axis + 2], *step)
        for axis, step in enumerate(zip(node.stride, node.padding, strict=True))
    )
    return rows, columns


def _fan_out(size: int, out_size: int, kernel: int, stride: int, padding: int) -> np.ndarray:
    """For each of `size` positions of one axis, the number of the `out_size` windows that cover it."""
    read = np.arange(out_size)[:, None] * stride + np.arange(kernel) - padding
    return np.bincount(read[(read >= 0) & (read < size)], minlength=size)


def sops_per_tap(node: g.Conv | g.Dense) -> int:
    """Output channels that one input value reaches at one kernel position: SOPs = taps * sops_per_tap."""
    return node.weight.shape[0] // (node.groups if isinstance(node, g.Conv) else 1)


def spike_driven(graph: g.Graph) -> tuple[g.Conv | g.Dense, ...]:
    """The synaptic layers whose input changes with time, in order: those that have SOPs."""
    static = g.is_static(graph)
    return tuple(node for node in graph.synapses if not static[node.inputs[0]])


def taps(nonzero: np.ndarray, fan: np.ndarray) -> np.ndarray:
    """Pairs of a nonzero input and a kernel position inside the output map: int64 [T, N].

    nonzero: bool [T, N, C, H, W] with fan [H, W], or [T, N, C] with fan [1].
    """
    per_position = nonzero.sum(axis=2, dtype=np.int64)  # [T, N, H, W] or [T, N]
    return (per_position.reshape(*nonzero.shape[:2], -1) * fan.ravel()).sum(axis=2)


def count(graph: g.Graph, images: np.ndarray, *, batch_size: int = 8) -> Counts:
    """Run `images` [N, C, H, W] in [0, 1] through the Graph in float32 and count its events.

    A Graph of events takes frames [T, N, C, H, W]: its images are recordings, and no layer is static. Memory grows with
    `batch_size`, not with N. Raises ValueError where there are no images or the shape is wrong.
    """
    frames = reference.over_time(graph, images)
    N = frames.shape[1]
    if N == 0:
        raise ValueError("counting needs at least one image, got none")
    static, layers = g.is_static(graph), spike_driven(graph)
    fans = {node.name: fan_map(node, graph[node.inputs[0]].shape) for node in graph.synapses}
    nonzero = {node.name: np.zeros((graph.T, N), np.int64) for node in graph.synapses}
    tapped = {node.name: np.zeros((graph.T, N), np.int64) for node in graph.synapses}
    spikes = {node.name: np.zeros((graph.T, N), np.int64) for node in graph.lif_layers}
    for start in range(0, N, batch_size):
        part = slice(start, start + batch_size)
        values = reference.run_over_time(graph, frames[:, part].astype(np.float32))
        for lif in graph.lif_layers:
            spikes[lif.name][:, part] = _per_image(values[lif.name] != 0)
        for node in layers:
            events = values[node.inputs[0]] != 0
            nonzero[node.name][:, part] = _per_image(events)
            tapped[node.name][:, part] = taps(events, fans[node.name])
    binary = g.is_binary(graph)
    return Counts(
        T=graph.T,
        num_images=N,
        synapses=tuple(
            SynapseCounts(
                name=node.name,
                kind=type(node).__name__.lower(),
                static=static[node.inputs[0]],
                binary=binary[node.inputs[0]],
                inputs=_size(graph[node.inputs[0]]),
                outputs=_size(node),
                dense_macs=dense_macs(node, graph[node.inputs[0]].shape),
                nonzero=nonzero[node.name],
                taps=tapped[node.name],
                sops=tapped[node.name] * sops_per_tap(node),
            )
            for node in graph.synapses
        ),
        neurons=tuple(
            NeuronCounts(name=lif.name, neurons=_size(lif), spikes=spikes[lif.name]) for lif in graph.lif_layers
        ),
        bias_additions=sum(_size(node) * _steps(graph, node, static) for node in graph.synapses),
        neuron_updates=sum(_size(lif) * graph.T for lif in graph.lif_layers),
        pooled_values=sum(
            _size(graph[node.inputs[0]]) * _steps(graph, node, static)
            for node in graph
            if isinstance(node, g.AvgPool | g.MaxPool | g.Mean)
        ),
        residual_additions=sum(_size(node) * _steps(graph, node, static) for node in graph if isinstance(node, g.Add)),
    )


def dense_macs(node: g.Conv | g.Dense, in_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one layer for one image in one pass, zero padding excluded, zeros not skipped."""
    return int(fan_map(node, in_shape).sum()) * in_shape[0] * sops_per_tap(node)


def _size(node: g.Node) -> int:
    return int(np.prod(node.shape))


def _steps(graph: g.Graph, node: g.Node, static: dict[str, bool]) -> int:
    return 1 if static[node.name] else graph.T


def _per_image(events: np.ndarray) -> np.ndarray:
    """Sum over everything but the first two axes: [T, N]."""
    return events.reshape(*events.shape[:2], -1).sum(axis=2)
