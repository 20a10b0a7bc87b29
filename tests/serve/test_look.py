"""The answer at the top of the page: its numbers, and words that are true whatever the network said."""

import dataclasses
import re
from pathlib import Path

import drawn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from looks import described, look, several

from serve.bundle import Description
from serve.exits import RULES, Exit, steps_needed
from serve.predictor import Predictor
from serve.ui import answer
from serve.ui.inputs import Picture
from serve.ui.look import Look, fitted


@pytest.fixture(scope="module")
def about(bundle_dir: Path) -> Description:
    """Of four classes and two layers."""
    return described(bundle_dir)


@given(st.integers(1, 9), st.integers(0, 50), st.sampled_from(sorted(RULES)), st.floats(0, 1), st.floats(0, 4))
def test_the_exit_is_the_one_that_serving_applies(
    about: Description, T: int, seed: int, rule: str, threshold: float, relax: float
) -> None:
    exit = Exit(rule, threshold, relax)  # type: ignore[arg-type]
    seen = look(about, several(T, 4, seed), exit=exit)
    assert seen.steps == steps_needed(seen.prediction.logits[:, None], exit)[0]


def test_what_stops_early_is_what_the_step_form_gives(bundle_dir: Path) -> None:
    predictor = Predictor(bundle_dir)
    image = predictor.decode(predictor.sample(0))
    (whole,) = predictor.predict(image[None], exit_threshold=1.0)
    picture = Picture(image=image, clean=image, truth=None, name="sample 0", source="sample:0")
    seen = Look(name="net", predictor=predictor, picture=picture, prediction=whole, exit=predictor.exit)
    for steps in range(1, 4):
        (stopped,) = predictor.predict(image[None], exit_threshold=1.0, steps=steps)
        told = seen.up_to(steps)
        assert (told.sops, told.macs, told.energy_J) == (stopped.sops, stopped.macs, stopped.energy_J)
        np.testing.assert_array_equal(told.probs, stopped.probs)
    (served,) = predictor.predict(image[None])
    record = answer.record(seen)
    assert (record["steps_used"], record["probability"]) == (len(served.logits), served.probs.max())


@pytest.mark.parametrize("T", [1, 2, 5, 40])
@pytest.mark.parametrize("K", [1, 4, 100])
def test_the_card_is_well_formed_and_has_every_step(about: Description, T: int, K: int) -> None:
    classes = about.model_copy(update={"labels": tuple(f"class {k}" for k in range(K))})
    seen = look(classes, several(T, K))
    html = answer.card(seen, link="sample=0", tab="steps")
    card = drawn.page(html)
    assert card.seen >= {"section", "img", "data"}
    assert len(re.findall(r'<div class="at t\d+">', html)) == T
    assert f'data-steps="{T}" data-exit="{seen.steps}" data-source="sample:0" data-tab="steps"' in html
    assert 'data-link="sample=0"' in html
    assert ("There is no other class." in html) == (K == 1)
    drawn.page(answer.stepper(T))


def test_names_of_a_bundle_bring_no_markup(about: Description) -> None:
    evil = '<script>"&'
    named = about.model_copy(update={"labels": (evil, "b", "c", "d"), "name": evil, "dataset": evil})
    seen = look(named, [[0, 9.0, 0, 0]], truth=evil)
    seen = dataclasses.replace(seen, picture=dataclasses.replace(seen.picture, name=evil), name=evil)
    for html in (answer.card(seen, link=evil, tab="steps"), answer.header(seen.predictor), answer.alert(evil)):
        assert "script" not in drawn.page(html).seen
        assert "<script" not in html
    assert evil in drawn.said(answer.card(seen, link=None, tab="steps"))


SURE, UNSURE, OTHER = [9.0, 0, 0, 0], [0.5, 0, 0, 0], [0, 19.0, 0, 0]


def test_the_sentence_says_whether_a_step_goes_on_stops_or_is_for_study(about: Description) -> None:
    seen = look(about, [UNSURE, SURE, SURE], exit=Exit("confidence", 0.9))
    assert seen.steps == 2
    said = [answer.of_exit(seen, t) for t in (1, 2, 3)]
    assert said[0].startswith("After step 1 of 3 it is not sure enough (sureness 0.355, more than 0.900 is asked for)")
    assert said[0].endswith("and goes on.")
    assert said[1].startswith("After step 2 of 3 it is sure enough (sureness 0.975, more than 0.900 is asked for)")
    saved = 1 - seen.up_to(2).energy_J / seen.prediction.energy_J
    assert said[1].endswith(f"{100 * saved:.1f} % saved.")
    assert said[2] == "Step 3 of 3 is for study: the network would have stopped after 2 steps."
    unsure = look(about, [UNSURE, UNSURE], exit=Exit("confidence", 0.9))
    assert answer.of_exit(unsure, 2).startswith("It has taken all 2 steps (sureness 0.355): ")
    never = look(about, [SURE, SURE], exit=Exit("confidence", 1.0))
    assert "not sure enough" in answer.of_exit(never, 1)


def test_right_and_wrong_are_told_at_every_step(about: Description) -> None:
    seen = look(about, [SURE, OTHER], truth="ring", exit=Exit("confidence", 1.0))
    assert "✗ it is ring" in answer.at_step(seen, 1)
    assert "✓ right" in answer.at_step(seen, 2)
    assert "✓" not in answer.at_step(look(about, [SURE]), 1)


@pytest.mark.parametrize(("count", "next_"), [(1, 0), (2, 1), (4, 3), (9, 3)])
def test_the_next_classes_follow_in_order(about: Description, count: int, next_: int) -> None:
    labels = tuple(f"c{k}" for k in range(count))
    seen = look(about.model_copy(update={"labels": labels}), [[float(-k) for k in range(count)]])
    assert re.findall(r"c\d", answer.runners_up(seen, 1)) == list(labels[1 : 1 + next_])


def test_a_picture_is_scaled_for_a_network_of_another_size(bundle_dir: Path) -> None:
    predictor = Predictor(bundle_dir)
    image = predictor.decode(predictor.sample(0))
    picture = Picture(image=image, clean=image, truth="disc", name="sample 0", source="sample:0")
    assert fitted(picture, predictor) is picture
    other = dataclasses.replace(
        picture, image=np.zeros((3, 16, 16), np.float32), clean=np.ones((3, 16, 16), np.float32)
    )
    scaled = fitted(other, predictor)
    assert scaled.image.shape == scaled.clean.shape == (1, 8, 8)
    assert (scaled.image.max(), scaled.clean.min(), scaled.truth) == (0, 1, "disc")
