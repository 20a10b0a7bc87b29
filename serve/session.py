"""Open onnxruntime sessions. Which provider runs a model is always checked and told, never what was only asked for.

TSERVE_PROVIDER says what may run it:
  auto      (default) a CUDA device if the driver sees one, else the CPU; told in the log where a device is not usable
  cpu       the CPU
  cuda      a CUDA device, or an error that says what is missing
  tensorrt  TensorRT on a CUDA device, or an error. It builds an engine for every new batch size, which takes minutes;
            TSERVE_TENSORRT_CACHE names a folder that keeps them
TSERVE_THREADS is the number of threads of one run on the CPU.
"""

import ctypes
import json
import logging
import os
import re
import threading
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnxruntime as ort

from serve.bundle import WRITE_AGAIN, BundleError


Provider = Literal["auto", "cpu", "cuda", "tensorrt"]
Device = Literal["cpu", "cuda", "tensorrt"]
ENV_PROVIDER = "TSERVE_PROVIDER"
ENV_THREADS = "TSERVE_THREADS"
ENV_CACHE = "TSERVE_TENSORRT_CACHE"
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
CHAINS: dict[Device, tuple[str, ...]] = {"cpu": (CPU,), "cuda": (CUDA, CPU), "tensorrt": (TENSORRT, CUDA, CPU)}
INSTALL = (
    "onnxruntime-gpu with the CUDA and cuDNN that it names in its log (pip install 'onnxruntime-gpu[cuda,cudnn]'), "
    "or set TSERVE_PROVIDER=cpu"
)
logger = logging.getLogger(__name__)


class ProviderError(ValueError):
    """A provider that was asked for and is not there; the message says what is there and what to do."""


def provider_setting() -> Provider:
    """Read TSERVE_PROVIDER; ValueError for a word that it does not know."""
    text = os.environ.get(ENV_PROVIDER) or "auto"
    for provider in get_args(Provider):
        if text == provider:
            return provider
    raise ValueError(f"{ENV_PROVIDER} must be one of {', '.join(get_args(Provider))}, got {text!r}")


def threads() -> int:
    """Threads of one run, from TSERVE_THREADS; 1 by default, which serves several callers best on few cores."""
    text = os.environ.get(ENV_THREADS, "1")
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{ENV_THREADS} must be a whole number of threads, 1 or more, got {text!r}")
    return int(text)


def resolve(provider: Provider | None = None) -> Device:
    """What a session will be opened on, from what is asked for (default: TSERVE_PROVIDER) and what the machine has.

    Raises ProviderError for one that is asked for by name and missing. `auto` takes the CPU instead: silently where
    there is no CUDA device, with a warning where there is one that this onnxruntime was not built for.
    """
    provider = provider or provider_setting()
    if provider == "cpu":
        return "cpu"
    built, wanted = ort.get_available_providers(), TENSORRT if provider == "tensorrt" else CUDA
    if wanted not in built:
        lacks = f"this onnxruntime ({ort.__version__}) was built without {wanted}; it has {', '.join(built)}"
    elif not cuda_devices():
        lacks = "the driver sees no CUDA device (nvidia-smi tells more)"
    else:
        return "cuda" if provider == "auto" else provider
    if provider != "auto":
        raise ProviderError(f"provider {provider}: {lacks}; install {INSTALL}")
    if cuda_devices():
        logger.warning("the CUDA device is not used: %s; install %s", lacks, INSTALL)
    return "cpu"


def open_session(
    model: Path | bytes,
    *,
    name: str | None = None,
    provider: Provider | None = None,
    fp16: bool = False,
    cuda_graphs: bool = False,
) -> ort.InferenceSession:
    """Open the ONNX model on `provider` (default: TSERVE_PROVIDER); `provider_of` says where it really runs.

    `model` is a file or what stands in one; `name` is what errors call it (default: the file). `fp16` is needed by
    TensorRT for a model in half precision. With `cuda_graphs` a run on a CUDA device is recorded once and replayed: for
    FixedBatches only, `run` of such a session is not what is recorded.

    Raises ProviderError if a provider that is asked for by name is missing or cannot start, BundleError if the file is
    no model, is damaged, or was made for a newer onnxruntime.
    """
    provider = provider or provider_setting()
    device = resolve(provider)
    data, name = (model, name or "the model") if isinstance(model, bytes) else (_read(model), name or str(model))
    if device == "cpu":
        return _open(data, name, "cpu")
    ort.preload_dlls()
    failure = ""
    try:
        session = _open(data, name, device, fp16=fp16, cuda_graphs=cuda_graphs)
        if provider_of(session) == CHAINS[device][0]:
            return session
    except Exception as error:  # onnxruntime's error types are made at run time and share no other base
        failure = f" ({_first_line(error)})"
    on_cpu = _open(data, name, "cpu")  # raises if it is the model that cannot be opened
    lacks = f"onnxruntime could not start {CHAINS[device][0]}{failure}; its log says why"
    if provider != "auto":
        raise ProviderError(f"provider {provider}: {lacks}; install {INSTALL}")
    logger.warning("the CUDA device is not used, the CPU is: %s; install %s", lacks, INSTALL)
    return on_cpu


def provider_of(session: ort.InferenceSession) -> str:
    """onnxruntime's name for what really runs the session."""
    return str(session.get_providers()[0])


