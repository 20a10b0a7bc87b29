"""The tab "Test set": how often a network is right, after how many steps, and what each exit threshold gives."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape

from serve.bundle import Description, Precision
from serve.exit_record import ExitRecord, ExitRow
from serve.exits import Rule
from serve.ui.svg import (
    ANN,
    SNN,
    THIRD,
    WIDTH,
    Frame,
    drawing,
    figure,
    line,
    percent,
    percent_axis,
    polyline,
    rect,
    si,
    text,
)


Contender = tuple[str, Description, Precision]
"""What the page calls a network, its bundle's description, and the precision that is looked at."""
STYLES = ((SNN, ""), (ANN, "6 4"))
"""Of the first and the second network: colour and dash; their markers are a disc and a square."""
DOTTED = ("2 3", "1 5")
"""Of their teachers."""
ROW = 18
RULES: dict[Rule, str] = {
    "confidence": "the largest probability",
    "entropy": "1 \u2212 entropy / log K of the probabilities",
    "margin": "the largest probability less the second",
}
"""What is held against the threshold."""


def testset_tab(contenders: Sequence[Contender]) -> str:
    """Cards about one network, or about two side by side."""
    figures = [by_steps(contenders), by_exit(contenders)]
    figures += [exit_list(contender, number) for number, contender in enumerate(contenders, 1)]
    words = "".join(f"<p>{escape(summary(contender))}</p>" for contender in contenders)
    sentences = "".join(f"<p>{escape(exit_sentence(contender))}</p>" for contender in contenders)
    how = f'<div class="card" id="testset-exits"><h3>How the exit was chosen</h3>{sentences}</div>'
    beside, below = (how, "") if len(contenders) == 1 else ("", how)
    return (
        f'<div class="card" id="testset-summary"><h3>On the whole test set</h3>{words}</div>'
        f'<div class="cards">{"".join(figures)}{beside}</div>{below}'
    )


def summary(contender: Contender) -> str:
    """How many images, how many are right, and what the served exit makes of it."""
    name, about, precision = contender
    record = about.exits[precision]
    by_T, served, on = record.accuracy_by_T, chosen(record), record.measured_on
    words = f"{name}: {on.images:,} images ({on.dataset}, {on.split}). "
    words += f"{percent(by_T[-1])} are right after {_steps(len(by_T))}"
    if len(by_T) > 1:
        words += f", {percent(by_T[0])} after the first alone"
    if about.metrics.teacher_accuracy is not None:
        words += f"; the teacher gets {percent(about.metrics.teacher_accuracy)} right"
    return (
        f"{words}. With the served exit an image takes {served.mean_steps:.2f} steps and "
        f"{si(served.energy_J, 'J')} on average, and {percent(served.accuracy)} are right."
    )


def exit_sentence(contender: Contender) -> str:
    """The rule of the exit, and what its threshold was chosen on."""
    name, about, precision = contender
    record = about.exits[precision]
    on = record.calibrated_on
    words = f"{name}: an image stops when {RULES[record.rule]} is above the threshold {record.threshold:.3f}"
    if record.threshold == 1:
        words = f"{name}: the threshold is 1, so every image takes all steps"
    elif record.relax:
        words += f" at the first step; later steps ask for less (relax {record.relax:g})"
    if on is None:
        return f"{words}. There were no validation images to choose another on."
    return (
        f"{words}. Chosen on {on.images:,} other images ({on.dataset}, {on.split}): the fewest steps that lose at most "
        f"{100 * record.tolerance:g} points of the accuracy of all steps, two standard errors of the loss included."
    )


