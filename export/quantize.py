"""From a prepared Graph to its integer twin: one scale a layer of the file, chosen by what it changes on real images.

A layer's current is multiplied by a scale S and rounded: weight = round(S w) in int8, bias and threshold near S b and
S theta. Spikes are 0 or 1 whatever S is, so every layer's scale is free within the chip's ranges; in the first layer,
whose input is graded, S = (scale of the weights) * (scale of the input).

The scales that disturb a layer's currents least, driven by the spikes that the integer network itself gives, are tried.
Each gets the biases with which every channel fires as often as it does in the float network: that takes up rounding
errors that do not cancel over many weights, spikes that the layers before have changed, and the rounding of the
threshold together. The scale whose spikes then differ least is taken. (Biases chosen for the fewest changed spikes
themselves make neurons that are in doubt silent, and layer by layer the network fades: on a ResNet-20 the logits'
error was 0.43 of their size, against 0.15.)
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from export import execute, integer
from export import graph as g
from export.chip_range import heaviest, highest_threshold, largest_current, options
from export.prepare import NotForLoihi, prepare, synapses_of
from export.scales import Scales, neurons, quantized_input, rebuild, rounded, threshold, weight_scale
from export.sequence import Stage, sequence
from hardware.net import Limits


# How many scales get their biases tried.
FINALISTS = 2


def quantize(graph: g.Graph, images: np.ndarray, limits: Limits) -> tuple[g.Graph, Scales]:
    """The integer twin of a Graph and its scales, chosen layer by layer on calibration images.

    images: [B, C, H, W] in [0, 1], or frames [T, B, C, H, W]. How scales and biases are chosen stands at this file's
    head. Raises NotForLoihi for what the chip cannot express.
    """
    search = Search(prepare(graph), images, limits)
    for stage in sequence(search.graph):
        search.choose(stage)
    return rebuild(search.graph, search.scales), search.scales


@dataclass(frozen=True, kw_only=True, eq=False)
class Rounded:
    """One layer of the file under one scale, before its biases are chosen; each by LIF layer or output."""

    scale: float
    pixel: float
    """The scale of the image."""
    currents: dict[str, Tensor]
    """What each part receives from its integer weights on the calibration images, [1 or T, B, ...]."""
    biases: dict[str, np.ndarray]
    """The biases that keep the mean current of every channel."""
    noise: float
    """Mean square of what rounding the weights changes, in the student's units; a channel's mean does not count."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Wanted:
    """What the float network did in one LIF layer, or the output."""

    means: np.ndarray
    """Of the current, by channel [C]."""
    spikes: Tensor
    """uint8 [T, B, ...]; of the output the logits."""
    exact: Tensor
    """The current without bias [1 or T, B, ...] from the float weights and the integer network's spikes."""


