"""Membranes in an int8 model: float32 where that is proven to be the chip's, bit for bit; else the chip's own steps."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from chip_graphs import Recipe, a_recipe, build, images_of
from hypothesis import HealthCheck, assume, event, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx_runs import assert_same, expected_int8, exposed, in_onnx, in_onnxruntime, stepped, twin_of, unrolled

from export import execute, onnx_membrane
from export import graph as g
from export.integer import EXACT_FLOAT32, V_LIMIT, IntegerLIF, QuantizedInput
from export.onnx_builder import Builder
from export.onnx_int8 import build_int8
from export.onnx_integers import Integers
from export.onnx_membrane import is_simple
from export.onnx_membrane import neurons as write_neurons
from export.onnx_model import info
from export.scales import Scales


NAMED: dict[str, Any] = {"labels": tuple("abc"), "checkpoint_sha256": "0" * 64}
UNIT = 64


def chip_neuron(currents: list[int], *, v_decay: int, threshold: int) -> list[int]:
    """The equation of integer.IntegerLIF in Python's own integers."""
    v, spikes = 0, []
    for a in currents:
        kept = abs(v) * (4096 - v_decay) // 4096
        v = (kept if v >= 0 else -kept) + UNIT * a
        v = max(-(2**23 - 1), min(2**23 - 1, v))
        spikes.append(int(v > UNIT * threshold))
        v = 0 if spikes[-1] else v
    return spikes


def float32_neuron(currents: list[int], *, v_decay: int, threshold: int) -> list[int]:
    """The model's simple step, every operation rounded to float32."""
    kept, level = np.float32(1 - v_decay / 4096), np.float32(threshold)
    v, spikes = np.float32(0), []
    for a in currents:
        h = np.float32(np.float32(v * kept) + np.float32(a))
        spent = h if h > level else np.float32(0)  # ThresholdedRelu
        spikes.append(int(spent != 0))
        v = np.float32(h - spent)
    return spikes


def lif(*, v_decay: int, threshold: int, size: int = 1) -> IntegerLIF:
    return IntegerLIF(name="lif", inputs=("image",), shape=(size,), v_decay=v_decay, threshold=threshold)


def between(low: int, high: int, *, static: bool = False, **fields: Any) -> Integers:
    return Integers(tensor="image/out", static=static, type=TensorProto.FLOAT, low=low, high=high, **fields)


DECAYS = st.one_of(st.sampled_from([0, 2048, 3072, 3584, 3840, 4032, 4095, 4096]), st.integers(0, 4096))
SIZES = st.one_of(st.integers(0, 300), st.integers(0, 2**18), st.sampled_from([2**17 - 1, 2**17, 2**18]))


