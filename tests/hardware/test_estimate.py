"""Events are counted synapse by synapse, and what they cost is arithmetic on facts that name their source."""

import dataclasses
from typing import Any

import netmaker
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware import chip, netx_sim
from hardware.estimate import Events, count, estimate, itemise, synops
from hardware.net import ConvLayer, DenseLayer, FlattenLayer, InputLayer, Net, Neuron


HIDDEN = Neuron(vThMant=120, vDecay=2048)


def touched(layer: ConvLayer, position: tuple[int, int, int]) -> int:
    """Synapses with a weight other than zero that lead from one input (channel, row, column) to neurons there are."""
    c, row, column = position
    outputs, height, width = layer.shape
    per_group, outputs_per_group = layer.weight.shape[1], outputs // layer.groups
    total = 0
    for o in range(outputs):
        if o // outputs_per_group != c // per_group:
            continue
        for i in range(height):
            for j in range(width):
                u = row - i * layer.stride[0] + layer.padding[0]
                v = column - j * layer.stride[1] + layer.padding[1]
                if u % layer.dilation[0] or v % layer.dilation[1]:
                    continue
                u, v = u // layer.dilation[0], v // layer.dilation[1]
                if 0 <= u < layer.weight.shape[2] and 0 <= v < layer.weight.shape[3]:
                    total += int(layer.weight[o, c % per_group, u, v] != 0)
    return total


def counted_by_hand(layer: ConvLayer | DenseLayer, x: np.ndarray) -> int:
    """Synaptic operations of values x [L, B, ...]: every nonzero value times every synapse that it goes through."""
    if isinstance(layer, DenseLayer):
        rows = x.reshape(-1, layer.weight.shape[1])
        return sum(int((layer.weight[:, i] != 0).sum()) for row in rows for i in np.flatnonzero(row))
    return sum(touched(layer, (int(c), int(i), int(j))) for _, _, c, i, j in np.argwhere(x))


def sparse(rng: np.random.Generator, layer: ConvLayer) -> ConvLayer:
    """The layer with a third of its weights zero."""
    return dataclasses.replace(layer, weight=layer.weight * (rng.random(layer.weight.shape) > 1 / 3))


PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    side=st.tuples(st.integers(3, 5), st.integers(3, 6)),
    kernel=PAIRS,
    stride=PAIRS,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.sampled_from([(1, 1), (2, 1), (1, 2)]),
    groups=st.sampled_from([1, 2]),
)
def test_every_value_meets_every_synapse_that_leads_to_a_neuron(
    seed: int,
    side: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> None:
    if any(dilation[i] * (kernel[i] - 1) >= side[i] + 2 * padding[i] for i in range(2)):
        return
    rng = np.random.default_rng(seed)
    geometry: dict[str, Any] = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    layer = sparse(rng, netmaker.conv(rng, "c", (2, *side), out=4, groups=groups, neuron=HIDDEN, **geometry))
    arriving = (rng.random((2, 2, 2, *side)) < 0.4).astype(np.int64)
    assert synops(layer, arriving) == counted_by_hand(layer, arriving)


def small_net(*, hold: bool, T: int = 3) -> Net:
    """Three convolutions (strided, grouped, padded) and a dense layer, W != H; the second hands spikes on."""
    rng = np.random.default_rng(0)
    shape = (2, 4, 5)
    stem = netmaker.conv(
        rng, "stem", shape, out=4, neuron=Neuron(vThMant=2000, vDecay=2048, iDecay=0 if hold else 4096)
    )
    block = netmaker.conv(rng, "block + relay stem", stem.shape, out=6, stride=(2, 1), neuron=HIDDEN)
    weight = sparse(rng, block).weight
    weight[4:] = 0
    weight[4, 0, 1, 1] = weight[5, 1, 1, 1] = 121  # two relays: one synapse each
    block = dataclasses.replace(block, weight=weight, bias=np.array([5, -3, 0, 7, 0, 0]))
    depthwise = netmaker.conv(
        rng, "depthwise", block.shape, out=6, groups=6, padding=(0, 1), kernel=(2, 3), neuron=HIDDEN
    )
    features = int(np.prod(depthwise.shape))
    head = netmaker.dense(rng, "head", features, 3, neuron=netmaker.readout())
    head = dataclasses.replace(head, weight=head.weight * (rng.random(head.weight.shape) > 0.5))
    flat = FlattenLayer(shape=(features,))
    return Net(layers=(InputLayer(shape=shape), stem, block, depthwise, flat, head), meta={"T": T})


@pytest.mark.parametrize("hold", [True, False])
def test_the_events_of_a_run_are_those_counted_by_hand(hold: bool) -> None:
    net = small_net(hold=hold)
    images = netmaker.images(0, net, 2, lo=-60)
    images[np.abs(images) < 20] = 0
    sent, run = netx_sim.frames(net, images, T=3), netx_sim.simulate(net, images)
    events = count(net, sent, run)
    assert len(sent) == (1 if hold else 3)
    x = sent
    for layer, own, spikes in zip(net.spiking, events, run.spikes, strict=True):
        assert own.name == layer.name
        assert own.inputs == np.count_nonzero(x) / 2
        assert own.synops == counted_by_hand(layer, x) / 2
        assert own.spikes == np.count_nonzero(spikes) / 2
        assert own.updates == 4 * np.prod(layer.shape), "3 steps stand in a window of 4"
        x = spikes
    assert all(own.spikes > 0 for own in events[:-1])
    assert all(own.synops > 0 for own in events)


def test_a_held_image_is_sent_and_weighted_once() -> None:
    held, repeated = small_net(hold=True), small_net(hold=False)
    images = netmaker.images(0, held, 2)
    first = [
        count(net, netx_sim.frames(net, images, T=3), netx_sim.simulate(net, images))[0] for net in (held, repeated)
    ]
    assert 3 * first[0].synops == first[1].synops
    assert first[0].spikes == first[1].spikes


def test_a_run_that_kept_only_the_output_is_refused() -> None:
    net = small_net(hold=True)
    images = netmaker.images(0, net, 1)
    run = netx_sim.simulate(net, images)
    output = netx_sim.Run(names=run.names[-1:], spikes=run.spikes[-1:], v_out=run.v_out)
    with pytest.raises(ValueError, match="the run kept 1 of 4 layers; record all of them"):
        count(net, netx_sim.frames(net, images, T=3), output)


def test_time_and_energy_are_the_events_at_the_prices_that_are_cited() -> None:
    net = small_net(hold=True)
    events = tuple(
        Events(name=layer.name, inputs=1.0, synops=100.0 * (k + 1), spikes=2.0, updates=40.0)
        for k, layer in enumerate(net.spiking)
    )
    prices, board = chip.load("loihi1"), chip.load("loihi2")
    said = estimate(net, events, prices=prices, board=board)
    image = said["per_image"]
    synop, update = (prices[f"energy.{name}"].value for name in ("synaptic_operation", "neuron_update_active"))
    step, power = (board[f"board.pilotnet_lif.{name}"].value for name in ("time_per_step", "power_static"))
    assert (image["synops"], image["spikes"], image["updates"]) == (1000.0, 8.0, 160.0)
    assert image["energy_J"] == pytest.approx(1000 * synop + 160 * update)
    assert (image["steps"], image["latency_steps"]) == (4, 3 + 4)
    assert image["time_s"] == pytest.approx(4 * step)
    assert image["latency_s"] == pytest.approx(7 * step)
    assert image["static_energy_J"] == pytest.approx(4 * step * power)
    assert [layer["name"] for layer in said["layers"]] == [layer.name for layer in net.spiking]
    cited = {(source["chip"], source["value"], bool(source["source"])) for source in said["sources"].values()}
    assert cited == {("loihi1", synop, True), ("loihi1", update, True), ("loihi2", step, True), ("loihi2", power, True)}


def test_the_prices_are_those_of_the_papers_table() -> None:
    """Davies et al. 2018, Table 2: 23.6 pJ a synaptic operation, 81 pJ an active neuron update."""
    prices = chip.load("loihi1")
    assert prices["energy.synaptic_operation"].value == pytest.approx(23.6e-12)
    assert prices["energy.neuron_update_active"].value == pytest.approx(81e-12)


EVENTS = {"synops": 1000.0, "image_synops": 200.0, "active": 30.0, "inactive": 5.0, "spikes": 7.0}


def test_a_chips_own_prices_make_its_list_and_static_power_is_in_no_sum() -> None:
    found = itemise(chip.load("loihi1"), **EVENTS, T=4)
    priced = [line["energy_J"] for line in found["lines"] if "energy_J" in line]
    # Davies et al. 2018, Table 2: 23.6, 81, 52 and 1.7 pJ.
    assert priced == pytest.approx([1000 * 23.6e-12, 200 * 23.6e-12, 30 * 81e-12, 5 * 52e-12, 7 * 1.7e-12])
    assert found["energy_J"] == pytest.approx(sum(priced))
    assert all("Davies" in line["price"]["source"] for line in found["lines"] if "energy_J" in line)
    assert [line["what"] for line in found["lines"] if "left_out" in line] == ["spikes from tile to tile"]
    assert "left_out" in found["static"]


def test_what_is_unpublished_of_loihi_2_is_left_out_and_takes_no_price_of_loihi_1() -> None:
    board = chip.load("loihi2")
    found = itemise(board, **EVENTS, T=4)
    assert found["energy_J"] is None
    assert all("left_out" in line and "energy_J" not in line for line in found["lines"])
    step, power = (board[f"board.pilotnet_lif.{name}"].value for name in ("time_per_step", "power_static"))
    assert found["static"]["energy_J"] == pytest.approx(4 * step * power)
    assert "another network" in found["static"]["note"]
