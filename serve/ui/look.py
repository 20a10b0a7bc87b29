"""What the page looks at: one image through one network, all T steps, and the exit that is held against it.

Shapes: T time steps, K classes, L LIF layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from serve import images
from serve.anytime import Trace
from serve.bundle import Description
from serve.energy import Account, accounts
from serve.exits import Exit, first_sure, running_mean, sureness
from serve.predictor import Prediction, Predictor
from serve.ui.inputs import Picture


Run = Callable[[Predictor, np.ndarray], Prediction]
"""Gives the prediction of all T steps of one image [C, H, W]; may raise serve.batching.Overloaded."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """One image, what a network said of it at every step, and the exit."""

    name: str
    """What the page calls the network."""
    predictor: Predictor
    picture: Picture
    prediction: Prediction
    """Of all T steps."""
    exit: Exit

    @property
    def about(self) -> Description:
        """The network's."""
        return self.predictor.about

    @property
    def T(self) -> int:
        """How many steps there are."""
        return len(self.prediction.logits)

    @cached_property
    def running(self) -> np.ndarray:
        """[T, K]: probabilities by the mean of the first t steps."""
        return self.prediction.running_probs

    @cached_property
    def alone(self) -> np.ndarray:
        """[T, K]: probabilities by step t alone."""
        return self.prediction.step_probs

    @cached_property
    def sureness(self) -> np.ndarray:
        """[T]: what the exit holds against its bound, of the mean of the first t steps."""
        return sureness(running_mean(self.prediction.logits), self.exit.rule)

    @cached_property
    def sureness_alone(self) -> np.ndarray:
        """[T]: the same of step t alone."""
        return sureness(self.prediction.logits, self.exit.rule)

    @cached_property
    def steps(self) -> int:
        """After how many steps the network stops: what /classify answers."""
        return int(first_sure(self.sureness[:, None], self.exit)[0])

    def label(self, t: int) -> str:
        """The answer by the mean of the first t steps."""
        return self.about.labels[int(self.running[t - 1].argmax())]

    def up_to(self, t: int) -> Prediction:
        """The prediction of an image that stops after t steps, with its operations and energy."""
        whole = self.prediction
        rows = (whole.logits, whole.spike_rates, whole.taps, whole.nonzero)
        logits, spike_rates, taps, nonzero = (array[:t] for array in rows)
        trace = Trace(logits=logits, spike_rates=spike_rates, taps=taps, nonzero=nonzero)
        return self.predictor.prediction(trace, latency_s=whole.latency_s)

    @cached_property
    def accounts(self) -> tuple[tuple[Account, ...], ...]:
        """The energy of an image that stops after t steps, in every convention: [t - 1][convention]."""
        seen = self.prediction
        return tuple(
            accounts(self.about, taps=seen.taps[:t], nonzero=seen.nonzero[:t], spike_rates=seen.spike_rates[:t])
            for t in range(1, self.T + 1)
        )


def fitted(picture: Picture, predictor: Predictor) -> Picture:
    """The same picture for another network, scaled where that takes another size or other colours."""
    if picture.image.shape == predictor.about.input.shape:
        return picture
    image, clean = (predictor.decode(images.encode(array)) for array in (picture.image, picture.clean))
    return replace(picture, image=image, clean=clean)
