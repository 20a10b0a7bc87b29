"""Count what a spiking network does on given images: events, not estimates.

A synaptic operation (SOP) is one nonzero input value that reaches one output through one weight. Its number is exact:
positions of a kernel that fall outside the map (zero padding) do not count, borders and strides are followed, and a
weight that happens to be zero is a synapse like any other. How events become additions, multiplications and joules
is a matter of convention: export/conventions.py. What is counted here is what the ONNX model reports of an image.

An update of a neuron is active at a step that moves its membrane: h[t] is not v[t-1] (export.graph.LIF). At any other
step the neuron is idle, and an event-driven machine need not touch it. A neuron that fires is active.

What the words mean is here; export/observe.py counts them while the Graph runs, in torch.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from export import graph as g
from export import reference


if TYPE_CHECKING:
    from export.observe import Observed


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

    @property
    def input_reads(self) -> np.ndarray:
        """Reads of an input value from memory: each that is not zero, once."""
        return self.nonzero

    @property
    def weight_reads(self) -> np.ndarray:
        """Reads of a weight: one for each synaptic operation; biases are apart."""
        return self.sops

    @property
    def membrane_accesses(self) -> np.ndarray:
        """Reads and writes of what the layer adds to: one of each for each synaptic operation."""
        return 2 * self.sops


@dataclass(frozen=True, kw_only=True)
class NeuronCounts:
    """The events of one LIF layer, int64 [T, N]."""

    name: str
    neurons: int
    spikes: np.ndarray
    active: np.ndarray
    """Updates that move a membrane."""

    @property
    def idle(self) -> np.ndarray:
        """Updates that leave a membrane as it was; a machine that works step by step makes them all the same."""
        return self.neurons - self.active

    @property
    def membrane_accesses(self) -> np.ndarray:
        """Reads and writes of membranes where every one is updated at every step: one of each."""
        return np.full_like(self.spikes, 2 * self.neurons)

    @property
    def spike_writes(self) -> np.ndarray:
        """Writes of a spike to memory: one for each."""
        return self.spikes


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


def count(
    graph: g.Graph, images: np.ndarray, *, batch_size: int = 32, device: str = "cpu", progress: bool = False
) -> Counts:
    """Run `images` [N, C, H, W] in [0, 1] through the Graph in float32 and count its events.

    A Graph of events takes frames [T, N, C, H, W]: its images are recordings, and no layer is static. Memory grows with
    `batch_size`, not with N. progress: show a bar where stderr is a terminal. Raises ValueError where there are no
    images or the shape is wrong.
    """
    N = reference.over_time(graph, images).shape[1]
    slices = (slice(start, start + batch_size) for start in range(0, N, batch_size))
    parts = (images[:, part] if graph.input.event else images[part] for part in slices)
    batches = (part.astype(np.float32, copy=False) for part in parts)
    return count_batches(graph, batches, device=device, progress=progress, total=N)


def count_batches(
    graph: g.Graph,
    batches: Iterable[np.ndarray],
    *,
    device: str = "cpu",
    progress: bool = False,
    total: int | None = None,
) -> Counts:
    """Like `count`, from batches of images as they come: of a batch, only its counts are kept.

    total: how many images there will be, for the bar. Raises ValueError where there are none or a shape is wrong.
    """
    from export.observe import observe  # torch, which a command imports after it has read its arguments

    shown = _bar(batches, total=total, axis=int(graph.input.event)) if progress else batches
    seen = list(observe(graph, shown, device=device))
    if not any(batch.images for batch in seen):
        raise ValueError("counting needs at least one image, got none")
    return _counts(graph, seen)


def _bar(batches: Iterable[np.ndarray], *, total: int | None, axis: int) -> Iterator[np.ndarray]:
    """The batches, with a bar of images that have been counted; axis: where the images of a batch are."""
    from tqdm import tqdm

    with tqdm(total=total, desc="Counting", unit="image", leave=False, disable=not sys.stderr.isatty()) as bar:
        for batch in batches:
            yield batch
            bar.update(batch.shape[axis])


def _counts(graph: g.Graph, seen: list["Observed"]) -> Counts:
    """What was observed of a row of batches, and what follows from the Graph's shapes alone."""
    found = {
        key: {name: np.concatenate([getattr(batch, key)[name] for batch in seen], axis=1) for name in first}
        for key, first in vars(seen[0]).items()
        if key != "images"
    }
    static, binary = g.is_static(graph), g.is_binary(graph)
    N = sum(batch.images for batch in seen)
    nothing = np.zeros((graph.T, N), np.int64)
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
                nonzero=found["nonzero"].get(node.name, nothing),
                taps=found["taps"].get(node.name, nothing),
                sops=found["taps"].get(node.name, nothing) * sops_per_tap(node),
            )
            for node in graph.synapses
        ),
        neurons=tuple(
            NeuronCounts(
                name=lif.name,
                neurons=_size(lif),
                spikes=found["spikes"][lif.name],
                active=found["active"][lif.name],
            )
            for lif in graph.lif_layers
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
