"""Can anything overflow? Proofs by interval arithmetic over a network's weights, for every input there can be.

The arithmetic is that of hardware.netx_sim without its limits: no current wraps, no membrane saturates. Its steps are
monotone, so the extremes of its inputs give those of its states:

    a = sum of weight * input              input: 0 or 1 from neurons, lo..hi from outside
    u = u * (4096 - iDecay) >> 12, + a << 6
    v = v * (4096 - vDecay) >> 12, + u + bias << 6, and 0 after a spike, that is above vThMant << 6

The bounds of a and u are reached by some input of the layer, and so is a lower bound of v below 0, unless zero padding,
counted as a possible input, cannot occur there. An upper bound of v need not be: after a step without a spike v is
taken to stand at the threshold. Where every bound is within its limit the chip computes just this: proven, for T steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hardware import chip
from hardware.net import INTEGRATOR, ConvLayer, InputLayer, Net, NetxError, Neuron, SpikingLayer
from hardware.netx_sim import FRACTION_BITS, STATE_MAX


INPUT_LIMIT = 127
"""Values that are sent in are clipped to +-127, signed 8-bit messages, where the range comes from the file."""

Interval = tuple[np.ndarray, np.ndarray]
"""Smallest and largest value, int64, one per channel."""


@dataclass(frozen=True, kw_only=True)
class LayerBounds:
    """How far a layer's numbers reach in T steps, and which of the chip's limits they may break.

    accumulator: largest |sum of weight * input| of one step, bias not included, in weight units. current: largest |u|;
    membrane: smallest and largest v before a spike resets it, both in 2^-6 weight units.
    """

    name: str
    accumulator: int
    current: int
    membrane: tuple[int, int]
    bias: int
    threshold: int
    risks: tuple[str, ...]
    """One sentence for each limit that is not proven to hold; none means proven."""

    @property
    def proven(self) -> bool:
        """Nothing wraps, saturates or is out of range, whatever the input."""
        return not self.risks


def bounds(
    net: Net,
    *,
    T: int,
    lo: int | np.ndarray | None = None,
    hi: int | np.ndarray | None = None,
    sent: int | None = None,
) -> tuple[LayerBounds, ...]:
    """Bound every layer with neurons over T steps, for inputs in [lo, hi], against the limits of Loihi 2.

    lo, hi: ints, or one per input channel ([C] or [N]); by default what images in [0, 1] become, which a file of ours
    says in its meta. sent: steps in which something is sent in; by default 1 if the first neurons hold it (iDecay 0),
    else T. Raises NetxError where the range is unknown or not one.
    """
    if T < 1 or (sent is not None and not 1 <= sent <= T):
        raise NetxError(f"T is {T} and sent {sent}: T must be at least 1, sent 1..T")
    facts = chip.load("loihi2")
    limits = {key: int(facts[f"limits.{key}"].value) for key in ("bias", "threshold", "accumulator", "state_bits")}
    arriving = _input_range(net, lo, hi)
    steps = sent
    found = []
    for block in net.blocks:
        neuron = block.neuron
        assert neuron is not None, "blocks have neurons"
        if steps is None:
            steps = 1 if neuron.iDecay == 0 else T
        weighted = arriving if isinstance(block, InputLayer) else weighted_sum(block, *arriving)
        if _magnitude(weighted) * T * T >= 2**50:
            raise NetxError(f"{block.name}: a sum may reach {_magnitude(weighted)}; scale the input down")
        bias = _bias_range(block)
        current, membrane = reach(weighted, bias, neuron, T=T, sent=steps)
        reached = (int(membrane[0].min()), int(membrane[1].max()))
        found.append(
            LayerBounds(
                name=block.name,
                accumulator=_magnitude(weighted),
                current=_magnitude(current),
                membrane=reached,
                bias=_magnitude(bias),
                threshold=neuron.vThMant,
                risks=_risks(block.name, neuron, T, limits, _magnitude(bias), _magnitude(current), reached),
            )
        )
        arriving, steps = (np.zeros(1, np.int64), np.ones(1, np.int64)), T
    return tuple(found)


def _risks(
    name: str, neuron: Neuron, T: int, limits: Mapping[str, int], bias: int, current: int, membrane: tuple[int, int]
) -> tuple[str, ...]:
    """A sentence for every limit that may be broken."""
    unit = 1 << FRACTION_BITS
    state = 2 ** (limits["state_bits"] - 1) - 1
    risks = []
    if bias > limits["bias"]:
        risks.append(f"{name}: a bias is {bias} in magnitude, at most {limits['bias']} fits; use a smaller scale")
    if neuron.vThMant > limits["threshold"] and neuron != INTEGRATOR:
        risks.append(f"{name}: vThMant is {neuron.vThMant}, at most {limits['threshold']} fits; use a smaller scale")
    if current > limits["accumulator"] * unit:
        risks.append(
            f"{name}: in {T} steps the current may reach {current / unit:.0f} weight units, beyond "
            f"{limits['accumulator']} it wraps around; use a smaller scale, or inputs of a smaller range"
        )
    for end, word in ((membrane[0], "below -"), (membrane[1], "above ")):
        if abs(end) > state:
            risks.append(
                f"{name}: in {T} steps the membrane may reach {end / unit:.0f} weight units, {word}{state // unit} it "
                "saturates; use a smaller scale"
            )
    return tuple(risks)


def weighted_sum(layer: SpikingLayer, lo: np.ndarray, hi: np.ndarray) -> Interval:
    """The interval of sum(weight * input) of each output channel [C_out], for inputs in [lo, hi], per channel or one.

    Its largest magnitude is hardware.net.accumulator_bound.
    """
    groups = layer.groups if isinstance(layer, ConvLayer) else 1
    if isinstance(layer, ConvLayer) and max(layer.padding) > 0:
        lo, hi = np.minimum(lo, 0), np.maximum(hi, 0)
    outputs, inputs = layer.weight.shape[:2]
    weight = layer.weight.reshape(groups, outputs // groups, inputs, -1)
    rising = np.maximum(weight, 0).sum(axis=3, dtype=np.int64)  # [groups, out, in], over the kernel
    falling = np.minimum(weight, 0).sum(axis=3, dtype=np.int64)
    lo, hi = (np.broadcast_to(limit, groups * inputs).reshape(groups, 1, inputs) for limit in (lo, hi))
    smallest, largest = (rising * lo + falling * hi).sum(axis=2), (rising * hi + falling * lo).sum(axis=2)
    return smallest.reshape(-1), largest.reshape(-1)


def reach(weighted: Interval, bias: Interval, neuron: Neuron, *, T: int, sent: int) -> tuple[Interval, Interval]:
    """The intervals of current and membrane over T steps, per channel, where `sent` steps bring a sum in `weighted`."""
    threshold = neuron.vThMant << FRACTION_BITS
    low, high = (np.zeros(np.broadcast_shapes(weighted[0].shape, bias[0].shape), np.int64) for _ in range(2))
    u: Interval = (low, high)
    v: Interval = (low, high)
    currents, membranes = [], []
    for t in range(T):
        u = _decayed(u, neuron.iDecay)
        if t < sent:
            u = _sum(u, _shifted(weighted))
        v = _sum(_decayed(v, neuron.vDecay), u, _shifted(bias))
        currents.append(u)
        membranes.append(v)
        fires = v[1] > threshold
        v = np.where(fires, np.minimum(v[0], 0), v[0]), np.minimum(v[1], threshold)
    return _hull(currents), _hull(membranes)


def _input_range(net: Net, lo: int | np.ndarray | None, hi: int | np.ndarray | None) -> Interval:
    if lo is None and hi is None:
        lo, hi = _declared_range(net.meta)
    if lo is None or hi is None:
        raise NetxError("only one of lo and hi is given; give both, the smallest and the largest value that is sent in")
    low, high = np.atleast_1d(np.asarray(lo)), np.atleast_1d(np.asarray(hi))
    channels = net.input.shape[0]
    for name, limit in (("lo", low), ("hi", high)):
        if not np.issubdtype(limit.dtype, np.integer) or limit.shape not in ((1,), (channels,)):
            raise NetxError(f"{name} is {limit.dtype} {limit.shape}, must be an integer or {channels}, one per channel")
    if np.any(low > high):
        raise NetxError(f"lo {low.tolist()} exceeds hi {high.tolist()}")
    if low.min() <= -STATE_MAX or high.max() >= STATE_MAX:
        raise NetxError(f"lo {low.min()} and hi {high.max()} exceed 24 bits; scale the input down")
    return low.astype(np.int64), high.astype(np.int64)


def _declared_range(meta: Mapping[str, Any]) -> Interval:
    """What pixels 0 and 1 become, by a file's meta: round(scale * (pixel - mean) / std), which rises with the pixel."""
    try:
        scale = float(meta["scales"]["input"])
        mean, std = (np.array(meta["input"][key], float) for key in ("mean", "std"))
        ends = [np.clip(np.rint(scale * (pixel - mean) / std), -INPUT_LIMIT, INPUT_LIMIT) for pixel in (0, 1)]
    except (KeyError, TypeError, ValueError):
        raise NetxError(
            "the file does not say what is sent in; give lo and hi, its smallest and largest value"
        ) from None
    return ends[0].astype(np.int64), ends[1].astype(np.int64)


