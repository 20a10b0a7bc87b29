"""The figures of the tab "Spikes": where in a layer neurons spike at each step, and when the busiest of them do.

Shapes: spikes are bool [T, C, H, W] of T time steps and the C maps of H rows and W columns of one LIF layer;
[T, N, 1, 1] for N neurons without a map. Channels, rows and columns count from 0, steps from 1.
"""

from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from serve.ui.spike_tiles import COLUMNS, Tiles, fields, outlines, placed, png
from serve.ui.svg import SNN, WIDTH, at, drawing, figure, line, mark, percent, rect, short, text


CHANNELS = 64
"""How many maps are drawn; the JSON has all."""
NEURONS = 48
TALLEST = 480
"""In units of the picture, of the maps at one step."""


def maps_figure(layer: str, spikes: np.ndarray, *, id: str = "spike-maps") -> str:
    """The maps of a layer's channels at the step that is looked at, and small beside it those of all steps."""
    T, C, H, W = spikes.shape
    by_channel = spikes.sum(axis=(2, 3)).T
    drawn = sorted(largest(by_channel.sum(axis=1), CHANNELS))
    tiles = Tiles(count=len(drawn), height=H, width=W)
    scale = min(WIDTH / tiles.size[1], TALLEST / tiles.size[0])
    files = [png(tiles.paint(maps)) for maps in spikes[:, drawn]]
    top = 24
    large = []
    for t, file in enumerate(files, 1):
        count = int(spikes[t - 1].sum())
        words = f"Step {t} of {T}: {count:,} of {C * H * W:,} neurons spike, {percent(count / (C * H * W))}"
        large.append(at(t, text(0, 14, words, kind="strong") + placed(file, tiles, 0, top, scale, crisp=True)))
    told = [f"channel {c}: {by_channel[c].sum():,} spikes; by step {listed(by_channel[c])}" for c in drawn]
    lines = "".join(
        f"<g><title>{escape(words)}</title>{outlines([field], 1)}</g>"
        for words, field in zip(told, fields(tiles, 0, top, scale), strict=True)
    )
    height = top + tiles.size[0] * scale
    strip, height = small_steps(files, spikes, tiles, height + 14)
    note = f"A field is a channel of {H} × {W} neurons; blue are those that spike."
    if H * W == 1:
        note = "A field is a neuron; blue are those that spike."
    if len(drawn) < C:
        note = f"The {len(drawn)} of {C} channels that spike most, in order of their number. " + note
    data = described(layer, spikes) | {"drawn_channels": drawn, "spikes_by_channel_and_step": by_channel.tolist()}
    parts = "".join(large) + lines + strip
    return figure(
        id,
        f"Where {short(layer, 40)} spikes",
        drawing(WIDTH, height, parts, alt=maps_in_words(layer, spikes)),
        data=data,
        note=note,
    )


