"""The running server where strangers meet it: heads, redirects, what browsers ask for, the page's errors, the log."""

import json
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from engine_kit import until
from serving_process import started
from wire import answer, closes, code

from serve.web import ofpage


KEY = "a long secret"
TIMEOUT_S = 2


@dataclass(frozen=True)
class Server:
    """A server that asks for KEY."""

    client: httpx.Client
    log: Path
    pid: int

    def connect(self) -> socket.socket:
        """A connection to it."""
        return socket.create_connection(("127.0.0.1", self.client.base_url.port or 80), timeout=10)

    def memory(self) -> int:
        """Bytes that it and its workers hold."""
        process = psutil.Process(self.pid)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))

    def click(self, **body: object) -> httpx.Response:
        """What the page's script sends."""
        return self.client.post("/ui/gradio_api/run/predict", json=body)


@pytest.fixture(scope="module")
def server(serve_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("door")
    env = serve_env | {"TSERVE_API_KEY": KEY, "TSERVE_TIMEOUT": str(TIMEOUT_S), "BENTOML_HOME": str(home / "bentoml")}
    serve = ("bentoml", "serve", "--host", "127.0.0.1")
    with (
        started(*serve, env=env, ready="/readyz", log=home / "log") as (url, process),
        httpx.Client(base_url=url, timeout=30, headers={"Authorization": f"Bearer {KEY}"}) as client,
    ):
        yield Server(client, home / "log", process.pid)


@pytest.mark.parametrize("block", [b"X-A: " + b"a" * 60_000 + b"\r\n", b"a" * 60_000], ids=["many", "one"])
def test_endless_headers_cost_nothing(server: Server, block: bytes) -> None:
    before = server.memory()
    for _ in range(3):
        with server.connect() as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: ")
            try:
                for _ in range(1000):
                    connection.sendall(block)
            except OSError:
                continue
    assert server.memory() - before < 30e6
    assert httpx.get(server.client.base_url.join("/livez")).status_code == 200


def test_a_head_is_waited_for_as_long_as_a_body(server: Server) -> None:
    with server.connect() as connection:
        start = time.monotonic()
        connection.sendall(b"GET /livez HTTP/1.1\r\nX-A: ")
        status, body, _ = answer(connection)
        assert (status, code(body)) == (408, "headers_too_slow")
        assert TIMEOUT_S * 0.9 < time.monotonic() - start < TIMEOUT_S + 5
        assert closes(connection)


@pytest.mark.parametrize(
    ("path", "where", "target"),
    [
        ("/ui", "./ui/", "/ui/"),
        ("/classify/?top_k=2", "../classify?top_k=2", "/classify"),
        ("/model//", "../../model", "/model"),
    ],
)
def test_a_redirect_stays_behind_the_proxy(server: Server, path: str, where: str, target: str) -> None:
    """An address with a scheme would send the browser, and its password, out of the proxy's TLS."""
    headers = {"Host": "tserve.example", "X-Forwarded-Proto": "https"}
    said = server.client.request("POST" if "classify" in path else "GET", path, headers=headers)
    assert (said.status_code, said.headers["location"]) == (307, where)
    assert said.next_request is not None
    assert (said.next_request.url.path, said.next_request.url.host) == (target, "127.0.0.1")


@pytest.mark.parametrize(
    ("path", "status", "content"), [("/favicon.ico", 204, b""), ("/manifest.json", 200, b'{"name": "TSERve"}')]
)
def test_what_browsers_ask_for_by_themselves_is_no_refusal(
    server: Server, path: str, status: int, content: bytes
) -> None:
    """Not even without the key: a browser does not bring it for a manifest."""
    before = server.client.get("/metrics").text
    said = httpx.get(server.client.base_url.join(path))
    assert (said.status_code, said.content) == (status, content)
    after = server.client.get("/metrics").text

    def refusals(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("tserve_rejected")]

    assert refusals(before) == refusals(after)


def test_the_metrics_do_not_count_who_reads_them(server: Server) -> None:
    # Who was there before may not be gone yet.
    until(lambda: "tserve_requests_in_progress 0.0" in server.client.get("/metrics").text)
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda _: server.client.get("/metrics").text, range(12)))
    for text in texts:
        assert "tserve_requests_in_progress 0.0" in text.splitlines()


@pytest.mark.parametrize(
    "body",
    [
        {"fn_index": 999, "data": []},
        {"fn_index": -1, "data": []},
        {"fn_index": 0, "data": None},
        {"fn_index": 2, "data": [{"path": "", "meta": {"_type": "gradio.FileData"}}] * 14},
        {},
    ],
    ids=["no such event", "below the first", "no values", "a folder for a file", "nothing"],
)
def test_the_page_is_told_of_errors_in_words_that_tell_nothing(server: Server, body: dict) -> None:
    said = server.click(session_hash="x", **body)
    assert said.status_code >= 400
    assert said.headers["content-type"] == "application/json"
    words = said.json()["error"]
    assert words.endswith((".", "!"))
    assert not any(inner in said.text for inner in (os.getcwd(), "/tmp", "object", "list", "KeyError", "Internal"))


def test_a_burst_of_clicks_is_shed_in_words(server: Server) -> None:
    """As many as there are places stand still in the middle of their bodies; the next is told so at once."""
    head = f"POST /ui/gradio_api/run/predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    waiting = [server.connect() for _ in range(ofpage.at_once())]
    try:
        for connection in waiting:
            connection.sendall(head.encode())
        deadline = time.monotonic() + 5
        while (said := server.click(fn_index=999, data=[])).status_code != 503:
            assert time.monotonic() < deadline
        assert said.headers["retry-after"] == "1"
        assert said.json() == {"error": f"The page has too many visitors: {said.json()['error'].partition(': ')[2]}"}
        assert "try again in 1 s" in said.json()["error"]
        assert server.client.get("/ui/config").status_code == 200  # what is no work is not counted
        assert server.client.get("/model").status_code == 200
    finally:
        for connection in waiting:
            connection.close()
    deadline = time.monotonic() + 10
    while server.click(fn_index=999, data=[]).status_code == 503:
        assert time.monotonic() < deadline


def test_every_line_of_the_workers_log_is_json(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"this is no HTTP\r\n\r\n")
        assert closes(connection)
    server.click(fn_index=0, data=[5] * 14, session_hash="x")  # values of wrong types
    server.click(fn_index=999, data=[])
    time.sleep(0.2)
    lines = server.log.read_text().splitlines()
    plain = [line for line in lines if not line.startswith("{")]
    assert [line for line in plain if "[cli]" not in line] == []  # BentoML's parent process, of its start and end
    codes = {json.loads(line).get("code") for line in lines if line.startswith("{")}
    assert "bad_http" in codes
