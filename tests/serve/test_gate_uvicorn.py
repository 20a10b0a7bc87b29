"""The gate behind uvicorn, with both of its HTTP parsers: what a client on a socket sees, and what the server logs."""

import http.client
import importlib.util
import logging
import socket
import time
from collections.abc import Iterator

import pytest
from asgi import WAIT_S, Records, recorded, served, until
from wire import Service, answer, application, chunked, closes, code, post

from serve.settings import Settings
from serve.web import limits
from serve.web.gate import Front, Gate


MAX = 200_000
PARSERS = [name for name in ("h11", "httptools") if importlib.util.find_spec(name)]


@pytest.fixture(scope="module", params=PARSERS)
def running(request: pytest.FixtureRequest) -> Iterator[Service]:
    front = Front(ready=True)
    service = Service(0, front, Records())
    settings = Settings(bundles=("none",), max_body=MAX, timeout_s=1)
    with (
        pytest.MonkeyPatch.context() as patch,
        recorded() as service.records,
        served(Gate(application(service), settings=settings, front=front), request.param) as service.port,
    ):
        patch.setattr(limits, "DRAIN_S", 0.5)
        yield service


@pytest.fixture
def service(running: Service, caplog: pytest.LogCaptureFixture) -> Iterator[Service]:
    """A server of which nothing is left over from other tests; it must be in order afterwards and log no trace."""
    running.records.all.clear()
    running.cancelled.clear()
    with caplog.at_level(logging.WARNING):
        yield running
        running.front.retry_after = lambda: None
        assert exchange(running, post(b"still there"))[0][:2] == (200, b"still there")
    assert not [record for record in caplog.records if record.name in ("uvicorn.error", "asyncio") and record.exc_info]


def exchange(service: Service, *requests: bytes, method: str = "POST") -> list[tuple]:
    """Send the requests on one connection, each after the answer to the one before."""
    with service.connect() as connection:
        answers = []
        for request in requests:
            connection.sendall(request)
            answers.append(answer(connection, method))
        return answers


def test_a_shed_request_leaves_its_connection_in_order(service: Service) -> None:
    service.front.retry_after = lambda: 3
    with service.connect() as connection:
        connection.sendall(post(b"", length=150_000))
        status, body, headers = answer(connection)
        assert (status, code(body), headers["retry-after"]) == (503, "overloaded", "3")
        connection.sendall(bytes(150_000))  # the body, which the server reads and forgets
        service.front.retry_after = lambda: None
        for word in (b"one", b"two"):
            connection.sendall(post(word))
            assert answer(connection)[:2] == (200, word)


@pytest.mark.parametrize(("path", "status"), [("/classify", 503), ("/nothing", 404)])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_who_wants_the_connection_closed_sees_the_answer_too(
    service: Service, path: str, status: int, version: str
) -> None:
    service.front.retry_after = lambda: 3
    request = post(bytes(150_000), path, "Connection: close").replace(b"HTTP/1.1", f"HTTP/{version}".encode(), 1)
    with service.connect() as connection:
        for start in range(0, len(request), 30_000):  # the answer is under way before the body is
            connection.sendall(request[start : start + 30_000])
            time.sleep(0.01)
        got, body, headers = answer(connection)
        assert (got, bool(code(body)), headers["connection"]) == (status, True, "close")
        assert closes(connection)


def test_pipelined_requests_are_answered_in_their_order(service: Service) -> None:
    with service.connect() as connection:
        ids = [f"id{n}" for n in range(6)]
        paths = ["/classify", "/nothing"] * 3
        connection.sendall(
            b"".join(post(b"x", path, f"X-Request-ID: {id}") for id, path in zip(ids, paths, strict=True))
        )
        answers = [answer(connection) for _ in ids]
    assert [headers["x-request-id"] for _, _, headers in answers] == ids
    assert [status for status, _, _ in answers] == [200, 404] * 3
    assert all("server" not in headers for _, _, headers in answers)


@pytest.mark.parametrize("declared", [True, False])
def test_who_sends_all_before_reading_sees_that_it_was_too_much(service: Service, declared: bool) -> None:
    size = 700_000
    with service.connect() as connection:
        if declared:
            connection.sendall(post(bytes(size)))
        else:
            connection.sendall(chunked() + b"%x\r\n" % size + bytes(size) + b"\r\n0\r\n\r\n")
        status, body, headers = answer(connection)
        assert (status, code(body), headers["connection"]) == (413, "body_too_large", "close")
        assert closes(connection)


@pytest.mark.parametrize("path", ["/classify", "/nothing"])
def test_who_never_stops_sending_is_cut_off_in_the_end(service: Service, path: str) -> None:
    with service.connect() as connection:
        connection.sendall(chunked(path))
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            connection.sendall((b"10000\r\n" + bytes(0x10000) + b"\r\n") * 1000)


@pytest.mark.parametrize(("size", "status"), [(1000, 200), (700_000, 413)])
def test_expect_100_continue(service: Service, size: int, status: int) -> None:
    with service.connect() as connection:
        connection.sendall(post(b"", "/classify", "Expect: 100-continue", length=size))
        first = connection.recv(25)
        if status == 200:
            assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(bytes(size))
            assert answer(connection)[:2] == (200, bytes(size))
        else:
            assert first.startswith(b"HTTP/1.1 413")
            assert closes(connection)


