"""Our counts against brute force, NeuroBench 2.3 and SpikingJelly 2.0: every operation that differs has a name.

All figures are whole numbers and compared as such. Each difference is computed from the values that flow (Flow), not
from the counts that are tested; docs/energy.md, "Held against", says in words what stands here in code.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from neurobench.metrics.workload import SynapticOperations
from neurobench.models import TorchModel
from residual_networks import NETWORKS, images_for, landings, make, normalised_values, repeated
from spikingjelly.activation_based import functional, neuron
from spikingjelly.activation_based.op_counter import (
    ACCounter,
    BaseCounter,
    DispatchCounterMode,
    MACCounter,
    MemoryAccessCounter,
    ModuleCounter,
    ModuleCounterMode,
    NeuromorphicMemoryAccessCounter,
    SynOpCounter,
)
from torch import nn

from export import graph as g
from export import reference
from export.conventions import CONVENTIONS
from export.conventions_terms import Spent, evaluate
from export.counts import Counts, NeuronCounts, SynapseCounts, count
from hardware import chip


FLOAT = 4  # bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A network, what we count of it, and the values that flow through it."""

    network: nn.Module
    graph: g.Graph
    x: torch.Tensor
    """What the network reads: normalised images at every step, [T, N, C, H, W]."""
    values: dict[str, np.ndarray]
    counts: Counts
    spent: dict[str, Spent]
    """By event_exact."""

    def module(self, node: g.Node) -> nn.Module:
        return self.network.get_submodule(node.name.partition(".")[2])

    def of(self, node: g.Node) -> SynapseCounts:
        return next(layer for layer in self.counts.synapses if layer.name == node.name)

    def neurons(self, node: g.Node) -> NeuronCounts:
        return next(layer for layer in self.counts.neurons if layer.name == node.name)

    def input(self, node: g.Node) -> np.ndarray:
        """What a layer reads at every step, [T, N, *shape]."""
        x = self.values[node.inputs[0]]
        return np.broadcast_to(x, (self.graph.T, *x.shape[1:]))

    def size(self, node: g.Node) -> int:
        """Values of a node over all steps and images."""
        return self.x.shape[0] * self.x.shape[1] * int(np.prod(node.shape))


@pytest.fixture(params=NETWORKS, ids=lambda kind: kind.__name__)
def case(request: pytest.FixtureRequest) -> Case:
    network, graph = make(request.param)
    images = images_for(graph)
    counts = count(graph, images)
    charges = CONVENTIONS["event_exact"].charges(graph, None, chip.load("cmos45nm"))
    return Case(
        network=network,
        graph=graph,
        x=repeated(graph, images),
        values=reference.run(graph, images),
        counts=counts,
        spent={charge.name: evaluate(charge, counts) for charge in charges},
    )


def looks_like_spikes(x: np.ndarray) -> bool:
    """How NeuroBench and SpikingJelly tell an AC from a MAC: by the values of one call, not by where they are from."""
    return bool(np.isin(x, (0, 1)).all())


def counted_by(case: Case, counter: BaseCounter) -> dict[str, dict[str, int]]:
    """What a counter of SpikingJelly's found in one pass: by scope, then by operation."""
    functional.reset_net(case.network)
    if isinstance(counter, ModuleCounter):
        mode = ModuleCounterMode([counter], model=case.network)
    else:
        mode = DispatchCounterMode([counter])
    with torch.no_grad(), mode:
        case.network(case.x)
    return {scope: {str(op): int(n) for op, n in ops.items()} for scope, ops in counter.get_counts().items()}


def test_the_networks_compute_what_their_graphs_do_and_every_layer_takes_part(case: Case) -> None:
    functional.reset_net(case.network)
    with torch.no_grad():
        logits = case.network(case.x).numpy()
    np.testing.assert_array_equal(logits, reference.logits(case.graph, case.values))
    for node in case.graph.synapses:
        x = case.input(node)
        assert (x == 0).any()
        assert (x != 0).any()
        assert looks_like_spikes(x) == case.of(node).binary  # the other counters go by what values look like
    assert any((node.weight == 0).any() for node in case.graph.synapses)


def test_operations_are_what_convolving_spikes_with_ones_gives(case: Case) -> None:
    for node in case.graph.synapses:
        ones, events = np.ones_like(node.weight), case.input(node) != 0
        layer = case.of(node)
        assert layer.dense_macs * events.shape[1] == landings(node, np.ones_like(events[:1]), ones)
        for t, step in enumerate(events):
            for n, image in enumerate(step):
                wanted = 0 if layer.static else landings(node, image[None, None], ones)
                assert layer.sops[t, n] == wanted


