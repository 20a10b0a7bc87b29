"""Data sets that were published as files with known md5 sums, and fetching them through torchvision."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path
from typing import TypeVar

from train.config import DataConfig
from train.record import in_turn


Read = TypeVar("Read")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a published set lies."""

    title: str
    folder: str
    """Below data.root, as torchvision lays it out."""
    by_hand: str
    """What to put there in another way."""
    download_MB: int


class BadFile(ValueError):
    """A file of the set is missing or is not the published one."""


def read_or_fetch(source: Source, config: DataConfig, *, read: Callable[[], Read], fetch: Callable[[], object]) -> Read:
    """What `read` gives; where it finds a BadFile and data.download is set, what it gives after `fetch`. Of several
    processes (torchrun's all come here) one fetches, and the others wait for it."""
    try:
        return read()
    except BadFile:
        if not config.download:
            raise
    config.root.mkdir(parents=True, exist_ok=True)
    with in_turn(config.root):
        return _fetched(source, config, read=read, fetch=fetch)


def _fetched(source: Source, config: DataConfig, *, read: Callable[[], Read], fetch: Callable[[], object]) -> Read:
    """What `read` gives, after `fetch` if another process has not done it meanwhile."""
    with suppress(BadFile):
        return read()
    print(f"Fetching {source.title} ({source.download_MB} MB) to {config.root / source.folder}", flush=True)
    try:
        fetch()
    except (OSError, RuntimeError) as error:  # no network, no space, or not the file that was expected
        raise ValueError(
            f"{source.title} could not be fetched: {error}. Put {source.by_hand} into {config.root / source.folder}"
        ) from error
    return read()


def checked(path: Path, expected: str, source: Source, config: DataConfig) -> bytes:
    """A file's bytes, which are the published ones: nothing of a file is interpreted before its md5 is right."""
    root = "" if config.root == DataConfig().root else f" --data.root {config.root}"
    get = f"get it with: python -m train.distill --data.name {config.name} --data.download{root}"
    get = f"{get} ({source.download_MB} MB)"
    if not path.is_file():
        raise BadFile(f"{source.title}: {path} is missing (md5 {expected}); {get}")
    content = path.read_bytes()
    found = md5(content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise BadFile(f"{source.title}: {path} is damaged: its md5 is {found}, expected {expected}; {get}")
    return content
