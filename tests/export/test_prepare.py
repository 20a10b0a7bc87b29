"""Preparing a Graph for the chip changes its form and nothing that it computes; the rest is refused by name."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from chip_graphs import LIF, Recipe, Smooth, build, images_of, recipes
from hypothesis import example, given, settings
from live_networks import DIGITS, live_network

from export import graph as g
from export import reference
from export.lower import lower_network
from export.prepare import NotForLoihi, leaves, prepare, synapses_of, theta, v_decay
from export.sequence import sequence
from train.config import NetConfig
from train.networks import build as build_network


EVERY_BLOCK = Recipe(
    seed=3,
    blocks=("residual", "flipped", "nested", "projected", "sew", "sew", "avg", "sew_projected", "conv", "max"),
    side=(16, 12),
    neuron=(3.0, False),
    v_threshold=0.75,
    T=4,
    head="mean",
)


def assert_same_computation(graph: g.Graph, prepared: g.Graph) -> None:
    """Every spike equal and logits to 1e-9, in float64."""
    images = images_of(graph, 2)
    wanted, got = reference.run(graph, images), reference.run(prepared, images)
    for lif in graph.lif_layers:
        np.testing.assert_array_equal(got[lif.name], wanted[lif.name], err_msg=lif.name)
    logits = reference.logits(prepared, got), reference.logits(graph, wanted)
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-9)


def assert_of_the_chip(prepared: g.Graph) -> None:
    """Neurons read sums of synapses, a sum's first synapse has all of its bias, and nothing is an average."""
    assert not [node for node in prepared if isinstance(node, g.AvgPool | g.Mean)]
    for lif in prepared.lif_layers:
        read = list(leaves(prepared, lif.inputs[0]))
        assert all(isinstance(leaf, g.Conv | g.Dense) for leaf in read), lif.name
        assert not any(synapse.bias.any() for synapse in synapses_of(prepared, lif)[1:]), lif.name
    assert isinstance(prepared.output, g.Dense)


@settings(max_examples=120, deadline=None)
@given(recipe=recipes(most=4))
@example(recipe=EVERY_BLOCK)
def test_a_prepared_graph_computes_the_same(recipe: Recipe) -> None:
    graph = build(recipe)
    prepared = prepare(graph)
    assert_of_the_chip(prepared)
    assert_same_computation(graph, prepared)


def test_the_graphs_that_are_compared_fire() -> None:
    graph = build(EVERY_BLOCK)
    values = reference.run(graph, images_of(graph, 4))
    rates = [float(values[lif.name].mean()) for lif in graph.lif_layers]
    assert len(rates) == 18
    assert sum(0.05 < rate < 0.95 for rate in rates) > 12


@pytest.mark.parametrize("name", ["vgg_small", "resnet18", "resnet20", "resnet19_tet", "sew_resnet18"])
def test_every_family_of_networks_is_prepared(name: str) -> None:
    config = NetConfig(name=name, width=0.05, T=2)
    graph = lower_network(live_network(config, torch.randn(8, 1, 8, 8, dtype=torch.float64)), DIGITS)
    prepared = prepare(graph)
    assert_of_the_chip(prepared)
    assert_same_computation(graph, prepared)
    assert sequence(prepared)[-1].parts[0].name == "body.classifier"


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_vgg11_is_prepared_with_either_pooling(pool: Any) -> None:
    config = NetConfig(name="vgg11", pool=pool, width=0.05, T=2, size=32)
    network = live_network(config, torch.randn(4, 1, 32, 32, dtype=torch.float64))
    graph = lower_network(network, dataclasses.replace(DIGITS, size=32))
    prepared = prepare(graph)
    assert_of_the_chip(prepared)
    assert_same_computation(graph, prepared)
    assert sum(isinstance(node, g.MaxPool) for node in prepared) == (5 if pool == "max" else 0)


def test_a_prepared_graph_stays_as_it_is() -> None:
    prepared = prepare(build(EVERY_BLOCK))
    again = prepare(prepared)
    assert [node.name for node in again] == [node.name for node in prepared]
    for one, other in zip(again.synapses, prepared.synapses, strict=True):
        np.testing.assert_array_equal(one.weight, other.weight)
        np.testing.assert_array_equal(one.bias, other.bias)


