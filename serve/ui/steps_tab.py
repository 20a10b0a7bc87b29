"""The figures of the tab "Steps": what each step says, how sure it is, and how much the layers spike."""

import math
from html import escape

from serve.exits import Rule
from serve.ui.look import Look
from serve.ui.svg import (
    ANN,
    FONT,
    SNN,
    THIRD,
    WIDTH,
    Frame,
    dot,
    drawing,
    figure,
    heat_cell,
    legend,
    line,
    mark,
    name_width,
    percent,
    percent_axis,
    polyline,
    rect,
    row_name,
    step_axis,
    text,
)


CLASSES = 10
"""How many classes are drawn; the JSON has all."""
SURENESS: dict[Rule, str] = {
    "confidence": "the largest probability",
    "entropy": "1 − entropy / log K of the probabilities",
    "margin": "the largest probability less the second",
}


def probabilities(look: Look, *, suffix: str = "") -> str:
    """Bars for each class and step: the mean of the steps so far, and under it the step alone. All from zero."""
    labels, T = look.about.labels, look.T
    drawn = sorted((-look.running.max(axis=0)).argsort(kind="stable")[:CLASSES])
    left, top, row = max(28.0, name_width((labels[k] for k in drawn), 13)), 40, 21
    column = (WIDTH - left) / T
    height = top + row * len(drawn) + 4
    numbers = column >= 74
    bar = column - (40 if numbers else 5)
    names = "".join(row_name(left - 8, top + row * i + 15, labels[k], characters=13) for i, k in enumerate(drawn))
    columns = []
    every = math.ceil(T * 26 / (WIDTH - left))  # so that the numbers of the steps do not meet
    for t in range(1, T + 1):
        x = left + column * (t - 1)
        parts = [rect(x, top - 20, column - 2, height - top + 18, "transparent", more=' class="frame"')]
        if (t - 1) % every == 0:
            parts.append(text(x + 2, top - 6, f"step {t}" if column > 48 else str(t), kind="strong"))
        for i, k in enumerate(drawn):
            mean, alone = float(look.running[t - 1, k]), float(look.alone[t - 1, k])
            y = top + row * i
            told = f"{labels[k]}, step {t}: {percent(mean)} by the mean so far, {percent(alone)} by this step alone"
            parts.append(
                f"<g><title>{escape(told)}</title>{rect(x + 2, y + 3, max(bar * mean, 0.5), 8, SNN)}"
                f"{rect(x + 2, y + 12, max(bar * alone, 0.5), 4, ANN)}</g>"
            )
            if numbers:
                parts.append(
                    text(
                        x + column - 5,
                        y + 12,
                        "100" if mean > 0.9995 else f"{100 * mean:.1f}",
                        anchor="end",
                        kind="small",
                    )
                )
        columns.append(mark(t, "".join(parts)))
    key = (
        rect(left, 3, 18, 8, SNN)
        + text(left + 23, 11, "mean of the steps so far, %" if numbers else "mean of the steps so far")
        + rect(left + 196, 5, 18, 4, ANN)
        + text(left + 219, 11, "this step alone")
    )
    final = look.label(T)
    alt = (
        f"Probability of each class at every step. After {T} steps the mean gives {final} "
        f"{percent(float(look.running[-1].max()))}."
    )
    note = "A bar that fills its column is 100 %."
    if len(drawn) < len(labels):
        note += f" The {len(drawn)} classes of {len(labels)} that were most probable at any step."
    data = {
        "labels": list(labels),
        "running_mean": look.running.tolist(),
        "step_alone": look.alone.tolist(),
    }
    body = drawing(WIDTH, height, names + "".join(columns) + key, alt=alt)
    return figure(f"probabilities{suffix}", "What each step says", body, data=data, note=note)


