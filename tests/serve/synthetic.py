"""A small bundle that obeys the contract between export and serve, written without either: onnx.helper and numpy.

image [B, 1, 8, 8] -> (x - 0.5) / 0.25 -> conv1 (3x3, 4 channels) -> lif1 -> conv2 (3x3, 6 channels) -> lif2
-> average pool 2x2 -> dense -> logits [4]; T = 3 steps, weights from a fixed seed. The step form carries conv1's
result; lif1's membrane is float32 and starts at 0, lif2's is float64 and starts at 0.5.

All weights are multiples of 1/16: for images of multiples of 1/16 every sum is exact in float32, in whatever order and
batch it is added, so that what must be equal is equal to the last bit.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from synthetic_energy import energy


T, LABELS, SIZE = 3, ("disc", "ring", "cross", "bars"), 8
CHANNELS, FEATURES = (4, 6), 6 * 4 * 4
LIF_LAYERS = ["features.0.lif", "features.1.lif"]
LIF_SHAPES = [[CHANNELS[0], SIZE, SIZE], [CHANNELS[1], SIZE, SIZE]]
SYNAPSES = [
    {"name": "features.1.conv", "kind": "ac", "sops_per_tap": CHANNELS[1]},
    {"name": "classifier", "kind": "mac", "sops_per_tap": len(LABELS)},
]
CHECKPOINT = "0" * 64
START = 0.5  # of lif2
THRESHOLD = 0.66
OUTPUTS = {"logits": len(LABELS), "spike_rates": 2, "taps": 2, "nonzero": 2}
CARRIED = [{"input": "current", "output": "current/next", "shape": [4, SIZE, SIZE], "type": "float32"}]
STATES = [
    {"input": "v1", "output": "v1/next", "shape": [4, SIZE, SIZE], "type": "float32", "start": 0.0},
    {"input": "v2", "output": "v2/next", "shape": [6, SIZE, SIZE], "type": "float64", "start": START},
]
ELEMENT = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}


class Writer:
    """Collects the operators of one model; the layers of the network are its methods."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)

        def weights(mean: float, std: float, *shape: int) -> np.ndarray:
            return (np.round(16 * rng.normal(mean, std, shape)) / 16).astype(np.float32)

        self.nodes: list[onnx.NodeProto] = []
        self.spikes: list[tuple[str, str]] = []
        """Of both layers, step by step."""
        self.constants = {
            "mean": np.float32(0.5),
            "std": np.float32(0.25),
            "start": np.float64(START),
            "zero": np.float32(0),
            "w1": weights(0, 0.6, 4, 1, 3, 3),
            "w2": weights(0.1, 0.5, 6, 4, 3, 3),
            "w3": weights(0, 0.5, FEATURES, len(LABELS)),
            "window": np.ones((1, 4, 3, 3), np.float32),
            "flat": np.array([0, -1]),
            "all": np.array([1, 2, 3]),
            "features": np.array([1]),
            "flat_column": np.array([-1, 1]),
            "step_axis": np.array([0]),
        }
        for kind in (np.float32, np.float64):
            for name, value in (("zero", 0), ("half", 0.5), ("one", 1)):
                self.constants[f"{name}/{kind.__name__}"] = kind(value)

    def add(self, op: str, *inputs: str, output: str | None = None, **attributes: object) -> str:
        """Append an operator and give its output."""
        self.nodes.append(helper.make_node(op, inputs, [output or f"{op}_{len(self.nodes)}"], **attributes))
        return self.nodes[-1].output[0]

    def conv1(self) -> str:
        """The part that does not change with time."""
        scaled = self.add("Div", self.add("Sub", "image", "mean"), "std")
        return self.add("Conv", scaled, "w1", pads=[1] * 4)

    def lif(self, v: str | None, current: str, kind: str) -> tuple[str, str]:
        """(membrane after the step, spikes): h = v/2 + x/2, spike at h >= 1, reset to 0."""
        if kind == "float64":
            current = self.add("Cast", current, to=TensorProto.DOUBLE)
        charge = self.add("Mul", current, f"half/{kind}")
        h = charge if v is None else self.add("Add", self.add("Mul", v, f"half/{kind}"), charge)
        fired = self.add("GreaterOrEqual", h, f"one/{kind}")
        return self.add("Where", fired, f"zero/{kind}", h), self.add("Cast", fired, to=TensorProto.FLOAT)

    def step(self, static: str, v1: str | None, v2: str) -> tuple[dict[str, str], str, str]:
        """One time step: its outputs, and both membranes after it."""
        v1, s1 = self.lif(v1, static, "float32")
        v2, s2 = self.lif(v2, self.add("Conv", s1, "w2", pads=[1] * 4), "float64")
        self.spikes.append((s1, s2))
        pooled = self.add("Reshape", self.add("AveragePool", s2, kernel_shape=[2, 2], strides=[2, 2]), "flat")
        rates = [self.add("ReduceMean", s, "all", keepdims=0) for s in (s1, s2)]
        conv_taps = self.add("ReduceSum", self.add("Conv", s1, "window", pads=[1] * 4), "all", keepdims=0)
        active = self.add("Cast", self.add("Greater", pooled, "zero"), to=TensorProto.FLOAT)
        taps = [conv_taps, self.add("ReduceSum", active, "features", keepdims=0)]
        nonzero = [self.add("ReduceSum", s1, "all", keepdims=0), taps[1]]
        columns = [[self.add("Reshape", x, "flat_column") for x in pair] for pair in (rates, taps, nonzero)]
        counted = (self.add("Concat", *pair, axis=1) for pair in columns)
        outputs = {"logits": self.add("MatMul", pooled, "w3")}
        return outputs | dict(zip(("spike_rates", "taps", "nonzero"), counted, strict=True)), v1, v2

    def model(self, inputs: list, outputs: list, metadata: dict[str, Any]) -> onnx.ModelProto:
        """All of it as a checked model."""
        read = {name for node in self.nodes for name in node.input}
        constants = [numpy_helper.from_array(np.asarray(v), k) for k, v in self.constants.items() if k in read]
        graph = helper.make_graph(self.nodes, "synthetic", inputs, outputs, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
        onnx.checker.check_model(model, full_check=True)
        return model


def tensor(name: str, shape: Sequence[int | str], kind: str = "float32") -> onnx.ValueInfoProto:
    """The type of an input or output."""
    return helper.make_tensor_value_info(name, ELEMENT[kind], shape)


def metadata(form: str, *, steps: int, precision: str, labels: Sequence[str]) -> dict[str, Any]:
    """What both forms say of themselves."""
    return {
        "format": 3,
        "T": steps,
        "labels": list(labels),
        "precision": precision,
        "form": form,
        "lif_layers": LIF_LAYERS,
        "lif_shapes": LIF_SHAPES,
        "synapses": SYNAPSES,
        "checkpoint_sha256": CHECKPOINT,
    }


def build_model(
    *, steps: int = T, precision: str = "fp32", seed: int = 7, labels: Sequence[str] = LABELS
) -> onnx.ModelProto:
    """The network, unrolled over its steps by hand."""
    write = Writer(seed)
    static, v1, v2 = write.conv1(), None, "start"
    by_step = []
    for _ in range(steps):
        outputs, v1, v2 = write.step(static, v1, v2)
        by_step.append(outputs)
    for name in OUTPUTS:
        write.add("Concat", *(write.add("Unsqueeze", o[name], "step_axis") for o in by_step), output=name, axis=0)
    for layer, parts in zip(LIF_LAYERS, zip(*write.spikes, strict=True), strict=True):
        write.add("Concat", *parts, output=f"{layer}/out", axis=0)
    return write.model(
        [tensor("image", ["B", 1, SIZE, SIZE])],
        [tensor(name, [steps, "B", size]) for name, size in OUTPUTS.items()],
        metadata("unrolled", steps=steps, precision=precision, labels=labels),
    )


def build_step(
    *, steps: int = T, precision: str = "fp32", seed: int = 7, labels: Sequence[str] = LABELS
) -> onnx.ModelProto:
    """The same network, one step of it, with its states going in and out."""
    write = Writer(seed)
    static = write.add("Concat", "current", write.conv1(), axis=0)
    outputs, v1, v2 = write.step(static, "v1", "v2")
    for name, source in (*outputs.items(), ("current/next", static), ("v1/next", v1), ("v2/next", v2)):
        write.add("Identity", source, output=name)
    return write.model(
        [
            tensor("image", ["N", 1, SIZE, SIZE]),
            *(tensor(c["input"], ["C", *c["shape"]], c["type"]) for c in CARRIED),
            *(tensor(s["input"], ["B", *s["shape"]], s["type"]) for s in STATES),
        ],
        [
            *(tensor(name, ["B", size]) for name, size in OUTPUTS.items()),
            *(tensor(kept["output"], ["B", *kept["shape"]], kept["type"]) for kept in CARRIED + STATES),
        ],
        metadata("step", steps=steps, precision=precision, labels=labels) | {"carried": CARRIED, "states": STATES},
    )


def exact_images(count: int, seed: int = 0) -> np.ndarray:
    """Images of multiples of 1/16, float32 [B, 1, 8, 8]: on them the network rounds nothing."""
    return np.random.default_rng(seed).integers(0, 17, (count, 1, SIZE, SIZE)).astype(np.float32) / np.float32(16)


def draw(index: int) -> np.ndarray:
    """A picture of class LABELS[index % 4], uint8 [8, 8], a little different each time."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    radius = np.hypot(x, y)
    shape = (radius < 2.6, abs(radius - 2.7) < 0.8, (abs(x) < 1) | (abs(y) < 1), x.astype(int) % 2 == 0)[index % 4]
    return np.clip(np.where(shape, 225, 20) + rng.integers(-20, 20, (SIZE, SIZE)), 0, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """The pixels as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def model_name(precision: str) -> str:
    """The file of the unrolled form."""
    return "model.onnx" if precision == "fp32" else f"model.{precision}.onnx"


def step_name(precision: str) -> str:
    """The file of the step form."""
    return model_name(precision).replace("model", "step")


def exits(threshold: float) -> dict:
    """An exit table with made-up figures."""
    row = {"mean_steps": 2.0, "accuracy": 0.89, "energy_J": 1e-8, "val_mean_steps": 2.0, "val_accuracy": 0.89}
    return {
        "rule": "confidence",
        "threshold": threshold,
        "tolerance": 0.01,
        "calibrated_on": {"dataset": "shapes", "split": "validation", "images": 100},
        "measured_on": {"dataset": "shapes", "split": "test", "images": 100},
        "accuracy_by_T": [0.7, 0.85, 0.9],
        "table": [{"threshold": value, **row} for value in sorted({0.5, threshold, 1.0})],
    }


def description(folder: Path, precisions: Sequence[str], threshold: float, labels: Sequence[str] = LABELS) -> dict:
    """bundle.json for the files that lie in `folder`; the first precision is the default."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "bundle.json"]
    samples = [path for path in files if path.parent.name == "samples"]
    return {
        "format": 3,
        "name": "shapes-synthetic-T3",
        "created": "2026-11-20T12:00:00Z",
        "T": T,
        "labels": list(labels),
        "input": {"channels": 1, "height": SIZE, "width": SIZE},
        "models": {p: {"unrolled": model_name(p), "step": step_name(p)} for p in precisions},
        "precision": precisions[0],
        "exits": dict.fromkeys(precisions, exits(threshold)),
        "lif_layers": LIF_LAYERS,
        "lif_shapes": LIF_SHAPES,
        "synapses": SYNAPSES,
        "energy": energy(),
        "metrics": {"accuracy": 0.9, "teacher_accuracy": 0.95, "accuracy_by_T": [0.7, 0.85, 0.9]},
        "dataset": "shapes",
        "samples": [
            {"file": path.relative_to(folder).as_posix(), "label": labels[i % len(labels)]}
            for i, path in enumerate(samples)
        ],
        "checkpoint_sha256": CHECKPOINT,
        "files": {
            path.relative_to(folder).as_posix(): {
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "bytes": path.stat().st_size,
            }
            for path in files
        },
    }


def write_bundle(
    folder: Path,
    *,
    samples: int = 8,
    precisions: Sequence[str] = ("fp32",),
    threshold: float = THRESHOLD,
    labels: Sequence[str] = LABELS,
) -> Path:
    """Write the bundle into `folder` and give the folder back. A precision but fp32 is a name and other weights.

    `labels` are four; with four digits, the page of the bundle has a sheet to draw on.
    """
    (folder / "samples").mkdir(parents=True)
    for precision in precisions:
        seed = 7 + ("fp32", "fp16", "int8").index(precision)
        onnx.save(build_model(precision=precision, seed=seed, labels=labels), folder / model_name(precision))
        onnx.save(build_step(precision=precision, seed=seed, labels=labels), folder / step_name(precision))
    for i in range(samples):
        (folder / "samples" / f"{i:03}.png").write_bytes(png(draw(i)))
    describe(folder, precisions, threshold, labels)
    return folder


def describe(
    folder: Path,
    precisions: Sequence[str] = ("fp32",),
    threshold: float = THRESHOLD,
    labels: Sequence[str] = LABELS,
) -> None:
    """Write bundle.json anew, for the files that lie in `folder`."""
    (folder / "bundle.json").write_text(json.dumps(description(folder, precisions, threshold, labels)))
