"""From a drawn digit to the image that the network takes."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from serve.bundle import InputRecord, read
from serve.ui import sketch
from serve.ui.sketch import PAPER, Ink


Stroke = list[tuple[float, float]]
MNIST = InputRecord(channels=1, height=28, width=28)
CENTRED = Ink(bright=True, rows=(4, 24), columns=(5, 23))


def arc(x: float, y: float, width: float, height: float, start: float, end: float) -> Stroke:
    """Part of an ellipse, angles in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, end, 40))
    return [(x + width * np.cos(a), y + height * np.sin(a)) for a in angles]


# On paper of size 1 x 1.
DIGITS: dict[int, list[Stroke]] = {
    0: [arc(0.5, 0.5, 0.26, 0.38, 0, 360)],
    1: [[(0.36, 0.25), (0.52, 0.1), (0.52, 0.9)]],
    2: [[*arc(0.5, 0.3, 0.25, 0.2, 180, 400), (0.25, 0.9), (0.78, 0.9)]],
    4: [[(0.55, 0.1), (0.22, 0.62), (0.8, 0.62)], [(0.6, 0.4), (0.6, 0.92)]],
    5: [[(0.75, 0.1), (0.3, 0.1), (0.28, 0.45), *arc(0.48, 0.65, 0.26, 0.24, 230, 500)]],
    6: [[(0.62, 0.08), *arc(0.55, 0.5, 0.27, 0.4, 230, 180), *arc(0.5, 0.7, 0.22, 0.2, 180, 540)]],
    7: [[(0.22, 0.12), (0.78, 0.12), (0.42, 0.92)]],
    9: [[*arc(0.5, 0.3, 0.22, 0.2, 0, 360), (0.72, 0.3), (0.7, 0.6), (0.6, 0.92)]],
}


def drawn(strokes: list[Stroke], *, scale: float = 1, move: tuple[int, int] = (0, 0), pen: float = 31) -> np.ndarray:
    """The paper, [h, w] in [0, 1], 1 is ink: the strokes made smaller around the middle, and moved by whole pixels."""
    paper = Image.new("L", (PAPER, PAPER), 0)
    brush, radius = ImageDraw.Draw(paper), pen / 2
    for stroke in strokes:
        points = [tuple((p - 0.5) * scale * PAPER + PAPER / 2 for p in point) for point in stroke]
        brush.line(points, fill=255, width=round(pen), joint="curve")
        for x, y in points:
            brush.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
    return np.roll(np.asarray(paper, np.float32) / 255, move, axis=(1, 0))


def url(picture: Image.Image, kind: str = "PNG") -> str:
    """The picture as a data URL."""
    file = io.BytesIO()
    picture.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.mark.parametrize("scale", [1, 0.7])
def test_a_drawn_digit_is_told_by_its_nearest_neighbours_in_the_data_set(scale: float) -> None:
    """By those, and not by a network: what is tried is how the sketch is laid out."""
    datasets, neighbors = pytest.importorskip("sklearn.datasets"), pytest.importorskip("sklearn.neighbors")
    digits = datasets.load_digits()
    images = (digits.images / 16).astype(np.float32)
    judge = neighbors.KNeighborsClassifier(5).fit(images.reshape(len(images), -1), digits.target)
    ink = Ink.of([image[None] for image in images[:20]])
    wanted = InputRecord(channels=1, height=8, width=8)
    laid_out = [sketch.to_image(drawn(strokes, scale=scale), wanted, ink) for strokes in DIGITS.values()]
    assert judge.predict(np.reshape(laid_out, (len(DIGITS), -1))).tolist() == list(DIGITS)


@pytest.mark.parametrize("digit", DIGITS)
def test_it_does_not_matter_where_on_the_paper(digit: int) -> None:
    image = sketch.to_image(drawn(DIGITS[digit], scale=0.5), MNIST, CENTRED)
    moved = sketch.to_image(drawn(DIGITS[digit], scale=0.5, move=(-55, 40)), MNIST, CENTRED)
    np.testing.assert_array_equal(moved, image)


@pytest.mark.parametrize("digit", DIGITS)
def test_it_hardly_matters_how_large(digit: int) -> None:
    large = sketch.to_image(drawn(DIGITS[digit], pen=30), MNIST, CENTRED)
    small = sketch.to_image(drawn(DIGITS[digit], scale=0.5, pen=15), MNIST, CENTRED)
    assert abs(large - small).mean() < 0.02


@pytest.mark.parametrize("digit", DIGITS)
def test_the_ink_fills_the_samples_box_in_one_direction_and_lies_in_its_middle(digit: int) -> None:
    image = sketch.to_image(drawn(DIGITS[digit], scale=0.6), MNIST, CENTRED)[0]
    rows, columns = (np.flatnonzero(image.max(axis=axis) > 0) for axis in (1, 0))
    (top, bottom), (left, right) = CENTRED.rows, CENTRED.columns
    assert rows[0] >= top
    assert rows[-1] < bottom
    assert columns[0] >= left
    assert columns[-1] < right
    assert np.ptp(rows) + 1 == bottom - top or np.ptp(columns) + 1 == right - left
    assert abs((rows[0] - top) - (bottom - 1 - rows[-1])) <= 1
    assert abs((columns[0] - left) - (right - 1 - columns[-1])) <= 1
    assert image.max() == pytest.approx(0.95)


