"""Where the files that visitors upload lie: one folder, of which so much may be full, and nothing stays for long.

Gradio removes a file that came whole ten minutes later. Of one that was cut off or refused it leaves what had come, and
of a process that was killed everything, for ever: what is older than that is removed here.
"""

import asyncio
import contextlib
import os
import re
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio


EVERY_S, KEPT_S = 60, 600
"""Looked through every minute; an upload stays on disk ten minutes."""
LEFT_S = 2 * EVERY_S + KEPT_S
"""The age of what Gradio has forgotten."""
FULL_BODIES = 32
"""As many of the longest bodies may lie there."""
LEAST_BYTES = 2**16
"""What a file counts at least: a million small ones are too many too."""
_UPLOADED = re.compile(r"[0-9a-f]{64}/[^/\0]{1,255}")


def folder() -> Path:
    """Give the folder of this user's servers, made if need be: any of several worker processes may be asked for a file.

    Raises OSError where it is another's.
    """
    path = Path(tempfile.gettempdir()).resolve() / f"tserve-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise OSError(f"{path}: not a folder of this user; remove it, or let TMPDIR name a place for uploads")
    return path


def uploaded(value: Any) -> dict[str, Any] | None:
    """What a browser says it has uploaded, as Gradio takes it; None where no upload can lie there."""
    path = value.get("path") if isinstance(value, dict) else None
    base = f"{folder()}/"
    if not isinstance(path, str) or not path.startswith(base) or not _UPLOADED.fullmatch(path.removeprefix(base)):
        return None
    return None if path.endswith(("/.", "/..")) else {"path": path, "meta": {"_type": "gradio.FileData"}}


def held(base: Path) -> int:
    """How many bytes lie in the folder."""
    return sum(max(found.st_size, LEAST_BYTES) for _, found in _entries(base) if not stat.S_ISDIR(found.st_mode))


def sweep(base: Path, *, older_than_s: float) -> None:
    """Remove what has not been written to for so long, and folders that have been empty for so long."""
    before = time.time() - older_than_s
    for path, found in _entries(base):
        if found.st_mtime < before:
            with contextlib.suppress(OSError):  # another process sweeps too; or a folder is not empty
                path.rmdir() if stat.S_ISDIR(found.st_mode) else path.unlink()


@contextlib.asynccontextmanager
async def swept(_: Any) -> AsyncIterator[None]:
    """Sweep at the beginning and every minute, as long as an application lives (its lifespan)."""
    task = asyncio.create_task(_sweeping(folder()))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _sweeping(base: Path) -> None:
    while True:
        await anyio.to_thread.run_sync(lambda: sweep(base, older_than_s=LEFT_S))
        await asyncio.sleep(EVERY_S)


def _entries(base: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All that lies in the folder, what is in a folder before it."""
    for where, folders, files in os.walk(base, topdown=False):
        for name in (*files, *folders):
            with contextlib.suppress(OSError):  # gone meanwhile
                path = Path(where, name)
                yield path, path.lstat()
