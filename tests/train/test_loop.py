"""The training loop: schedule, resuming bit for bit, and files that are whole or absent."""

import dataclasses
import json
import os
import re
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import quick_run
import torch

from train import distill, lesson, loop, state
from train.checkpoint import Checkpoint
from train.config import NetConfig, OptimConfig
from train.data import Shuffled
from train.errors import Stopped
from train.methods import METHODS
from train.record import atomic, only_writer, write_json


quick = partial(quick_run.quick, epochs=4)


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
    for expected in (3, 4, 10, 16):
        with pytest.raises(
            Stopped, match=rf"stopped after step {expected} of 16; saved in .*state\.pt\. Go on with"
        ) as stop:
            distill.main(parts)
        assert stop.value.status == 128 + signal.SIGTERM
        assert not (tmp_path / "parts/student.pt").exists()
    distill.main(parts)  # the last signal came in the last step: what is left is to measure and to write
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


def test_where_there_is_no_terminal_lines_say_how_far_a_long_epoch_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    distill.main(quick(tmp_path / "short", epochs=1))
    assert "step " not in capsys.readouterr().out
    monkeypatch.setattr(loop, "SAY_EVERY", 0.0)
    distill.main(quick(tmp_path / "run", epochs=2))
    number = r"\d[\d.e-]*"
    lines = [line for line in capsys.readouterr().out.splitlines() if "step " in line]
    assert len(lines) == 2 * 3  # of 4 steps an epoch; the last is followed by the epoch's own line
    for line, (epoch, step) in zip(lines, [(e, s) for e in (1, 2) for s in (1, 2, 3)], strict=True):
        start = f"student epoch {epoch}: step {step} of 4, "
        assert re.fullmatch(rf"{start}{number} s a step, {number} minutes left of it", line), line


def test_a_loss_that_turns_nan_is_named_by_step_and_term_and_the_last_good_state_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: Path
) -> None:
    config = quick(tmp_path / "run", method=METHODS["tser"], teacher=teacher)
    loss, calls = type(config.method).loss, 0

    def nan_at_step_7(*arguments: Any) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        terms = loss(*arguments)
        return terms if calls != 7 else {**terms, "kl": terms["kl"] * torch.nan, "total": terms["total"] * torch.nan}

    monkeypatch.setattr(type(config.method), "loss", nan_at_step_7)
    message = r"at step 7, term kl is nan; .* The state saved last is kept in .*state\.pt; --resume goes on from it"
    with pytest.raises(ValueError, match=message):
        distill.main(config)
    kept = torch.load(tmp_path / "run/state.pt", weights_only=True)
    assert kept["progress"]["step"] == 4
    assert all(bool(value.isfinite().all()) for value in kept["model"].values())


def test_a_state_that_cannot_be_written_is_named_and_the_one_before_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = torch.save, 0

    def full_disk(content: Any, path: Path) -> None:
        nonlocal calls
        calls += 1
        write(content, path)
        if calls == 2:
            path.write_bytes(path.read_bytes()[:100])
            raise RuntimeError("PytorchStreamWriter failed writing file data/7: file write failed")

    monkeypatch.setattr(state.torch, "save", full_disk)
    with pytest.raises(
        OSError, match=r"state\.pt: could not be written \(.* MB free there.*\)\. The state saved last is kept"
    ):
        distill.main(quick(tmp_path / "run"))
    assert torch.load(tmp_path / "run/state.pt", weights_only=True)["progress"]["step"] == 4
    assert not list((tmp_path / "run").glob(".state*"))


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path: Path) -> None:
    with only_writer(tmp_path / "run"), pytest.raises(ValueError, match="another process is training there"):
        distill.main(quick(tmp_path / "run", epochs=1))
    distill.main(quick(tmp_path / "run", epochs=1))


def test_processes_that_start_from_different_states_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.parallel, "largest", lambda *values: [8, 0])
    with pytest.raises(ValueError, match=r"one process starts from step 8 and another from step 0; all nodes need the"):
        distill.main(quick(tmp_path / "run", epochs=1))


