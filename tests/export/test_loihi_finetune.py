"""`python -m export.to_loihi --finetune N`: the student and the .net that is made of it, both or neither."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export import loihi_report, to_loihi, verify
from hardware import netx
from hardware.net import Net
from train.checkpoint import Checkpoint
from train.cli import exit_status


def report_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.with_name(path.name + ".json").read_text())
    return content


@pytest.fixture(scope="module")
def tuned(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what an export with one epoch of fine-tuning writes."""
    folder = tmp_path_factory.mktemp("tuned")
    flags = ["--finetune", "1", "--verify", "reference", "--samples", "4", "--calibration", "32"]
    assert to_loihi.command([str(student), "--out", str(folder / "a.net"), *flags]) == 0
    return folder


def test_fine_tuning_writes_the_student_beside_the_file_that_is_made_of_it(
    tuned: Path, student: Path, teacher: Path
) -> None:
    assert sorted(path.name for path in tuned.iterdir()) == ["a.finetuned.pt", "a.net", "a.net.json"]
    report, net = report_of(tuned / "a.net"), netx.read(tuned / "a.net")
    written, before = Checkpoint.load_student(tuned / "a.finetuned.pt"), Checkpoint.load_student(student)
    assert net.meta["checkpoint_sha256"] == report["checkpoint_sha256"] == written.sha256
    about = report["finetuned"]
    assert (about["file"], about["from_sha256"], about["epochs"]) == ("a.finetuned.pt", before.sha256, 1)
    assert about["teacher"] == f"the teacher {teacher}"
    assert written.net == before.net
    assert written.provenance["finetuned"]["from_sha256"] == before.sha256
    accuracy = report["accuracy"]
    assert accuracy.keys() >= {"float", "integer_before", "integer"}
    assert accuracy["integer"] >= accuracy["integer_before"] - 0.02
    assert accuracy["float"] == pytest.approx(before.metrics["accuracy"])


def test_the_fine_tuned_pair_is_verified_by_itself(
    tuned: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--engine", "reference", "--samples", "8", "--out", str(tmp_path / "verify.json")]
    assert exit_status(lambda: verify.command([str(tuned / "a.finetuned.pt"), str(tuned / "a.net"), *flags])) == 0
    report = json.loads((tmp_path / "verify.json").read_text())
    assert (report["ok"], report["flips"], report["max_logit_difference"]) == (True, 0, 0.0)
    assert report["spikes"] > 1000
    assert exit_status(lambda: verify.command([str(student), str(tuned / "a.net"), *flags])) == 2
    assert "a.net: it was exported from another checkpoint" in capsys.readouterr().err


def test_a_fine_tuned_student_can_be_exported_again(tuned: Path, tmp_path: Path) -> None:
    flags = ["--verify", "reference", "--samples", "2", "--out", str(tmp_path / "b.net"), "--calibration", "16"]
    assert to_loihi.command([str(tuned / "a.finetuned.pt"), *flags]) == 0
    again = report_of(tmp_path / "b.net")["accuracy"]
    assert abs(again["integer"] - report_of(tuned / "a.net")["accuracy"]["integer"]) < 0.03


def quickly_tuned(*_: Any, **__: Any) -> Any:
    """A fine-tuning that changes nothing: (about, student, scales) as `to_loihi.finetuned` gives them."""
    config, checkpoint, _graph, scales, path = _
    checkpoint.save(path)
    about = {"file": to_loihi.finetuned_path(config.out).name}
    return about, Checkpoint.load_student(path), scales


@pytest.mark.parametrize("step", ["verify", "report", "json"])
def test_neither_file_is_left_where_a_later_step_fails(
    step: str, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(to_loihi, "finetuned", quickly_tuned)
    before = []
    if step == "verify":
        write: Callable[[Net, Path], None] = netx.write

        def write_wrongly(net: Net, path: Path) -> None:
            net.spiking[2].weight[:] *= -1
            write(net, path)

        monkeypatch.setattr(netx, "write", write_wrongly)
    elif step == "report":

        def broken(*_: Any, **__: Any) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(loihi_report, "report", broken)
    else:
        (tmp_path / "a.net.json").mkdir()  # no file can take its place
        (tmp_path / "a.net.json" / "kept").touch()
        before = ["a.net.json"]
    argv = [str(student), "--out", str(tmp_path / "a.net"), "--finetune", "1", "--verify", "reference"]
    flags = ["--samples", "1", "--calibration", "4", "--test_images", "4"]
    status = exit_status(lambda: to_loihi.command([*argv, *flags]))
    assert status == (1 if step == "verify" else 2)
    assert [path.name for path in tmp_path.iterdir()] == before
    assert capsys.readouterr().err
