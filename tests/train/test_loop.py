"""The training loop: schedule, resuming bit for bit, and files that are whole or absent."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from train import distill, optimizer
from train.checkpoint import Checkpoint
from train.config import DataConfig, DistillConfig, NetConfig, OptimConfig
from train.data import Shuffled
from train.errors import Stopped
from train.methods import METHODS
from train.record import atomic, write_json


def quick(out: Path, *, epochs: int = 4, **changes: Any) -> DistillConfig:
    """A student without a teacher on 300 digits: under a second an epoch."""
    config = DistillConfig(
        data=DataConfig(limit=300),
        net=NetConfig(width=0.25, T=2),
        optim=OptimConfig(epochs=epochs, batch_size=64),
        method=METHODS["ce"],
        out=out,
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """runs/latest is made under the current folder."""
    monkeypatch.chdir(tmp_path)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["weights"]


@pytest.mark.parametrize("changes", [{}, {"optim": {"ema": 0.9}}, {"optim": {"optimizer": "muon"}}])
def test_a_run_stopped_by_sigterm_at_any_step_goes_on_bit_for_bit(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(tmp_path / "whole")
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, **changes.get("optim", {})))
    distill.main(config)
    parts = dataclasses.replace(config, out=tmp_path / "parts", resume="auto")
    draw = Shuffled.__call__

    def stop_at_some_steps(stream: Shuffled, step: int, *arguments: Any) -> Any:
        if step in (2, 3, 9, 15):
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(stream, step, *arguments)

    monkeypatch.setattr(Shuffled, "__call__", stop_at_some_steps)
    for expected in (3, 4, 10):
        with pytest.raises(
            Stopped, match=rf"stopped after step {expected} of 16; saved in .*state\.pt\. Go on with"
        ) as stop:
            distill.main(parts)
        assert stop.value.status == 128 + signal.SIGTERM
        assert not (tmp_path / "parts/student.pt").exists()
    distill.main(parts)  # the last signal comes in the last step, when there is nothing left to save for
    whole, resumed = (weights(tmp_path / run / "student.pt") for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    histories = [
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "parts")
    ]
    assert [row["loss"] for row in histories[0]] == [row["loss"] for row in histories[1]]
    assert [row["epoch"] for row in histories[1]] == [1, 2, 3, 4]


def test_another_seed_is_another_student(tmp_path: Path) -> None:
    distill.main(quick(tmp_path / "a", epochs=1))
    distill.main(quick(tmp_path / "b", epochs=1, seed=1))
    assert not torch.equal(*(weights(tmp_path / run / "student.pt")["stem.conv.weight"] for run in "ab"))


def test_resuming_under_other_settings_names_them(tmp_path: Path) -> None:
    distill.main(quick(tmp_path / "run", epochs=1))
    other = quick(tmp_path / "run", epochs=1, net=NetConfig(width=0.25, T=3), resume="auto")
    with pytest.raises(ValueError, match=r"belongs to another run: settings\.net\.T was 2, is 3"):
        distill.main(other)


def test_resuming_under_another_teacher_is_refused_wherever_the_teacher_lies(student: Path, tmp_path: Path) -> None:
    teacher = Checkpoint.load(student.parent / "teacher/teacher.pt")
    teacher.save(tmp_path / "teacher.pt")
    config = quick(tmp_path / "run", epochs=1, method=METHODS["skd"], teacher=tmp_path / "teacher.pt")
    distill.main(config)
    (tmp_path / "teacher.pt").rename(tmp_path / "moved.pt")
    distill.main(dataclasses.replace(config, teacher=tmp_path / "moved.pt", resume="auto"))
    dataclasses.replace(teacher, metrics={"accuracy": 0.0}).save(tmp_path / "moved.pt")
    with pytest.raises(ValueError, match="belongs to another run: teacher_sha256 was"):
        distill.main(dataclasses.replace(config, teacher=tmp_path / "moved.pt", resume="auto"))


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    distill.main(quick(tmp_path / "run", epochs=1))
    state = tmp_path / "run/state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state\.pt: not a training state, or a damaged one"):
        distill.main(quick(tmp_path / "run", epochs=1, resume="auto"))


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_state(tmp_path: Path) -> None:
    config = quick(tmp_path / "run", epochs=3, optim=OptimConfig(epochs=3, batch_size=64, lr=1e30, warmup=0.0))
    with pytest.raises(ValueError, match=r"the loss stopped being finite at step \d+, term ce is (nan|inf)"):
        distill.main(config)
    assert not (tmp_path / "run/student.pt").exists()


def test_a_teacher_that_was_trained_with_the_same_settings_is_used_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = quick(tmp_path / "run", epochs=1, method=METHODS["skd"], teacher_epochs=1, teacher_width=1.0)
    first = distill.main(config)
    assert "was trained with these settings" not in capsys.readouterr().out
    assert distill.main(config) == first
    assert "was trained with these settings" in capsys.readouterr().out
    distill.main(dataclasses.replace(config, teacher_epochs=2))
    assert "was trained with these settings" not in capsys.readouterr().out


def test_latest_points_to_the_newest_student(tmp_path: Path) -> None:
    for name in ("a", "b"):
        distill.main(quick(tmp_path / "elsewhere" / name, epochs=1))
    assert (tmp_path / "runs/latest").resolve() == tmp_path / "elsewhere/b"


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    optim = OptimConfig(lr=0.1, warmup=0.2)
    rates = [optimizer.learning_rate(optim, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1 / 20)
    assert max(rates) == pytest.approx(0.1)
    assert rates.index(max(rates)) in (19, 20)
    assert sorted(rates[20:], reverse=True) == rates[20:]
    assert rates[-1] < 1e-4


def test_only_weights_decay() -> None:
    from train.networks import build

    network = build(NetConfig(name="vgg11", size=32, width=0.1))
    decayed, others = optimizer.parameter_groups(network, OptimConfig(weight_decay=0.5))
    assert all(p.dim() > 1 for p in decayed["params"])
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.5, 0.0)
    assert len(decayed["params"]) + len(others["params"]) == len(list(network.parameters()))


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "a.json", {"new": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    def fill(text: str, *, fail: bool = False) -> None:
        with atomic(tmp_path / "bundle") as new:
            new.mkdir()
            (new / "file").write_text(text)
            if fail:
                raise RuntimeError

    fill("old")
    with pytest.raises(RuntimeError):
        fill("broken", fail=True)
    assert (tmp_path / "bundle/file").read_text() == "old"
    fill("new")
    assert (tmp_path / "bundle/file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
