"""Run a .net file in Lava's fixed-point simulation of Loihi. Runs inside the Lava venv only; `hardware.lava` calls it.

Usage: simulate.py JOB.json, with JOB = {"net", "frames", "out", "T", "window", "record", "stock_conv"}: frames is an
.npy of int32 [1 or T, B, *shape]. Writes into the directory `out` spikes_K.npy (uint8 [T, B, *shape as Lava has it],
that is W, H, C) for the recorded layers, K counted from the first, and v.npy (int32, the last layer's membrane).
Exit status 3: Lava cannot be imported here.
"""

import dataclasses
import functools
import importlib
import json
import logging
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any


IMPORT_FAILED = 3
Pair = Sequence[int]


def prepare_import() -> None:
    """Make netx importable on Python 3.11 and without torch; nothing in site-packages is changed.

    Lava's dataclasses have defaults that Python 3.11 refuses as mutable unless they are hashable; netx imports torch
    and slayer (and through it torchvision, OpenCV, matplotlib) for resonate-and-fire neurons only.
    """
    original = dataclasses.dataclass
    dataclasses.dataclass = functools.partial(original, unsafe_hash=True)
    try:
        importlib.import_module("lava.magma.compiler.var_model")
    finally:
        dataclasses.dataclass = original
    torch = types.ModuleType("torch")
    vars(torch).update(tensor=object, is_tensor=lambda x: False, Tensor=type("Tensor", (), {}))
    sys.modules.setdefault("torch", torch)
    for name in ("slayer", "slayer.neuron", "slayer.neuron.rf"):
        module = types.ModuleType(f"lava.lib.dl.{name}")
        module.__path__ = []
        sys.modules[module.__name__] = module

    def neuron_params(*args: object) -> None:
        raise NotImplementedError("resonate-and-fire neurons are not supported")

    vars(sys.modules["lava.lib.dl.slayer.neuron.rf"])["neuron_params"] = neuron_params


try:
    prepare_import()
    import numpy as np
    from lava.lib.dl.netx import hdf5
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.conv import utils as conv_utils
    from lava.proc.io.source import RingBuffer
    from lava.proc.lif.models import PyLifResetModelBitAcc
    from numpy.lib.stride_tricks import sliding_window_view
except ImportError as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(IMPORT_FAILED)


@dataclasses.dataclass(frozen=True)
class Tap:
    """Where one layer's activity goes: arrays in shared files, because every Lava process is a process of its own.

    The layer's neurons do step t of sample n in time step first + n * window + t.
    """

    first: int
    window: int
    spikes: np.ndarray
    v: np.ndarray | None
    written: np.ndarray  # [T, B] bool

    def record(self, time_step: int, spikes: np.ndarray, v: np.ndarray) -> None:
        """Keep what the neurons just did, if it belongs to one of the T steps of a sample."""
        n, t = divmod(time_step - self.first, self.window)
        if not (0 <= n < self.written.shape[1] and t < self.written.shape[0]):
            return
        self.spikes[t, n] = spikes
        if self.v is not None:
            self.v[t, n] = v
        self.written[t, n] = True


TAPS: dict[int, Tap] = {}
"""By layer number; filled before Lava forks, so that each layer's process finds its own."""


def watch_neurons() -> None:
    """Let Lava's neurons report to their Tap between the comparison with the threshold and the reset.

    A Sink process per layer would see the same spikes, but is slow to read: Var.get sends every value as a message.
    """
    reset = PyLifResetModelBitAcc.reset_voltage

    def recorded(self: PyLifResetModelBitAcc, spike_vector: np.ndarray) -> None:
        tap = TAPS.get(self.proc_params.get("tserve_tap"))
        if tap is not None:
            tap.record(int(self.time_step), spike_vector, self.v)
        reset(self, spike_vector)

    PyLifResetModelBitAcc.reset_voltage = recorded


