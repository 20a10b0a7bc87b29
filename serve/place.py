"""Where the tensors live that pass from one time step to the next: in memory, or on a device that they never leave.

Both places choose rows of tensors, put the rows of new images behind them, and run a step model. `Host` holds numpy
arrays: on the CPU `session.run` neither copies what it is given nor what it gives, and costs a third of a run by IO
binding. `OnDevice` holds OrtValues and has onnxruntime itself choose the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from serve.session import CPU, TENSORRT


OUTPUTS = ("logits", "spike_rates", "taps", "nonzero")
KEPT = 8  # rows of starting values that are kept ready, for each state
_ELEMENT_TYPES = {"float32": 1, "float64": 11}  # of onnx.TensorProto


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A tensor [B, *shape] that a step model takes and gives: carried along as it is, or a state."""

    input: str
    output: str
    shape: tuple[int, ...]
    type: str
    """float32 or float64."""
    start: float | None
    """A state's value for a new image; None for a carried tensor, which the model makes for new images itself."""

    def __post_init__(self) -> None:
        if self.type not in _ELEMENT_TYPES:
            raise ValueError(f"{self.input}: type {self.type!r}, expected one of {', '.join(_ELEMENT_TYPES)}")


class Host:
    """Tensors are numpy arrays."""

    def __init__(self, session: ort.InferenceSession, slots: Sequence[Slot]) -> None:
        self._session, self._slots = session, slots
        self._names = [*OUTPUTS, *(slot.output for slot in slots)]
        kept = [0 if slot.start is None else KEPT for slot in slots]
        self._starts = [
            np.full((n, *slot.shape), slot.start or 0, slot.type) for n, slot in zip(kept, slots, strict=True)
        ]

    def nothing(self) -> list[Any]:
        """The tensors of no image."""
        return [start[:0] for start in self._starts]

    def joined(self, tensors: list[Any], rows: np.ndarray | None, new: int) -> list[Any]:
        """Rows `rows` (None: all) of each tensor, and of the states `new` starting rows behind them."""
        entering = [0 if slot.start is None else new for slot in self._slots]
        return [
            self._joined(tensor, rows, slot, start, count)
            for tensor, slot, start, count in zip(tensors, self._slots, self._starts, entering, strict=True)
        ]

    def _joined(
        self, tensor: np.ndarray, rows: np.ndarray | None, slot: Slot, start: np.ndarray, new: int
    ) -> np.ndarray:
        if not new:
            return tensor if rows is None else tensor[rows]
        if not len(tensor) and new <= KEPT:
            return start[:new]
        kept = len(tensor) if rows is None else len(rows)
        joined = np.empty((kept + new, *slot.shape), slot.type)
        joined[:kept] = tensor if rows is None else tensor[rows]
        joined[kept:] = slot.start
        return joined

    def run(self, images: np.ndarray, tensors: list[Any]) -> tuple[list[np.ndarray], list[Any]]:
        """One step: the outputs OUTPUTS, and the tensors for the next step."""
        feeds = dict(zip((slot.input for slot in self._slots), tensors, strict=True))
        got = self._session.run(self._names, feeds | {"image": images})
        return got[: len(OUTPUTS)], got[len(OUTPUTS) :]