def test_neurobench_counts_the_same_operations(case: Case) -> None:
    """NeuroBench = ours - operations through weights of zero; of the image, a step's work T times without zeros."""
    model = TorchModel(case.network)
    model.register_hooks()
    functional.reset_net(case.network)
    with torch.no_grad():
        model(case.x)
    data = (case.x.transpose(0, 1), None)
    hooks = {hook.layer: hook for hook in model.connection_hooks}
    T, N = case.x.shape[:2]
    whole, total = SynapticOperations(), 0
    for node in case.graph.synapses:
        theirs, x, layer, spent = SynapticOperations(), case.input(node), case.of(node), case.spent[node.name]
        for metric in (theirs, whole):
            metric(SimpleNamespace(connection_hooks=[hooks[case.module(node)]]), None, data)
        absent = landings(node, x != 0, node.weight == 0)  # a weight of zero is no synapse to them
        again = (T - 1) * N * layer.dense_macs if layer.static else 0  # the image anew at every step
        skipped = landings(node, x == 0, np.ones_like(node.weight)) if layer.static else 0  # its zeros, which we take
        acs, macs = int(spent.acs.sum()), int(spent.macs.sum())
        wanted = (acs - absent, 0) if layer.binary else (0, macs + again - skipped - absent)
        assert wanted == (theirs.AC, theirs.MAC)
        assert theirs.total_synops == T * N * layer.dense_macs
        total += sum(wanted)
    model.cleanup_hooks()
    assert total == whole.AC + whole.MAC
    assert set(hooks) == {case.module(node) for node in case.graph.synapses}


def test_spikingjellys_synaptic_operations_are_ours_of_spikes(case: Case) -> None:
    """SynOpCounter = ours where the input is spikes, else 0."""
    found = counted_by(case, SynOpCounter())
    total = 0
    for node in case.graph.synapses:
        (theirs,) = found[node.name].values()
        assert theirs == case.spent[node.name].acs.sum() == (case.of(node).sops.sum() if case.of(node).binary else 0)
        total += theirs
    assert sum(found["Global"].values()) == total == sum(spent.acs.sum() for spent in case.spent.values()) > 0


