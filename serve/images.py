"""From the bytes of an image file to the array that the network takes. The bytes are foreign: every limit is here.

What a file may cost is known from its headers, before a pixel is decompressed: `MAX_PIXELS` bounds what Pillow's
decoders write, and Pillow bounds the text inside PNG files. Left are, each refused here:
- a TIFF whose tiles are larger than its image: the decoder fills a whole tile before it cuts it;
- a progressive JPEG that paints the same picture over and over;
- a run-length coded BMP, which may skip gigabytes and is decoded in Python, byte by byte;
- millions of tiny segments, each a turn of a loop in Python: a GIF of nothing but comments took minutes;
- tags of TIFF, EXIF and MPF whose thousands of entries point at the same bytes: every entry gets its copy.
"""

import io
import re
import struct
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from serve.bundle import InputRecord


# Formats whose decoders live inside Pillow; others (EPS, for one) would start programs of this machine.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 16_000_000
MAX_SCANS = 100
"""Passes over a progressive JPEG; encoders make about ten. As many as libtiff allows for JPEG inside TIFF."""
MAX_SEGMENTS = 10_000
"""Parts of a JPEG file; cameras write some dozens."""
SEND = f"send one of {', '.join(FORMATS)}, at most {MAX_PIXELS // 10**6} megapixels"
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
# In JPEG's compressed data, FF is followed by 00 or a restart marker; anything else begins a segment with a length,
# but for 01 and D8.
_SEGMENT = re.compile(rb"\xff+([\x02-\xcf\xd9-\xfe])")
_SCAN, _END = 0xDA, 0xD9
_EXIF, _MPF = b"Exif\0\0", b"MPF\0"  # how an APP1 and an APP2 segment of tags begin
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """Bytes that are not an image that the server takes; the message says what to send."""


class _Metered(io.BytesIO):
    """A file that is read in so many pieces only (of 512 bytes on average; those of ordinary files are larger), and
    not again and again."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._pieces = 4000 + len(data) // 512
        self._bytes = 2**26 + 16 * len(data)  # Pillow reads 64 KB for every strip of a plain TIFF

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as BytesIO does; ImageError when too much was read."""
        data = super().read(size)
        self._pieces -= 1
        self._bytes -= len(data)
        if self._pieces < 0 or self._bytes < 0:
            raise ImageError(f"the image file is in too many pieces; save it again, {SEND}")
        return data


def decode(source: bytes | Path, wanted: InputRecord) -> np.ndarray:
    """Decode an image file to float32 [C, H, W] in [0, 1].

    Turned as its EXIF data say; transparency is laid over white; converted to grey or RGB; scaled so that its short
    side fits and cropped around the centre. An image that already has the size and the mode is only divided by 255.
    Of 16 bits, the upper eight; of an animation, the first frame. Raises ImageError.
    """
    try:
        image = _flatten(_open(source)).convert("L" if wanted.channels == 1 else "RGB")
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders answer broken files with a dozen types, struct.error among them
        raise _broken(error) from None
    if image.size != (wanted.width, wanted.height):
        image = ImageOps.fit(image, (wanted.width, wanted.height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.uint8).reshape(wanted.height, wanted.width, wanted.channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32) / np.float32(255)


def area(source: bytes) -> int:
    """Width times height by the file's header, from which nothing is decompressed. Raises ImageError."""
    try:
        with _header(source) as image:
            return image.width * image.height
    except ImageError:
        raise
    except Exception as error:
        raise _broken(error) from None


def encode(array: np.ndarray) -> bytes:
    """Encode an image [C, H, W] in [0, 1], C = 1 or 3, as PNG: what the network saw, for showing."""
    pixels = np.rint(array * 255).astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def _open(source: bytes | Path) -> Image.Image:
    """The loaded image, upright."""
    with _header(source) as image:
        image.load()
        for name in ("exif", "Raw profile type exif"):
            _check_tags(_exif_bytes(image.info.get(name, b"")))
        # Not ImageOps.exif_transpose: that writes the EXIF data anew, and reads all of them for it.
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        upright = _sixteen_bits(image)
        return upright if turn is None else upright.transpose(turn)


def _header(source: bytes | Path) -> Image.Image:
    """The image with its header read, and found to keep the limits."""
    data = source if isinstance(source, bytes) else source.read_bytes()
    if not data:
        raise ImageError(f"the image is empty; {SEND}")
    if data[:2] == b"\xff\xd8":
        _check_segments(data)  # first: Pillow reads tags when it opens a file
    if data[:4] in (b"II*\0", b"MM\0*"):
        _check_tags(data)
    try:
        image = Image.open(_Metered(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"the image is too large; {SEND}") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"the image is too large ({width} x {height} pixels); {SEND}")
    if image.format == "TIFF" and _tile(image) > MAX_PIXELS:
        raise ImageError(f"the tiles of the TIFF image are too large; {SEND}")
    if any(tile.codec_name == "bmp_rle" for tile in image.tile):
        raise ImageError("the BMP image is run-length coded; save it uncompressed, or as PNG")
    return image


def _tile(image: Image.Image) -> int:
    """Pixels of a TIFF's tile, 0 without tiles."""
    tags = getattr(image, "tag_v2", {})
    return int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0))


