"""How counted events become priced operations: one function for each convention, its docstring the printed rules.

Energy figures of spiking networks differ more by what is counted than by what is computed, so every figure names its
convention. A convention takes a Graph and its Counts and gives the priced operations of every layer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from export.counts import Counts
from export.graph import Graph


@dataclass(frozen=True, kw_only=True)
class Ops:
    """What one layer is charged for: int64 [T, N] for N images, and for one image of the same layer in an ANN."""

    name: str
    acs: np.ndarray
    """Accumulations: a weight is added."""
    macs: np.ndarray
    """Multiply-accumulations."""
    dense_macs: int
    """Of the ANN, which computes the layer once."""


Convention = Callable[[Graph, Counts], tuple[Ops, ...]]


def event_exact(graph: Graph, counts: Counts) -> tuple[Ops, ...]:
    """Every synaptic operation that happens is counted once, and nothing else is priced.

    A layer whose input is 0 or 1 adds: ACs = SOPs. A layer whose input is graded (after average pooling, a sum of
    spikes, or counts of events) multiplies its nonzero inputs: MACs = SOPs. A layer that sees the constant image
    multiplies densely, once an image, in the first step. The ANN is the same network with ReLU, run once: it multiplies
    densely in every layer. Neither is charged for zero padding, and the ANN does not skip zeros. Batch normalisation is
    folded. Biases, neuron updates, pooling and residual additions are listed and not priced; memory accesses are
    neither listed nor priced.
    """
    charged: list[Ops] = []
    for layer in counts.synapses:
        macs = np.zeros_like(layer.sops) if layer.binary else layer.sops.copy()
        if layer.static:
            macs[0] = layer.dense_macs
        acs = layer.sops if layer.binary else np.zeros_like(layer.sops)
        charged.append(Ops(name=layer.name, acs=acs, macs=macs, dense_macs=layer.dense_macs))
    return tuple(charged)


CONVENTIONS: dict[str, Convention] = {"event_exact": event_exact}
