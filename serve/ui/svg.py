"""Draw figures as SVG inside a card of the page. Pure functions from numbers to text.

SVG and not pictures: sharp at every size, in the colours of light and dark mode, readable to a screen reader, and what
is saved as PNG is what is seen. Colours are Okabe and Ito's, told apart by the colour-blind, and never the only mark.
Everything that a bundle brings goes through `escape`.

All steps of a figure are in it. The page tells its style sheet which step is looked at: an element of class `at t3` is
there at step 3 only, one of class `mark t3` is set off then (serve/ui/page.css).
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any


WIDTH = 420
"""Of a figure in its own units: about its size on a laptop's screen, so that 12 units of text are legible."""
FONT = 12
SNN, ANN, THIRD = "var(--snn)", "var(--other)", "var(--third)"
_PREFIXES = {-15: "f", -12: "p", -9: "n", -6: "\u00b5", -3: "m", 0: ""}
_ELLIPSIS = "\u2026"


def figure(id: str, title: str, body: str, *, data: Any, note: str = "", wide: bool = False) -> str:
    """A card with a heading, a picture and a quiet note (both HTML), and buttons that save it as PNG and as JSON.

    `data`, of JSON types, is what the picture shows, in plain numbers.
    """
    name = escape(title, quote=True)
    saves = "".join(
        f'<button type="button" class="save" data-save="{kind}" aria-label="Save {name} as {kind.upper()}">'
        f"{kind.upper()}</button>"
        for kind in ("png", "json")
    )
    quiet = f'<p class="quiet">{note}</p>' if note else ""
    return (
        f'<figure class="card{" wide" if wide else ""}" id="{escape(id, quote=True)}" data-title="{name}">'
        f'<figcaption><h3>{name}</h3><span class="saves">{saves}</span></figcaption>'
        f'<div class="drawing">{body}</div>{quiet}{embedded(data)}</figure>'
    )


def embedded(data: Any) -> str:
    """Plain numbers inside a page, for its script."""
    told = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f'<data class="numbers" hidden>{escape(told, quote=False)}</data>'


def drawing(width: float, height: float, parts: str, *, alt: str) -> str:
    """An SVG picture; `alt` says in words what it shows."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(alt, quote=True)}" '
        f'style="aspect-ratio:{width:g}/{height:g}">{parts}</svg>'
    )


def text(x: float, y: float, words: str, *, anchor: str = "start", kind: str = "", more: str = "") -> str:
    """Words at a point of their base line; `kind` is a class: strong, small, on-heat."""
    classes = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{classes}{more}>{escape(words)}</text>'


def row_name(x: float, y: float, name: str, *, characters: int, tail: bool = False) -> str:
    """A name that ends at x, cut to so many characters, the last ones where `tail`; pointed at, it tells all of it."""
    cut = short(name, characters, tail=tail)
    return f"<g><title>{escape(name)}</title>{text(x, y, cut, anchor='end')}</g>"


def rect(x: float, y: float, width: float, height: float, fill: str, *, more: str = "") -> str:
    """A filled rectangle; `more` are attributes."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.2f}" height="{height:.2f}" fill="{fill}"{more}/>'


def line(x1: float, y1: float, x2: float, y2: float, stroke: str = "var(--line)", *, more: str = "") -> str:
    """A straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}"{more}/>'


def polyline(points: list[tuple[float, float]], stroke: str, *, dash: str = "", width: float = 2) -> str:
    """A line through points; `dash` as in stroke-dasharray."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="{width:g}"{dashes}/>'


