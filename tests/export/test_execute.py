"""The integer twin in torch is a plain evaluation in int64, bit for bit, whatever it forgets on the way."""

from typing import Any

import numpy as np
import pytest
import torch
from chip_graphs import LIMITS, Recipe, build, images_of, naive_scales, recipes
from hypothesis import given, settings
from hypothesis import strategies as st

from export import execute, integer, reference
from export import graph as g
from export.integer import EXACT_FLOAT32, IntegerLIF, QuantizedInput
from export.prepare import prepare
from export.scales import rebuild


def int64_lif(a: np.ndarray, node: IntegerLIF) -> np.ndarray:
    """IntegerLIF's docstring, in numpy's integers."""
    v, spikes = np.zeros_like(a[0]), np.zeros_like(a)
    for t, current in enumerate(a):
        kept = np.sign(v) * (np.abs(v) * (4096 - node.v_decay) // 4096)
        v = np.clip(kept + 64 * current, 1 - 2**23, 2**23 - 1)
        spikes[t] = v > 64 * node.threshold
        v = np.where(spikes[t] == 1, 0, v)
    return spikes


def plainly(twin: g.Graph, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Every node in int64, one after the other."""
    values = {twin.input.name: pixels if twin.input.event else pixels[None]}
    for node in twin.nodes[1:]:
        x, *others = (values[name] for name in node.inputs)
        if isinstance(node, IntegerLIF):
            values[node.name] = int64_lif(np.broadcast_to(x, (twin.T, *x.shape[1:])), node)
        else:
            values[node.name] = reference.step(node, [x, *others], twin.T)
        assert values[node.name].dtype == np.int64, node.name
    return values


def twin_of(recipe: Recipe) -> g.Graph:
    prepared = prepare(build(recipe))
    return rebuild(prepared, naive_scales(prepared))


@settings(max_examples=120, deadline=None)
@given(recipe=recipes(most=4))
def test_every_node_is_what_int64_gives(recipe: Recipe) -> None:
    twin = twin_of(recipe)
    pixels = integer.quantize_images(twin.input, images_of(twin, 2))
    wanted, got = plainly(twin, pixels), execute.run_integers(twin, pixels)
    assert list(got) == [node.name for node in twin]
    for node in twin:
        np.testing.assert_array_equal(got[node.name], wanted[node.name], err_msg=node.name)
        assert got[node.name].shape[2:] == node.shape
        assert got[node.name].dtype == (np.uint8 if isinstance(node, IntegerLIF) else np.int64)


DEEP = Recipe(
    seed=0,
    blocks=("residual", "sew", "projected", "avg"),
    side=(8, 8),
    neuron=(3.0, False),
    v_threshold=0.75,
    T=5,
    head="flatten",
)


def test_predictions_are_the_logits_of_a_run_batch_by_batch() -> None:
    twin = twin_of(DEEP)
    images = images_of(twin, 5)
    values = execute.run(twin, images)
    wanted = execute.logits(twin, values)
    assert wanted.shape == (5, 5, 3)
    assert len({tuple(row) for row in wanted.reshape(-1, 3)}) > 10
    got = list(execute.predict(twin, [images[:2], images[2:]]))
    assert [part.shape for part in got] == [(5, 2, 3), (5, 3, 3)]
    np.testing.assert_array_equal(np.concatenate(got, axis=1), wanted)


def test_a_value_is_forgotten_after_its_last_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = twin_of(DEEP)
    x = execute.as_steps(twin, torch.from_numpy(integer.quantize_images(twin.input, images_of(twin, 1))))
    alive: list[int] = []
    step, living = execute.step, {twin.input.name}
    last_reader = {name: node.name for node in twin for name in node.inputs}

    def watched(node: g.Node, inputs: list[torch.Tensor], T: int) -> torch.Tensor:
        living.add(node.name)
        alive.append(len(living))
        living.difference_update(name for name in node.inputs if last_reader[name] == node.name)
        return step(node, inputs, T)

    monkeypatch.setattr(execute, "step", watched)
    assert list(execute.evaluate(twin, x)) == [twin.output.name]
    assert max(alive) <= 5 < len(twin.nodes)
    kept = execute.evaluate(twin, x, keep=lambda node: isinstance(node, IntegerLIF))
    assert set(kept) == {node.name for node in twin if isinstance(node, IntegerLIF)} | {twin.output.name}


@settings(max_examples=60, deadline=None)
@given(recipe=recipes(("conv", "strided", "residual", "sew", "max"), most=3))
def test_a_float_graph_in_float64_is_the_reference(recipe: Recipe) -> None:
    prepared = prepare(build(recipe))
    images = images_of(prepared, 2)
    wanted = reference.run(prepared, images)
    x = torch.from_numpy(wanted[prepared.input.name])
    got = execute.evaluate(prepared, x, keep=lambda node: True)
    for node in prepared.nodes[1:]:
        np.testing.assert_allclose(got[node.name].numpy(), wanted[node.name], rtol=0, atol=1e-9, err_msg=node.name)


def row(total: int) -> np.ndarray:
    """Weights of at most 127 that add up to `total`: [1, N]."""
    return np.array([[127] * (total // 127) + [total % 127]])


@pytest.mark.parametrize(
    ("x", "total", "expected"),
    [
        (105, 2**24 - 1, torch.float32),
        (-105, 2**24 - 1, torch.float32),
        (64, 2**24, torch.float64),
        (97, 2**24 + 1, torch.float64),
        (-97, 2**24 + 1, torch.float64),
    ],
)
def test_float32_is_taken_exactly_as_far_as_it_counts_without_gaps(x: int, total: int, expected: Any) -> None:
    weight = row(total // abs(x))
    pixels = torch.full(weight.shape, float(x))
    assert int(np.abs(weight).sum()) * abs(x) == total
    assert execute.exact_float(weight, pixels) is expected
    dense = g.Dense(name="d", inputs=("x",), shape=(1,), weight=weight, bias=np.array([1]))
    y = execute.step(dense, [pixels[None]], T=1)
    assert int(y[0, 0, 0]) == int(np.sign(x)) * total + 1


def test_beyond_the_edge_float32_would_have_been_wrong() -> None:
    weight = row((2**24 + 1) // 97).astype(np.float32)
    assert float((np.full(weight.shape, 97, np.float32) @ weight.T)[0, 0]) != EXACT_FLOAT32 + 1


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    largest=st.sampled_from([1, 127, 2**13, 2**17]),
    groups=st.sampled_from([1, 2]),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 1)),
)
def test_convolutions_equal_those_in_int64(
    seed: int, largest: int, groups: int, stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seed)
    weight, bias = rng.integers(-127, 128, (4, 8 // groups, 3, 2)), rng.integers(-LIMITS.bias, LIMITS.bias + 1, 4)
    x = rng.integers(-largest, largest + 1, (2, 2, 8, 5, 6))
    node = g.Conv(
        name="c",
        inputs=("x",),
        shape=(4, (2 + 2 * padding[0]) // stride[0] + 1, (4 + 2 * padding[1]) // stride[1] + 1),
        weight=weight,
        bias=bias,
        stride=stride,
        padding=padding,
        groups=groups,
    )
    y = execute.step(node, [torch.from_numpy(x).float()], T=2)
    assert y.shape[2:] == node.shape
    wanted = reference.conv2d(x, weight, stride=stride, padding=padding, groups=groups) + bias[:, None, None]
    np.testing.assert_array_equal(y.numpy(), wanted)


@pytest.mark.parametrize("onednn", [True, False])
def test_no_fast_algorithm_of_torch_blurs_the_integers(onednn: bool) -> None:
    """Winograd does, and torch takes it for 3x3 kernels and 16 images or more where it has NNPACK and no oneDNN."""
    rng = np.random.default_rng(0)
    x, weight = rng.integers(0, 2, (1, 16, 64, 16, 16)), rng.integers(-127, 128, (8, 64, 3, 3))
    node = g.Conv(
        name="c",
        inputs=("x",),
        shape=(8, 16, 16),
        weight=weight,
        bias=np.zeros(8, np.int64),
        stride=(1, 1),
        padding=(1, 1),
    )
    with torch.backends.mkldnn.flags(enabled=onednn):
        y = execute.step(node, [torch.from_numpy(x).float()], T=1)
    np.testing.assert_array_equal(y.numpy(), reference.conv2d(x, weight, stride=(1, 1), padding=(1, 1)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_integers() -> None:
    twin = twin_of(DEEP)
    images = images_of(twin, 4)
    (there,) = execute.predict(twin, [images], device="cuda")
    (here,) = execute.predict(twin, [images])
    np.testing.assert_array_equal(there, here)


def quantized_input(*, scale: float) -> QuantizedInput:
    mean, std = np.array([0.5, 0.25]), np.array([0.25, 0.5])
    return QuantizedInput(name="image", inputs=(), shape=(2, 1, 1), mean=mean, std=std, scale=scale)


def test_an_integer_network_runs_from_the_image_to_the_logits_of_every_step() -> None:
    graph = g.Graph(
        nodes=(
            quantized_input(scale=10),
            g.Flatten(name="flatten", inputs=("image",), shape=(2,)),
            g.Dense(
                name="fc", inputs=("flatten",), shape=(2,), weight=np.array([[1, 1], [0, 2]]), bias=np.array([0, 1])
            ),
            IntegerLIF(name="lif", inputs=("fc",), shape=(2,), v_decay=2048, threshold=30),
            g.Dense(name="out", inputs=("lif",), shape=(1,), weight=np.array([[3, -5]]), bias=np.array([7])),
        ),
        T=3,
    )
    values = execute.run(graph, np.array([1.0, 0.75])[None, :, None, None])
    # pixels 20 and 10; currents 30 and 21; membranes 30, 45 and 21, 31.5
    np.testing.assert_array_equal(values["fc"], [[[30, 21]]])
    np.testing.assert_array_equal(values["lif"][:, 0], [[0, 0], [1, 1], [0, 0]])
    np.testing.assert_array_equal(execute.logits(graph, values)[:, 0, 0], [7, 5, 7])


def test_a_node_that_the_chip_lacks_is_refused() -> None:
    pool = g.AvgPool(name="pool", inputs=("image",), shape=(2, 1, 1), kernel=(1, 1))
    with pytest.raises(TypeError, match="pool: a network for the chip has no AvgPool"):
        execute.step(pool, [torch.zeros((1, 1, 2, 1, 1))], T=1)
