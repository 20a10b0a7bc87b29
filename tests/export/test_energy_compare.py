"""What a student is compared with: arithmetic on its accounts, and sentences that hide nothing unfavourable."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_graphs import dyadic_images, every_node

from export.conventions import CONVENTIONS
from export.conventions_terms import Origin
from export.energy import EnergyConfig, main, report
from export.energy_beside import Beside, Early, Teacher
from export.energy_break_even import break_even
from export.energy_compare import compare, first_steps, times, verdict, verdicts
from export.energy_view import table
from hardware import chip
from train.checkpoint import Checkpoint


CMOS = chip.load("cmos45nm")
NAMED = {"dataset": "noise", "split": "test"}
ORIGIN = Origin(biased=frozenset({"stem.conv"}), normalised=frozenset({"block.conv1"}))
# Horowitz (ISSCC 2014): additions and multiply-accumulations, joules.
PRICES = {"fp32": (0.9e-12, 4.6e-12), "int8": (0.03e-12, 0.23e-12), "int32": (0.1e-12, 3.2e-12)}
TEACHER = Teacher(
    net="wide",
    sha256="0" * 64,
    taught=True,
    accuracy=0.9,
    conventions={
        "tser_compat": {"acs": 0.0, "macs": 1e6, "access_J": 0.0},
        "bn_fused": "layer: it has no rule",
        "event_exact": {"acs": 10.0, "macs": 2e6, "access_J": 0.0},
        "memory_aware": {"acs": 5.0, "macs": 1e6, "access_J": 1e-6},
    },
)
EARLY = {
    "fp32": Early(mean_steps=1.5, accuracy=0.8, accuracy_of_all=0.82, source="here"),
    "int8": Early(mean_steps=2.0, accuracy=0.7, accuracy_of_all=0.72, source="here"),
}


@pytest.fixture(scope="module")
def energy() -> dict[str, Any]:
    graph = every_node(T=3)
    beside = Beside(teacher=TEACHER, early=EARLY, accuracy=0.83, accuracy_by_T=(0.7, 0.8, 0.83))
    return report(graph, dyadic_images(graph, batch=2), named={}, chip=CMOS, origin=ORIGIN, beside=beside)


def rows_of(content: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["what"], row["precision"]): row for row in content["comparison"]["rows"]}


def entry_of(content: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in content["conventions"] if entry["name"] == name)


@pytest.mark.parametrize("precision", PRICES)
def test_every_network_is_priced_by_the_operations_of_its_convention(energy: dict[str, Any], precision: str) -> None:
    ac, mac = PRICES[precision]
    rows = rows_of(energy)
    names = {"memory_aware"} if precision == "int32" else {"tser_compat", "bn_fused", "event_exact"}
    for what in ("ann", "snn"):
        assert rows[what, precision]["energy_J"].keys() == names
        for name, found in rows[what, precision]["energy_J"].items():
            total = entry_of(energy, name)["per_image"]
            done = total["ann"] if what == "ann" else total
            memory = done["access_J"] if name == "memory_aware" else 0.0
            assert (memory > 0) == (name == "memory_aware")
            assert found == pytest.approx(done["acs"] * ac + done["macs"] * mac + memory, rel=1e-12)
    teacher = rows["teacher", precision]["energy_J"]
    assert teacher.keys() == names - {"bn_fused"}
    for name, found in teacher.items():
        done = TEACHER.conventions[name]
        assert not isinstance(done, str)
        assert found == pytest.approx(done["acs"] * ac + done["macs"] * mac + done["access_J"], rel=1e-12)


def test_rows_in_the_conventions_own_precision_are_the_conventions_joules(energy: dict[str, Any]) -> None:
    rows = rows_of(energy)
    for name in CONVENTIONS:
        precision = "int32" if name == "memory_aware" else "fp32"
        total = entry_of(energy, name)["per_image"]
        assert rows["snn", precision]["energy_J"][name] == pytest.approx(total["energy_J"], rel=1e-12)
        assert rows["ann", precision]["energy_J"][name] == pytest.approx(total["ann"]["energy_J"], rel=1e-12)


def test_stopping_early_is_charged_its_steps_by_precision(energy: dict[str, Any]) -> None:
    rows = rows_of(energy)
    steps = [step["energy_J"] for step in entry_of(energy, "event_exact")["per_step"]]
    assert rows["early", "fp32"]["energy_J"]["event_exact"] == pytest.approx(steps[0] + steps[1] / 2, rel=1e-12)
    assert rows["early", "int8"]["mean_steps"] == 2.0
    assert (rows["early", "int8"]["accuracy"], rows["snn", "int8"]["accuracy"]) == (0.7, 0.72)
    memory = [step["energy_J"] for step in entry_of(energy, "memory_aware")["per_step"]]
    assert rows["early", "int32"]["energy_J"]["memory_aware"] == pytest.approx(memory[0] + memory[1] / 2, rel=1e-12)


@given(steps=st.floats(1, 4), done=st.lists(st.floats(0, 1e6), min_size=4, max_size=4))
def test_first_steps_grow_from_the_first_step_to_all_of_them(steps: float, done: list[float]) -> None:
    per_step = [{"acs": value, "macs": 2 * value, "access_J": 0.0} for value in done]
    found = first_steps(per_step, steps)["acs"]
    assert done[0] <= found <= sum(done) + 1e-6
    whole = int(steps)
    assert found == pytest.approx(float(np.interp(steps, range(1, 5), np.cumsum(done))), abs=1e-6)
    assert first_steps(per_step, whole)["macs"] == pytest.approx(2 * sum(done[:whole]), abs=1e-6)


def test_ratios_are_those_of_the_rows_and_int8_is_held_against_no_fp32(energy: dict[str, Any]) -> None:
    rows = rows_of(energy)
    ratios = energy["comparison"]["ratios"]
    for entry in ratios:
        mine = rows[entry["what"], entry["precision"]]["energy_J"][entry["convention"]]
        other = rows[entry["against"], entry["against_precision"]]["energy_J"][entry["convention"]]
        assert entry["ratio"] == pytest.approx(mine / other, rel=1e-12)
    pairs = {(entry["precision"], entry["against_precision"]) for entry in ratios}
    assert pairs == {("fp32", "fp32"), ("fp32", "int8"), ("int8", "int8"), ("int32", "int32")}


def test_what_is_missing_is_named_with_the_reason(energy: dict[str, Any]) -> None:
    missing = {entry["what"]: entry["reason"] for entry in energy["comparison"]["left_out"]}
    assert missing.keys() == {"memory_aware in fp32", "memory_aware in int8", "the teacher by bn_fused"}
    graph = every_node(T=2)
    alone = report(graph, dyadic_images(graph, batch=1), named=NAMED, chip=CMOS)
    reasons = {entry["what"]: entry["reason"] for entry in alone["comparison"]["left_out"]}
    assert {"tser_compat", "bn_fused", "the teacher", "stopping early"} <= reasons.keys()
    assert all(reasons.values())
    assert {row["what"] for row in alone["comparison"]["rows"]} == {"ann", "snn"}
    assert "left out: the teacher: no teacher was given" in table(alone)


def entry(ratio: float, **changes: str) -> dict[str, Any]:
    named = {"what": "snn", "precision": "fp32", "against": "ann", "against_precision": "fp32", "convention": "c"}
    return {**named, **changes, "ratio": ratio}


def test_the_verdict_counts_and_names_best_and_worst() -> None:
    mixed = [entry(0.2), entry(3.1, against_precision="int8"), entry(0.01, what="early"), entry(1.0, against="teacher")]
    assert verdict(mixed) == (
        "Mixed: the SNN with all its steps costs less in 1 of 3 comparisons; at best 0.2 times what its own ANN costs"
        " in fp32 (c, SNN in fp32), at worst 3.1 times what its own ANN costs in int8 (c, SNN in fp32)."
    )
    assert verdict([entry(0.2)]).startswith("Favourable: ")
    assert verdict([entry(1.0), entry(2.0)]).startswith("Not favourable: the SNN with all its steps costs less in 0 of")
    assert verdict([]).startswith("No verdict")


def test_there_is_a_sentence_against_each_alternative(energy: dict[str, Any]) -> None:
    found, sentences = energy["comparison"], energy["comparison"]["verdicts"]
    others = [row for row in found["rows"] if row["what"] in ("ann", "teacher")]
    assert len(sentences) == len(others) == 6
    against = next(text for text in sentences if text.startswith("Against its own ANN in int8, the SNN costs "))
    for precision in ("fp32", "int8"):
        pair = (precision, "ann", "int8")
        key = ("precision", "against", "against_precision")
        of = [r["ratio"] for r in found["ratios"] if tuple(r[k] for k in key) == pair and r["what"] == "snn"]
        assert f"{times(of)} in {precision}" in against
    assert "after 1.50 of 3 steps" in against
    assert max(r["ratio"] for r in found["ratios"]) > 1  # this one has something unfavourable to say
    assert "costs less in" in found["verdict"]


def test_a_range_is_said_once_where_its_ends_read_the_same() -> None:
    assert times([0.25, 0.15]) == "0.15 to 0.25 times as much"
    assert times([3.1001, 3.0999]) == "3.1 times as much"


def test_an_alternative_that_no_convention_prices_has_no_sentence() -> None:
    rows = [{"what": "ann", "precision": "fp32", "energy_J": {"c": 1.0}}]
    assert verdicts(rows, [], T=4) == []


@pytest.mark.parametrize(
    ("T", "rate", "bits", "covered", "below"),
    [
        (4, 0.18, 3, [False, False], [False, False]),
        (5, 0.06, 3, [True, True], [True, False]),
        (7, 0.05, 3, [True, False], [True, True]),
        (8, 0.064, 4, [True, False], [False, False]),
        (16, 0.01, 5, [False, False], [True, True]),
    ],
)
def test_break_even_quotes_the_paper_and_says_where_it_does_not_reach(
    T: int, rate: float, bits: int, covered: list[bool], below: list[bool]
) -> None:
    found = break_even(T=T, spike_rate=rate)
    assert (found["qnn_bits"], [entry["rate"] for entry in found["published"]]) == (bits, [0.064, 0.057])
    assert [entry["covers_this_T"] for entry in found["published"]] == covered
    assert [entry["below"] for entry in found["published"]] == below
    assert found["says"].count("outside of that range") == covered.count(False)
    assert found["says"].count("not below") == below.count(False)
    assert all("2409.08290" in entry["source"] for entry in found["published"])


def test_the_spike_rate_is_spikes_per_neuron_and_step(energy: dict[str, Any]) -> None:
    layers = energy["lif_layers"]
    spikes, neurons = (sum(layer[key] for layer in layers) for key in ("spikes", "neurons"))
    assert energy["break_even"]["spike_rate"] == pytest.approx(spikes / neurons / 3, rel=1e-12)


def test_chips_get_the_events_that_were_counted(energy: dict[str, Any]) -> None:
    loihi1, loihi2 = energy["chips"]["of_the_student"]
    counts = {line["what"]: line["count"] for line in loihi1["lines"] if "count" in line}
    sops, image, active, inactive, spikes = counts.values()
    assert sops == pytest.approx(energy["per_image"]["sops"])
    assert image == energy["per_image"]["static_macs"]
    assert active + inactive == pytest.approx(energy["unpriced_per_image"]["neuron_updates"])
    assert spikes == pytest.approx(sum(layer["spikes"] for layer in energy["lif_layers"]))
    assert (loihi2["chip"], loihi2["energy_J"]) == ("loihi2", None)
    assert energy["chips"]["of_the_net_file"] == {"left_out": "no .net file was given"}


def test_the_command_compares_with_what_is_named(student: Path, tmp_path: Path) -> None:
    config = EnergyConfig(checkpoint=student, samples=4, out=tmp_path, steps=2.0)
    content = main(config).report
    rows = rows_of(content)
    assert rows["teacher", "fp32"]["accuracy"] == Checkpoint.load(student).metrics["teacher_accuracy"]
    assert rows["early", "int8"]["mean_steps"] == 2.0
    assert len(content["accuracy_by_T"]) == content["T"]
    assert (tmp_path / "energy.png").stat().st_size > 0
    printed = table(content)
    for sentence in (content["comparison"]["verdict"], *content["comparison"]["verdicts"]):
        assert sentence in printed
    assert json.loads((tmp_path / "energy.json").read_text())["comparison"] == content["comparison"]


def test_compare_takes_what_energy_json_holds(energy: dict[str, Any]) -> None:
    beside = Beside(teacher=TEACHER, early=EARLY, accuracy=0.83)
    again = compare(json.loads(json.dumps(energy["conventions"])), beside, CMOS, T=3)
    assert again == energy["comparison"]