def _bias_range(block: InputLayer | SpikingLayer) -> Interval:
    """The smallest and the largest bias of each channel."""
    if isinstance(block, InputLayer):
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    bias = block.bias.astype(np.int64).reshape(block.bias.shape[0], -1)
    return bias.min(axis=1), bias.max(axis=1)


def _decayed(interval: Interval, decay: int) -> Interval:
    low, high = (np.sign(end) * _scaled(np.abs(end), 4096 - decay) for end in interval)
    return low, high


def _scaled(magnitude: np.ndarray, share: int) -> np.ndarray:
    """magnitude * share >> 12, without a product that could leave 64 bits."""
    result: np.ndarray = (magnitude >> 12) * share + ((magnitude & 4095) * share >> 12)
    return result


def _shifted(interval: Interval) -> Interval:
    return interval[0] << FRACTION_BITS, interval[1] << FRACTION_BITS


def _sum(*intervals: Interval) -> Interval:
    low, high = (np.asarray(sum(ends)) for ends in zip(*intervals, strict=True))
    return low, high


def _hull(intervals: list[Interval]) -> Interval:
    lows, highs = zip(*intervals, strict=True)
    return np.minimum.reduce(lows), np.maximum.reduce(highs)


def _magnitude(interval: Interval) -> int:
    return int(max(interval[1].max(), -interval[0].min(), 0))
