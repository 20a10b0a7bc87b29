"""A Graph written as NIR and read back computes what the Graph means: the same spikes, exactly in float64."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import Maker, every_node

from export import graph as g
from export import reference
from export.lower import UnsupportedLayer
from export.nir_graph import DT, build, seconds, ungrouped
from export.verify_nir import execute


LABELS = tuple("abcde")
SHA = "0" * 64


def residual_graph(
    *,
    seed: int = 0,
    T: int = 4,
    side: tuple[int, int] = (8, 8),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (1, 1),
    kernel: int = 3,
    groups: int = 2,
    window: tuple[int, int] = (2, 1),
    mean: bool = True,
    event: bool = False,
    tau: float = 2.0,
    decay_input: bool = True,
    v_reset: float = 0.0,
    v_threshold: float = 0.75,
) -> g.Graph:
    """Every node that NIR can say, sums before and after the LIF (read once, twice, and by another sum) among them."""
    lif = {"tau": tau, "decay_input": decay_input, "v_reset": v_reset, "v_threshold": v_threshold}
    m = Maker(rng=np.random.default_rng(seed), lif=lif)
    m.image(2, *side)
    m.nodes[0] = dataclasses.replace(m.nodes[0], event=event)
    m.conv("stem.conv", 4)
    m.spike("stem.lif")
    m.conv("down.conv", 4, kernel=(kernel, kernel), stride=stride, padding=padding, groups=groups)
    m.spike("down.lif")
    m.conv("res.conv1", 4)
    m.spike("res.lif1")
    m.conv("res.conv2", 4)
    m.add("res.add", "res.conv2", "down.lif")
    m.spike("res.lif2")
    m.add("sew1.add", "res.lif2", "res.lif1")
    m.conv("sew2.conv", 4)
    m.spike("sew2.lif")
    m.add("sew2.add", "sew2.lif", "sew1.add")
    m.pool(g.AvgPool, "pool", window)
    m.conv("last.conv", 4, source="pool")
    m.spike("last.lif")
    m.features(g.Mean if mean else g.Flatten, "features")
    m.features(g.Flatten, "flatten")
    m.dense("classifier", 5)
    return g.Graph(nodes=tuple(m.nodes), T=T)


SHAPES = {
    "seed": st.integers(0, 2**32 - 1),
    "T": st.integers(1, 4),
    "side": st.tuples(st.integers(6, 9), st.integers(6, 9)),
    "stride": st.tuples(st.integers(1, 2), st.integers(1, 2)),
    "padding": st.tuples(st.integers(0, 1), st.integers(0, 1)),
    "kernel": st.integers(1, 3),
    "groups": st.sampled_from([1, 2, 4]),
    "window": st.tuples(st.sampled_from([1, 2]), st.sampled_from([1, 2])),
    "mean": st.booleans(),
    "event": st.booleans(),
    "v_reset": st.sampled_from([0.0, -0.25]),
    "v_threshold": st.sampled_from([0.75, 1.0]),
}
NEURONS = st.sampled_from([(2.0, True), (2.0, False), (4.0, True), (4.0, False), (math.inf, False)])


def dyadic_input(graph: g.Graph, *, batch: int = 3, seed: int = 0) -> np.ndarray:
    """Multiples of 1/16 in [0, 1], float64: images, or another frame at every step."""
    steps = (graph.T,) if graph.input.event else ()
    return np.random.default_rng(seed).integers(0, 17, (*steps, batch, *graph.input.shape)) / 16


def read_back(graph: g.Graph) -> nir.NIRGraph:
    """The graph of the file that is written of it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "graph.nir"
        nir.write(path, build(graph, labels=LABELS, checkpoint_sha256=SHA))
        return nir.read(path)


def assert_executes_alike(graph: g.Graph, images: np.ndarray) -> None:
    """No spike differs, and from equal spikes come equal logits, up to the rounding of a mean."""
    values = reference.run(graph, images)
    run = execute(read_back(graph), images)
    assert list(run.spikes) == [lif.name for lif in graph.lif_layers]
    for name, spikes in run.spikes.items():
        np.testing.assert_array_equal(spikes, values[name], err_msg=name)
    np.testing.assert_allclose(run.logits, reference.logits(graph, values), rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), neuron=NEURONS, seed=st.integers(0, 2**32 - 1))
