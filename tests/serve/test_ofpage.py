"""What the gate makes of the page's requests and of redirects."""

import asyncio
import json
from urllib.parse import quote, urljoin

import pytest
from asgi import Answer, ask
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from serve.settings import Settings
from serve.web import ofpage
from serve.web.gate import Front, Gate
from serve.web.reply import here


CALL = "/ui/gradio_api/run/predict"
SECRET = "Cannot move /srv/secret to the cache"


def told(status: int, content: bytes, *, path: str = CALL, kind: bytes = b"application/json", **about: str) -> Answer:
    """What a client sees of the application's answer."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    gate = Gate(app, settings=Settings(bundles=("none",)), front=Front(ready=True))
    return asyncio.run(ask(gate, path=path, **about))


@pytest.mark.parametrize(
    "content",
    [
        {"error": SECRET, "visible": True},
        {"error": None},
        {"error": {"code": SECRET}},
        {"detail": SECRET},
        [SECRET],
        SECRET,
    ],
    ids=["an exception", "none", "an object", "FastAPI's", "a list", "a text"],
)
@pytest.mark.parametrize("status", [400, 404, 422, 500, 502, 599])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_others_say_of_an_error_of_the_page_stays_inside(content: object, status: int, method: str) -> None:
    answer = told(status, json.dumps(content).encode(), method=method)
    assert answer.status == status
    assert json.loads(answer.body).keys() == {"error"}
    assert json.loads(answer.body)["error"].endswith("load the page again.")
    assert int(answer.headers["content-length"]) == len(answer.body)


def test_a_failure_of_the_web_framework_is_told_in_words_too() -> None:
    answer = told(500, b"Internal Server Error", kind=b"text/plain")
    assert (json.loads(answer.body), answer.headers["content-type"]) == ({"error": ofpage.FAILED}, "application/json")


@pytest.mark.parametrize(
    ("status", "content", "kind"),
    [
        (500, b'{"error":"Draw something.","duration":10,"visible":true,"title":"Error"}', b"application/json"),
        (404, b'{"error":"The page has changed."}', b"application/json"),
        (413, b"File size exceeded maximum allowed size of 9 bytes.", b"text/plain"),
        (503, b"As many files have been uploaded as may: try again.", b"text/plain"),
    ],
)
def test_what_was_written_for_a_visitor_stays(status: int, content: bytes, kind: bytes) -> None:
    answer = told(status, content, kind=kind)
    assert (answer.status, answer.body, answer.headers["content-type"]) == (status, content, kind.decode())


def test_what_is_no_call_of_the_page_is_left_alone() -> None:
    content = b'{"detail": "Not Found"}'
    assert told(404, content, path="/ui/x").body == content
    assert told(200, b'{"error": "x", "visible": true}').body == b'{"error": "x", "visible": true}'


def test_calls_beyond_the_places_are_refused_until_one_ends() -> None:
    places, go = ofpage.at_once(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def talk() -> None:
        gate = Gate(app, settings=Settings(bundles=("none",)), front=Front(ready=True))
        waiting = [asyncio.ensure_future(ask(gate, path=CALL)) for _ in range(places)]
        others = [asyncio.ensure_future(ask(gate, path=path)) for path in ("/classify", "/model", "/ui/x")]
        look = asyncio.ensure_future(ask(gate, path=CALL, method="GET"))
        await asyncio.sleep(0.01)
        refused = await ask(gate, path=CALL)
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert "try again in 1 s" in json.loads(refused.body)["error"]
        go.set()
        answers = await asyncio.gather(*waiting, *others, look, ask(gate, path=CALL))
        assert {answer.status for answer in answers} == {200}

    asyncio.run(talk())


PATHS = st.text(st.sampled_from("ab:/.%?é "), max_size=12).map(lambda text: f"/{text}")


@given(PATHS, st.sampled_from(["", "/"]), st.sampled_from(["", "x=1&y=//b"]))
def test_a_redirect_to_the_same_place_names_no_host_and_leads_there(path: str, slash: str, query: str) -> None:
    """Against the standard library's reading of relative addresses."""
    target = quote(path.rstrip("/") + slash) or "/"
    location = here(
        f"http://evil.example{target}{f'?{query}' if query else ''}".encode(), quote(path).encode()
    ).decode()
    assert location.startswith(("./", "../"))
    dots = {".", ".."} & set(path.split("/"))  # which browsers take out before they ask
    if not dots and "//" not in path.rstrip("/"):
        assert urljoin(f"https://proxy.example{quote(path)}", location) == (
            f"https://proxy.example{target}{f'?{query}' if query else ''}"
        )


@pytest.mark.parametrize("location", ["https://other.example/x", "/login", "http://x/ui/y", "//other.example/ui/x"])
def test_other_redirects_are_left_alone(location: str) -> None:
    assert here(location.encode(), b"/ui") == location.encode()
