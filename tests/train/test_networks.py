"""One definition is teacher and student; sizes are the published ones; a student starts out alive."""

from itertools import pairwise

import pytest
import torch
from live_networks import live_network
from spikingjelly.activation_based import functional, neuron
from torch import nn

from train.config import DataConfig, NetConfig
from train.data import load
from train.networks import NETWORKS, build, firing_rates, lif_layers


def conv_norm(c_in: int, c_out: int, kernel: int, *, bias: bool) -> int:
    """Parameters of a convolution with its batch normalisation."""
    return kernel**2 * c_in * c_out + bias * c_out + 2 * c_out


def vgg_parameters(channels: list[int], *, classes: int) -> int:
    convs = sum(conv_norm(a, b, 3, bias=True) for a, b in pairwise([3, *channels]))
    return convs + (channels[-1] + 1) * classes


def resnet_parameters(depths: list[int], *, classes: int) -> int:
    count, c_in = conv_norm(3, 64, 3, bias=False), 64
    for c_out, depth in zip([64, 128, 256, 512], depths, strict=True):
        count += conv_norm(c_in, c_out, 3, bias=False) + (2 * depth - 1) * conv_norm(c_out, c_out, 3, bias=False)
        count += conv_norm(c_in, c_out, 1, bias=False) if c_in != c_out else 0
        c_in = c_out
    return count + (512 + 1) * classes


VGG11 = [64, 128, 256, 256, 512, 512, 512, 512]
VGG16 = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]


@pytest.mark.parametrize(
    ("name", "formula", "published"),
    [  # published: kuangliu/pytorch-cifar's networks of these names with 10 classes
        ("vgg11", vgg_parameters(VGG11, classes=10), 9_231_114),
        ("vgg16", vgg_parameters(VGG16, classes=10), 14_728_266),
        ("resnet18", resnet_parameters([2, 2, 2, 2], classes=10), 11_173_962),
        ("resnet34", resnet_parameters([3, 4, 6, 3], classes=10), 21_282_122),
    ],
)
@pytest.mark.parametrize("spiking", [True, False])
def test_parameters_are_as_many_as_published(name: str, formula: int, published: int, spiking: bool) -> None:
    with torch.device("meta"):
        network = build(NetConfig(name=name, spiking=spiking, in_channels=3, size=32))
    assert sum(p.numel() for p in network.parameters()) == formula == published


@pytest.mark.parametrize("name", NETWORKS)
def test_teacher_and_student_have_the_same_parameters_and_differ_in_activations_alone(name: str) -> None:
    with torch.device("meta"):
        student, teacher = (build(NetConfig(name=name, spiking=s, size=32, width=0.25)) for s in (True, False))
    shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in (student, teacher)]
    assert shapes[0] == shapes[1]
    relus = [path for path, module in teacher.named_modules() if isinstance(module, nn.ReLU)]
    assert list(lif_layers(student)) == relus
    assert not any(isinstance(module, neuron.BaseNode) for module in teacher.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_student_gives_logits_of_every_step_and_a_teacher_once(name: str) -> None:
    config = NetConfig(name=name, width=0.125, T=3, in_channels=3, size=32, num_classes=7)
    images = torch.rand(2, 3, 32, 32)
    assert build(config).eval()(images).shape == (3, 2, 7)
    assert build(NetConfig(**{**vars(config), "spiking": False})).eval()(images).shape == (2, 7)


def test_an_image_is_the_same_as_events_that_repeat_it() -> None:
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    network = live_network(NetConfig(width=0.25, T=3), images)
    assert network(images)[0].std(0).min() > 0  # the images reach the logits
    torch.testing.assert_close(network(images), network(images.expand(3, 2, 1, 8, 8)), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="T = 3 steps"):
        network(images.expand(2, 2, 1, 8, 8))


def test_every_call_starts_from_rest_and_later_steps_remember() -> None:
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    network = live_network(NetConfig(width=0.25, T=4), images)
    first = network(images)
    assert torch.equal(network(images), first)
    assert not torch.equal(first[0], first[1])
    alone = build(NetConfig(width=0.25, T=1)).double().eval()
    alone.load_state_dict(network.state_dict())
    assert torch.equal(alone(images)[0], first[0])


@pytest.mark.parametrize(("decay_input", "tau", "v_threshold"), [(True, 2.0, 1.0), (False, 2.0, 1.0), (True, 4.0, 0.5)])
@pytest.mark.parametrize("name", ["vgg_small", "resnet34"])
def test_every_layer_of_a_fresh_student_fires(name: str, decay_input: bool, tau: float, v_threshold: float) -> None:
    torch.manual_seed(0)
    settings = {"decay_input": decay_input, "tau": tau, "v_threshold": v_threshold}
    network = build(NetConfig(name=name, width=0.25, **settings))
    images = load(DataConfig()).train.images[:64].float() / 255
    with torch.no_grad(), firing_rates(network) as rates:
        network((images - 0.3) / 0.4)
    assert list(rates) == list(lif_layers(network))
    assert all(0.02 < rate.mean() < 0.6 for rate in rates.values()), {k: v.mean().item() for k, v in rates.items()}


def test_firing_rates_are_mean_spikes_and_the_hooks_go_with_the_context() -> None:
    network = build(NetConfig(width=0.25, T=2)).eval()
    images = torch.rand(3, 1, 8, 8)
    functional.reset_net(network)
    first = network.get_submodule("body.act1")
    spikes = first(network.hold(network.stem(images[None])))
    with firing_rates(network) as rates:
        network(images)
    assert rates["body.act1"].shape == (2, 3)
    torch.testing.assert_close(rates["body.act1"], spikes.mean((2, 3, 4)))
    rates.clear()
    network(images)
    assert not rates


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown network 'resnet20'; did you mean resnet34 or resnet18"):
        build(NetConfig(name="resnet20"))
    with pytest.raises(ValueError, match="vgg16 halves an image five times: it needs at least 32 pixels, got 28"):
        build(NetConfig(name="vgg16", size=28))
    assert build(NetConfig(name="vgg11", size=32, width=0.01)).body.classifier.in_features == 5
    for change, message in (
        ({"T": 0}, "net.T must be in 1 to 64 time steps, got 0"),
        ({"tau": 1.0}, "net.tau must be greater than 1 step"),
        ({"v_reset": 1.0}, r"net.v_reset \(1.0\) must be below net.v_threshold \(1.0\)"),
        ({"width": 0.0}, "net.width must be greater than 0"),
    ):
        with pytest.raises(ValueError, match=message):
            NetConfig(**change)