def test_where_float64_is_exact_the_file_gives_the_references_spikes_also_at_the_threshold(
    data: st.DataObject, neuron: tuple[float, bool], seed: int
) -> None:
    tau, decay_input = neuron
    graph = residual_graph(**data.draw(st.fixed_dictionaries(SHAPES)), tau=tau, decay_input=decay_input)
    assert_executes_alike(graph, dyadic_input(graph, seed=seed))


@settings(max_examples=30, deadline=None)
@given(
    data=st.data(), tau=st.floats(1.01, 50), decay_input=st.booleans(), mean=st.floats(0.1, 0.9), std=st.floats(0.1, 1)
)
def test_any_time_constant_and_normalisation_give_the_references_spikes(
    data: st.DataObject, tau: float, decay_input: bool, mean: float, std: float
) -> None:
    graph = residual_graph(**data.draw(st.fixed_dictionaries(SHAPES)), tau=tau, decay_input=decay_input)
    rng = np.random.default_rng(data.draw(SHAPES["seed"]))
    real = [
        dataclasses.replace(node, weight=rng.normal(size=node.weight.shape), bias=rng.normal(size=node.bias.shape))
        for node in graph.synapses  # biases too: rounding decides where one is the threshold itself
    ]
    normalised = dataclasses.replace(graph.input, mean=np.full(2, mean), std=np.full(2, std))
    graph = graph.replace(normalised, *real)
    steps = (graph.T,) if graph.input.event else ()
    assert_executes_alike(graph, rng.random((*steps, 3, *graph.input.shape)))


def test_the_graphs_of_these_tests_spike_everywhere_and_meet_their_threshold() -> None:
    graph = residual_graph()
    images = dyadic_input(graph, batch=8)
    weak, strict = (execute(read_back(graph), images, strict=strict).spikes for strict in (False, True))
    for name, spikes in weak.items():
        assert 0.02 < spikes.mean() < 0.98, name
    assert any((weak[name] != strict[name]).any() for name in weak)


def test_a_frame_reaches_its_own_step_alone() -> None:
    graph = residual_graph(event=True, T=3)
    frames = dyadic_input(graph)
    later = frames.copy()
    later[2] = 1 - later[2]
    first, second = (execute(read_back(graph), x).logits for x in (frames, later))
    np.testing.assert_array_equal(first[:2], second[:2])
    assert (first[2] != second[2]).any()


def test_neurons_hold_the_differential_equation_of_the_step() -> None:
    for decay_input, r in ((True, 1.0), (False, 4.0)):
        node = read_back(residual_graph(tau=4.0, decay_input=decay_input, v_reset=-0.25)).nodes["stem.lif"]
        assert isinstance(node, nir.LIF)
        expected = {"tau": 4 * DT, "r": r, "v_leak": -0.25, "v_reset": -0.25, "v_threshold": 0.75}
        for name, value in expected.items():
            np.testing.assert_array_equal(getattr(node, name), np.full((4, 8, 8), value), err_msg=name)
        assert node.metadata["tau_in_steps"] == 4
        assert node.metadata["decay_input"] == decay_input
    node = read_back(residual_graph(tau=math.inf, decay_input=False)).nodes["stem.lif"]
    assert isinstance(node, nir.IF)
    np.testing.assert_array_equal(node.r * DT, np.ones((4, 8, 8)))


@given(tau=st.floats(1.001, 1000))
def test_seconds_of_a_time_constant_are_within_one_rounding(tau: float) -> None:
    assert seconds(tau) == pytest.approx(tau * DT, rel=1e-15)
    assert seconds(tau) / DT == pytest.approx(tau, rel=1e-15)


def test_seconds_of_usual_time_constants_give_them_back() -> None:
    assert [seconds(tau) / DT for tau in (1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 10.0)] == [1.25, 1.5, 2, 3, 4, 5, 10]


def test_sums_are_edges_where_one_node_reads_them_and_a_node_where_several_do() -> None:
    built = build(residual_graph(), labels=LABELS, checkpoint_sha256=SHA)
    sources = {name: {a for a, b in built.edges if b == name} for name in built.nodes}
    assert sources["res.lif2"] == {"res.conv2", "down.lif"}
    assert sources["sew1.add"] == {"res.lif2", "res.lif1"}
    assert sources["pool"] == {"sew2.lif", "sew1.add"}
    assert sources["classifier"] == {"features.flatten"}, "flattening features changes nothing"
    assert {"res.add", "sew2.add", "flatten"}.isdisjoint(built.nodes)
    assert built.nodes["sew1.add"].kernel_size.tolist() == [1, 1]


