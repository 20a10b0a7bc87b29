"""Draw a prediction as HTML: the answer, every step, spike rates, energy. Pure functions from numbers to text.

Plain HTML and SVG, not pictures: sharp at every size, readable to a screen reader, and nothing to load. Colours are
Okabe and Ito's blue and vermilion, told apart by the colour-blind, and never the only mark: lines differ in dash,
heat-map cells hold their numbers. All text of a bundle is escaped.
"""

import base64
import math
from html import escape

from serve.bundle import Description, EnergyRecord
from serve.predictor import Prediction
from serve.web.schema import Classification


CSS = """
.tserve { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; font-size: 14px; line-height: 1.4;
  --snn: #0072b2; --other: #d55e00; --quiet: color-mix(in srgb, var(--body-text-color) 70%, transparent); }
.tserve .card { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 12px 16px; min-width: 0;
  background: var(--background-fill-primary); }
.tserve .wide { grid-column: 1 / -1; }
.tserve h3 { margin: 0 0 6px; font-size: 14px; font-weight: 600; }
.tserve p { margin: 6px 0 0; }
.tserve .quiet { color: var(--quiet); font-size: 12px; }
.tserve .answer { display: flex; gap: 20px; align-items: center; }
.tserve .answer img, #samples img { image-rendering: pixelated; }
.tserve .answer img { width: 96px; height: 96px; object-fit: contain; border: 1px solid var(--border-color-primary); }
.tserve .label { font-size: 34px; font-weight: 700; line-height: 1.1; overflow-wrap: anywhere; }
.tserve .scroll { overflow: auto; max-height: 210px; }
.tserve table { border-collapse: collapse; border: 0; width: 100%; margin: 0; font-size: inherit;
  font-variant-numeric: tabular-nums; }
.tserve table tr, .tserve table thead { border: 0; background: none; }
.tserve table th { font-weight: 500; text-align: left; font-size: 12px; color: var(--quiet); }
.tserve table th, .tserve table td { padding: 3px 6px; border: 0; }
.tserve .steps tbody tr { border-top: 1px solid var(--border-color-primary); }
.tserve .heat tbody td { text-align: center; border: 1px solid var(--background-fill-primary); min-width: 34px;
  font-size: 12px; padding: 2px; }
.tserve .heat th { white-space: nowrap; }
.tserve .heat thead th + th { text-align: center; }
.tserve svg { width: 100%; height: auto; display: block; }
.tserve svg text { fill: var(--quiet); font-size: 11px; }
.tserve .bar { display: grid; grid-template-columns: 36px 1fr 76px; gap: 8px; align-items: center; margin: 6px 0; }
.tserve .bar div { height: 20px; min-width: 1px; border-radius: 2px; }
.tserve .bar b { text-align: right; font-variant-numeric: tabular-nums; }
.tserve .alert { border-left: 4px solid var(--other); }
.page-head b { font-size: 18px; margin-right: 8px; }
.html-container { padding: 0 !important; }
.page-step { font-size: 14px; font-weight: 600; }
#samples .grid-container { grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 6px; padding: 0;
  grid-template-rows: none; grid-auto-rows: max-content; }
#samples .grid-wrap { max-height: 440px; }
#samples .thumbnail-item { height: auto; aspect-ratio: 1 / 1.4; }
#samples .thumbnail-item img { object-position: top; }
#samples .caption-label { font-size: 11px; padding: 0 4px; }
@media (max-width: 900px) { .tserve { grid-template-columns: 1fr; } }
"""
_PREFIXES = {-15: "f", -12: "p", -9: "n", -6: "\u00b5", -3: "m", 0: ""}


def report(prediction: Prediction, about: Description, *, picture: bytes, truth: str | None = None) -> str:
    """Draw all of one prediction; `picture` is a PNG of what the network saw, `truth` the true label if it is known."""
    answer = Classification.of(prediction, about)
    best = int(prediction.probs.argmax())
    cards = (
        answer_card(answer, picture=picture, truth=truth),
        steps_card(answer),
        chart_card(answer.label, prediction.step_probs[:, best].tolist(), prediction.running_probs[:, best].tolist()),
        heat_card(answer.spike_rates),
        energy_card(answer, about.energy),
    )
    return f'<div class="tserve">{"".join(cards)}</div>'


