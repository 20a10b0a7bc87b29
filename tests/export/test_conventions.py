"""Four ways to count: totals of TSER's Table 4, train's own counting, a network priced by hand, and refusals."""

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest
from small_graphs import Maker, dyadic_images, every_node

from export import graph as g
from export.conventions import CONVENTIONS
from export.conventions_memory import Memory
from export.conventions_origin import origin_of
from export.conventions_terms import CannotCount, Charge, Origin, evaluate
from export.counts import count, spike_driven
from export.energy import report
from export.lower import lower_network
from hardware import chip
from train.checkpoint import Preprocess
from train.config import NetConfig
from train.networks import NETWORKS, build
from train.networks.operations import count_operations


CMOS = chip.load("cmos45nm")
CIFAR100: dict[str, Any] = {"T": 4, "in_channels": 3, "size": 32, "num_classes": 100}
PLAIN = Origin(biased=frozenset(), normalised=frozenset())
PREPROCESS = Preprocess(mean=(0.5,) * 3, std=(0.25,) * 3, size=32)


def lowered(config: NetConfig) -> tuple[g.Graph, Origin]:
    network = build(config).eval()
    graph = lower_network(network, PREPROCESS)
    return graph, origin_of(network, graph)


def full(graph: g.Graph, charge: Charge, key: str) -> float:
    """A quantity of one layer over all steps of an image of which every value spikes, without counts."""
    terms, value = getattr(charge, key), 0.0
    if charge.synapse is not None:
        node = spike_driven(graph)[charge.synapse]
        assert not terms.per_tap
        value += terms.per_nonzero * np.prod(graph[node.inputs[0]].shape)
    if charge.lif is not None:
        value += terms.per_spike * np.prod(graph.lif_layers[charge.lif].shape)
    return float(terms.once + graph.T * (terms.per_step + value))


@pytest.mark.parametrize(
    ("options", "operations", "macs"),
    [  # TSER, Table 4: 2.23 G and 12.2 M; 1.26 G and 274.2 M
        ({"name": "resnet18"}, 2_229_051_792, 12_198_288),
        ({"name": "vgg16"}, 1_257_914_768, 274_235_792),
        ({"name": "vgg16", "pool": "max"}, 1_257_914_768, 9_551_872),
    ],
)
def test_tser_compat_gives_the_totals_of_table_4(options: dict[str, str], operations: int, macs: int) -> None:
    graph, origin = lowered(NetConfig(**options, **CIFAR100))
    charges = CONVENTIONS["tser_compat"].charges(graph, origin, CMOS)
    found = {key: sum(full(graph, charge, key) for charge in charges) for key in ("acs", "macs")}
    assert found["macs"] == macs
    assert found["acs"] + found["macs"] == pytest.approx(operations, abs=0.5)


EXPORTED = sorted(set(NETWORKS) - {"resnet19_ckd"})  # its last block has a ReLU


@pytest.mark.parametrize("name", EXPORTED)
def test_tser_compat_counts_every_layer_as_trains_own_counting(name: str) -> None:
    config = NetConfig(name=name, width=0.125, **CIFAR100)
    graph, origin = lowered(config)
    charges = CONVENTIONS["tser_compat"].charges(graph, origin, CMOS)
    counted = {key: sum(full(graph, charge, key) for charge in charges) for key in ("acs", "macs")}
    wanted = count_operations(config)
    assert counted["macs"] == wanted.macs
    assert sum(counted.values()) == pytest.approx(wanted.operations, rel=1e-12)
    assert 4 * sum(charge.ann.macs for charge in charges) == wanted.operations  # one step, and all MACs
    assert sum(charge.ann.acs for charge in charges) == 0


def test_folding_takes_the_normalisations_away_and_leaves_a_bias() -> None:
    graph, origin = lowered(NetConfig(name="resnet18", **CIFAR100))
    ann, spiking = (
        {name: reader(CONVENTIONS[name].charges(graph, origin, CMOS)) for name in ("tser_compat", "bn_fused")}
        for reader in (
            lambda charges: sum(charge.ann.macs for charge in charges),
            lambda charges: sum(full(graph, charge, "macs") for charge in charges),
        )
    )
    values = 614_400  # that are normalised, each by a convolution without a bias
    assert ann["tser_compat"] - ann["bn_fused"] == 2 * values - values
    assert spiking["tser_compat"] - spiking["bn_fused"] == 4 * (2 * values - 64 * 32 * 32)  # the stem's bias is a MAC
    graph, origin = lowered(NetConfig(name="vgg16", **CIFAR100))  # its convolutions have biases anyway
    of_vgg = [sum(x.ann.macs for x in CONVENTIONS[name].charges(graph, origin, CMOS)) for name in ann]
    assert of_vgg[0] - of_vgg[1] == 2 * 276_480