def test_groups_become_zeros_between_them() -> None:
    weight = np.random.default_rng(0).normal(size=(6, 2, 3, 3))
    full = ungrouped(weight, 3)
    assert full.shape == (6, 6, 3, 3)
    for o, c in itertools.product(range(6), range(6)):
        same_group = o // 2 == c // 2
        np.testing.assert_array_equal(full[o, c], weight[o, c % 2] if same_group else np.zeros((3, 3)))


def test_the_border_is_the_mean_colour_and_not_black() -> None:
    graph = residual_graph()
    image = np.broadcast_to(graph.input.mean[:, None, None], (1, *graph.input.shape)).copy()
    currents = reference.run(graph, image)["stem.conv"][0, 0]
    np.testing.assert_array_equal(currents, np.broadcast_to(graph["stem.conv"].bias[:, None, None], currents.shape))
    assert_executes_alike(graph, image)


def test_metadata_says_how_to_run_the_file() -> None:
    graph = residual_graph(T=3)
    about = read_back(graph).metadata
    assert (int(about["format"]), int(about["T"]), float(about["dt"])) == (1, 3, DT)
    assert json.loads(about["labels"]) == list(LABELS)
    assert json.loads(about["lif_layers"]) == [lif.name for lif in graph.lif_layers]
    assert json.loads(about["preprocess"]) == {"mean": graph.input.mean.tolist(), "std": graph.input.std.tolist()}
    assert about["checkpoint_sha256"] == SHA
    assert "h >= v_threshold" in about["step"]
    assert "same step" in about["spikes"]
    assert "[0, 1]" in about["input"]
    assert "another frame at every step" in read_back(residual_graph(event=True)).metadata["input"]


def test_max_pooling_is_refused_by_name() -> None:
    with pytest.raises(
        UnsupportedLayer, match=r"^max: NIR has no max pooling; train .* --net.pool avg\), or export to"
    ):
        build(every_node(kernel=(3, 3)), labels=LABELS, checkpoint_sha256=SHA)


def test_a_kernel_that_is_not_square_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedLayer, match=r"^block.conv1: the kernel is 3x2, .* square kernels only; export to"):
        build(every_node(kernel=(3, 2)), labels=LABELS, checkpoint_sha256=SHA)


def test_an_unknown_node_is_refused_by_name() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
    class Wavelet(g.Node):
        pass

    graph = residual_graph()
    odd = g.Graph(
        nodes=(graph.nodes[0], Wavelet(name="stem.wavelet", inputs=("image",), shape=(5,))),
        T=1,
    )
    with pytest.raises(UnsupportedLayer, match=r"^stem.wavelet: Wavelet has no NIR node; export to ONNX"):
        build(odd, labels=LABELS, checkpoint_sha256=SHA)


def test_a_sum_of_features_that_two_layers_read_is_refused_by_name() -> None:
    m = Maker(rng=np.random.default_rng(0), lif={})
    m.image(1, 2, 2)
    m.features(g.Flatten, "flatten")
    a, b = m.dense("a", 5), m.dense("b", 5)
    m.add("sum", a, b)
    with pytest.raises(UnsupportedLayer, match=r"^sum: NIR has no node that keeps a sum of features"):
        build(g.Graph(nodes=tuple(m.nodes), T=1), labels=LABELS, checkpoint_sha256=SHA)


def test_labels_that_do_not_fit_the_logits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits of shape \(5,\), but there are 2 labels"):
        build(residual_graph(), labels=("a", "b"), checkpoint_sha256=SHA)


def test_the_executor_refuses_a_node_that_is_not_ours() -> None:
    graph = read_back(residual_graph())
    graph.nodes["pool"] = nir.SumPool2d(np.array([2, 1]), np.array([2, 1]), np.array([0, 0]))
    with pytest.raises(ValueError, match="pool: SumPool2d is none of the NIR nodes that TSERve writes"):
        execute(graph, dyadic_input(residual_graph()))
