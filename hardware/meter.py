"""Energy that a machine measures of itself: joules of NVIDIA GPUs (NVML) and of processors (RAPL), meter by meter.

    with measure() as spent:
        work()
    spent.joules      {"nvml:0": 12.3, "rapl:package-0": 4.5}
    spent.missing     {"rapl": "why there is no such meter"}

A meter measures all that its part of the machine does, other programs and idling included. GPUs update their counters
some ten times a second: measure for seconds. Meters are never added here.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hardware.meter_nvml import load_library, nvml_meters


POWERCAP = Path("/sys/class/powercap")
RAPL_PERIOD_S = 30.0
"""How often a processor's counter is read while it is measured: it starts anew after minutes to hours."""


class NoMeter(Exception):
    """A meter that is not there or cannot be read; the message says why."""


class Meter(Protocol):
    """Joules that only grow, from whatever start."""

    name: str
    how: str
    """What it measures, and how."""
    period_s: float
    """It must be read at least this often."""

    def joules(self) -> float:
        """Read it. Raises OSError (or NvmlError, one of them) where it fails."""


@dataclass(kw_only=True)
class Rapl:
    """One domain of RAPL, a folder of /sys/class/powercap whose energy_uj counts microjoules and starts anew."""

    name: str
    how: str
    folder: Path
    range_uj: int
    """Where the counter starts anew."""
    last_uj: int
    grown_uj: int = 0
    period_s: float = RAPL_PERIOD_S

    def joules(self) -> float:
        """Joules since this object was made; the counter may have started anew once since the last reading."""
        now = int((self.folder / "energy_uj").read_text())
        self.grown_uj += now - self.last_uj if now >= self.last_uj else now + self.range_uj - self.last_uj
        self.last_uj = now
        return self.grown_uj / 1e6


def rapl_meters(powercap: Path = POWERCAP) -> list[Meter]:
    """The processor packages and, where it is not in them, their memory. Raises NoMeter with the reason for none.

    Other domains overlap with these: core and uncore are parts of the package, psys holds it, and intel-rapl-mmio is
    the same counter by another way.
    """
    found: list[Meter] = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text().strip()
            if not name.startswith(("package", "dram")):
                continue
            limit, now = (int((folder / file).read_text()) for file in ("max_energy_range_uj", "energy_uj"))
        except PermissionError as error:
            raise NoMeter(
                f"{error.filename}: permission denied; since CVE-2020-8694 only root may read it (as root: chmod a+r)"
            ) from None
        except (OSError, ValueError) as error:
            raise NoMeter(f"{folder}: cannot be read ({error})") from None
        if name == "dram":  # a child of its package, intel-rapl:0:1 of intel-rapl:0
            name = f"dram of {(folder.parent / folder.name.rpartition(':')[0] / 'name').read_text().strip()}"
        how = f"energy counter of the processor's {name} (RAPL)"
        found.append(Rapl(name=f"rapl:{name}", how=how, folder=folder, range_uj=limit, last_uj=now))
    if not found:
        raise NoMeter(f"{powercap} has no intel-rapl:* (no such processor, a virtual machine, or no driver)")
    return found


@dataclass(frozen=True, kw_only=True)
class Meters:
    """What can be measured here, and what cannot."""

    found: tuple[Meter, ...]
    missing: Mapping[str, str]
    """By kind of meter, nvml and rapl, the reason why there is none."""

    def __str__(self) -> str:
        reasons = [f"{kind}: {reason}" for kind, reason in self.missing.items()]
        return "; ".join([*(f"{meter.name}: {meter.how}" for meter in self.found), *reasons])


def find_meters(*, powercap: Path = POWERCAP, library: Callable[[], Any] = load_library) -> Meters:
    """All meters of this machine. powercap: the kernel's folder. library: opens NVML, libnvidia-ml."""
    found: list[Meter] = []
    missing: dict[str, str] = {}
    try:
        found += nvml_meters(library())
    except OSError as reason:
        missing["nvml"] = str(reason)
    try:
        found += rapl_meters(powercap)
    except NoMeter as reason:
        missing["rapl"] = str(reason)
    return Meters(found=tuple(found), missing=missing)


@dataclass(kw_only=True)
class Spent:
    """What was measured; filled in when the block ends, however it ends."""

    seconds: float = math.nan
    joules: dict[str, float] = field(default_factory=dict)
    """By name of the meter."""
    missing: dict[str, str] = field(default_factory=dict)
    """By kind or name of a meter, why it gives no joules."""


@contextmanager
def measure(meters: Meters | None = None) -> Iterator[Spent]:
    """Measure a block of code with `meters`, by default all that the machine has."""
    meters = find_meters() if meters is None else meters
    spent = Spent(missing=dict(meters.missing))
    read, ended = _reader(spent), threading.Event()
    before = {meter.name: read(meter) for meter in meters.found}
    period = min((meter.period_s for meter in meters.found), default=math.inf)
    thread = threading.Thread(target=_keep_reading, args=(meters, read, period, ended), daemon=True)
    if math.isfinite(period):
        thread.start()
    began = time.perf_counter()
    try:
        yield spent
    finally:
        spent.seconds = time.perf_counter() - began
        ended.set()
        if thread.ident is not None:
            thread.join()
        for meter in meters.found:
            joules = read(meter)
            if meter.name not in spent.missing:
                spent.joules[meter.name] = joules - before[meter.name]


def _reader(spent: Spent) -> Callable[[Meter], float]:
    """Reads a meter; of one that fails, notes the reason and goes on."""

    def read(meter: Meter) -> float:
        try:
            return meter.joules()
        except (OSError, ValueError) as error:
            spent.missing[meter.name] = f"failed while it was read: {error}"
            return math.nan

    return read


def _keep_reading(meters: Meters, read: Callable[[Meter], float], period: float, ended: threading.Event) -> None:
    """Read the meters that must be read often."""
    while not ended.wait(period):
        for meter in meters.found:
            if math.isfinite(meter.period_s):
                read(meter)
