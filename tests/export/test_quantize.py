"""The integer twin is the Graph with rounded numbers: its algebra, in the ranges of the chip, made again exactly."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chip_graphs import LIF, LIMITS, Recipe, a_recipe, build, images_of, naive_scales, recipes
from hypothesis import given, settings
from small_graphs import Maker

from export import execute, integer, reference
from export import graph as g
from export.images import RealImages, real_images
from export.integer import IntegerLIF
from export.lower import lower
from export.netx_build import to_net
from export.prepare import NotForLoihi, prepare, synapses_of, theta
from export.quantize import quantize
from export.scales import Scales, rebuild
from hardware.net import DenseLayer, check
from train.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def checkpoint(student: Path) -> Checkpoint:
    return Checkpoint.load_student(student)


@pytest.fixture(scope="module")
def calibration(checkpoint: Checkpoint) -> RealImages:
    return real_images(checkpoint, split="train", limit=64)


@pytest.fixture(scope="module")
def samples(checkpoint: Checkpoint) -> RealImages:
    return real_images(checkpoint, split="test", limit=100)


@pytest.fixture(scope="module")
def prepared(checkpoint: Checkpoint) -> g.Graph:
    return prepare(lower(checkpoint))


@pytest.fixture(scope="module")
def quantized(checkpoint: Checkpoint, calibration: RealImages) -> tuple[g.Graph, Scales]:
    return quantize(lower(checkpoint), calibration.images, LIMITS)


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


def heads(graph: g.Graph) -> list[g.Node]:
    """The LIF layers and the output, whose synapses share a scale."""
    return [*graph.lif_layers, graph.output]


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

    Loihi's membranes are multiples of 2^-6 (and T <= 7 loses none at tau = 2), so that firing above theta is firing
    from theta + 2^-7 on.
    """
    channels = len(graph.input.mean)
    changed: list[g.Node] = [dataclasses.replace(graph.input, mean=np.zeros(channels), std=np.ones(channels))]
    for head in heads(graph):
        unit = scales.currents[head.name]
        for synapse in synapses_of(graph, head):
            node = twin[synapse.name]
            assert isinstance(node, g.Conv | g.Dense)
            step = unit / scales.input if node.inputs == (graph.input.name,) else unit
            changed.append(dataclasses.replace(node, weight=node.weight / step, bias=node.bias / unit))
        if isinstance(head, g.LIF):
            lif = twin[head.name]
            assert isinstance(lif, IntegerLIF)
            membrane = (lif.threshold + 2**-7) / unit
            changed.append(dataclasses.replace(head, v_threshold=membrane / (head.tau if head.decay_input else 1)))
    new = {node.name: node for node in changed}
    return g.Graph(nodes=tuple(new.get(node.name, node) for node in graph), T=twin.T)


def assert_twin_is_the_rounded_graph(twin: g.Graph, graph: g.Graph, scales: Scales, images: np.ndarray) -> None:
    """Its numbers are the Graph's, rounded; run in float64 they give the twin's spikes, and its logits to 1e-9."""
    floats = as_floats(twin, graph, scales)
    for head in heads(graph):
        unit = scales.currents[head.name]
        for synapse in synapses_of(graph, head):
            near = floats[synapse.name]
            assert isinstance(near, g.Conv | g.Dense)
            step = unit / scales.input if synapse.inputs == (graph.input.name,) else unit
            off = np.abs(near.weight - synapse.weight)
            clipped = np.abs(near.weight) >= integer.WEIGHT_LIMIT / step - 1e-9
            assert (off[~clipped] <= 0.5 / step + 1e-9).all()
            is_shortcut = "/" in synapse.name  # all its weights are 1
            assert clipped.mean() < 0.2 or is_shortcut, "clipping is for a few outliers"
        if isinstance(head, g.LIF):
            lif = twin[head.name]
            assert isinstance(lif, IntegerLIF)
            assert abs(lif.threshold - int(theta(head) * unit)) <= 1
        else:
            assert not clipped[np.abs(near.weight) > integer.WEIGHT_LIMIT / step + 1e-9].any()
    pixels = integer.quantize_images(twin.input, images)
    got, wanted = execute.run(twin, images), reference.run(floats, pixels / scales.input)
    for node in graph.lif_layers:
        assert 0.01 < wanted[node.name].mean() < 0.99, node.name
        np.testing.assert_array_equal(got[node.name], wanted[node.name], err_msg=node.name)
    logits = execute.logits(twin, got) / scales.currents[graph.output.name]
    np.testing.assert_allclose(logits, reference.logits(floats, wanted), rtol=0, atol=1e-9)


