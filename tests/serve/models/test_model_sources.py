"""Where bundles lie, under which names they are served, and which one answers who names none."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from bundle_versions import Clock, copy, rename, who, write_over

from serve.bundle import BundleError
from serve.models import Models, UnknownModel
from serve.sources import stamp_of


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
