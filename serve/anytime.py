"""Any-time inference over the step form: images leave as soon as they are sure, and new ones may enter at any step.

    model = StepModel(open_session(path))
    traces = model.run(images, Exit("confidence", 0.9))

For a server that batches over it, `model.crowd(rule)` takes new images at every step, each with its own threshold.

Shapes: B images, C channels, H rows, W columns, K classes, L LIF layers, M spike-driven synaptic layers, t <= T steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort

from serve.bundle import WRITE_AGAIN, BundleError
from serve.exits import Exit, Rule, sureness
from serve.place import OUTPUTS, Host, OnDevice, Slot
from serve.session import CPU, metadata, provider_of


Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """What the network did with one image, in the t steps that it used."""

    logits: np.ndarray
    """[t, K]: the output of each step alone."""
    spike_rates: np.ndarray
    """[t, L]."""
    taps: np.ndarray
    """[t, M]."""
    nonzero: np.ndarray
    """[t, M]."""


class StepModel:
    """A model in step form in a session of serve.session; it holds no images, so several threads may use it."""

    def __init__(self, session: ort.InferenceSession, *, on_device: bool | None = None) -> None:
        """Read the model's metadata; BundleError if it is not a step form.

        `on_device` (default: where the session does not run on the CPU) keeps tensors on the session's device.
        """
        about = metadata(session)
        if about.get("form") != "step":
            raise BundleError(f"the model's form is {about.get('form')!r}, expected 'step'; {WRITE_AGAIN}")
        try:
            slots = [_slot(entry) for entry in (*about["carried"], *about["states"])]
            self.T = int(about["T"])
        except (LookupError, TypeError, ValueError) as error:
            raise BundleError(f"the step model's metadata cannot be read: {error!r}; {WRITE_AGAIN}") from None
        inputs = {tensor.name: tensor.shape for tensor in session.get_inputs()}
        if inputs.keys() != {"image", *(slot.input for slot in slots)}:
            raise BundleError(f"the step model takes {', '.join(inputs)}, not what its metadata say; {WRITE_AGAIN}")
        on_device = provider_of(session) != CPU if on_device is None else on_device
        self.place = (OnDevice if on_device else Host)(session, slots)
        self.no_images = np.zeros((0, *inputs["image"][1:]), np.float32)

    def crowd(self, rule: Rule, relax: float = 0.0) -> "Crowd":
        """Nobody yet."""
        return Crowd(self, rule, relax)

    def run(self, images: np.ndarray, exit: Exit, steps: int | None = None) -> list[Trace]:
        """Run images [B, C, H, W] until each is sure or has had `steps` (default and at most T); traces in order."""
        crowd, limit = self.crowd(exit.rule, exit.relax), checked_steps(steps, self.T)
        done = dict(crowd.advance(images, threshold=exit.threshold, steps=limit))
        while len(crowd):
            done |= dict(crowd.advance())
        return [done[number] for number in range(len(images))]


def checked_steps(steps: int | None, T: int) -> int:
    """The number of steps that is meant: T for None; ValueError outside 1..T."""
    if steps is None:
        return T
    if not 1 <= steps <= T:
        raise ValueError(f"steps must be 1 to {T}, got {steps}")
    return steps


@dataclass(kw_only=True, eq=False, slots=True)
class _Image:
    """One image under way."""

    number: int
    exit: Exit
    limit: int
    outputs: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    """Of each step so far: logits [K], spike_rates [L], taps [M], nonzero [M]."""

    def trace(self) -> Trace:
        logits, spike_rates, taps, nonzero = (np.stack(rows) for rows in zip(*self.outputs, strict=True))
        return Trace(logits=logits, spike_rates=spike_rates, taps=taps, nonzero=nonzero)


class Crowd:
    """Images under way, each at a time step of its own. For one thread at a time.

    If `advance` raises, the crowd is lost: start another.
    """

    def __init__(self, model: StepModel, rule: Rule, relax: float) -> None:
        self._model, self._rule, self._relax = model, rule, relax
        self.entered = 0
        """How many images have entered so far: the number of the next."""
        self._images: list[_Image] = []
        self._tensors: list[Any] = model.place.nothing()
        self._rows: np.ndarray | None = None
        """Rows of the tensors that go on, where not all do. They are chosen when the next step is run, with its new
        images, so that a tensor is copied at most once a step."""
        self._sums = np.zeros((0, 0))
        """[B, K] float64: every image's logits so far, added step by step."""

    def __len__(self) -> int:
        """How many images are under way."""
        return len(self._images)

    def advance(
        self,
        images: np.ndarray | None = None,
        *,
        threshold: float | Sequence[float] = 1.0,
        steps: int | Sequence[int] | None = None,
    ) -> list[tuple[int, Trace]]:
        """Let new images [N, C, H, W] in, move all by one step and give those that are done, as (number, trace).

        Numbers count the images from 0 in the order in which they entered. `threshold` and `steps` (default and at
        most T) are those of the new images: one for all, or one for each. ValueError, and nothing has happened, for
        one that cannot be. Nobody under way and nobody new: nothing happens.
        """
        model = self._model
        images = model.no_images if images is None else np.ascontiguousarray(images, np.float32)
        exits = [Exit(self._rule, value, self._relax) for value in _for_each(threshold, len(images))]
        limits = [checked_steps(value, model.T) for value in _for_each(steps, len(images))]
        for number, (exit, limit) in enumerate(zip(exits, limits, strict=True), self.entered):
            self._images.append(_Image(number=number, exit=exit, limit=limit))
        self.entered += len(images)
        if not self._images:
            return []
        tensors = model.place.joined(self._tensors, self._rows, len(images))
        outputs, self._tensors = model.place.run(images, tensors)
        self._add(outputs[0], len(images))
        for image, *rows in zip(self._images, *outputs, strict=True):
            image.outputs.append(tuple(rows))
        return self._let_out()

    def _add(self, logits: np.ndarray, new: int) -> None:
        """Add this step's logits [B, K] to every image's sum; the last `new` of them had none so far."""
        if new == len(logits):
            self._sums = logits.astype(np.float64)
        else:
            self._sums = np.pad(self._sums, ((0, new), (0, 0))) if new else self._sums
            self._sums += logits

    def _let_out(self) -> list[tuple[int, Trace]]:
        """Take out, and give, the images that are sure or at their limit."""
        ages = [len(image.outputs) for image in self._images]
        done = [age >= image.limit for age, image in zip(ages, self._images, strict=True)]
        if not all(done):
            means = self._sums / np.array(ages)[:, None]
            sure = sureness(means, self._rule).tolist()
            rows = zip(done, sure, ages, self._images, strict=True)
            done = [d or s > image.exit.at(age) for d, s, age, image in rows]
        traces = [(image.number, image.trace()) for image, out in zip(self._images, done, strict=True) if out]
        if len(traces) == len(self._images):
            self._images, self._tensors, self._rows = [], self._model.place.nothing(), None
        elif traces:
            self._rows = np.flatnonzero(~np.array(done))
            self._sums = self._sums[self._rows]
            self._images = [self._images[row] for row in self._rows]
        else:
            self._rows = None
        return traces


