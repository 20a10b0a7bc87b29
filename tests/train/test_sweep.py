"""Searching settings: what may vary, what is kept, and going on after a kill."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import optuna
import pytest

from train import sweep
from train.config import DataConfig, NetConfig, OptimConfig
from train.errors import exit_status
from train.methods import METHODS
from train.space import Space
from train.sweep import SweepConfig


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def config(**changed: Any) -> SweepConfig:
    base = SweepConfig(
        data=DataConfig(limit=200, val_fraction=0.25),
        net=NetConfig(width=0.5, T=2),
        optim=OptimConfig(epochs=1, batch_size=50),
        method=METHODS["ce"],
        space=("optim.lr=0.01:0.3:log", "net.T=1:3", "net.surrogate=atan,sigmoid", "net.detach_reset=true,false"),
        trials=3,
        out=Path("sweep"),
    )
    return dataclasses.replace(base, **changed)


def test_trials_vary_what_is_asked_and_are_ranked_by_validation_accuracy() -> None:
    found = sweep.main(config())
    assert json.loads(Path("sweep/sweep.json").read_text()) == found
    assert len(found["trials"]) == 3
    accuracies = [trial["val_accuracy"] for trial in found["trials"]]
    assert accuracies == sorted(accuracies, reverse=True)
    for trial in found["trials"]:
        run = json.loads((Path("sweep") / trial["folder"] / "run.json").read_text())
        values = trial["values"]
        assert 0.01 <= values["optim.lr"] <= 0.3
        assert type(values["net.T"]) is int
        assert run["config"]["optim"]["lr"] == values["optim.lr"]
        assert run["config"]["net"]["T"] == values["net.T"]
        assert run["config"]["net"]["surrogate"] == values["net.surrogate"]
        assert run["config"]["net"]["detach_reset"] is values["net.detach_reset"]
        assert run["history"][-1]["val_accuracy"] == trial["val_accuracy"]


def test_a_sweep_goes_on_and_takes_a_killed_trial_up_in_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = sweep.run, 0

    def killed(config: Any, folder: Path) -> float:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise SystemExit("killed")  # nothing is told to the study
        return run(config, folder)

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "run", killed)
        with pytest.raises(SystemExit):
            sweep.main(config())
    study = optuna.load_study(study_name="sweep", storage="sqlite:///sweep/study.db")
    (left,) = [trial for trial in study.trials if trial.state.name == "RUNNING"]
    found = sweep.main(config())
    assert len(found["trials"]) == 3
    (taken_up,) = [trial for trial in found["trials"] if trial["folder"] == left.user_attrs["folder"]]
    assert taken_up["values"] == left.params
    more = sweep.main(config(trials=4))
    assert len(more["trials"]) == 4


def test_a_trial_that_diverges_counts_is_named_and_the_sweep_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    optim = OptimConfig(epochs=1, batch_size=50, warmup=0.0)
    diverging = config(space=("optim.lr=0.1,1e34",), trials=6, seed=1, optim=optim)
    found = sweep.main(diverging)
    rates = [[trial["values"]["optim.lr"] for trial in found[name]] for name in ("trials", "diverged")]
    assert len(rates[0]) + len(rates[1]) == 6
    assert (set(rates[0]), set(rates[1])) == ({0.1}, {1e34})
    assert "finite" in found["diverged"][0]["why"]
    assert "diverged: student: the loss stopped being finite" in capsys.readouterr().out
    assert sweep.main(diverging)["diverged"] == found["diverged"]  # nothing is taken up again
    assert not capsys.readouterr().out


def test_another_sweep_in_the_same_folder_is_refused() -> None:
    sweep.main(config(trials=1))
    with pytest.raises(ValueError, match=r"is another sweep's: settings\.net\.width was 0\.5, is 0\.25\. Give another"):
        sweep.main(config(trials=1, net=NetConfig(width=0.25, T=2)))


@pytest.mark.parametrize(
    ("text", "space"),
    [
        ("method.alpha=0.1:0.9", Space(key="method.alpha", low=0.1, high=0.9)),
        ("optim.lr=1e-3:1:log", Space(key="optim.lr", low=0.001, high=1.0, log=True)),
        ("net.T=1:4", Space(key="net.T", low=1, high=4)),
        ("net.T=1,2,4", Space(key="net.T", values=(1, 2, 4))),
        ("net.surrogate=atan,sigmoid", Space(key="net.surrogate", values=("atan", "sigmoid"))),
        ("data.augment=true,false", Space(key="data.augment", values=(True, False))),
    ],
)
def test_a_space_is_read(text: str, space: Space) -> None:
    assert Space.parse(text) == space


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"space": ()}, "say what is varied, e.g. --space method.alpha=0.1:0.9"),
        ({"space": ("net.T",)}, "space 'net.T': expected KEY=low:high, KEY=low:high:log or KEY=a,b,c"),
        ({"space": ("net.T=3:1",)}, "low must be below high"),
        ({"space": ("optim.lr=0:1:log",)}, "low must be below high and above 0"),
        ({"space": ("optim.lr=a:b",)}, "expected KEY=low:high"),
        ({"space": ("optim.lr=0.01:0.1", "optim.lr=0.1:1.0")}, "space: optim.lr is given more than once"),
        ({"space": ("net.TT=1:3",)}, "net.TT: unknown key 'TT'; did you mean"),
        ({"space": ("net.T=1:99",)}, "net.T must be in 1 to 64 time steps, got 99"),
        ({"data": DataConfig(val_fraction=0.0)}, "--data.val_fraction must not be 0"),
        ({"devices": 2}, "a sweep runs one process on one device"),
    ],
)
def test_what_cannot_be_swept_is_named_before_anything_is_trained(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        sweep.main(config(**changed))
    assert not Path("sweep").exists()


def test_the_command_prints_the_best_and_takes_every_flag_of_a_student(capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data.limit", "200", "--net.width", "0.5", "--net.T", "2", "--optim.epochs", "1"]
    flags = [*data, "--method.name", "ce", "--trials", "1", "--out", "s", "--space", "optim.lr=0.05:0.2"]
    assert exit_status(lambda: sweep.command(flags)) == 0
    out = capsys.readouterr().out
    assert "1 trials; accuracy on validation images of the best:" in out
    assert "--optim.lr 0." in out


def test_a_sweep_of_which_every_trial_diverged_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data.limit", "200", "--net.width", "0.5", "--net.T", "2", "--optim.epochs", "1"]
    steep = ["--optim.warmup", "0", "--optim.batch_size", "50", "--space", "optim.lr=1e33:1e34"]
    flags = [*data, *steep, "--method.name", "ce", "--trials", "2", "--out", "s"]
    assert exit_status(lambda: sweep.command(flags)) == 2
    assert "error: all 2 trials diverged (sweep.json)" in capsys.readouterr().err
    assert len(json.loads(Path("s/sweep.json").read_text())["diverged"]) == 2
