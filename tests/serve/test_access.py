"""The API key: what is let in, and nothing else."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.web.access import as_bytes, authorised, unauthorised


KEY = "s3cret:Käse"


def basic(text: str | bytes) -> bytes:
    return b"Basic " + base64.b64encode(text.encode() if isinstance(text, str) else text)


@pytest.mark.parametrize(
    "value",
    [
        b"Bearer " + KEY.encode(),
        b"bearer " + KEY.encode(),
        b"BEARER   " + KEY.encode() + b" ",
        basic(f"anybody:{KEY}"),
        basic(f":{KEY}"),
        basic(f"us\xe9r:{KEY}"),
        basic(b"\xff:" + KEY.encode()),
        basic(f"x:{KEY}").replace(b"Basic", b"bASIC"),
    ],
)
def test_the_key_gets_in(value: bytes) -> None:
    assert authorised([value], as_bytes(KEY))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer " + KEY.encode()[:-1],
        b"Bearer " + KEY.encode() + b"x",
        b"Bearer " + KEY.upper().encode(),
        b"Bearer " + KEY.encode("latin-1"),
        KEY.encode(),
        b"Token " + KEY.encode(),
        b"Bearer" + KEY.encode(),
        b"Bearer " + basic(f"x:{KEY}").removeprefix(b"Basic "),
        b"Basic " + KEY.encode(),
        b"Basic",
        b"Basic !!!!",
        b"Basic \xff\xfe",
        b"Basic " + b"A" * 5,
        basic(KEY),  # no user: the part before the colon is taken for one
        basic("no colon"),
        basic(""),
        basic(f"{KEY}:"),
        basic(f"x:{KEY}\n"),
        basic(f"x:{KEY}")[:-2],
    ],
)
def test_nothing_else_gets_in(value: bytes) -> None:
    assert not authorised([value], as_bytes(KEY))


@given(st.binary(max_size=40))
def test_no_bytes_but_the_key_get_in_and_none_raise(value: bytes) -> None:
    assert not authorised([value], b"a-key-of-more-than-forty-bytes-that-nobody-guesses")
    assert authorised([b"Basic " + base64.b64encode(b"user:" + value)], value)


def test_there_is_one_header_or_none() -> None:
    good = b"Bearer k"
    assert authorised([good], b"k")
    assert not authorised([], b"k")
    assert not authorised([good, good], b"k")


def test_a_key_that_is_no_utf8_is_compared_as_its_bytes() -> None:
    assert authorised([b"Bearer \xff\xfe"], as_bytes(b"\xff\xfe".decode("utf-8", "surrogateescape")))


def test_a_browser_is_told_to_ask_for_it() -> None:
    response = unauthorised().response
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith('Basic realm="TSERve"')
