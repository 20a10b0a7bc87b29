"""The predictor against onnxruntime run directly, and its arithmetic against counts made by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from synthetic import LABELS, THRESHOLD, build_model, build_step, describe, draw, exact_images, write_bundle

from serve import session as sessions
from serve.batching import Batcher
from serve.bundle import BundleError, read
from serve.exits import Exit, softmax, steps_needed
from serve.predictor import Predictor, operations
from serve.web.schema import Classification


@pytest.fixture(scope="module")
def predictor(bundle_dir: Path) -> Predictor:
    return Predictor(bundle_dir)


def images(count: int) -> np.ndarray:
    """The first drawings, float32 [B, 1, 8, 8]."""
    return np.stack([draw(i) for i in range(count)])[:, None].astype(np.float32) / np.float32(255)


def test_every_image_of_a_batch_gets_what_onnxruntime_says_of_it(predictor: Predictor, bundle_dir: Path) -> None:
    session = ort.InferenceSession(bundle_dir / "model.onnx", providers=["CPUExecutionProvider"])
    logits, rates = session.run(["logits", "spike_rates"], {"image": images(5)})
    for b, prediction in enumerate(predictor.predict(images(5), exit_threshold=1.0)):
        assert np.allclose(prediction.logits, logits[:, b], atol=1e-6)
        assert np.array_equal(prediction.spike_rates, rates[:, b])


def test_the_running_answer_averages_logits_not_probabilities(predictor: Predictor) -> None:
    prediction = predictor.predict(images(1), exit_threshold=1.0)[0]
    for t in range(1, 4):
        mean = sum(prediction.logits[i].astype(float) for i in range(t)) / t
        assert np.allclose(prediction.running_probs[t - 1], softmax(mean), atol=1e-12)
    assert np.array_equal(prediction.probs, prediction.running_probs[-1])
    assert np.allclose(prediction.step_probs.sum(axis=1), 1)


def test_a_trace_of_the_runner_becomes_what_predict_gives(predictor: Predictor, bundle_dir: Path) -> None:
    """As a server does that batches over `steps`: here all images in one crowd, each a prediction of its own."""
    crowd, traces = predictor.steps.crowd(predictor.exit.rule, predictor.exit.relax), {}
    traces |= dict(crowd.advance(images(12), threshold=predictor.exit.threshold))
    while len(crowd):
        traces |= dict(crowd.advance())
    for b, wanted in enumerate(predictor.predict(images(12))):
        got = predictor.prediction(traces[b], latency_s=0.25)
        np.testing.assert_array_equal(got.logits, wanted.logits, strict=True)
        np.testing.assert_array_equal(got.spike_rates, wanted.spike_rates, strict=True)
        assert (got.sops, got.macs, got.energy_J) == (wanted.sops, wanted.macs, wanted.energy_J)
        assert [type(count) for count in (got.sops, got.macs, got.energy_J)] == [int, int, float]
        assert got.latency_s == 0.25
    assert predictor.id == read(bundle_dir).id


def test_a_bundle_that_was_read_is_opened_from_what_was_verified(own_bundle: Path) -> None:
    bundle = read(own_bundle)
    onnx.save(build_step(seed=99), own_bundle / "step.onnx")
    describe(own_bundle)  # another bundle lies there now, as good as the first
    with pytest.raises(BundleError, match=r"step\.onnx: not the file that bundle.json lists"):
        Predictor(bundle)
    onnx.save(build_step(), own_bundle / "step.onnx")
    predictor = Predictor(bundle)
    pictures = [path.read_bytes() for path in sorted((own_bundle / "samples").iterdir())[:2]]
    for path in own_bundle.rglob("*.*"):
        path.write_bytes(b"")  # it needs them no more
    assert len(predictor.predict(images(2))) == 2
    assert [predictor.sample(index) for index in range(2)] == pictures


def test_operations_are_counted_as_by_hand(predictor: Predictor) -> None:
    taps = np.array([[[10, 3], [0, 0]], [[7, 2], [1, 0]]], np.float32)  # [T=2, B=2, M=2]
    adds, macs = operations(taps, predictor.about)
    assert adds.tolist() == [17 * 6, 6]  # layer 0 adds, 6 operations a tap
    assert macs.tolist() == [5 * 4 + 2304, 2304]  # layer 1 multiplies, 4 a tap; the first layer once an image


def test_energy_is_recounted_spike_by_spike(predictor: Predictor, bundle_dir: Path) -> None:
    prediction = predictor.predict(images(1), exit_threshold=1.0)[0]
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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda b: (b["lif_layers"].append("x"), b["lif_shapes"].append([1])),
            r"lif_layers is \['features.0.lif', .*, expected \[.*, 'x'\]",
        ),
        (lambda b: b["lif_shapes"][0].reverse(), r"lif_shapes is \[\[4, 8, 8\], .*, expected \[\[8, 8, 4\]"),
        (lambda b: (b.update(T=4), b["exits"]["fp32"]["accuracy_by_T"].append(1)), "T is 3, expected 4"),
        (lambda b: b["labels"].append("x"), "it has 4 labels, expected 5"),
        (lambda b: b.update(checkpoint_sha256="1" * 64), "checkpoint_sha256 is '0000"),
        (lambda b: b["synapses"].append(b["synapses"][0]), r"taps of an image is \[3, 2\], expected \[3, 3\] \(steps"),
        (lambda b: b["models"]["fp32"].update(step="model.onnx"), "form is 'unrolled', expected 'step'"),
        (lambda b: b["models"]["fp32"].update(unrolled="step.onnx"), "form is 'step', expected 'unrolled'"),
        (lambda b: b["input"].update(height=9), "does not fit its bundle.json: .*image"),
    ],
)
def test_a_model_that_does_not_fit_its_description_is_refused(
    own_bundle: Path, change: Callable[[dict], object], said: str
) -> None:
    fields = json.loads((own_bundle / "bundle.json").read_text())
    change(fields)
    (own_bundle / "bundle.json").write_text(json.dumps(fields))
    with pytest.raises(BundleError, match=said) as refused:
        Predictor(own_bundle)
    assert "write the bundle again" in str(refused.value)


@pytest.mark.parametrize(("file", "build"), [("model.onnx", build_model), ("step.onnx", build_step)])
def test_a_model_of_another_precision_or_T_is_refused(
    own_bundle: Path, file: str, build: Callable[..., onnx.ModelProto]
) -> None:
    for changed, said in (
        ({"precision": "int8"}, "precision is 'int8', expected 'fp32'"),
        ({"steps": 5}, "T is 5, exp"),
    ):
        onnx.save(build(**changed), own_bundle / file)
        describe(own_bundle)
        with pytest.raises(BundleError, match=f"{file}: does not fit its bundle.json: {said}"):
            Predictor(own_bundle)


def test_a_model_that_gives_other_than_it_says_is_refused(own_bundle: Path) -> None:
    """Its metadata say T = 3, and it runs 2 steps."""
    model, says = build_model(steps=2), build_model()
    del model.metadata_props[:]
    model.metadata_props.extend(says.metadata_props)
    onnx.save(model, own_bundle / "model.onnx")
    describe(own_bundle)
    with pytest.raises(BundleError, match=r"logits of an image is \[2, 4\], expected \[3, 4\] \(steps, names\)"):
        Predictor(own_bundle)


def test_a_file_that_is_no_model_is_refused_by_name(own_bundle: Path) -> None:
    (own_bundle / "step.onnx").write_bytes((own_bundle / "step.onnx").read_bytes()[:-40])
    describe(own_bundle)
    with pytest.raises(BundleError, match=r"step\.onnx: not an ONNX model, or only a part of one"):
        Predictor(own_bundle)


def test_a_model_that_was_cut_behind_its_graph_is_refused(own_bundle: Path) -> None:
    """onnxruntime loads such a file: what is missing is only what the model says of itself."""
    model = onnx.load(own_bundle / "model.onnx")
    del model.metadata_props[1:]
    onnx.save(model, own_bundle / "model.onnx")
    describe(own_bundle)
    with pytest.raises(BundleError, match=r"model\.onnx: does not fit its bundle.json: form is None, expected 'unrol"):
        Predictor(own_bundle)


def all_logits(bundle_dir: Path, array: np.ndarray) -> np.ndarray:
    """[T, B, K] of a bare session."""
    session = ort.InferenceSession(bundle_dir / "model.onnx", providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"image": array})[0])


def test_images_stop_at_the_calibrated_exit_unless_told_otherwise(predictor: Predictor, bundle_dir: Path) -> None:
    logits = all_logits(bundle_dir, images(12))
    for given, threshold in (({}, THRESHOLD), ({"exit_threshold": 0.5}, 0.5), ({"exit_threshold": 0}, 0.0)):
        steps = steps_needed(logits, Exit("confidence", threshold))
        predictions = predictor.predict(images(12), **given)
        assert [len(p.logits) for p in predictions] == steps.tolist()
        for b, prediction in enumerate(predictions):
            np.testing.assert_allclose(prediction.logits, logits[: steps[b], b], atol=1e-6)
    assert len(set(steps_needed(logits, Exit("confidence", THRESHOLD)).tolist())) > 1


def test_threshold_1_gives_every_bit_of_the_unrolled_model(predictor: Predictor, bundle_dir: Path) -> None:
    array = exact_images(6)
    logits = all_logits(bundle_dir, array)
    for steps in (None, 1, 2, 3):
        predictions = predictor.predict(array, exit_threshold=1.0, steps=steps)
        for b, prediction in enumerate(predictions):
            np.testing.assert_array_equal(prediction.logits, logits[: steps or 3, b], strict=True)


def test_energy_counts_the_steps_that_were_run(predictor: Predictor, bundle_dir: Path) -> None:
    array = exact_images(3)
    session = ort.InferenceSession(bundle_dir / "model.onnx", providers=["CPUExecutionProvider"])
    (taps,) = session.run(["taps"], {"image": array})
    for steps in (1, 2, 3):
        for b, prediction in enumerate(predictor.predict(array, exit_threshold=1.0, steps=steps)):
            adds = sum(6 * round(float(taps[t, b, 0])) for t in range(steps))
            macs = 8 * 8 * 9 * 4 + sum(4 * round(float(taps[t, b, 1])) for t in range(steps))
            assert (prediction.sops, prediction.macs) == (adds, macs)
            assert prediction.energy_J == pytest.approx(adds * 0.9e-12 + macs * 4.6e-12, rel=1e-12)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"exit_threshold": 1.01}, r"must lie in \[0, 1\]"),
        ({"exit_threshold": -1}, r"must lie in \[0, 1\]"),
        ({"steps": 0}, "steps must be 1 to 3, got 0"),
        ({"steps": 4, "exit_threshold": 1.0}, "steps must be 1 to 3, got 4"),
    ],
)
def test_wrong_wishes_are_refused(predictor: Predictor, wrong: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        predictor.predict(images(1), **wrong)


def test_the_environment_moves_the_exit(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = all_logits(bundle_dir, images(12))
    for text in ("1", "0.5", "0"):
        monkeypatch.setenv("TSERVE_EXIT_THRESHOLD", text)
        steps = steps_needed(logits, Exit("confidence", float(text)))
        assert [len(p.logits) for p in Predictor(bundle_dir).predict(images(12))] == steps.tolist()
    for text in ("1.1", "-0.1", "high", "nan"):
        monkeypatch.setenv("TSERVE_EXIT_THRESHOLD", text)
        with pytest.raises(ValueError, match=rf"TSERVE_EXIT_THRESHOLD must be a number in \[0, 1\].*got '{text}'"):
            Predictor(bundle_dir)


def test_the_default_precision_is_served_and_the_environment_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_bundle(tmp_path / "bundle", precisions=("int8", "fp32"))
    monkeypatch.setenv("TSERVE_PROVIDER", "cpu")
    for env, precision, file in (("", "int8", "model.int8.onnx"), ("fp32", "fp32", "model.onnx")):
        monkeypatch.setenv("TSERVE_PRECISION", env)
        predictor = Predictor(folder)
        session = ort.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], {"image": exact_images(2)})
        assert predictor.precision == precision
        for steps in (2, 3):  # the step form, and the unrolled one
            (prediction, _) = predictor.predict(exact_images(2), exit_threshold=1.0, steps=steps)
            np.testing.assert_array_equal(prediction.logits, logits[:steps, 0])
    monkeypatch.setenv("TSERVE_PRECISION", "fp16")
    with pytest.raises(ValueError, match="TSERVE_PRECISION: this bundle has int8, fp32, not 'fp16'"):
        Predictor(folder)


@pytest.mark.skipif(sessions.cuda_devices() > 0, reason="this machine's CUDA device would really start")
def test_a_device_that_cannot_be_started_is_given_up_with_its_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_bundle(tmp_path / "bundle", precisions=("int8", "fp32", "fp16"))
    monkeypatch.setattr(sessions, "cuda_devices", lambda: 1)
    predictor = Predictor(folder, provider="auto")
    assert (predictor.precision, predictor.provider) == ("int8", "CPUExecutionProvider")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with pytest.raises(ValueError, match="provider cuda: onnxruntime could not start CUDAExecutionProvider"):
        Predictor(folder, provider="cuda")


def test_an_answer_says_what_the_arrays_say(predictor: Predictor, bundle_dir: Path) -> None:
    prediction = predictor.predict(images(1), exit_threshold=1.0)[0]
    answer = Classification.of(prediction, read(bundle_dir).about)
    assert answer.label == LABELS[int(prediction.logits.mean(axis=0).argmax())]
    assert [guess.probability for guess in answer.top_k] == sorted(prediction.probs.tolist(), reverse=True)
    assert [row.t for row in answer.per_timestep] == [1, 2, 3]
    for t, row in enumerate(answer.per_timestep):
        assert row.step.label == LABELS[int(prediction.logits[t].argmax())]
        assert row.running.label == LABELS[int(prediction.logits[: t + 1].mean(axis=0).argmax())]
    assert answer.spike_rates["features.1.lif"] == prediction.spike_rates[:, 1].tolist()
    assert answer.steps_used == 3


def test_a_batcher_gives_what_the_predictor_gives(predictor: Predictor) -> None:
    """Whichever form runs: the weights are such that sums are exact, so both must agree to the last bit."""
    batcher = Batcher(runners=2, max_batch=3, max_waiting=100)
    for threshold, steps in ((None, None), (1.0, None), (1.0, 2), (0.0, None)):
        answers = batcher.submit(predictor, images(5), exit_threshold=threshold, steps=steps).result(20)
        wanted = predictor.predict(images(5), exit_threshold=threshold, steps=steps)
        for answer, want in zip(answers, wanted, strict=True):
            np.testing.assert_array_equal(answer.logits, want.logits)
            np.testing.assert_array_equal(answer.spike_rates, want.spike_rates)
            assert (answer.sops, answer.macs, answer.energy_J) == (want.sops, want.macs, want.energy_J)
    batcher.close()
