"""The tab about the test set: every value at its place over an axis from zero, for one network and for two."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from drawn import Drawn, figures, page, said

from serve.bundle import Description, read
from serve.exit_record import ExitRecord
from serve.ui import testset
from serve.ui.testset import labelled


tab = testset.testset_tab
RESOLUTION = 0.06
"""Units of a picture: coordinates are written with one digit."""


@pytest.fixture(scope="module")
def base(bundle_dir: Path) -> Description:
    return read(bundle_dir).about


def network(
    base: Description, by_T: list[float], *, teacher: float | None = 0.95, name: str = "shapes, fp32", **changes: Any
) -> tuple[str, Description, Any]:
    """A contender with these accuracies, whose exits are at thresholds 0.4, 0.66 (served) and 1."""
    T = len(by_T)
    rows = [
        {"threshold": 0.4, "mean_steps": 1.0, "accuracy": by_T[0], "energy_J": 2e-9},
        {"threshold": 0.66, "mean_steps": 1 + (T - 1) / 3, "accuracy": 0.5, "energy_J": 3.25e-9},
        {"threshold": 1.0, "mean_steps": float(T), "accuracy": by_T[-1], "energy_J": 9e-9},
    ]
    record = {
        "rule": "margin",
        "threshold": 0.66,
        "relax": 1.5,
        "tolerance": 0.005,
        "calibrated_on": {"dataset": "shapes", "split": "val", "images": 5000},
        "measured_on": {"dataset": "shapes", "split": "test", "images": 12345},
        "accuracy_by_T": by_T,
        "table": [{**row, "val_mean_steps": 1.5, "val_accuracy": 0.875} for row in rows],
    } | changes
    about = base.model_copy(
        update={
            "T": T,
            "exits": {"fp32": ExitRecord.model_validate(record)},
            "metrics": base.metrics.model_copy(update={"teacher_accuracy": teacher}),
        }
    )
    return name, about, "fp32"


def curve(T: int) -> list[float]:
    return [0.9 - 0.5 * 0.8**t for t in range(T)]


def heights(drawn: Drawn) -> tuple[float, float]:
    """Where 0 and 100 % lie, by the lines that stand beside these words."""
    at = {words: y for _, y, words in drawn.texts if words in ("0 %", "100 %")}
    levels = {float(line["y1"]) for line in drawn.all("line") if line["y1"] == line["y2"]}
    zero, full = (min(levels, key=lambda level: abs(level - at[words] + 4)) for words in ("0 %", "100 %"))
    return zero, full


def discs(drawn: Drawn) -> list[tuple[float, float]]:
    """Markers of the first network in the plot itself, which has a title for each."""
    dots = [circle for circle in drawn.svg.iter() if circle.tag.endswith("}g") and circle[0].tag.endswith("}title")]
    return [(float(g[1].get("cx", "")), float(g[1].get("cy", ""))) for g in dots if g[1].tag.endswith("}circle")]


@pytest.mark.parametrize("T", [1, 2, 4, 9, 32])
def test_accuracies_stand_at_their_heights_over_zero(base: Description, T: int) -> None:
    drawn = figures(tab([network(base, curve(T))]))["accuracy-by-steps"]
    zero, full = heights(drawn)
    points = discs(drawn)
    assert [y for _, y in points] == [pytest.approx(zero - (zero - full) * a, abs=RESOLUTION) for a in curve(T)]
    gaps = [b - a for (a, _), (b, _) in pairwise(points)]
    assert max(gaps, default=0) - min(gaps, default=0) <= 2 * RESOLUTION
    assert drawn.data["networks"][0]["accuracy_by_T"] == curve(T)
    assert drawn.data["networks"][0]["measured_on"]["images"] == 12345


@pytest.mark.parametrize("T", [1, 2, 4, 9, 13, 32, 100])
def test_values_stand_under_their_steps_and_apart(base: Description, T: int) -> None:
    drawn = figures(tab([network(base, curve(T)), network(base, curve(T)[::-1])]))["accuracy-by-steps"]
    steps, first, second = drawn.lines[-4:-1]
    steps = steps if steps[0] != "0 %" else steps[1:]
    assert steps[0] == "1"
    assert steps[-1] == str(T)
    assert first == [f"{100 * curve(T)[int(t) - 1]:.1f}" for t in steps]
    assert second == [f"{100 * curve(T)[::-1][int(t) - 1]:.1f}" for t in steps]
    row = drawn.texts[-2][1]
    places = sorted(x for x, y, _ in drawn.texts if y == row)
    assert all(b - a >= 28 for a, b in pairwise(places))
    assert len(steps) == T or T > 11


@pytest.mark.parametrize("room", [2.5, 11.2, 16])
@pytest.mark.parametrize("T", range(1, 70))
def test_labels_name_first_and_last_step_and_fit(T: int, room: float) -> None:
    steps = labelled(T, room=room)
    assert (steps[0], steps[-1]) == (1, T)
    assert steps == sorted(set(steps))
    assert min((b - a for a, b in pairwise(steps)), default=T) >= min(T / room, T - 1)


def test_the_teacher_is_a_dotted_line_at_its_height(base: Description) -> None:
    drawn = figures(tab([network(base, curve(4), teacher=0.6)]))["accuracy-by-steps"]
    zero, full = heights(drawn)
    _, line = [p for p in drawn.all("polyline") if p.get("stroke-dasharray") == "2 3"]  # in the key, in the plot
    ys = [float(point.split(",")[1]) for point in line["points"].split()]
    assert ys == [pytest.approx(zero - (zero - full) * 0.6, abs=RESOLUTION)] * 2
    assert "the teacher, an ANN: 60.0 %" in [words for *_, words in drawn.texts]


@pytest.mark.parametrize(
    ("teachers", "named"),
    [
        ((None, None), []),
        ((0.9, 0.9), ["the teacher, an ANN: 90.0 %"]),
        ((0.9, 0.8), ["teacher of A: 90.0 %", "teacher of B: 80.0 %"]),
        ((None, 0.8), ["teacher of B: 80.0 %"]),
    ],
)
def test_two_networks_may_have_one_teacher_or_two(base: Description, teachers: Any, named: list[str]) -> None:
    pair = [network(base, curve(3), teacher=t, name=name) for t, name in zip(teachers, "AB", strict=True)]
    drawn = figures(tab(pair))["accuracy-by-steps"]
    assert [words for *_, words in drawn.texts if "teacher" in words] == named


def test_two_networks_differ_in_dash_and_marker(base: Description) -> None:
    html = tab([network(base, curve(4), name="A"), network(base, curve(2), name="B")])
    drawn = figures(html)["accuracy-by-steps"]
    dashes = {p.get("stroke-dasharray", "") for p in drawn.all("polyline")}
    assert dashes == {"", "6 4", "2 3"}
    assert len(drawn.all("circle")) == 1 + 4 + 1  # in the key, in the plot, before the values
    assert len(drawn.all("rect")) == 1 + 2 + 1
    assert [entry["name"] for entry in drawn.data["networks"]] == ["A", "B"]
    assert {"exit-list-1", "exit-list-2"} <= figures(html).keys()


def test_the_ring_is_around_the_served_exit(base: Description) -> None:
    drawn = figures(tab([network(base, curve(4))]))["accuracy-by-exit"]
    zero, full = heights(drawn)
    numbers = {words: x for x, _, words in drawn.texts if words in "01234"}
    x = numbers["0"] + (numbers["4"] - numbers["0"]) * 2 / 4  # 1 + 3/3 steps
    points = discs(drawn)
    assert points[1] == (pytest.approx(x, abs=RESOLUTION), pytest.approx((zero + full) / 2, abs=RESOLUTION))
    rings = [(float(c["cx"]), float(c["cy"])) for c in drawn.all("circle") if c["fill"] == "none"]
    assert rings[1:] == [points[1]]  # the first is in the key
    assert drawn.data["networks"][0]["threshold"] == 0.66


def test_the_list_has_every_threshold_and_marks_the_served_one(base: Description) -> None:
    drawn = figures(tab([network(base, [0.7, 0.75, 0.8, 0.9])]))["exit-list-1"]
    assert drawn.lines[1:] == [
        ["0.400", "1.00", "70.0", "2 nJ", "87.5"],
        ["0.660", "2.00", "50.0", "3.25 nJ", "87.5"],
        ["1.000", "4.00", "90.0", "9 nJ", "87.5"],
    ]
    strong = [text["y"] for text in drawn.all("text") if text.get("class") == "strong"]
    assert strong == [drawn.all("text")[10]["y"]] * 5
    assert [row["energy_J"] for row in drawn.data["table"]] == [2e-9, 3.25e-9, 9e-9]
    assert drawn.data["served"] == 0.66


def test_the_sentences_tell_images_accuracies_and_what_the_exit_gives(base: Description) -> None:
    words = said(tab([network(base, [0.7, 0.75, 0.8, 0.9])]))
    assert (
        "shapes, fp32: 12,345 images (shapes, test). 90.0 % are right after 4 steps, 70.0 % after the first alone; the "
        "teacher gets 95.0 % right. With the served exit an image takes 2.00 steps and 3.25 nJ on average, and 50.0 % "
        "are right."
    ) in words
    assert (
        "an image stops when the largest probability less the second is above the threshold 0.660 at the first step; "
        "later steps ask for less (relax 1.5). Chosen on 5,000 other images (shapes, val): the fewest steps that lose "
        "at most 0.5 points"
    ) in words


def test_without_validation_images_nothing_was_chosen(base: Description) -> None:
    rows = [{"threshold": 1.0, "mean_steps": 1.0, "accuracy": 0.9, "energy_J": 1e-9}]
    table = [{**row, "val_mean_steps": None, "val_accuracy": None} for row in rows]
    html = tab([network(base, [0.9], teacher=None, threshold=1.0, calibrated_on=None, table=table)])
    assert "the threshold is 1, so every image takes all steps. There were no validation images" in said(html)
    assert "90.0 % are right after 1 step." in said(html)
    assert figures(html)["exit-list-1"].lines[1] == ["1.000", "1.00", "90.0", "1 nJ", "none"]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("T", [1, 4, 40])
def test_names_cannot_bring_markup_and_stay_in_the_picture(base: Description, count: int, T: int) -> None:
    evil = "<script>alert(1)</script>\"'&</title>" * 4
    measured = {"dataset": evil, "split": evil, "images": 3}
    html = tab([network(base, curve(T), name=evil, measured_on=measured, calibrated_on=measured)] * count)
    assert "<script>" not in html
    assert page(html).seen <= {
        *("div", "h3", "p", "figure", "figcaption", "span", "button", "data"),
        *("svg", "g", "title", "text", "rect", "line", "polyline", "circle"),
    }
    for drawn in figures(html).values():
        width, height = map(float, drawn.svg.attrib["viewBox"].split()[2:])
        assert all(0 < x < width and 0 < y < height for x, y, _ in drawn.texts)
        assert max(len(words) for *_, words in drawn.texts) <= 60


def test_a_long_name_keeps_the_end_that_tells_it_apart(base: Description) -> None:
    names = [f"{'a-long-name-' * 8}T4, {precision}" for precision in ("int8", "fp32")]
    drawn = figures(tab([network(base, curve(4), name=name) for name in names]))["accuracy-by-steps"]
    ends = [words[-8:] for *_, words in drawn.texts if "long-name" in words]
    assert ends == ["T4, int8", "T4, fp32"]
