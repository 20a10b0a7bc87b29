"""What stands before Gradio: of what is sent to the page's server, it lets through what the page itself sends.

Gradio answers values of wrong types with a trace in the log and its own words, which may name folders of the server;
and it keeps the values of every session for an hour, pictures of people among them.
"""

import json
from http import HTTPStatus
from typing import Any

import anyio
import gradio as gr
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.ui import uploads


UPLOAD, CLICKS = "/gradio_api/upload", ("/gradio_api/run/", "/gradio_api/api/")
NOT_OURS = "This is nothing that the page asks for."
CHANGED = "The page has changed at the server: load it again."
FULL = "As many files have been uploaded as the server keeps at a time: try again in some minutes."
RETRY_AFTER_S = 120


class Guard:
    """ASGI middleware of the page's application."""

    def __init__(self, app: ASGIApp, *, max_body: int) -> None:
        """Let uploads through while fewer than so many bodies of `max_body` bytes lie on the disk."""
        self._app, self._max_body = app, max_body
        self._coming = 0  # bytes of uploads that are under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["method"] == "POST":
            path = scope["path"].rstrip("/")
            if path.endswith(UPLOAD):
                return await self._upload(scope, receive, send)
            if any(part in path for part in CLICKS):
                return await self._click(scope, receive, send)
            return await _refuse(HTTPStatus.NOT_FOUND, NOT_OURS)(scope, receive, send)  # Gradio has twenty more
        await self._app(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._coming += self._max_body
        try:
            here = await anyio.to_thread.run_sync(uploads.held, uploads.folder())
            if here + self._coming > uploads.FULL_BODIES * self._max_body:
                headers = {"Retry-After": str(RETRY_AFTER_S)}
                await _refuse(HTTPStatus.SERVICE_UNAVAILABLE, FULL, headers)(scope, receive, send)
            else:
                await self._app(scope, receive, send)
        finally:
            self._coming -= self._max_body

    async def _click(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            return
        events = scope["app"].get_blocks().fns
        try:
            asked = json.loads(body)
            event, values = asked["fn_index"], list(asked["data"])
        except (ValueError, LookupError, TypeError, RecursionError):
            return await _refuse(HTTPStatus.BAD_REQUEST, NOT_OURS)(scope, receive, send)
        if type(event) is not int or event not in events or len(values) != len(events[event].inputs):
            return await _refuse(HTTPStatus.NOT_FOUND, CHANGED)(scope, receive, send)
        cleaned = [clean(part, value) for part, value in zip(events[event].inputs, values, strict=True)]
        # Without a session's name Gradio keeps nothing of it, nor makes components of its own for it.
        content = json.dumps({"fn_index": event, "data": cleaned}).encode()
        await self._app(scope, _instead(content, receive), send)


def clean(part: Any, value: Any) -> Any:
    """A value as Gradio takes it for a component: an upload, a text, a number, or None for anything else."""
    if isinstance(part, gr.File):
        return uploads.uploaded(value)
    return value if isinstance(value, int | float) or (isinstance(value, str) and _is_text(value)) else None


def _is_text(value: str) -> bool:
    """Whether it can be written: JSON may hold halves of characters."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _refuse(status: HTTPStatus, words: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as the page's script shows it; with a title, as all that is meant for the visitor."""
    return JSONResponse({"error": words, "title": "Error", "visible": True, "duration": 10}, status, headers)


def _instead(body: bytes, receive: Receive) -> Receive:
    """Give this body, and then what else comes from the client: that it goes."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def told() -> Message:
        return left.pop() if left else await receive()

    return told
