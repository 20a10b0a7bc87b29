"""The integer twin of a Graph: int8 weights, integer membrane, the arithmetic of Loihi 2 to the last bit.

An integer graph is a Graph whose Input is a QuantizedInput, whose Conv and Dense nodes hold integers and whose neurons
are IntegerLIF nodes. The .net file and the int8 ONNX model are written from it, so a server and the chip give the same
spikes. Source of the arithmetic: Lava's fixed-point models (PyLifResetModelBitAcc), see hardware/netx_sim.py.
"""

from dataclasses import dataclass

import numpy as np
import torch

from export import graph as g


FRACTION_BITS = 6  # a membrane is kept in 2^-6 of a weight unit
DECAY_BITS = 12
WEIGHT_LIMIT = 127  # int8 without -128, so that a sign can always be turned
V_LIMIT = 2**23 - 1  # 24-bit membrane
ACCUMULATOR_LIMIT = 2**17 - 1  # a current of more would wrap around
EXACT_FLOAT32 = 2**24  # sums of integers below this are exact in float32, in any order


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedInput(g.Input):
    """x = round(scale * (image - mean) / std) to the nearest integer, ties to even, clipped to [-limit, limit]."""

    scale: float
    limit: int = 127


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegerLIF(g.Node):
    """Loihi's neuron with a current that lasts one step, in 2^-6 of a weight unit.

    v[t] = clip(trunc(v[t-1] * (4096 - v_decay) / 4096) + 64 a[t], -(2^23 - 1), 2^23 - 1)
    s[t] = 1 if v[t] > 64 * threshold else 0;  v[t] = 0 if s[t];  v[0] = 0 before the first step
    a is the sum of the synapse and its bias. It fires above the threshold, not at it.
    """

    v_decay: int
    threshold: int


def run(graph: g.Graph, images: np.ndarray) -> dict[str, np.ndarray]:
    """Every node's integers [T or 1, B, *shape] for images [B, C, H, W] in [0, 1]; sums are checked to be exact."""
    return run_integers(graph, quantize_images(graph.input, images))


def quantize_images(node: g.Node, images: np.ndarray) -> np.ndarray:
    """The integers [B, C, H, W] that the chip is sent for images in [0, 1]; node: the QuantizedInput."""
    assert isinstance(node, QuantizedInput)
    column = (slice(None), None, None)
    x = (images.astype(np.float64) - node.mean[column]) / node.std[column]
    return np.clip(np.rint(x * node.scale), -node.limit, node.limit).astype(np.int64)


def run_integers(graph: g.Graph, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Like `run`, from the integers that the chip is sent."""
    values = {graph.input.name: pixels[None]}
    for node in graph.nodes[1:]:
        values[node.name] = step(node, values[node.inputs[0]], graph.T)
    return values


def step(node: g.Node, x: np.ndarray, T: int) -> np.ndarray:
    """The integers [T or 1, B, *node.shape] of one node."""
    match node:
        case g.Conv():
            return convolve(node, x) + node.bias[:, None, None]
        case g.Dense():
            dtype = exact_float(node.weight, x)
            return (x.astype(dtype) @ node.weight.astype(dtype).T).astype(np.int64) + node.bias
        case IntegerLIF():
            return lif(np.broadcast_to(x, (T, *x.shape[1:])), v_decay=node.v_decay, threshold=node.threshold)
        case g.Flatten():
            return x.reshape(*x.shape[:2], -1)
    raise TypeError(f"{node.name}: the integer network has no {type(node).__name__}")


def convolve(node: g.Conv, x: np.ndarray) -> np.ndarray:
    """The convolution of integers x [L, B, C, H, W] without its bias, [L, B, *node.shape]."""
    dtype = exact_float(node.weight, x)
    # NNPACK, which torch takes where it has no oneDNN, multiplies by fractions (Winograd) and misses integers.
    with torch.backends.nnpack.flags(enabled=False):
        y = torch.conv2d(
            torch.from_numpy(x.reshape(-1, *x.shape[2:]).astype(dtype)),
            torch.from_numpy(node.weight.astype(dtype)),
            stride=node.stride,
            padding=node.padding,
            groups=node.groups,
        )
    return y.numpy().reshape(*x.shape[:2], *node.shape).astype(np.int64)


def exact_float(weight: np.ndarray, x: np.ndarray) -> type[np.floating]:
    """The float type in which torch and BLAS sum weight * x exactly: float32 below 2^24, else float64."""
    largest = int(np.abs(weight.reshape(len(weight), -1)).sum(1).max()) * int(np.abs(x).max(initial=0))
    return np.float32 if largest < EXACT_FLOAT32 else np.float64


def lif(a: np.ndarray, *, v_decay: int, threshold: int) -> np.ndarray:
    """Spikes of IntegerLIF for currents a [T, ...]."""
    v = np.zeros_like(a[0])
    spikes = np.zeros(a.shape, np.uint8)
    for t, current in enumerate(a):
        kept = v * (2**DECAY_BITS - v_decay)
        kept = np.sign(kept) * (np.abs(kept) >> DECAY_BITS)  # towards zero
        v = np.clip(kept + (current << FRACTION_BITS), -V_LIMIT, V_LIMIT)
        fired = v > threshold << FRACTION_BITS
        spikes[t] = fired
        v = np.where(fired, 0, v)
    return spikes


def logits(graph: g.Graph, values: dict[str, np.ndarray]) -> np.ndarray:
    """The integer logits [T, B, K] of each step; the network's are these divided by the readout's scale."""
    last = values[graph.output.name]
    return np.broadcast_to(last, (graph.T, *last.shape[1:]))
