"""Several processes that need the same data set at once: one fetches or unpacks it, the others wait."""

import fcntl
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Thread

import pytest

from train.config import DataConfig
from train.data import load
from train.datasets import events
from train.datasets.published import BadFile, Source, read_or_fetch
from train.record import in_turn


SOURCE = Source(title="Numbers", folder="numbers", by_hand="them", download_MB=1)


def together(work: Callable[[], object], count: int) -> None:
    """Run `work` in threads, whose locks exclude each other as those of processes do."""
    threads = [Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_one_of_several_fetches_and_all_read(tmp_path: Path) -> None:
    path, all_missed, found, fetches = tmp_path / "data/numbers", Barrier(4), [], []

    def work() -> None:
        first = True

        def read() -> str:
            nonlocal first
            there = path.exists()
            if first:
                first = False
                all_missed.wait(30)
            if not there:
                raise BadFile("missing")
            return path.read_text()

        def fetch() -> None:
            fetches.append(1)
            path.write_text("123")

        config = DataConfig(root=tmp_path / "data", download=True)
        found.append(read_or_fetch(SOURCE, config, read=read, fetch=fetch))

    together(work, 4)
    assert (found, fetches) == (["123"] * 4, [1])


def test_recordings_are_unpacked_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work: list[int] = []

    def unpack(*_: object) -> None:
        at_work.append(len(at_work))
        assert not locked_by_nobody(tmp_path)
        raise ValueError("unpacked")

    monkeypatch.setattr(events, "_files", unpack)
    (tmp_path / "DVS128Gesture").mkdir()
    with pytest.raises(ValueError, match="unpacked"):
        load(DataConfig(name="dvs_gesture", root=tmp_path))
    assert at_work == [0]
    assert locked_by_nobody(tmp_path)


def locked_by_nobody(folder: Path) -> bool:
    """Whether the turn of a folder could be taken now."""
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_folder_that_cannot_be_written_needs_no_turns(tmp_path: Path) -> None:
    with in_turn(tmp_path / "none"):
        assert not list(tmp_path.iterdir())
