"""From any student's Graph to the form that the chip runs: neurons whose current is a sum of synapses that read spikes.

A prepared Graph has no average pooling, every LIF reads a convolution, a dense layer, or a sum of those (a shortcut
without weights has become a 1x1 convolution), and every synapse reads the image, spikes, or a sum of spikes. All the
bias of a sum stands in its first synapse. It computes what the Graph computes.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from export import graph as g
from export.fold import CannotFold, fold_pooling


DECAY_BITS = 12

Synapse = g.Conv | g.Dense


class NotForLoihi(ValueError):
    """A student that the chip or the netx format cannot express; the message names the layer and what to do."""


def prepare(graph: g.Graph) -> g.Graph:
    """The prepared Graph. Raises NotForLoihi, naming the layer, for what the chip cannot do."""
    for node in graph.lif_layers:
        check_neuron(node)
    try:
        graph = fold_pooling(graph)
    except CannotFold as problem:
        raise NotForLoihi(f"{problem}; or export this student to ONNX") from problem
    if not isinstance(graph.output, g.Dense):
        raise NotForLoihi(f"{graph.output.name}: the last layer must be dense (the classifier)")
    if isinstance(graph.readers(graph.input.name)[0], g.Flatten):
        raise NotForLoihi(
            f"{graph.readers(graph.input.name)[0].name}: the first layer must be a convolution of the image"
        )
    graph = weigh_shortcuts(graph)
    check_sources(graph)
    return gather_biases(graph)


def check_neuron(node: g.LIF) -> None:
    """Raise NotForLoihi for a reset or a time constant that the chip's neuron does not have."""
    if node.v_reset != 0:
        raise NotForLoihi(f"{node.name}: the chip resets to 0, v_reset is {node.v_reset}; train with --net.v_reset 0")
    if np.isfinite(node.tau) and v_decay(node.tau) == 0:
        raise NotForLoihi(
            f"{node.name}: tau is {node.tau:g}, and a decay of 1/{node.tau:g} is 0 in the chip's {DECAY_BITS} bits; "
            f"train with --net.tau up to {2 ** (DECAY_BITS + 1) - 1}, or without a leak: --net.neuron if"
        )


def v_decay(tau: float) -> int:
    """What the membrane loses at each step, in 1/4096; 0 for an integrator (tau infinite)."""
    return round(2**DECAY_BITS / tau)


def theta(node: g.LIF) -> float:
    """The threshold of the membrane that Loihi keeps.

    It is V = tau v where the input decays, so that V decays by 1/tau and gains the plain input: the chip's neuron has
    no input decay.
    """
    return node.v_threshold * (node.tau if node.decay_input else 1.0)


def weigh_shortcuts(graph: g.Graph) -> g.Graph:
    """Put a 1x1 convolution with weights 1 wherever spikes enter a LIF's current without a synapse."""
    before: dict[str, list[g.Node]] = {}
    changed: dict[str, g.Node] = {}

    def current(name: str, reader: g.Node) -> str:
        """The node that gives `name` as a current to `reader`."""
        node = graph[name]
        if isinstance(node, Synapse):
            return name
        if isinstance(node, g.Add) and any(isinstance(leaf, Synapse) for leaf in leaves(graph, name)):
            inputs = tuple(current(source, node) for source in node.inputs)
            changed[name] = dataclasses.replace(node, inputs=inputs)
            return name
        if isinstance(node, g.Input):
            raise NotForLoihi(f"{reader.name}: neurons must read the image through a convolution")
        unit = identity(f"{reader.name}/{name}", node)
        if unit.name not in {made.name for made in before.get(reader.name, [])}:
            before.setdefault(reader.name, []).append(unit)
        return unit.name

    for lif in graph.lif_layers:
        changed[lif.name] = dataclasses.replace(lif, inputs=(current(lif.inputs[0], lif),))
    nodes: list[g.Node] = []
    for node in graph:
        nodes += [*before.get(node.name, []), changed.get(node.name, node)]
    return g.Graph(nodes=tuple(nodes), T=graph.T)


def identity(name: str, source: g.Node) -> Synapse:
    """A synapse of weights 1 from each neuron to itself."""
    n, bias = source.shape[0], np.zeros(source.shape[0])
    if len(source.shape) == 1:
        return g.Dense(name=name, inputs=(source.name,), shape=source.shape, weight=np.eye(n), bias=bias)
    return g.Conv(
        name=name,
        inputs=(source.name,),
        shape=source.shape,
        weight=np.ones((n, 1, 1, 1)),
        bias=bias,
        stride=(1, 1),
        padding=(0, 0),
        groups=n,
    )


def leaves(graph: g.Graph, name: str) -> Iterator[g.Node]:
    """What a node sums up: itself, or for an Add what its inputs sum up."""
    node = graph[name]
    if not isinstance(node, g.Add):
        yield node
        return
    for source in node.inputs:
        yield from leaves(graph, source)


def sources(graph: g.Graph, name: str) -> Iterator[g.Node]:
    """The neurons (LIF or MaxPool), or the Input, whose spikes a synapse that reads `name` sums up."""
    for leaf in leaves(graph, name):
        if isinstance(leaf, g.Flatten):
            yield from sources(graph, leaf.inputs[0])
        else:
            yield leaf


def synapses_of(graph: g.Graph, node: g.Node) -> tuple[Synapse, ...]:
    """The synapses whose sum is the current of a LIF, or for the output the layer itself."""
    if isinstance(node, Synapse):
        return (node,)
    return tuple(leaf for leaf in leaves(graph, node.inputs[0]) if isinstance(leaf, Synapse))


def check_sources(graph: g.Graph) -> None:
    """Raise NotForLoihi unless every synapse feeds a LIF or is the output, and reads the image or spikes."""
    feeding = {graph.output.name}
    for lif in graph.lif_layers:
        feeding.update(synapse.name for synapse in synapses_of(graph, lif))
    for synapse in graph.synapses:
        if synapse.name not in feeding:
            raise NotForLoihi(f"{synapse.name}: every layer but the last must be followed by a LIF")
        read = list(sources(graph, synapse.inputs[0]))
        for source in read:
            if isinstance(source, g.Input) and len(read) == 1 and isinstance(synapse, g.Conv):
                continue
            if not isinstance(source, g.LIF | g.MaxPool):
                raise NotForLoihi(
                    f"{synapse.name}: reads {source.name}, which gives no spikes; a LIF must stand between"
                )
    for node in graph:
        if isinstance(node, g.MaxPool) and not isinstance(graph[node.inputs[0]], g.LIF | g.MaxPool):
            raise NotForLoihi(
                f"{node.name}: the chip takes the maximum of spikes (0 or 1), not of {node.inputs[0]}; "
                "train with the pooling right after a LIF, or with average pooling"
            )


def gather_biases(graph: g.Graph) -> g.Graph:
    """Put the bias of a sum of synapses into the first of them. Raises NotForLoihi for a synapse in two."""
    changed: dict[str, g.Node] = {}
    known: set[str] = set()
    for lif in graph.lif_layers:
        first, *others = synapses_of(graph, lif)
        for synapse in (first, *others):
            if synapse.name in known:
                raise NotForLoihi(
                    f"{synapse.name}: two LIF layers read it, or one reads it twice; give each a layer of its own"
                )
            known.add(synapse.name)
        if others:
            changed[first.name] = dataclasses.replace(first, bias=first.bias + sum(other.bias for other in others))
            changed |= {s.name: dataclasses.replace(s, bias=np.zeros_like(s.bias)) for s in others}
    return graph.replace(*changed.values())
