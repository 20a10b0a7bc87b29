"""Lay the maps of a layer's channels out as tiles, and draw them as one small PNG of one bit for each neuron."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image


COLUMNS = 8
"""Tiles side by side; small pictures of steps too."""
SPIKE = (0x00, 0x80, 0xC8)
"""The page's blue, a little lighter: a PNG has one colour, and this one has contrast 4 to 1 on both papers."""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Where the maps of a layer lie in a picture, in its pixels: `zoom` for a neuron, `gap` around every map."""

    count: int
    height: int
    width: int

    @property
    def columns(self) -> int:
        """Maps side by side."""
        return min(self.count, COLUMNS)

    @property
    def rows(self) -> int:
        """Maps one under the other."""
        return -(-self.count // self.columns)

    @property
    def zoom(self) -> int:
        """So that the lines around a map of few neurons do not take its place."""
        return -(-8 // max(self.height, self.width))

    @property
    def gap(self) -> int:
        """Room for the line between two maps."""
        return max(1, round(self.zoom * max(self.height, self.width) / 16))

    @property
    def pitch(self) -> tuple[int, int]:
        """From a map to the next one below, and to the next one at its right."""
        return self.zoom * self.height + self.gap, self.zoom * self.width + self.gap

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the whole picture."""
        down, right = self.pitch
        return self.rows * down + self.gap, self.columns * right + self.gap

    def corner(self, index: int) -> tuple[int, int]:
        """Row and column of the first neuron of a map."""
        (down, right), (row, column) = self.pitch, divmod(index, self.columns)
        return row * down + self.gap, column * right + self.gap

    def paint(self, maps: np.ndarray) -> np.ndarray:
        """The picture, uint8 with 1 for a spike, from maps [count, height, width]."""
        pixels = np.zeros(self.size, np.uint8)
        for index, one in enumerate(maps):
            y, x = self.corner(index)
            big = np.kron(one, np.ones((self.zoom, self.zoom), np.uint8))
            pixels[y : y + big.shape[0], x : x + big.shape[1]] = big
        return pixels


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of pixels 0, clear, and 1, a spike: one bit each."""
    picture = Image.fromarray(pixels).convert("P")
    picture.putpalette([255, 255, 255, *SPIKE])
    file = io.BytesIO()
    picture.save(file, "PNG", bits=1, transparency=0, optimize=True)
    return file.getvalue()


def placed(file: bytes, tiles: Tiles, x: float, y: float, scale: float, *, crisp: bool) -> str:
    """A PNG in a picture: `crisp`, or, where it is smaller than its pixels, with them mixed, so that none is lost."""
    height, width = tiles.size
    style = ' style="image-rendering:pixelated"' if crisp else ""
    link = base64.b64encode(file).decode()
    return (
        f'<image x="{x:.2f}" y="{y:.2f}" width="{width * scale:.2f}" height="{height * scale:.2f}" '
        f'preserveAspectRatio="none"{style} href="data:image/png;base64,{link}"/>'
    )


def outlines(places: list[tuple[float, float, float, float]], width: float) -> str:
    """Lines around fields, which can be pointed at."""
    path = "".join(f"M{x:.1f} {y:.1f}h{w:.1f}v{h:.1f}h-{w:.1f}z" for x, y, w, h in places)
    return f'<path d="{path}" fill="transparent" stroke="var(--line)" stroke-width="{width:g}"/>'


def fields(tiles: Tiles, x: float, y: float, scale: float) -> list[tuple[float, float, float, float]]:
    """x, y, width and height of every channel's field, to the middle of the gaps."""
    down, right = tiles.pitch
    places = []
    for index in range(tiles.count):
        row, column = (place - tiles.gap / 2 for place in tiles.corner(index))
        places.append((x + column * scale, y + row * scale, right * scale, down * scale))
    return places
