"""Read requests strictly. BentoML's own reading answers a wrong field name with status 500 and downloads URLs that a
client puts into a file field; here a request is what the documentation says, or a Refusal that says what to send.
"""

import functools
import json
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import bentoml
import numpy as np
from bentoml.validators import ContentType
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serve.gate import Refusal


MAX_BATCH = 256
SEND_IMAGE = "send multipart/form-data with one file field `image`: curl -F image=@picture.png URL/classify"
SEND_BATCH = (
    'send application/json: a nested array [B, C, H, W] of numbers in [0, 1], or {"images": that array}; '
    f"B is 1 to {MAX_BATCH}, GET /model tells C, H and W"
)
Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")


class ImageForm(bentoml.IODescriptor):
    """multipart/form-data with the image file in the field `image`."""

    image: Annotated[Path, ContentType("image/*")]

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> "ImageForm":
        """Give the field's bytes, or the Refusal that `answering_refusals` answers."""
        return cls.model_construct(image=await _or_refusal(_read_image, request))


class ImageBatch(bentoml.IODescriptor):
    """A nested array [B, C, H, W] with values in [0, 1]."""

    images: list[list[list[list[float]]]]

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> "ImageBatch":
        """Give the JSON text, or the Refusal that `answering_refusals` answers."""
        return cls.model_construct(images=await _or_refusal(_read_json, request))


def answering_refusals(method: Callable[Inputs, Output]) -> Callable[Inputs, Output | Response]:
    """Answer a Refusal, found while reading the request or raised by `method`, with its response.

    Refusals come as values because BentoML answers an exception while reading with status 500 and a trace in the log.
    """

    @functools.wraps(method)
    def answer(*args: Inputs.args, **inputs: Inputs.kwargs) -> Output | Response:
        try:
            for value in inputs.values():
                if isinstance(value, Refusal):
                    raise value
            return method(*args, **inputs)
        except Refusal as refusal:
            return refusal.response

    return answer


def batch(text: bytes) -> np.ndarray:
    """Parse the body of /classify_batch to an array; raises Refusal. Shape and range are the predictor's to check."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise _refuse("bad_json", "the JSON is nested too deeply", SEND_BATCH) from None
    except ValueError as error:
        raise _refuse("bad_json", f"the body is not JSON: {error}", SEND_BATCH) from None
    if isinstance(value, dict):
        if "images" not in value:
            raise _refuse("missing_field", f"the JSON object has no key `images`, only {sorted(value)[:5]}", SEND_BATCH)
        value = value["images"]
    try:
        array = np.asarray(value)
    except ValueError:
        raise _refuse("bad_array", "the nested array is ragged: its rows differ in length", SEND_BATCH) from None
    if array.dtype.kind not in "iuf":
        raise _refuse("bad_array", "the nested array must hold numbers only", SEND_BATCH)
    if len(array.shape) and len(array) > MAX_BATCH:
        raise _refuse("too_many_images", f"{len(array)} images in one request, at most {MAX_BATCH}", SEND_BATCH)
    return array


def refused(error: ValueError, *, code: str, hint: str) -> Refusal:
    """The Refusal for input that another part of the server found wrong."""
    return _refuse(code, str(error), hint)


async def _or_refusal(read: Callable[[Request], Any], request: Request) -> Any:
    try:
        return await read(request)
    except Refusal as refusal:
        return refusal


async def _read_image(request: Request) -> bytes:
    _require(request, "multipart/form-data", SEND_IMAGE)
    try:
        form = await request.form(max_files=8, max_fields=8)
    except HTTPException as error:  # what Starlette makes of a broken multipart body
        raise _refuse("bad_multipart", f"the multipart body cannot be read: {error.detail}", SEND_IMAGE) from None
    uploads = form.getlist("image")
    if not uploads:
        raise _refuse("missing_field", f"no field `image` in the form, only {sorted(form)[:5]}", SEND_IMAGE)
    if len(uploads) > 1:
        raise _refuse("too_many_images", f"{len(uploads)} fields `image`; one image a request", SEND_IMAGE)
    if not isinstance(uploads[0], UploadFile):
        raise _refuse("not_a_file", "the field `image` is text, not a file", SEND_IMAGE)
    return await uploads[0].read()


async def _read_json(request: Request) -> bytes:
    _require(request, "application/json", SEND_BATCH)
    return await request.body()


def _require(request: Request, media_type: str, hint: str) -> None:
    given = request.headers.get("content-type", "")
    if given.split(";")[0].strip().lower() != media_type:
        message = f"the content type is {given!r}, expected {media_type}"
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "wrong_content_type", message, hint)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse(code: str, message: str, hint: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, code, message, hint)