@pytest.mark.parametrize(
    ("tau", "decay"), [(2.0, 2048), (3.0, 1365), (1.5, 2731), (1.0, 4096), (math.inf, 0), (8191.0, 1)]
)
def test_the_decay_is_the_nearest_in_twelve_bits(tau: float, decay: int) -> None:
    assert v_decay(tau) == decay


@pytest.mark.parametrize(("decay_input", "tau", "expected"), [(True, 3.0, 1.5), (False, 3.0, 0.5)])
def test_the_chips_membrane_is_tau_times_that_of_a_neuron_whose_input_decays(
    decay_input: bool, tau: float, expected: float
) -> None:
    node = g.LIF(name="l", inputs=("x",), shape=(1,), tau=tau, v_threshold=0.5, v_reset=0.0, decay_input=decay_input)
    assert theta(node) == expected


def start(*, side: tuple[int, int] = (4, 4), **lif: Any) -> Smooth:
    """A Graph that has begun: stem and lif, two channels of spikes."""
    m = Smooth(rng=np.random.default_rng(0), lif={**LIF, **lif})
    m.image(1, *side)
    m.conv("stem", 2)
    m.spike("lif")
    return m


def classified(m: Smooth) -> g.Graph:
    m.features(g.Flatten, "flatten")
    m.dense("classifier", 3)
    return g.Graph(nodes=tuple(m.nodes), T=2)


def spike(m: Smooth, name: str, source: str) -> str:
    """A LIF that reads any node."""
    m.nodes.append(g.LIF(name=name, inputs=(source,), shape=m.shape(source), **m.lif))
    return name


def max_pooled_sum() -> g.Graph:
    m = start()
    m.conv("conv", 2)
    m.spike("lif2")
    m.add("sum", "lif", "lif2")
    m.pool(g.MaxPool, "pool", (2, 2))
    return classified(m)


def max_pooled_current() -> g.Graph:
    m = start()
    m.conv("conv", 2)
    m.pool(g.MaxPool, "pool", (2, 2))
    m.spike("lif2")
    return classified(m)


def pooled_current() -> g.Graph:
    m = start()
    m.conv("conv", 2)
    m.pool(g.AvgPool, "pool", (2, 2))
    m.spike("lif2")
    return classified(m)


def remainder() -> g.Graph:
    m = start()
    m.pool(g.AvgPool, "pool", (3, 3))
    return classified(m)


def pooled_for_two() -> g.Graph:
    m = start()
    pool = m.pool(g.AvgPool, "pool", (2, 2))
    m.conv("left", 2)
    m.conv("right", 2, source=pool)
    m.add("sum", "left", "right")
    m.spike("lif2")
    return classified(m)


def two_convolutions_in_a_row() -> g.Graph:
    m = start()
    m.conv("conv2", 2)
    m.conv("conv3", 2)
    m.spike("lif2")
    return classified(m)


def dense_first() -> g.Graph:
    m = Smooth(rng=np.random.default_rng(0), lif=LIF)
    m.image(1, 4, 4)
    m.features(g.Flatten, "pixels")
    m.dense("fc", 3)
    m.spike("lif")
    m.dense("classifier", 3)
    return g.Graph(nodes=tuple(m.nodes), T=2)


def dense_after_the_first() -> g.Graph:
    m = start()
    m.nodes.append(g.Flatten(name="pixels", inputs=("image",), shape=(16,)))
    m.dense("fc", 3)
    m.spike("lif2")
    m.dense("classifier", 3)
    return g.Graph(nodes=tuple(m.nodes), T=2)


def no_classifier() -> g.Graph:
    m = start()
    m.conv("conv2", 2)
    return g.Graph(nodes=tuple(m.nodes), T=2)


def spiking_classifier() -> g.Graph:
    m = start()
    m.features(g.Flatten, "flatten")
    m.dense("classifier", 3)
    m.spike("last")
    return g.Graph(nodes=tuple(m.nodes), T=2)


def image_into_neurons() -> g.Graph:
    m = Smooth(rng=np.random.default_rng(0), lif=LIF)
    m.image(2, 4, 4)
    m.spike("lif")
    m.conv("conv", 2)
    m.add("sum", "conv", "image")
    m.spike("lif2")
    return classified(m)


def image_in_a_sum() -> g.Graph:
    m = Smooth(rng=np.random.default_rng(0), lif=LIF)
    m.image(2, 4, 4)
    m.conv("stem", 2)
    m.add("sum", "stem", "image")
    m.spike("lif")
    return classified(m)


