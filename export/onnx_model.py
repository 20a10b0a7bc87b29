"""What every exported ONNX model has in common: what it says about itself, its two forms.

unrolled: all T steps in one run, image -> logits [T, B, K]. What does not change with time is computed once, on
    [B, ...]; layers without memory see all steps at once, on [T*B, ...] with t the slow axis; neurons are written once
    per step. So weights are stored once.
step: one step, for B = C + N images: C that go on and N new ones, in this order. The image is read of the new ones
    only; what was computed from it is carried from step to step; every membrane comes in and goes out. New images
    may join those that are under way, and those that are done are left out of the next step.

Operators are collected in export/onnx_builder.py.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal

import onnx
from onnx import TensorProto, helper

from export import graph as g
from export.counts import sops_per_tap, spike_driven


FORMAT = 1
OPSET = 20
IR_VERSION = 10

Form = Literal["unrolled", "step"]


def spikes_tensor(layer: str) -> str:
    """The tensor in a model that holds the spikes of a LIF layer: [T*B, *shape] or, in int8, channels last."""
    return f"{layer}/out"


def expose_spikes(model: onnx.ModelProto, layers: Sequence[str]) -> None:
    """Add the spikes of LIF layers to the outputs of a model, so that it can be verified."""
    known = {item.key: json.loads(item.value) for item in model.metadata_props}
    type = TensorProto.UINT8 if known["precision"] == "int8" else TensorProto.FLOAT
    type = TensorProto.FLOAT16 if known["precision"] == "fp16" else type
    tensors = [spikes_tensor(layer) for layer in layers]
    model.graph.output.extend(helper.make_tensor_value_info(tensor, type, None) for tensor in tensors)
    for node in model.graph.node:
        for branch in branches_of(node):
            own = (f"{branch.name}/{tensor}" for tensor in tensors)
            branch.output.extend(helper.make_tensor_value_info(tensor, type, None) for tensor in own)
        if branches_of(node):
            node.output.extend(tensors)


def computed(model: onnx.ModelProto) -> set[str]:
    """The tensors that a model's operators give at every run, those of both branches by their plain names."""
    found = {tensor for node in model.graph.node for tensor in node.output}
    for node in model.graph.node:
        inside = [
            {tensor.removeprefix(f"{branch.name}/") for inner in branch.node for tensor in inner.output}
            for branch in branches_of(node)
        ]
        found |= set.intersection(*inside) if inside else set()
    return found


def branches_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs inside an operator."""
    return [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]


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
        "lif_shapes": [list(node.shape) for node in graph.lif_layers],
        "synapses": [
            {"name": node.name, "kind": "ac" if binary[node.inputs[0]] else "mac", "sops_per_tap": sops_per_tap(node)}
            for node in spike_driven(graph)
        ],
        "checkpoint_sha256": checkpoint_sha256,
    }


def info(name: str, shape: Sequence[int | str], *, type: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """The type of one tensor; a string stands for a dimension that is free."""
    return helper.make_tensor_value_info(name, type, list(shape))
