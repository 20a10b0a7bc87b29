"""Features by module path, what is trained beside a student, and what a method may not ask for."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from train import distill, loop
from train.checkpoint import Checkpoint
from train.config import DataConfig, DistillConfig, NetConfig, OptimConfig
from train.features import Observed
from train.methods import METHODS, Method, Outputs
from train.methods.base import Layers, cross_entropy
from train.methods.ce import CE
from train.networks import Places, build


IMAGES = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_features_are_the_outputs_of_the_named_modules() -> None:
    network = build(NetConfig(width=0.5, T=3))
    observed = Observed(network, (*network.places.stages, network.places.penultimate)).eval()
    logits, features = observed(IMAGES)
    assert torch.equal(logits, network(IMAGES))
    assert [tuple(features[name].shape[:2]) for name in features] == [(3, 2)] * 5
    assert torch.equal(network.get_submodule(network.places.classifier)(features["body.flatten"]), logits)
    assert observed.shapes(IMAGES) == {name: tuple(feature.shape) for name, feature in features.items()}


def test_shapes_are_taken_without_leaving_a_trace() -> None:
    observed = Observed(build(NetConfig(width=0.5)), ("body.act2",)).train()
    before = {name: value.clone() for name, value in observed.state_dict().items()}
    random = torch.get_rng_state()
    observed.shapes(IMAGES)
    assert observed.training
    assert observed.network.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in observed.state_dict().items())


def test_an_unknown_layer_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown vgg_small layer 'body\.act22'; did you mean body\.act2"):
        Observed(build(NetConfig()), ("body.act22",))


def test_a_layer_that_a_fused_step_never_computes_is_refused() -> None:
    from train.neurons import set_fused

    network = build(NetConfig(width=0.5)).train()
    set_fused(network, True)
    with pytest.raises(ValueError, match=r"layer body\.conv2\.norm is computed as a part of the activation after it"):
        Observed(network, ("body.conv2.norm",))(IMAGES)


def test_the_logits_of_a_frozen_teacher_can_be_differentiated_by_its_features() -> None:
    teacher = build(NetConfig(width=0.5, spiking=False)).eval().requires_grad_(False)
    with torch.no_grad():
        logits, features = Observed(teacher, ("body.act6",), differentiable=True)(IMAGES)
    (gradient,) = torch.autograd.grad(logits[:, 3].sum(), features["body.act6"])
    weight = teacher.get_submodule("body.classifier").weight[3]
    assert torch.allclose(gradient, weight.view(1, *gradient.shape[1:]).expand_as(gradient))


class Scale(nn.Module):
    """An adapter with one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.0))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"scaled": self.factor * features["body.act2"]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaled(CE):
    """Cross-entropy and a term that pushes an adapter's parameter; three steps in training."""

    def layers(self, student: Places, teacher: Places | None) -> Layers:
        return Layers(student=("body.act2",))

    def adapter(self, student: Any, teacher: Any, classes: int) -> nn.Module:
        assert student == {"body.act2": (2, 2, 16, 4, 4)}
        assert (teacher, classes) == ({}, 10)
        return Scale()

    def steps(self, T: int) -> int:
        return T + 1

    def remarks(self, classes: int) -> list[str]:
        return [f"{classes} classes are few"]

    def loss(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        if len(student.logits) != 3:
            raise AssertionError("the student must run T + 1 steps in training")
        pull = (student.features["scaled"] - 2 * student.features["body.act2"]).square().mean()
        ce = cross_entropy(student.logits.mean(0), target)
        return {"ce": ce, "pull": pull, "total": ce + pull}


def config(out: Path, **changed: Any) -> DistillConfig:
    base = DistillConfig(
        data=DataConfig(limit=200), net=NetConfig(width=0.5, T=2), optim=OptimConfig(epochs=2, batch_size=50), out=out
    )
    return dataclasses.replace(base, **{"method": Scaled(), **changed})


def test_an_adapter_is_trained_but_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = distill.main(config(tmp_path / "whole"))
    assert "warning: 10 classes are few" in capsys.readouterr().out
    state = torch.load(tmp_path / "whole/state.pt", weights_only=True)
    assert state["model"]["adapter.factor"] != 1
    student = Checkpoint.load(whole.path)
    assert student.weights.keys() == build(student.net).state_dict().keys()
    assert len(whole.accuracy_by_T) == 2  # measured at its own T


@pytest.mark.parametrize("method", [Scaled(), *(METHODS[name] for name in ("bkdsnn", "ckdsnn", "meom"))])
def test_a_run_that_was_killed_ends_in_the_same_student_also_where_a_method_draws(
    method: Method, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = Checkpoint.load(distill.main(config(tmp_path / "whole", method=method, teacher=teacher)).path)
    halted = config(tmp_path / "again", method=method, teacher=teacher, save_steps=1)
    save, calls = loop.Saves.save, 0

    def die(self: Any, progress: Any) -> None:
        nonlocal calls
        calls += 1
        save(self, progress)
        if calls == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Saves, "save", die)
        with pytest.raises(KeyboardInterrupt):
            distill.main(halted)
    torch.rand(7)  # another process draws something else
    again = Checkpoint.load(distill.main(dataclasses.replace(halted, resume="auto")).path)
    assert all(torch.equal(value, again.weights[name]) for name, value in whole.weights.items())


@pytest.mark.parametrize("setting", [{"checkpoint_segments": 2}, {"engine": "compiled"}])
def test_settings_under_which_features_cannot_be_read_are_refused(setting: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"method ce reads features of the student \(body\.act2\): no --checkpoint_seg"
    ):
        distill.main(config(tmp_path, **setting))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"student_layers": ("body.act9",), "teacher_layers": ("body.act2",)}, r"unknown vgg_small layer 'body\.act9'"),
        ({"student_layers": ("body.act2",), "teacher_layers": ("body.a",)}, r"unknown vgg_small layer 'body\.a'"),
        ({"student_layers": ("body.act2",)}, "the student has 1 .* and the teacher 4"),
        ({"student_layers": ("body.flatten",), "teacher_layers": ("body.act2",)}, "maps with maps and vectors with"),
    ],
)
def test_features_that_do_not_fit_are_refused_before_a_teacher_is_trained(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        distill.main(config(tmp_path / "run", method=dataclasses.replace(METHODS["kdsnn"], **changed)))
    assert not (tmp_path / "run").exists()


def test_a_negative_loss_is_said_before_and_once_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    high = dataclasses.replace(METHODS["tser"], entropy_weight=9.0)
    distill.main(config(tmp_path / "run", method=high, teacher_epochs=1))
    out = capsys.readouterr().out
    assert out.count("the loss is negative from step 1 on") == 1
