"""What schemathesis needs to make good requests for /docs.json: pictures, which no schema can describe."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import schemathesis
from hypothesis import strategies
from PIL import Image
from schemathesis.transport.serialization import Binary


FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


def pictures() -> Iterator[bytes]:
    """Files of every format, of the size that the network takes and of another."""
    rng = np.random.default_rng(0)
    for format in FORMATS:
        for size in ((8, 8), (20, 13)):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(file, format)
            yield file.getvalue()


FILES = list(pictures())
TEXTS = [base64.b64encode(file).decode() for file in FILES]
for kind in (*(f"image/{format.lower()}" for format in FORMATS), "application/octet-stream"):
    schemathesis.openapi.media_type(kind, strategies.sampled_from(FILES))
schemathesis.openapi.format("binary", strategies.sampled_from([Binary(file) for file in FILES]))
schemathesis.openapi.format("image", strategies.sampled_from([*TEXTS, f"data:image/png;base64,{TEXTS[0]}"]))


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """In good requests, say an option once: OpenAPI has no words for "in the query or the body"."""
    good = case.meta is not None and case.meta.generation.mode.is_positive
    if good and isinstance(case.body, dict):
        for name in case.body:
            (case.query or {}).pop(name, None)
