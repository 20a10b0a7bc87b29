"""JSON bodies: numbers and files as they are read, and the status, code and place of everything that is wrong."""

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import draw, png

from serve.web import jsonbody
from serve.web.bodies import Field
from serve.web.shape import Refusal


TEXT = base64.b64encode(png(draw(1))).decode()
ONE = (draw(1)[None] / 255).tolist()


def refused(field: Field, value: object) -> tuple[int, str, str]:
    """What is said of a JSON value, or of a text that stands for one."""
    body = value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()
    with pytest.raises(Refusal) as caught:
        jsonbody.parse(body, field)
    assert caught.value.body.error.hint
    return caught.value.status, caught.value.code, caught.value.body.error.message


LONG_NUMBER = "1" + "0" * 5000
JSON = {
    "nothing": (400, "bad_json", "the body is empty", b""),
    "no JSON": (400, "bad_json", "not JSON: Expecting property name", b"{"),
    "no text": (400, "bad_json", "not UTF-8", b"\xff\xfe\xff"),
    "two values": (400, "bad_json", "Extra data: line 1 column 10", b"[[[[0]]]]1"),
    "a comma too many": (400, "bad_json", "Expecting value", b"[[[[0]]],]"),
    "a comma too few": (400, "bad_json", "Expecting ',' delimiter", b"[[[[0]]] [[[0]]]]"),
    "NaN": (400, "bad_json", "NaN is not a JSON number", b"[[[[NaN]]]]"),
    "Infinity": (400, "bad_json", "-Infinity is not a JSON number", b"[[[[-Infinity]]]]"),
    "a deep nest": (400, "bad_json", "nested too deeply", b"[" * 100_000),
    "a deeper nest": (422, "bad_array", "more than 200000 arrays", b"[" * 300_000),
    "no object": (422, "bad_body", "the JSON is a number", b"3"),
    "null alone": (422, "bad_body", "the JSON is null", b"null"),
    "text": (422, "bad_body", "the JSON is a string", b'"images"'),
    "no images": (422, "missing_field", "no key `images`, it is empty", b"{}"),
    "another key": (422, "missing_field", "no key `images`, only 'pixels'", {"pixels": []}),
    "images twice": (422, "conflicting_fields", "'images' stands twice", b'{"images": [[[[0]]]], "images": []}'),
    "an empty array": (422, "bad_array", "images is empty", {"images": []}),
    "one string": (422, "bad_array", "images is a string, not an array", {"images": TEXT}),
    "a nest of 100": (422, "bad_array", "images[0] is nested too deeply", b"[" * 100 + b"1" + b"]" * 100),
    "numbers alone": (422, "bad_array", "images[0] is a number", [1, 2]),
    "an object for an image": (422, "bad_array", "images[1] is an object", [[[[0]]], {}]),
    "null for an image": (422, "bad_array", "images[0] is null", [None]),
    "a bool": (422, "bad_array", "images[0][0][1][0] is true, not a number", [[[[0], [True]]]]),
    "null": (422, "bad_array", "images[1][0][0][1] is null, not a number", [[[[0, 1]]], [[[0, None]]]]),
    "a string": (422, "bad_array", "images[0][0][0][0] is a string, not a number", [[[["0.5"]]]]),
    "an object": (422, "bad_array", "images[0][0][0][1] is an object", [[[[0.5, {"a": 1}]]]]),
    "a short row": (422, "bad_array", "images[0][0][1] has the length 1, where others have 2", [[[[0, 1], [0]]]]),
    "a row far off": (422, "bad_array", "images[0][1][0] has the length 1", [[[[0, 1]], [[0]]]]),
    "a row too deep": (422, "bad_array", "images[0][0][0][1] is an array", [[[[0, [1]]]]]),
    "a row that is a number": (422, "bad_array", "images[0][0][1] is a number", [[[[0], 1]]]),
    "images of two sizes": (422, "bad_array", "images[1] has the shape [1, 1, 1]", [[[[0, 1]]], [[[0]]]]),
    "a file and numbers": (422, "bad_array", "images[1] is an array, but images[0] is not", [TEXT, [[[0]]]]),
    "numbers and a file": (422, "bad_array", "images[1] is a string, but images[0] is not", [[[[0]]], TEXT]),
    "a huge whole number": (422, "bad_array", "images[0] holds a number that is too large", [[[[10**400]]]]),
    "a longer one": (422, "bad_number", "thousands of digits", f"[[[[{LONG_NUMBER}]]]]"),
    "257 images": (422, "too_many_images", "more than 256", [[[[0]]]] * 257),
    "257 files": (422, "too_many_images", "more than 256", ["AAAA"] * 257),
    "no base64": (400, "bad_base64", "images[1] is a string, but not base64", [TEXT, "****"]),
    "base64 of URLs": (400, "bad_base64", "images[0] is a string, but not base64", ["_-8="]),
    "base64 without its end": (400, "bad_base64", "images[0]", [TEXT[:-1]]),
    "base64 in lines": (400, "bad_base64", "images[0]", [TEXT[:76] + "\n" + TEXT[76:]]),
    "letters beyond ASCII": (400, "bad_base64", "images[0]", ["\u00e9"]),
    "a URL": (422, "bad_base64", "images[0] is 'http://127.0.0.1:1/x.png'", ["http://127.0.0.1:1/x.png"]),
    "a file's name": (422, "bad_base64", "images[0] is 'file:///etc/passwd'", ["file:///etc/passwd"]),
    "a data URI of text": (422, "bad_base64", "images[0] is 'data:text", ["data:text/plain;base64,AAAA"]),
    "a data URI in percents": (422, "bad_base64", "images[0] is 'data:image", ["data:image/png,%89PNG"]),
}