@pytest.mark.parametrize("name", CONVENTIONS)
def test_totals_are_of_layers_and_steps_and_no_charge_is_negative(name: str) -> None:
    graph = every_node(T=3)
    origin = Origin(biased=frozenset({"stem.conv"}), normalised=frozenset({"block.conv1", "spikes.conv"}))
    content = report(graph, dyadic_images(graph, batch=3), named={}, chip=CMOS, origin=origin)
    (entry,) = (entry for entry in content["conventions"] if entry["name"] == name)
    total, prices = entry["per_image"], entry["prices"]
    for key in ("acs", "macs", "accesses", "energy_J"):
        assert sum(layer[key] for layer in entry["layers"]) == pytest.approx(total[key], rel=1e-12)
        assert sum(step[key] for step in entry["per_step"]) == pytest.approx(total[key], rel=1e-12)
        assert all(layer[key] >= 0 for layer in entry["layers"])
    assert sum(layer["ann_energy_J"] for layer in entry["layers"]) == pytest.approx(total["ann"]["energy_J"])
    assert total["ratio"] == pytest.approx(total["energy_J"] / total["ann"]["energy_J"])
    arithmetic = total["acs"] * prices["ac"]["value"] + total["macs"] * prices["mac"]["value"]
    if name == "memory_aware":
        assert total["energy_J"] > arithmetic > 0
        assert total["accesses"] > total["acs"]
    else:
        assert total["energy_J"] == pytest.approx(arithmetic, rel=1e-12)
        assert total["accesses"] == total["ann"]["accesses"] == 0
    assert entry["verdict"].startswith("Favourable" if total["ratio"] < 1 else "Not favourable")


def test_tser_compat_charges_by_the_rate_of_the_input() -> None:
    graph = every_node(T=3)
    counts = count(graph, dyadic_images(graph, batch=2))
    origin = Origin(biased=frozenset({"block.conv1"}), normalised=frozenset({"block.conv2"}))
    spent = {x.name: evaluate(x, counts) for x in CONVENTIONS["tser_compat"].charges(graph, origin, CMOS)}
    rate = counts.synapses[2].nonzero / np.prod(graph["hold.lif"].shape)
    assert counts.synapses[2].name == "block.conv1"
    kernel = 6 * 5 * 7 * (2 * 3 * 2 + 1)  # outputs, times the weights of one and its bias
    np.testing.assert_allclose(spent["block.conv1"].acs, kernel * rate, rtol=1e-12)
    np.testing.assert_array_equal(spent["block.conv1"].macs, np.zeros((3, 2)))
    np.testing.assert_array_equal(spent["block.conv2"].macs, np.full((3, 2), 2 * 6 * 5 * 7))  # the normalisation
    np.testing.assert_array_equal(spent["stem.conv"].macs, np.full((3, 2), 4 * 10 * 8 * 2 * 9))  # at every step
    np.testing.assert_array_equal(spent["spikes.conv"].macs, np.full((3, 2), 4 * 5 * 7 * 6 * 9))  # sums of spikes
    np.testing.assert_array_equal(spent["stem.lif"].acs, np.full((3, 2), 4 * 10 * 8))
    (avg,) = (neurons.spikes for neurons in counts.neurons if neurons.name == "avg.lif")
    np.testing.assert_array_equal(spent["max"].acs, avg)  # a pooling reads each spike once
    assert not any("add" in name for name in spent)


def pooled_twice(*, read: bool) -> g.Graph:
    """Spikes that are pooled by their maximum, and again; `read`: a convolution reads what the first pooling gives."""
    m = Maker(rng=np.random.default_rng(0), lif={"tau": 2.0, "decay_input": True, "v_reset": 0.0, "v_threshold": 0.5})
    m.image(1, 8, 8)
    m.conv("conv", 2)
    m.spike("lif")
    m.pool(g.MaxPool, "first", (2, 2))
    m.pool(g.MaxPool, "second", (2, 2))
    m.features(g.Flatten, "flat")
    m.dense("classifier", 3)
    nodes = list(m.nodes)
    if read:
        m.nodes = nodes[:4]
        m.conv("side", 1)
        m.nodes.append(g.LIF(name="side.lif", inputs=("side",), shape=(1, 4, 4), **m.lif))
        nodes = [*m.nodes, *nodes[4:]]
    return g.Graph(nodes=tuple(nodes), T=2)


