"""A step whose images are all new reads no membrane: written apart, it gives the bits that all other steps would."""

from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import onnx
import pytest
from chip_graphs import NEURONS, Recipe, a_recipe, build, images_of, recipes
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_runs import (
    Feed,
    Runner,
    about,
    assert_same,
    expected,
    exposed,
    first,
    graphs,
    in_onnx,
    in_onnxruntime,
    int8_of,
    scheduled,
    stepped,
    taken,
    twin_of,
    unrolled,
)
from small_graphs import dyadic_images, every_node

from export import graph as g
from export import onnx_graph, reference
from export.onnx_builder import write_model
from export.onnx_model import metadata


CHIP = st.builds(replace, recipes(), neuron=st.sampled_from([*NEURONS, (1.5, False), (4 / 3, True), (1.0, True)]))
OUTPUTS = ("logits", "spike_rates", "taps", "nonzero")
KINDS = {
    "float32 membranes": a_recipe("projected", "sew", "avg", head="mean"),
    "float64 membranes": a_recipe("nested", "max", neuron=(3.0, True), head="dense_residual"),
}


def handed_on(model: onnx.ModelProto, outputs: Feed) -> Feed:
    """What a step gives to the next."""
    known = about(model)
    return {one["input"]: outputs[one["output"]] for one in (*known["carried"], *known["states"])}


