"""`python benchmarks/time_to_accuracy.py --targets 0.95 0.97 [--seeds 3] [-- RECIPE FLAGS]`: how long a student takes.

Trains one student per seed with `python -m train.distill RECIPE FLAGS` and reports, for each target, the first epoch
whose validation accuracy reaches it and the training time until then; and the test accuracy of the last epoch. Mean
and standard deviation over seeds; the teacher is trained once, by the first run, and its time stands apart. A run that
was broken off goes on when the command is given again.
"""

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import mean, stdev
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[1]))

from train import cli


@dataclass(frozen=True, kw_only=True)
class TimeConfig:
    """What is reached, and how often it is tried."""

    targets: tuple[float, ...]
    """Validation accuracies in (0, 1]."""
    seeds: int = 3
    """Runs, with seeds 0, 1, .."""
    name: str = "digits"
    """Name of the results: results/time_to_accuracy-NAME.json."""
    runs: Path = Path("runs/time_to_accuracy")
    """Where the runs are kept."""
    compare: tuple[str, ...] = ()
    """Train nothing; print the results of these names beside each other for the first target."""
    teacher: Path | None = None
    """Checkpoint of a teacher; its time is then not part of the report."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or not all(0 < target <= 1 for target in self.targets):
            raise ValueError("seeds must be at least 1 and targets in (0, 1]")


def main(config: TimeConfig, flags: list[str]) -> dict[str, Any]:
    """Train every seed, write the JSON and return it. Raises ValueError where a run fails."""
    from train.record import write_json

    rows, teacher = [], config.teacher
    for seed in range(config.seeds):
        out = config.runs / config.name / str(seed)
        taught = ["--teacher", str(teacher)] if teacher else []
        command = [sys.executable, "-m", "train.distill", *flags, *taught, "--seed", str(seed), "--out", str(out)]
        done = subprocess.run([*command, "--resume", "auto"], check=False)
        if done.returncode:
            raise ValueError(
                f"the run of seed {seed} ended with status {done.returncode}: {' '.join(command)}; "
                "runs with other flags need another --name or --runs"
            )
        run = json.loads((out / "run.json").read_text())
        rows.append(row(run, seed, config.targets))
        if teacher is None and (out / "teacher/teacher.pt").exists():
            teacher = out / "teacher/teacher.pt"
    first = config.runs / config.name / "0"
    content = {
        "settings": {"targets": list(config.targets), "seeds": config.seeds, "flags": flags},
        "config": common(run["config"]),
        "machine": {"device": run["device"], "cores": os.cpu_count(), "system": platform.platform()},
        "versions": run["versions"],
        "git": run["git"],
        "teacher": teacher_row(first / "teacher/run.json"),
        "summary": summarise(rows, config.targets),
        "runs": rows,
    }
    path = Path("results") / f"time_to_accuracy-{config.name}.json"
    write_json(path, content)
    print(f"\n{table(content)}\nwritten: {path}")
    return content


def common(config: dict[str, Any]) -> dict[str, Any]:
    """A run's settings without those of one machine or one seed."""
    kept = {key: value for key, value in config.items() if key not in ("out", "teacher", "seed", "resume")}
    return kept | {"data": {key: value for key, value in config["data"].items() if key != "root"}}


def row(run: dict[str, Any], seed: int, targets: tuple[float, ...]) -> dict[str, Any]:
    """One run: its test accuracy, and for each target the epoch and the training seconds at which it was reached."""
    history = run["history"]
    seconds = list(accumulate(record["seconds"] for record in history))
    reached: dict[str, Any] = {}
    for target in targets:
        hits = [i for i, record in enumerate(history) if record.get("val_accuracy", 0) >= target]
        reached[str(target)] = {"epochs": hits[0] + 1, "seconds": seconds[hits[0]]} if hits else None
    return {
        "seed": seed,
        "epochs": len(history),
        "train_seconds": seconds[-1],
        "test_accuracy": run["metrics"]["accuracy"],
        "test_accuracy_by_T": run["metrics"]["accuracy_by_T"],
        "reached": reached,
    }


