"""Folding a pooling into the next weights changes no value but the pooling's own."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import Maker

from export import graph as g
from export import reference
from export.fold import CannotFold, fold_pooling


LIF = {"tau": 2.0, "decay_input": True, "v_reset": 0.0, "v_threshold": 0.4}
KERNELS = st.tuples(st.integers(1, 3), st.integers(1, 3))
PADDINGS = st.tuples(st.integers(0, 2), st.integers(0, 2))
SEEDS = st.integers(0, 2**32 - 1)


class Smooth(Maker):
    """Weights without a pattern, so that no sum lies on a threshold, where two orders of adding would disagree."""

    def dyadic(self, *shape: int) -> np.ndarray:
        return self.rng.normal(0.2, 1.0, shape) / np.sqrt(np.prod(shape[1:]) / 4)


def maker(seed: int, height: int, width: int) -> Smooth:
    """A Graph that has begun: 4 channels of spikes, height x width."""
    m = Smooth(rng=np.random.default_rng(seed), lif=LIF)
    m.image(2, height, width)
    m.conv("stem", 4)
    m.spike("stem.lif")
    return m


def end(m: Smooth) -> g.Graph:
    m.dense("classifier", 5)
    return g.Graph(nodes=tuple(m.nodes), T=3)


def chain(seed: int) -> g.Graph:
    """Pooling before two convolutions, and two poolings in a row before the classifier."""
    m = maker(seed, 24, 12)
    m.pool(g.AvgPool, "pool1", (2, 1))
    m.conv("conv2", 6)
    m.spike("lif2")
    m.pool(g.AvgPool, "pool2", (2, 2))
    m.conv("conv3", 6, stride=(1, 2))
    m.spike("lif3")
    m.pool(g.AvgPool, "pool3", (2, 1))
    m.features(g.Mean, "mean")
    return end(m)


def assert_folded_and_equal(graph: g.Graph) -> g.Graph:
    """Fold, and compare every layer that both Graphs have: float64, every spike."""
    folded = fold_pooling(graph)
    assert not [node for node in folded if isinstance(node, g.AvgPool | g.Mean)]
    images = np.random.default_rng(1).random((2, *graph.input.shape))
    wanted, got = reference.run(graph, images), reference.run(folded, images)
    for node in (*graph.lif_layers, *graph.synapses):
        assert folded[node.name].shape == node.shape
        np.testing.assert_allclose(got[node.name], wanted[node.name], rtol=0, atol=1e-9, err_msg=node.name)
    for node in folded:
        assert got[node.name].shape[2:] == node.shape, node.name
    return folded


def test_the_layers_fire_and_are_not_saturated() -> None:
    for seed in range(4):
        graph = chain(seed)
        values = reference.run(graph, np.random.default_rng(seed).random((4, *graph.input.shape)))
        for lif in graph.lif_layers:
            assert 0.05 < values[lif.name].mean() < 0.95, lif.name


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    pool=KERNELS,
    kernel=KERNELS,
    stride=KERNELS,
    padding=PADDINGS,
    tiles=st.tuples(st.integers(3, 4), st.integers(3, 4)),
    groups=st.sampled_from([1, 2, 4]),
)
def test_pooling_before_a_convolution(
    seed: int,
    pool: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    tiles: tuple[int, int],
    groups: int,
) -> None:
    m = maker(seed, tiles[0] * pool[0], tiles[1] * pool[1])
    m.pool(g.AvgPool, "pool", pool)
    m.conv("conv", 4, kernel=kernel, stride=stride, padding=padding, groups=groups)
    m.spike("conv.lif")
    m.features(g.Flatten, "flatten")
    folded = assert_folded_and_equal(end(m))
    conv = folded["conv"]
    assert isinstance(conv, g.Conv)
    assert conv.weight.shape == (4, 4 // groups, kernel[0] * pool[0], kernel[1] * pool[1])


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, pool=KERNELS, tiles=KERNELS)
def test_pooling_before_flatten_and_dense(seed: int, pool: tuple[int, int], tiles: tuple[int, int]) -> None:
    m = maker(seed, tiles[0] * pool[0], tiles[1] * pool[1])
    m.pool(g.AvgPool, "pool", pool)
    m.features(g.Flatten, "flatten")
    folded = assert_folded_and_equal(end(m))
    assert [node.name for node in folded][-2:] == ["flatten", "classifier"]


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, size=KERNELS, flatten=st.booleans())
def test_a_global_mean_before_dense(seed: int, size: tuple[int, int], flatten: bool) -> None:
    m = maker(seed, *size)
    m.features(g.Mean, "mean")
    if flatten:
        m.features(g.Flatten, "flatten")
    folded = assert_folded_and_equal(end(m))
    assert folded["classifier"].inputs == ("flatten" if flatten else "mean/flatten",)


def test_poolings_along_a_chain_all_fold() -> None:
    folded = assert_folded_and_equal(chain(0))
    assert [type(node) for node in folded] == [g.Input, *[g.Conv, g.LIF] * 3, g.Flatten, g.Dense]


def test_two_poolings_without_weights_between_them_fold_into_one_convolution() -> None:
    m = maker(0, 12, 12)
    m.pool(g.AvgPool, "pool1", (2, 1))
    m.pool(g.AvgPool, "pool2", (1, 3))
    m.conv("conv", 4)
    m.spike("lif")
    m.features(g.Flatten, "flatten")
    folded = assert_folded_and_equal(end(m))
    conv = folded["conv"]
    assert isinstance(conv, g.Conv)
    assert (conv.inputs, conv.weight.shape[2:], conv.stride, conv.padding) == (("stem.lif",), (6, 9), (2, 3), (2, 3))


def test_a_graph_without_poolings_stays_the_same() -> None:
    m = maker(0, 6, 6)
    m.features(g.Flatten, "flatten")
    graph = end(m)
    assert fold_pooling(graph) is graph


def pooled_before_lif() -> g.Graph:
    m = maker(0, 8, 8)
    m.pool(g.AvgPool, "pool", (2, 2))
    m.spike("after")
    m.features(g.Flatten, "flatten")
    return end(m)


def pooled_for_two() -> g.Graph:
    m = maker(0, 8, 8)
    pool = m.pool(g.AvgPool, "pool", (2, 2))
    m.conv("left", 4)
    m.conv("right", 4, source=pool)
    m.add("sum", "left", "right")
    m.features(g.Flatten, "flatten")
    return end(m)


def pooled_at_the_end() -> g.Graph:
    m = maker(0, 8, 8)
    m.features(g.Mean, "pool")
    return g.Graph(nodes=tuple(m.nodes), T=2)


def pooled_with_remainder() -> g.Graph:
    m = maker(0, 9, 8)
    m.pool(g.AvgPool, "pool", (2, 2))
    m.features(g.Flatten, "flatten")
    return end(m)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (pooled_before_lif(), r"pool: pooling must be read by one convolution .* it is read by after \(LIF\)"),
        (pooled_for_two(), r"pool: .* it is read by left \(Conv\), right \(Conv\)"),
        (pooled_at_the_end(), r"pool: .* it is read by nothing"),
        (pooled_with_remainder(), r"pool: \(9, 8\) is not a multiple of the window \(2, 2\); pad or resize"),
    ],
)
def test_a_pooling_that_cannot_become_weights_is_refused_by_name(graph: g.Graph, message: str) -> None:
    with pytest.raises(CannotFold, match=message):
        fold_pooling(graph)


def test_a_flatten_with_two_readers_keeps_its_pooling_from_folding() -> None:
    m = maker(0, 8, 8)
    m.pool(g.AvgPool, "pool", (2, 2))
    m.features(g.Flatten, "flatten")
    m.dense("left", 5)
    right = dataclasses.replace(m.nodes[-1], name="right")
    total = g.Add(name="sum", inputs=("left", "right"), shape=(5,))
    with pytest.raises(CannotFold, match=r"pool: .* it is read by left \(Dense\), right \(Dense\)"):
        fold_pooling(g.Graph(nodes=(*m.nodes, right, total), T=2))
