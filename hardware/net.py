"""An integer spiking network as Loihi runs it: its layers, what fits the chip, and how far its sums reach.

Shapes: C channels, H rows, W columns, N features; a layer's `shape` is its output, one step of one sample.
`vThMant`, `vDecay`, `iDecay` are netx's names; `hardware.netx_sim` gives their equation.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from hardware import chip


DECAY_UNITY = 4096
"""A decay of 4096 forgets everything in one step, 0 keeps everything, d keeps (4096 - d) / 4096."""


class NetxError(ValueError):
    """A network that does not fit the chip, or a netx file that does not describe one."""


@dataclass(frozen=True, kw_only=True)
class Neuron:
    """A layer's current-based leaky integrate-and-fire neurons (netx type CUBA).

    `vThMant`: fires when its membrane exceeds it strictly; `vDecay`, `iDecay`: share of the membrane and of the
    current that is lost at each step, in 1/4096.
    """

    vThMant: int
    vDecay: int
    iDecay: int = DECAY_UNITY


INTEGRATOR = Neuron(vThMant=131072, vDecay=4096, iDecay=0)
"""netx's neurons for a dense layer without any: they hold their current, v = sum of the input + bias, and never fire.

Only there: the threshold is one more than 17 bits hold, and above what a membrane can reach.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class InputLayer:
    """The shape of what is sent in: (C, H, W), or (N,). Usually no neurons and no time step.

    neuron: neurons that receive what is sent as their current; they spike and take a time step.
    weight, bias: with a neuron, that the sender should send weight * x + bias for data x. netx and Lava only note it.
    """

    shape: tuple[int, ...]
    name: str = "input"
    neuron: Neuron | None = None
    weight: int = 64
    bias: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvLayer:
    """A convolution and its neurons, in the order of torch.nn.Conv2d; pairs are (vertical, horizontal).

    weight: int [C_out, C_in / groups, kH, kW]; bias: int [C_out], or [C_out, H, W] for one per neuron.
    """

    name: str
    shape: tuple[int, int, int]
    weight: np.ndarray
    bias: np.ndarray
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    neuron: Neuron


@dataclass(frozen=True, kw_only=True, eq=False)
class FlattenLayer:
    """(C, H, W) -> (C*H*W,) in row-major order. No neurons, no time step."""

    shape: tuple[int, ...]
    name: str = "flatten"


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseLayer:
    """A matrix and its neurons. weight: int [N_out, N_in]; bias: int [N_out]; neuron may be INTEGRATOR."""

    name: str
    shape: tuple[int, ...]
    weight: np.ndarray
    bias: np.ndarray
    neuron: Neuron


SpikingLayer = ConvLayer | DenseLayer
Layer = InputLayer | ConvLayer | FlattenLayer | DenseLayer


