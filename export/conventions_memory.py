"""Operations, addressing and memory accesses, after Lemaire et al. 2022."""

import math
from dataclasses import dataclass

import numpy as np

from export import graph as g
from export.conventions_terms import Charge, Dense, Origin, Terms, drivers, size
from export.counts import dense_macs, sops_per_tap
from hardware.chip import Chip


WORD = 4  # bytes
SRAM = ((8 * 1024, "energy.sram_8KiB_32bit"), (32 * 1024, "energy.sram_32KiB_32bit"), (2**20, "energy.sram_1MiB_32bit"))


def memory_aware(graph: g.Graph, origin: Origin | None, chip: Chip) -> tuple[Charge, ...]:
    """Operations, addressing and memory accesses in 32-bit integers, after Lemaire et al. 2022.

    Every tensor (a layer's input, its weights and biases, its membranes or sums, its output) lies in an SRAM of its own
    size, 4 bytes a value. A 32-bit access costs by that size: 0 at 0, 10 pJ at 8 KiB, 20 pJ at 32 KiB, 100 pJ at 1 MiB
    and above, linear in between. Batch normalisation is folded.

    A layer that spikes drive works event by event. An input value that is not zero is read; of a convolution, 2 MACs
    find its first output. Then for each synaptic operation, by true fan-out (borders and strides followed; the paper
    takes kernel x kernel): an addition addresses it, a weight is read, the membrane that it reaches is read and
    written, and it adds (a MAC where the input is graded). A bias is read and added for every output at every step.
    A LIF layer reads and writes every membrane at every step, with a MAC for the leak (none in IF neurons), and reads
    its current where no spike-driven layer has put it into the membrane; a spike is one addition (the reset) and one
    value written. A layer that sees the constant image is computed once, as in the ANN.
    Poolings and sums of branches, of which the paper has none: every input is read and costs an addition (a sum: one
    an output), every output is written, at every step; once where the image alone is behind them.

    The ANN is run once and multiplies densely, zero padding excluded. A convolution reads an input and a weight for
    each MAC, a dense layer every input once and a weight for each MAC; both read and add a bias and write every output.
    Addressing: inputs + outputs additions, and kernel x kernel x output channels of a convolution. ReLU costs nothing.
    """
    memory = Memory.of(chip)
    charges: list[Charge] = []
    for node in graph:
        match node:
            case g.Conv() | g.Dense():
                charges.append(_synapse(graph, node, memory))
            case g.LIF():
                charges.append(_lif(graph, node, memory))
            case g.AvgPool() | g.MaxPool() | g.Mean() | g.Add():
                charges.append(_reads_and_writes(graph, node, memory))
    return tuple(charges)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a 32-bit access costs: joules at sizes in bytes, linear in between, clamped outside."""

    sizes: tuple[float, ...]
    joules: tuple[float, ...]

    @classmethod
    def of(cls, chip: Chip) -> "Memory":
        """By the facts of a chip."""
        return cls(sizes=(0, *(bytes for bytes, _ in SRAM)), joules=(0, *(chip[key].value for _, key in SRAM)))

    def access(self, values: int) -> float:
        """Joules of one access to a tensor of this many values."""
        return float(np.interp(values * WORD, self.sizes, self.joules))


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """Values in the memories of a layer with weights."""

    inputs: int
    weights: int
    """Biases among them."""
    outputs: int
    bias: int
    """Outputs that a bias is added to: all or none."""


def _sizes(graph: g.Graph, node: g.Conv | g.Dense) -> _Sizes:
    outputs, bias = size(node), bool(node.bias.any())
    return _Sizes(
        inputs=size(graph[node.inputs[0]]),
        weights=node.weight.size + node.bias.size * bias,
        outputs=outputs,
        bias=outputs * bias,
    )


def _synapse(graph: g.Graph, node: g.Conv | g.Dense, memory: Memory) -> Charge:
    ann = _dense(graph, node, memory)
    if g.is_static(graph)[node.inputs[0]]:
        return _as_in_the_ann(node, ann, Terms(once=1))
    sizes, fan = _sizes(graph, node), sops_per_tap(node)
    binary = g.is_binary(graph)[node.inputs[0]]
    reads = Terms(per_nonzero=1)
    weights = Terms(per_tap=fan, per_step=sizes.bias)
    membranes = Terms(per_tap=2 * fan)
    return Charge(
        name=node.name,
        synapse=drivers(graph)[node.name],
        acs=Terms(per_tap=fan * (1 + binary), per_step=sizes.bias),
        macs=Terms(per_tap=fan * (not binary), per_nonzero=2 * isinstance(node, g.Conv)),
        accesses=reads + weights + membranes,
        access_J=reads * memory.access(sizes.inputs)
        + weights * memory.access(sizes.weights)
        + membranes * memory.access(sizes.outputs),
        ann=ann,
    )


def _dense(graph: g.Graph, node: g.Conv | g.Dense, memory: Memory) -> Dense:
    """A layer that multiplies every input with every weight."""
    sizes, macs = _sizes(graph, node), dense_macs(node, graph[node.inputs[0]].shape)
    kernel = node.weight.shape[0] * node.weight[0, 0].size if isinstance(node, g.Conv) else 0
    reads = macs if isinstance(node, g.Conv) else sizes.inputs
    return Dense(
        acs=sizes.bias + sizes.inputs + sizes.outputs + kernel,
        macs=macs,
        accesses=reads + macs + sizes.bias + sizes.outputs,
        access_J=reads * memory.access(sizes.inputs)
        + (macs + sizes.bias) * memory.access(sizes.weights)
        + sizes.outputs * memory.access(sizes.outputs),
    )


def _lif(graph: g.Graph, node: g.LIF, memory: Memory) -> Charge:
    neurons, source = size(node), graph[node.inputs[0]]
    in_membrane = isinstance(source, g.Conv | g.Dense) and not g.is_static(graph)[source.name]
    accesses = Terms(per_step=neurons * (2 if in_membrane else 3), per_spike=1)
    return Charge(
        name=node.name,
        lif=graph.lif_layers.index(node),
        acs=Terms(per_spike=1),
        macs=Terms(per_step=neurons * math.isfinite(node.tau)),
        accesses=accesses,
        access_J=accesses * memory.access(neurons),
    )


def _reads_and_writes(graph: g.Graph, node: g.Node, memory: Memory) -> Charge:
    """A pooling or a sum."""
    inputs, outputs = [size(graph[name]) for name in node.inputs], size(node)
    ann = Dense(
        acs=outputs if isinstance(node, g.Add) else sum(inputs),
        accesses=sum(inputs) + outputs,
        access_J=sum(values * memory.access(values) for values in (*inputs, outputs)),
    )
    return _as_in_the_ann(node, ann, Terms(once=1) if g.is_static(graph)[node.name] else Terms(per_step=1))


def _as_in_the_ann(node: g.Node, ann: Dense, when: Terms) -> Charge:
    """What does not depend on the image."""
    return Charge(
        name=node.name,
        acs=when * ann.acs,
        macs=when * ann.macs,
        accesses=when * ann.accesses,
        access_J=when * ann.access_J,
        ann=ann,
    )
