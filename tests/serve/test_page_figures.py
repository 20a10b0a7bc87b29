"""The page's other tabs in a browser, held against the predictor; and what is saved of them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import Browsing, downloads_to
from PIL import Image

from serve.energy import Account, accounts
from serve.predictor import Predictor
from serve.spikes import Probe


pytestmark = pytest.mark.browser
SAMPLE = 3
TABS = ("steps", "spikes", "energy", "compare", "testset")


@pytest.fixture(scope="module")
def int8(digits_dir: Path) -> Predictor:
    """The other network of the page."""
    return Predictor(digits_dir, precision="int8")


def image_of(predictor: Predictor, index: int = SAMPLE) -> np.ndarray:
    """A sample's."""
    return predictor.decode(predictor.sample(index))


def priced(predictor: Predictor, steps: int) -> tuple[Account, ...]:
    """The energies of the sample after so many steps, from a run of the step form that ends there."""
    (seen,) = predictor.predict(image_of(predictor)[None], exit_threshold=1.0, steps=steps)
    return accounts(predictor.about, taps=seen.taps, nonzero=seen.nonzero, spike_rates=seen.spike_rates)


def si(value: float) -> str:
    """Joules as this bundle's figures say them: all are of some nJ."""
    return f"{1e9 * value:.3g} nJ"


def joules(value: float) -> str:
    """The same of a layer: zero, pJ or nJ."""
    return "0 J" if value == 0 else f"{1e12 * value:.3g} pJ" if value < 1e-9 else si(value)


def test_energies_are_those_of_every_convention(page: Browsing, fp32: Predictor) -> None:
    page.sample(SAMPLE)
    T = fp32.about.T
    wanted = [priced(fp32, steps) for steps in range(1, T + 1)]
    summary = page.figure("energy")
    assert summary["steps_used"] == page.answer["steps_used"]
    for row, told in zip(wanted, summary["by_steps"], strict=True):
        for account in row:
            if account.unavailable:
                assert told[account.convention] == {"unavailable": account.unavailable}
            else:
                assert told[account.convention] == {
                    "energy_J": account.energy_J,
                    "ann_energy_J": account.ann_energy_J,
                }
    for t, row in enumerate(wanted, 1):
        page.go(t)
        counted = [account for account in row if not account.unavailable]
        words = page.words("energy")
        values = [si(value) for account in counted for value in (account.energy_J, account.ann_energy_J)]
        assert sorted(each for each in words if each.endswith("J")) == sorted(values)
        ratios = [f"{account.energy_J / account.ann_energy_J:.3g} ×" for account in counted]
        assert [each for each in words if each.endswith("×")] == ratios
        assert "cannot count this network" in words
    page.tab("energy")
    page.until(lambda: page.figure("energy-event_exact"))
    for i, account in enumerate(wanted[-1]):
        told = page.figure(f"energy-{account.convention}")
        if account.unavailable:
            assert told == {"unavailable": account.unavailable}
            continue
        for row, by_step in zip(wanted, told["by_steps"], strict=True):
            assert by_step["energy_J"] == row[i].energy_J
            assert [layer["energy_J"] for layer in by_step["layers"]] == [layer.energy_J for layer in row[i].layers]
            assert [layer["macs"] for layer in by_step["layers"]] == [layer.macs for layer in row[i].layers]
        words = page.words(f"energy-{account.convention}")  # of the last step, which is looked at
        for layer in account.layers:
            assert layer.name in words
            assert words.count(joules(layer.energy_J)) >= 1
        assert {f"SNN {si(account.energy_J)}", f"ANN {si(account.ann_energy_J)}"} <= set(words)


def test_spikes_of_a_layer_are_those_of_the_model(page: Browsing, fp32: Predictor) -> None:
    page.sample(SAMPLE)
    spikes = Probe(fp32).run(image_of(fp32))
    page.tab("spikes")
    for layer in (None, fp32.about.lif_layers[1], fp32.about.lif_layers[0]):
        name = layer or fp32.about.lif_layers[0]
        if layer is not None:
            page.choose("layer", layer)
        page.until(lambda name=name: page.figure("spike-maps")["layer"] == name)
        fired = spikes[name]
        maps, raster = page.figure("spike-maps"), page.figure("spike-raster")
        assert maps["spikes_by_channel_and_step"] == fired.sum(axis=(2, 3)).T.tolist()
        assert maps["share_by_step"] == fired.mean(axis=(1, 2, 3)).tolist()
        for neuron in raster["neurons"]:
            alone = fired[:, neuron["channel"], neuron["row"], neuron["column"]]
            assert neuron["steps"] == (np.flatnonzero(alone) + 1).tolist()
        for t in range(1, fp32.about.T + 1):
            page.go(t)
            assert any(f"Step {t} of 3: {fired[t - 1].sum():,} of" in words for words in page.words("spike-maps"))
    assert page.alerts() == []


