"""The data set that a checkpoint was trained on, found again: where it lies, and whether it is still the same."""

import json
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from train import evaluate
from train.checkpoint import Checkpoint, Preprocess
from train.config import DataConfig, NetConfig
from train.data import load
from train.evaluate import EvaluateConfig, dataset_of
from train.experiments.embedding import features
from train.networks import build
from train.schema import to_dict


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set of the kind `folder`: 2 classes, 8 training and 4 test images."""
    for seed in range(12):
        draw(tmp_path / "mine" / ("train" if seed < 8 else "test") / "ab"[seed % 2] / f"{seed}.png", seed)
    return tmp_path / "mine"


@pytest.fixture
def checkpoint(root: Path, tmp_path: Path) -> Path:
    """A fresh student of these images, that says so."""
    data = DataConfig(name="folder", root=root, size=8, val_fraction=0.25)
    dataset = load(data)
    net = NetConfig(width=0.25, T=2, in_channels=3, num_classes=2)
    Checkpoint(
        net=net,
        weights=build(net).state_dict(),
        preprocess=Preprocess(mean=dataset.mean, std=dataset.std, size=8),
        labels=dataset.classes,
        provenance={"config": {"data": to_dict(data)}, "dataset_md5": dict(dataset.md5)},
    ).save(tmp_path / "run/student.pt")
    return tmp_path / "run/student.pt"


def test_the_variable_for_several_data_sets_is_not_the_root_of_a_folder(
    checkpoint: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSERVE_DATA", str(tmp_path / "elsewhere"))
    assert evaluate.main(EvaluateConfig(checkpoint=checkpoint, device="cpu"))["images"] == 4
    root.rename(tmp_path / "moved")
    with pytest.raises(
        ValueError, match=r"mine, the folder that this .* was trained on, is not there; say .*--data_root"
    ):
        dataset_of(Checkpoint.load(checkpoint))
    assert len(dataset_of(Checkpoint.load(checkpoint), root=tmp_path / "moved").test) == 4


def test_the_features_of_fig_5_are_those_of_the_data_root_that_is_given(
    checkpoint: Path, root: Path, tmp_path: Path
) -> None:
    root.rename(tmp_path / "moved")
    x, labels = features(checkpoint, tmp_path / "moved")
    assert (len(x), labels.tolist()) == (4, [0, 1, 0, 1])


def test_what_was_measured_is_recorded_and_unchanged_data_is_no_news(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
    for split in splits:
        report = evaluate.main(EvaluateConfig(checkpoint=checkpoint, split=split, device="cpu"))
    assert capsys.readouterr().err == ""
    assert report == json.loads((checkpoint.parent / "evaluate.json").read_text())
    assert report["dataset_md5"] == Checkpoint.load(checkpoint).provenance["dataset_md5"]


def test_other_test_images_are_measured_with_a_warning(
    checkpoint: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(root / "test/a/8.png", 99)
    report = evaluate.main(EvaluateConfig(checkpoint=checkpoint, device="cpu"))
    warning = capsys.readouterr().err
    assert warning.startswith(
        f"warning: folder under {root} is not what the checkpoint was trained on: test has changed"
    )
    assert report["dataset_md5"]["test"] != Checkpoint.load(checkpoint).provenance["dataset_md5"]["test"]
    assert evaluate.main(EvaluateConfig(checkpoint=checkpoint, split="val", device="cpu"))["images"] == 2


@pytest.mark.parametrize("split", ["train", "val"])
def test_training_and_validation_images_that_changed_are_refused(
    checkpoint: Path, root: Path, split: Literal["train", "val"]
) -> None:
    shutil.copy(root / "train/a/0.png", root / "train/a/00.png")  # one more: others are kept for validation
    with pytest.raises(
        ValueError, match=rf"train has changed, so that nobody knows which images are its {split} split"
    ):
        evaluate.main(EvaluateConfig(checkpoint=checkpoint, split=split, device="cpu"))
    assert not (checkpoint.parent / "evaluate.json").exists()