def test_the_twin_of_a_student_is_its_graph_with_rounded_numbers(
    quantized: tuple[g.Graph, Scales], prepared: g.Graph, samples: RealImages
) -> None:
    twin, scales = quantized
    assert_twin_is_the_rounded_graph(twin, prepared, scales, samples.images)


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("blocks", [("avg", "max"), ("residual", "projected"), ("sew", "sew_projected")])
def test_the_twin_of_other_networks_and_other_neurons(blocks: tuple[str, ...], decay_input: bool) -> None:
    graph = build(a_recipe(*blocks, neuron=(2.0, decay_input), T=5, head="mean"))
    images = images_of(graph, 48)
    twin, scales = quantize(graph, images[:24], LIMITS)
    assert_twin_is_the_rounded_graph(twin, prepare(graph), scales, images)


def test_the_twin_spikes_nearly_as_the_student_does(
    quantized: tuple[g.Graph, Scales], prepared: g.Graph, samples: RealImages
) -> None:
    twin, _ = quantized
    got, wanted = execute.run(twin, samples.images), reference.run(prepared, samples.images)
    for lif in prepared.lif_layers:
        assert (got[lif.name] != wanted[lif.name]).mean() < 0.12, lif.name


def flips(twin: g.Graph, graph: g.Graph, images: np.ndarray) -> float:
    """Changed spikes as a part of all, the mean over the layers."""
    got, wanted = execute.run(twin, images), reference.run(graph, images)
    return float(np.mean([(got[lif.name] != wanted[lif.name]).mean() for lif in graph.lif_layers]))


def test_the_search_changes_fewer_spikes_than_plain_rounding(
    quantized: tuple[g.Graph, Scales], prepared: g.Graph, calibration: RealImages
) -> None:
    plain = rebuild(prepared, naive_scales(prepared))
    images = calibration.images
    assert flips(quantized[0], prepared, images) < flips(plain, prepared, images)


@pytest.mark.parametrize(
    "blocks", [("residual", "projected"), ("sew", "sew_projected"), ("nested",), ("conv", "strided", "avg", "max")]
)
def test_so_it_does_for_every_family(blocks: tuple[str, ...]) -> None:
    """In the mean over networks: a layer's best scale need not be best for the layers after it."""
    searched, plain = 0.0, 0.0
    for seed in range(4):
        graph = build(a_recipe(*blocks, seed=seed, neuron=(2.0, False)))
        images, ready = images_of(graph, 24), prepare(graph)
        searched += flips(quantize(graph, images, LIMITS)[0], ready, images)
        plain += flips(rebuild(ready, naive_scales(ready)), ready, images)
    assert 0 < searched < 0.95 * plain


def channels(values: np.ndarray) -> np.ndarray:
    """The mean of every channel [C] of [T or 1, B, C, ...]."""
    return values.mean(axis=tuple(axis for axis in range(values.ndim) if axis != 2))


def test_biases_make_every_channel_fire_as_often_as_in_the_student(
    quantized: tuple[g.Graph, Scales], prepared: g.Graph, calibration: RealImages
) -> None:
    """They take up what rounding the weights does to a channel in the mean; round(S b) leaves it."""
    twin, scales = quantized
    aims, got = reference.run(prepared, calibration.images), execute.run(twin, calibration.images)
    for lif in prepared.lif_layers:
        (synapse,) = synapses_of(twin, twin[lif.name])
        (own,) = synapses_of(prepared, lif)
        neuron = twin[lif.name]
        assert isinstance(neuron, IntegerLIF)
        plain = np.rint(own.bias * scales.currents[lif.name]).astype(np.int64)
        off = {}
        for name, bias in (("chosen", synapse.bias), ("plain", plain)):
            shift = (bias - synapse.bias).reshape(-1, 1, 1)
            spikes = execute.step(neuron, [torch.from_numpy(got[synapse.name] + shift).double()], twin.T).numpy()
            off[name] = np.abs(channels(spikes) - channels(aims[lif.name])).mean()
        assert off["chosen"] < 0.7 * off["plain"], lif.name
        assert off["chosen"] < 0.01, lif.name


