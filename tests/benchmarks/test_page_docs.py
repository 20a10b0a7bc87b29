"""The figures of docs/demo.md and of counting in docs/energy.md are those of the results files."""

import json
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]


def summary(name: str) -> dict:
    return json.loads((ROOT / "results" / f"{name}.json").read_text())["summary"]


@pytest.mark.parametrize(
    ("row", "name"), [("digits, vgg_small", "digits-vgg_small"), ("CIFAR-10, ResNet-18", "cifar10-resnet18")]
)
def test_how_soon_the_page_answers(row: str, name: str) -> None:
    found = summary(f"page_speed-{name}-tser-T4")
    cold, warm = found["cold"], found["warm"]
    first = cold["first_answer_s"]
    cells = (
        f"{cold['load_s']['median']:.2f} s",
        f"{first['median']:.2f} s (at most {first['max']:.2f})",
        f"{cold['bytes']['median'] / 1e6:.2f} MB",
        f"{warm['first_answer_s']['median']:.2f} s",
        f"{1e3 * found['answer_s']['median']:.0f} ms",
    )
    assert f"| {row} | {' | '.join(cells)} |" in (ROOT / "docs/demo.md").read_text()
    assert first["max"] < 2


def test_what_counting_costs() -> None:
    found = summary("count_cost-cifar10-resnet18-T4-cpu")["count_over_forward"]
    said = (
        f"took {found['median']:.2f} times the plain forward pass of the student ({found['min']:.2f} to "
        f"{found['max']:.2f} in three rounds"
    )
    assert said in " ".join((ROOT / "docs/energy.md").read_text().split())
