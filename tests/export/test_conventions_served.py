"""What the server says of one image is what export counts of it, in every convention: one definition, two readers."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from chip_graphs import BLOCKS, Recipe, a_recipe, build, images_of, recipes
from hypothesis import given, settings
from onnx_runs import about, in_onnxruntime

from export import graph as g
from export.bundle import convention
from export.conventions import CONVENTIONS
from export.conventions_terms import Origin
from export.energy import report
from export.onnx_graph import build_model
from hardware import chip
from serve.energy import Account, accounts
from serve.energy_record import EnergyRecord


CMOS = chip.load("cmos45nm")


def origin_for(graph: g.Graph) -> Origin:
    """As if every second convolution had been normalised, and the others had biases."""
    names = [node.name for node in graph.synapses]
    return Origin(biased=frozenset(names[1::2]), normalised=frozenset(names[::2]))


def described(model: Any, content: dict[str, Any]) -> Any:
    """What the server reads of a bundle, as far as energy goes."""
    known, per_image = about(model), content["per_image"]
    energy = {
        "chip": content["chip"],
        "convention": content["convention"]["name"],
        "ac_J": content["prices"]["ac"]["value"],
        "mac_J": content["prices"]["mac"]["value"],
        "static_macs": per_image["static_macs"],
        "ann_macs": per_image["ann"]["macs"],
        "ann_energy_J": per_image["ann"]["energy_J"],
        "conventions": [convention(entry) for entry in content["conventions"]],
    }
    parts = {key: known[key] for key in ("synapses", "lif_layers", "lif_shapes")}
    parts["neurons"] = np.array([np.prod(shape) for shape in known["lif_shapes"]], np.int64)
    return SimpleNamespace(energy=EnergyRecord.model_validate(energy), **parts)


def agree(account: Account, entry: dict[str, Any]) -> None:
    """An account of one image that took all steps, and the report on it alone."""
    total = entry["per_image"]
    assert (account.convention, account.title, account.says) == (entry["name"], entry["title"], entry["says"])
    assert account.energy_J == pytest.approx(total["energy_J"], rel=1e-12)
    assert account.ann_energy_J == pytest.approx(total["ann"]["energy_J"], rel=1e-12)
    for layer, wanted in zip(account.layers, entry["layers"], strict=True):
        assert layer.name == wanted["name"]
        for key in ("acs", "macs", "accesses", "energy_J", "ann_energy_J"):
            assert getattr(layer, key) == pytest.approx(wanted[key], rel=1e-12), (layer.name, key)


def check(recipe: Recipe, names: set[str]) -> None:
    graph = build(recipe)
    images, origin = images_of(graph, 3).astype(np.float32), origin_for(graph)
    model = build_model(graph, labels="abc", checkpoint_sha256="0" * 64)
    outputs = in_onnxruntime(model)({"image": images})
    for i in range(len(images)):
        content = report(graph, images[i : i + 1], named={}, chip=CMOS, origin=origin)
        observed = {key: outputs[key][:, i] for key in ("taps", "nonzero", "spike_rates")}
        served = described(model, content)
        found = accounts(served, **observed)
        assert [account.convention for account in found] == list(CONVENTIONS)
        for account, entry in zip(found, content["conventions"], strict=True):
            assert account.unavailable == entry.get("unavailable")
            assert (account.unavailable is None) == (account.convention in names)
            if account.unavailable is None:
                agree(account, entry)
        for t in range(1, graph.T):
            early = accounts(served, **{key: value[:t] for key, value in observed.items()})
            for account, entry in zip(early, content["conventions"], strict=True):
                if account.unavailable is None:
                    spent = sum(step["energy_J"] for step in entry["per_step"][:t])
                    assert account.energy_J == pytest.approx(spent, rel=1e-12)


ALWAYS = tuple(block for block in BLOCKS if block not in ("max", "overlap"))


@settings(max_examples=12, deadline=None)
@given(recipe=recipes(ALWAYS))
def test_accounts_of_random_networks_are_those_of_export(recipe: Recipe) -> None:
    check(recipe, set(CONVENTIONS))


@pytest.mark.parametrize(
    "recipe",
    [
        a_recipe("overlap", "projected", "strided", "avg", head="mean"),
        a_recipe("sew", "sew_projected", head="mean", T=3),
        a_recipe("max", "residual", "nested", head="dense_residual", neuron=(3.0, False)),
        a_recipe("flipped", "conv", "avg", head="hidden", neuron=(float("inf"), False)),
    ],
    ids=lambda recipe: "+".join(recipe.blocks),
)
def test_accounts_of_residual_strided_and_pooled_networks_are_those_of_export(recipe: Recipe) -> None:
    check(recipe, set(CONVENTIONS))


def test_a_network_that_two_conventions_cannot_count_is_served_with_the_reason() -> None:
    check(a_recipe("overlap", "max", side=(8, 8), head="mean"), {"event_exact", "memory_aware"})
