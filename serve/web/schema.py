"""What may be asked and what the server answers, as the types that its OpenAPI document shows."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue
from starlette.responses import Response

from serve.bundle import Description, FileRecord, InputRecord, MetricsRecord, Precision, SampleRecord
from serve.energy import energies_J
from serve.exits import Rule
from serve.predictor import Prediction, Predictor


TOP_K = 5
MAX_TOP_K = 1000
SHARE: dict[str, JsonValue] = {"minimum": 0, "maximum": 1}


def _whole(value: object) -> object:
    """JSON knows one kind of number: 5.0 is the whole number 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]


class Options(BaseModel):
    """What a request may ask for besides its images."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    top_k: Whole = Field(
        default=TOP_K, ge=1, le=MAX_TOP_K, description="how many of the most probable classes to give; at most all"
    )
    exit_confidence: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="how sure the network must be, by the model's exit rule, to stop before its last time step; "
        "1: it never does; by default what the model was calibrated to",
    )
    steps: Annotated[int, Field(ge=1), BeforeValidator(_whole)] | None = Field(
        default=None, description="time steps to take at most; by default all of T"
    )
    detail: bool = Field(default=True, description="whether to give `per_timestep`, `spike_rates` and `energies`")


DEFAULTS = Options()


class Answer(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(frozen=True)


class Guess(Answer):
    """A class and its softmax probability."""

    label: str
    probability: float = Field(json_schema_extra=SHARE)


class Step(Answer):
    """What the network says at step t (from 1): of this step's logits alone, and of the mean of steps 1..t."""

    t: int = Field(json_schema_extra={"minimum": 1})
    step: Guess
    running: Guess


class Energies(Answer):
    """One image's energy in one convention, joules."""

    energy_J: float
    ann_energy_J: float = Field(description="the ANN of the same layers, by the same convention")


class Classification(Answer):
    """One image's answer. `label` is the argmax of the mean of the logits over the steps that were used."""

    label: str
    probability: float = Field(json_schema_extra=SHARE)
    top_k: list[Guess] = Field(
        description=f"the most probable classes, best first: as many as `top_k` asks for, by default {TOP_K}",
        json_schema_extra={"minItems": 1, "maxItems": MAX_TOP_K},
    )
    per_timestep: list[Step] = Field(
        default=[],
        exclude_if=lambda steps: not steps,
        description="every step that was taken; absent if `detail` is false",
        json_schema_extra={"minItems": 1},
    )
    spike_rates: dict[str, list[Annotated[float, Field(json_schema_extra=SHARE)]]] = Field(
        default={},
        exclude_if=lambda rates: not rates,
        description="layer -> spikes per neuron at each step; absent if `detail` is false",
    )
    energies: dict[str, Energies] = Field(
        default={},
        exclude_if=lambda energies: not energies,
        description="convention (see /model, energy.conventions) -> this image's energy; absent if `detail` is false",
    )
    sops: int = Field(description="synaptic operations of this image that only add")
    macs: int = Field(description="multiplications of this image (the first layer, and inputs that are not spikes)")
    energy_J: float = Field(
        description="sops * ac_J + macs * mac_J (see /model), joules; prices of float32, whatever runs"
    )
    ann_energy_J: float = Field(description="the ANN of the same architecture on any image, joules")
    steps_used: int = Field(
        description="time steps until the network was sure (see /model, exit), at most T",
        json_schema_extra={"minimum": 1},
    )
    model: str = Field(description="the name that the bundle gives itself (/model, name)")
    bundle: str = Field(description="which bundle answered (/model, bundle)")
    latency_s: float = Field(description="seconds from the images' arrival in the queue to the answer")

    @classmethod
    def of(cls, prediction: Prediction, about: Description, *, options: Options = DEFAULTS, bundle: str = "") -> Self:
        """Put a prediction into words and plain numbers; `bundle` stays "" where nobody is told, as on the page."""
        labels, running = about.labels, prediction.running_probs
        probs = running[-1]
        best = [int(k) for k in (-probs).argsort(kind="stable")[: options.top_k]]
        detail: dict[str, Any] = {}
        if options.detail:
            rows = enumerate(zip(prediction.step_probs, running, strict=True), start=1)
            detail["per_timestep"] = [
                Step(t=t, step=_guess(step, labels), running=_guess(mean, labels)) for t, (step, mean) in rows
            ]
            rates = prediction.spike_rates.T.astype(float).tolist()
            detail["spike_rates"] = dict(zip(about.lif_layers, rates, strict=True))
            seen = {"taps": prediction.taps, "nonzero": prediction.nonzero, "spike_rates": prediction.spike_rates}
            detail["energies"] = {
                name: Energies(energy_J=snn, ann_energy_J=ann) for name, (snn, ann) in energies_J(about, **seen).items()
            }
        return cls(
            label=labels[best[0]],
            probability=float(probs[best[0]]),
            top_k=[Guess(label=labels[k], probability=float(probs[k])) for k in best],
            sops=prediction.sops,
            macs=prediction.macs,
            energy_J=prediction.energy_J,
            ann_energy_J=about.energy.ann_energy_J,
            steps_used=len(prediction.logits),
            model=about.name,
            bundle=bundle,
            latency_s=prediction.latency_s,
            **detail,
        )


