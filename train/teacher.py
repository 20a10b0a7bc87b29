"""`python -m train.teacher [RECIPE] [--data.name ..] [--net.name ..]`: train the ANN that students learn from."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from train import cli
from train.config import RECIPES, TeacherConfig


if TYPE_CHECKING:
    from torch import Tensor, nn

    from train.data import Targets


@dataclass(frozen=True, kw_only=True)
class Result:
    """The teacher's file and its accuracy on the test split, in [0, 1]."""

    path: Path
    accuracy: float


def main(config: TeacherConfig, *, replace: bool = False) -> Result:
    """Train a teacher and write its checkpoint, state, metrics and run record into the run folder.

    Raises ValueError where that holds a finished teacher of other settings, unless it may be replaced.
    """
    from train import loop, runs
    from train.data import load
    from train.methods.base import cross_entropy

    dataset = load(config.data)
    net = runs.fit_to(dataset, dataclasses.replace(config.net, spiking=False))
    out = config.out or Path("runs") / f"teacher-{config.data.name}-{net.name}-s{config.seed}"
    run = runs.Run(config=dataclasses.replace(config, net=net, out=out), dataset=dataset, title="teacher")
    if not replace:
        run.refuse_to_replace("teacher.pt")

    def step(network: nn.Module, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        logits = network(run.preprocess(images))

        def loss(target: Tensor) -> dict[str, Tensor]:
            ce = cross_entropy(logits, target, label_smoothing=config.label_smoothing)
            return {"ce": ce, "total": ce}

        return loop.weighted(targets, loss)

    path, metrics = run.train(step, "teacher.pt")
    return Result(path=path, accuracy=metrics["accuracy"])


def command(argv: list[str]) -> None:
    """Parse, run, and say what comes next."""
    config = cli.parse(
        TeacherConfig, argv=argv, prog="python -m train.teacher", description=__doc__ or "", recipe_dir=RECIPES
    )
    result = main(config)
    from train.parallel import say  # as all that needs torch, after parsing

    say(f"\nteacher: {result.accuracy:.2%} on the test split\nwritten: {result.path}")
    say(f"next:    python -m train.distill --data.name {config.data.name} --teacher {result.path}")


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
