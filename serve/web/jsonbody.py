"""Read the JSON bodies of requests: arrays of numbers image by image, and a place for everything that is wrong.

`json.loads` holds Python's lock for all of a body, 100 ms for 256 images of 3 x 32 x 32, and other requests wait. Here
the same decoder is called for one image at a time, whose numbers go into an array at once: in a thread, others get
their turn between two images, and no more than one image ever stands in memory as Python numbers.

Shapes: B images, C channels, H rows, W columns.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, NoReturn

import numpy as np

from serve.web.shape import Refusal


MAX_BATCH = 256
MAX_LISTS = 200_000
"""Arrays inside a body; 256 images of 3 x 64 x 64 have 50,000. A body of nothing but brackets would fill the memory."""
_NUMBERS = b"0123456789+-.eE[], \t\r\n"
_SPACE = re.compile(r"[ \t\r\n]*")
_DATA_URI = re.compile(r"data:(image/[\w.+-]+|application/octet-stream)?(;[\w.+-]+=[\w.+-]+)*;base64,", re.ASCII | re.I)
_HINTS = {
    "image": 'send {"image": ...}: an image file in base64, or a nested array [C, H, W] of numbers in [0, 1]',
    "images": 'send {"images": [...]}: 1 to 256 image files in base64, or a nested array [B, C, H, W] of numbers in '
    "[0, 1]; GET /model tells C, H and W",
}


def parse(body: bytes, field: str) -> tuple[list[bytes] | np.ndarray, dict[str, Any]]:
    """Read a body whose key `field` ("image" or "images") holds one image or several; a bare array stands for "images".

    Gives the files that were in base64, or the numbers, float64 [B, C, H, W], and the other keys with their values.
    Raises Refusal: 400 for what is not JSON or not base64, 422 for what is, but not this.
    """
    hint = _HINTS[field]
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unread("bad_json", f"the body is not UTF-8 text: {error.reason} at byte {error.start}", hint) from None
    if body.count(b"[") + body.count(b"{") > MAX_LISTS:
        raise wrong("bad_array", f"the JSON holds more than {MAX_LISTS} arrays and objects", hint)
    try:
        return _Reader(text, field).read()
    except RecursionError:
        raise _unread("bad_json", "the JSON is nested too deeply", hint) from None
    except json.JSONDecodeError as error:
        what = "empty" if not body else f"not JSON: {error}"
        raise _unread("bad_json", f"the body is {what}", hint) from None
    except _NotJson as error:
        raise _unread("bad_json", f"the body is not JSON: {error}", hint) from None
    except ValueError:  # the one that int() raises
        raise wrong("bad_number", "the JSON holds a whole number of thousands of digits", hint) from None


def wrong(code: str, message: str, hint: str) -> Refusal:
    """The refusal of what can be read, but is not what is asked for."""
    return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, code, message, hint)


class _NotJson(Exception):
    """What Python's decoder takes, but is not JSON."""


