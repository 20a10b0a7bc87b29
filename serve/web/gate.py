"""The gate in front of the service, for every request in this order: an id, the API key, whether there is room, the
length of the body; then the application, its body within limits of bytes and time, its answer within a time and as
long as the client waits; errors in one shape, a line in the log, and the metrics.

BentoML itself reads bodies of any size, queues without bound, and answers errors in four shapes.
"""

import asyncio
import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from serve import log, metrics
from serve.settings import Settings
from serve.web import limits, ofpage
from serve.web.access import as_bytes, authorised, unauthorised
from serve.web.limits import Held, Intake
from serve.web.reply import KEEP, Parting, Reply, as_json
from serve.web.shape import Refusal, busy, failed, in_shape, too_large


__all__ = ["Front", "Gate", "Refusal", "too_large"]

HEALTH = frozenset({"/livez", "/readyz", "/healthz"})
METRICS = "/metrics"
QUIET = (
    HEALTH | ofpage.FOR_BROWSERS.keys() | {METRICS}
)  # asked for every few seconds, or by every browser, and not logged
CLASSIFY = frozenset({"/classify", "/classify_batch"})
DRAIN_BODIES = 4  # bodies' worth that a refused client may go on sending
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_READ = frozenset(
    {b"authorization", b"connection", b"content-length", b"expect", b"transfer-encoding", b"x-request-id"}
)
logger = logging.getLogger(__name__)


@dataclass
class Front:
    """What the gate must know of what stands behind it; the service fills it in."""

    retry_after: Callable[[], int | None] = lambda: None
    """None: there is room for a request; else the seconds after which there should be."""
    places: int = sys.maxsize
    """Requests for answers that may be under way at once. The queue knows only of images that are read and decoded:
    of many requests that come together, those that cannot be answered soon are refused before anything is read."""
    ready: bool = False
    """A model has answered. Until then, and again when it is False, images are answered 503, and so is /readyz."""
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    """The server is about to end: streams of the page, which would last as long as a browser shows it, end."""


