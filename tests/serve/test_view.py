"""What the page answers to each event, without a browser: what is asked for may be anything."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.batching import Overloaded
from serve.exits import Exit
from serve.models import Models
from serve.predictor import Prediction, Predictor
from serve.ui import view as views
from serve.ui.asked import Asked
from serve.ui.contenders import Contenders, name_of, split
from serve.ui.view import View


CLOSED = Asked(
    source="",
    file=None,
    camera=None,
    sketch=None,
    noise=0.0,
    blur=0.0,
    contrast=1.0,
    network=None,
    threshold=1.0,
    layer=None,
    other=None,
    tab="",
    shown="",
)
"""A page that is not open yet."""


def run(predictor: Predictor, image: np.ndarray) -> Prediction:
    """All steps, at once."""
    return predictor.predict(image[None], exit_threshold=1.0)[0]


@pytest.fixture(scope="module")
def contenders(digits_dir: Path) -> Iterator[Contenders]:
    """One model in two precisions."""
    models = Models((str(digits_dir),), provider="cpu")
    yield Contenders(models, provider="cpu")
    models.close()


@pytest.fixture(scope="module")
def view(contenders: Contenders) -> View:
    """The page's answers."""
    return View(contenders, run)


def asked(view: View, **changes: Any) -> Asked:
    """What the page asks for once it is open."""
    told = view.opened("", CLOSED)
    opened = {"source": told["source"], "shown": told["shown"], "network": told["network"].value, "tab": told["tab"]}
    return Asked(**vars(CLOSED) | opened | {"threshold": None} | changes)


def test_networks_are_named_by_model_and_precision(contenders: Contenders) -> None:
    assert contenders.names() == ["shapes-synthetic-T3, fp32", "shapes-synthetic-T3, int8"]
    assert split(name_of("a, b", "int8")) == ("a, b", "int8")
    name, predictor = contenders.get("shapes-synthetic-T3, int8")
    assert predictor.precision == "int8"
    assert contenders.get(name)[1] is predictor  # opened once
    assert contenders.get()[1].precision == "fp32"


def test_an_event_before_the_page_is_open_shows_the_first_sample(view: View) -> None:
    assert '"image":"sample 0"' in view.see(CLOSED)["answer"]


@pytest.mark.parametrize("odd", [None, True, ["x"], {}, {"path": "x"}, b"x", (1,)])
def test_a_value_of_another_type_is_taken_for_its_default(odd: Any) -> None:
    assert Asked.of([odd] * len(vars(CLOSED))) == Asked()
    assert Asked.of([5] * len(vars(CLOSED))) == Asked(noise=5, blur=5, contrast=5, threshold=5)
    assert Asked.of(["x"] * len(vars(CLOSED))) == replace(
        Asked(), **{name: "x" for name in vars(CLOSED) if name not in ("noise", "blur", "contrast", "threshold")}
    )


@pytest.mark.parametrize("tab", ["steps", "spikes", "energy", "compare", "testset", "chip"])
def test_each_tab_draws_its_own_figures_only(view: View, tab: str) -> None:
    parts = view.see(asked(view, tab=tab))
    own = {"spikes": {"spikes"}, "energy": {"energies"}, "compare": {"compare", "other"}}
    own |= {"testset": {"testset"}, "chip": {"chip"}, "steps": {"probabilities", "rates", "sureness", "energy"}}
    assert set(parts) == {"answer"} | own[tab]


def test_what_cannot_be_is_said_in_a_sentence(view: View) -> None:
    for changes in (
        {"source": "sample:99"},
        {"source": "x"},
        {"noise": 9.0},
        {"threshold": 9.0},
        {"network": "nobody, fp32"},
    ):
        answer = view.see(asked(view, **changes))["answer"]
        assert 'role="alert"' in answer
        assert "answer-card" not in answer
    assert "no layer" in view.see(asked(view, tab="spikes", layer="none"))["spikes"]
    assert "nobody" in view.see(asked(view, tab="compare", other="nobody, int8"))["compare"]


