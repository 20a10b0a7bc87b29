"""How Lava is driven: many samples, several jobs in one process, progress, and no process left whatever happens."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import netmaker
import numpy as np
import pytest
from test_lava import assert_same

from hardware import lava, netx, netx_sim


def processes(folder: Path) -> dict[int, int]:
    """The processes of simulations whose temporary directory is in `folder`: number -> parent's number."""
    listing = subprocess.run(["ps", "-eww", "-o", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    found = [line.split(maxsplit=2) for line in listing.splitlines() if str(lava.SIMULATE) in line]
    return {int(pid): int(parent) for pid, parent, args in found if str(folder) in args}


def all_end(folder: Path) -> bool:
    deadline = time.monotonic() + 10
    while processes(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not processes(folder)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which simulations make theirs."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.lava
def test_progress_grows_to_the_number_of_samples(written: Path) -> None:
    net = netx.read(written)
    images = netmaker.images(0, net, 300)
    seen: list[int] = []
    run = lava.run(written, images, record="output", progress=seen.append)
    assert seen == sorted(seen)
    assert any(0 < done < 300 for done in seen)
    np.testing.assert_array_equal(run.v_out, netx_sim.simulate(net, images).v_out)


@pytest.mark.lava
def test_jobs_that_share_a_process_do_not_touch_each_other(tmp_path: Path) -> None:
    nets = [netmaker.random_net(seed, T=1 + seed) for seed in (3, 4, 5)]
    jobs = []
    for seed, net in enumerate(nets):
        netx.write(net, tmp_path / f"{seed}.net")
        jobs.append(lava.Job(path=tmp_path / f"{seed}.net", images=netmaker.images(seed, net, 1 + seed)))
    for job, net, run in zip(jobs, nets, lava.run_many(jobs), strict=True):
        assert_same(run, netx_sim.simulate(net, job.images))


def test_no_jobs_need_no_lava(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSERVE_LAVA_PYTHON", "never started")
    assert lava.run_many([]) == []


def test_a_recording_that_does_not_fit_the_disk_is_refused(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = os.statvfs_result((4096, 4096, 1, 1, 1, 1, 1, 1, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: free)
    with pytest.raises(ValueError, match=r"recording 4 layers of 9 samples takes 0\.0 GB, .* has 0\.0 GB; record the"):
        lava.run(written, netmaker.images(0, netx.read(written), 9))


def kill_one(folder: Path, choose: Callable[[dict[int, int]], int]) -> Callable[[int], None]:
    """A `progress` that kills one of the simulation's processes once it is under way."""

    killed: list[int] = []

    def progress(done: int) -> None:
        if done and not killed:  # it is asked again while the others end
            killed.append(choose(processes(folder)))
            os.kill(killed[0], signal.SIGKILL)

    return progress


def a_layers(found: dict[int, int]) -> int:
    return next(pid for pid, parent in found.items() if parent in found)


def the_first(found: dict[int, int]) -> int:
    return next(pid for pid, parent in found.items() if parent not in found)


@pytest.mark.parametrize(
    ("choose", "message"),
    [(a_layers, "one of Lava's processes ended with exit status -9"), (the_first, "ended with exit status -9")],
)
@pytest.mark.lava
def test_a_killed_process_ends_the_simulation_and_all_others(
    choose: Callable[[dict[int, int]], int], message: str, written: Path, temporary: Path
) -> None:
    images = netmaker.images(0, netx.read(written), 20_000)
    with pytest.raises(lava.LavaFailed, match=message):
        lava.run(written, images, record="output", timeout_s=60, progress=kill_one(temporary, choose))
    assert all_end(temporary)


@pytest.mark.lava
def test_nothing_is_left_when_the_caller_itself_is_killed(written: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", netmaker.images(0, netx.read(written), 20_000))
    command = [sys.executable, "-m", "hardware.lava", str(written), "--images", str(tmp_path / "x.npy")]
    caller = subprocess.Popen(
        command,
        cwd=Path(lava.__file__).parents[2],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
    )
    while len(processes(tmp_path)) < 5:
        assert caller.poll() is None
        time.sleep(0.05)
    caller.kill()
    caller.wait()
    assert all_end(tmp_path)


@pytest.mark.lava
def test_a_simulation_that_takes_too_long_is_ended(written: Path, temporary: Path) -> None:
    began = time.monotonic()
    with pytest.raises(lava.LavaFailed, match=r"did not finish in 2 s; run fewer images or allow more time"):
        lava.run(written, netmaker.images(1, netx.read(written), 20_000), timeout_s=2)
    assert time.monotonic() - began < 15
    assert all_end(temporary)