@pytest.mark.parametrize("name", ["tser_compat", "bn_fused"])
def test_a_pooling_whose_spikes_nobody_observes_is_refused_by_name(name: str) -> None:
    with pytest.raises(CannotCount, match=r"^second: it pools the spikes of first, .* their rate is not observed"):
        CONVENTIONS[name].charges(pooled_twice(read=False), PLAIN, CMOS)
    graph = pooled_twice(read=True)
    counts = count(graph, dyadic_images(graph, batch=2))
    spent = {x.name: evaluate(x, counts) for x in CONVENTIONS[name].charges(graph, PLAIN, CMOS)}
    (side,) = (layer.nonzero for layer in counts.synapses if layer.name == "side")
    np.testing.assert_array_equal(spent["second"].acs, side)
    assert side.any()


def test_a_convention_that_cannot_count_is_left_out_and_the_others_stay() -> None:
    graph = pooled_twice(read=False)
    content = report(graph, dyadic_images(graph, batch=2), named={}, chip=CMOS, origin=PLAIN)
    entries = {entry["name"]: entry for entry in content["conventions"]}
    assert list(entries) == list(CONVENTIONS) == ["tser_compat", "bn_fused", "event_exact", "memory_aware"]
    for name, entry in entries.items():
        assert ("unavailable" in entry) == (name in ("tser_compat", "bn_fused"))
        assert ("per_image" in entry) == ("unavailable" not in entry)
    assert entries["tser_compat"]["unavailable"].startswith("second: ")


def test_without_the_origin_normalisations_are_not_guessed() -> None:
    graph = every_node(T=2)
    content = report(graph, dyadic_images(graph, batch=1), named={}, chip=CMOS)
    left_out = {entry["name"]: entry["unavailable"] for entry in content["conventions"] if "unavailable" in entry}
    assert left_out.keys() == {"tser_compat", "bn_fused"}
    assert all(why.startswith("stem.conv: whether it had a bias and a batch norm") for why in left_out.values())


@pytest.mark.parametrize("convention", CONVENTIONS.values(), ids=lambda convention: convention.name)
def test_every_convention_says_what_it_counts_where_it_is_from_and_what_it_does_not_see(convention: Any) -> None:
    assert convention.says.count(". ") == 0
    assert convention.says.endswith(".")
    assert convention.rules == inspect.getdoc(convention.charges)
    assert len(convention.rules) > 200
    assert convention.source
    assert convention.blind_spots
    assert all(CMOS[key].unit == "J" and CMOS[key].source for key in convention.prices().values())


@pytest.mark.parametrize(
    ("values", "pJ"),
    [(0, 0), (1024, 5), (2048, 10), (5120, 15), (8192, 20), (135_168, 60), (262_144, 100), (10**7, 100)],
)
def test_an_access_costs_by_the_memory_that_holds_the_tensor(values: int, pJ: float) -> None:
    assert Memory.of(CMOS).access(values) == pytest.approx(pJ * 1e-12, rel=1e-12)


def two_layers(*, tau: float = 2.0) -> g.Graph:
    """An image 1 x 2 x 2, a convolution 3 x 3 of 2 channels with a bias, 8 neurons that all fire, 3 logits; T = 2."""
    m = Maker(
        rng=np.random.default_rng(0),
        lif={"tau": tau, "decay_input": False, "v_reset": 0.0, "v_threshold": -1e9},
    )
    m.image(1, 2, 2)
    m.conv("conv", 2)
    m.spike("lif")
    m.features(g.Flatten, "flat")
    m.dense("classifier", 3)
    bias = [dataclasses.replace(node, bias=np.ones_like(node.bias)) for node in m.nodes if "bias" in vars(node)]
    return g.Graph(nodes=tuple(m.nodes), T=2).replace(*bias)


