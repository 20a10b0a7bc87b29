"""What a browser may make the page's server do: read what was uploaded, and nothing else."""

import json
import os
from pathlib import Path
from typing import Any

import fastapi
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from synthetic import draw, png

from serve import demo
from serve.models import Models
from serve.ui import guard, uploads


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([10**400, float("nan"), float("inf"), "\ud800", "\0", ["x"], [[]], {}, {"path": 5, "meta": 5}]),
    st.sampled_from(["", ".", "a.png", "/etc/passwd", "http://tserve.invalid/a.png"]).map(
        lambda path: {"path": path, "meta": {"_type": "gradio.FileData"}}
    ),
    st.recursive(st.none() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)),
)
"""Values of all JSON types and then some."""


@pytest.fixture(params=["at /ui of the service", "alone"])
def page(request: pytest.FixtureRequest) -> str:
    """The page's URL."""
    if request.param == "alone":
        return str(request.getfixturevalue("page_alone"))
    return f"{request.getfixturevalue('server')}/ui"


def event_of(page: str, kind: str) -> tuple[int, list[dict[str, Any]]]:
    """The first event of a kind: its number, and the components whose values are sent."""
    config = httpx.get(f"{page}/config").json()
    parts = {part["id"]: part for part in config["components"]}
    event = next(each for each in config["dependencies"] if any(target[1] == kind for target in each["targets"]))
    return event["id"], [parts[id] for id in event["inputs"]]


def value(part: dict[str, Any], path: str) -> Any:
    """What a page that is open sends for a component; `path`: of the file."""
    if part["type"] == "file":
        return {"path": path, "meta": {"_type": "gradio.FileData"}}
    return {"hidden-tab": "steps", "hidden-shown": ""}.get(part["props"].get("elem_id"), part["props"].get("value"))


def sent(page: str, body: Any) -> httpx.Response:
    """The answer to a click whose request has this body."""
    told = {"content": body} if isinstance(body, bytes) else {"content": json.dumps(body).encode()}
    headers = {"content-type": "application/json"}
    return httpx.post(f"{page}/gradio_api/run/predict", headers=headers, timeout=30, **told)


def chosen(page: str, path: str) -> httpx.Response:
    """The answer to the event that a file was chosen, which a browser claims to have uploaded to `path`."""
    id, parts = event_of(page, "upload")
    return sent(page, {"fn_index": id, "data": [value(part, path) for part in parts], "session_hash": "test"})


def test_an_uploaded_file_is_read(page: str) -> None:
    (path,) = httpx.post(f"{page}/gradio_api/upload", files={"files": ("a.png", png(draw(1)))}).json()
    answer = chosen(page, path)
    assert answer.status_code == 200
    assert "answer-card" in answer.text
    os.remove(path)
    assert "no longer on the server" in chosen(page, path).text


@pytest.mark.parametrize("kind", ["absolute", "through the folder", "relative", "empty", "an address"])
def test_nothing_else_is_read_and_no_folder_is_named(page: str, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(draw(1)))
    up = f"{uploads.folder()}/{'a' * 64}/../../../{secret}"
    paths = {"absolute": str(secret), "through the folder": up, "relative": "Makefile", "empty": ""}
    answer = chosen(page, paths.get(kind, "http://tserve.invalid/a.png"))
    assert answer.status_code == 200
    assert "no file yet: choose an image" in answer.text
    assert "answer-card" not in answer.text
    assert str(Path.cwd()) not in answer.text


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_controls_hold_the_page_answers(page_alone: str, data: st.DataObject) -> None:
    if not PARTS:
        PARTS.extend(event_of(page_alone, kind) for kind in ("upload", "change", "click", "input"))
    id, parts = data.draw(st.sampled_from(PARTS))
    values = [data.draw(ODD | st.just(value(part, ""))) for part in parts]
    answer = sent(page_alone, {"fn_index": id, "data": values})
    assert answer.status_code == 200, answer.text
    assert ("answer-card" in answer.text) != ("alert" in answer.text)


PARTS: list[tuple[int, list[dict[str, Any]]]] = []
"""Of the page alone, asked for once."""


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"5", b'{"fn_index": 1}', b'{"data": 5, "fn_index": 1}', b"[" * 10**5]
)
def test_what_is_no_click_is_refused(page: str, body: bytes) -> None:
    answer = sent(page, body)
    assert (answer.status_code, answer.json()["error"]) == (400, guard.NOT_OURS)


@pytest.mark.parametrize("event", [999, -1, None, "1", True, 1.5, [], {}])
def test_an_event_that_the_page_does_not_have_is_refused(page: str, event: Any) -> None:
    answer = sent(page, {"fn_index": event, "data": []})
    assert (answer.status_code, answer.json()["error"]) == (404, guard.CHANGED)


@pytest.mark.parametrize(("name", "most"), [("Noise", "0.5"), ("Blur", "3"), ("Contrast", "2")])
def test_a_number_beyond_its_slider_is_told(page: str, name: str, most: str) -> None:
    id, parts = event_of(page, "click")
    labels = [part["props"].get("label") or "" for part in parts]
    values = [9 if label.startswith(name) else value(part, "") for part, label in zip(parts, labels, strict=True)]
    assert f"must be a number from 0 to {most}, got &#x27;9&#x27;" in sent(page, {"fn_index": id, "data": values}).text


def test_too_few_or_many_values_are_refused(page: str) -> None:
    id, parts = event_of(page, "upload")
    for count in (0, len(parts) - 1, len(parts) + 1):
        assert sent(page, {"fn_index": id, "data": [None] * count}).status_code == 404


def test_what_gradio_would_act_on_is_not_handed_to_it(page: str) -> None:
    id, parts = event_of(page, "upload")
    odd = {"trigger_id": 9999, "event_data": 5, "batched": True, "event_id": "x", "session_hash": "y", "oauth_token": 1}
    answer = sent(page, {"fn_index": id, "data": [value(part, "") for part in parts], **odd})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "way", ["queue/join", "call/predict", "call/v2/predict", "component_server", "reset", "cancel"]
)
def test_what_else_gradio_answers_is_closed(page: str, way: str) -> None:
    id, parts = event_of(page, "upload")
    body = {"fn_index": id, "data": [value(part, "") for part in parts], "session_hash": "x"}
    answer = httpx.post(f"{page}/gradio_api/{way}", json=body)
    assert (answer.status_code, answer.json()["error"]) == (404, guard.NOT_OURS)


def test_nothing_of_a_visit_stays_in_memory(bundle_dir: Path) -> None:
    models, web = Models((str(bundle_dir),), provider="cpu"), fastapi.FastAPI()
    run = demo.patient()
    demo.mount(web, models, run, path="/ui", max_body=10**6)
    blocks = next(route.app for route in web.routes if getattr(route, "path", "") == "/ui").get_blocks()
    id, event = next((id, each) for id, each in blocks.fns.items() if any(name == "change" for _, name in each.targets))
    values = ["data:image/png;base64,c2VjcmV0" if part.elem_id == "camera" else None for part in event.inputs]
    assert len(set(values)) == 2
    with TestClient(web) as client:
        body = {"fn_index": id, "data": values, "session_hash": "visitor"}
        assert client.post("/ui/gradio_api/run/predict", json=body).status_code == 200
        assert len(blocks.state_holder.session_data) == 0
    models.close()