CLOCKS = st.one_of(  # v_decay and T: powers of two within their steps and just beyond them, and anything
    st.integers(0, 6).flatmap(
        lambda n: st.tuples(st.just(4096 - (4096 >> n)), st.integers(1, 2 + 6 // n if n else 9)),
    ),
    st.tuples(DECAYS, st.integers(1, 2)),
)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    data=st.data(),
    clock=CLOCKS,
    low=SIZES.map(lambda size: -size),
    high=SIZES,
    threshold=st.one_of(st.integers(-3, 300), SIZES),
    static=st.booleans(),
)
def test_where_float32_is_called_simple_no_spike_is_another(
    data: st.DataObject, clock: tuple[int, int], low: int, high: int, threshold: int, static: bool
) -> None:
    v_decay, T = clock
    node = lif(v_decay=v_decay, threshold=threshold)
    assume(is_simple(node, between(low, high, static=static), T=T))
    event("static" if static else "changing")
    amount = st.one_of(
        st.sampled_from([low, high, 0, threshold, threshold + 1, -1, 1]).map(lambda a: max(low, min(high, a))),
        st.integers(low, high),
    )
    currents = [data.draw(amount)] * T if static else data.draw(st.lists(amount, min_size=T, max_size=T))
    wanted = chip_neuron(currents, v_decay=v_decay, threshold=threshold)
    assert float32_neuron(currents, v_decay=v_decay, threshold=threshold) == wanted


@settings(max_examples=300, deadline=None)
@given(T=st.integers(1, 7), seed=st.integers(0, 2**32 - 1), halvings=st.integers(0, 6))
@example(T=7, seed=0, halvings=1)
@example(T=4, seed=0, halvings=2)
def test_at_the_proven_bounds_float32_still_holds(T: int, seed: int, halvings: int) -> None:
    """The largest currents that are called simple, at their ends, one unit from them, and around the threshold."""
    assume(halvings * (T - 1) <= 6)
    rng = np.random.default_rng(seed)
    v_decay = 4096 - (4096 >> halvings)
    reach = sum(2.0 ** -(halvings * t) for t in range(T))
    low = -int(V_LIMIT // (UNIT * reach))
    threshold = int(rng.integers(0, 2**17 - 1))
    high = EXACT_FLOAT32 // UNIT - threshold
    node = lif(v_decay=v_decay, threshold=threshold)
    assert is_simple(node, between(low, high), T=T)
    assert not is_simple(node, between(low - 1, high), T=T)
    assert not is_simple(node, between(low, high + 1), T=T)
    near = np.array([low, low + 1, 0, 1, -1, threshold, threshold + 1, high, high - 1])
    for _ in range(20):
        currents = [int(a) for a in np.where(rng.random(T) < 0.7, rng.choice(near, T), rng.integers(low, high + 1, T))]
        wanted = chip_neuron(currents, v_decay=v_decay, threshold=threshold)
        assert float32_neuron(currents, v_decay=v_decay, threshold=threshold) == wanted, currents


# One step beyond each bound there are currents that tell float32 and the chip apart.
@pytest.mark.parametrize(
    ("v_decay", "threshold", "currents"),
    [
        (2048, 12, [1, *[0] * 6, 12]),  # the eighth step at tau 2 loses a bit
        (3072, 3, [1, 0, 0, 0, 3]),  # the fifth at 1/4
        (0, 6, [-65536, -65536, 131071, 7]),  # -2^23 is clipped to 1 - 2^23, which in the end is 1/64 more
        (1365, 12, [1, *[0] * 11, 12]),  # 64 (2/3)^12 goes to 0
        (1, 5, [-69633, 69621]),  # a product that float32 rounds
    ],
    ids=["too many steps at 1/2", "at 1/4", "clipped", "odd decay", "wide product"],
)
def test_beyond_the_bounds_the_two_differ_so_it_is_not_called_simple(
    v_decay: int, threshold: int, currents: list[int]
) -> None:
    node, T = lif(v_decay=v_decay, threshold=threshold), len(currents)
    chips = chip_neuron(currents, v_decay=v_decay, threshold=threshold)
    assert float32_neuron(currents, v_decay=v_decay, threshold=threshold) != chips
    assert not is_simple(node, between(min(currents), max(currents)), T=T)


@pytest.mark.parametrize("v_decay", [0, 2048, 3072])
@pytest.mark.parametrize("T", [1, 2, 3, 4])
def test_a_usual_student_is_simple(v_decay: int, T: int) -> None:
    if (T - 1) * {0: 0, 2048: 1, 3072: 2}[v_decay] <= 6:
        assert is_simple(lif(v_decay=v_decay, threshold=200), between(-20_000, 20_000), T=T)
    assert not is_simple(lif(v_decay=v_decay, threshold=-1), between(-5, 5), T=T)


def test_the_negative_end_matters_only_where_the_current_changes() -> None:
    node = lif(v_decay=0, threshold=10)
    deep = between(-100_000, 1000)
    assert not is_simple(node, deep, T=4)
    assert is_simple(node, replace(deep, static=True), T=4)
    assert is_simple(node, between(-30_000, 1000), T=4)


def neurons(node: IntegerLIF, x: Integers, T: int) -> onnx.ModelProto:
    """A model of one layer of neurons alone, as the int8 export writes it; image [T*B, N] are its currents."""
    source = QuantizedInput(name="image", inputs=(), shape=node.shape, mean=np.zeros(1), std=np.ones(1), scale=1.0)
    graph = g.Graph(nodes=(source, node), T=T)
    builder = Builder(graph=graph, form="unrolled")
    builder.op("Identity", ["image"], "image", output="image/out")
    value = write_neurons(builder, node, x, T=graph.T)
    inputs, outputs = [info("image", ("T*B", *node.shape))], [info(value.tensor, ("T*B", *node.shape), type=value.type)]
    body = onnx.helper.make_graph(builder.nodes, "lif", inputs, outputs, list(builder.constants.values()))
    model = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@settings(max_examples=60, deadline=None)
@given(
    clock=st.one_of(CLOCKS, st.tuples(DECAYS, st.integers(1, 7))),
    low=SIZES.map(lambda size: -size),
    high=SIZES,
    threshold=st.one_of(st.integers(-3, 300), SIZES),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_operators_of_either_form_are_the_chips_neuron(
    clock: tuple[int, int], low: int, high: int, threshold: int, seed: int
) -> None:
    """Wherever is_simple draws its line, for currents up to twice what the chip can sum up."""
    v_decay, T = clock
    rng = np.random.default_rng(seed)
    node = lif(v_decay=v_decay, threshold=threshold, size=24)
    near = np.clip([low, high, 0, 1, -1, threshold, threshold + 1, low // 2, -low], low, high)
    currents = np.where(rng.random((T, 24)) < 0.5, rng.choice(near, (T, 24)), rng.integers(low, high + 1, (T, 24)))
    bounds = between(low, high)
    model = neurons(node, bounds, T)
    event("float32" if is_simple(node, bounds, T=T) else "float64")
    got = in_onnxruntime(model)({"image": currents.astype(np.float32)})["lif/out"]
    columns = ([int(a) for a in column] for column in currents.T)
    wanted = [chip_neuron(column, v_decay=v_decay, threshold=threshold) for column in columns]
    np.testing.assert_array_equal(got, np.array(wanted).T)


def metronomes(*, by_bias: bool = False) -> tuple[g.Graph, g.Graph, Scales]:
    """A student whose hidden neuron is driven below the chip's -2^17 in three steps and above its threshold in two.

    Its first neurons are integrators that fire at every step, at every fourth and at every fifth. What drives the
    hidden neuron down are the first, or its own bias.
    """
    side, T = (32, 32), 6
    size = side[0] * side[1]
    one = {"tau": np.inf, "v_threshold": 16129.0, "v_reset": 0.0, "decay_input": False}
    nodes: list[g.Node] = [g.Input(name="image", inputs=(), shape=(1, *side), mean=np.zeros(1), std=np.ones(1))]
    kernels, bias = np.array([127.0, 10, 10, 10, 10, 10]), np.array([1000.0, 3000, 3000, 2230, 2230, 3000])
    nodes.append(
        g.Conv(
            name="stem",
            inputs=("image",),
            shape=(6, *side),
            weight=kernels.reshape(6, 1, 1, 1),
            bias=bias,
            stride=(1, 1),
            padding=(0, 0),
        )
    )
    nodes.append(g.LIF(name="lif", inputs=("stem",), shape=(6, *side), **one))
    nodes.append(g.Flatten(name="flatten", inputs=("lif",), shape=(6 * size,)))
    weights = np.zeros((2, 6, size))
    weights[0, 0], weights[0, 1:3], weights[0, 3:5] = -98, 98, 98  # every step; at step 4; at step 5
    weights[1, 0], weights[1, 1] = -1, 3
    bias = np.zeros(2)
    if by_bias:  # small enough in all else for float32
        weights[0], bias[0] = 0, -60_048
        weights[0, 1], weights[0, 3] = 127, 127
    nodes.append(g.Dense(name="hidden", inputs=("flatten",), shape=(2,), weight=weights.reshape(2, -1), bias=bias))
    nodes.append(g.LIF(name="hidden.lif", inputs=("hidden",), shape=(2,), **{**one, "v_threshold": 1001.0}))
    readout = np.array([[5.0, 1], [-3, 2], [1, -7]])
    nodes.append(g.Dense(name="classifier", inputs=("hidden.lif",), shape=(3,), weight=readout, bias=np.zeros(3)))
    graph = g.Graph(nodes=tuple(nodes), T=T)
    pixel = QuantizedInput(**vars(nodes[0]), scale=127.0)
    changed: list[g.Node] = [pixel]
    for node in graph:
        if isinstance(node, g.Conv | g.Dense):
            changed.append(replace(node, weight=node.weight.astype(np.int64), bias=node.bias.astype(np.int64)))
        elif isinstance(node, g.LIF):
            threshold = int(node.v_threshold) - 1
            changed.append(
                IntegerLIF(name=node.name, inputs=node.inputs, shape=node.shape, v_decay=0, threshold=threshold)
            )
    return graph, graph.replace(*changed), Scales(input=127.0, currents={"classifier": 4.0})


def mixed_images(graph: g.Graph) -> np.ndarray:
    white = np.ones((1, *graph.input.shape))
    return np.concatenate([white, images_of(graph, 2)]).astype(np.float32)


def both_forms(graph: g.Graph, twin: g.Graph, scales: Scales) -> list[onnx.ModelProto]:
    forms: Any = ("unrolled", "step")
    return [exposed(build_int8(graph, twin, scales, form=form, **NAMED)) for form in forms]


@pytest.mark.parametrize("by_bias", [False, True])
def test_a_membrane_that_the_chip_clips_below_is_clipped(by_bias: bool) -> None:
    graph, twin, scales = metronomes(by_bias=by_bias)
    images = mixed_images(graph)
    values = execute.run(twin, images)
    down, up = (-60_048, 70_000) if by_bias else (-100_352, 100_352)
    assert values["hidden"][:, 0, 0].tolist() == [down, down, down, up, up, down]
    assert values["hidden.lif"][:, 0, 0].tolist() == [0, 0, 0, 0, 1, 0], "without its limit it would not fire"
    want = expected_int8(graph, twin, scales, images)
    models = both_forms(graph, twin, scales)
    assert_same(unrolled(models[0], in_onnxruntime(models[0]), images), want, spikes=np.uint8)
    assert_same(unrolled(models[0], in_onnx(models[0]), images), want, spikes=np.uint8)
    assert_same(stepped(models[1], in_onnxruntime(models[1]), images), want, spikes=np.uint8)


def truncating(neuron: tuple[float, bool], **changes: Any) -> Recipe:
    return a_recipe("residual", "projected", neuron=neuron, head="hidden", T=7, **changes)


@pytest.mark.parametrize("kind", ["clips", "truncates"])
def test_float32_would_give_other_spikes_there(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So what the other tests compare is not the same either way."""
    if kind == "clips":
        cases = [(*metronomes(), 3)]
    else:
        graphs = [build(truncating((3.0, True), seed=seed, side=(8, 8))) for seed in range(6)]
        cases = [(graph, *twin_of(graph), 8) for graph in graphs]
    monkeypatch.setattr(onnx_membrane, "is_simple", lambda *_, **__: True)
    wrong = 0
    for graph, twin, scales, count in cases:
        images = mixed_images(graph) if kind == "clips" else images_of(graph, count).astype(np.float32)
        want = expected_int8(graph, twin, scales, images)
        model = both_forms(graph, twin, scales)[0]
        got = unrolled(model, in_onnxruntime(model), images)
        wrong += sum(int((got[name] != want[name]).sum()) for name in want if name.endswith("/out"))
    assert wrong


@pytest.mark.parametrize("neuron", [(3.0, True), (4 / 3, False), (1.5, True), (1.0, True)], ids=str)
def test_membranes_that_the_chip_truncates_are_truncated_in_both_runtimes(neuron: tuple[float, bool]) -> None:
    graph = build(replace(truncating(neuron, side=(6, 4)), T=5))
    twin, scales = twin_of(graph)
    images = images_of(graph, 2).astype(np.float32)
    want = expected_int8(graph, twin, scales, images)
    models = both_forms(graph, twin, scales)
    assert_same(unrolled(models[0], in_onnx(models[0]), images), want, spikes=np.uint8)
    assert_same(unrolled(models[0], in_onnxruntime(models[0]), images), want, spikes=np.uint8)
    assert_same(stepped(models[1], in_onnxruntime(models[1]), images), want, spikes=np.uint8)


@pytest.mark.parametrize(("neuron", "doubles"), [((2.0, True), False), ((np.inf, False), False), ((3.0, True), True)])
def test_doubles_are_used_for_membranes_only_where_they_are_needed(neuron: tuple[float, bool], doubles: bool) -> None:
    graph = build(a_recipe("residual", "avg", neuron=neuron))
    model = build_int8(graph, *twin_of(graph), **NAMED)
    wide = {
        node.name
        for node in model.graph.node
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.DOUBLE and not node.name.startswith("image")
    }
    assert bool(wide) is doubles, wide
