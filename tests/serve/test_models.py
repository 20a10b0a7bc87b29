"""Models are renewed while they are used: what answers is always one whole bundle, and a broken one never is.

Three versions of the synthetic bundle have other weights in both of their ONNX files and are alike in all else, so that
a mixture of two would fit together and give an answer that neither gives.
"""

import contextlib
import filecmp
import gc
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from serving_process import ROOT
from synthetic import build_model, build_step, describe, exact_images, write_bundle

from serve import bundle, models, sources
from serve.bundle import BundleError
from serve.models import Models, Served, UnknownModel
from serve.sources import stamp_of
from train.record import atomic


IMAGES = exact_images(3)
VERSIONS = ("one", "two", "three")


class Clock:
    """A clock that stands still unless it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def write_version(folder: Path, seed: int, name: str) -> Path:
    """A bundle with weights from `seed`, called `name`."""
    write_bundle(folder, samples=1)
    onnx.save(build_model(seed=seed), folder / "model.onnx")
    onnx.save(build_step(seed=seed), folder / "step.onnx")
    describe(folder)
    fields = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(fields | {"name": name}))
    return folder


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles that differ in their weights; tests copy them."""
    base = tmp_path_factory.mktemp("versions")
    return {name: write_version(base / name, seed, name) for seed, name in enumerate(VERSIONS, 20)}


@pytest.fixture(scope="module")
def answers(versions: dict[str, Path]) -> dict[str, np.ndarray]:
    """[T, B, K] of each version, by onnxruntime alone."""
    sessions = {name: ort.InferenceSession(folder / "model.onnx") for name, folder in versions.items()}
    return {name: session.run(["logits"], {"image": IMAGES})[0] for name, session in sessions.items()}


@pytest.fixture
def folder(tmp_path: Path, versions: dict[str, Path]) -> Path:
    """A copy of version one."""
    return copy(versions["one"], tmp_path / "served")


@pytest.fixture
def told() -> list[tuple[str, str]]:
    return []


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """The log, also where the service has turned the way of its messages."""
    monkeypatch.setattr(logging.getLogger("serve"), "propagate", True)
    caplog.set_level("INFO", logger="serve.models")
    return caplog


