"""Uploads: whole or cut off, none stays on the disk for long, and only so many are taken at a time."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serving_process import free_port

from serve.models import Models
from serve.ui import guard, page, uploads
from serve.ui.contenders import Contenders


MAX_BODY = 2 * uploads.LEAST_BYTES
HEAD = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of uploads, the test's own, looked through all the time and forgotten after two seconds."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # and afterwards what it was
    monkeypatch.setattr(uploads, "EVERY_S", 0.1)
    monkeypatch.setattr(uploads, "LEFT_S", 2.0)
    return uploads.folder()


@pytest.fixture
def shown(place: Path, bundle_dir: Path) -> Iterator[str]:
    """The URL of a page in this process; of its uploads four may be under way."""
    models, port = Models((str(bundle_dir),), provider="cpu"), free_port()
    blocks = page.build(Contenders(models, provider="cpu"), lambda predictor, image: predictor.predict(image[None])[0])
    options = page.options(MAX_BODY)
    blocks.launch(server_name="127.0.0.1", server_port=port, quiet=True, prevent_thread_lock=True, **options)
    yield f"http://127.0.0.1:{port}"
    blocks.close()
    models.close()


def lying(place: Path) -> list[Path]:
    """The files of the folder."""
    return [Path(where, name) for where, _, files in os.walk(place) for name in files]


def until_empty(place: Path) -> None:
    """Wait until nothing is left, no folder either."""
    deadline = time.monotonic() + 20
    while left := os.listdir(place):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def upload(url: str, content: bytes) -> httpx.Response:
    """Send a file."""
    return httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.png", content)})


def test_an_upload_that_is_cut_off_does_not_stay(shown: str, place: Path) -> None:
    with socket.create_connection(("127.0.0.1", int(shown.rpartition(":")[2]))) as client:
        length = f"Content-Length: {MAX_BODY}\r\n\r\n".encode()
        kind = b"Content-Type: multipart/form-data; boundary=x\r\n"
        client.sendall(b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\n" + kind + length + HEAD + bytes(20_000))
        deadline = time.monotonic() + 10
        while not any(path.stat().st_size for path in lying(place)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    until_empty(place)


def test_an_upload_is_there_for_a_while(shown: str, place: Path) -> None:
    (path,) = upload(shown, b"a picture").json()
    taken = {"path": path, "meta": {"_type": "gradio.FileData"}}
    assert uploads.uploaded(taken | {"orig_name": "a.png", "url": 5}) == taken
    assert Path(path).read_bytes() == b"a picture"
    until_empty(place)


def test_no_more_is_taken_than_may_lie_there(shown: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "LEFT_S", 600.0)
    monkeypatch.setattr(uploads, "FULL_BODIES", 4)
    taken = [upload(shown, os.urandom(10)).status_code for _ in range(4 * uploads.FULL_BODIES)]
    assert sorted(set(taken)) == [200, 503]
    # Each counts as half a body; the last one that is taken finds room for a whole one.
    assert taken.index(503) == 2 * uploads.FULL_BODIES - 1
    answer = upload(shown, b"one more")
    assert answer.json()["error"] == guard.FULL
    assert int(answer.headers["retry-after"]) > 0
    assert uploads.held(place) <= uploads.FULL_BODIES * MAX_BODY
    monkeypatch.setattr(uploads, "LEFT_S", 0.0)
    until_empty(place)
    assert upload(shown, b"again").status_code == 200


def test_only_what_is_old_is_swept(tmp_path: Path) -> None:
    old, new, empty = tmp_path / "a" / "old.png", tmp_path / "b" / "new.png", tmp_path / "c"
    for path in (old, new):
        path.parent.mkdir()
        path.write_bytes(bytes(70_000))
    empty.mkdir()
    (tmp_path / "tmpcut").write_bytes(b"cut off")
    for path in (old, old.parent, new.parent, empty, tmp_path / "tmpcut"):
        os.utime(path, (time.time() - 100,) * 2)
    assert uploads.held(tmp_path) == 2 * 70_000 + uploads.LEAST_BYTES
    uploads.sweep(tmp_path, older_than_s=50)
    assert lying(tmp_path) == [new]
    assert not empty.exists()


def test_a_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"tserve-{os.getuid()}").symlink_to("/var")
    with pytest.raises(OSError, match=r"not a folder of this user; remove it, or let TMPDIR name"):
        uploads.folder()