class OnDevice:
    """Tensors are OrtValues on the device of the session; only images go there, and only OUTPUTS come back."""

    def __init__(self, session: ort.InferenceSession, slots: Sequence[Slot]) -> None:
        self._session, self._slots = session, slots
        self._device = "cpu" if session.get_providers()[0] == CPU else "cuda"
        providers = [name for name in session.get_providers() if name != TENSORRT]
        self._joiner = ort.InferenceSession(joiner(slots), session.get_session_options(), providers=providers)
        self._starts = [self._send(np.full((1, *slot.shape), slot.start or 0, slot.type)) for slot in slots]

    def nothing(self) -> list[Any]:
        """As of Host."""
        return [
            ort.OrtValue.ortvalue_from_shape_and_type((0, *slot.shape), np.dtype(slot.type).type, self._device)
            for slot in self._slots
        ]

    def joined(self, tensors: list[Any], rows: np.ndarray | None, new: int) -> list[Any]:
        """As of Host."""
        if rows is None and not new:
            return tensors
        rows = np.arange(tensors[0].shape()[0]) if rows is None else rows
        feeds = {"rows": self._send(rows.astype(np.int64)), "new": self._send(np.zeros(new, np.int64))}
        for i, (tensor, start) in enumerate(zip(tensors, self._starts, strict=True)):
            feeds |= {f"tensor{i}": tensor, f"start{i}": start}
        return self._bound_run(self._joiner, feeds, here=(), there=[f"joined{i}" for i in range(len(tensors))])

    def run(self, images: np.ndarray, tensors: list[Any]) -> tuple[list[np.ndarray], list[Any]]:
        """As of Host."""
        feeds = dict(zip((slot.input for slot in self._slots), tensors, strict=True)) | {"image": self._send(images)}
        got = self._bound_run(self._session, feeds, here=OUTPUTS, there=[slot.output for slot in self._slots])
        return [output.numpy() for output in got[: len(OUTPUTS)]], got[len(OUTPUTS) :]

    def _bound_run(
        self, session: ort.InferenceSession, feeds: dict[str, Any], *, here: Sequence[str], there: Sequence[str]
    ) -> list[Any]:
        """Outputs in memory, then outputs on the device. `run_with_ort_values` would bring all of them into memory."""
        binding = session.io_binding()
        for name, tensor in feeds.items():
            binding.bind_ortvalue_input(name, tensor)
        for name in here:
            binding.bind_output(name, "cpu")
        for name in there:
            binding.bind_output(name, self._device)
        session.run_with_iobinding(binding)
        return list(binding.get_outputs())

    def _send(self, array: np.ndarray) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_numpy(array, self._device)


def joiner(slots: Sequence[Slot]) -> bytes:
    """The ONNX model that joins rows where the tensors are; written here by hand, for the server has no onnx package.

    joined_i = tensor_i[rows], and for states, start_i[new] behind it, where `new` is a zero for every new image.
    """
    nodes, inputs, outputs = b"", _tensor("rows", 7, 1) + _tensor("new", 7, 1), b""  # 7: int64
    for i, slot in enumerate(slots):
        kind, axes = _ELEMENT_TYPES[slot.type], 1 + len(slot.shape)
        inputs += _tensor(f"tensor{i}", kind, axes) + _tensor(f"start{i}", kind, axes)
        outputs += _tensor(f"joined{i}", kind, axes, field=12)
        if slot.start is None:
            nodes += _node("Gather", (f"tensor{i}", "rows"), f"joined{i}")
        else:
            nodes += _node("Gather", (f"tensor{i}", "rows"), f"old{i}")
            nodes += _node("Gather", (f"start{i}", "new"), f"new{i}")
            axis = _field(1, b"axis") + _field(3, 0) + _field(20, 2)  # an attribute of type 2, integer
            nodes += _node("Concat", (f"old{i}", f"new{i}"), f"joined{i}", attribute=axis)
    graph = nodes + _field(2, b"joiner") + inputs + outputs
    return _field(1, 10) + _field(8, _field(1, b"") + _field(2, 20)) + _field(7, graph)  # IR version 10, opset 20


def _node(kind: str, inputs: Sequence[str], output: str, *, attribute: bytes = b"") -> bytes:
    body = b"".join(_field(1, name.encode()) for name in inputs) + _field(2, output.encode())
    return _field(1, body + _field(4, kind.encode()) + (_field(5, attribute) if attribute else b""))


def _tensor(name: str, kind: int, axes: int, *, field: int = 11) -> bytes:
    """An input (field 11) or output (12) of the graph, of an element type and a number of axes of any length."""
    shape = axes * _field(1, b"")
    return _field(field, _field(1, name.encode()) + _field(2, _field(1, _field(1, kind) + _field(2, shape))))


def _field(number: int, value: int | bytes) -> bytes:
    """A field of a protobuf message: a varint, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])