def _sixteen_bits(image: Image.Image) -> Image.Image:
    """A TIFF of more than 8 bits with black 0 and white 65535.

    Pillow leaves 12 bits at 4095, and inverts none of 16 whose white is zero.
    """
    tags = getattr(image, "tag_v2", {})
    bits, inverted = int(np.ravel(tags.get(_BITS, 16))[0]), tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if not image.mode.startswith("I;16") or (bits == 16 and not inverted):
        return image
    values = np.asarray(image).astype(np.uint16)
    return Image.fromarray((2**bits - 1 - values if inverted else values) << (16 - bits))


def _check_segments(data: bytes) -> None:
    """Walk over the segments of a JPEG file to its end, not into those of a picture inside its metadata."""
    scans, at, exif = 0, 2, b""
    for _ in range(MAX_SEGMENTS):
        segment = _SEGMENT.search(data, at)
        if segment is None or segment[1][0] == _END or segment.end() + 2 > len(data):
            return _check_tags(exif)
        begin = segment.end() + 2
        at = segment.end() + struct.unpack_from(">H", data, segment.end())[0]
        if data.startswith(_EXIF, begin):
            exif += data[begin + len(_EXIF) : at]  # Pillow joins them too
        elif data.startswith(_MPF, begin):
            _check_tags(data[begin + len(_MPF) : at])
        scans += segment[1][0] == _SCAN
        if scans > MAX_SCANS:
            raise ImageError(f"the JPEG image has more than {MAX_SCANS} scans; save it as a plain JPEG")
    raise ImageError(f"the JPEG image has more than {MAX_SEGMENTS} segments; save it as a plain JPEG")


def _exif_bytes(exif: bytes | str) -> bytes:
    """EXIF data as Pillow finds them in a PNG: a chunk, or what ImageMagick once wrote, a text of three lines and hex
    digits."""
    return bytes.fromhex("".join(exif.split("\n")[3:])) if isinstance(exif, str) else exif


def _check_tags(tags: bytes) -> None:
    """Refuse TIFF tags, those of EXIF among them, whose entries hold far more than there is."""
    tags = tags.removeprefix(_EXIF)
    order = "<" if tags[:2] == b"II" else ">"
    total = 0
    try:
        start = struct.unpack_from(order + "I", tags, 4)[0]
        for entry in range(struct.unpack_from(order + "H", tags, start)[0]):
            kind, count = struct.unpack_from(order + "HI", tags, start + 2 + 12 * entry + 2)
            size = _TYPE_BYTES.get(kind, 0) * count
            total += size if size <= len(tags) else 0  # Pillow leaves those out
    except struct.error:
        pass  # cut off: the entries that are there count
    if total > 2**16 + 4 * len(tags):
        raise ImageError("the tags (EXIF data) of the image are broken; save it without them")


def _flatten(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel and no transparency."""
    if image.mode.startswith("I;16"):
        return _eight_bits(image)
    if image.mode in ("I", "F"):
        raise ImageError(f"the image has 32 bits a channel (mode {image.mode}), in no known range; send 8 or 16 bits")
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A"))
    return flat


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    grey = (values >> 8).astype(np.uint8)
    clear = image.info.get("transparency")  # the one value that a grey PNG calls transparent
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(grey)


def _broken(error: Exception) -> ImageError:
    """Pillow's own words on a broken file say what is wrong with it; those of others are of our code, not the file."""
    if isinstance(error, Image.UnidentifiedImageError):
        return ImageError(f"the file is not an image; {SEND}")
    words = str(error) if isinstance(error, (OSError, SyntaxError)) and not getattr(error, "errno", None) else ""
    return ImageError(f"the file is a broken image{f' ({words})' if words else ''}; {SEND}")
