"""A Graph in NIR, the neuromorphic intermediate representation (Pedersen et al. 2024, Nature Communications 15:8122).

NIR's neurons are differential equations over seconds; the Graph's go in steps. A step is DT seconds, and
MEANING, which is written into every file, says how an equation becomes the step that it stands for.
docs/nir.md has the table of nodes, what is refused and what simulators make of the files.
"""

import itertools
import json
import math
from collections.abc import Sequence

import nir
import numpy as np

from export import graph as g
from export.lower import UnsupportedLayer


FORMAT = 1
DT = 1e-4
"""Seconds of one step: what SpikingJelly's importer expects unless told otherwise, and snnTorch's always."""

MEANING = {
    "step": "One of T steps is dt seconds of forward Euler: h = v + (dt / tau) * ((v_leak - v) + r * x) for LIF, "
    "h = v + dt * r * x for IF. Then z = 1 if h >= v_threshold else 0, and v = v_reset where z = 1, else h. "
    "v = v_reset before the first step.",
    "spikes": "A spike is the number 1 (not 1 / dt). Every node reads the values of the same step; "
    "a node with several incoming edges reads their sum.",
    "decision": "The class is the argmax of the mean of output over the T steps.",
}
IMAGE = "Pixels in [0, 1], the same image at every step; node image subtracts mean and divides by std."
EVENTS = "Counts of events / 255, another frame at every step; node image subtracts mean and divides by std."


def build(graph: g.Graph, *, labels: Sequence[str], checkpoint_sha256: str) -> nir.NIRGraph:
    """The NIR graph of a student, in float64.

    Nodes keep their names; `input` and `output` are added. Raises UnsupportedLayer for what NIR cannot say.
    """
    if graph.output.shape != (len(labels),):
        raise ValueError(f"the Graph ends in logits of shape {graph.output.shape}, but there are {len(labels)} labels")
    nodes: dict[str, nir.NIRNode] = {"input": nir.Input({"input": np.array(graph.input.shape)})}
    edges: list[tuple[str, str]] = []
    ends: dict[str, tuple[str, ...]] = {}  # the NIR nodes whose sum is the value of a Graph's node
    for node in graph:
        ends[node.name] = tuple(itertools.chain.from_iterable(ends[name] for name in node.inputs)) or ("input",)
        for name, part in convert(graph, node).items():
            assert name not in nodes, f"two nodes are called {name}"
            nodes[name] = part
            edges += [(source, name) for source in ends[node.name]]
            ends[node.name] = (name,)
    nodes["output"] = nir.Output({"output": np.array(graph.output.shape)})
    edges += [(source, "output") for source in ends[graph.output.name]]
    return nir.NIRGraph(nodes, edges, metadata=metadata(graph, labels, checkpoint_sha256))


def metadata(graph: g.Graph, labels: Sequence[str], checkpoint_sha256: str) -> dict[str, str | int | float]:
    """What a file says about itself: numbers, sentences, and lists as JSON (NIR keeps no lists of strings)."""
    return {
        "format": FORMAT,
        "T": graph.T,
        "dt": DT,
        "input": EVENTS if graph.input.event else IMAGE,
        "preprocess": json.dumps({"mean": graph.input.mean.tolist(), "std": graph.input.std.tolist()}),
        "labels": json.dumps(list(labels)),
        "lif_layers": json.dumps([lif.name for lif in graph.lif_layers]),
        "checkpoint_sha256": checkpoint_sha256,
        **MEANING,
    }


def convert(graph: g.Graph, node: g.Node) -> dict[str, nir.NIRNode]:
    """The NIR nodes, one after the other, of a Graph's node; none where edges say it all."""
    name = node.name
    match node:
        case g.Input():
            return {name: normalisation(node)}
        case g.Conv():
            return {name: convolution(node, graph[node.inputs[0]].shape)}
        case g.Dense():
            return {name: nir.Affine(node.weight, node.bias)}
        case g.LIF():
            return {name: neuron(node)}
        case g.AvgPool():
            return {name: average(node.kernel)}
        case g.Mean():
            channels, *side = graph[node.inputs[0]].shape
            return {name: average(side), f"{name}.flatten": flatten((channels, 1, 1))}
        case g.Flatten():
            shape = graph[node.inputs[0]].shape
            return {name: flatten(shape)} if len(shape) > 1 else {}
        case g.Add():
            return addition(graph, node)
        case g.MaxPool():
            raise UnsupportedLayer(
                f"{name}: NIR has no max pooling; train a network without it (vgg11 and vgg16: --net.pool avg), or "
                "export to ONNX with python -m export.to_onnx"
            )
    raise UnsupportedLayer(
        f"{name}: {type(node).__name__} has no NIR node; export to ONNX with python -m export.to_onnx"
    )


