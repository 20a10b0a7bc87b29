"""The figures of the tabs Steps, Energy and Compare: well-formed at every size, their words and bars true."""

import re
from pathlib import Path

import drawn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from looks import described, look, several

from serve.bundle import Description
from serve.exits import Exit
from serve.ui import compare_tab, energy_tab, steps_tab, svg


SNN, ANN = svg.SNN, svg.ANN


@pytest.fixture(scope="module")
def about(bundle_dir: Path) -> Description:
    """Of four classes and two layers."""
    return described(bundle_dir)


@pytest.mark.parametrize("T", [1, 2, 5, 40])
@pytest.mark.parametrize("K", [1, 4, 100])
def test_all_figures_are_well_formed_and_inside_their_pictures(about: Description, T: int, K: int) -> None:
    classes = about.model_copy(update={"labels": tuple(f"a class of number {k}" for k in range(K))})
    first, second = look(classes, several(T, K)), look(classes, several(max(1, T - 1), K, 1), name="other, int8")
    html = steps_tab.probabilities(first) + steps_tab.sureness(first) + steps_tab.spike_rates(first)
    html += energy_tab.summary(first) + energy_tab.by_layer(first)
    for part in (html, compare_tab.tab(first, second)):
        drawn.page(part)
    empty = '<div class="drawing"></div>'  # of a convention that cannot count the network
    figures = drawn.figures(html.replace(empty, '<svg viewBox="0 0 1 1"></svg>'))
    assert len(figures) == 4 + 4
    for id_, figure in figures.items():
        width, height = map(float, figure.svg.get("viewBox", "").split()[2:])
        for x, y, words in figure.texts:
            assert 0 <= x <= width, (id_, words)
            assert 0 < y <= height, (id_, words)
        for each in figure.all("rect"):
            assert float(each["x"]) + float(each["width"]) <= width + 0.5, (id_, each)
    probabilities = figures["probabilities"].data
    assert np.shape(probabilities["running_mean"]) == (T, K)
    np.testing.assert_allclose(np.sum(probabilities["running_mean"], axis=1), 1)
    steps = {each["data-step"] for each in figures["probabilities"].all("g") if "data-step" in each}
    assert steps == {str(t) for t in range(1, T + 1)}


def test_names_of_a_bundle_bring_no_markup(about: Description) -> None:
    evil = "<b>\"'&"
    layers = about.model_copy(update={"labels": (evil, "b", "c", "d"), "lif_layers": (evil, "x")})
    seen, other = look(layers, several(3, 4), name=evil, truth=evil), look(layers, several(3, 4, 1), name=evil)
    html = steps_tab.probabilities(seen) + steps_tab.sureness(seen) + steps_tab.spike_rates(seen)
    for part in (html, compare_tab.tab(seen, other), svg.figure(evil, evil, "", data={"a": "</data><b>"})):
        assert "<b>" not in part.replace('<b class="label">', "")
        drawn.page(part)


@given(st.lists(st.lists(st.floats(-20, 20), min_size=4, max_size=4), min_size=1, max_size=8))
def test_bars_begin_at_zero_and_are_as_long_as_probable(about: Description, logits: list[list[float]]) -> None:
    seen = look(about, logits)
    figure = drawn.figures(steps_tab.probabilities(seen))["probabilities"]
    for colour, told in ((SNN, figure.data["running_mean"]), (ANN, figure.data["step_alone"])):
        bars = [each for each in figure.all("rect") if each["fill"] == colour][: 4 * seen.T]
        widths = np.array([float(each["width"]) for each in bars]).reshape(seen.T, 4)
        starts = np.array([float(each["x"]) for each in bars]).reshape(seen.T, 4)
        assert (np.ptp(starts, axis=1) == 0).all()
        longest = widths.max() / np.max(told)
        np.testing.assert_allclose(widths, np.maximum(longest * np.array(told), 0.5), atol=0.02 + 0.01 / np.max(told))


def test_energy_bars_have_the_ratio_of_the_energies(about: Description) -> None:
    for busy in (0.05, 1.0):
        seen = look(about, several(3, 4), busy=busy)
        figure = drawn.figures(energy_tab.summary(seen))["energy"]
        bars = [each for each in figure.all("rect") if float(each["height"]) == energy_tab.BAR][2:]
        assert {float(each["x"]) for each in bars} == {0.0}
        counted = [account for account in seen.accounts[-1] if account.unavailable is None]
        for i, account in enumerate(counted):
            ann, *snn = bars[4 * i : 4 * i + 4]
            assert (ann["fill"], {each["fill"] for each in snn}) == (ANN, {SNN})
            for each, row in zip(snn, seen.accounts, strict=True):
                now = next(a for a in row if a.convention == account.convention)
                ratio = float(each["width"]) / float(ann["width"])
                assert ratio == pytest.approx(now.energy_J / now.ann_energy_J, rel=0.01, abs=0.01)


@pytest.mark.parametrize(
    ("worse", "counted", "said"),
    [
        ([], 3, "After 2 steps, where it stops, the SNN needs no more than the ANN in all of them."),
        (["A", "B", "C"], 3, "After 2 steps, where it stops, the SNN needs MORE than the ANN in all of them."),
        (["A", "B"], 3, "After 2 steps, where it stops, the SNN needs MORE than the ANN by A and B."),
        ([], 0, "No convention can count this network."),
    ],
)
def test_the_verdict_names_who_says_that_the_snn_needs_more(worse: list[str], counted: int, said: str) -> None:
    assert energy_tab.verdict(worse, counted, 2) == said


