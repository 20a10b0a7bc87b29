"""What a browser may make the page's server do: read what was uploaded, and nothing else."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from synthetic import draw, png


@pytest.fixture(params=["at /ui of the service", "alone"])
def page(request: pytest.FixtureRequest) -> str:
    """The page's URL."""
    if request.param == "alone":
        return str(request.getfixturevalue("page_alone"))
    return f"{request.getfixturevalue('server')}/ui"


def chosen(page: str, path: str) -> httpx.Response:
    """The answer to the event that a file was chosen, which a browser claims to have uploaded to `path`."""
    config = httpx.get(f"{page}/config").json()
    parts = {part["id"]: part for part in config["components"]}
    (event,) = (each for each in config["dependencies"] if any(target[1] == "upload" for target in each["targets"]))

    def value(part: dict[str, Any]) -> Any:
        if part["type"] == "file":
            return {"path": path, "meta": {"_type": "gradio.FileData"}}
        return {"hidden-tab": "steps", "hidden-shown": ""}.get(part["props"].get("elem_id"), part["props"].get("value"))

    data = [value(parts[id]) for id in event["inputs"]]
    body = {"fn_index": event["id"], "data": data, "session_hash": "test"}
    return httpx.post(f"{page}/gradio_api/run/predict", json=body, timeout=30)


def test_an_uploaded_file_is_read(page: str) -> None:
    (path,) = httpx.post(f"{page}/gradio_api/upload", files={"files": ("a.png", png(draw(1)))}).json()
    answer = chosen(page, path)
    assert answer.status_code == 200
    assert "answer-card" in answer.text


def test_a_file_of_the_server_is_not_read(page: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(draw(1)))
    answer = chosen(page, str(secret))
    assert answer.status_code == 500
    assert "was not uploaded by a user" in answer.text
    assert "answer-card" not in answer.text


def test_nothing_is_fetched_for_a_browser(page: str) -> None:
    answer = chosen(page, "http://tserve.invalid/a.png")
    assert answer.status_code == 500
    assert "takes no addresses" in answer.text
