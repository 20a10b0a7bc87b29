"""The spikes of every LIF layer inside a served network, out of the bundle's own unrolled model.

They stand in tensors inside the model, `LAYER/out`. When it is opened here they are made outputs beside its own: the
same operators run, and what they count is compared with what is shown.

Shapes: T time steps, L LIF layers, C channels, H rows, W columns of a layer's neurons.
"""

import threading
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from serve.bundle import WRITE_AGAIN, BundleError
from serve.predictor import Predictor
from serve.session import CHAINS, metadata, open_session


RATES = "spike_rates"
# Numbers of fields in onnx.proto.
MODEL_GRAPH, GRAPH_OUTPUT, VALUE_NAME = 7, 12, 1


class OtherSpikes(ValueError):
    """Spikes that are not the ones that were counted; the message says where they differ."""


class Probe:
    """A predictor's unrolled model once more, in its precision and on its provider, with its spikes among the outputs.

    The model is opened when it is first run, which takes as much memory again as it takes in the predictor: one session
    gives all layers, in the time of a plain run. Any thread may use it. It does not keep the predictor alive.
    """

    def __init__(self, predictor: Predictor) -> None:
        """Open nothing yet."""
        self._bundle, self._about = predictor.bundle, predictor.about
        self._precision = predictor.precision
        self._file = self._bundle.model_file(self._precision, "unrolled")
        self._provider = next(device for device, chain in CHAINS.items() if chain[0] == predictor.provider)
        self._lock = threading.Lock()
        self._session: ort.InferenceSession | None = None

    def run(self, image: np.ndarray, *, rates: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Every LIF layer's spikes, bool [T, C, H, W] ([T, N, 1, 1] for N neurons without a map).

        image: float32 [C, H, W] in [0, 1]. rates: the spike_rates [t <= T, L] of the Prediction beside which the spikes
        are shown; they are always held against those of the run itself, neuron for neuron counted.

        Raises BundleError for a model that does not give its spikes, OtherSpikes where they are not those that were
        counted, ValueError for an image of another shape.
        """
        about = self._about
        if image.shape != about.input.shape:
            raise ValueError(f"the image must have the shape {list(about.input.shape)}, got {list(image.shape)}")
        session = self._open()
        names = [tensor(layer) for layer in about.lif_layers]
        counted, *values = session.run([RATES, *names], {"image": image[None].astype(np.float32, copy=False)})
        last = metadata(session).get("layout") == "channels_last"
        try:
            spikes = {
                layer: by_step(value, about.T, shape, channels_last=last)
                for layer, value, shape in zip(about.lif_layers, values, about.lif_shapes, strict=True)
            }
        except ValueError as error:
            raise self._without_spikes(str(error)) from None
        compare(spikes, counted[:, 0])
        if rates is not None:
            compare(spikes, rates)
        return spikes

    def _open(self) -> ort.InferenceSession:
        with self._lock:
            if self._session is None:
                content = self._bundle.content(self._about.models[self._precision].unrolled)
                content += outputs([tensor(layer) for layer in self._about.lif_layers])
                half = self._precision == "fp16"
                try:
                    self._session = open_session(content, name=str(self._file), provider=self._provider, fp16=half)
                except BundleError as error:  # the predictor has opened it without them
                    raise self._without_spikes(str(error)) from None
            return self._session

    def _without_spikes(self, why: str) -> BundleError:
        wanted = ", ".join(map(tensor, self._about.lif_layers))
        why = why.removeprefix(f"{self._file}: ").removesuffix(f"; {WRITE_AGAIN}")
        return BundleError(
            f"{self._file}: does not give its layers' spikes, which should stand in {wanted}: {why}; {WRITE_AGAIN}"
        )


def tensor(layer: str) -> str:
    """The tensor in an exported model that holds the spikes of a LIF layer."""
    return f"{layer}/out"


def outputs(tensors: Sequence[str]) -> bytes:
    """What to append to an ONNX file so that these tensors are outputs of its graph, after those that it has.

    Protobuf merges messages that stand one after another: the lists of the second are added to those of the first.
    """
    return _field(MODEL_GRAPH, b"".join(_field(GRAPH_OUTPUT, _field(VALUE_NAME, name.encode())) for name in tensors))


def by_step(value: np.ndarray, T: int, shape: Sequence[int], *, channels_last: bool) -> np.ndarray:
    """One image's spikes of one layer, bool [T, C, H, W], from a tensor [T, C, H, W], or [T, H * W, C] `channels_last`.

    shape: (C, H, W), or (N,) for neurons without a map, whose tensor is [T, N]. ValueError for anything else.
    """
    if len(shape) not in (1, 3):
        raise ValueError(f"neurons of shape {list(shape)}, expected [C, H, W] or [N]")
    channels, height, width = (*shape, 1, 1)[:3]
    maps = [T, height * width, channels] if channels_last else [T, channels, height, width]
    wanted = maps if len(shape) == 3 else [T, channels]
    if list(value.shape) != wanted:
        raise ValueError(f"a tensor of shape {list(value.shape)}, expected {wanted}")
    spikes = value.astype(bool)
    if not np.array_equal(spikes, value):
        raise ValueError("a tensor with values other than 0 and 1")
    if channels_last:
        return spikes.reshape(T, height, width, channels).transpose(0, 3, 1, 2)
    return spikes.reshape(T, channels, height, width)


def compare(spikes: dict[str, np.ndarray], rates: np.ndarray) -> None:
    """Count the spikes of every layer and hold them against rates [t, L] of the first t <= T steps.

    Raises OtherSpikes where they differ, ValueError for rates of another shape.
    """
    T = len(next(iter(spikes.values())))
    if rates.ndim != 2 or not 1 <= len(rates) <= T or rates.shape[1] != len(spikes):
        wanted = f"[t, {len(spikes)}], t from 1 to {T}: one for each step and layer"
        raise ValueError(f"spike rates of shape {list(rates.shape)}, expected {wanted}")
    for index, (layer, fired) in enumerate(spikes.items()):
        neurons = fired[0].size
        counts = fired[: len(rates)].sum(axis=(1, 2, 3))
        # A rate is a float32 next to a whole number of spikes: half a spike is far more than its rounding.
        told = rates[:, index].astype(np.float64) * neurons
        wrong = np.flatnonzero(~(np.abs(told - counts) < 0.5))
        if len(wrong):
            t = int(wrong[0])
            raise OtherSpikes(
                f"{layer}, step {t + 1}: {counts[t]} of {neurons} neurons spiked in this run, but {told[t]:.1f} were"
                " counted; these are not the spikes behind the answer, and none are shown"
            )


def _field(number: int, data: bytes) -> bytes:
    """A field of bytes in protobuf's encoding."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    """A whole number, seven bits a byte, the lowest first."""
    head = bytearray()
    while number > 0x7F:
        head.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*head, number])