def metadata(session: ort.InferenceSession) -> dict[str, Any]:
    """What the model says of itself; {} for a model of another maker, whose values are not all JSON."""
    try:
        return {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    except ValueError:
        return {}


class FixedBatches:
    """A model `image` -> outputs on batches of a few sizes, each in buffers on the device that never move.

    A run copies the images in and the outputs out and allocates nothing. In a session that was opened with
    `cuda_graphs` the first run of a size records a graph, which the later ones replay. Each size keeps its buffers, and
    its graph, for as long as the object lives. Runs take turns.
    """

    def __init__(self, session: ort.InferenceSession) -> None:
        """Use a session of open_session; it works on the CPU as well, without graphs."""
        self._session = session
        self._device = "cpu" if provider_of(session) == CPU else "cuda"
        self._sizes: dict[int, tuple[ort.IOBinding, ort.OrtValue, list[ort.OrtValue], ort.RunOptions]] = {}
        self._lock = threading.Lock()

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """The model's outputs, in its order, for float32 images [B, C, H, W]; ValueError for another shape."""
        wanted = self._session.get_inputs()[0].shape[1:]
        if images.ndim != 4 or not len(images) or list(images.shape[1:]) != wanted:
            raise ValueError(f"images must have the shape {['B', *wanted]} with B >= 1, got {list(images.shape)}")
        with self._lock:
            if len(images) not in self._sizes:
                self._sizes[len(images)] = self._prepare(len(images))
            binding, image, outputs, options = self._sizes[len(images)]
            image.update_inplace(np.ascontiguousarray(images, np.float32))
            self._session.run_with_iobinding(binding, options)
            # On the CPU, numpy() may share the buffer, which the next run overwrites.
            return [np.array(output.numpy()) for output in outputs]

    def _prepare(self, size: int) -> tuple[ort.IOBinding, ort.OrtValue, list[ort.OrtValue], ort.RunOptions]:
        def buffer(tensor: ort.NodeArg) -> ort.OrtValue:
            shape = [size if isinstance(n, str) else n for n in tensor.shape]
            return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self._device)

        binding = self._session.io_binding()
        (image,) = self._session.get_inputs()
        bound = buffer(image)
        binding.bind_ortvalue_input(image.name, bound)
        outputs = []
        for output in self._session.get_outputs():
            outputs.append(buffer(output))
            binding.bind_ortvalue_output(output.name, outputs[-1])
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(size))  # onnxruntime's key of the graphs of one session
        return binding, bound, outputs, options


def cuda_devices() -> int:
    """How many CUDA devices the driver sees; onnxruntime itself only says what it was built with."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def trim() -> None:
    """Give the system back the memory that closed sessions have left with the C library; nothing where it has no trim.

    glibc keeps what was freed between what is in use: a server whose models are replaced would grow for long.
    """
    if release := getattr(ctypes.CDLL(None), "malloc_trim", None):
        release(0)


def _read(model: Path) -> bytes:
    try:
        return model.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{model}: no such file; {WRITE_AGAIN}") from None
    except OSError as error:
        raise BundleError(f"{model}: cannot be read: {error.strerror or error}") from None


def _open(
    model: bytes, name: str, device: Device, *, fp16: bool = False, cuda_graphs: bool = False
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads()
    # Waiting threads that spin take the cores from the web server: on two busy cores a third of the throughput.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings = {
        CPU: {},
        # float32 means float32 (TF32 keeps 10 bits of 23, and flips spikes). A batch of the any-time runner shrinks
        # as images finish; an exhaustive search of algorithms at each new size would cost more than it finds.
        CUDA: {
            "use_tf32": "0",
            "cudnn_conv_algo_search": "EXHAUSTIVE" if cuda_graphs else "HEURISTIC",
            "enable_cuda_graph": str(int(cuda_graphs)),
        },
        TENSORRT: {"trt_fp16_enable": str(int(fp16))} | _engine_cache(),
    }
    providers = [(name, settings[name]) for name in CHAINS[device]]
    try:
        # Without its fallback, which would replace a failing provider by the CPU with no more than a printed line.
        session = ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
    except Exception as error:  # see open_session
        if device == "cpu":
            raise BundleError(f"{name}: {_why_not(len(model), error)}") from None
        raise
    # onnxruntime would keep the bytes for its fallback, as long as the session lives: as much again as the weights.
    session._model_bytes = None
    return session


def _engine_cache() -> dict[str, str]:
    folder = os.environ.get(ENV_CACHE)
    if not folder:
        return {}
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
    }


def _why_not(size: int, error: Exception) -> str:
    """What is wrong with a model of `size` bytes that onnxruntime does not load, and what to do."""
    said = _first_line(error)
    if "INVALID_PROTOBUF" in said or "No graph was found" in said:
        return f"not an ONNX model, or only a part of one ({size} bytes); copy it again, or {WRITE_AGAIN}"
    newer = re.findall(r"Unsupported model IR version: .*|Opset \d+|support for domain \S+ is till opset \d+", said)
    if newer:
        what = f"made for a newer onnxruntime than this one, {ort.__version__} ({', '.join(newer)})"
        return f"{what}; install a newer onnxruntime, or {WRITE_AGAIN}"
    return f"onnxruntime {ort.__version__} cannot load it: {said}; {WRITE_AGAIN}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
