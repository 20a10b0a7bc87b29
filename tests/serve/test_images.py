"""Decoding: exact where nothing has to change, sensible where something has, and a ValueError for everything else."""

import io
import re
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from synthetic import png

from serve.bundle import InputRecord
from serve.images import ImageError, area, decode, encode


GREY = InputRecord(channels=1, height=8, width=8)
RGB = InputRecord(channels=3, height=6, width=4)
RGB8 = InputRecord(channels=3, height=8, width=8)
KINDS = ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"]
rng = np.random.default_rng(3)


def as_file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The image as a file's bytes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_file(size: int, depth: int, color: int, rows: bytes, *more: bytes) -> bytes:
    """A square PNG written by hand: `rows` with their filter bytes, `more` chunks before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, depth, color, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + data + chunk(b"IEND", b"")


def as_pixels(array: np.ndarray) -> np.ndarray:
    """What was decoded, [C, H, W] in [0, 1], as [H, W, C] in 0..255."""
    return np.rint(array.transpose(1, 2, 0) * 255).astype(int)


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_named_format_gives_the_picture(kind: str, mode: str) -> None:
    """Four flat quarters survive every codec but for rounding; GIF's palette has room for four colours."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4, :4], pixels[:4, 4:], pixels[4:, :4] = (255, 255, 255), (40, 80, 200), (200, 30, 10)
    if mode == "L":
        pixels[...] = pixels[..., :1]
    file = as_file(
        Image.fromarray(pixels).convert(mode), kind, **({"quality": 100} if kind in ("JPEG", "WEBP") else {})
    )
    corners = as_pixels(decode(file, RGB8))[1::5, 1::5]  # in the middle of JPEG's smallest squares of colour
    assert np.abs(corners - pixels[1::5, 1::5]).max() <= (40 if kind in ("JPEG", "WEBP") and mode == "RGB" else 3)
    assert area(file) == 64


def test_colours_become_grey_by_their_brightness() -> None:
    pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
    luma = pixels.astype(float) @ (0.299, 0.587, 0.114)  # ITU-R BT.601
    assert np.abs(as_pixels(decode(png(pixels), GREY))[..., 0] - luma).max() <= 1


def test_grey_becomes_three_equal_colours() -> None:
    pixels = rng.integers(0, 256, (8, 8), np.uint8)
    assert np.array_equal(as_pixels(decode(png(pixels), RGB8)), np.repeat(pixels[..., None], 3, -1))


def test_bits_become_black_and_white() -> None:
    bits = rng.integers(0, 2, (8, 8), np.uint8)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    assert np.array_equal(as_pixels(decode(png_file(8, 1, 0, rows), GREY))[..., 0], 255 * bits)


def test_a_palette_is_looked_up() -> None:
    palette = rng.integers(0, 256, (256, 3), np.uint8)
    indices = rng.integers(0, 256, (8, 8), np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in indices)
    file = png_file(8, 8, 3, rows, chunk(b"PLTE", palette.tobytes()))
    assert np.array_equal(as_pixels(decode(file, RGB8)), palette[indices])


def test_a_palette_may_have_transparent_colours() -> None:
    palette = rng.integers(0, 256, (4, 3), np.uint8)
    alpha = np.array([0, 255, 128, 255], np.uint8)
    indices = rng.integers(0, 4, (8, 8), np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in indices)
    file = png_file(8, 8, 3, rows, chunk(b"PLTE", palette.tobytes()), chunk(b"tRNS", alpha.tobytes()))
    over_white = (palette * (alpha[:, None] / 255) + 255 * (1 - alpha[:, None] / 255))[indices]
    assert np.abs(as_pixels(decode(file, RGB8)) - over_white).max() <= 1


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF"), ("LA", "TIFF")]
)
def test_transparency_is_laid_over_white(mode: str, kind: str) -> None:
    pixels = rng.integers(0, 256, (8, 8, len(mode)), np.uint8)
    file = as_file(Image.fromarray(pixels, mode), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    share = pixels[..., -1:] / 255
    over_white = pixels[..., :-1] * share + 255 * (1 - share)
    assert np.abs(as_pixels(decode(file, RGB8)) - over_white).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(kind: str, orientation: int) -> None:
    """EXIF 2.3, 4.6.4 A: which side of the stored picture its row 0 and its column 0 are."""
    upright = np.zeros((8, 8), np.uint8)
    upright[:, :2], upright[:2, 2:6] = 255, 128  # no turn and no mirror image is the same
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {})
    file = as_file(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif.tobytes(), **options)
    assert np.abs(as_pixels(decode(file, GREY))[..., 0] - upright).max() <= 3


def test_sixteen_bits_keep_their_upper_eight() -> None:
    grey = rng.integers(0, 2**16, (8, 8), np.uint16)
    assert np.array_equal(as_pixels(decode(png(grey), GREY))[..., 0], grey >> 8)
    assert np.array_equal(as_pixels(decode(as_file(Image.fromarray(grey), "TIFF"), GREY))[..., 0], grey >> 8)
    for channels, color in ((3, 2), (4, 6), (2, 4)):
        pixels = rng.integers(0, 2**16, (8, 8, channels), np.uint16)
        if channels in (2, 4):
            pixels[..., -1] = 2**16 - 1
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
        seen = as_pixels(decode(png_file(8, 16, color, rows), RGB8))
        colours = pixels[..., :-1] if channels in (2, 4) else pixels
        assert np.array_equal(seen, np.broadcast_to(colours >> 8, (8, 8, 3)))


