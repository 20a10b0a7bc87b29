"""The integer twin is the Graph with rounded numbers: its algebra, in the ranges of the chip, made again exactly."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_graphs import Maker

from export import graph as g
from export import integer, reference
from export.images import RealImages, real_images
from export.lower import lower
from export.quantize import NotForLoihi, Scales, prepare, quantize, rebuild
from hardware.net import Limits
from train.checkpoint import Checkpoint


LIMITS = Limits.load("loihi2")
LIF: dict[str, Any] = {"tau": 2.0, "decay_input": True, "v_reset": 0.0, "v_threshold": 0.75}


@pytest.fixture(scope="module")
def checkpoint(student: Path) -> Checkpoint:
    return Checkpoint.load_student(student)


@pytest.fixture(scope="module")
def samples(checkpoint: Checkpoint) -> RealImages:
    return real_images(checkpoint, split="test", limit=100)


@pytest.fixture(scope="module")
def prepared(checkpoint: Checkpoint) -> g.Graph:
    return prepare(lower(checkpoint))


@pytest.fixture(scope="module")
def quantized(checkpoint: Checkpoint) -> tuple[g.Graph, Scales]:
    return quantize(lower(checkpoint), real_images(checkpoint, split="train", limit=64).images, LIMITS)


def maker(**lif: Any) -> Maker:
    m = Maker(rng=np.random.default_rng(0), lif={**LIF, **lif})
    m.image(1, 4, 4)
    m.conv("stem", 2)
    m.spike("lif")
    return m


def classified(m: Maker) -> g.Graph:
    m.features(g.Flatten, "flatten")
    m.dense("classifier", 3)
    return g.Graph(nodes=tuple(m.nodes), T=2)


def assert_same(a: g.Graph, b: g.Graph) -> None:
    """Every field of every node equal, arrays with their types."""
    assert (a.T, len(a.nodes)) == (b.T, len(b.nodes))
    for one, other in zip(a, b, strict=True):
        assert type(one) is type(other)
        for field in dataclasses.fields(one):
            left, right = (np.asarray(getattr(node, field.name)) for node in (one, other))
            assert left.dtype == right.dtype, (one.name, field.name)
            np.testing.assert_array_equal(left, right, err_msg=f"{one.name}.{field.name}")


def as_floats(twin: g.Graph, graph: g.Graph, scales: Scales) -> g.Graph:
    """The float Graph that the twin's integers stand for, its images being pixels of the chip divided by their scale.

    Loihi's membranes are multiples of 2^-6 (and T <= 7 loses none), so that firing above theta is firing from
    theta + 2^-7 on.
    """
    nodes: list[g.Node] = []
    for node in twin:
        if isinstance(node, g.Input):
            c = len(node.mean)
            nodes.append(dataclasses.replace(graph.input, mean=np.zeros(c), std=np.ones(c)))
        elif isinstance(node, g.Conv | g.Dense):
            is_first = node.inputs == (graph.input.name,)
            step = scales.layers[node.name]
            bias = node.bias / (step * scales.input if is_first else step)
            nodes.append(dataclasses.replace(node, weight=node.weight / step, bias=bias))
        elif isinstance(node, integer.IntegerLIF):
            lif, synapse = graph[node.name], graph[node.inputs[0]]
            assert isinstance(lif, g.LIF)
            step = scales.layers[synapse.name] * (scales.input if synapse.inputs == (graph.input.name,) else 1)
            theta = (node.threshold + 2**-7) / step
            nodes.append(dataclasses.replace(lif, v_threshold=theta / (lif.tau if lif.decay_input else 1)))
        else:
            nodes.append(node)
    return g.Graph(nodes=tuple(nodes), T=twin.T)


def assert_twin_is_the_rounded_graph(twin: g.Graph, graph: g.Graph, scales: Scales, images: np.ndarray) -> None:
    """Its numbers are the Graph's, rounded; run in float64 they give the twin's spikes, and its logits to 1e-9."""
    floats = as_floats(twin, graph, scales)
    for node in graph.synapses:
        near, step = floats[node.name], scales.layers[node.name]
        assert isinstance(near, g.Conv | g.Dense)
        off, clipped = np.abs(near.weight - node.weight), np.abs(near.weight) >= integer.WEIGHT_LIMIT / step - 1e-9
        assert off[~clipped].max() <= 0.5 / step + 1e-9
        assert clipped.mean() < 0.05, "clipping is for a few outliers"
        drive = step * (scales.input if node is graph.synapses[0] else 1)
        assert np.abs(near.bias - node.bias).max() <= 0.5 / drive + 1e-9
        for lif in (reader for reader in graph.readers(node.name) if isinstance(reader, g.LIF)):
            off_threshold = abs(floats[lif.name].v_threshold - lif.v_threshold)
            assert off_threshold <= 0.51 / drive / (lif.tau if lif.decay_input else 1)
    pixels = integer.quantize_images(twin.input, images)
    got, wanted = integer.run(twin, images), reference.run(floats, pixels / scales.input)
    for lif in graph.lif_layers:
        assert 0.01 < wanted[lif.name].mean() < 0.9, lif.name
        np.testing.assert_array_equal(got[lif.name], wanted[lif.name], err_msg=lif.name)
    logits = integer.logits(twin, got) / scales.layers[graph.output.name]
    np.testing.assert_allclose(logits, reference.logits(floats, wanted), rtol=0, atol=1e-9)


def test_the_twin_of_a_student_is_its_graph_with_rounded_numbers(
    quantized: tuple[g.Graph, Scales], prepared: g.Graph, samples: RealImages
) -> None:
    twin, scales = quantized
    assert_twin_is_the_rounded_graph(twin, prepared, scales, samples.images)


@pytest.mark.parametrize("decay_input", [True, False])
def test_the_twin_of_pooled_networks_and_other_neurons(decay_input: bool) -> None:
    m = Maker(rng=np.random.default_rng(0), lif={**LIF, "decay_input": decay_input, "v_threshold": 1.0})
    m.image(2, 6, 4)
    m.conv("stem", 6)
    m.spike("stem.lif")
    m.pool(g.AvgPool, "pool", (2, 1))
    m.conv("conv", 6, groups=2)
    m.spike("conv.lif")
    m.features(g.Mean, "mean")
    m.features(g.Flatten, "flatten")
    m.dense("classifier", 5)
    graph = g.Graph(nodes=tuple(m.nodes), T=5)
    images = np.random.default_rng(1).random((64, 2, 6, 4))
    twin, scales = quantize(graph, images[:32], LIMITS)
    assert_twin_is_the_rounded_graph(twin, prepare(graph), scales, images)


def test_the_twin_spikes_nearly_as_the_student_does(
    quantized: tuple[g.Graph, Scales], prepared: g.Graph, samples: RealImages
) -> None:
    twin, _ = quantized
    got, wanted = integer.run(twin, samples.images), reference.run(prepared, samples.images)
    for lif in prepared.lif_layers:
        assert (got[lif.name] != wanted[lif.name]).mean() < 0.12, lif.name


def test_every_parameter_and_every_sum_stays_within_the_chip(quantized: tuple[g.Graph, Scales]) -> None:
    twin, _ = quantized
    black, white = (integer.quantize_images(twin.input, np.full((1, 1, 8, 8), v)).flat[0] for v in (0.0, 1.0))
    assert -127 <= black < 0 < white <= 127
    for node in twin.synapses:
        low, high = (int(black), int(white)) if node.inputs == ("image",) else (0, 1)
        steps = twin.T if node is twin.output else 1
        assert node.weight.dtype == node.bias.dtype == np.int64
        assert 0 < np.abs(node.weight).max() <= 127
        assert np.abs(node.bias).max() <= LIMITS.bias
        rows = node.weight.reshape(len(node.weight), -1)
        reach = np.maximum(rows * low, rows * high).sum(1).max(), -np.minimum(rows * low, rows * high).sum(1).min()
        assert (max(reach) + np.abs(node.bias).max()) * steps <= 2**17 - 1, node.name
    for node in twin:
        if isinstance(node, integer.IntegerLIF):
            assert 0 < node.threshold <= LIMITS.threshold
            assert node.v_decay == 2048


def test_the_readout_has_room_for_the_logits_of_all_steps() -> None:
    graph = dataclasses.replace(classified(maker()), T=64)
    all_ones = np.ones((3, 32))  # at the largest scale 127 * 32 * 64 = 260,096 if every neuron fired at every step
    graph = graph.replace(dataclasses.replace(graph["classifier"], weight=all_ones, bias=np.zeros(3)))
    twin, _ = quantize(graph, np.random.default_rng(0).random((4, 1, 4, 4)), LIMITS)
    classifier = twin["classifier"]
    assert isinstance(classifier, g.Dense)
    assert 2**16 - 1 <= classifier.weight.sum(1).max() * 64 <= 2**17 - 1


def test_the_scales_alone_give_the_same_twin_again(quantized: tuple[g.Graph, Scales], prepared: g.Graph) -> None:
    twin, scales = quantized
    written = json.loads(json.dumps(dataclasses.asdict(scales)))
    assert_same(rebuild(prepared, Scales(**written)), twin)


def test_quantising_again_gives_the_same_scales(quantized: tuple[g.Graph, Scales], checkpoint: Checkpoint) -> None:
    again = quantize(lower(checkpoint), real_images(checkpoint, split="train", limit=64).images, LIMITS)
    assert again[1] == quantized[1]
    assert_same(again[0], quantized[0])


def with_shortcut() -> g.Graph:
    m = maker()
    m.conv("conv", 2)
    m.add("block.add", "conv", "lif")
    m.spike("lif2")
    return classified(m)


def with_max_pooling() -> g.Graph:
    m = maker()
    m.pool(g.MaxPool, "pool", (2, 2))
    return classified(m)


def with_pooled_current() -> g.Graph:
    m = maker()
    m.conv("conv", 2)
    m.pool(g.AvgPool, "pool", (2, 2))
    m.spike("lif2")
    return classified(m)


def with_remainder() -> g.Graph:
    m = maker()
    m.pool(g.AvgPool, "pool", (3, 3))
    return classified(m)


def with_two_convolutions_in_a_row() -> g.Graph:
    m = maker()
    m.conv("conv2", 2)
    m.conv("conv3", 2)
    m.spike("lif2")
    return classified(m)


def without_convolution() -> g.Graph:
    m = Maker(rng=np.random.default_rng(0), lif=LIF)
    m.image(1, 4, 4)
    m.features(g.Flatten, "pixels")
    m.dense("fc", 3)
    m.spike("lif")
    m.dense("classifier", 3)
    return g.Graph(nodes=tuple(m.nodes), T=2)


def without_classifier() -> g.Graph:
    m = maker()
    m.conv("conv2", 2)
    return g.Graph(nodes=tuple(m.nodes), T=2)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (with_shortcut(), r"block\.add: a sequential \.net has no addition of two branches; train vgg_small, vgg11"),
        (with_max_pooling(), r"pool: netx has no max pooling; train with average pooling or strides"),
        (classified(maker(v_reset=-0.5)), r"lif: the chip resets to 0, v_reset is -0\.5; train with --net\.v_reset 0"),
        (with_pooled_current(), r"lif2: a neuron must read a convolution or dense layer, not pool"),
        (
            with_remainder(),
            r"pool: \(4, 4\) is not a multiple of the window \(3, 3\).*; or export this student to ONNX",
        ),
        (with_two_convolutions_in_a_row(), r"conv2: every layer but the last must be followed by a LIF"),
        (without_convolution(), r"pixels: the first layer must be a convolution of the image"),
        (without_classifier(), r"conv2: the last layer must be dense \(the classifier\)"),
    ],
)
def test_what_loihi_cannot_express_is_refused_by_name(graph: g.Graph, message: str) -> None:
    with pytest.raises(NotForLoihi, match=message):
        prepare(graph)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": np.zeros((2, 1, 3, 3))}, r"stem: every weight is zero; the layer does nothing"),
        ({"bias": np.full(2, 1e6)}, r"stem: no scale keeps its weights, bias, threshold and sums within the chip"),
    ],
)
def test_weights_that_no_scale_fits_are_refused_by_name(change: dict[str, np.ndarray], message: str) -> None:
    graph = classified(maker())
    graph = graph.replace(dataclasses.replace(graph["stem"], **change))
    with pytest.raises(NotForLoihi, match=message):
        quantize(graph, np.random.default_rng(0).random((4, 1, 4, 4)), LIMITS)
