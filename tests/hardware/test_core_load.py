import dataclasses
from itertools import product
from math import ceil, prod

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hardware import chip, core_load
from hardware.chip import Chip
from hardware.core_load import FACTS
from hardware.mapping import MappingError, place
from hardware.net import ConvLayer, DenseLayer, Net
from hardware.netx_sim import weighted_sum
from tests.hardware.placing import LIF, LOIHI2, but, cases, chain


def tiles(layer: ConvLayer, tile: tuple[int, int, int]) -> list[list[tuple[int, int, int]]]:
    """The neurons of each core."""
    neurons = list(product(*map(range, layer.shape)))
    cores: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
    for neuron in neurons:
        cores.setdefault(tuple(at // size for at, size in zip(neuron, tile, strict=True)), []).append(neuron)
    return list(cores.values())


def sources(layer: ConvLayer, neuron: tuple[int, int, int], before: tuple[int, int, int]) -> set[tuple[int, int, int]]:
    """The input neurons that a neuron reads, without padding."""
    c, y, x = neuron
    fan_in = layer.weight.shape[1]
    group = c // (layer.shape[0] // layer.groups)
    found = set()
    for i, ky, kx in product(range(fan_in), *map(range, layer.weight.shape[2:])):
        row, column = y * layer.stride[0] - layer.padding[0] + ky, x * layer.stride[1] - layer.padding[1] + kx
        if 0 <= row < before[1] and 0 <= column < before[2]:
            found.add((group * fan_in + i, row, column))
    return found


def list_words(on: Chip, synapses: int, weight_bits: int) -> int:
    bits = weight_bits + on[FACTS["kernel_index_bits"]].value
    blocks = ceil(synapses / on[FACTS["block"]].value)
    return ceil((synapses * bits + blocks * on[FACTS["header_bits"]].value) / on[FACTS["word_bits"]].value)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_what_a_core_holds_is_what_counting_gives(case: tuple[Net, Chip]) -> None:
    net, on = case
    try:
        first, second = place(net, on).layers
    except MappingError:
        return
    layers = net.spiking
    for layer, placement, before in zip(layers, (first, second), net.layers, strict=False):
        cores = tiles(layer, placement.tile)
        assert placement.cores == len(cores)
        assert placement.neurons == prod(layer.shape)
        assert placement.used["neurons"] >= max(map(len, cores))
        read = [set().union(*(sources(layer, neuron, before.shape) for neuron in core)) for core in cores]
        if not placement.shared_kernels:
            assert placement.used["input_axons"] >= max(map(len, read))
            continue
        assert placement.used["input_axons"] == max(len({place[1:] for place in core}) for core in read)
        words = []
        for core in cores:
            channels = {neuron[0] for neuron in core}
            group = layer.shape[0] // layer.groups
            runs = [sum(channel // group == g for channel in channels) for g in range(layer.groups)]
            words.append(
                prod(layer.weight.shape[1:]) * sum(list_words(on, run, placement.weight_bits) for run in runs if run)
            )
        assert placement.used["synapse_words"] == max(words)
    if second.shared_kernels:
        per_core = []
        readers = [
            {place[1:] for neuron in core for place in sources(layers[1], neuron, layers[0].shape)}
            for core in tiles(layers[1], second.tile)
        ]
        for core in tiles(layers[0], first.tile):
            counts = [sum(pixel in reader for reader in readers) for pixel in {neuron[1:] for neuron in core}]
            per_core.append(sum(counts) if on[FACTS["axon_per_target"]].value else sum(map(bool, counts)))
        assert first.used["output_axons"] == max(per_core)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_synapses_are_the_neurons_that_inputs_reach(case: tuple[Net, Chip]) -> None:
    net, _ = case
    layer = net.spiking[0]
    dense = dataclasses.replace(layer, weight=np.ones_like(layer.weight))
    impulses = np.eye(prod(net.input.shape), dtype=np.int64).reshape(1, -1, *net.input.shape)
    assert core_load.synapses(dense, net.input.shape) == np.count_nonzero(weighted_sum(dense, impulses))
    assert core_load.synapses(dataclasses.replace(layer, weight=0 * layer.weight), net.input.shape) == 0


@given(st.lists(st.integers(-128, 127), min_size=1, max_size=6), st.integers(0, 1))
@example([0, -1], 0)
def test_weight_bits_are_the_fewest_that_hold_the_weights(weights: list[int], double: int) -> None:
    weight = np.array([weights]) << double

    def holds(bits: int) -> bool:
        for shift in range(9):
            low, high = (0, 2**bits - 1) if weight.min() >= 0 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            if weight.max() < 0:
                low, high = -(2**bits), -1
            parts = weight >> shift
            if np.all(parts << shift == weight) and parts.min() >= low and parts.max() <= high:
                return True
        return False

    layer = DenseLayer(name="d", shape=(1,), weight=weight, bias=np.zeros(1, int), neuron=LIF)
    bits = core_load.weight_bits(layer)
    assert holds(bits)
    assert bits == 1 or not holds(bits - 1)


@pytest.mark.parametrize(
    ("inputs", "neurons", "bits", "words"),
    [
        (10, 1, 6, 10),  # PilotNet LIF
        (50, 10, 5, 150),
        (100, 50, 4, 1300),
        (100, 50, 6, 1500),  # PilotNet SDNN
        (200, 85, 8, 5400),  # Oxford, one of three cores
        (256, 100, 8, 256 * 32),  # Oxford; printed 252 x 32, a mean
        (2560, 9, 3, 7680),  # PilotNet LIF, eleven of twelve cores
    ],
)
def test_dense_layers_take_the_words_that_the_compiler_prints(inputs: int, neurons: int, bits: int, words: int) -> None:
    net = chain((inputs,), ("dense", neurons), bits=bits)
    assert place(net, but(LOIHI2, synapse_words=20_000)).layers[0].used["synapse_words"] == words


@pytest.mark.parametrize("name", ["loihi1", "loihi2"])
def test_every_number_is_a_fact_with_a_source(name: str) -> None:
    facts = chip.load(name)
    for key in FACTS.values():
        assert facts[key].source
        assert facts[key].status in chip.STATUSES
        assert facts[key].value == int(facts[key].value)
