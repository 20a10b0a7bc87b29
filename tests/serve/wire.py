"""HTTP by hand on a socket: what a client library would not send, and exactly one answer read; and who answers."""

import asyncio
import http.client
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from asgi import WAIT_S, Records
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from serve.web.gate import Front


@dataclass
class Service:
    """A running server, and what its application has done."""

    port: int
    front: Front
    records: Records
    cancelled: list[str] = field(default_factory=list)

    def connect(self) -> socket.socket:
        """A connection to it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)


def application(service: Service) -> Starlette:
    """Echoes, waits, fails, breaks off, streams."""

    async def echo(request: Request) -> Response:
        return PlainTextResponse(await request.body(), headers={"server": "secret/1.2"})

    async def wait(request: Request) -> Response:
        await request.body()
        try:
            await asyncio.sleep(WAIT_S)
        except asyncio.CancelledError:
            service.cancelled.append(request.url.path)
            raise
        return PlainTextResponse("waited")

    async def fails(request: Request) -> Response:
        raise KeyError("/srv/secret.py")

    async def breaks(request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"half"
            raise KeyError("/srv/secret.py")

        return StreamingResponse(parts())

    async def events(request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            for n in range(4):
                yield b"data: %d\n\n" % n
                await asyncio.sleep(0.3)

        return StreamingResponse(parts(), media_type="text/event-stream")

    return Starlette(
        routes=[
            Route("/classify", echo, methods=["POST"]),
            Route("/classify_batch", wait, methods=["POST"]),
            Route("/fails", fails),
            Route("/breaks", breaks),
            Route("/ui/events", events),
        ]
    )


def post(body: bytes, path: str = "/classify", *headers: str, length: int | None = None) -> bytes:
    """A request with a Content-Length, by default the true one."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunked(path: str = "/classify", *headers: str) -> bytes:
    """The beginning of a request whose body comes in chunks."""
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", *headers, "", ""]).encode()


def answer(connection: socket.socket, method: str = "POST") -> tuple[int, bytes, http.client.HTTPMessage]:
    """Read one answer and not a byte beyond it."""
    response = http.client.HTTPResponse(connection, method=method)
    response.fp.close()
    response.fp = connection.makefile("rb", buffering=0)  # type: ignore[assignment]
    response.begin()
    return response.status, response.read(), response.headers


def code(body: bytes) -> str:
    """The code of an error in the one shape."""
    return json.loads(body)["error"]["code"]


def closes(connection: socket.socket) -> bool:
    """Whether the server ends the connection."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    return True
