"""`python -m train.distill [RECIPE] [--method.name tser] [--teacher PATH] ..`: distil a spiking student.

With no arguments: the embedded digits, a teacher trained first, then a TSER student at T=4; 20 seconds on 2 cores.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from train import cli
from train.config import RECIPES, DistillConfig, RunConfig, TeacherConfig
from train.methods import METHODS


if TYPE_CHECKING:
    from train.checkpoint import Checkpoint
    from train.data import Dataset


# What a teacher that is trained on the way takes over from the student's run as it is.
SHARED = [field.name for field in dataclasses.fields(RunConfig) if field.name not in ("data", "net", "optim", "out")]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The student's file and accuracies on the test split, in [0, 1]; the teacher's where there was one."""

    path: Path
    accuracy: float
    accuracy_by_T: list[float]
    teacher_accuracy: float | None


def main(config: DistillConfig) -> Result:
    """Distil a student and write its checkpoint, state, metrics and run record into the run folder."""
    from train import parallel, record, runs
    from train.data import load
    from train.lesson import Lesson, rehearse

    dataset = load(config.data)
    net = runs.fit_to(dataset, dataclasses.replace(config.net, spiking=True))
    name = f"{config.data.name}-{net.name}-{config.method.name}-T{net.T}-s{config.seed}"
    config = dataclasses.replace(config, net=net, out=config.out or Path("runs") / name)
    needs_teacher = config.method.needs_teacher
    if config.teacher is not None and not needs_teacher:
        parallel.say(f"warning: method {config.method.name} has no teacher; --teacher {config.teacher} is not used")
    if not needs_teacher or config.teacher is None:
        rehearse(config, dataset, wanted_teacher(config).net if needs_teacher else None)  # before one is trained
    run = runs.Run(config=config, dataset=dataset, title="student")
    run.refuse_to_replace("student.pt")  # nor is one trained for nothing
    teacher = load_teacher(config, dataset) if needs_teacher else None
    taught_by = teacher.sha256 if teacher else None
    run = dataclasses.replace(run, teacher_sha256=taught_by)
    if config.teacher is not None:
        run.refuse_to_replace("student.pt")
    lesson = Lesson(config, dataset, teacher, preprocess=run.preprocess)
    taught = {"teacher_accuracy": teacher.metrics.get("accuracy"), "teacher_sha256": taught_by} if teacher else {}
    path, metrics = run.train(
        lesson.step, "student.pt", prepare=lesson.prepare, before_step=lesson.before_step, extra=taught
    )
    if parallel.is_main():
        record.point_latest(run.out)
    return Result(
        path=path,
        accuracy=metrics["accuracy"],
        accuracy_by_T=metrics["accuracy_by_T"],
        teacher_accuracy=teacher.metrics.get("accuracy") if teacher else None,
    )


def wanted_teacher(config: DistillConfig) -> TeacherConfig:
    """The teacher that is trained for a student that was given none: its network with ReLU, teacher_width as wide."""
    net = dataclasses.replace(config.net, spiking=False, width=config.teacher_width * config.net.width)
    return TeacherConfig(
        data=config.data,
        net=net,
        optim=dataclasses.replace(config.optim, epochs=config.teacher_epochs),
        out=config.out and config.out / "teacher",
        **{name: getattr(config, name) for name in SHARED},
    )


def load_teacher(config: DistillConfig, dataset: Dataset) -> Checkpoint:
    """The given teacher, or one trained now in the run's folder (kept if these very settings made it before).

    Raises ValueError for a teacher that does not fit the data (train/teachers.py).
    """
    from train import parallel, runs, teacher, teachers
    from train.checkpoint import Checkpoint

    if config.teacher is None:
        wanted = wanted_teacher(config)
        assert wanted.out is not None
        path = wanted.out / "teacher.pt"
        identity = runs.Run(config=wanted, dataset=dataset, title="teacher").identity
        if path.exists() and Checkpoint.load(path).provenance.get("identity") == identity:
            parallel.say(f"teacher: {path} was trained with these settings; used again")
        else:
            path = teacher.main(wanted, replace=True).path
        return Checkpoint.load_teacher(path)
    return teachers.load(config.teacher, dataset)


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
    from train.parallel import say  # as all that needs torch, after parsing

    steps = "  ".join(f"T'={t} {a:.2%}" for t, a in enumerate(result.accuracy_by_T, 1))
    say("")
    if result.teacher_accuracy is not None:
        say(f"teacher: {result.teacher_accuracy:.2%} on the test split")
    say(f"student: {result.accuracy:.2%} on the test split   {steps}")
    say(f"written: {result.path}  (runs/latest points to its folder)")
    say(f"next:    python -m train.evaluate {result.path}")
    say(f"         python -m export.bundle {result.path}")


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