def teacher_row(path: Path) -> dict[str, Any] | None:
    """What the teacher that was trained on the way cost and knows; None for a given one."""
    if not path.exists():
        return None
    run = json.loads(path.read_text())
    return {
        "net": run["config"]["net"]["name"],
        "width": run["config"]["net"]["width"],
        "epochs": len(run["history"]),
        "train_seconds": sum(record["seconds"] for record in run["history"]),
        "test_accuracy": run["metrics"]["accuracy"],
    }


def summarise(rows: list[dict[str, Any]], targets: tuple[float, ...]) -> dict[str, Any]:
    """Mean and standard deviation over runs; a target's are those of the runs that reached it, counted beside them."""
    summary: dict[str, Any] = {
        "test_accuracy": spread([r["test_accuracy"] for r in rows]),
        "train_seconds": spread([r["train_seconds"] for r in rows]),
    }
    for target in map(str, targets):
        hits = [r["reached"][target] for r in rows if r["reached"][target]]
        summary[target] = {"runs_that_reached_it": len(hits)}
        if hits:
            summary[target] |= {key: spread([hit[key] for hit in hits]) for key in ("epochs", "seconds")}
    return summary


def spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation (0 for one value)."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else 0.0}


def in_words(found: dict[str, float], form: str, runs: int) -> str:
    """A mean with its standard deviation, which one run does not have."""
    return f"{found['mean']:{form}}" + (f" +- {found['std']:{form}}" if runs > 1 else "")


def table(content: dict[str, Any]) -> str:
    """The summary as Markdown."""
    summary, teacher, runs = content["summary"], content["teacher"], len(content["runs"])
    last = summary["test_accuracy"]
    lines = [
        f"seeds: {runs}, test accuracy of the last epoch {in_words(last, '.2%', runs)}, "
        f"training {summary['train_seconds']['mean']:.1f} s",
    ]
    if teacher:
        lines.append(f"teacher, trained once: {teacher['test_accuracy']:.2%}, {teacher['train_seconds']:.1f} s")
    lines += ["", "| validation accuracy | runs that reached it | epochs | training seconds |", "|---|---|---|---|"]
    for target in map(str, content["settings"]["targets"]):
        found = summary[target]
        cells = [in_words(found[k], ".1f", runs) if k in found else "" for k in ("epochs", "seconds")]
        lines.append(f"| {float(target):.2%} | {found['runs_that_reached_it']} of {runs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def comparison(names: list[str], target: str, folder: Path = Path("results")) -> str:
    """Several results beside each other as Markdown, one line each (docs/training.md)."""
    lines = [f"| flags | test accuracy | runs at {float(target):.0%} | epochs to it | seconds to it | s an epoch |"]
    lines.append("|---|---|---|---|---|---|")
    for name in names:
        content = json.loads((folder / f"time_to_accuracy-{name}.json").read_text())
        found, last, runs = content["summary"][target], content["summary"]["test_accuracy"], content["runs"]
        epoch = mean(row["train_seconds"] / row["epochs"] for row in runs)
        reached = [in_words(found[k], ".1f", len(runs)) if k in found else "" for k in ("epochs", "seconds")]
        cells = [
            f"`{' '.join(content['settings']['flags']) or 'defaults'}`",
            in_words(last, ".2%", len(runs)),
            f"{found['runs_that_reached_it']} of {len(runs)}",
            *reached,
            f"{epoch:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def command(argv: list[str]) -> None:
    """Parse and run."""
    own, flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    prog = "python benchmarks/time_to_accuracy.py"
    config = cli.parse(TimeConfig, argv=own, prog=prog, description=__doc__ or "")
    if config.compare:
        print(comparison(list(config.compare), str(config.targets[0])))
    else:
        main(config, flags)


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
