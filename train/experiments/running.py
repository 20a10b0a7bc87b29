"""Training the students of an experiment: each in a folder named after what it is, so that none is trained twice."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from train import distill, parallel, runs, teacher
from train.checkpoint import Checkpoint
from train.config import DataConfig, DistillConfig, NetConfig, TeacherConfig
from train.data import Dataset, load
from train.experiments.experiment import Experiment, Variant
from train.teachers import made_by


# What is kept of a student's metrics.
MEASURES = (
    *("accuracy", "accuracy_by_T", "accuracy_by_step", "step_mean", "step_spread", "calibration_error"),
    *("firing_rate", "feature_firing_rate", "teacher_accuracy", "teacher_sha256"),
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and on what students are trained; nothing here changes what they are, but for the precision."""

    runs: Path
    data_root: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"

    def placed(self, config: Any) -> Any:
        """A student's or teacher's settings, here."""
        root = self.data_root or config.data.root
        return replace(
            config, data=replace(config.data, root=root), device=self.device, precision=self.precision, resume="auto"
        )


def outcomes(experiment: Experiment, variants: list[Variant], seeds: int, place: Place) -> Iterator[dict[str, Any]]:
    """Train every variant with every seed and give each one's row as soon as there is one; seeds go round first, so
    that all variants are compared from the first round on. Students that are there already are only read."""
    total = len(variants) * seeds
    for seed in range(seeds):
        for number, variant in enumerate(variants, 1 + seed * len(variants)):
            what = f"{experiment.name} {number}/{total}: {' '.join((variant.group, variant.name)).strip()}, seed {seed}"
            yield outcome(experiment, variant, seed, place, what)


def outcome(experiment: Experiment, variant: Variant, seed: int, place: Place, what: str) -> dict[str, Any]:
    """One student's row: its measures on the test split and where it comes from."""
    config: DistillConfig = replace(place.placed(variant.config), seed=seed)
    dataset = data(config.data)
    taught = teacher_of(config, dataset, place) if config.method.needs_teacher else None
    config = replace(config, teacher=taught, net=runs.fit_to(dataset, replace(config.net, spiking=True)))
    sha256 = Checkpoint.load(taught).sha256 if taught else None
    run = runs.Run(config=config, dataset=dataset, title="student", teacher_sha256=sha256)
    name = f"{config.data.name}-{config.net.name}-{config.method.name}-T{config.net.T}-s{seed}-{digest(run.identity)}"
    path = place.runs / name / "student.pt"
    if path.exists():
        parallel.say(f"{what}: {path} is there")
    else:
        parallel.say(f"{what}: training {path}")
        distill.main(replace(config, out=path.parent))
    student = Checkpoint.load_student(path)
    seconds = [record["seconds"] for record in json.loads((path.parent / "run.json").read_text())["history"]]
    return {
        "group": variant.group,
        "variant": variant.name,
        "seed": seed,
        **{key: student.metrics[key] for key in MEASURES if key in student.metrics},
        **(experiment.extra(path, taught, seed, place.data_root) if experiment.extra else {}),
        "seconds": sum(seconds),
        "student_sha256": student.sha256,
        "git": student.provenance.get("git"),
        "folder": name,
    }


def teacher_of(config: DistillConfig, dataset: Dataset, place: Place) -> Path:
    """The file of a student's teacher, trained now if it is not there: one for all seeds and all T."""
    if config.teacher is not None:
        path = config.teacher
        settings = None if path.exists() else place.placed(recipe_of(path))
    else:
        timeless = replace(config, seed=0, net=replace(runs.fit_to(dataset, config.net), T=NetConfig().T))
        wanted = distill.wanted_teacher(timeless)
        identity = runs.Run(config=wanted, dataset=dataset, title="teacher").identity
        path = place.runs / f"teacher-{config.data.name}-{wanted.net.name}-{digest(identity)}" / "teacher.pt"
        settings = None if path.exists() else replace(wanted, out=path.parent)
    if settings:
        parallel.say(f"teacher: training {path}")
        teacher.main(settings)
    return path


def recipe_of(path: Path) -> TeacherConfig:
    """The settings of the teacher that a recipe writes to `path`. Raises ValueError where none does."""
    if found := made_by(path):
        return found[1]
    raise ValueError(f"the teacher {path} is not there, and no recipe of train/recipes writes it; train it first")


def digest(identity: dict[str, Any]) -> str:
    """A short name of all settings that shape a network."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]


@lru_cache(maxsize=2)
def data(config: DataConfig) -> Dataset:
    """The data set, read once for many students."""
    return load(config)