def copy(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def who(served: Served, answers: dict[str, np.ndarray]) -> str:
    """Which version answers; fails if the two forms of the model, or its id and name, are of different versions."""
    names = []
    for steps in (3, 2):  # the unrolled form, and the step form
        logits = np.stack([p.logits for p in served.predictor.predict(IMAGES, exit_threshold=1.0, steps=steps)], axis=1)
        names += [name for name, wanted in answers.items() if np.array_equal(logits, wanted[:steps])]
    assert names == [served.predictor.about.name] * 2
    return names[0]


def rename(folder: Path, new: Path) -> None:
    os.rename(folder, folder.with_name("old"))
    os.rename(copy(new, folder.with_name("new")), folder)


def turn_link(folder: Path, new: Path) -> None:
    os.symlink(new, folder.with_name("link"))
    os.replace(folder.with_name("link"), folder)


def write_over(folder: Path, new: Path) -> None:
    shutil.copytree(new, folder, dirs_exist_ok=True)


def export_over(folder: Path, new: Path) -> None:
    """As `python -m export.bundle` does."""
    with atomic(folder) as aside:
        copy(new, aside)


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


def test_a_folder_of_bundles_is_served_by_the_names_of_its_folders(
    tmp_path: Path, versions: dict[str, Path], answers: dict[str, np.ndarray], told: list
) -> None:
    copy(versions["two"], tmp_path / "b")
    copy(versions["one"], tmp_path / "a")
    copy(versions["one"], tmp_path / ".a.being.written")
    (tmp_path / "notes").mkdir()
    served = Models([str(tmp_path)], on_change=lambda *what: told.append(what))
    assert {name: who(each, answers) for name, each in served.all().items()} == {"a": "one", "b": "two"}
    assert list(served.all()) == ["a", "b"]
    assert (served.default, served.get(), served.get("b")) == ("a", served.get("a"), served.all()["b"])
    copy(versions["three"], tmp_path / "0")
    rename(tmp_path / "b", versions["three"])
    served.look()
    assert {name: who(each, answers) for name, each in served.all().items()} == {
        "0": "three",
        "a": "one",
        "b": "three",
        "old": "two",
    }
    assert served.default == "a"  # who comes first in the alphabet answers for nobody else
    assert told[2:] == [("0", "loaded"), ("b", "swapped"), ("old", "loaded")]


def test_of_a_folder_of_bundles_the_broken_are_told_and_the_others_served(
    tmp_path: Path, versions: dict[str, Path], told: list, logged: pytest.LogCaptureFixture
) -> None:
    copy(versions["one"], tmp_path / "good")
    (copy(versions["two"], tmp_path / "bad") / "model.onnx").write_bytes(b"")
    served = Models([str(tmp_path)], on_change=lambda *what: told.append(what))
    assert list(served.all()) == ["good"]
    assert told == [("bad", "refused"), ("good", "loaded")]
    assert f"model bad: the bundle in {tmp_path / 'bad'} is refused: " in logged.text
    served.look()
    assert len(told) == 2
    shutil.copy(versions["two"] / "model.onnx", tmp_path / "bad")
    served.look()
    assert list(served.all()) == ["bad", "good"]
    (tmp_path / "good" / "bundle.json").write_text("{")
    (tmp_path / "bad" / "bundle.json").write_text("{")
    with pytest.raises(BundleError, match=r"none of 2 bundles can be served: .*bad.*; .*good.*"):
        Models([str(tmp_path)])


def test_sources_stand_in_their_order(tmp_path: Path, versions: dict[str, Path]) -> None:
    several = tmp_path / "several"
    for name in ("x", "y"):
        copy(versions["one"], several / name)
    served = Models([str(versions["two"]), str(several), str(versions["one"])])
    assert list(served.all()) == ["two", "x", "y", "one"]
    assert Models([str(several), str(versions["two"])], default="two").get().name == "two"


@pytest.mark.parametrize(
    ("named", "default", "said"),
    [
        (["nowhere"], None, r"nowhere: no bundle here .*TSERVE_BUNDLE .*its folder, a folder of several, or bentoml:"),
        (["one", "nowhere"], None, "nowhere: no bundle here"),
        (["one", "one"], None, r"one: \S+one has the model's name already, 'one'"),
        (["one", "two"], "three", "the default model cannot be 'three'; there are: one, two"),
        ([], None, "no bundle is named that could be served"),
    ],
)
def test_what_cannot_be_served_is_refused_at_start(
    versions: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    named: list[str],
    default: str | None,
    said: str,
) -> None:
    monkeypatch.chdir(versions["one"].parent)
    with pytest.raises(ValueError, match=said):
        Models(named, default=default)


def test_an_unknown_model_is_told_without_paths(folder: Path) -> None:
    served = Models([str(folder)])
    with pytest.raises(UnknownModel) as unknown:
        served.get("x" * 1000)
    assert str(unknown.value) == f"no model is named '{'x' * 100}'; there are: one"
    assert "/" not in str(unknown.value)


def test_a_folder_that_is_gone_is_served_for_half_a_minute(
    tmp_path: Path, versions: dict[str, Path], answers: dict[str, np.ndarray], told: list
) -> None:
    clock = Clock()
    for name, version in (("a", "one"), ("b", "two")):
        copy(versions[version], tmp_path / name)
    served = Models([str(tmp_path)], on_change=lambda *what: told.append(what), clock=clock)
    first = served.get("a")
    shutil.rmtree(tmp_path / "a")
    served.look()
    clock.now += 29
    served.look()
    assert served.get() is first
    copy(versions["one"], tmp_path / "a")
    served.look()
    shutil.rmtree(tmp_path / "a")
    for seconds in (5, 20, 4):  # counted from when it was missed
        served.look()
        clock.now += seconds
        assert served.get() is first
    served.look()
    assert served.get() is first
    clock.now += 1
    served.look()
    assert (list(served.all()), served.default, told[2:]) == (["b"], "b", [("a", "dropped")])
    shutil.rmtree(tmp_path / "b")
    for _ in range(3):
        served.look()
        clock.now += 100
    assert who(served.get(), answers) == "two"  # the last model stays
    copy(versions["three"], tmp_path / "a")
    served.look()
    served.look()
    assert (list(served.all()), served.default) == (["a"], "a")
    assert told[3:] == [("a", "loaded"), ("b", "dropped")]


def test_the_default_that_was_named_is_never_another(tmp_path: Path, versions: dict[str, Path]) -> None:
    clock = Clock()
    for name in ("a", "b"):
        copy(versions["one"], tmp_path / name)
    served = Models([str(tmp_path)], default="b", clock=clock)
    shutil.rmtree(tmp_path / "b")
    for _ in range(3):
        served.look()
        clock.now += 100
    assert (list(served.all()), served.get().name) == (["a", "b"], "b")


def test_a_new_name_that_another_model_has_is_refused(
    tmp_path: Path, versions: dict[str, Path], answers: dict[str, np.ndarray], told: list
) -> None:
    one, two = (copy(versions[name], tmp_path / name) for name in ("one", "two"))
    served = Models([str(one), str(two)], on_change=lambda *what: told.append(what))
    write_over(two, versions["one"])
    served.look()
    assert {name: who(each, answers) for name, each in served.all().items()} == {"one": "one", "two": "two"}
    assert told[2:] == [("two", "refused")]
    write_over(one, versions["three"])
    served.look()
    assert {name: who(each, answers) for name, each in served.all().items()} == {"three": "three", "one": "one"}


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


def test_a_stamp_tells_gone_from_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stamp_of(tmp_path / "none") == ()
    (tmp_path / "file").write_text("x")
    assert stamp_of(tmp_path / "file" / "inside") == ()
    os.symlink(tmp_path / "none", tmp_path / "dangling")
    assert stamp_of(tmp_path / "dangling") == ()
    assert [row[0] for row in stamp_of(tmp_path)] == [str(tmp_path / "dangling"), str(tmp_path / "file")]

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    assert "Permission denied" in stamp_of(tmp_path)[0][0]


STORE = """
import json, shutil, socket, sys
socket.socket.connect = lambda *_: sys.exit("asks the network")
import bentoml
from serve.models import Models

def create(version, folder):
    with bentoml.models.create(f"digits:{version}") as model:
        shutil.copytree(folder, model.path, dirs_exist_ok=True)
    return bentoml.models.get(f"digits:{version}").path

said, (one, two, three) = [], sys.argv[1:]
try:
    Models(["bentoml:digits"])
except ValueError as error:
    said.append(str(error))
first = create("v1", one)
served = Models(["bentoml:digits:latest"], on_change=lambda *what: said.append(what))
def look():
    served.look()
    said.append((served.default, served.get().predictor.about.name, served.get().predictor.bundle.folder.name))
look()
create("v2", two)
look()
pinned = Models(["bentoml:digits:v1"])
last = create("v3", three)
shutil.rmtree(last + "/samples")
look()
pinned.look()
assert pinned.get().predictor.about.name == "one"
bentoml.models.delete("digits:v3")
bentoml.models.delete("digits:v2")
look()
bentoml.models.delete("digits:v1")
look()
print(json.dumps(said))
"""


def test_a_model_of_bentomls_store_follows_its_newest_version(tmp_path: Path, versions: dict[str, Path]) -> None:
    """In a process of its own, as BentoML finds its home once; the network is shut."""
    env = os.environ | {"BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-c", STORE, *(str(versions[name]) for name in VERSIONS)]
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    none, *said = json.loads(ended.stdout.splitlines()[-1])
    assert none.startswith("bentoml:digits: no Models with name 'digits' exist")
    assert none.endswith("; `bentoml models list` shows what there is")
    assert said == [
        ["digits", "loaded"],
        ["digits", "one", "v1"],
        ["digits", "swapped"],
        ["digits", "two", "v2"],
        ["digits", "refused"],  # v3 lacks a file
        ["digits", "two", "v2"],
        ["digits", "swapped"],
        ["digits", "one", "v1"],
        ["digits", "one", "v1"],  # gone from the store, and served
    ]
