"""The one shape of errors."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.web.shape import FAILED, Refusal, busy, in_shape, too_large


OURS = {"error": {"code": "bad_image", "message": "what", "hint": "do"}}
FASTAPI = {"detail": [{"type": "missing", "loc": ["query", "k"], "msg": "Field required", "input": "/srv/secret"}]}


def shaped(status: int, body: object) -> dict[str, str]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    given, code = in_shape(status, raw)
    error = json.loads(given)["error"]
    assert error["code"] == code
    return error


def test_what_has_the_shape_stays_as_it_is() -> None:
    assert shaped(400, OURS) == OURS["error"]
    assert shaped(500, OURS) == OURS["error"]


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (404, b"Not Found", "not_found", "Not Found"),
        (404, b"", "not_found", "Not Found"),
        (405, {"detail": "Method Not Allowed"}, "method_not_allowed", "Method Not Allowed"),
        (400, {"error": "wrong"}, "bad_request", "wrong"),
        (422, [{"error": "wrong"}], "unprocessable_entity", "wrong"),
        (422, FASTAPI, "unprocessable_entity", "query.k: Field required"),
        (400, {"error": {"code": "x"}}, "bad_request", "{'code': 'x'}"),
        (404, [], "not_found", "[]"),
        (404, b"[" * 100_000, "not_found", "[" * 500),
        (404, b"\xff", "not_found", "�"),
        (499, b"x", "http_499", "x"),
        (499, b"", "http_499", "HTTP status 499"),
        (500, b"/srv/x.py line 3", "internal_server_error", FAILED),
        (504, {"error": "Not able to process"}, "gateway_timeout", FAILED),
    ],
)
def test_what_others_answer(status: int, body: object, code: str, message: str) -> None:
    error = shaped(status, body)
    assert (error["code"], error["message"]) == (code, message)
    assert error["hint"]
    assert "secret" not in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["error", "detail", "x"]), inner),
)


@given(st.integers(400, 599), st.binary(max_size=50) | JSON.map(lambda value: json.dumps(value).encode()))
def test_every_error_gets_the_shape(status: int, body: bytes) -> None:
    assert shaped(status, body).keys() == {"code", "message", "hint"}


def test_a_refusal_is_a_response_with_its_headers() -> None:
    response = busy("overloaded", "full", retry_after_s=4).response
    assert (response.status_code, response.headers["retry-after"]) == (503, "4")
    assert json.loads(response.body)["error"]["code"] == "overloaded"
    assert busy("overloaded", "full", retry_after_s=0).headers == {"Retry-After": "1"}
    assert "retry-after" not in Refusal(400, "a", "b", "c").response.headers


def test_the_limit_is_told_in_megabytes() -> None:
    assert "over 10 MB" in str(too_large(10 << 20))
    assert "over 0.5 MB" in str(too_large(1 << 19))
