"""A .net file in Lava's fixed-point simulation of Loihi: the independent judge of what we export.

Lava needs numpy 1, so it lives in a venv of its own (`make lava`) and is reached by subprocess; requirements.txt and
simulate.py in this folder are all that it needs.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hardware import netx, netx_sim
from hardware.net import Net, NetxError


SIMULATE = Path(__file__).parent / "simulate.py"
VENV_PYTHON = Path(__file__).parents[2] / ".venv-lava" / "bin" / "python"
IMPORT_FAILED = 3
"""Exit status of simulate.py where Lava cannot be imported."""

LOG_LINES = 40
"""Of Lava's output, in a LavaFailed."""

WATCH_S = 0.2
"""Between two looks at how far Lava is."""


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A netx file, integer images [B, *input.shape] or events [T, B, *input.shape], and what to keep.

    T: time steps per sample, by default what the file says; record: whose spikes are kept.
    """

    path: str | Path
    images: np.ndarray
    T: int | None = None
    record: Literal["all", "output"] = "all"


def run(
    path: str | Path,
    images: np.ndarray,
    *,
    T: int | None = None,
    record: Literal["all", "output"] = "all",
    stock_conv: bool = False,
    timeout_s: float = 600.0,
    progress: Callable[[int], None] | None = None,
) -> netx_sim.Run:
    """Run a netx file on integer images [B, *input.shape] or events [T, B, *input.shape] and return what Lava did.

    Samples are streamed back to back through the pipelined layers, one reset window each; an image is sent once if the
    first neurons hold it (their iDecay is 0), else at each of the T steps. `record` says whose spikes are kept.
    `stock_conv` keeps Lava's own convolution instead of an exact one on BLAS (the same bits; minutes for wide layers).
    `progress` is told now and then how many samples are done.

    Raises NetxError for a file that does not fit the chip or images that do not fit it, ValueError where the recording
    does not fit the disk, LavaMissing, LavaFailed.
    """
    job = Job(path=path, images=images, T=T, record=record)
    return run_many([job], stock_conv=stock_conv, timeout_s=timeout_s, progress=progress)[0]


def run_many(
    jobs: Sequence[Job],
    *,
    stock_conv: bool = False,
    timeout_s: float = 600.0,
    progress: Callable[[int], None] | None = None,
) -> list[netx_sim.Run]:
    """Run several jobs as `run` does one, one after the other in one Lava, which starts only once (about 1 s)."""
    if not jobs:
        return []
    nets = [_fitting(job.path) for job in jobs]
    with tempfile.TemporaryDirectory(prefix="tserve-lava-") as name:
        folder = Path(name)
        folders = [folder / str(index) for index in range(len(jobs))]
        orders = [_order(*job, stock_conv=stock_conv) for job in zip(jobs, nets, folders, strict=True)]
        (folder / "jobs.json").write_text(json.dumps(orders), encoding="utf-8")
        command = [str(python()), "-I", "-u", str(SIMULATE), str(folder / "jobs.json")]
        watch = None if progress is None else lambda: progress(sum(map(_samples_done, folders)))
        _call(command, log=folder / "log.txt", timeout_s=timeout_s, watch=watch)
        return [_result(job, net, out) for job, net, out in zip(jobs, nets, folders, strict=True)]


def _fitting(path: str | Path) -> Net:
    net = netx.read(path)
    try:
        netx.check(net)
    except NetxError as error:
        raise NetxError(f"{path}: {error}") from None
    return net


def _order(job: Job, net: Net, folder: Path, *, stock_conv: bool) -> dict[str, Any]:
    """Write a job's input into a new folder and return what simulate.py is told. Raises ValueError (NetxError)."""
    if job.record not in ("all", "output"):
        raise ValueError(f"record is {job.record!r}, must be 'all' or 'output'")
    T, window = netx_sim.schedule(net, job.T)
    frames = netx_sim.frames(net, np.asarray(job.images), T=T)
    recorded = net.blocks if job.record == "all" else net.blocks[-1:]
    neurons = sum(prod(block.shape) for block in recorded) + 4 * prod(net.blocks[-1].shape)  # spikes, and v_out
    need, free = T * frames.shape[1] * neurons + 4 * frames.size, shutil.disk_usage(folder.parent).free
    if need > free:
        raise ValueError(
            f"recording {len(recorded)} layers of {frames.shape[1]} samples takes {need / 1e9:.1f} GB, "
            f"{folder.parent} has {free / 1e9:.1f} GB; record the output alone, run fewer samples or set TMPDIR"
        )
    folder.mkdir()
    np.save(folder / "frames.npy", frames.astype(np.int32, copy=False))
    return {
        "net": str(Path(job.path).resolve()),
        "frames": str(folder / "frames.npy"),
        "out": str(folder),
        "T": T,
        "window": window,
        "latency": int(net.input.neuron is None),
        "record": job.record,
        "stock_conv": stock_conv,
    }


def _result(job: Job, net: Net, folder: Path) -> netx_sim.Run:
    first = 0 if job.record == "all" else len(net.blocks) - 1
    return netx_sim.Run(
        names=tuple(block.name for block in net.blocks[first:]),
        spikes=tuple(_load(folder / f"spikes_{k}.npy") for k in range(first, len(net.blocks))),
        v_out=_load(folder / "v.npy").astype(np.int64),
    )


def _samples_done(folder: Path) -> int:
    """Samples that have left the last recorded layer."""
    arrays = sorted(folder.glob("written_*.npy"), key=lambda path: int(path.stem.removeprefix("written_")))
    return int(np.load(arrays[-1], mmap_mode="r", allow_pickle=False).all(axis=0).sum()) if arrays else 0


def _load(path: Path) -> np.ndarray:
    """Lava's [T, B, W, H, C] as [T, B, C, H, W]; [T, B, N] as it is."""
    array = np.load(path, allow_pickle=False)
    return np.ascontiguousarray(array.transpose(0, 1, 4, 3, 2) if array.ndim == 5 else array)


def _call(command: list[str], *, log: Path, timeout_s: float, watch: Callable[[], None] | None = None) -> None:
    """Run a command, and the processes it starts, to its end. Raises LavaMissing or LavaFailed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # every layer is a process
    with log.open("wb") as output:  # a file: a layer's process that is left over would hold a pipe open
        try:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,  # it ends when this closes, and so when this process is killed
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise LavaMissing(f"{command[0]} does not start ({error}); rebuild the venv with: make lava") from error
    try:
        status = _wait(process, timeout_s, watch)
    finally:
        if process.returncode != 0:  # else all of Lava's processes were joined
            _end_group(process)
        assert process.stdin is not None
        process.stdin.close()
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LOG_LINES:])
    if status == IMPORT_FAILED:
        raise LavaMissing(f"Lava does not import in {command[0]}; rebuild the venv with: make lava\n{tail}")
    if status != 0:
        raise LavaFailed(f"Lava's simulation ended with exit status {status}:\n{tail}")


def _wait(process: subprocess.Popen[bytes], timeout_s: float, watch: Callable[[], None] | None) -> int:
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        try:
            return process.wait(left if watch is None else min(left, WATCH_S))
        except subprocess.TimeoutExpired:
            if watch is not None:
                watch()
    raise LavaFailed(f"Lava did not finish in {timeout_s:g} s; run fewer images or allow more time")


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
