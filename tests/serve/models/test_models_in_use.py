"""Models are renewed while they are used, and what is not used any more is freed."""

import contextlib
import gc
import json
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from bundle_versions import (
    VERSIONS,
    export_over,
    rename,
    who,
    write_over,
)

from serve import models
from serve.models import Models


@contextlib.contextmanager
def running(threads: list[threading.Thread], stop: threading.Event) -> Iterator[None]:
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_callers_see_whole_bundles_during_50_replacements(
    folder: Path, versions: dict[str, Path], answers: dict[str, np.ndarray]
) -> None:
    """Written over in place, which is the worst way, and renamed, while threads ask and others look."""
    served, stop = Models([str(folder)]), threading.Event()
    seen: list[set[str]] = [set(), set(), set()]
    failures: list[BaseException] = []

    def ask(mine: set[str]) -> None:
        try:
            while not stop.is_set():
                mine.add(who(served.get(), answers))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(mine,)) for mine in seen]
    served.watch(0.001)
    with running(threads, stop):
        for swap in range(50):
            version = VERSIONS[(swap + 1) % 3]
            (write_over if swap % 2 else export_over)(folder, versions[version])
            served.look()
            assert who(served.get(), answers) == version
    served.close()
    assert not failures
    assert all(mine == set(VERSIONS) for mine in seen)


def test_the_old_one_is_freed_when_its_last_user_goes(folder: Path, versions: dict[str, Path]) -> None:
    """At once, by counting references: an idle server's garbage collector may not run for hours."""
    served = Models([str(folder)])
    user = served.get()
    old, session = weakref.ref(user.predictor), weakref.ref(user.predictor.whole.steps._session)
    gc.collect()
    gc.disable()
    try:
        (folder / "bundle.json").write_text("{")
        served.look()  # a refusal must not hold it either
        write_over(folder, versions["two"])
        served.look()
        assert old() is not None
        assert session() is not None
        del user
        assert old() is None
        assert session() is None
    finally:
        gc.enable()


def test_a_refused_bundle_is_freed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model is opened before it is seen not to fit."""
    served = Models([str(folder)])
    opened: list[weakref.ref] = []
    original = models.Predictor._open

    def noted(self: models.Predictor, *arguments: Any) -> ort.InferenceSession:
        opened.append(weakref.ref(self))
        return original(self, *arguments)

    monkeypatch.setattr(models.Predictor, "_open", noted)
    fields = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(fields | {"synapses": fields["synapses"] * 2}))
    gc.collect()
    gc.disable()
    try:
        served.look()
        assert opened
        assert [gone() for gone in opened] == [None] * len(opened)
    finally:
        gc.enable()


def test_memory_is_given_back_at_the_look_after_a_change(
    folder: Path, versions: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = iter(range(100))
    monkeypatch.setattr(models, "trim", lambda: next(count))
    monkeypatch.setattr(models, "young", lambda stamp: False)
    served = Models([str(folder)])
    served.look()  # what opening them has left
    for version in VERSIONS[1:]:
        write_over(folder, versions[version])
        served.look()  # requests may have the old one yet
        for _ in range(3):
            served.look()
    assert next(count) == 3


def test_the_thread_looks_until_it_is_told_not_to(folder: Path, versions: dict[str, Path]) -> None:
    served = Models([str(folder)])
    served.watch(0)
    assert "serve.models" not in {thread.name for thread in threading.enumerate()}
    served.watch(0.01)
    rename(folder, versions["two"])
    deadline = time.monotonic() + 20
    while served.default != "two" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert served.default == "two"
    served.close()
    assert "serve.models" not in {thread.name for thread in threading.enumerate()}
    assert served.get().name == "two"
