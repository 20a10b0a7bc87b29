"""What benchmarks/energy_training.py reports is arithmetic on what meters said; without a meter it says so and ends."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import energy_training
from energy_training import Config, main

from hardware.meter import Meters, find_meters
from hardware.meter_nvml import EnergyCounter


ROOT = Path(__file__).parents[2]
RUN = {
    "history": [{"epoch": 1}, {"epoch": 2}],
    "config": {
        "data": {"name": "digits", "root": "/secret"},
        "net": {"name": "vgg_small", "T": 4},
        "method": {"name": "tser"},
        "out": "/secret",
    },
    "device": "cpu",
    "versions": {"python": "3"},
    "git": {"commit": "abc", "dirty": False},
    "metrics": {"accuracy": 0.9},
}


def test_idle_power_is_subtracted_and_an_epoch_gets_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"s": 0.0, "J": 500.0}
    meter = EnergyCounter(name="m", how="a meter", read_mJ=lambda: round(1e3 * now["J"]))

    def spend(seconds: float, watts: float) -> None:
        now["s"] += seconds
        now["J"] += watts * seconds

    def train(flags: Sequence[str], folder: Path) -> None:
        assert list(flags) == ["digits", "--optim.epochs", "2"]
        spend(10, 70)
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps(RUN))

    monkeypatch.setattr("time.perf_counter", lambda: now["s"])
    monkeypatch.setattr("time.sleep", lambda seconds: spend(seconds, 20))
    meters = Meters(found=(meter,), missing={"rapl": "none"})
    flags = ["digits", "--optim.epochs", "2"]
    content = main(Config(seconds=5, out=tmp_path), flags, meters=meters, train=train)
    assert (content["idle_W"], content["total_J"]) == ({"m": 20}, {"m": 700})
    assert (content["net_J"], content["net_J_an_epoch"]) == ({"m": 500}, {"m": 250})
    (file,) = tmp_path.iterdir()
    assert file.name == "energy_training-digits-vgg_small-tser-T4.json"
    assert json.loads(file.read_text()) == content
    assert "secret" not in file.read_text()


def test_a_training_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the training ended with status 2"):
        energy_training.train(["--no_such_flag"], tmp_path / "run")


def test_without_a_meter_it_says_so_and_ends_with_status_2(tmp_path: Path) -> None:
    if find_meters().found:
        pytest.skip("this machine has a meter")
    command = [sys.executable, "benchmarks/energy_training.py", "--out", str(tmp_path), "--", "digits"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert "no meter of energy can be read on this machine" in ended.stderr
    assert not list(tmp_path.iterdir())