def by_steps(contenders: Sequence[Contender]) -> str:
    """Lines from zero over the steps, a dotted one for the teacher; the values stand below, under their steps."""
    curves = [about.exits[precision].accuracy_by_T for _, about, precision in contenders]
    T = max(map(len, curves))
    teachers = teachers_of(contenders)
    entries = [(name, colour, dash) for (name, _, _), (colour, dash) in zip(contenders, STYLES, strict=False)]
    top = 14 + ROW * (len(entries) + len(teachers))
    frame = Frame(left=60, top=top, width=WIDTH - 84, height=150, x_least=1, x_most=T)
    written = labelled(T, room=frame.width / 30)
    parts = [key(entries, teachers), percent_axis(around(frame))]
    for i, (_, accuracy) in enumerate(teachers):
        y = frame.y(accuracy)
        parts.append(polyline([(around(frame).left, y), (around(frame).right, y)], THIRD, dash=DOTTED[i]))
    parts += [text(frame.x(t), frame.bottom + 16, str(t), anchor="middle") for t in written]
    for i, (curve, (name, colour, dash)) in enumerate(zip(curves, entries, strict=True)):
        points = [(frame.x(t), frame.y(value)) for t, value in enumerate(curve, 1)]
        parts.append(polyline(points, colour, dash=dash))
        parts += [
            marker(i, *at, title=f"{name}: {percent(value)} after {_steps(t)}")
            for t, (at, value) in enumerate(zip(points, curve, strict=True), 1)
        ]
        y = frame.bottom + 20 + ROW * (i + 1)
        parts.append(marker(i, 18, y - 4))
        parts += [
            text(frame.x(t), y, f"{100 * curve[t - 1]:.1f}", anchor="middle", kind="small")
            for t in written
            if t <= len(curve)
        ]
    below = frame.bottom + 24 + ROW * len(curves)
    parts.append(line(8, frame.bottom + 22, WIDTH - 2, frame.bottom + 22))
    parts.append(text((frame.left + frame.right) / 2, below + 15, "steps used; below each, % right", anchor="middle"))
    alt = "Accuracy by the number of steps used. " + " ".join(
        f"{name}: {', '.join(percent(value) for value in curve)}."
        for (name, _, _), curve in zip(contenders, curves, strict=True)
    )
    data = [
        {
            "name": name,
            "precision": precision,
            "accuracy_by_T": list(about.exits[precision].accuracy_by_T),
            "teacher_accuracy": about.metrics.teacher_accuracy,
            "measured_on": about.exits[precision].measured_on.model_dump(mode="json"),
        }
        for name, about, precision in contenders
    ]
    note = "Share of the test images that the mean of the first t steps gets right."
    if len(written) < T:
        note += " Not every step is written; all are in the JSON."
    body = drawing(WIDTH, below + 22, "".join(parts), alt=alt)
    return figure("accuracy-by-steps", "Accuracy by steps", body, data={"networks": data}, note=note)


def by_exit(contenders: Sequence[Contender]) -> str:
    """Accuracy over mean steps, both from zero: a point for each threshold, a ring around the served one."""
    records = [about.exits[precision] for _, about, precision in contenders]
    entries = [(name, colour, dash) for (name, _, _), (colour, dash) in zip(contenders, STYLES, strict=False)]
    T = max(math.ceil(max(row.mean_steps for row in record.table)) for record in records)
    top = 14 + ROW * (len(entries) + 1)
    frame = Frame(left=60, top=top, width=WIDTH - 84, height=150, x_most=T)
    parts = [key(entries, []), percent_axis(around(frame))]
    parts += [ring(59, 8 + ROW * len(entries)), text(76, 12 + ROW * len(entries), "the threshold that is served")]
    parts += [text(frame.x(t), frame.bottom + 16, str(t), anchor="middle") for t in (0, *labelled(T, room=16))]
    parts.append(text((frame.left + frame.right) / 2, frame.bottom + 34, "steps an image takes, mean", anchor="middle"))
    for i, (record, (name, colour, dash)) in enumerate(zip(records, entries, strict=True)):
        rows = sorted(record.table, key=lambda row: (row.mean_steps, row.threshold))
        points = [(frame.x(row.mean_steps), frame.y(row.accuracy)) for row in rows]
        parts.append(polyline(points, colour, dash=dash))
        for row, at in zip(rows, points, strict=True):
            told = f"{name}, threshold {row.threshold:.3f}: {row.mean_steps:.2f} steps, {percent(row.accuracy)}"
            parts.append(marker(i, *at, title=told))
        served = chosen(record)
        parts.append(ring(frame.x(served.mean_steps), frame.y(served.accuracy)))
    alt = "Accuracy by the mean number of steps. " + " ".join(
        f"{name}: served at threshold {record.threshold:.3f}, {chosen(record).mean_steps:.2f} steps, "
        f"{percent(chosen(record).accuracy)}."
        for (name, _, _), record in zip(contenders, records, strict=True)
    )
    data = [
        {
            "name": name,
            "precision": precision,
            "rule": record.rule,
            "threshold": record.threshold,
            "relax": record.relax,
            "measured_on": record.measured_on.model_dump(mode="json"),
            "table": [row.model_dump(mode="json") for row in record.table],
        }
        for (name, _, precision), record in zip(contenders, records, strict=True)
    ]
    note = "Each point is a threshold of the exit. Left is cheaper, up is better; the list has the numbers."
    body = drawing(WIDTH, frame.bottom + 42, "".join(parts), alt=alt)
    return figure("accuracy-by-exit", "Accuracy by when it stops", body, data={"networks": data}, note=note)


