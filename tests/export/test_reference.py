"""What the reference computes is what torch and SpikingJelly compute."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import dyadic_images, every_node
from spikingjelly.activation_based import neuron

from export import graph as g
from export import reference


@settings(max_examples=100, deadline=None)
@given(data=st.data(), side=st.tuples(st.integers(4, 9), st.integers(4, 9)), seed=st.integers(0, 2**32 - 1))
def test_max_pool_is_torchs_for_floats_and_integers(data: st.DataObject, side: tuple[int, int], seed: int) -> None:
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = data.draw(st.tuples(*(st.integers(0, k // 2) for k in kernel)))
    x = np.random.default_rng(seed).integers(-9, 0, (2, 3, 2, *side))  # below 0: a zero outside the map would win
    wanted = torch.max_pool2d(torch.from_numpy(x.reshape(6, 2, *side)).double(), kernel, stride, padding).numpy()
    for kind in (np.float64, np.float32, np.int64, np.int8):
        got = reference.max_pool(x.astype(kind), kernel=kernel, stride=stride, padding=padding)
        assert got.dtype == kind
        np.testing.assert_array_equal(got, wanted.reshape(2, 3, *wanted.shape[1:]))


@given(
    seed=st.integers(0, 2**32 - 1),
    T=st.integers(1, 8),
    v_threshold=st.sampled_from([1.0, 0.5, 1.75]),
    v_reset=st.sampled_from([0.0, -0.5, 0.25]),
)
@settings(deadline=None)
def test_an_endless_time_constant_is_spikingjellys_if_node(
    seed: int, T: int, v_threshold: float, v_reset: float
) -> None:
    # Multiples of 1/16: every sum is exact, and many potentials meet the threshold exactly.
    x = np.random.default_rng(seed).integers(-16, 24, (T, 50)) / 16
    node = neuron.IFNode(v_threshold=v_threshold, v_reset=v_reset, step_mode="m")
    spikes = reference.lif(x, tau=math.inf, v_threshold=v_threshold, v_reset=v_reset, decay_input=False)
    np.testing.assert_array_equal(spikes, node(torch.from_numpy(x)).numpy())


def test_a_decaying_input_needs_a_time_constant_that_ends() -> None:
    options = {"inputs": (), "shape": (1,), "v_threshold": 1.0, "v_reset": 0.0}
    with pytest.raises(AssertionError, match="hidden: an input divided by tau = inf is nothing"):
        g.LIF(name="hidden", tau=math.inf, decay_input=True, **options)


def test_frames_that_repeat_an_image_are_that_image() -> None:
    still = every_node(T=3)
    moving = still.replace(g.Input(**{**vars(still.input), "event": True}))
    images = dyadic_images(still, batch=2)
    values, of_frames = reference.run(still, images), reference.run(moving, np.stack([images] * 3))
    for node in still:
        np.testing.assert_array_equal(
            np.broadcast_to(values[node.name], of_frames[node.name].shape), of_frames[node.name]
        )
    assert len(values["stem.conv"]) == 1
    assert len(of_frames["stem.conv"]) == 3


def test_each_step_of_events_sees_its_own_frame() -> None:
    graph = every_node(T=2)
    graph = graph.replace(g.Input(**{**vars(graph.input), "event": True}))
    frames = np.stack([dyadic_images(graph, batch=3, seed=seed) for seed in (1, 2)])
    both = reference.run(graph, frames)["stem.conv"]
    for t in (0, 1):
        alone = reference.step(graph["stem.conv"], [reference.step(graph.input, [frames[t : t + 1]], 2)], 2)
        np.testing.assert_array_equal(both[t], alone[0])
    assert not np.array_equal(both[0], both[1])


@pytest.mark.parametrize(
    ("event", "shape", "message"),
    [
        (False, (2, 2, 8, 10), r"images must be \[B, 2, 10, 8\], got \[2, 2, 8, 10\]"),
        (False, (4, 1, 2, 10, 8), r"images must be \[B, 2, 10, 8\], got \[4, 1, 2, 10, 8\]"),
        (True, (1, 2, 10, 8), r"frames of events must be \[4, B, 2, 10, 8\], got \[1, 2, 10, 8\]"),
        (True, (1, 4, 2, 10, 8), r"frames of events must be \[4, B, 2, 10, 8\], got \[1, 4, 2, 10, 8\]"),
        (True, (4, 1, 3, 10, 8), r"frames of events must be \[4, B, 2, 10, 8\], got \[4, 1, 3, 10, 8\]"),
    ],
)
def test_images_of_another_shape_are_refused(event: bool, shape: tuple[int, ...], message: str) -> None:
    graph = every_node(T=4)
    graph = graph.replace(g.Input(**{**vars(graph.input), "event": event}))
    with pytest.raises(ValueError, match=message):
        reference.run(graph, np.zeros(shape, np.float32))
