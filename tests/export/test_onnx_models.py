"""What every exported model is, whatever its precision and form: valid, named, small, and the same bytes every time."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from chip_graphs import a_recipe, build
from onnx import TensorProto, numpy_helper
from onnx_runs import about, graphs, operators, paths, twin_of

from export import graph as g
from export.counts import spike_driven
from export.lower import lower_network
from export.onnx_graph import build_model
from export.onnx_int8 import build_int8
from export.onnx_model import Form
from export.onnx_windows import is_identity
from export.prepare import prepare, synapses_of
from export.scales import Scales, rebuild
from export.unfold import unfold
from train.checkpoint import Preprocess
from train.config import NetConfig
from train.networks import build as build_network


PRECISIONS = ("fp32", "fp16", "int8")
FORMS = ("unrolled", "step")
KINDS = [(precision, form) for precision in PRECISIONS for form in FORMS]
NAMED: dict[str, Any] = {"labels": tuple("abc"), "checkpoint_sha256": "0" * 64}
TEN: dict[str, Any] = {"labels": tuple("0123456789"), "checkpoint_sha256": "0" * 64}
SHARED = ("logits/", "spike_rates/", "taps/", "nonzero/", "counts/", "places/", "one")
GRAPHS = {
    "max": build(a_recipe("projected", "max", "strided", side=(8, 8))),
    "avg": build(a_recipe("sew", "avg", "nested", neuron=(3.0, True), head="dense_residual")),
    "mean": build(a_recipe("sew_projected", "overlap", neuron=(np.inf, False), T=1, head="mean")),
}


@cache
def model_of(name: str, precision: Any, form: Form) -> onnx.ModelProto:
    graph = GRAPHS[name]
    if precision == "int8":
        return build_int8(graph, *twin_of(graph), form=form, **NAMED)
    return build_model(graph, precision=precision, form=form, **NAMED)


every_model = pytest.mark.parametrize(
    "model",
    [pytest.param((name, *kind), id="-".join((name, *kind))) for name in GRAPHS for kind in KINDS],
)


@every_model
def test_onnx_finds_nothing_wrong_with_it(model: Any) -> None:
    found = model_of(*model)
    onnx.checker.check_model(found, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(found, check_type=True, strict_mode=True, data_prop=True)
    assert found.ir_version == 10
    assert [(entry.domain, entry.version) for entry in found.opset_import] == [("", 20)]
    assert {node.domain for node in operators(found)} == {""}
    assert not found.functions
    for value in inferred.graph.output:
        assert value.type.tensor_type.elem_type, value.name


@every_model
def test_every_operator_is_named_after_a_layer_of_the_student(model: Any) -> None:
    found, graph = model_of(*model), GRAPHS[model[0]]
    for every in ([node.name for node in operators(found)], [name for n in operators(found) for name in n.output]):
        assert len(set(every)) == len(every)
        assert all(every)
    layers = [node.name for node in graph]
    for path in paths(found):
        for name in (node.name for node in path.graph.node):
            own = any(name == layer or name.startswith(f"{layer}/") for layer in layers)
            assert own or name.startswith(SHARED), name
        tensors = {tensor for node in path.graph.node for tensor in node.output}
        assert {f"{lif.name}/out" for lif in graph.lif_layers} <= tensors
    if model[2] == "unrolled" and graph.T > 2:
        assert "stem.lif/t2/fire" in {node.name for node in found.graph.node}


@every_model
def test_the_step_in_integers_has_two_branches_and_they_bear_their_names(model: Any) -> None:
    """In floats it has none: onnxruntime would compute its convolutions more slowly there, and in other bits."""
    top, *branches = graphs(model_of(*model))
    assert [branch.name for branch in branches] == (["first", "next"] if model[1:] == ("int8", "step") else [])
    for branch in branches:
        assert {node.name.split("/")[0] for node in branch.node} == {branch.name}
        assert {name.split("/")[0] for node in branch.node for name in node.output} == {branch.name}
    if branches:
        assert [node.name for node in top.node][-3:] == ["step/under_way", "step/all_new", "step"]


@every_model
def test_nothing_is_computed_or_stored_for_nobody(model: Any) -> None:
    found = model_of(*model)
    read = {name for node in operators(found) for name in node.input}
    read |= {value.name for graph in graphs(found) for value in graph.output}
    assert {tensor for node in operators(found) for tensor in node.output} <= read
    assert {constant.name for constant in found.graph.initializer} <= read
    assert {value.name for value in found.graph.input} <= read


@every_model
def test_the_shapes_that_are_stated_are_those_that_onnx_infers(model: Any) -> None:
    """The stated ones without what the model says itself."""
    found = onnx.ModelProto()
    found.CopyFrom(model_of(*model))
    stated = {v.name: v.type.tensor_type for v in found.graph.value_info}
    del found.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(found, strict_mode=True, data_prop=True)
    known = {v.name: v.type.tensor_type for v in (*inferred.graph.value_info, *inferred.graph.output)}
    for name, value in stated.items():
        assert value.elem_type == known[name].elem_type, name
        pairs = zip(value.shape.dim, known[name].shape.dim, strict=True)
        assert all(a.dim_value == b.dim_value for a, b in pairs if a.dim_value and b.dim_value), name


@pytest.mark.parametrize(("precision", "form"), KINDS)
def test_constants_do_not_grow_with_T(precision: Any, form: Form) -> None:
    stored = []
    for T in (2, 6):
        graph = build(a_recipe("projected", "sew", "avg", T=T, head="mean"))
        model: onnx.ModelProto
        if precision == "int8":
            model = build_int8(graph, *twin_of(graph), form=form, **NAMED)
        else:
            model = build_model(graph, precision=precision, form=form, **NAMED)
        stored.append({c.name: (c.data_type, tuple(c.dims)) for c in model.graph.initializer})
        weights = [f"{node.name}/weight" for node in graph.synapses]
        assert set(weights) <= set(stored[-1])
        elements = sum(int(np.prod(c.dims)) for c in model.graph.initializer if c.name in weights)
        assert elements == sum(node.weight.size for node in graph.synapses)
    assert stored[0] == stored[1]


@pytest.mark.parametrize(("precision", "form"), KINDS)
def test_two_builds_are_the_same_bytes(precision: Any, form: Form) -> None:
    first = model_of("avg", precision, form).SerializeToString(deterministic=True)
    model_of.cache_clear()
    assert model_of("avg", precision, form).SerializeToString(deterministic=True) == first


@pytest.mark.parametrize(("precision", "form"), KINDS)
def test_it_says_what_it_is(precision: Any, form: Form) -> None:
    known = about(model_of("avg", precision, form))
    common = {"format", "T", "labels", "precision", "form", "lif_layers", "lif_shapes", "synapses"}
    common |= {"checkpoint_sha256"}
    own = {"scales", "layout"} if precision == "int8" else set()
    own |= {"carried", "states"} if form == "step" else set()
    assert known.keys() == common | own
    assert (known["precision"], known["form"], known["T"]) == (precision, form, 4)
    unrolled = about(model_of("avg", "fp32", "unrolled"))
    assert all(known[key] == unrolled[key] for key in common - {"precision", "form"})


def test_a_step_counts_the_same_layers_as_all_steps() -> None:
    for precision in PRECISIONS:
        synapses = [about(model_of("max", precision, form))["synapses"] for form in FORMS]
        assert synapses[0] == synapses[1] == about(model_of("max", "fp32", "unrolled"))["synapses"]


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_of_synapses_that_read_spikes_alone(form: Form) -> None:
    for name, graph in GRAPHS.items():
        model = model_of(name, "fp16", form)
        static = g.is_static(graph)
        types = {c.name: c.data_type for c in model.graph.initializer}
        for node in graph.synapses:
            half = not static[node.name]
            assert types[f"{node.name}/weight"] == (TensorProto.FLOAT16 if half else TensorProto.FLOAT), node.name
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        tensors = {v.name: v.type.tensor_type.elem_type for v in (*inferred.graph.value_info, *inferred.graph.output)}
        for node in graph:
            half = isinstance(node, g.LIF | g.AvgPool | g.MaxPool | g.Mean | g.Flatten)
            if not isinstance(node, g.Add):
                assert (tensors[f"{node.name}/out"] == TensorProto.FLOAT16) is half, node.name
        membranes = [value for tensor, value in tensors.items() if tensor.endswith(("/h", "/v", "/v_next"))]
        assert len(membranes) >= len(graph.lif_layers)
        assert set(membranes) == {TensorProto.FLOAT}
        assert {tensors[name] for name in ("logits", "spike_rates", "taps", "nonzero")} == {TensorProto.FLOAT}


@pytest.fixture(scope="module")
def resnet() -> g.Graph:
    """An untrained ResNet-18 of half the width, for CIFAR."""
    torch.manual_seed(0)
    config = NetConfig(name="resnet18", width=0.5, size=32, in_channels=3)
    preprocess = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), size=32)
    return lower_network(build_network(config).eval(), preprocess)


def plain_scales(prepared: g.Graph) -> Scales:
    """Weights that fill 8 bits, any threshold: sizes are judged, not spikes."""
    heads = [*prepared.lif_layers, prepared.output]
    top = {n.name: 120 / max(float(np.abs(s.weight).max()) for s in synapses_of(prepared, n)) for n in heads}
    return Scales(
        input=30.0,
        currents=top,
        thresholds={lif.name: 100 for lif in prepared.lif_layers},
        biases={n.name: [1] * synapses_of(prepared, n)[0].shape[0] for n in heads},
    )


def parameters(graph: g.Graph) -> tuple[int, int]:
    """Weights and biases of the student's layers."""
    return sum(node.weight.size for node in graph.synapses), sum(node.bias.size for node in graph.synapses)