def test_another_network_is_shown_and_compared_with(page: Browsing, fp32: Predictor, int8: Predictor) -> None:
    page.sample(SAMPLE)
    names = [f"{fp32.about.name}, {precision}" for precision in ("fp32", "int8")]
    page.tab("compare")
    compared(page, names, (fp32, int8))
    page.choose("network", "int8")
    page.until(lambda: page.answer["precision"] == "int8")
    (stopped,) = int8.predict(image_of(int8)[None])
    assert page.answer["network"] == names[1]
    assert page.answer["image"] == f"sample {SAMPLE}"  # the pictures are the same bundle's
    assert (page.answer["steps_used"], page.answer["sops"]) == (len(stopped.logits), stopped.sops)
    assert page.answer["energy_J"] == stopped.energy_J
    page.until(lambda: page.figure("compare")["networks"][0]["network"] == names[1])
    compared(page, names[::-1], (int8, fp32))


def compared(page: Browsing, names: list[str], predictors: tuple[Predictor, Predictor]) -> None:
    """Both networks' numbers in the tab Compare."""
    both = page.until(lambda: page.figure("compare"))["networks"]
    truth = predictors[0].about.samples[SAMPLE].label
    for told, name, predictor, side in zip(both, names, predictors, ("first", "second"), strict=True):
        (whole,) = predictor.predict(image_of(predictor)[None], exit_threshold=1.0)
        (stopped,) = predictor.predict(image_of(predictor)[None])
        true_class = whole.running_probs[:, predictor.about.labels.index(truth)]
        assert told["network"] == name
        assert told["probability"] == pytest.approx(true_class.tolist(), abs=1e-6)
        assert told["label"] == [predictor.about.labels[k] for k in whole.running_probs.argmax(axis=1)]
        assert (told["steps_used"], told["energy_J"]) == (len(stopped.logits), stopped.energy_J)
        neurons = [np.prod(shape) for shape in predictor.about.lif_shapes]
        spikes = (whole.spike_rates * neurons).sum(axis=1)[: told["steps_used"]]
        assert told["firing_rate"] == pytest.approx(spikes.mean() / sum(neurons), rel=1e-5)
        drawn = page.figure(f"probabilities-{side}")["running_mean"]
        assert drawn == [pytest.approx(row, abs=1e-6) for row in whole.running_probs.tolist()]
        assert page.figure(f"spike-rates-{side}")["firing_rate"] == whole.spike_rates.astype(float).tolist()
        for t in range(1, predictor.about.T + 1):
            page.go(t)
            assert f"{100 * true_class[t - 1]:.1f} %" in page.words("compare")


def test_the_stored_curves_are_the_bundles(page: Browsing, fp32: Predictor) -> None:
    page.tab("testset")
    record = fp32.about.exits["fp32"]
    (network,) = page.until(lambda: page.figure("accuracy-by-steps"))["networks"]
    assert network["accuracy_by_T"] == list(record.accuracy_by_T)
    (network,) = page.figure("accuracy-by-exit")["networks"]
    assert [row["threshold"] for row in network["table"]] == [row.threshold for row in record.table]
    page.tab("chip")
    (why,) = page.until(page.alerts)
    assert "student.net.json" in why  # a synthetic bundle has none; test_chip_tab.py draws others


def test_every_figure_is_saved_as_it_is_shown(page: Browsing, tmp_path: Path) -> None:
    page.sample(SAMPLE)
    for tab in TABS:
        (tmp_path / tab).mkdir()
        saved = downloads_to(page, tmp_path / tab)
        page.tab(tab)
        page.until(lambda: [each for each in page.all("figure.card") if each.is_displayed()])
        page.go(2)
        drawn = [each for each in page.all("figure.card") if each.is_displayed()]
        shown = {}
        for each in drawn:
            name = each.get_attribute("id")
            shown[name] = {"title": each.get_attribute("data-title"), **page.figure(name)}
            each.find_element("css selector", "[data-save=json]").click()
            assert json.loads(saved(f"{name}.json")) == shown[name] | {"step": 2}
            if each.find_elements("css selector", "svg"):
                each.find_element("css selector", "[data-save=png]").click()
                assert told_apart(saved(f"{name}.png")) >= 3, name
        page.click("#save-all")
        everything: dict[str, Any] = json.loads(saved("tserve.json"))
        assert everything["figures"] == shown
        assert everything["answer"] == page.answer
        assert (everything["step"], everything["address"]) == (2, page.driver.current_url)


def told_apart(file: bytes) -> int:
    """How many colours a PNG has that cover some of it each: paper, ink, and what is drawn."""
    picture = Image.open(io.BytesIO(file))
    assert picture.format == "PNG"
    assert picture.width > 400
    colours = picture.convert("RGB").getcolors(picture.width * picture.height)
    return sum(count > 50 for count, _ in colours)
