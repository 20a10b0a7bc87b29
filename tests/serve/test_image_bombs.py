"""Files that are small and would cost much: each is refused by its headers, with little memory and little time.

What they cost is counted in a process of its own: a decoder's memory is not Python's, and its peak stays the process's.
"""

import functools
import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable

import pytest
from PIL import Image
from serving_process import ROOT

from serve.bundle import InputRecord
from serve.images import decode


MEGABYTE = 2**20
BODY = 10 * MEGABYTE
PROGRAM = """
import json, resource, struct, sys
from serve.bundle import InputRecord
from serve.images import ImageError, decode

def used():
    return resource.getrusage(resource.RUSAGE_SELF)

start, costs = used().ru_maxrss, []
while length := sys.stdin.buffer.read(4):
    data, before, said = sys.stdin.buffer.read(struct.unpack("<I", length)[0]), used(), "decoded"
    try:
        decode(data, InputRecord(channels=3, height=32, width=32))
    except ImageError as error:
        said = str(error)
    costs.append([said, (used().ru_maxrss - before.ru_maxrss) / 1024, used().ru_utime - before.ru_utime])
print(json.dumps(costs))
"""


def saved(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, kind, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(side: int, data: bytes = b"no pixel of it is ever read", *more: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    parts = (header, *more, png_chunk(b"IDAT", data), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@functools.cache
def deflated() -> bytes:
    """200 MB of zeros."""
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(bytes(MEGABYTE)) for _ in range(200)) + packer.flush()


def tags(*entries: tuple[int, int, int, int]) -> bytes:
    """A TIFF header with tags (tag, type, count, value or offset)."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4)


def crowded(entries: int, size: int) -> bytes:
    """Tags that all hold the same bytes, from the start of the file."""
    return tags(*((0x9000 + i, 1, size, 0) for i in range(entries))) + bytes(max(0, size - 12 * entries))


def tiff_with_large_tiles() -> bytes:
    """100 x 100 pixels in one tile of 30,000 x 30,000."""
    side, data = 30_000 // 16 * 16, deflated()
    start = 8 + 2 + 12 * 11 + 4
    plain = [(256, 100), (257, 100), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side), (339, 1)]
    return tags(*((tag, 4, 1, value) for tag, value in [*plain, (324, start), (325, len(data))])) + data


def jpeg_segments(*segments: bytes) -> bytes:
    """A JPEG file with more segments; without its own first one, Pillow looks into the EXIF data when it opens it."""
    data = saved("JPEG")
    return data[:2] + b"".join(segments) + data[20:]


def segment(kind: int, data: bytes) -> bytes:
    return bytes((0xFF, kind)) + struct.pack(">H", len(data) + 2) + data


def jpeg_of_many_scans() -> bytes:
    """A picture of 4000 x 4000 whose last pass over all pixels comes 3,000 times."""
    file = io.BytesIO()
    Image.new("L", (4000, 4000)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + 3000 * last + data[-2:]


def jpeg_with_exif_in_parts() -> bytes:
    exif = crowded(20_000, 240_000)
    parts = [exif[at : at + 60_000] for at in range(0, len(exif), 60_000)]
    return jpeg_segments(*(segment(0xE1, b"Exif\0\0" + part) for part in parts))


def webp_canvas(side: int) -> bytes:
    """An animation that says it is huge."""
    frame = saved("WEBP", lossless=True)[12:]
    size = struct.pack("<I", side - 1)[:3] * 2
    image = bytes(6) + struct.pack("<I", 7)[:3] * 2 + b"\x64\0\0\0" + frame
    parts = ((b"VP8X", b"\x02\0\0\0" + size), (b"ANIM", bytes(6)), (b"ANMF", image))
    body = b"WEBP" + b"".join(kind + struct.pack("<I", len(data)) + data for kind, data in parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif(at: str, side: int = 65_000) -> bytes:
    """A GIF whose screen or whose first frame is huge."""
    data = bytearray(saved("GIF"))
    start = 6 if at == "screen" else data.index(0x2C) + 5
    data[start : start + 4] = struct.pack("<HH", side, side)
    return bytes(data)


def gif_of(extension: bytes) -> bytes:
    data = saved("GIF")
    start = data.index(0x2C)
    return data[:start] + extension * ((BODY - len(data)) // len(extension)) + data[start:]


def bmp_that_skips() -> bytes:
    """16,000,000 x 1 pixels, run-length coded: go 255 rows down."""
    data = bytearray(saved("BMP"))
    start = struct.unpack_from("<I", data, 10)[0]
    struct.pack_into("<ii", data, 18, 16_000_000, 1)
    struct.pack_into("<I", data, 30, 1)
    return bytes(data[:start]) + b"\0\2\0\xff"


TOO_LARGE, PIECES, TAGS = "the image is too large", "too many pieces", "the tags (EXIF data)"
BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a PNG of 4,001 x 4,001": (TOO_LARGE, lambda: png(4_001)),
    "a PNG of 60,000 x 60,000": (TOO_LARGE, lambda: png(60_000)),
    "a PNG with 200 MB of text": ("broken", lambda: png(8, b"", png_chunk(b"zTXt", b"k\0\0" + deflated()))),
    "a PNG with 200 MB of profile": ("broken", lambda: png(8, b"", png_chunk(b"iCCP", b"k\0\0" + deflated()))),
    "a PNG of empty chunks": (PIECES, lambda: png(8, b"", png_chunk(b"abCd", b"") * (BODY // 12 - 20))),
    "a PNG with crowded EXIF data": (
        TAGS,
        lambda: png(8, zlib.compress(bytes(72)), png_chunk(b"eXIf", crowded(20_000, 240_000))),
    ),
    "a GIF with a huge screen": (TOO_LARGE, lambda: gif("screen")),
    "a GIF with a huge frame": (TOO_LARGE, lambda: gif("frame")),
    "a GIF of short comments": (PIECES, lambda: gif_of(b"\x21\xfe\x01a\0")),
    "a GIF of one long comment": (PIECES, lambda: gif_of(b"\x21\xfe" + (b"\xff" + b"a" * 255) * 1000 + b"\0")),
    "a GIF of nothing known": (PIECES, lambda: gif_of(b"\x01")),
    "a WebP of 16,383 x 16,383": (TOO_LARGE, lambda: webp_canvas(16_383)),
    "a WebP of 60,000 x 60,000": (TOO_LARGE, lambda: webp_canvas(60_000)),
    "a WebP with crowded EXIF data": (TAGS, lambda: saved("WEBP", exif=crowded(20_000, 240_000))),
    "a TIFF of large tiles": ("tiles", tiff_with_large_tiles),
    "a TIFF of crowded tags": (TAGS, lambda: crowded(20_000, 240_000)),
    "a BMP that skips 4 GB": ("run-length", bmp_that_skips),
    "a JPEG of many scans": ("more than 100 scans", jpeg_of_many_scans),
    "a JPEG of empty comments": ("segments", lambda: jpeg_segments(segment(0xFE, b"") * (BODY // 4 - 100))),
    "a JPEG of fill bytes": (PIECES, lambda: jpeg_segments(b"\xff" * (BODY - 400))),
    "a JPEG with crowded EXIF data": (TAGS, jpeg_with_exif_in_parts),
    "a JPEG with crowded MPF data": (TAGS, lambda: jpeg_segments(segment(0xE2, b"MPF\0" + crowded(5_000, 60_000)))),
}


@pytest.fixture(scope="module")
def costs() -> dict[str, tuple[str, float, float]]:
    """What is said of every bomb, by how many megabytes it raised the peak, and how many seconds it took."""
    files = {name: make() for name, (_, make) in BOMBS.items()}
    largest = max(len(data) for data in files.values())
    assert largest <= BODY
    stream = b"".join(struct.pack("<I", len(data)) + data for data in files.values())
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, input=stream, capture_output=True, timeout=120, check=True)
    return dict(zip(files, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_and_costs_little(costs: dict[str, tuple[str, float, float]], name: str) -> None:
    said, megabytes, seconds = costs[name]
    assert BOMBS[name][0] in said
    assert megabytes <= 40  # four bodies
    assert seconds <= 5  # of the processor; the worst took minutes


def test_a_picture_in_a_pictures_metadata_is_no_scan() -> None:
    """Cameras put a small JPEG into the EXIF data, and films behind the end of the picture."""
    preview = segment(0xE1, b"http://example.com/\0" + b"\xff\xda" * 500)
    film = b"\xff\xda\0\2" * 500
    assert decode(jpeg_segments(preview) + film, InputRecord(channels=1, height=8, width=8)).max() == 0
