"""The tab "Compare": two networks on the same image, step by step."""

from dataclasses import dataclass
from html import escape

import numpy as np

from serve.ui import steps_tab
from serve.ui.look import Look
from serve.ui.svg import (
    ANN,
    SNN,
    Frame,
    at,
    dot,
    drawing,
    figure,
    legend,
    line,
    mark,
    percent,
    percent_axis,
    polyline,
    short,
    si,
    step_axis,
    text,
)


WIDE = 860


def tab(first: Look, second: Look) -> str:
    """Both networks' answers, one chart of both, and the figures of each side by side."""
    sides = "".join(
        f'<div class="side">{side(look, first.T)}{steps_tab.probabilities(look, suffix=mark_)}'
        f"{steps_tab.sureness(look, suffix=mark_)}{steps_tab.spike_rates(look, suffix=mark_)}</div>"
        for look, mark_ in ((first, "-first"), (second, "-second"))
    )
    return f'<div class="compare">{overlay(first, second)}<div class="sides">{sides}</div></div>'


def side(look: Look, steps: int) -> str:
    """One network's answer at the step of 1..steps that is looked at; at those that it does not have, its last."""
    beyond = "".join(f" t{t}" for t in range(look.T + 1, steps + 1))
    said = "".join(
        f'<div class="at t{t}{beyond if t == look.T else ""}"><p><b class="label">{escape(look.label(t))}</b> '
        f"{percent(float(look.running[t - 1].max()))} confident after step {t}"
        f"{'' if t != look.steps else ', and stops here'}.</p></div>"
        for t in range(1, look.T + 1)
    )
    used = look.up_to(look.steps)
    accuracy = look.about.exits[look.predictor.precision].accuracy_by_T[-1]
    return (
        f'<div class="card"><h3>{escape(look.name)}</h3>{said}<p class="quiet">It stops after {look.steps} of '
        f"{look.T} steps: {si(used.energy_J, 'J')} by exact events. {percent(spikes(look))} of its neurons spike at a "
        f"step. With all steps {percent(accuracy)} of the test set are right.</p></div>"
    )


def spikes(look: Look) -> float:
    """Spikes per neuron and step, over all layers and the steps up to the exit."""
    rates = look.prediction.spike_rates[: look.steps].mean(axis=0)
    return float(np.average(rates, weights=look.about.neurons))


def subject(first: Look, second: Look) -> tuple[str, int | None, int | None]:
    """The class whose probability is drawn, in words and as each network's number; None where it does not know it."""
    truth = first.picture.truth
    name = truth if truth is not None else first.label(first.T)
    words = f"the true class, {name}" if truth is not None else f"{name}, the answer of {first.name}"
    known = [look.about.labels.index(name) if name in look.about.labels else None for look in (first, second)]
    return words, known[0], known[1]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One network in the chart of both."""

    look: Look
    values: list[float] | None
    """[T]: the probability of the class by the mean of the first t steps; None where the network has no such class."""
    colour: str
    dash: str

    def points(self, frame: Frame, t: int) -> str:
        """The point of step t, ringed where the network stops."""
        if self.values is None or t > self.look.T:
            return ""
        stops = t == self.look.steps
        told = f"{self.look.name}, {t} steps: {percent(self.values[t - 1])}{' (stops here)' if stops else ''}"
        ring = ' stroke="var(--ink)" stroke-width="2"' if stops else ""
        place = frame.x(t), frame.y(self.values[t - 1])
        return dot(*place, self.colour, told, radius=5 if stops else 3, more=ring)

    def value(self, t: int) -> str:
        """The value of step t in words."""
        return "-" if self.values is None or t > self.look.T else percent(self.values[t - 1])


def overlay(first: Look, second: Look) -> str:
    """The probability of one class over the steps, by both networks."""
    words, *numbers = subject(first, second)
    T = max(first.T, second.T)
    frame = Frame(left=52, top=46, width=WIDE - 250, height=150, x_least=1, x_most=T)
    curves = [
        Curve(look=look, values=None if k is None else look.running[:, k].tolist(), colour=colour, dash=dash)
        for look, k, (colour, dash) in zip((first, second), numbers, ((SNN, ""), (ANN, "6 4")), strict=True)
    ]
    parts = [percent_axis(frame), step_axis(frame, T)]
    parts += [
        polyline(
            [(frame.x(t), frame.y(value)) for t, value in enumerate(each.values or [], 1)], each.colour, dash=each.dash
        )
        for each in curves
    ]
    for t in range(1, T + 1):
        here = line(frame.x(t), frame.top, frame.x(t), frame.bottom, "transparent", more=' class="frame"')
        parts.append(
            mark(t, here + "".join(each.points(frame, t) for each in curves)) + at(t, beside(frame, curves, t))
        )
    parts.append(legend(frame.left, 8, [(short(each.look.name, 60), each.colour, each.dash) for each in curves]))
    note = f"Probability of {words}, by the mean of the steps so far. A ringed point: the network stops there."
    if unknown := [each.look.name for each in curves if each.values is None]:
        note += f" {' and '.join(unknown)} has no such class."
    alt = f"Probability of {words}, over the steps: " + "; ".join(
        f"{each.look.name} {', '.join(map(percent, each.values))}" for each in curves if each.values is not None
    )
    data = {
        "class": words,
        "networks": [
            {
                "network": each.look.name,
                "probability": each.values,
                "label": [each.look.label(t) for t in range(1, each.look.T + 1)],
                "steps_used": each.look.steps,
                "energy_J": each.look.up_to(each.look.steps).energy_J,
                "firing_rate": spikes(each.look),
            }
            for each in curves
        ],
    }
    body = drawing(WIDE, frame.bottom + 40, "".join(parts), alt=f"{alt}.")
    return figure("compare", "Both networks on this image", body, data=data, note=escape(note), wide=True)


def beside(frame: Frame, curves: list[Curve], t: int) -> str:
    """The values of step t, at the right of the chart."""
    x = frame.right + 24
    told = [text(x, frame.top + 12, f"after {t}", kind="strong")]
    for i, each in enumerate(curves):
        y = frame.top + 40 + 46 * i
        told.append(
            text(x, y, short(each.look.name, 28, tail=True), kind="small")
            + text(x, y + 18, each.value(t), kind="strong")
        )
    return "".join(told)
