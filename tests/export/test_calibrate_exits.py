"""When a student may stop: chosen on validation images, told of test images, by the rules that the server applies."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_networks import write_checkpoint

from export import energy, exits
from export.exits import Measured, calibrate, correct, joules, report, row
from export.images import real_images
from export.lower import lower
from hardware import chip
from serve.exits import Exit, steps_needed
from train.checkpoint import Checkpoint
from train.cli import exit_status
from train.config import NetConfig


T, K = 4, 10


def student_like(count: int, *, seed: int = 0, gain: float = 1.0) -> Measured:
    """Logits of a student that is right more often, and surer, the longer it runs, and is sure where it is right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, K, count)
    ease = rng.exponential(2.0, count)  # some images are easy
    logits = rng.normal(0, 1.0, (T, count, K))
    logits[:, np.arange(count), labels] += gain * ease
    energy_J = np.cumsum(rng.uniform(1, 2, (T, count)), axis=0)
    return Measured(logits=logits, labels=labels, energy_J=energy_J, on={"images": count, "split": "test"})


def accuracy(measured: Measured, steps: np.ndarray) -> float:
    """By a loop over images."""
    right = 0
    for n, t in enumerate(steps):
        right += int(measured.logits[:t, n].sum(0).argmax() == measured.labels[n])
    return right / len(steps)


def test_a_row_is_what_a_loop_over_the_images_finds() -> None:
    measured = student_like(300)
    exit = Exit("margin", 0.6, 0.5)
    steps = steps_needed(measured.logits, exit)
    found = row(measured, exit)
    assert found["mean_steps"] == pytest.approx(np.mean(steps))
    assert found["accuracy"] == pytest.approx(accuracy(measured, steps))
    assert found["energy_J"] == pytest.approx(np.mean([measured.energy_J[t - 1, n] for n, t in enumerate(steps)]))
    assert 1 < found["mean_steps"] < T


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.sampled_from([50, 400, 3000]),
    tolerance=st.sampled_from([0.0, 0.005, 0.03]),
)
def test_the_chosen_exit_loses_no_more_than_the_tolerance(seed: int, count: int, tolerance: float) -> None:
    measured = student_like(count, seed=seed)
    exit = calibrate(measured.logits, measured.labels, tolerance=tolerance)
    full = accuracy(measured, np.full(count, T))
    assert full - accuracy(measured, steps_needed(measured.logits, exit)) <= tolerance
    if count < 2 / max(tolerance, 1e-9):
        assert exit.threshold == 1, "so few images cannot show so small a loss"


def doubtful(count: int, *, late: int, early: int) -> Measured:
    """T = 2: all images are sure and right at once, but `late` are right after the second step only and a little less
    sure after the first, `early` after the first only; one, right at once, is the least sure of all."""
    labels = np.zeros(count, int)
    first, second = np.tile([5.0, 0.0], (count, 1)), np.tile([5.0, 0.0], (count, 1))
    first[:late], second[:late] = [0.0, 2.0], [4.0, 0.0]
    first[late : late + early], second[late : late + early] = [2.0, 0.0], [0.0, 4.0]
    first[-1] = [1.0, 0.0]
    logits = np.stack([first, second])
    return Measured(logits=logits, labels=labels, energy_J=np.zeros((2, count)), on={})


@pytest.mark.parametrize(("late", "early"), [(9, 0), (5, 4), (20, 4), (0, 8)])
def test_the_loss_and_two_standard_errors_of_it_are_held_against_the_tolerance(late: int, early: int) -> None:
    count = 1000
    measured = doubtful(count, late=late, early=early)
    loss = max(0, late - early) / count
    error = math.sqrt(late + early + 1) / count
    for tolerance, wanted in (
        (loss + 2 * error + 1e-6, 1 + 1 / count),  # no sureness is greater than that of the least sure image
        (loss + 2 * error - 1e-6, 1 + (late + early + 1) / count),  # those that are sure at once, of whom none differs
        (2 / count + 1e-6, 1 + (late + early + 1) / count),
        (2 / count - 1e-6, 2.0),
    ):
        exit = calibrate(measured.logits, measured.labels, tolerance=tolerance)
        assert row(measured, exit)["mean_steps"] == pytest.approx(wanted), tolerance


