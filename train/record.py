"""What a run leaves behind: files that are whole or absent, and enough of its circumstances to repeat it."""

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from train import plugins


PACKAGES = (
    *("torch", "torchvision", "spikingjelly", "numpy", "numba", "lightning-fabric"),
    *("onnx", "onnxruntime-gpu", "nir"),
)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write a file or folder to; rename it over `path` at the end, or remove it.

    An interrupted or failing writer leaves what was there before. A folder is swapped by two renames; where the
    second does not happen the first is undone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    old = aside / f"{path.name}.old"
    try:
        new = aside / path.name
        yield new
        if new.is_dir() and path.exists():
            os.replace(path, old)
        os.replace(new, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other processes from writing the same run; the system lets go when this one ends, however it ends.

    Raises ValueError where another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder}: another process is training there; wait for it, end it, or give another --out"
            ) from None
        except OSError as error:
            raise OSError(
                f"{folder}/.lock cannot be locked on this file system ({error}); give another --out"
            ) from error
        yield


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Wait for other processes that are in the same folder's turn; the system ends a turn with its process.

    A folder that is not there, or cannot be written, needs no turns.
    """
    if not os.access(folder, os.W_OK):
        yield
        return
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all; NaN is refused."""
    with atomic(path) as new:
        new.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    with atomic(path) as new:
        new.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any] | None:
    """The commit of this code and whether the tree had changes; None outside a checkout.

    results/ does not count: commands write there while they measure.
    """
    here = Path(__file__).parent
    changed = ["git", "status", "--porcelain", "--", ":(top)", ":(top,exclude)results"]
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        status = subprocess.run(changed, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode != 0:
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}


def circumstances(
    *, config: Mapping[str, Any], seed: int | None, dataset_md5: Mapping[str, str], device: str | None
) -> dict[str, Any]:
    """What run.json and a checkpoint's provenance say about how they came to be; None for what nobody knows."""
    return {
        "config": dict(config),
        "seed": seed,
        "dataset_md5": dict(dataset_md5),
        "device": device,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": versions(),
        "plugins": plugins.loaded(),
        "git": git_state(),
    }


def point_latest(run: Path) -> None:
    """Make runs/latest, under the current folder, a link to the run folder."""
    runs = Path("runs")
    with atomic(runs / "latest") as link:
        link.symlink_to(os.path.relpath(run, runs))
