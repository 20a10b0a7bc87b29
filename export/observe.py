"""Run a Graph in torch, on a CPU or a GPU, and count the events of every layer as they happen, batch by batch.

What it computes is `export.reference`, operation for operation; what it counts is defined in export/counts.py. Memory
grows with a batch, not with the data set: a value is forgotten when its last reader has been computed, and of a batch
four integers a layer, step and image are kept. Counting costs one pass over each value that spikes drive.

Shapes: T steps, B images; values are `[T, B, *shape]`, or `[1, B, *shape]` while they are the same at every step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from export import graph as g
from export import reference
from export.counts import fan_map, spike_driven


WHOLE = {torch.float32: 2**24, torch.float64: 2**53}
"""Up to here a float type holds every whole number, so that a sum of ones is exact in any order."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """The events of some images by name of layer, int64 [T, B] each."""

    images: int
    """B."""
    nonzero: dict[str, np.ndarray]
    taps: dict[str, np.ndarray]
    """Of spike-driven layers with weights, as `nonzero`."""
    spikes: dict[str, np.ndarray]
    active: dict[str, np.ndarray]
    """Of LIF layers, as `spikes`."""


class Observer:
    """A Graph on a device, ready to be run and observed."""

    def __init__(self, graph: g.Graph, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        """Raises ValueError where a layer is so large that its events cannot be summed exactly in `dtype`."""
        self.graph, self.device, self.dtype = graph, torch.device(device), dtype
        self.binary = g.is_binary(graph)
        self.driven = spike_driven(graph)
        self.last_reader = {name: node.name for node in graph for name in node.inputs}
        self.weights = {node.name: (self._tensor(node.weight), self._tensor(node.bias)) for node in graph.synapses}
        self.pixels = {key: self._tensor(getattr(graph.input, key))[:, None, None] for key in ("mean", "std")}
        self.fans = {
            node.name: torch.from_numpy(fan_map(node, graph[node.inputs[0]].shape).ravel()).to(self.device).double()
            for node in self.driven
        }
        large = next((node for node in graph if np.prod(node.shape) > WHOLE[dtype]), None)
        if large is not None:
            raise ValueError(
                f"{large.name}: a layer of {np.prod(large.shape):,} values; events are counted exactly in layers of up"
                f" to {WHOLE[dtype]:,}"
            )

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, self.dtype)

    @torch.no_grad()
    def __call__(self, frames: np.ndarray) -> Observed:
        """Run what `reference.over_time` makes of images, [1 or T, B, C, H, W], and count."""
        # TensorFloat-32 rounds more coarsely than the float32 that a student is judged in.
        with torch.backends.cudnn.flags(allow_tf32=False):
            found = self._run(self._tensor(frames))
        rows = [value for values in found.values() for value in values.values()]
        counted = iter(torch.stack(rows).long().cpu().numpy()) if rows else iter(())  # one copy from a GPU
        return Observed(
            images=frames.shape[1],
            **{key: {name: next(counted) for name in values} for key, values in found.items()},
        )

    def _run(self, x: Tensor) -> dict[str, dict[str, Tensor]]:
        """Events [T, B] in float64, by the fields of Observed and by layer."""
        found: dict[str, dict[str, Tensor]] = {"nonzero": {}, "taps": {}, "spikes": {}, "active": {}}
        columns: dict[str, Tensor] = {}  # by name of a value: its events at each position, [T, B, positions]
        values = {self.graph.input.name: (x - self.pixels["mean"]) / self.pixels["std"]}
        for node in self.graph.nodes[1:]:
            inputs = [values[name] for name in node.inputs]
            if isinstance(node, g.LIF):
                values[node.name], found["active"][node.name] = lif(node, inputs[0], self.graph.T)
                columns[node.name] = self._columns(node.name, values[node.name])
                found["spikes"][node.name] = columns[node.name].sum(2)
            elif isinstance(node, g.Conv | g.Dense):
                if node.name in self.fans:
                    source = node.inputs[0]
                    if source not in columns:
                        columns[source] = self._columns(source, inputs[0])
                    found["nonzero"][node.name] = columns[source].sum(2)
                    found["taps"][node.name] = columns[source] @ self.fans[node.name]
                values[node.name] = synapse(node, inputs[0], *self.weights[node.name])
            else:
                values[node.name] = step(node, inputs)
            for name in set(node.inputs):
                if self.last_reader[name] == node.name:
                    del values[name]
        return found

    def _columns(self, name: str, x: Tensor) -> Tensor:
        """Values of x [T, B, C, ..] that are not zero, summed over C: float64 [T, B, positions]."""
        events = x if self.binary[name] else torch.ne(x, 0, out=torch.empty_like(x))
        return events.sum(2).flatten(2).double() if x.dim() > 3 else events.sum(2, keepdim=True).double()


def observe(graph: g.Graph, batches: Iterable[np.ndarray], *, device: torch.device | str = "cpu") -> Iterator[Observed]:
    """The events of batches of images [B, C, H, W] in [0, 1], or of recordings [T, B, C, H, W].

    In float64 where the first batch is float64, else in float32. Raises ValueError for another shape.
    """
    observer = None
    for images in batches:
        frames = reference.over_time(graph, images)
        if observer is None:
            dtype = torch.float64 if images.dtype == np.float64 else torch.float32
            observer = Observer(graph, device=device, dtype=dtype)
        yield observer(frames)


def synapse(node: g.Conv | g.Dense, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The value of a layer with weights."""
    if isinstance(node, g.Dense):
        return F.linear(x, weight, bias)
    y = F.conv2d(x.flatten(0, 1), weight, bias, stride=node.stride, padding=node.padding, groups=node.groups)
    return y.unflatten(0, x.shape[:2])


def lif(node: g.LIF, x: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """Spikes [T, B, *shape] for the input x [1 or T, B, *shape], and active updates, float64 [T, B]."""
    v = torch.full_like(x[0], node.v_reset)
    spikes, changed = x.new_empty(T, *x.shape[1:]), torch.empty_like(v)
    active = []
    for t in range(T):
        current = x[t if len(x) > 1 else 0]
        if node.decay_input:  # v + (x - (v - v_reset)) / tau
            h = (current - (v - node.v_reset if node.v_reset else v)).div_(node.tau).add_(v)
        else:
            h = (v - (v - node.v_reset) / node.tau).add_(current)
        fired = torch.ge(h, node.v_threshold)
        spikes[t] = fired
        torch.ne(h, v, out=changed)
        if node.v_reset >= node.v_threshold:  # only then may a membrane fire where it is
            changed.masked_fill_(fired, 1)
        active.append(changed.flatten(1).sum(1))
        v = h.masked_fill_(fired, node.v_reset)
    return spikes, torch.stack(active).double()


def step(node: g.Node, inputs: list[Tensor]) -> Tensor:
    """The value of a node without weights and without a membrane."""
    x = inputs[0]
    match node:
        case g.AvgPool():
            return F.avg_pool2d(x.flatten(0, 1), node.kernel).unflatten(0, x.shape[:2])
        case g.MaxPool():
            y = F.max_pool2d(x.flatten(0, 1), node.kernel, node.stride, node.padding)
            return y.unflatten(0, x.shape[:2])
        case g.Mean():
            return x.mean(dim=(-2, -1))
        case g.Flatten():
            return x.flatten(2)
        case g.Add():
            return x + inputs[1]
    raise TypeError(f"{node.name}: it is not known how to count a {type(node).__name__}")
