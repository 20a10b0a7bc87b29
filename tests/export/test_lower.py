"""The lowered Graph computes what the student does: in float64, on real images, not one spike differs."""

import dataclasses
import math
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_networks import live_network
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

from export import graph as g
from export import reference
from export.lower import UnsupportedLayer, lower_network
from train.checkpoint import Preprocess
from train.config import DataConfig, NetConfig
from train.data import load
from train.networks import NETWORKS, Network, build, lif_layers
from train.networks.network import conv_norm
from train.neurons import PLIF


REFUSED = "resnet19_ckd"  # its students end in a ReLU
LOWERED = [name for name in NETWORKS if name != REFUSED]


def digits(count: int) -> tuple[Tensor, Preprocess]:
    """Test images of the digits, every pixel repeated to 4 x 4 of 32 x 32: float64 [N, 1, 32, 32] in [0, 1]."""
    data = load(DataConfig())
    images = data.test.images[:count].repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    return images.double() / 255, Preprocess(mean=data.mean, std=data.std, size=32)


@cache
def cifar(count: int) -> tuple[Tensor, Preprocess]:
    """Test images of CIFAR-10: float64 [N, 3, 32, 32] in [0, 1]."""
    # With this limit the first training batch and the test batch are enough.
    data = load(DataConfig(name="cifar10", root=Path(os.environ.get("TSERVE_DATA", "data")), limit=10_000))
    return data.test.images[:count].double() / 255, Preprocess(mean=data.mean, std=data.std, size=32)


