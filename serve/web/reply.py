"""What goes out: errors in one shape, every answer with the request's id, none with what tells about the server.

A redirect to the same path with or without its last slash is given relative to it: behind a proxy the server knows
neither the scheme nor the name that its clients use, and would send them away from TLS.
"""

import time
from collections.abc import Callable
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from starlette.types import Message, Send

from serve.web.shape import Refusal


_DROPPED = frozenset({b"server", b"x-powered-by", b"x-bentoml-request-id", b"x-bentoml-trace-id", b"x-request-id"})
_REPLACED = frozenset({b"content-length", b"content-type"})
Shape = Callable[[int, bytes], tuple[bytes, str] | None]
"""From an error's status and body to the JSON and the code that are answered; None: it stays as it is."""
_LONGEST_ERROR = 64 * 1024  # bytes of another's error that are read; messages are far shorter


class Parting(NamedTuple):
    """How an answer leaves its connection."""

    closes: bool
    """Tell the client that it ends."""
    lingers: bool
    """Leave the answer open for `Reply.end`; the client has all of it, and may still be sending."""


KEEP = Parting(closes=False, lingers=False)


class Reply:
    """A `send` that knows what it has sent. Nothing but errors that are given a shape is held back."""

    __slots__ = (
        "_body",
        "_held",
        "_id",
        "_on_begin",
        "_path",
        "_send",
        "_shape",
        "_told",
        "began",
        "code",
        "ended",
        "parting",
        "sent",
        "status",
    )

    def __init__(
        self,
        send: Send,
        *,
        id: bytes,
        path: bytes,
        shape: Shape | None,
        told: Callable[[Refusal], bytes],
        on_begin: Callable[[], "Parting"],
    ) -> None:
        """`path` is the request's, as it came; `told` puts a refusal into JSON; `on_begin` is asked just before the
        answer's first part goes out."""
        self._send, self._id, self._path, self._on_begin = send, id, path, on_begin
        self._shape, self._told = shape, told
        self._held: Message | None = None
        self._body = b""
        self.status = 0
        """HTTP status; 0 before the answer has begun."""
        self.code: str | None = None
        """Of the error that was answered."""
        self.sent = 0
        """Bytes of the body."""
        self.began: float | None = None
        """When, by time.perf_counter, the answer's first part went out."""
        self.ended = False
        """The answer is complete, but for what `end` sends."""
        self.parting = KEEP

    async def __call__(self, message: Message) -> None:
        """Send what the application says."""
        match message["type"]:
            case "http.response.start" if self._shape and message["status"] >= 400:
                self._held = message
            case "http.response.start":
                await self._start(message)
            case "http.response.body" if self._held is not None:
                self._body += message.get("body", b"")[: _LONGEST_ERROR - len(self._body)]
                if not message.get("more_body"):
                    await self._send_shaped(self._held)
            case "http.response.body":
                await self._part(message)
            case _:
                await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with an error."""
        self.code = refusal.code
        body = self._told(refusal)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
        await self._start({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self._part({"type": "http.response.body", "body": body})

    async def small(self, content: bytes) -> None:
        """Answer that all is well, with a little JSON, or with nothing."""
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))] if content else []
        status = HTTPStatus.OK if content else HTTPStatus.NO_CONTENT
        await self._start({"type": "http.response.start", "status": status, "headers": headers})
        await self._part({"type": "http.response.body", "body": content})

    async def end(self) -> None:
        """Complete an answer whose parting lingers: the server closes the connection."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self, message: Message) -> None:
        self.status, self.began = message["status"], time.perf_counter()
        self.parting = self._on_begin()
        headers = [header for header in message.get("headers", ()) if header[0].lower() not in _DROPPED]
        if 300 <= self.status < 400:
            headers = [(name, here(value, self._path) if name == b"location" else value) for name, value in headers]
        headers.append((b"x-request-id", self._id))
        if self.parting.closes:
            headers.append((b"connection", b"close"))
        await self._send({**message, "headers": headers})

    async def _part(self, message: Message) -> None:
        self.sent += len(message.get("body", b""))
        self.ended = not message.get("more_body", False)
        await self._send({**message, "more_body": True} if self.ended and self.parting.lingers else message)

    async def _send_shaped(self, start: Message) -> None:
        assert self._shape is not None
        shaped = self._shape(start["status"], self._body)
        if shaped is None:
            await self._start(start)
            return await self._part({"type": "http.response.body", "body": self._body})
        body, self.code = shaped
        headers = [header for header in start.get("headers", ()) if header[0].lower() not in _REPLACED]
        headers += [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        await self._start({**start, "headers": headers})
        await self._part({"type": "http.response.body", "body": body})


def as_json(refusal: Refusal) -> bytes:
    """A refusal in the one shape."""
    return refusal.body.model_dump_json().encode()


def here(location: bytes, path: bytes) -> bytes:
    """Where a redirect leads, relative to `path` if that is the same but for slashes at its end; else as it is."""
    target, asked = urlsplit(location.decode("latin-1")), path.decode("latin-1")
    if unquote(target.path).rstrip("/") != unquote(asked).rstrip("/"):
        return location
    up = "../" * (asked.count("/") - 1) or "./"
    return (up + target.path.lstrip("/") + (f"?{target.query}" if target.query else "")).encode("latin-1")