def test_the_verdict_of_a_figure_is_that_of_its_numbers(about: Description) -> None:
    for busy in (0.0, 0.2, 1.0):
        seen = look(about, several(3, 4), busy=busy)
        html = energy_tab.summary(seen)
        stop = drawn.figures(html)["energy"].data["by_steps"][seen.steps - 1]
        counted = [each for each in stop.values() if "unavailable" not in each]
        worse = sum(each["energy_J"] > each["ann_energy_J"] for each in counted)
        said = drawn.said(html)
        assert ("MORE" in said) == (worse > 0)
        assert ("in all of them" in said) == (worse in (0, len(counted)))


@pytest.mark.parametrize(
    ("snn", "ann", "said"),
    [
        (1e-8, 4e-8, "0.25 ×"),
        (4.5e-8, 3e-8, "1.5 ×"),
        (3e-8, 3e-8, "1 ×"),
        (0, 3e-8, "no ratio"),
        (1e-8, 0, "no ratio"),
    ],
)
def test_the_ratio_is_told_whichever_is_smaller(snn: float, ann: float, said: str) -> None:
    assert energy_tab.ratio(snn, ann) == said


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0 J"), (2.26e-8, "22.6 nJ"), (9e-13, "900 fJ"), (1.0, "1 J"), (1e-3, "1 mJ"), (-2e-6, "-2 µJ")],
)
def test_quantities_get_a_prefix(value: float, words: str) -> None:
    assert svg.si(value, "J") == words


@given(st.floats(1e-15, 999))
def test_a_quantity_with_its_prefix_is_the_quantity(value: float) -> None:
    words = svg.si(value, "J")
    number, prefix = re.fullmatch(r"([-+.e\d]+) ([fpnµm]?)J", words).groups()  # type: ignore[union-attr]
    scale = {"f": 1e-15, "p": 1e-12, "n": 1e-9, "µ": 1e-6, "m": 1e-3, "": 1.0}[prefix]
    assert float(number) * scale == pytest.approx(value, rel=6e-3)
    assert "e" not in number


def test_the_exit_is_drawn_where_it_is(about: Description) -> None:
    seen = look(about, [[0.5, 0, 0, 0], [9.0, 0, 0, 0], [9.0, 0, 0, 0]], exit=Exit("confidence", 0.9, 0.5))
    html = steps_tab.sureness(seen)
    figure = drawn.figures(html)["sureness"]
    assert figure.data["steps_used"] == seen.steps == 2
    assert figure.data["asked"] == pytest.approx([0.9, 1 - 0.1 * 2**0.5, 1 - 0.1 * 3**0.5])
    (where,) = [x for x, _, words in figure.texts if words == "stops here"]
    steps = {words: x for x, _, words in figure.texts if words in ("1", "2", "3")}
    assert where == steps["2"]
    assert "Less is asked for after more steps" in html
    assert "Less is asked" not in steps_tab.sureness(look(about, several(3, 4), exit=Exit("margin", 1.0, 0.5)))


def test_only_classes_that_were_probable_are_drawn(about: Description) -> None:
    labels = tuple(f"class {k}" for k in range(100))
    logits = np.zeros((2, 100), np.float32)
    logits[0, 97], logits[1, 3] = 5, 5
    html = steps_tab.probabilities(look(about.model_copy(update={"labels": labels}), logits))
    figure = drawn.figures(html)["probabilities"]
    named = [words for _, _, words in figure.texts if words.startswith("class")]
    assert {"class 3", "class 97"} <= set(named)
    assert len(named) == steps_tab.CLASSES
    assert "The 10 classes of 100 that were most probable at any step." in html
    assert len(figure.data["labels"]) == 100


def test_two_networks_are_compared_by_the_class_that_both_know(about: Description) -> None:
    other = about.model_copy(update={"labels": ("ring", "disc", "oak", "elm")})
    first, second = look(about, several(4, 4), truth="ring"), look(other, several(2, 4, 1), name="other, int8")
    html = compare_tab.tab(first, second)
    both = drawn.figures(html)["compare"].data["networks"]
    np.testing.assert_allclose(both[0]["probability"], first.running[:, 1])
    np.testing.assert_allclose(both[1]["probability"], second.running[:, 0])
    strange = look(about.model_copy(update={"labels": ("a", "b", "c", "d")}), several(2, 4, 1), name="strange, int8")
    html = compare_tab.tab(first, strange)
    assert "strange, int8 has no such class." in html
    assert drawn.figures(html)["compare"].data["networks"][1]["probability"] is None


@pytest.mark.parametrize(("T", "steps", "last"), [(2, 4, "at t2 t3 t4"), (2, 2, "at t2"), (3, 1, "at t3")])
def test_a_network_of_fewer_steps_keeps_its_last_answer(about: Description, T: int, steps: int, last: str) -> None:
    shown = re.findall(r'<div class="(at [^"]*)">', compare_tab.side(look(about, several(T, 4)), steps))
    assert shown == [*(f"at t{t}" for t in range(1, T)), last]