def run_network(network: Network, images: Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits [T, B, K] and the spikes [T, B, ...] of every LIF layer, of normalised images."""
    spikes: dict[str, np.ndarray] = {}
    for name, module in lif_layers(network).items():
        module.register_forward_hook(lambda _m, _i, out, name=name: spikes.__setitem__(name, out.numpy()))
    with torch.no_grad():
        return network(images).numpy(), spikes


def assert_lowered_exactly(config: NetConfig, images: Tensor, preprocess: Preprocess, *, judged: int) -> None:
    """Lower a network whose normalisations were set by `images`; compare every spike of the first `judged` of them."""
    config = dataclasses.replace(config, in_channels=images.shape[1], size=images.shape[2])
    network = live_network(config, preprocess(images))
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)  # they start at 0
    logits, spikes = run_network(network, preprocess(images[:judged]))
    graph = lower_network(network, preprocess)
    values = reference.run(graph, images[:judged].numpy())

    assert [node.name for node in graph.lif_layers] == list(spikes)
    for name, wanted in spikes.items():
        assert 0.01 < wanted.mean() < 0.7, f"{name} fires at {wanted.mean():.3f}: comparing it would prove little"
        assert wanted.shape == (config.T, judged, *graph[name].shape)
        np.testing.assert_array_equal(values[name], wanted, err_msg=name)
    assert logits.std() > 0.01
    np.testing.assert_allclose(reference.logits(graph, values), logits, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", LOWERED)
def test_not_one_spike_of_the_digits_differs_in_any_network(name: str) -> None:
    images, preprocess = digits(8)
    assert_lowered_exactly(NetConfig(name=name, width=0.25), images, preprocess, judged=4)


@pytest.mark.cifar
@pytest.mark.parametrize("name", LOWERED)
def test_not_one_spike_of_cifar_differs_in_any_network_of_full_width(name: str) -> None:
    images, preprocess = cifar(4)
    assert_lowered_exactly(NetConfig(name=name, T=2), images, preprocess, judged=2)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "vgg11", "pool": "max"},
        {"name": "vgg16", "pool": "max", "norm": "tdbn", "decay_input": False},
        {"name": "resnet20", "neuron": "plif", "tau": 3.0},
        {"name": "vgg_small", "neuron": "plif", "decay_input": False},
        {"name": "sew_resnet18", "decay_input": False, "tau": 4.0},
        {"name": "resnet20", "neuron": "if"},
        {"name": "vgg11", "neuron": "if", "v_reset": -0.5, "T": 6},
    ],
    ids=str,
)
def test_not_one_spike_of_the_digits_differs_for_other_networks(options: dict[str, Any]) -> None:
    images, preprocess = digits(8)
    assert_lowered_exactly(NetConfig(width=0.25, **options), images, preprocess, judged=4)


def test_a_sew_block_pools_spikes_and_passes_on_their_sums() -> None:
    images, preprocess = digits(8)
    network = live_network(NetConfig(name="sew_resnet18", width=0.25, size=32), preprocess(images))
    graph = lower_network(network, preprocess)
    pool = graph["body.maxpool"]
    assert isinstance(pool, g.MaxPool)
    assert (pool.kernel, pool.stride, pool.padding, pool.shape) == ((3, 3), (2, 2), (1, 1), (16, 8, 8))
    values = reference.run(graph, images[:4].numpy())
    sums = [node.name for node in graph if isinstance(node, g.Add)]
    assert len(sums) == 8
    assert {float(v) for name in sums for v in np.unique(values[name])} >= {0.0, 1.0, 2.0}
    binary = g.is_binary(graph)
    assert not any(binary[name] for name in sums)
    assert binary["body.maxpool"]
    assert set(np.unique(values["body.maxpool"])) == {0.0, 1.0}


def events(config: NetConfig, *, recordings: int) -> tuple[Tensor, Preprocess]:
    """Frames of counts as the data sets of events have them: float64 [T, N, C, H, W] in [0, 1], and their mean, std."""
    counts = np.random.default_rng(0).poisson(0.4, (config.T, recordings, config.in_channels, config.size, config.size))
    c = config.in_channels
    return torch.from_numpy(counts / 255), Preprocess(mean=(0.0,) * c, std=(1 / 255,) * c, size=config.size)


@pytest.mark.parametrize(
    "options",
    [{}, {"name": "vgg11", "pool": "max", "size": 48}, {"name": "resnet20", "neuron": "if"}, {"name": "sew_resnet18"}],
    ids=str,
)
def test_not_one_spike_of_a_student_of_events_differs(options: dict[str, Any]) -> None:
    config = NetConfig(**{"width": 0.25, "T": 3, "in_channels": 2, "size": 32, "event": True, **options})
    frames, preprocess = events(config, recordings=6)
    network = live_network(config, preprocess(frames))
    logits, spikes = run_network(network, preprocess(frames[:, :4]))
    graph = lower_network(network, preprocess)
    assert graph.input.event
    assert not any(g.is_static(graph).values())
    values = reference.run(graph, frames[:, :4].numpy())
    assert [node.name for node in graph.lif_layers] == list(spikes)
    for name, wanted in spikes.items():
        assert wanted.any(), f"{name} is silent: comparing it would prove nothing"
        np.testing.assert_array_equal(values[name], wanted, err_msg=name)
    assert logits.std() > 0.01
    np.testing.assert_allclose(reference.logits(graph, values), logits, rtol=0, atol=1e-9)


def test_if_is_a_lif_with_an_endless_time_constant() -> None:
    graph = lower_network(build(NetConfig(width=0.125, neuron="if", v_threshold=0.5)).eval(), digits(1)[1])
    for node in graph.lif_layers:
        assert (node.tau, node.decay_input, node.v_threshold) == (math.inf, False, 0.5)


def test_plif_is_lowered_with_the_time_constant_that_it_learned() -> None:
    network = build(NetConfig(width=0.125, neuron="plif")).eval()
    with torch.no_grad():
        network.body.act2.w.fill_(1.5)
    graph = lower_network(network, digits(1)[1])
    assert graph["body.act1"].tau == pytest.approx(2.0)
    assert graph["body.act2"].tau == pytest.approx(1 / torch.tensor(1.5).double().sigmoid().item(), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet19_ckd"}, r"body\.layer3\.1\.act2: ReLU has no Graph node; take a network all of whose"),
        ({"reset": "soft"}, r"body\.act1: soft reset has no Graph node; train with --net\.reset hard"),
        ({"neuron": "if", "reset": "soft"}, r"body\.act1: soft reset has no Graph node; train with --net\.reset hard"),
        (
            {"name": "sj:max_resnet18", "width": 1.0, "in_channels": 3},
            r"sj:max_resnet18: models of SpikingJelly's zoo are trained and evaluated, not exported",
        ),
    ],
)
def test_a_network_that_a_graph_cannot_say_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedLayer, match=message):
        lower_network(build(NetConfig(**{"width": 0.125, "size": 32, **options})).eval(), digits(1)[1])


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize(("tau", "v_threshold", "v_reset"), [(2.0, 1.0, -0.5), (1.25, 0.6, 0.1), (4.0, 2.0, 0.0)])
def test_not_one_spike_differs_for_other_neurons(
    decay_input: bool, tau: float, v_threshold: float, v_reset: float
) -> None:
    images, preprocess = digits(8)
    config = NetConfig(width=0.5, T=6, tau=tau, v_threshold=v_threshold, v_reset=v_reset, decay_input=decay_input)
    assert_lowered_exactly(config, images, preprocess, judged=8)


@pytest.mark.parametrize("name", LOWERED)
def test_the_graph_knows_nothing_of_torch_and_does_not_grow_with_time(name: str) -> None:
    graphs = [lower_network(build(NetConfig(name=name, T=T, width=0.1, size=32)).eval(), digits(1)[1]) for T in (1, 16)]
    kinds = [[type(node) for node in graph] for graph in graphs]
    assert kinds[0] == kinds[1]
    assert {*kinds[0]} <= {g.Input, g.Conv, g.Dense, g.LIF, g.AvgPool, g.MaxPool, g.Mean, g.Flatten, g.Add}
    for node in graphs[0].synapses:
        assert type(node.weight) is type(node.bias) is np.ndarray
        assert node.weight.dtype == node.bias.dtype == np.float64


class Held(nn.Module):
    """A block of another kind: what it does with its two branches is not a module."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.left, self.right, self.join = conv_norm(1, 4, 3, 2), conv_norm(1, 4, 3, 2), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.left(x), self.right(x))


class ReadTwice(nn.Module):
    """A convolution whose output is read by a normalisation and, as it is, by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = layer.Conv2d(1, 4, 3, 2, 1), layer.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


def test_a_plain_plus_is_an_addition() -> None:
    network = build(NetConfig(width=0.125)).eval()
    network.stem = Held(lambda x, y: x + y)
    graph = lower_network(network, digits(1)[1])
    assert [node.inputs for node in graph if isinstance(node, g.Add)] == [("stem.left.conv", "stem.right.conv")]


def soft_reset(network: Network) -> None:
    network.body.act3.v_reset = None


def replaced(path: str, module: nn.Module) -> Callable[[Network], None]:
    def change(network: Network) -> None:
        parent, _, child = path.rpartition(".")
        setattr(network.get_submodule(parent), child, module)

    return change


QIF = neuron.QIFNode(step_mode="m")
PLIF_OF_CHANNELS = PLIF(init_tau=2.0, step_mode="m")
PLIF_OF_CHANNELS.w = nn.Parameter(torch.zeros(4, 1, 1))
PER_CHANNEL = (
    r"body\.act2: PLIF with 4 time constants has no Graph node, a layer has one tau; "
    r"train with --net\.neuron plif, .* or with --net\.neuron lif"
)
NO_STATISTICS = nn.BatchNorm2d(4, track_running_stats=False)
TWO_NORMS = nn.Sequential(layer.BatchNorm2d(4), layer.BatchNorm2d(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (soft_reset, r"body\.act3: soft reset has no Graph node; train with --net\.reset hard"),
        (replaced("body.act2", QIF), r"body\.act2: QIFNode has no Graph node; train with LIFNode"),
        (replaced("body.act2", PLIF_OF_CHANNELS), PER_CHANNEL),
        (replaced("body.act1", nn.ReLU()), r"body\.act1: ReLU has no Graph node"),
        (replaced("body.act1", nn.PReLU()), r"body\.act1: PReLU has no Graph node"),
        (replaced("body.conv3.norm", nn.GroupNorm(1, 8)), r"body\.conv3\.norm: GroupNorm has no Graph node"),
        (replaced("body.act1", layer.BatchNorm2d(4)), r"body\.act1: batch normalisation must follow a convolution"),
        (replaced("body.conv2.norm", TWO_NORMS), r"body\.conv2\.norm\.1: batch normalisation must follow a conv"),
        (replaced("stem", ReadTwice()), r"stem\.norm: .* must follow a convolution that nothing else reads"),
        (replaced("body.conv2.norm", NO_STATISTICS), r"body\.conv2\.norm: batch normalisation without running stat"),
        (replaced("body.act1", nn.AvgPool2d(3, stride=2)), r"body\.act1: average pooling needs stride = kernel"),
        (replaced("body.act1", nn.AvgPool2d(2, padding=1)), r"body\.act1: average pooling .*no padding"),
        (replaced("body.act1", nn.AvgPool2d(2, divisor_override=3)), r"body\.act1: .*no divisor_override"),
        (replaced("body.act1", nn.MaxPool2d(2, dilation=2)), r"body\.act1: .*no dilation"),
        (replaced("body.act1", nn.MaxPool2d(3, ceil_mode=True)), r"body\.act1: .*no ceil_mode"),
        (replaced("body.act1", nn.MaxPool2d(2, return_indices=True)), r"body\.act1: .*no return_indices"),
        (replaced("body.act1", nn.AdaptiveAvgPool2d((2, 1))), r"body\.act1: adaptive pooling to \(2, 1\)"),
        (replaced("stem.conv", nn.Conv2d(1, 4, 3, dilation=2)), r"stem\.conv: .*dilation 1"),
        (replaced("stem.conv", nn.Conv2d(1, 4, 3, padding="same")), r"stem\.conv: only zero padding given as numbers"),
        (replaced("stem", Held(torch.mul)), r"stem\.mul: the operation .*mul.* has no Graph node"),
        (replaced("stem", Held(lambda x, y: torch.add(x, y, alpha=2))), r"stem\.add: the operation .*add.* has no"),
        (replaced("stem", Held(lambda x, y: x + 1)), r"stem\.add: a sum needs two values of one shape"),
    ],
)
def test_what_a_graph_cannot_say_is_refused_by_its_path(change: Callable[[Network], None], message: str) -> None:
    network = build(NetConfig(width=0.125)).eval()
    change(network)
    with pytest.raises(UnsupportedLayer, match=message):
        lower_network(network, digits(1)[1])


def test_a_teacher_is_refused() -> None:
    with pytest.raises(UnsupportedLayer, match=r"this network is a teacher \(ReLU\); only spiking students"):
        lower_network(build(NetConfig(spiking=False)).eval(), digits(1)[1])
