"""From a Graph to its integer twin: pooling folded into the next weights, one scale a layer, chosen on images.

A layer's drive is multiplied by a scale S and rounded: weight = round(S w) in int8, bias = round(S b), threshold =
round(S theta). Spikes are 0 or 1 whatever S is, so every layer's scale is free within the chip's ranges; the first
layer, whose input is graded, has S = (scale of the weights) * (scale of the input).
The membrane is kept as V = tau v where the input decays (so V decays by 1/tau and gains the plain input), hence
theta = tau * v_threshold there and v_threshold otherwise; the chip's neuron has no input decay.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from export import graph as g
from export import integer, reference
from export.fold import CannotFold, fold_pooling
from hardware.net import ConvLayer, DenseLayer, Limits, Neuron, accumulator_bound


# Fractions of the largest possible scale that are tried, a quarter of an octave apart.
STEPS = tuple(2 ** (-k / 4) for k in range(9))
# Integer values of the largest pixel that are tried: a finer input leaves fewer bits for the first layer's weights.
PIXEL_LEVELS = (127, 96, 64, 48, 32, 24, 16)


class NotForLoihi(ValueError):
    """A student that the chip or the netx format cannot express; the message names the layer and what to do."""


@dataclass(frozen=True, kw_only=True)
class Scales:
    """The numbers that turn a Graph into its integer twin; a .net file carries them."""

    input: float
    """Integer steps of one unit of the normalised image."""
    layers: dict[str, float] = field(default_factory=dict)
    """Synapse layer by name -> integer steps of one unit of its weights."""

    def of(self, graph: g.Graph, synapse: g.Node) -> float:
        """Integer steps of one unit of the layer's drive (weight times input)."""
        return self.layers[synapse.name] * (self.input if synapse.inputs == (graph.input.name,) else 1.0)


def prepare(graph: g.Graph) -> g.Graph:
    """The Graph as a chain of synapse, LIF, ..., synapse with pooling folded away.

    Raises NotForLoihi, naming the layer, for anything else.
    """
    for node in graph:
        if isinstance(node, g.Add):
            raise NotForLoihi(
                f"{node.name}: a sequential .net has no addition of two branches; "
                "train vgg_small, vgg11 or vgg16, or export this student to ONNX"
            )
        if isinstance(node, g.MaxPool):
            raise NotForLoihi(f"{node.name}: netx has no max pooling; train with average pooling or strides")
        if isinstance(node, g.LIF) and node.v_reset != 0:
            raise NotForLoihi(
                f"{node.name}: the chip resets to 0, v_reset is {node.v_reset}; train with --net.v_reset 0"
            )
        if isinstance(node, g.LIF) and not isinstance(graph[node.inputs[0]], g.Conv | g.Dense):
            raise NotForLoihi(f"{node.name}: a neuron must read a convolution or dense layer, not {node.inputs[0]}")
    try:
        graph = fold_pooling(graph)
    except CannotFold as problem:
        raise NotForLoihi(f"{problem}; or export this student to ONNX") from problem
    for node in graph.synapses[:-1]:
        if not any(isinstance(reader, g.LIF) for reader in graph.readers(node.name)):
            raise NotForLoihi(f"{node.name}: every layer but the last must be followed by a LIF")
    if graph.nodes[1] is not graph.synapses[0]:
        raise NotForLoihi(f"{graph.nodes[1].name}: the first layer must be a convolution of the image")
    if not isinstance(graph.output, g.Dense):
        raise NotForLoihi(f"{graph.output.name}: the last layer must be dense (the classifier)")
    return graph


def rebuild(graph: g.Graph, scales: Scales) -> g.Graph:
    """The integer twin of a prepared Graph under given scales."""
    return g.Graph(nodes=tuple(convert(node, graph, scales) for node in graph), T=graph.T)


def convert(node: g.Node, graph: g.Graph, scales: Scales) -> g.Node:
    """One node of the twin."""
    base: dict[str, Any] = {"name": node.name, "inputs": node.inputs, "shape": node.shape}
    match node:
        case g.Input():
            return integer.QuantizedInput(**base, mean=node.mean, std=node.std, scale=scales.input)
        case g.Conv() | g.Dense():
            weight = np.rint(node.weight * scales.layers[node.name])
            weight = np.clip(weight, -integer.WEIGHT_LIMIT, integer.WEIGHT_LIMIT).astype(np.int64)
            bias = np.rint(node.bias * scales.of(graph, node)).astype(np.int64)
            return dataclasses.replace(node, weight=weight, bias=bias)
        case g.LIF():
            threshold = round(theta(node) * scales.of(graph, graph[node.inputs[0]]))
            return integer.IntegerLIF(**base, v_decay=round(2**integer.DECAY_BITS / node.tau), threshold=threshold)
    return node


def theta(node: g.LIF) -> float:
    """The threshold of the membrane that Loihi keeps."""
    return node.v_threshold * (node.tau if node.decay_input else 1.0)


