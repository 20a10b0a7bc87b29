"""The integer twin of a Graph: int8 weights, integer membrane, the arithmetic of Loihi 2 to the last bit.

An integer graph is a Graph whose Input is a QuantizedInput, whose Conv and Dense nodes hold integers and whose neurons
are IntegerLIF nodes. The .net file and the int8 ONNX model are written from it, so a server and the chip give the same
spikes. Source of the arithmetic: Lava's fixed-point models (PyLifResetModelBitAcc), see hardware/netx_sim.py.

export/execute.py computes it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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
    a is the sum of the synapses and their bias. It fires above the threshold, not at it.
    """

    v_decay: int
    threshold: int


@dataclass(frozen=True, kw_only=True, eq=False)
class SumPool(g.Node):
    """Sum over kernel windows (rows, columns) with stride = kernel; shape [C, H, W], or [C] for one window (g.Mean).

    A remainder at the border is dropped. Only export.unfold makes it: the chip has no pooling.
    """

    kernel: tuple[int, int]


def quantize_images(node: g.Node, images: np.ndarray) -> np.ndarray:
    """The integers [..., C, H, W] that the chip is sent for images in [0, 1]; node: the QuantizedInput."""
    assert isinstance(node, QuantizedInput)
    column = (slice(None), None, None)
    x = (images.astype(np.float64) - node.mean[column]) / node.std[column]
    return np.clip(np.rint(x * node.scale), -node.limit, node.limit).astype(np.int64)


def lif(a: Tensor, *, v_decay: int, threshold: int) -> Tensor:
    """Spikes (0 or 1, float32) of IntegerLIF for currents a [T, ...], integers in floats."""
    kept, dtype = 2**DECAY_BITS - v_decay, membrane_type(a, v_decay)
    v = torch.zeros(a.shape[1:], dtype=dtype, device=a.device)
    spikes = torch.empty(a.shape, dtype=torch.float32, device=a.device)
    for t in range(len(a)):
        v = v.mul_(kept / 2**DECAY_BITS).trunc_().add_(a[t].to(dtype), alpha=2**FRACTION_BITS)
        v = v.clamp_(-V_LIMIT, V_LIMIT)
        fired = v > threshold * 2**FRACTION_BITS
        spikes[t] = fired
        v = v.masked_fill_(fired, 0)
    return spikes


def membrane_type(a: Tensor, v_decay: int) -> torch.dtype:
    """The float type that holds every membrane exactly that currents a [T, ...] can lead to, and its decay."""
    kept = 2**DECAY_BITS - v_decay
    largest = 2**FRACTION_BITS * len(a) * int(a.detach().abs().max()) if a.numel() else 0
    # The product before the shift must be exact. It is a power of two times an odd number times the membrane.
    odd = kept // (kept & -kept) if kept else 1
    return torch.float32 if largest * odd < EXACT_FLOAT32 else torch.float64