def small_steps(files: list[bytes], spikes: np.ndarray, tiles: Tiles, top: float) -> tuple[str, float]:
    """A small picture of every step with the share of neurons that spike at it, and where the last of them ends."""
    T = len(files)
    across = min(T, COLUMNS) if T > 4 else 4
    room = WIDTH / across
    width = room - 8
    scale = min(width / tiles.size[1], width / tiles.size[0])
    tall = tiles.size[0] * scale
    parts = []
    for t, (file, share) in enumerate(zip(files, shares(spikes), strict=True), 1):
        row, column = divmod(t - 1, across)
        x, y = column * room, top + row * (tall + 40)
        frame = rect(x + 1, y, room - 2, tall + 36, "transparent", more=' class="frame"')
        middle = x + room / 2
        words = text(middle, y + 13, str(t) if across > 4 else f"step {t}", anchor="middle", kind="strong")
        corner = middle - tiles.size[1] * scale / 2, y + 18
        inner = placed(file, tiles, *corner, scale, crisp=False)
        inner += outlines(fields(tiles, *corner, scale), 0.5)
        share_words = text(middle, y + tall + 31, percent(share), anchor="middle", kind="small")
        parts.append(mark(t, frame + words + inner + share_words))
    return "".join(parts), top + -(-T // across) * (tall + 40)


def raster_figure(layer: str, spikes: np.ndarray, count: int = NEURONS, *, id: str = "spike-raster") -> str:
    """Neurons that spike, each in a row: a mark for every step at which it does, and how many spikes they are.

    Half of them are the most active ones, half are evenly many of all ranks down to the least active: in a layer of
    which hundreds spike at every step, the most active ones are all alike. Of equals the first comes first.
    """
    T, C, H, W = spikes.shape
    by_neuron = spikes.reshape(T, -1)
    totals = by_neuron.sum(axis=0)
    ranked = [i for i in largest(totals, totals.size) if totals[i]]
    chosen = [ranked[rank] for rank in ranks(len(ranked), count)]
    rows = [Row(place=place_of(i, (C, H, W)), fired=by_neuron[:, i]) for i in chosen]
    never, always = C * H * W - len(ranked), int((totals == T).sum())
    note = f"Of {C * H * W:,} neurons {never:,} never spike and {always:,} spike at every step."
    if len(chosen) < len(ranked):
        top = (count + 1) // 2
        note += (
            f" The {top} most active of the {len(ranked):,} that spike, and {count - top} spread evenly over the rest."
        )
    data = described(layer, spikes) | {
        "neurons": [
            dict(zip(("channel", "row", "column"), row.place, strict=True)) | {"spikes": row.total, "steps": row.steps}
            for row in rows
        ],
        "never_spike": never,
        "spike_at_every_step": always,
    }
    body, height = raster(rows, T, maps=H * W > 1) if rows else (text(0, 24, "No neuron of this layer spikes."), 40)
    alt = f"{layer}: {note}"
    if rows:
        alt = f"{layer}: {len(rows)} neurons with {rows[0].total} to {rows[-1].total} spikes in {T} steps. {note}"
    title = f"When neurons of {short(layer, 40)} spike"
    return figure(id, title, drawing(WIDTH, height, body, alt=alt), data=data, note=note)


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """A neuron in a raster."""

    place: tuple[int, int, int]
    """Channel, row, column."""
    fired: np.ndarray
    """bool [T]."""

    @property
    def total(self) -> int:
        """How many spikes."""
        return int(self.fired.sum())

    @property
    def steps(self) -> list[int]:
        """When it spikes."""
        return [int(t) + 1 for t in np.flatnonzero(self.fired)]


def raster(rows: list[Row], T: int, *, maps: bool) -> tuple[str, float]:
    """The parts of a raster and its height; without maps a neuron is named by one number."""
    high, top = 13, 36
    names = {"channel": 46, "row": 76, "col.": 106} if maps else {"neuron": 46}
    left, right = max(names.values()) + 12, WIDTH - 66
    column = (right - left) / T
    bottom = top + high * len(rows)
    parts = [text(x, top - 8, name, anchor="end", kind="small") for name, x in names.items()]
    parts.append(text(WIDTH, top - 8, "spikes", anchor="end", kind="small"))
    for i, row in enumerate(rows):
        y = top + high * i
        parts.append(line(left, y + high / 2, right, y + high / 2))
        for number, edge in zip(row.place, names.values(), strict=False):
            parts.append(text(edge, y + high - 2.5, str(number), anchor="end", kind="small"))
        parts.append(rect(right + 10, y + 3, 34 * row.total / T, high - 6, SNN))
        parts.append(text(WIDTH, y + high - 2.5, str(row.total), anchor="end", kind="small"))
    every = -(-T * 20 // int(right - left))  # so that the numbers of the steps do not meet
    width = min(0.7 * column, 10)
    for t in range(1, T + 1):
        x = left + column * (t - 1)
        ticks = "".join(
            f"M{x + (column - width) / 2:.1f} {top + high * i + 2}h{width:.1f}v{high - 4}h-{width:.1f}z"
            for i, row in enumerate(rows)
            if row.fired[t - 1]
        )
        over = 20 if every == 1 else 3
        inner = rect(x - 1, top - over, column + 2, bottom - top + over + 2, "transparent", more=' class="frame"')
        if (t - 1) % every == 0:
            inner += text(x + column / 2, top - 8, str(t), anchor="middle", kind="strong")
        parts.append(at(t, text((left + right) / 2, 12, f"time step {t} of {T}", anchor="middle")))
        parts.append(mark(t, inner + f'<path d="{ticks}" fill="{SNN}"/>'))
    return "".join(parts), bottom + 6


def ranks(active: int, count: int) -> list[int]:
    """Which of `active` neurons, the most active first, are drawn: see raster_figure."""
    if active <= count:
        return list(range(active))
    top = (count + 1) // 2
    return [*range(top), *np.linspace(top, active - 1, count - top + 1).round().astype(int)[1:].tolist()]


def largest(counts: np.ndarray, most: int) -> list[int]:
    """Where the largest counts stand, from the largest down; of equals the first comes first."""
    return [int(index) for index in np.argsort(-counts.astype(np.int64), kind="stable")[:most]]


def place_of(index: int, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Channel, row and column of a neuron."""
    _, height, width = shape
    return index // (height * width), index // width % height, index % width


def shares(spikes: np.ndarray) -> list[float]:
    """Of all neurons, those that spike at each step."""
    return [float(one.mean()) for one in spikes]


def described(layer: str, spikes: np.ndarray) -> dict[str, Any]:
    """What both figures' JSON begins with."""
    return {"layer": layer, "shape": list(spikes.shape[1:]), "share_by_step": shares(spikes)}


def maps_in_words(layer: str, spikes: np.ndarray) -> str:
    """What the maps show, for who does not see them."""
    T, C, H, W = spikes.shape
    by_channel, by_step = spikes.sum(axis=(0, 2, 3)), spikes.sum(axis=(1, 2, 3))
    total, size = int(by_channel.sum()), T * C * H * W
    words = f"Layer {layer}, {C} channels of {H} by {W} neurons, {T} time steps: {total:,} spikes of {size:,} possible."
    if not total:
        return words
    most, least = int(by_channel.argmax()), int(by_channel.argmin())
    first, last = percent(float(spikes[0].mean())), percent(float(spikes[-1].mean()))
    return (
        f"{words} {first} of the neurons spike at the first step, {last} at the last, most at step "
        f"{int(by_step.argmax()) + 1}. Most active channel {most} with {by_channel[most]:,} spikes, least active "
        f"channel {least} with {by_channel[least]:,}."
    )


def listed(counts: np.ndarray) -> str:
    """Counts, one after another."""
    return ", ".join(f"{count:,}" for count in counts)
