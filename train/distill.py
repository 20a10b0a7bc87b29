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
    from torch import Tensor, nn

    from train.checkpoint import Checkpoint
    from train.data import Dataset
    from train.networks import Network


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
    import torch

    from train import parallel, record, runs
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
    if teacher_network and config.channels_last:
        teacher_network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def initialise(network: Network) -> None:
        if config.init_from_teacher:
            copy_weights(teacher, network)

    def before_step(network: Network, done: float) -> None:
        network.hold.T = steps_at(done, T=net.T, grow_T=config.grow_T)

    def step(network: nn.Module, images: Tensor, target: Tensor) -> dict[str, Tensor]:
        taught = None
        if teacher and teacher_network:
            with torch.no_grad():
                taught = Outputs(logits=teacher_network.to(images.device)(teacher.preprocess(images)))
        student = Outputs(logits=network(run.preprocess(images)))
        return config.method.loss(student, taught, target)

    taught = {"teacher_accuracy": teacher.metrics.get("accuracy"), "teacher_sha256": taught_by} if teacher else {}
    path, metrics = run.train(step, "student.pt", initialise=initialise, before_step=before_step, extra=taught)
    if parallel.is_main():
        record.point_latest(run.out)
    return Result(
        path=path,
        accuracy=metrics["accuracy"],
        accuracy_by_T=metrics["accuracy_by_T"],
        teacher_accuracy=teacher.metrics.get("accuracy") if teacher else None,
    )


def steps_at(done: float, *, T: int, grow_T: float) -> int:
    """Time steps of a student when the part `done` of all training steps is over: 1 to T - 1, each for an equal share
    of the part grow_T, then T. TSER's loss treats each time step by itself, so shorter T are valid on the way."""
    return T if done >= grow_T else 1 + int(done / grow_T * (T - 1))


def copy_weights(teacher: Checkpoint | None, network: Network) -> None:
    """Start a student from its teacher's weights, the normalised currents as wide as a fresh student's.

    A ReLU passes on any positive drive, a LIF fires at v_threshold: weight and bias of the normalisations are scaled
    by the drive that makes a neuron fire (train.networks.network.initialise). Raises ValueError for a teacher of
    another shape.
    """
    from train.networks.network import firing_drive
    from train.neurons import Norm

    if teacher is None:
        raise ValueError("--init_from_teacher: this method has no teacher; take --method.name tser or skd")
    own = network.state_dict()
    if differing := [n for n in own if n not in teacher.weights or teacher.weights[n].shape != own[n].shape]:
        name = differing[0]
        theirs = list(teacher.weights[name].shape) if name in teacher.weights else "not there"
        raise ValueError(
            f"--init_from_teacher needs a teacher of the student's network and width: {name} is {theirs} in the "
            f"teacher ({teacher.net.name}, width {teacher.net.width}) and {list(own[name].shape)} in the student; "
            "take --teacher_width 1, or a --teacher that was trained with --net.width of the student"
        )
    network.load_state_dict(teacher.weights)
    for module in network.modules():
        if isinstance(module, Norm):
            module.weight.data *= firing_drive(network.config)
            module.bias.data *= firing_drive(network.config)


def load_teacher(config: DistillConfig, dataset: Dataset) -> Checkpoint:
    """The given teacher, or one trained now in the run's folder (kept if these very settings made it before).

    Raises ValueError for a teacher of other classes, channels or image size.
    """
    from train import parallel, runs, teacher
    from train.checkpoint import Checkpoint

    if config.teacher is None:
        assert config.out is not None
        wanted = TeacherConfig(
            data=config.data,
            net=dataclasses.replace(config.net, spiking=False, width=config.teacher_width * config.net.width),
            optim=dataclasses.replace(config.optim, epochs=config.teacher_epochs),
            out=config.out / "teacher",
            **{name: getattr(config, name) for name in SHARED},
        )
        path = config.out / "teacher" / "teacher.pt"
        identity = runs.Run(config=wanted, dataset=dataset, title="teacher").identity
        if path.exists() and Checkpoint.load(path).provenance.get("identity") == identity:
            parallel.say(f"teacher: {path} was trained with these settings; used again")
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
