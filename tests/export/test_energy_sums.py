"""energy.json adds up in every view: layers, steps and images give the same totals, in every convention."""

import json
from typing import Any

import numpy as np
import pytest
from chip_graphs import BLOCKS, Recipe, a_recipe, build, images_of, recipes
from hypothesis import given, settings
from hypothesis import strategies as st

from export.conventions import CONVENTIONS
from export.conventions_terms import Origin, evaluate
from export.counts import count
from export.energy import report
from export.graph import Graph
from hardware import chip


CMOS = chip.load("cmos45nm")
SPENT = ("acs", "macs", "accesses", "energy_J")
close = pytest.approx


def origin_for(graph: Graph) -> Origin:
    """As if every second layer had been normalised, and the others had biases."""
    names = [node.name for node in graph.synapses]
    return Origin(biased=frozenset(names[1::2]), normalised=frozenset(names[::2]))


def written(graph: Graph, images: np.ndarray) -> dict[str, Any]:
    """energy.json as a reader gets it."""
    content = report(graph, images, named={}, chip=CMOS, origin=origin_for(graph))
    read: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))
    return read


def total(rows: list[dict[str, Any]], key: str) -> Any:
    return close(sum(row[key] for row in rows), rel=1e-12, abs=1e-30)


def adds_up(content: dict[str, Any]) -> None:
    """The sums within one energy.json."""
    T, whole = content["T"], content["per_image"]
    for key in ("sops", "acs", "macs", "energy_J"):
        assert whole[key] == total(content["layers"], key) == total(content["per_step"], key)
    assert whole["sops"] == close(whole["acs"] + whole["macs"] - whole["static_macs"], rel=1e-12)
    static = [layer for layer in content["layers"] if layer["input"] == "static"]
    assert whole["static_macs"] == total(static, "macs") == total(static, "dense_macs")
    assert whole["ann"]["macs"] == total(content["layers"], "dense_macs")
    assert whole["ann"]["energy_J"] == total(content["layers"], "ann_energy_J")
    for layer in content["lif_layers"]:
        assert len(layer["firing_rate"]) == T
        assert layer["spikes"] == close(sum(layer["firing_rate"]) * layer["neurons"], rel=1e-12)
        assert sum(layer["updates"].values()) == close(T * layer["neurons"], rel=1e-12)
        assert layer["spikes"] <= layer["updates"]["active"] * (1 + 1e-12)
    assert content["unpriced_per_image"]["neuron_updates"] == T * sum(x["neurons"] for x in content["lif_layers"])
    for entry in content["conventions"]:
        if "unavailable" not in entry:
            convention_adds_up(entry, T)
    exact = next(entry for entry in content["conventions"] if entry["name"] == content["convention"]["name"])
    for key in ("acs", "macs", "energy_J", "energy_J_std", "ratio"):
        assert whole[key] == exact["per_image"][key]
    for mine, theirs in (
        *zip(content["layers"], exact["layers"], strict=True),
        *zip(content["per_step"], exact["per_step"], strict=True),
    ):
        assert all(mine[key] == theirs[key] for key in ("acs", "macs", "energy_J"))


def convention_adds_up(entry: dict[str, Any], T: int) -> None:
    """The sums within one convention, and joules from operations and their prices."""
    whole, prices = entry["per_image"], {key: price["value"] for key, price in entry["prices"].items()}
    assert [step["t"] for step in entry["per_step"]] == list(range(1, T + 1))
    for key in SPENT:
        assert whole[key] == total(entry["layers"], key) == total(entry["per_step"], key)
    assert whole["ann"]["energy_J"] == total(entry["layers"], "ann_energy_J") == total(entry["charges"], "ann_energy_J")
    assert whole["ratio"] == close(whole["energy_J"] / whole["ann"]["energy_J"], rel=1e-12)
    for row in (whole, *entry["layers"], *entry["per_step"]):
        arithmetic = row["acs"] * prices["ac"] + row["macs"] * prices["mac"]
        if entry["name"] == "memory_aware":
            assert row["energy_J"] >= arithmetic * (1 - 1e-12)
        else:
            assert (row["energy_J"], row["accesses"]) == (close(arithmetic, rel=1e-12, abs=1e-30), 0)