def test_biases_of_the_classifier_keep_the_mean_of_every_logit(
    quantized: tuple[g.Graph, Scales], prepared: g.Graph, calibration: RealImages
) -> None:
    twin, scales = quantized
    name = twin.output.name
    aims, got = reference.run(prepared, calibration.images), execute.run(twin, calibration.images)
    apart = channels(got[name]) - scales.currents[name] * channels(aims[name])
    assert np.abs(apart).max() <= 0.51


def assert_within_the_chip(graph: g.Graph, images: np.ndarray) -> None:
    """What is written has 8-bit weights, parameters in range, and sums that no input can drive out of the chip's."""
    twin, scales = quantize(graph, images, LIMITS)
    net = to_net(twin, scales, labels=["a"], checkpoint_sha256="0")
    check(net, LIMITS)
    extremes = integer.quantize_images(twin.input, np.stack([np.zeros(twin.input.shape), np.ones(twin.input.shape)]))
    low, high = min(0, int(extremes.min())), max(0, int(extremes.max()))
    assert -127 <= low <= high <= 127
    for layer in net.spiking:
        assert 0 < np.abs(layer.weight).max() <= 127, layer.name
        assert np.abs(layer.bias).max() <= LIMITS.bias
        assert 0 <= layer.neuron.vThMant <= LIMITS.threshold
        rows = layer.weight.astype(np.int64).reshape(len(layer.weight), -1)
        reach = max(np.maximum(rows * low, rows * high).sum(1).max(), -np.minimum(rows * low, rows * high).sum(1).min())
        steps = twin.T if layer is net.spiking[-1] else 1
        assert (reach + np.abs(layer.bias).max()) * steps <= 2**17 - 1, layer.name
        low, high = 0, 1  # every layer after the first reads spikes
    for node in twin:
        assert not isinstance(node, IntegerLIF) or node.threshold > 0


@settings(max_examples=25, deadline=None)
@given(recipe=recipes(most=3))
def test_every_parameter_and_every_sum_stays_within_the_chip(recipe: Recipe) -> None:
    graph = build(recipe)
    assert_within_the_chip(graph, images_of(graph, 3))


def test_a_trained_student_stays_within_the_chip(checkpoint: Checkpoint, calibration: RealImages) -> None:
    assert_within_the_chip(lower(checkpoint), calibration.images[:16])


def test_synapses_that_read_the_same_neurons_share_eight_bits() -> None:
    """conv(x) + x: the shortcut's weight stands on the kernel's centre."""
    m = maker()
    m.conv("conv", 2)
    m.add("sum", "conv", "lif")
    m.spike("lif2")
    graph = classified(m)
    twin, scales = quantize(graph, np.random.default_rng(0).random((4, 1, 4, 4)), LIMITS)
    layer = to_net(twin, scales, labels=["a"], checkpoint_sha256="0").spiking[1]
    conv, own = twin["conv"], twin["sum/lif"]
    assert isinstance(conv, g.Conv)
    assert isinstance(own, g.Conv)
    np.testing.assert_array_equal(layer.weight[..., 1, 1], conv.weight[..., 1, 1] + np.diag(own.weight[:, 0, 0, 0]))
    assert np.abs(layer.weight).max() <= 127


def test_the_readout_has_room_for_the_logits_of_all_steps() -> None:
    graph = dataclasses.replace(classified(maker()), T=64)
    all_ones = np.ones((3, 32))  # at the largest scale 127 * 32 * 64 = 260,096 if every neuron fired at every step
    graph = graph.replace(dataclasses.replace(graph["classifier"], weight=all_ones, bias=np.zeros(3)))
    twin, _ = quantize(graph, np.random.default_rng(0).random((4, 1, 4, 4)), LIMITS)
    classifier = twin["classifier"]
    assert isinstance(classifier, g.Dense)
    assert 2**15 <= classifier.weight.sum(1).max() * 64 <= 2**17 - 1


