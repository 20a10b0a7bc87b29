"""Engines over the synthetic step model that wait, fail and take notes, and batchers that are closed after a test."""

import copy
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from synthetic import build_step, exact_images

from serve.anytime import StepModel, Trace
from serve.batching import Batcher
from serve.exits import Exit
from serve.predictor import Prediction
from serve.session import open_session


T, COUNT = 4, 24
IMAGES = exact_images(COUNT)
ALWAYS = Exit("confidence", 1.0)
SOON = 20.0  # seconds after which a test that hangs gives up


@dataclass(eq=False)
class Engine:
    """A step model with its exit; a prediction keeps the trace, and no more."""

    steps: StepModel
    exit: Exit = ALWAYS
    whole: "Engine | None" = None

    def prediction(self, trace: Trace, *, latency_s: float) -> Prediction:
        return Prediction(
            logits=trace.logits,
            spike_rates=trace.spike_rates,
            taps=trace.taps,
            nonzero=trace.nonzero,
            sops=int(trace.taps.sum()),
            macs=0,
            energy_J=0.0,
            latency_s=latency_s,
        )


class Broken(Exception):
    """What an engine raises here."""


@dataclass
class Place:
    """The place of a step model, with something before each run; it notes the images in each."""

    place: Any
    before: Callable[[int], object]
    """Gets the number of the run."""
    runs: list[int] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.place, name)

    def run(self, images: np.ndarray, tensors: list[Any]) -> Any:
        outputs = self.place.run(images, tensors)
        self.runs.append(len(outputs[0][0]))
        self.before(len(self.runs))
        return outputs


def with_place(model: StepModel, before: Callable[[int], object]) -> StepModel:
    """The same model that does something at each run."""
    changed = copy.copy(model)
    changed.place = Place(model.place, before)
    return changed


class Gate:
    """Holds each run until the test lets it pass."""

    def __init__(self) -> None:
        self._passes, self._held, self.open = threading.Semaphore(0), threading.Semaphore(0), False

    def __call__(self, run: int) -> None:
        self._held.release()
        if not self.open:
            assert self._passes.acquire(timeout=SOON)

    def held(self) -> None:
        """Wait for one more run to come here."""
        assert self._held.acquire(timeout=SOON)

    def let(self) -> None:
        """Let one run pass and wait for the next to come."""
        self._passes.release()
        self.held()

    def let_all(self) -> None:
        self.open = True
        self._passes.release(1000)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[StepModel]:
    """Step models of three weights."""
    found = []
    for seed in (7, 8, 9):
        path: Path = tmp_path_factory.mktemp("step") / "step.onnx"
        onnx.save(build_step(steps=T, seed=seed), path)
        found.append(StepModel(open_session(path, provider="cpu")))
    return found


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def batchers(gate: Gate) -> Iterator[Callable[..., Batcher]]:
    """Makes batchers that are closed after the test; whatever the gate holds then may pass."""
    made: list[Batcher] = []

    def make(*, runners: int = 1, max_batch: int = 4, max_waiting: int = 1000, watch: Any = None) -> Batcher:
        made.append(Batcher(runners=runners, max_batch=max_batch, max_waiting=max_waiting, watch=watch))
        return made[-1]

    yield make
    gate.let_all()
    for batcher in made:
        batcher.close(SOON)


def submit(batcher: Batcher, engine: Engine, *images: int, steps: int | None = None) -> Future[list[Prediction]]:
    """Submit these of IMAGES, to be run to the end."""
    return batcher.submit(engine, IMAGES[list(images)], exit_threshold=1.0, steps=steps)


def same(prediction: Prediction, trace: Trace) -> None:
    """The prediction is that of the trace, bit for bit."""
    np.testing.assert_array_equal(prediction.logits, trace.logits, strict=True)
    np.testing.assert_array_equal(prediction.spike_rates, trace.spike_rates, strict=True)
    assert prediction.sops == int(trace.taps.sum())


def until(holds: Callable[[], object]) -> None:
    """Wait until it holds."""
    end = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)
