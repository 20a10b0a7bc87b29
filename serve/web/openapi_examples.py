"""Examples of the OpenAPI document: requests that work as they stand, answers, and errors as they are given."""

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
from starlette.requests import Request

from serve import images
from serve.bundle import InputRecord, MetricsRecord
from serve.images import ImageError
from serve.models import UnknownModel
from serve.settings import MEGABYTE
from serve.web import access, bodies, intake, jsonbody, limits, options, shape
from serve.web.schema import Classification, Energies, Guess, ModelEntry, ModelList, Step
from serve.web.shape import Refusal


PICTURE = base64.b64encode(images.encode(np.zeros((1, 8, 8)))).decode()
"""A black image of 8 x 8, as PNG."""
PICTURE_URI = f"data:image/png;base64,{PICTURE}"


def _guess(label: str, probability: float) -> Guess:
    return Guess(label=label, probability=probability)


CLASSIFICATION = Classification(
    label="cat",
    probability=0.873,
    top_k=[_guess("cat", 0.873), _guess("dog", 0.101), _guess("deer", 0.012)],
    per_timestep=[
        Step(t=1, step=_guess("dog", 0.441), running=_guess("dog", 0.441)),
        Step(t=2, step=_guess("cat", 0.912), running=_guess("cat", 0.873)),
    ],
    spike_rates={"features.0.lif": [0.113, 0.142], "features.1.lif": [0.071, 0.093]},
    energies={"event_exact": Energies(energy_J=1.17e-05, ann_energy_J=1.87e-04)},
    sops=3_981_312,
    macs=1_769_472,
    energy_J=1.17e-05,
    ann_energy_J=1.87e-04,
    steps_used=2,
    model="cifar10-vgg11-tser-T4",
    bundle="3f9a1c0be772",
    latency_s=0.021,
)
BRIEF = CLASSIFICATION.model_copy(update={"per_timestep": [], "spike_rates": {}, "energies": {}})
MODELS = ModelList(
    default="cifar10",
    models=[
        ModelEntry(
            model="cifar10",
            name="cifar10-vgg11-tser-T4",
            bundle="3f9a1c0be772",
            precision="int8",
            provider="CPUExecutionProvider",
            input=InputRecord(channels=3, height=32, width=32),
            T=4,
            classes=10,
            metrics=MetricsRecord(accuracy=0.92, teacher_accuracy=0.931, accuracy_by_T=(0.87, 0.9, 0.914, 0.92)),
            since=datetime(2026, 3, 1, 12, 0, tzinfo=UTC),
        )
    ],
)
TERMS = ("once", "per_step", "per_tap", "per_nonzero", "per_spike")
METRICS = '# TYPE tserve_requests_total counter\ntserve_requests_total{endpoint="/classify",status="200"} 5000.0\n'


