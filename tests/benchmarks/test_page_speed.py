"""The benchmark of the page runs, and what it counts is what the browser told."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))

import page_speed
from synthetic import write_bundle


def event(method: str, id: str, **params: Any) -> dict[str, Any]:
    """As Chromium tells it."""
    return {"method": f"Network.{method}", "params": {"requestId": id, **params}}


def test_only_what_came_over_the_network_is_counted() -> None:
    asked, received = set[str](), dict[str, float]()
    http, data = {"url": "http://127.0.0.1/x"}, {"url": "data:image/png;base64,x"}
    begun = [event("requestWillBeSent", id, request=http) for id in "abcd"] + [
        event("requestWillBeSent", "e", request=data)
    ]
    assert page_speed.traffic(begun, asked, received) == 4
    ended = [event("requestServedFromCache", "b"), event("responseReceived", "c", response={"fromDiskCache": True})]
    ended += [event("responseReceived", "a", response={}), {"method": "Page.loadEventFired"}]
    ended += [event("loadingFinished", id, encodedDataLength=size) for id, size in (("a", 10), ("b", 20), ("c", 30))]
    ended += [event("loadingFinished", "d", encodedDataLength=5), event("loadingFinished", "e", encodedDataLength=7)]
    assert page_speed.traffic(ended, asked, received) == 2
    assert received == {"a": 10, "d": 5}


def test_figures_are_over_all_rounds() -> None:
    def one(value: float) -> dict[str, Any]:
        load = {"load_s": value, "first_answer_s": 2 * value, "requests": 3, "bytes": 1e6}
        return {"cold": load, "warm": load, "answer_s": [value, 3 * value]}

    found = page_speed.summary([one(1.0), one(2.0)])
    assert found["cold"]["first_answer_s"] == {"median": 3, "min": 2, "max": 4}
    assert found["answer_s"] == {"median": 2.5, "min": 1, "max": 6}
    assert "| warm | 1.500 (1.000 to 2.000) | 3.000 (2.000 to 4.000) | 3 (3 to 3) | 1.00 (1.00 to 1.00) |" in (
        page_speed.table(found)
    )


def test_a_setting_without_a_value_is_named() -> None:
    with pytest.raises(ValueError, match="expected NAME=VALUE, got 'TSERVE_QUEUE'"):
        page_speed.Config(set=("TSERVE_QUEUE",))
    with pytest.raises(ValueError, match="rounds must be 1 or more, got 0"):
        page_speed.Config(rounds=0)


def test_a_bundle_with_nothing_to_choose_from_is_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", samples=1)
    with pytest.raises(ValueError, match="needs 2 samples or more, there are 1"):
        page_speed.main(page_speed.Config(bundle=bundle))


@pytest.mark.browser
@pytest.mark.skipif(not shutil.which("chromedriver"), reason="no chromedriver on PATH")
def test_the_page_is_measured(tmp_path: Path) -> None:
    bundle, out = write_bundle(tmp_path / "bundle", samples=3), tmp_path / "speed.json"
    page_speed.main(page_speed.Config(bundle=bundle, rounds=1, clicks=3, out=out))
    content = json.loads(out.read_text())
    (round_,) = content["rounds"]
    assert len(round_["answer_s"]) == 3
    for kind in page_speed.KINDS:
        assert 0 < round_[kind]["load_s"] < page_speed.LIMIT_S
        assert 0 < round_[kind]["first_answer_s"] < page_speed.LIMIT_S
    assert round_["cold"]["bytes"] > round_["warm"]["bytes"] > 0
    assert round_["cold"]["requests"] > round_["warm"]["requests"]
    assert {"chromium", "gradio", "bentoml"} <= set(content["versions"])
    assert content["machine"]["cores"] >= 1
