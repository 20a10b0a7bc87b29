"""Networks of given geometry, and chips with other numbers, for the tests of the placement on cores."""

import dataclasses
from math import prod

import numpy as np
from hypothesis import strategies as st

from hardware import chip
from hardware.chip import Chip
from hardware.core_load import FACTS
from hardware.net import FlattenLayer, InputLayer, Layer, Net, Neuron, check
from tests.hardware import netmaker


LIF = Neuron(vThMant=100, vDecay=2048)
LOIHI2 = chip.load("loihi2")


def but(base: Chip, **values: int) -> Chip:
    """A chip with other numbers: but(LOIHI2, neurons=8)."""
    facts = {FACTS[name]: dataclasses.replace(base[FACTS[name]], value=value) for name, value in values.items()}
    return Chip(name=base.name, title=base.title, facts={**base.facts, **facts})


def chain(shape: tuple[int, ...], *layers: tuple, bits: int = 8) -> Net:
    """("conv", channels, kernel, stride, padding) and ("dense", neurons), with random weights of so many bits."""
    rng = np.random.default_rng(0)
    half = 2 ** (bits - 1)
    result: list[Layer] = [InputLayer(shape=shape)]
    for index, (kind, outputs, *geometry) in enumerate(layers):
        before = result[-1].shape
        if kind == "dense" and len(before) == 3:
            result.append(FlattenLayer(shape=(prod(before),)))
            before = result[-1].shape
        if kind == "dense":
            layer: Layer = netmaker.dense(rng, f"dense{index}", before[0], outputs, neuron=LIF)
        else:
            kernel, stride, padding = ((pair, pair) if isinstance(pair, int) else pair for pair in geometry)
            layer = netmaker.conv(
                rng, f"conv{index}", before, out=outputs, kernel=kernel, stride=stride, padding=padding, neuron=LIF
            )
        weight = rng.integers(-half, half, layer.weight.shape)
        weight.flat[:2] = (-half, half - 1)[: weight.size]
        result.append(dataclasses.replace(layer, weight=weight))
    net = Net(layers=tuple(result))
    check(net)
    return net


@st.composite
def cases(draw: st.DrawFn) -> tuple[Net, Chip]:
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    shape = (4, draw(st.integers(4, 8)), draw(st.integers(4, 8)))
    layers: list[Layer] = [InputLayer(shape=shape)]
    for index in range(2):
        before = layers[-1].shape
        kernel = tuple(min(size, extent) for size, extent in zip(draw(pair), before[1:], strict=True))
        groups = draw(st.sampled_from((1, 2, 4)))
        layers.append(
            netmaker.conv(
                rng,
                f"conv{index}",
                before,
                out=groups * draw(st.integers(1, 3)) if index else 4,
                kernel=kernel,
                stride=draw(pair),
                padding=(draw(st.integers(0, 2)), draw(st.integers(0, 2))),
                groups=groups,
                neuron=LIF,
            )
        )
    net = Net(layers=tuple(layers))
    check(net)
    numbers = {"neurons": draw(st.integers(2, 64)), "synapse_words": draw(st.integers(80, 400))}
    flags = {name: draw(st.integers(0, 1)) for name in ("power_of_two_columns", "axon_per_target")}
    return net, but(LOIHI2, block=4, header_bits=10, word_bits=32, kernel_index_bits=3, **numbers, **flags)


def pilotnet(bits: dict[str, int]) -> Net:
    """PilotNet of lava-dl's tutorials, 200 x 66 x 3 (W x H x C), with the weight bits of its files."""
    net = chain(
        (3, 66, 200),
        ("conv", 24, 3, 2, 0),
        ("conv", 36, 3, 2, 0),
        ("conv", 48, 3, 2, 0),
        ("conv", 64, 3, (2, 1), (1, 0)),
        ("conv", 64, 3, 1, 0),
        ("dense", 100),
        ("dense", 50),
        ("dense", 10),
        ("dense", 1),
    )
    layers = []
    for layer in net.layers:
        if layer.name in bits:
            half = 2 ** (bits[layer.name] - 1)
            weight = np.random.default_rng(1).integers(-half, half, layer.weight.shape)
            weight.flat[:2] = -half, half - 1
            layer = dataclasses.replace(layer, weight=weight)
        layers.append(layer)
    return Net(layers=tuple(layers))


LIF_BITS = dict(zip((f"conv{i}" for i in range(5)), (5, 4, 4, 4, 4), strict=True)) | {
    "dense5": 3,
    "dense6": 4,
    "dense7": 5,
    "dense8": 6,
}
SDNN_BITS = LIF_BITS | {"conv0": 6, "conv1": 5, "conv3": 5, "dense5": 4, "dense6": 6}
PUBLISHED = {"input": 13, "conv0": 25, "conv1": 13, "conv2": 3, "conv3": 3, "conv4": 2, "dense5": 12}
"""Cores by the compiler output of lava-dl's tutorial netx/pilotnet_snn; one for each layer that is not named."""


VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
RESNET18 = [(64, 1)] * 5 + [(128, 2)] + [(128, 1)] * 3 + [(256, 2)] + [(256, 1)] * 3 + [(512, 2)] + [(512, 1)] * 3


def vgg16() -> Net:
    """For 32 x 32 images; max pooling is a convolution of 2 x 2 with stride 2."""
    layers: list[tuple] = []
    for entry in VGG16:
        layers.append(("conv", layers[-1][1], 2, 2, 0) if entry == "M" else ("conv", entry, 3, 1, 1))
    return chain((3, 32, 32), *layers, ("dense", 10))


def resnet18() -> Net:
    """The chain of its 3 x 3 convolutions, for 32 x 32 images; global average pooling is in the dense layer."""
    return chain((3, 32, 32), *(("conv", width, 3, stride, 1) for width, stride in RESNET18), ("dense", 10))
