"""Pooling as sums computes what the chip's repeated weights compute, from the weights of the student's own layers."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from chip_graphs import a_recipe, begin, build, classified, images_of, recipes
from hypothesis import given, settings
from onnx_runs import by_hand, twin_of

from export import execute
from export import graph as g
from export.integer import SumPool
from export.prepare import weigh_shortcuts
from export.unfold import unfold


@settings(max_examples=60, deadline=None)
@given(recipe=recipes())
def test_every_spike_and_logit_is_the_twins(recipe: Any) -> None:
    graph = build(recipe)
    twin, _ = twin_of(graph)
    pooled = unfold(graph, twin)
    images = images_of(graph, 3)
    want, got = execute.run(twin, images), execute.run(pooled, images)
    for lif in graph.lif_layers:
        np.testing.assert_array_equal(got[lif.name], want[lif.name], err_msg=lif.name)
    np.testing.assert_array_equal(execute.logits(pooled, got), execute.logits(twin, want))
    for node in pooled:  # what the executor does with a SumPool, by another way
        if isinstance(node, SumPool):
            average = graph[node.name]
            np.testing.assert_array_equal(got[node.name], by_hand(average, [got[node.inputs[0]]]), err_msg=node.name)


@settings(max_examples=40, deadline=None)
@given(recipe=recipes())
def test_layers_have_the_names_the_order_and_the_sizes_of_the_graph(recipe: Any) -> None:
    graph = build(recipe)
    twin, _ = twin_of(graph)
    pooled = unfold(graph, twin)
    weighed = weigh_shortcuts(graph)
    assert [(node.name, node.inputs, node.shape) for node in pooled] == [
        (node.name, node.inputs, node.shape) for node in weighed
    ]
    for node in weighed.synapses:
        assert pooled[node.name].weight.shape == node.weight.shape
    assert not any(isinstance(node, g.AvgPool | g.Mean) for node in pooled)
    assert pooled.T == graph.T


def two_pools() -> g.Graph:
    """A pooling of a pooling before a convolution, another before the classifier, 12 x 8 = 96 values in all."""
    m = begin(side=(24, 16))
    m.pool(g.AvgPool, "pool1", (2, 1))
    m.pool(g.AvgPool, "pool2", (1, 2))
    m.conv("conv", 3)
    m.spike("conv.lif")
    m.pool(g.AvgPool, "pool3", (3, 2))
    return classified(m)


def test_poolings_in_a_row_and_before_a_flattened_map_come_apart() -> None:
    graph = two_pools()
    twin, _ = twin_of(graph)
    assert (twin["conv"].weight.shape, twin["classifier"].weight.shape) == ((3, 4, 6, 6), (3, 3 * 12 * 8))
    pooled = unfold(graph, twin)
    assert (pooled["conv"].weight.shape, pooled["classifier"].weight.shape) == ((3, 4, 3, 3), (3, 3 * 4 * 4))
    assert [node.kernel for node in pooled if isinstance(node, SumPool)] == [(2, 1), (1, 2), (3, 2)]
    images = images_of(graph, 4)
    want, got = execute.run(twin, images), execute.run(pooled, images)
    np.testing.assert_array_equal(got["conv.lif"], want["conv.lif"])
    np.testing.assert_array_equal(execute.logits(pooled, got), execute.logits(twin, want))
    assert 0.02 < want["conv.lif"].mean() < 0.98


def test_a_mean_becomes_one_window_and_keeps_the_classifier_small() -> None:
    graph = build(a_recipe("sew", head="mean"))
    pooled = unfold(graph, twin_of(graph)[0])
    mean = pooled["mean"]
    assert isinstance(mean, SumPool)
    assert (mean.kernel, mean.shape) == ((8, 6), (4,))
    assert pooled["classifier"].weight.shape == (3, 4)


@pytest.mark.parametrize("name", ["conv", "classifier"])
def test_weights_that_differ_within_a_window_are_not_taken_apart(name: str) -> None:
    graph = two_pools()
    twin, _ = twin_of(graph)
    weight = twin[name].weight.copy()
    weight.reshape(-1)[1] += 1
    with pytest.raises(AssertionError, match=f"{name}: the weights of one window"):
        unfold(graph, twin.replace(dataclasses.replace(twin[name], weight=weight)))