class AllSteps:
    """A model in unrolled form, all T steps in one run, for images that take them all; asked as StepModel is."""

    def __init__(self, session: ort.InferenceSession) -> None:
        """Take a session of serve.session."""
        self.T = int(metadata(session)["T"])
        self.no_images = np.zeros((0, *session.get_inputs()[0].shape[1:]), np.float32)
        self._session = session

    def crowd(self, rule: Rule, relax: float = 0.0) -> "OneRun":
        """Nobody yet; nobody stops early, so the rule is none."""
        return OneRun(self)

    def run(self, images: np.ndarray) -> list[Trace]:
        """Run images [B, C, H, W], all T steps; traces in order."""
        outputs = self._session.run(OUTPUTS, {"image": images})
        return [
            Trace(**{name: value[:, b] for name, value in zip(OUTPUTS, outputs, strict=True)})
            for b in range(len(images))
        ]


class OneRun:
    """A crowd of AllSteps: who enters is done at once."""

    def __init__(self, model: AllSteps) -> None:
        self._model = model
        self.entered = 0

    def advance(
        self,
        images: np.ndarray | None = None,
        *,
        threshold: float | Sequence[float] = 1.0,
        steps: int | Sequence[int] | None = None,
    ) -> list[tuple[int, Trace]]:
        """As of Crowd; every threshold is 1 and every limit T."""
        if images is None:
            return []
        first, self.entered = self.entered, self.entered + len(images)
        return list(enumerate(self._model.run(images), first))


def _for_each(value: Value | Sequence[Value], images: int) -> Sequence[Value]:
    """One value for each image, from one for all or one for each."""
    if not isinstance(value, Sequence):
        return [value] * images
    if len(value) != images:
        raise ValueError(f"{len(value)} values for {images} images; give one for all, or one for each")
    return value


def _slot(entry: dict[str, Any]) -> Slot:
    """What the metadata say of a carried tensor or a state."""
    return Slot(
        input=entry["input"],
        output=entry["output"],
        shape=tuple(entry["shape"]),
        type=entry["type"],
        start=entry.get("start"),
    )
