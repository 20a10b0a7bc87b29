"""The paper's experiments as commands: what is trained, what is reported, and that nothing is trained twice."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from train import reproduce
from train.errors import exit_status
from train.experiments import embedding, running, table4_students
from train.experiments import experiment as base
from train.experiments.paper import EXPERIMENTS
from train.experiments.report import markdown
from train.experiments.running import recipe_of
from train.experiments.statistics import paired, spread
from train.reproduce import ReproduceConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reproduce")


def run(folder: Path, name: Any, **settings: Any) -> dict[str, Any]:
    return reproduce.main(
        ReproduceConfig(experiment=name, budget="smoke", out=folder / "results", runs=folder / "runs", **settings)
    )


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def table3(folder: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return run(folder, "table3", seeds=2)


def test_table_3_is_five_students_a_seed_under_one_teacher(table3: dict[str, Any], folder: Path) -> None:
    assert len(table3["runs"]) == 10
    assert len({row["teacher_sha256"] for row in table3["runs"]}) == 1
    assert len({row["student_sha256"] for row in table3["runs"]}) == 10
    assert json.loads((folder / "results/reproduce-table3-smoke.json").read_text()) == table3
    assert (folder / "results/reproduce-table3-smoke.png").stat().st_size > 10_000
    assert table3["complete"]
    assert [v["measures"]["accuracy"]["paper"] for v in table3["variants"]] == [0.7715, 0.7741, 0.7764, 0.7799, 0.7813]
    assert [v["measures"]["accuracy"]["paper_difference"] for v in table3["variants"]] == [
        None,
        *(0.0026, 0.0049, 0.0084, 0.0098),
    ]


def test_the_students_differ_in_their_method_alone(table3: dict[str, Any]) -> None:
    settings = [dict(v["settings"]) for v in table3["variants"]]
    methods = [s.pop("method") for s in settings]
    assert all(s == settings[0] for s in settings)
    named = [(m["name"], m.get("separate_ce"), m.get("separate_kl"), m.get("entropy_weight")) for m in methods]
    assert named == [
        ("skd", None, None, None),
        ("tser", True, False, 0.0),
        ("tser", False, True, 0.0),
        ("tser", True, True, 0.0),
        ("tser", True, True, 0.01),
    ]


def test_the_summary_is_that_of_the_students(table3: dict[str, Any]) -> None:
    by_name: dict[str, list[float]] = {}
    for row in table3["runs"]:
        by_name.setdefault(row["variant"], []).append(row["accuracy"])
    start = np.array(by_name["neither"])
    for v in table3["variants"]:
        values, found = np.array(by_name[v["name"]]), v["measures"]["accuracy"]
        assert np.isclose(found["mean"], values.mean())
        assert np.isclose(found["std"], values.std(ddof=1))
        if v["name"] == "neither":
            assert found["difference"] is None
        else:
            assert np.isclose(found["difference"]["mean"], (values - start).mean())


def test_the_table_shows_paper_and_ours_side_by_side(table3: dict[str, Any], folder: Path) -> None:
    text = (folder / "results/reproduce-table3-smoke.md").read_text()
    assert text == markdown(table3)
    v = table3["variants"][4]["measures"]["accuracy"]
    low, high = v["difference"]["interval"]
    cells = f"| both and entropy | 78.13 | {100 * v['mean']:.2f} ± {100 * v['std']:.2f} | +0.98 |"
    assert f"{cells} {100 * v['difference']['mean']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f}) |" in text


def test_a_second_call_trains_nothing_and_another_experiment_shares_the_students(
    table3: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("this student is there already")

    with monkeypatch.context() as patch:
        patch.setattr(running.distill, "main", refuse)
        again = run(folder, "table3", seeds=2)
        steps = run(folder, "fig2", seeds=2)
    assert again["runs"] == table3["runs"]
    of = {row["variant"]: row for row in table3["runs"] if row["seed"] == 0}
    shared = {row["variant"]: row for row in steps["runs"] if row["seed"] == 0}
    assert shared["Vanilla SNN KD"]["student_sha256"] == of["neither"]["student_sha256"]
    assert shared["TSER"]["student_sha256"] == of["both and entropy"]["student_sha256"]
    row = shared["TSER"]
    assert np.isclose(row["step_mean"], np.mean(row["accuracy_by_step"]))
    assert np.isclose(row["step_spread"], np.ptp(row["accuracy_by_step"]))


def test_an_experiment_that_was_broken_off_goes_on_and_says_what_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, calls = running.distill.main, 0

    def killed(config: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return train(config)

    with monkeypatch.context() as patch:
        patch.setattr(running.distill, "main", killed)
        with pytest.raises(KeyboardInterrupt):
            run(folder, "fig4", seeds=1)
    part = json.loads((folder / "results/reproduce-fig4-smoke.json").read_text())
    assert not part["complete"]
    assert sum(v["measures"]["accuracy"]["mean"] is not None for v in part["variants"]) == 2
    assert "Not complete yet" in markdown(part)
    whole = run(folder, "fig4", seeds=1)
    assert whole["complete"]
    assert [row["student_sha256"] for row in whole["runs"][:2]] == [row["student_sha256"] for row in part["runs"]]
    assert [v["x"] for v in whole["variants"]] == [2, 3, 4, 5, 6]


def test_fig_5_is_measured_and_drawn(folder: Path, table3: dict[str, Any]) -> None:
    found = run(folder, "fig5", seeds=1, only="TSER")
    assert [v["name"] for v in found["variants"]] == ["Vanilla SNN KD", "TSER"]  # with what it is compared to
    for row in found["runs"]:
        assert -1 <= row["silhouette"] <= 1
        assert 0.3 < row["neighbours"] <= 1
        assert np.array(row["tsne"]).shape == (359, 2)
        assert len(row["labels"]) == 359
        assert row["teacher_silhouette"] == found["runs"][0]["teacher_silhouette"]
    assert (folder / "results/reproduce-fig5-smoke.png").stat().st_size > 10_000


def test_the_data_root_that_is_given_reaches_what_is_measured(
    folder: Path, table3: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path | None] = []
    features = embedding.features

    def noted(checkpoint: Path, data_root: Path | None = None) -> Any:
        seen.append(data_root)
        return features(checkpoint, data_root)

    monkeypatch.setattr(embedding, "features", noted)
    run(folder, "fig5", seeds=1, only="TSER", data_root=tmp_path)
    assert set(seen) == {tmp_path}


def test_energies_are_counted_under_the_data_root_that_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def start(command: list[str], **_: Any) -> Any:
        asked.extend(command)
        return SimpleNamespace(returncode=2, stderr="error: enough")

    monkeypatch.setattr(table4_students.subprocess, "run", start)
    with pytest.raises(ValueError, match="ended with status 2: enough"):
        table4_students.energies(tmp_path / "student.pt", None, 0, tmp_path / "sets")
    assert asked[-2:] == ["--data_root", str(tmp_path / "sets")]


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("budget", base.BUDGETS)
def test_every_experiment_has_its_variants_at_every_budget(name: str, budget: base.Budget) -> None:
    experiment = EXPERIMENTS[name]
    variants = experiment.variants(budget)
    groups = {v.group for v in variants}
    assert len({(v.group, v.name) for v in variants}) == len(variants) >= 2
    assert all(any(v.group == g and v.name == experiment.baseline for v in variants) for g in groups)
    for g in groups:  # fair: same data, network and budget
        shared = [(v.config.data, v.config.net, v.config.optim, v.config.teacher) for v in variants if v.group == g]
        assert all(s == shared[0] for s in shared)


def test_table_1_at_full_budget_is_every_cell_of_the_paper() -> None:
    variants = EXPERIMENTS["table1"].variants("full")
    cells = {(v.group, v.name): v.paper.get("accuracy") for v in variants}
    assert len(cells) == 56
    assert cells["cifar100 resnet18 T=4", "TSER"] == pytest.approx(0.7969)
    assert cells["cifar10 resnet18 T=4", "TSER"] == pytest.approx(0.9618)
    assert cells["cifar10 vgg11 T=2", "LaSNN"] == pytest.approx(0.9023)
    assert cells["cifar100 vgg11 T=2", "TSER"] is None  # not legible
    assert all(recipe_of(v.config.teacher).out is not None for v in variants if v.config.teacher)


def test_the_interval_is_student_s(tmp_path: Path) -> None:
    ours, baseline = [0.71, 0.74, 0.70, 0.73], [0.70, 0.71, 0.70, 0.71]
    found = paired(ours, baseline)
    wanted = stats.ttest_rel(ours, baseline).confidence_interval(0.95)
    assert np.allclose(found["interval"], wanted)
    assert paired([0.5], [0.4])["interval"] is None
    assert spread([0.5]) == {"mean": 0.5, "std": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table9"], "table9"),
        (["table3", "--seeds", "0"], "seeds must be at least 1, got 0"),
        (["table3", "--budget", "long"], "long"),
        (["table3", "--budget", "smoke", "--only", "nothing"], "leaves nothing of table3; there are: neither, CE sep"),
    ],
)
def test_bad_usage_ends_with_2_and_what_is_allowed(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(lambda: reproduce.command(arguments)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["table3", "fig2"])
def test_the_documented_table_is_the_one_that_the_results_file_gives(name: str) -> None:
    root = Path(__file__).parents[2]
    found = json.loads((root / f"results/reproduce-{name}-short.json").read_text())
    assert found["complete"]
    rows = [line for line in markdown(found).splitlines() if line.startswith("| ")]
    documented = (root / "docs/methods.md").read_text()
    assert len(rows) > len(found["variants"])
    assert not [row for row in rows if row not in documented]


def test_a_teacher_that_no_recipe_makes_is_named() -> None:
    with pytest.raises(ValueError, match=r"the teacher x/teacher\.pt is not there, and no recipe"):
        recipe_of(Path("x/teacher.pt"))


def test_a_teacher_that_is_there_needs_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.pt").touch()
    config = replace(base.base("smoke"), teacher=tmp_path / "mine.pt")
    place = running.Place(runs=tmp_path)
    assert running.teacher_of(config, running.data(config.data), place) == tmp_path / "mine.pt"
