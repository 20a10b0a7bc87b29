"""What a .net file computes, in numpy and without Lava: bit for bit the fixed-point arithmetic of Lava's LIFReset.

At each step, with a the weighted sum of the layer's input (all integers, -> is an arithmetic shift toward zero):

    u = u * (4096 - iDecay) >> 12, + a << 6     wraps beyond 24 bits
    v = v * (4096 - vDecay) >> 12, + u + bias << 6     saturates at +-(2^23 - 1)
    s = 1 if v > vThMant << 6 else 0;     v = 0 where s

(lava-nc 0.10.0, PyLifResetModelBitAcc.) Here every sample begins with u = v = 0 in every layer and takes T steps; on
the chip the layers are pipelined and reset one step after another, which gives exactly that (hardware.lava).

Shapes: T time steps, B samples; images [B, C, H, W] or [B, N]; spikes [T, B, *layer.shape].
"""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from hardware.net import DECAY_UNITY, ConvLayer, InputLayer, Net, NetxError, Neuron, SpikingLayer, accumulator_bound


FRACTION_BITS = 6
"""u and v count in 2^-6 of a weight unit."""

STATE_MAX = 2**23
"""u and v have 24 bits."""

COLUMN_ELEMENTS = 2**23
"""Values that one convolution lays out in memory at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What the layers `names` did: `spikes`, one uint8 [T, B, *shape] per name, and the last layer's membrane `v_out`.

    v_out: int64 [T, B, *shape], in 2^-6 weight units, at every step as it is compared with the threshold, that is
    before a spike resets it. The logits of a readout that never fires are v_out / 64.
    """

    names: tuple[str, ...]
    spikes: tuple[np.ndarray, ...]
    v_out: np.ndarray


def schedule(net: Net, T: int | None = None) -> tuple[int, int]:
    """Return (T, window): the steps that count, and the steps from sample to sample, a power of two on the chip.

    Defaults to meta["T"] and meta["window"], else the next power of two. Raises NetxError.
    """
    T = net.meta.get("T") if T is None else T
    if T is None:
        raise NetxError("the file does not say its number of time steps; give T")
    if not isinstance(T, int) or T < 1:
        raise NetxError(f"T is {T!r}, must be a positive int")
    smallest = 1 << (T - 1).bit_length()
    window = net.meta.get("window", smallest)
    if not isinstance(window, int) or window < 1 or window & (window - 1):
        raise NetxError(f"window is {window!r}, must be a power of two: the chip resets at no other intervals")
    return T, max(window, smallest)


def sample_count(net: Net, images: np.ndarray) -> int:
    """Return B of integer images [B, *input.shape] or events [T, B, *input.shape]. Raises NetxError unless they fit."""
    shape = net.input.shape
    if not np.issubdtype(images.dtype, np.integer) and images.dtype != bool:
        raise NetxError(
            f"images have type {images.dtype}, must be integers: multiply by meta's input_scale, round and convert"
        )
    before = images.ndim - len(shape)  # axes: [B], or [T, B] for events
    if before not in (1, 2) or images.shape[before:] != shape:
        sizes = ", ".join(map(str, shape))
        raise NetxError(f"images are {images.shape}, must be [B, {sizes}], or [T, B, {sizes}] for events")
    if images.size == 0:
        raise NetxError(f"images are {images.shape}: there is nothing to run")
    low, high = int(images.min()), int(images.max())
    if max(-low, high) >= STATE_MAX:
        raise NetxError(f"an input value exceeds 24 bits: {low}..{high}")
    return images.shape[before - 1]


def frames(net: Net, images: np.ndarray, *, T: int, hold: bool | None = None) -> np.ndarray:
    """Return what is sent into the first layer, int32 [1 or T, B, *input.shape]; after that nothing is sent.

    images: integers [B, *input.shape], or events [T, B, *input.shape] that are sent as they are. `hold`: an image is
    sent once and stays in the current of the first neurons; None means as the file says, that is if their iDecay is 0.
    """
    sample_count(net, images)
    images = images.astype(np.int32)
    if images.ndim == len(net.input.shape) + 2:
        if len(images) != T:
            raise NetxError(f"events have {len(images)} steps, T is {T}")
        return images
    first = net.blocks[0].neuron
    holds = (first is not None and first.iDecay == 0) if hold is None else hold
    return np.broadcast_to(images, (1 if holds else T, *images.shape))


