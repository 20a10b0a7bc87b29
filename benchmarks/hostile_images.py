"""Malformed image files: cut, damaged, of no image, and small files of enormous pictures."""

import functools
import io
import struct
import zlib
from collections.abc import Callable
from random import Random

from hostile_case import ANY, REFUSED, Case, Target, junk, message, upload
from PIL import Image, PngImagePlugin


FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P"),
    "TIFF": ("1", "L", "RGB", "RGBA", "CMYK", "I;16", "F"),
}
CUT_OR_NOT = ANY
NO_IMAGES = (
    b"",
    b"\x00",
    b"hello",
    b"<html><body>no</body></html>",
    b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>',
    b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n(%pipe%id) (r) file\n",
    b"PK\x03\x04" + bytes(60),
    b"\x7fELF\x02\x01\x01" + bytes(60),
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"GIF89a",
    b"BM",
    b"II*\x00\x08\x00\x00\x00",
    b"MM\x00*\xff\xff\xff\xff",
    b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n",
    b"\x00\x00\x00\x20ftypavif",
    b"https://example.com/picture.png",
)


@functools.cache
def picture(format: str, mode: str, size: int, seed: int) -> bytes:
    """A whole image file of noise."""
    noise = Random(seed).randbytes(3 * size * size)
    image = Image.frombytes("RGB", (size, size), noise)
    wide = Image.frombytes("I;16", (size, size), noise[: 2 * size * size]) if mode == "I;16" else image.convert(mode)
    file = io.BytesIO()
    wide.save(file, format)
    return file.getvalue()


def some_picture(chance: Random) -> tuple[str, bytes]:
    """A name and a whole image file."""
    format = chance.choice(FORMATS)
    mode, size = chance.choice(MODES[format]), chance.choice((1, 8, 33, 150))
    return f"{format} {mode} {size}x{size}", picture(format, mode, size, chance.randrange(4))


def truncated(chance: Random, target: Target) -> Case:
    """The first bytes of an image file."""
    name, whole = some_picture(chance)
    cut = chance.randrange(len(whole))
    return Case(about=f"{name} cut at {cut} of {len(whole)}", parts=(upload(whole[:cut]),), expect=CUT_OR_NOT)


def damaged(chance: Random, target: Target) -> Case:
    """An image file with some bytes changed."""
    name, whole = some_picture(chance)
    bytes_ = bytearray(whole)
    changed = chance.randint(1, 20)
    for _ in range(changed):
        bytes_[chance.randrange(min(len(bytes_), chance.choice((40, len(bytes_)))))] = chance.randrange(256)
    return Case(about=f"{name}, {changed} bytes changed", parts=(upload(bytes(bytes_)),), expect=ANY)


def no_image(chance: Random, target: Target) -> Case:
    """A file that is no image."""
    content = chance.choice((*NO_IMAGES, junk(chance, 5000)))
    type = chance.choice(("image/png", "image/jpeg", "image/svg+xml", "application/octet-stream", "text/html"))
    if chance.random() < 0.3:
        return Case(about=f"no image, raw: {content[:20]!r}", parts=(message(content, type=type),), expect=REFUSED)
    return Case(about=f"no image: {content[:20]!r}", parts=(upload(content, type=type),), expect=REFUSED)


def bomb(chance: Random, target: Target) -> Case:
    """A small file of a picture with far too many pixels."""
    name = chance.choice(list(BOMBS))
    expect = ANY if name in HARMLESS else REFUSED
    content = BOMBS[name]()
    if chance.random() < 0.3:
        return Case(about=f"bomb, raw: {name}", parts=(message(content, type="image/png"),), expect=expect)
    return Case(about=f"bomb: {name}", parts=(upload(content),), expect=expect)


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@functools.cache
def deflated_bomb() -> bytes:
    """400 million pixels that are really there, in 50 kB."""
    packer = zlib.compressobj(9)
    row = bytes(20_000 // 8 + 1)
    packed = b"".join(packer.compress(row) for _ in range(20_000)) + packer.flush()
    return _png(20_000, 20_000, packed)


@functools.cache
def text_bomb() -> bytes:
    """A tiny picture with 100 MB of compressed text."""
    about = PngImagePlugin.PngInfo()
    about.add_text("comment", "a" * 100_000_000, zip=True)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=about)
    return file.getvalue()


def _png(width: int, height: int, packed: bytes = b"", depth: int = 1) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def _jpeg() -> bytes:
    """A JPEG file whose frame header says 65,500 x 65,500."""
    whole = picture("JPEG", "RGB", 8, 0)
    at = whole.index(b"\xff\xc0") + 5
    return whole[:at] + struct.pack(">HH", 65_500, 65_500) + whole[at + 4 :]


def _gif() -> bytes:
    """A GIF file whose screen and frame are 65,535 x 65,535."""
    size = struct.pack("<HH", 65_535, 65_535)
    return b"GIF89a" + size + b"\x80\x00\x00" + bytes(6) + b",\0\0\0\0" + size + b"\x00\x02\x02D\x01\x00;"


def _bmp() -> bytes:
    whole = picture("BMP", "RGB", 8, 0)
    return whole[:18] + struct.pack("<ii", 100_000, 100_000) + whole[26:]


def _tiff() -> bytes:
    """A TIFF file whose directory says 100,000 x 100,000."""
    tags = [(256, 4, 100_000), (257, 4, 100_000), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 4, 100_000), (279, 4, 1)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", len(tags)) + entries + bytes(4)


def _webp() -> bytes:
    """A lossless WebP file whose header says 16,384 x 16,384."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "WEBP", lossless=True)
    whole = file.getvalue()
    at = whole.index(b"VP8L") + 9  # behind the chunk's name, its length and 0x2f
    return whole[:at] + struct.pack("<I", 2**14 - 1 | (2**14 - 1) << 14) + whole[at + 4 :]


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG header of 60,000 x 60,000": lambda: _png(60_000, 60_000),
    "PNG header of 2^31-1 x 2^31-1": lambda: _png(2**31 - 1, 2**31 - 1),
    "PNG of 20,000 x 20,000, all there": deflated_bomb,
    "PNG header of 4,001 x 4,000, 16 bits": lambda: _png(4_001, 4_000, zlib.compress(bytes(100)), depth=16),
    "PNG of no pixels": lambda: _png(0, 0),
    "PNG with 100 MB of text": text_bomb,
    "JPEG header of 65,500 x 65,500": _jpeg,
    "GIF of 65,535 x 65,535": _gif,
    "BMP of 100,000 x 100,000": _bmp,
    "TIFF of 100,000 x 100,000": _tiff,
    "WebP header of 16,384 x 16,384": _webp,
}
HARMLESS = ("PNG with 100 MB of text",)
"""Only what must not be unpacked is too large: a server may do without it."""
