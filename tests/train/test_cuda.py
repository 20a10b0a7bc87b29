"""What only a GPU can show: the step never waits for it, and learns what a CPU's step learns."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from train import distill, loop
from train.config import DataConfig, DistillConfig, NetConfig, OptimConfig
from train.methods import METHODS


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device that torch can use")

CONFIG = DistillConfig(
    data=DataConfig(limit=640),
    net=NetConfig(width=0.5),
    optim=OptimConfig(epochs=2, batch_size=64),
    method=METHODS["tser"],
    teacher_epochs=2,
    device="cuda",
)


def losses(config: DistillConfig, folder: Path) -> list[dict[str, float]]:
    distill.main(dataclasses.replace(config, out=folder))
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", METHODS)
def test_a_step_does_not_wait_for_the_gpu(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch raises at every synchronisation but those of the loop's look at the losses."""
    monkeypatch.chdir(tmp_path)
    rate, look = loop.optimizer.set_learning_rate, loop.look
    steps = 0

    def begin_step(*arguments: Any) -> None:
        nonlocal steps
        steps += 1
        if steps > 3:  # lazy initialisation may wait
            torch.cuda.set_sync_debug_mode("error")
        rate(*arguments)

    def pause(*arguments: Any, **named: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        look(*arguments, **named)

    monkeypatch.setattr(loop.optimizer, "set_learning_rate", begin_step)
    monkeypatch.setattr(loop, "look", pause)
    try:
        assert losses(dataclasses.replace(CONFIG, method=METHODS[name]), tmp_path / "run")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps > 20


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_learns_what_a_cpu_learns(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gpu = losses(dataclasses.replace(CONFIG, precision=precision), tmp_path / "gpu")
    cpu = losses(dataclasses.replace(CONFIG, device="cpu"), tmp_path / "cpu")
    assert gpu[0]["total"] == pytest.approx(cpu[0]["total"], rel=0.1)


def test_fp64_on_a_gpu_has_the_cpus_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(CONFIG, precision="fp64", optim=OptimConfig(epochs=1, batch_size=64))
    gpu, cpu = (losses(dataclasses.replace(config, device=d), tmp_path / d) for d in ("cuda", "cpu"))
    assert gpu[0] == pytest.approx(cpu[0], rel=1e-6)
