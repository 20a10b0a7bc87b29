"""Write a Graph as an ONNX model, node by node, so that every tensor has a name that a reader of Netron understands.

The model is unrolled over T. What does not change with time (the image, the first convolution) is computed once, on
[B, ...]; layers without memory see all steps at once, on [T*B, ...] with t the slow axis; a LIF layer splits its input
into T steps and writes its equation once per step, in the order of `reference.lif`. So weights are stored once, and
in float32 the model differs from the reference only by the rounding of convolutions and means.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export import graph as g
from export.counts import fan_map, sops_per_tap, spike_driven


FORMAT = 1
OPSET = 20
IR_VERSION = 10


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor of the model: [B, ...] where `static` (the same at every step), [T*B, ...] otherwise."""

    tensor: str
    static: bool


@dataclass(kw_only=True)
class Builder:
    """Collects the operators and constants of one model."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def op(self, kind: str, inputs: Sequence[str], name: str, *, output: str | None = None, **attributes: Any) -> str:
        """Append one operator and return its tensor, which has the operator's name unless `output` says otherwise."""
        tensor = output or name
        self.nodes.append(helper.make_node(kind, list(inputs), [tensor], name=name, **attributes))
        return tensor

    def constant(self, name: str, value: np.ndarray | float | Sequence[int]) -> str:
        """Store one constant, floats as float32 and integers as int64; what is stored under a name stays."""
        array = np.asarray(value)
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def split(self, tensor: str, name: str, parts: Sequence[str]) -> list[str]:
        """Cut a tensor [len(parts)*B, ...] into tensors [B, ...] of the given names."""
        self.nodes.append(helper.make_node("Split", [tensor], parts, name=name, axis=0, num_outputs=len(parts)))
        return list(parts)


def build_model(graph: g.Graph, *, labels: Sequence[str], checkpoint_sha256: str) -> onnx.ModelProto:
    """A checked ONNX model of the Graph in float32, unrolled over T, for any number of images B.

    Input `image` float32 [B, C, H, W] in [0, 1]; normalisation is inside. Outputs, all float32:
      logits       [T, B, K]  each step's own logits; the prediction is the argmax of their mean over T
      spike_rates  [T, B, L]  mean of the spikes of LIF layer l (metadata: lif_layers)
      taps         [T, B, M]  pairs of a nonzero input and a kernel position inside the output map, for the M
                              spike-driven synaptic layers (metadata: synapses): SOPs = taps * sops_per_tap.
                              Exact up to 2^24 = 16.8 million taps of one layer, step and image; above, float32 rounds.
    Metadata, each value JSON: format, T, labels, precision, form, lif_layers, synapses, checkpoint_sha256.

    Raises ValueError where the logits do not depend on spikes, `labels` does not fit them, or the input is events.
    """
    check(graph, labels)
    builder = Builder()
    values: dict[str, Value] = {}
    for node in graph:
        inputs = [values[name] for name in node.inputs]
        values[node.name] = emit(builder, node, inputs, T=graph.T)
    by_step = {
        "logits": (values[graph.output.name].tensor, graph.output.shape),
        "spike_rates": (spike_rates(builder, graph, values), (len(graph.lif_layers),)),
        "taps": (taps(builder, graph, values), (len(spike_driven(graph)),)),
    }
    for name, (tensor, shape) in by_step.items():
        steps = builder.constant(f"outputs/{name}/shape", [graph.T, -1, *shape])
        builder.op("Reshape", [tensor, steps], f"outputs/{name}", output=name)
    return assemble(
        builder,
        inputs=[info("image", ("B", *graph.input.shape))],
        outputs=[info(name, (graph.T, "B", *shape)) for name, (_, shape) in by_step.items()],
        inner=[
            info(value.tensor, ("B" if value.static else "T*B", *graph[name].shape)) for name, value in values.items()
        ],
        metadata=metadata(graph, labels=labels, checkpoint_sha256=checkpoint_sha256),
    )


def spikes_tensor(layer: str) -> str:
    """The tensor [T*B, *shape] in the model that holds the spikes of a LIF layer."""
    return f"{layer}/out"


