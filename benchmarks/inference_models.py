"""What a student's exported models are held against: the usual torch run, the usual ONNX, and its ANN.

Shapes: T time steps, B images, C channels, H rows, W columns, K classes.
"""

import dataclasses
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from export import graph as g
from export.onnx_model import IR_VERSION, OPSET, info
from train.checkpoint import Checkpoint
from train.config import NetConfig


ANN_OPSET = 18


class Folded(nn.Module):
    """A student's Graph in plain torch: normalisations folded, T in the batch for all layers without memory.

    Images [B, C, H, W] in [0, 1] to logits [T, B, K]; what does not change with time is computed once. `half`: the
    weights of layers that read spikes, and what they read and give, in float16; membranes stay as they are.
    """

    def __init__(self, graph: g.Graph, *, dtype: torch.dtype = torch.float32, half: bool = False) -> None:
        super().__init__()
        self.graph, self.static, self.dtype = graph, g.is_static(graph), dtype
        last_reader = {name: node.name for node in graph for name in node.inputs}
        self.dead = {node.name: [name for name in node.inputs if last_reader[name] == node.name] for node in graph}
        for i, node in enumerate(graph.nodes):
            pair: tuple[np.ndarray, np.ndarray]
            if isinstance(node, g.Input):
                pair = node.mean[:, None, None], node.std[:, None, None]
            elif isinstance(node, g.Conv | g.Dense):
                pair = node.weight, node.bias
            else:
                continue
            low = half and not self.static[node.name]
            for letter, array in zip("ab", pair, strict=True):
                self.register_buffer(f"{letter}{i}", torch.tensor(array).to(torch.float16 if low else dtype))

    def forward(self, images: Tensor) -> Tensor:
        values: dict[str, Tensor] = {}
        for i, node in enumerate(self.graph.nodes):
            values[node.name] = self.value(i, node, [values[name] for name in node.inputs] or [images])
            for name in set(self.dead[node.name]):
                del values[name]
        logits: Tensor = values[self.graph.output.name]
        return logits.unflatten(0, (self.graph.T, -1))

    def value(self, i: int, node: g.Node, inputs: list[Tensor]) -> Tensor:
        """The value of one node: [B, ...] where it is the same at every step, else [T*B, ...]."""
        x = inputs[0]
        match node:
            case g.Input():
                return (x - self.get_buffer(f"a{i}")) / self.get_buffer(f"b{i}")
            case g.Conv():
                weight, bias = self.get_buffer(f"a{i}"), self.get_buffer(f"b{i}")
                y = F.conv2d(x.to(weight.dtype), weight, bias, node.stride, node.padding, groups=node.groups)
                return y.to(self.dtype)
            case g.Dense():
                weight, bias = self.get_buffer(f"a{i}"), self.get_buffer(f"b{i}")
                return F.linear(x.to(weight.dtype), weight, bias).to(self.dtype)
            case g.LIF():
                return torch.cat(list(self.spikes(node, x)))
            case g.AvgPool():
                return F.avg_pool2d(x, node.kernel)
            case g.MaxPool():
                return F.max_pool2d(x, node.kernel, node.stride, node.padding)
            case g.Mean():
                return x.mean((2, 3))
            case g.Flatten():
                return x.flatten(1)
            case g.Add():
                static = self.static[node.name]
                x, y = (
                    value.repeat(self.graph.T, *[1] * (value.dim() - 1)) if self.static[name] and not static else value
                    for name, value in zip(node.inputs, inputs, strict=True)
                )
                return x + y
        raise TypeError(f"{node.name}: no torch for {type(node).__name__}")

    def spikes(self, node: g.LIF, x: Tensor) -> Iterator[Tensor]:
        """The spikes of each step, in the order of `reference.lif`."""
        steps = [x] * self.graph.T if self.static[node.inputs[0]] else x.chunk(self.graph.T)
        v: Tensor | float = node.v_reset
        for current in steps:
            gap = v if node.v_reset == 0 else v - node.v_reset
            if node.decay_input:
                h = v + (current - gap) / node.tau
            else:
                h = (v if node.tau == math.inf else v - gap / node.tau) + current
            fired = h >= node.v_threshold
            yield fired.to(x.dtype)
            v = torch.where(fired, node.v_reset, h)


