"""The gate's limits of time and of bytes held, and what becomes of a handler whose client has gone."""

import asyncio
import gc
import weakref
from collections.abc import Awaitable
from typing import Any

import pytest
from asgi import GONE, WAIT_S, Answer, Client, ask, chunk, recorded, scope
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import metrics
from serve.settings import Settings
from serve.web import limits
from serve.web.gate import Front, Gate


MAX = 100
START: Message = {"type": "http.response.start", "status": 200, "headers": []}
END: Message = {"type": "http.response.body", "body": b"ok"}
LONG = [(b"content-length", b"50")]


class Handler:
    """An application that reads the body, then takes `seconds` for its answer, and notes how it ended."""

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds
        self.ended: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            while (await receive()).get("more_body"):
                pass
            await asyncio.sleep(self.seconds)
            await send(START)
            await send(END)
            self.ended.append("done")
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise


def gate(app: ASGIApp, **given: Any) -> Gate:
    settings = Settings(**{"bundles": ("none",), "max_body": MAX, "timeout_s": 0.05} | given)
    return Gate(app, settings=settings, front=Front(ready=True))


def run(talk: Awaitable[Answer]) -> Answer:
    """Run one request to its end; no task may be left, and no exception that nobody has seen."""
    complaints = []

    async def watched() -> Answer:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        answer = await talk
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task
        assert asyncio.all_tasks() == {task}
        assert task.cancelling() == 0
        return answer

    answer = asyncio.run(watched())
    assert complaints == []
    return answer


@pytest.mark.parametrize("path", ["/classify", "/ui/upload"])
@pytest.mark.parametrize("parts", [[], [chunk(b"x", more=True), 0.02, chunk(b"x", more=True), 0.02] * 9])
def test_a_body_that_is_too_slow(path: str, parts: list[Message | float]) -> None:
    handler = Handler()
    answer = run(ask(gate(handler), *parts, WAIT_S, path=path, headers=LONG))
    assert (answer.status, answer.error["code"]) == (408, "body_too_slow")
    assert answer.headers["connection"] == "close"
    assert handler.ended == ["cancelled"]


@pytest.fixture(autouse=True)
def _short_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DRAIN_S", 0.1)


@pytest.mark.parametrize("parts", [[], [chunk(b"x" * 40, more=True), 0.03, chunk(b"x" * 10)]])
def test_an_answer_that_takes_too_long(parts: list[Message | float]) -> None:
    handler = Handler(WAIT_S)
    answer = run(ask(gate(handler, timeout_s=0.2), *(parts or [chunk()]), headers=LONG if parts else []))
    assert (answer.status, answer.error["code"]) == (503, "timed_out")
    assert int(answer.headers["retry-after"]) >= 1
    assert handler.ended == ["cancelled"]


def test_the_time_for_the_answer_begins_at_the_end_of_the_body() -> None:
    parts = [chunk(b"x" * 40, more=True), 0.2, chunk(b"x" * 10)]
    assert run(ask(gate(Handler(0.2), timeout_s=0.35), *parts, headers=LONG)).body == b"ok"


@pytest.mark.parametrize("path", ["/classify", "/ui/upload"])
def test_a_client_that_goes_amid_its_body(path: str) -> None:
    handler = Handler()
    with recorded() as records:
        answer = run(ask(gate(handler), chunk(b"x", more=True), GONE, path=path, headers=LONG))
    assert handler.ended == ["cancelled"]
    assert answer.complete  # which nobody receives, but whoever stands between waits for an answer
    (record,) = records.all
    assert (vars(record)["status"], vars(record)["code"]) == (499, "client_gone")


@pytest.mark.parametrize("headers", [LONG, []])
def test_a_client_that_goes_before_its_answer(headers: list[tuple[bytes, bytes]]) -> None:
    handler = Handler(WAIT_S)
    with recorded() as records:
        run(ask(gate(handler, timeout_s=WAIT_S), chunk(b"x" * 50), 0.01, GONE, headers=headers))
    assert handler.ended == ["cancelled"]
    assert [line["status"] for line in records.lines()] == [499]


def test_a_client_that_goes_is_counted_but_not_as_rejected() -> None:
    def counted() -> dict[str, float]:
        text = metrics.render()[0].decode()
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        named = {name: float(value) for name, value in lines if "_created" not in name}
        return {name: value for name, value in named.items() if '"499"' in name or "client_gone" in name}

    before = counted()
    run(ask(gate(Handler()), GONE, headers=LONG))
    name = 'tserve_requests_total{endpoint="/classify",status="499"}'
    assert counted() == before | {name: before.get(name, 0) + 1}


