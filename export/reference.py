"""What a Graph means: a plain numpy executor. Slow, exact in float64, and the judge of every exported form."""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from export import graph as g


def conv2d(
    x: np.ndarray, weight: np.ndarray, *, stride: tuple[int, int], padding: tuple[int, int], groups: int = 1
) -> np.ndarray:
    """Convolve x [..., C_in, H, W] with weight [C_out, C_in/groups, kH, kW] as torch.nn.Conv2d does, without bias.

    Also what the integer network computes: exact for integers as long as sums fit x's type.
    """
    lead, (kh, kw) = x.shape[:-3], weight.shape[2:]
    (sh, sw), (ph, pw) = stride, padding
    padded = np.pad(x.reshape(-1, *x.shape[-3:]), ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    windows = sliding_window_view(padded, (kh, kw), axis=(2, 3))[:, :, ::sh, ::sw]  # [M, C, oh, ow, kh, kw]
    m, c_in, oh, ow = windows.shape[:4]
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(m * oh * ow, groups, (c_in // groups) * kh * kw)
    kernels = weight.reshape(groups, weight.shape[0] // groups, -1)
    y = np.stack([columns[:, i] @ kernels[i].T for i in range(groups)], axis=1)
    y = y.reshape(m, oh, ow, weight.shape[0]).transpose(0, 3, 1, 2)
    return y.reshape(*lead, *y.shape[1:])


def lif(x: np.ndarray, *, tau: float, v_threshold: float, v_reset: float, decay_input: bool) -> np.ndarray:
    """Spikes of a LIF layer (graph.LIF) for its input x [T, ...], with v = v_reset before the first step."""
    v = np.full_like(x[0], v_reset)
    spikes = np.zeros_like(x)
    for t, current in enumerate(x):
        if decay_input:
            h = v + (current - (v - v_reset)) / tau
        elif tau == math.inf:
            h = v + current
        else:
            h = v - (v - v_reset) / tau + current
        fired = h >= v_threshold
        spikes[t] = fired
        v = np.where(fired, np.asarray(v_reset, x.dtype), h)
    return spikes


def avg_pool(x: np.ndarray, kernel: tuple[int, int]) -> np.ndarray:
    """The mean over non-overlapping windows of x [..., H, W]."""
    kh, kw = kernel
    h, w = x.shape[-2] // kh, x.shape[-1] // kw
    cut: np.ndarray = x[..., : h * kh, : w * kw].reshape(*x.shape[:-2], h, kh, w, kw)
    return cut.mean(axis=(-3, -1))


def max_pool(
    x: np.ndarray, *, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> np.ndarray:
    """The maximum over windows of x [..., H, W], floats or integers; outside is less than every value."""
    (sh, sw), (ph, pw) = stride, padding
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    lead = [(0, 0)] * (x.ndim - 2)
    padded = np.pad(x, [*lead, (ph, ph), (pw, pw)], constant_values=lowest)
    windows = sliding_window_view(padded, kernel, axis=(-2, -1))[..., ::sh, ::sw, :, :]
    pooled: np.ndarray = windows.max(axis=(-2, -1))
    return pooled


def step(node: g.Node, inputs: list[np.ndarray], T: int) -> np.ndarray:
    """The value [T or 1, B, *node.shape] of one node from the values it reads."""
    x = inputs[0]
    match node:
        case g.Input():
            column = (slice(None), None, None)
            return (x - node.mean[column].astype(x.dtype)) / node.std[column].astype(x.dtype)
        case g.Conv():
            y = conv2d(x, node.weight.astype(x.dtype), stride=node.stride, padding=node.padding, groups=node.groups)
            return y + node.bias.astype(x.dtype)[:, None, None]
        case g.Dense():
            return x @ node.weight.astype(x.dtype).T + node.bias.astype(x.dtype)
        case g.LIF():
            current = np.broadcast_to(x, (T, *x.shape[1:]))
            return lif(
                current,
                tau=node.tau,
                v_threshold=node.v_threshold,
                v_reset=node.v_reset,
                decay_input=node.decay_input,
            )
        case g.AvgPool():
            return avg_pool(x, node.kernel)
        case g.MaxPool():
            return max_pool(x, kernel=node.kernel, stride=node.stride, padding=node.padding)
        case g.Mean():
            return x.mean(axis=(-2, -1))
        case g.Flatten():
            return x.reshape(*x.shape[:2], -1)
        case g.Add():
            return x + inputs[1]
    raise TypeError(f"{node.name}: the reference does not know {type(node).__name__}")


def run(graph: g.Graph, images: np.ndarray) -> dict[str, np.ndarray]:
    """Every node's value [T or 1, B, *shape] for images [B, C, H, W] in [0, 1], in the images' float type.

    A Graph of events (Input.event) takes frames [T, B, C, H, W]. Raises ValueError for another shape.
    """
    return run_over_time(graph, over_time(graph, images))


def run_over_time(graph: g.Graph, frames: np.ndarray) -> dict[str, np.ndarray]:
    """Like `run`, from what `over_time` makes of the images: [T or 1, B, C, H, W]."""
    values = {graph.input.name: step(graph.input, [frames], graph.T)}
    for node in graph.nodes[1:]:
        values[node.name] = step(node, [values[name] for name in node.inputs], graph.T)
    return values


def over_time(graph: g.Graph, images: np.ndarray) -> np.ndarray:
    """Images [B, C, H, W] as [1, B, C, H, W]; frames of events [T, B, C, H, W] as they are.

    Raises ValueError where they do not fit the Graph's input.
    """
    steps = (graph.T,) if graph.input.event else ()
    lead, shape = len(steps), graph.input.shape
    if images.ndim != lead + 4 or images.shape[:lead] != steps or images.shape[lead + 1 :] != shape:
        name = "frames of events" if graph.input.event else "images"
        raise ValueError(f"{name} must be [{', '.join(map(str, (*steps, 'B', *shape)))}], got {list(images.shape)}")
    return images if graph.input.event else images[None]


def logits(graph: g.Graph, values: dict[str, np.ndarray]) -> np.ndarray:
    """The logits [T, B, K] among the values that `run` returned."""
    last = values[graph.output.name]
    return np.broadcast_to(last, (graph.T, *last.shape[1:]))
