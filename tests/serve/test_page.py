"""The page in a real browser: what it shows is what the predictor says, and it asks no other host for anything.

Every test ends with a look at what the browser asked for and at its console (conftest's `page` and `alone`).
"""

import base64
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from browsing import Browsing
from synthetic import draw, png

from serve.exits import running_mean, sureness
from serve.predictor import Predictor
from serve.ui import inputs
from serve.ui.effects import Effects, disturb


pytestmark = pytest.mark.browser
SAMPLE = 5


def shows(page: Browsing, predictor: Predictor, image: np.ndarray, threshold: float | None = None) -> None:
    """Wait until the answer and the tab Steps show this image's numbers, and hold every one against the predictor."""
    (whole,) = predictor.predict(image[None], exit_threshold=1.0)
    (stopped,) = predictor.predict(image[None], exit_threshold=threshold)
    steps, labels = len(stopped.logits), predictor.about.labels
    running = [pytest.approx(row, abs=1e-6) for row in whole.running_probs.tolist()]
    page.until(lambda: page.figure("probabilities")["running_mean"] == running)
    page.until(lambda: page.answer["steps_used"] == steps)
    told = page.answer
    assert told["label"] == labels[stopped.probs.argmax()]
    assert told["probability"] == pytest.approx(stopped.probs.max(), abs=1e-6)
    assert (told["sops"], told["macs"], told["energy_J"]) == (stopped.sops, stopped.macs, stopped.energy_J)
    assert told["energy_J_of_all_steps"] == whole.energy_J
    page.until(lambda: page.step == steps)
    assert f"{100 * stopped.probs.max():.1f} % confident" in page.said()
    assert page.said().startswith(labels[stopped.probs.argmax()])
    alone = page.figure("probabilities")["step_alone"]
    assert alone == [pytest.approx(row, abs=1e-6) for row in whole.step_probs.tolist()]
    bars = [words for words in page.words("probabilities") if "." in words]
    assert bars == [f"{100 * p:.1f}" for row in whole.running_probs for p in row]
    assert page.figure("spike-rates")["firing_rate"] == whole.spike_rates.astype(float).tolist()
    cells = [words for words in page.words("spike-rates") if words.replace(".", "").isdecimal() and "." in words]
    assert cells == [f"{100 * rate:.1f}" for row in whole.spike_rates for rate in row]
    sure = page.figure("sureness")
    rule = predictor.exit.rule
    assert sure["sureness"] == pytest.approx(sureness(running_mean(whole.logits), rule).tolist(), abs=1e-6)
    assert sure["sureness_alone"] == pytest.approx(sureness(whole.logits, rule).tolist(), abs=1e-6)
    assert sure["asked"] == [predictor.exit.threshold if threshold is None else threshold] * len(whole.logits)


@pytest.mark.parametrize("kind", ["page", "alone"])
def test_a_chosen_sample_shows_what_the_predictor_says(
    kind: str, request: pytest.FixtureRequest, fp32: Predictor
) -> None:
    page: Browsing = request.getfixturevalue(kind)
    shows(page, fp32, fp32.decode(fp32.sample(0)))
    for index in (SAMPLE, 2):
        page.sample(index)
        shows(page, fp32, fp32.decode(fp32.sample(index)))
        assert page.answer["true_label"] == fp32.about.samples[index].label
    assert page.alerts() == []


def test_of_clicks_in_a_row_the_last_one_counts(page: Browsing, fp32: Predictor) -> None:
    pictures = page.all("#samples button.thumbnail-item")
    page.delay(0.3)
    for index in (2, 2, 1, 3, 6):
        pictures[index].click()
    page.until(lambda: page.answer["image"] == "sample 6")
    page.delay(0)
    shows(page, fp32, fp32.decode(fp32.sample(6)))


