"""docs/grafana-dashboard.json asks for nothing that the server does not count, and Grafana can read it."""

import json
import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving_process import ROOT

from serve import metrics


DASHBOARD: dict[str, Any] = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"] if panel["type"] != "row"}
EXPRESSIONS = [target["expr"] for panel in PANELS.values() for target in panel["targets"]]
NAME = re.compile(r"\btserve_\w+")


def families() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Each name that a query may use -> its kind and labels."""
    named = {}
    for metric in vars(metrics).values():
        if type(metric).__module__ == "prometheus_client.metrics":
            endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}[metric._type]
            labels = metric._labelnames + (("le",) if metric._type == "histogram" else ())
            named |= {metric._name + ending: (metric._type, labels) for ending in endings}
    return named


def names(expression: str) -> set[str]:
    return set(NAME.findall(expression))


def test_every_metric_is_shown_and_none_is_made_up() -> None:
    exist = families()
    asked = set.union(*map(names, EXPRESSIONS))
    assert asked <= exist.keys()
    shown = {re.sub("_(bucket|sum|count|total)$", "", name) for name in asked}
    assert shown == {re.sub("_(bucket|sum|count|total)$", "", name) for name in exist}


def test_the_names_are_those_that_are_exposed() -> None:
    exposed = {family.name for family in text_string_to_metric_families(metrics.render()[0].decode())}
    assert {re.sub("_(bucket|sum|count|total)$", "", name) for name in families()} <= exposed


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_queries_use_labels_that_exist_and_rates_of_what_only_grows(expression: str) -> None:
    exist = families()
    labels = {label for name in names(expression) for label in exist[name][1]} | {"instance"}
    asked = {part.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for part in group.split(",")}
    asked |= {label for group in re.findall(r"\{([^}]*)\}", expression) for label in re.findall(r"(\w+)[=!]", group)}
    assert asked <= labels
    for name in names(expression):
        grows = exist[name][0] != "gauge"
        assert grows == bool(re.search(rf"(rate|increase)\({name}\b", expression)), name
    assert expression.count("(") == expression.count(")")


def test_legends_name_labels_that_the_query_keeps() -> None:
    for panel in PANELS.values():
        for target in panel["targets"]:
            kept = " ".join(re.findall(r"by \(([^)]*)\)", target["expr"]))
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= set(re.findall(r"\w+", kept))


def test_it_can_be_imported_with_any_prometheus() -> None:
    assert DASHBOARD["title"]
    assert DASHBOARD["uid"]
    assert DASHBOARD["schemaVersion"] >= 36
    assert "id" not in DASHBOARD  # a number would replace another dashboard
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    sources = [panel["datasource"] for panel in PANELS.values()]
    sources += [target["datasource"] for panel in PANELS.values() for target in panel["targets"]]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    used = set(re.findall(r"\$(?!__)(\w+)", json.dumps(EXPRESSIONS)))
    assert used <= variables.keys()


def test_panels_have_a_place_of_their_own_and_say_what_they_are() -> None:
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len(PANELS) == sum(panel["type"] != "row" for panel in DASHBOARD["panels"])
    assert all(panel["description"] and panel["targets"] for panel in PANELS.values())
