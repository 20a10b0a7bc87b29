"""The LIF neuron is the paper's Eq. 2 and 3, and an image is held over time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import neuron, surrogate
from torch import nn

from train.config import NetConfig
from train.neurons import Add, Hold, activation


def equation_2(x: np.ndarray, config: NetConfig) -> np.ndarray:
    """TSER's V(t), S(t), H(t) without the input delay, neuron by neuron, for x [T, N] in float64.

    The paper's V is the potential before a spike, H the one after it; mu is tau, I the input.
    """
    mu, u_reset, v_th = config.tau, config.v_reset, config.v_threshold
    S = np.zeros_like(x)
    for n in range(x.shape[1]):
        H = u_reset
        for t in range(len(x)):
            I = x[t, n] if config.decay_input else mu * x[t, n]  # noqa: E741
            V = H + (I - (H - u_reset)) / mu
            S[t, n] = 1.0 if V - v_th >= 0 else 0.0
            H = u_reset * S[t, n] + V * (1 - S[t, n])
    return S


def spikes(x: np.ndarray, config: NetConfig) -> np.ndarray:
    """What the student's neuron gives for x [T, N]."""
    return activation(config)(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("decay_input", [True, False])
@given(
    seed=st.integers(0, 2**31),
    T=st.integers(1, 12),
    v_reset=st.sampled_from([0.0, -0.5, 0.25]),
    v_threshold=st.sampled_from([1.0, 0.5, 1.75]),
)
@settings(deadline=None)
def test_lif_is_equation_2_and_fires_at_the_threshold(
    decay_input: bool, seed: int, T: int, v_reset: float, v_threshold: float
) -> None:
    # Multiples of 1/16 and tau = 2: every sum is exact in float64, and many potentials meet the threshold exactly.
    x = np.random.default_rng(seed).integers(-16, 48, (T, 40)) / 16
    config = NetConfig(tau=2.0, decay_input=decay_input, v_reset=v_reset, v_threshold=v_threshold)
    assert np.array_equal(spikes(x, config), equation_2(x, config))


@pytest.mark.parametrize("decay_input", [True, False])
@given(seed=st.integers(0, 2**31), tau=st.floats(1.01, 20), v_reset=st.floats(-1, 0.5))
@settings(deadline=None)
def test_lif_is_equation_2_for_any_time_constant(decay_input: bool, seed: int, tau: float, v_reset: float) -> None:
    x = np.random.default_rng(seed).normal(1.0, 2.0, (8, 40))
    config = NetConfig(tau=tau, decay_input=decay_input, v_reset=v_reset)
    assert np.array_equal(spikes(x, config), equation_2(x, config))


def test_a_potential_at_the_threshold_fires_and_is_reset_whole() -> None:
    held = np.full((4, 1), 2.0)  # v = 1 after every step from rest
    assert spikes(held, NetConfig()).tolist() == [[1.0]] * 4
    below = np.array([[np.nextafter(2.0, 0)], [0.0], [0.0]])
    assert spikes(below, NetConfig()).sum() == 0
    overshoot = np.array([[100.0], [0.0], [1.0]])  # a soft reset would keep 49 and fire again
    assert spikes(overshoot, NetConfig()).ravel().tolist() == [1.0, 0.0, 0.0]


def test_decaying_inputs_fire_like_plain_ones_under_tau_times_the_threshold() -> None:
    x = np.random.default_rng(0).normal(0, 4, (50, 1000))
    decayed = spikes(x, NetConfig(decay_input=True, v_threshold=1.0))
    plain = spikes(x, NetConfig(decay_input=False, v_threshold=2.0))
    assert np.array_equal(decayed, plain)
    assert not np.array_equal(decayed, spikes(x, NetConfig(decay_input=False, v_threshold=1.0)))


def test_the_neuron_is_spikingjellys_own_with_the_settings_of_the_config() -> None:
    config = NetConfig(tau=3.0, v_threshold=0.5, v_reset=-0.25, decay_input=False, detach_reset=False)
    lif = activation(config)
    assert isinstance(lif, neuron.LIFNode)
    assert (lif.tau, lif.v_threshold, lif.v_reset, lif.decay_input, lif.detach_reset) == (3.0, 0.5, -0.25, False, False)
    assert lif.step_mode == "m"
    assert type(activation(NetConfig(spiking=False))) is nn.ReLU


ORACLES = {
    "atan": surrogate.ATan(alpha=2.0),
    "sigmoid": surrogate.Sigmoid(alpha=4.0),
    "triangle": surrogate.PiecewiseQuadratic(alpha=1.0),
    "rect": surrogate.Rect(alpha=1.0),
}


@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("kind", ["lif", "plif", "if"])
@pytest.mark.parametrize("name", ORACLES)
def test_every_option_is_spikingjellys_neuron_in_evaluation_and_training(
    name: str, kind: str, reset: str, detach_reset: bool
) -> None:
    tau = {} if kind == "if" else {"tau": 3.0}
    config = NetConfig(**tau, v_threshold=0.7, reset=reset, neuron=kind, surrogate=name, detach_reset=detach_reset)
    shared = {
        "v_threshold": 0.7,
        "v_reset": 0.0 if reset == "hard" else None,
        "surrogate_function": ORACLES[name],
        "detach_reset": detach_reset,
        "step_mode": "m",
    }
    oracle: neuron.BaseNode = {
        "lif": lambda: neuron.LIFNode(tau=3.0, **shared),
        "plif": lambda: neuron.ParametricLIFNode(init_tau=3.0, **shared),
        "if": lambda: neuron.IFNode(**shared),
    }[kind]()
    x = torch.randn(6, 4, 50, generator=torch.Generator().manual_seed(0)) * 3 + 1
    for mode in (True, False):
        layers = [layer.train(mode) for layer in (activation(config), oracle)]
        found = []
        for layer in layers:
            current = x.clone().requires_grad_()
            layer.reset()
            layer.zero_grad()
            out = layer(current)
            out.square().sum().backward()
            found.append((out.detach(), current.grad, *(p.grad for p in layer.parameters())))
        assert 0.1 < found[0][0].mean() < 0.9
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        if kind == "plif":
            assert layers[0].w.grad.abs() > 0


def test_a_soft_reset_keeps_the_charge_above_the_threshold() -> None:
    overshoot = np.array([[6.0], [0.0], [0.0]])  # charges 3; 2 are left, of which half leaks: 1 fires
    assert spikes(overshoot, NetConfig(reset="soft")).ravel().tolist() == [1.0, 1.0, 0.0]
    assert spikes(overshoot, NetConfig(reset="hard")).ravel().tolist() == [1.0, 0.0, 0.0]


def test_plif_starts_at_tau_and_learns_one_number_a_layer() -> None:
    layer = activation(NetConfig(neuron="plif", tau=4.0))
    assert [tuple(p.shape) for p in layer.parameters()] == [()]
    assert 1 / layer.w.sigmoid().item() == pytest.approx(4.0)


@given(seed=st.integers(0, 2**31), T=st.integers(1, 12), v_reset=st.sampled_from([0.0, -0.5, 0.25]))
@settings(deadline=None)
def test_an_if_neuron_adds_up_its_input_until_it_fires(seed: int, T: int, v_reset: float) -> None:
    x = np.random.default_rng(seed).integers(-16, 32, (T, 40)) / 16  # sums meet the threshold exactly
    wanted = np.zeros_like(x)
    for n in range(x.shape[1]):
        v = v_reset
        for t in range(T):
            v += x[t, n]
            if v >= 1.0:
                wanted[t, n], v = 1.0, v_reset
    assert np.array_equal(spikes(x, NetConfig(neuron="if", v_reset=v_reset)), wanted)


@pytest.mark.parametrize("kind", ["lif", "plif", "if"])
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_half_precision_currents_charge_membranes_in_float32(kind: str, reset: str) -> None:
    layer = activation(NetConfig(neuron=kind, reset=reset))
    x = torch.randn(4, 100, generator=torch.Generator().manual_seed(0)).bfloat16() * 3
    out = layer(x)
    assert (out.dtype, layer.v.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(out.float(), activation(NetConfig(neuron=kind, reset=reset))(x.float()))


@pytest.mark.parametrize("name", ORACLES)
def test_the_surrogate_gradient_is_its_formula(name: str) -> None:
    x = torch.linspace(-2, 6, 33, dtype=torch.float64).requires_grad_()
    activation(NetConfig(surrogate=name))(x[None]).sum().backward()
    distance = x.detach() / 2 - 1  # one step from rest at tau = 2, less the threshold
    slope = {
        "atan": 1 / (1 + (math.pi * distance) ** 2),
        "sigmoid": 4 * (4 * distance).sigmoid() * (1 - (4 * distance).sigmoid()),
        "triangle": (1 - distance.abs()).clamp_min(0),
        "rect": (distance.abs() < 0.5).double(),
    }[name]
    assert x.grad is not None
    torch.testing.assert_close(x.grad, slope / 2)


def test_hold_shows_an_image_at_every_step_and_lets_events_pass() -> None:
    hold = Hold(4)
    image, events = torch.rand(1, 2, 3, 5, 5), torch.rand(4, 2, 3, 5, 5)
    assert torch.equal(hold(image), image.repeat(4, 1, 1, 1, 1))
    assert torch.equal(hold(events), events)
    with pytest.raises(ValueError, match="event input must have T = 4 steps on its first axis, got 3"):
        hold(events[:3])


def test_add_is_a_sum() -> None:
    assert torch.equal(Add()(torch.ones(2), torch.tensor([1.0, 0.0])), torch.tensor([2.0, 1.0]))