def test_who_was_told_to_go_on_sees_that_it_was_too_much(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(chunked("/classify", "Expect: 100-continue"))
        assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        for _ in range(10):
            connection.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            time.sleep(0.01)
        assert answer(connection)[0] == 413


def test_a_declared_length_that_is_not_kept(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(post(b"short", length=50))
    until(lambda: service.records.lines())
    assert [(line["status"], line["code"]) for line in service.records.lines()] == [(499, "client_gone")]
    with service.connect() as connection:
        connection.sendall(post(b"too long", length=3))
        first = answer(connection)
        if first[0] == 200:  # httptools drops the request with the rest, h11 answers it
            assert first[1] == b"too"
            first = answer(connection)
        assert first[0] == 400  # the rest is no request
        assert closes(connection)


def test_a_slow_body(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(post(b"x", length=50))
        start = time.monotonic()
        status, body, headers = answer(connection)
        assert (status, code(body), headers["connection"]) == (408, "body_too_slow", "close")
        assert closes(connection)
        assert time.monotonic() - start < WAIT_S / 2


def test_a_slow_answer(service: Service) -> None:
    slow = post(b"x", "/classify_batch")
    (status, body, headers), (after, _, _) = exchange(service, slow, post(b"next"))
    assert (status, code(body), after) == (503, "timed_out", 200)
    assert int(headers["retry-after"]) >= 1
    assert service.cancelled == ["/classify_batch"]


def test_a_client_that_leaves_has_its_handler_cancelled(service: Service) -> None:
    connection = service.connect()
    connection.sendall(post(b"x", "/classify_batch"))
    time.sleep(0.05)
    connection.close()
    until(lambda: service.cancelled)
    until(lambda: service.records.lines())
    assert service.records.lines()[0]["status"] == 499


def test_failures_before_and_amid_an_answer(service: Service) -> None:
    get = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
    with service.connect() as connection:
        connection.sendall(get % b"/fails")
        status, body, _ = answer(connection, "GET")
        assert (status, code(body)) == (500, "internal_server_error")
        assert b"secret" not in body
        connection.sendall(get % b"/breaks")
        with pytest.raises(http.client.IncompleteRead) as error:
            answer(connection, "GET")
        assert error.value.partial == b"half"
    traces = [record for record in service.records.all if record.exc_info]
    assert len(traces) == 2


@pytest.mark.parametrize(("method", "path", "status"), [("HEAD", "/fails", 500), ("HEAD", "/nothing", 404)])
def test_head_is_answered_without_a_body(service: Service, method: str, path: str, status: int) -> None:
    request = f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    for got, body, _ in exchange(service, request, request, method=method):
        assert (got, body) == (status, b"")


def test_options_and_unknown_methods_are_refused_in_the_one_shape(service: Service) -> None:
    for method in ("OPTIONS", "PROPFIND", "DELETE", "GET"):
        ((status, body, headers),) = exchange(service, f"{method} /classify HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert (status, code(body), headers["allow"]) == (405, "method_not_allowed", "POST")


def test_odd_headers_are_passed_over(service: Service) -> None:
    odd = ["X-Request-ID: \xe9", "X-Request-ID: a b", "X-Odd: \xff\xfe", "X-Odd: 2", "Authorization: \xe9"]
    ((status, body, headers),) = exchange(service, post(b"x", "/classify", *odd))
    assert (status, body) == (200, b"x")
    assert len(headers["x-request-id"]) == 16


@pytest.mark.parametrize("length", [50_000, 1_000_000])
def test_long_paths(service: Service, length: int) -> None:
    with service.connect() as connection:
        try:
            connection.sendall(b"GET /" + b"x" * length + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            status, _, _ = answer(connection)
        except (ConnectionError, http.client.HTTPException):
            status = 400  # h11 closes before all is read
    assert status in (400, 404, 414)


def test_the_pages_events_come_as_they_are_made(service: Service) -> None:
    """They take longer than the time-out."""
    with service.connect() as connection:
        connection.sendall(b"GET /ui/events HTTP/1.1\r\nHost: x\r\n\r\n")
        seen, times = b"", []
        while not seen.endswith(b"0\r\n\r\n"):
            seen += connection.recv(65536)
            times.append(time.monotonic())
    assert [b"data: %d" % n in seen for n in range(4)] == [True] * 4
    assert times[-1] - times[0] > 0.8


def test_a_reader_of_events_that_leaves_is_no_failure(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(b"GET /ui/events HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.recv(1000)
    until(lambda: service.records.lines())
    (line,) = service.records.lines()
    assert (line["status"], "code" in line) == (200, False)


@pytest.mark.parametrize("parser", PARSERS)
def test_a_websocket_without_the_key_is_refused(parser: str) -> None:
    settings = Settings(bundles=("none",), api_key="k")
    handshake = "GET /ui/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    handshake += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    app = Gate(application(Service(0, Front(), Records())), settings=settings, front=Front())
    with recorded() as records, served(app, parser) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as connection:
            connection.sendall(handshake.encode())
            assert answer(connection, "GET")[0] == 403
        until(lambda: records.lines())
    assert records.lines()[0]["code"] == "unauthorised"
