"""Files and folders are whole or absent, whenever a writer stops."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from train import record
from train.record import atomic


def write(path: Path, text: str, *, folder: bool) -> None:
    with atomic(path) as new:
        if folder:
            new.mkdir()
            new = new / "file"
        new.write_text(text)


def text_of(path: Path) -> str:
    return (path / "file" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("name", ["run.json", "old"])
def test_what_was_there_is_replaced_and_nothing_else_is_left(folder: bool, name: str, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / name
    for text in ("first", "second"):
        write(path, text, folder=folder)
        assert text_of(path) == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("folder", [False, True])
def test_a_writer_that_stops_leaves_the_old_one(folder: bool, failure: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path, "old", folder=folder)

    def half() -> None:
        with atomic(path) as new:
            if folder:
                new.mkdir()
            (new / "file" if folder else new).write_text("half")
            raise failure

    with pytest.raises(failure):
        half()
    assert text_of(path) == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_a_folder_whose_swap_stops_halfway_is_the_old_one(
    failure: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename, renames = tmp_path / "bundle", os.replace, 0
    write(path, "old", folder=True)

    def fail_at_the_second(source: Path, target: Path) -> None:
        nonlocal renames
        renames += 1
        if renames == 2:
            raise failure
        rename(source, target)

    monkeypatch.setattr(record.os, "replace", fail_at_the_second)
    with pytest.raises(failure):
        write(path, "new", folder=True)
    assert text_of(path) == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_that_is_killed_while_it_writes_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    path.write_text("old")
    code = """
import os, signal, sys
from pathlib import Path
from train.record import atomic
with atomic(Path(sys.argv[1])) as new:
    new.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode < 0
    assert path.read_text() == "old"


def test_json_that_is_not_json_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    record.write_json(path, {"accuracy": 0.5})
    for bad in ({"accuracy": float("nan")}, {"accuracy": object()}):
        with pytest.raises((ValueError, TypeError)):
            record.write_json(path, bad)
    assert json.loads(path.read_text()) == {"accuracy": 0.5}
    assert list(tmp_path.iterdir()) == [path]


def test_latest_is_a_link_that_survives_moving_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        run = Path("runs") / name
        run.mkdir(parents=True)
        record.point_latest(run)
    assert os.readlink("runs/latest") == "b"
    assert Path("runs/latest").resolve() == tmp_path / "runs/b"
    assert sorted(path.name for path in Path("runs").iterdir()) == ["a", "b", "latest"]


def test_circumstances_name_versions_commit_and_command() -> None:
    found = record.circumstances(config={"seed": 3}, seed=3, dataset_md5={"digits": "0"}, device="cpu")
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "spikingjelly", "numpy"} <= found["versions"].keys()
    assert found["git"] is None or len(found["git"]["commit"]) == 40
    assert found["command"][1:] == sys.argv[1:]


def test_a_tree_is_changed_by_its_code_and_not_by_the_results_that_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/record.py").write_text("# code\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(record, "__file__", str(tmp_path / "train/record.py"))
    (tmp_path / "results").mkdir()
    (tmp_path / "results/table.json").write_text("{}")
    state = record.git_state()
    assert state is not None
    assert not state["dirty"]
    (tmp_path / "train/other.py").write_text("# more\n")
    changed = record.git_state()
    assert changed is not None
    assert changed["dirty"]
