"""The numbers that turn a prepared Graph into its integer twin, and the twin that they give."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from export import graph as g
from export import integer
from export.integer import IntegerLIF, QuantizedInput
from export.prepare import NotForLoihi, synapses_of, theta, v_decay


@dataclass(frozen=True, kw_only=True)
class Scales:
    """The numbers that turn a prepared Graph into its integer twin; a .net file carries them.

    Each is by the name of a LIF layer, or of the output, whose synapses share them.
    """

    input: float
    """Integer steps of one unit of the normalised image."""
    currents: dict[str, float] = field(default_factory=dict)
    """Integer steps of one unit of the layer's current."""
    thresholds: dict[str, int] = field(default_factory=dict)
    """Thresholds, in these steps."""
    biases: dict[str, list[int]] = field(default_factory=dict)
    """Biases of every channel, in these steps."""

    def __post_init__(self) -> None:
        """ValueError for what is no number of these; the values may come from a file."""
        for key, value in (("input", self.input), *(_each("currents", self.currents))):
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{key} must be a number above 0, not {value!r}")
        for key, values in (*_each("thresholds", self.thresholds), *_each("biases", self.biases)):
            for value in values if isinstance(values, list) else [values]:
                if type(value) is not int or abs(value) > integer.ACCUMULATOR_LIMIT:
                    limit = integer.ACCUMULATOR_LIMIT
                    raise ValueError(f"{key} must be a whole number from {-limit} to {limit}, not {value!r}")


def _each(name: str, values: Any) -> Iterator[tuple[str, Any]]:
    """The values of a field by layer, each under a name for a person."""
    if not isinstance(values, dict):
        raise ValueError(f"{name} must be by layer, not {type(values).__name__}")
    for layer, value in values.items():
        yield f"{name} of {layer}", value


def rebuild(graph: g.Graph, scales: Scales) -> g.Graph:
    """The integer twin of a prepared Graph under given scales. Raises NotForLoihi if they are not of this Graph."""
    heads = [*graph.lif_layers, graph.output]
    for node in heads:
        known = node.name in scales.currents and (node is graph.output or node.name in scales.thresholds)
        if not known or len(scales.biases.get(node.name, [])) != synapses_of(graph, node)[0].shape[0]:
            raise NotForLoihi(f"{node.name}: the scales are not those of this student; export it again")
    made: dict[str, g.Node] = {}
    for node in heads:
        first, *_ = synapses = synapses_of(graph, node)
        for synapse in synapses:
            weight = rounded(synapse, weight_scale(graph, synapse, scales.currents[node.name], scales.input))
            bias = np.array(scales.biases[node.name]) if synapse is first else np.zeros(len(synapse.bias))
            made[synapse.name] = dataclasses.replace(synapse, weight=weight, bias=bias.astype(np.int64))
        if isinstance(node, g.LIF):
            made[node.name] = neurons(node, scales.thresholds[node.name])
    made[graph.input.name] = quantized_input(graph.input, scales.input)
    return graph.replace(*made.values())


def recorded(graph: g.Graph, value: Any, name: str) -> tuple[g.Graph, Scales]:
    """The integer twin of a prepared Graph under the scales that a file holds as JSON types, and these.

    Raises ValueError, naming the file, where they are not of this form or not of this Graph.
    """
    try:
        scales = Scales(**value)
    except (TypeError, ValueError) as error:  # JSON of any other kind
        raise ValueError(f"{name}: its scales are not TSERve's ({error}); export it again") from error
    return rebuild(graph, scales), scales


def weight_scale(graph: g.Graph, synapse: g.Node, current: float, pixel: float) -> float:
    """Integer steps of one unit of a synapse's weights, where its layer's current has `current` steps a unit."""
    return current / pixel if synapse.inputs[0] == graph.input.name else current


def rounded(synapse: g.Conv | g.Dense, scale: float) -> np.ndarray:
    """Integer weights within the chip's range, int64."""
    weight = np.clip(np.rint(synapse.weight * scale), -integer.WEIGHT_LIMIT, integer.WEIGHT_LIMIT)
    return np.asarray(weight, np.int64)


def neurons(node: g.LIF, threshold: int) -> IntegerLIF:
    """The chip's neurons for a LIF layer."""
    base: dict[str, Any] = {"name": node.name, "inputs": node.inputs, "shape": node.shape}
    return IntegerLIF(**base, v_decay=v_decay(node.tau), threshold=threshold)


def threshold(node: g.LIF, scale: float) -> int:
    """The integer threshold; the chip fires above it, the student at S theta."""
    return math.ceil(theta(node) * scale) - 1


def quantized_input(node: g.Input, scale: float) -> QuantizedInput:
    """The Input in integers."""
    fields = {key: getattr(node, key) for key in ("name", "inputs", "shape", "mean", "std", "event")}
    return QuantizedInput(**fields, scale=scale)
