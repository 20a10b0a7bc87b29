"""kill -9 at any moment: what a resumed run writes in the end is the uninterrupted run's file, bit for bit.

TSERVE_KILLS is the number of kills (default 3).
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest


PATIENCE_S = 240
KILLS = int(os.environ.get("TSERVE_KILLS", "3"))
FLAGS = (
    *("--data.limit", "1000", "--net.width", "0.25", "--net.T", "2", "--method.name", "ce", "--device", "cpu"),
    *("--optim.batch_size", "32", "--optim.epochs", "12", "--save_steps", "3", "--out", "run", "--resume"),
)
LAUNCHERS = {
    "one process": (sys.executable,),
    "torchrun": (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
}


def start(folder: Path, launcher: str) -> subprocess.Popen:
    command = [*LAUNCHERS[launcher], "-m", "train.distill", *FLAGS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=folder, env=environment, **quiet)


def family(pid: int) -> list[int]:
    """A process and its descendants: torchrun's workers have sessions of their own."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in family(int(child)))]


def finish(folder: Path, launcher: str) -> bytes:
    """What a run that nobody kills writes; forked, the same command needs no import."""
    log = folder / "log"
    if launcher == "torchrun":
        started = forked.start_two("train.distill", FLAGS, folder=folder, log=log)
    else:
        started = (forked.start("train.distill", FLAGS, folder=folder, environment={}, log=log),)
    assert set(forked.ended(*started, seconds=PATIENCE_S)) == {0}, log.read_text()
    return (folder / "run/student.pt").read_bytes()


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_killed_run_ends_in_the_very_same_file(launcher: str, tmp_path: Path) -> None:
    draw = random.Random(0)
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    state, killed = tmp_path / "killed/run/state.pt", 0
    for _ in range(KILLS if launcher == "one process" else 1):
        before = state.stat().st_mtime_ns if state.exists() else 0
        process, deadline = start(tmp_path / "killed", launcher), time.monotonic() + PATIENCE_S
        while (state.stat().st_mtime_ns if state.exists() else 0) == before:
            assert time.monotonic() < deadline
            if process.poll() is not None:
                break
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.25))
        for pid in family(process.pid):
            os.kill(pid, signal.SIGKILL)
        killed += process.wait(PATIENCE_S) != 0
    assert killed >= 1
    assert state.exists()
    assert not (tmp_path / "killed/run/student.pt").exists()
    assert finish(tmp_path / "killed", launcher) == finish(tmp_path / "whole", launcher)
