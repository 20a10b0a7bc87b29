"""The figures of docs/demo.md, and those of our students in docs/energy.md, are those of the results files."""

import json
from pathlib import Path

import pytest

from export.energy_account import joules


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


def test_the_energies_in_four_conventions() -> None:
    digits = json.loads((ROOT / "results/digits-vgg_small-tser-T4.json").read_text())["energy"]
    resnet = json.loads((ROOT / "results/energy-cifar10-resnet18-T4.json").read_text())
    docs = (ROOT / "docs/energy.md").read_text()
    for pair in zip(digits["conventions"], resnet["conventions"], strict=True):
        totals = [entry["per_image"] for entry in pair]
        cells = [(joules(one["energy_J"]), joules(one["ann"]["energy_J"]), f"{one['ratio']:.3g}") for one in totals]
        assert f"| `{pair[0]['name']}` | {' | '.join(cells[0] + cells[1])} |" in docs
    words = " ".join(docs.split())
    assert f"(means of {digits['images']['count']} and of {resnet['images']['count']:,} test images" in words
    (verdict,) = (each for each in digits["comparison"]["verdicts"] if each.startswith("Against its own ANN in int8"))
    assert f'"{verdict.partition(";")[0]}"' in words
    assert f"The digits student fires at {digits['break_even']['spike_rate']:.1%}".replace("%", " %") in words
