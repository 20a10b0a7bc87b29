"""One definition is teacher and student; sizes are the published ones; a student starts out alive."""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
from live_networks import live_network
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

from train.config import DataConfig, NetConfig
from train.data import load
from train.networks import NETWORKS, build, firing_rates, lif_layers
from train.networks.network import firing_drive
from train.neurons import Norm


def conv_norm(c_in: int, c_out: int, kernel: int, *, bias: bool) -> int:
    """Parameters of a convolution with its batch normalisation."""
    return kernel**2 * c_in * c_out + bias * c_out + 2 * c_out


def vgg_parameters(channels: list[int], *, classes: int) -> int:
    convs = sum(conv_norm(a, b, 3, bias=True) for a, b in pairwise([3, *channels]))
    return convs + (channels[-1] + 1) * classes


def resnet_parameters(
    widths: list[int], depths: list[int], *, classes: int, stem: int, hidden: int = 0, kernel: int = 3
) -> int:
    count, c_in = conv_norm(3, stem, kernel, bias=False), stem
    for c_out, depth in zip(widths, depths, strict=True):
        count += conv_norm(c_in, c_out, 3, bias=False) + (2 * depth - 1) * conv_norm(c_out, c_out, 3, bias=False)
        count += conv_norm(c_in, c_out, 1, bias=False) if c_in != c_out else 0
        c_in = c_out
    if hidden:
        count, c_in = count + (c_in + 1) * hidden, hidden
    return count + (c_in + 1) * classes


VGG_SMALL = [32, 32, 64, 64, 128, 128]
VGG11 = [64, 128, 256, 256, 512, 512, 512, 512]
VGG16 = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
WIDE, R19 = [64, 128, 256, 512], {"widths": [128, 256, 512], "depths": [3, 3, 2], "hidden": 256}
R18, R34 = {"depths": [2, 2, 2, 2], "widths": WIDE, "stem": 64}, {"depths": [3, 4, 6, 3], "widths": WIDE, "stem": 64}
R20 = {"widths": [16, 32, 64], "depths": [3, 3, 3], "stem": 16}


def vgg_small_parameters(*, classes: int) -> int:
    """At 32 pixels: three strides of 2 leave 4 x 4; no biases beside a normalisation."""
    convs = sum(conv_norm(a, b, 3, bias=False) for a, b in pairwise([3, *VGG_SMALL]))
    return convs + (128 * 4 * 4 + 1) * classes


@pytest.mark.parametrize(
    ("name", "classes", "formula", "published"),
    # Published: kuangliu/pytorch-cifar's networks of these names with 10 classes, torchvision's ResNets with 1,000, the
    # 12.63 M that papers give ResNet-19, and He et al.'s 269,722 for ResNet-20 plus two shortcuts of 1x1 convolutions.
    [
        ("vgg_small", 10, vgg_small_parameters(classes=10), 307_946),
        ("vgg11", 10, vgg_parameters(VGG11, classes=10), 9_231_114),
        ("vgg16", 10, vgg_parameters(VGG16, classes=10), 14_728_266),
        ("resnet18", 10, resnet_parameters(**R18, classes=10), 11_173_962),
        ("resnet18", 100, resnet_parameters(**R18, classes=100), 11_220_132),
        ("resnet34", 10, resnet_parameters(**R34, classes=10), 21_282_122),
        ("resnet20", 10, resnet_parameters(**R20, classes=10), 269_722 + (16 + 2) * 32 + (32 + 2) * 64),
        ("resnet19_tet", 10, resnet_parameters(**R19, stem=64, classes=10), 12_630_858),
        ("resnet19_td", 10, resnet_parameters(**R19, stem=128, classes=10), 12_697_994),
        ("resnet19_ckd", 10, resnet_parameters(**R19, stem=128, classes=10), 12_697_994),
        ("sew_resnet18", 1000, resnet_parameters(**R18, kernel=7, classes=1000), 11_689_512),
        ("sew_resnet34", 1000, resnet_parameters(**R34, kernel=7, classes=1000), 21_797_672),
        ("sew_resnet18", 10, resnet_parameters(**R18, kernel=7, classes=10), 11_181_642),
        ("sew_resnet34", 10, resnet_parameters(**R34, kernel=7, classes=10), 21_289_802),
    ],
)
@pytest.mark.parametrize("spiking", [True, False])
def test_parameters_are_as_many_as_published(
    name: str, classes: int, formula: int, published: int, spiking: bool
) -> None:
    with torch.device("meta"):
        network = build(NetConfig(name=name, spiking=spiking, in_channels=3, size=32, num_classes=classes))
    assert sum(p.numel() for p in network.parameters()) == formula == published