def test_ink_keeps_its_amount_when_the_sketch_is_made_small() -> None:
    """Area averaging: a quarter of the sheet is black, so is a quarter of the box."""
    paper = np.zeros((PAPER, PAPER), np.float32)
    paper[40:240, 40:240] = np.tile([[1, 0], [0, 0]], (100, 100))
    paper[40, 40:240] = paper[239, 40:240] = paper[40:240, 40] = paper[40:240, 239] = 1
    ink = Ink(bright=True, rows=(4, 24), columns=(4, 24))
    box = sketch.to_image(paper, MNIST, ink)[0, 5:23, 5:23]  # without the frame
    np.testing.assert_allclose(box, box.mean(), atol=1e-6)


def test_dark_ink_on_light_gives_the_negative() -> None:
    paper = drawn(DIGITS[4])
    light = sketch.to_image(paper, MNIST, CENTRED)
    dark = sketch.to_image(paper, MNIST, Ink(bright=False, rows=CENTRED.rows, columns=CENTRED.columns))
    np.testing.assert_allclose(dark, 1 - light, atol=1e-6)


@given(st.floats(0.02, 1), st.integers(1, 60), st.integers(1, 60), st.booleans())
def test_whatever_is_drawn_gives_an_image(strength: float, height: int, width: int, bright: bool) -> None:
    paper = np.zeros((PAPER, PAPER), np.float32)
    paper[100 : 100 + height, 90 : 90 + width] = strength
    ink = Ink(bright=bright, rows=(4, 24), columns=(5, 23))
    if strength <= 0.25:
        with pytest.raises(ValueError, match="the sketch is empty: draw a digit first"):
            sketch.to_image(paper, MNIST, ink)
        return
    image = sketch.to_image(paper, MNIST, ink)
    assert image.shape == (1, 28, 28)
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 1


@pytest.mark.parametrize("bright", [True, False])
def test_the_samples_tell_how_ink_is_laid_out(bright: bool) -> None:
    samples = []
    for top, left in ((2, 3), (3, 2), (9, 3)):  # the third is another than most
        sample = np.zeros((1, 28, 28), np.float32)
        sample[0, top:20, left:25] = 0.9
        sample[0, top + 1 : 19, left + 1 : 24] = 0.1  # a frame: most of it is paper
        samples.append(sample if bright else 1 - sample)
    assert Ink.of(samples) == Ink(bright=bright, rows=(3, 20), columns=(3, 25))


@pytest.mark.parametrize("samples", [[], [np.zeros((1, 8, 8), np.float32)]])
def test_without_ink_in_the_samples_nothing_can_be_laid_out(samples: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="by which a sketch could be laid out"):
        Ink.of(samples)


def test_a_browsers_picture_is_read_as_ink() -> None:
    sheet = Image.new("RGBA", (PAPER, PAPER), (0, 0, 0, 0))
    sheet.paste((0, 0, 0, 255), (100, 50, 140, 200))
    paper = sketch.read(url(sheet))
    assert paper.shape == (PAPER, PAPER)
    expected = np.zeros((PAPER, PAPER))
    expected[50:200, 100:140] = 1
    np.testing.assert_allclose(paper, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("hostile", "why"),
    [
        ("", "must be a data URL of a PNG or JPEG file"),
        ("http://example.org/a.png", "must be a data URL of a PNG or JPEG file"),
        ("file:///etc/passwd", "must be a data URL of a PNG or JPEG file"),
        ("data:image/svg+xml;base64,PHN2Zy8+", "must be a data URL of a PNG or JPEG file"),
        ("data:image/png;base64,!!!", "data URL is broken"),
        ("data:image/png;base64,é", "data URL is broken"),
        ("data:image/png;base64,", "the image is empty"),
        ("data:image/png;base64,AAAA", "the file is not an image"),
        ("data:image/png;base64," + "A" * 400_000, "too large: at most 400000 characters, got 400022"),
        (url(Image.new("1", (5000, 5000))), "the image is too large"),
    ],
)
def test_what_is_no_picture_of_the_paper_is_refused(hostile: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        sketch.read(hostile)


def test_only_digits_in_grey_are_drawn(bundle_dir: Path) -> None:
    about = read(bundle_dir).about
    assert not sketch.draws(about)
    digits = about.model_copy(update={"labels": ("0", "1", "7")})
    assert sketch.draws(digits)
    assert not sketch.draws(digits.model_copy(update={"input": InputRecord(channels=3, height=8, width=8)}))
    assert not sketch.draws(digits.model_copy(update={"labels": ("0", "10")}))
    assert not sketch.draws(digits.model_copy(update={"labels": ("0", "²")}))
