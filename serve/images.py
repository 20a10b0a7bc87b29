"""From the bytes of an image file to the array that the network takes. The bytes are foreign: every limit is here."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from serve.bundle import InputRecord


# Formats whose decoders live inside Pillow; others (EPS, for one) would start programs of this machine.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 16_000_000
_SEND = f"send one of {', '.join(FORMATS)}, at most {MAX_PIXELS // 10**6} megapixels"


class ImageError(ValueError):
    """Bytes that are not an image that the server takes; the message says what to send."""


def decode(source: bytes | Path, wanted: InputRecord) -> np.ndarray:
    """Decode an image file to float32 [C, H, W] in [0, 1].

    Turned as its EXIF data say; transparency is laid over white; converted to grey or RGB; scaled so that its short
    side fits and cropped around the centre. An image that already has the size and the mode is only divided by 255.
    Of an animation, the first frame. Raises ImageError.
    """
    image = _open(source)
    image = _flatten(image).convert("L" if wanted.channels == 1 else "RGB")
    if image.size != (wanted.width, wanted.height):
        image = ImageOps.fit(image, (wanted.width, wanted.height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.uint8).reshape(wanted.height, wanted.width, wanted.channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32) / np.float32(255)


def encode(array: np.ndarray) -> bytes:
    """Encode an image [C, H, W] in [0, 1], C = 1 or 3, as PNG: what the network saw, for showing."""
    pixels = np.rint(array * 255).astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def _open(source: bytes | Path) -> Image.Image:
    """The loaded image, upright; the size is checked on its header, before a pixel is decompressed."""
    if not source:
        raise ImageError(f"the image is empty; {_SEND}")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            width, height = image.size
            if width * height <= MAX_PIXELS:
                return ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"the image is too large ({error}); {_SEND}") from None
    except Exception as error:  # Pillow's decoders answer broken files with a dozen types, struct.error among them
        kind = "not an image" if isinstance(error, Image.UnidentifiedImageError) else f"broken ({error})"
        raise ImageError(f"the file is {kind}; {_SEND}") from None
    raise ImageError(f"the image is too large ({width} x {height} pixels); {_SEND}")


def _flatten(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel and no transparency."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ImageError(f"the image has 32 bits a channel (mode {image.mode}), in no known range; send 8 or 16 bits")
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
