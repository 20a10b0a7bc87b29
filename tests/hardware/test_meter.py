"""Meters give the joules that their counters grew by, or the reason why there are none."""

import ctypes
import itertools
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hardware.meter import Meters, NoMeter, find_meters, measure, rapl_meters
from hardware.meter_nvml import EnergyCounter, NvmlError, PowerSamples, load_library, nvml_meters


NO_DRIVER = "no NVIDIA driver here (not found)"


def no_library() -> Any:
    raise NvmlError(NO_DRIVER)


class FakeNvml:
    """What libnvidia-ml does, for GPUs whose counters grow by `step_mJ` at every reading."""

    def __init__(self, gpus: int = 1, *, step_mJ: int = 2500, counter: bool = True, power: bool = True) -> None:
        self.gpus, self.step_mJ, self.counter, self.power = gpus, step_mJ, counter, power
        self.mJ = [10**12] * gpus  # beyond 32 bits: a counter that was cut off would show
        self.lost = False
        self.nvmlErrorString: Any = self._words

    @staticmethod
    def _words(status: int) -> bytes:
        return {3: b"Not Supported", 15: b"GPU is lost", 9: b"Driver Not Loaded"}[status]

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, out: Any) -> int:
        out._obj.value = self.gpus
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, out: Any) -> int:
        out._obj.value = 1 + index.value
        return 0

    def nvmlDeviceGetName(self, handle: Any, buffer: Any, size: ctypes.c_uint) -> int:
        assert size.value == len(buffer)
        buffer.value = f"GPU of place {handle.value - 1}".encode()
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, out: Any) -> int:
        if self.lost or not self.counter:
            return 15 if self.lost else 3
        place = handle.value - 1
        out._obj.value = self.mJ[place]
        self.mJ[place] += self.step_mJ * (1 + place)
        return 0

    def nvmlDeviceGetPowerUsage(self, handle: Any, out: Any) -> int:
        if not self.power:
            return 3
        out._obj.value = 150_000
        return 0


def domain(folder: Path, place: str, name: str, *, uj: int = 0, limit: int = 1_000_000) -> Path:
    """A folder of RAPL as the kernel has it."""
    made = folder / place
    made.mkdir(parents=True)
    for file, value in (("name", name), ("energy_uj", uj), ("max_energy_range_uj", limit)):
        (made / file).write_text(f"{value}\n")
    return made


def test_packages_and_memory_are_measured_and_what_overlaps_with_them_is_not(tmp_path: Path) -> None:
    for place, name in {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }.items():
        domain(tmp_path, place, name)
    (tmp_path / "intel-rapl").mkdir()  # the control type itself, a folder without counters
    names = [meter.name for meter in rapl_meters(tmp_path)]
    assert names == ["rapl:package-0", "rapl:dram of package-0", "rapl:package-1"]


@pytest.mark.parametrize(
    ("readings", "joules"),
    [((5, 5), 0.0), ((5, 250_005), 0.25), ((900_000, 100_000), 0.2), ((900_000, 999_000, 1_000, 400_000), 0.5)],
)
def test_a_processors_counter_may_start_anew(tmp_path: Path, readings: tuple[int, ...], joules: float) -> None:
    folder = domain(tmp_path, "intel-rapl:0", "package-0", uj=readings[0])
    (meter,) = rapl_meters(tmp_path)
    for reading in readings[1:]:
        (folder / "energy_uj").write_text(str(reading))
        found = meter.joules()
    assert found == pytest.approx(joules)
    assert math.isfinite(meter.period_s)  # it must be read before it starts anew twice