def test_counts_of_events_are_sent_as_they_are() -> None:
    graph = build(a_recipe("residual"))
    graph = graph.replace(dataclasses.replace(graph.input, mean=np.zeros(2), std=np.full(2, 1 / 255), event=True))
    counts = np.random.default_rng(0).integers(0, 128, (graph.T, 3, *graph.input.shape))
    twin, scales = quantize(graph, counts / 255, LIMITS)
    assert scales.input == 1.0
    for precision in (np.float32, np.float64):
        np.testing.assert_array_equal(integer.quantize_images(twin.input, (counts / 255).astype(precision)), counts)


def test_the_scales_alone_give_the_same_twin_again(quantized: tuple[g.Graph, Scales], prepared: g.Graph) -> None:
    twin, scales = quantized
    written = json.loads(json.dumps(dataclasses.asdict(scales)))
    assert_same(rebuild(prepared, Scales(**written)), twin)


def test_so_they_do_for_a_network_with_relays() -> None:
    graph = build(a_recipe("residual", "sew_projected", head="dense_residual"))
    twin, scales = quantize(graph, images_of(graph, 4), LIMITS)
    written = json.loads(json.dumps(dataclasses.asdict(scales)))
    assert_same(rebuild(prepare(graph), Scales(**written)), twin)


def test_quantising_again_gives_the_same_scales(
    quantized: tuple[g.Graph, Scales], checkpoint: Checkpoint, calibration: RealImages
) -> None:
    again = quantize(lower(checkpoint), calibration.images, LIMITS)
    assert again[1] == quantized[1]
    assert_same(again[0], quantized[0])


def without(scales: Scales, field: str, name: str) -> Scales:
    kept = {key: value for key, value in getattr(scales, field).items() if key != name}
    return dataclasses.replace(scales, **{field: kept})


def test_scales_of_another_student_are_refused_by_layer(quantized: tuple[g.Graph, Scales], prepared: g.Graph) -> None:
    _, scales = quantized
    first, last = prepared.lif_layers[0].name, prepared.output.name
    short = dataclasses.replace(scales, biases=scales.biases | {first: scales.biases[first][1:]})
    for wrong, name in (
        (without(scales, "currents", first), first),
        (without(scales, "thresholds", first), first),
        (without(scales, "biases", last), last),
        (short, first),
    ):
        with pytest.raises(NotForLoihi, match=f"^{name}: the scales are not those of this student; export it again"):
            rebuild(prepared, wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": np.zeros((2, 1, 3, 3))}, r"stem: every weight is zero; the layer does nothing"),
        ({"bias": np.full(2, 1e6)}, r"stem: no scale keeps weights, bias, threshold and sums within the chip's ranges"),
    ],
)
def test_weights_that_no_scale_fits_are_refused_by_name(change: dict[str, np.ndarray], message: str) -> None:
    graph = classified(maker())
    graph = graph.replace(dataclasses.replace(graph["stem"], **change))
    with pytest.raises(NotForLoihi, match=message):
        quantize(graph, np.random.default_rng(0).random((4, 1, 4, 4)), LIMITS)


def test_a_layer_of_zeros_beside_another_is_refused_by_its_name() -> None:
    graph = build(a_recipe("projected"))
    side = graph["block0.shortcut"]
    assert isinstance(side, g.Conv)
    silent = graph.replace(dataclasses.replace(side, weight=np.zeros_like(side.weight)))
    with pytest.raises(NotForLoihi, match=r"^block0\.shortcut: every weight is zero"):
        quantize(silent, images_of(graph, 2), LIMITS)


def test_the_classifier_is_dense(quantized: tuple[g.Graph, Scales]) -> None:
    net = to_net(*quantized, labels=list("0123456789"), checkpoint_sha256="0")
    assert isinstance(net.spiking[-1], DenseLayer)
