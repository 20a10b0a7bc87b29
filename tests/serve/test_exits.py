"""The exit rules against formulas written out in plain Python, and what must hold for any logits."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from serve.exits import RULES, Exit, Rule, running_mean, softmax, steps_needed, sureness, sureness_by_step


values = st.floats(-500, 500, width=32)
logits_of_batches = arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 12)), elements=values
)
rules = st.sampled_from(list(RULES))
thresholds = st.floats(0, 1)
relaxations = st.sampled_from([0.0, 0.5, 1.0, 2.5])


def by_hand(logits: list[float], rule: str) -> float:
    """Sureness of one image's logits, with math alone."""
    weights = [math.exp(value - max(logits)) for value in logits]
    probs = sorted(weight / math.fsum(weights) for weight in weights)
    if rule == "confidence":
        return probs[-1]
    if rule == "margin":
        return probs[-1] - probs[-2]
    return 1 - math.fsum(-p * math.log(p) for p in probs if p > 0) / math.log(len(probs))


@given(st.lists(st.floats(-500, 500), min_size=1, max_size=6))
def test_softmax_is_the_ratio_of_exponentials(logits: list[float]) -> None:
    expected = [1 / math.fsum(math.exp(min(other - own, 700)) for other in logits) for own in logits]
    assert softmax(np.array(logits)) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@given(st.lists(values, min_size=2, max_size=12), rules)
def test_sureness_is_its_formula(logits: list[float], rule: Rule) -> None:
    assert sureness(np.array([logits]), rule)[0] == pytest.approx(by_hand(logits, rule), abs=1e-9)


def test_sureness_is_0_where_all_classes_are_equal_and_1_where_one_is_certain() -> None:
    for rule, least in (("confidence", 0.25), ("entropy", 0.0), ("margin", 0.0)):
        unsure, certain = sureness(np.array([[3.0, 3, 3, 3], [0, 1e4, 0, 0]]), rule)
        assert (unsure, certain) == (pytest.approx(least, abs=1e-15), 1.0)


@pytest.mark.parametrize("rule", RULES)
def test_a_single_class_is_certain(rule: Rule) -> None:
    assert sureness(np.array([[-3.0], [7.0]]), rule).tolist() == [1.0, 1.0]


@given(logits_of_batches)
def test_the_running_mean_is_the_mean(logits: np.ndarray) -> None:
    for t, mean in enumerate(running_mean(logits), start=1):
        np.testing.assert_allclose(mean, logits[:t].astype(float).mean(axis=0), rtol=1e-12, atol=1e-12)


@given(arrays(np.float32, (4, 2, 5), elements=st.floats(-9, 9, width=32)), rules)
def test_sureness_at_a_step_is_of_the_mean_so_far(logits: np.ndarray, rule: Rule) -> None:
    for t, row in enumerate(sureness_by_step(logits, rule), start=1):
        for b, value in enumerate(row):
            mean = [math.fsum(logits[:t, b, k].tolist()) / t for k in range(5)]
            assert value == pytest.approx(by_hand(mean, rule), abs=1e-9)


@given(logits_of_batches, rules, thresholds, relaxations)
def test_steps_are_those_of_a_loop_over_images_and_steps(
    logits: np.ndarray, rule: Rule, threshold: float, relax: float
) -> None:
    T, B, _ = logits.shape
    exit = Exit(rule, threshold, relax)
    expected = []
    for b in range(B):
        total, t = np.zeros(logits.shape[2]), 0
        while True:
            total = total + logits[t, b]
            t += 1
            if t == T or sureness((total / t)[None], rule)[0] > exit.at(t):
                break
        expected.append(t)
    assert steps_needed(logits, exit).tolist() == expected


@given(thresholds, relaxations)
def test_the_allowed_doubt_grows_with_the_steps_as_it_says(threshold: float, relax: float) -> None:
    exit = Exit("confidence", threshold, relax)
    assert exit.at(1) == threshold
    for t in (1, 2, 3, 7):
        assert 1 - exit.at(t) == pytest.approx((1 - threshold) * t**relax, abs=1e-9)
        assert Exit("confidence", threshold).at(t) == threshold
        assert Exit("confidence", 1.0, relax).at(t) == 1


@given(logits_of_batches, rules, relaxations)
def test_threshold_1_never_stops_early(logits: np.ndarray, rule: Rule, relax: float) -> None:
    assert (steps_needed(logits, Exit(rule, 1.0, relax)) == len(logits)).all()


@given(logits_of_batches, rules, thresholds, thresholds, relaxations)
def test_a_higher_threshold_never_takes_fewer_steps(
    logits: np.ndarray, rule: Rule, one: float, two: float, relax: float
) -> None:
    low, high = (steps_needed(logits, Exit(rule, threshold, relax)) for threshold in sorted((one, two)))
    assert (low <= high).all()


@given(logits_of_batches, rules)
def test_an_images_sureness_has_the_same_bits_alone_in_a_batch_and_in_any_layout(
    logits: np.ndarray, rule: Rule
) -> None:
    together = sureness_by_step(logits, rule)
    strided = np.asfortranarray(logits)
    assert np.array_equal(sureness_by_step(strided, rule), together)
    for b in range(logits.shape[1]):
        assert np.array_equal(sureness_by_step(logits[:, b : b + 1], rule)[:, 0], together[:, b])


@pytest.mark.parametrize("rule", RULES)
def test_logits_that_are_no_numbers_are_never_sure(rule: Rule) -> None:
    logits = np.full((3, 1, 4), np.nan, np.float32)
    assert steps_needed(logits, Exit(rule, 0.0)).tolist() == [3]


@pytest.mark.parametrize("threshold", [-0.01, 1.01, math.nan, math.inf])
def test_a_threshold_outside_0_to_1_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        Exit("confidence", threshold)


def test_an_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="one of confidence, entropy, margin, got 'patience'"):
        Exit("patience", 0.5)  # type: ignore[arg-type]
    for relax in (-0.1, 4.1, float("nan")):
        with pytest.raises(ValueError, match=r"relax must lie in \[0, 4\]"):
            Exit("confidence", 0.5, relax)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (0, 2, 4)])
def test_logits_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \[T, B, K\]"):
        steps_needed(np.zeros(shape), Exit("margin", 0.5))