class _Reader:
    """A position in a JSON text. The outer two levels are walked here, what is inside them by Python's decoder."""

    def __init__(self, text: str, field: str) -> None:
        self._text = text
        self._at = 0
        self._field = field
        self._decode = json.JSONDecoder(parse_constant=_no_constant).raw_decode

    def read(self) -> tuple[list[bytes] | np.ndarray, dict[str, Any]]:
        """Read the whole text."""
        images, others = None, {}
        several = self._field == "images"
        match self._next():
            case "{":
                for key in self._keys():
                    if key != self._field:
                        others[key] = self._value()
                    else:
                        images = self._images() if several else self._image()
            case "[" if several:
                images = self._images()
            case _:
                value = self._value()
                raise self._wrong("bad_body", f"the JSON is {_name(value)}, not an object")
        if self._next():
            raise json.JSONDecodeError("Extra data", self._text, self._at)
        if images is None:
            keys = f"only {', '.join(repr(key)[:40] for key in list(others)[:5])}" if others else "it is empty"
            raise self._wrong("missing_field", f"the JSON object has no key `{self._field}`, {keys}")
        return images, others

    def _image(self) -> list[bytes] | np.ndarray:
        value, array = self._element("image")
        if array is None:
            return [self._file(value, "image")]
        if array.ndim != 3:
            raise self._wrong("bad_array", f"image is nested {array.ndim} deep, expected 3: channels, rows, columns")
        return array[None]

    def _images(self) -> list[bytes] | np.ndarray:
        if self._next() != "[":
            raise self._wrong("bad_array", f"images is {_name(self._value())}, not an array")
        files: list[bytes] = []
        arrays: list[np.ndarray] = []
        for index in self._items():
            place = f"images[{index}]"
            if index == MAX_BATCH:
                raise self._wrong("too_many_images", f"more than {MAX_BATCH} images in one request")
            value, array = self._element(place)
            if files if array is not None else arrays:
                raise self._wrong("bad_array", f"{place} is {_name(value)}, but images[0] is not; send one kind")
            if array is None:
                files.append(self._file(value, place))
                continue
            arrays.append(array)
            if array.shape != arrays[0].shape:
                shapes = f"the shape {list(array.shape)}, but images[0] has {list(arrays[0].shape)}"
                raise self._wrong("bad_array", f"{place} has {shapes}")
        if not files and not arrays:
            raise self._wrong("bad_array", "images is empty")
        return files or np.stack(arrays)

    def _element(self, place: str) -> tuple[Any, np.ndarray | None]:
        """A value, and the array that it is unless it is a string."""
        self._next()
        start = self._at
        value = self._value()
        if isinstance(value, str):
            return value, None
        # All that is no number shows in the text; numpy would take `true` for 1.
        other = self._text[start : self._at].encode("utf-8", "replace").translate(None, _NUMBERS)
        if other or not isinstance(value, list):
            where, what = _not_a_number(value, place)
            kind = "an array or a string" if where == place else "a number"
            raise self._wrong("bad_array", f"{where} is {what}, not {kind}")
        try:
            return value, np.array(value, np.float64)
        except OverflowError:
            raise self._wrong("bad_array", f"{place} holds a number that is too large") from None
        except ValueError:
            raise self._wrong("bad_array", _uneven(value, place)) from None

    def _file(self, text: str, place: str) -> bytes:
        uri = _DATA_URI.match(text)
        if uri is None and ":" in text[:16]:
            shown = text if len(text) <= 40 else f"{text[:40]}.."
            raise self._wrong(
                "bad_base64", f"{place} is {shown!r}; the server fetches no URL but data:image/...;base64,"
            )
        try:
            return base64.b64decode(text[uri.end() :] if uri else text, validate=True)
        except (binascii.Error, ValueError) as error:  # the latter: characters beyond ASCII
            hint = "encode with the standard alphabet, padded, in one line: base64 -w0 FILE"
            raise _unread("bad_base64", f"{place} is a string, but not base64: {error}", hint) from None

    def _keys(self) -> Iterator[str]:
        """Walk over an object; whoever takes a key reads its value before the next."""
        seen = set()
        for _ in self._items(close="}"):
            if self._next() != '"':
                message = "Expecting property name enclosed in double quotes"
                raise json.JSONDecodeError(message, self._text, self._at)
            key = self._value()
            if self._next() != ":":
                raise json.JSONDecodeError("Expecting ':' delimiter", self._text, self._at)
            self._at += 1
            if key in seen:
                raise self._wrong("conflicting_fields", f"the key {key[:40]!r} stands twice in the JSON object")
            seen.add(key)
            yield key

    def _items(self, close: str = "]") -> Iterator[int]:
        """Walk over an array or an object; whoever takes an index reads the item before the next."""
        self._at += 1
        if self._next() == close:
            self._at += 1
            return
        index = 0
        while True:
            yield index
            index += 1
            mark = self._next()
            if mark not in (",", close):
                raise json.JSONDecodeError("Expecting ',' delimiter", self._text, self._at)
            self._at += 1
            if mark == close:
                return

    def _next(self) -> str:
        """Skip white space; the character there, "" at the end."""
        self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # it always matches
        return self._text[self._at : self._at + 1]

    def _value(self) -> Any:
        self._next()
        value, self._at = self._decode(self._text, self._at)
        return value

    def _wrong(self, code: str, message: str) -> Refusal:
        return wrong(code, message, _HINTS[self._field])


def _not_a_number(value: Any, place: str) -> tuple[str, str]:
    """Where the first thing that is neither a number nor an array stands, and what it is."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, list) or not _is_number(item):
                found = _not_a_number(item, f"{place}[{index}]")
                if found[1]:
                    return found
        return place, ""
    return place, _name(value)


def _uneven(value: list[Any], place: str) -> str:
    """Say which array is not like the first ones, in nested arrays of numbers that numpy finds no shape for."""
    lengths: list[int] = []
    first: Any = value
    while isinstance(first, list):
        lengths.append(len(first))
        first = first[0] if first else None

    def find(item: Any, depth: int, where: str) -> str:
        if not isinstance(item, list):
            return f"{where} is a number, where others are arrays" if depth < len(lengths) else ""
        if depth == len(lengths):
            return f"{where} is an array, where others are numbers"
        if len(item) != lengths[depth]:
            return f"{where} has the length {len(item)}, where others have {lengths[depth]}"
        places = (find(inner, depth + 1, f"{where}[{index}]") for index, inner in enumerate(item))
        return next(filter(None, places), "")

    return find(value, 0, place) or f"{place} is nested too deeply"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _name(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if _is_number(value):
        return "a number"
    return "a string" if isinstance(value, str) else "an array" if isinstance(value, list) else "an object"


def _no_constant(name: str) -> NoReturn:
    raise _NotJson(f"{name} is not a JSON number")


def _unread(code: str, message: str, hint: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, code, message, hint)
