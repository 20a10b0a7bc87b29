"""Run .net files in Lava's fixed-point simulation of Loihi. Runs inside the Lava venv only; `hardware.lava` calls it.

Usage: simulate.py JOBS.json, a list of jobs that are run one after the other, each {"net", "frames", "out", "T",
"window", "latency", "record", "stock_conv"}: frames is an .npy of int32 [1 or T, B, C, H, W] or [1 or T, B, N]; latency
is 0 where the network begins with input neurons, else 1, for the synapses before its first neurons. A job writes into
the directory `out` spikes_K.npy (uint8 [T, B, *shape as Lava has it], that is W, H, C) for the recorded layers, K
counted from the first, v.npy (int32, the last layer's membrane), and written_K.npy (bool [T, B], what is there so far).
Standard input is a pipe: when it closes, whoever started this is gone, and it ends. Exit status 3: no Lava here.
"""

import dataclasses
import functools
import importlib
import json
import logging
import os
import select
import signal
import sys
import threading
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any


IMPORT_FAILED = 3
POLL_S = 0.5
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

    def neuron_params(*args: object) -> None:  # netx calls it for such layers alone, which hardware.netx refuses
        raise NotImplementedError("resonate-and-fire neurons are not supported")

    vars(sys.modules["lava.lib.dl.slayer.neuron.rf"])["neuron_params"] = neuron_params


try:
    prepare_import()
    import numpy as np
    from lava.lib.dl.netx import hdf5
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.conv import utils as conv_utils
    from lava.proc.io.source import PySendModelFixed, RingBuffer
    from lava.proc.lif.models import PyLifResetModelBitAcc
    from numpy.lib.stride_tricks import sliding_window_view
except ImportError as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(IMPORT_FAILED)


@dataclasses.dataclass(frozen=True)
class Feed:
    """What the source sends: frame t of sample n in time step 1 + n * window + t, and zeros between.

    frames: int32 [1 or T, B, ...]; shape: what the first layer takes, (W, H, C) or (N,).
    """

    frames: np.ndarray
    shape: tuple[int, ...]
    window: int

    def at(self, time_step: int) -> np.ndarray:
        """The source's output in a time step, counted from 1."""
        n, t = divmod(time_step - 1, self.window)
        if n >= self.frames.shape[1] or t >= self.frames.shape[0]:
            return np.zeros(self.shape, np.int32)
        frame = self.frames[t, n]
        return frame.transpose() if len(self.shape) == 3 else frame.reshape(self.shape)  # a dense layer: C, H, W


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


FEED: list[Feed] = []
"""The one of the job that runs. Filled, as TAPS, before Lava forks, so that each process finds its own."""

TAPS: dict[int, Tap] = {}
"""By layer number."""

KERNELS: dict[tuple[int, Any], tuple[np.ndarray, list[np.ndarray]]] = {}
"""By a weight's id and type: the weight itself, so that its id stays its own, and its kernel matrices."""


def adapt_lava() -> None:
    """Let Lava's source send the Feed, and its neurons report to their Tap between the threshold and the reset.

    Stock Lava sends from and to a Var of all time steps, which it passes on as one message for each value.
    """
    reset = PyLifResetModelBitAcc.reset_voltage

    def recorded(self: PyLifResetModelBitAcc, spike_vector: np.ndarray) -> None:
        tap = TAPS.get(self.proc_params.get("tserve_tap"))
        if tap is not None:
            tap.record(int(self.time_step), spike_vector, self.v)
        reset(self, spike_vector)

    def send(self: PySendModelFixed) -> None:
        self.s_out.send(FEED[0].at(int(self.time_step)))

    PyLifResetModelBitAcc.reset_voltage = recorded
    PySendModelFixed.run_spk = send


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
    pairs = (padding, stride, dilation, kernel_size)  # horizontal, vertical; int8, in which sums would wrap
    (px, py), (sx, sy), (dx, dy), (kx, ky) = ([int(n) for n in pair] for pair in pairs)
    width = (input_.shape[0] + 2 * px - dx * (kx - 1) - 1) // sx + 1
    height = (input_.shape[1] + 2 * py - dy * (ky - 1) - 1) // sy + 1
    output = np.zeros((width, height, len(weight)), weight.dtype)
    if not input_.any():
        return output
    largest_sum = max(int(input_.max()), -int(input_.min())) * 256 * weight[0].size  # weights have 8 bits
    exact = np.float32 if largest_sum < 2**24 else np.float64
    padded = np.pad(input_.astype(exact), ((px, px), (py, py), (0, 0)))
    windows = sliding_window_view(padded, (dx * (kx - 1) + 1, dy * (ky - 1) + 1), axis=(0, 1))
    windows = windows[::sx, ::sy, :, ::dx, ::dy].transpose(0, 1, 3, 4, 2)  # [W', H', kW, kH, C_in]
    parts = np.split(windows, groups, axis=4)
    for k, (part, kernel) in enumerate(zip(parts, kernels(weight, exact, groups), strict=True)):
        columns = part.reshape(width * height, -1)
        size = kernel.shape[1]
        output[..., k * size : (k + 1) * size] = (columns @ kernel).reshape(width, height, size)
    return output


