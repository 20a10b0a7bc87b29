"""Requests as bytes, made before anything is timed."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Request(NamedTuple):
    """A request ready to be sent. Between head and body comes an empty line, and before that more header lines."""

    head: bytes
    body: bytes = b""


def multipart(image: bytes, *, path: str = "/classify", headers: Iterable[str] = ()) -> Request:
    """A POST of one file field `image`."""
    part = b'Content-Disposition: form-data; name="image"; filename="image"\r\nContent-Type: image/png'
    body = b"--frontier\r\n" + part + b"\r\n\r\n" + image + b"\r\n--frontier--\r\n"
    return post(path, body, type="multipart/form-data; boundary=frontier", headers=headers)


def post(path: str, body: bytes, *, type: str, headers: Iterable[str] = ()) -> Request:
    """A POST of `body`; `headers` are whole lines."""
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {type}", f"Content-Length: {len(body)}")
    return Request("\r\n".join((*lines, *headers)).encode(), body)


def get(path: str) -> Request:
    """A GET."""
    return Request(f"GET {path} HTTP/1.1\r\nHost: localhost".encode())


def pictures(folder: Path, *, limit: int | None = None) -> list[bytes]:
    """The image files of a folder, by name."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    if not files:
        raise ValueError(f"{folder}: no .png, .jpg or .webp files")
    return [path.read_bytes() for path in files[:limit]]
