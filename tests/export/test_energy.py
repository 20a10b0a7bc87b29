"""energy.json holds what was counted, priced as its convention says, and its sentences follow from its numbers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_graphs import dyadic_images, every_node

from export.conventions import CONVENTIONS
from export.conventions_terms import Origin, evaluate
from export.counts import count
from export.energy import EnergyConfig, report
from export.energy_account import joules, verdict
from export.energy_plot import plot
from export.energy_view import table
from hardware import chip


AC, MAC = 0.9e-12, 4.6e-12  # J, Horowitz (ISSCC 2014), 45 nm, fp32
CMOS = chip.load("cmos45nm")
NAMED = {"dataset": "noise", "split": "test", "indices": [4, 5, 6]}
ORIGIN = Origin(biased=frozenset({"stem.conv"}), normalised=frozenset({"block.conv1"}))


@pytest.fixture(scope="module")
def energy() -> dict[str, Any]:
    graph = every_node(T=3)
    return report(graph, dyadic_images(graph, batch=3), named=NAMED, chip=CMOS, origin=ORIGIN)


def test_prices_are_those_of_horowitz_with_their_source(energy: dict[str, Any]) -> None:
    assert energy["prices"]["ac"]["value"] == AC
    assert energy["prices"]["mac"]["value"] == MAC
    assert all(price["unit"] == "J" and "Horowitz" in price["source"] for price in energy["prices"].values())


def test_images_convention_and_chip_are_named(energy: dict[str, Any]) -> None:
    assert energy["images"] == {**NAMED, "count": 3}
    assert energy["chip"] == "cmos45nm"
    assert energy["convention"]["name"] == "event_exact"
    assert "not priced" in energy["convention"]["rules"]


def test_totals_are_the_sums_over_layers_and_over_steps(energy: dict[str, Any]) -> None:
    total = energy["per_image"]
    for key in ("sops", "acs", "macs", "energy_J"):
        assert sum(layer[key] for layer in energy["layers"]) == pytest.approx(total[key], rel=1e-12)
        assert sum(step[key] for step in energy["per_step"]) == pytest.approx(total[key], rel=1e-12)
    assert total["ann"]["macs"] == sum(layer["dense_macs"] for layer in energy["layers"])
    assert total["energy_J"] == pytest.approx(total["acs"] * AC + total["macs"] * MAC, rel=1e-12)
    assert total["ann"]["energy_J"] == pytest.approx(total["ann"]["macs"] * MAC, rel=1e-12)
    assert total["ratio"] == pytest.approx(total["energy_J"] / total["ann"]["energy_J"], rel=1e-12)
    assert [step["t"] for step in energy["per_step"]] == [1, 2, 3]


def test_means_over_images_are_those_of_single_images(energy: dict[str, Any]) -> None:
    graph = every_node(T=3)
    images = dyadic_images(graph, batch=3)
    singles = [report(graph, images[i : i + 1], named=NAMED, chip=CMOS)["per_image"]["energy_J"] for i in range(3)]
    assert energy["per_image"]["energy_J"] == pytest.approx(np.mean(singles), rel=1e-12)
    assert energy["per_image"]["energy_J_std"] == pytest.approx(np.std(singles), rel=1e-9)


def test_event_exact_adds_for_spikes_multiplies_for_graded_values_and_sees_the_image_once() -> None:
    graph = every_node(T=3)
    counts = count(graph, dyadic_images(graph, batch=2))
    sops = {layer.name: layer.sops for layer in counts.synapses}
    dense = {layer.name: layer.dense_macs for layer in counts.synapses}
    charges = CONVENTIONS["event_exact"].charges(graph, None, CMOS)
    assert [charge.name for charge in charges] == list(sops)
    for charge in charges:
        spent = evaluate(charge, counts)
        assert charge.ann.macs == dense[charge.name]
        assert not spent.accesses.any()
        if charge.name == "stem.conv":
            assert spent.macs.tolist() == [[dense[charge.name]] * 2, [0, 0], [0, 0]]
            assert not spent.acs.any()
        elif charge.name in ("spikes.conv", "avg.conv"):
            np.testing.assert_array_equal(spent.macs, sops[charge.name])
            assert not spent.acs.any()
        else:
            np.testing.assert_array_equal(spent.acs, sops[charge.name])
            assert not spent.macs.any()


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_convention_charges_nodes_in_order_and_leaves_the_counts_alone(name: str) -> None:
    graph = every_node(T=2)
    counts = count(graph, dyadic_images(graph, batch=2))
    before = [layer.sops.copy() for layer in counts.synapses]
    charges = CONVENTIONS[name].charges(graph, ORIGIN, CMOS)
    names = [charge.name for charge in charges]
    assert names == [node.name for node in graph if node.name in names]
    assert {node.name for node in graph.synapses} <= set(names)
    assert all(evaluate(charge, counts).acs.shape == (2, 2) for charge in charges)
    for layer, sops in zip(counts.synapses, before, strict=True):
        np.testing.assert_array_equal(layer.sops, sops)


def test_a_network_that_never_fires_costs_its_first_layer_alone() -> None:
    graph = every_node()
    silent = graph.replace(*(dataclasses.replace(lif, v_threshold=1e9) for lif in graph.lif_layers))
    content = report(silent, dyadic_images(graph, batch=2), named=NAMED, chip=CMOS)
    total = content["per_image"]
    assert total["sops"] == 0
    assert total["macs"] == total["static_macs"] == content["layers"][0]["dense_macs"]
    assert content["verdict"].startswith("Favourable")


def test_the_verdict_is_unfavourable_when_the_snn_costs_as_much_or_more() -> None:
    totals = {"energy_J": 3e-6, "ratio": 1.5, "ann": {"energy_J": 2e-6}}
    said = "Not favourable: an image costs the SNN 3 uJ and the ANN 2 uJ, a ratio of 1.5, counting all."
    assert verdict(totals, "counting all.") == said
    assert verdict({**totals, "ratio": 1.0}, "").startswith("Not favourable")
    assert verdict({**totals, "ratio": 0.99}, "").startswith("Favourable")


def test_json_table_and_plot_come_from_the_same_content(energy: dict[str, Any], tmp_path: Path) -> None:
    content = json.loads(json.dumps(energy, allow_nan=False))
    assert content == energy
    text = table(content)
    for layer in content["layers"]:
        assert f"{layer['macs']:,.0f}" in next(line for line in text.splitlines() if line.startswith(layer["name"]))
    for entry in content["conventions"]:
        line = next(line for line in text.splitlines() if line.startswith(f"{entry['name']} "))
        total = entry["per_image"]
        assert (
            line.split()[1:]
            == f"""{joules(total["energy_J"])} {joules(total["ann"]["energy_J"])}
            {total["ratio"]:.3g} {total["acs"]:,.0f} {total["macs"]:,.0f} {total["accesses"]:,.0f}""".split()
        )
        assert f"{entry['name']}: {entry['verdict']}" in text
    assert content["verdict"] == content["conventions"][2]["verdict"]
    plot(content, tmp_path / "energy.png")
    assert (tmp_path / "energy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "text"), [(4.2e-7, "420 nJ"), (9.996e-7, "1 uJ"), (0.0, "0 pJ"), (1.5, "1.5 J"), (3e-14, "0.03 pJ")]
)
def test_joules_are_readable(value: float, text: str) -> None:
    assert joules(value) == text


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="samples must be at least 1"):
        EnergyConfig(checkpoint=Path("student.pt"), samples=0)


def test_a_convention_that_is_left_out_is_said_in_the_table_and_drawn_nowhere(tmp_path: Path) -> None:
    graph = every_node(T=2)
    content = report(graph, dyadic_images(graph, batch=1), named=NAMED, chip=CMOS)
    lines = table(content).splitlines()
    assert "tser_compat   left out" in lines
    assert f"tser_compat: {content['conventions'][0]['unavailable']}" in lines
    plot(content, tmp_path / "energy.png")
    assert (tmp_path / "energy.png").stat().st_size > 0
