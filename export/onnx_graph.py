"""Write a Graph as an ONNX model in floats, node by node, so that every tensor has a name that a reader understands.

In float32 the model differs from the reference only by the rounding of convolutions and means: a LIF layer writes its
equation in the order of `reference.lif`. In float16 the synapses' weights and what they read are rounded, membranes and
all that is counted stay in float32.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto

from export import graph as g
from export.counts import fan_map, spike_driven
from export.onnx_builder import Builder, Outputs, Value, write_model
from export.onnx_model import Form, check, metadata


Precision = Literal["fp32", "fp16"]


def build_model(
    graph: g.Graph,
    *,
    labels: Sequence[str],
    checkpoint_sha256: str,
    precision: Precision = "fp32",
    form: Form = "unrolled",
) -> onnx.ModelProto:
    """A checked ONNX model of the Graph, for any number of images B >= 1. Its forms: export/onnx_model.py.

    Input `image` float32 [B, C, H, W] in [0, 1]; normalisation is inside. Outputs, all float32; the step form's have no
    axis T:
      logits       [T, B, K]  each step's own logits; the prediction is the argmax of their mean over T
      spike_rates  [T, B, L]  mean of the spikes of LIF layer l (metadata: lif_layers)
      taps         [T, B, M]  pairs of a nonzero input and a kernel position inside the output map, for the M
                              spike-driven synaptic layers (metadata: synapses): SOPs = taps * sops_per_tap.
                              Exact up to 2^24 = 16.8 million taps of one layer, step and image; above, float32 rounds.
      nonzero      [T, B, M]  input values of the same layers that are not zero; exact in the same range
    Metadata, each value JSON: format, T, labels, precision, form, lif_layers, lif_shapes, synapses, checkpoint_sha256;
    of the step form carried and states, the tensors that one step hands to the next.

    Raises ValueError where the logits do not depend on spikes, `labels` does not fit them, or the input is events.
    """
    check(graph, labels)
    about = metadata(graph, labels=labels, checkpoint_sha256=checkpoint_sha256, precision=precision, form=form)
    return write_model(graph, form, lambda builder: write(builder, half=precision == "fp16"), metadata=about)


def write(builder: Builder, *, half: bool) -> Outputs:
    """Append the whole Graph and what is counted of it."""
    graph = builder.graph
    emitter = Emitter(builder, half=half)
    values: dict[str, Value] = {}
    for node in graph:
        values[node.name] = emitter.emit(node, [values[name] for name in node.inputs])
        number = TensorProto.FLOAT16 if emitter.is_half(node.name) else TensorProto.FLOAT
        builder.describe(values[node.name], node.shape, type=number)
    layers = (len(spike_driven(graph)),)
    taps, nonzero = emitter.taps(values)
    return {
        "logits": (values[graph.output.name].tensor, graph.output.shape),
        "spike_rates": (emitter.spike_rates(values), (len(graph.lif_layers),)),
        "taps": (taps, layers),
        "nonzero": (nonzero, layers),
    }


class Emitter:
    """Writes the nodes of a Graph into a Builder."""

    def __init__(self, builder: Builder, *, half: bool) -> None:
        self.builder, self.half = builder, half
        self.graph = builder.graph
        self.static = g.is_static(builder.graph)

    def emit(self, node: g.Node, inputs: list[Value]) -> Value:
        """Append what one Graph node computes (its docstring's equation) and return its value."""
        builder, name, output = self.builder, node.name, f"{node.name}/out"
        match node:
            case g.Input():
                mean = builder.constant(f"{name}/mean", node.mean.reshape(1, -1, 1, 1).astype(np.float32))
                std = builder.constant(f"{name}/std", node.std.reshape(1, -1, 1, 1).astype(np.float32))
                centred = builder.op("Sub", ["image", mean], f"{name}/centred")
                return Value(tensor=builder.op("Div", [centred, std], name, output=output), static=True)
            case g.LIF():
                return Value(tensor=self.lif(node, inputs[0]), static=False)
            case g.Add():
                static = all(value.static for value in inputs)
                terms = [
                    value.tensor if value.static == static else builder.every_step(value, name, shape=node.shape)
                    for value in inputs
                ]
                kinds = [self.is_half(source) for source in node.inputs]
                if any(kinds) and not all(kinds):
                    terms = [
                        self.full(term, f"{name}/{i}") if kind else term
                        for i, (term, kind) in enumerate(zip(terms, kinds, strict=True))
                    ]
                return Value(tensor=builder.op("Add", terms, name, output=output), static=static)
            case g.Conv() | g.Dense():
                return Value(tensor=self.synapse(node, inputs[0].tensor), static=inputs[0].static)
        operands = [inputs[0].tensor]
        attributes: dict[str, Any] = {}
        match node:
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
        return Value(tensor=builder.op(kind, operands, name, output=output, **attributes), static=inputs[0].static)

    def synapse(self, node: g.Conv | g.Dense, x: str) -> str:
        """Append a layer with weights. Half precision is inside: what goes out is float32.

        Layers that read the image stay in float32: half of a pixel's digits would flip spikes, and it is read once.
        """
        builder, name = self.builder, node.name
        half = self.half and not self.static[node.name]
        number = np.float16 if half else np.float32
        if half and not self.is_half(node.inputs[0]):
            x = builder.op("Cast", [x], f"{name}/half", to=TensorProto.FLOAT16)
        weight = builder.constant(f"{name}/weight", node.weight.astype(number))
        operands = [x, weight, builder.constant(f"{name}/bias", node.bias.astype(number))]
        output = f"{name}/rounded" if half else f"{name}/out"
        if isinstance(node, g.Conv):
            y = builder.op(
                "Conv",
                operands,
                name,
                output=output,
                kernel_shape=node.weight.shape[2:],
                strides=node.stride,
                pads=(*node.padding, *node.padding),
                group=node.groups,
            )
        else:
            y = builder.op("Gemm", operands, name, output=output, transB=1)
        if half:
            y = builder.op("Cast", [y], f"{name}/current", output=f"{name}/out", to=TensorProto.FLOAT)
        return y

    def is_half(self, name: str) -> bool:
        """Whether a node's value is float16: spikes, and what is pooled or summed up from spikes alone."""
        node = self.graph[name]
        if not self.half or isinstance(node, g.Input | g.Conv | g.Dense):
            return False
        return isinstance(node, g.LIF) or all(self.is_half(source) for source in node.inputs)

    def full(self, x: str, name: str) -> str:
        """A float16 tensor in float32."""
        return self.builder.op("Cast", [x], f"{name}/full", to=TensorProto.FLOAT)

    def lif(self, node: g.LIF, x: Value) -> str:
        """Append the steps of a LIF layer and return its spikes [T*B, ...], 0.0 or 1.0.

        Every step holds the whole equation of graph.LIF in the order of `reference.lif`, so no bit differs; runtimes
        drop what a v_reset of zero makes idle.
        """
        builder, op, name = self.builder, self.builder.op, node.name
        v_threshold = builder.constant(f"{name}/v_threshold", float(node.v_threshold))
        v_reset = builder.constant(f"{name}/v_reset", float(node.v_reset))
        v = builder.membrane(node, start=float(node.v_reset), type="float32") or v_reset
        number = TensorProto.FLOAT16 if self.half else TensorProto.FLOAT
        spikes: list[str] = []
        for t, current in enumerate(builder.by_step(x, name, shape=node.shape)):
            step = builder.at(node, t)
            h = charge(builder, node, current, v, step)
            fire = op("GreaterOrEqual", [h, v_threshold], f"{step}/fire")
            spikes.append(op("Cast", [fire], f"{step}/spikes", to=number))
            if after := builder.after(node, t):
                v = op("Where", [fire, v_reset, h], f"{step}/reset", output=after)
        return builder.together(spikes, name, output=f"{name}/out")

    def spike_rates(self, values: dict[str, Value]) -> str:
        """Append the mean of every LIF layer's spikes, [T*B, L]; sums of spikes are exact, so one division rounds."""
        op, builder = self.builder.op, self.builder
        sums: list[str] = []
        for node in self.graph.lif_layers:
            spikes = values[node.name].tensor
            if self.half:
                spikes = self.full(spikes, node.name)
            flat = op("Flatten", [spikes], f"{node.name}/flat", axis=1)
            sums.append(op("ReduceSum", [flat, builder.constant("axes/1", [1])], f"{node.name}/spike_count"))
        sizes = np.array([np.prod(node.shape) for node in self.graph.lif_layers], np.float32)
        counts = op("Concat", sums, "spike_rates/counts", axis=1)
        return op("Div", [counts, builder.constant("spike_rates/neurons", sizes)], "spike_rates/mean")

    def taps(self, values: dict[str, Value]) -> tuple[str, str]:
        """Append the taps and the nonzero inputs of every spike-driven layer, two tensors [T*B, M].

        Events are added over channels; then a product weighs every pixel with counts.fan_map, and with 1.
        """
        op, builder = self.builder.op, self.builder
        axis = builder.constant("axes/1", [1])
        binary = g.is_binary(self.graph)
        parts: list[str] = []
        places: dict[str, list[int]] = {"taps": [], "nonzero": []}  # among the columns of all parts
        width = 0
        for node in spike_driven(self.graph):
            source = node.inputs[0]
            events = values[source].tensor
            if not binary[source]:
                events = op("Abs", [op("Sign", [events], f"{node.name}/sign")], f"{node.name}/nonzero")
            if self.is_half(source):
                events = self.full(events, f"{node.name}/events")
            if isinstance(node, g.Conv):
                fan = fan_map(node, self.graph[source].shape).reshape(-1, 1).astype(np.float32)
                weights = builder.constant(f"{node.name}/fan_map", np.hstack([fan, np.ones_like(fan)]))
                pixels = op("ReduceSum", [events, axis], f"{node.name}/events_by_pixel", keepdims=0)
                flat = op("Flatten", [pixels], f"{node.name}/events_flat", axis=1)
                parts.append(op("MatMul", [flat, weights], f"{node.name}/counted"))
                columns = (width, width + 1)
            else:  # every nonzero input is one tap
                parts.append(op("ReduceSum", [events, axis], f"{node.name}/counted", keepdims=1))
                columns = (width, width)
            width = columns[-1] + 1
            for order, column in zip(places.values(), columns, strict=True):
                order.append(column)
        counted = op("Concat", parts, "taps/counted", axis=1)
        taps, nonzero = (
            op("Gather", [counted, builder.constant(f"{name}/order", order)], f"{name}/by_layer", axis=1)
            for name, order in places.items()
        )
        return taps, nonzero


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
