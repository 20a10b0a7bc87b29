"""From a trained student to its Graph: torch.fx over SpikingJelly's modules, batch normalisation folded in float64."""

import dataclasses
import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, fx, nn

from export import graph as g
from train.checkpoint import Checkpoint, Preprocess
from train.networks import Network
from train.networks.zoo import PREFIX
from train.neurons import IF, LIF, PLIF, Add


NEURONS = (neuron.LIFNode, LIF, neuron.ParametricLIFNode, PLIF, neuron.IFNode, IF)


class UnsupportedLayer(ValueError):
    """A layer that a Graph cannot say; the message names it by its path in the student."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BatchNorm(g.Node):
    """y = x * scale + shift per channel; exists only until it is folded into the convolution before it."""

    scale: np.ndarray
    shift: np.ndarray


def lower(checkpoint: Checkpoint) -> g.Graph:
    """The Graph of a student, float64 arrays. Raises UnsupportedLayer for what a Graph cannot say."""
    return lower_network(checkpoint.network(), checkpoint.preprocess)


def lower_network(network: Network, preprocess: Preprocess) -> g.Graph:
    """The Graph of a network in eval mode whose images go through `preprocess`."""
    config = network.config
    if not config.spiking:
        raise UnsupportedLayer("this network is a teacher (ReLU); only spiking students are exported")
    if config.name.startswith(PREFIX):
        raise UnsupportedLayer(
            f"{config.name}: models of SpikingJelly's zoo are trained and evaluated, not exported; take a network "
            "without sj: in its name"
        )
    nodes: list[g.Node] = [
        g.Input(
            name="image",
            inputs=(),
            shape=(config.in_channels, config.size, config.size),
            mean=np.asarray(preprocess.mean, np.float64),
            std=np.asarray(preprocess.std, np.float64),
            event=config.event,
        )
    ]
    for part in ("stem", "body"):
        nodes += trace(network.get_submodule(part), part, nodes[-1])
    return fold_batch_norm(g.Graph(nodes=tuple(nodes), T=config.T))


class Tracer(fx.Tracer):
    """Stops at every module that is one node; walks through containers and blocks."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        holds_others = any(True for _ in m.children()) and not isinstance(m, neuron.BaseNode)  # a surrogate's child
        return bool(m._parameters) or not holds_others


def trace(module: nn.Module, prefix: str, source: g.Node) -> list[g.Node]:
    """The nodes of one part of the student, which reads `source`; names are paths from the student."""
    values: dict[fx.Node, g.Node] = {}
    nodes: list[g.Node] = []
    for item in Tracer().trace(module).nodes:
        if item.op == "placeholder":
            values[item] = source
            continue
        if item.op == "output":
            continue
        inputs = [values[argument] for argument in item.all_input_nodes]
        if item.op == "call_module":
            path = f"{prefix}.{item.target}"
            made = convert(module.get_submodule(str(item.target)), path, inputs)
        elif item.op == "call_function" and item.target in (operator.add, torch.add) and not item.kwargs:
            made = add(f"{prefix}.{item.name}", inputs)
        else:
            raise UnsupportedLayer(f"{prefix}.{item.name}: the operation {item.target} has no Graph node")
        values[item] = made
        if made not in inputs:
            nodes.append(made)
    return nodes


def convert(module: nn.Module, path: str, inputs: list[g.Node]) -> g.Node:
    """One module to one node (or, where it changes nothing, the node before it)."""
    x = inputs[0]
    base: dict[str, Any] = {"name": path, "inputs": (x.name,)}
    match module:
        case nn.Identity() | nn.Dropout():
            return x
        case nn.Conv2d():
            return conv(module, path, x)
        case nn.Linear():
            weight = array(module.weight)
            bias = array(module.bias) if module.bias is not None else np.zeros(len(weight))
            return g.Dense(**base, shape=(len(weight),), weight=weight, bias=bias)
        case nn.BatchNorm2d():
            if module.running_mean is None or module.running_var is None:
                raise UnsupportedLayer(f"{path}: batch normalisation without running statistics cannot be folded")
            gamma = array(module.weight) if module.affine else np.ones(module.num_features)
            beta = array(module.bias) if module.affine else np.zeros(module.num_features)
            scale = gamma / np.sqrt(array(module.running_var) + module.eps)
            return BatchNorm(**base, shape=x.shape, scale=scale, shift=beta - array(module.running_mean) * scale)
        case neuron.BaseNode():
            return lif(module, path, x)
        case nn.ReLU():
            raise UnsupportedLayer(
                f"{path}: ReLU has no Graph node; take a network all of whose activations are neurons"
            )
        case nn.AvgPool2d():
            return avg_pool(module, path, x)
        case nn.MaxPool2d():
            return max_pool(module, path, x)
        case nn.AdaptiveAvgPool2d():
            if tuple(np.broadcast_to(np.asarray(module.output_size), 2)) != (1, 1):
                raise UnsupportedLayer(f"{path}: adaptive pooling to {module.output_size}; only (1, 1) has a node")
            return g.Mean(**base, shape=x.shape[:1])
        case nn.Flatten() | layer.Flatten():
            return g.Flatten(**base, shape=(int(np.prod(x.shape)),))
        case Add():
            return add(path, inputs)
    raise UnsupportedLayer(f"{path}: {type(module).__name__} has no Graph node")


