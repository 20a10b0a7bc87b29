"""Every family of networks as an int8 model: each spike and logit of its integer twin, on real images."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from live_networks import live_network
from onnx_runs import assert_same, expected_int8, exposed, in_onnxruntime, stepped, unrolled

from export import graph as g
from export.lower import lower_network
from export.onnx_int8 import build_int8
from export.quantize import quantize
from hardware.net import Limits
from train.checkpoint import Preprocess
from train.config import DataConfig, NetConfig
from train.data import load


SCALED, IMAGES = 16, 64
"""Training images on which scales are chosen, test images that are compared."""


def student(net: NetConfig, images: torch.Tensor) -> g.Graph:
    """An untrained network of which every layer fires on these images [B, C, H, W] in [0, 1]."""
    mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3))
    preprocess = Preprocess(mean=tuple(mean.tolist()), std=tuple(std.tolist()), size=net.size)
    return lower_network(live_network(net, preprocess(images).double()).float(), preprocess)


def assert_int8_is_the_twin(graph: g.Graph, calibration: torch.Tensor, images: torch.Tensor) -> None:
    twin, scales = quantize(graph, calibration.numpy(), Limits.load("loihi2"))
    want = expected_int8(graph, twin, scales, images.numpy())
    firing = want["spike_rates"].mean(axis=(0, 1)) > 0
    assert firing.mean() >= 0.9
    labels = tuple(map(str, range(graph.output.shape[0])))
    for form, run in (("unrolled", unrolled), ("step", stepped)):
        model = exposed(build_int8(graph, twin, scales, labels=labels, checkpoint_sha256="0" * 64, form=form))
        assert_same(run(model, in_onnxruntime(model), images.numpy()), want, spikes=np.uint8)


def enlarged(images: torch.Tensor, net: NetConfig) -> torch.Tensor:
    """Digits uint8 [B, 1, 8, 8] in the size and the channels of a network, in [0, 1]."""
    times = net.size // images.shape[2]
    larger = images.repeat_interleave(times, 2).repeat_interleave(times, 3)
    return larger.repeat(1, net.in_channels, 1, 1).float() / 255


@pytest.mark.parametrize(
    "net",
    [
        NetConfig(name="vgg_small", width=0.25, T=4),
        NetConfig(name="vgg_small", width=0.25, T=7, neuron="plif"),
        NetConfig(name="vgg11", width=0.125, T=3, size=32, pool="avg"),
        NetConfig(name="vgg11", width=0.125, T=2, size=32, pool="max", tau=4 / 3),
        NetConfig(name="vgg16", width=0.0625, T=2, size=32, tau=3.0, decay_input=False),
        NetConfig(name="resnet20", width=0.25, T=4),
        NetConfig(name="resnet18", width=0.1, T=2, neuron="if"),
        NetConfig(name="resnet34", width=0.0625, T=2),
        NetConfig(name="resnet19_tet", width=0.05, T=4, tau=1.5),
        NetConfig(name="resnet19_td", width=0.05, T=2),
        NetConfig(name="sew_resnet18", width=0.1, T=4, size=32, in_channels=3),
        NetConfig(name="sew_resnet34", width=0.0625, T=3, size=32, tau=3.0),
    ],
    ids=lambda net: f"{net.name} {net.neuron} T{net.T}",
)
def test_on_real_digits(net: NetConfig) -> None:
    digits = load(DataConfig())
    calibration, images = (
        enlarged(part.images[:n], net) for part, n in ((digits.train, SCALED), (digits.test, IMAGES))
    )
    assert_int8_is_the_twin(student(net, calibration), calibration, images)


@pytest.mark.cifar
@pytest.mark.parametrize(
    "net",
    [
        NetConfig(name="resnet18", width=0.125, T=4, size=32, in_channels=3),
        NetConfig(name="vgg_small", width=0.25, T=6, size=32, in_channels=3),
        NetConfig(name="sew_resnet18", width=0.125, T=2, size=32, in_channels=3),
    ],
    ids=lambda net: net.name,
)
def test_on_real_photographs(net: NetConfig) -> None:
    cifar = load(DataConfig(name="cifar10", root=Path(os.environ["TSERVE_DATA"]), limit=10_000))
    calibration, images = cifar.train.images[:SCALED].float() / 255, cifar.test.images[:IMAGES].float() / 255
    assert_int8_is_the_twin(student(net, calibration), calibration, images)
