"""Run a served network: images in, what a spiking network said at every step out. Needs no torch.

By default an image runs until it is sure enough by the exit that the bundle was calibrated to, in the step form; where
all T steps are wanted, the unrolled form gives them in one run.

Environment: TSERVE_PRECISION (fp32, fp16 or int8, of those that the bundle has), TSERVE_EXIT_THRESHOLD (in [0, 1];
1: always all steps), and those of serve.session.

Shapes: T time steps, t <= T of them used, B images, C channels, H rows, W columns, K classes, L LIF layers, M
spike-driven synaptic layers.
"""

import logging
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from serve import images as imaging
from serve.anytime import AllSteps, StepModel, Trace, checked_steps
from serve.bundle import WRITE_AGAIN, Bundle, BundleError, Description, Form, Precision, read
from serve.exits import Exit, checked_threshold, running_mean, softmax
from serve.session import CPU, Device, Provider, metadata, open_session, provider_of, resolve, threads


ENV_PRECISION = "TSERVE_PRECISION"
ENV_THRESHOLD = "TSERVE_EXIT_THRESHOLD"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What the network did with one image."""

    logits: np.ndarray
    """[t, K]: the output of each of the t steps that were run, alone."""
    spike_rates: np.ndarray
    """[t, L]: spikes per neuron, in [0, 1]."""
    taps: np.ndarray
    """[t, M] int64: pairs of a nonzero input and a kernel position inside the output map."""
    nonzero: np.ndarray
    """[t, M] int64: input values that are not zero."""
    sops: int
    """Synaptic operations that only add, over the steps that were run."""
    macs: int
    """Multiplications: the first layer, once, and synapses whose inputs are not spikes, over those steps."""
    energy_J: float
    """sops * ac_J + macs * mac_J of the bundle's chip."""
    latency_s: float
    """Seconds from asking to the answer."""

    @property
    def step_probs(self) -> np.ndarray:
        """[t, K]: softmax of each step's own logits."""
        return softmax(self.logits)

    @property
    def running_probs(self) -> np.ndarray:
        """[t, K]: softmax of the mean of the first logits, one more from row to row; the last row is the answer."""
        return softmax(running_mean(self.logits))

    @property
    def probs(self) -> np.ndarray:
        """[K]: softmax of the mean of the logits over the steps that were run."""
        return self.running_probs[-1]


def operations(taps: np.ndarray, about: Description) -> tuple[np.ndarray, np.ndarray]:
    """Count (additions [B], multiplications [B]) from taps [t, B, M]; the first layer's count is added once an image.

    SOPs of layer m = sops_per_tap[m] * sum_t taps[t, :, m], in integers.
    """
    per_tap = np.array([synapse.sops_per_tap for synapse in about.synapses], np.int64)
    adds = np.array([synapse.kind == "ac" for synapse in about.synapses], bool)
    counts = _integers(taps).sum(axis=0) * per_tap
    return counts[:, adds].sum(axis=1), counts[:, ~adds].sum(axis=1) + about.energy.static_macs


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a bundle is served."""

    device: Device
    """What is asked of onnxruntime."""
    precision: Precision
    exit: Exit


def settings(about: Description, *, provider: Provider | None = None, precision: Precision | None = None) -> Settings:
    """Hold the environment against a bundle and the machine; opens nothing. Raises ValueError for what cannot be.

    Where neither `precision` nor TSERVE_PRECISION names one, the CPU takes the bundle's default; a CUDA device, which
    has no fast path for our integer networks, takes fp16 if the bundle has it, else fp32.
    """
    threads()
    device = resolve(provider)
    chosen: Precision = about.precision
    if device != "cpu":
        chosen = next((p for p in ("fp16", "fp32") if p in about.models), chosen)
    if wanted := precision or os.environ.get(ENV_PRECISION):
        if wanted not in about.models:
            asked = "precision" if precision else ENV_PRECISION
            raise ValueError(f"{asked}: this bundle has {', '.join(about.models)}, not {wanted!r}")
        chosen = next(p for p in about.models if p == wanted)
    exit = about.exits[chosen].exit
    if text := os.environ.get(ENV_THRESHOLD):
        try:
            exit = replace(exit, threshold=checked_threshold(float(text)))
        except ValueError:
            raise ValueError(f"{ENV_THRESHOLD} must be a number in [0, 1], 1 for all steps, got {text!r}") from None
    return Settings(device=device, precision=chosen, exit=exit)


@dataclass(frozen=True, eq=False)
class Whole:
    """A bundle's unrolled form: what a batcher runs for images that take all steps (serve.turns.Engine)."""

    steps: AllSteps
    exit: Exit
    about: Description
    whole: None = None

    def prediction(self, trace: Trace, *, latency_s: float) -> Prediction:
        """As of Predictor."""
        return _prediction(self.about, trace, latency_s)