def quantize(graph: g.Graph, images: np.ndarray, limits: Limits) -> tuple[g.Graph, Scales]:
    """The integer twin of a Graph and its scales, chosen layer by layer on calibration images [B, C, H, W].

    Of the scales that the ranges allow, each layer gets the one whose spikes (logits, at the end) differ least from
    the float network's, reading the spikes that the integer network itself gives. Raises NotForLoihi for what the
    chip cannot express.
    """
    graph = prepare(graph)
    truth = reference.run(graph, images)
    scales, x = Scales(input=1.0), np.zeros(0)
    for segment in segments(graph):
        synapse = next(node for node in segment if isinstance(node, g.Conv | g.Dense))
        is_first = synapse is graph.synapses[0]
        best: tuple[float, Scales, np.ndarray] | None = None
        for option in options(graph, synapse, scales, limits):
            nodes = [convert(node, graph, option) for node in segment]
            if not fits(nodes, graph, option, limits):
                continue
            y = integer.quantize_images(convert(graph.input, graph, option), images)[None] if is_first else x
            for node in nodes:
                y = integer.step(node, y, graph.T)
            wanted, unit = truth[segment[-1].name], 1.0 if isinstance(segment[-1], g.LIF) else option.of(graph, synapse)
            distance = float(np.abs(y / unit - wanted).mean())
            if best is None or distance < best[0]:
                best = (distance, option, y)
        if best is None:
            raise NotForLoihi(
                f"{synapse.name}: no scale keeps its weights, bias, threshold and sums within the chip's ranges"
            )
        _, scales, x = best
    return rebuild(graph, scales), scales


def segments(graph: g.Graph) -> Iterator[list[g.Node]]:
    """The chain after the input in parts that each end in a LIF, and the last with the logits."""
    part: list[g.Node] = []
    for node in graph.nodes[1:]:
        part.append(node)
        if isinstance(node, g.LIF) or node is graph.output:
            yield part
            part = []


def options(graph: g.Graph, synapse: g.Conv | g.Dense, scales: Scales, limits: Limits) -> Iterator[Scales]:
    """Scales to try for one layer, the layers before it as they are; its bias and threshold are within the limits."""
    largest_weight, largest_bias = np.abs(synapse.weight).max(), np.abs(synapse.bias).max()
    if largest_weight == 0:
        raise NotForLoihi(f"{synapse.name}: every weight is zero; the layer does nothing (train longer)")
    neurons = [node for node in graph.readers(synapse.name) if isinstance(node, g.LIF)]
    # A layer before a LIF may clip its few largest weights; the logits keep theirs.
    top = integer.WEIGHT_LIMIT / largest_weight * (2.0 if neurons else 1.0)
    is_first = synapse.inputs == (graph.input.name,)
    for level in PIXEL_LEVELS if is_first else (0,):
        pixel_scale = level / pixel_range(graph.input).max() if is_first else scales.input
        gain = pixel_scale if is_first else 1.0
        ceilings = [top, limits.bias / gain / max(largest_bias, 1e-12)]
        ceilings += [limits.threshold / gain / theta(node) for node in neurons]
        for fraction in STEPS:
            layers = {**scales.layers, synapse.name: float(min(ceilings) * fraction)}
            yield Scales(input=float(pixel_scale), layers=layers)


def pixel_range(node: g.Input) -> np.ndarray:
    """The largest |normalised pixel| of each channel, [C]."""
    return np.maximum(np.abs((0 - node.mean) / node.std), np.abs((1 - node.mean) / node.std))


def fits(nodes: list[g.Node], graph: g.Graph, scales: Scales, limits: Limits) -> bool:
    """Whether one segment of the twin stays within the chip's ranges for every possible image."""
    synapse = next(node for node in nodes if isinstance(node, g.Conv | g.Dense))
    lo, hi = np.zeros((), np.int64), np.ones((), np.int64)
    if synapse.inputs == (graph.input.name,):
        lo, hi = (
            integer.quantize_images(convert(graph.input, graph, scales), corner)[0, :, 0, 0]
            for corner in corners(graph)
        )
    # The last layer's membrane sums the logits of all steps.
    steps = graph.T if synapse.name == graph.output.name else 1
    neurons = [node for node in nodes if isinstance(node, integer.IntegerLIF)]
    largest = accumulator_bound(netx_layer(synapse, READOUT), lo, hi) + int(np.abs(synapse.bias).max())
    return (
        largest * steps <= integer.ACCUMULATOR_LIMIT
        and bool(synapse.weight.any())
        and int(np.abs(synapse.bias).max()) <= limits.bias
        and all(0 < node.threshold <= limits.threshold for node in neurons)
    )


def corners(graph: g.Graph) -> tuple[np.ndarray, np.ndarray]:
    """An all-black and an all-white image [1, C, H, W]."""
    return np.zeros((1, *graph.input.shape)), np.ones((1, *graph.input.shape))


# The last layer's neurons only add up: v / 64 is the sum of the logits so far, and the threshold is out of reach.
READOUT = Neuron(vThMant=integer.ACCUMULATOR_LIMIT, vDecay=0)


def netx_layer(node: g.Conv | g.Dense, neuron: Neuron) -> ConvLayer | DenseLayer:
    """A synapse of the twin and its neurons as one layer of a .net file."""
    if isinstance(node, g.Dense):
        return DenseLayer(name=node.name, shape=node.shape, weight=node.weight, bias=node.bias, neuron=neuron)
    c, h, w = node.shape
    return ConvLayer(
        name=node.name,
        shape=(c, h, w),
        weight=node.weight,
        bias=node.bias,
        stride=node.stride,
        padding=node.padding,
        groups=node.groups,
        neuron=neuron,
    )
