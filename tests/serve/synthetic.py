"""A small bundle that obeys the contract between export and serve, written without either: onnx.helper and numpy.

image [B, 1, 8, 8] -> (x - 0.5) / 0.25 -> conv1 (3x3, 4 channels) -> lif1 -> conv2 (3x3, 6 channels) -> lif2
-> average pool 2x2 -> dense -> logits [4]; T = 3 steps, weights from a fixed seed.
"""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image


T, LABELS, SIZE = 3, ("disc", "ring", "cross", "bars"), 8
CHANNELS, FEATURES = (4, 6), 6 * 4 * 4


def build_model() -> onnx.ModelProto:
    """The network, unrolled over T by hand."""
    rng = np.random.default_rng(7)
    constants = {
        "mean": np.float32(0.5),
        "std": np.float32(0.25),
        "half": np.float32(0.5),
        "zero": np.float32(0),
        "one": np.float32(1),
        "w1": rng.normal(0, 0.6, (4, 1, 3, 3)).astype(np.float32),
        "w2": rng.normal(0.1, 0.5, (6, 4, 3, 3)).astype(np.float32),
        "w3": rng.normal(0, 1.0, (len(LABELS), FEATURES)).T.astype(np.float32),
        "window": np.ones((1, 4, 3, 3), np.float32),
        "flat": np.array([0, -1]),
        "all": np.array([1, 2, 3]),
        "features": np.array([1]),
    }
    nodes, outputs = [], {"logits": [], "spike_rates": [], "taps": []}

    def add(op: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [f"{op}_{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def number(condition: str) -> str:
        return add("Cast", condition, to=TensorProto.FLOAT)

    def lif(v: str | None, current: str) -> tuple[str, str]:
        """(membrane after the step, spikes): h = v/2 + x/2, spike at h >= 1, reset to 0."""
        charge = add("Mul", current, "half")
        h = charge if v is None else add("Add", add("Mul", v, "half"), charge)
        fired = add("GreaterOrEqual", h, "one")
        return add("Where", fired, "zero", h), number(fired)

    static = add("Conv", add("Div", add("Sub", "image", "mean"), "std"), "w1", pads=[1] * 4)
    v1 = v2 = None
    for _ in range(T):
        v1, s1 = lif(v1, static)
        v2, s2 = lif(v2, add("Conv", s1, "w2", pads=[1] * 4))
        pooled = add("Reshape", add("AveragePool", s2, kernel_shape=[2, 2], strides=[2, 2]), "flat")
        outputs["logits"].append(add("MatMul", pooled, "w3"))
        rates = [add("Reshape", add("ReduceMean", s, "all", keepdims=0), "flat_column") for s in (s1, s2)]
        outputs["spike_rates"].append(add("Concat", *rates, axis=1))
        conv_taps = add("ReduceSum", add("Conv", s1, "window", pads=[1] * 4), "all", keepdims=0)
        dense_taps = add("ReduceSum", number(add("Greater", pooled, "zero")), "features", keepdims=0)
        taps = [add("Reshape", count, "flat_column") for count in (conv_taps, dense_taps)]
        outputs["taps"].append(add("Concat", *taps, axis=1))
    constants["flat_column"] = np.array([-1, 1])
    constants["step_axis"] = np.array([0])
    for name, steps in outputs.items():
        stacked = [add("Unsqueeze", step, "step_axis") for step in steps]
        nodes.append(helper.make_node("Concat", stacked, [name], axis=0))
    sizes = {"logits": len(LABELS), "spike_rates": 2, "taps": 2}
    graph = helper.make_graph(
        nodes,
        "synthetic",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["B", 1, SIZE, SIZE])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [T, "B", size]) for n, size in sizes.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


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


def description(folder: Path) -> dict:
    """bundle.json for the files that lie in `folder`."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "bundle.json"]
    samples = [path for path in files if path.parent.name == "samples"]
    return {
        "format": 1,
        "name": "shapes-synthetic-T3",
        "created": "2026-11-20T12:00:00Z",
        "T": T,
        "labels": list(LABELS),
        "input": {"channels": 1, "height": SIZE, "width": SIZE},
        "model": {"file": "model.onnx", "precision": "fp32", "form": "unrolled"},
        "lif_layers": ["features.0.lif", "features.1.lif"],
        "synapses": [
            {"name": "features.1.conv", "kind": "ac", "sops_per_tap": CHANNELS[1]},
            {"name": "classifier", "kind": "mac", "sops_per_tap": len(LABELS)},
        ],
        "energy": {
            "chip": "cmos45nm",
            "ac_J": 9e-13,
            "mac_J": 4.6e-12,
            "static_macs": SIZE * SIZE * 9 * 4,
            "ann_macs": SIZE * SIZE * 9 * (4 + 4 * 6) + FEATURES * len(LABELS),
            "ann_energy_J": (SIZE * SIZE * 9 * (4 + 4 * 6) + FEATURES * len(LABELS)) * 4.6e-12,
        },
        "metrics": {"accuracy": 0.9, "teacher_accuracy": 0.95, "accuracy_by_T": [0.7, 0.85, 0.9]},
        "dataset": "shapes",
        "samples": [
            {"file": path.relative_to(folder).as_posix(), "label": LABELS[i % len(LABELS)]}
            for i, path in enumerate(samples)
        ],
        "checkpoint_sha256": "0" * 64,
        "files": {
            path.relative_to(folder).as_posix(): {
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "bytes": path.stat().st_size,
            }
            for path in files
        },
    }


def write_bundle(folder: Path, *, samples: int = 8) -> Path:
    """Write the bundle into `folder` and give the folder back."""
    (folder / "samples").mkdir(parents=True)
    onnx.save(build_model(), folder / "model.onnx")
    for i in range(samples):
        (folder / "samples" / f"{i:03}.png").write_bytes(png(draw(i)))
    (folder / "bundle.json").write_text(json.dumps(description(folder)))
    return folder