def test_the_page_says_what_classify_answers(page: Browsing, digits_server: str, fp32: Predictor) -> None:
    page.sample(SAMPLE)

    def classified(**options: Any) -> dict[str, Any]:
        headers = {"content-type": "image/png"}
        answer = httpx.post(f"{digits_server}/classify", content=fp32.sample(SAMPLE), headers=headers, params=options)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    said = classified()
    told = page.answer
    for name in ("label", "probability", "steps_used", "sops", "macs", "energy_J", "bundle"):
        assert told[name] == said[name], name
    whole = classified(exit_confidence=1)
    drawn = page.figure("probabilities")
    assert len(whole["per_timestep"]) == told["T"]
    for step, mean, alone in zip(whole["per_timestep"], drawn["running_mean"], drawn["step_alone"], strict=True):
        assert step["running"] == {"label": drawn["labels"][np.argmax(mean)], "probability": max(mean)}
        assert step["step"] == {"label": drawn["labels"][np.argmax(alone)], "probability": max(alone)}
    rates = page.figure("spike-rates")
    assert dict(zip(rates["layers"], np.transpose(rates["firing_rate"]).tolist(), strict=True)) == whole["spike_rates"]


def test_the_threshold_moves_the_exit(page: Browsing, fp32: Predictor) -> None:
    image = fp32.decode(fp32.sample(0))
    stops = set()
    for threshold in (1.0, 0.3, 0.64):
        page.slide("#threshold", threshold)
        page.until(lambda threshold=threshold: page.figure("sureness")["threshold"] == threshold)
        shows(page, fp32, image, threshold)
        stops.add(page.step)
    assert stops == {1, 2, 3}


def test_noise_blur_and_contrast_disturb_the_image_until_it_is_reset(page: Browsing, fp32: Predictor) -> None:
    clean = fp32.decode(fp32.sample(0))
    so_far: dict[str, float] = {}
    for name, value in (("Noise", 0.2), ("Blur", 1.5), ("Contrast", 0.5)):
        (block,) = (each for each in page.all("#effects .block") if each.text.startswith(name))
        page.run("arguments[0].id = arguments[1]", block, name)
        page.slide(f"#{name}", value)
        so_far[name.lower()] = value
        shows(page, fp32, disturb(clean, Effects(**so_far)))
        assert len(page.all("#answer-card img")) == 2  # the image before beside it
    page.click("#reset")
    shows(page, fp32, clean)
    assert len(page.all("#answer-card img")) == 1


def test_a_file_of_the_visitor_is_shown(page: Browsing, fp32: Predictor, tmp_path: Path) -> None:
    (tmp_path / "own.png").write_bytes(png(draw(13)))
    page.source("File")
    page.all("#upload input[type=file]")[0].send_keys(str(tmp_path / "own.png"))
    shows(page, fp32, fp32.decode(tmp_path / "own.png"))
    assert page.answer["true_label"] is None
    assert page.answer["image"] == "own.png"
    assert "?" not in page.driver.current_url  # a link would not show it to others


def test_a_drawn_digit_is_shown(page: Browsing, fp32: Predictor) -> None:
    from selenium.webdriver import ActionChains

    page.source("Draw")
    (paper,) = page.all("#sketch canvas")
    page.until(paper.is_displayed)
    pen = ActionChains(page.driver).move_to_element_with_offset(paper, -60, -80).click_and_hold()
    pen.move_by_offset(120, 0).move_by_offset(-40, 150).release().perform()
    page.until(lambda: page.answer["image"] == "sketch")
    seven = page.answer
    ActionChains(page.driver).move_to_element_with_offset(paper, -40, 0).click_and_hold().move_by_offset(
        90, 0
    ).release().perform()
    page.until(lambda: page.answer["sops"] != seven["sops"])  # a stroke more
    sent = {"sketch": page.run("return arguments[0].toDataURL('image/png')", paper), "file": None, "camera": None}
    shows(page, fp32, inputs.picture(fp32, source="sketch", effects=Effects(), **sent).image)
    assert page.alerts() == []
    page.click("#sketch button")
    assert page.until(page.alerts) == ["The sketch is empty: draw a digit first."]
    page.source("Samples")
    page.sample(1)
    shows(page, fp32, fp32.decode(fp32.sample(1)))


def test_a_picture_of_the_camera_is_shown(page: Browsing, fp32: Predictor) -> None:
    page.source("Camera")
    page.until(lambda: page.one("#camera button").text == "Start the camera")
    page.click("#camera button")
    page.until(lambda: page.one("#camera button").text == "Take a picture")
    page.click("#camera button")
    page.until(lambda: page.answer["image"] == "camera")
    link = page.all("#camera img")[0].get_attribute("src")
    shows(page, fp32, fp32.decode(base64.b64decode(link.partition(",")[2])))
    assert page.one("#camera button").text == "Start the camera"  # it is off again
    assert page.run("return document.querySelector('#camera video').srcObject") is None
