"""Read requests strictly. BentoML's own reading answers a wrong field name with status 500 and downloads URLs that a
client puts into a file field; here a request is what the documentation says, or a Refusal that says what to send.

What takes time (parsing large JSON, decoding images) is done in threads, as many as there are cores: one of them may
need 150 MB. The images of one request go through one after another, so that requests take turns.

Shapes: B images, C channels, H rows, W columns.
"""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, ParamSpec, Protocol, TypeVar

import bentoml
import numpy as np
from bentoml.validators import ContentType
from starlette.requests import Request
from starlette.responses import Response

from serve import images
from serve.settings import cores
from serve.web import bodies, jsonbody, options
from serve.web.jsonbody import wrong
from serve.web.options import bad_option, of_query
from serve.web.schema import Options
from serve.web.shape import Refusal, failed


__all__ = [
    "Ask",
    "OneImage",
    "Refusal",
    "SeveralImages",
    "answering_refusals",
    "asked_model",
    "bad_image",
    "bad_option",
    "one",
    "pixels",
    "several",
    "unknown_model",
]

MAX_TOTAL_PIXELS = 8 * images.MAX_PIXELS
"""Of all images of a request."""
TURN_PIXELS = 1_000_000
"""So much of a request is decoded before another has its turn."""
SMALL = 16 * 1024
"""Bytes that are parsed or checked at once; a thread costs as much time."""
Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")
logger = logging.getLogger(__name__)
_threads = ThreadPoolExecutor(cores(), thread_name_prefix="intake")


@dataclass(frozen=True, kw_only=True, eq=False)
class Ask:
    """What a request asks for."""

    images: list[bytes] | np.ndarray
    """Image files, or float64 [B, C, H, W] that nobody has checked yet: `pixels` does."""
    model: str | None
    options: Options


class Decoder(Protocol):
    """What `pixels` needs of a Predictor."""

    def decode(self, source: bytes | Path) -> np.ndarray:
        """Image file -> float32 [C, H, W]; ValueError."""

    def check(self, images: np.ndarray) -> np.ndarray:
        """[B, C, H, W] -> the same as float32; ValueError."""


class _Asked(bentoml.IODescriptor):
    """The one argument of the API functions: an Ask, or the Refusal that `answering_refusals` raises.

    A value, because BentoML answers an exception while reading with status 500 and a trace in the log.
    """

    ask: Any


class _Options(bentoml.IODescriptor):
    """What BentoML's client may send besides images, as it reads in /schema.json."""

    top_k: int | None = None
    exit_confidence: float | None = None
    steps: int | None = None
    detail: bool | None = None
    model: str | None = None


class OneImage(_Options):
    """What BentoML's client may send to /classify; what others may, `one` says."""

    image: Annotated[Path, ContentType("image/*")]

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> _Asked:
        """Read the request for the API function."""
        return await _asked(one, request)


class SeveralImages(_Options):
    """The same for /classify_batch and `several`."""

    images: list[Any]

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> _Asked:
        """Read the request for the API function."""
        return await _asked(several, request)


def answering_refusals(
    method: Callable[Inputs, Awaitable[Output]],
) -> Callable[Inputs, Awaitable[Output | Response]]:
    """Answer a Refusal, found while reading the request or raised by `method`, with its response.

    Anything else that is raised is logged here, with the request's id; BentoML would write it into another log.
    """

    @functools.wraps(method)
    async def answer(*args: Inputs.args, **inputs: Inputs.kwargs) -> Output | Response:
        try:
            for value in inputs.values():
                if isinstance(value, Refusal):
                    raise value
            return await method(*args, **inputs)
        except Refusal as refusal:
            return refusal.response
        except Exception:
            logger.exception("a request could not be answered")
            return failed().response

    return answer


async def one(request: Request) -> Ask:
    """Read a request for one image: a form, the bytes of an image file, or JSON. Raises Refusal."""
    kind = bodies.media_type(request)
    if kind not in (bodies.FORM, bodies.JSON) and not bodies.is_image(kind):
        raise bodies.unsupported(request, "image")
    query = of_query(request.query_params.multi_items())
    if bodies.is_image(kind):
        model, chosen = options.merged(query, {})
        return Ask(images=[await bodies.whole(request)], model=model, options=chosen)
    ask = await _ask(request, kind, query, "image")
    if len(ask.images) > 1:
        message = f"{len(ask.images)} fields `image`; one image a request, several go to /classify_batch"
        raise wrong("too_many_images", message, bodies.SEND["image"])
    return ask


