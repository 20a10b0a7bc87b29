"""What a person sees of energy.json: tables and a plot, drawn from the file's content and nothing else."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from export.energy import joules


SNN, ANN = "#0072B2", "#999999"  # blue and grey: told apart by the colour-blind and in print


def table(report: dict[str, Any]) -> str:
    """The report as lines of text: layers, the total beside the ANN, steps, and every convention with its verdict."""
    head = ("layer", "input", "rate", "SOPs", "ACs", "MACs", "energy", "ANN MACs", "ANN energy")
    rows = [head, *(_row(layer) for layer in report["layers"])]
    total = report["per_image"]
    rows.append(
        (
            "total",
            "",
            "",
            *(f"{total[key]:,.0f}" for key in ("sops", "acs", "macs")),
            joules(total["energy_J"]),
            f"{total['ann']['macs']:,}",
            joules(total["ann"]["energy_J"]),
        )
    )
    images, prices = report["images"], report["prices"]
    steps = "  ".join(f"t={step['t']} {joules(step['energy_J'])}" for step in report["per_step"])
    return "\n".join(
        [
            f"{images['dataset']}, {images['count']} {images['split']} images, means per image; T={report['T']};"
            f" convention {report['convention']['name']}; {report['chip']}:"
            f" AC {joules(prices['ac']['value'])}, MAC {joules(prices['mac']['value'])}",
            "",
            *aligned(rows, left=2),
            "",
            f"by step: {steps}",
            f"spread over images: standard deviation {joules(total['energy_J_std'])}",
            "not priced: " + ", ".join(f"{v:,} {k.replace('_', ' ')}" for k, v in report["unpriced_per_image"].items()),
            "",
            *aligned([("convention", "SNN", "ANN", "ratio", "ACs", "MACs", "accesses"), *conventions(report)], left=1),
            *verdicts(report),
        ]
    )


def aligned(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Lines of text: the first `left` columns flush left, the others right; rows may end early."""
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    return [
        "  ".join(
            f"{cell:<{width}}" if i < left else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]


def conventions(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """The four conventions side by side, totals of one image: SNN, ANN, ratio, and what was counted."""
    rows: list[tuple[str, ...]] = []
    for entry in report["conventions"]:
        if "unavailable" in entry:
            rows.append((entry["name"], "left out"))
            continue
        total = entry["per_image"]
        energies = (joules(total["energy_J"]), joules(total["ann"]["energy_J"]), f"{total['ratio']:.3g}")
        rows.append((entry["name"], *energies, *(f"{total[key]:,.0f}" for key in ("acs", "macs", "accesses"))))
    return rows


def verdicts(report: dict[str, Any]) -> list[str]:
    """One sentence for each convention, favourable or not, or why it is left out."""
    return [
        f"{entry['name']}: {entry['verdict']}" if "verdict" in entry else f"{entry['name']}: {entry['unavailable']}"
        for entry in report["conventions"]
    ]


def _row(layer: dict[str, Any]) -> tuple[str, ...]:
    rate = layer["firing_rate_in"]
    return (
        layer["name"],
        layer["input"],
        "" if rate is None else f"{rate:.1%}",
        *(f"{layer[key]:,.0f}" for key in ("sops", "acs", "macs")),
        joules(layer["energy_J"]),
        f"{layer['dense_macs']:,}",
        joules(layer["ann_energy_J"]),
    )


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw energy by layer and by step, and SNN / ANN in every convention, as a PNG; every axis starts at zero."""
    from matplotlib.figure import Figure

    layers, steps, total = report["layers"], report["per_step"], report["per_image"]
    peak = max(v for layer in layers for v in (layer["energy_J"], layer["ann_energy_J"]))
    text = joules(peak).split()[1]
    unit = peak / float(joules(peak).split()[0])
    figure = Figure(figsize=(14, 2.2 + 0.32 * len(layers)), layout="constrained")
    by_layer, by_step, by_convention = figure.subplots(1, 3, width_ratios=(3, 2, 2))
    rows = range(len(layers))
    for offset, key, colour, label in ((-0.2, "energy_J", SNN, "SNN"), (0.2, "ann_energy_J", ANN, "ANN")):
        values = [layer[key] / unit for layer in layers]
        by_layer.barh([row + offset for row in rows], values, height=0.38, color=colour, label=label)
    by_layer.set_yticks(rows, [layer["name"] for layer in layers])
    by_layer.invert_yaxis()
    by_layer.set(xlabel=f"energy of one image, {text}", xlim=(0, None), title="by layer")
    by_layer.legend(frameon=False)
    by_step.bar([step["t"] for step in steps], [step["energy_J"] / unit for step in steps], color=SNN, width=0.6)
    by_step.set_xticks([step["t"] for step in steps])
    by_step.set(
        xlabel="time step (1 includes what sees the image)",
        ylabel=f"energy of one image, {text}",
        ylim=(0, None),
        title="SNN by step",
    )
    draw_ratios(report, by_convention)
    for axes in (by_layer, by_step, by_convention):
        axes.spines[["top", "right"]].set_visible(False)
    images = report["images"]
    figure.suptitle(
        f"SNN {joules(total['energy_J'])}, ANN {joules(total['ann']['energy_J'])} an image"
        f" (ratio {total['ratio']:.3g}); {images['count']} {images['split']} images of {images['dataset']},"
        f" {report['convention']['name']}, {report['chip']}",
        fontsize=10,
    )
    figure.savefig(path, dpi=150)


def draw_ratios(report: dict[str, Any], axes: Any) -> None:
    """The SNN's energy over the ANN's in each convention that counts this network; 1 is marked."""
    counted = [entry for entry in report["conventions"] if "per_image" in entry]
    ratios = [entry["per_image"]["ratio"] for entry in counted]
    bars = axes.barh(range(len(counted)), ratios, height=0.6, color=SNN)
    axes.bar_label(bars, [f"{ratio:.3g}" for ratio in ratios], padding=3)
    axes.set_yticks(range(len(counted)), [entry["name"] for entry in counted])
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1, linestyle="--")
    axes.set(xlabel="energy, SNN / ANN (1: as much)", xlim=(0, 1.2 * max(1, *ratios)), title="by convention")
