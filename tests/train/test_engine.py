"""What a step runs on: asked for what is not there, it says so before the first step."""

from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from train import engine
from train.config import DataConfig, DistillConfig, NetConfig, RunConfig
from train.data import load
from train.features import Observed
from train.lesson import observe
from train.networks import build, lif_layers
from train.neurons import LIF, Norm


@pytest.mark.parametrize(
    ("asked", "device", "precision", "found"),
    [
        ("auto", "cpu", "fp32", "fused"),
        ("auto", "cpu", "fp64", "fused"),
        ("auto", "cpu", "bf16", "plain"),
        ("auto", "cuda", "fp32", "plain"),
        ("plain", "cpu", "fp32", "plain"),
        ("fused", "cpu", "fp32", "fused"),
    ],
)
def test_auto_takes_the_fused_step_where_there_is_one(asked: str, device: str, precision: str, found: str) -> None:
    assert engine.pick_engine(asked, device=device, precision=precision) == found


@pytest.mark.parametrize(("device", "precision"), [("cuda", "fp32"), ("cpu", "bf16")])
def test_fused_where_there_is_none_is_refused(device: str, precision: str) -> None:
    with pytest.raises(ValueError, match="--engine fused computes on a CPU in fp32 or fp64"):
        engine.pick_engine("fused", device=device, precision=precision)


def test_compiled_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"--engine compiled needs a C\+\+ compiler"):
        engine.pick_engine("compiled", device="cpu", precision="fp32")


def test_a_precision_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--precision fp16 needs a GPU; a CPU has fp32, bf16 and fp64"):
        engine.check_precision("fp16", "cpu")
    old = {"is_bf16_supported": lambda including_emulation: False, "get_device_name": lambda: "Tesla V100"}
    monkeypatch.setattr(engine.torch, "cuda", SimpleNamespace(**old))
    with pytest.raises(ValueError, match="--precision bf16: Tesla V100 has no bf16; take fp16 or fp32"):
        engine.check_precision("bf16", "cuda")


def test_prepare_sets_every_layer_and_shares_the_parameters() -> None:
    network = build(NetConfig())
    model = engine.prepare(network, RunConfig(sync_bn=True), device="cpu")
    layers = [module for module in network.modules() if isinstance(module, Norm | LIF)]
    assert layers
    assert all(module.fused for module in layers)
    assert all(module.sync for module in layers if isinstance(module, Norm))
    assert network.stem.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert list(model.parameters()) == list(network.parameters())
    engine.prepare(network, RunConfig(engine="plain"), device="cpu")
    assert not any(module.fused for module in layers)


def test_membranes_stay_float32_under_mixed_precision() -> None:
    """Each LIF fires as it does for the same bf16 current in float32."""
    network = build(NetConfig())
    model = engine.prepare(network, RunConfig(precision="bf16"), device="cpu").train()
    seen: list[tuple[LIF, torch.Tensor, torch.Tensor]] = []
    for module in network.modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda lif, inputs, out: seen.append((lif, inputs[0].detach(), out.detach())))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(64, 1, 8, 8))
    assert len(seen) == 6
    for lif, current, spikes in list(seen):
        assert (current.dtype, spikes.dtype, lif.v.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
        lif.reset()
        assert torch.equal(lif(current.float()), spikes.float())


@pytest.mark.parametrize("kind", ["lif", "plif", "if"])
def test_a_compiled_step_is_one_graph_that_keeps_no_membranes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first call on; logits and gradients are those of the plain modules."""
    torch.manual_seed(0)
    network = build(NetConfig(width=0.25, T=2, neuron=kind)).double()
    plain, images = deepcopy(network).train(), torch.randn(4, 1, 8, 8, dtype=torch.float64)
    monkeypatch.setattr(engine.shutil, "which", lambda name: name)
    monkeypatch.setattr(engine.torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    config = RunConfig(engine="compiled", precision="fp64")
    model = engine.prepare(network, config, device="cpu", model=Observed(network)).train()
    for _ in range(2):  # the second call starts at rest as well
        logits, expected = model(images)[0], plain(images)
        torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
        logits.square().sum().backward()
        expected.square().sum().backward()
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9)
    assert not any(isinstance(layer.v, torch.Tensor) for layer in lif_layers(network).values())
    assert all(isinstance(layer.v, torch.Tensor) for layer in lif_layers(plain).values())
    engine.prepare(network, RunConfig(engine="plain"), device="cpu")
    network(images)
    assert all(isinstance(layer.v, torch.Tensor) for layer in lif_layers(network).values())


def test_a_teacher_without_features_is_one_graph() -> None:
    net, dataset = NetConfig(width=0.25), load(DataConfig(limit=64))
    teacher = build(NetConfig(width=0.25, spiking=False)).eval().requires_grad_(False)
    _, observed = observe(DistillConfig(net=net), dataset, build(net), teacher)
    assert observed is not None
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        logits, features = torch.compile(observed, backend="aot_eager", fullgraph=True)(images)
        assert torch.equal(logits, teacher(images))
    assert (observed.layers, features) == ((), {})


def test_compiled_and_less_memory_exclude_each_other() -> None:
    for less in ({"compress_spikes": True}, {"checkpoint_segments": 2}):
        with pytest.raises(ValueError, match="--engine compiled decides by itself what it keeps"):
            engine.prepare(build(NetConfig()), RunConfig(engine="compiled", **less), device="cpu")


def test_several_nodes_without_torchrun_need_to_know_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "NODE_RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with pytest.raises(ValueError, match="--nodes 2: start with torchrun, or set NODE_RANK, MASTER_PORT on every"):
        engine.start(RunConfig(nodes=2, device="cpu"))
