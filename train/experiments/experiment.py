"""What an experiment of the paper consists of: variants of one student, each trained with several seeds."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from train import recipe
from train.config import RECIPES, DistillConfig
from train.methods import METHODS, Method


Budget = Literal["smoke", "short", "full"]
BUDGETS: dict[Budget, str] = {
    "smoke": "the embedded digits and a small student, to see that it runs",
    "short": "10,000 images of CIFAR-10 and vgg_small, for 2 cores",
    "full": "the paper's data and networks, for a GPU",
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of a table or one point of a figure: a student's settings, its seed left open."""

    name: str
    config: DistillConfig
    paper: dict[str, float] = field(default_factory=dict)
    """What the paper prints for it, by measure, as fractions."""
    group: str = ""
    """Variants are compared within their group: same network, data and T."""
    x: float | None = None
    """Place on the axis of a figure."""
    teacher_paper: float | None = None
    """The teacher's accuracy that the paper prints."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment by its name in the paper."""

    name: str
    title: str
    source: str
    variants: Callable[[Budget], list[Variant]]
    baseline: str
    """Name of the variant of each group from which differences are taken."""
    measures: tuple[str, ...] = ("accuracy",)
    """What is reported of every student: keys of its metrics."""
    notes: tuple[str, ...] = ()
    """What a reader should know about the paper's figures."""
    extra: Callable[[Path, Path | None, int, Path | None], dict[str, Any]] | None = None
    """Further measures of a finished student's file, its teacher's file and its seed, as JSON types; the last is where
    data sets live, None: where the commands look by themselves."""


def base(budget: Budget) -> DistillConfig:
    """The student that a budget allows, as its recipe says; the experiment sets method, T and more."""
    return recipe.find(f"reproduce/{budget}", RECIPES).over(DistillConfig(), variants={"method": METHODS})


def student(budget: Budget, method: Method, *, T: int) -> DistillConfig:
    """The budget's student under a method, at T time steps."""
    config = base(budget)
    return replace(config, method=method, net=replace(config.net, T=T))