class Search:
    """Scales chosen so far, and what the float and the integer network did on the calibration images."""

    def __init__(self, graph: g.Graph, images: np.ndarray, limits: Limits) -> None:
        self.graph, self.images, self.limits = graph, images, limits
        self.scales = Scales(input=1.0)
        column = (slice(None), None, None)
        normalised = (images.astype(np.float64) - graph.input.mean[column]) / graph.input.std[column]
        self.floats = {graph.input.name: execute.as_steps(graph, torch.from_numpy(normalised))}
        self.integers: dict[str, Tensor] = {}

    def choose(self, stage: Stage) -> None:
        """Choose the numbers of one layer of the file, and keep the spikes that come of them."""
        heads = [part.node for part in stage.parts if part.node is not None and not part.hands_on]
        if not heads:
            return
        wanted = {node.name: self.wanted(node) for node in heads}
        finalists: list[Rounded] = []
        for scale, pixel in options(self.graph, stage, heads, self.scales.input, self.limits):
            if (rounded := self.round(stage, heads, wanted, scale, pixel)) is not None:
                finalists = sorted([*finalists, rounded], key=lambda one: one.noise)[:FINALISTS]
        if not finalists:
            names = ", ".join(synapse.name for node in heads for synapse in synapses_of(self.graph, node))
            raise NotForLoihi(f"{names}: no scale keeps weights, bias, threshold and sums within the chip's ranges")
        tried = [(one, self.as_often(heads, one, wanted)) for one in finalists]
        best, (biases, spikes, _) = min(tried, key=lambda pair: pair[1][2])
        self.integers |= spikes
        lifs = [node for node in heads if isinstance(node, g.LIF)]
        self.scales = Scales(
            input=best.pixel,
            currents=self.scales.currents | {node.name: best.scale for node in heads},
            thresholds=self.scales.thresholds | {node.name: threshold(node, best.scale) for node in lifs},
            biases=self.scales.biases | {name: bias.tolist() for name, bias in biases.items()},
        )

    def wanted(self, node: g.Node) -> Wanted:
        """What the float network does in one layer; its spikes are kept."""
        synapses = synapses_of(self.graph, node)
        current = self.current(self.floats, synapses)
        reads_image = synapses[0].inputs[0] == self.graph.input.name
        plain = [dataclasses.replace(synapse, bias=np.zeros_like(synapse.bias)) for synapse in synapses]
        exact = self.current(self.floats if reads_image else self.integers, plain)
        if node is not self.graph.output:
            self.floats[node.name] = execute.step(node, [current], self.graph.T).to(torch.uint8)
        return Wanted(means=channel_means(current), spikes=self.floats.get(node.name, current), exact=exact)

    def current(self, values: dict[str, Tensor], synapses: Sequence[g.Conv | g.Dense]) -> Tensor:
        """The sum of synapses [1 or T, B, ...], their biases included."""
        parts = [execute.step(synapse, [self.value(values, synapse.inputs[0])], self.graph.T) for synapse in synapses]
        return sum(parts[1:], parts[0])

    def value(self, values: dict[str, Tensor], name: str) -> Tensor:
        """What a synapse reads: spikes, their maximum or their sum, or all of them flat."""
        if name in values:
            return values[name].float()
        node = self.graph[name]
        return execute.step(node, [self.value(values, source) for source in node.inputs], self.graph.T)

    def round(
        self, stage: Stage, heads: list[g.Node], wanted: dict[str, Wanted], scale: float, pixel: float
    ) -> Rounded | None:
        """The layer under one scale, or None if that does not fit the chip."""
        reads_image = self.graph.input.name
        values = self.integers
        if any(s.inputs[0] == reads_image for node in heads for s in synapses_of(self.graph, node)):
            pixels = integer.quantize_images(quantized_input(self.graph.input, pixel), self.images)
            values = {reads_image: execute.as_steps(self.graph, torch.from_numpy(pixels))}
        currents, biases, noise = {}, {}, 0.0
        for node in heads:
            integers = [
                dataclasses.replace(
                    synapse,
                    weight=rounded(synapse, weight_scale(self.graph, synapse, scale, pixel)),
                    bias=np.zeros(len(synapse.bias), np.int64),
                )
                for synapse in synapses_of(self.graph, node)
            ]
            current = self.current(values, integers)
            bias = np.rint(scale * wanted[node.name].means - channel_means(current)).astype(np.int64)
            if heaviest(self.graph, integers) > integer.WEIGHT_LIMIT:
                return None
            if not self.fits(stage, node, scale, bias, largest_current(self.graph, integers, pixel)):
                return None
            error = current / scale - wanted[node.name].exact
            means = torch.from_numpy(channel_means(error)).to(error.dtype)
            noise += float((error - by_channel(means, error)).square().mean(dtype=torch.float64))
            currents[node.name], biases[node.name] = current, bias
        return Rounded(scale=scale, pixel=pixel, currents=currents, biases=biases, noise=noise)

    def as_often(
        self, heads: list[g.Node], rounded: Rounded, wanted: dict[str, Wanted]
    ) -> tuple[dict[str, np.ndarray], dict[str, Tensor], float]:
        """Biases with which every channel fires as often as in the float network, the spikes, and how far they are.

        A channel's rate rises with its bias, so it is found by bisection around the bias that keeps the mean current.
        """
        biases, spikes, apart = dict(rounded.biases), {}, 0.0
        for node in heads:
            if not isinstance(node, g.LIF):
                continue
            fire = partial(self.fire, node, rounded)
            truth = wanted[node.name].spikes
            aim = channel_means(truth.float())
            reach = max(2, threshold(node, rounded.scale) // 8)
            low, high = (rounded.biases[node.name] + sign * reach for sign in (-1, 1))
            while (high - low).max() > 1:
                middle = (low + high) // 2
                less = channel_means(fire(middle)) < aim
                low, high = np.where(less, middle, low), np.where(less, high, middle)
            near = [np.abs(channel_means(fire(bias)) - aim) for bias in (low, high)]
            bias = np.clip(np.where(near[0] <= near[1], low, high), -self.limits.bias, self.limits.bias)
            biases[node.name], spikes[node.name] = bias, fire(bias).to(torch.uint8)
            apart += float((spikes[node.name] != truth).float().mean())
        return biases, spikes, apart

    def fire(self, node: g.LIF, rounded: Rounded, bias: np.ndarray) -> Tensor:
        """The spikes of a layer with these biases."""
        current = rounded.currents[node.name]
        driven = current + by_channel(torch.from_numpy(bias).to(current.dtype), current)
        return execute.step(neurons(node, threshold(node, rounded.scale)), [driven], self.graph.T)

    def fits(self, stage: Stage, node: g.Node, scale: float, bias: np.ndarray, reach: float) -> bool:
        """Whether biases, threshold and every possible sum stay within the chip's ranges, and a weight is left."""
        # Biases still move by an eighth of the threshold, and the last layer's membrane sums the logits of all steps.
        steps, largest = 1, int(np.abs(bias).max())
        if isinstance(node, g.LIF):
            level = threshold(node, scale)
            if not 0 < level <= highest_threshold(stage, node, self.graph.T, self.limits):
                return False
            reach += max(2, level // 8)
        else:
            steps = self.graph.T
        return reach > 0 and largest <= self.limits.bias and (reach + largest) * steps <= integer.ACCUMULATOR_LIMIT


def channel_means(current: Tensor) -> np.ndarray:
    """The mean of every channel (or neuron) of [1 or T, B, C, ...], float64 [C]."""
    axes = [axis for axis in range(current.ndim) if axis != 2]
    return current.mean(dim=axes, dtype=torch.float64).numpy()


def by_channel(values: Tensor, like: Tensor) -> Tensor:
    """[C] shaped to be added to [1 or T, B, C, ...]."""
    return values.view(-1, *[1] * (like.ndim - 3))