def model_card() -> dict[str, Any]:
    """What GET /model answers, in short: the real one has a row for every threshold and layer."""
    return {
        "format": 3,
        "name": "cifar10-vgg11-tser-T4",
        "created": "2026-03-01T11:58:03Z",
        "T": 4,
        "labels": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
        "input": {"channels": 3, "height": 32, "width": 32},
        "models": {"int8": {"unrolled": "model.int8.onnx", "step": "step.int8.onnx"}},
        "precision": "int8",
        "exits": {
            "int8": {
                "rule": "confidence",
                "threshold": 0.85,
                "relax": 0.0,
                "tolerance": 0.002,
                "calibrated_on": {"dataset": "cifar10", "split": "validation", "images": 5000},
                "measured_on": {"dataset": "cifar10", "split": "test", "images": 10000},
                "accuracy_by_T": [0.869, 0.9, 0.913, 0.919],
                "table": [
                    {
                        "threshold": 0.85,
                        "mean_steps": 1.9,
                        "accuracy": 0.919,
                        "energy_J": 1.1e-05,
                        "val_mean_steps": 1.9,
                        "val_accuracy": 0.921,
                    }
                ],
            }
        },
        "lif_layers": ["features.0.lif", "features.1.lif"],
        "lif_shapes": [[64, 32, 32], [128, 16, 16]],
        "synapses": [{"name": "features.1.conv", "kind": "ac", "sops_per_tap": 128}],
        "energy": {
            "chip": "45 nm CMOS",
            "convention": "event_exact",
            "ac_J": 9e-13,
            "mac_J": 4.6e-12,
            "static_macs": 1_769_472,
            "ann_macs": 40_550_400,
            "ann_energy_J": 1.87e-04,
            "conventions": [
                {
                    "name": "event_exact",
                    "title": "Events, counted exactly",
                    "says": "Every synaptic operation that happens, and no memory access.",
                    "source": "this project",
                    "ac_J": 9e-13,
                    "mac_J": 4.6e-12,
                    "layers": [
                        {
                            "name": "features.1.conv",
                            "synapse": 0,
                            "lif": None,
                            "acs": {
                                "once": 0.0,
                                "per_step": 0.0,
                                "per_tap": 128.0,
                                "per_nonzero": 0.0,
                                "per_spike": 0.0,
                            },
                            "macs": dict.fromkeys(TERMS, 0.0),
                            "accesses": dict.fromkeys(TERMS, 0.0),
                            "access_J": dict.fromkeys(TERMS, 0.0),
                            "ann_energy_J": 8.7e-05,
                        }
                    ],
                    "unavailable": None,
                }
            ],
        },
        "metrics": {"accuracy": 0.92, "teacher_accuracy": 0.931, "accuracy_by_T": [0.87, 0.9, 0.914, 0.92]},
        "dataset": "cifar10",
        "checkpoint_sha256": "9b6c" * 16,
        "model": "cifar10",
        "bundle": "3f9a1c0be772",
        "provider": "CPUExecutionProvider",
        "exit": {"rule": "confidence", "threshold": 0.85, "relax": 0.0},
        "since": "2026-03-01T12:00:00Z",
    }


def refusals(field: bodies.Field) -> dict[int, list[Refusal]]:
    """What can be wrong with a request for images, by status: the very refusals that the server gives."""
    text = Request({"type": "http", "headers": [(b"content-type", b"text/plain")]})
    wrong_file = ImageError(f"the file is not an image; {images.SEND}")
    array = b'{"%s": [[[0.5, 1.5], [0.5]]]}' if field == "image" else b'{"%s": [[[[0.5, 1.5], [0.5]]]]}'
    name = field.encode()
    return {
        400: [
            intake.bad_image(wrong_file, "" if field == "image" else "images[3]: "),
            _given(jsonbody.parse, b'{"%s": ' % name, field),
            _given(jsonbody.parse, b'{"image": "aGVsbG8"}' if field == "image" else b'["aGVsbG8"]', field),
        ],
        401: [access.unauthorised()],
        404: [unknown_model()],
        408: [limits.too_slow(30)],
        413: [shape.too_large(10 * MEGABYTE)],
        415: [bodies.unsupported(text, field)],
        422: [
            _given(options.of_query, [("top_k", "0")]),
            _given(options.of_query, [("topk", "3")]),
            _given(options.merged, {"steps": 2}, {"steps": 3}),
            _given(jsonbody.parse, b'{"picture": ""}', field),
            _given(jsonbody.parse, array % name, field),
        ],
        500: [shape.failed()],
        503: [shape.busy("overloaded", "as many images wait as may", retry_after_s=2), limits.timed_out(30)],
    }


def unknown_model() -> Refusal:
    """The refusal of a model that is not there."""
    return intake.unknown_model(UnknownModel("mnist", ["cifar10"]))


def unknown_parameter() -> Refusal:
    """The refusal of a query parameter that GET /model has not."""
    return _given(options.of_query, [("name", "cifar10")], known=("model",))


def example(refusal: Refusal) -> dict[str, Any]:
    """A refusal as an example of its status."""
    return {"summary": refusal.body.error.message, "value": refusal.body.model_dump()}


def _given(function: Callable[..., Any], *args: Any, **named: Any) -> Refusal:
    """The refusal that a call raises."""
    try:
        function(*args, **named)
    except Refusal as refusal:
        return refusal
    raise AssertionError(f"{function.__name__} took what it should refuse")