async def several(request: Request) -> Ask:
    """Read a request for 1 to MAX_BATCH images: JSON, or a form with files. Raises Refusal."""
    kind = bodies.media_type(request)
    if kind not in (bodies.FORM, bodies.JSON):
        raise bodies.unsupported(request, "images")
    return await _ask(request, kind, of_query(request.query_params.multi_items()), "images")


async def _ask(request: Request, kind: str, query: options.Given, field: bodies.Field) -> Ask:
    if kind == bodies.FORM:
        files, texts = await bodies.form(request, field)
        model, chosen = options.merged(query, options.of_form(texts))
        return Ask(images=files, model=model, options=chosen)
    body = await bodies.whole(request)
    parsed = jsonbody.parse(body, field) if len(body) < SMALL else await _in_thread(jsonbody.parse, body, field)
    model, chosen = options.merged(query, options.of_json(parsed[1]))
    return Ask(images=parsed[0], model=model, options=chosen)


def asked_model(request: Request) -> str | None:
    """The model that GET /model?model= names. Raises Refusal for other parameters."""
    return of_query(request.query_params.multi_items(), known=("model",)).get("model")


def unknown_model(error: LookupError) -> Refusal:
    """The refusal of a model that is not served; the error's message tells which are."""
    return Refusal(HTTPStatus.NOT_FOUND, "unknown_model", str(error.args[0]), "GET /models lists the models")


def bad_image(error: ValueError, place: str = "") -> Refusal:
    """The refusal of a file that is no image; `place` says which one."""
    hint = "send the picture in another format, or look whether the file is whole"
    return Refusal(HTTPStatus.BAD_REQUEST, "bad_image", f"{place}{error}", hint)


async def pixels(ask: Ask, decoder: Decoder) -> np.ndarray:
    """The images as the network takes them, float32 [B, C, H, W] in [0, 1]. Raises Refusal."""
    if isinstance(ask.images, np.ndarray):
        try:
            if ask.images.nbytes < SMALL:
                return decoder.check(ask.images)
            return await _in_thread(decoder.check, ask.images)
        except ValueError as error:
            raise wrong("bad_array", str(error), "GET /model tells C, H and W under `input`") from None
    if len(ask.images) == 1:
        return await _in_thread(_decoded, ask.images, range(1), decoder)
    turns = await _in_thread(_turns, ask.images)
    return np.concatenate([await _in_thread(_decoded, ask.images, turn, decoder) for turn in turns])


def _turns(files: list[bytes]) -> list[range]:
    """Which files are decoded together: TURN_PIXELS of them, or a single one that has more. Raises Refusal."""
    turns = [range(0)]
    in_turn = total = 0
    for index, file in enumerate(files):
        area = _or_bad_image(functools.partial(images.area, file), f"images[{index}]: ")
        in_turn, total = in_turn + area, total + area
        if total > MAX_TOTAL_PIXELS:
            message = f"the images have more than {MAX_TOTAL_PIXELS // 10**6} megapixels together"
            raise wrong("too_many_pixels", message, "send them smaller, or fewer at a time")
        if in_turn > TURN_PIXELS:
            turns.append(range(index, index))
            in_turn = area
        turns[-1] = range(turns[-1].start, index + 1)
    return [turn for turn in turns if turn]


def _decoded(files: list[bytes], turn: range, decoder: Decoder) -> np.ndarray:
    def place(index: int) -> str:
        return f"images[{index}]: " if len(files) > 1 else ""

    return np.stack([_or_bad_image(functools.partial(decoder.decode, files[i]), place(i)) for i in turn])


def _or_bad_image(read: Callable[[], Output], place: str) -> Output:
    try:
        return read()
    except ValueError as error:
        raise bad_image(error, place) from None


async def _in_thread(function: Callable[Inputs, Output], *args: Inputs.args, **inputs: Inputs.kwargs) -> Output:
    call = functools.partial(function, *args, **inputs)
    return await asyncio.get_running_loop().run_in_executor(_threads, call)


async def _asked(read: Callable[[Request], Awaitable[Ask]], request: Request) -> _Asked:
    try:
        return _Asked.model_construct(ask=await read(request))
    except Refusal as refusal:
        return _Asked.model_construct(ask=refusal)
