"""What every exported ONNX model has in common: how it is collected, what it says about itself, its two forms.

unrolled: all T steps in one run, image -> logits [T, B, K]. What does not change with time is computed once, on
    [B, ...]; layers without memory see all steps at once, on [T*B, ...] with t the slow axis; neurons are written once
    per step. So weights are stored once.
step: one step, for B = C + N images: C that go on and N new ones, in this order. The image is read of the new ones
    only; what was computed from it is carried from step to step; every membrane comes in and goes out. New images
    may join those that are under way, and those that are done are left out of the next step.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export import graph as g
from export.counts import sops_per_tap, spike_driven


FORMAT = 1
OPSET = 20
IR_VERSION = 10

Form = Literal["unrolled", "step"]
TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor of the model: [B, ...] where `static` (the same at every step), [T*B, ...] otherwise."""

    tensor: str
    static: bool


@dataclass(frozen=True, kw_only=True)
class Passed:
    """A tensor that a step hands to the next: its names, its shape without the batch axis, its numpy type."""

    input: str
    output: str
    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True, kw_only=True)
class State(Passed):
    """A membrane; an image's first step takes `start`."""

    start: float


@dataclass(kw_only=True)
class Builder:
    """Collects the operators and constants of one model, and knows its form."""

    graph: g.Graph
    form: Form
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    carried: dict[str, Passed] = field(default_factory=dict)
    states: list[State] = field(default_factory=list)
    inner: list[onnx.ValueInfoProto] = field(default_factory=list)

    @property
    def T(self) -> int:
        """Steps that one run of the model makes."""
        return self.graph.T if self.form == "unrolled" else 1

    def op(self, kind: str, inputs: Sequence[str], name: str, *, output: str | None = None, **attributes: Any) -> str:
        """Append one operator and return its tensor, which has the operator's name unless `output` says otherwise."""
        tensor = output or name
        self.nodes.append(helper.make_node(kind, list(inputs), [tensor], name=name, **attributes))
        return tensor

    def constant(self, name: str, value: np.ndarray | float | Sequence[int]) -> str:
        """Store one constant; Python's floats as float32, its integers as int64. What is stored under a name stays."""
        array = np.asarray(value)
        if not isinstance(value, np.ndarray):
            array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def describe(self, x: Value, shape: Sequence[int], *, type: int = TensorProto.FLOAT) -> None:
        """State the shape of a value, for readers of the model; `shape` is without the batch axis."""
        batch = ("B", "T*B") if self.form == "unrolled" else ("N", "B")
        self.inner.append(info(x.tensor, (batch[not x.static], *shape), type=type))

    def every_step(self, x: Value, name: str, *, shape: tuple[int, ...]) -> str:
        """A value at all steps of the model, [T*B, ...]; `name` is of the node that it belongs to or that reads it."""
        if not x.static:
            return x.tensor
        if self.form == "unrolled":
            return self.op("Concat", [x.tensor] * self.T, f"{name}/hold", axis=0)
        if x.tensor not in self.carried:
            source = x.tensor.removesuffix("/out")
            passed = Passed(input=f"{source}/carried", output=f"{source}/carry", shape=shape, type="float32")
            self.op("Concat", [passed.input, x.tensor], f"{source}/join", output=passed.output, axis=0)
            self.carried[x.tensor] = passed
        return self.carried[x.tensor].output

    def by_step(self, x: Value, name: str, *, shape: tuple[int, ...]) -> list[str]:
        """A value at each step of the model, T tensors [B, ...]."""
        if x.static and self.form == "unrolled":
            return [x.tensor] * self.T
        tensor = self.every_step(x, name, shape=shape)
        if self.T == 1:
            return [tensor]
        parts = [f"{name}/t{t}/current" for t in range(self.T)]
        self.nodes.append(
            helper.make_node("Split", [tensor], parts, name=f"{name}/currents", axis=0, num_outputs=self.T)
        )
        return parts

    def together(self, parts: list[str], name: str, *, output: str) -> str:
        """T tensors [B, ...] as one [T*B, ...]."""
        if len(parts) == 1:
            return self.op("Identity", parts, name, output=output)
        return self.op("Concat", parts, name, output=output, axis=0)

    def membrane(self, node: g.Node, *, start: float, type: str) -> str | None:
        """The potential [B, ...] that a layer of neurons has before the model's first step; None: `start`, everywhere.

        In the step form the potential after the step goes out as `after(node, 0)`.
        """
        if self.form == "unrolled":
            return None
        names = {"input": f"{node.name}/v", "output": f"{node.name}/v_next"}
        self.states.append(State(**names, shape=node.shape, type=type, start=start))
        return names["input"]

    def after(self, node: g.Node, t: int) -> str | None:
        """The name of the potential after step t; None where nothing reads it."""
        if self.form == "step":
            return f"{node.name}/v_next"
        return f"{node.name}/t{t}/v" if t + 1 < self.T else None

    def at(self, node: g.Node, t: int) -> str:
        """What the names of a layer's operators at step t begin with."""
        return f"{node.name}/t{t}" if self.form == "unrolled" else f"{node.name}/t"

    def finish(self, outputs: dict[str, tuple[str, tuple[int, ...]]], *, metadata: dict[str, Any]) -> onnx.ModelProto:
        """The model, checked by onnx with strict shape inference.

        outputs: by name, the tensor [T*B, ...] and its shape without that axis.
        """
        lead: tuple[int | str, ...] = (self.T, "B") if self.form == "unrolled" else ("B",)
        for name, (tensor, shape) in outputs.items():
            free = [self.T, -1] if self.form == "unrolled" else [-1]
            self.op("Reshape", [tensor, self.constant(f"{name}/shape", [*free, *shape])], f"{name}/steps", output=name)
        inputs = [info("image", ("B" if self.form == "unrolled" else "N", *self.graph.input.shape))]
        results = [info(name, (*lead, *shape)) for name, (_, shape) in outputs.items()]
        for passed, batch in [*((x, "C") for x in self.carried.values()), *((x, "B") for x in self.states)]:
            inputs.append(info(passed.input, (batch, *passed.shape), type=TYPES[passed.type]))
            results.append(info(passed.output, ("B", *passed.shape), type=TYPES[passed.type]))
        if self.form == "step":
            metadata |= {
                "carried": [asdict(passed) for passed in self.carried.values()],
                "states": [asdict(state) for state in self.states],
            }
        constants = list(self.constants.values())
        body = helper.make_graph(self.nodes, "tserve", inputs, results, constants, value_info=self.inner)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(body, opset_imports=[opset], ir_version=IR_VERSION, producer_name="tserve")
        helper.set_model_props(
            model, {key: json.dumps(value, separators=(",", ":")) for key, value in metadata.items()}
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def spikes_tensor(layer: str) -> str:
    """The tensor in a model that holds the spikes of a LIF layer: [T*B, *shape] or, in int8, channels last."""
    return f"{layer}/out"


def expose_spikes(model: onnx.ModelProto, layers: Sequence[str]) -> None:
    """Add the spikes of LIF layers to the outputs of a model, so that it can be verified."""
    known = {item.key: json.loads(item.value) for item in model.metadata_props}
    type = TensorProto.UINT8 if known["precision"] == "int8" else TensorProto.FLOAT
    type = TensorProto.FLOAT16 if known["precision"] == "fp16" else type
    outputs = (helper.make_tensor_value_info(spikes_tensor(layer), type, None) for layer in layers)
    model.graph.output.extend(outputs)


def check(graph: g.Graph, labels: Sequence[str]) -> None:
    """Raise ValueError where the Graph is no spiking classifier of images with these labels."""
    if graph.input.event:
        raise ValueError(
            f"{graph.input.name}: this student was trained on frames of events [T, B, C, H, W], and an ONNX model of it"
            " would take one image [B, C, H, W]; export it with python -m export.to_loihi"
        )
    if g.is_static(graph)[graph.output.name] or not spike_driven(graph):
        raise ValueError(
            f"{graph.output.name}: no layer on the way to the logits reads spikes, so this is not a spiking network;"
            " export a student, not a teacher"
        )
    if graph.output.shape != (len(labels),):
        raise ValueError(
            f"{graph.output.name}: the network gives logits of shape {graph.output.shape}, but there are"
            f" {len(labels)} labels; give one label for each logit"
        )


def metadata(
    graph: g.Graph, *, labels: Sequence[str], checkpoint_sha256: str, precision: str, form: Form
) -> dict[str, Any]:
    """What a reader of the model needs to know beyond its tensors; JSON types."""
    binary = g.is_binary(graph)
    return {
        "format": FORMAT,
        "T": graph.T,
        "labels": list(labels),
        "precision": precision,
        "form": form,
        "lif_layers": [node.name for node in graph.lif_layers],
        "synapses": [
            {"name": node.name, "kind": "ac" if binary[node.inputs[0]] else "mac", "sops_per_tap": sops_per_tap(node)}
            for node in spike_driven(graph)
        ],
        "checkpoint_sha256": checkpoint_sha256,
    }


def info(name: str, shape: Sequence[int | str], *, type: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """The type of one tensor; a string stands for a dimension that is free."""
    return helper.make_tensor_value_info(name, type, list(shape))
