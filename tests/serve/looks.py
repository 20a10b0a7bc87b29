"""Looks at made-up predictions, of as many steps and classes as one likes: what the page's figures are drawn from."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve.anytime import Trace
from serve.bundle import Description, Precision, read
from serve.exits import Exit
from serve.predictor import Prediction, Whole
from serve.ui.inputs import Picture
from serve.ui.look import Look


@dataclass(frozen=True, kw_only=True, eq=False)
class Stand:
    """A network that runs nothing: what a look asks of its predictor."""

    about: Description
    exit: Exit
    precision: Precision = "fp32"
    provider: str = "CPUExecutionProvider"
    id: str = "0123456789ab"

    def prediction(self, trace: Trace, *, latency_s: float) -> Prediction:
        """As of Predictor."""
        return Whole(None, self.exit, self.about).prediction(trace, latency_s=latency_s)  # type: ignore[arg-type]


def described(folder: Path, **changes: object) -> Description:
    """What a bundle says of itself, with other words."""
    return read(folder).about.model_copy(update=changes)


def look(
    about: Description,
    logits: object,
    *,
    exit: Exit = Exit("confidence", 0.9),  # noqa: B008 (frozen)
    truth: str | None = None,
    name: str = "net, fp32",
    busy: float = 0.3,
    seed: int = 0,
) -> Look:
    """A look at logits [T, K]; `busy` is how much the network does, in [0, 1]."""
    said = np.array(logits, np.float32)
    rng, T = np.random.default_rng(seed), len(said)
    shape = (T, len(about.lif_layers))
    neurons = np.array([np.prod(each) for each in about.lif_shapes])
    rates = (np.round(busy * rng.random(shape) * neurons) / neurons).astype(np.float32)
    taps = np.round(1000 * busy * rng.random((T, len(about.synapses))))
    predictor = Stand(about=about, exit=exit)
    trace = Trace(logits=said, spike_rates=rates, taps=taps, nonzero=np.round(taps / 2))
    image = np.full(about.input.shape, 0.5, np.float32)
    picture = Picture(image=image, clean=image, truth=truth, name="sample 0", source="sample:0")
    prediction = predictor.prediction(trace, latency_s=0.001)
    return Look(name=name, predictor=predictor, picture=picture, prediction=prediction, exit=exit)  # type: ignore[arg-type]


def several(T: int, K: int, seed: int = 0) -> np.ndarray:
    """Logits [T, K] of no particular kind."""
    return np.random.default_rng(seed).normal(0, 3, (T, K)).astype(np.float32)
