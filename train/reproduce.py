"""`python -m train.reproduce EXPERIMENT [--budget smoke|short|full] [--seeds N]`: an experiment of TSER's paper.

Trains every student of a table or figure with the same teacher, data and seeds, and writes the paper's figures and ours
side by side: results/reproduce-EXPERIMENT-BUDGET.json, and a table (.md) and a picture (.png) drawn from it. A run that
was broken off goes on where it was when the command is given again; students that experiments share are trained once.
table4 also counts the spikes of every student, by `python -m export.energy`, and checks the paper's own arithmetic.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from train import cli


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """Which experiment, and how much of it."""

    experiment: Annotated[Literal["table1", "table3", "table4", "fig2", "fig3", "fig4", "fig5"], Positional]
    """Table or figure of the paper."""
    budget: Literal["smoke", "short", "full"] = "short"
    """smoke: digits, under a minute; short: 10,000 images of CIFAR-10 on a CPU; full: the paper's, for a GPU."""
    seeds: int = 3
    """Students of every variant, with seeds 0, 1, .."""
    only: str = ""
    """Only variants whose group and name contain this text, e.g. "resnet18 T=2"; the baseline of each stays."""
    out: Path = Path("results")
    """Folder of the report."""
    runs: Path = Path("runs/reproduce")
    """Folder of the students and teachers."""
    data_root: Path | None = None
    """Where data sets live; default: the environment variable TSERVE_DATA, else data/."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU where there is one."""
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    """Arithmetic of the training step."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")


def main(config: ReproduceConfig) -> dict[str, Any]:
    """Train what is missing and return the report; its files are written anew after every student."""
    from train.experiments.paper import EXPERIMENTS
    from train.experiments.running import Place, outcomes
    from train.record import atomic, write_json

    began = time.monotonic()
    experiment = EXPERIMENTS[config.experiment]
    report = reporting(config.experiment)
    everything = experiment.variants(config.budget)
    chosen = [v for v in everything if config.only in f"{v.group} {v.name}".strip()]
    groups = {v.group for v in chosen}
    variants = [v for v in everything if v in chosen or (v.group in groups and v.name == experiment.baseline)]
    if not variants:
        names = ", ".join(f"{v.group} {v.name}".strip() for v in everything)
        raise ValueError(f"--only {config.only!r} leaves nothing of {config.experiment}; there are: {names}")
    place = Place(runs=config.runs, data_root=config.data_root, device=config.device, precision=config.precision)
    rows: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    base = config.out / f"reproduce-{config.experiment}-{config.budget}"
    for row in outcomes(experiment, variants, config.seeds, place):
        rows.append(row)
        seconds = time.monotonic() - began
        found = report.content(experiment, config.budget, variants, rows, seeds=config.seeds, seconds=seconds)
        write_json(base.with_suffix(".json"), found)
        with atomic(base.with_suffix(".md")) as new:
            new.write_text(report.markdown(found), encoding="utf-8")
    report.plot(found, base.with_suffix(".png"))
    return found


@dataclass(frozen=True, kw_only=True)
class Reporting:
    """How an experiment is written down."""

    content: Callable[..., dict[str, Any]]
    markdown: Callable[[dict[str, Any]], str]
    plot: Callable[[dict[str, Any], Path], None]


def reporting(experiment: str) -> Reporting:
    """Table 4 has figures of its own, and all others are written alike."""
    from train.experiments import plots, report, table4_plots, table4_report

    if experiment == "table4":
        return Reporting(content=table4_report.content, markdown=table4_report.markdown, plot=table4_plots.plot)
    return Reporting(content=report.content, markdown=report.markdown, plot=plots.plot)


def command(argv: list[str]) -> None:
    """Parse, run, print the table."""
    config = cli.parse(ReproduceConfig, argv=argv, prog="python -m train.reproduce", description=__doc__ or "")
    found = main(config)
    base = config.out / f"reproduce-{config.experiment}-{config.budget}"
    print(f"\n{reporting(config.experiment).markdown(found)}")
    print(f"{len(found['runs'])} students, {found['seconds'] / 60:.1f} minutes")
    print(f"written: {base}.json, .md, .png")


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
