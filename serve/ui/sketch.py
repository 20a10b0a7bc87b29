"""From a drawn digit to the image that the network takes.

People draw a digit anywhere on the paper, of any size, dark on light. A network of digits knows them as its data set
has them: of one size, in one place, often light on dark. What is drawn is laid out like that.

Shapes: h, w rows and columns of the paper; H, W of the network's image.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from serve import images
from serve.bundle import Description, InputRecord


PAPER = 280
"""Pixels of a side of the paper, on which serve/ui/sketch.js draws in black on nothing."""
MAX_CHARACTERS = 400_000
"""Of a picture as a data URL. A full sheet of paper has some 10,000, a camera's picture some 100,000."""
EMPTY = "the sketch is empty: draw a digit first"
_INK = 0.25
"""The share of black from which on a pixel has ink."""
_FULL = 0.95
"""The blackest pixels of a sample are nearly black; those of a thin pen would be grey once the sketch is made small."""


def draws(about: Description) -> bool:
    """Whether a drawing can be meant for this network: grey images of digits."""
    return about.input.channels == 1 and all(len(label) == 1 and label in "0123456789" for label in about.labels)


@dataclass(frozen=True, kw_only=True)
class Ink:
    """How the images of a data set lay out ink: its colour and the box that it fills."""

    bright: bool
    """Whether ink is light on dark."""
    rows: tuple[int, int]
    """First row of the box, and the one after its last."""
    columns: tuple[int, int]

    @classmethod
    def of(cls, samples: Sequence[np.ndarray]) -> Self:
        """Find it in samples [1, H, W]; ValueError without one that has ink.

        Ink is what there is less of. The box is what is left within the median margins.
        """
        if not samples:
            raise ValueError("this model has no samples, by which a sketch could be laid out")
        bright = float(np.median([sample.mean() for sample in samples])) < 0.5
        boxes = [box for sample in samples if (box := _box(sample[0] if bright else 1 - sample[0])) is not None]
        if not boxes:
            raise ValueError("this model's samples have no ink, by which a sketch could be laid out")
        top, bottom, left, right = (round(float(edge)) for edge in np.median(np.array(boxes), axis=0))
        return cls(bright=bright, rows=(top, bottom), columns=(left, right))


def read(url: str) -> np.ndarray:
    """Read the paper, [h, w] in [0, 1], 1 is ink, from the data URL that sketch.js makes.

    Raises ValueError for what is no such picture, and for an empty one.
    """
    side = InputRecord(channels=1, height=PAPER, width=PAPER)
    return 1 - images.decode(content(url), side)[0]


def content(url: str) -> bytes:
    """The image file in a data URL; it came from a browser, so ValueError unless it is one, and not too long."""
    head, _, body = url[: MAX_CHARACTERS + 1].partition(",")
    if head not in ("data:image/png;base64", "data:image/jpeg;base64"):
        raise ValueError("the picture must be a data URL of a PNG or JPEG file")
    if len(url) > MAX_CHARACTERS:
        raise ValueError(f"the picture is too large: at most {MAX_CHARACTERS} characters, got {len(url)}")
    try:
        return base64.b64decode(body, validate=True)
    except ValueError:  # binascii.Error is one; characters that are not ASCII give another
        raise ValueError("the picture's data URL is broken") from None


def to_image(paper: np.ndarray, wanted: InputRecord, ink: Ink) -> np.ndarray:
    """Lay the sketch on `paper` [h, w] out as the samples are: float32 [1, H, W]. ValueError if there is no ink.

    It is cut to its ink and scaled as a whole until it fills the samples' box in one direction, in the middle of it.
    """
    box = _box(paper)
    if box is None:
        raise ValueError(EMPTY)
    top, bottom, left, right = box
    cut = paper[top:bottom, left:right]
    (first, end), (begin, stop) = ink.rows, ink.columns
    scale = min((end - first) / cut.shape[0], (stop - begin) / cut.shape[1])
    height, width = cut.shape[0] * scale, cut.shape[1] * scale
    rows = _area(cut.shape[0], wanted.height, (first + end - height) / 2, scale)
    columns = _area(cut.shape[1], wanted.width, (begin + stop - width) / 2, scale)
    small = rows @ cut @ columns.T
    drawn = np.clip(small * (_FULL / max(small.max(), _INK)), 0, 1)
    return np.ascontiguousarray((drawn if ink.bright else 1 - drawn)[None], np.float32)


def _box(picture: np.ndarray) -> tuple[int, int, int, int] | None:
    """(top, bottom, left, right) of the ink, 1, in [h, w]; bottom and right are the first without. None: no ink."""
    rows, columns = (np.flatnonzero((picture > _INK).any(axis=axis)) for axis in (1, 0))
    return (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) if len(rows) else None


def _area(count: int, wanted: int, start: float, scale: float) -> np.ndarray:
    """Area averaging along one axis as a matrix [wanted, count]: pixel j of the sketch covers the pixels of the image
    from start + j * scale to start + (j + 1) * scale; what share of each, is its weight."""
    edges = start + scale * np.arange(count + 1)
    pixel = np.arange(wanted)[:, None]
    return np.clip(np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel), 0, None)
