"""The numpy simulation against a scalar one that is written from the equations, a neuron and a tap at a time."""

import dataclasses

import netmaker
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware import netx_sim
from hardware.net import ConvLayer, InputLayer, Net, NetxError, Neuron, accumulator_bound


def scalar_sum(layer: ConvLayer, x: np.ndarray, o: int, i: int, j: int) -> int:
    """One output of a convolution of x [C, H, W], tap by tap."""
    total, per_group = 0, layer.weight.shape[1]
    first = (o // (layer.weight.shape[0] // layer.groups)) * per_group
    for c, u, w in np.ndindex(*layer.weight.shape[1:]):
        row = i * layer.stride[0] - layer.padding[0] + u * layer.dilation[0]
        column = j * layer.stride[1] - layer.padding[1] + w * layer.dilation[1]
        if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
            total += int(layer.weight[o, c, u, w]) * int(x[first + c, row, column])
    return total


def scalar_neuron(currents: list[int], bias: int, neuron: Neuron) -> tuple[list[int], list[int]]:
    """Spikes and membranes of one neuron, with Python's unbounded integers."""

    def toward_zero(state: int, decay: int) -> int:
        size = abs(state) * (4096 - decay) // 4096
        return size if state >= 0 else -size

    u = v = 0
    spikes, membranes = [], []
    for a in currents:
        u = toward_zero(u, neuron.iDecay) + 64 * a
        if u > 2**23:
            u -= 2**24
        elif u <= -(2**23):
            u += 2**24
        v = max(-(2**23) + 1, min(2**23 - 1, toward_zero(v, neuron.vDecay) + u + 64 * bias))
        membranes.append(v)
        spikes.append(int(v > 64 * neuron.vThMant))
        v = 0 if spikes[-1] else v
    return spikes, membranes


@given(
    currents=st.lists(st.integers(-300_000, 300_000), min_size=1, max_size=8),
    bias=st.integers(-4095, 4095),
    v_threshold=st.integers(0, 131071),
    v_decay=st.sampled_from([0, 1, 1365, 2048, 4095, 4096]),
    i_decay=st.sampled_from([0, 1, 2048, 4096]),
)
@settings(max_examples=200, deadline=None)
def test_a_neuron_wraps_its_current_and_saturates_its_membrane_as_the_equations_say(
    currents: list[int], bias: int, v_threshold: int, v_decay: int, i_decay: int
) -> None:
    neuron = Neuron(vThMant=v_threshold, vDecay=v_decay, iDecay=i_decay)
    current = np.array(currents)[:, None]
    spikes, membranes = netx_sim.integrate(current, np.array([bias]), neuron, T=len(currents))
    assert (spikes[:, 0].tolist(), membranes[:, 0].tolist()) == scalar_neuron(currents, bias, neuron)


def test_a_neuron_at_its_threshold_does_not_fire_and_one_above_it_does() -> None:
    neuron = Neuron(vThMant=100, vDecay=2048)
    spikes, _ = netx_sim.integrate(np.array([[100, 101]]), np.zeros(2, np.int64), neuron, T=1)
    assert spikes.tolist() == [[0, 1]]


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_convolution_is_the_sum_over_its_taps(data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.integers(low, high)), data.draw(st.integers(low, high))

    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    layer = netmaker.conv(
        rng,
        "conv",
        (4, 6, 9),
        out=4,
        kernel=pair(1, 3),
        stride=pair(1, 3),
        padding=pair(0, 2),
        dilation=pair(1, 2),
        groups=data.draw(st.sampled_from([1, 2, 4])),
        neuron=netmaker.readout(),
    )
    x = rng.integers(-128, 128, (2, 1, 4, 6, 9))
    y = netx_sim.weighted_sum(layer, x)
    assert y.shape == (2, 1, *layer.shape)
    for o, i, j in np.ndindex(*layer.shape):
        assert y[1, 0, o, i, j] == scalar_sum(layer, x[1, 0], o, i, j)


@pytest.mark.parametrize("elements", [1, netx_sim.COLUMN_ELEMENTS])
def test_the_size_of_the_pieces_does_not_matter(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = netmaker.random_net(3)
    x = netmaker.images(3, net, 5)
    whole = netx_sim.simulate(net, x)
    monkeypatch.setattr(netx_sim, "COLUMN_ELEMENTS", elements)
    pieces = netx_sim.simulate(net, x)
    for a, b in zip(whole.spikes, pieces.spikes, strict=True):
        np.testing.assert_array_equal(a, b)


def test_samples_do_not_touch_each_other() -> None:
    net = netmaker.random_net(4)
    x = netmaker.images(4, net, 4)
    together = netx_sim.simulate(net, x)
    alone = [netx_sim.simulate(net, x[i : i + 1]) for i in range(4)]
    for k, spikes in enumerate(together.spikes):
        np.testing.assert_array_equal(spikes, np.concatenate([run.spikes[k] for run in alone], axis=1))
    np.testing.assert_array_equal(together.v_out, np.concatenate([run.v_out for run in alone], axis=1))


def test_holding_an_image_equals_sending_it_at_every_step() -> None:
    held = netmaker.random_net(5, hold=True)
    sent = netmaker.random_net(5, hold=False)
    x = netmaker.images(5, held)
    a, b = netx_sim.simulate(held, x), netx_sim.simulate(sent, x)
    assert any(spikes.any() for spikes in a.spikes)
    for one, other in zip(a.spikes, b.spikes, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(a.v_out, b.v_out)


def test_events_are_sent_as_they_are() -> None:
    net = netmaker.random_net(6, hold=False)
    x = netmaker.images(6, net)
    run = netx_sim.simulate(net, np.broadcast_to(x, (4, *x.shape)))
    np.testing.assert_array_equal(run.v_out, netx_sim.simulate(net, x).v_out)


def test_an_altered_weight_gives_other_spikes() -> None:
    net = netmaker.random_net(7)
    stem = net.layers[1]
    assert isinstance(stem, ConvLayer)
    weight = stem.weight.copy()
    weight[0, 0, 1, 1] += 100
    altered = dataclasses.replace(
        net, layers=(net.layers[0], dataclasses.replace(stem, weight=weight), *net.layers[2:])
    )
    x = netmaker.images(7, net)
    assert np.any(netx_sim.simulate(net, x).spikes[0] != netx_sim.simulate(altered, x).spikes[0])


def test_the_readout_sums_its_input_and_bias_without_loss() -> None:
    net = netmaker.random_net(8)
    run = netx_sim.simulate(net, netmaker.images(8, net))
    head = net.spiking[-1]
    expected = np.cumsum(run.spikes[-2].astype(np.int64) @ head.weight.T + head.bias, axis=0)
    np.testing.assert_array_equal(run.v_out, 64 * expected)


@given(seed=st.integers(0, 1000), lo=st.integers(-50, 0), hi=st.integers(0, 50))
@settings(max_examples=50, deadline=None)
def test_no_input_exceeds_the_accumulator_bound_and_one_reaches_it(seed: int, lo: int, hi: int) -> None:
    layer = netmaker.random_net(seed).spiking[2]
    bound = accumulator_bound(layer, lo, hi)
    rng = np.random.default_rng(seed)
    x = rng.integers(lo, hi + 1, (100, layer.weight.shape[1]))
    assert np.abs(x @ layer.weight.T).max() <= bound
    worst = [np.where(sign * layer.weight > 0, hi, lo) for sign in (1, -1)]
    assert max(np.abs((layer.weight * x).sum(axis=1)).max() for x in worst) == bound


def test_the_bound_takes_a_range_per_channel_and_knows_groups() -> None:
    rng = np.random.default_rng(0)
    layer = netmaker.conv(rng, "c", (4, 5, 5), out=2, groups=2, neuron=netmaker.readout())
    only_third = accumulator_bound(layer, np.zeros(4, int), np.array([0, 0, 7, 0]))
    taps = layer.weight[1, 0]
    assert only_third == 7 * max(taps[taps > 0].sum(), -taps[taps < 0].sum())


def one_by_one(weight: int, *, T: int | None = None, window: int | None = None) -> Net:
    rng = np.random.default_rng(0)
    layer = netmaker.dense(rng, "d", 1, 1, neuron=netmaker.readout())
    layer = dataclasses.replace(layer, weight=np.array([[weight]]))
    meta = {key: value for key, value in {"T": T, "window": window}.items() if value is not None}
    return Net(layers=(InputLayer(shape=(1,)), layer), meta=meta)


@pytest.mark.parametrize(
    ("T", "window", "asked", "expected"),
    [(3, None, None, (3, 4)), (4, 4, None, (4, 4)), (4, 16, None, (4, 16)), (4, 4, 7, (7, 8)), (None, None, 1, (1, 1))],
)
def test_the_window_is_a_power_of_two_that_holds_T(
    T: int | None, window: int | None, asked: int | None, expected: tuple[int, int]
) -> None:
    assert netx_sim.schedule(one_by_one(1, T=T, window=window), asked) == expected


@pytest.mark.parametrize(
    ("net", "images", "message"),
    [
        (one_by_one(1), np.ones((1, 1), int), "does not say its number of time steps"),
        (one_by_one(1, T=0), np.ones((1, 1), int), "T is 0, must be a positive int"),
        (one_by_one(1, T=3, window=6), np.ones((1, 1), int), "window is 6, must be a power of two"),
        (one_by_one(1, T=2), np.ones((1, 1)), "images have type float64, must be integers"),
        (one_by_one(1, T=2), np.ones((1, 2), int), r"images are \(1, 2\), must be \[B, 1\]"),
        (one_by_one(1, T=2), np.ones((3, 1, 1), int), "events have 3 steps, T is 2"),
        (one_by_one(1, T=2), np.ones((0, 1), int), "there is nothing to run"),
        (one_by_one(1, T=2), np.full((1, 1), 2**23), "exceeds 24 bits"),
        (one_by_one(127, T=2), np.full((1, 1), 2**20), "d: a sum may reach 133169152, beyond the 24 bits"),
    ],
)
def test_what_cannot_be_run_is_refused(net: Net, images: np.ndarray, message: str) -> None:
    with pytest.raises(NetxError, match=message):
        netx_sim.simulate(net, images)