def is_the_mean(content: dict[str, Any], singles: list[dict[str, Any]]) -> None:
    """Every figure of many images is the mean of the same figure of each alone."""

    def mean(*path: Any) -> Any:
        found = [value_at(single, path) for single in singles]
        return close(float(np.mean(found)), rel=1e-12, abs=1e-30)

    for i, entry in enumerate(content["conventions"]):
        if "unavailable" in entry:
            assert all(single["conventions"][i]["unavailable"] == entry["unavailable"] for single in singles)
            continue
        alone = [single["conventions"][i]["per_image"]["energy_J"] for single in singles]
        assert entry["per_image"]["energy_J_std"] == close(np.std(alone), rel=1e-6, abs=1e-6 * np.mean(alone))
        for key in SPENT:
            assert entry["per_image"][key] == mean("conventions", i, "per_image", key)
            for part in ("layers", "per_step"):
                for j, row in enumerate(entry[part]):
                    assert row[key] == mean("conventions", i, part, j, key)
    for part, keys in {"layers": ("sops",), "per_step": ("sops",), "lif_layers": ("spikes",)}.items():
        for j, row in enumerate(content[part]):
            assert all(row[key] == mean(part, j, key) for key in keys)


def value_at(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


@settings(max_examples=25, deadline=None)
@given(recipe=recipes(tuple(BLOCKS)), images=st.integers(1, 4))
def test_layers_steps_and_images_of_energy_json_add_up(recipe: Recipe, images: int) -> None:
    graph = build(recipe)
    given_images = images_of(graph, images).astype(np.float32)
    content = written(graph, given_images)
    singles = [written(graph, given_images[i : i + 1]) for i in range(images)]
    assert [entry["name"] for entry in content["conventions"]] == list(CONVENTIONS)
    for report_of in (content, *singles):
        adds_up(report_of)
    is_the_mean(content, singles)


@settings(max_examples=25, deadline=None)
@given(recipe=recipes(tuple(BLOCKS)))
def test_whole_operations_of_layers_steps_and_images_are_the_same_total(recipe: Recipe) -> None:
    """The counts that two conventions are made of are integers, and add up as integers whichever axis comes first."""
    graph = build(recipe)
    counts = count(graph, images_of(graph, 3).astype(np.float32), batch_size=2)
    for name in ("event_exact", "memory_aware"):
        charges = CONVENTIONS[name].charges(graph, None, CMOS)
        for key in ("acs", "macs", "accesses"):
            cube = np.stack([getattr(evaluate(charge, counts), key) for charge in charges])  # [layers, T, N]
            assert (cube == np.rint(cube)).all()
            by_layer, by_step, by_image = (cube.sum(axis=axes) for axes in ((1, 2), (0, 2), (0, 1)))
            assert by_layer.sum() == by_step.sum() == by_image.sum()
    sops = np.stack([layer.sops for layer in counts.synapses])
    spent = [evaluate(charge, counts) for charge in CONVENTIONS["event_exact"].charges(graph, None, CMOS)]
    dense = sum(layer.dense_macs for layer in counts.synapses if layer.static) * counts.num_images
    assert sum(x.acs.sum() + x.macs.sum() for x in spent) == sops.sum() + dense


def test_a_network_of_all_conventions_and_one_of_two_add_up() -> None:
    """That the random networks above reach both is not left to chance."""
    for recipe, available in (
        (a_recipe("sew", "avg", "conv", head="mean"), 4),
        (a_recipe("overlap", "max", side=(8, 8), head="mean"), 2),
    ):
        graph = build(recipe)
        content = written(graph, images_of(graph, 2).astype(np.float32))
        assert sum("unavailable" not in entry for entry in content["conventions"]) == available
        adds_up(content)