def test_what_is_promised_is_kept_on_all_images_where_the_loss_that_is_seen_alone_would_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Samples of a population whose losses are known. The best of thousands of exits is also a lucky one."""
    population = student_like(30_000)
    full, tolerance = correct(population)[-1].mean(), 0.02
    draws = [np.random.default_rng(seed).integers(0, 30_000, 800) for seed in range(20)]

    def broken() -> int:
        chosen = [calibrate(population.logits[:, d], population.labels[d], tolerance=tolerance) for d in draws]
        return sum(full - row(population, exit)["accuracy"] > tolerance for exit in chosen)

    assert broken() <= 3
    monkeypatch.setattr(exits, "STANDARD_ERRORS", 0.0)
    assert broken() >= 8


def test_more_tolerance_never_takes_more_steps_and_much_data_saves_most() -> None:
    measured = student_like(5000)
    chosen = [
        calibrate(measured.logits, measured.labels, tolerance=tolerance) for tolerance in (0.002, 0.005, 0.02, 1.0)
    ]
    steps = [row(measured, exit)["mean_steps"] for exit in chosen]
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] == 1
    assert steps[1] < 3


def test_what_was_chosen_on_one_half_holds_on_the_other_within_its_error() -> None:
    apart = []
    for seed in range(12):
        validation, test = student_like(4000, seed=2 * seed), student_like(4000, seed=2 * seed + 1)
        exit = calibrate(validation.logits, validation.labels, tolerance=0.005)
        full = row(test, Exit("confidence", 1.0))["accuracy"]
        apart.append(full - row(test, exit)["accuracy"])
    assert np.mean(apart) <= 0.005
    assert np.mean(np.array(apart) <= 0.005) >= 0.75


def test_the_test_images_have_no_say_in_the_choice() -> None:
    validation = student_like(2000)
    tests = [student_like(500, seed=seed, gain=gain) for seed, gain in ((1, 1.0), (2, 0.1), (3, 9.0))]
    chosen = {(found["rule"], found["threshold"], found["relax"]) for found in (report(t, validation) for t in tests)}
    assert len(chosen) == 1


def test_the_report_has_the_chosen_row_and_ends_with_all_steps() -> None:
    validation, test = student_like(2000, seed=1), student_like(2000)
    found = report(test, validation, tolerance=0.01)
    thresholds = [entry["threshold"] for entry in found["table"]]
    assert thresholds == sorted(set(thresholds))
    assert len(thresholds) >= 10
    assert found["threshold"] in thresholds
    last = found["table"][-1]
    assert (last["threshold"], last["mean_steps"], last["val_mean_steps"]) == (1.0, T, T)
    assert last["accuracy"] == pytest.approx(accuracy(test, np.full(2000, T)))
    assert [entry["mean_steps"] for entry in found["table"]] == sorted(entry["mean_steps"] for entry in found["table"])
    json.dumps(found)


def test_without_validation_images_all_steps_are_run() -> None:
    found = report(student_like(50), None)
    assert (found["threshold"], found["calibrated_on"]) == (1.0, None)
    assert all(entry["val_accuracy"] is None for entry in found["table"])


def test_one_step_cannot_stop_earlier() -> None:
    measured = student_like(500)
    once = dataclasses.replace(measured, logits=measured.logits[:1], energy_J=measured.energy_J[:1])
    found = report(once, once)
    assert found["threshold"] == 1.0
    assert {entry["mean_steps"] for entry in found["table"]} == {1.0}


def test_joules_are_added_up_over_the_steps_by_hand() -> None:
    taps = np.array([[[1.0, 2.0]], [[3.0, 4.0]]])  # T = 2, one image, two layers
    synapses = [{"kind": "ac", "sops_per_tap": 5}, {"kind": "mac", "sops_per_tap": 7}]
    found = joules(taps, synapses, (0.5, 2.0, 11.0))
    assert found.tolist() == [[5 * 0.5 + 14 * 2 + 22], [(5 + 15) * 0.5 + (14 + 28) * 2 + 22]]


@pytest.fixture(scope="module")
def model(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle's unrolled model in a folder of its own."""
    path = tmp_path_factory.mktemp("exits") / "model.onnx"
    path.write_bytes((bundle / "model.onnx").read_bytes())
    return path


def test_the_command_writes_what_the_bundle_says_and_a_picture(
    model: Path, bundle: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(lambda: exits.command([str(student), str(model)])) == 0
    written = json.loads((model.parent / "exits.json").read_text())
    about = json.loads((bundle / "bundle.json").read_text())
    found = written["model.onnx"]
    assert exits.short(found) == about["exits"]["fp32"]
    assert (model.parent / "exits.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"* {found['threshold']:>10.4f}" in printed
    assert f"written: {model.parent / 'exits.json'}" in printed


def test_energy_of_all_steps_is_that_of_the_energy_report(model: Path, student: Path) -> None:
    checkpoint, costs = Checkpoint.load(student), chip.load("cmos45nm")
    images = real_images(checkpoint, limit=20)
    measured = exits.measure(model, images, prices=exits.prices_of(checkpoint, costs))
    counted = energy.report(lower(checkpoint), images.images, named={}, chip=costs)
    assert measured.energy_J[-1].mean() == pytest.approx(counted["per_image"]["energy_J"], rel=1e-6)
    assert (np.diff(measured.energy_J, axis=0) > 0).all()


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("step.onnx", [], "exits are measured on an unrolled model"),
        ("model.onnx", ["--tolerance", "2"], "tolerance must be in [0, 1], got 2"),
        ("model.onnx", ["--images", "-1"], "images must not be negative, got -1"),
        ("model.onnx", ["--chip", "abacus"], "abacus"),
        ("bundle.json", [], "not an ONNX model that TSERve wrote"),
        ("missing.onnx", [], "no such file"),
    ],
)
def test_bad_input_is_status_2_and_writes_nothing(
    name: str, flags: list[str], message: str, bundle: Path, student: Path, tmp_path: Path, capsys: Any
) -> None:
    argv = [str(student), str(bundle / name), "--out", str(tmp_path), *flags]
    assert exit_status(lambda: exits.command(argv)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_student_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_checkpoint(tmp_path / "other.pt", NetConfig(width=0.5))
    assert exit_status(lambda: exits.command([str(other), str(model)])) == 2
    assert "was exported from another checkpoint" in capsys.readouterr().err
