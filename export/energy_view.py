"""What a person reads of energy.json: tables, drawn from the file's content and nothing else."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from export.energy_account import joules


NAMES = {"ann": "ANN of the same layers", "teacher": "teacher", "snn": "SNN", "early": "SNN, stopped early"}


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
            "",
            *comparison(report),
            "",
            f"break-even with data movement: {report['break_even']['says']}",
            "",
            *chip_lines(report),
        ]
    )


def comparison(report: dict[str, Any]) -> list[str]:
    """Every network in every precision, joules an image by convention; what is left out; the sentences."""
    found, names = report["comparison"], [entry["name"] for entry in report["conventions"]]
    rows = [("what would run", "in", "steps", "accuracy", *names)]
    for row in found["rows"]:
        energy = row["energy_J"]
        steps = "" if row["mean_steps"] is None else f"{row['mean_steps']:.2f}"
        accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.2%}"
        cells = (joules(energy[name]) if name in energy else "-" for name in names)
        rows.append((NAMES[row["what"]], row["precision"], steps, accuracy, *cells))
    return [
        *aligned(rows, left=2),
        *(f"left out: {entry['what']}: {entry['reason']}" for entry in found["left_out"]),
        found["verdict"],
        *found["verdicts"],
    ]


def markdown(report: dict[str, Any]) -> str:
    """What a user would run instead, and what chips would spend, as Markdown."""
    found, names = report["comparison"], [entry["name"] for entry in report["conventions"]]
    head = ["what would run", "in", "mean steps", *names]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in found["rows"]:
        steps = "" if row["mean_steps"] is None else f"{row['mean_steps']:.2f}"
        cells = (joules(row["energy_J"][name]) if name in row["energy_J"] else "-" for name in names)
        lines.append(f"| {NAMES[row['what']]} | {row['precision']} | {steps} | {' | '.join(cells)} |")
    sentences = [found["verdict"], *found["verdicts"], report["break_even"]["says"]]
    sentences += [f"Left out: {entry['what']}: {entry['reason']}." for entry in found["left_out"]]
    chips = [line if line.startswith("  ") else f"- {line}" for line in chip_lines(report)]
    return "\n".join(
        [
            *("What a user would run instead, joules an image:", "", *lines, ""),
            *(f"- {sentence}" for sentence in sentences),
            *("", "On real chips, by what is published of each (estimates; nothing above is part of them):", ""),
            *(f"  - {line.strip()}" if line.startswith("  ") else line for line in chips),
        ]
    )


def chip_lines(report: dict[str, Any]) -> list[str]:
    """What is published of real chips, each line by itself."""
    lines = []
    for chip in report["chips"]["of_the_student"]:
        if chip["energy_J"] is None:
            lines += [f"{chip['title']}: {chip['lines'][0]['left_out']}", f"  {chip_line(chip['static'])}"]
            continue
        lines.append(f"{chip['title']}: an image's operations {joules(chip['energy_J'])}, static power apart")
        lines += [f"  {chip_line(line)}" for line in (*chip["lines"], chip["static"])]
    net = report["chips"]["of_the_net_file"]
    if "left_out" in net:
        return [*lines, f"the .net file: {net['left_out']}"]
    cost = net["per_image"]
    return [
        *lines,
        f"the .net file, relays and pooling included: {joules(cost['energy_J'])} of operations at Loihi 1's prices,"
        f" {joules(cost['static_energy_J'])} of a Loihi 2 board's static power (estimates)",
    ]


def chip_line(line: dict[str, Any]) -> str:
    """One line of a chip's list."""
    count = f"{line['count']:,.0f} " if "count" in line else ""
    return f"{count}{line['what']}: " + (joules(line["energy_J"]) if "energy_J" in line else line["left_out"])


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
