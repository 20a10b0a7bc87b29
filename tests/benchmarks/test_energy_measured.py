"""What benchmarks/energy_measured.py reports is arithmetic on what meters said; without a meter it says so and ends."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import energy_measured
from energy_measured import Config, idle_watts, main, spent_on, summarise, table

from hardware.meter import Meters, find_meters
from hardware.meter_nvml import EnergyCounter, NvmlError


ROOT = Path(__file__).parents[2]
QUICK: dict[str, Any] = {"device": "cpu", "seconds": 0.001, "rounds": 2, "batch_sizes": (1, 4), "images": 8}


class Machine:
    """Time and a meter that only move as told: `watts` while asleep, `joules_a_call` while it works."""

    def __init__(self, *, watts: float = 100.0, joules_a_call: float = 70.0, seconds_a_call: float = 0.5) -> None:
        self.now, self.joules = 0.0, 1000.0
        self.watts, self.joules_a_call, self.seconds_a_call = watts, joules_a_call, seconds_a_call
        meter = EnergyCounter(name="m", how="a meter", read_mJ=lambda: round(1e3 * self.joules))
        self.meters = Meters(found=(meter,), missing={"rapl": "none"})

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.joules += self.watts * seconds

    def answer(self, images: np.ndarray) -> None:
        self.now += self.seconds_a_call
        self.joules += self.joules_a_call


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr("time.perf_counter", lambda: made.now)
    monkeypatch.setattr("time.sleep", made.sleep)
    return made


def test_idle_power_is_energy_over_time(machine: Machine) -> None:
    assert idle_watts(machine.meters, seconds=8.0) == {"m": pytest.approx(100.0)}


def test_joules_an_image_are_whole_and_without_what_idling_takes(machine: Machine) -> None:
    queue = itertools.cycle([np.zeros((4, 1))])
    found = spent_on(machine.answer, queue, machine.meters, seconds=2.0, idle={"m": 100.0})
    assert (found["images"], found["seconds"]) == (16, 2.0)  # four calls of four; the one before is not measured
    assert found["total_J"]["m"] == pytest.approx(4 * 70 / 16)
    assert found["net_J"]["m"] == pytest.approx((4 * 70 - 100 * 2.0) / 16)


def test_meters_that_cannot_be_read_end_the_measurement() -> None:
    def lost() -> int:
        raise NvmlError("GPU is lost")

    meters = Meters(found=(EnergyCounter(name="m", how="", read_mJ=lost),), missing={})
    with pytest.raises(ValueError, match=r"cannot be read: .*GPU is lost"):
        idle_watts(meters, seconds=0.001)


def test_medians_are_over_rounds_with_their_spread() -> None:
    rounds = [
        {"batches": {"1": {"fp32": {"images": 4, "seconds": s, "total_J": {"m": j}, "net_J": {"m": j - 1}}}}}
        for s, j in ((2.0, 3.0), (4.0, 9.0), (3.0, 5.0))
    ]
    row = summarise(rounds, "fp32")["batches"]["1"]
    assert row["seconds_an_image"] == 0.75
    assert row["total_J"]["m"] == {"median": 5.0, "min": 3.0, "max": 9.0}
    assert row["net_J"]["m"]["median"] == 4.0


def test_ann_student_and_any_time_student_are_measured_in_turns(student: Path, tmp_path: Path) -> None:
    counter = itertools.count(0, 1000)
    meter = EnergyCounter(name="m", how="a meter", read_mJ=counter.__next__)
    meters = Meters(found=(meter,), missing={"nvml": "none here"})
    variants = ("ann_fp32", "fp32", "anytime_fp32")
    content = main(Config(checkpoint=student, out=tmp_path, variants=variants, **QUICK), meters=meters)
    path = tmp_path / "energy_measured-digits-vgg_small-T4-cpu.json"
    assert json.loads(path.read_text()) == content
    assert tuple(content["rows"]) == variants
    assert content["rows"]["ann_fp32"]["mean_steps"] == 1
    assert content["rows"]["anytime_fp32"]["mean_steps"] <= content["rows"]["fp32"]["mean_steps"] == 4
    assert content["meters"] == {"m": "a meter"}
    assert content["missing"] == {"nvml": "none here"}
    assert {"machine", "versions", "git"} <= content.keys()
    assert str(tmp_path) not in path.read_text()
    for entry in content["rounds"]:
        assert list(entry["batches"]) == ["1", "4"]
        for size, name in itertools.product(entry["batches"], variants):
            found = entry["batches"][size][name]
            assert found["total_J"]["m"] == pytest.approx(1.0 / found["images"])  # a joule between two readings
    text = table(content)
    assert "m: a meter; idle" in text
    assert [line.split(" | ")[0] for line in text.splitlines()[-3:]] == ["| ANN fp32", "| ours fp32", "| any-time fp32"]


def test_a_machine_without_a_meter_ends_with_a_sentence_and_status_2(student: Path, tmp_path: Path) -> None:
    def none() -> Any:
        raise NvmlError("no driver")

    meters = find_meters(powercap=tmp_path, library=none)
    with pytest.raises(ValueError, match=r"no meter of energy can be read .* so nothing is measured \(nvml: no driver"):
        main(Config(checkpoint=student, out=tmp_path), meters=meters)
    assert not list(tmp_path.iterdir())
    code = (
        "import sys; sys.argv[1:] = [sys.argv[1]]; import energy_measured as e; from train import cli;"
        "from hardware.meter import Meters; e.find_meters = lambda: Meters(found=(), missing={'rapl': 'gone'});"
        "sys.exit(cli.exit_status(lambda: e.command(sys.argv[1:])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(student)],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{ROOT / 'benchmarks'}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "no meter of energy can be read on this machine" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds, threads, calibration and batch_sizes must be at least 1"),
        ({"seconds": 0.0}, "seconds above 0"),
        ({"images": 3, "batch_sizes": (4,)}, r"images \(3\) must fill the largest batch, 4"),
        ({"variants": ("fp31",)}, "fp31.*fp32"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(checkpoint=Path("student.pt"), **changes)


def test_every_variant_has_a_title() -> None:
    assert set(energy_measured.VARIANTS) <= energy_measured.TITLES.keys()