def test_a_server_may_object_to_an_answer_that_nobody_receives() -> None:
    async def send(message: Message) -> None:
        raise OSError("the client has gone")

    asyncio.run(gate(Handler())(scope(headers=LONG), Client(GONE).receive, send))


def test_the_page_is_told_that_its_client_has_gone_and_goes_on() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        assert await receive() == GONE
        await asyncio.sleep(0.01)
        await send(START)
        await send(END)

    assert run(ask(gate(app), chunk(b"x"), GONE, path="/ui/x", headers=LONG)).body == b"ok"


def test_nothing_of_a_request_is_kept() -> None:
    async def talk() -> None:
        client = Client(chunk(b"x"))
        await gate(Handler(), timeout_s=WAIT_S)(scope(), client.receive, client.send)
        kept = weakref.ref(client)
        del client
        await asyncio.sleep(0.01)
        gc.collect()
        assert kept() is None

    asyncio.run(talk())


def test_a_handler_that_reads_in_a_task_of_its_own_is_stopped_too() -> None:
    ended = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(receive())
                group.create_task(asyncio.sleep(WAIT_S))
            raise AssertionError(reading)
        finally:
            ended.append(reading)

    parts = chunk(b"x" * 101, more=True), GONE
    answer = run(ask(gate(app), *parts, headers=[(b"transfer-encoding", b"chunked")]))
    assert answer.status == 413
    assert ended


def test_a_handler_that_will_not_be_stopped_is_waited_for() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(WAIT_S)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
        await send(START)
        await send(END)

    assert run(ask(gate(app))).body == b"ok"


def test_a_handler_asks_as_often_as_it_likes_whether_its_client_is_there() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b"x"
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(receive(), 0.001)
        await send(START)
        assert await receive() == await receive() == GONE
        await send(END)

    assert run(ask(gate(app, timeout_s=WAIT_S), chunk(b"x"), 0.02, GONE)).status == 200


def test_an_answer_that_has_begun_is_not_stopped() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(START)
        await asyncio.sleep(0.1)
        await send(END)

    answer = run(ask(gate(app), chunk(b"x"), 0.07, GONE))
    assert (answer.status, answer.body) == (200, b"ok")


def test_who_cancels_from_outside_wins() -> None:
    class Slow(Handler):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await super().__call__(scope, receive, send)
            finally:
                task.cancel()

    async def talk() -> Answer:
        nonlocal task
        client = Client(chunk(b"x"))
        task = asyncio.create_task(gate(Slow(WAIT_S))(scope(), client.receive, client.send))
        await asyncio.wait([task])
        assert task.cancelled()
        return client.answer

    task: asyncio.Task[None]
    assert run(talk()).messages == []


def test_all_bodies_together_are_bounded_and_the_room_comes_back() -> None:
    release = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await release.wait()
        await send(START)
        await send(END)

    async def talk(app: Gate) -> None:
        for _ in range(2):
            release.clear()
            full = [asyncio.create_task(ask(app, chunk(b"x" * MAX))) for _ in range(limits.BODIES_HELD)]
            await asyncio.sleep(0.05)
            answer = await ask(app, chunk(b"x", more=True), GONE)
            assert (answer.status, answer.error["code"]) == (503, "too_much_at_once")
            assert int(answer.headers["retry-after"]) >= 1
            release.set()
            assert {answer.status for answer in await asyncio.gather(*full)} == {200}
            assert (await ask(app, chunk(b"x" * MAX))).status == 200

    asyncio.run(talk(gate(app, timeout_s=WAIT_S)))


def test_a_stream_of_the_page_holds_no_bytes() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(START)
        await asyncio.sleep(0.1)
        await send(END)

    async def talk(app: Gate) -> None:
        many = [ask(app, chunk(b"x" * MAX), path="/ui/x") for _ in range(limits.BODIES_HELD * 3)]
        streams = [asyncio.create_task(stream) for stream in many]
        await asyncio.sleep(0.05)
        assert {answer.status for answer in await asyncio.gather(*streams)} == {200}

    asyncio.run(talk(gate(app, timeout_s=WAIT_S)))


def test_a_stream_of_the_page_is_timed_until_it_begins() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await asyncio.sleep(0.1)
        await send(END)

    def seconds() -> float:
        families = text_string_to_metric_families(metrics.render()[0].decode())
        name, labels = "tserve_request_seconds_sum", {"endpoint": "/ui"}
        return next(s.value for family in families for s in family.samples if (s.name, s.labels) == (name, labels))

    before = seconds()
    with recorded() as records:
        run(ask(gate(app), path="/ui/x", method="GET"))
    assert seconds() - before <= records.lines()[0]["ms"] / 1e3 - 0.099
