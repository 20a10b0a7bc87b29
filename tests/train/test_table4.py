"""The energies of the paper's Table 4: its arithmetic, the recount of its networks, and what is counted of students."""

import json
import subprocess
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.conventions import CONVENTIONS
from export.conventions_origin import origin_of
from export.conventions_terms import Charge
from export.counts import spike_driven
from export.graph import Graph
from export.lower import lower_network
from hardware import chip
from train import reproduce
from train.checkpoint import Preprocess
from train.config import NetConfig
from train.experiments import table4, table4_report, table4_students, table4_work
from train.experiments.paper import EXPERIMENTS
from train.experiments.table4 import AC_J, MAC_J, ROWS, Printed, Row, agrees, impossible
from train.experiments.table4_work import work
from train.networks import build
from train.reproduce import ReproduceConfig


CMOS = chip.load("cmos45nm")
SMALL: dict[str, Any] = {"width": 0.125, "T": 4, "in_channels": 3, "size": 32, "num_classes": 100}


def test_the_prices_are_those_of_the_chip() -> None:
    assert float(AC_J) == CMOS["energy.ac_fp32"].value
    assert float(MAC_J) == CMOS["energy.mac_fp32"].value


def test_four_rows_of_the_paper_contradict_their_counts() -> None:
    # by hand: 0.9 x 159.96 + 4.6 x 274.2 = 1405.284 uJ is 1.41 mJ, not 1.40, and so on
    wrong = [(row.network, row.method) for row in ROWS if not agrees(row)]
    assert wrong == [("vgg16", method) for method in ("Vanilla", "KDSNN", "LaSNN", "BKDSNN")]
    found = {(row["network"], row["method"]): row for row in table4.content()["rows"]}
    assert found["vgg16", "Vanilla"]["computed_J"] == pytest.approx(1405.284e-6, rel=1e-12)
    assert found["resnet18", "TSER"]["computed_J"] == pytest.approx(421.502e-6, rel=1e-12)
    # 0.005 M ACs and 0.05 M MACs either way
    assert found["vgg16", "Vanilla"]["least_J"] == pytest.approx((1405.284 - 0.0045 - 0.23) * 1e-6, rel=1e-12)


def test_the_order_of_the_vgg_rows_is_impossible() -> None:
    pairs = {(one.network, one.method, other.method) for one, other in impossible()}
    assert pairs == {
        ("vgg16", one, other)
        for one, others in {
            "LaSNN": ("Vanilla", "KDSNN", "BKDSNN"),
            "Vanilla": ("KDSNN",),
            "TSER": ("KDSNN", "BKDSNN"),
        }.items()
        for other in others
    }


def rounded(value: Decimal, step: str) -> str:
    return str(value.quantize(Decimal(step), ROUND_HALF_UP))


counts = st.decimals(1, 2000, places=4)


@given(acs=st.lists(counts, min_size=2, max_size=4), macs=counts, off=st.integers(-40, 40))
def test_a_table_that_was_computed_agrees_and_one_that_was_not_does_not(
    acs: list[Decimal], macs: Decimal, off: int
) -> None:
    def row(method: str, count: Decimal) -> Row:
        energy = rounded((AC_J * count + MAC_J * macs) * 10**9, "0.01")  # M x J in mJ
        printed = Printed(rounded(count, "0.01"), "1e6"), Printed(rounded(macs, "0.1"), "1e6"), Printed(energy, "1e-3")
        return Row("net", method, *printed)

    rows = tuple(row(f"method {i}", count) for i, count in enumerate(acs))
    assert all(agrees(r) for r in rows)
    assert impossible(rows) == []
    moved = replace(rows[0], energy=Printed(str(Decimal(rows[0].energy.digits) + off * Decimal("0.01")), "1e-3"))
    if off == 0 or abs(off) > 1:  # 0.01 away may round to the same
        assert agrees(moved) == (off == 0)


def lowered(config: NetConfig) -> tuple[Graph, Any]:
    network = build(config).eval()
    graph = lower_network(network, Preprocess(mean=(0.5,) * 3, std=(0.25,) * 3, size=32))
    return graph, origin_of(network, graph)


def at_rate(graph: Graph, charge: Charge, key: str, rate: float) -> float:
    """A quantity of one layer over all steps, with this part of all values spiking."""
    terms, value = getattr(charge, key), 0.0
    if charge.synapse is not None:
        shape = graph[spike_driven(graph)[charge.synapse].inputs[0]].shape
        value += terms.per_nonzero * shape[0] * (shape[1] * shape[2] if len(shape) > 1 else 1)
    if charge.lif is not None:
        shape = graph.lif_layers[charge.lif].shape
        value += terms.per_spike * shape[0] * shape[1] * shape[2]
    return float(terms.once + graph.T * (terms.per_step + rate * value))


NETS: list[dict[str, Any]] = [
    *({"name": name} for name in ("vgg_small", "vgg16", "resnet18", "sew_resnet18")),
    {"name": "vgg16", "pool": "max"},
]