@dataclass(frozen=True, kw_only=True, eq=False)
class Net:
    """Layers in order, the InputLayer first, and `meta`: what the file says about itself (any JSON)."""

    layers: tuple[Layer, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def input(self) -> InputLayer:
        """The first layer."""
        first = self.layers[0]
        assert isinstance(first, InputLayer), "check() and read() see to it"
        return first

    @property
    def spiking(self) -> tuple[SpikingLayer, ...]:
        """The layers with weights and neurons, in order."""
        return tuple(layer for layer in self.layers if isinstance(layer, SpikingLayer))

    @property
    def blocks(self) -> tuple[InputLayer | SpikingLayer, ...]:
        """The layers with neurons, in order: `spiking`, and before them an input layer that has neurons.

        They are netx's blocks; each spikes and takes one time step.
        """
        return self.spiking if self.input.neuron is None else (self.input, *self.spiking)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a chip holds: weight bits, largest |bias|, vThMant, decay, and netx's largest convolution parameter."""

    chip: str
    weight_bits: int
    bias: int
    threshold: int
    decay: int
    conv_parameter: int

    @classmethod
    def load(cls, name: str = "loihi2") -> "Limits":
        """The limits in hardware/chips/NAME.toml."""
        facts = chip.load(name)
        keys = [key for key in cls.__dataclass_fields__ if key != "chip"]
        return cls(chip=name, **{key: int(facts[f"limits.{key}"].value) for key in keys})


def check(net: Net, limits: Limits | None = None) -> None:
    """Raise NetxError that names the layer and the limit unless every layer fits the chip (Loihi 2 by default)."""
    limits = limits or Limits.load()
    if not net.layers or not isinstance(net.layers[0], InputLayer):
        raise NetxError("the first layer must be an InputLayer, which gives the shape of what is sent in")
    if not isinstance(net.layers[-1], SpikingLayer):
        raise NetxError("the last layer must be a convolution or a dense layer: only those have neurons to read")
    repeated = [name for name, count in Counter(layer.name for layer in net.blocks).items() if count > 1]
    if repeated:
        raise NetxError(f"several layers are called {repeated[0]!r}; names must differ")
    before: tuple[int, ...] = ()
    for index, layer in enumerate(net.layers):
        try:
            expected = output_shape(layer, before, first=index == 0)
            if layer.shape != expected:
                raise NetxError(f"shape is {layer.shape}, but its input {before} gives {expected}")
            if isinstance(layer, SpikingLayer):
                _check_weights(layer, limits)
                _check_bias(layer, limits)
            neuron = None if isinstance(layer, FlattenLayer) else layer.neuron
            if neuron is not None and not (isinstance(layer, DenseLayer) and neuron == INTEGRATOR):
                _check_neuron(neuron, limits)
        except NetxError as error:
            raise NetxError(f"layer {index} ({layer.name}): {error}") from None
        before = layer.shape


def output_shape(layer: Layer, before: tuple[int, ...], *, first: bool = False) -> tuple[int, ...]:
    """The shape of a layer's output for an input of shape `before`. Raises NetxError where they do not chain."""
    match layer:
        case InputLayer():
            if not first:
                raise NetxError("an input layer must be the first layer")
            if len(layer.shape) not in (1, 3) or min(layer.shape) < 1:
                raise NetxError(f"shape is {layer.shape}, must be (C, H, W) or (N,)")
            return layer.shape
        case FlattenLayer():
            if len(before) != 3:
                raise NetxError(f"its input is {before}; only (C, H, W) can be flattened, remove the layer")
            return (prod(before),)
        case DenseLayer():
            if layer.weight.ndim != 2:
                raise NetxError(f"weight is {layer.weight.shape}, must be [N_out, N_in]")
            if before != (layer.weight.shape[1],):
                hint = "; put a flatten layer before it" if len(before) == 3 else ""
                raise NetxError(f"weight takes {layer.weight.shape[1]} inputs, its input is {before}{hint}")
            return (layer.weight.shape[0],)
        case ConvLayer():
            return _conv_shape(layer, before)
    raise NetxError(f"netx has no {type(layer).__name__}; it has InputLayer, ConvLayer, FlattenLayer and DenseLayer")


def _conv_shape(layer: ConvLayer, before: tuple[int, ...]) -> tuple[int, ...]:
    if len(before) != 3 or layer.weight.ndim != 4:
        raise NetxError(
            f"a convolution needs an input (C, H, W) and a weight [C_out, C_in/groups, kH, kW], "
            f"got {before} and {layer.weight.shape}"
        )
    c_out, c_in = layer.weight.shape[0], layer.weight.shape[1] * layer.groups
    if layer.groups < 1 or c_in != before[0] or c_out % layer.groups:
        raise NetxError(f"weight {layer.weight.shape} with groups={layer.groups} does not fit {before[0]} channels")
    if min(*layer.stride, *layer.dilation) < 1 or min(layer.padding) < 0:
        raise NetxError("stride and dilation must be at least 1, padding at least 0")
    size = [
        (extent + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for extent, pad, dilation, kernel, stride in zip(
            before[1:], layer.padding, layer.dilation, layer.weight.shape[2:], layer.stride, strict=True
        )
    ]
    if min(size) < 1:
        raise NetxError(f"kernel {layer.weight.shape[2:]} is larger than the padded input {before}")
    return (c_out, *size)


def _check_weights(layer: SpikingLayer, limits: Limits) -> None:
    weight = layer.weight
    if weight.size == 0 or not np.issubdtype(weight.dtype, np.integer):
        raise NetxError(f"weight is {weight.dtype} {weight.shape}, must be integers, at least one")
    low, high, half = int(weight.min()), int(weight.max()), 2 ** (limits.weight_bits - 1)
    mixed = (low >= -half and high < half) or (low >= -2 * half and high <= 2 * half - 2 and not np.any(weight % 2))
    if not (mixed or (low >= 0 and high < 2 * half) or (high < 0 and low >= -2 * half)):
        raise NetxError(
            f"weights span {low}..{high}, beyond {limits.weight_bits} bits: {-half}..{half - 1} for mixed signs "
            f"({-2 * half}..{2 * half - 2} if all are even), 0..{2 * half - 1} if none is negative, "
            f"{-2 * half}..-1 if all are; use a smaller scale"
        )
    if isinstance(layer, DenseLayer):
        if low == high == 0:
            raise NetxError(
                "all weights are zero; netx cannot scale such a matrix. Remove the layer or train it longer"
            )
        if high <= 0 and -low & (-low - 1) == 0:  # netx scales them to -256, which Lava then clips to -255
            raise NetxError(
                f"no weight is positive and the smallest is {low}, minus a power of two; netx misreads such a matrix. "
                f"Use another scale"
            )
    if isinstance(layer, ConvLayer):
        geometry = (*weight.shape[2:], *layer.stride, *layer.padding, *layer.dilation, layer.groups)
        if max(geometry) > limits.conv_parameter:
            raise NetxError(
                f"kernel, stride, padding, dilation and groups must be at most {limits.conv_parameter}, one is "
                f"{max(geometry)}; write a wide depthwise layer as a block-diagonal weight with groups=1"
            )


def _check_bias(layer: SpikingLayer, limits: Limits) -> None:
    if layer.bias.shape not in (layer.shape[:1], layer.shape):
        raise NetxError(f"bias is {layer.bias.shape}, must be {layer.shape[:1]} or {layer.shape}")
    if not np.issubdtype(layer.bias.dtype, np.integer):
        raise NetxError(f"bias has type {layer.bias.dtype}, must be integers")
    if (largest := int(np.abs(layer.bias.astype(np.int64)).max())) > limits.bias:
        raise NetxError(f"a bias is {largest} in magnitude, at most {limits.bias} fits; use a smaller scale")


def _check_neuron(neuron: Neuron, limits: Limits) -> None:
    ranges = {"vThMant": limits.threshold, "vDecay": limits.decay, "iDecay": limits.decay}
    for key, largest in ranges.items():
        value = getattr(neuron, key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise NetxError(f"{key} is {value!r}, must be an int")
        if not 0 <= value <= largest:
            raise NetxError(f"{key} is {value}, must be 0..{largest}")


def accumulator_bound(layer: SpikingLayer, lo: int | np.ndarray, hi: int | np.ndarray) -> int:
    """Bound |sum of weight * input| over every output of a layer whose inputs lie in [lo, hi].

    lo, hi: ints, or one per input channel ([C_in] of a convolution, [N_in] of a dense layer). The bias is not part of
    the sum. No input can exceed it; it is reached unless zero padding, counted as a possible input, cannot occur there.
    A current of more than limits.accumulator (131071) would wrap in the chip's 24 bits.
    """
    weight = layer.weight.astype(np.int64)
    groups = layer.groups if isinstance(layer, ConvLayer) else 1
    channels = weight.shape[1] * groups
    lo, hi = (np.broadcast_to(np.asarray(limit, np.int64), channels) for limit in (lo, hi))
    if isinstance(layer, ConvLayer) and max(layer.padding) > 0:
        lo, hi = np.minimum(lo, 0), np.maximum(hi, 0)
    weight = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)  # [groups, out, in, taps]
    lo, hi = (limit.reshape(groups, 1, -1, 1) for limit in (lo, hi))
    largest = np.maximum(weight * lo, weight * hi).sum(axis=(2, 3)).max()
    smallest = np.minimum(weight * lo, weight * hi).sum(axis=(2, 3)).min()
    return int(max(largest, -smallest))