def tiff_file(stored: np.ndarray, bits: int, photometric: int, orientation: int) -> bytes:
    """A grey TIFF written by hand, with `bits` of each value of `stored`, 8 x 8."""
    data = stored.astype("u1" if bits == 8 else "<u2").tobytes()
    if bits == 12:  # one after the other, the upper bits first
        data = int("".join(f"{value:012b}" for value in stored.ravel()), 2).to_bytes(96, "big")
    tags = {256: 8, 257: 8, 258: bits, 259: 1, 262: photometric, 273: 8, 274: orientation, 277: 1}
    tags |= {278: 8, 279: len(data)}
    entries = b"".join(struct.pack("<HHIHxx", tag, 3, 1, value) for tag, value in sorted(tags.items()))
    return b"II" + struct.pack("<HI", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(("bits", "photometric"), [(8, 0), (8, 1), (12, 1), (16, 0), (16, 1)])  # as Pillow has them
def test_a_tiff_is_as_bright_as_it_says(bits: int, photometric: int) -> None:
    """White is its largest value, or zero."""
    most = 2**bits - 1
    grey = rng.integers(0, most, (8, 8), endpoint=True)
    stored, seen = grey if photometric else most - grey, grey >> (bits - 8)
    for orientation, expected in ((1, seen), (6, np.rot90(seen, -1))):
        file = tiff_file(stored, bits, photometric, orientation)
        assert np.array_equal(as_pixels(decode(file, GREY))[..., 0], expected)


def test_sixteen_bits_may_have_a_transparent_grey() -> None:
    grey = np.full((8, 8), 0x1234, np.uint16)
    grey[3, 2] = 0x1200
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in grey)
    expected = np.full((8, 8), 0x12)
    expected[3, 2] = 255
    file = png_file(8, 16, 0, rows, chunk(b"tRNS", struct.pack(">H", 0x1200)))
    assert np.array_equal(as_pixels(decode(file, GREY))[..., 0], expected)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_printers_inks_become_colours(kind: str) -> None:
    inks = np.full((8, 8, 4), rng.integers(0, 256, 4), np.uint8)
    light = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:].astype(float)) / 255
    options = {"quality": 100} if kind == "JPEG" else {}
    file = as_file(Image.fromarray(inks, "CMYK"), kind, **options)
    assert np.abs(as_pixels(decode(file, RGB8)) - light).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black", "black")]
    options = {"lossless": True} if kind == "WEBP" else {}
    file = as_file(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(file)).n_frames > 1
    assert decode(file, GREY).min() == 1


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_broken_exif_block_does_not_matter() -> None:
    picture = Image.new("L", (8, 8), 77)
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 30):
        assert np.array_equal(as_pixels(decode(as_file(picture, "PNG", exif=exif), GREY)), np.full((8, 8, 1), 77))


def test_the_centre_of_a_wide_image_is_kept() -> None:
    wide = Image.new("L", (48, 16))
    wide.paste(255, (14, 0, 34, 16))  # two pixels more than the crop: the filter reaches that far
    assert decode(as_file(wide), GREY).min() == 1
    assert decode(as_file(wide.rotate(90, expand=True)), GREY).min() == 1


def test_a_larger_image_is_averaged_over() -> None:
    """A gradient stays one: bilinear means over 8 x 8 pixels each, exact but for the edges and rounding."""
    column = np.arange(64, dtype=np.uint8) * 4
    seen = as_pixels(decode(png(np.tile(column, (64, 1))), GREY))[..., 0]
    means = column.reshape(8, 8).mean(axis=1)
    assert np.abs(seen - means)[:, 1:-1].max() <= 1
    assert np.abs(seen - means).max() <= 4


def test_a_picture_in_ordinary_pieces_is_taken() -> None:
    """Encoders write PNG data in pieces of 4 KB, and TIFF in strips of a row."""
    pixels = rng.integers(0, 256, (700, 700, 3), np.uint8)
    expected = decode(png(pixels), RGB8)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels), 1)
    pieces = [chunk(b"IDAT", rows[at : at + 4096]) for at in range(0, len(rows), 4096)]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 700, 700, 8, 2, 0, 0, 0))
    cut = b"\x89PNG\r\n\x1a\n" + header + b"".join(pieces) + chunk(b"IEND", b"")
    assert len(pieces) > 300
    assert np.array_equal(decode(cut, RGB8), expected)
    for compression in ("raw", "tiff_lzw"):
        tiff = as_file(Image.fromarray(pixels), "TIFF", compression=compression, tiffinfo={278: 1})
        assert np.array_equal(decode(tiff, RGB8), expected)


@pytest.mark.parametrize("data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
@pytest.mark.parametrize("read", [lambda data: decode(data, GREY), area])
def test_what_is_no_image_is_refused_with_what_to_send(data: bytes, read: Callable[[bytes], object]) -> None:
    with pytest.raises(ImageError, match="send one of PNG, JPEG"):
        read(data)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_an_image_with_32_bit_channels_is_refused(mode: str) -> None:
    with pytest.raises(ImageError, match="32 bits"):
        decode(as_file(Image.new(mode, (8, 8)), "TIFF"), GREY)


def test_a_missing_file_is_refused_without_its_path(tmp_path: object) -> None:
    path = tmp_path / "none.png"  # type: ignore[operator]
    with pytest.raises(ImageError) as caught:
        decode(path, GREY)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of broken files as well
@given(st.data())
def test_damaged_files_give_an_image_or_an_image_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    file = bytearray(as_file(Image.fromarray(np.random.default_rng(3).integers(0, 256, (9, 9, 3), np.uint8)), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    said = ""
    try:
        array = decode(bytes(file[: data.draw(st.integers(1, len(file)))]), RGB)
    except ImageError as error:
        said = str(error)
    if said:
        assert not re.search(r"0x|/|Traceback", said)
        return
    assert array.shape == (3, 6, 4)
    assert 0 <= array.min() <= array.max() <= 1
