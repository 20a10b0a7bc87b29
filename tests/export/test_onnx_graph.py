"""The ONNX model computes what the Graph means: bit for bit where float32 is exact, by two runtimes."""

import dataclasses
import math

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx_runs import Feed, about, assert_same, expected, exposed, in_onnx, in_onnxruntime, unrolled
from small_graphs import Maker, dyadic_images, every_node

from export import graph as g
from export import reference
from export.counts import sops_per_tap, spike_driven
from export.onnx_graph import Precision, build_model


LABELS = ("a", "b", "c", "d", "e")
TAU = st.sampled_from([1.5, 2.0, 3.0, 4.0])
SIDES = st.tuples(st.integers(8, 11), st.integers(8, 11))
GRAPHS = st.builds(
    every_node,
    seed=st.integers(0, 2**32 - 1),
    T=st.integers(1, 4),
    side=SIDES,
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.sampled_from([1, 2]),
    tau=TAU,
    decay_input=st.booleans(),
    v_reset=st.sampled_from([0.0, -0.25]),
    v_threshold=st.sampled_from([0.75, 1.0]),
)


INTEGRATING = st.builds(
    every_node,
    seed=st.integers(0, 2**32 - 1),
    T=st.integers(1, 4),
    tau=st.just(math.inf),
    decay_input=st.just(False),
    v_reset=st.sampled_from([0.0, -0.25]),
    v_threshold=st.sampled_from([0.75, 1.0]),
)


def pooled(
    *, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], T: int = 3, seed: int = 0
) -> g.Graph:
    """Maximum pooling of currents, which are often below 0, and of spikes."""
    m = Maker(
        rng=np.random.default_rng(seed), lif={"tau": 2.0, "decay_input": True, "v_reset": 0.0, "v_threshold": 0.5}
    )
    m.image(2, 11, 9)
    m.conv("stem.conv", 4)
    m.max_pool("currents", kernel, stride=stride, padding=padding)
    m.spike("stem.lif")
    m.conv("conv", 4)
    m.spike("lif")
    m.max_pool("spikes", kernel, stride=stride, padding=padding)
    m.conv("last", 4)
    m.spike("last.lif")
    m.features(g.Flatten, "features")
    m.dense("classifier", 5)
    return g.Graph(nodes=tuple(m.nodes), T=T)


def build(graph: g.Graph, *, spikes: bool = True, precision: Precision = "fp32") -> onnx.ModelProto:
    model = build_model(graph, labels=LABELS, checkpoint_sha256="0" * 64, precision=precision)
    return exposed(model) if spikes else model


def run_onnxruntime(model: onnx.ModelProto, images: np.ndarray) -> Feed:
    return unrolled(model, in_onnxruntime(model), images)


def run_onnx(model: onnx.ModelProto, images: np.ndarray) -> Feed:
    return unrolled(model, in_onnx(model), images)


def wanted(graph: g.Graph, images: np.ndarray) -> Feed:
    values = reference.run(graph, images)
    return expected(graph, values, reference.logits(graph, values))


