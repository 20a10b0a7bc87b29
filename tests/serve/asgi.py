"""Speak to an ASGI application by hand, or through a uvicorn of its own."""

import asyncio
import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Scope


WAIT_S = 10
"""A test fails rather than wait longer."""


@dataclass
class Answer:
    """What an application has sent."""

    messages: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int:
        return self.messages[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        """Of several headers of one name, the last."""
        return {name.decode().lower(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def error(self) -> dict[str, str]:
        return json.loads(self.body)["error"]

    @property
    def complete(self) -> bool:
        return bool(self.messages[1:]) and not self.messages[-1].get("more_body", False)


def scope(path: str = "/classify", method: str = "POST", headers: Iterable[tuple[bytes, bytes]] = ()) -> Scope:
    """What a server says of a request."""
    common = {"path": path, "raw_path": path.encode(), "query_string": b"", "client": ("10.0.0.1", 4711)}
    return {"type": "http", "method": method, "headers": list(headers), "asgi": {"spec_version": "2.3"}, **common}


def chunk(body: bytes = b"", more: bool = False) -> Message:
    """A part of a request's body."""
    return {"type": "http.request", "body": body, "more_body": more}


GONE: Message = {"type": "http.disconnect"}


class Client:
    """One request by hand: `messages` come one after the other (a number is a pause in seconds), then nothing."""

    def __init__(self, *messages: Message | float) -> None:
        self._messages = list(messages)
        self.answer = Answer()
        self.asked = 0

    async def receive(self) -> Message:
        self.asked += 1
        while self._messages:
            message = self._messages.pop(0)
            if not isinstance(message, int | float):
                return message
            await asyncio.sleep(message)
        return await asyncio.get_running_loop().create_future()

    async def send(self, message: Message) -> None:
        self.answer.messages.append(message)


async def ask(app: ASGIApp, *messages: Message | float, **about: Any) -> Answer:
    """Send one request and wait for the end of the application."""
    client = Client(*(messages or [chunk()]))
    async with asyncio.timeout(WAIT_S):
        await app(scope(**about), client.receive, client.send)
    return client.answer


@contextlib.contextmanager
def served(app: ASGIApp, http: Any) -> Iterator[int]:
    """Serve with uvicorn in a thread, as BentoML sets it, by the protocol `http`; gives the port."""
    config = uvicorn.Config(app, port=0, http=http, log_config=None, server_header=False, lifespan="off")
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: server.started)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(WAIT_S)
    assert not thread.is_alive(), "uvicorn does not end: a request is still being answered"


def until(condition: Any) -> None:
    """Wait until `condition` gives something true."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Records(logging.Handler):
    """The records of a logger and of those below it."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.all.append(record)

    def lines(self) -> list[dict[str, Any]]:
        """The fields of the access log."""
        return [vars(record) for record in self.all if record.name == "serve.access"]


@contextlib.contextmanager
def recorded(name: str = "serve") -> Iterator[Records]:
    """Collect what is logged."""
    logger, handler = logging.getLogger(name), Records()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