@pytest.mark.parametrize("options", NETS, ids=lambda o: " ".join(o.values()))
def test_the_recount_is_that_of_export(options: dict[str, Any]) -> None:
    """Two programs: one walks the modules on the meta device, the other an exported graph."""
    config = NetConfig(**options, **SMALL)
    graph, origin = lowered(config)
    for name in ("tser_compat", "bn_fused"):
        charges = CONVENTIONS[name].charges(graph, origin, CMOS)
        found = work(config, name)
        assert found.macs == sum(at_rate(graph, charge, "macs", 0.25) for charge in charges)
        acs = sum(at_rate(graph, charge, "acs", 0.25) for charge in charges)
        assert 0.25 * (found.spiking + found.after_max) + found.neurons == pytest.approx(acs, rel=1e-12)
        assert found.ann_macs == sum(charge.ann.macs for charge in charges)
        assert found.after_average == 0
    exact, charges = work(config, "event_exact"), CONVENTIONS["event_exact"].charges(graph, origin, CMOS)
    static, *driven = charges
    assert exact.macs == static.macs.once
    assert exact.ann_macs == sum(charge.ann.macs for charge in charges)
    graded = sum(charge.ann.macs for charge in driven if charge.macs.per_tap)
    assert exact.after_average == 4 * graded
    assert exact.spiking + exact.after_max == 4 * sum(charge.ann.macs for charge in driven if charge.acs.per_tap)


def test_max_pooling_moves_what_averages_multiplied_and_adds_nothing() -> None:
    average, highest = (NetConfig(name="vgg16", pool=pool, **SMALL) for pool in ("avg", "max"))
    for name in table4_work.CONVENTIONS:
        one, other = work(average, name), work(highest, name)
        assert one.operations == other.operations
        assert other.after_max == one.macs + one.after_average - other.macs > 0
        assert other.after_average == one.after_max == 0


def test_the_rate_gives_back_the_counts_of_the_paper() -> None:
    found = {(n["network"], n["pool"]): n for n in table4_work.content()}
    assert found["resnet18", "avg"]["rate"] == pytest.approx(0.1823, abs=5e-5)
    assert found["vgg16", "avg"]["rate"] == pytest.approx(0.16265, abs=5e-6)
    energy = {key: {c["name"]: (c["least_J"], c["most_J"]) for c in n["conventions"]} for key, n in found.items()}
    for network in ("resnet18", "vgg16"):
        low, high = energy[network, "avg"]["tser_compat"]
        assert low == high
        assert found[network, "avg"]["paper"]["operations"]["agrees"]
        assert found[network, "avg"]["paper"]["macs"]["agrees"]
        assert table4.row_of(network, "TSER").energy.holds(Decimal(low), Decimal(high))
    assert found["vgg16", "max"]["paper"] is None
    for name in ("tser_compat", "bn_fused"):  # the same spikes and another pooling: a quarter to a sixth
        low, high = energy["vgg16", "max"][name]
        assert 0.2e-3 < low < high < 0.4e-3
        assert energy["vgg16", "avg"][name][0] > 1.39e-3


def test_energy_grows_with_the_rate_to_that_of_all_operations() -> None:
    found = work(NetConfig(name="vgg16", pool="max", **SMALL), "tser_compat")
    low, high = found.energy_J(1.0, 4)
    assert low == high == pytest.approx(0.9e-12 * (found.operations - found.macs) + 4.6e-12 * found.macs)
    assert found.energy_J(0.0, 4)[1] < found.energy_J(0.1, 4)[0] < found.energy_J(0.1, 4)[1] < found.energy_J(0.5, 4)[0]
    with pytest.raises(ValueError, match="cannot be told apart"):
        found.rate(1e6)
    with pytest.raises(ValueError, match="'memory_aware': from shapes there are tser_compat, bn_fused, event_exact"):
        work(NetConfig(**SMALL), "memory_aware")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("table4")


def run(folder: Path, out: str = "results") -> dict[str, Any]:
    return reproduce.main(
        ReproduceConfig(
            experiment="table4",
            budget="smoke",
            seeds=1,
            only="TSER",
            out=folder / out,
            runs=folder / "runs",
            device="cpu",
        )
    )


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return run(folder)


def test_students_are_counted_in_four_conventions_by_the_command(found: dict[str, Any], folder: Path) -> None:
    assert [v["name"] for v in found["variants"]] == ["Vanilla SNN KD", "TSER"]
    assert found["complete"]
    for row in found["runs"]:
        energy = json.loads((folder / "runs" / row["folder"] / "energy.json").read_text())
        assert energy["checkpoint_sha256"] == row["student_sha256"]
        assert energy["images"]["count"] == row["energy_images"] == 256
        by_name = {entry["name"]: entry["per_image"] for entry in energy["conventions"]}
        for name in table4_students.CONVENTIONS:
            assert row[f"{name}_J"] == by_name[name]["energy_J"] > 0
            assert row["ann_J"][name] == by_name[name]["ann"]["energy_J"] > 0
        compat = 0.9e-12 * row["tser_compat_acs"] + 4.6e-12 * row["tser_compat_macs"]
        assert row["tser_compat_J"] == pytest.approx(compat, rel=1e-9)
        wanted = work(NetConfig(width=0.5), "tser_compat")  # digits, as in the smoke recipe
        assert row["tser_compat_macs"] == wanted.macs
        assert row["tser_compat_ann_macs"] == wanted.ann_macs
        assert row["ann_J"]["tser_compat"] == pytest.approx(4.6e-12 * wanted.ann_macs)


