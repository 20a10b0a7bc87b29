"""What an experiment found, as JSON types, and as a table drawn from these."""

from itertools import groupby
from typing import Any

from train.experiments.experiment import BUDGETS, Budget, Experiment, Variant
from train.experiments.statistics import paired, spread
from train.record import git_state, versions
from train.schema import to_dict


FORMAT = 1
NOT_SETTINGS = ("out", "teacher", "seed", "resume", "device", "save_steps", "save_minutes")


def content(
    experiment: Experiment,
    budget: Budget,
    variants: list[Variant],
    rows: list[dict[str, Any]],
    *,
    seeds: int,
    seconds: float,
) -> dict[str, Any]:
    """The JSON of an experiment: settings, every student's row, and means and paired differences where all are there.

    Accuracies and their differences are fractions. seconds: how long this call has run.
    """
    return {
        "format": FORMAT,
        "experiment": experiment.name,
        "title": experiment.title,
        "source": experiment.source,
        "notes": list(experiment.notes),
        "budget": {"name": budget, "what": BUDGETS[budget]},
        "measures": list(experiment.measures),
        "baseline": experiment.baseline,
        "seeds": seeds,
        "complete": len(rows) == len(variants) * seeds,
        "seconds": seconds,
        "versions": versions(),
        "git": git_state(),
        "variants": [summary(experiment, v, variants, rows, seeds=seeds) for v in variants],
        "runs": rows,
    }


def summary(
    experiment: Experiment, variant: Variant, variants: list[Variant], rows: list[dict[str, Any]], *, seeds: int
) -> dict[str, Any]:
    """One variant: its settings, and every measure beside the paper's; None where not all students are there."""

    def values(name: str, measure: str) -> list[float]:
        of = [row for row in rows if (row["group"], row["variant"]) == (variant.group, name)]
        return [row[measure] for row in sorted(of, key=lambda row: row["seed"])]

    first = variant.name == experiment.baseline
    printed = {v.name: v.paper for v in variants if v.group == variant.group}
    found: dict[str, Any] = {}
    for measure in experiment.measures:
        mine, base = values(variant.name, measure), values(experiment.baseline, measure)
        theirs, theirs_base = (printed.get(name, {}).get(measure) for name in (variant.name, experiment.baseline))
        printed_both = None if theirs is None or theirs_base is None or first else round(theirs - theirs_base, 6)
        found[measure] = {
            **(spread(mine) if len(mine) == seeds else {"mean": None, "std": None}),
            "paper": theirs,
            "difference": paired(mine, base) if len(mine) == len(base) == seeds and not first else None,
            "paper_difference": printed_both,
        }
    taught = [row["teacher_accuracy"] for row in rows if row["group"] == variant.group and "teacher_accuracy" in row]
    settings = to_dict(variant.config)
    return {
        "group": variant.group,
        "name": variant.name,
        "x": variant.x,
        "measures": found,
        "teacher": {"accuracy": taught[0] if taught else None, "paper": variant.teacher_paper},
        "settings": {key: value for key, value in settings.items() if key not in NOT_SETTINGS}
        | {
            "data": {
                key: value for key, value in settings["data"].items() if key not in ("root", "download", "workers")
            }
        },
    }


def markdown(report: dict[str, Any]) -> str:
    """The table of a report, ours and the paper's side by side, in percent and percentage points."""
    lines = [f"# {report['title']}", "", f"{report['source']}.", "", *says(report), ""]
    for measure in report["measures"]:
        lines += [f"## {HEADINGS.get(measure, measure)}", ""]
        lines += ["| | paper | ours | paper, difference | ours, difference (95 % interval) |", "|---|---|---|---|---|"]
        for group, variants in groupby(report["variants"], lambda v: v["group"]):
            lines += [f"| **{group}** | | | | |"] if group else []
            lines += [f"| {v['name']} | {' | '.join(cells(v['measures'][measure]))} |" for v in variants]
        lines.append("")
    lines += [f"- {note}" for note in report["notes"]]
    return "\n".join(lines).rstrip() + "\n"


HEADINGS = {
    "accuracy": "Accuracy (%)",
    "step_mean": "Accuracy of a step alone, mean over the steps (%)",
    "step_spread": "Spread of the accuracy over the steps, largest minus smallest (%)",
    "silhouette": "Silhouette of the classes (x 100)",
    "neighbours": "Accuracy by the nearest neighbours (%)",
}


def says(report: dict[str, Any]) -> list[str]:
    """What was trained, in sentences."""
    teachers = sorted({v["teacher"]["accuracy"] for v in report["variants"] if v["teacher"]["accuracy"] is not None})
    taught = f" Teacher: {', '.join(f'{100 * a:.2f} %' for a in teachers)}." if teachers else ""
    state = "" if report["complete"] else " Not complete yet: students are missing."
    return [
        f"Budget `{report['budget']['name']}`: {report['budget']['what']}. Seeds 0 to {report['seeds'] - 1}, "
        "last epoch, test images; mean and standard deviation over seeds; differences are from the variant "
        f'"{report["baseline"]}", paired by seed.{taught}{state}',
    ]


def cells(measure: dict[str, Any]) -> list[str]:
    """paper, ours, paper's difference, our difference."""
    difference = measure["difference"]
    ours = "" if difference is None else points(difference["mean"])
    if difference and difference["interval"]:
        ours += " ({} to {})".format(*(points(end) for end in difference["interval"]))
    return [
        percent(measure["paper"]),
        percent(measure["mean"]) + (f" ± {100 * measure['std']:.2f}" if measure["std"] is not None else ""),
        "" if measure["paper_difference"] is None else points(measure["paper_difference"]),
        ours,
    ]


def percent(value: float | None) -> str:
    """0.7715 -> 77.15; nothing for None."""
    return "" if value is None else f"{100 * value:.2f}"


def points(value: float) -> str:
    """A difference in percentage points, with its sign."""
    return f"{100 * value:+.2f}"
