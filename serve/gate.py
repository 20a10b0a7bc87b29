"""The gate in front of the service: no body over the limit gets in, and every error goes out in one shape.

BentoML itself reads bodies of any size and answers errors in four shapes (an object, a list, plain text, nothing).
"""

import json
from http import HTTPStatus

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.schema import ErrorBody, ErrorDetail


MAX_BODY = 10 * 1024 * 1024
DRAIN = 4 * MAX_BODY
_HINTS = {
    HTTPStatus.NOT_FOUND: "POST /classify, POST /classify_batch, GET /model, GET /ui; the whole list is at /docs.json",
    HTTPStatus.METHOD_NOT_ALLOWED: "POST to /classify and /classify_batch, GET /model and /ui",
    HTTPStatus.INTERNAL_SERVER_ERROR: "this is the server's fault: its log says more",
    HTTPStatus.SERVICE_UNAVAILABLE: "the server is busy or starting: try again in a moment",
}


class Refusal(Exception):
    """A request that is answered with an error: HTTP status, code for programs, what is wrong, what to send."""

    def __init__(self, status: HTTPStatus, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorBody(error=ErrorDetail(code=code, message=message, hint=hint))

    @property
    def response(self) -> JSONResponse:
        """The HTTP answer."""
        return JSONResponse(self.body.model_dump(), status_code=self.status)


def too_large() -> Refusal:
    """The refusal of a body over MAX_BODY."""
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "body_too_large",
        f"the request body is over {MAX_BODY // 2**20} MB",
        "send a smaller image, or fewer images at a time",
    )


class Gate:
    """ASGI middleware: limits bodies (declared length, and what really comes in chunks) and shapes errors."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything but HTTP passes."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        bounded = _Bounded(receive)
        reply = _Shaped(send, shape=not scope["path"].startswith("/ui"))
        try:
            if declared.isdigit() and int(declared) > MAX_BODY:
                raise too_large()
            await self.app(scope, bounded, reply)
        except Refusal as refusal:
            if reply.started:
                raise
            await bounded.drain()
            await refusal.response(scope, receive, send)


class _Bounded:
    """A `receive` that raises a Refusal after MAX_BODY bytes."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._seen = 0
        self._more = True

    async def __call__(self) -> Message:
        message = await self._next()
        if self._seen > MAX_BODY:
            raise too_large()
        return message

    async def drain(self) -> None:
        """Read on, up to DRAIN: a client that is still sending would not see the answer, only a closed connection."""
        while self._more and self._seen < DRAIN:
            await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        self._more = message.get("more_body", False)
        return message


class _Shaped:
    """A `send` that gives errors the shape of ErrorBody if they have another."""

    def __init__(self, send: Send, *, shape: bool) -> None:
        self._send = send
        self._shape = shape
        self._start: Message | None = None
        self._body = b""
        self.started = False

    async def __call__(self, message: Message) -> None:
        self.started = True
        if message["type"] == "http.response.start" and message["status"] >= 400 and self._shape:
            self._start = message
        elif self._start is None or message["type"] != "http.response.body":
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._send_shaped(self._start)

    async def _send_shaped(self, start: Message) -> None:
        body = self._body if _has_shape(self._body) else _in_shape(HTTPStatus(start["status"]), self._body)
        replaced = (b"content-length", b"content-type")
        headers = [(name, value) for name, value in start["headers"] if name.lower() not in replaced]
        headers += [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _has_shape(body: bytes) -> bool:
    try:
        ErrorBody.model_validate_json(body)
    except ValueError:
        return False
    return True


def _in_shape(status: HTTPStatus, body: bytes) -> bytes:
    """The error in one shape; `body` is what BentoML or Starlette said: JSON with an "error", or plain text."""
    try:
        said = json.loads(body)
        said = said[0] if isinstance(said, list) else said
        message = str(said.get("error") or said["detail"])
    except (ValueError, LookupError, TypeError, AttributeError):
        message = body.decode("utf-8", "replace").strip() or status.phrase
    hint = _HINTS.get(status, "the API is described at / and /docs.json")
    return ErrorBody(error=ErrorDetail(code=status.name.lower(), message=message, hint=hint)).model_dump_json().encode()
