"""The figures of spikes: what is drawn, read back out of the picture, is what was handed in."""

import base64
import io
import json
import re
import xml.etree.ElementTree as ET
from html import unescape
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from serve.ui.spike_figures import maps_figure, raster_figure
from serve.ui.spike_tiles import SPIKE, Tiles


SVG = "{http://www.w3.org/2000/svg}"
SHAPES = st.tuples(*(st.integers(1, most) for most in (3, 9, 4, 4)))
SPIKES = SHAPES.flatmap(lambda shape: arrays(bool, shape))


def random_spikes(*shape: int, share: float = 0.3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


def picture(card: str) -> ET.Element:
    (svg,) = re.findall(r"<svg .*?</svg>", card, re.DOTALL)
    return ET.fromstring(svg.replace("<svg ", f'<svg xmlns="{SVG[1:-1]}" ', 1))


def data(card: str) -> Any:
    (text,) = re.findall(r'<data class="numbers" hidden>([^<]*)</data>', card)
    return json.loads(unescape(text))


def groups(card: str, kind: str) -> dict[int, ET.Element]:
    """By step, the parts of class `at tN` or `mark tN`."""
    found = {}
    for group in picture(card).iter(f"{SVG}g"):
        name, _, step = group.get("class", "").partition(" t")
        if name == kind:
            assert int(step) not in found
            found[int(step)] = group
    return found


def words(element: ET.Element) -> str:
    return " ".join("".join(text.itertext()) for text in element.iter(f"{SVG}text"))


def spikes_in(image: ET.Element, tiles: Tiles) -> np.ndarray:
    """The maps [count, H, W] in a PNG, by Pillow: clear where a neuron is silent, blue where it spikes."""
    head, _, code = image.get("href", "").partition(",")
    assert head == "data:image/png;base64"
    file = Image.open(io.BytesIO(base64.b64decode(code)))
    assert (file.format, file.size) == ("PNG", tiles.size[::-1])
    pixels = np.asarray(file.convert("RGBA"))
    blue = pixels[..., 3] == 255
    assert (pixels[blue][:, :3] == SPIKE).all()
    assert (pixels[~blue][:, 3] == 0).all()
    maps, rest = [], blue.copy()
    for index in range(tiles.count):
        y, x = tiles.corner(index)
        place = slice(y, y + tiles.zoom * tiles.height), slice(x, x + tiles.zoom * tiles.width)
        neurons = blue[place].reshape(tiles.height, tiles.zoom, tiles.width, tiles.zoom)
        assert (neurons == neurons[:, :1, :, :1]).all()
        maps.append(neurons[:, 0, :, 0])
        rest[place] = False
    assert not rest.any(), "spikes between the maps"
    return np.stack(maps)


@settings(max_examples=60, deadline=None)
@given(spikes=SPIKES)
def test_the_pictures_hold_every_spike_and_no_other(spikes: np.ndarray) -> None:
    T, C, H, W = spikes.shape
    card = maps_figure("layer", spikes)
    tiles = Tiles(count=C, height=H, width=W)
    for kind in ("at", "mark"):
        steps = groups(card, kind)
        assert list(steps) == list(range(1, T + 1))
        for t, group in steps.items():
            (image,) = group.iter(f"{SVG}image")
            np.testing.assert_array_equal(spikes_in(image, tiles), spikes[t - 1])
            crisp = "image-rendering:pixelated" in image.get("style", "")
            assert crisp == (kind == "at")


@settings(max_examples=60, deadline=None)
@given(spikes=SPIKES)
def test_the_numbers_are_those_of_the_spikes(spikes: np.ndarray) -> None:
    T, C, H, W = spikes.shape
    maps, raster = data(maps_figure("layer", spikes)), data(raster_figure("layer", spikes, 7))
    for numbers in (maps, raster):
        assert (numbers["layer"], numbers["shape"]) == ("layer", [C, H, W])
        assert numbers["share_by_step"] == [spikes[t].sum() / (C * H * W) for t in range(T)]
    assert maps["spikes_by_channel_and_step"] == [[int(spikes[t, c].sum()) for t in range(T)] for c in range(C)]
    for neuron in raster["neurons"]:
        fired = spikes[:, neuron["channel"], neuron["row"], neuron["column"]]
        assert neuron["steps"] == [t + 1 for t in range(T) if fired[t]]
        assert neuron["spikes"] == len(neuron["steps"]) > 0
    totals = sorted(spikes.sum(axis=0).flatten().tolist(), reverse=True)
    active, drawn = [n for n in totals if n], [neuron["spikes"] for neuron in raster["neurons"]]
    assert (drawn[:4], len(drawn)) == (active[:4], min(7, len(active)))
    assert drawn == sorted(drawn, reverse=True)
    assert raster["never_spike"] == totals.count(0)
    assert raster["spike_at_every_step"] == totals.count(T)


@pytest.mark.parametrize("T", [1, 2, 40, 64])
@pytest.mark.parametrize("shape", [(3, 5, 4), (128, 1, 1)])
def test_a_mark_stands_for_every_spike_in_the_column_of_its_step(T: int, shape: tuple[int, int, int]) -> None:
    spikes = random_spikes(T, *shape, share=0.5)
    card = raster_figure("layer", spikes)
    neurons, columns = data(card)["neurons"], groups(card, "mark")
    assert list(columns) == list(range(1, T + 1))
    middles, rows = [], set()
    for t, column in columns.items():
        assert column.get("data-step") == str(t)
        (path,) = column.iter(f"{SVG}path")
        marks = re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h-[\d.]+z", path.get("d", ""))
        assert len(marks) == sum(t in neuron["steps"] for neuron in neurons)
        assert "".join("M{} {}h{}v{}h-{}z".format(*m, m[2]) for m in marks) == path.get("d", "")
        fired = {i for i, neuron in enumerate(neurons) if t in neuron["steps"]}
        rows |= {(float(y), i) for (_, y, _, _), i in zip(marks, sorted(fired), strict=True)}
        middles += [float(x) + float(w) / 2 for x, _, w, _ in marks[:1]]
    assert middles == sorted(set(middles))
    assert len({y for y, _ in rows}) == len({i for _, i in rows}) == len(rows) == len(neurons)


def test_the_most_active_come_first_and_of_equals_the_first() -> None:
    spikes = np.zeros((3, 2, 2, 3), bool)
    spikes[:, 1, 0, 2] = True
    spikes[:2, 0, 1, 1] = spikes[1:, 0, 0, 1] = spikes[0::2, 1, 1, 0] = True
    spikes[0, 0, 0, 0] = True

    def drawn(count: int) -> list[tuple[int, int, int]]:
        neurons = data(raster_figure("layer", spikes, count))["neurons"]
        return [(neuron["channel"], neuron["row"], neuron["column"]) for neuron in neurons]

    ranked = [(1, 0, 2), (0, 0, 1), (0, 1, 1), (1, 1, 0), (0, 0, 0)]
    assert drawn(5) == drawn(48) == ranked
    assert drawn(3) == [ranked[0], ranked[1], ranked[4]]


@given(active=st.integers(1, 200), count=st.integers(1, 60))
def test_the_upper_half_are_the_most_active_and_the_rest_is_spread_evenly(active: int, count: int) -> None:
    """Neuron n spikes at the first active - n steps."""
    spikes = (np.arange(active)[:, None] < active - np.arange(active)).reshape(active, active, 1, 1)
    neurons = [n["channel"] for n in data(raster_figure("layer", spikes, count))["neurons"]]
    assert neurons == sorted(set(neurons))
    assert len(neurons) == min(active, count)
    top = min(active, (count + 1) // 2)
    assert neurons[:top] == list(range(top))
    assert count == 1 or neurons[-1] == active - 1
    gaps = np.diff(neurons[top:])
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_of_many_channels_those_with_most_spikes_are_drawn_and_that_is_said() -> None:
    spikes = random_spikes(2, 100, 3, 3)
    spikes[:, 5] = spikes[:, 71] = True
    spikes[:, 6] = spikes[:, 99] = False
    card = maps_figure("layer", spikes)
    drawn = data(card)["drawn_channels"]
    totals = spikes.sum(axis=(0, 2, 3))
    assert drawn == sorted(drawn)
    assert len(set(drawn)) == 64
    assert {5, 71} < set(drawn)
    left = set(range(100)) - set(drawn)
    assert {6, 99} < left
    least = min(totals[drawn])
    assert max(totals[list(left)]) <= least
    assert max(c for c in drawn if totals[c] == least) < min((c for c in left if totals[c] == least), default=100)
    (image,) = groups(card, "at")[2].iter(f"{SVG}image")
    np.testing.assert_array_equal(spikes_in(image, Tiles(count=64, height=3, width=3)), spikes[1, drawn])
    assert "The 64 of 100 channels that spike most" in card
    assert len(data(card)["spikes_by_channel_and_step"]) == 100
    assert "channels that spike most" not in maps_figure("layer", spikes[:, :64])


def test_shares_and_counts_are_written_at_their_step() -> None:
    spikes = np.zeros((3, 4, 5, 10), bool)
    spikes[0, :2], spikes[1, 3, 0] = True, True
    card = maps_figure("layer", spikes)
    assert words(groups(card, "at")[1]) == "Step 1 of 3: 100 of 200 neurons spike, 50.0 %"
    assert words(groups(card, "at")[2]) == "Step 2 of 3: 10 of 200 neurons spike, 5.0 %"
    assert [words(group) for group in groups(card, "mark").values()] == [
        "step 1 50.0 %",
        "step 2 5.0 %",
        "step 3 0.0 %",
    ]
    told = picture(card).get("aria-label", "")
    assert "4 channels of 5 by 10 neurons, 3 time steps: 110 spikes of 600 possible" in told
    assert "Most active channel 0 with 50 spikes, least active channel 2 with 0." in told
    titles = [title.text for title in picture(card).iter(f"{SVG}title")]
    assert titles[3] == "channel 3: 10 spikes; by step 0, 10, 0"


@pytest.mark.parametrize("T", [1, 2, 5, 8, 9, 40, 64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (300, 1, 1), (64, 32, 32), (2, 34, 34), (20, 3, 60), (20, 60, 3)])
def test_all_of_it_is_inside_the_picture(T: int, shape: tuple[int, int, int]) -> None:
    spikes = random_spikes(T, *shape)
    for card in (maps_figure("layer", spikes), raster_figure("layer", spikes)):
        svg = picture(card)
        _, _, width, height = map(float, svg.get("viewBox", "").split())
        assert width == 420
        assert height < 1400
        for tag in ("rect", "image"):
            for part in svg.iter(f"{SVG}{tag}"):
                x, y, w, h = (float(part.get(key, "nan")) for key in ("x", "y", "width", "height"))
                assert w > 0
                assert h > 0
                assert x >= -0.1
                assert y >= -0.1
                assert x + w <= width + 0.1
                assert y + h <= height + 0.1
    size = Tiles(count=min(64, shape[0]), height=shape[1], width=shape[2]).size
    for image in picture(maps_figure("layer", spikes)).iter(f"{SVG}image"):
        stretched = float(image.get("width", "")) / size[1] / (float(image.get("height", "")) / size[0])
        assert stretched == pytest.approx(1, rel=0.01)


def test_a_silent_layer_is_told_and_not_an_error() -> None:
    spikes = np.zeros((4, 6, 2, 2), bool)
    raster = raster_figure("layer", spikes)
    assert "No neuron of this layer spikes." in words(picture(raster))
    assert data(raster)["neurons"] == []
    assert "0 spikes of 96 possible" in picture(maps_figure("layer", spikes)).get("aria-label", "")


@pytest.mark.parametrize("layer", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a&b'c", "]]>\u2028"])
def test_the_name_of_a_layer_is_text_whatever_it_is(layer: str) -> None:
    spikes = random_spikes(2, 3, 4, 4)
    for card in (maps_figure(layer, spikes), raster_figure(layer, spikes)):
        assert data(card)["layer"] == layer
        svg = picture(card)
        assert layer in svg.get("aria-label", "")
        known = {"svg", "g", "path", "rect", "line", "text", "title", "image"}
        assert {part.tag.removeprefix(SVG) for part in svg.iter()} <= known
        assert not re.findall(r"<(?:script|img)\b", card)


def test_two_figures_of_one_page_can_have_names_of_their_own() -> None:
    spikes = random_spikes(1, 1, 2, 2)
    for make, usual in ((maps_figure, "spike-maps"), (raster_figure, "spike-raster")):
        assert f'id="{usual}"' in make("layer", spikes)
        assert f'id="{usual}"' not in make("layer", spikes, id="other")
