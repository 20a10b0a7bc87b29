"""What a student is compared with is found, and known to be its own; what is not found is a reason."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_networks import write_checkpoint

from export.conventions import CONVENTIONS
from export.conventions_origin import origin_of
from export.counts import count
from export.energy_account import account
from export.energy_beside import Teacher, dense, find
from export.lower import lower
from hardware import chip
from train.checkpoint import Checkpoint
from train.config import NetConfig


CMOS = chip.load("cmos45nm")


def checkpoints(folder: Path, net: NetConfig, **changes: Any) -> Path:
    """A student and, in teacher/, the ANN that its metrics name."""
    teacher = write_checkpoint(folder / "teacher" / "teacher.pt", dataclasses.replace(net, spiking=False, width=0.2))
    path = write_checkpoint(folder / "student.pt", net)
    student = Checkpoint.load(path)
    taught = {"teacher_sha256": Checkpoint.load(teacher).sha256, "accuracy": 0.5, **changes}
    dataclasses.replace(student, metrics={**student.metrics, **taught}).save(path)
    return path


NET = NetConfig(width=0.1, T=2)


@pytest.mark.parametrize("name", ["vgg_small", "resnet18", "sew_resnet18"])
def test_a_teacher_costs_what_the_ann_of_a_student_of_its_layers_costs(tmp_path: Path, name: str) -> None:
    net = NetConfig(name=name, width=0.1, T=2, in_channels=1, size=16)
    student = Checkpoint.load(write_checkpoint(tmp_path / "student.pt", net))
    weights = dataclasses.replace(net, spiking=False)
    teacher = Checkpoint.load(write_checkpoint(tmp_path / "teacher.pt", weights))
    graph = lower(student)
    counts = count(graph, np.random.default_rng(0).random((1, 1, 16, 16)).astype(np.float32))
    origin = origin_of(student.network(), graph)
    found = dense(teacher, CMOS)
    for convention in CONVENTIONS.values():
        own = account(convention, graph, counts, origin, CMOS)["per_image"]["ann"]
        assert found[convention.name] == {key: own[key] for key in ("acs", "macs", "accesses", "access_J")}


def test_the_teacher_of_the_run_is_found_and_known_by_its_sha256(tmp_path: Path) -> None:
    path = checkpoints(tmp_path, NET)
    teacher = find(Checkpoint.load(path), path, chip=CMOS).teacher
    assert isinstance(teacher, Teacher)
    assert (teacher.taught, teacher.net) == (True, "vgg_small, width 0.2")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"teacher_sha256": None}, "names no teacher; give one with --teacher PATH"),
        ({"teacher_sha256": "f" * 64}, "is another than taught the student"),
    ],
)
def test_a_teacher_that_is_not_known_is_left_out_with_the_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    path = checkpoints(tmp_path, NET, **changes)
    teacher = find(Checkpoint.load(path), path, chip=CMOS).teacher
    assert isinstance(teacher, str)
    assert reason in teacher
    assert str(tmp_path) not in teacher


def test_a_teacher_whose_file_is_gone_is_left_out_and_another_may_be_named(tmp_path: Path) -> None:
    path = checkpoints(tmp_path, NET)
    moved = (tmp_path / "teacher" / "teacher.pt").rename(tmp_path / "moved.pt")
    student = Checkpoint.load(path)
    gone, named = (find(student, path, chip=CMOS, teacher=given).teacher for given in (None, moved))
    assert isinstance(gone, str)
    assert gone.startswith("teacher/teacher.pt, which taught the student, is not there; give it with --teacher PATH")
    assert isinstance(named, Teacher)
    other = write_checkpoint(
        tmp_path / "other.pt", dataclasses.replace(NET, spiking=False, num_classes=3), labels=("a", "b", "c")
    )
    with pytest.raises(ValueError, match="it is for other images or classes than the student"):
        find(student, path, chip=CMOS, teacher=other)


EXITS = {
    "fp32": {
        "rule": "confidence",
        "threshold": 0.5,
        "measured_on": {"dataset": "digits", "split": "test", "images": 9},
        "table": [
            {"threshold": 0.5, "mean_steps": 1.25, "accuracy": 0.8},
            {"threshold": 1.0, "mean_steps": 2.0, "accuracy": 0.9},
        ],
    }
}


def test_mean_steps_are_those_of_the_chosen_exit_of_a_bundle_of_this_student(tmp_path: Path) -> None:
    path = checkpoints(tmp_path, NET)
    student, folder = Checkpoint.load(path), tmp_path / "bundle"
    assert isinstance(find(student, path, chip=CMOS).early, str)
    folder.mkdir()
    (folder / "bundle.json").write_text(json.dumps({"checkpoint_sha256": student.sha256, "exits": EXITS}))
    for early in (find(student, path, chip=CMOS).early, find(student, path, chip=CMOS, exits=EXITS).early):
        assert not isinstance(early, str)
        assert early.keys() == {"fp32"}
        assert (early["fp32"].mean_steps, early["fp32"].accuracy, early["fp32"].accuracy_of_all) == (1.25, 0.8, 0.9)
    (folder / "bundle.json").write_text(json.dumps({"checkpoint_sha256": "f" * 64, "exits": EXITS}))
    assert str(find(student, path, chip=CMOS).early).startswith("bundle/ is no bundle of this student")
    with pytest.raises(ValueError, match=r"--bundle .* is no bundle of this student"):
        find(student, path, chip=CMOS, bundle=folder)


@pytest.mark.parametrize("steps", [0.5, 2.5])
def test_mean_steps_outside_of_the_students_are_refused(tmp_path: Path, steps: float) -> None:
    path = checkpoints(tmp_path, NET)
    with pytest.raises(ValueError, match=r"--steps must be in 1 to T = 2, got"):
        find(Checkpoint.load(path), path, chip=CMOS, steps=steps)


def test_the_cost_of_the_net_file_is_taken_where_it_is_known(tmp_path: Path) -> None:
    path = checkpoints(tmp_path, NET)
    student = Checkpoint.load(path)
    assert "writes one" in str(find(student, path, chip=CMOS).net)
    assert find(student, path, chip=CMOS, net={"unsupported": "a reason"}).net == "a reason"
    assert "was not run" in str(find(student, path, chip=CMOS, net={"cost": None}).net)
    said = {"checkpoint_sha256": student.sha256, "cost": {"per_image": {"energy_J": 1.0, "static_energy_J": 2.0}}}
    (tmp_path / "student.net.json").write_text(json.dumps(said))
    assert find(student, path, chip=CMOS).net == said["cost"]
