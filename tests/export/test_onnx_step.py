"""The step form: T steps are the unrolled model, for every image alone, whenever it joins and whenever it leaves."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from chip_graphs import NEURONS, Recipe, a_recipe, build, images_of, recipes
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_runs import (
    Feed,
    about,
    assert_same,
    expected,
    expected_int8,
    exposed,
    first,
    in_onnx,
    in_onnxruntime,
    paths,
    scheduled,
    stepped,
    twin_of,
    unrolled,
)
from small_graphs import dyadic_images, every_node

from export import graph as g
from export import reference
from export.onnx_graph import build_model
from export.onnx_int8 import build_int8
from export.onnx_model import Form


NAMED: dict[str, Any] = {"checkpoint_sha256": "0" * 64}
GRAPHS = st.builds(
    every_node,
    seed=st.integers(0, 2**32 - 1),
    T=st.integers(1, 5),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    tau=st.sampled_from([1.5, 2.0, 3.0]),
    decay_input=st.booleans(),
    v_reset=st.sampled_from([0.0, -0.25]),
)
INTEGRATING = st.builds(
    every_node,
    seed=st.integers(0, 2**32 - 1),
    T=st.integers(1, 4),
    tau=st.just(math.inf),
    decay_input=st.just(False),
    v_reset=st.sampled_from([0.0, -0.25]),
)
CHIP = st.builds(
    replace, recipes(), neuron=st.sampled_from([*NEURONS, (1.5, False), (4 / 3, True), (4 / 3, False), (1.0, True)])
)
TIMES = st.tuples(st.integers(0, 4), st.integers(1, 7))


def floats(graph: g.Graph, *, form: Form = "step", precision: Any = "fp32") -> onnx.ModelProto:
    return build_model(graph, labels=tuple("abcde"), precision=precision, form=form, **NAMED)


def integers(recipe: Recipe, *, form: Form = "step") -> tuple[onnx.ModelProto, Feed, np.ndarray]:
    """The int8 model of a recipe with its spikes among the outputs, what it must give, and the images."""
    graph = build(recipe)
    twin, scales = twin_of(graph)
    images = images_of(graph, 3).astype(np.float32)
    model = build_int8(graph, twin, scales, labels=tuple("abc"), form=form, **NAMED)
    return exposed(model), expected_int8(graph, twin, scales, images), images


def of_reference(graph: g.Graph, images: np.ndarray) -> Feed:
    values = reference.run(graph, images)
    return expected(graph, values, reference.logits(graph, values))


def assert_each_is_as_alone(got: Feed, want: Feed, times: list[tuple[int, int]]) -> None:
    """Every image has, for as many steps as it stayed, what it gives by itself."""
    for i, (_, n) in enumerate(times):
        for name, value in want.items():
            np.testing.assert_array_equal(got[name][:n, i], value[:n, i].astype(got[name].dtype), err_msg=name)


@settings(max_examples=20, deadline=None)
@given(graph=st.one_of(GRAPHS, INTEGRATING), seed=st.integers(0, 2**32 - 1))
def test_T_steps_in_floats_give_the_reference_bit_for_bit(graph: g.Graph, seed: int) -> None:
    images = dyadic_images(graph, batch=2, seed=seed)
    model = exposed(floats(graph))
    assert_same(stepped(model, in_onnxruntime(model), images), of_reference(graph, images))


@settings(max_examples=40, deadline=None)
@given(recipe=CHIP)
def test_T_steps_in_integers_give_the_twin_bit_for_bit(recipe: Recipe) -> None:
    model, want, images = integers(recipe)
    assert_same(stepped(model, in_onnxruntime(model), images), want, spikes=np.uint8)


@settings(max_examples=25, deadline=None)
@given(graph=GRAPHS, times=st.lists(TIMES, min_size=1, max_size=5), seed=st.integers(0, 2**32 - 1))
def test_images_in_floats_join_and_leave_without_a_trace(
    graph: g.Graph, times: list[tuple[int, int]], seed: int
) -> None:
    times = [(start, min(n, graph.T)) for start, n in times]
    images = dyadic_images(graph, batch=len(times), seed=seed)
    model = exposed(floats(graph))
    got = scheduled(model, in_onnxruntime(model), images, times)
    assert_each_is_as_alone(got, of_reference(graph, images), times)


@settings(max_examples=40, deadline=None)
@given(recipe=CHIP, times=st.lists(TIMES, min_size=3, max_size=3))
def test_images_in_integers_join_and_leave_without_a_trace(recipe: Recipe, times: list[tuple[int, int]]) -> None:
    times = [(start, min(n, recipe.T)) for start, n in times]
    model, want, images = integers(recipe)
    got = scheduled(model, in_onnxruntime(model), images, times)
    assert_each_is_as_alone(got, want, times)


@pytest.mark.parametrize("neuron", [(2.0, True), (3.0, True)], ids=["float32 membrane", "float64 membrane"])
def test_onnx_reference_evaluator_steps_integers_as_the_twin(neuron: tuple[float, bool]) -> None:
    model, want, images = integers(a_recipe("projected", "sew", "avg", side=(6, 4), neuron=neuron, T=3, head="mean"))
    assert_same(stepped(model, in_onnx(model), images), want, spikes=np.uint8)


def test_onnx_reference_evaluator_steps_floats_as_the_reference() -> None:
    graph = every_node(T=2, side=(8, 8), v_reset=-0.25)
    images = dyadic_images(graph, batch=2)
    model = exposed(floats(graph))
    assert_same(stepped(model, in_onnx(model), images), of_reference(graph, images))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_unrolled_and_step_agree_to_the_last_bit_where_float32_rounds(precision: Any) -> None:
    graph = build(a_recipe("projected", "sew", "avg", head="mean"))
    graph = graph.replace(g.Dense(**{**vars(graph.output), "weight": graph.output.weight / 3}))
    images = images_of(graph, 4).astype(np.float32)
    both = [
        exposed(build_model(graph, labels=tuple("abc"), precision=precision, form=form, **NAMED))
        for form in ("unrolled", "step")
    ]
    want = unrolled(both[0], in_onnxruntime(both[0]), images)
    half = np.float16 if precision == "fp16" else np.float32
    assert_same(stepped(both[1], in_onnxruntime(both[1]), images), want, spikes=half)
    assert want["logits"].std() > 0


def models() -> dict[str, onnx.ModelProto]:
    recipe = a_recipe("projected", "max", "sew", neuron=(3.0, True), T=3)
    simple = a_recipe("strided", "avg", T=3)
    return {
        "fp32": floats(every_node(T=3, v_reset=-0.25)),
        "fp16": floats(every_node(T=3), precision="fp16"),
        "int8, float32 membranes": integers(simple)[0],
        "int8, float64 membranes": integers(recipe)[0],
    }


@pytest.mark.parametrize("kind", list(models()))
def test_a_step_of_no_images_gives_nothing_in_the_right_shapes(kind: str) -> None:
    model = models()[kind]
    known = about(model)
    side = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    none = np.zeros((0, *side), np.float32)
    outputs = in_onnxruntime(model)({"image": none, **first(known, 0)})
    assert outputs["logits"].shape == (0, len(known["labels"]))
    assert outputs["spike_rates"].shape == (0, len(known["lif_layers"]))
    assert outputs["taps"].shape == outputs["nonzero"].shape == (0, len(known["synapses"]))
    for one in (*known["carried"], *known["states"]):
        assert outputs[one["output"]].shape == (0, *one["shape"])


@pytest.mark.parametrize("kind", list(models()))
def test_the_metadata_lists_exactly_the_tensors_that_go_in_and_out(kind: str) -> None:
    model = models()[kind]
    known = about(model)
    assert (known["form"], known["T"]) == ("step", 3)
    types = {"float32": onnx.TensorProto.FLOAT, "float64": onnx.TensorProto.DOUBLE}
    tensors = {
        value.name: (
            value.type.tensor_type.elem_type,
            tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
        )
        for value in (*model.graph.input, *model.graph.output)
    }
    inputs, outputs = {"image"}, {"logits", "spike_rates", "taps", "nonzero"}
    outputs |= {value.name for value in model.graph.output if value.name.endswith("/out")}  # spikes, for the tests
    for one, batch in [*((c, "C") for c in known["carried"]), *((s, "B") for s in known["states"])]:
        assert tensors[one["input"]] == (types[one["type"]], (batch, *one["shape"]))
        assert tensors[one["output"]] == (types[one["type"]], ("B", *one["shape"]))
        inputs.add(one["input"])
        outputs.add(one["output"])
    assert {value.name for value in model.graph.input} == inputs
    assert {value.name for value in model.graph.output} == outputs
    assert len(known["states"]) == len(known["lif_layers"])
    start = -0.25 if kind == "fp32" else 0.0
    assert {state["start"] for state in known["states"]} == {start}
    wide = "float64" if kind == "int8, float64 membranes" else "float32"
    assert {state["type"] for state in known["states"]} == {wide}
    assert {one["type"] for one in known["carried"]} == {"float32"}


@pytest.mark.parametrize("kind", list(models()))
def test_the_image_is_read_by_new_images_alone(kind: str) -> None:
    """Nothing that depends on the image alone is computed for images that go on: it is carried."""
    model = paths(models()[kind])[-1]
    reads = {"image"}
    for node in model.graph.node:
        joined = node.op_type == "Concat" and any(c["output"] in node.output for c in about(model)["carried"])
        pixels = not joined and node.op_type != "Size"
        if pixels and reads & set(node.input):
            assert not set(node.input) & {state["input"] for state in about(model)["states"]}, node.name
            reads |= set(node.output)
    assert not reads & {output.name for output in model.graph.output}