def dot(x: float, y: float, fill: str, title: str, *, radius: float = 3.5, more: str = "") -> str:
    """A point that tells its value when it is pointed at."""
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{fill}"{more}><title>{escape(title)}</title></circle>'
    )


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A plot area inside a picture; y grows upwards from zero, x from `x_least`."""

    left: float
    top: float
    width: float
    height: float
    x_most: float
    y_most: float = 1.0
    x_least: float = 0.0

    def x(self, value: float) -> float:
        """Where a value of the x axis lies; in the middle where the axis has only one."""
        span = self.x_most - self.x_least
        return self.left + self.width * ((value - self.x_least) / span if span else 0.5)

    def y(self, value: float) -> float:
        """Where a value of the y axis lies."""
        return self.top + self.height * (1 - value / self.y_most)

    @property
    def bottom(self) -> float:
        """Where zero lies."""
        return self.top + self.height

    @property
    def right(self) -> float:
        """Where the x axis ends."""
        return self.left + self.width


def percent_axis(frame: Frame) -> str:
    """Lines and numbers from 0 to 100 % at the left of a frame whose y_most is 1."""
    return "".join(
        line(frame.left, frame.y(p), frame.right, frame.y(p))
        + text(frame.left - 6, frame.y(p) + 4, f"{100 * p:.0f} %", anchor="end")
        for p in (0.0, 0.25, 0.5, 0.75, 1.0)
    )


def step_axis(frame: Frame, T: int, title: str = "time step") -> str:
    """The numbers of the steps 1..T under a frame from x_least = 1 to x_most = T; at most 16 are written."""
    every = math.ceil(T / 16)
    numbers = "".join(text(frame.x(t), frame.bottom + 16, str(t), anchor="middle") for t in range(1, T + 1, every))
    return numbers + text(frame.left + frame.width / 2, frame.bottom + 32, title, anchor="middle")


def legend(x: float, y: float, entries: list[tuple[str, str, str]]) -> str:
    """Samples of lines with their names, one under the other: (name, colour, dash)."""
    return "".join(
        polyline([(x, y + 17 * i), (x + 22, y + 17 * i)], colour, dash=dash) + text(x + 28, y + 4 + 17 * i, name)
        for i, (name, colour, dash) in enumerate(entries)
    )


def heat_cell(x: float, y: float, width: float, height: float, share: float, words: str, *, title: str = "") -> str:
    """A cell as blue as `share` (of the largest value) says, with its value written in it."""
    # Where the ink of the paper no longer stands out best: on dark paper from two thirds on, on light at the very top.
    kind = "on-heat" + " warm" * (share > 0.66) + " hot" * (share > 0.92)
    inner = f"<title>{escape(title)}</title>" if title else ""
    written = text(x + width / 2, y + height / 2 + 4, words, anchor="middle", kind=kind) if words else ""
    opacity = f' fill-opacity="{share:.3f}"'
    return f"<g>{inner}{rect(x, y, width, height, SNN, more=opacity)}{written}</g>"


def at(t: int, parts: str) -> str:
    """Parts of a picture that are there while step t is looked at."""
    return f'<g class="at t{t}">{parts}</g>'


def mark(t: int, parts: str) -> str:
    """Parts of a picture that are set off while step t is looked at; a click on them goes to it."""
    return f'<g class="mark t{t}" data-step="{t}">{parts}</g>'


def name_width(names: Iterable[str], characters: int) -> float:
    """Room for the longest of these names, at most so many characters long, and a gap."""
    return 7.2 * min(characters, max(map(len, names), default=0)) + 14


def short(words: str, characters: int, *, tail: bool = False) -> str:
    """Words, cut where they are too long for their place: to the first characters, or to the last."""
    if len(words) <= characters:
        return words
    return _ELLIPSIS + words[1 - characters :] if tail else words[: characters - 1] + _ELLIPSIS


def percent(share: float) -> str:
    """0.9834 -> "98.3 %"."""
    return f"{100 * share:.1f} %"


def si(value: float, unit: str) -> str:
    """Three digits and a prefix: 2.26e-08, "J" -> "22.6 nJ"."""
    if value == 0:
        return f"0 {unit}"
    value = float(f"{value:.3g}")  # first: 999.96 nano are 1 micro
    exponent = min(max(3 * math.floor(math.log10(abs(value)) / 3), min(_PREFIXES)), max(_PREFIXES))
    return f"{value / 10**exponent:.3g} {_PREFIXES[exponent]}{unit}"
