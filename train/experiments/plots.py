"""Pictures of a report, drawn from its JSON."""

from pathlib import Path
from typing import Any

import numpy as np

from train.experiments.report import HEADINGS
from train.record import atomic


OURS, THEIRS = "#045a8d", "#d95f0e"


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw the picture of the experiment: fig2 over steps, fig5 as t-SNE, figures over x, tables as points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if report["experiment"] == "fig2":
        figure = steps(report, plt)
    elif report["experiment"] == "fig5":
        figure = clouds(report, plt)
    elif all(v["x"] is not None for v in report["variants"]):
        figure = curve(report, plt)
    else:
        figure = rows(report, plt)
    figure.suptitle(f"{report['title']}\n{report['budget']['what']}, {report['seeds']} seeds", fontsize=10)
    with atomic(path) as new:
        figure.savefig(new, dpi=150, format="png")
    plt.close(figure)


def runs_of(report: dict[str, Any], variant: dict[str, Any]) -> list[dict[str, Any]]:
    """The students of a variant."""
    return [r for r in report["runs"] if (r["group"], r["variant"]) == (variant["group"], variant["name"])]


def rows(report: dict[str, Any], plt: Any) -> Any:
    """One line a variant: every student, their mean, and the paper's difference from the baseline."""
    variants, measure = report["variants"], report["measures"][0]
    figure, axes = plt.subplots(figsize=(7, 1.6 + 0.36 * len(variants)), layout="constrained")
    if any(v["measures"][measure]["paper_difference"] is not None for v in variants):
        axes.plot([], [], "D", color=THEIRS, mfc="none", label="baseline + the paper's difference")
    baselines = {v["group"]: v["measures"][measure]["mean"] for v in variants if v["name"] == report["baseline"]}
    for y, v in enumerate(variants):
        found, ours = v["measures"][measure], [100 * r[measure] for r in runs_of(report, v)]
        axes.plot(ours, [y] * len(ours), ".", color=OURS, alpha=0.5, label="one seed" if y == 0 else None)
        if found["mean"] is not None:
            axes.plot(100 * found["mean"], y, "|", color=OURS, ms=16, mew=2, label="mean" if y == 0 else None)
        start = baselines.get(v["group"])
        if start is not None and found["paper_difference"] is not None:
            expected = 100 * (start + found["paper_difference"])
            axes.plot(expected, y, "D", color=THEIRS, mfc="none")
    axes.set_yticks(range(len(variants)), [f"{v['group']} {v['name']}".strip() for v in variants])
    axes.invert_yaxis()
    axes.set_xlabel(HEADINGS.get(measure, measure))
    axes.legend(fontsize=8, loc="best")
    return figure


def steps(report: dict[str, Any], plt: Any) -> Any:
    """Accuracy of each step alone: mean over seeds and its standard deviation; the teacher's as a line."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for v, colour in zip(report["variants"], (THEIRS, OURS), strict=True):
        found = 100 * np.array([r["accuracy_by_step"] for r in runs_of(report, v)])
        if len(found):
            error = found.std(0, ddof=1) if len(found) > 1 else None
            axes.errorbar(
                range(1, found.shape[1] + 1), found.mean(0), error, fmt="o-", color=colour, capsize=3, label=v["name"]
            )
            axes.axhline(found.mean(), color=colour, ls="--", lw=0.8)
    teacher = report["variants"][0]["teacher"]["accuracy"]
    if teacher is not None:
        axes.axhline(100 * teacher, color="#b30000", lw=1, label="teacher")
    axes.set(xlabel="time step t alone", ylabel="accuracy (%)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=8)
    return figure


def curve(report: dict[str, Any], plt: Any) -> Any:
    """A measure over a hyper-parameter: evenly spaced, since lambda spans decades and 0."""
    measure = report["measures"][0]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    complete = [
        (i, v["measures"][measure])
        for i, v in enumerate(report["variants"])
        if v["measures"][measure]["mean"] is not None
    ]
    if complete:
        places, found = zip(*complete, strict=True)
        errors = [100 * (f["std"] or 0) for f in found]
        axes.errorbar(places, [100 * f["mean"] for f in found], errors, fmt="o-", color=OURS, capsize=3)
    axes.set_xticks(range(len(report["variants"])), [f"{v['x']:g}" for v in report["variants"]])
    axes.set(xlabel=report["title"].partition("over the ")[2], ylabel=HEADINGS.get(measure, measure))
    return figure


def clouds(report: dict[str, Any], plt: Any) -> Any:
    """t-SNE of the first seed's features, the teacher's first, one panel each with its silhouette."""
    found = [(v["name"], rows[0]) for v in report["variants"] if (rows := runs_of(report, v))]
    panels = [(name, row["tsne"], row["labels"], row["silhouette"]) for name, row in found]
    row = found[0][1]
    if "teacher_tsne" in row:
        panels.insert(0, ("Teacher", row["teacher_tsne"], row["teacher_labels"], row["teacher_silhouette"]))
    figure, grid = plt.subplots(1, len(panels), figsize=(3 * len(panels), 3.4), layout="constrained", squeeze=False)
    for axes, (name, places, labels, silhouette) in zip(grid[0], panels, strict=True):
        axes.scatter(*np.array(places).T, c=labels, s=3, cmap="tab10")
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"{name}\nsilhouette {silhouette:.3f}", fontsize=8)
    return figure
