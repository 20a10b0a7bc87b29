"""The log: one line of JSON a record, whatever is in it."""

import json
import logging
import re
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serve import log


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    logger = logging.getLogger("serve")
    before = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line, parse_constant=pytest.fail) for line in captured.err.splitlines()]


def test_a_record_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    token = log.request_id.set("id1")
    logging.getLogger("serve.x.y").warning("two\nlines %s", "é", extra={"images": 3, "path": __file__})
    log.request_id.reset(token)
    logging.getLogger("serve").info("none")
    first, second = lines(capsys)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "level": "WARNING",
        "logger": "serve.x.y",
        "message": "two\nlines é",
        "request_id": "id1",
        "images": 3,
        "path": __file__,
    }
    assert "request_id" not in second


def test_an_exception_is_one_field(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    try:
        raise KeyError("what")
    except KeyError:
        logging.getLogger("serve.x").exception("failed")
    (line,) = lines(capsys)
    assert line["trace"].startswith("Traceback")
    assert line["trace"].endswith("KeyError: 'what'")


def test_configuring_twice_writes_once_and_wakes_loggers_that_others_have_put_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("serve.sleeping")
    logger.disabled = True
    log.configure()
    log.configure()
    logger.info("awake")
    logger.debug("too fine")
    logging.getLogger("served").warning("not ours")
    assert [line["message"] for line in lines(capsys)] == ["awake"]


def test_an_answer_is_logged_with_what_a_client_named_cut_short(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    about = {"client": None, "method": "G" * 9999, "path": "/\ud800\n" * 9999, "status": 200, "seconds": 0.0012345}
    log.access(**about, sent=5)
    log.access(**about, code="not_found")
    first, second = lines(capsys)
    assert (first["ms"], first["sent"], first["received"]) == (1.234, 5, 0)
    assert len(first["method"]) == len(first["path"]) == 200
    assert ("code" in first, second["code"]) == (False, "not_found")


def test_access_lines_can_be_put_out(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(logging.WARNING)
    log.access(client=None, method="GET", path="/", status=200, seconds=0)
    assert lines(capsys) == []


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just(object()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.tuples(st.none()), inner, max_size=3),
    max_leaves=8,
)


CIRCLE: list = []
CIRCLE.append(CIRCLE)


@given(st.text(), VALUES)
@example("circle", CIRCLE)
def test_anything_can_be_logged(message: str, value: object) -> None:
    line = log.JsonLines().format(logging.makeLogRecord({"name": "serve.x", "msg": message, "value": value}))
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line, parse_constant=pytest.fail)["message"] == message