def test_a_second_call_counts_nothing_but_a_student_that_has_changed(
    found: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(Exception):
        pass

    start = subprocess.run

    def refuse(command: list[str], **options: Any) -> Any:
        if "export.energy" in command:
            raise Counting
        return start(command, **options)

    monkeypatch.chdir(folder)
    monkeypatch.setattr(subprocess, "run", refuse)
    assert run(folder, "again")["runs"] == found["runs"]
    path = folder / "runs" / found["runs"][0]["folder"] / "energy.json"
    before = path.read_text()
    path.write_text(before.replace(found["runs"][0]["student_sha256"], "0" * 64))
    with pytest.raises(Counting):
        run(folder, "again")
    path.write_text(before)


def test_a_student_that_cannot_be_counted_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"energy \S*student\.pt ended with status 2: \S*student\.pt: no such file"):
        table4_students.counted(tmp_path / "student.pt")


def test_a_convention_without_a_figure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [{"name": name, "per_image": {}} for name in table4_students.CONVENTIONS]
    entries[1] = {"name": "bn_fused", "unavailable": "pool3: no rule"}
    monkeypatch.setattr(table4_students, "counted", lambda *_: {"conventions": entries})
    with pytest.raises(ValueError, match=r"a/student\.pt has no energy by bn_fused: pool3: no rule"):
        table4_students.energies(Path("a/student.pt"), None, 0)


def test_the_tables_hold_the_paper_the_recount_and_the_students(found: dict[str, Any], folder: Path) -> None:
    text = (folder / "results/reproduce-table4-smoke.md").read_text()
    assert text == table4_report.markdown(found)
    assert json.loads((folder / "results/reproduce-table4-smoke.json").read_text()) == found
    assert (folder / "results/reproduce-table4-smoke.png").stat().st_size > 10_000
    assert text.count("| contradicts its counts |") == 4
    assert "| VGG-16 | LaSNN | 150.96 | 274.2 | 15.25 | 1.3972 | 1.41 | contradicts its counts |" in text
    assert "4 of 10 rows contradict their own counts. The order of VGG-16 is impossible" in text
    assert "| ResNet-18 | avg | `tser_compat` | 2229.052 | 12.198 | 18.23 | 0.421 | 2.563 |" in text
    row = next(row for row in found["runs"] if row["variant"] == "TSER")
    share = row["memory_aware_J"] / row["ann_J"]["memory_aware"]
    assert f" {1e6 * row['memory_aware_J']:.4g} ({share:.3f}) |" in text


def test_the_documented_tables_are_those_that_the_results_file_gives() -> None:
    root = Path(__file__).parents[2]
    found = json.loads((root / "results/reproduce-table4-short.json").read_text())
    assert found["complete"]
    assert (root / "results/reproduce-table4-short.md").read_text() == table4_report.markdown(found)
    assert found["paper"] == table4_report.paper()
    assert found["recount"] == table4_work.content()
    documented = (root / "docs/energy.md").read_text()
    text = [*table4_report.recounted(found), *table4_report.students(found)]
    rows = [line for line in text if line.startswith("| ") and not line.startswith("| |")]
    assert len(rows) == 1 + 9 + 6 + 4
    assert not [row for row in rows if row not in documented]


def test_differences_are_in_percent_of_the_baseline(found: dict[str, Any]) -> None:
    base, ours = ({row["variant"]: row for row in found["runs"]}[name] for name in ("Vanilla SNN KD", "TSER"))
    line = table4_report.differences(found)[-1]
    accuracy = 100 * (ours["accuracy"] - base["accuracy"])
    energy = [100 * (ours[f"{n}_J"] / base[f"{n}_J"] - 1) for n in table4_students.CONVENTIONS]
    assert line == f"| TSER | {accuracy:+.2f} | " + " | ".join(f"{value:+.2f}" for value in energy) + " |"


def test_at_full_budget_every_row_of_the_paper_stands_beside_its_student() -> None:
    variants = EXPERIMENTS["table4"].variants("full")
    assert [(v.config.net.name, v.paper["tser_compat_J"]) for v in variants] == [
        (row.network, float(row.energy.value)) for row in ROWS
    ]
    assert {(v.config.data.name, v.config.net.T, v.config.net.pool) for v in variants} == {("cifar100", 4, "avg")}
    methods = ["skd", "kdsnn", "lasnn", "bkdsnn", "tser"]
    assert [v.config.method.name for v in variants] == methods * 2
    assert variants[4].paper == {
        "accuracy": pytest.approx(0.7969),
        "tser_compat_acs": 405.98e6,
        "tser_compat_macs": 12.2e6,
        "tser_compat_J": 0.42e-3,
    }
    assert "accuracy" not in variants[0].paper  # Table 1 has no such row