def normalisation(node: g.Input) -> nir.Conv2d:
    """(x - mean) / std as a 1x1 convolution: exact at the border too, and every importer knows it.

    Folded into the first convolution it would not be exact: that one pads the normalised image with zeros, which are
    pixels of the value mean. nir.Scale is unknown to the importers of SpikingJelly, norse and snnTorch.
    """
    weight = np.diag(1 / node.std)[:, :, None, None]
    return square_conv2d(node.shape, weight, -node.mean / node.std, stride=(1, 1), padding=(0, 0))


def convolution(node: g.Conv, source: tuple[int, ...]) -> nir.Conv2d:
    """A convolution; groups become zeros in the weights of an ungrouped one, which computes the same numbers."""
    if node.weight.shape[2] != node.weight.shape[3]:
        raise UnsupportedLayer(
            f"{node.name}: the kernel is {node.weight.shape[2]}x{node.weight.shape[3]}, and NIR's shapes hold for "
            "square kernels only; export to ONNX with python -m export.to_onnx"
        )
    weight = ungrouped(node.weight, node.groups)
    return square_conv2d(source, weight, node.bias, stride=node.stride, padding=node.padding)


def ungrouped(weight: np.ndarray, groups: int) -> np.ndarray:
    """The weights [C_out, C_in, kH, kW] of an equal convolution without groups.

    nir 1.0.8 compares a convolution's weight.shape[1] with the channels it reads, and so reads no file with groups.
    """
    c_out, c_in, kh, kw = weight.shape
    full = np.zeros((groups, c_out // groups, groups, c_in, kh, kw))
    for i, part in enumerate(weight.reshape(groups, c_out // groups, c_in, kh, kw)):
        full[i, :, i] = part
    return full.reshape(c_out, groups * c_in, kh, kw)


def square_conv2d(
    source: tuple[int, ...], weight: np.ndarray, bias: np.ndarray, *, stride: tuple[int, int], padding: tuple[int, int]
) -> nir.Conv2d:
    """A convolution that reads a map of shape `source`."""
    return nir.Conv2d(
        input_shape=source[1:],
        weight=weight,
        stride=np.array(stride),
        padding=np.array(padding),
        dilation=np.array((1, 1)),
        groups=1,
        bias=bias,
    )


def neuron(node: g.LIF) -> nir.LIF | nir.IF:
    """nir.LIF, or nir.IF for tau = inf; the discrete parameters stand in the node's metadata.

    One Euler step of tau dv/dt = (v_leak - v) + r x over DT is the Graph's equation for tau = node.tau * DT,
    v_leak = v_reset, and r = 1 (decay_input) or r = node.tau; that of dv/dt = r x is v + x for r = 1 / DT.
    """
    values = {"v_threshold": node.v_threshold, "v_reset": node.v_reset}
    if node.tau == math.inf:
        return nir.IF(**full(node.shape, r=1 / DT, **values), metadata={"neuron": "IF"})
    return nir.LIF(
        **full(
            node.shape,
            tau=seconds(node.tau),
            r=1.0 if node.decay_input else node.tau,
            v_leak=node.v_reset,
            **values,
        ),
        metadata={"neuron": "LIF", "tau_in_steps": node.tau, "decay_input": node.decay_input},
    )


def full(shape: tuple[int, ...], **values: float) -> dict[str, np.ndarray]:
    """One array of this shape for each value; NIR has a parameter for every neuron."""
    return {name: np.full(shape, value, np.float64) for name, value in values.items()}


def seconds(tau: float) -> float:
    """A time constant of `tau` steps in seconds: the number next to tau * DT that divided by DT gives tau back.

    A few tau have none; theirs comes back as the float beside it.
    """
    near = tau * DT
    exact = [t for t in (near, math.nextafter(near, 0), math.nextafter(near, 1)) if t / DT == tau]
    return exact[0] if exact else near


def average(kernel: Sequence[int]) -> nir.AvgPool2d:
    """The mean over windows that touch but do not overlap."""
    return nir.AvgPool2d(kernel_size=np.array(kernel), stride=np.array(kernel), padding=np.array((0, 0)))


def flatten(shape: tuple[int, ...]) -> nir.Flatten:
    """All axes of one image become one; NIR counts axes without T and B."""
    return nir.Flatten({"input": np.array(shape)}, start_dim=0, end_dim=-1)


def addition(graph: g.Graph, node: g.Add) -> dict[str, nir.NIRNode]:
    """Nothing where one node reads the sum: it takes both edges, and NIR sums what a node reads.

    A sum that several nodes, another sum or the output read is kept in a node that changes nothing: an average over
    1x1 windows, which importers know. Without it the edges of a SEW-ResNet would grow with the square of its depth.
    """
    readers = graph.readers(node.name)
    if len(readers) == 1 and not isinstance(readers[0], g.Add):
        return {}
    if len(node.shape) == 1:
        raise UnsupportedLayer(
            f"{node.name}: NIR has no node that keeps a sum of features for {len(readers)} readers; "
            "export to ONNX with python -m export.to_onnx"
        )
    return {node.name: average((1, 1))}
