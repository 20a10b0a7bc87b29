"""The integer twin as a netx network, and where in its layers the student's layers are."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from export import graph as g
from export.chain_weights import place_weights
from export.integer import ACCUMULATOR_LIMIT, DECAY_BITS, IntegerLIF
from export.prepare import NotForLoihi, synapses_of
from export.scales import Scales
from export.sequence import Part, Stage, relay_drive, sequence
from hardware.net import ConvLayer, DenseLayer, FlattenLayer, InputLayer, Layer, Net, Neuron


FORMAT = 2
"""Of what the file's `meta` holds."""

# The last layer's neurons only add up: v / 64 is the sum of the logits so far, and the threshold is out of reach.
READOUT = Neuron(vThMant=ACCUMULATOR_LIMIT, vDecay=0)


def to_net(twin: g.Graph, scales: Scales, *, labels: Sequence[str], checkpoint_sha256: str) -> Net:
    """The .net of an integer twin.

    An image is sent once and held: the first layer's current does not decay (iDecay 0) and is cleared by the reset
    after each window of steps, the smallest power of two that holds T (the chip resets at no other intervals). Events
    are sent at every step. `meta` says in which layer, and from which channel to which, every LIF layer stands.
    """
    c, h, w = twin.input.shape
    layers: list[Layer] = [InputLayer(shape=(c, h, w))]
    stages = sequence(twin)
    for before, stage in zip((None, *stages), stages, strict=False):
        if stage.window is None and before is not None and before.window is not None:
            layers.append(FlattenLayer(shape=(sum(part.size for part in before.parts),)))
        layers.append(layer(twin, stage, before))
    first = layers[1]
    if not twin.input.event and isinstance(first, ConvLayer):
        layers[1] = dataclasses.replace(first, neuron=dataclasses.replace(first.neuron, iDecay=0))
    meta = {
        "format": FORMAT,
        "T": twin.T,
        "window": 1 << (twin.T - 1).bit_length(),
        "scales": dataclasses.asdict(scales),
        "lif_layers": places(stages),
        "input": {"mean": twin.input.mean.tolist(), "std": twin.input.std.tolist(), "event": twin.input.event},
        "labels": list(labels),
        "checkpoint_sha256": checkpoint_sha256,
    }
    return Net(layers=tuple(layers), meta=meta)


def places(stages: Sequence[Stage]) -> dict[str, list[int]]:
    """LIF layer by name -> [layer with weights (from 0), first channel, channel after its last]."""
    return {
        part.name: [k, stage.start(part.name), stage.start(part.name) + part.shape[0]]
        for k, stage in enumerate(stages)
        for part in stage.neurons
    }


def layer(twin: g.Graph, stage: Stage, before: Stage | None) -> ConvLayer | DenseLayer:
    """One stage with its integers."""
    neuron, relay_weight, relay_bias = READOUT, 0, 0
    if twin.output.name not in [part.name for part in stage.parts]:
        neuron = neuron_of(stage)
        driven = relay_drive(threshold=neuron.vThMant, v_decay=neuron.vDecay, T=twin.T)
        if driven is None and any(part.hands_on for part in stage.parts):
            raise NotForLoihi(f"{stage.parts[0].name}: no relay fires at the threshold {neuron.vThMant} of its layer")
        relay_weight, relay_bias = driven or (0, 0)
    channels = sum(part.shape[0] for part in before.parts) if before else twin.input.shape[0]
    weight, groups = place_weights(stage, before, channels, relay_weight=relay_weight)
    bias = np.concatenate([bias_of(twin, part, relay_bias) for part in stage.parts])
    name = name_of(twin, stage)
    if stage.window is None:
        return DenseLayer(name=name, shape=(len(bias),), weight=weight, bias=bias, neuron=neuron)
    height, width = stage.parts[0].shape[1:]
    return ConvLayer(
        name=name,
        shape=(len(bias), height, width),
        weight=weight,
        bias=bias,
        stride=stage.window.stride,
        padding=stage.window.padding,
        groups=groups,
        neuron=neuron,
    )


def neuron_of(stage: Stage) -> Neuron:
    """The neurons of a layer that is not the last."""
    lifs = [part.node for part in stage.neurons]
    if not lifs:  # nothing but max pooling: it forgets everything and fires on any spike
        return Neuron(vThMant=0, vDecay=2**DECAY_BITS)
    kinds = {(node.threshold, node.v_decay) for node in lifs if isinstance(node, IntegerLIF)}
    if len(kinds) > 1:
        names = ", ".join(part.name for part in stage.neurons)
        raise NotForLoihi(f"{names}: share a layer of the .net and differ in threshold or decay: {sorted(kinds)}")
    ((threshold, v_decay),) = kinds
    return Neuron(vThMant=threshold, vDecay=v_decay)


def bias_of(twin: g.Graph, part: Part, relay_bias: int) -> np.ndarray:
    """The biases of a part's channels."""
    if part.hands_on or part.node is None:
        return np.full(part.shape[0], relay_bias, np.int64)
    return np.asarray(synapses_of(twin, part.node)[0].bias)


def name_of(twin: g.Graph, stage: Stage) -> str:
    """A layer's name: that of its first synapse, with a + for every other part."""
    first, *others = stage.parts
    own = first.name if first.node is None or first.hands_on else synapses_of(twin, first.node)[0].name
    return own + "".join(f" + {'relay ' if part.node is None else ''}{part.name}" for part in others)


def describe(net: Net) -> list[dict[str, Any]]:
    """One row a layer with weights, as JSON types."""
    return [
        {
            "name": layer.name,
            "shape": list(layer.shape),
            "weights": int(np.count_nonzero(layer.weight)),
            "weight_max": int(np.abs(layer.weight).max()),
            "bias_max": int(np.abs(layer.bias).max()),
            "vThMant": layer.neuron.vThMant,
            "vDecay": layer.neuron.vDecay,
            "iDecay": layer.neuron.iDecay,
        }
        for layer in net.spiking
    ]
