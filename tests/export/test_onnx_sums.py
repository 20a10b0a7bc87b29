"""The sums in an int8 model: none can leave the integers or floats that hold it, whatever spikes come in."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from chip_graphs import a_recipe, begin, build, classified, images_of, naive_scales
from onnx import TensorProto, numpy_helper, shape_inference
from onnx_runs import assert_is_twin, in_onnxruntime, int8_of, operators, paths, twin_of

from export import graph as g
from export.integer import WEIGHT_LIMIT
from export.onnx_integers import LARGEST_UINT8
from export.onnx_model import Form
from export.prepare import prepare
from export.scales import Scales, rebuild


def wide_sums(kind: str) -> g.Graph:
    """Networks in which more spikes are added up than a uint8 may hold."""
    m = begin(side=(16, 12))
    if kind == "mean":
        m.features(g.Mean, "mean")
    elif kind == "window before a convolution":
        m.pool(g.AvgPool, "pool", (16, 12))
        m.conv("conv", 3, kernel=(1, 1), padding=(0, 0))
        m.spike("conv.lif")
    elif kind == "window before a flattened map":
        m.add("twice", "lif", "lif")
        m.pool(g.AvgPool, "pool", (8, 12))
    elif kind == "doubled":
        last = "lif"
        for i in range(8):
            last = m.add(f"double{i}", last, last)
        m.conv("conv", 3)
        m.spike("conv.lif")
    return classified(m)


def always_firing(graph: g.Graph) -> tuple[g.Graph, Scales]:
    """A twin whose first neurons fire at every step, so that what is pooled or added reaches its bound."""
    twin, scales = twin_of(graph)
    stem = twin["stem"]
    assert isinstance(stem, g.Conv)
    driven = replace(stem, weight=np.zeros_like(stem.weight), bias=np.ones_like(stem.bias))
    return twin.replace(replace(twin["lif"], threshold=0), driven), scales


@pytest.mark.parametrize(
    ("kind", "node"),
    [
        ("mean", "mean"),
        ("window before a convolution", "pool"),
        ("window before a flattened map", "pool"),
        ("doubled", "double7"),
    ],
)
def test_sums_that_no_uint8_may_hold_travel_as_floats_and_stay_exact(kind: str, node: str) -> None:
    graph = wide_sums(kind)
    images = images_of(graph, 2)
    assert_is_twin(graph, *twin_of(graph), images)
    twin, scales = always_firing(graph)
    want = assert_is_twin(graph, twin, scales, images)
    assert want["spike_rates"][..., 0].min() == 1.0
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in shape_inference.infer_shapes(int8_of(graph, twin, scales), strict_mode=True).graph.value_info
    }
    assert types[f"{node}/out"] == TensorProto.FLOAT
    if kind == "doubled":
        assert types["double6/out"] == TensorProto.UINT8, "128 fit"


def largest_values(model: onnx.ModelProto) -> dict[str, int]:
    """For every tensor of small non-negative integers the largest value it can have, from the model alone.

    It knows only where such integers come from: booleans, and sums over axes of known length.
    """
    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    known = (*inferred.graph.value_info, *inferred.graph.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in known}
    types = {v.name: v.type.tensor_type.elem_type for v in known}
    constants = {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}
    most: dict[str, int] = {}
    for node in model.graph.node:
        sources = [most[name] for name in node.input if name in most]
        match node.op_type:
            case "Cast" if types[node.output[0]] == TensorProto.BOOL:
                bound = 1
            case "Cast" | "Concat" | "Identity" | "Reshape" | "Gather" | "Pad" | "ReduceMax" | "Split" if sources:
                bound = max(sources)
            case "Add" if len(sources) == 2:
                bound = sum(sources)
            case "ReduceSum" if sources:
                axes = constants[node.input[1]]
                bound = sources[0] * int(np.prod([shapes[node.input[0]][axis] for axis in axes]))
            case "Greater":
                bound = 1
            case _:
                continue
        most |= dict.fromkeys(node.output, bound)
    return most


SATURATING = [
    a_recipe("projected", "sew", "sew", "avg", side=(8, 8), head="mean"),
    a_recipe("nested", "max", "overlap", neuron=(3.0, True), head="dense_residual"),
    a_recipe("strided", "residual", T=1),
]


@pytest.mark.parametrize("form", ["unrolled", "step"])
@pytest.mark.parametrize(
    "graph",
    [*map(build, SATURATING), *map(wide_sums, ["mean", "window before a flattened map", "doubled"])],
    ids=[*("+".join(recipe.blocks) for recipe in SATURATING), "mean", "window", "doubled"],
)
def test_two_products_always_fit_16_bits(graph: g.Graph, form: Form) -> None:
    """Some processors add two products of uint8 and int8 in 16 bits, and saturate."""
    model = int8_of(graph, *twin_of(graph), form)
    constants = {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}
    for path in paths(model):
        most = largest_values(path)
        products = [node for node in path.graph.node if node.op_type == "MatMulInteger"]
        assert len(products) > len(graph.lif_layers)
        for node in products:
            assert len(node.input) == 2, "no zero points: they would make other numbers of these"
            left, right = most[node.input[0]], constants[node.input[1]]
            assert right.dtype == np.int8
            assert np.abs(right.astype(int)).max() <= WEIGHT_LIMIT == 127
            assert left <= LARGEST_UINT8 == 129
            assert 2 * left * WEIGHT_LIMIT <= 2**15 - 1
    assert {node.op_type for node in operators(model)}.isdisjoint(
        {"QLinearConv", "QLinearMatMul", "ConvInteger", "QuantizeLinear", "DynamicQuantizeLinear"}
    )


@pytest.mark.parametrize("kind", ["mean", "window before a flattened map", "doubled"])
def test_the_bounds_are_what_neurons_that_always_fire_reach(kind: str) -> None:
    graph = wide_sums(kind)
    model = int8_of(graph, *always_firing(graph))
    most = largest_values(model)
    sums = [f"{node.name}/out" for node in graph if isinstance(node, g.Mean | g.AvgPool | g.Add)]
    model.graph.output.extend([onnx.ValueInfoProto(name=name) for name in sums])
    outputs = in_onnxruntime(model)({"image": images_of(graph, 2).astype(np.float32)})
    assert sums
    for name in sums:
        assert outputs[name].max() == most[name], name


def test_weights_beyond_exact_sums_are_refused_rather_than_rounded() -> None:
    graph = build(a_recipe())
    prepared = prepare(graph)
    scales = naive_scales(prepared)
    twin = rebuild(prepared, scales)
    huge = replace(twin["stem"], weight=np.full_like(twin["stem"].weight, 10_000))
    with pytest.raises(AssertionError, match="stem: not exact"):
        int8_of(graph, twin.replace(huge), scales)
