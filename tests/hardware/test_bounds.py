import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.bounds import LayerBounds, bounds
from hardware.net import INTEGRATOR, DenseLayer, InputLayer, Layer, Net, NetxError, Neuron, accumulator_bound
from hardware.netx_sim import frames, simulate, weighted_sum
from tests.hardware import netmaker


READOUT = Neuron(vThMant=131071, vDecay=0)


def dense_net(*weights: list[list[int]], bias: int = 0, neuron: Neuron = READOUT) -> Net:
    """Dense layers one after another, all with the same neurons."""
    layers: list[Layer] = [InputLayer(shape=(len(weights[0][0]),))]
    for index, rows in enumerate(weights):
        weight = np.array(rows)
        layers.append(
            DenseLayer(
                name=f"d{index}",
                shape=(len(rows),),
                weight=weight,
                bias=np.full(len(rows), bias),
                neuron=neuron,
            )
        )
    return Net(layers=tuple(layers))


def without_limits(current: list[int], bias: int, neuron: Neuron, T: int) -> tuple[list[int], list[int], list[int]]:
    """Spikes, u and v of one neuron in Python's integers, which neither wrap nor saturate."""

    def decayed(state: int, decay: int) -> int:
        kept = abs(state) * (4096 - decay) // 4096
        return kept if state >= 0 else -kept

    u = v = 0
    spikes, us, vs = [], [], []
    for t in range(T):
        u = decayed(u, neuron.iDecay) + 64 * (current[t] if t < len(current) else 0)
        v = decayed(v, neuron.vDecay) + u + 64 * bias
        us.append(u)
        vs.append(v)
        spikes.append(int(v > 64 * neuron.vThMant))
        v = 0 if spikes[-1] else v
    return spikes, us, vs


def check_against_simulation(net: Net, images: np.ndarray, found: tuple[LayerBounds, ...], *, T: int) -> None:
    """Every layer, fed with what the simulator feeds it, stays in its bounds; a proven one spikes as without limits."""
    run = simulate(net, images, T=T)
    arriving = (frames(net, images, T=T), *run.spikes)
    for layer, bound, x, spikes in zip(net.spiking, found, arriving, run.spikes, strict=False):
        current = weighted_sum(layer, x if len(layer.shape) == 3 else x.reshape(*x.shape[:2], -1))
        assert np.abs(current).max() <= bound.accumulator
        bias = layer.bias.reshape(layer.bias.shape + (1,) * (len(layer.shape) - layer.bias.ndim))
        columns = current.reshape(len(current), -1)
        biases = np.broadcast_to(bias, current.shape[1:]).reshape(-1)
        fired = spikes.reshape(T, -1)
        for neuron in range(columns.shape[1]):
            ideal, u, v = without_limits(columns[:, neuron].tolist(), int(biases[neuron]), layer.neuron, T)
            assert max(map(abs, u)) <= bound.current
            assert bound.membrane[0] <= min(v)
            assert max(v) <= bound.membrane[1]
            if bound.proven:
                assert fired[:, neuron].tolist() == ideal
                assert max(map(abs, u)) < 2**23
                assert max(map(abs, v)) < 2**23


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    T=st.integers(1, 6),
    hold=st.booleans(),
    v_decay=st.sampled_from((0, 1, 700, 2048, 4096)),
    i_decay=st.sampled_from((0, 512, 3000, 4096)),
    reach=st.sampled_from((3, 127, 400, 3000)),
)
def test_simulation_never_leaves_the_bounds(
    seed: int, T: int, hold: bool, v_decay: int, i_decay: int, reach: int
) -> None:
    net = netmaker.random_net(seed, T=T, hold=hold, v_decay=v_decay, i_decay=i_decay)
    images = netmaker.images(seed, net, 2, lo=-reach, hi=reach + 1)
    check_against_simulation(net, images, bounds(net, T=T, lo=-reach, hi=reach), T=T)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), T=st.integers(1, 4))