def blas_conv(
    input_: np.ndarray,
    weight: np.ndarray,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> np.ndarray:
    """Do lava.proc.conv.utils.conv's sum, input [W, H, C_in], weight [C_out, kW, kH, C_in/groups] -> [W', H', C_out].

    Lava calls scipy's convolve2d for every pair of channels. Floats hold these integers exactly, so no bit differs.
    """
    largest_sum = max(1, int(np.abs(input_.astype(np.int64)).max())) * 256 * weight[0].size  # weights have 8 bits
    exact = np.float32 if largest_sum < 2**24 else np.float64
    kernel = weight[:, ::-1, ::-1, :].astype(exact)  # convolve2d flips it, a correlation does not
    pairs = (padding, stride, dilation, kernel_size)  # horizontal, vertical; int8, in which sums would wrap
    (px, py), (sx, sy), (dx, dy), (kx, ky) = ([int(n) for n in pair] for pair in pairs)
    padded = np.pad(input_.astype(exact), ((px, px), (py, py), (0, 0)))
    windows = sliding_window_view(padded, (dx * (kx - 1) + 1, dy * (ky - 1) + 1), axis=(0, 1))
    windows = windows[::sx, ::sy, :, ::dx, ::dy]  # [W', H', C_in, kW, kH]
    outputs = [
        np.tensordot(channels, part, axes=([2, 3, 4], [3, 1, 2]))
        for channels, part in zip(np.split(windows, groups, axis=2), np.split(kernel, groups), strict=True)
    ]
    return np.concatenate(outputs, axis=2).astype(weight.dtype)


def stream(frames: np.ndarray, shape: tuple[int, ...], window: int, steps: int) -> np.ndarray:
    """What the source sends, int32 [*shape as Lava has it, steps]: each sample's frames at the start of its window."""
    if frames.ndim == 5:  # C, H, W -> W, H, C, or flat for a first dense layer
        frames = frames.transpose(0, 1, 4, 3, 2) if len(shape) == 3 else frames
    frames = frames.reshape(*frames.shape[:2], *shape)
    data = np.zeros((*shape, steps), np.int32)
    for n in range(frames.shape[1]):
        for t in range(frames.shape[0]):
            data[..., n * window + t] = frames[t, n]
    return data


def main(job: dict[str, Any]) -> None:
    frames = np.load(job["frames"], allow_pickle=False)
    samples, T, window, out = frames.shape[1], job["T"], job["window"], Path(job["out"])
    if not job["stock_conv"]:
        conv_utils.conv = blas_conv
    watch_neurons()
    # The source fires in time step 1 and each synapse takes one, so layer k (from 0) sees the first frame in time step
    # 2 + k. reset_offset=1 zeroes it at the start of just that step, and again every `window` steps.
    net = hdf5.Network(job["net"], input_message_bits=8, reset_interval=window, reset_offset=1)
    net._log_config.level = logging.INFO  # at which Lava tells what failed in a layer's process
    depth = len(net.layers)
    for k, layer in enumerate(net.layers):
        if job["record"] == "output" and k < depth - 1:
            continue
        create = functools.partial(np.lib.format.open_memmap, mode="w+")
        shape = (T, samples, *layer.shape)
        TAPS[k] = Tap(
            first=2 + k,
            window=window,
            spikes=create(out / f"spikes_{k}.npy", dtype=np.uint8, shape=shape),
            v=create(out / "v.npy", dtype=np.int32, shape=shape) if k == depth - 1 else None,
            written=create(out / f"written_{k}.npy", dtype=bool, shape=shape[:2]),
        )
        layer.neuron.proc_params["tserve_tap"] = k
    steps = (samples - 1) * window + T + depth
    source = RingBuffer(data=stream(frames, net.inp.shape, window, steps))
    source.s_out.connect(net.inp)
    net.run(condition=RunSteps(num_steps=steps), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
    net.stop()
    for k, tap in TAPS.items():
        if not tap.written.all():
            sys.exit(f"layer {k}: Lava ran only {int(tap.written.sum())} of {tap.written.size} steps")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