def test_spikingjellys_multiplications_are_ours_with_padding_zeros_steps_and_normalisation(case: Case) -> None:
    """MACCounter = ours + taps in the padding + zero inputs + the image at every step + 1 a normalised value."""
    found = counted_by(case, MACCounter())
    T, N = case.x.shape[:2]
    total = 0
    for node in case.graph.synapses:
        (theirs,) = found[node.name].values()
        layer, ours = case.of(node), int(case.spent[node.name].macs.sum())
        padding = case.size(node) * node.weight[0].size - T * N * layer.dense_macs
        zeros = 0 if layer.static else landings(node, case.input(node) == 0, np.ones_like(node.weight))
        again = (T - 1) * N * layer.dense_macs if layer.static else 0
        assert theirs == (0 if layer.binary else ours + padding + zeros + again)
        total += theirs
    norms = [name for name, module in case.network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    values = normalised_values(case.network, case.x)
    total += sum(values.values())
    assert len(values) == len(norms)
    assert sum(found["Global"].values()) == total


def test_spikingjellys_additions_are_ours_and_those_of_neurons_sums_pools_and_normalisations(case: Case) -> None:
    """ACCounter = ours + what we list and do not price: neurons, residual sums, averages; and unfused normalisation."""
    found = {scope: sum(ops.values()) for scope, ops in counted_by(case, ACCounter()).items()}
    wanted = {node.name: int(case.spent[node.name].acs.sum()) for node in case.graph.synapses}
    for node in case.graph:
        match node:
            case g.LIF():
                wanted[node.name] = arithmetic(node, case.input(node))
            case g.Add():
                wanted[node.name] = added(*(case.values[name] for name in node.inputs))
            case g.AvgPool():
                wanted[node.name] = case.size(node) * (node.kernel[0] * node.kernel[1] - 1)
            case g.Mean():
                wanted[node.name] = case.size(case.graph[node.inputs[0]]) - case.size(node)
    for name, values in normalised_values(case.network, case.x).items():
        channels = case.network.get_submodule(name.partition(".")[2]).num_features
        wanted[name] = values + channels  # x - mean, and variance + eps
    assert {name: n for name, n in found.items() if name in wanted} == wanted
    assert found["Global"] == sum(wanted.values())


def added(x: np.ndarray, y: np.ndarray) -> int:
    """SpikingJelly's additions of two arrays: the ones in them if both are spikes, else one a value."""
    return int(x.sum() + y.sum()) if looks_like_spikes(x) and looks_like_spikes(y) else x.size


def arithmetic(node: g.LIF, drive: np.ndarray) -> int:
    """SpikingJelly's additions in the neurons of a layer for its currents [T, N, *shape]."""
    v, additions = np.full_like(drive[0], node.v_reset), 0
    for x in drive:
        leak = v - node.v_reset
        if node.decay_input:
            additions += x.size + added(x, leak) + added(v, (x - leak) / node.tau)
            h = v + (x - leak) / node.tau
        elif np.isinf(node.tau):
            additions += added(v, x)
            h = v + x
        else:
            additions += x.size + added(v, leak / node.tau) + added(v - leak / node.tau, x)
            h = v - leak / node.tau + x
        spikes = (h >= node.v_threshold).astype(x.dtype)
        # h - threshold and 1 - spikes; then spikes * v_reset + (1 - spikes) * h
        additions += 2 * x.size + added(spikes * node.v_reset, (1 - spikes) * h)
        v = np.where(spikes > 0, node.v_reset, h)
    return additions


def test_spikingjellys_event_driven_memory_accesses_are_those_of_memory_aware(case: Case) -> None:
    """A weight a synaptic operation, a bias an output, a membrane read and written each step: the same, in words."""
    found = counted_by(case, NeuromorphicMemoryAccessCounter())
    charges = CONVENTIONS["memory_aware"].charges(case.graph, None, chip.load("cmos45nm"))
    accesses = {charge.name: int(evaluate(charge, case.counts).accesses.sum()) for charge in charges}
    for node in case.graph.synapses:
        theirs, layer = {key: n // FLOAT for key, n in found[node.name].items()}, case.of(node)
        assert theirs["bias_read_bytes"] == (case.size(node) if case.module(node).bias is not None else 0)
        if not layer.binary:  # they fall back on the dense layer, padding and zeros among them
            assert theirs["weight_read_bytes"] == case.size(node) * node.weight[0].size
            continue
        assert theirs["weight_read_bytes"] == layer.weight_reads.sum()
        # Ours reads the bias that normalisation leaves too, the spikes, and adds into membranes in memory.
        biases = case.size(node) * bool(node.bias.any())
        ours = layer.weight_reads + layer.input_reads + layer.membrane_accesses
        assert accesses[node.name] == ours.sum() + biases
    for node in case.graph.lif_layers:
        theirs, layer = {key: n // FLOAT for key, n in found[node.name].items()}, case.neurons(node)
        read, written = theirs["neuron_state_read_bytes"], theirs["neuron_state_write_bytes"]
        assert read == written == case.size(node)
        assert read + written == layer.membrane_accesses.sum()
        source = case.graph[node.inputs[0]]
        direct = isinstance(source, g.Conv | g.Dense) and not g.is_static(case.graph)[source.name]
        currents = 0 if direct else case.size(node)  # read where no layer has put them into the membrane
        assert accesses[node.name] == read + written + layer.spike_writes.sum() + currents


def test_spikingjellys_tensor_traffic_is_every_tensor_once(case: Case) -> None:
    """MemoryAccessCounter = inputs + weights + biases + outputs, zeros too: no event makes it more or less."""
    found = counted_by(case, MemoryAccessCounter())
    per_step = {neuron.LIFNode: 114, neuron.IFNode: 86}  # bytes of the intermediate tensors of one value's update
    wanted: dict[str, int] = {}
    for node in case.graph:
        sources = sum(case.size(case.graph[name]) for name in node.inputs)
        match node:
            case g.Conv() | g.Dense():
                layer = case.of(node)
                zeros = int((case.input(node) == 0).sum())
                read = layer.input_reads.sum() + zeros if not layer.static else sources
                bias = case.module(node).bias
                weights = node.weight.size + (0 if bias is None else bias.numel())
                wanted[node.name] = FLOAT * (read + weights + case.size(node))
            case g.LIF():
                wanted[node.name] = case.size(node) * per_step[type(case.module(node))]
                wanted[node.name] += FLOAT * case.size(node) // case.graph.T  # the first membrane
            case g.Add() | g.AvgPool() | g.Mean():
                wanted[node.name] = FLOAT * (sources + case.size(node))
            case g.MaxPool():
                wanted[node.name] = FLOAT * (sources + case.size(node)) + 8 * case.size(node)  # and where each was
    for name, values in normalised_values(case.network, case.x).items():
        channels = case.network.get_submodule(name.partition(".")[2]).num_features
        wanted[name] = FLOAT * (2 * values + 4 * channels)
    assert {name: sum(found[name].values()) for name in wanted} == wanted
    assert sum(found["Global"].values()) == sum(wanted.values())
