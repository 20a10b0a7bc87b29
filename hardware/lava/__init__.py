"""A .net file in Lava's fixed-point simulation of Loihi: the independent judge of what we export.

Lava needs numpy 1, so it lives in a venv of its own (`make lava`) and is reached by subprocess; requirements.txt and
simulate.py in this folder are all that it needs.
"""

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np

from hardware import netx, netx_sim


SIMULATE = Path(__file__).parent / "simulate.py"
VENV_PYTHON = Path(__file__).parents[2] / ".venv-lava" / "bin" / "python"
IMPORT_FAILED = 3
"""Exit status of simulate.py where Lava cannot be imported."""

LOG_LINES = 40
"""Of Lava's output, in a LavaFailed."""


class LavaMissing(ValueError):
    """No Python with Lava was found, or Lava does not import in it."""


class LavaFailed(RuntimeError):
    """Lava began the simulation and did not finish it."""


def python() -> Path:
    """The Lava venv's Python: $TSERVE_LAVA_PYTHON, else .venv-lava in the repository. Raises LavaMissing."""
    named = os.environ.get("TSERVE_LAVA_PYTHON")
    path = Path(named) if named else VENV_PYTHON
    if not (path.is_file() and os.access(path, os.X_OK)):
        origin = "TSERVE_LAVA_PYTHON names" if named else "the Lava venv should hold"
        raise LavaMissing(f"{origin} {path}, which is no program; build the venv with: make lava")
    return path


def run(
    path: str | Path,
    images: np.ndarray,
    *,
    T: int | None = None,
    record: Literal["all", "output"] = "all",
    stock_conv: bool = False,
    timeout_s: float = 600.0,
) -> netx_sim.Run:
    """Run a netx file on integer images [B, *input.shape] or events [T, B, *input.shape] and return what Lava did.

    Samples are streamed back to back through the pipelined layers, one reset window each; an image is sent once if the
    first layer holds it (its iDecay is 0), else at each of the T steps. `record` says whose spikes are kept.
    `stock_conv` keeps Lava's own convolution instead of an exact one on BLAS (the same bits; minutes for wide layers).

    Raises NetxError for a file that does not fit the chip or images that do not fit it, LavaMissing, LavaFailed.
    """
    net = netx.read(path)
    netx.check(net)
    if record not in ("all", "output"):
        raise ValueError(f"record is {record!r}, must be 'all' or 'output'")
    T, window = netx_sim.schedule(net, T)
    frames = netx_sim.frames(net, np.asarray(images), T=T)
    with tempfile.TemporaryDirectory(prefix="tserve-lava-") as name:
        folder = Path(name)
        np.save(folder / "frames.npy", frames.astype(np.int32))
        job = {
            "net": str(Path(path).resolve()),
            "frames": str(folder / "frames.npy"),
            "out": str(folder),
            "T": T,
            "window": window,
            "record": record,
            "stock_conv": stock_conv,
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        command = [str(python()), "-I", "-u", str(SIMULATE), str(folder / "job.json")]
        _call(command, log=folder / "log.txt", timeout_s=timeout_s)
        recorded = net.spiking if record == "all" else net.spiking[-1:]
        first = len(net.spiking) - len(recorded)
        return netx_sim.Run(
            names=tuple(layer.name for layer in recorded),
            spikes=tuple(_load(folder / f"spikes_{first + k}.npy") for k in range(len(recorded))),
            v_out=_load(folder / "v.npy").astype(np.int64),
        )


def _load(path: Path) -> np.ndarray:
    """Lava's [T, B, W, H, C] as [T, B, C, H, W]; [T, B, N] as it is."""
    array = np.load(path, allow_pickle=False)
    return np.ascontiguousarray(array.transpose(0, 1, 4, 3, 2) if array.ndim == 5 else array)


def _call(command: list[str], *, log: Path, timeout_s: float) -> None:
    """Run a command, and the processes it starts, to its end. Raises LavaMissing or LavaFailed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # every layer is a process
    with log.open("wb") as output:  # a file: a layer's process that is left over would hold a pipe open
        try:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise LavaMissing(f"{command[0]} does not start ({error}); rebuild the venv with: make lava") from error
    try:
        status = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise LavaFailed(f"Lava did not finish in {timeout_s:g} s; run fewer images or allow more time") from None
    finally:
        _end_group(process)
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LOG_LINES:])
    if status == IMPORT_FAILED:
        raise LavaMissing(f"Lava does not import in {command[0]}; rebuild the venv with: make lava\n{tail}")
    if status != 0:
        raise LavaFailed(f"Lava's simulation ended with exit status {status}:\n{tail}")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a process and its children: Lava's layers wait for ever when one of them fails.

    Asked first: multiprocessing's resource tracker outlives SIGTERM and gives shared memory back when the others ended.
    """
    for number, patience_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 0.5)):
        deadline = time.monotonic() + patience_s
        while True:
            process.poll()
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                return
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
