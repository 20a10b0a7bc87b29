"""The predictor against onnxruntime run directly, and its arithmetic against counts made by hand."""

import json
import math
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import LABELS, draw

from serve.bundle import BundleError, read
from serve.predictor import Predictor, operations, softmax
from serve.schema import Classification


@pytest.fixture(scope="module")
def predictor(bundle_dir: Path) -> Predictor:
    return Predictor(bundle_dir)


def images(count: int) -> np.ndarray:
    """The first drawings, float32 [B, 1, 8, 8]."""
    return np.stack([draw(i) for i in range(count)])[:, None].astype(np.float32) / np.float32(255)


@given(st.lists(st.floats(-500, 500), min_size=1, max_size=6))
def test_softmax_is_the_ratio_of_exponentials(logits: list[float]) -> None:
    expected = [1 / math.fsum(math.exp(min(other - own, 700)) for other in logits) for own in logits]
    assert softmax(np.array(logits)) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_every_image_of_a_batch_gets_what_onnxruntime_says_of_it(predictor: Predictor, bundle_dir: Path) -> None:
    session = ort.InferenceSession(bundle_dir / "model.onnx", providers=["CPUExecutionProvider"])
    logits, rates = session.run(["logits", "spike_rates"], {"image": images(5)})
    for b, prediction in enumerate(predictor.predict(images(5))):
        assert np.allclose(prediction.logits, logits[:, b], atol=1e-6)
        assert np.array_equal(prediction.spike_rates, rates[:, b])


def test_the_running_answer_averages_logits_not_probabilities(predictor: Predictor) -> None:
    prediction = predictor.predict(images(1))[0]
    for t in range(1, 4):
        mean = sum(prediction.logits[i].astype(float) for i in range(t)) / t
        assert np.allclose(prediction.running_probs[t - 1], softmax(mean), atol=1e-12)
    assert np.array_equal(prediction.probs, prediction.running_probs[-1])
    assert np.allclose(prediction.step_probs.sum(axis=1), 1)


def test_operations_are_counted_as_by_hand(predictor: Predictor) -> None:
    taps = np.array([[[10, 3], [0, 0]], [[7, 2], [1, 0]]], np.float32)  # [T=2, B=2, M=2]
    adds, macs = operations(taps, predictor.about)
    assert adds.tolist() == [17 * 6, 6]  # layer 0 adds, 6 operations a tap
    assert macs.tolist() == [5 * 4 + 2304, 2304]  # layer 1 multiplies, 4 a tap; the first layer once an image


def test_energy_is_recounted_spike_by_spike(predictor: Predictor, bundle_dir: Path) -> None:
    prediction = predictor.predict(images(1))[0]
    session = ort.InferenceSession(bundle_dir / "model.onnx", providers=["CPUExecutionProvider"])
    taps = session.run(["taps"], {"image": images(1)})[0]
    adds, macs = 0, 8 * 8 * 9 * 4
    for t in range(3):
        adds += 6 * round(float(taps[t, 0, 0]))
        macs += 4 * round(float(taps[t, 0, 1]))
    assert (prediction.sops, prediction.macs) == (adds, macs)
    assert prediction.energy_J == pytest.approx(adds * 0.9e-12 + macs * 4.6e-12, rel=1e-12)


def test_the_taps_of_the_synthetic_network_are_pairs_of_spike_and_kernel_position(bundle_dir: Path) -> None:
    """Holds the synthetic bundle itself against the contract: taps counted by loops over lif1's spikes."""
    first = onnx_spikes(bundle_dir)
    expected = sum(
        1
        for _, y, x in np.argwhere(first)
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
        if 0 <= y + dy < 8 and 0 <= x + dx < 8
    )
    session = ort.InferenceSession(bundle_dir / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.run(["taps"], {"image": images(1)})[0][0, 0, 0] == expected


def onnx_spikes(bundle_dir: Path) -> np.ndarray:
    """lif1's spikes [4, 8, 8] at the first step, in numpy: half the first convolution reaches 1."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(bundle_dir / "model.onnx")
    weight = next(numpy_helper.to_array(w) for w in model.graph.initializer if w.name == "w1")
    padded = np.pad((images(1)[0, 0] - 0.5) / 0.25, 1)
    current = np.array(
        [[[(padded[y : y + 3, x : x + 3] * kernel[0]).sum() for x in range(8)] for y in range(8)] for kernel in weight]
    )
    return current / 2 >= 1


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((8, 8)), r"shape \[B, 1, 8, 8\].*got \[8, 8\]"),
        (np.zeros((0, 1, 8, 8)), r"B >= 1, got \[0, 1, 8, 8\]"),
        (np.zeros((1, 3, 8, 8)), r"got \[1, 3, 8, 8\]"),
        (np.full((1, 1, 8, 8), 1.5), r"must lie in \[0, 1\], got 1.5 at \[0, 0, 0, 0\]"),
        (np.full((2, 1, 8, 8), np.nan), "got nan"),
        (np.full((2, 1, 8, 8), -np.inf), "got -inf"),
        (np.arange(64).reshape(1, 1, 8, 8), r"got 2.0 at \[0, 0, 0, 2\]"),
    ],
)
def test_wrong_arrays_are_refused(predictor: Predictor, array: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        predictor.predict(array)


def test_a_model_that_does_not_fit_its_description_is_refused(own_bundle: Path) -> None:
    fields = json.loads((own_bundle / "bundle.json").read_text())
    fields["lif_layers"].append("features.2.lif")
    (own_bundle / "bundle.json").write_text(json.dumps(fields))
    with pytest.raises(BundleError, match=r"spike_rates is \[3, 1, 2\], expected \[3, 1, 3\]"):
        Predictor(own_bundle)


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_a_wrong_number_of_threads_is_refused(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TSERVE_THREADS", text)
    with pytest.raises(ValueError, match="TSERVE_THREADS must be a whole number"):
        Predictor(bundle_dir)


def test_an_answer_says_what_the_arrays_say(predictor: Predictor, bundle_dir: Path) -> None:
    prediction = predictor.predict(images(1))[0]
    answer = Classification.of(prediction, read(bundle_dir).about)
    assert answer.label == LABELS[int(prediction.logits.mean(axis=0).argmax())]
    assert [guess.probability for guess in answer.top_k] == sorted(prediction.probs.tolist(), reverse=True)
    assert [row.t for row in answer.per_timestep] == [1, 2, 3]
    for t, row in enumerate(answer.per_timestep):
        assert row.step.label == LABELS[int(prediction.logits[t].argmax())]
        assert row.running.label == LABELS[int(prediction.logits[: t + 1].mean(axis=0).argmax())]
    assert answer.spike_rates["features.1.lif"] == prediction.spike_rates[:, 1].tolist()
    assert answer.steps_used == 3