def kernels(weight: np.ndarray, exact: Any, groups: int) -> list[np.ndarray]:
    """Return each group's kernel, flipped as convolve2d does, as a matrix [kW*kH*C_in/groups, C_out/groups]; once."""
    key = (id(weight), exact)
    if key not in KERNELS:
        flipped = weight[:, ::-1, ::-1, :].astype(exact)  # a correlation does not flip it
        matrices = [np.ascontiguousarray(part.reshape(len(part), -1).T) for part in np.split(flipped, groups)]
        KERNELS[key] = (weight, matrices)
    return KERNELS[key][1]


def run(job: dict[str, Any]) -> None:
    """Run one job to its end."""
    frames = np.load(job["frames"], mmap_mode="r", allow_pickle=False)
    samples, T, window, out = frames.shape[1], job["T"], job["window"], Path(job["out"])
    # The source fires in time step 1 and each synapse takes one, so layer k (from 0) sees the first frame in time step
    # 1 + latency + k. This reset_offset zeroes it at the start of just that step, and again every `window` steps.
    latency = job["latency"]
    net = hdf5.Network(job["net"], input_message_bits=8, reset_interval=window, reset_offset=latency)
    net.net_config.f.close()  # netx leaves it open
    net._log_config.level = logging.INFO  # at which Lava tells what failed in a layer's process
    depth = len(net.layers)
    FEED[:] = [Feed(frames, net.inp.shape, window)]
    TAPS.clear()
    for k, layer in enumerate(net.layers):
        if job["record"] == "output" and k < depth - 1:
            continue
        create = functools.partial(np.lib.format.open_memmap, mode="w+")
        shape = (T, samples, *layer.shape)
        TAPS[k] = Tap(
            first=1 + latency + k,
            window=window,
            spikes=create(out / f"spikes_{k}.npy", dtype=np.uint8, shape=shape),
            v=create(out / "v.npy", dtype=np.int32, shape=shape) if k == depth - 1 else None,
            written=create(out / f"written_{k}.npy", dtype=bool, shape=shape[:2]),
        )
        layer.neuron.proc_params["tserve_tap"] = k
    source = RingBuffer(data=np.zeros((*net.inp.shape, 1), np.int32))
    source.s_out.connect(net.inp if latency else net.in_layer.neuron.a_in)  # an Input block's own port leads nowhere
    steps = (samples - 1) * window + T + depth
    net.run(condition=RunSteps(num_steps=steps), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
    net.stop()
    for k, tap in TAPS.items():
        if not tap.written.all():
            sys.exit(f"layer {k}: Lava ran only {int(tap.written.sum())} of {tap.written.size} steps")


def guard() -> None:
    """End this process when one of Lava's has failed, for the others would wait for it for ever, or when stdin closes.

    Who started this ends Lava's processes then; if that one is gone itself, this does.
    """

    def watch() -> None:
        while not select.select([0], [], [], POLL_S)[0]:
            try:
                # Only a look (WNOWAIT): the status is for Lava's own join, which fails if it is taken from under it.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:  # between two jobs
                continue
            if ended is not None and ended.si_status != 0:
                status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status  # by a signal
                print(f"one of Lava's processes ended with exit status {status}", file=sys.stderr, flush=True)
                os._exit(1)
        os.killpg(0, signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main(jobs: list[dict[str, Any]]) -> None:
    """Run every job."""
    original = conv_utils.conv
    adapt_lava()
    for job in jobs:
        conv_utils.conv = original if job["stock_conv"] else blas_conv
        run(job)


if __name__ == "__main__":
    guard()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
