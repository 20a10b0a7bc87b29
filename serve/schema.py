"""What the server answers, as the types that its OpenAPI document shows."""

from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from serve.bundle import Description, Precision
from serve.exits import Rule
from serve.predictor import Prediction


TOP_K = 5


class Answer(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(frozen=True)


class Guess(Answer):
    """A class and its softmax probability."""

    label: str
    probability: float


class Step(Answer):
    """What the network says at step t (from 1): of this step's logits alone, and of the mean of steps 1..t."""

    t: int
    step: Guess
    running: Guess


class Classification(Answer):
    """One image's answer. `label` is the argmax of the mean of the logits over the steps that were used."""

    label: str
    probability: float
    top_k: list[Guess] = Field(description=f"the {TOP_K} most probable classes, best first")
    per_timestep: list[Step]
    spike_rates: dict[str, list[float]] = Field(description="layer -> spikes per neuron at each step, in [0, 1]")
    sops: int = Field(description="synaptic operations of this image that only add")
    macs: int = Field(description="multiplications of this image (the first layer, and inputs that are not spikes)")
    energy_J: float = Field(description="sops * ac_J + macs * mac_J (see /model), joules")
    ann_energy_J: float = Field(description="the ANN of the same architecture on any image, joules")
    steps_used: int = Field(description="time steps until the network was sure (see /model, exit), at most T")
    model: str
    latency_s: float = Field(description="wall time of the network's run that this image was in, seconds")

    @classmethod
    def of(cls, prediction: Prediction, about: Description) -> Self:
        """Put a prediction into words and plain numbers."""
        labels, probs = about.labels, prediction.probs
        best = [int(k) for k in (-probs).argsort(kind="stable")[:TOP_K]]
        rows = zip(prediction.step_probs, prediction.running_probs, strict=True)
        return cls(
            label=labels[best[0]],
            probability=float(probs[best[0]]),
            top_k=[Guess(label=labels[k], probability=float(probs[k])) for k in best],
            per_timestep=[
                Step(t=t, step=_guess(step, labels), running=_guess(running, labels))
                for t, (step, running) in enumerate(rows, start=1)
            ],
            spike_rates=dict(zip(about.lif_layers, prediction.spike_rates.T.astype(float).tolist(), strict=True)),
            sops=prediction.sops,
            macs=prediction.macs,
            energy_J=prediction.energy_J,
            ann_energy_J=about.energy.ann_energy_J,
            steps_used=len(prediction.logits),
            model=about.name,
            latency_s=prediction.latency_s,
        )


class ServedExit(Answer):
    """When an image stops: after step t, if 1 - sureness by `rule` is less than (1 - threshold) t^relax."""

    rule: Rule
    threshold: float = Field(description="in [0, 1]; 1: never before the last step")
    relax: float


class Served(Description):
    """The bundle that is served, and what runs it."""

    precision: Precision = Field(description="the precision that is served, one of `models`")
    provider: str = Field(description="onnxruntime's execution provider that really runs it: CPUExecutionProvider, ...")
    exit: ServedExit


class ErrorDetail(Answer):
    """`code` is for programs and stays; `message` says what is wrong, `hint` what to do."""

    code: str
    message: str
    hint: str


class ErrorBody(Answer):
    """The one shape of every error of this server."""

    error: ErrorDetail


def _guess(probs: np.ndarray, labels: tuple[str, ...]) -> Guess:
    best = int(probs.argmax())
    return Guess(label=labels[best], probability=float(probs[best]))
