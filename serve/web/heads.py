"""Requests up to the gate: their heads within limits of bytes and time, and what is no HTTP answered in the one shape.

uvicorn's own protocol keeps a head of any length, in quadratic time if it is one line, waits for its end for ever, and
answers malformed HTTP in plain text.
"""

import asyncio
import os
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve import log, metrics
from serve.web.shape import Refusal


MOST = 64 * 1024
"""Bytes of a request's line, headers and trailers, and of anything else that is no part of a body."""
LINGER_S, DRAIN = 1.0, 16 * MOST
"""So long, and so many bytes, may a refused client go on sending: data that arrives at a closed connection takes the
answer away."""


class Protocol(HttpToolsProtocol):
    """One connection. Once it is refused, what still arrives is thrown away."""

    def __init__(self, *arguments: Any, timeout_s: float, **more: Any) -> None:
        """`timeout_s`: a head must be complete so long after its beginning."""
        super().__init__(*arguments, **more)
        self._timeout_s = timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._left = False
        """The connection is refused, or no longer HTTP."""
        self._refusal: Refusal | None = None
        """Why the parser was stopped; None: what it was fed is no HTTP."""
        self._open = False
        """A head has begun and is not complete."""
        self._told = 0
        """Bytes of the head, and of trailers, that the parser has told of."""
        self._thrown = 0
        """Bytes that arrived at a refused connection."""
        self._untold = 0
        """Bytes since it last told of a part of a message: of a header without an end, say."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Wait for a first head."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on. In place of uvicorn's, which logs in words of its own."""
        if self._left:
            self._thrown += len(data)
            if self._thrown > DRAIN:
                self.transport.close()
            return
        self._unset_keepalive_if_required()
        self._untold += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self._left = True
                self.handle_websocket_upgrade()
        except httptools.HttpParserError:
            self._refuse(self._refusal or _malformed())
        else:
            if self._untold > MOST:
                self._refuse(_too_large())
            elif self._timer is None and (self._open or not self._answering):
                self._wait()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._stop_waiting()
        self._open, self._told, self._untold = True, 0, 0

    def on_url(self, url: bytes) -> None:
        """A part of the request's line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._open, self._untold = False, 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body; its limits are the gate's."""
        self._untold = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there."""
        self._untold = 0
        super().on_message_complete()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _count(self, size: int) -> None:
        self._told += size
        if self._told > MOST:
            self._refusal = _too_large()
            raise ValueError(self._refusal)  # through the parser, which stops, to data_received

    def _wait(self) -> None:
        self._timer = self.loop.call_later(self._timeout_s, self._late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self._left or self.transport.is_closing():
            return
        if self._answering:
            self._wait()
        elif self._open:
            self._refuse(_too_slow(self._timeout_s))
        else:  # nothing that could be answered, or the rest of a request that was answered long ago
            self.transport.close()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer, and end the connection and what is under way on it."""
        self._left = True
        self._stop_waiting()
        begun = self._answering and self.cycle.response_started
        self.pipeline.clear()
        if self._answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        id = os.urandom(8).hex()
        if not begun:
            self.transport.write(self._answer(refusal, id))
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER_S, self.transport.close)
        else:
            self.transport.close()
        self._note(refusal, id)

    def _answer(self, refusal: Refusal, id: str) -> bytes:
        body = refusal.body.model_dump_json().encode()
        headers = [*self.server_state.default_headers, (b"content-type", b"application/json")]
        headers += [(b"content-length", b"%d" % len(body)), (b"x-request-id", id.encode()), (b"connection", b"close")]
        line = f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}".encode()
        return b"\r\n".join([line, *(b": ".join(header) for header in headers), b"", body])

    def _note(self, refusal: Refusal, id: str) -> None:
        metrics.done(metrics.OTHER, refusal.status, 0.0)
        metrics.rejected(refusal.code)
        token = log.request_id.set(id)
        client = self.client[0] if self.client else None
        log.access(client=client, method="", path="", status=refusal.status, seconds=0.0, code=refusal.code)
        log.request_id.reset(token)


def _malformed() -> Refusal:
    hint = "send HTTP/1.1, without TLS; the API is described at / and /docs.json"
    return Refusal(HTTPStatus.BAD_REQUEST, "bad_http", "this is no HTTP request", hint)


def _too_large() -> Refusal:
    status, message = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the headers are over {MOST // 1024} KB"
    return Refusal(status, "headers_too_large", message, "send fewer or shorter headers, or a shorter address")


def _too_slow(timeout_s: float) -> Refusal:
    message = f"the headers were not complete after {timeout_s:g} s"
    return Refusal(HTTPStatus.REQUEST_TIMEOUT, "headers_too_slow", message, "send them at once")
