"""The published spike rate below which an SNN costs less than an equivalent quantised ANN, data movement included.

Yan, Bai and Wong map a rate-coded SNN of T steps to a quantised ANN of ceil(log2(T + 1)) bits, which tells as many
values apart, and price computing and moving data of both. Their rates are quoted here; their model is not built again.
"""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Published:
    """One version's break-even rate: spikes per neuron and step below which the SNN costs less."""

    rate: float
    least_T: int
    most_T: int
    source: str


PAPER = "Yan, Bai and Wong, Reconsidering the energy efficiency of spiking neural networks (arXiv 2409.08290)"
PUBLISHED = (
    Published(rate=0.064, least_T=5, most_T=10, source=f"{PAPER}, versions 2 and 3, abstract"),
    Published(rate=0.057, least_T=5, most_T=5, source=f"{PAPER}, version 4 of May 2026, abstract"),
)


def break_even(*, T: int, spike_rate: float) -> dict[str, Any]:
    """This student's mean rate (spikes per neuron and step) beside the published ones, JSON types."""
    return {
        "T": T,
        "qnn_bits": math.ceil(math.log2(T + 1)),
        "spike_rate": spike_rate,
        "published": [
            {
                "rate": entry.rate,
                "T": [entry.least_T, entry.most_T],
                "source": entry.source,
                "covers_this_T": entry.least_T <= T <= entry.most_T,
                "below": spike_rate < entry.rate,
            }
            for entry in PUBLISHED
        ],
        "says": says(T=T, spike_rate=spike_rate),
    }


def says(*, T: int, spike_rate: float) -> str:
    """The comparison in a sentence."""
    parts = []
    for entry in PUBLISHED:
        steps = f"T = {entry.least_T}" + (f" to {entry.most_T}" if entry.most_T > entry.least_T else "")
        side = "below" if spike_rate < entry.rate else "not below"
        outside = "" if entry.least_T <= T <= entry.most_T else f", and T = {T} is outside of that range"
        parts.append(f"{side} the {entry.rate:.1%} published for {steps}{outside}")
    return (
        f"{spike_rate:.1%} of the neurons spike in a step on average; a quantised ANN of {math.ceil(math.log2(T + 1))}"
        f" bits is as expressive (Yan, Bai and Wong 2024). The rate is {'; '.join(parts)}."
    )
