"""The form of a convention: what each layer is charged, linear in what is observed of an image.

A convention is written once, as coefficients that follow from a Graph's shapes. `evaluate` reads them with the counts
of many images; the server reads the same numbers, from bundle.json, with what the ONNX model reports of one.

Shapes: T steps, N images, M spike-driven synaptic layers (counts.spike_driven), L LIF layers.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from export import graph as g
from export.counts import Counts, spike_driven


class CannotCount(ValueError):
    """A layer that a convention has no rule for; the message names the layer and says why."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """once + per_step * steps + per_tap * taps + per_nonzero * nonzero inputs + per_spike * spikes."""

    once: float = 0.0
    """Charged in the first step."""
    per_step: float = 0.0
    per_tap: float = 0.0
    """Of the Charge's synapse: a nonzero input under a kernel position inside the output map."""
    per_nonzero: float = 0.0
    """Of the Charge's synapse: an input value that is not zero."""
    per_spike: float = 0.0
    """Of the Charge's LIF layer."""

    def __add__(self, other: "Terms") -> "Terms":
        mine, theirs = asdict(self), asdict(other)
        return Terms(**{key: mine[key] + theirs[key] for key in mine})

    def __mul__(self, factor: float) -> "Terms":
        return Terms(**{key: value * factor for key, value in asdict(self).items()})

    def written(self) -> dict[str, float]:
        """The terms that are not zero."""
        return {key: float(value) for key, value in asdict(self).items() if value}


NOTHING = Terms()


@dataclass(frozen=True, kw_only=True)
class Dense:
    """What the same layer of the ANN is charged for one image."""

    acs: float = 0.0
    macs: float = 0.0
    accesses: float = 0.0
    access_J: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What one layer, a node of the Graph, is charged."""

    name: str
    synapse: int | None = None
    """Which of the M layers' taps and nonzero inputs are meant."""
    lif: int | None = None
    """Which of the L layers' spikes are meant."""
    acs: Terms = NOTHING
    """Accumulations."""
    macs: Terms = NOTHING
    """Multiply-accumulations."""
    accesses: Terms = NOTHING
    """Words of 32 bits that are read from or written to memory."""
    access_J: Terms = NOTHING
    """Joules of the accesses."""
    ann: Dense = Dense()


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a Graph no longer says of the student that it was lowered from, by names of its synaptic layers."""

    biased: frozenset[str]
    """Layers with a bias of their own."""
    normalised: frozenset[str]
    """Convolutions with a batch normalisation behind them, which the Graph has folded."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What one layer was charged for N images: float64 [T, N]."""

    acs: np.ndarray
    macs: np.ndarray
    accesses: np.ndarray
    access_J: np.ndarray


def evaluate(charge: Charge, counts: Counts) -> Spent:
    """The charge of one layer for counted images."""
    driven = [layer for layer in counts.synapses if not layer.static]
    return Spent(
        **{field.name: _evaluate(getattr(charge, field.name), charge, counts, driven) for field in fields(Spent)}
    )


def _evaluate(terms: Terms, charge: Charge, counts: Counts, driven: list[Any]) -> np.ndarray:
    value = np.full((counts.T, counts.num_images), float(terms.per_step))
    value[0] += terms.once
    if charge.synapse is not None:
        layer = driven[charge.synapse]
        value += terms.per_tap * layer.taps + terms.per_nonzero * layer.nonzero
    if charge.lif is not None:
        value += terms.per_spike * counts.neurons[charge.lif].spikes
    return value


def drivers(graph: g.Graph) -> dict[str, int]:
    """By name of a spike-driven synaptic layer, its place among them."""
    return {node.name: m for m, node in enumerate(spike_driven(graph))}


def events_of(graph: g.Graph, name: str) -> tuple[int | None, int | None]:
    """Where the nonzero values of a node are observed: (synapse that reads it, None), (None, LIF layer), or neither."""
    node = unflattened(graph, name)
    for index, lif in enumerate(graph.lif_layers):
        if lif is node:
            return None, index
    for m, layer in enumerate(spike_driven(graph)):
        if unflattened(graph, layer.inputs[0]) is node:
            return m, None
    return None, None


def unflattened(graph: g.Graph, name: str) -> g.Node:
    """The node whose values these are, before they were flattened."""
    node = graph[name]
    while isinstance(node, g.Flatten):
        node = graph[node.inputs[0]]
    return node


def size(node: g.Node) -> int:
    """Values of a node's output, for one image and one step."""
    return int(np.prod(node.shape))