@settings(max_examples=25, deadline=None)
@given(graph=GRAPHS, batch=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_onnxruntime_gives_the_reference_bit_for_bit(graph: g.Graph, batch: int, seed: int) -> None:
    images = dyadic_images(graph, batch=batch, seed=seed)
    assert_same(run_onnxruntime(build(graph), images), wanted(graph, images))


@settings(max_examples=15, deadline=None)
@given(graph=INTEGRATING, seed=st.integers(0, 2**32 - 1))
def test_integrate_and_fire_is_the_reference_bit_for_bit_without_an_infinite_constant(
    graph: g.Graph, seed: int
) -> None:
    model, images = build(graph), dyadic_images(graph, batch=2, seed=seed)
    want = wanted(graph, images)
    assert_same(run_onnxruntime(model, images), want)
    assert_same(run_onnx(model, images), want)
    for constant in model.graph.initializer:
        assert np.isfinite(numpy_helper.to_array(constant)).all(), constant.name


@settings(max_examples=20, deadline=None)
@given(graph=GRAPHS, seed=st.integers(0, 2**32 - 1))
def test_half_precision_gives_the_reference_where_eleven_bits_hold_every_sum(graph: g.Graph, seed: int) -> None:
    """Weights of 1/16, spikes, halves of them, and sums below 64: nothing is rounded, so nothing may differ."""
    images = dyadic_images(graph, batch=2, seed=seed)
    values = reference.run(graph, images)
    for node in spike_driven(graph):
        assume(np.abs(values[node.name]).max() < 64)
    got = run_onnxruntime(build(graph, precision="fp16"), images)
    assert_same(got, wanted(graph, images), spikes=np.float16)


def test_half_precision_rounds_weights_and_what_is_summed_and_nothing_else() -> None:
    """Weights a little off sixteenths, which half precision rounds back to them: from then on nothing is rounded."""
    graph = every_node(T=4)
    fine = [
        dataclasses.replace(node, weight=node.weight * (1 + 2**-13), bias=node.bias * (1 + 2**-13))
        for node in graph.synapses
    ]
    graph = graph.replace(*fine)
    images = dyadic_images(graph, batch=8)
    static = g.is_static(graph)
    rounded = graph.replace(
        *(
            dataclasses.replace(node, weight=node.weight.astype(np.float16), bias=node.bias.astype(np.float16))
            for node in graph.synapses
            if not static[node.name]
        )
    )
    got = run_onnxruntime(build(graph, precision="fp16"), images)
    close, far = wanted(rounded, images), wanted(graph, images)
    for name in ("stem.lif/out", "hold.lif/out"):  # they read the image, in float32
        np.testing.assert_array_equal(got[name], far[name])
    assert np.abs(got["logits"] - far["logits"]).max() > 0
    np.testing.assert_array_equal(got["logits"], close["logits"].astype(np.float32))


@settings(max_examples=25, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_onnxruntime_pools_overlapping_and_padded_windows_as_the_reference(data: st.DataObject, seed: int) -> None:
    kernel = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = data.draw(st.tuples(*(st.integers(0, k // 2) for k in kernel)))
    graph = pooled(kernel=kernel, stride=stride, padding=padding, seed=seed)
    images = dyadic_images(graph, batch=2, seed=seed)
    assert_same(run_onnxruntime(build(graph), images), wanted(graph, images))


# At stride 1 onnx's evaluator pads rows and columns alike, so unequal paddings are for onnxruntime alone.
@pytest.mark.parametrize("windows", [((3, 3), (2, 2), (1, 1)), ((3, 2), (2, 1), (1, 0)), ((2, 2), (1, 1), (1, 1))])
def test_onnx_reference_evaluator_pools_as_the_reference(windows: tuple[tuple[int, int], ...]) -> None:
    kernel, stride, padding = windows
    graph = pooled(kernel=kernel, stride=stride, padding=padding)
    images = dyadic_images(graph, batch=2)
    assert_same(run_onnx(build(graph), images), wanted(graph, images))


def test_pooled_spikes_are_added_and_currents_below_0_win_over_the_padding() -> None:
    graph = pooled(kernel=(2, 2), stride=(2, 2), padding=(1, 1))
    images = dyadic_images(graph, batch=8)
    values = reference.run(graph, images)
    corners = values["currents"][..., 0, 0]  # windows that hold one value of the map
    np.testing.assert_array_equal(corners, values["stem.conv"][..., 0, 0])
    assert (corners < 0).any(), "a zero outside the map would not have won"
    assert_same(run_onnxruntime(build(graph), images), wanted(graph, images))
    assert set(np.unique(values["spikes"])) == {0.0, 1.0}
    props = about(build(graph, spikes=False))
    assert {entry["name"]: entry["kind"] for entry in props["synapses"]}["last"] == "ac"


@pytest.mark.parametrize(("T", "batch", "mean"), [(1, 1, False), (3, 2, False), (3, 1, True)])
def test_onnx_reference_evaluator_gives_the_reference_bit_for_bit(T: int, batch: int, mean: bool) -> None:
    graph = every_node(T=T, mean=mean, side=(8, 9), stride=(2, 1), padding=(1, 0), kernel=(3, 2))
    images = dyadic_images(graph, batch=batch)
    assert_same(run_onnx(build(graph), images), wanted(graph, images))


def test_global_average_pooling_agrees_in_onnxruntime() -> None:
    graph = every_node(mean=True, side=(8, 9))
    assert np.log2(np.prod(graph["max"].shape[1:])) % 1 == 0, "the mean must be exact in float32"
    images = dyadic_images(graph, batch=2)
    assert_same(run_onnxruntime(build(graph), images), wanted(graph, images))


def test_the_random_graphs_spike_in_every_layer_and_are_not_saturated() -> None:
    graph = every_node()
    rates = wanted(graph, dyadic_images(graph, batch=4))["spike_rates"].mean(axis=(0, 1))
    assert (rates > 0.02).all(), rates
    assert (rates < 0.98).all(), rates


def test_weights_are_stored_once_whatever_T() -> None:
    short, long = (build(every_node(T=T), spikes=False) for T in (2, 8))
    stored = [sorted((c.name, tuple(c.dims)) for c in model.graph.initializer) for model in (short, long)]
    assert stored[0] == stored[1]
    graph = every_node()
    weights = {f"{node.name}/weight": node.weight.shape for node in graph.synapses}
    assert {name: dims for name, dims in stored[0] if name.endswith("/weight")} == weights


def test_metadata_says_what_the_model_is() -> None:
    graph = every_node(T=3)
    props = about(build(graph, spikes=False))
    assert props == {
        "format": 1,
        "T": 3,
        "labels": list(LABELS),
        "precision": "fp32",
        "form": "unrolled",
        "lif_layers": [node.name for node in graph.lif_layers],
        "lif_shapes": [[4, 10, 8], [4, 10, 8], [6, 5, 7], [6, 5, 7], [4, 5, 7], [4, 2, 7]],
        "synapses": [
            {"name": "hold.conv", "kind": "ac", "sops_per_tap": 4},
            {"name": "block.conv1", "kind": "ac", "sops_per_tap": 3},
            {"name": "block.conv2", "kind": "ac", "sops_per_tap": 6},
            {"name": "spikes.conv", "kind": "mac", "sops_per_tap": 4},
            {"name": "avg.conv", "kind": "mac", "sops_per_tap": 4},
            {"name": "classifier", "kind": "ac", "sops_per_tap": 5},
        ],
        "checkpoint_sha256": "0" * 64,
    }
    assert [sops_per_tap(node) for node in spike_driven(graph)] == [s["sops_per_tap"] for s in props["synapses"]]


def test_outputs_and_layers_have_shapes_and_readable_names() -> None:
    graph = every_node(T=3)
    model = build(graph, spikes=False)
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.input, *model.graph.output, *model.graph.value_info)
    }
    assert shapes["image"] == ["B", 2, 10, 8]
    assert shapes["logits"] == [3, "B", 5]
    assert shapes["spike_rates"] == [3, "B", 6]
    assert shapes["taps"] == shapes["nonzero"] == [3, "B", 6]
    assert shapes["stem.conv/out"] == ["B", 4, 10, 8], "the first convolution is computed once"
    assert shapes["stem.lif/out"] == ["T*B", 4, 10, 8]
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {node.name for node in graph} <= set(names)
    assert "block.lif1/t2/fire" in names


def test_a_network_without_spikes_is_refused() -> None:
    graph = every_node()
    image = dataclasses.replace(graph["features"], inputs=("image",), shape=(160,))
    classifier = dataclasses.replace(graph["classifier"], weight=np.ones((5, 160)))
    teacher = g.Graph(nodes=(graph.input, image, classifier), T=4)
    with pytest.raises(ValueError, match="classifier: no layer on the way to the logits reads spikes"):
        build(teacher)


def test_a_student_of_events_is_refused_with_the_command_that_takes_it() -> None:
    graph = every_node()
    graph = graph.replace(dataclasses.replace(graph.input, event=True))
    with pytest.raises(ValueError, match=r"image: .* frames of events \[T, B, C, H, W\].* python -m export\.to_loihi"):
        build(graph)


def test_labels_that_do_not_fit_the_logits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits of shape \(5,\), but there are 2 labels"):
        build_model(every_node(), labels=("a", "b"), checkpoint_sha256="0" * 64)