@pytest.mark.parametrize("form", FORMS)
def test_an_int8_file_is_its_weights_and_little_more(resnet: g.Graph, form: Form) -> None:
    prepared = prepare(resnet)
    scales = plain_scales(prepared)
    model = build_int8(resnet, rebuild(prepared, scales), scales, **TEN, form=form)
    weights, biases = parameters(resnet)
    assert model.ByteSize() <= 1.10 * (weights + 4 * biases)
    int8 = [c for c in model.graph.initializer if c.data_type == TensorProto.INT8]
    assert sum(numpy_helper.to_array(c).size for c in int8) >= weights


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("fp16", 2)])
@pytest.mark.parametrize("form", FORMS)
def test_a_file_in_floats_is_its_weights_and_little_more(
    resnet: g.Graph, precision: Any, size: int, form: Form
) -> None:
    model = build_model(resnet, **TEN, precision=precision, form=form)
    weights, biases = parameters(resnet)
    assert model.ByteSize() <= 1.10 * size * (weights + biases)


@pytest.mark.parametrize("form", FORMS)
def test_onnxruntime_writes_the_sums_of_a_layer_once(resnet: g.Graph, form: Form, tmp_path: Path) -> None:
    """Product, conversion and bias are one operator to it, in every branch; it knows them by how they are written."""
    scales = plain_scales(prepare(resnet))
    twin = rebuild(prepare(resnet), scales)
    model = build_int8(resnet, twin, scales, **TEN, form=form)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns that such a file is of this machine
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    layers: list[Any] = [unfold(resnet, twin)[node.name] for node in spike_driven(resnet)]
    matrices = [node for node in layers if not is_identity(node)]
    branches = graphs(onnx.load(tmp_path / "optimised.onnx"))[form == "step" :]
    assert len(branches) == (2 if form == "step" else 1)
    for branch in branches:
        fused = [node for node in branch.node if node.op_type == "MatMulIntegerToFloat"]
        assert len(fused) == len(matrices) == 20
        biased = [node for node in fused if len(node.input) > 6 and node.input[6]]
        assert len(biased) == sum(bool(node.bias.any()) for node in matrices) > 0