def image_and_spikes_in_one_convolution() -> g.Graph:
    m = Smooth(rng=np.random.default_rng(0), lif=LIF)
    m.image(2, 4, 4)
    m.conv("stem", 2)
    m.spike("lif")
    m.add("sum", "lif", "image")
    m.conv("conv", 2)
    m.spike("lif2")
    return classified(m)


def pooled_image() -> g.Graph:
    m = Smooth(rng=np.random.default_rng(0), lif=LIF)
    m.image(2, 4, 4)
    m.pool(g.MaxPool, "pool", (2, 2))
    m.conv("stem", 2)
    m.spike("lif")
    return classified(m)


def one_sum_for_two() -> g.Graph:
    m = start()
    m.conv("conv", 2)
    m.conv("side", 2, source="lif")
    m.add("sum", "conv", "side")
    spike(m, "left", "sum")
    spike(m, "right", "sum")
    m.add("both", "left", "right")
    return classified(m)


def a_summand_of_one_that_is_the_current_of_another() -> g.Graph:
    m = start()
    m.conv("conv", 2)
    m.spike("left")
    m.conv("side", 2, source="lif")
    m.add("sum", "side", "conv")
    m.spike("right")
    return classified(m)


def a_current_added_to_itself() -> g.Graph:
    m = start()
    m.conv("conv", 2)
    m.add("sum", "conv", "conv")
    m.spike("lif2")
    return classified(m)


def built(**lif: Any) -> Callable[[], g.Graph]:
    return lambda: classified(start(**lif))


REFUSED: list[tuple[Callable[[], g.Graph], str]] = [
    (built(v_reset=-0.5), r"lif: the chip resets to 0, v_reset is -0\.5; train with --net\.v_reset 0$"),
    (
        built(tau=8192.0),
        r"lif: tau is 8192, and a decay of 1/8192 is 0 in the chip's 12 bits; train with --net\.tau up to 8191, "
        r"or without a leak: --net\.neuron if$",
    ),
    (
        max_pooled_sum,
        r"pool: the chip takes the maximum of spikes \(0 or 1\), not of sum; train with the pooling",
    ),
    (max_pooled_current, r"conv: every layer but the last must be followed by a LIF"),
    (pooled_image, r"pool: the chip takes the maximum of spikes \(0 or 1\), not of image"),
    (pooled_current, r"pool: pooling must be read by one conv.* read by lif2 \(LIF\); or export .* ONNX$"),
    (pooled_for_two, r"pool: .* read by left \(Conv\), right \(Conv\); or export this student to ONNX$"),
    (
        remainder,
        r"pool: \(4, 4\) is not a multiple of the window \(3, 3\); pad or resize; or export",
    ),
    (two_convolutions_in_a_row, r"conv2: every layer but the last must be followed by a LIF"),
    (dense_first, r"pixels: the first layer must be a convolution of the image"),
    (dense_after_the_first, r"fc: reads image, which gives no spikes; a LIF must stand between"),
    (no_classifier, r"conv2: the last layer must be dense \(the classifier\)"),
    (spiking_classifier, r"last: the last layer must be dense \(the classifier\)"),
    (image_into_neurons, r"lif: neurons must read the image through a convolution"),
    (image_in_a_sum, r"sum: neurons must read the image through a convolution"),
    (image_and_spikes_in_one_convolution, r"conv: reads image, which gives no spikes; a LIF must stand between"),
    (one_sum_for_two, r"conv: two LIF layers read it, or one reads it twice; give each a layer of its own"),
    (a_summand_of_one_that_is_the_current_of_another, r"conv: two LIF layers read it, or one reads it twice"),
    (a_current_added_to_itself, r"conv: two LIF layers read it, or one reads it twice"),
]


@pytest.mark.parametrize(("made", "message"), REFUSED, ids=[made.__name__ for made, _ in REFUSED])
def test_what_the_chip_cannot_do_is_refused_by_layer(made: Callable[[], g.Graph], message: str) -> None:
    with pytest.raises(NotForLoihi, match=message):
        prepare(made())


def test_a_refusal_names_the_first_layer_of_a_deep_network() -> None:
    network = build_network(NetConfig(name="resnet18", width=0.05, T=2, tau=9000.0))
    with pytest.raises(NotForLoihi, match=r"^body\.act: tau is 9000"):
        prepare(lower_network(network, DIGITS))