def exit_list(contender: Contender, number: int) -> str:
    """All thresholds with what they give; the served one is marked."""
    name, about, precision = contender
    record = about.exits[precision]
    columns: tuple[tuple[float, str, Callable[[ExitRow], str]], ...] = (
        (82, "threshold", lambda row: f"{row.threshold:.3f}"),
        (168, "mean steps", lambda row: f"{row.mean_steps:.2f}"),
        (236, "% right", lambda row: f"{100 * row.accuracy:.1f}"),
        (332, "energy, image", lambda row: si(row.energy_J, "J")),
        (414, "validation %", lambda row: "none" if row.val_accuracy is None else f"{100 * row.val_accuracy:.1f}"),
    )
    parts = [text(x, 14, title, anchor="end") for x, title, _ in columns]
    parts.append(line(4, 20, WIDTH - 4, 20))
    for i, row in enumerate(record.table):
        y = 36 + ROW * i
        served = row.threshold == record.threshold
        if served:
            parts.append(rect(2, y - 14, WIDTH - 4, ROW, SNN, more=' fill-opacity="0.2"') + ring(20, y - 5))
        parts += [text(x, y, tell(row), anchor="end", kind="strong" if served else "") for x, _, tell in columns]
    alt = f"Exit thresholds of {name}: " + "; ".join(
        f"{row.threshold:.3f}: {row.mean_steps:.2f} steps, {percent(row.accuracy)}, {si(row.energy_J, 'J')}"
        for row in record.table
    )
    data = {"name": name, "precision": precision, "served": record.threshold}
    data |= {"table": [row.model_dump(mode="json") for row in record.table]}
    note = f"{name}. The ring marks the served threshold. Energy: an estimate at the prices of {about.energy.chip}."
    body = drawing(WIDTH, 30 + ROW * len(record.table), "".join(parts), alt=alt)
    return figure(f"exit-list-{number}", "Thresholds of the exit", body, data=data, note=escape(note))


def chosen(record: ExitRecord) -> ExitRow:
    """What the served threshold gives."""
    return next(row for row in record.table if row.threshold == record.threshold)


def teachers_of(contenders: Sequence[Contender]) -> list[tuple[str, float]]:
    """The teachers' accuracies with what they are called; one where both networks have the same."""
    known = [
        (name, about.metrics.teacher_accuracy)
        for name, about, _ in contenders
        if about.metrics.teacher_accuracy is not None
    ]
    if len(known) == len(contenders) and len({accuracy for _, accuracy in known}) == 1:
        return [(f"the teacher, an ANN: {percent(known[0][1])}", known[0][1])]
    return [(f"teacher of {ends(name, 31)}: {percent(accuracy)}", accuracy) for name, accuracy in known]


def key(entries: Sequence[tuple[str, str, str]], teachers: Sequence[tuple[str, float]]) -> str:
    """Samples of the lines with their names."""
    lines = [(name, colour, dash, True) for name, colour, dash in entries]
    lines += [(name, THIRD, DOTTED[i], False) for i, (name, _) in enumerate(teachers)]
    return "".join(
        polyline([(46, 8 + ROW * i), (72, 8 + ROW * i)], colour, dash=dash)
        + (marker(i, 59, 8 + ROW * i) if marked else "")
        + f"<g><title>{escape(name)}</title>{text(78, 12 + ROW * i, ends(name, 52))}</g>"
        for i, (name, colour, dash, marked) in enumerate(lines)
    )


def marker(number: int, x: float, y: float, *, title: str = "") -> str:
    """A disc for the first network, a square for the second."""
    told = f"<title>{escape(title)}</title>" if title else ""
    if number == 0:
        return f'<g>{told}<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{SNN}"/></g>'
    return f"<g>{told}{rect(x - 3.5, y - 3.5, 7, 7, ANN)}</g>"


def ring(x: float, y: float) -> str:
    """What sets the served threshold off."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="none" stroke="var(--ink)" stroke-width="1.5"/>'


def around(frame: Frame) -> Frame:
    """A little wider, so that no marker lies on the numbers of the axis."""
    return replace(frame, left=frame.left - 12, width=frame.width + 24)


def labelled(T: int, *, room: float) -> list[int]:
    """The first step, the last, and as many between them as there is room for."""
    steps = list(range(1, T + 1, math.ceil(T / room)))
    return steps if steps[-1] == T else [*steps[:-1], T] if len(steps) > 1 else [*steps, T]


def ends(words: str, characters: int) -> str:
    """Words without their middle where they are too long: names often differ at the end."""
    if len(words) <= characters:
        return words
    return f"{words[: characters // 2 - 1]}\u2026{words[-(characters - characters // 2) :]}"


def _steps(t: int) -> str:
    return f"{t} step{'s' * (t > 1)}"