def assert_equal(got: Feed, want: Feed) -> None:
    """Every output the same to the last bit."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
        assert got[name].dtype == value.dtype


def assert_branches_agree(recipe: Recipe, runner: Any = in_onnxruntime, *, T: int = 3) -> None:
    """A first step, a second one, and one of two images that go on and one new, against all steps at once."""
    graph = build(replace(recipe, T=T))
    twin, scales = twin_of(graph)
    images = images_of(graph, 3).astype(np.float32)
    whole = int8_of(graph, twin, scales)
    want = unrolled(whole, in_onnxruntime(whole), images)
    model = int8_of(graph, twin, scales, "step")
    run: Runner = runner(model)
    by_first, by_next = (runner(taken(model, branch)) for branch in ("first", "next"))

    feed = {"image": images, **first(about(model), 3)}
    one = run(feed)
    assert_equal(by_first(feed), one)
    assert_equal(by_next(feed), one)
    feed = {"image": images[:0], **handed_on(model, one)}
    two = run(feed)
    assert_equal(by_next(feed), two)
    starts = first(about(model), 1)
    going = {name: value[[2, 0]] for name, value in handed_on(model, one).items()}
    feed = {
        "image": images[[1]],
        **{name: np.concatenate([value, starts[name]]) for name, value in going.items()},
    }
    mixed = run(feed)
    assert_equal(by_next(feed), mixed)
    for name, value in want.items():
        np.testing.assert_array_equal(one[name], value[0], err_msg=name)
        np.testing.assert_array_equal(two[name], value[1], err_msg=name)
        np.testing.assert_array_equal(mixed[name], value[[1, 1, 0], [2, 0, 1]], err_msg=name)


@settings(max_examples=30, deadline=None)
@given(recipe=CHIP)
def test_both_branches_give_the_bits_of_all_steps_at_once(recipe: Recipe) -> None:
    assert_branches_agree(recipe)


@pytest.mark.parametrize("kind", KINDS)
def test_both_branches_agree_in_onnx_reference_evaluator(kind: str) -> None:
    assert_branches_agree(replace(KINDS[kind], side=(6, 4)), in_onnx, T=2)


@pytest.mark.parametrize(("optimised", "threads"), [(False, 1), (True, 3)])
def test_neither_optimisations_nor_threads_change_a_bit_of_a_branch(optimised: bool, threads: int) -> None:
    for recipe in KINDS.values():
        assert_branches_agree(recipe, lambda model: in_onnxruntime(model, optimised=optimised, threads=threads))


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_reads_the_image_and_nothing_that_is_handed_on(kind: str) -> None:
    graph = build(KINDS[kind])
    top, first_branch, next_branch = graphs(int8_of(graph, *twin_of(graph), "step"))
    handed = {value.name for value in top.input} - {"image"}
    reads = [{name for node in branch.node for name in node.input} for branch in (first_branch, next_branch)]
    assert not reads[0] & handed
    assert reads[1] >= handed
    assert all("image" in names for names in reads)
    assert len(first_branch.node) <= len(next_branch.node) - len(graph.lif_layers)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_constant_is_stored_and_computed_once_for_both(kind: str) -> None:
    graph = build(KINDS[kind])
    top, *branches = graphs(int8_of(graph, *twin_of(graph), "step"))
    constant = {value.name for value in top.initializer}
    for node in top.node[:-3]:
        assert set(node.input) <= constant, node.name
        constant |= set(node.output)
    for branch in branches:
        assert not branch.initializer
        assert not [node.name for node in branch.node if set(node.input) <= constant]
    assert {f"{node.name}/weight" for node in graph.synapses} <= constant


def apart(graph: g.Graph) -> onnx.ModelProto:
    """A step in floats in two branches, which no export writes: there a membrane may start elsewhere than at 0."""
    known = metadata(graph, labels=tuple("abcde"), checkpoint_sha256="0" * 64, precision="fp32", form="step")

    def write(builder: Any) -> Any:
        return onnx_graph.write(builder, half=False)

    return exposed(write_model(graph, "step", write, metadata=known, first_apart=True))


def of_reference(graph: g.Graph, images: np.ndarray) -> Feed:
    values = reference.run(graph, images)
    return expected(graph, values, reference.logits(graph, values))


STARTED = st.builds(
    every_node,
    seed=st.integers(0, 2**32 - 1),
    T=st.integers(1, 4),
    tau=st.sampled_from([1.5, 2.0, 3.0]),
    decay_input=st.booleans(),
    v_reset=st.sampled_from([-0.5, -0.25, 0.25]),
)
INTEGRATING = st.builds(
    every_node,
    seed=st.integers(0, 2**32 - 1),
    T=st.integers(1, 4),
    tau=st.just(inf),
    decay_input=st.just(False),
    v_reset=st.sampled_from([-0.25, 0.25]),
)


@settings(max_examples=20, deadline=None)
@given(graph=st.one_of(STARTED, INTEGRATING), late=st.integers(0, 3), seed=st.integers(0, 2**32 - 1))
def test_a_membrane_that_starts_elsewhere_than_at_0_is_exact_in_both(graph: g.Graph, late: int, seed: int) -> None:
    images = dyadic_images(graph, batch=3, seed=seed)
    model, want = apart(graph), of_reference(graph, images)
    assert {state["start"] for state in about(model)["states"]} == {graph.lif_layers[0].v_reset} != {0.0}
    run = in_onnxruntime(model)
    assert_same(stepped(model, run, images), want)
    times = [(0, graph.T), (late, graph.T), (late + 1, graph.T)]
    assert_same(scheduled(model, run, images, times), want)


@pytest.mark.parametrize(("tau", "decay_input"), [(2.0, True), (3.0, False), (inf, False)])
def test_the_start_is_what_a_wrong_start_would_show(tau: float, decay_input: bool) -> None:
    """So the bits that the tests above compare depend on it."""
    graph = every_node(T=2, side=(8, 8), tau=tau, decay_input=decay_input, v_reset=-0.25)
    images = dyadic_images(graph, batch=2)
    model, want = apart(graph), of_reference(graph, images)
    assert_same(stepped(model, in_onnx(model), images), want)
    other = graph.replace(*(replace(lif, v_reset=0.0) for lif in graph.lif_layers))
    wrong = stepped(apart(other), in_onnxruntime(apart(other)), images)
    assert any((wrong[name][0] != want[name][0]).any() for name in want)
