"""The benchmarks run, and their tables are arithmetic on what they measured."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


ROOT = Path(__file__).parents[2]
PATIENCE_S = 240


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(script: str, *flags: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *flags]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)


def test_train_speed_measures_every_variant_that_is_asked_for(tmp_path: Path) -> None:
    sizes = ("--batch_size", "4", "--T", "2", "--size", "8", "--steps", "1", "--rounds", "1", "--teacher", "vgg_small")
    variants = ("ann", "spikingjelly", "eager", "tser")
    done = run("train_speed.py", *sizes, "--variants", *variants, "--device", "cpu", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results").iterdir()
    assert path.name == "train_speed-vgg_small-T2-b4-fp32-cpu.json"
    content = json.loads(path.read_text())
    assert list(content["rounds"][0]) == list(content["summary"]) == list(variants)
    assert all(row["seconds"] > 0 and row["peak_bytes"] > 1e8 for row in content["summary"].values())
    assert content["summary"]["ann"]["seconds_over_ann"]["median"] == 1
    assert "| eager |" in done.stdout


def test_a_variant_that_does_not_run_is_in_the_table_with_its_reason(tmp_path: Path) -> None:
    sizes = ("--batch_size", "4", "--size", "8", "--steps", "1", "--rounds", "1", "--precision", "fp16")
    done = run("train_speed.py", *sizes, "--variants", "ann", "spikingjelly", "--device", "cpu", folder=tmp_path)
    assert "error: --precision fp16 needs a GPU" in done.stdout


def test_an_unknown_variant_is_named(tmp_path: Path) -> None:
    done = run("train_speed.py", "--variants", "eagre", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown variant 'eagre'; did you mean eager?" in done.stderr


def test_ratios_are_taken_within_a_round() -> None:
    def found(seconds: float, peak: float) -> dict[str, float]:
        return {"seconds": seconds, "peak_bytes": peak}

    rounds: list[dict[str, Any]] = [
        {"ann": found(1, 10), "eager": found(4, 20)},
        {"ann": found(2, 10), "eager": found(6, 30)},
        {"ann": found(1, 10), "eager": {"error": "no"}},
    ]
    summary = load("train_speed").summarise(rounds, 8)
    assert summary["eager"]["seconds"] == 5
    assert summary["eager"]["images_per_second"] == 8 / 5
    assert summary["eager"]["seconds_over_ann"] == {"median": 3.5, "min": 3, "max": 4}
    assert summary["eager"]["peak_bytes_over_ann"]["median"] == 2.5


def test_time_to_accuracy_trains_every_seed_and_goes_on_where_it_was(tmp_path: Path) -> None:
    flags = ("--targets", "0.05", "1.0", "--seeds", "2", "--name", "tiny")
    student = ("--data.limit", "300", "--net.width", "0.25", "--optim.epochs", "2", "--teacher_epochs", "1")
    command = (*flags, "--", *student, "--device", "cpu")
    done = run("time_to_accuracy.py", *command, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "results/time_to_accuracy-tiny.json").read_text())
    assert [row["seed"] for row in content["runs"]] == [0, 1]
    assert (content["teacher"]["epochs"], content["summary"]["1.0"]["runs_that_reached_it"]) == (1, 0)
    again = run("time_to_accuracy.py", *command, folder=tmp_path)
    assert again.stdout.count("(epochs done: 2)") == 2
    assert json.loads((tmp_path / "results/time_to_accuracy-tiny.json").read_text())["runs"] == content["runs"]


@pytest.mark.parametrize(("target", "expected"), [(0.5, {"epochs": 2, "seconds": 3.0}), (0.9, None)])
def test_a_target_is_reached_in_the_first_epoch_that_has_it(target: float, expected: dict[str, float] | None) -> None:
    history = [
        {"seconds": 1.0, "val_accuracy": 0.4},
        {"seconds": 2.0, "val_accuracy": 0.6},
        {"seconds": 4.0, "val_accuracy": 0.5},
    ]
    run_json = {"history": history, "metrics": {"accuracy": 0.55, "accuracy_by_T": [0.55]}}
    row = load("time_to_accuracy").row(run_json, 0, (target,))
    assert row["reached"][str(target)] == expected
    assert (row["train_seconds"], row["epochs"]) == (7.0, 3)


def test_the_tables_and_figures_of_the_documents_are_those_of_the_results() -> None:
    document, readme = ((ROOT / name).read_text() for name in ("docs/training.md", "README.md"))
    speed, time = load("train_speed"), load("time_to_accuracy")
    results = [json.loads(path.read_text()) for path in sorted((ROOT / "results").glob("train_speed-*-cpu.json"))]
    assert len(results) == 2
    for content in results:
        assert speed.table(content) in document
        eager = content["summary"]["eager"]
        assert f"{eager['seconds_over_ann']['median']:.2f} times" in readme
        assert f"{1 / eager['seconds_over_spikingjelly']['median']:.1f}" in readme
        assert f"{eager['peak_bytes_over_spikingjelly']['median']:.2f}" in readme
    for kind, target in (("digits", "0.95"), ("cifar10-short", "0.65")):
        paths = (ROOT / "results").glob(f"time_to_accuracy-{kind}*")
        names = sorted(path.stem.removeprefix("time_to_accuracy-") for path in paths)
        assert len(names) > 1
        assert time.comparison(names, target, ROOT / "results") in document
    for name in ("digits", "digits-init_from_teacher"):
        found = json.loads((ROOT / f"results/time_to_accuracy-{name}.json").read_text())["summary"]["test_accuracy"]
        assert f"{found['mean']:.2%} +- {found['std']:.2%}".replace("%", " %") in readme


def test_the_loihi_document_says_what_was_measured() -> None:
    exactness = load("loihi_exactness")
    rows = json.loads((ROOT / "results/loihi_exactness.json").read_text())["rows"]
    assert {row["spike_mismatches"] for row in rows} == {0}
    assert {row["T"] for row in rows} == {1, 2, 3, 4, 6}
    documented = (ROOT / "docs/loihi.md").read_text()
    assert "\n".join(exactness.table(rows)) in documented
    for name in ("digits", "cifar10"):
        report = json.loads((ROOT / f"results/loihi-{name}-vgg_small.json").read_text())
        accuracy = report["accuracy"]
        measured = [accuracy[key] for key in ("float", "integer_before", "integer")]
        cells = [report["finetuned"]["epochs"], *(f"{100 * value:.2f} %" for value in measured)]
        line = f"| {name}, {accuracy['images']:,} test images | {' | '.join(map(str, cells))} |"
        assert line in documented


def test_a_student_is_exported_at_every_T_asked_for(tmp_path: Path, student: Path) -> None:
    exactness = load("loihi_exactness")
    settings = exactness.Config(
        checkpoints=(student,), T=(1, 3), samples=2, test_images=20, calibration=8, out=tmp_path, verify="reference"
    )
    rows = exactness.main(settings)
    assert [(row["T"], row["spike_mismatches"], row["samples"]) for row in rows] == [(1, 0, 2), (3, 0, 2)]
    assert rows[1]["spikes"] > rows[0]["spikes"] > 0
    assert json.loads((tmp_path / "loihi_exactness.json").read_text())["rows"] == rows
