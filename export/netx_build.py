"""The integer twin as a netx network, and what is said about it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from export import graph as g
from export import integer
from export.images import RealImages
from export.quantize import READOUT, NotForLoihi, Scales, netx_layer
from hardware.net import FlattenLayer, InputLayer, Layer, Net, Neuron
from train.checkpoint import Checkpoint


def to_net(twin: g.Graph, scales: Scales, *, labels: Sequence[str], checkpoint_sha256: str) -> Net:
    """The .net of an integer twin.

    The image is sent once and held: the first layer's current does not decay (iDecay 0) and is cleared by the reset
    after each window of steps, the smallest power of two that holds T (the chip resets at no other intervals).
    """
    c, h, w = twin.input.shape
    layers: list[Layer] = [InputLayer(shape=(c, h, w))]
    for node in twin.nodes[1:]:
        if isinstance(node, g.Flatten):
            layers.append(FlattenLayer(shape=node.shape, name=node.name))
        elif isinstance(node, g.Conv | g.Dense):
            neuron = neuron_of(twin, node)
            if len(layers) == 1:
                neuron = dataclasses.replace(neuron, iDecay=0)
            layers.append(netx_layer(node, neuron))
        elif not isinstance(node, integer.IntegerLIF):
            raise NotForLoihi(f"{node.name}: a .net has no {type(node).__name__}")
    meta = {
        "format": 1,
        "T": twin.T,
        "window": 1 << (twin.T - 1).bit_length(),
        "scales": dataclasses.asdict(scales),
        "lif_layers": [node.name for node in twin if isinstance(node, integer.IntegerLIF)],
        "input": {"mean": twin.input.mean.tolist(), "std": twin.input.std.tolist()},
        "labels": list(labels),
        "checkpoint_sha256": checkpoint_sha256,
    }
    return Net(layers=tuple(layers), meta=meta)


def neuron_of(twin: g.Graph, synapse: g.Node) -> Neuron:
    """The neurons behind a synapse; those of the last layer only add up."""
    for reader in twin.readers(synapse.name):
        if isinstance(reader, integer.IntegerLIF):
            return Neuron(vThMant=reader.threshold, vDecay=reader.v_decay)
    return READOUT


def describe(net: Net) -> list[dict[str, Any]]:
    """One row a layer with weights, as JSON types."""
    return [
        {
            "name": layer.name,
            "shape": list(layer.shape),
            "weights": int(layer.weight.size),
            "weight_max": int(np.abs(layer.weight).max()),
            "bias_max": int(np.abs(layer.bias).max()),
            "vThMant": layer.neuron.vThMant,
            "vDecay": layer.neuron.vDecay,
        }
        for layer in net.spiking
    ]


def accuracies(checkpoint: Checkpoint, twin: g.Graph, test: RealImages, *, batch_size: int = 50) -> dict[str, Any]:
    """Accuracy in [0, 1] of the float student and of its twin on the same images."""
    import torch

    network, right = checkpoint.network(), {"float": 0, "integer": 0}
    for start in range(0, len(test.labels), batch_size):
        images, labels = (part[start : start + batch_size] for part in (test.images, test.labels))
        with torch.no_grad():
            logits = network(checkpoint.preprocess(torch.from_numpy(images))).numpy()
        right["float"] += int((logits.mean(0).argmax(-1) == labels).sum())
        own = integer.logits(twin, integer.run(twin, images))
        right["integer"] += int((own.sum(0).argmax(-1) == labels).sum())
    n = len(test.labels)
    return {"images": n, "dataset": test.dataset, "split": test.split, **{k: v / n for k, v in right.items()}}
