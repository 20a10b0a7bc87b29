"""What a run refuses before anything is trained, and what it leaves of the results that are there."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from quick_run import quick

from train import distill
from train import teacher as teachers_command
from train.checkpoint import Checkpoint
from train.config import NetConfig, TeacherConfig
from train.methods import METHODS


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """runs/latest is made under the current folder."""
    monkeypatch.chdir(tmp_path)


def test_a_finished_student_of_other_settings_is_not_replaced(tmp_path: Path, teacher: Path) -> None:
    config = quick(tmp_path / "run")
    distill.main(config)
    before = (tmp_path / "run/student.pt").read_bytes()
    slower = dataclasses.replace(config.optim, lr=0.05)
    for other, key in (
        (dataclasses.replace(config, optim=slower), r"settings\.optim\.lr was 0\.1, is 0\.05"),
        (dataclasses.replace(config, method=METHODS["skd"]), r"settings\.method"),  # before a teacher is trained
    ):
        with pytest.raises(ValueError, match=rf"student\.pt belongs to another run: .*{key}.*\. Give another --out"):
            distill.main(other)
    assert (tmp_path / "run/student.pt").read_bytes() == before
    assert not (tmp_path / "run/teacher").exists()
    taught = quick(tmp_path / "taught", method=METHODS["skd"], teacher=teacher)
    distill.main(taught)
    dataclasses.replace(Checkpoint.load(teacher), metrics={"accuracy": 0.0}).save(tmp_path / "other.pt")
    with pytest.raises(ValueError, match="belongs to another run: teacher_sha256 was"):
        distill.main(dataclasses.replace(taught, teacher=tmp_path / "other.pt"))


def test_the_same_command_may_be_repeated_and_says_what_was_made_of_the_student_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = quick(tmp_path / "run")
    distill.main(config)
    assert "note:" not in capsys.readouterr().out
    (tmp_path / "run/bundle").mkdir()
    (tmp_path / "run/mine.txt").touch()
    distill.main(config)
    assert f"note: bundle in {tmp_path / 'run'}: made of the student before; make anew" in capsys.readouterr().out


def test_a_finished_teacher_of_other_settings_is_not_replaced(tmp_path: Path) -> None:
    base = quick(tmp_path / "run")
    config = TeacherConfig(data=base.data, optim=base.optim, out=tmp_path / "taught")
    path = teachers_command.main(config).path
    before = path.read_bytes()
    teachers_command.main(config)
    with pytest.raises(ValueError, match=r"teacher\.pt belongs to another run: settings\.seed was 0, is 1\. Give"):
        teachers_command.main(dataclasses.replace(config, seed=1))
    assert path.read_bytes() == before


def test_a_teacher_that_the_method_does_not_use_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distill.main(quick(tmp_path / "run", teacher=tmp_path / "none.pt"))
    assert "warning: method ce has no teacher; --teacher " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "fused", "net": NetConfig(width=0.25, T=2, neuron="plif")}, "--engine fused cannot compute"),
        ({"engine": "fused", "precision": "bf16"}, "--engine fused computes on a CPU in fp32 or fp64"),
        ({"engine": "compiled", "compress_spikes": True}, "--engine compiled decides by itself what it keeps"),
        ({"precision": "fp16"}, "--precision fp16 needs a GPU"),
    ],
)
def test_what_an_engine_cannot_compute_is_refused_before_a_teacher_is_trained(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = quick(tmp_path / "run", method=METHODS["tser"], device="cpu", teacher_epochs=1)
    with pytest.raises(ValueError, match=message):
        distill.main(dataclasses.replace(config, **changes))
    assert not (tmp_path / "run").exists()