def test_a_state_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    distill.main(quick(tmp_path / "run", epochs=1))
    path = tmp_path / "run/state.pt"
    torch.save({**torch.load(path, weights_only=True), "format": 99}, path)
    with pytest.raises(ValueError, match=r"training state of format 99; this version reads \d+"):
        distill.main(quick(tmp_path / "run", epochs=1, resume="auto"))


def test_the_state_is_saved_by_steps_and_by_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, saved = state.State.save, []
    monkeypatch.setattr(state.State, "save", lambda self, progress: saved.append(progress.step) or save(self, progress))
    distill.main(quick(tmp_path / "steps", epochs=2, save_steps=3))
    assert saved == [3, 4, 6, 8]
    saved.clear()
    distill.main(quick(tmp_path / "time", epochs=2, save_minutes=1e-9))
    assert saved == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_student_may_grow_its_time_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [lesson.steps_at(i / 12, T=4, grow_T=0.5) for i in range(12)] == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 4, 4]
    assert (lesson.steps_at(0.0, T=4, grow_T=0.0), lesson.steps_at(0.0, T=1, grow_T=0.5)) == (4, 1)
    seen: list[int] = []
    loss = type(METHODS["ce"]).loss

    def keep_T(self: Any, student: Any, *others: Any) -> Any:
        seen.append(len(student.logits))
        return loss(self, student, *others)

    monkeypatch.setattr(type(METHODS["ce"]), "loss", keep_T)
    distill.main(quick(tmp_path / "run", epochs=2, grow_T=0.5, net=NetConfig(width=0.25, T=3)))
    assert seen == [1, 1, 2, 2, 3, 3, 3, 3]
    assert len(Checkpoint.load(tmp_path / "run/student.pt").metrics["accuracy_by_T"]) == 3


def test_a_student_may_start_from_its_teachers_weights(tmp_path: Path) -> None:
    config = quick(
        tmp_path / "run", epochs=1, method=METHODS["skd"], teacher_epochs=1, teacher_width=1.0, init_from_teacher=True
    )
    distill.main(dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=1e-12)))
    teacher, student = (weights(tmp_path / "run" / name) for name in ("teacher/teacher.pt", "student.pt"))
    name = "body.conv2.conv.weight"
    assert torch.allclose(student[name], teacher[name], atol=1e-6)
    assert torch.allclose(student["stem.norm.weight"], 2 * teacher["stem.norm.weight"], atol=1e-6)


def test_a_teacher_of_another_width_cannot_give_its_weights(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="init_from_teacher needs a teacher of the student's width: set teacher_width"):
        quick(tmp_path, init_from_teacher=True)
    message = r"--init_from_teacher needs a teacher of the student's network and width: stem\.conv\.weight is \["
    with pytest.raises(ValueError, match=message):
        distill.main(quick(tmp_path / "a", method=METHODS["skd"], teacher=teacher, init_from_teacher=True))
    with pytest.raises(ValueError, match=r"this method has no teacher; take --method\.name tser or skd"):
        distill.main(quick(tmp_path / "b", teacher=teacher, init_from_teacher=True))


def test_a_teacher_that_was_trained_with_the_same_settings_is_used_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = quick(tmp_path / "run", epochs=1, method=METHODS["skd"], teacher_epochs=1, teacher_width=1.0)
    first = distill.main(config)
    assert "was trained with these settings" not in capsys.readouterr().out
    assert distill.main(config) == first
    assert "was trained with these settings" in capsys.readouterr().out
    (tmp_path / "run/student.pt").unlink()  # a finished student of other settings is not replaced
    distill.main(dataclasses.replace(config, teacher_epochs=2))
    assert "was trained with these settings" not in capsys.readouterr().out


def test_latest_points_to_the_newest_student(tmp_path: Path) -> None:
    for name in ("a", "b"):
        distill.main(quick(tmp_path / "elsewhere" / name, epochs=1))
    assert (tmp_path / "runs/latest").resolve() == tmp_path / "elsewhere/b"


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
