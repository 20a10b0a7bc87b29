"""Options and answers as types: what is taken, what an answer says, how it is written."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from synthetic import LABELS, draw

from serve.bundle import Description, read
from serve.energy import accounts
from serve.predictor import Prediction, Predictor
from serve.web.schema import Classification, Options, ServedModel, model_entry, respond


@pytest.fixture(scope="module")
def about(bundle_dir: Path) -> Description:
    return read(bundle_dir).about


@pytest.fixture(scope="module")
def prediction() -> Prediction:
    """Two steps of four classes; the first step says class 2, both together class 1."""
    logits = np.array([[0, 1, 3, 0], [0, 6, 1, 0]], np.float32)
    return Prediction(
        logits=logits,
        spike_rates=np.array([[0.25, 0.5], [0.125, 1.0]], np.float32),
        taps=np.array([[1, 2], [3, 4]]),
        nonzero=np.array([[1, 1], [1, 1]]),
        sops=12,
        macs=34,
        energy_J=5.6e-8,
        latency_s=0.25,
    )


def softmax(logits: list[float]) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum()


def test_an_answer_says_what_the_logits_say(prediction: Prediction, about: Description) -> None:
    answer = json.loads(respond(Classification.of(prediction, about, bundle="abc")).body)
    mean = softmax([0, 3.5, 2, 0])
    assert answer["label"] == LABELS[1]
    assert answer["probability"] == pytest.approx(mean[1])
    assert [guess["label"] for guess in answer["top_k"]] == [LABELS[1], LABELS[2], LABELS[0], LABELS[3]]
    assert [guess["probability"] for guess in answer["top_k"]] == pytest.approx(sorted(mean, reverse=True))
    first, second = answer["per_timestep"]
    assert first["t"] == 1
    assert (
        first["step"]
        == first["running"]
        == {"label": LABELS[2], "probability": pytest.approx(softmax([0, 1, 3, 0])[2])}
    )
    assert second["step"] == {"label": LABELS[1], "probability": pytest.approx(softmax([0, 6, 1, 0])[1])}
    assert second["running"] == {"label": LABELS[1], "probability": pytest.approx(mean[1])}
    assert answer["spike_rates"] == {"features.0.lif": [0.25, 0.125], "features.1.lif": [0.5, 1.0]}
    assert (answer["sops"], answer["macs"], answer["energy_J"], answer["latency_s"]) == (12, 34, 5.6e-8, 0.25)
    assert (answer["steps_used"], answer["model"], answer["bundle"]) == (2, about.name, "abc")
    seen = {"taps": prediction.taps, "nonzero": prediction.nonzero, "spike_rates": prediction.spike_rates}
    counted = {each.convention: each for each in accounts(about, **seen) if each.unavailable is None}
    assert answer["energies"].keys() == counted.keys()
    for name, each in counted.items():
        told = answer["energies"][name]
        assert (told["energy_J"], told["ann_energy_J"]) == pytest.approx((each.energy_J, each.ann_energy_J), rel=1e-12)


@pytest.mark.parametrize("k", [1, 3, 4, 1000])
def test_as_many_classes_are_given_as_asked_for(prediction: Prediction, about: Description, k: int) -> None:
    few = Classification.of(prediction, about, options=Options(top_k=k)).top_k
    assert few == Classification.of(prediction, about).top_k[:k]
    assert len(few) == min(k, len(LABELS))


def test_without_detail_an_answer_leaves_out_steps_rates_and_energies_and_nothing_else(
    prediction: Prediction, about: Description
) -> None:
    whole = json.loads(respond(Classification.of(prediction, about)).body)
    brief = json.loads(respond(Classification.of(prediction, about, options=Options(detail=False))).body)
    del whole["per_timestep"], whole["spike_rates"], whole["energies"]
    assert brief == whole


def test_several_answers_are_an_array(prediction: Prediction, about: Description) -> None:
    answer = Classification.of(prediction, about)
    response = respond([answer, answer])
    assert response.headers["content-type"] == "application/json"
    assert json.loads(response.body) == [json.loads(respond(answer).body)] * 2
    assert json.loads(respond([]).body) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 0),
        ("top_k", 1001),
        ("top_k", True),
        ("top_k", "3"),
        ("top_k", 2.5),
        ("top_k", None),
        ("top_k", 10**400),
        ("exit_confidence", -0.1),
        ("exit_confidence", 1.1),
        ("exit_confidence", float("nan")),
        ("exit_confidence", True),
        ("exit_confidence", "0.5"),
        ("exit_confidence", 10**400),
        ("steps", 0),
        ("steps", True),
        ("steps", 1.5),
        ("steps", float("inf")),
        ("detail", 1),
        ("detail", "false"),
        ("topk", 3),
    ],
)
def test_an_option_that_cannot_be_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError):
        Options(**{name: value})


def test_a_whole_number_may_be_written_with_a_point() -> None:
    assert Options(top_k=3.0, steps=2.0, exit_confidence=1) == Options(top_k=3, steps=2, exit_confidence=1.0)


def test_a_served_model_says_all_of_its_bundle_but_the_files(bundle_dir: Path) -> None:
    predictor = Predictor(bundle_dir, provider="cpu")
    card = json.loads(respond(ServedModel.of(predictor, model="shapes", since=0.5)).body)
    written = json.loads((bundle_dir / "bundle.json").read_text())
    assert card.keys() - written.keys() == {"model", "bundle", "provider", "exit", "since"}
    assert written.keys() - card.keys() == {"files", "samples"}
    assert {key: card[key] for key in ("labels", "T", "input", "lif_layers", "synapses")} == {
        key: written[key] for key in ("labels", "T", "input", "lif_layers", "synapses")
    }
    assert card["since"] == "1970-01-01T00:00:00.500000Z"
    assert (card["bundle"], card["model"], card["precision"]) == (predictor.id, "shapes", "fp32")
    entry = json.loads(respond(model_entry(predictor, model="shapes", since=0.5)).body)
    assert entry["classes"] == len(LABELS)
    assert {key: entry[key] for key in entry.keys() & card.keys()} == {
        key: card[key] for key in entry.keys() & card.keys()
    }


def test_what_is_answered_is_read_back_the_same(bundle_dir: Path) -> None:
    predictor = Predictor(bundle_dir, provider="cpu")
    pixels = (draw(1)[None, None] / 255).astype(np.float32)
    answer = Classification.of(predictor.predict(pixels)[0], predictor.about, bundle=predictor.id)
    assert Classification.model_validate_json(respond(answer).body) == answer