@pytest.mark.parametrize(("status", "code", "said", "body"), JSON.values(), ids=JSON.keys())
def test_wrong_json_is_refused_with_its_place(status: int, code: str, said: str, body: object) -> None:
    given = refused("images", body)
    assert given[:2] == (status, code)
    assert said in given[2]


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ([TEXT], "bad_body", "the JSON is an array"),
        ({"images": [TEXT]}, "missing_field", "no key `image`, only 'images'"),
        ({"image": [ONE]}, "bad_array", "image is nested 4 deep, expected 3"),
        ({"image": ONE[0]}, "bad_array", "image is nested 2 deep, expected 3"),
        ({"image": None}, "bad_array", "image is null"),
        ({"image": [[[0.5, False]]]}, "bad_array", "image[0][0][1] is false, not a number"),
    ],
)
def test_one_image_in_json_must_be_one(body: object, code: str, said: str) -> None:
    status, given, message = refused("image", body)
    assert (status, given) == (422, code)
    assert said in message


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), lambda x: st.lists(x)))
def test_any_json_is_read_or_refused(value: object) -> None:
    """What is taken as numbers is what numpy makes of it."""
    text = json.dumps({"images": value}).encode()
    status = 200
    try:
        read_, others = jsonbody.parse(text, "images")
    except Refusal as refusal:
        status = refusal.status
    assert status in (200, 400, 422)
    if status != 200:
        return
    assert others == {}
    if isinstance(read_, np.ndarray):
        assert np.array_equal(read_, np.array(value, np.float64))


@given(st.data())
def test_a_large_array_is_read_as_json_and_numpy_read_it(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    array = rng.choice([0, 1, 0.5, 1e-9, -3, 255, 1e300], shape)
    indent = data.draw(st.sampled_from([None, 1]))
    text = json.dumps(array.tolist(), indent=indent).encode()
    images_, _ = jsonbody.parse(data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + text, "images")
    assert np.array_equal(images_, array)


def test_the_other_keys_are_given_as_they_are() -> None:
    text = json.dumps({"top_k": 3, "image": ONE, "x": [{"y": None}]}).encode()
    array, others = jsonbody.parse(text, "image")
    assert np.array_equal(array, [ONE])
    assert others == {"top_k": 3, "x": [{"y": None}]}
