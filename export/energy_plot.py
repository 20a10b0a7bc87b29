"""energy.png: where the joules go, by layer and step, what they are worth, and what else would cost."""

from pathlib import Path
from typing import Any

from export.energy_account import joules


SNN, ANN, EARLY, TEACHER = "#0072B2", "#999999", "#D55E00", "#009E73"  # told apart by the colour-blind
GROUPS = (
    ("SNN / ANN, both in fp32 (memory_aware: in 32-bit integers)", SNN, None),
    ("SNN in fp32 / ANN in int8", EARLY, ("fp32", "int8")),
)
"""Bars of each convention: label, colour, and the precisions of SNN and ANN; None: the same for both."""


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw energy by layer and step, its ratio to the ANN's, and accuracy over energy, as a PNG."""
    from matplotlib.figure import Figure

    total, images, layers = report["per_image"], report["images"], report["layers"]
    unit, text = unit_of(max(v for layer in layers for v in (layer["energy_J"], layer["ann_energy_J"])))
    figure = Figure(figsize=(13, 5.5 + 0.3 * len(layers)), layout="constrained")
    (by_layer, by_step), (ratios, worth) = figure.subplots(
        2, 2, width_ratios=(3, 2), height_ratios=(2 + 0.3 * len(layers), 3.5)
    )
    draw_layers(report, by_layer, unit, text)
    draw_steps(report, by_step, unit, text)
    draw_ratios(report, ratios)
    draw_accuracy(report, worth)
    for axes in (by_layer, by_step, ratios, worth):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"SNN {joules(total['energy_J'])}, ANN {joules(total['ann']['energy_J'])} an image"
        f" (ratio {total['ratio']:.3g}); {images['count']} {images['split']} images of {images['dataset']},"
        f" {report['convention']['name']}, {report['chip']}",
        fontsize=10,
    )
    figure.savefig(path, dpi=150)


def unit_of(peak: float) -> tuple[float, str]:
    """The unit in which the largest value of an axis is read, in joules, and its name."""
    number, text = joules(peak).split()
    return (peak / float(number) if float(number) else 1e-12), text


def draw_layers(report: dict[str, Any], axes: Any, unit: float, text: str) -> None:
    """Each layer beside the same layer of the ANN."""
    layers = report["layers"]
    for offset, key, colour, label in ((-0.2, "energy_J", SNN, "SNN"), (0.2, "ann_energy_J", ANN, "ANN")):
        values = [layer[key] / unit for layer in layers]
        axes.barh([row + offset for row in range(len(layers))], values, height=0.38, color=colour, label=label)
    axes.set_yticks(range(len(layers)), [layer["name"] for layer in layers])
    axes.invert_yaxis()
    axes.set(xlabel=f"energy of one image, {text}", xlim=(0, None), title="by layer")
    axes.legend(frameon=False)


def draw_steps(report: dict[str, Any], axes: Any, unit: float, text: str) -> None:
    """Each time step."""
    steps = report["per_step"]
    axes.bar([step["t"] for step in steps], [step["energy_J"] / unit for step in steps], color=SNN, width=0.6)
    axes.set_xticks([step["t"] for step in steps])
    axes.set(
        xlabel="time step (1 includes what sees the image)",
        ylabel=f"energy of one image, {text}",
        ylim=(0, None),
        title="SNN by step",
    )


def draw_ratios(report: dict[str, Any], axes: Any) -> None:
    """The SNN's energy over the ANN's by convention, on a scale that shows 1/2 and 2 as far from 1."""
    of_snn = [entry for entry in report["comparison"]["ratios"] if (entry["what"], entry["against"]) == ("snn", "ann")]
    names = [entry["name"] for entry in report["conventions"] if "per_image" in entry]
    shown = [1.0]
    for (label, colour, precisions), offset in zip(GROUPS, (-0.2, 0.2), strict=True):
        found = {}
        for entry in of_snn:
            pair = entry["precision"], entry["against_precision"]
            if pair == (precisions or (pair[0], pair[0])) and pair[0] != "int8":
                found[entry["convention"]] = entry["ratio"]
        places = [names.index(name) + offset for name in found]
        values = list(found.values())
        axes.scatter(values, places, color=colour, label=label, zorder=3)
        axes.hlines(places, 1, values, color=colour, linewidth=2)
        for value, place in zip(values, places, strict=True):
            side = {"ha": "left", "xytext": (7, 0)} if value >= 1 else {"ha": "right", "xytext": (-7, 0)}
            axes.annotate(f"{value:.3g}", (value, place), textcoords="offset points", va="center", **side)
        shown += values
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.axvline(1, color="black", linewidth=1, linestyle="--")
    axes.set(
        xlabel="energy, SNN / ANN (left of the line the SNN costs less)",
        xlim=(min(shown) / 2, 2 * max(shown)),
        title="by convention",
    )
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def draw_accuracy(report: dict[str, Any], axes: Any) -> None:
    """Accuracy after t steps over the energy of t steps; the early student, the teacher, and what the ANN costs."""
    name = report["convention"]["name"]
    axes.set(title=f"accuracy over energy ({name}; fp32 if not said)", ylabel="accuracy on the test split, %")
    rows = [row for row in report["comparison"]["rows"] if name in row["energy_J"]]
    by_T, energy = report["accuracy_by_T"], 0.0
    if by_T is None:
        axes.text(0.5, 0.5, "the checkpoint does not say its accuracy", ha="center", transform=axes.transAxes)
        return
    points = []
    for step, accuracy in zip(report["per_step"], by_T, strict=True):
        energy += step["energy_J"]
        points.append((energy, accuracy))
    unit, text = unit_of(max(row["energy_J"][name] for row in rows))
    axes.plot([e / unit for e, _ in points], [100 * a for _, a in points], "o-", color=SNN, label="SNN, steps 1 to t")
    for t, (at, accuracy) in enumerate(points, 1):
        axes.annotate(f"t={t}", (at / unit, 100 * accuracy), textcoords="offset points", xytext=(5, -4), fontsize=8)
    for row in rows:
        at, percent = row["energy_J"][name] / unit, 100 * (row["accuracy"] or 0)
        fp32, said = row["precision"] == "fp32", "" if row["precision"] == "fp32" else f" in {row['precision']}"
        if row["what"] == "ann":
            axes.axvline(at, color=ANN, linestyle="-" if fp32 else ":", label=f"energy of its own ANN{said}")
        elif row["what"] == "early" and row["accuracy"] is not None:
            label = f"stopped early{said}, {row['mean_steps']:.2f} steps"
            axes.plot(at, percent, "D" if fp32 else "d", color=EARLY, label=label, fillstyle="full" if fp32 else "none")
        elif row["what"] == "teacher" and row["accuracy"] is not None and fp32:
            axes.plot(at, percent, "s", color=TEACHER, label="teacher")
    axes.set_xscale("log")
    axes.set_xlabel(f"energy of one image, {text}")
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