def test_simulation_of_events_never_leaves_the_bounds(seed: int, T: int) -> None:
    """Events of 0 to 900 into a first layer that holds its current: it grows from step to step."""
    net = netmaker.random_net(seed, T=T, hold=True)
    events = np.random.default_rng(seed).integers(0, 901, (T, 2, *net.input.shape))
    check_against_simulation(net, events, bounds(net, T=T, lo=0, hi=900, sent=T), T=T)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**16), lo=st.integers(-300, 300), span=st.integers(0, 300), per_channel=st.booleans())
def test_accumulator_is_that_of_hardware_net(seed: int, lo: int, span: int, per_channel: bool) -> None:
    net = netmaker.random_net(seed)
    low: int | np.ndarray = lo + np.arange(3) if per_channel else lo
    found = bounds(net, T=2, lo=low, hi=low + span)
    first, *hidden = net.spiking
    assert found[0].accumulator == accumulator_bound(first, low, low + span)
    assert [bound.accumulator for bound in found[1:]] == [accumulator_bound(layer, 0, 1) for layer in hidden]


# By hand


def test_bounds_are_reached() -> None:
    """Weights 100, -30 and -20 on inputs -5..7: 100 * 7 + 50 * 5 = 950 and -100 * 5 - 50 * 7 = -850 a step."""
    neuron = Neuron(vThMant=131071, vDecay=2048)
    net = dense_net([[100, -30, -20]], bias=-3, neuron=neuron)
    (found,) = bounds(net, T=3, lo=-5, hi=7)
    assert (found.accumulator, found.current, found.bias, found.threshold) == (950, 950 * 64, 3, 131071)
    down = -853 * 64
    assert found.membrane == (down + down // 2 + down // 4, 947 * 64 + 947 * 32 + 947 * 16)
    assert found.proven
    events = np.array([[[-5, 7, 7]], [[7, -5, -5]]])  # the two extremes, two samples
    for sample, (image, end) in enumerate(zip(events, found.membrane, strict=True)):
        run = simulate(net, np.broadcast_to(image, (1, 3)).astype(np.int64), T=3)
        assert run.v_out[-1].item() == end, sample


def test_a_held_image_arrives_once_and_events_add_up() -> None:
    net = dense_net([[100]], neuron=Neuron(vThMant=131071, vDecay=4096, iDecay=0))
    assert bounds(net, T=4, lo=0, hi=10)[0].current == 1000 * 64
    assert bounds(net, T=4, lo=0, hi=10, sent=4)[0].current == 4000 * 64
    decaying = dense_net([[100]], neuron=Neuron(vThMant=131071, vDecay=4096, iDecay=1024))
    assert bounds(decaying, T=2, lo=0, hi=10)[0].current == 1000 * 64 + 750 * 64


def test_a_current_wraps_one_beyond_its_limit() -> None:
    """2 * 65535 = 131070 and 131071 fit; in the simulator 131073 becomes -131071."""
    hold = Neuron(vThMant=200, vDecay=4096, iDecay=0)
    net = dense_net([[1, 1]], neuron=hold)
    assert bounds(net, T=2, lo=0, hi=np.array([65535, 65536]))[0].proven
    (found,) = bounds(net, T=2, lo=0, hi=np.array([65536, 65537]))
    (risk, *_) = found.risks
    assert risk.startswith(
        "d0: in 2 steps the current may reach 131073 weight units, beyond 131071 it wraps around; use"
    )
    assert simulate(net, np.array([[65536, 65537]]), T=1).v_out.item() == -131071 * 64
    (later,) = bounds(net, T=2, lo=0, hi=40_000, sent=2)
    assert "may reach 160000 weight units" in later.risks[0]


def test_a_membrane_saturates_below_but_not_above_where_it_fires() -> None:
    leaky = Neuron(vThMant=100, vDecay=0)
    net = dense_net([[255]], [[-128] * 1], neuron=leaky)
    steps = 1100  # 128 * 1100 exceeds 131,071
    first, second = bounds(net, T=steps, lo=0, hi=1)
    assert first.membrane == (0, (100 + 255) * 64)
    assert second.membrane == (-128 * steps * 64, 0)
    assert first.proven
    (risk,) = second.risks
    assert risk.startswith("d1: in 1100 steps the membrane may reach -140800 weight units, below -131071 it saturates")
    assert bounds(net, T=1000, lo=0, hi=1)[1].proven
    silent = simulate(net, np.ones((steps, 1, 1), np.int64), T=steps)  # the first neuron fires at every step
    assert silent.v_out[-1].item() == -(2**23 - 1)


def test_a_readout_that_sums_too_long_is_a_risk() -> None:
    net = dense_net([[127]], neuron=READOUT)
    assert bounds(net, T=4, lo=-250, hi=250)[0].proven
    low, high = bounds(net, T=5, lo=-250, hi=250)[0].risks
    assert "may reach -158750 weight units, below -131071 it saturates" in low
    assert "weight units, above 131071 it saturates" in high


def test_ranges_are_risks_with_numbers() -> None:
    net = dense_net([[1]], bias=-4096, neuron=Neuron(vThMant=131072, vDecay=4096))
    bias, threshold = bounds(net, T=1, lo=0, hi=1)[0].risks
    assert bias == "d0: a bias is 4096 in magnitude, at most 4095 fits; use a smaller scale"
    assert threshold == "d0: vThMant is 131072, at most 131071 fits; use a smaller scale"
    assert bounds(dense_net([[1]], neuron=INTEGRATOR), T=1, lo=0, hi=1)[0].proven  # netx's own


def test_input_neurons_turn_what_is_sent_into_spikes() -> None:
    net = dense_net([[100, 27]])
    layers = (dataclasses.replace(net.input, neuron=Neuron(vThMant=10, vDecay=2048)), *net.layers[1:])
    entry, first = bounds(Net(layers=layers), T=3, lo=-9, hi=900)
    assert (entry.name, entry.accumulator, entry.membrane) == ("input", 900, (-9 * 64 * 7 // 4, 900 * 64 + 10 * 32))
    assert first.accumulator == 127


# What is sent in


def test_the_range_of_images_is_read_from_the_file() -> None:
    net = netmaker.random_net(0)
    said = {"scales": {"input": 40.0}, "input": {"mean": [0.5, 0.25, 0.0], "std": [0.25, 0.5, 0.1]}}
    declared = dataclasses.replace(net, meta={**net.meta, **said})
    # -80, -20, 0 and 80, 60, 400: the last is clipped to 127
    given_ = bounds(net, T=4, lo=np.array([-80, -20, 0]), hi=np.array([80, 60, 127]))
    assert bounds(declared, T=4) == given_


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"T": 4}, "the file does not say what is sent in; give lo and hi"),
        ({"T": 4, "lo": 0}, "only one of lo and hi is given"),
        ({"T": 4, "lo": 1, "hi": 0}, r"lo \[1\] exceeds hi \[0\]"),
        ({"T": 4, "lo": 0.5, "hi": 1}, r"lo is float64 \(1,\), must be an integer or 3, one per channel"),
        ({"T": 4, "lo": 0, "hi": np.array([1, 2])}, r"hi is int64 \(2,\), must be an integer or 3, one per channel"),
        ({"T": 0, "lo": 0, "hi": 1}, "T is 0 and sent None: T must be at least 1"),
        ({"T": 2, "lo": 0, "hi": 1, "sent": 3}, r"sent 3: T must be at least 1, sent 1\.\.T"),
        ({"T": 2, "lo": 0, "hi": 2**23}, "lo 0 and hi 8388608 exceed 24 bits; scale the input down"),
        ({"T": 2000, "lo": 0, "hi": 2**22}, r"stem: a sum may reach \d+; scale the input down"),
    ],
)
def test_a_range_that_is_none_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(NetxError, match=message):
        bounds(netmaker.random_net(1), **arguments)
