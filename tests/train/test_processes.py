"""Training as a user sees it: a process that prints what comes next, and that may be stopped at any time."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from train import distill
from train.checkpoint import Checkpoint
from train.config import DataConfig, DistillConfig, NetConfig, OptimConfig
from train.methods import METHODS


PATIENCE_S = 120


def test_the_teacher_command_writes_a_teacher_and_says_how_to_use_it(tmp_path: Path) -> None:
    flags = ["--data.limit", "300", "--net.width", "0.25", "--optim.epochs", "1", "--device", "cpu"]
    command = [sys.executable, "-m", "train.teacher", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (0, "")
    path = Path("runs/teacher-digits-vgg_small-s0/teacher.pt")
    checkpoint = Checkpoint.load_teacher(tmp_path / path)
    assert (checkpoint.net.spiking, checkpoint.net.width, checkpoint.labels) == (False, 0.25, tuple("0123456789"))
    assert f"teacher: {checkpoint.metrics['accuracy']:.2%} on the test split\nwritten: {path}\n" in done.stdout
    assert done.stdout.endswith(f"python -m train.distill --data.name digits --teacher {path}\n")
    assert not (tmp_path / "runs/latest").is_symlink()  # there is nothing to serve yet


def test_a_run_that_is_stopped_within_an_epoch_goes_on_to_the_very_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ctrl-C; test_kill.py has kill -9."""
    monkeypatch.chdir(tmp_path)
    config = DistillConfig(
        data=DataConfig(limit=1000),
        net=NetConfig(width=0.25, T=2),
        optim=OptimConfig(epochs=5, batch_size=32),
        method=METHODS["ce"],
        out=Path("stopped"),
        resume="auto",
        device="cpu",
    )
    flags = "--data.limit 1000 --net.width 0.25 --net.T 2 --optim.epochs 5 --optim.batch_size 32 --method.name ce"
    process = subprocess.Popen(
        [sys.executable, "-m", "train.distill", *flags.split(), "--out", "stopped", "--device", "cpu"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics, deadline = Path("stopped/metrics.jsonl"), time.monotonic() + PATIENCE_S
    while not metrics.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    assert re.fullmatch(
        r"student: stopped after step \d+ of \d+; saved in stopped/state.pt. Go on with .*--resume\n", errors
    )
    assert not Path("stopped/student.pt").exists()
    epochs = len(torch.load("stopped/state.pt", weights_only=True)["progress"]["history"])
    assert 1 <= epochs < 5

    result = distill.main(config)
    whole = distill.main(DistillConfig(**{**vars(config), "out": Path("whole"), "resume": "no"}))
    assert result.accuracy == whole.accuracy
    stopped, unbroken = (Checkpoint.load(path).weights for path in (result.path, whole.path))
    assert all(torch.equal(stopped[name], unbroken[name]) for name in unbroken)
    assert os.readlink("runs/latest") == "../whole"