def sureness(look: Look, *, suffix: str = "") -> str:
    """Lines over the steps: how sure the mean so far is, how sure each step alone, and what the exit asks for."""
    T = look.T
    frame = Frame(left=46, top=60, width=WIDTH - 62, height=150, x_least=1, x_most=T)
    asked = [look.exit.at(t) for t in range(1, T + 1)]
    bounds = [(frame.x(t), frame.y(max(0.0, bound))) for t, bound in enumerate(asked, 1)]
    if T == 1:
        bounds = [(frame.left, bounds[0][1]), (frame.right, bounds[0][1])]

    def points(values: list[float]) -> list[tuple[float, float]]:
        return [(frame.x(t), frame.y(value)) for t, value in enumerate(values, 1)]

    mean, alone = look.sureness.tolist(), look.sureness_alone.tolist()
    dots = "".join(
        mark(
            t,
            line(frame.x(t), frame.top, frame.x(t), frame.bottom, "transparent", more=' class="frame"')
            + dot(frame.x(t), frame.y(alone[t - 1]), ANN, f"step {t} alone: {alone[t - 1]:.3f}", radius=2.5)
            + dot(frame.x(t), frame.y(mean[t - 1]), SNN, f"mean of {t}: {mean[t - 1]:.3f}, asked {asked[t - 1]:.3f}"),
        )
        for t in range(1, T + 1)
    )
    stop = frame.x(look.steps)
    anchor = "end" if look.steps == T and T > 1 else "start" if look.steps == 1 and T > 1 else "middle"
    body = drawing(
        WIDTH,
        frame.bottom + 40,
        percent_axis(frame)
        + step_axis(frame, T)
        + polyline(bounds, THIRD, dash="2 3")
        + line(stop, frame.top - 4, stop, frame.bottom, "var(--ink)", more=' stroke-width="1.5"')
        + text(stop, frame.top - 8, "stops here", anchor=anchor, kind="strong")
        + polyline(points(alone), ANN, dash="6 4")
        + polyline(points(mean), SNN)
        + dots
        + legend(
            frame.left,
            8,
            [("the mean of the steps so far", SNN, ""), ("each step alone", ANN, "6 4")],
        )
        + legend(frame.left + 206, 8, [("what the exit asks for", THIRD, "2 3")]),
        alt=(
            f"How sure the network is at every step: {', '.join(f'{value:.2f}' for value in mean)}. The exit asks for "
            f"more than {', '.join(f'{value:.2f}' for value in asked)}; it stops after step {look.steps}."
        ),
    )
    data = {
        "rule": look.exit.rule,
        "threshold": look.exit.threshold,
        "relax": look.exit.relax,
        "sureness": mean,
        "sureness_alone": alone,
        "asked": asked,
        "steps_used": look.steps,
    }
    note = f"Sureness is {SURENESS[look.exit.rule]}."
    if look.exit.relax and look.exit.threshold < 1:
        note += " Less is asked for after more steps: the mean of more steps is right more often."
    return figure(f"sureness{suffix}", "How sure it is, and when it stops", body, data=data, note=note)


def spike_rates(look: Look, *, suffix: str = "") -> str:
    """A heat map of the firing rates, layers by steps, every cell with its value in percent."""
    rates, layers, T = look.prediction.spike_rates, look.about.lif_layers, look.T
    left, top = max(84.0, name_width(layers, 18)), 24
    row = 20 if len(layers) <= 12 else 16
    column = (WIDTH - left) / T
    most = float(rates.max()) or 1.0
    height = top + row * len(layers) + 2
    names = "".join(
        row_name(left - 8, top + row * i + row / 2 + 4, name, characters=18, tail=True) for i, name in enumerate(layers)
    )
    written = column >= 2.6 * FONT
    every = math.ceil(T * 26 / (WIDTH - left))
    columns = []
    for t in range(1, T + 1):
        x = left + column * (t - 1)
        cells = [text(x + column / 2, top - 8, str(t), anchor="middle")] if (t - 1) % every == 0 else []
        for i, name in enumerate(layers):
            rate = float(rates[t - 1, i])
            words = f"{100 * rate:.1f}" if written else ""
            told = f"{name}, step {t}: {percent(rate)}"
            cells.append(heat_cell(x, top + row * i, column - 1, row - 1, rate / most, words, title=told))
        outline = rect(x, top, column - 1, row * len(layers) - 1, "none", more=' class="frame"')
        columns.append(mark(t, "".join(cells) + outline))
    heading = text(left - 8, top - 8, "layer, step", anchor="end")
    alt = (
        "Share of the neurons that spike, by layer and step, in percent: "
        + "; ".join(f"{name} {', '.join(f'{100 * r:.1f}' for r in rates[:, i])}" for i, name in enumerate(layers))
        + "."
    )
    body = drawing(WIDTH, height, heading + names + "".join(columns), alt=alt)
    note = "Share of a layer's neurons that spike at a step, in percent."
    data = {"layers": list(layers), "firing_rate": rates.astype(float).tolist()}
    return figure(f"spike-rates{suffix}", "Spikes of the layers", body, data=data, note=note)