class Predictor:
    """A verified bundle in two onnxruntime sessions, the unrolled form and the step form."""

    def __init__(
        self, source: Path | str | Bundle, *, provider: Provider | None = None, precision: Precision | None = None
    ) -> None:
        """Read, verify, load and try out the bundle in a folder, or one that was read; `provider` and `precision` by
        default as `settings` says.

        Raises BundleError, and ValueError for a setting or a provider that cannot be.
        """
        self.bundle: Bundle = source if isinstance(source, Bundle) else read(source)
        self.about: Description = self.bundle.about
        chosen = settings(self.about, provider=provider, precision=precision)
        unrolled = self._open(chosen, "unrolled", provider)
        if provider_of(unrolled) == CPU and chosen.device != "cpu":  # `auto` gave the device up, and said so
            provider = "cpu"
            chosen = settings(self.about, provider=provider, precision=precision)
            unrolled = self._open(chosen, "unrolled", provider)
        self.provider: str = provider_of(unrolled)
        self.precision: Precision = chosen.precision
        self.exit: Exit = chosen.exit
        self.steps = StepModel(self._open(chosen, "step", provider))
        self.whole = Whole(AllSteps(unrolled), self.exit, self.about)
        self._samples = [self.bundle.content(sample.file) for sample in self.about.samples]
        self._try_out()
        told = f"{self.precision} on {self.provider}, {self.exit.rule} > {self.exit.threshold}, relax {self.exit.relax}"
        logger.info("%s: %s, %s", self.bundle.folder, self.about.name, told)

    @property
    def id(self) -> str:
        """The bundle's, see Bundle.id."""
        return self.bundle.id

    def sample(self, index: int) -> bytes:
        """The image file of a sample, as it was when this was opened, whatever became of the folder since."""
        return self._samples[index]

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

    def predict(
        self, images: np.ndarray, *, exit_threshold: float | None = None, steps: int | None = None
    ) -> list[Prediction]:
        """Classify images [B, C, H, W] in [0, 1]; ValueError for anything else (see `check`).

        An image stops after the first step at which it is surer than `exit_threshold`, in [0, 1] (default: the
        calibrated one; 1: never), at the latest after `steps`, 1 to T (default T).
        """
        images = self.check(images)
        exit = self.exit if exit_threshold is None else replace(self.exit, threshold=exit_threshold)
        limit = checked_steps(steps, self.about.T)
        start = time.perf_counter()
        whole = exit.threshold == 1 and limit == self.about.T
        traces = self.whole.steps.run(images) if whole else self.steps.run(images, exit, limit)
        latency_s = time.perf_counter() - start
        return [self.prediction(trace, latency_s=latency_s) for trace in traces]

    def prediction(self, trace: Trace, *, latency_s: float) -> Prediction:
        """What a trace of this network says, with its operations and their energy counted."""
        return _prediction(self.about, trace, latency_s)

    def _open(self, chosen: Settings, form: Form, provider: Provider | None) -> ort.InferenceSession:
        """Open one form of the model and hold what it says of itself against bundle.json."""
        about, file = self.about, self.bundle.model_file(chosen.precision, form)
        content = self.bundle.content(about.models[chosen.precision].file(form))
        session = open_session(content, name=str(file), provider=provider, fp16=chosen.precision == "fp16")
        said = metadata(session)
        expected: dict[str, Any] = {
            "form": form,
            "precision": chosen.precision,
            "T": about.T,
            "lif_layers": list(about.lif_layers),
            "lif_shapes": [list(shape) for shape in about.lif_shapes],
            "checkpoint_sha256": about.checkpoint_sha256,
        }
        for key, value in expected.items():
            if said.get(key) != value:
                raise _misfit(file, f"{key} is {said.get(key)!r}, expected {value!r}")
        labels = said.get("labels")
        if not isinstance(labels, list) or len(labels) != len(about.labels):
            names = f"{len(labels)} labels" if isinstance(labels, list) else "no list of labels"
            raise _misfit(file, f"it has {names}, expected {len(about.labels)}")
        return session

    def _try_out(self) -> None:
        """Run a blank image through both forms: holds them against bundle.json, and warms the sessions up."""
        about = self.about
        blank = np.zeros((1, *about.input.shape), np.float32)
        few = min(2, about.T)  # the second step reads what the first one gave
        runs: dict[Form, Any] = {
            "unrolled": lambda: self.whole.steps.run(blank),
            "step": lambda: self.steps.run(blank, Exit("confidence", 1.0), few),
        }
        layers = len(about.synapses)
        sizes = {"logits": len(about.labels), "spike_rates": len(about.lif_layers), "taps": layers, "nonzero": layers}
        for form, run in runs.items():
            file = self.bundle.model_file(self.precision, form)
            try:
                (trace,) = run()
            except Exception as error:  # onnxruntime's error types are made at run time and share no other base
                raise _misfit(file, str(error)) from None
            steps = about.T if form == "unrolled" else few
            for name, size in sizes.items():
                shape = getattr(trace, name).shape
                if shape != (steps, size):
                    raise _misfit(file, f"{name} of an image is {list(shape)}, expected {[steps, size]} (steps, names)")


def _prediction(about: Description, trace: Trace, latency_s: float) -> Prediction:
    (adds,), (macs,) = (counts.tolist() for counts in operations(trace.taps[:, None], about))
    return Prediction(
        logits=trace.logits,
        spike_rates=trace.spike_rates,
        taps=_integers(trace.taps),
        nonzero=_integers(trace.nonzero),
        sops=adds,
        macs=macs,
        energy_J=adds * about.energy.ac_J + macs * about.energy.mac_J,
        latency_s=latency_s,
    )


def _integers(counted: np.ndarray) -> np.ndarray:
    """Counts, which a model gives in float32, as int64."""
    return np.rint(counted).astype(np.int64)


def _misfit(file: Path, why: str) -> BundleError:
    return BundleError(f"{file}: does not fit its bundle.json: {why}; {WRITE_AGAIN}")
