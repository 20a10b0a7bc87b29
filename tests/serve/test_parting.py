"""How an answer leaves its connection: in order, or closed, but not before the client has seen the answer."""

import asyncio

import pytest
from asgi import GONE, WAIT_S, Client, ask, chunk, scope
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.settings import Settings
from serve.web import limits
from serve.web.gate import Front, Gate


MAX = 100
START: Message = {"type": "http.response.start", "status": 200, "headers": []}
END: Message = {"type": "http.response.body", "body": b"ok"}


@pytest.fixture(autouse=True)
def _short_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DRAIN_S", 0.1)


async def never(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("the application was called")


def gate(app: ASGIApp, front: Front | None = None) -> Gate:
    return Gate(app, settings=Settings(bundles=("none",), max_body=MAX), front=front or Front(ready=True))


def test_a_length_beside_chunks_means_nothing() -> None:
    headers = [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")]
    front = Front(ready=True, retry_after=lambda: 7)
    answer = asyncio.run(ask(gate(never, front), chunk(b"x" * 99, more=True), GONE, headers=headers))
    assert (answer.status, answer.headers["connection"]) == (503, "close")


def test_a_body_that_was_read_after_the_answer_had_begun_is_not_waited_for() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        while (await receive()).get("more_body"):
            pass
        await send(END)

    client = Client(chunk(b"x", more=True), chunk(b"x"))
    asyncio.run(gate(app)(scope(headers=[(b"transfer-encoding", b"chunked")]), client.receive, client.send))
    assert (client.asked, client.answer.body, client.answer.complete) == (2, b"ok", True)


def test_an_answer_that_broke_off_is_not_completed() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        raise KeyError("broken")

    answer = asyncio.run(ask(gate(app), chunk(b"x", more=True), GONE, headers=[(b"transfer-encoding", b"chunked")]))
    assert (answer.status, answer.body, answer.complete) == (200, b"", False)


@pytest.mark.parametrize(
    ("rest", "read"),
    [
        ([chunk(b"x" * 60)], 60),
        ([chunk(b"x" * 60, more=True), GONE], 60),
        ([chunk(b"x" * 60, more=True)] * 90, 420),
        ([WAIT_S], 0),
    ],
)
def test_a_refused_client_is_read_for_a_while_and_has_its_answer_at_once(
    rest: list[Message | float], read: int
) -> None:
    client = Client(*rest)
    seen = 0

    async def receive() -> Message:
        nonlocal seen
        assert client.answer.error["code"] == "body_too_large"
        assert not client.answer.complete
        message = await client.receive()
        seen += len(message.get("body", b""))
        return message

    async def talk() -> None:
        await gate(never)(scope(headers=[(b"content-length", b"900")]), receive, client.send)

    asyncio.run(talk())
    assert client.answer.complete
    assert seen == read


def test_who_waits_for_100_continue_is_refused_without_reading() -> None:
    client = Client()
    headers = [(b"content-length", b"900"), (b"expect", b"100-continue")]
    asyncio.run(gate(never)(scope(headers=headers), client.receive, client.send))
    assert (client.answer.status, client.answer.headers["connection"], client.asked) == (413, "close", 0)
    assert client.answer.complete