class ServedExit(Answer):
    """When an image stops: after step t, if 1 - sureness by `rule` is less than (1 - threshold) t^relax."""

    rule: Rule
    threshold: float = Field(description="in [0, 1]; 1: never before the last step", json_schema_extra=SHARE)
    relax: float


class ServedModel(Description):
    """A model as it is served: what its bundle says of itself, and what runs it."""

    model: str = Field(description="the name that requests ask for it by: ?model=")
    bundle: str = Field(description="which bundle it is: the first 12 hexadecimal digits of its description's SHA-256")
    precision: Precision = Field(description="the precision that is served, one of `models`")
    provider: str = Field(description="onnxruntime's execution provider that really runs it: CPUExecutionProvider, ...")
    exit: ServedExit
    since: datetime = Field(description="when this bundle began to be served")
    files: dict[str, FileRecord] = Field(exclude=True)
    samples: tuple[SampleRecord, ...] = Field(exclude=True)

    @classmethod
    def of(cls, predictor: Predictor, *, model: str, since: float) -> Self:
        """Describe what runs under the name `model` since a Unix time."""
        exit = predictor.exit
        return cls.model_validate(
            predictor.about.model_dump()
            | {
                "model": model,
                "bundle": predictor.id,
                "precision": predictor.precision,
                "provider": predictor.provider,
                "exit": ServedExit(rule=exit.rule, threshold=exit.threshold, relax=exit.relax),
                "since": datetime.fromtimestamp(since, UTC),
            }
        )


class ModelEntry(Answer):
    """One line of GET /models; GET /model?model=NAME says the rest."""

    model: str = Field(description="the name that requests ask for it by: ?model=")
    name: str = Field(description="the name that the bundle gives itself")
    bundle: str
    precision: Precision
    provider: str
    input: InputRecord
    T: int
    classes: int
    metrics: MetricsRecord
    since: datetime


class ModelList(Answer):
    """GET /models."""

    default: str = Field(description="the model that answers a request that names none")
    models: list[ModelEntry]


def model_entry(predictor: Predictor, *, model: str, since: float) -> ModelEntry:
    """Describe what runs under the name `model` since a Unix time, in short."""
    about = predictor.about
    return ModelEntry(
        model=model,
        name=about.name,
        bundle=predictor.id,
        precision=predictor.precision,
        provider=predictor.provider,
        input=about.input,
        T=about.T,
        classes=len(about.labels),
        metrics=about.metrics,
        since=datetime.fromtimestamp(since, UTC),
    )


def respond(answer: BaseModel | Sequence[BaseModel]) -> Response:
    """The HTTP answer that holds one answer, or an array of several."""
    if isinstance(answer, BaseModel):
        text = answer.model_dump_json()
    else:
        text = f"[{','.join(part.model_dump_json() for part in answer)}]"
    return Response(text, media_type="application/json")


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
