"""Graphs in torch: the integer twin exactly and fast, a float Graph in float32 for calibration; on a CPU or a GPU.

Integers travel in floats that hold them exactly. What a Graph means in float64 is `export.reference`.
Shapes: `[T, B, *shape]`, or `[1, B, *shape]` while a value is the same at every step.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from export import graph as g
from export import integer
from export.integer import EXACT_FLOAT32, IntegerLIF, SumPool, quantize_images


def run(graph: g.Graph, images: np.ndarray) -> dict[str, np.ndarray]:
    """Every node's integers [T or 1, B, *shape] for images [B, C, H, W] in [0, 1], or frames [T, B, C, H, W]."""
    return run_integers(graph, quantize_images(graph.input, images))


def run_integers(graph: g.Graph, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Like `run`, from the integers that the chip is sent; spikes are uint8, all else int64."""
    values = evaluate(graph, as_steps(graph, torch.from_numpy(pixels)), keep=lambda node: True)
    lifs = {node.name for node in graph if isinstance(node, IntegerLIF)}
    return {name: x.numpy().astype(np.uint8 if name in lifs else np.int64) for name, x in values.items()}


def logits(graph: g.Graph, values: dict[str, np.ndarray]) -> np.ndarray:
    """The integer logits [T, B, K] of each step; the network's are these divided by the readout's scale."""
    last = values[graph.output.name]
    return np.broadcast_to(last, (graph.T, *last.shape[1:]))


def predict(graph: g.Graph, batches: Iterable[np.ndarray], *, device: str = "cpu") -> Iterator[np.ndarray]:
    """The integer logits [T, B, K] for batches of images as `run` takes them; nothing else is kept."""
    for images in batches:
        pixels = torch.from_numpy(quantize_images(graph.input, images)).to(device)
        last = evaluate(graph, as_steps(graph, pixels))[graph.output.name].cpu().numpy().astype(np.int64)
        yield np.broadcast_to(last, (graph.T, *last.shape[1:]))


def as_steps(graph: g.Graph, pixels: Tensor) -> Tensor:
    """What the first layer reads at each step, [1 or T, B, C, H, W]."""
    return (pixels if graph.input.event else pixels[None]).float()


@torch.no_grad()
def evaluate(graph: g.Graph, x: Tensor, keep: Callable[[g.Node], bool] = lambda node: False) -> dict[str, Tensor]:
    """Values [1 or T, B, *shape], integers in floats, of the nodes to keep and of the output.

    x: the input at each step. Any other value is forgotten when its last reader has been computed.
    """
    last_reader = {name: node.name for node in graph for name in node.inputs}
    values = {graph.input.name: x}
    for node in graph.nodes[1:]:
        values[node.name] = step(node, [values[name] for name in node.inputs], graph.T)
        for name in set(node.inputs):
            if last_reader[name] == node.name and not keep(graph[name]):
                del values[name]
    return values


def step(node: g.Node, inputs: list[Tensor], T: int) -> Tensor:
    """The value [T or 1, B, *node.shape] of one node."""
    x = inputs[0]
    match node:
        case g.Conv():
            y = convolve(node, x)
            return y.add_(tensor(node.bias, x).to(y.dtype)[:, None, None])
        case g.Dense():
            dtype = exact_float(node.weight, x)
            y = x.to(dtype) @ tensor(node.weight, x).to(dtype).T
            return y.add_(tensor(node.bias, x).to(dtype))
        case IntegerLIF():
            return integer.lif(x.expand(T, *x.shape[1:]), v_decay=node.v_decay, threshold=node.threshold)
        case g.LIF():
            return lif(node, x.expand(T, *x.shape[1:]))
        case g.MaxPool():
            y = F.max_pool2d(x.flatten(0, 1), node.kernel, node.stride, node.padding)
            return y.unflatten(0, x.shape[:2])
        case SumPool():
            size = node.kernel[0] * node.kernel[1]  # sums of integers and their mean are exact in float64
            mean = F.avg_pool2d(x.flatten(0, 1).double(), node.kernel)
            return (mean * size).round_().float().reshape(*x.shape[:2], *node.shape)
        case g.Flatten():
            return x.flatten(2)
        case g.Add():
            return x + inputs[1]
    raise TypeError(f"{node.name}: a network for the chip has no {type(node).__name__}")


def convolve(node: g.Conv, x: Tensor) -> Tensor:
    """The convolution of integers x [L, B, C, H, W] without its bias, [L, B, *node.shape]."""
    # cuDNN may multiply by fractions (Winograd) or round to TF32; in float64 it does neither.
    dtype = torch.float64 if x.is_cuda else exact_float(node.weight, x)
    # So does NNPACK, which torch takes where it has no oneDNN.
    with torch.backends.nnpack.flags(enabled=False):
        y = torch.conv2d(
            x.flatten(0, 1).to(dtype),
            tensor(node.weight, x).to(dtype),
            stride=node.stride,
            padding=node.padding,
            groups=node.groups,
        )
    return y.unflatten(0, x.shape[:2])


def exact_float(weight: np.ndarray, x: Tensor) -> torch.dtype:
    """The float type in which torch sums integers weight * x exactly: float32 below 2^24, else float64.

    Weights that are floats are summed in the type of x.
    """
    if weight.dtype.kind == "f":
        return x.dtype
    rows = np.abs(weight.reshape(len(weight), -1).astype(np.int64)).sum(1)
    largest = int(rows.max()) * int(x.abs().max()) if x.numel() else 0
    return torch.float32 if largest < EXACT_FLOAT32 else torch.float64


def tensor(array: np.ndarray, like: Tensor) -> Tensor:
    """An array on the device of `like`."""
    return torch.from_numpy(array).to(like.device)


def lif(node: g.LIF, x: Tensor) -> Tensor:
    """Spikes of a float LIF (graph.LIF) for its input x [T, ...]."""
    v = torch.full_like(x[0], node.v_reset)
    spikes = torch.empty_like(x)
    for t, current in enumerate(x):
        leak = (v - node.v_reset) / node.tau
        h = v - leak + (current / node.tau if node.decay_input else current)
        spikes[t] = h >= node.v_threshold
        v = torch.where(spikes[t] > 0, node.v_reset, h)
    return spikes
