"""Settings under which a network stops being finite: named as such, before anything is measured or kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from quick_run import quick

from train import distill
from train.config import OptimConfig
from train.errors import Diverged
from train.metrics import SplitOutputs, summary


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """runs/latest is made under the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("lr", [1e30, 1e37])
def test_weights_that_turn_infinite_in_an_epochs_last_step_are_named_before_they_are_measured(
    lr: float, tmp_path: Path
) -> None:
    optim = OptimConfig(epochs=2, batch_size=270, lr=lr, warmup=0.0)  # one step an epoch, of all images
    with pytest.raises(Diverged, match=r"not finite|stopped being finite"):
        distill.main(quick(tmp_path / "run", optim=optim))
    assert not (tmp_path / "run/student.pt").exists()


def test_a_network_that_is_not_finite_after_an_epoch_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_step = torch.optim.SGD.step

    def break_weights(optimizer: torch.optim.SGD, *arguments: Any) -> Any:
        take_step(optimizer, *arguments)
        optimizer.param_groups[0]["params"][0].data.fill_(torch.nan)

    monkeypatch.setattr(torch.optim.SGD, "step", break_weights)
    message = r"holds a value that is not finite after step 1; start anew with a smaller --optim\.lr"
    with pytest.raises(Diverged, match=message):
        distill.main(quick(tmp_path / "run", optim=OptimConfig(epochs=2, batch_size=270)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_answers_that_are_not_finite_are_not_measured(value: float) -> None:
    logits = torch.zeros(2, 3, 10)
    logits[1, 2, 3] = value
    with pytest.raises(Diverged, match="the network's answers are not finite"):
        summary(SplitOutputs(logits=logits, labels=torch.zeros(3, dtype=torch.int64), rates={}))


@pytest.mark.parametrize("name", ["lr", "muon_lr", "weight_decay"])
def test_rates_that_are_not_finite_are_refused(name: str) -> None:
    rates: dict[str, Any] = {name: float("inf")}
    with pytest.raises(ValueError, match=rf"optim\.{name} must be finite"):
        OptimConfig(**rates)
