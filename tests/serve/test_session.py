"""Sessions: what really runs a model is known, and what cannot be opened is refused by name."""

import ctypes
import logging
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from synthetic import build_model, exact_images

from serve import demo, session
from serve.bundle import BundleError
from serve.session import FixedBatches, Provider, ProviderError, open_session, provider_of, resolve, threads


BUILT = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
needs_no_gpu = pytest.mark.skipif(session.cuda_devices() > 0, reason="this machine's CUDA device would really start")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(build_model(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with a CUDA device and an onnxruntime for it, as far as both tell; tests take a part away."""
    monkeypatch.setattr(session, "cuda_devices", lambda: 1)
    monkeypatch.setattr(ort, "get_available_providers", lambda: BUILT)
    monkeypatch.delenv("TSERVE_PROVIDER", raising=False)
    return monkeypatch


def runs(opened: ort.InferenceSession) -> bool:
    """Whether the session gives the logits that a bare one gives."""
    wanted = ort.InferenceSession(build_model().SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"image": exact_images(2)}
    return np.array_equal(opened.run(["logits"], feed)[0], wanted.run(["logits"], feed)[0])


def test_auto_takes_a_device_that_is_there(machine: pytest.MonkeyPatch) -> None:
    assert [resolve(), resolve("auto"), resolve("cuda"), resolve("tensorrt"), resolve("cpu")] == [
        "cuda",
        "cuda",
        "cuda",
        "tensorrt",
        "cpu",
    ]


def test_the_environment_names_the_provider(machine: pytest.MonkeyPatch, model: Path) -> None:
    machine.setenv("TSERVE_PROVIDER", "cpu")
    assert resolve() == "cpu"
    assert provider_of(open_session(model)) == "CPUExecutionProvider"
    machine.setenv("TSERVE_PROVIDER", "gpu")
    with pytest.raises(ValueError, match="TSERVE_PROVIDER must be one of auto, cpu, cuda, tensorrt, got 'gpu'"):
        resolve()


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_without_a_device_auto_takes_the_cpu_and_a_named_provider_is_an_error(
    machine: pytest.MonkeyPatch, model: Path, caplog: pytest.LogCaptureFixture, provider: Provider
) -> None:
    machine.setattr(session, "cuda_devices", lambda: 0)
    assert runs(open_session(model, provider="auto"))
    assert not caplog.records  # nothing was lost
    with pytest.raises(ProviderError, match=rf"provider {provider}: the driver sees no CUDA device .*onnxruntime-gpu"):
        open_session(model, provider=provider)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_an_onnxruntime_that_was_not_built_for_the_device_is_told(
    machine: pytest.MonkeyPatch, model: Path, caplog: pytest.LogCaptureFixture, provider: Provider
) -> None:
    machine.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    opened = open_session(model, provider="auto")
    assert provider_of(opened) == "CPUExecutionProvider"
    assert runs(opened)
    (told,) = caplog.records
    assert told.levelno == logging.WARNING
    assert "was built without CUDAExecutionProvider; it has CPUExecutionProvider" in told.getMessage()
    with pytest.raises(
        ProviderError, match=rf"provider {provider}: .* was built without .*it has CPUExecutionProvider"
    ):
        open_session(model, provider=provider)


@needs_no_gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_onnxruntime_cannot_start_is_told(
    machine: pytest.MonkeyPatch, model: Path, caplog: pytest.LogCaptureFixture, provider: Provider
) -> None:
    """Not simulated: onnxruntime is asked for a device that is not there, and silently gives the CPU for CUDA."""
    opened = open_session(model, provider="auto")
    assert provider_of(opened) == "CPUExecutionProvider"
    assert runs(opened)
    (told,) = caplog.records
    assert "the CPU is: onnxruntime could not start CUDAExecutionProvider" in told.getMessage()
    with pytest.raises(ProviderError, match=rf"provider {provider}: onnxruntime could not start .*TSERVE_PROVIDER=cpu"):
        open_session(model, provider=provider)


@needs_no_gpu
@pytest.mark.parametrize("provider", ["auto", "cuda"])
def test_a_damaged_model_is_blamed_and_not_the_device(
    machine: pytest.MonkeyPatch, model: Path, provider: Provider
) -> None:
    model.write_bytes(model.read_bytes()[:-50])
    with pytest.raises(BundleError, match="only a part of one"):
        open_session(model, provider=provider)


def one_operator(*, opset: int = 18, ir: int = 10, op: str = "Neg") -> bytes:
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B"]) for name in "xy")
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], "g", [x], [y])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    return bytes(made.SerializeToString())


def cut(share: float) -> bytes:
    whole = build_model().SerializeToString()
    return bytes(whole[: int(share * len(whole))])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            cut(0.9),
            r"not an ONNX model, or only a part of one \(\d+ bytes\); copy it again, or write the bundle again",
        ),
        (cut(0.5), "only a part of one"),
        (b"", r"only a part of one \(0 bytes\)"),
        (b"<html>404</html>", "not an ONNX model"),
        (bytes(100), "not an ONNX model"),
        (
            one_operator(opset=99),
            r"newer onnxruntime than this one, \S+ \(Opset 99, support for .* is till opset \d+\)",
        ),
        (one_operator(ir=99), r"newer onnxruntime .*IR version: 99, max supported IR version: \d+\); install a newer"),
        (one_operator(op="Spike"), "cannot load it: .*Spike"),
        ("folder", "cannot be read: Is a directory"),
        (None, "no such file; write the bundle again: python -m export.bundle CKPT"),
    ],
)
def test_a_file_that_is_no_model_for_this_onnxruntime_is_refused(
    tmp_path: Path, data: bytes | str | None, said: str
) -> None:
    path = tmp_path / "model.onnx"
    if isinstance(data, bytes):
        path.write_bytes(data)
    elif data:
        path.mkdir()
    with pytest.raises(BundleError, match=said) as refused:
        open_session(path, provider="cpu")
    assert str(refused.value).startswith(f"{path}: ")
    assert "/onnxruntime_src" not in str(refused.value)


def test_a_model_is_opened_from_its_bytes_and_called_by_its_name(model: Path) -> None:
    data = model.read_bytes()
    model.unlink()
    assert runs(open_session(data, provider="cpu"))
    with pytest.raises(BundleError, match=r"^of a store: not an ONNX model, or only a part of one \(9 bytes\)"):
        open_session(data[:9], name="of a store", provider="cpu")


def test_a_session_keeps_no_copy_of_the_bytes(model: Path) -> None:
    data = model.read_bytes() + b""
    held = sys.getrefcount(data)
    opened = open_session(data, provider="cpu")
    assert sys.getrefcount(data) == held
    assert runs(opened)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library cannot be trimmed")
def test_freed_memory_goes_back_to_the_system() -> None:
    """Freed below memory that is in use, which holds all of it."""
    library, size, count = ctypes.CDLL(None), 64 * 1024, 1600
    library.malloc.restype = ctypes.c_void_p

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    blocks = [ctypes.c_void_p(library.malloc(ctypes.c_size_t(size))) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks[:-1]:
        library.free(block)
    before = resident()
    session.trim()
    assert before - resident() > 0.9 * size * count
    library.free(blocks[-1])


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_a_wrong_number_of_threads_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TSERVE_THREADS", text)
    with pytest.raises(ValueError, match="TSERVE_THREADS must be a whole number"):
        open_session(model, provider="cpu")


def test_the_number_of_threads_reaches_the_session(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSERVE_THREADS", "2")
    assert threads() == 2
    options = open_session(model, provider="cpu").get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_fixed_batches_give_what_a_plain_run_gives_and_keep_it(model: Path) -> None:
    opened = open_session(model, provider="cpu")
    fixed = FixedBatches(opened)
    batches = [exact_images(size, seed) for seed, size in enumerate((1, 4, 1, 4, 8))]
    got = [fixed.run(images) for images in batches]  # compared only at the end: no run may change an earlier one's
    for images, outputs in zip(batches, got, strict=True):
        for output, wanted in zip(outputs, opened.run(None, {"image": images}), strict=True):
            np.testing.assert_array_equal(output, wanted, strict=True)


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (1, 3, 8, 8), (1, 1, 8, 9), (1, 8, 8)])
def test_fixed_batches_refuse_another_shape(model: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \['B', 1, 8, 8\] with B >= 1, got \["):
        FixedBatches(open_session(model, provider="cpu")).run(np.zeros(shape, np.float32))


@needs_no_gpu
def test_the_page_with_a_provider_that_is_missing_ends_with_status_2(
    bundle_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(demo.Config(bundles=(bundle_dir,), provider="cuda")) == 2
    assert "error: provider cuda: the driver sees no CUDA device" in capsys.readouterr().err
