"""Three versions of the synthetic bundle, and the ways in which one takes the place of another.

They have other weights in both of their ONNX files and are alike in all else, so that a mixture of two would fit
together and give an answer that neither gives.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
from synthetic import build_model, build_step, describe, exact_images, write_bundle

from serve.models import Served
from train.record import atomic


IMAGES = exact_images(3)
VERSIONS = ("one", "two", "three")


class Clock:
    """A clock that stands still unless it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def write_version(folder: Path, seed: int, name: str) -> Path:
    """A bundle with weights from `seed`, called `name`."""
    write_bundle(folder, samples=1)
    onnx.save(build_model(seed=seed), folder / "model.onnx")
    onnx.save(build_step(seed=seed), folder / "step.onnx")
    describe(folder)
    fields = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(fields | {"name": name}))
    return folder


def copy(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def who(served: Served, answers: dict[str, np.ndarray]) -> str:
    """Which version answers; fails if the two forms of the model, or its id and name, are of different versions."""
    names = []
    for steps in (3, 2):  # the unrolled form, and the step form
        logits = np.stack([p.logits for p in served.predictor.predict(IMAGES, exit_threshold=1.0, steps=steps)], axis=1)
        names += [name for name, wanted in answers.items() if np.array_equal(logits, wanted[:steps])]
    assert names == [served.predictor.about.name] * 2
    return names[0]


def rename(folder: Path, new: Path) -> None:
    os.rename(folder, folder.with_name("old"))
    os.rename(copy(new, folder.with_name("new")), folder)


def turn_link(folder: Path, new: Path) -> None:
    os.symlink(new, folder.with_name("link"))
    os.replace(folder.with_name("link"), folder)


def write_over(folder: Path, new: Path) -> None:
    shutil.copytree(new, folder, dirs_exist_ok=True)


def export_over(folder: Path, new: Path) -> None:
    """As `python -m export.bundle` does."""
    with atomic(folder) as aside:
        copy(new, aside)
