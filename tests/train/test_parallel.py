"""Several processes train as one: the same batches, the same losses, the same measures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
from torch import nn

from train import parallel
from train.checkpoint import Preprocess
from train.config import NetConfig
from train.data import Split
from train.metrics import run_split
from train.networks import build
from train.neurons import Norm


PATIENCE_S = 240
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def metrics(out: Path) -> list[dict]:
    """The lines of metrics.jsonl."""
    return [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]


def train(out: Path, *flags: str, processes: int, torchrun: bool = False) -> list[dict]:
    """metrics.jsonl of a digits student trained by a command of its own; by real torchrun or told what it tells."""
    flags = ("--out", str(out), "--device", "cpu", *flags)
    if torchrun:
        command = [*TORCHRUN, "-m", "train.distill", *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=out.parent, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, done.stderr
        return metrics(out)
    log = out.with_suffix(".log")
    if processes == 1:
        started = (forked.start("train.distill", flags, folder=out.parent, environment={}, log=log),)
    else:
        started = forked.start_two("train.distill", flags, folder=out.parent, log=log)
    assert set(forked.ended(*started, seconds=PATIENCE_S)) == {0}, log.read_text()
    return metrics(out)


@pytest.mark.parametrize(("engine", "method"), [("fused", "tser"), ("plain", "tser"), ("fused", "kdsnn")])
def test_two_processes_have_the_loss_curve_of_one_with_the_same_global_batch(
    engine: str, method: str, teacher: Path, tmp_path: Path
) -> None:
    """50 steps, each an epoch of one batch, in fp64: what is left is rounding. kdsnn trains an adapter, too."""
    flags = (
        *("--teacher", str(teacher), "--data.limit", "160", "--data.val_fraction", "0.2", "--optim.batch_size", "128"),
        *("--optim.epochs", "50", "--net.width", "0.25", "--sync_bn", "--precision", "fp64", "--engine", engine),
        *("--method.name", method),
    )
    one = train(tmp_path / "one", *flags, processes=1)
    two = train(tmp_path / "two", *flags, processes=2, torchrun=(engine, method) == ("fused", "tser"))
    assert len(one) == len(two) == 50
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["val_accuracy"] == a["val_accuracy"]
        assert b["val_firing_rate"] == pytest.approx(a["val_firing_rate"], rel=1e-9)
    assert one[-1]["loss"]["ce"] < 0.8 * one[0]["loss"]["ce"]
    both = [torch.load(tmp_path / run / "student.pt", weights_only=True) for run in ("one", "two")]
    assert both[0]["metrics"]["accuracy"] == both[1]["metrics"]["accuracy"]


def test_devices_starts_the_processes_by_itself_and_one_of_them_speaks(teacher: Path, tmp_path: Path) -> None:
    flags = ["--teacher", str(teacher), "--data.limit", "300", "--optim.epochs", "1", "--net.width", "0.25"]
    command = [sys.executable, "-m", "train.distill", "--out", "run", "--device", "cpu", "--devices", "2", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("student epoch 1/1") == 1
    assert done.stdout.count("written:") == 1
    assert (tmp_path / "run/student.pt").exists()


def test_a_batch_that_cannot_be_split_is_refused_before_the_first_step(teacher: Path, tmp_path: Path) -> None:
    flags = ["--teacher", str(teacher), "--optim.batch_size", "33", "--optim.epochs", "1"]
    log = tmp_path / "log"
    two = forked.start_two("train.distill", ["--out", "run", "--device", "cpu", *flags], folder=tmp_path, log=log)
    assert forked.ended(*two, seconds=PATIENCE_S) == [2, 2]
    assert "a batch of 33 images cannot be split over 2 processes: take a multiple, such as --optim.batch_size 32" in (
        log.read_text()
    )
    assert not (tmp_path / "run/state.pt").exists()


def test_with_one_process_nothing_happens() -> None:
    values = torch.arange(4.0)
    assert (parallel.processes(), parallel.rank(), parallel.is_main()) == (1, 0, True)
    assert parallel.own_part(7) == slice(0, 7)
    assert parallel.own_rows(5) == slice(0, 5)
    assert parallel.largest(3, 0) == [3, 0]
    assert torch.equal(parallel.gather(values, axis=0), values)
    assert torch.equal(parallel.mean(values), values)


def test_the_rows_of_all_processes_are_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "processes", lambda: 3)
    rows, images = [], []
    for rank in range(3):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        rows += range(10)[parallel.own_rows(10)]
        images += range(6)[parallel.own_part(6)]
    assert (rows, images) == (list(range(10)), list(range(6)))


@pytest.mark.parametrize(
    ("told", "main"),
    [
        ({}, True),
        ({"RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"NODE_RANK": "0", "LOCAL_RANK": "0"}, True),
    ],
)
def test_a_process_knows_from_its_launcher_whether_it_is_the_main_one(
    told: dict[str, str], main: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert parallel.starts_as_main() == main


def test_fewer_images_than_processes_are_measured_by_each(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(NetConfig(width=0.25, T=2))
    images = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    split = Split(images=images, labels=torch.arange(2), indices=torch.arange(2))
    preprocess = Preprocess(mean=(0.5,), std=(0.25,), size=8)
    alone = run_split(network, split, preprocess)
    monkeypatch.setattr(parallel, "processes", lambda: 3)
    among_three = run_split(network, split, preprocess)
    assert torch.equal(alone.logits, among_three.logits)
    assert among_three.rates.keys() == alone.rates.keys()


def test_synchronised_normalisation_with_one_process_is_torchs() -> None:
    x = (torch.randn(3, 5, 4, 6, 6, dtype=torch.float64) + 2).requires_grad_()
    ours, torchs = Norm(4, step_mode="m").double(), nn.BatchNorm2d(4).double()
    a = parallel.synchronised_norm(ours, x, axis=2)
    b = torchs(x.flatten(0, 1)).view_as(x)
    g = torch.randn_like(x)
    assert torch.allclose(a, b, atol=1e-12)
    assert torch.allclose(torch.autograd.grad(a, x, g)[0], torch.autograd.grad(b, x, g)[0], atol=1e-12)
    assert all(torch.allclose(p.double(), q.double()) for p, q in zip(ours.buffers(), torchs.buffers(), strict=True))
