"""The picture of Table 4, drawn from its report."""

from pathlib import Path
from typing import Any

from train.experiments.plots import OURS, runs_of
from train.experiments.table4_report import NAMES
from train.experiments.table4_students import CONVENTIONS
from train.record import atomic


BAD = "#b30000"
ROUNDING_UJ = 5
"""Half a unit of the last digit of the printed energies."""


def plot(report: dict[str, Any], path: Path) -> None:
    """Three panels: the paper's energies beside their counts; its networks counted otherwise; our students."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(16, 4.4), layout="constrained")
    printed(report["paper"]["rows"], axes[0])
    recounted(report["recount"], axes[1])
    students(report, axes[2])
    with atomic(path) as new:
        figure.savefig(new, dpi=150, format="png")
    plt.close(figure)


def printed(rows: list[dict[str, Any]], axes: Any) -> None:
    """How far each printed energy is from what its row's counts give, beside what rounding allows."""
    for y, row in enumerate(rows):
        axes.plot(1e6 * (row["printed_J"] - row["computed_J"]), y, "D", color=OURS if row["agrees"] else BAD)
    axes.axvspan(-ROUNDING_UJ, ROUNDING_UJ, color="0.85", label="rounding to 0.01 mJ")
    axes.plot([], [], "D", color=OURS, label="follows from its counts")
    axes.plot([], [], "D", color=BAD, label="contradicts its counts")
    names = [f"{NAMES[row['network']]} {row['method']}: {1e3 * row['printed_J']:.2f} mJ" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("printed minus computed energy (uJ)")
    axes.set_title("The paper's rows", fontsize=9)
    axes.legend(fontsize=7)


def recounted(networks: list[dict[str, Any]], axes: Any) -> None:
    """The range of every network in every convention, at the rate that the paper's TSER row implies."""
    bars = [(network, entry) for network in networks for entry in network["conventions"]]
    for y, (_, entry) in enumerate(bars):
        low, high = (1e3 * entry[key] for key in ("least_J", "most_J"))
        axes.barh(y, high, color=OURS, alpha=0.35, height=0.6)
        axes.barh(y, low, color=OURS, height=0.6, label=None if y else "student, least to most")
        axes.plot(1e3 * entry["ann_J"], y, "k|", ms=12, mew=2, label=None if y else "ANN")
    names = [f"{NAMES[n['network']]}, {n['pool']} pooling: {entry['name']}" for n, entry in bars]
    axes.set_yticks(range(len(bars)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("energy of an image (mJ)")
    axes.set_title("The paper's networks, counted otherwise\nat the rate of spikes of its TSER row", fontsize=9)
    axes.legend(fontsize=7, loc="lower right")


def students(report: dict[str, Any], axes: Any) -> None:
    """Energy beside the ANN's in every convention: each method side by side, its mean over seeds."""
    variants = report["variants"]
    for index, v in enumerate(variants):
        runs = runs_of(report, v)
        if runs:
            shares = [sum(r[f"{name}_J"] / r["ann_J"][name] for r in runs) / len(runs) for name in CONVENTIONS]
            places = [place + 0.8 * ((index + 0.5) / len(variants) - 0.5) for place in range(len(CONVENTIONS))]
            label = f"{v['group']} {v['name']}".strip()
            axes.bar(places, shares, 0.8 / len(variants), color=f"C{index}", label=label)
    axes.axhline(1, color="k", lw=0.8, label="the ANN of the same layers")
    axes.set_xticks(range(len(CONVENTIONS)), CONVENTIONS, fontsize=7)
    axes.set_ylabel("energy / energy of the ANN")
    axes.set_title(f"Our students, seeds: {report['seeds']}\n{report['budget']['what']}", fontsize=9)
    axes.legend(fontsize=7)
