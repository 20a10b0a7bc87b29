"""The integer arithmetic is the chip's, neuron by neuron, and BLAS adds its integers up exactly."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from export import graph as g
from export import integer, reference
from export.integer import EXACT_FLOAT32, IntegerLIF, QuantizedInput


CURRENT = integer.ACCUMULATOR_LIMIT
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 6))


def chip_neuron(currents: list[int], *, v_decay: int, threshold: int) -> list[int]:
    """One neuron in Python's own integers, as Lava's PyLifResetModelBitAcc steps it with iDecay 4096.

    Its synapse hands over `currents` with the bias already in them; u forgets everything from step to step.
    """
    v, spikes = 0, []
    for a in currents:
        u = a * 2**6
        kept = abs(v) * (4096 - v_decay) // 4096
        v = (kept if v >= 0 else -kept) + u
        v = max(-(2**23) + 1, min(2**23 - 1, v))
        fires = v > threshold * 2**6
        spikes.append(int(fires))
        v = 0 if fires else v
    return spikes


def chip_layer(a: np.ndarray, *, v_decay: int, threshold: int) -> np.ndarray:
    """`chip_neuron` for every neuron of currents [T, N]."""
    columns = [chip_neuron([int(x) for x in column], v_decay=v_decay, threshold=threshold) for column in a.T]
    return np.array(columns).T


@settings(max_examples=200, deadline=None)
@given(
    a=SHAPES.flatmap(
        lambda shape: st.one_of(
            arrays(np.int64, shape, elements=st.integers(-CURRENT, CURRENT)),
            arrays(np.int64, shape, elements=st.integers(-40, 60)),
        )
    ),
    v_decay=st.one_of(st.sampled_from([0, 1, 1365, 2048, 4095, 4096]), st.integers(0, 4096)),
    threshold=st.one_of(st.integers(0, 60), st.integers(0, CURRENT)),
)
@example(a=np.array([[10], [0]]), v_decay=2048, threshold=10)  # at the threshold it does not fire
@example(a=np.array([[11], [-1], [1]]), v_decay=2048, threshold=10)  # the reset forgets everything
@example(a=np.array([[-CURRENT], [-CURRENT], [CURRENT], [1]]), v_decay=0, threshold=0)  # -16777088 saturates
@example(a=np.array([[-127], *[[0]] * 6, [1]]), v_decay=2048, threshold=0)  # half of -127/64 goes towards zero
def test_every_neuron_steps_as_the_chip_does(a: np.ndarray, v_decay: int, threshold: int) -> None:
    wanted = chip_layer(a, v_decay=v_decay, threshold=threshold)
    np.testing.assert_array_equal(integer.lif(a, v_decay=v_decay, threshold=threshold), wanted)


def test_the_chip_fires_above_its_threshold_and_rounds_towards_zero() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(-20, 30, (9, 4000))
    spikes = integer.lif(a, v_decay=1365, threshold=30)
    np.testing.assert_array_equal(spikes, chip_layer(a, v_decay=1365, threshold=30))
    assert 0.05 < spikes.mean() < 0.5
    assert (spikes != integer.lif(a, v_decay=1365, threshold=29)).any()


def exact_neuron(currents: list[int], *, threshold: int) -> list[int]:
    """A LIF with tau = 2 in rational numbers: V = V/2 + a, spikes above the threshold."""
    v, spikes = Fraction(0), []
    for a in currents:
        v = v / 2 + a
        spikes.append(int(v > threshold))
        v = Fraction(0) if spikes[-1] else v
    return spikes


@settings(max_examples=100, deadline=None)
@given(a=arrays(np.int64, st.tuples(st.integers(1, 7), st.integers(1, 8)), elements=st.integers(-20, 20)))
def test_up_to_seven_steps_at_tau_2_no_bit_of_the_membrane_is_lost(a: np.ndarray) -> None:
    wanted = [exact_neuron([int(x) for x in column], threshold=12) for column in a.T]
    np.testing.assert_array_equal(integer.lif(a, v_decay=2048, threshold=12), np.array(wanted).T)


def test_the_eighth_step_can_lose_a_bit() -> None:
    a = [1, *[0] * 6, 12]  # 12 + 2^-7 exactly, 12 with six fractional bits
    assert exact_neuron(a, threshold=12)[-1] == 1
    assert integer.lif(np.array(a)[:, None], v_decay=2048, threshold=12)[-1, 0] == 0


def row(total: int) -> np.ndarray:
    """Weights of at most 127 that add up to `total`: [1, N]."""
    return np.array([[127] * (total // 127) + [total % 127]])


@pytest.mark.parametrize(
    ("x", "total", "expected"),
    [
        (105, 2**24 - 1, np.float32),
        (-105, 2**24 - 1, np.float32),
        (64, 2**24, np.float64),
        (97, 2**24 + 1, np.float64),
        (-97, 2**24 + 1, np.float64),
    ],
)
def test_float32_is_taken_exactly_as_far_as_it_counts_without_gaps(x: int, total: int, expected: type) -> None:
    weight = row(total // abs(x))
    pixels = np.full(weight.shape, x)
    assert int(np.abs(weight @ pixels.T)[0, 0]) == total
    assert integer.exact_float(weight, pixels) is expected
    dense = g.Dense(name="d", inputs=("x",), shape=(1,), weight=weight, bias=np.array([1]))
    y = integer.step(dense, pixels[None], T=1)
    assert y.dtype == np.int64
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
    weight, bias = rng.integers(-127, 128, (4, 8 // groups, 3, 2)), rng.integers(-4095, 4096, 4)
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
    y = integer.step(node, x, T=2)
    assert y.shape[2:] == node.shape
    wanted = reference.conv2d(x, weight, stride=stride, padding=padding, groups=groups) + bias[:, None, None]
    np.testing.assert_array_equal(y, wanted)


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
        y = integer.step(node, x, T=1)
    np.testing.assert_array_equal(y, reference.conv2d(x, weight, stride=(1, 1), padding=(1, 1)))


def quantized_input(*, scale: float) -> QuantizedInput:
    mean, std = np.array([0.5, 0.25]), np.array([0.25, 0.5])
    return QuantizedInput(name="image", inputs=(), shape=(2, 1, 1), mean=mean, std=std, scale=scale)


def test_pixels_become_the_nearest_integers_ties_to_even_and_stay_in_range() -> None:
    reds = 0.5 + np.array([1 / 64, 3 / 64, -3 / 64, 0.5, -0.5])  # 0.5, 1.5, -1.5, 16 and -16 steps from the mean
    images = np.stack([reds, np.full(5, 0.75)], axis=1)[:, :, None, None]
    pixels = integer.quantize_images(quantized_input(scale=8), images)
    assert pixels.dtype == np.int64
    np.testing.assert_array_equal(pixels[:, 0, 0, 0], [0, 2, -2, 16, -16])
    np.testing.assert_array_equal(pixels[:, 1, 0, 0], 8)
    far = integer.quantize_images(quantized_input(scale=1000), images)
    np.testing.assert_array_equal(far[:, 0, 0, 0], [62, 127, -127, 127, -127])


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
    values = integer.run(graph, np.array([1.0, 0.75])[None, :, None, None])
    # pixels 20 and 10; currents 30 and 21; membranes 30, 45 and 21, 31.5
    np.testing.assert_array_equal(values["fc"], [[[30, 21]]])
    np.testing.assert_array_equal(values["lif"][:, 0], [[0, 0], [1, 1], [0, 0]])
    np.testing.assert_array_equal(integer.logits(graph, values)[:, 0, 0], [7, 5, 7])


def test_a_node_of_the_float_network_is_refused() -> None:
    pool = g.AvgPool(name="pool", inputs=("image",), shape=(2, 1, 1), kernel=(1, 1))
    with pytest.raises(TypeError, match="pool: the integer network has no AvgPool"):
        integer.step(pool, np.zeros((1, 1, 2, 1, 1), np.int64), T=1)
