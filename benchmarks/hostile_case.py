"""A malformed request: what is sent, how, and what a server may answer."""

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Literal


REFUSED = frozenset({400, 413, 415, 422})
ANY = frozenset({200}) | REFUSED
"""What is wrong may be harmless: a bit of an image that changes a colour."""
FRONTIER = "frontier"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a good request to the server holds."""

    image: bytes
    """A PNG file."""
    shape: tuple[int, int, int]
    """(C, H, W) of the served model's input."""
    stall_s: float | None = None
    """After this time the server gives a body up that does not come; None: no case waits for it."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One connection: the parts are sent one after the other, then its end comes."""

    kind: str = ""
    about: str
    """What is wrong with it."""
    parts: tuple[bytes, ...]
    pause_s: float = 0.0
    """Between parts."""
    ending: Literal["answer", "close", "reset"] = "answer"
    """Wait for the answer; or close, or reset, the connection at once."""
    expect: frozenset[int] = REFUSED
    """Statuses that are right; 503 always is one."""
    shaped: bool = True
    """An error must have the server's own shape: not asked of the page, of WebSockets and of unknown methods."""
    may_close: bool = False
    """The server may close the connection without an answer."""
    wait_s: float = 15.0
    """Until then there must be an answer; where `may_close` holds, silence until then is fine too."""


def message(
    body: bytes = b"",
    *,
    path: str = "/classify",
    method: str = "POST",
    type: str | None = "application/json",
    headers: Iterable[str] = (),
    length: int | None = None,
) -> bytes:
    """A whole request; `length`: what Content-Length says, if not the truth."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    if type is not None:
        lines.append(f"Content-Type: {type}")
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body


def part(
    content: bytes, *, disposition: str = 'form-data; name="image"; filename="x.png"', type: str = "image/png"
) -> bytes:
    """A part of a form."""
    head = f"--{FRONTIER}\r\nContent-Disposition: {disposition}\r\nContent-Type: {type}\r\n\r\n"
    return head.encode("utf-8", "surrogateescape") + content + b"\r\n"


def form(body: bytes, *, path: str = "/classify", end: bytes = b"--frontier--\r\n") -> bytes:
    """A request with this form."""
    return message(body + end, path=path, type=f"multipart/form-data; boundary={FRONTIER}")


def upload(content: bytes, *, path: str = "/classify", type: str = "image/png") -> bytes:
    """A request that is right but for the file itself."""
    return form(part(content, type=type), path=path)


def junk(chance: Random, longest: int) -> bytes:
    """Random bytes, at least one."""
    return chance.randbytes(chance.randint(1, longest))