class Gate:
    """ASGI middleware, the service's outermost."""

    def __init__(self, app: ASGIApp, *, settings: Settings, front: Front) -> None:
        self._app = app
        self._settings = settings
        self._front = front
        self._key = as_bytes(settings.api_key) if settings.api_key else None
        self._inside = 0  # requests for answers that are under way
        self._calls = 0  # of the page's script, likewise
        self._most_calls = ofpage.at_once()
        self._held = Held(limits.BODIES_HELD * settings.max_body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection: HTTP, a websocket, or the server's own start and end."""
        match scope["type"]:
            case "http":
                await self._http(scope, receive, send)
            case "websocket":
                await self._websocket(scope, receive, send)
            case _:
                await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        most = self._settings.max_body
        call = _Call(scope, send, most)
        token = log.request_id.set(call.asks.id.decode())
        shown = not call.page and scope["path"] != METRICS  # which would always see itself
        if shown:
            metrics.IN_PROGRESS.inc()
        try:
            if (small := ofpage.FOR_BROWSERS.get(scope["path"])) is not None:
                return await call.reply.small(small)
            refusal = self._refusal(call)
            if refusal is None:
                refusal = await self._run(call, receive)
            if refusal is not None:
                with contextlib.suppress(OSError):  # what servers may raise if the client has gone
                    await call.reply.refuse(refusal)
        finally:
            if shown:
                metrics.IN_PROGRESS.dec()
            _note(call, start)
            log.request_id.reset(token)
        if call.reply.parting.lingers and call.reply.ended:
            await limits.drain(receive, most=DRAIN_BODIES * most, more=call.outstanding)
            await call.reply.end()

    def _refusal(self, call: "_Call") -> Refusal | None:
        """Why a request does not get in, as far as its headers and the server's state tell."""
        asks, path = call.asks, call.scope["path"]
        if self._key and path not in HEALTH and not authorised(asks.keys, self._key):
            return unauthorised()
        if path in CLASSIFY and call.scope["method"] == "POST":
            if not self._front.ready:
                return busy("not_ready", "the server is starting or ending", retry_after_s=1)
            if self._inside >= self._front.places:
                return busy("overloaded", "as many requests are under way as may", retry_after_s=1)
            if (seconds := self._front.retry_after()) is not None:
                return busy("overloaded", "as many images wait as may", retry_after_s=seconds)
        elif call.of_script and self._calls >= self._most_calls:
            return ofpage.overloaded()
        elif path == "/readyz" and not self._front.ready:
            return busy("not_ready", "no model has answered yet", retry_after_s=1)
        if asks.length is not None and asks.length > self._settings.max_body:
            return too_large(self._settings.max_body)
        return None

    async def _run(self, call: "_Call", receive: Receive) -> Refusal | None:
        """Let the application answer; gives the Refusal to answer if it did not."""
        reply = call.reply
        intake = call.intake = Intake(
            receive,
            self._held,
            max_body=self._settings.max_body,
            timeout_s=self._settings.timeout_s,
            has_body=call.asks.has_body,
            watches=not call.page,
            ending=self._front.ending,
        )
        refusal: Refusal | None = None
        counts = call.scope["path"] in CLASSIFY
        self._inside += counts
        self._calls += call.of_script
        try:
            await self._app(call.scope, intake, reply)
            if reply.status == 0 and intake.refusal is None:
                logger.error("the application gave no answer")
                refusal = failed()
        except asyncio.CancelledError:
            if intake.refusal is None or intake.cancelled_from_outside:
                reply.code = "cancelled"
                raise
        except Refusal as error:
            refusal = error
        except Exception:
            if intake.refusal is None:  # else the task was stopped, and this is how the application took it
                logger.exception("the application failed")
                refusal = failed()
        finally:
            intake.close()
            self._inside -= counts
            self._calls -= call.of_script
        refusal = intake.refusal or refusal
        if reply.status == 0 or refusal is None:
            return refusal
        if not reply.ended:  # too late to answer: the server closes the connection of an answer that is not complete
            reply.code = refusal.code
        return None

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        if self._key is None or authorised(_asks(scope).keys, self._key):
            return await self._app(scope, receive, send)
        await receive()
        await send({"type": "websocket.close", "code": 1008})  # before an accept, this is a 403
        metrics.rejected("unauthorised")
        log.access(
            client=_client(scope),
            method="WEBSOCKET",
            path=scope["path"],
            status=403,
            seconds=time.perf_counter() - start,
            code="unauthorised",
        )


class _Asks(NamedTuple):
    """What the headers say."""

    id: bytes
    keys: list[bytes]
    length: int | None
    has_body: bool
    expects_continue: bool
    closes: bool
    """The connection ends after the answer."""


class _Call:
    """One request under way."""

    __slots__ = ("asks", "intake", "max_body", "of_script", "page", "reply", "scope")

    def __init__(self, scope: Scope, send: Send, max_body: int) -> None:
        self.scope, self.max_body = scope, max_body
        self.asks = _asks(scope)
        path = scope["path"]
        self.page = metrics.is_page(path)
        self.of_script = ofpage.is_call(scope["method"], path)
        shape = ofpage.in_words if path.startswith(ofpage.CALLS) else None if self.page else in_shape
        told = ofpage.told if self.of_script else as_json
        self.reply = Reply(
            send, id=self.asks.id, path=scope.get("raw_path", b""), shape=shape, told=told, on_begin=self._begin
        )
        self.intake: Intake | None = None  # without one, the application has not been called

    @property
    def outstanding(self) -> bool:
        """Whether the client may have more to send."""
        return self.intake.outstanding if self.intake else self.asks.has_body

    def _begin(self) -> Parting:
        """Note that the answer begins; say how it leaves the connection, so that the client sees it.

        A short rest of a body is left to the web server, which reads and forgets it. A long or slow one, or one of
        unknown length, ends the connection, but only after reading on for a while: data that arrives at a closed
        connection takes the answer away from the client.
        """
        intake, asks = self.intake, self.asks
        if intake:
            intake.begun()
        if not self.outstanding:
            return KEEP
        if asks.expects_continue and not (intake and intake.asked):  # the client has not begun to send
            return Parting(closes=True, lingers=False)
        stopped = intake is not None and intake.refusal is not None
        if asks.length is None or asks.length > self.max_body or asks.closes or stopped:
            return Parting(closes=True, lingers=True)
        return KEEP


def _asks(scope: Scope) -> _Asks:
    id, keys, length, chunked, expects = b"", [], None, False, False
    closes = scope.get("http_version") == "1.0"
    for name, value in scope["headers"]:
        if name not in _READ:
            continue
        if name == b"content-length" and value.isdigit():
            length = int(value[:19])  # Python refuses to read very long numbers
        elif name == b"transfer-encoding" or name == b"content-length":
            chunked = True
        elif name == b"expect":
            expects = value.lower() == b"100-continue"
        elif name == b"connection":
            closes = closes or b"close" in value.lower()
        elif name == b"authorization":
            keys.append(value)
        elif name == b"x-request-id" and _ID.fullmatch(value):
            id = value
    id = id or os.urandom(8).hex().encode()
    return _Asks(id, keys, None if chunked else length, chunked or bool(length), expects, closes)


def _note(call: _Call, start: float) -> None:
    """Count and log a request that has been answered, or will not be."""
    reply, path = call.reply, call.scope["path"]
    end = time.perf_counter()
    seconds = (reply.began if call.page and reply.began else end) - start
    status = reply.status or 500
    metrics.done(metrics.endpoint_of(path), status, seconds)
    if reply.code is not None and status != limits.CLIENT_GONE:
        metrics.rejected(reply.code)
    if path not in QUIET:
        log.access(
            client=_client(call.scope),
            method=call.scope["method"],
            path=path,
            status=status,
            seconds=end - start,
            sent=reply.sent,
            received=call.intake.received if call.intake else 0,
            code=reply.code,
        )


def _client(scope: Scope) -> str | None:
    client = scope.get("client")
    return client[0] if client else None