def expose_spikes(model: onnx.ModelProto, layers: Sequence[str]) -> None:
    """Add the spikes of LIF layers to the outputs of a model that `build_model` made, so that it can be verified."""
    outputs = (helper.make_tensor_value_info(spikes_tensor(layer), TensorProto.FLOAT, None) for layer in layers)
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


def emit(builder: Builder, node: g.Node, inputs: list[Value], *, T: int) -> Value:
    """Append what one Graph node computes (its docstring's equation) and return its value."""
    name, output = node.name, f"{node.name}/out"
    match node:
        case g.Input():
            mean = builder.constant(f"{name}/mean", node.mean.reshape(1, -1, 1, 1))
            std = builder.constant(f"{name}/std", node.std.reshape(1, -1, 1, 1))
            centred = builder.op("Sub", ["image", mean], f"{name}/centred")
            return Value(tensor=builder.op("Div", [centred, std], name, output=output), static=True)
        case g.LIF():
            return Value(tensor=lif(builder, node, inputs[0], T=T), static=False)
        case g.Add():
            static = all(value.static for value in inputs)
            terms = [x.tensor if x.static == static else hold(builder, x.tensor, name, T=T) for x in inputs]
            return Value(tensor=builder.op("Add", terms, name, output=output), static=static)
    operands = [inputs[0].tensor]
    attributes: dict[str, Any] = {}
    match node:
        case g.Conv():
            kind = "Conv"
            attributes = {
                "kernel_shape": node.weight.shape[2:],
                "strides": node.stride,
                "pads": (*node.padding, *node.padding),
                "group": node.groups,
            }
            operands += [builder.constant(f"{name}/weight", node.weight), builder.constant(f"{name}/bias", node.bias)]
        case g.Dense():
            kind, attributes = "Gemm", {"transB": 1}
            operands += [builder.constant(f"{name}/weight", node.weight), builder.constant(f"{name}/bias", node.bias)]
        case g.AvgPool():
            kind, attributes = "AveragePool", {"kernel_shape": node.kernel, "strides": node.kernel}
        case g.MaxPool():
            kind = "MaxPool"  # ONNX, too, pads with -inf
            attributes = {
                "kernel_shape": node.kernel,
                "strides": node.stride,
                "pads": (*node.padding, *node.padding),
            }
        case g.Mean():
            kind, attributes = "ReduceMean", {"keepdims": 0}
            operands.append(builder.constant("axes/rows_columns", [2, 3]))
        case g.Flatten():
            kind, attributes = "Flatten", {"axis": 1}
        case _:
            raise TypeError(f"{name}: ONNX export does not know {type(node).__name__}")
    tensor = builder.op(kind, operands, name, output=output, **attributes)
    return Value(tensor=tensor, static=inputs[0].static)


def hold(builder: Builder, tensor: str, name: str, *, T: int) -> str:
    """[B, ...] -> [T*B, ...], the same at every step."""
    return builder.op("Concat", [tensor] * T, f"{name}/hold", axis=0)


def lif(builder: Builder, node: g.LIF, x: Value, *, T: int) -> str:
    """Append the T steps of a LIF layer and return its spikes [T*B, ...], 0.0 or 1.0.

    Every step holds the whole equation of graph.LIF in the order of `reference.lif`, so no bit differs; runtimes drop
    what a v_reset of zero makes idle.
    """
    op, name = builder.op, node.name
    v_threshold = builder.constant(f"{name}/v_threshold", float(node.v_threshold))
    v_reset = builder.constant(f"{name}/v_reset", float(node.v_reset))
    parts = [f"{name}/t{t}/current" for t in range(T)]
    currents = [x.tensor] * T if x.static else builder.split(x.tensor, f"{name}/currents", parts)
    spikes: list[str] = []
    v = v_reset
    for t, current in enumerate(currents):
        step = f"{name}/t{t}"
        h = charge(builder, node, current, v, step)
        fire = op("GreaterOrEqual", [h, v_threshold], f"{step}/fire")
        spikes.append(op("Cast", [fire], f"{step}/spikes", to=TensorProto.FLOAT))
        if t + 1 < T:
            v = op("Where", [fire, v_reset, h], f"{step}/v")
    return op("Concat", spikes, name, output=f"{name}/out", axis=0)


