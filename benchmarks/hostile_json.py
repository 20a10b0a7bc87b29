"""Malformed JSON, JSON that is not what is asked for, and options that cannot be."""

import base64
import json
from random import Random
from typing import Any

from hostile_case import ANY, REFUSED, Case, Target, form, junk, message, part, upload


BROKEN = (
    b"",
    b" ",
    b"{",
    b"[",
    b"[[[[0.5]]]",
    b'{"images": [[[[0.5]]]]',
    b'{"images": }',
    b"{'images': []}",
    b'{"images": [1,]}',
    b"[0x10]",
    b"[.5]",
    b"[1e]",
    b"[NaN]",
    b"[Infinity]",
    b"[-Infinity]",
    b"nul",
    b"[1] [2]",
    b'"\\ud800',
    b'"\\x00"',
    b"\xff\xfe[\x001\x00]\x00",
    b'{"images": "\xff\xfe"}',
    b"\xef\xbb\xbf[",
    b"[" * 20_000,
    b"[" * 20_000 + b"]" * 20_000,
    b'{"a":' * 5_000,
    b"[" + b"9" * 10_000 + b"]",
    b"[1e" + b"9" * 1_000 + b"]",
    b"/* */ []",
    b"\x00" * 100,
)
CONTENTS: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 1e308, "", "text", [], {}, [[]], [[[[]]]], [None], ["0.5"], [{}], {"images": None}),
    *({"images": {}}, {"images": "text"}, {"images": 5}, {"images": []}, {"image": None}, {"image": 5}, {"image": []}),
    *({"image": ""}, {"image": "!!!"}, {"image": "data:"}, {"image": "data:image/png;base64,"}, {"image": "AAAA"}),
    *({"image": "http://localhost/x.png"}, {"image": "file:///etc/passwd"}, {"image": "/etc/passwd"}),
    *({"picture": "AAAA"}, {"images": [1, "AAAA"]}, {"images": ["AAAA", None]}, {"images": ["!!!"]}),
)
OPTIONS = (
    *(
        "top_k=0",
        "top_k=-1",
        "top_k=1001",
        "top_k=many",
        "top_k=1.5",
        "top_k=",
        "top_k=1e9",
        "top_k=99999999999999999999",
    ),
    *("steps=0", "steps=-1", "steps=1000000", "steps=all", "steps=1.5", "steps=nan"),
    *("exit_confidence=2", "exit_confidence=-0.1", "exit_confidence=nan", "exit_confidence=inf", "exit_confidence=x"),
    *("detail=maybe", "detail=2", "detail=", "topk=3", "confidence=0.5", "x=1", "=", "%00=%00", "top_k=3&top_k=4"),
    *("top_k=%F0%9F%98%80", "model=none", "model=..%2F..%2Fetc%2Fpasswd", "model=%00", "model=" + "a" * 3000),
)


def broken_json(chance: Random, target: Target) -> Case:
    """A body that is no JSON."""
    path = chance.choice(("/classify_batch", "/classify"))
    if chance.random() < 0.5:
        whole = json.dumps({"images": _images(target, 1)}).encode()
        at, kind = chance.randrange(len(whole)), chance.choice(("cut", "changed"))
        body = whole[:at] if kind == "cut" else whole[:at] + junk(chance, 6) + whole[at + 1 :]
        about, expect = f"JSON {kind} at {at}", REFUSED if kind == "cut" else ANY
    else:
        body = chance.choice(BROKEN)
        about, expect = f"no JSON: {body[:20]!r}", REFUSED
    return Case(about=f"{about}, {path}", parts=(message(body, path=path),), expect=expect)


def wrong_json(chance: Random, target: Target) -> Case:
    """JSON that is not what is asked for."""
    path = chance.choice(("/classify_batch", "/classify"))
    content = chance.choice(CONTENTS)
    return Case(about=f"{path} with {content!r}", parts=(message(json.dumps(content).encode(), path=path),))


def wrong_array(chance: Random, target: Target) -> Case:
    """An array of the wrong shape, range or type."""
    name = chance.choice(("range", "ragged", "shape", "flat", "deep", "text", "null", "bool", "many", "huge", "object"))
    images: Any = _images(target, 2)
    row = images[-1][-1][-1]
    match name:
        case "range":
            row[-1] = chance.choice((1.01, -0.01, 255, 1e300, -1e-3))
        case "ragged":
            row.append(0.5)
        case "shape":
            images = [[[[0.5] * (target.shape[2] + 1)] * target.shape[1]] * target.shape[0]]
        case "flat":
            images = row
        case "deep":
            images = [[images]]
        case "text" | "null" | "bool" | "huge" | "object":
            row[0] = {"text": "0.5", "null": None, "bool": "true", "huge": 10**400, "object": {"a": 1}}[name]
        case "many":
            images = [[[[0]]]] * chance.choice((257, 5000))
    body = json.dumps(images if chance.random() < 0.5 else {"images": images}).encode()
    return Case(about=f"array: {name}", parts=(message(body, path="/classify_batch"),))


def wrong_base64(chance: Random, target: Target) -> Case:
    """Base64 of no image, or nearly base64."""
    text = base64.b64encode(target.image).decode()
    at = chance.randrange(1, len(text))
    broken = chance.choice((text[:at] + "*" + text[at:], text[: at // 2], base64.b64encode(junk(chance, 300)).decode()))
    prefix = chance.choice(("", "data:image/png;base64,", "data:text/html,", "data:image/png;base65,"))
    if chance.random() < 0.5:
        body: dict[str, Any] = {"image": prefix + broken}
        path = "/classify"
    else:
        body, path = {"images": [text, prefix + broken]}, "/classify_batch"
    about = f"base64 broken near {at}, prefix {prefix!r}, {path}"
    return Case(about=about, parts=(message(json.dumps(body).encode(), path=path),))


def wrong_option(chance: Random, target: Target) -> Case:
    """A good image with an option that cannot be, in the query, the form or the JSON."""
    option = chance.choice(OPTIONS)
    expect = frozenset({404, 422, 400})
    where = chance.choice(("query", "form", "JSON"))
    name, _, value = option.partition("=")
    if where == "query" or not name or "%" in option or "&" in option:
        return Case(
            about=f"query {option[:40]}", parts=(upload(target.image, path=f"/classify?{option}"),), expect=expect
        )
    if where == "form":
        field = part(value.encode(), disposition=f'form-data; name="{name}"', type="text/plain")
        return Case(about=f"form {option[:40]}", parts=(form(part(target.image) + field),), expect=expect)
    body = json.dumps({"image": base64.b64encode(target.image).decode(), name: [value]}).encode()
    return Case(about=f"JSON {option[:40]}", parts=(message(body),), expect=expect)


def _images(target: Target, count: int) -> list[Any]:
    """Images [B, C, H, W] of 0.5, no two rows of which are the same object."""
    channels, height, width = target.shape
    return [[[[0.5] * width for _ in range(height)] for _ in range(channels)] for _ in range(count)]
