"""What people give python -m hardware.lava by mistake: one message that says what is wrong, and exit status 2 or 1."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import netmaker
import numpy as np
import pytest
from PIL import Image

from hardware import chip, lava, netx
from hardware.lava import __main__ as command
from hardware.net import Limits


Make = Callable[[Path], None]


def change(key: str, value: object) -> Make:
    """Net 0 with one dataset of its file replaced."""

    def make(path: Path) -> None:
        netx.write(netmaker.random_net(0), path)
        with h5py.File(path, "r+") as file:
            if key in file:
                del file[key]
            file[key] = value

    return make


def truncated(path: Path) -> None:
    netx.write(netmaker.random_net(0), path)
    path.write_bytes(path.read_bytes()[:-100])


def png(path: Path) -> None:
    Image.new("RGB", (4, 4)).save(path, format="png")


def checkpoint(path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"weight": torch.zeros(3)}, path)


def keras(path: Path) -> None:
    """The weights of another HDF5 tool."""
    with h5py.File(path, "w") as file:
        file["model_weights/dense/kernel"] = np.ones((3, 4))


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (truncated, "not a whole HDF5 file (cut short or damaged; copy or export it again)"),
        (png, "not a whole HDF5 file (netx files are HDF5 files)"),
        (checkpoint, "not a whole HDF5 file (netx files are HDF5 files)"),
        (keras, "no group 'layer'; this is an HDF5 file, but not netx's"),
        (folder, "no such file"),
        (
            change("layer/3/type", b"add"),
            "layer 3 (flatten): unsupported layer type 'add' (stock netx does not run it or",
        ),
        (
            change("layer/3/type", b"average"),
            "layer 3 (flatten): unsupported layer type 'average' (fold it into the next",
        ),
        (
            change("layer/5/weight", np.full((5, 12), 0.5)),
            "layer 5 (head): weight has values that are not 32-bit integers",
        ),
        (
            change("layer/5/weight", np.full((5, 12), 256)),
            "layer 5 (head): weights span 256..256, beyond 8 bits: -128..127",
        ),
        (
            change("layer/1/weight", np.full((4, 3, 3, 3), -300)),
            "layer 1 (stem): weights span -300..-300, beyond 8 bits",
        ),
        (change("layer/5/weight", np.zeros((5, 12))), "layer 5 (head): all weights are zero; netx cannot scale such"),
        (change("layer/5/bias", np.full(5, 5000)), "layer 5 (head): a bias is 5000 in magnitude, at most 4095 fits"),
        (change("layer/5/delay", np.ones(12)), "layer 5 (head): has synaptic delays, which are not supported"),
    ],
)
def test_a_file_that_cannot_be_run_ends_the_command_with_status_2(
    make: Make, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TSERVE_LAVA_PYTHON", str(tmp_path / "never started"))
    net = netmaker.random_net(0)
    make(tmp_path / "bad.net")
    np.save(tmp_path / "x.npy", netmaker.images(0, net))
    assert command.cli([str(tmp_path / "bad.net"), "--images", str(tmp_path / "x.npy")]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {tmp_path}/bad.net: ")
    assert message in printed.err
    assert not printed.out


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3, 5, 5), int), "images are (2, 3, 5, 5), must be [B, 3, 6, "),
        (np.zeros((2, 3, 6, 9)), "images have type float64, must be integers: multiply by meta's input_scale"),
        (np.zeros((0, 3, 6, 9), int), "there is nothing to run"),
        (np.zeros((9, 1, 3, 6, 9), int), "events have 9 steps, T is 4"),
        (np.full((1, 3, 6, 9), 2**40), "an input value exceeds 24 bits"),
        (
            np.array([{}], dtype=object),
            "cannot be read as .npy of numbers: it is none, or holds Python objects",
        ),
    ],
)
def test_images_that_do_not_fit_end_the_command_with_status_2(
    images: np.ndarray,
    message: str,
    written: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TSERVE_LAVA_PYTHON", str(tmp_path / "never started"))
    width = netx.read(written).input.shape[2]
    # Only writing may pickle: a file that would run code when it is read is the hostile input here.
    np.save(tmp_path / "x.npy", images[..., :width], allow_pickle=True)
    assert command.cli([str(written), "--images", str(tmp_path / "x.npy")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(2, int), "y.npy: holds int64 (2,), must be integers (3,), one per sample"),
        (np.zeros(3), "y.npy: holds float64 (3,), must be integers (3,), one per sample"),
    ],
)
def test_labels_that_do_not_fit_end_the_command_with_status_2(
    labels: np.ndarray, message: str, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", netmaker.images(0, netx.read(written)))
    np.save(tmp_path / "y.npy", labels)
    arguments = [str(written), "--images", str(tmp_path / "x.npy"), "--labels", str(tmp_path / "y.npy")]
    assert command.cli(arguments) == 2
    assert message in capsys.readouterr().err


BROKEN = """
import sys
if any(argument.endswith("simulate.py") for argument in sys.argv):
    print("ModuleNotFoundError: No module named 'lava'")
    sys.exit(3)
"""


@pytest.mark.parametrize(
    ("script", "status", "message"),
    [
        (None, 2, "which is no program; build the venv with: make lava"),
        (BROKEN, 2, "rebuild the venv with: make lava\nModuleNotFoundError: No module named 'lava'"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 1, "Lava's simulation ended with exit status -9"),
    ],
)
def test_a_lava_that_is_missing_broken_or_killed_is_told_apart_by_the_exit_status(
    script: str | None,
    status: int,
    message: str,
    written: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    python = tmp_path / "python" if script is None else netmaker.fake_python(tmp_path, script)
    monkeypatch.setenv("TSERVE_LAVA_PYTHON", str(python))
    np.save(tmp_path / "x.npy", netmaker.images(0, netx.read(written)))
    assert command.cli([str(written), "--images", str(tmp_path / "x.npy")]) == status
    assert message in capsys.readouterr().err


def test_the_command_itself_ends_with_these_statuses(tmp_path: Path) -> None:
    png(tmp_path / "bad.net")
    for arguments in ([], [str(tmp_path / "bad.net"), "--images", "x.npy"]):
        done = subprocess.run(
            [sys.executable, "-m", "hardware.lava", *arguments],
            cwd=Path(lava.__file__).parents[2],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_limits_of_a_chip_that_does_not_exist_give_the_nearest_name() -> None:
    with pytest.raises(chip.ChipError, match=r"unknown chip 'lohi2'; did you mean .*loihi2"):
        Limits.load("lohi2")