@pytest.mark.parametrize("name", NETWORKS)
def test_teacher_and_student_have_the_same_parameters_and_differ_in_activations_alone(name: str) -> None:
    with torch.device("meta"):
        student, teacher = (build(NetConfig(name=name, spiking=s, size=32, width=0.25)) for s in (True, False))
    shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in (student, teacher)]
    assert shapes[0] == shapes[1]
    relus = [path for path, module in teacher.named_modules() if isinstance(module, nn.ReLU)]
    both = ["body.layer3.1.act2"] if name == "resnet19_ckd" else []  # its last block is a ReLU's in the student too
    assert [*lif_layers(student), *both] == relus
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
@pytest.mark.parametrize("name", ["vgg_small", "resnet34", "resnet20", "resnet19_tet", "resnet19_ckd", "sew_resnet18"])
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


STAGES = {  # channels and side of every stage at 32 pixels
    "vgg_small": ((32, 32), (64, 16), (128, 8), (128, 4)),
    "vgg11": ((64, 32), (128, 16), (256, 8), (512, 4), (512, 2)),
    "vgg16": ((64, 32), (128, 16), (256, 8), (512, 4), (512, 2)),
    "resnet18": ((64, 32), (128, 16), (256, 8), (512, 4)),
    "resnet34": ((64, 32), (128, 16), (256, 8), (512, 4)),
    "resnet20": ((16, 32), (32, 16), (64, 8)),
    **dict.fromkeys(("resnet19_tet", "resnet19_td", "resnet19_ckd"), ((128, 32), (256, 16), (512, 8))),
    **dict.fromkeys(("sew_resnet18", "sew_resnet34"), ((64, 8), (128, 4), (256, 2), (512, 1))),
}
HIDDEN = {"vgg_small": 128 * 16, "resnet20": 64, **dict.fromkeys(("resnet19_tet", "resnet19_td", "resnet19_ckd"), 256)}


