"""`python -m train.distill [RECIPE] [--method.name tser] [--teacher PATH] ..`: distil a spiking student.

With no arguments: the embedded digits, a teacher trained first, then a TSER student at T=4; about a minute on 2 cores.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from train import cli
from train.config import RECIPES, DistillConfig, TeacherConfig
from train.methods import METHODS


if TYPE_CHECKING:
    from torch import Tensor, nn

    from train.checkpoint import Checkpoint
    from train.data import Dataset


@dataclass(frozen=True, kw_only=True)
class Result:
    """The student's file and accuracies on the test split, in [0, 1]; the teacher's where there was one."""

    path: Path
    accuracy: float
    accuracy_by_T: list[float]
    teacher_accuracy: float | None


def main(config: DistillConfig) -> Result:
    """Distil a student and write its checkpoint, state, metrics and run record into the run folder."""
    import torch

    from train import record, runs
    from train.data import load
    from train.methods import Outputs
    from train.networks import build

    dataset = load(config.data)
    net = runs.fit_to(dataset, dataclasses.replace(config.net, spiking=True))
    build(net)  # an impossible network is reported before the teacher is trained
    name = f"{config.data.name}-{net.name}-{config.method.name}-T{net.T}-s{config.seed}"
    config = dataclasses.replace(config, net=net, out=config.out or Path("runs") / name)
    teacher = load_teacher(config, dataset) if config.method.needs_teacher else None
    taught_by = teacher.sha256 if teacher else None
    run = runs.Run(config=config, dataset=dataset, title="student", teacher_sha256=taught_by)
    teacher_network = teacher.network().requires_grad_(False) if teacher else None

    def step(network: nn.Module, images: Tensor, target: Tensor) -> dict[str, Tensor]:
        taught = None
        if teacher and teacher_network:
            with torch.no_grad():
                taught = Outputs(logits=teacher_network.to(images.device)(teacher.preprocess(images)))
        student = Outputs(logits=network(run.preprocess(images)))
        return config.method.loss(student, taught, target)

    taught = {"teacher_accuracy": teacher.metrics.get("accuracy"), "teacher_sha256": taught_by} if teacher else {}
    path, metrics = run.train(step, "student.pt", extra=taught)
    record.point_latest(run.out)
    return Result(
        path=path,
        accuracy=metrics["accuracy"],
        accuracy_by_T=metrics["accuracy_by_T"],
        teacher_accuracy=teacher.metrics.get("accuracy") if teacher else None,
    )


def load_teacher(config: DistillConfig, dataset: Dataset) -> Checkpoint:
    """The given teacher, or one trained now in the run's folder (kept if these very settings made it before).

    Raises ValueError for a teacher of other classes, channels or image size.
    """
    from train import runs, teacher
    from train.checkpoint import Checkpoint

    if config.teacher is None:
        assert config.out is not None
        wanted = TeacherConfig(
            data=config.data,
            net=dataclasses.replace(config.net, spiking=False, width=config.teacher_width * config.net.width),
            optim=dataclasses.replace(config.optim, epochs=config.teacher_epochs),
            out=config.out / "teacher",
            seed=config.seed,
            resume=config.resume,
            device=config.device,
            precision=config.precision,
        )
        path = config.out / "teacher" / "teacher.pt"
        identity = runs.Run(config=wanted, dataset=dataset, title="teacher").identity
        if path.exists() and Checkpoint.load(path).provenance.get("identity") == identity:
            print(f"teacher: {path} was trained with these settings; used again")
        else:
            path = teacher.main(wanted).path
        return Checkpoint.load_teacher(path)
    found = Checkpoint.load_teacher(config.teacher)
    if found.labels != dataset.classes:
        raise ValueError(
            f"--teacher {config.teacher}: it knows {len(found.labels)} classes ({', '.join(found.labels[:3])}, ..), "
            f"{dataset.name} has {len(dataset.classes)} ({', '.join(dataset.classes[:3])}, ..); "
            f"train one with `python -m train.teacher --data.name {dataset.name}`"
        )
    if (found.net.in_channels, found.net.size) != (dataset.channels, dataset.size):
        raise ValueError(
            f"--teacher {config.teacher}: it takes {found.net.in_channels} channels of {found.net.size} pixels, "
            f"{dataset.name} has {dataset.channels} of {dataset.size}"
        )
    return found


def command(argv: list[str]) -> None:
    """Parse, run, and say what comes next."""
    config = cli.parse(
        DistillConfig,
        argv=argv,
        prog="python -m train.distill",
        description=__doc__ or "",
        recipe_dir=RECIPES,
        variants={"method": METHODS},
    )
    result = main(config)
    steps = "  ".join(f"T'={t} {a:.2%}" for t, a in enumerate(result.accuracy_by_T, 1))
    print()
    if result.teacher_accuracy is not None:
        print(f"teacher: {result.teacher_accuracy:.2%} on the test split")
    print(f"student: {result.accuracy:.2%} on the test split   {steps}")
    print(f"written: {result.path}  (runs/latest points to its folder)")
    print(f"next:    python -m train.evaluate {result.path}")
    print(f"         python -m export.bundle {result.path}")


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
