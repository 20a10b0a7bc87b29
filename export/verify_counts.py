"""Hold what an ONNX file counts against its own spikes: every joule that a server reports is made of these outputs.

Counts are whole numbers below 2^24, exact in float32 in every precision, so one that differs is an error.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from export import graph as g
from export import reference
from export.counts import fan_map, spike_driven


COUNTS = ("spike_rates", "taps", "nonzero")


def recount(graph: g.Graph, spikes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What spikes of every LIF layer [T, B, ...] amount to: spike_rates [T, B, L], taps and nonzero [T, B, M]."""
    values: dict[str, np.ndarray] = {}
    for node in graph:
        if isinstance(node, g.LIF):
            values[node.name] = spikes[node.name].astype(np.float32)
        elif not isinstance(node, g.Input | g.Conv | g.Dense) and all(name in values for name in node.inputs):
            values[node.name] = reference.step(node, [values[name] for name in node.inputs], graph.T)
    rates = [spikes[node.name].reshape(*spikes[node.name].shape[:2], -1).mean(2) for node in graph.lif_layers]
    taps, nonzero = [], []
    for node in spike_driven(graph):
        events = values[node.inputs[0]] != 0
        at = events.sum(2).reshape(*events.shape[:2], -1)  # over channels; a vector has one place
        taps.append(at @ fan_map(node, graph[node.inputs[0]].shape).ravel())
        nonzero.append(at.sum(2))
    return {"spike_rates": np.stack(rates, -1), "taps": np.stack(taps, -1), "nonzero": np.stack(nonzero, -1)}


def first_miscount(
    graph: g.Graph, spikes: Mapping[str, np.ndarray], counted: Mapping[str, np.ndarray]
) -> dict[str, Any] | None:
    """The first layer, step (from 1) and image of `spikes` at which an output of COUNTS is not what they amount to."""
    layers = {"spike_rates": graph.lif_layers, "taps": spike_driven(graph), "nonzero": spike_driven(graph)}
    for name, wanted in recount(graph, spikes).items():
        got = np.asarray(counted[name]).reshape(-1, *np.shape(counted[name])[-2:])
        if got.shape != wanted.shape:
            return {"layer": f"{name} of {list(got.shape)}, not {list(wanted.shape)}", "step": "none", "image": None}
        # A rate is a whole number divided once, in float32.
        wrong = ~np.isclose(got, wanted, rtol=2e-7, atol=0) if name == "spike_rates" else got != wanted
        if wrong.any():
            layer, step, image = (int(axis[0]) for axis in np.nonzero(np.moveaxis(wrong, -1, 0)))
            return {"layer": f"{layers[name][layer].name} ({name})", "step": step + 1, "image": image}
    return None
