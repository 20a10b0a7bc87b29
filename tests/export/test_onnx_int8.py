"""The int8 model is the integer twin: every spike, logit, rate and tap, bit for bit."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from chip_graphs import NEURONS, Recipe, a_recipe, begin, build, classified, images_of, recipes
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_runs import (
    about,
    assert_is_twin,
    assert_same,
    expected_int8,
    in_onnx,
    in_onnxruntime,
    int8_of,
    twin_of,
    unrolled,
)

from export import execute
from export.onnx_int8 import build_int8
from export.prepare import prepare
from export.quantize import quantize
from export.scales import Scales, rebuild
from hardware.net import Limits


NAMED: dict[str, Any] = {"labels": tuple("abc"), "checkpoint_sha256": "0" * 64}
MORE = [*NEURONS, (1.5, False), (4 / 3, True), (4 / 3, False), (1.0, True), (4.0, True)]
CHIP = st.builds(replace, recipes(), neuron=st.sampled_from(MORE))


@settings(max_examples=80, deadline=None)
@given(recipe=CHIP, batch=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_onnxruntime_gives_the_twin_bit_for_bit(recipe: Recipe, batch: int, seed: int) -> None:
    graph = build(recipe)
    assert_is_twin(graph, *twin_of(graph), images_of(graph, batch, seed=seed))


@settings(max_examples=20, deadline=None)
@given(
    T=st.integers(1, 7),
    tau=st.sampled_from([1.5, 2.0, 3.0]),
    side=st.sampled_from([(10, 8), (12, 12), (9, 11)]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 1), st.integers(0, 2)),
    groups=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**32 - 1),
)
def test_grouped_strided_and_padded_windows_are_the_twins(
    T: int,
    tau: float,
    side: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    groups: int,
    seed: int,
) -> None:
    m = begin(side=side, tau=tau)
    m.rng = np.random.default_rng(seed)
    m.conv("wide", 6, kernel=kernel, stride=stride, padding=padding, groups=groups)
    m.spike("wide.lif")
    m.conv("deep", 6, groups=6)
    m.spike("deep.lif")
    m.max_pool("max", (2, 3), stride=(1, 2), padding=(1, 1))
    graph = replace(classified(m), T=T)
    assert_is_twin(graph, *twin_of(graph), images_of(graph, 2, seed=seed))


@pytest.mark.parametrize(
    "recipe",
    [
        a_recipe("projected", "avg", head="mean"),
        a_recipe("sew", "sew_projected", "max", side=(6, 6), T=3, neuron=(3.0, False)),
        a_recipe("nested", "overlap", side=(5, 7), T=2, head="dense_residual"),
        a_recipe("flipped", "strided", side=(6, 4), T=7, neuron=(4 / 3, True), head="hidden"),
    ],
    ids=lambda recipe: "+".join(recipe.blocks),
)
def test_onnx_reference_evaluator_gives_the_twin_bit_for_bit(recipe: Recipe) -> None:
    graph = build(recipe)
    twin, scales = twin_of(graph)
    images = images_of(graph, 2).astype(np.float32)
    model = int8_of(graph, twin, scales)
    want = expected_int8(graph, twin, scales, images)
    assert_same(unrolled(model, in_onnx(model), images), want, spikes=np.uint8)


@pytest.mark.parametrize(("optimised", "threads"), [(False, 1), (True, 3)])
def test_neither_optimisations_nor_threads_change_a_bit(optimised: bool, threads: int) -> None:
    for neuron in ((2.0, True), (3.0, True)):
        graph = build(a_recipe("projected", "sew", "avg", "max", neuron=neuron, head="mean"))
        twin, scales = twin_of(graph)
        images = images_of(graph, 16).astype(np.float32)
        model = int8_of(graph, twin, scales)
        got = unrolled(model, in_onnxruntime(model, optimised=optimised, threads=threads), images)
        assert_same(got, expected_int8(graph, twin, scales, images), spikes=np.uint8)


def test_calibrated_scales_give_the_calibrated_twin() -> None:
    graph = build(a_recipe("projected", "sew", "avg", head="mean"))
    images = images_of(graph, 24)
    twin, scales = quantize(graph, images, Limits.load("loihi2"))
    want = assert_is_twin(graph, twin, scales, images)
    assert (want["spike_rates"].mean(axis=(0, 1)) > 0.01).all()
    known = about(int8_of(graph, twin, scales))
    assert (known["precision"], known["layout"]) == ("int8", "channels_last")
    again = rebuild(prepare(graph), Scales(**known["scales"]))
    for node in twin.synapses:
        np.testing.assert_array_equal(again[node.name].weight, node.weight)
        np.testing.assert_array_equal(again[node.name].bias, node.bias)


def test_the_random_networks_spike_in_every_layer_and_are_not_saturated() -> None:
    rates: dict[str, list[float]] = {}
    for seed in range(8):
        graph = build(a_recipe("projected", "sew", "avg", "residual", head="hidden", seed=seed))
        twin, scales = twin_of(graph)
        got = expected_int8(graph, twin, scales, images_of(graph, 4))["spike_rates"].mean(axis=(0, 1))
        for lif, rate in zip(graph.lif_layers, got, strict=True):
            rates.setdefault(lif.name, []).append(float(rate))
    assert all(0.02 < np.mean(found) < 0.98 for found in rates.values()), rates


@pytest.mark.parametrize("first", ["image", "spikes"])
@pytest.mark.parametrize("tau", [2.0, 3.0])
def test_currents_of_the_image_and_of_spikes_are_added(first: str, tau: float) -> None:
    """One is the same at every step, the other is not."""
    m = begin(tau=tau)
    m.conv("conv", 4)
    m.conv("again", 4, source="image")
    m.add("add", *(("again", "conv") if first == "image" else ("conv", "again")))
    m.spike("lif2")
    graph = classified(m)
    prepared, pixel = prepare(graph), 50.0
    currents = {"lif": 30 * pixel, "lif2": 30 * pixel / 2, "classifier": 40.0}
    scales = Scales(
        input=pixel,
        currents=currents,
        thresholds={"lif": int(1.5 * currents["lif"]), "lif2": int(1.5 * currents["lif2"])},
        biases={"lif": [10, -20, 30, 0], "lif2": [5, 6, -7, 8], "classifier": [1, -2, 3]},
    )
    want = assert_is_twin(graph, rebuild(prepared, scales), scales, images_of(graph, 3))
    rates = want["spike_rates"].mean(axis=(0, 1))
    assert ((rates > 0.02) & (rates < 0.98)).all(), rates


def test_a_student_without_spikes_or_with_other_labels_is_refused() -> None:
    graph = build(a_recipe())
    twin, scales = twin_of(graph)
    with pytest.raises(ValueError, match=r"logits of shape \(3,\), but there are 2 labels"):
        build_int8(graph, twin, scales, labels=("a", "b"), checkpoint_sha256="0" * 64)
    event = graph.replace(replace(graph.input, event=True))
    with pytest.raises(ValueError, match=r"python -m export\.to_loihi"):
        build_int8(event, twin, scales, **NAMED)


def test_pixels_on_a_tie_go_where_the_twin_sends_them() -> None:
    """Half-way pixels, also such as float32 could not tell from a half."""
    graph = build(a_recipe(side=(4, 4)))
    mean, std = np.array([0.1, 0.3]), np.array([0.7, 0.9])
    graph = graph.replace(replace(graph.input, mean=mean, std=std))
    twin, scales = twin_of(graph)
    halves = np.arange(-127, 127)[:, None] + 0.5
    exact = halves / scales.input * std + mean  # [254, 2]
    near = [np.clip(np.nextafter(exact.astype(np.float32), np.float32(side)), 0, 1) for side in (-9, 9)]
    values = np.concatenate([np.clip(exact, 0, 1).astype(np.float32), *near])
    images = np.resize(values, (48, 4, 4, 2)).transpose(0, 3, 1, 2)
    images = np.ascontiguousarray(images)
    assert_is_twin(graph, twin, scales, images)
    model = build_int8(graph, twin, scales, **NAMED)
    model.graph.output.extend([onnx.ValueInfoProto(name="image/out")])
    got = in_onnxruntime(model)({"image": images})["image/out"]
    want = execute.run(twin, images)["image"][0]
    np.testing.assert_array_equal(got.transpose(0, 2, 1).reshape(want.shape), want)
