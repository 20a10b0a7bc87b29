"""A student in a row of layers: what the .net computes is the integer twin, relays and all; the rest is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from chip_graphs import (
    LIMITS,
    SUMS,
    Recipe,
    a_recipe,
    begin,
    build,
    classified,
    flat,
    images_of,
    naive_scales,
    recipes,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from export import execute, integer
from export import graph as g
from export.netx_build import to_net
from export.prepare import NotForLoihi, prepare
from export.quantize import quantize
from export.scales import rebuild
from export.sequence import relay_drive, rests, sequence
from hardware import lava, netx, netx_sim
from hardware.net import ConvLayer, DenseLayer, Net, Neuron, check


def chip_form(graph: g.Graph, *, fraction: float = 1.0) -> tuple[g.Graph, Net]:
    """The integer twin of a Graph under plainly rounded scales, and its .net."""
    prepared = prepare(graph)
    scales = naive_scales(prepared, fraction=fraction)
    twin = rebuild(prepared, scales)
    net = to_net(twin, scales, labels=["a", "b", "c"], checkpoint_sha256="0")
    check(net, LIMITS)
    return twin, net


def assert_does_what_the_twin_does(twin: g.Graph, net: Net, run: netx_sim.Run, pixels: np.ndarray) -> None:
    """Every spike of every LIF, and the logits of every step."""
    values = execute.run_integers(twin, pixels)
    lifs = [node.name for node in twin if isinstance(node, integer.IntegerLIF)]
    places = net.meta["lif_layers"]
    assert sorted(places) == sorted(lifs)
    for name, (layer, start, stop) in places.items():
        np.testing.assert_array_equal(run.spikes[layer][:, :, start:stop], values[name], err_msg=name)
    steps = np.diff(run.v_out, axis=0, prepend=0)  # the readout adds up 64 times the logits
    np.testing.assert_array_equal(steps, 64 * execute.logits(twin, values))


def simulated(twin: g.Graph, net: Net, *, count: int = 3) -> netx_sim.Run:
    """Run our model of netx on random images and hold it against the twin."""
    pixels = integer.quantize_images(twin.input, images_of(twin, count))
    run = netx_sim.simulate(net, pixels)
    assert_does_what_the_twin_does(twin, net, run, pixels)
    return run


@settings(max_examples=250, deadline=None)
@given(recipe=recipes(most=4), fraction=st.floats(0.2, 1.0))
def test_the_file_computes_the_twin(recipe: Recipe, fraction: float) -> None:
    twin, net = chip_form(build(recipe), fraction=fraction)
    simulated(twin, net)


@settings(max_examples=25, deadline=None)
@given(recipe=recipes(most=2))
def test_the_file_computes_the_twin_under_the_scales_that_are_searched(recipe: Recipe) -> None:
    graph = build(recipe)
    twin, scales = quantize(graph, images_of(graph, 4), LIMITS)
    net = to_net(twin, scales, labels=["a", "b", "c"], checkpoint_sha256="0")
    check(net, LIMITS)
    simulated(twin, net)


DEEP = a_recipe("residual", "projected", "sew", "sew", "max", "sew_projected", "nested", head="dense_residual")


def test_what_is_compared_fires() -> None:
    """0 mismatches among silent neurons would prove nothing."""
    for recipe in (DEEP, a_recipe(*SUMS[:4], neuron=(3.0, False), T=7), a_recipe("overlap", "sew", "avg", T=1)):
        twin, net = chip_form(build(recipe))
        run = simulated(twin, net)
        rates = [run.spikes[k][:, :, start:stop].mean() for k, start, stop in net.meta["lif_layers"].values()]
        assert sum(0.02 < rate < 0.98 for rate in rates) > len(rates) / 2


@pytest.mark.lava
def test_lava_computes_the_twin(tmp_path: Path) -> None:
    made = [
        a_recipe("residual", "projected"),
        a_recipe("nested", "flipped", neuron=(3.0, False), T=3, side=(5, 7)),
        a_recipe("sew", "sew_projected", "avg", neuron=(float("inf"), False), T=6, head="mean"),
        a_recipe("max", "sew", "overlap", neuron=(1.5, True), T=1, side=(8, 5)),
        a_recipe("strided", "projected", "conv", T=7, side=(7, 8), head="flatten"),
    ]
    forms = [chip_form(build(recipe), fraction=0.8) for recipe in made]
    jobs = []
    for i, (twin, net) in enumerate(forms):
        netx.write(net, tmp_path / f"{i}.net")
        pixels = integer.quantize_images(twin.input, images_of(twin, 2))
        jobs.append(lava.Job(path=tmp_path / f"{i}.net", images=pixels))
    for (twin, net), job, run in zip(forms, jobs, lava.run_many(jobs), strict=True):
        assert_does_what_the_twin_does(twin, net, run, job.images)
        assert sum(int(spikes.sum()) for spikes in run.spikes) > 100


def relay_spikes(driven: tuple[int, int], arriving: list[int], *, threshold: int, decay: int) -> list[int]:
    """A relay in Python's own integers, as Lava's PyLifResetModelBitAcc steps it with iDecay 4096."""
    weight, bias = driven
    v, spikes = 0, []
    for spike in arriving:
        v = abs(v) * (4096 - decay) // 4096 * (1 if v >= 0 else -1) + 64 * (weight * spike + bias)
        v = min(v, 2**23 - 1)
        spikes.append(int(v > 64 * threshold))
        v = 0 if spikes[-1] else v
    return spikes


@settings(max_examples=300, deadline=None)
@given(
    threshold=st.one_of(st.integers(0, 300), st.sampled_from([126, 127, 251, 252, 253])),
    decay=st.sampled_from([0, 1, 1365, 2048, 2731, 4096]),
    arriving=st.lists(st.integers(0, 1), min_size=1, max_size=12),
)
def test_a_relay_fires_with_its_input_and_never_without(threshold: int, decay: int, arriving: list[int]) -> None:
    driven = relay_drive(threshold=threshold, v_decay=decay, T=len(arriving))
    if driven is not None:
        assert 0 < driven[0] <= 127
        assert 0 <= driven[1] <= LIMITS.bias
        assert relay_spikes(driven, arriving, threshold=threshold, decay=decay) == arriving


@pytest.mark.parametrize("T", [1, 2, 4, 7])
@pytest.mark.parametrize("decay", [0, 1365, 2048, 2731, 4096])
def test_a_relay_is_given_up_only_where_no_weight_and_bias_make_one(T: int, decay: int) -> None:
    silence = [0] * T
    for threshold in range(0, 320, 7):
        driven = relay_drive(threshold=threshold, v_decay=decay, T=T)
        bias = max(0, threshold + 1 - 127)  # the least with which one spike suffices at once
        possible = relay_spikes((127, bias), silence, threshold=threshold, decay=decay) == silence
        assert (driven is not None) is possible, threshold


def test_at_tau_2_a_relay_reaches_a_threshold_of_252_at_whatever_T() -> None:
    assert relay_drive(threshold=252, v_decay=2048, T=1000) == (127, 126)
    assert relay_drive(threshold=254, v_decay=2048, T=1000) is None
    assert relay_drive(threshold=126, v_decay=0, T=64) == (127, 0)
    assert not rests(1, 126, 0, 127)
    assert rests(1, 126, 0, 126)


def test_a_layer_whose_relays_cannot_fire_is_refused() -> None:
    prepared = prepare(build(a_recipe("residual")))
    scales = naive_scales(prepared)
    loud = dataclasses.replace(scales, thresholds=scales.thresholds | {"block0.lif1": 400})
    with pytest.raises(NotForLoihi, match=r"block0\.lif1: no relay fires at the threshold 400 of its layer"):
        to_net(rebuild(prepared, loud), loud, labels=["a"], checkpoint_sha256="0")


def spiking(net: Net, index: int) -> ConvLayer:
    layer = net.spiking[index]
    assert isinstance(layer, ConvLayer)
    return layer


def test_max_pooling_is_a_layer_of_its_own_that_forgets_everything() -> None:
    m = begin(side=(8, 6))
    m.max_pool("pool", (3, 2), stride=(2, 1), padding=(1, 0))
    twin, net = chip_form(classified(m))
    pool = spiking(net, 1)
    assert (pool.groups, pool.weight.shape, pool.stride, pool.padding) == (4, (4, 1, 3, 2), (2, 1), (1, 0))
    assert (pool.weight == 1).all()
    assert not pool.bias.any()
    assert pool.neuron == Neuron(vThMant=0, vDecay=4096)
    run = simulated(twin, net)
    maximum = execute.run_integers(twin, integer.quantize_images(twin.input, images_of(twin, 3)))["pool"]
    np.testing.assert_array_equal(run.spikes[1], maximum)
    assert 0.1 < maximum.mean() < 0.99


@pytest.mark.parametrize(("channels", "groups"), [(127, 127), (128, 1), (130, 1)])
def test_max_pooling_of_many_channels_is_written_block_diagonally(channels: int, groups: int) -> None:
    m = begin(side=(4, 4), channels=channels)
    m.pool(g.MaxPool, "pool", (2, 2))
    twin, net = chip_form(classified(m))
    pool = spiking(net, 1)
    assert (pool.groups, pool.weight.shape) == (groups, (channels, channels // groups, 2, 2))
    if groups == 1:
        np.testing.assert_array_equal(pool.weight, np.eye(channels)[:, :, None, None] * np.ones((2, 2)))
    simulated(twin, net)


def test_a_grouped_convolution_of_many_groups_is_written_block_diagonally() -> None:
    m = begin(side=(3, 4), channels=130)
    m.conv("depthwise", 130, groups=130)
    m.spike("lif2")
    twin, net = chip_form(classified(m))
    assert (spiking(net, 1).groups, spiking(net, 1).weight.shape) == (1, (130, 130, 3, 3))
    simulated(twin, net, count=1)


def test_relays_keep_every_position_or_those_that_a_stride_leaves() -> None:
    twin, net = chip_form(build(a_recipe("projected", side=(7, 8), head="flatten")))
    first = sequence(twin)[1]
    assert [(part.name, part.node is None, part.every) for part in first.parts] == [
        ("block0.lif1", False, (1, 1)),
        ("stem.lif", True, (2, 2)),
    ]
    run = simulated(twin, net)
    _, begin, end = net.meta["lif_layers"]["block0.lif1"]
    relayed = np.delete(run.spikes[1], np.s_[begin:end], axis=2)
    kept = run.spikes[0][..., ::2, ::2]
    np.testing.assert_array_equal(relayed, kept)
    assert 0.05 < kept.mean() < 0.99


def test_the_two_neurons_of_a_sew_block_share_a_layer() -> None:
    twin, net = chip_form(build(a_recipe("sew_projected", head="flatten")))
    places = net.meta["lif_layers"]
    assert places["block0.lif1"] == [1, 0, 4]
    assert places["block0.shortcut.lif"] == [1, 4, 8]
    assert places["block0.lif2"] == [2, 0, 4]
    assert net.spiking[2].name == "block0.conv2 + relay block0.shortcut.lif"
    assert isinstance(net.spiking[3], DenseLayer)
    simulated(twin, net)


def test_a_dense_layer_reads_maps_that_are_handed_on_past_another() -> None:
    m = begin(side=(4, 3))
    m.conv("conv", 3)
    m.spike("lif2")
    flat(m, "lif")
    m.dense("left", 5)
    flat(m, "lif2")
    m.dense("right", 5)
    m.add("sum", "left", "right")
    m.spike("lif3")
    twin, net = chip_form(classified(m))
    assert net.spiking[2].weight.shape == (5, (3 + 4) * 12)
    simulated(twin, net)


def test_the_first_layer_holds_an_image_and_the_last_adds_up_the_logits() -> None:
    _, net = chip_form(build(a_recipe("conv", T=6)))
    assert [layer.neuron.iDecay for layer in net.spiking] == [0] + [4096] * (len(net.spiking) - 1)
    assert net.spiking[-1].neuron == Neuron(vThMant=131071, vDecay=0)
    assert (net.meta["T"], net.meta["window"], net.meta["format"]) == (6, 8, 2)


def events() -> g.Graph:
    graph = build(a_recipe("residual"))
    image = dataclasses.replace(graph.input, mean=np.zeros(2), std=np.full(2, 1 / 255), event=True)
    return graph.replace(image)


def test_events_are_sent_at_every_step() -> None:
    graph = events()
    rng = np.random.default_rng(0)
    frames = rng.poisson(0.7, (graph.T, 3, *graph.input.shape)) / 255
    twin, scales = quantize(graph, frames, LIMITS)
    net = to_net(twin, scales, labels=["a", "b", "c"], checkpoint_sha256="0")
    assert net.spiking[0].neuron.iDecay == 4096
    counts = integer.quantize_images(twin.input, frames)
    assert_does_what_the_twin_does(twin, net, netx_sim.simulate(net, counts), counts)