def naive_unroll(graph: g.Graph) -> onnx.ModelProto:
    """The network written once for every time step, the first convolution too, as tracing a loop over T gives it.

    `image` float32 [B, C, H, W] in [0, 1] to `logits` [T, B, K]. Weights are stored once.
    """
    weights: dict[str, onnx.TensorProto] = {}
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: Any, type: type = np.float32) -> str:
        weights.setdefault(name, numpy_helper.from_array(np.asarray(value, type), name))
        return name

    def op(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def lif(node: g.LIF, x: str, name: str, v: str) -> tuple[str, str]:
        """Spikes and the potential after a step."""
        reset, tau = constant(f"{node.name}.v_reset", node.v_reset), constant(f"{node.name}.tau", node.tau)
        gap = v if node.v_reset == 0 else op("Sub", [v, reset], f"{name}.gap")
        if node.decay_input:
            change = op("Div", [op("Sub", [x, gap], f"{name}.drive"), tau], f"{name}.change")
            h = op("Add", [v, change], f"{name}.h")
        else:
            leak = op("Div", [gap, tau], f"{name}.leak")
            h = op("Add", [op("Sub", [v, leak], f"{name}.kept"), x], f"{name}.h")
        fire = op("GreaterOrEqual", [h, constant(f"{node.name}.v_threshold", node.v_threshold)], f"{name}.fire")
        return op("Cast", [fire], name, to=TensorProto.FLOAT), op("Where", [fire, reset, h], f"{name}.v")

    def layer(node: g.Node, x: list[str], name: str) -> str:
        match node:
            case g.Conv() | g.Dense():
                x = [*x, constant(f"{node.name}.weight", node.weight), constant(f"{node.name}.bias", node.bias)]
                if isinstance(node, g.Dense):
                    return op("Gemm", x, name, transB=1)
                return op("Conv", x, name, strides=node.stride, pads=(*node.padding, *node.padding), group=node.groups)
            case g.AvgPool():
                return op("AveragePool", x, name, kernel_shape=node.kernel, strides=node.kernel)
            case g.MaxPool():
                pads = (*node.padding, *node.padding)
                return op("MaxPool", x, name, kernel_shape=node.kernel, strides=node.stride, pads=pads)
            case g.Mean():
                return op("ReduceMean", [*x, constant("axes", [2, 3], np.int64)], name, keepdims=0)
            case g.Flatten():
                return op("Flatten", x, name)
            case g.Add():
                return op("Add", x, name)
        raise TypeError(f"{node.name}: no ONNX for {type(node).__name__}")

    first = graph.input
    mean, std = (constant(f"image.{k}", getattr(first, k).reshape(1, -1, 1, 1)) for k in ("mean", "std"))
    image = op("Div", [op("Sub", ["image", mean], "image.centred"), std], "image.normalised")
    potentials = {node.name: constant(f"{node.name}.v_reset", node.v_reset) for node in graph.lif_layers}
    steps: list[str] = []
    for t in range(graph.T):
        values = {first.name: image}
        for node in graph.nodes[1:]:
            inputs, name = [values[source] for source in node.inputs], f"t{t}.{node.name}"
            if isinstance(node, g.LIF):
                values[node.name], potentials[node.name] = lif(node, inputs[0], name, potentials[node.name])
            else:
                values[node.name] = layer(node, inputs, name)
        steps.append(op("Unsqueeze", [values[graph.output.name], constant("axis", [0], np.int64)], f"t{t}.logits"))
    op("Concat", steps, "logits", axis=0)
    outputs = [info("logits", (graph.T, "B", *graph.output.shape))]
    body = helper.make_graph(nodes, "naive", [info("image", ("B", *first.shape))], outputs, list(weights.values()))
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(body, opset_imports=[opset], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


class Normalised(nn.Module):
    """A network behind its normalisation: images [B, C, H, W] in [0, 1] to logits."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.network = checkpoint.network()
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(checkpoint.preprocess, name))[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images - self.get_buffer("mean")) / self.get_buffer("std"))
        return logits


def ann_of(student: Checkpoint, teacher: Path) -> tuple[Checkpoint, str]:
    """The student's network with ReLU, and where its weights are from: the teacher's file if it is that network.

    Otherwise they are fresh ones, which cost the same time and know nothing.
    """
    if teacher.is_file() and same_layers((found := Checkpoint.load_teacher(teacher)).net, student.net):
        return found, "teacher"
    from train.networks import build

    torch.manual_seed(0)
    net = dataclasses.replace(student.net, spiking=False)
    return dataclasses.replace(student, net=net, weights=build(net).state_dict()), "untrained"


def same_layers(a: NetConfig, b: NetConfig) -> bool:
    """Whether two networks differ in their activations at most."""
    return all(getattr(a, key) == getattr(b, key) for key in LAYERS)


LAYERS = ("name", "pool", "width", "in_channels", "size", "num_classes", "event")


def export_ann(ann: Checkpoint, path: Path) -> None:
    """Write an ANN as torch.onnx.export does: image [B, C, H, W] in [0, 1] -> logits [B, K]."""
    network = Normalised(ann).eval()
    image = torch.zeros(2, ann.net.in_channels, ann.net.size, ann.net.size)
    with warnings.catch_warnings():  # dynamo=False is deprecated; it folds normalisations, and needs no onnxscript
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (image,),
            str(path),
            dynamo=False,
            opset_version=ANN_OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "B"}, "logits": {0: "B"}},
        )


def quantize_ann(model: Path, path: Path, images: np.ndarray) -> None:
    """Write the int8 form of an ANN as onnxruntime's documentation advises; `images` [N, C, H, W] calibrate it."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter([{"image": image[None]} for image in images])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(model, prepared, skip_symbolic_shape=True)
    q.quantize_static(
        prepared,
        path,
        Reader(),
        quant_format=q.QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm"],
        per_channel=True,
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
    )
