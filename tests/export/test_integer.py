"""The integer neuron is the chip's, bit for bit, and pixels become the integers that it is sent."""

from fractions import Fraction

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from export import integer
from export.integer import QuantizedInput


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


def spikes_of(a: np.ndarray, *, v_decay: int, threshold: int) -> np.ndarray:
    """integer.lif for integer currents [T, ...]."""
    return integer.lif(torch.from_numpy(a).double(), v_decay=v_decay, threshold=threshold).numpy()


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
    np.testing.assert_array_equal(spikes_of(a, v_decay=v_decay, threshold=threshold), wanted)


def test_the_chip_fires_above_its_threshold_and_rounds_towards_zero() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(-20, 30, (9, 4000))
    spikes = spikes_of(a, v_decay=1365, threshold=30)
    np.testing.assert_array_equal(spikes, chip_layer(a, v_decay=1365, threshold=30))
    assert 0.05 < spikes.mean() < 0.5
    assert (spikes != spikes_of(a, v_decay=1365, threshold=29)).any()


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
    np.testing.assert_array_equal(spikes_of(a, v_decay=2048, threshold=12), np.array(wanted).T)


def test_the_eighth_step_can_lose_a_bit() -> None:
    a = [1, *[0] * 6, 12]  # 12 + 2^-7 exactly, 12 with six fractional bits
    assert exact_neuron(a, threshold=12)[-1] == 1
    assert spikes_of(np.array(a)[:, None], v_decay=2048, threshold=12)[-1, 0] == 0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    v_decay=st.integers(1, 4095),
    largest=st.sampled_from([3, 50, 700, 9000]),
    T=st.integers(2, 7),
)
def test_membranes_beyond_what_float32_holds_are_kept_exactly(seed: int, v_decay: int, largest: int, T: int) -> None:
    """An odd decay times a membrane has up to 36 bits, float32 has 24: neurons one unit from the threshold tell."""
    rng = np.random.default_rng(seed)
    a = rng.integers(-largest, largest + 1, (T, 200))
    threshold = int(rng.integers(largest // 2, 2 * largest))
    wanted = chip_layer(a, v_decay=v_decay, threshold=threshold)
    for dtype in (torch.float32, torch.float64):  # what a convolution hands over
        got = integer.lif(torch.from_numpy(a).to(dtype), v_decay=v_decay, threshold=threshold)
        assert got.dtype == torch.float32
        np.testing.assert_array_equal(got.numpy(), wanted)


def test_a_membrane_that_float32_would_round_the_wrong_way() -> None:
    a = [-69633, 69621]
    kept = 64 * 69633 * 4095 / 4096
    assert int(kept) == 4455423  # the last unit of the membrane decides
    assert int(np.float32(64 * 69633) * np.float32(4095 / 4096)) == 4455424
    assert chip_neuron(a, v_decay=1, threshold=5) == [0, 1]
    assert spikes_of(np.array(a)[:, None], v_decay=1, threshold=5)[:, 0].tolist() == [0, 1]


def test_the_currents_are_left_as_they_are() -> None:
    a = torch.tensor([[10.0], [20.0]], dtype=torch.float64)
    integer.lif(a, v_decay=2048, threshold=12)
    assert a.tolist() == [[10.0], [20.0]]


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