def alert(sentence: str) -> str:
    """Say what went wrong, in the place of a report."""
    return f'<div class="tserve"><div class="card wide alert" role="alert">{escape(sentence)}</div></div>'


def answer_card(answer: Classification, *, picture: bytes, truth: str | None) -> str:
    """The picture, the class, the confidence, and the same in one sentence."""
    data = base64.b64encode(picture).decode()
    runners_up = ", ".join(f"{escape(g.label)} {percent(g.probability)}" for g in answer.top_k[1:4])
    known = ""
    if truth is not None:
        known = f" The true label is {escape(truth)}: {'correct' if truth == answer.label else 'wrong'}."
    return (
        f'<div class="card wide answer"><img src="data:image/png;base64,{data}" alt="the image as the network sees it">'
        f'<div><span class="label" id="label">{escape(answer.label)}</span> '
        f'<span id="confidence">{percent(answer.probability)} confident</span>'
        f"<p>{escape(sentence(answer))}{known}</p>"
        f'<p class="quiet">Next: {runners_up or "no other class"}. Answered in {si(answer.latency_s, "s")}.</p>'
        "</div></div>"
    )


def sentence(answer: Classification) -> str:
    """Say when the answer was reached."""
    T = answer.steps_used
    since = T
    while since > 1 and answer.per_timestep[since - 2].running.label == answer.label:
        since -= 1
    start = f"After {T} time step{'s' * (T > 1)} the network says {answer.label}"
    if T == 1:
        return f"{start}."
    if since == 1:
        return f"{start}; it has said so from the first step on."
    before = answer.per_timestep[since - 2].running.label
    return f"{start}; until step {since - 1} its running answer was {before}."


def steps_card(answer: Classification) -> str:
    """A table: at every step, what the step says alone and what the mean so far says."""
    rows = "".join(
        f"<tr><td>{row.t}</td><td>{escape(row.step.label)}</td><td>{percent(row.step.probability)}</td>"
        f"<td><b>{escape(row.running.label)}</b></td><td><b>{percent(row.running.probability)}</b></td></tr>"
        for row in answer.per_timestep
    )
    head = (
        '<tr><th>step</th><th colspan="2" scope="colgroup">this step alone</th>'
        '<th colspan="2" scope="colgroup">mean of the steps so far</th></tr>'
    )
    return (
        '<div class="card"><h3>Prediction at every step</h3>'
        '<div class="scroll"><table class="steps" id="steps">'
        f"<thead>{head}</thead><tbody>{rows}</tbody></table></div></div>"
    )


