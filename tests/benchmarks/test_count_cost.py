"""What counting costs is measured on the same images as the plain pass, and its ratio is arithmetic on the times."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import count_cost

from train.checkpoint import Checkpoint


ROOT = Path(__file__).parents[2]
PATIENCE_S = 240


def run(*flags: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "count_cost.py"), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)


def test_the_command_times_an_untrained_network_and_writes_what_it_found(tmp_path: Path) -> None:
    done = run("--net", "vgg_small", "--T", "2", "--data", "digits", "--images", "20", "--rounds", "2", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results").iterdir()
    assert path.name == "count_cost-digits-vgg_small-T2-cpu.json"
    content = json.loads(path.read_text())
    assert content["images"] == {"dataset": "digits", "count": 20}
    assert content["student"] == {"net": "vgg_small", "T": 2, "trained": False}
    assert len(content["rounds"]) == 2
    assert all(seconds > 0 for found in content["rounds"] for seconds in found.values())
    assert content["summary"] == count_cost.summarise(content["rounds"], 20)
    assert f"{content['summary']['count_over_forward']['median']:.2f} times the plain forward pass" in done.stdout


def test_a_student_fires_the_same_spikes_while_it_is_counted(student: Path, tmp_path: Path) -> None:
    """Up to what rounding flips: its normalisations are folded where it is counted."""
    content = count_cost.main(
        count_cost.Config(checkpoint=student, images=40, rounds=1, device="cpu", out=tmp_path / "results")
    )
    found = content["spikes_of_first_batch"]
    assert content["student"]["trained"]
    assert found["network"] > 1000
    assert found["counted"] == pytest.approx(found["network"], rel=1e-3)


def test_both_see_every_image_once_a_round(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = count_cost.trained(count_cost.Config(images=11), student)
    assert made.name == Checkpoint.load(student).net.name
    seen: list[np.ndarray] = []
    monkeypatch.setattr(count_cost, "forward", lambda student, images, device: seen.append(images))
    found = count_cost.one_round(made, batch_size=4, device="cpu")
    np.testing.assert_array_equal(np.concatenate(seen), made.images)
    assert [len(batch) for batch in seen] == [4, 4, 3]
    assert found["count_seconds"] > found["forward_seconds"] >= 0


def test_ratios_are_taken_within_a_round() -> None:
    def found(forward: float, count: float) -> dict[str, float]:
        return {f"{what}_{key}": s for what, s in (("forward", forward), ("count", count)) for key in KEYS}

    summary = count_cost.summarise([found(1.0, 1.1), found(4.0, 4.8), found(2.0, 2.6)], 26)
    assert summary["count_over_forward"] == {"median": pytest.approx(1.2), "min": 1.1, "max": pytest.approx(1.3)}
    assert summary["count_over_forward_cpu_time"] == pytest.approx(1.2)
    assert (summary["forward_seconds"], summary["count_seconds"]) == (2.0, 2.6)
    assert summary["counted_images_per_second"] == pytest.approx(10.0)


KEYS = ("seconds", "cpu_seconds")


@pytest.mark.parametrize("flag", ["images", "batch_size", "rounds", "T", "threads"])
def test_nothing_to_time_is_refused(flag: str) -> None:
    options: dict[str, Any] = {flag: 0}
    with pytest.raises(ValueError, match=f"{flag} must be at least 1, got 0"):
        count_cost.Config(**options)
