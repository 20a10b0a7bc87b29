"""A new bundle takes the place of an old one at the next look: whole, or not at all."""

import filecmp
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bundle_versions import Clock, copy, export_over, rename, turn_link, who, write_over

from serve import bundle, models, sources
from serve.models import Models, UnknownModel


@pytest.mark.parametrize("switch", [rename, turn_link, write_over, export_over])
def test_a_replaced_bundle_takes_over_at_the_next_look(
    tmp_path: Path,
    versions: dict[str, Path],
    answers: dict[str, np.ndarray],
    told: list,
    switch: Callable[[Path, Path], None],
) -> None:
    folder = tmp_path / "served"
    turn_link(folder, versions["one"]) if switch is turn_link else copy(versions["one"], folder)
    served = Models([str(folder)], on_change=lambda *what: told.append(what))
    first = served.get()
    assert who(first, answers) == "one"
    for version in ("two", "three"):
        switch(folder, versions[version])
        assert who(served.get(), answers) != version  # nobody has looked
        served.look()
        assert who(served.get(), answers) == served.default == version
        assert served.get().predictor.id == bundle.read(versions[version]).id
        shutil.rmtree(folder.with_name("old"), ignore_errors=True)
    assert told == [("one", "loaded"), ("two", "swapped"), ("three", "swapped")]
    assert who(first, answers) == "one"  # whoever held the old one goes on with it
    with pytest.raises(UnknownModel, match="no model is named 'one'; there are: three"):
        served.get("one")


@pytest.mark.parametrize("first", ["bundle.json", "model.onnx", "step.onnx"])
def test_a_half_copied_bundle_never_answers(
    folder: Path, versions: dict[str, Path], answers: dict[str, np.ndarray], first: str
) -> None:
    """Written over in place, file after file and in halves; whether it is whole is known by comparing bytes."""
    served, new = Models([str(folder)]), versions["two"]
    names = sorted((path.relative_to(new) for path in new.rglob("*.*")), key=lambda name: (name.name != first, name))
    seen = []
    for name in names:
        data = (new / name).read_bytes()
        for part in (data[: len(data) // 2], data):
            (folder / name).write_bytes(part)
            served.look()
            whole = all(filecmp.cmp(folder / each, new / each, shallow=False) for each in names)
            seen.append(who(served.get(), answers))
            assert seen[-1] == ("two" if whole else seen[0] if "two" not in seen else "two")
    assert (seen[0], seen[-1]) == ("one", "two")


def test_a_broken_bundle_is_refused_once_a_change_and_the_old_one_goes_on(
    folder: Path, answers: dict[str, np.ndarray], told: list, logged: pytest.LogCaptureFixture
) -> None:
    served = Models([str(folder)], on_change=lambda *what: told.append(what))
    first, data = served.get(), (folder / "step.onnx").read_bytes()
    for change in (1, 2):
        damaged = bytearray(data)
        damaged[len(data) // 2] ^= change
        (folder / "step.onnx").write_bytes(damaged)
        logged.clear()
        for _ in range(4):
            served.look()
        (record,) = [record for record in logged.records if record.name == "serve.models"]
        assert (record.levelname, record.model, record.outcome) == ("ERROR", "one", "refused")
        for part in ("model one", str(folder / "step.onnx"), "not the file", f"bundle {first.predictor.id} goes on"):
            assert part in record.getMessage()
    assert told == [("one", "loaded"), ("one", "refused"), ("one", "refused")]
    assert served.get() is first
    assert who(first, answers) == "one"
    (folder / "step.onnx").write_bytes(data)
    served.look()
    assert served.get() is first  # it is the same bundle again
    assert len(told) == 3


def test_one_byte_is_noticed_where_size_and_time_stay(folder: Path, told: list) -> None:
    served = Models([str(folder)], on_change=lambda *what: told.append(what))
    path = folder / "model.onnx"
    before, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    served.look()
    assert told[1:] == [("one", "refused")]


def test_a_touched_bundle_is_not_opened_again(folder: Path, told: list) -> None:
    served = Models([str(folder)], on_change=lambda *what: told.append(what))
    first = served.get()
    for path in folder.rglob("*"):
        path.touch()
    (folder / "notes.txt").write_text("of the operator")
    served.look()
    assert served.get() is first
    assert told == [("one", "loaded")]


def test_a_change_while_a_bundle_is_opened_is_no_refusal(
    folder: Path, versions: dict[str, Path], answers: dict[str, np.ndarray], told: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its description was read of one bundle, and its models would be of the next."""
    served = Models([str(folder)], on_change=lambda *what: told.append(what))
    read, replacing = bundle.read, iter(["three"])

    def replaced_meanwhile(path: Path) -> bundle.Bundle:
        found = read(path)
        for version in replacing:
            rename(folder, versions[version])
        return found

    write_over(folder, versions["two"])
    monkeypatch.setattr(bundle, "read", replaced_meanwhile)
    served.look()
    assert who(served.get(), answers) == "three"
    assert told == [("one", "loaded"), ("three", "swapped")]


def test_what_fails_for_a_while_is_tried_again(
    folder: Path,
    versions: dict[str, Path],
    told: list,
    logged: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A library that fails is no reason to stop looking; the bundle itself does not change any more."""
    clock = Clock()
    monkeypatch.setattr(models, "young", lambda stamp: False)
    served = Models([str(folder)], on_change=lambda *what: told.append(what), clock=clock)
    write_over(folder, versions["two"])
    with monkeypatch.context() as failing:
        failing.setattr(models, "Predictor", lambda *_, **__: 1 / 0)
        for _ in range(3):
            served.look()
            clock.now += 2
    assert told[1:] == [("one", "refused")]
    (record,) = [record for record in logged.records if record.levelname == "ERROR"]
    assert isinstance(record.exc_info[1], ZeroDivisionError)  # not of the bundle: its trace is of use
    served.look()
    assert served.default == "one"
    clock.now += 60
    served.look()
    assert served.default == "two"


@pytest.mark.parametrize(("age_s", "reads"), [(0, 3), (3600, 0)])
def test_a_settled_folder_is_not_read_and_a_young_one_is_as_times_have_ticks(
    folder: Path, versions: dict[str, Path], monkeypatch: pytest.MonkeyPatch, age_s: int, reads: int
) -> None:
    """A file system that keeps whole seconds, say: what changes twice in one of them stands as it stood."""
    changed = time.time_ns() - age_s * 10**9
    monkeypatch.setattr(sources, "stamp_of", lambda folder: ((str(folder), 1, 1, changed, changed),))
    served = Models([str(folder)])
    read, count = bundle.read, iter(range(100))
    monkeypatch.setattr(bundle, "read", lambda folder: (next(count), read(folder))[1])
    write_over(folder, versions["two"])
    for _ in range(3):
        served.look()
    assert next(count) == reads
    assert served.default == ("two" if reads else "one")


def test_a_listener_that_fails_changes_nothing(folder: Path, versions: dict[str, Path]) -> None:
    served = Models([str(folder)], on_change=lambda *_: 1 / 0)
    write_over(folder, versions["two"])
    served.look()
    assert served.default == "two"