def chart_card(label: str, alone: list[float], running: list[float]) -> str:
    """A line chart over the steps: the probability of the answer at each step alone, and of the mean so far."""
    width, height, left, right, top, bottom = 420, 170, 40, 12, 8, 34
    T = len(running)

    def x(t: int) -> float:
        return left + (width - left - right) * (t / (T - 1) if T > 1 else 0.5)

    def y(probability: float) -> float:
        return top + (height - top - bottom) * (1 - probability)

    grid = "".join(
        f'<line x1="{left}" x2="{width - right}" y1="{y(p):.1f}" y2="{y(p):.1f}" stroke="currentColor" '
        f'stroke-opacity="0.15"/><text x="{left - 6}" y="{y(p) + 4:.1f}" text-anchor="end">{100 * p:.0f} %</text>'
        for p in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    every = math.ceil(T / 16)
    ticks = "".join(
        f'<text x="{x(t):.1f}" y="{height - bottom + 16}" text-anchor="middle">{t + 1}</text>'
        for t in range(0, T, every)
    )

    def line(values: list[float], colour: str, dash: str, name: str) -> str:
        points = " ".join(f"{x(t):.1f},{y(value):.1f}" for t, value in enumerate(values))
        dots = "".join(
            f'<circle cx="{x(t):.1f}" cy="{y(value):.1f}" r="4" fill="{colour}">'
            f"<title>step {t + 1}, {name}: {percent(value)}</title></circle>"
            for t, value in enumerate(values)
        )
        stroke = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
        return f'<polyline points="{points}" {stroke}/>{dots}'

    return (
        f'<div class="card"><h3>Confidence in \u201c{escape(label)}\u201d over the steps</h3>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="confidence over the steps">'
        f"{grid}{ticks}"
        f"{line(alone, 'var(--other)', '4 4', 'this step alone')}{line(running, 'var(--snn)', 'none', 'mean so far')}"
        f'<text x="{(left + width - right) / 2}" y="{height - 2}" text-anchor="middle">time step</text></svg>'
        '<p class="quiet"><span style="color:var(--snn)">\u25cf\u2501</span> mean of the steps so far &nbsp; '
        '<span style="color:var(--other)">\u25cf\u2505</span> this step alone</p></div>'
    )


def heat_card(spike_rates: dict[str, list[float]]) -> str:
    """A heat map: layers down, steps across, spikes per neuron in percent; darkest is the most."""
    most = max((rate for rates in spike_rates.values() for rate in rates), default=0.0) or 1.0
    steps = max((len(rates) for rates in spike_rates.values()), default=0)
    rows = "".join(
        f'<tr><th scope="row">{escape(layer)}</th>{"".join(_cell(rate, most) for rate in rates)}</tr>'
        for layer, rates in spike_rates.items()
    )
    head = "".join(f'<th scope="col">{t}</th>' for t in range(1, steps + 1))
    return (
        '<div class="card"><h3>Spike rates</h3><div class="scroll">'
        f'<table class="heat" id="spike-rates"><thead><tr><th>layer, step</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
        '</div><p class="quiet">Share of the neurons of a layer that spike at a step, in percent.</p></div>'
    )


def energy_card(answer: Classification, energy: EnergyRecord) -> str:
    """Two bars from zero, this image's energy beside the ANN's, the ratio in words, and what was counted."""
    most = max(answer.energy_J, answer.ann_energy_J) or 1.0
    bars = "".join(
        f'<div class="bar"><span>{name}</span><div style="width:{100 * joules / most:.2f}%;background:{colour}"></div>'
        f"<b>{si(joules, 'J')}</b></div>"
        for name, joules, colour in (
            ("SNN", answer.energy_J, "var(--snn)"),
            ("ANN", answer.ann_energy_J, "var(--other)"),
        )
    )
    basis = ", ".join(filter(None, (energy.chip, energy.convention)))
    counted = (
        f"SNN: {answer.sops:,} additions and {answer.macs:,} multiplications for this image; ANN: "
        f"{energy.ann_macs:,} multiplications. Estimated with {1e12 * energy.ac_J:.3g} pJ an addition and "
        f"{1e12 * energy.mac_J:.3g} pJ a multiplication ({escape(basis)}); memory traffic is not counted."
    )
    return (
        f'<div class="card"><h3>Energy beside the ANN</h3><div id="energy">{bars}</div>'
        f'<p id="ratio"><b>{ratio(answer.energy_J, answer.ann_energy_J)}</b></p><p class="quiet">{counted}</p></div>'
    )


def ratio(snn_J: float, ann_J: float) -> str:
    """Say how the two energies compare, whichever is smaller."""
    if snn_J <= 0 or ann_J <= 0:
        return "One of the two energies is zero: there is no ratio."
    times = max(snn_J, ann_J) / min(snn_J, ann_J)
    if times < 1.005:
        return "The SNN needs as much energy as the ANN for this image."
    words = f"{times:,.0f}" if times >= 100 else f"{times:.3g}"
    return f"The SNN needs {words} times {'less' if snn_J < ann_J else 'MORE'} energy than the ANN for this image."


def percent(share: float) -> str:
    """0.9834 -> "98.3 %"."""
    return f"{100 * share:.1f} %"


def si(value: float, unit: str) -> str:
    """Three digits and a prefix: 2.26e-08, "J" -> "22.6 nJ"."""
    if value == 0:
        return f"0 {unit}"
    exponent = min(max(3 * math.floor(math.log10(abs(value)) / 3), min(_PREFIXES)), max(_PREFIXES))
    return f"{value / 10**exponent:.3g} {_PREFIXES[exponent]}{unit}"


def _cell(rate: float, most: float) -> str:
    share = rate / most
    ink = "color:#fff;" if share > 0.85 else ""  # where white stands out better than black
    return f'<td style="{ink}background:rgba(0,114,178,{share:.3f})">{100 * rate:.1f}</td>'
