"""Run a bundle: images in, what the spiking network said at every step out. Needs onnxruntime and numpy, never torch.

Shapes: T time steps, B images, C channels, H rows, W columns, K classes, L LIF layers, M spike-driven synaptic layers.
"""

import ctypes
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from serve import images as imaging
from serve.bundle import WRITE_AGAIN, Bundle, BundleError, Description, read


ENV_THREADS = "TSERVE_THREADS"
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
OUTPUTS = ("logits", "spike_rates", "taps")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What the network did with one image."""

    logits: np.ndarray
    """[T, K]: the output of each step alone."""
    spike_rates: np.ndarray
    """[T, L]: spikes per neuron, in [0, 1]."""
    sops: int
    """Synaptic operations that only add, over all steps."""
    macs: int
    """Multiplications: the first layer, once, and synapses whose inputs are not spikes, over all steps."""
    energy_J: float
    """sops * ac_J + macs * mac_J of the bundle's chip."""
    latency_s: float
    """Wall time of the run that this image was in."""

    @property
    def step_probs(self) -> np.ndarray:
        """[T, K]: softmax of each step's own logits."""
        return softmax(self.logits)

    @property
    def running_probs(self) -> np.ndarray:
        """[T, K]: softmax of the mean of the first t logits, t = 1..T; the last row is the answer."""
        steps = np.arange(1, len(self.logits) + 1)[:, None]
        return softmax(np.cumsum(self.logits, axis=0, dtype=np.float64) / steps)

    @property
    def probs(self) -> np.ndarray:
        """[K]: softmax of the mean over T of the logits."""
        return self.running_probs[-1]


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(x) / sum(exp(x)) over the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def operations(taps: np.ndarray, about: Description) -> tuple[np.ndarray, np.ndarray]:
    """Count (additions [B], multiplications [B]) from taps [T, B, M]; the first layer's count is added once an image.

    SOPs of layer m = sops_per_tap[m] * sum_t taps[t, :, m], in integers.
    """
    per_tap = np.array([synapse.sops_per_tap for synapse in about.synapses], np.int64)
    adds = np.array([synapse.kind == "ac" for synapse in about.synapses], bool)
    counts = np.rint(taps).astype(np.int64).sum(axis=0) * per_tap
    return counts[:, adds].sum(axis=1), counts[:, ~adds].sum(axis=1) + about.energy.static_macs


class Predictor:
    """A verified bundle in an onnxruntime session, on a CUDA device if one is really there, else on the CPU."""

    def __init__(self, folder: Path | str) -> None:
        """Read, verify, load and try out the bundle in `folder`; raises BundleError."""
        self.bundle: Bundle = read(folder)
        self.about: Description = self.bundle.about
        self._session = _session(self.bundle.model_file)
        self.provider: str = self._session.get_providers()[0]
        self._try_out()
        logger.info("%s: %s on %s", folder, self.about.name, self.provider)

    def decode(self, source: bytes | Path) -> np.ndarray:
        """Decode an image file to the float32 [C, H, W] that this network takes; raises ImageError (a ValueError)."""
        return imaging.decode(source, self.about.input)

    def check(self, images: np.ndarray) -> np.ndarray:
        """Give `images` as float32; ValueError unless they are [B, C, H, W], B >= 1, finite and in [0, 1]."""
        shape = self.about.input.shape
        if images.ndim != 4 or images.shape[1:] != shape or not len(images):
            wanted = ", ".join(map(str, shape))
            raise ValueError(f"images must have the shape [B, {wanted}] with B >= 1, got {list(images.shape)}")
        images = images.astype(np.float32, copy=False)
        inside = (images >= 0) & (images <= 1)  # also False for NaN
        if not inside.all():
            b, c, i, j = (int(n) for n in np.argwhere(~inside)[0])
            raise ValueError(f"images must lie in [0, 1], got {images[b, c, i, j]} at [{b}, {c}, {i}, {j}]")
        return images

    def predict(self, images: np.ndarray) -> list[Prediction]:
        """Classify images [B, C, H, W] in [0, 1]; ValueError for anything else (see `check`)."""
        images = self.check(images)
        start = time.perf_counter()
        logits, spike_rates, taps = self._session.run(OUTPUTS, {"image": images})
        latency_s = time.perf_counter() - start
        adds, macs = operations(taps, self.about)
        energy = self.about.energy
        return [
            Prediction(
                logits=logits[:, b],
                spike_rates=spike_rates[:, b],
                sops=int(adds[b]),
                macs=int(macs[b]),
                energy_J=float(adds[b] * energy.ac_J + macs[b] * energy.mac_J),
                latency_s=latency_s,
            )
            for b in range(len(images))
        ]

    def _try_out(self) -> None:
        """One run on a blank image: holds the model against bundle.json, and warms the session up."""
        about = self.about
        where = f"{self.bundle.model_file}: does not fit its bundle.json"
        try:
            outputs = self._session.run(OUTPUTS, {"image": np.zeros((1, *about.input.shape), np.float32)})
        except Exception as error:  # onnxruntime's error types are made at run time and share no other base
            raise BundleError(f"{where}: {error}; {WRITE_AGAIN}") from None
        sizes = (len(about.labels), len(about.lif_layers), len(about.synapses))
        for name, output, size in zip(OUTPUTS, outputs, sizes, strict=True):
            if output.shape != (about.T, 1, size):
                raise BundleError(
                    f"{where}: {name} is {list(output.shape)}, expected {[about.T, 1, size]} (T, images, names); "
                    f"{WRITE_AGAIN}"
                )


def _session(model: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads()
    # Waiting threads that spin take the cores from the web server: on two busy cores a third of the throughput.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = [CUDA, CPU] if CUDA in ort.get_available_providers() and _cuda_devices() else [CPU]
    if CUDA in wanted:
        ort.preload_dlls()
    try:
        session = ort.InferenceSession(model, options, providers=wanted)
    except Exception as error:  # see Predictor._try_out
        raise BundleError(f"{model}: onnxruntime cannot load it: {error}") from None
    if session.get_providers()[0] != wanted[0]:
        logger.warning("onnxruntime could not use the CUDA device (its log says why): the CPU is used")
    return session


def threads() -> int:
    """Threads of one run, from TSERVE_THREADS; 1 by default, which serves several callers best on few cores."""
    text = os.environ.get(ENV_THREADS, "1")
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{ENV_THREADS} must be a whole number of threads, 1 or more, got {text!r}")
    return int(text)


def _cuda_devices() -> int:
    """How many CUDA devices the driver sees; onnxruntime itself only says what it was built with."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0
