"""Checkpoints: whole, portable, and never a way to run code."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from train.checkpoint import Checkpoint, CheckpointError, Preprocess
from train.config import NetConfig
from train.networks import build


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    net = NetConfig(width=0.25, T=3)
    checkpoint = Checkpoint(
        net=net,
        weights=build(net).state_dict(),
        preprocess=Preprocess(mean=(0.3,), std=(0.4,), size=8),
        labels=tuple("0123456789"),
        metrics={"accuracy": 0.5},
        provenance={"seed": 1},
    )
    checkpoint.save(tmp_path / "student.pt")
    return tmp_path / "student.pt"


def edited(path: Path, **changes: Any) -> Path:
    content = torch.load(path, weights_only=True)
    torch.save(content | changes, path)
    return path


def test_what_is_loaded_is_what_was_saved(saved: Path) -> None:
    here = Checkpoint.load(saved)
    assert (here.net.T, here.labels[3], here.metrics, here.provenance) == (3, "3", {"accuracy": 0.5}, {"seed": 1})
    stored = torch.load(saved, weights_only=True)["weights"]
    assert all(torch.equal(stored[name], tensor) for name, tensor in here.network().state_dict().items())
    assert len(here.sha256) == 64
    assert not here.network().training


def test_a_file_from_before_an_option_takes_its_default(saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    for name in ("reset", "neuron", "norm", "pool", "event"):
        del content["net"][name]
    torch.save(content, saved)
    assert Checkpoint.load(saved).net.reset == "hard"


def test_preprocess_normalises_bytes_and_floats_alike() -> None:
    preprocess = Preprocess(mean=(0.5, 0.25), std=(0.5, 2.0), size=4)
    pixels = torch.randint(256, (3, 2, 4, 4), dtype=torch.uint8)
    wanted = (pixels.numpy() / 255 - np.array([0.5, 0.25])[:, None, None]) / np.array([0.5, 2.0])[:, None, None]
    assert np.allclose(preprocess(pixels), wanted, atol=1e-6)
    assert np.allclose(preprocess(pixels.double() / 255), wanted, atol=1e-12)


def test_a_malicious_file_does_not_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"format": 1, "net": Attack()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Attack()))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(CheckpointError, match="not a TSERve checkpoint"):
            Checkpoint.load(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 5000])
def test_a_truncated_file_is_refused(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"student\.pt: not a TSERve checkpoint, or a damaged one"):
        Checkpoint.load(saved)


def test_a_foreign_file_is_refused(saved: Path) -> None:
    torch.save({"state_dict": {}}, saved)
    with pytest.raises(CheckpointError, match="no format number inside"):
        Checkpoint.load(saved)


def test_a_newer_format_is_named(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="checkpoint format 2; this version reads 1"):
        Checkpoint.load(edited(saved, format=2))


def test_weights_that_do_not_fit_are_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="does not fit together"):
        Checkpoint.load(edited(saved, weights={"stem.conv.weight": torch.zeros(1)}))


def test_a_training_state_is_recognised(saved: Path) -> None:
    torch.save({"format": 3, "identity": {}, "progress": {}, "model": {}}, saved)
    with pytest.raises(CheckpointError, match=r"the state of a training run; give the student\.pt or teacher\.pt"):
        Checkpoint.load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"provenance": None}, "provenance is None; expected a table of keys"),
        ({"metrics": [1]}, r"metrics is \[1\]; expected a table of keys"),
        ({"preprocess": {"mean": [0.1, 0.2, 0.3], "std": [0.4], "size": 8}}, r"mean is .* expected 1 finite numbers"),
        ({"preprocess": {"mean": [0.1], "std": [0.0], "size": 8}}, r"std is \[0\.0\]; it must be above 0"),
        ({"preprocess": {"mean": [0.1], "std": [float("nan")], "size": 8}}, "std is .* finite"),
        ({"preprocess": {"mean": [0.1], "std": [0.4], "size": 9}}, "preprocess.size is 9, net.size 8"),
        ({"labels": ["a", "b"]}, "labels are 2; expected 10 names, one a class"),
        ({"net": {"width": 0.25, "T": 4.5}}, "T: expected an integer, got 4.5"),
        ({"net": {"width": 0.25, "tt": 4}}, "unknown key 'tt'"),
        ({"net": [1]}, ""),
    ],
)
def test_what_does_not_fit_together_is_named(saved: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"student\.pt: the checkpoint does not fit together \(.*{message}"):
        Checkpoint.load(edited(saved, **changes))


def test_weights_that_are_not_finite_are_refused(saved: Path) -> None:
    weights = torch.load(saved, weights_only=True)["weights"]
    weights["stem.conv.weight"][0, 0, 0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"stem\.conv\.weight holds a value that is not finite"):
        Checkpoint.load(edited(saved, weights=weights))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        Checkpoint.load(tmp_path / "none.pt")


def test_a_student_is_no_teacher_and_the_other_way_round(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="a spiking student, not a teacher"):
        Checkpoint.load_teacher(saved)
    content = torch.load(saved, weights_only=True)
    with pytest.raises(CheckpointError, match=r"a teacher \(ReLU\), not a spiking student"):
        Checkpoint.load_student(edited(saved, net=content["net"] | {"spiking": False}))


def test_only_json_types_are_saved(saved: Path) -> None:
    checkpoint = Checkpoint.load(saved)
    before = saved.read_bytes()
    object.__setattr__(checkpoint, "metrics", {"accuracy": torch.zeros(1)})
    with pytest.raises(TypeError):
        checkpoint.save(saved)
    assert saved.read_bytes() == before
