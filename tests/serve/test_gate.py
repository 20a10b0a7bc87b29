"""The gate with hand-made messages: who gets in, in which order, and what comes out."""

import asyncio
import contextlib
import string
from collections.abc import Awaitable, Callable

import pytest
from asgi import GONE, Client, ask, chunk, recorded, scope
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import log
from serve.settings import Settings
from serve.web.gate import Front, Gate, Refusal


MAX = 100
START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}


def gate(app: ASGIApp, *, front: Front | None = None, **given: object) -> Gate:
    limits = Settings(**{"bundles": ("none",), "max_body": MAX, "timeout_s": 5} | given)
    return Gate(app, settings=limits, front=front or Front(ready=True))


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the body."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send(START)
    await send({"type": "http.response.body", "body": body})


async def never(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("the application was called")


def answering(status: int, headers: list[tuple[bytes, bytes]], *parts: bytes) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    return app


def run(talk: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine; nothing may be left running, and nothing may have gone wrong unseen."""
    complaints = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        await talk()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(watched())
    assert complaints == []


@pytest.mark.parametrize("id", ["a", "A-z_0.9", "x" * 64])
def test_a_clients_request_id_is_kept(id: str) -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(log.request_id.get())
        await echo(scope, receive, send)

    async def talk() -> None:
        answer = await ask(gate(app), headers=[(b"x-request-id", id.encode())])
        assert (seen, answer.headers["x-request-id"]) == ([id], id)
        assert log.request_id.get() is None

    asyncio.run(talk())


@pytest.mark.parametrize("id", [b"", b"x" * 65, b"a b", b"a\n", b"\xff", b'"', "ä".encode()])
def test_another_request_id_is_replaced(id: bytes) -> None:
    ids = {asyncio.run(ask(gate(echo), headers=[(b"x-request-id", id)])).headers["x-request-id"] for _ in range(20)}
    assert len(ids) == 20
    assert all(set(id) <= set(string.hexdigits) and len(id) == 16 for id in ids)


def test_no_answer_tells_about_the_server() -> None:
    own = [(b"Server", b"BentoML Service/x"), (b"x-bentoml-request-id", b"1"), (b"x-request-id", b"2")]
    for path, status in (("/model", 200), ("/model", 500), ("/ui/", 200), ("/ui/", 500)):
        answer = asyncio.run(ask(gate(answering(status, [*own, (b"etag", b"3")], b"ok")), path=path, method="GET"))
        assert answer.status == status
        assert answer.headers.keys() - {"content-type", "content-length"} == {"x-request-id", "etag"}
        assert answer.headers["x-request-id"] != "2"


@settings(deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_bodies_get_in_up_to_the_limit_and_not_a_byte_over_it(sizes: list[int]) -> None:
    got = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def counting() -> Message:
            got.append(message := await receive())
            return message

        await echo(scope, counting, send)

    parts = [chunk(b"x" * size, more=True) for size in sizes[:-1]] + [chunk(b"x" * sizes[-1])]
    answer = asyncio.run(ask(gate(app), *parts, GONE, headers=[(b"transfer-encoding", b"chunked")]))
    if sum(sizes) <= MAX:
        assert answer.body == b"x" * sum(sizes)
    else:
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")
        assert sum(len(message["body"]) for message in got) <= MAX


@pytest.mark.parametrize("length", [b"101", b"9" * 18, b"9" * 5000])
def test_a_declared_body_over_the_limit_is_not_read(length: bytes) -> None:
    client = Client(GONE)
    asyncio.run(gate(never)(scope(headers=[(b"content-length", length)]), client.receive, client.send))
    assert client.answer.status == 413
    assert client.answer.headers["connection"] == "close"


def test_requests_are_shed_before_their_body_is_read() -> None:
    front = Front(ready=True, retry_after=lambda: 7)
    for path in ("/classify", "/classify_batch"):
        client = Client()
        about = scope(path=path, headers=[(b"content-length", b"50")])
        asyncio.run(gate(never, front=front)(about, client.receive, client.send))
        assert (client.answer.status, client.answer.error["code"]) == (503, "overloaded")
        assert client.answer.headers["retry-after"] == "7"
        assert client.asked == 0
        assert "connection" not in client.answer.headers  # the web server forgets so short a body by itself
    for path, method in (("/model", "GET"), ("/classify", "GET"), ("/ui/", "POST"), ("/readyz", "GET")):
        assert asyncio.run(ask(gate(echo, front=front), path=path, method=method)).status == 200


def test_of_many_that_come_at_once_only_so_many_get_in() -> None:
    """Others are refused at once, other paths are not counted, and whoever leaves, however it is, makes room."""

    async def rush() -> None:
        go, failures = asyncio.Event(), [ValueError("who fails makes room too")]

        async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] == "/classify":
                await go.wait()
                if failures:
                    raise failures.pop()
            await echo(scope, receive, send)

        app = gate(waiting, front=Front(ready=True, places=3))
        under_way = [asyncio.create_task(ask(app)) for _ in range(3)]
        await asyncio.sleep(0)
        refused = await ask(app, path="/classify_batch")
        assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (503, "overloaded", "1")
        assert (await ask(app, path="/model", method="GET")).status == 200
        go.set()
        assert sorted([(await task).status for task in under_way]) == [200, 200, 500]
        assert [(await ask(app)).status for _ in range(5)] == [200] * 5

    asyncio.run(rush())


def test_before_a_model_has_answered_only_images_and_readyz_are_refused() -> None:
    front = Front()
    for path, method in (("/classify", "POST"), ("/readyz", "GET")):
        answer = asyncio.run(ask(gate(never, front=front), path=path, method=method))
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "not_ready", "1")
    assert asyncio.run(ask(gate(echo, front=front), path="/livez", method="GET")).status == 200
    front.ready = True
    assert asyncio.run(ask(gate(echo, front=front))).status == 200


def test_the_key_is_asked_for_before_anything_else() -> None:
    front = Front(ready=False, retry_after=lambda: 1)
    headers = [(b"content-length", b"1000000")]
    for path in ("/classify", "/model", "/ui", "/ui/x", "/metrics", "/docs.json", "/nothing", "/livez/x", "//livez"):
        answer = asyncio.run(ask(gate(never, front=front, api_key="k"), GONE, path=path, headers=headers))
        assert (answer.status, answer.error["code"]) == (401, "unauthorised")
        assert answer.headers["www-authenticate"].startswith('Basic realm="TSERve"')
    for path in ("/livez", "/healthz"):
        assert asyncio.run(ask(gate(echo, front=front, api_key="k"), path=path, method="GET")).status == 200
    given = [(b"authorization", b"Bearer k")]
    assert asyncio.run(ask(gate(echo, api_key="k"), path="/model", headers=given)).status == 200


@pytest.mark.parametrize("key", [b"Bearer no", b"Bearer k"])
def test_a_websocket_needs_the_key_too(key: bytes) -> None:
    async def accepting(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    client = Client({"type": "websocket.connect"})
    about = scope(headers=[(b"authorization", key)]) | {"type": "websocket"}
    del about["method"]
    asyncio.run(gate(accepting, api_key="k")(about, client.receive, client.send))
    refused = {"type": "websocket.close", "code": 1008}
    assert client.answer.messages == [{"type": "websocket.accept"} if key == b"Bearer k" else refused]


def test_the_servers_start_and_end_pass() -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    client = Client()
    asyncio.run(gate(app, api_key="k")({"type": "lifespan"}, client.receive, client.send))
    assert seen == ["lifespan"]


SECRET = "/srv/models/x.py, version 1.2.3"


@pytest.mark.parametrize("path", ["/classify", "/ui/x"])
def test_what_the_application_raises_is_logged_and_not_told(path: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError(SECRET)

    with recorded() as records:
        answer = asyncio.run(ask(gate(app), path=path))
    assert (answer.status, answer.error["code"]) == (500, "internal_server_error")
    assert SECRET not in str(answer.messages)
    assert SECRET in str(records.all[0].exc_info)
    assert (records.lines()[0]["status"], records.lines()[0]["code"]) == (500, "internal_server_error")


def test_what_is_raised_amid_an_answer_leaves_it_unfinished() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise KeyError(SECRET)

    with recorded() as records:
        answer = asyncio.run(ask(gate(app)))
    assert (answer.status, answer.body, answer.complete) == (200, b"half", False)
    assert SECRET in str(records.all[0].exc_info)
    assert records.lines()[0]["code"] == "internal_server_error"


def test_a_refusal_that_the_application_raises_is_answered() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise Refusal(409, "some_code", "what", "do this", headers={"X-More": "1"})

    answer = asyncio.run(ask(gate(app)))
    assert answer.error == {"code": "some_code", "message": "what", "hint": "do this"}
    assert (answer.status, answer.headers["x-more"]) == (409, "1")


def test_an_application_without_an_answer_is_a_failure() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    with recorded() as records:
        assert asyncio.run(ask(gate(app))).status == 500
    assert "no answer" in records.all[0].getMessage()


def test_others_errors_are_shaped_but_for_the_pages() -> None:
    refused = answering(405, [(b"allow", b"GET"), (b"content-length", b"99")], b"Method ", b"Not Allowed")
    answer = asyncio.run(ask(gate(refused), path="/model"))
    assert (answer.error["code"], answer.error["message"]) == ("method_not_allowed", "Method Not Allowed")
    assert answer.headers["allow"] == "GET"
    assert answer.headers["content-length"] == str(len(answer.body))
    assert len([name for name, _ in answer.messages[0]["headers"] if name == b"content-length"]) == 1
    page = asyncio.run(ask(gate(refused), path="/ui/x"))
    assert page.body == b"Method Not Allowed"
    assert asyncio.run(ask(gate(refused), path="/uix")).error["code"] == "method_not_allowed"


def test_the_log_says_what_was_asked_and_answered_but_for_health() -> None:
    with recorded() as records:
        asyncio.run(ask(gate(echo), chunk(b"123", more=True), chunk(b"45"), path="/" + "x" * 5000, method="PUT"))
        for path in ("/livez", "/readyz", "/healthz", "/metrics"):
            asyncio.run(ask(gate(echo), path=path, method="GET"))
    (line,) = records.lines()
    assert (line["client"], line["method"], line["status"]) == ("10.0.0.1", "PUT", 200)
    assert (line["received"], line["sent"]) == (5, 5)
    assert len(line["path"]) == 200
    assert 0 < line["ms"] < 10_000


def test_parts_of_the_pages_stream_go_out_at_once_and_for_as_long_as_they_come() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(START)
        for n in range(3):
            await send({"type": "http.response.body", "body": b"%d" % n, "more_body": True})
            await asyncio.sleep(0.05)
        assert (await receive()) == GONE
        await send({"type": "http.response.body"})

    async def talk() -> None:
        client = Client(chunk(b"x"), 0.2, GONE)
        about = scope(path="/ui/gradio_api/queue/data", headers=[(b"content-length", b"1")])
        task = asyncio.create_task(gate(app, timeout_s=0.02)(about, client.receive, client.send))
        await asyncio.sleep(0.01)
        assert client.answer.body == b"0"
        await task
        assert (client.answer.body, client.answer.complete) == (b"012", True)

    run(talk)


def test_a_cancelled_server_task_stays_cancelled() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.sleep(60)

    async def talk() -> None:
        client = Client(chunk(b"x"))
        task = asyncio.create_task(gate(app)(scope(), client.receive, client.send))
        await asyncio.sleep(0.01)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert client.answer.messages == []

    with recorded() as records:
        run(talk)
    assert records.lines()[0]["code"] == "cancelled"