def test_a_counter_that_only_root_may_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = domain(tmp_path, "intel-rapl:0", "package-0")
    read = Path.read_text

    def refuse(path: Path, *rest: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *rest)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(NoMeter, match=f"{folder}/energy_uj: permission denied; .*only root may read it"):
        rapl_meters(tmp_path)


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: domain(folder, "intel-rapl:0", "psys")])
def test_a_machine_without_rapl_gives_the_reason(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(tmp_path)
    with pytest.raises(NoMeter, match="has no intel-rapl"):
        rapl_meters(tmp_path)


def test_a_damaged_counter_is_named(tmp_path: Path) -> None:
    (domain(tmp_path, "intel-rapl:0", "package-0") / "energy_uj").write_text("many")
    with pytest.raises(NoMeter, match="intel-rapl:0: cannot be read"):
        rapl_meters(tmp_path)


def test_every_gpu_is_measured_by_its_own_counter(tmp_path: Path) -> None:
    meters = find_meters(powercap=tmp_path, library=lambda: FakeNvml(2))
    assert [(meter.name, meter.how) for meter in meters.found] == [
        ("nvml:0", "GPU of place 0: its energy counter (NVML)"),
        ("nvml:1", "GPU of place 1: its energy counter (NVML)"),
    ]
    with measure(meters) as spent:
        assert not spent.joules
    assert spent.joules == {"nvml:0": 2.5, "nvml:1": 5.0}
    assert spent.seconds >= 0
    assert spent.missing.keys() == {"rapl"}


def test_without_a_counter_power_is_summed_over_time() -> None:
    (meter,) = nvml_meters(FakeNvml(counter=False))
    assert isinstance(meter, PowerSamples)
    assert "power, sampled" in meter.how
    watts, seconds = iter([100_000, 300_000, 300_000]), itertools.count(10.0, 0.5)
    meter.read_mW, meter.clock = (lambda: next(watts)), (lambda: next(seconds))
    assert [meter.joules() for _ in range(3)] == [0.0, 0.5 * 200, 0.5 * 200 + 0.5 * 300]


def test_samples_are_taken_while_the_block_runs() -> None:
    fifth, readings = threading.Event(), itertools.count(1)

    def read_mW() -> int:
        if next(readings) == 5:
            fifth.set()
        return 1000

    clock = itertools.count()  # a second between any two readings, at 1 W
    meter = PowerSamples(name="p", how="", read_mW=read_mW, period_s=0.001, clock=clock.__next__)
    with measure(Meters(found=(meter,), missing={})) as spent:
        assert fifth.wait(timeout=30)  # a thread reads
    assert spent.joules["p"] == next(clock) - 1 >= 5


@pytest.mark.parametrize(
    ("library", "message"),
    [
        (FakeNvml(0), "the NVIDIA driver sees no GPU"),
        (FakeNvml(counter=False, power=False), "nvmlDeviceGetPowerUsage: Not Supported"),
    ],
)
def test_what_nvml_cannot_measure_is_said_in_its_words(tmp_path: Path, library: FakeNvml, message: str) -> None:
    meters = find_meters(powercap=tmp_path, library=lambda: library)
    assert meters.found == ()
    assert meters.missing["nvml"] == message


def test_a_driver_that_is_not_loaded_is_said() -> None:
    library = FakeNvml()
    library.nvmlInit_v2 = lambda: 9  # type: ignore[method-assign]
    with pytest.raises(NvmlError, match="nvmlInit_v2: Driver Not Loaded"):
        nvml_meters(library)


def test_a_meter_that_fails_meanwhile_gives_the_reason_and_no_joules(tmp_path: Path) -> None:
    library = FakeNvml()
    domain(tmp_path, "intel-rapl:0", "package-0")
    with measure(find_meters(powercap=tmp_path, library=lambda: library)) as spent:
        library.lost = True
    assert spent.missing["nvml:0"].endswith("GPU is lost")
    assert spent.joules == {"rapl:package-0": 0.0}


def test_a_block_that_fails_is_measured_and_fails() -> None:
    meter = EnergyCounter(name="m", how="", read_mJ=itertools.count(0, 1000).__next__)
    with pytest.raises(RuntimeError, match="mine"), measure(Meters(found=(meter,), missing={})) as spent:
        raise RuntimeError("mine")
    assert spent.joules == {"m": 1.0}


def test_a_machine_without_meters_gives_both_reasons(tmp_path: Path) -> None:
    meters = find_meters(powercap=tmp_path, library=no_library)
    with measure(meters) as spent:
        pass
    assert (spent.joules, spent.missing.keys()) == ({}, {"nvml", "rapl"})
    assert NO_DRIVER in str(meters)
    assert str(tmp_path) in str(meters)


def test_a_missing_library_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(NvmlError, match=r"no NVIDIA driver here .*libnvidia-ml"):
        load_library()
