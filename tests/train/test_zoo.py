"""Models of SpikingJelly's zoo train and evaluate like our own; what they cannot do is refused by name."""

import dataclasses
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.model.spikformer import spikformer_cifar10
from torch import nn

from train import engine
from train.config import NetConfig, RunConfig
from train.networks import Network, build, firing_rates, lif_layers
from train.networks.zoo import Zoo, factories
from train.neurons import IF, LIF, PLIF


SIZES = {  # channels and pixels of what is not for 3 channels of 32 pixels
    **dict.fromkeys(("MNISTNet", "FashionMNISTNet"), (1, 28)),
    "NMNISTNet": (2, 34),
    **dict.fromkeys(("CIFAR10DVSNet", "DVSGestureNet"), (2, 128)),
}
AVERAGED = {
    *("maxformer_10_384", "maxformer_cifar", "qkformer_10_384", "sdt_8_384"),
    *("att_ms_resnet18", "masnn_dvs128_gesture"),
}
SMALL = ["sj:max_resnet18", "sj:maxformer_cifar", "sj:spikformer_cifar10", "sj:sew_resnet18", "sj:ottt_spiking_vggws"]


def config_of(name: str, **options: Any) -> NetConfig:
    channels, size = SIZES.get(name, (3, 32))
    classes = 11 if name == "DVSGestureNet" else 10
    return NetConfig(name=f"sj:{name}", in_channels=channels, size=size, num_classes=classes, **{"T": 5, **options})


@pytest.mark.parametrize("name", factories())
def test_every_model_gives_logits_of_each_step_or_of_their_mean(name: str) -> None:
    config = config_of(name)
    with torch.device("meta"), torch.no_grad():
        network = build(config).eval()
        shape = (2, config.in_channels, config.size, config.size)
        steps = 1 if name in AVERAGED else 5
        seen = []
        assert network.places.stages == ()
        if network.places.classifier:
            classifier = network.get_submodule(network.places.classifier)
            assert isinstance(classifier, nn.Linear)
            classifier.register_forward_hook(lambda _m, _i, out: seen.append(out.shape[-1]))
        assert network(torch.zeros(shape)).shape == (steps, 2, config.num_classes)
        if network.places.classifier:
            assert seen[-1] == config.num_classes
        assert network(torch.zeros(5, *shape)).shape == (steps, 2, config.num_classes)
        with pytest.raises(ValueError, match="event input must have T = 5 steps"):
            network(torch.zeros(3, *shape))


def lively(name: str, **options: Any) -> Network:
    """An untrained model whose spikes reach its end."""
    torch.manual_seed(0)
    network = build(NetConfig(name=name, **{"in_channels": 3, "size": 32, "T": 4, **options}))
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0  # the statistics of one batch
    for path, parameter in network.named_parameters():
        if path.endswith(".gain"):  # of standardised weights
            parameter.data *= 3
    return network


@pytest.mark.parametrize("name", SMALL)
def test_calls_are_independent_of_each_other_and_the_classifier_gives_the_logits(name: str) -> None:
    network = lively(name)
    images, others = torch.randn(2, 2, 3, 32, 32)
    network.train()(images)
    network.eval()
    outs: list[torch.Tensor] = []
    network.get_submodule(network.places.classifier).register_forward_hook(lambda _m, _i, out: outs.append(out))
    with torch.no_grad():
        first = network(images)
        last = torch.stack(outs) if len(outs) > 1 else outs[0]
        assert torch.equal(last.reshape(first.shape), first)
        network(others)
        assert torch.equal(network(images), first)
    assert first.std() > 0


def test_the_model_is_spikingjellys_own() -> None:
    torch.manual_seed(0)
    network = build(NetConfig(name="sj:spikformer_cifar10", in_channels=3, size=32, T=2)).eval()
    model = spikformer_cifar10(T=2, num_classes=10).eval()
    model.load_state_dict(network.body.state_dict())
    functional.set_step_mode(model, "m")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(images), model(images))


@pytest.mark.parametrize("name", ["sew_resnet18", "sew_resnet34"])
def test_our_sew_resnets_are_those_of_the_zoo(name: str) -> None:
    """Same parameters in the same order, same logits of every step."""
    options: dict[str, Any] = {"in_channels": 3, "size": 64, "T": 3, "tau": 1.5, "reset": "soft"}
    theirs = lively(f"sj:{name}", **options).train()
    images = torch.randn(4, 3, 64, 64)
    theirs(images)
    ours = build(NetConfig(name=name, **options))
    pairs = list(zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True))
    assert all(mine.shape == other.shape for (_, mine), other in pairs)
    ours.load_state_dict({path: other for (path, _), other in pairs})
    with torch.no_grad():
        wanted = theirs.eval()(images)
        assert wanted[0].std() > 0
        assert torch.equal(ours.eval()(images), wanted)