def outputs(network: nn.Module, images: Tensor, paths: Iterable[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits of a call, and what the modules of these paths gave in it."""
    seen: dict[str, Tensor] = {}
    for path in paths:
        network.get_submodule(path).register_forward_hook(lambda _m, _i, out, path=path: seen.__setitem__(path, out))
    with torch.no_grad():
        return network(images), seen


@pytest.mark.parametrize("spiking", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_networks_places_are_its_stages_and_what_its_classifier_reads(name: str, spiking: bool) -> None:
    torch.manual_seed(0)
    config = NetConfig(name=name, width=0.125, T=2, in_channels=3, size=32, num_classes=7, spiking=spiking)
    network = build(config).train()  # the statistics of this batch: a fresh network in evaluation is silent
    places = network.places
    logits, seen = outputs(network, torch.randn(5, 3, 32, 32), (*places.stages, places.penultimate))
    lead = (2, 5) if spiking else (5,)
    wanted = [(*lead, round(c / 8), side, side) for c, side in STAGES[name]]
    assert [tuple(seen[path].shape) for path in places.stages] == wanted
    assert seen[places.penultimate].shape == (*lead, round(HIDDEN.get(name, 512) / 8))
    classifier = network.get_submodule(places.classifier)
    assert isinstance(classifier, nn.Linear)
    torch.testing.assert_close(classifier(seen[places.penultimate]), logits)
    if spiking and not name.startswith("sew_"):
        ends = [path for path in places.stages if not set(seen[path].unique().tolist()) <= {0.0, 1.0}]
        assert ends == (["body.layer3"] if name == "resnet19_ckd" else [])


def test_a_sew_block_passes_on_sums_of_spikes() -> None:
    torch.manual_seed(0)
    network = build(NetConfig(name="sew_resnet18", width=0.25, T=2, size=32)).train()
    _, seen = outputs(network, torch.randn(5, 1, 32, 32), network.places.stages)
    assert all(set(out.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0} for out in seen.values())
    assert max(out.max() for out in seen.values()) > 1


def test_a_teacher_of_event_frames_sees_their_mean_and_a_student_every_one() -> None:
    frames = torch.rand(3, 2, 2, 8, 8)
    teacher = build(NetConfig(spiking=False, in_channels=2, event=True)).eval()
    torch.testing.assert_close(teacher(frames), teacher(frames.mean(0)))
    student = build(NetConfig(T=3, in_channels=2, event=True)).eval()
    assert student(frames).shape == (3, 2, 10)
    with pytest.raises(ValueError, match=r"vgg_small was made for event frames \[T, B, C, H, W\], got \[2, 2, 8, 8\]"):
        student(frames[0])


def test_vgg_pools_as_asked() -> None:
    for pool, kind in (("avg", nn.AvgPool2d), ("max", nn.MaxPool2d)):
        with torch.device("meta"):
            network = build(NetConfig(name="vgg16", pool=pool, size=32))
        assert sum(isinstance(module, kind) for module in network.modules()) == 5
    with pytest.raises(ValueError, match=r"net\.pool is for vgg11 and vgg16; resnet18 has no pooling to choose"):
        build(NetConfig(name="resnet18", pool="max"))


@pytest.mark.parametrize(
    ("norm", "decay_input", "start", "before_a_sum"),
    [
        ("drive", True, 1.5, 1.5),
        ("drive", False, 0.5, 0.5),
        ("tdbn", True, 0.5, 0.5 / math.sqrt(2)),
        ("bn", True, 1, 1),
    ],
)
def test_normalisation_weights_start_where_asked(
    norm: str, decay_input: bool, start: float, before_a_sum: float
) -> None:
    config = NetConfig(name="resnet18", width=0.1, norm=norm, tau=3.0, v_threshold=0.5, decay_input=decay_input)
    found = {path: m.weight.unique().tolist() for path, m in build(config).named_modules() if isinstance(m, Norm)}
    summed = [path for path in found if path.endswith((".conv2.norm", ".shortcut.norm"))]
    assert len(summed) == 8 + 3
    for path, values in found.items():
        assert values == pytest.approx([before_a_sum if path in summed else start]), path
    sew = build(NetConfig(name="sew_resnet18", width=0.1, norm="tdbn", size=32))
    assert not any(module.into_sum for module in sew.modules() if isinstance(module, Norm))  # it adds spikes


@pytest.mark.parametrize("options", [{}, {"decay_input": False}, {"neuron": "if"}, {"neuron": "plif"}])
@pytest.mark.parametrize("v_reset", [0.0, -0.5, 0.25])
def test_the_firing_drive_is_what_a_neuron_at_rest_needs(options: dict[str, Any], v_reset: float) -> None:
    config = NetConfig(T=2, v_threshold=0.75, v_reset=v_reset, tau=2.0, **options)
    resting = next(iter(lif_layers(build(config)).values()))
    for part, fires in ((0.999, 0.0), (1.001, 1.0)):
        functional.reset_net(resting)
        drive = torch.full((1, 1, 4, 2, 2), part * firing_drive(config))  # membranes start at v_reset
        assert resting(drive).unique().tolist() == [fires]


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown network 'resnet81'; did you mean resnet18"):
        build(NetConfig(name="resnet81"))
    with pytest.raises(
        ValueError, match=r"resnet19_ckd halves an image twice: net\.size must be a multiple of 4, got 30"
    ):
        build(NetConfig(name="resnet19_ckd", size=30))
    with pytest.raises(ValueError, match="vgg16 halves an image five times: it needs at least 32 pixels, got 28"):
        build(NetConfig(name="vgg16", size=28))
    assert build(NetConfig(name="vgg11", size=32, width=0.01)).body.classifier.in_features == 5
    for change, message in (
        ({"T": 0}, "net.T must be in 1 to 64 time steps, got 0"),
        ({"tau": 1.0}, "net.tau must be greater than 1 step"),
        (
            {"neuron": "if", "tau": 3.0},
            "net.tau and net.decay_input are of neurons that leak; with net.neuron if leave",
        ),
        (
            {"neuron": "if", "decay_input": False},
            r"leave them as they are \(tau 2, decay_input True\), got 2 and False",
        ),
        ({"v_reset": 1.0}, r"net.v_reset \(1.0\) must be below net.v_threshold \(1.0\)"),
        ({"reset": "soft", "v_reset": 0.5}, r"net.v_reset is for net.reset hard; with soft it must stay 0, got 0.5"),
        ({"width": 0.0}, "net.width must be greater than 0"),
    ):
        with pytest.raises(ValueError, match=message):
            NetConfig(**change)
