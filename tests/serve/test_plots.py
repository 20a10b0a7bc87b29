"""The drawn report: numbers as given, text escaped, words that are true whichever way the comparison goes."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from serve import plots
from serve.bundle import Description, read
from serve.predictor import Prediction


VOID = {"img"}


class Balance(HTMLParser):
    """Raises where tags do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        """<line/> opens nothing."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def about(bundle_dir: Path) -> Description:
    return read(bundle_dir).about


def prediction(logits: list[list[float]], **changes: object) -> Prediction:
    """A prediction with these logits [T, 4] and made-up counts."""
    made = Prediction(
        logits=np.array(logits, np.float32),
        spike_rates=np.linspace(0, 0.4, 2 * len(logits), dtype=np.float32).reshape(len(logits), 2),
        sops=1000,
        macs=2400,
        energy_J=1.2e-8,
        latency_s=0.002,
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize("T", [1, 2, 5, 40])
def test_a_report_is_well_formed_for_any_number_of_steps(about: Description, T: int) -> None:
    html = plots.report(prediction([[0.0, 2.0, 0.0, 0.0]] * T), about, picture=b"png", truth="ring")
    balance = Balance()
    balance.feed(html)
    assert balance.open == []
    assert len(re.findall("<td style=", html)) == 2 * T
    assert "The true label is ring: correct." in html


def test_names_of_a_bundle_cannot_bring_markup(about: Description) -> None:
    evil = about.model_copy(update={"labels": ("<script>", "b", "c", "d"), "lif_layers": ("<i>", "x")})
    html = plots.report(prediction([[9.0, 0, 0, 0]]), evil, picture=b"", truth="<b>")
    assert "<script>" not in html
    assert "<i>" not in html
    assert "&lt;script&gt;" in html
    assert "<b>x" not in plots.alert("<b>x")


@pytest.mark.parametrize(
    ("logits", "said"),
    [
        ([[5.0, 0, 0, 0]], "After 1 time step the network says disc."),
        ([[5.0, 0, 0, 0]] * 2, "After 2 time steps the network says disc; it has said so from the first step on."),
        ([[5.0, 0, 0, 0], [0, 9.0, 0, 0]], "says ring; until step 1 its running answer was disc."),
    ],
)
def test_the_sentence_tells_when_the_answer_was_reached(about: Description, logits: list, said: str) -> None:
    assert said in plots.report(prediction(logits), about, picture=b"")


@pytest.mark.parametrize(
    ("snn", "ann", "said"),
    [
        (1e-8, 3e-8, "The SNN needs 3 times less energy than the ANN for this image."),
        (4.5e-8, 3e-8, "The SNN needs 1.5 times MORE energy than the ANN for this image."),
        (3e-5, 2e-8, "The SNN needs 1,500 times MORE energy than the ANN for this image."),
        (3e-8, 3e-8, "The SNN needs as much energy as the ANN for this image."),
        (0.0, 3e-8, "One of the two energies is zero: there is no ratio."),
    ],
)
def test_the_ratio_is_told_whichever_is_smaller(snn: float, ann: float, said: str) -> None:
    assert plots.ratio(snn, ann) == said


def test_energy_bars_start_at_zero_and_keep_the_ratio(about: Description) -> None:
    html = plots.report(prediction([[1.0, 0, 0, 0]], energy_J=2 * about.energy.ann_energy_J), about, picture=b"")
    assert re.findall(r"width:([\d.]+)%", html) == ["100.00", "50.00"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0 J"), (2.26e-8, "22.6 nJ"), (9e-13, "900 fJ"), (1.0, "1 J"), (1e-3, "1 mJ"), (1e-20, "1e-05 fJ")],
)
def test_quantities_get_a_prefix(value: float, text: str) -> None:
    assert plots.si(value, "J") == text
