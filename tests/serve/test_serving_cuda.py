"""What only a GPU can show: a device gives what the CPU gives, with graphs and without, and tensors stay there."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from synthetic import OUTPUTS, T, build_model, build_step, exact_images, write_bundle

from serve.anytime import StepModel
from serve.exits import Exit, steps_needed
from serve.predictor import Predictor
from serve.session import CUDA, FixedBatches, cuda_devices, open_session, provider_of


pytestmark = pytest.mark.skipif(not cuda_devices(), reason="no CUDA device that the driver sees")


def on_cpu(images: np.ndarray) -> list[np.ndarray]:
    """The unrolled model's outputs; on exact images no order of sums changes a bit of them."""
    session = ort.InferenceSession(build_model().SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(list(OUTPUTS), {"image": images}))


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_fixed_batches_give_what_the_cpu_gives(tmp_path: Path, cuda_graphs: bool) -> None:
    onnx.save(build_model(), tmp_path / "model.onnx")
    session = open_session(tmp_path / "model.onnx", provider="cuda", cuda_graphs=cuda_graphs)
    assert provider_of(session) == CUDA
    fixed = FixedBatches(session)
    batches = [exact_images(size, seed) for seed, size in enumerate((1, 8, 1, 8, 8))]  # recorded, then replayed
    got = [fixed.run(images) for images in batches]
    for images, outputs in zip(batches, got, strict=True):
        for output, wanted in zip(outputs, on_cpu(images), strict=True):
            np.testing.assert_allclose(output, wanted, rtol=1e-6)


def test_the_any_time_runner_gives_what_the_cpu_gives(tmp_path: Path) -> None:
    onnx.save(build_step(), tmp_path / "step.onnx")
    model = StepModel(open_session(tmp_path / "step.onnx", provider="cuda"))
    images, exit = exact_images(20), Exit("confidence", 0.45)
    logits, _, taps, nonzero = on_cpu(images)
    steps = steps_needed(logits, exit)
    assert len(set(steps.tolist())) > 1
    crowd = model.crowd(exit.rule)
    traces = dict(crowd.advance(images[:12], threshold=exit.threshold))
    traces |= dict(crowd.advance(images[12:], threshold=exit.threshold))  # join midway
    while len(crowd):
        traces |= dict(crowd.advance())
    for b in range(20):
        np.testing.assert_allclose(traces[b].logits, logits[: steps[b], b], rtol=1e-6)
        np.testing.assert_array_equal(traces[b].taps, taps[: steps[b], b])
        np.testing.assert_array_equal(traces[b].nonzero, nonzero[: steps[b], b])


def test_the_predictor_prefers_fp16_on_a_device(tmp_path: Path) -> None:
    predictor = Predictor(write_bundle(tmp_path / "bundle", precisions=("int8", "fp32", "fp16")), provider="cuda")
    assert (predictor.precision, predictor.provider) == ("fp16", CUDA)
    assert len(predictor.predict(exact_images(2), exit_threshold=1.0)[0].logits) == T