def conv(module: nn.Conv2d, path: str, x: g.Node) -> g.Conv:
    """A convolution with zero padding."""
    if module.padding_mode != "zeros" or isinstance(module.padding, str) or set(module.dilation) != {1}:
        raise UnsupportedLayer(f"{path}: only zero padding given as numbers and dilation 1 have a node")
    weight = array(module.weight)
    stride, padding = (module.stride[0], module.stride[1]), (int(module.padding[0]), int(module.padding[1]))
    size = [(x.shape[1 + i] + 2 * padding[i] - weight.shape[2 + i]) // stride[i] + 1 for i in range(2)]
    return g.Conv(
        name=path,
        inputs=(x.name,),
        shape=(len(weight), *size),
        weight=weight,
        bias=array(module.bias) if module.bias is not None else np.zeros(len(weight)),
        stride=stride,
        padding=padding,
        groups=module.groups,
    )


def lif(module: neuron.BaseNode, path: str, x: g.Node) -> g.LIF:
    """A layer of LIF or IF neurons with hard reset, or of PLIF neurons with the time constant that it learned.

    Other neurons, subclasses among them, compute something else and are refused.
    """
    if type(module) not in NEURONS:
        raise UnsupportedLayer(
            f"{path}: {type(module).__name__} has no Graph node; train with LIFNode, ParametricLIFNode or IFNode"
        )
    if module.v_reset is None:
        raise UnsupportedLayer(f"{path}: soft reset has no Graph node; train with --net.reset hard")
    return g.LIF(
        name=path,
        inputs=(x.name,),
        shape=x.shape,
        tau=time_constant(module, path),
        v_threshold=float(module.v_threshold),
        v_reset=float(module.v_reset),
        decay_input=bool(getattr(module, "decay_input", False)),
    )


def time_constant(module: neuron.BaseNode, path: str) -> float:
    """tau in steps: of PLIF what it learned, of IF inf."""
    if isinstance(module, neuron.IFNode):
        return math.inf
    if not isinstance(module, neuron.ParametricLIFNode):
        return float(module.tau)
    if module.w.numel() != 1:
        raise UnsupportedLayer(
            f"{path}: PLIF with {module.w.numel()} time constants has no Graph node, a layer has one tau; "
            "train with --net.neuron plif, which learns one for each layer, or with --net.neuron lif"
        )
    return 1 + math.exp(-module.w.item())  # 1 / sigmoid(w)


def avg_pool(module: nn.AvgPool2d, path: str, x: g.Node) -> g.AvgPool:
    """The mean over windows that touch but do not overlap."""
    kernel, stride, padding = (pair(value) for value in (module.kernel_size, module.stride, module.padding))
    if stride != kernel or padding != (0, 0) or module.ceil_mode or module.divisor_override is not None:
        raise UnsupportedLayer(
            f"{path}: average pooling needs stride = kernel, no padding, no ceil_mode, no divisor_override"
        )
    shape = (x.shape[0], x.shape[1] // kernel[0], x.shape[2] // kernel[1])
    return g.AvgPool(name=path, inputs=(x.name,), shape=shape, kernel=kernel)


def max_pool(module: nn.MaxPool2d, path: str, x: g.Node) -> g.MaxPool:
    """The maximum over windows that may overlap and reach over the border."""
    if pair(module.dilation) != (1, 1) or module.ceil_mode or module.return_indices:
        raise UnsupportedLayer(f"{path}: maximum pooling needs no dilation, no ceil_mode, no return_indices")
    kernel, stride, padding = (pair(value) for value in (module.kernel_size, module.stride, module.padding))
    size = [(x.shape[1 + i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(2)]
    return g.MaxPool(
        name=path, inputs=(x.name,), shape=(x.shape[0], *size), kernel=kernel, stride=stride, padding=padding
    )


def pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) of what torch takes as one number for both or as two."""
    rows, columns = np.broadcast_to(np.asarray(value), 2).tolist()
    return rows, columns


def add(path: str, inputs: list[g.Node]) -> g.Add:
    """The sum of two values of one shape."""
    if len(inputs) != 2 or inputs[0].shape != inputs[1].shape:
        raise UnsupportedLayer(f"{path}: a sum needs two values of one shape, got {[i.shape for i in inputs]}")
    return g.Add(name=path, inputs=(inputs[0].name, inputs[1].name), shape=inputs[0].shape)


def fold_batch_norm(graph: g.Graph) -> g.Graph:
    """Put every batch normalisation into the convolution before it: weight * scale, bias * scale + shift."""
    folded: dict[str, g.Conv] = {}
    renamed: dict[str, str] = {}
    for node in graph:
        if not isinstance(node, BatchNorm):
            continue
        source = graph[node.inputs[0]]
        if not isinstance(source, g.Conv) or graph.readers(source.name) != (node,):
            raise UnsupportedLayer(
                f"{node.name}: batch normalisation must follow a convolution that nothing else reads"
            )
        folded[source.name] = dataclasses.replace(
            source,
            weight=source.weight * node.scale[:, None, None, None],
            bias=source.bias * node.scale + node.shift,
        )
        renamed[node.name] = source.name
    return g.Graph(
        nodes=tuple(rewire(folded.get(n.name, n), renamed) for n in graph if n.name not in renamed), T=graph.T
    )


def rewire(node: g.Node, renamed: Mapping[str, str]) -> g.Node:
    """The node reading from the new names."""
    return dataclasses.replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))


def array(tensor: Tensor) -> np.ndarray:
    """A tensor's values in float64."""
    return tensor.detach().cpu().double().numpy()
