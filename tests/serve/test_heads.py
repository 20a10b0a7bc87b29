"""The heads of requests behind uvicorn: their limits, what is no HTTP, and that all else goes on as before."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from functools import partial

import pytest
from asgi import WAIT_S, Records, recorded, served, until
from wire import Service, answer, application, chunked, closes, code, post

from serve.settings import Settings
from serve.web import heads
from serve.web.gate import Front, Gate
from serve.web.heads import MOST, Protocol


TIMEOUT_S = 0.6
GET = b"GET /ui/events HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def running() -> Iterator[Service]:
    front = Front(ready=True)
    service = Service(0, front, Records())
    gate = Gate(application(service), settings=Settings(bundles=("none",), timeout_s=WAIT_S), front=front)
    with (
        pytest.MonkeyPatch.context() as patch,
        recorded() as service.records,
        served(gate, partial(Protocol, timeout_s=TIMEOUT_S)) as service.port,
    ):
        patch.setattr(heads, "LINGER_S", 0.3)
        yield service


@pytest.fixture
def service(running: Service) -> Iterator[Service]:
    """A server that is in order afterwards, whatever was sent to it."""
    running.records.all.clear()
    yield running
    with running.connect() as connection:
        connection.sendall(post(b"still there"))
        assert answer(connection)[:2] == (200, b"still there")


def refused(service: Service, connection: socket.socket) -> tuple[int, str]:
    """The status and the code of the one answer, after which the connection ends and one line is logged."""
    status, body, headers = answer(connection)
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert closes(connection)
    until(lambda: [line for line in service.records.lines() if line["status"] == status])
    (line,) = (line for line in service.records.lines() if line["status"] == status)
    assert (line["code"], line["client"]) == (code(body), "127.0.0.1")
    assert set(json.loads(body)["error"]) == {"code", "message", "hint"}
    return status, code(body)


def flood(connection: socket.socket, block: bytes, most: int = 64 * 2**20) -> int:
    """Send the block again and again until the server has had enough; gives the bytes that it took."""
    sent = 0
    try:
        while sent < most:
            connection.sendall(block)
            sent += len(block)
    except OSError:
        pass
    return sent


@pytest.mark.parametrize(
    ("begin", "block"),
    [
        (GET, (b"X-A: " + b"a" * 1000 + b"\r\n") * 60),
        (GET + b"X-A: ", b"a" * 60_000),
        (GET, b"X-" + b"a" * 60_000),
        (b"GET /", b"a" * 60_000),
        (chunked() + b"3\r\nabc\r\n0\r\n", (b"X-A: " + b"a" * 1000 + b"\r\n") * 60),
        (chunked() + b"3\r\nabc\r\n0\r\nX-A: ", b"a" * 60_000),
        (chunked() + b"3;", b"a" * 60_000),
    ],
    ids=["lines", "one line", "one name", "address", "trailers", "one trailer", "extension of a chunk"],
)
def test_no_end_of_what_is_no_body_is_soon_cut_off(service: Service, begin: bytes, block: bytes) -> None:
    with service.connect() as connection:
        connection.sendall(begin)
        time.sleep(0.05)
        assert flood(connection, block) < 64 * 2**20
    until(lambda: [line for line in service.records.lines() if line["status"] == 431])


@pytest.mark.parametrize("parts", [1, 5])
@pytest.mark.parametrize("whole", [True, False])
def test_a_head_over_the_limit_is_told_so(service: Service, parts: int, whole: bool) -> None:
    sent = GET + b"X-A: " + b"a" * (MOST + 20_000) + (b"\r\n\r\n" if whole else b"")
    size = len(sent) // parts + 1
    with service.connect() as connection:
        for start in range(0, len(sent), size):
            connection.sendall(sent[start : start + size])
            time.sleep(0.01)
        if not whole:
            time.sleep(0.05)
            connection.sendall(b"a" * (MOST + 1))  # how much has begun in the first piece is not counted
        assert refused(service, connection) == (431, "headers_too_large")


@pytest.mark.parametrize("size", [MOST - 1000, MOST + 1000])
def test_the_limit_is_of_the_head_alone(service: Service, size: int) -> None:
    """Of one request after another, and not of their bodies."""
    with service.connect() as connection:
        for _ in range(3):
            connection.sendall(post(b"b" * 200_000, "/nothing", "X-A: " + "a" * (MOST - 1000)))
            assert answer(connection)[0] == 404
        connection.sendall(post(b"x", "/classify", "X-A: " + "a" * size))
        assert answer(connection)[0] == (200 if size < MOST else 431)


def test_pipelined_requests_are_each_counted_alone(service: Service) -> None:
    one = post(b"x", "/classify", "X-A: " + "a" * 30_000)
    with service.connect() as connection:
        connection.sendall(one * 6)
        assert [answer(connection)[0] for _ in range(6)] == [200] * 6


@pytest.mark.parametrize("sent", [b"G", b"GET /livez HTTP/1.1\r\n", GET + b"X-A: b\r\n", post(b"x") + GET])
def test_an_unfinished_head_is_given_up(service: Service, sent: bytes) -> None:
    with service.connect() as connection:
        start = time.monotonic()
        connection.sendall(sent)
        if sent.startswith(b"POST"):
            assert answer(connection)[0] == 200
        assert refused(service, connection) == (408, "headers_too_slow")
        assert TIMEOUT_S * 0.9 < time.monotonic() - start < 3


def test_a_head_that_trickles_is_given_up(service: Service) -> None:
    with service.connect() as connection:
        start = time.monotonic()
        connection.sendall(GET)
        connection.settimeout(0.1)
        while time.monotonic() - start < 5:
            connection.sendall(b"X")
            try:
                if connection.recv(12):
                    break
            except TimeoutError:
                continue
        assert time.monotonic() - start < 2


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
def test_a_connection_on_which_nothing_begins_is_closed(service: Service, sent: bytes) -> None:
    with service.connect() as connection:
        connection.sendall(sent)
        assert connection.recv(100) == b""
    assert service.records.lines() == []


def test_nothing_after_an_answer_keeps_a_connection(service: Service) -> None:
    """uvicorn forgets its time for idle connections at any byte."""
    with service.connect() as connection:
        connection.sendall(post(b"x"))
        assert answer(connection)[0] == 200
        connection.sendall(b"\r\n")
        assert connection.recv(100) == b""


def test_an_answer_may_take_longer_than_a_head(service: Service) -> None:
    """Also if the beginning of another request, or a line's end, waits behind it."""
    for more in (b"", b"\r\n", b"GET"):
        with service.connect() as connection:
            connection.sendall(GET + b"\r\n" + more)
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert response.read().count(b"data:") == 4  # over 1.2 s
    assert {line["status"] for line in service.records.lines()} == {200}


def test_a_body_may_take_longer_than_a_head(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(post(b"", length=4))
        for _ in range(4):
            time.sleep(0.25)
            connection.sendall(b"x")
        assert answer(connection)[:2] == (200, b"xxxx")


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        post(b"abc", "/classify", "Transfer-Encoding: chunked"),
        chunked() + b"-5\r\nabc\r\n",
    ],
)
def test_what_is_no_http_is_told_so_in_the_one_shape(
    service: Service, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with service.connect() as connection:
        connection.sendall(sent)
        assert refused(service, connection) == (400, "bad_http")
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []


def test_no_second_answer_goes_into_one_that_is_under_way(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(GET + b"\r\n")
        assert b"data: 0" in connection.recv(65536)
        connection.sendall(b"this is no HTTP\r\n\r\n")
        rest = b""
        while data := connection.recv(65536):
            rest += data
    assert b"HTTP/1.1" not in rest
