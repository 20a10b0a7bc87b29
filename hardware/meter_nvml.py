"""NVIDIA's management library, as far as energy goes. It comes with the driver, so nothing has to be installed.

Its functions return 0 or an error number, and give values through pointers.
"""

import ctypes
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


LIBRARY = "libnvidia-ml.so.1"
POWER_PERIOD_S = 0.05
"""How often power is read where there is no counter of energy; the driver renews it some ten times a second."""


class NvmlError(OSError):
    """A call that failed, or a library that is not there."""


def load_library() -> Any:
    """Open NVML. Raises NvmlError where there is no driver."""
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise NvmlError(f"no NVIDIA driver here ({error})") from None


@dataclass(kw_only=True)
class EnergyCounter:
    """The joules of a GPU since its driver was loaded (Volta and newer)."""

    name: str
    how: str
    read_mJ: Callable[[], int]
    period_s: float = math.inf

    def joules(self) -> float:
        """Read the counter."""
        return self.read_mJ() / 1e3


@dataclass(kw_only=True)
class PowerSamples:
    """The joules of a GPU without such a counter: its power, summed over time by the trapezoidal rule."""

    name: str
    how: str
    read_mW: Callable[[], int]
    clock: Callable[[], float] = time.perf_counter
    period_s: float = POWER_PERIOD_S
    sum_J: float = 0.0
    last: tuple[float, float] | None = None
    """Seconds and watts of the last reading."""

    def joules(self) -> float:
        """Read the power; the joules since the first reading."""
        now = self.clock(), self.read_mW() / 1e3
        if self.last is not None:
            self.sum_J += (now[0] - self.last[0]) * (now[1] + self.last[1]) / 2
        self.last = now
        return self.sum_J


def nvml_meters(library: Any) -> list[EnergyCounter | PowerSamples]:
    """A meter for each GPU, in NVML's order. Raises NvmlError with the reason where there is none.

    Names are nvml:0, nvml:1, .. by the place of the GPU in the machine; CUDA may count otherwise.
    """
    nvml = _Nvml(library)
    nvml.call("nvmlInit_v2")
    meters: list[EnergyCounter | PowerSamples] = []
    for index in range(nvml.number("nvmlDeviceGetCount_v2", ctypes.c_uint)):
        handle = ctypes.c_void_p()
        nvml.call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        meters.append(_meter(nvml, handle, f"nvml:{index}", nvml.text("nvmlDeviceGetName", handle)))
    if not meters:
        raise NvmlError("the NVIDIA driver sees no GPU")
    return meters


def _meter(nvml: "_Nvml", handle: Any, name: str, model: str) -> EnergyCounter | PowerSamples:
    """The counter where the GPU has one, else samples of its power. Raises NvmlError where it has neither."""

    def energy() -> int:
        return nvml.number("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong, handle)

    def power() -> int:
        return nvml.number("nvmlDeviceGetPowerUsage", ctypes.c_uint, handle)

    try:
        energy()
    except NvmlError:
        power()
        return PowerSamples(name=name, how=f"{model}: its power, sampled (NVML)", read_mW=power)
    return EnergyCounter(name=name, how=f"{model}: its energy counter (NVML)", read_mJ=energy)


@dataclass(frozen=True)
class _Nvml:
    """Calls into the library."""

    library: Any

    def call(self, function: str, *arguments: Any) -> None:
        """Raises NvmlError with the library's own words for anything but success, or where it has no such function."""
        try:
            status = getattr(self.library, function)(*arguments)
        except AttributeError:
            raise NvmlError(f"this library of the NVIDIA driver has no {function}") from None
        if status:
            words = self.library.nvmlErrorString
            words.restype = ctypes.c_char_p
            raise NvmlError(f"{function}: {words(status).decode()}")

    def number(self, function: str, kind: Any, *handle: Any) -> int:
        """What a function of one result gives."""
        value = kind()
        self.call(function, *handle, ctypes.byref(value))
        return int(value.value)

    def text(self, function: str, handle: Any) -> str:
        """What a function that writes a text gives."""
        buffer = ctypes.create_string_buffer(96)
        self.call(function, handle, buffer, ctypes.c_uint(len(buffer)))
        return buffer.value.decode()