def test_memory_aware_prices_two_layers_as_by_hand() -> None:
    """In pJ; a value is 4 bytes, and below 8 KiB an access costs 10 pJ * bytes / 8192."""
    graph = two_layers()
    content = report(graph, np.full((1, 1, 2, 2), 0.5, np.float32), named={}, chip=CMOS)
    entry = next(entry for entry in content["conventions"] if entry["name"] == "memory_aware")
    layers = {layer["name"]: layer for layer in entry["layers"]}
    word = 4 * 10 / 8192  # one access to a memory of one value
    # The image is seen once: 2 outputs x 2 x 2 of them see 4 pixels each, 32 MACs; 8 biases; addresses 4 + 8 + 2 * 9.
    # It reads 32 pixels (of 4), 32 weights and 8 biases (of 20), and writes 8 outputs (of 8).
    conv = 32 * 3.2 + (8 + 4 + 8 + 18) * 0.1 + (32 * 4 + (32 + 8) * 20 + 8 * 8) * word
    assert (layers["conv"]["acs"], layers["conv"]["macs"], layers["conv"]["accesses"]) == (38, 32, 80)
    assert layers["conv"]["energy_J"] == layers["conv"]["ann_energy_J"] == pytest.approx(conv * 1e-12, rel=1e-12)
    # 2 steps x 8 neurons: a MAC for the leak; the current is read, the membrane read and written; 16 spikes reset and
    # are written.
    lif = 16 * 3.2 + 16 * 0.1 + (16 * 3 + 16) * 8 * word
    assert (layers["lif"]["acs"], layers["lif"]["macs"], layers["lif"]["accesses"]) == (16, 16, 64)
    assert layers["lif"]["energy_J"] == pytest.approx(lif * 1e-12, rel=1e-12)
    assert layers["lif"]["ann_energy_J"] == 0
    # 16 spikes of 8 inputs reach 3 outputs each, 48 operations: one addition each, one more for its address; 3 biases
    # a step. 16 reads of the input (of 8), 48 weights and 6 biases (of 27), 48 sums read and written (of 3).
    dense = (48 + 48 + 6) * 0.1 + (16 * 8 + (48 + 6) * 27 + 96 * 3) * word
    assert (layers["classifier"]["acs"], layers["classifier"]["macs"]) == (102, 0)
    assert layers["classifier"]["accesses"] == 16 + 54 + 96
    assert layers["classifier"]["energy_J"] == pytest.approx(dense * 1e-12, rel=1e-12)
    # The ANN: 24 MACs, 3 biases, addresses 8 + 3; 8 inputs, 24 weights and 3 biases read, 3 outputs written.
    ann = 24 * 3.2 + (3 + 11) * 0.1 + (8 * 8 + 27 * 27 + 3 * 3) * word
    assert layers["classifier"]["ann_energy_J"] == pytest.approx(ann * 1e-12, rel=1e-12)
    assert entry["per_image"]["energy_J"] == pytest.approx((conv + lif + dense) * 1e-12, rel=1e-12)


def test_memory_aware_leaks_by_a_mac_and_follows_true_fan_out() -> None:
    leaking, keeping = (
        {x.name: x for x in CONVENTIONS["memory_aware"].charges(two_layers(tau=tau), None, CMOS)}
        for tau in (2.0, float("inf"))
    )
    assert (leaking["lif"].macs.per_step, keeping["lif"].macs.per_step) == (8, 0)
    graph = every_node(T=2)
    counts = count(graph, dyadic_images(graph, batch=2))
    charges = {x.name: x for x in CONVENTIONS["memory_aware"].charges(graph, None, CMOS)}
    sops = {layer.name: layer.sops for layer in counts.synapses}
    outputs = {layer.name: layer.outputs for layer in counts.synapses}
    for name, graded in (("block.conv2", False), ("spikes.conv", True)):
        spent, (layer,) = evaluate(charges[name], counts), [x for x in counts.synapses if x.name == name]
        np.testing.assert_array_equal(spent.acs, sops[name] * (2 - graded) + outputs[name])
        np.testing.assert_array_equal(spent.macs, sops[name] * graded + 2 * layer.nonzero)
        np.testing.assert_array_equal(spent.accesses, layer.nonzero + 3 * sops[name] + outputs[name])
    np.testing.assert_array_equal(evaluate(charges["hold.add"], counts).accesses, np.full((2, 2), 3 * 4 * 10 * 8))
    np.testing.assert_array_equal(evaluate(charges["avg"], counts).acs, np.full((2, 2), 4 * 5 * 7))
