"""Decoding: exact where nothing has to change, sensible where something has, and a ValueError for everything else."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from synthetic import png

from serve.bundle import InputRecord
from serve.images import MAX_PIXELS, ImageError, decode, encode


GREY = InputRecord(channels=1, height=8, width=8)
RGB = InputRecord(channels=3, height=6, width=4)


def as_file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The image as a file's bytes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@given(hnp.arrays(np.uint8, (8, 8)))
def test_a_grey_image_of_the_right_size_passes_bit_exactly(pixels: np.ndarray) -> None:
    assert np.array_equal(decode(png(pixels), GREY)[0], pixels.astype(np.float32) / np.float32(255))


@given(hnp.arrays(np.uint8, (6, 4, 3)))
def test_an_rgb_image_of_the_right_size_passes_bit_exactly(pixels: np.ndarray) -> None:
    array = decode(png(pixels), RGB)
    assert array.shape == (3, 6, 4)
    assert array.dtype == np.float32
    assert np.array_equal(array.transpose(1, 2, 0), pixels.astype(np.float32) / np.float32(255))
    assert encode(array) == png(pixels)


def test_transparency_is_laid_over_white() -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.putpixel((2, 3), (0, 0, 0, 255))
    expected = np.ones((8, 8), np.float32)
    expected[3, 2] = 0
    assert np.array_equal(decode(as_file(image), GREY)[0], expected)
    palette = Image.new("P", (8, 8), 0)
    assert decode(as_file(palette, transparency=0), GREY).min() == 1


def test_exif_rotation_is_undone() -> None:
    upright = Image.new("L", (8, 8))
    upright.paste(255, (0, 0, 8, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the stored picture must turn clockwise to stand upright
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    assert np.array_equal(decode(as_file(stored, exif=exif.tobytes()), GREY)[0] > 0.5, np.asarray(upright) > 127)


def test_the_centre_of_a_wide_image_is_kept() -> None:
    wide = Image.new("L", (48, 16))
    wide.paste(255, (14, 0, 34, 16))  # two pixels more than the crop: the filter reaches that far
    assert decode(as_file(wide), GREY).min() == 1
    assert decode(as_file(wide.rotate(90, expand=True)), GREY).min() == 1


def test_sixteen_bits_keep_their_upper_eight() -> None:
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    assert np.array_equal(decode(png(pixels), GREY)[0], (pixels >> 8).astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_every_named_format_is_read(kind: str) -> None:
    assert np.allclose(decode(as_file(Image.new("RGB", (20, 30), "white"), kind), RGB), 1, atol=0.02)


@pytest.mark.parametrize("data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_what_is_no_image_is_refused_with_what_to_send(data: bytes) -> None:
    with pytest.raises(ImageError, match="send one of PNG, JPEG"):
        decode(data, GREY)


def test_an_image_with_32_bit_channels_is_refused() -> None:
    with pytest.raises(ImageError, match="32 bits"):
        decode(as_file(Image.new("F", (8, 8)), "TIFF"), GREY)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [4001, 12_000, 60_000])
def test_a_png_bomb_is_refused_before_it_is_unpacked(side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"not even compressed") + chunk(b"IEND", b"")
    assert side**2 > MAX_PIXELS
    with pytest.raises(ImageError, match="too large"):
        decode(bomb, GREY)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of broken files as well
@given(st.data())
def test_damaged_files_give_an_image_or_an_image_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"]))
    rng = np.random.default_rng(3)
    file = bytearray(as_file(Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        array = decode(bytes(file[: data.draw(st.integers(1, len(file)))]), RGB)
    except ImageError:
        return
    assert array.shape == (3, 6, 4)
    assert 0 <= array.min() <= array.max() <= 1