@pytest.mark.parametrize("name", SMALL)
def test_a_training_step_reaches_every_parameter(name: str) -> None:
    network = lively(name)
    model = engine.prepare(network, RunConfig(), device="cpu").train()
    images, target = torch.randn(4, 3, 32, 32), torch.arange(4)
    nn.functional.cross_entropy(model(images).mean(0), target).backward()
    without = [path for path, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert len(without) <= 2, without  # nothing reaches a value that an untrained attention masks


@pytest.mark.parametrize("name", ["sj:max_resnet18", "sj:ottt_spiking_vggws"])
def test_firing_rates_are_those_of_every_step(name: str) -> None:
    network = build(NetConfig(name=name, in_channels=3, size=32, T=4)).eval()
    spikes: list[torch.Tensor] = []
    path, first = next(iter(lif_layers(network).items()))
    first.register_forward_hook(lambda _m, _i, out: spikes.append(out))
    with torch.no_grad(), firing_rates(network) as rates:
        for images in torch.randn(2, 3, 3, 32, 32):
            spikes.clear()
            network(images)
            stacked = spikes[0] if len(spikes) == 1 else torch.stack(spikes)
            assert stacked.shape[:2] == (4, 3)
            torch.testing.assert_close(rates[path], stacked.mean((2, 3, 4)))
            assert {tuple(value.shape) for value in rates.values()} == {(4, 3)}


def test_models_that_take_a_neuron_get_the_configured_one() -> None:
    options: dict[str, Any] = {"v_threshold": 0.5, "reset": "soft", "surrogate": "triangle"}
    with torch.device("meta"):
        for kind, cls in (("lif", LIF), ("plif", PLIF), ("if", IF)):
            leak = {} if kind == "if" else {"tau": 3.0}
            network = build(config_of("CIFAR10Net", neuron=kind, **leak, **options))
            assert {type(layer) for layer in lif_layers(network).values()} == {cls}
            assert {(layer.v_threshold, layer.v_reset) for layer in lif_layers(network).values()} == {(0.5, None)}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (config_of("spikformer_cifar"), "unknown model of SpikingJelly's zoo 'spikformer_cifar'; did you mean spikf"),
        (config_of("sew_resnet18", spiking=False), "sj:sew_resnet18: zoo models are spiking only; take a teacher"),
        (config_of("sew_resnet18", width=2.0), "net.width does not apply to sj:sew_resnet18"),
        (config_of("sew_resnet18", norm="tdbn"), "net.norm does not apply to sj:sew_resnet18"),
        (config_of("sew_resnet18", pool="max"), "net.pool is for vgg11 and vgg16; sj:sew_resnet18 has no"),
        (config_of("spikformer_cifar10", tau=4.0), "net.tau does not apply to sj:spikformer_cifar10"),
        (
            dataclasses.replace(config_of("sew_resnet18"), in_channels=1, size=8),
            "sj:sew_resnet18 does not take T = 5 steps of 1 channels of 8 pixels",
        ),
        (config_of("masnn_dvs128_gesture", T=2), r"does not take T = 2 steps .*reduction_t cannot be greater"),
        (
            dataclasses.replace(config_of("CIFAR10Net"), num_classes=100),
            "sj:CIFAR10Net knows 10 classes; the data has 100",
        ),
    ],
)
def test_what_a_model_cannot_be_is_refused_by_name(config: NetConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(config)


def test_what_an_engine_cannot_do_with_a_model_is_refused_and_auto_is_plain() -> None:
    network = build(config_of("max_resnet18"))
    assert engine.prepare(network, RunConfig(), device="cpu") is network
    with pytest.raises(ValueError, match="--engine fused cannot compute neurons of the kind LIFNode; take plain"):
        engine.prepare(network, RunConfig(engine="fused"), device="cpu")
    with pytest.raises(ValueError, match="--checkpoint_segments: sj:max_resnet18 is one module"):
        engine.prepare(network, RunConfig(checkpoint_segments=2), device="cpu")
    with pytest.raises(ValueError, match=r"--sync_bn: body\..* of sj:max_resnet18 is a normalisation of another"):
        engine.prepare(network, RunConfig(sync_bn=True), device="cpu")
    assert isinstance(network, Zoo)


def test_a_network_of_learned_time_constants_is_refused_by_the_fused_engine_and_auto_is_plain() -> None:
    network = build(NetConfig(neuron="plif"))
    engine.prepare(network, RunConfig(), device="cpu")
    assert network.train()(torch.randn(2, 1, 8, 8)).shape == (4, 2, 10)
    with pytest.raises(ValueError, match="--engine fused cannot compute neurons of the kind PLIF; take plain"):
        engine.prepare(network, RunConfig(engine="fused"), device="cpu")


def test_a_surrogate_that_torch_compile_cannot_trace_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--engine compiled: torch\.compile cannot trace SpikingJelly's Rect"):
        engine.prepare(build(NetConfig(surrogate="rect")), RunConfig(engine="compiled"), device="cpu")