def simulate(net: Net, images: np.ndarray, *, T: int | None = None, hold: bool | None = None) -> Run:
    """Run a net on integer images [B, *input.shape] or events [T, B, *input.shape]; see `frames` and `schedule`.

    Raises NetxError for inputs that do not fit, or that drive a sum out of 24 bits.
    """
    T, _ = schedule(net, T)
    x = frames(net, images, T=T, hold=hold)
    record: list[np.ndarray] = []
    v = x
    for block in net.blocks:
        current, bias = (x, np.zeros(1, np.int32)) if isinstance(block, InputLayer) else _synapses(block, x)
        assert block.neuron is not None, "blocks have neurons"
        x, v = integrate(current, bias, block.neuron, T=T)
        record.append(x)
    return Run(names=tuple(block.name for block in net.blocks), spikes=tuple(record), v_out=v.astype(np.int64))


def _synapses(layer: SpikingLayer, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The current and the bias, which broadcasts to it, of a layer's neurons."""
    if not isinstance(layer, ConvLayer):
        x = x.reshape(*x.shape[:2], -1)
    bias = layer.bias.reshape(layer.bias.shape + (1,) * (len(layer.shape) - layer.bias.ndim))
    return weighted_sum(layer, x), bias


def weighted_sum(layer: SpikingLayer, x: np.ndarray) -> np.ndarray:
    """The synapses' output int64 [L, B, *shape] for an integer input [L, B, ...]."""
    bound = accumulator_bound(layer, int(x.min()), int(x.max()))
    if bound >= STATE_MAX:
        raise NetxError(f"{layer.name}: a sum may reach {bound}, beyond the 24 bits of the chip; scale the input down")
    magnitude = int(np.abs(layer.weight.astype(np.int64)).reshape(len(layer.weight), -1).sum(axis=1).max())
    exact = np.float32 if magnitude * int(np.abs(x).max()) < 2**24 else np.float64  # floats, for BLAS
    weight: np.ndarray = layer.weight.astype(exact)
    if not isinstance(layer, ConvLayer):
        return (x.astype(exact) @ weight.T).astype(np.int64)
    batch = x.reshape(-1, *x.shape[2:])
    per_image = layer.shape[1] * layer.shape[2] * batch.shape[1] * weight.shape[2] * weight.shape[3]
    size = max(1, COLUMN_ELEMENTS // per_image)
    parts = [_convolve(batch[i : i + size].astype(exact), weight, layer) for i in range(0, len(batch), size)]
    return np.concatenate(parts).reshape(*x.shape[:2], *layer.shape)


def _convolve(x: np.ndarray, weight: np.ndarray, layer: ConvLayer) -> np.ndarray:
    """Convolve x [M, C_in, H, W] as torch.nn.Conv2d does, without bias; int64 [M, C_out, H', W']."""
    (sh, sw), (dh, dw), (ph, pw) = layer.stride, layer.dilation, layer.padding
    kh, kw = weight.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    windows = sliding_window_view(padded, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(2, 3))
    windows = windows[:, :, ::sh, ::sw, ::dh, ::dw]  # [M, C_in, H', W', kH, kW]
    y = [
        np.tensordot(channels, kernels, axes=([1, 4, 5], [1, 2, 3]))  # [M, H', W', C_out / groups]
        for channels, kernels in zip(
            np.split(windows, layer.groups, axis=1), np.split(weight, layer.groups), strict=True
        )
    ]
    return np.concatenate(y, axis=3).transpose(0, 3, 1, 2).astype(np.int64)


def integrate(current: np.ndarray, bias: np.ndarray, neuron: Neuron, *, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Spikes uint8 and membranes int32, both [T, ...], of neurons that receive current [L, ...] in their first L steps.

    bias broadcasts to the current's trailing axes. The equation is this file's; the membrane is before its reset.
    All in int32, as Lava has it: a current so large that it leaves 24 bits even after it wrapped once stays outside.
    """
    u = np.zeros(current.shape[1:], np.int32)
    v = np.zeros_like(u)
    spikes = np.zeros((T, *u.shape), np.uint8)
    membrane = np.zeros((T, *u.shape), np.int32)
    charge = bias.astype(np.int32) << FRACTION_BITS
    for t in range(T):
        u = _decay(u, neuron.iDecay)
        if t < len(current):
            u += current[t].astype(np.int32) << FRACTION_BITS
        u = np.where(u > STATE_MAX, u - 2 * STATE_MAX, np.where(u <= -STATE_MAX, u + 2 * STATE_MAX, u))
        v = np.clip(_decay(v, neuron.vDecay) + u + charge, 1 - STATE_MAX, STATE_MAX - 1)
        fired = v > neuron.vThMant << FRACTION_BITS
        spikes[t], membrane[t] = fired, v
        v[fired] = 0
    return spikes, membrane


def _decay(state: np.ndarray, decay: int) -> np.ndarray:
    """state * (4096 - decay) / 4096, rounded toward zero, int32."""
    if decay == DECAY_UNITY:
        return np.zeros_like(state)
    return (np.sign(state) * (np.abs(state.astype(np.int64)) * (DECAY_UNITY - decay) >> 12)).astype(np.int32)
