"""The load generator sends what it should, counts what a server does to it, and goes on."""

import asyncio
import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))

from serve_client import Apart, Plan, run
from serve_figures import summary
from serve_process import free_port
from serve_requests import Request, multipart
from synthetic import draw, png


Answer = Callable[[int, bytes], bytes | None]
REQUESTS = tuple(Request(b"POST /%d HTTP/1.1\r\nContent-Length: 3" % i, b"%03d" % i) for i in range(3))


def ok(content: bytes = b"{}", *, status: bytes = b"200 OK", more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, more, len(content), content)


class Heard:
    """What the server of `serving` was sent."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.times: list[float] = []
        self.connections = 0


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[tuple[int, Heard]]:
    """A server in a thread: the n-th request, from 0, gets answer(n, body), b"" being none at all.

    None, or CLOSE at the end, closes the connection.
    """
    heard, loop = Heard(), asyncio.new_event_loop()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                heard.heads.append(await reader.readuntil(b"\r\n\r\n"))
                heard.bodies.append(await reader.readexactly(3))
                heard.times.append(time.monotonic())
                said = answer(len(heard.bodies) - 1, heard.bodies[-1])
                if said is None:
                    break
                writer.write(said.removesuffix(b"CLOSE"))
                if said.endswith(b"CLOSE"):
                    break
        writer.close()

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(handle, "127.0.0.1", 0)

    server = loop.run_until_complete(listen())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1], heard
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def test_every_request_is_sent_once_in_turn_over_one_connection_a_caller() -> None:
    with serving(lambda n, body: ok(b'{"label": "%b", "other": 1}' % body)) as (port, heard):
        report = run(Plan(port=port, requests=REQUESTS, callers=4, number=30, fields=("label", "model")))
    assert heard.connections == 4
    assert sorted(heard.bodies) == sorted([b"000", b"001", b"002"] * 10)
    assert all(head.startswith(b"POST /%d " % int(body)) for head, body in zip(heard.heads, heard.bodies, strict=True))
    assert [sample.status for sample in report.samples] == [200] * 30
    assert all(s.answer == {"label": f"{s.request:03}", "model": None} for s in report.samples)
    assert all(0 < s.seconds < 10 and s.began <= s.sent for s in report.samples)
    assert report.cpu_s > 0


def test_a_greeting_goes_over_every_connection_and_is_no_sample() -> None:
    hello = Request(b"GET /hello HTTP/1.1\r\nContent-Length: 3", b"hey")
    with serving(lambda n, body: ok()) as (port, heard):
        report = run(Plan(port=port, requests=REQUESTS, callers=3, number=6, greeting=hello))
    assert heard.connections == 3
    assert heard.bodies[:3] == [b"hey"] * 3
    assert b"hey" not in heard.bodies[3:]
    assert len(report.samples) == 6


def test_callers_ask_at_the_same_time() -> None:
    with serving(lambda n, body: b"" if n < 2 else ok()) as (port, heard):
        report = run(Plan(port=port, requests=REQUESTS, callers=3, number=3, timeout_s=0.5))
    assert len(heard.bodies) == 3
    assert sorted(s.error for s in report.samples) == ["", "timeout", "timeout"]


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (None, "closed"),
        (ok(b"x" * 50)[:-20] + b"CLOSE", "cut"),
        (b"HTTP/1.1 200 OKCLOSE", "cut"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n", "unreadable"),
        (b"SSH-2.0-x\r\n\r\n", "unreadable"),
        (b"", "timeout"),
    ],
)
def test_an_answer_that_fails_is_counted_by_kind_and_the_caller_goes_on(said: bytes | None, error: str) -> None:
    turn = itertools.count()

    def answer(n: int, body: bytes) -> bytes | None:
        return said if next(turn) % 2 == 0 else ok()

    with serving(answer) as (port, heard):
        report = run(Plan(port=port, requests=REQUESTS, number=4, timeout_s=0.3))
    assert [s.error for s in report.samples] == [error, "", error, ""]
    assert [s.status for s in report.samples] == [0, 200, 0, 200]
    assert heard.connections == 3  # a failed one is given up
    found = summary(report)
    assert (found["failed"], found["errors"], found["statuses"]) == (2, {error: 2}, {"200": 2})


def test_nobody_who_listens_is_an_error_too() -> None:
    report = run(Plan(port=free_port(), requests=REQUESTS, callers=2, seconds=0.2))
    assert {s.error for s in report.samples} == {"connect"}
    assert len(report.samples) < 20  # a caller does not try in a circle
    assert summary(report)["answers_per_s"] == 0


@pytest.mark.parametrize(
    ("on_busy", "said", "least", "most"), [("go_on", 9, 0.0, 9), ("back_off", 9, 0.3, 9), ("retry_after", 1, 1.0, 60)]
)
def test_who_is_shed_comes_back_when_told_to(on_busy: Any, said: int, least: float, most: float) -> None:
    busy = ok(b"no", status=b"503 Service Unavailable", more=b"Retry-After: %d\r\n" % said)
    with serving(lambda n, body: busy if n == 0 else ok()) as (port, heard):
        report = run(Plan(port=port, requests=REQUESTS, number=2, on_busy=on_busy, back_off_s=0.3))
    assert [s.status for s in report.samples] == [503, 200]
    assert report.samples[0].answer == {"retry_after": str(said)}
    assert least <= heard.times[1] - heard.times[0] <= most
    assert summary(report)["statuses"] == {"200": 1, "503": 1}


def test_a_server_that_closes_after_an_answer_costs_no_request() -> None:
    with serving(lambda n, body: ok(more=b"Connection: close\r\n")) as (port, heard):
        report = run(Plan(port=port, requests=REQUESTS, number=4))
    assert [s.status for s in report.samples] == [200] * 4
    assert heard.connections == 4


def test_requests_carry_their_ids() -> None:
    with serving(lambda n, body: ok()) as (port, heard):
        report = run(Plan(port=port, requests=REQUESTS, callers=2, number=6, ids="load-"))
    sent = {line for head in heard.heads for line in head.split(b"\r\n") if line.startswith(b"X-Request-ID")}
    assert sent == {b"X-Request-ID: load-%d" % n for n in range(6)}
    assert {s.id for s in report.samples} == {f"load-{n}" for n in range(6)}


def test_a_generator_apart_can_be_stopped_and_used_again() -> None:
    with serving(lambda n, body: ok()) as (port, _), Apart() as client:
        under_way = client.start(Plan(port=port, requests=REQUESTS, callers=2, seconds=60, pause_s=0.001))
        time.sleep(0.5)
        client.stop()
        report = under_way.result(timeout=30)
        assert 0 < report.wall_s < 30
        assert {s.status for s in report.samples} == {200}
        assert len(client.run(Plan(port=port, requests=REQUESTS, number=7)).samples) == 7


@pytest.mark.parametrize("wrong", [{"callers": 0, "number": 1}, {"requests": (), "number": 1}, {}])
def test_a_plan_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a plan"):
        Plan(**{"port": 1, "requests": REQUESTS, **wrong})


def test_an_upload_is_a_form_that_starlette_reads() -> None:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    async def echo(request: Any) -> PlainTextResponse:
        return PlainTextResponse(f"{request.headers['x-key']} {len(await (await request.form())['image'].read())}")

    head, body = multipart(png(draw(1)), path="/classify?detail=false", headers=("X-Key: k",))
    first, *lines = head.decode().split("\r\n")
    assert first == "POST /classify?detail=false HTTP/1.1"
    headers = dict(line.split(": ", 1) for line in lines)
    assert headers["Content-Length"] == str(len(body))
    client = TestClient(Starlette(routes=[Route("/classify", echo, methods=["POST"])]))
    assert client.post("/classify", content=body, headers=headers).text == f"k {len(png(draw(1)))}"
