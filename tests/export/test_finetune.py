"""Training sees the integer network bit for bit, learns by straight-through gradients, and writes what it computed."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from chip_graphs import (
    LIF,
    LIMITS,
    Recipe,
    Smooth,
    a_recipe,
    build,
    images_of,
    naive_scales,
    recipes,
)
from hypothesis import example, given, settings
from torch import Tensor

from export import execute
from export import graph as g
from export.integer_network import IntegerNetwork, folding, key, repeated
from export.prepare import prepare
from export.quantize import quantize
from export.scales import Scales, rebuild


def in_float32(graph: g.Graph) -> g.Graph:
    """The Graph with weights that float32 holds, as those of a student are."""
    synapses = [
        dataclasses.replace(node, weight=node.weight.astype(np.float32).astype(float)) for node in graph.synapses
    ]
    return graph.replace(*synapses)


def trained_form(graph: g.Graph, *, fraction: float = 0.9) -> tuple[IntegerNetwork, g.Graph, Scales]:
    """A network in training, the integer twin and the scales of both."""
    prepared = prepare(graph)
    scales = naive_scales(prepared, fraction=fraction)
    return IntegerNetwork(graph, prepared, scales, surrogate="atan"), rebuild(prepared, scales), scales


def normalised(graph: g.Graph, images: np.ndarray) -> Tensor:
    column = (slice(None), None, None)
    return torch.from_numpy((images - graph.input.mean[column]) / graph.input.std[column])


@settings(max_examples=80, deadline=None)
@given(recipe=recipes(most=3))
@example(recipe=a_recipe("residual", "sew", neuron=(math.inf, False)))
@example(recipe=a_recipe("avg", "projected", "flipped", neuron=(3.0, False), head="mean"))
def test_the_forward_pass_is_the_integer_twin(recipe: Recipe) -> None:
    graph = in_float32(build(recipe))
    network, twin, scales = trained_form(graph)
    images = images_of(graph, 2)
    wanted = execute.logits(twin, execute.run(twin, images))
    with torch.no_grad():
        got = network(normalised(graph, images)).double().numpy() * scales.currents[graph.output.name]
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-3)  # integers, divided and multiplied in float32
    np.testing.assert_array_equal(np.rint(got), wanted)


def test_so_it_is_under_the_scales_that_are_searched() -> None:
    for seed in range(6):
        graph = in_float32(build(a_recipe("residual", "sew_projected", "avg", seed=seed)))
        images = images_of(graph, 4)
        twin, scales = quantize(graph, images, LIMITS)
        network = IntegerNetwork(graph, prepare(graph), scales, surrogate="atan")
        with torch.no_grad():
            got = network(normalised(graph, images)).double().numpy() * scales.currents[graph.output.name]
        np.testing.assert_array_equal(np.rint(got), execute.logits(twin, execute.run(twin, images)))


def test_so_it_is_where_the_weights_of_a_shortcut_are_clipped() -> None:
    """They do not learn, but they have 8 bits like all others."""
    graph = in_float32(build(a_recipe("residual")))
    prepared = prepare(graph)
    scales = naive_scales(prepared)
    scales = dataclasses.replace(
        scales,
        currents=scales.currents | {"block0.lif2": 190.0},
        thresholds=scales.thresholds | {"block0.lif2": 150},
    )
    twin, images = rebuild(prepared, scales), images_of(graph, 3)
    network = IntegerNetwork(graph, prepared, scales, surrogate="atan")
    own = prepared["block0.add/stem.lif"]
    assert isinstance(own, g.Conv)
    assert network.integer_weight(own).unique().tolist() == [127.0]
    with torch.no_grad():
        got = network(normalised(graph, images)).double().numpy() * scales.currents[graph.output.name]
    np.testing.assert_array_equal(np.rint(got), execute.logits(twin, execute.run(twin, images)))


def test_so_it_is_for_frames_of_events() -> None:
    graph = in_float32(build(a_recipe("residual")))
    graph = graph.replace(dataclasses.replace(graph.input, mean=np.zeros(2), std=np.full(2, 1 / 255), event=True))
    frames = np.random.default_rng(0).poisson(0.7, (graph.T, 3, *graph.input.shape)) / 255
    twin, scales = quantize(graph, frames, LIMITS)
    network = IntegerNetwork(graph, prepare(graph), scales, surrogate="atan")
    with torch.no_grad():
        got = network(normalised(graph, frames)).double().numpy() * scales.currents[graph.output.name]
    np.testing.assert_array_equal(np.rint(got), execute.logits(twin, execute.run(twin, frames)))


def test_a_gradient_reaches_every_weight_and_every_bias() -> None:
    for blocks in (("residual", "projected"), ("sew", "sew_projected"), ("nested", "avg"), ("max", "conv")):
        graph = build(a_recipe(*blocks, neuron=(2.0, False), head="dense_residual"))
        network, _, _ = trained_form(graph)
        network(normalised(graph, images_of(graph, 8))).square().sum().backward()
        known = {key(node.name) for node in graph.synapses}
        assert set(network.weights) == known, "a shortcut's ones do not learn"
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


ATAN = {"atan": lambda x: 1 / (1 + (math.pi * x) ** 2), "triangle": lambda x: max(0.0, 1 - abs(x))}


def one_neuron(*, tau: float, decay_input: bool, T: int) -> g.Graph:
    """One pixel, one neuron, one logit."""
    m = Smooth(rng=np.random.default_rng(0), lif={**LIF, "tau": tau, "decay_input": decay_input})
    m.image(1, 1, 1)
    m.conv("conv", 1, kernel=(1, 1), padding=(0, 0))
    m.spike("lif")
    m.features(g.Flatten, "flatten")
    m.dense("classifier", 1)
    graph = g.Graph(nodes=tuple(m.nodes), T=T)
    plain = dataclasses.replace(graph.input, mean=np.zeros(1), std=np.ones(1))
    conv = dataclasses.replace(graph["conv"], weight=np.full((1, 1, 1, 1), 0.71875), bias=np.array([0.125]))
    dense = dataclasses.replace(graph["classifier"], weight=np.array([[-0.8125]]), bias=np.array([0.25]))
    return graph.replace(plain, conv, dense)


@pytest.mark.parametrize("surrogate", ["atan", "triangle"])
@pytest.mark.parametrize(("tau", "decay_input"), [(2.0, True), (2.0, False), (3.0, True), (math.inf, False)])
def test_gradients_are_those_of_the_straight_through_rule(tau: float, decay_input: bool, surrogate: str) -> None:
    """By hand: rounding and the reset have derivative 1 and 0, a spike that of the surrogate at its own membrane."""
    T, pixel = 6, 0.625
    weights_of_loss = [0.5, -1.0, 2.0, 0.25, 1.5, -0.75]
    graph = one_neuron(tau=tau, decay_input=decay_input, T=T)
    prepared = prepare(graph)
    scales = Scales(
        input=100.0,
        currents={"lif": 9000.0, "classifier": 120.0},
        thresholds={"lif": 6000},
        biases={"lif": [1100], "classifier": [30]},
    )
    network = IntegerNetwork(graph, prepared, scales, surrogate=surrogate)
    logits = network(torch.full((1, 1, 1, 1), pixel))
    (logits[:, 0, 0] * torch.tensor(weights_of_loss)).sum().backward()

    weight, bias, out, out_bias = round(0.71875 * 90), 1100, round(-0.8125 * 120), 30
    kept = 1 - round(4096 / tau) / 4096
    current = round(pixel * 100) * weight + bias
    membranes, spikes, v = [], [], 0
    for _ in range(T):
        v = math.trunc(v * kept) + 64 * current
        membranes.append(v)
        spikes.append(int(v > 64 * 6000))
        v = 0 if spikes[-1] else v
    assert 0 < sum(spikes) < T
    assert logits[:, 0, 0].tolist() == pytest.approx([(out * spike + out_bias) / 120 for spike in spikes])
    unit = 9000.0 * (tau if decay_input else 1.0)
    by_current, by_membrane = 0.0, 0.0
    for t in reversed(range(T)):
        over = (membranes[t] - 64 * 6000 - 1) / 64 / unit
        direct = weights_of_loss[t] * out / 120 * ATAN[surrogate](over) / 64 / unit
        by_membrane = direct + by_membrane * kept * (1 - spikes[t])
        by_current += 64 * by_membrane
    wanted = {
        "weights.conv": by_current * round(pixel * 100) * 90,
        "biases.lif": by_current * 9000,
        "weights.classifier": sum(w * s for w, s in zip(weights_of_loss, spikes, strict=True)),
        "biases.classifier": sum(weights_of_loss),
    }
    assert wanted["weights.conv"] != 0
    got = {name: float(parameter.grad.sum()) for name, parameter in network.named_parameters()}  # type: ignore[union-attr]
    assert got == pytest.approx(wanted, rel=1e-5)


def test_a_clipped_weight_waits_for_the_others() -> None:
    graph = one_neuron(tau=2.0, decay_input=False, T=2)
    scales = Scales(
        input=100.0,
        currents={"lif": 20000.0, "classifier": 120.0},
        thresholds={"lif": 6000},
        biases={"lif": [0], "classifier": [0]},
    )
    network = IntegerNetwork(graph, prepare(graph), scales, surrogate="atan")
    network(torch.full((1, 1, 1, 1), 0.5)).sum().backward()
    conv = network.graph["conv"]
    assert isinstance(conv, g.Conv)
    assert int(network.integer_weight(conv)) == 127  # 143.75 would round to 144
    assert float(network.weights["conv"].grad.sum()) == 0  # type: ignore[union-attr]
    assert float(network.biases["lif"].grad.sum()) != 0  # type: ignore[union-attr]


@settings(max_examples=30, deadline=None)
@given(recipe=recipes(("avg", "avg", "conv"), most=3))
def test_repeating_weights_is_folding_the_pooling(recipe: Recipe) -> None:
    graph = build(recipe)
    prepared = prepare(graph)
    network, _, _ = trained_form(graph)
    for node in graph.synapses:
        folded = prepared[node.name]
        if not network.folds(folded):  # type: ignore[arg-type]
            continue
        assert isinstance(folded, g.Conv | g.Dense)
        spread = repeated(torch.from_numpy(node.weight), folding(graph, prepared, folded))
        np.testing.assert_allclose(spread.numpy(), folded.weight, rtol=1e-12)