@given(st.fixed_dictionaries({}, optional={
    "source": st.text(max_size=12) | st.sampled_from(["file", "camera", "sketch", "sample:1", "sample:-1"]),
    "camera": st.text(max_size=30),
    "sketch": st.text(max_size=30) | st.just("data:image/png;base64,"),
    "noise": st.floats() | st.text(max_size=3) | st.none(),
    "blur": st.floats(),
    "contrast": st.none() | st.booleans(),
    "network": st.none() | st.text(max_size=8),
    "threshold": st.none() | st.floats(),
    "layer": st.none() | st.text(max_size=8),
    "other": st.none() | st.text(max_size=8),
    "tab": st.text(max_size=8) | st.sampled_from(["steps", "spikes", "compare", "testset"]),
    "shown": st.text(max_size=8),
}))  # fmt: skip
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_browser_sends_is_answered(view: View, changes: dict[str, Any]) -> None:
    answer = view.see(asked(view, **changes))["answer"]
    assert ("answer-card" in answer) != ('role="alert"' in answer)


@given(st.text(max_size=60) | st.sampled_from(["?t=x", "?model=", "?noise=nan", "?threshold=1e999", "?sample=-1"]))
@settings(max_examples=40)
def test_whatever_the_address_is_the_page_opens(view: View, query: str) -> None:
    parts = view.opened(query, CLOSED)
    assert "stepper" in parts
    assert "answer-card" in parts["answer"] or 'role="alert"' in parts["answer"]


def test_a_network_with_too_much_to_do_says_when_to_come_again(contenders: Contenders) -> None:
    def busy(predictor: Predictor, image: np.ndarray) -> Prediction:
        raise Overloaded("257 images wait", retry_after_s=4)

    view = View(contenders, busy)
    parts = view.see(CLOSED)
    assert "too much to do (257 images wait): try again in 4 s." in parts["answer"]
    assert {parts[name] for name in views.FIGURES} == {""}


def test_a_message_names_no_folder_of_the_server() -> None:
    told = views.sentence(ValueError("/srv/models/a/model.onnx: broken; see /var/log/x.txt and http://a.b/c/d"))
    assert told == "model.onnx: broken; see x.txt and http://a.b/c/d."


def test_the_slider_means_the_served_exit_where_it_stands_at_it_and_all_steps_at_its_end(view: View) -> None:
    _, predictor = view.contenders.get()
    served = predictor.exit
    assert views.exit_of(predictor, None) is served
    assert views.exit_of(predictor, served.threshold + 0.0004) is served
    assert views.exit_of(predictor, served.threshold + 0.002) == Exit("confidence", served.threshold + 0.002)
    high = type("High", (), {"exit": Exit("confidence", 0.9997)})()
    assert views.exit_of(high, 1.0).threshold == 1
    assert views.exit_of(high, 0.9997) is high.exit


def test_an_address_leads_back_to_what_is_shown(view: View) -> None:
    _, predictor = view.contenders.get("shapes-synthetic-T3, int8")
    query = "precision=int8&sample=3&noise=0.25&threshold=0.4"
    parts = view.opened(f"?{query}", CLOSED)
    assert f'data-link="model=shapes-synthetic-T3&amp;{query.replace("&", "&amp;")}"' in parts["answer"]
    assert parts["noise"] == 0.25
    assert parts["threshold"].value == 0.4
    assert parts["shown"] == views.identity("shapes-synthetic-T3, int8", predictor)
    assert "data-link" not in view.see(asked(view, source="file", file="/nowhere"))["answer"]


def test_the_controls_of_another_network_are_renewed_and_keep_the_sample(view: View) -> None:
    parts = view.see(asked(view, network="shapes-synthetic-T3, int8", source="sample:2", threshold=0.3))
    assert parts["source"] == "sample:2"
    assert parts["threshold"].value == view.contenders.get("shapes-synthetic-T3, int8")[1].exit.threshold
    other = view.see(asked(view, shown="0123 fp32 another", source="sample:2"))
    assert other["source"] == "sample:0"  # the pictures are another bundle's
    assert 'role="alert"' not in other["answer"]


def test_a_network_that_was_replaced_is_told(view: View) -> None:
    name = view.contenders.names()[0]
    answer = view.see(asked(view, shown=f"0123 fp32 {name}", source="sample:2"))["answer"]
    assert answer.index("has been replaced at the server") < answer.index("answer-card")