def charge(builder: Builder, node: g.LIF, current: str, v: str, step: str) -> str:
    """Append the potential h of one step before it fires, from the current and the potential after the step before."""
    op = builder.op
    if node.tau == math.inf:  # it does not leak
        return op("Add", [v, current], f"{step}/h")
    tau = builder.constant(f"{node.name}/tau", float(node.tau))
    gap = op("Sub", [v, f"{node.name}/v_reset"], f"{step}/gap")
    if node.decay_input:
        drive = op("Sub", [current, gap], f"{step}/drive")
        return op("Add", [v, op("Div", [drive, tau], f"{step}/change")], f"{step}/h")
    kept = op("Sub", [v, op("Div", [gap, tau], f"{step}/leak")], f"{step}/kept")
    return op("Add", [kept, current], f"{step}/h")


def spike_rates(builder: Builder, graph: g.Graph, values: dict[str, Value]) -> str:
    """Append the mean of every LIF layer's spikes, [T*B, L]; sums of spikes are exact, so one division rounds."""
    sums: list[str] = []
    for node in graph.lif_layers:
        flat = builder.op("Flatten", [values[node.name].tensor], f"{node.name}/flat", axis=1)
        sums.append(builder.op("ReduceSum", [flat, builder.constant("axes/1", [1])], f"{node.name}/spike_count"))
    neurons = builder.constant(
        "spike_rates/neurons", np.array([np.prod(node.shape) for node in graph.lif_layers], float)
    )
    return builder.op("Div", [builder.op("Concat", sums, "spike_rates/counts", axis=1), neurons], "spike_rates/mean")


def taps(builder: Builder, graph: g.Graph, values: dict[str, Value]) -> str:
    """Append the taps of every spike-driven layer, [T*B, M]: its nonzero inputs weighted with counts.fan_map."""
    op, axis = builder.op, builder.constant("axes/1", [1])
    binary = g.is_binary(graph)
    columns: list[str] = []
    for node in spike_driven(graph):
        source = node.inputs[0]
        events = values[source].tensor
        if not binary[source]:
            events = op("Abs", [op("Sign", [events], f"{node.name}/sign")], f"{node.name}/nonzero")
        if isinstance(node, g.Conv):
            fan = fan_map(node, graph[source].shape).reshape(-1, 1).astype(np.float32)
            pixels = op("ReduceSum", [events, axis], f"{node.name}/events_by_pixel", keepdims=0)
            flat = op("Flatten", [pixels], f"{node.name}/events_flat", axis=1)
            columns.append(op("MatMul", [flat, builder.constant(f"{node.name}/fan_map", fan)], f"{node.name}/taps"))
        else:
            columns.append(op("ReduceSum", [events, axis], f"{node.name}/taps", keepdims=1))
    return op("Concat", columns, "taps/by_layer", axis=1)


def metadata(graph: g.Graph, *, labels: Sequence[str], checkpoint_sha256: str) -> dict[str, Any]:
    """What a reader of the model needs to know beyond its tensors; JSON types."""
    binary = g.is_binary(graph)
    return {
        "format": FORMAT,
        "T": graph.T,
        "labels": list(labels),
        "precision": "fp32",
        "form": "unrolled",
        "lif_layers": [node.name for node in graph.lif_layers],
        "synapses": [
            {"name": node.name, "kind": "ac" if binary[node.inputs[0]] else "mac", "sops_per_tap": sops_per_tap(node)}
            for node in spike_driven(graph)
        ],
        "checkpoint_sha256": checkpoint_sha256,
    }


def info(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    """The type of one float32 tensor; a string stands for a dimension that is free."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def assemble(
    builder: Builder,
    *,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    inner: Sequence[onnx.ValueInfoProto],
    metadata: dict[str, Any],
) -> onnx.ModelProto:
    """The model of what `builder` collected, checked by onnx with strict shape inference."""
    constants = list(builder.constants.values())
    body = helper.make_graph(builder.nodes, "tserve", inputs, outputs, constants, value_info=inner)
    model = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="tserve"
    )
    helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    return model
