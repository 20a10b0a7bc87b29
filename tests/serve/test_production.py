"""A server with everything on, as a team would run it: a key, a folder of models that change, workers that die."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from serving_process import started
from synthetic import describe, draw, png, write_bundle


KEY = "a long secret"
GOOD = {"image": ("picture.png", png(draw(1)), "image/png")}
SERVE = ("bentoml", "serve", "--host", "127.0.0.1")


@dataclass(frozen=True)
class Server:
    """A server of two models, `first` and `second`, that asks for KEY."""

    client: httpx.Client
    folder: Path
    log: Path
    process: subprocess.Popen[bytes]

    def models(self) -> dict[str, str]:
        """Name -> bundle."""
        return {each["model"]: each["bundle"] for each in self.client.get("/models").json()["models"]}


@pytest.fixture(scope="module")
def server(serve_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("production")
    for name, threshold in (("first", 0.66), ("second", 0.9)):
        write_bundle(home / "models" / name, samples=2, threshold=threshold)
    settings = {"TSERVE_BUNDLE": str(home / "models"), "TSERVE_API_KEY": KEY, "TSERVE_WATCH": "0.1"}
    env = serve_env | settings | {"BENTOML_HOME": str(home / "bentoml")}
    with (
        started(*SERVE, env=env, ready="/readyz", log=home / "log") as (url, process),
        httpx.Client(base_url=url, timeout=30, headers={"Authorization": f"Bearer {KEY}"}) as client,
    ):
        yield Server(client, home / "models", home / "log", process)


def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/classify"),
        ("POST", "/classify_batch"),
        *(("GET", path) for path in ("/", "/docs.json", "/model", "/models", "/metrics", "/schema.json", "/ui/", "/x")),
        ("GET", "/ui/gradio_api/info"),
        ("GET", "/static_content/swagger-ui.css"),
    ],
)
def test_without_the_key_there_is_nothing_but_health(server: Server, method: str, path: str) -> None:
    url = str(server.client.base_url).rstrip("/") + path
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
        answer = httpx.request(method, url, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorised")
        assert answer.headers["www-authenticate"].startswith("Basic")
    assert httpx.request(method, url, auth=("anybody", KEY), follow_redirects=True).status_code != 401
    for health in ("/livez", "/readyz", "/healthz"):
        assert httpx.get(url.removesuffix(path) + health).status_code == 200


def test_a_request_names_its_model(server: Server) -> None:
    def bundle(**query: str) -> str:
        return server.client.post("/classify", files=GOOD, params=query).json()["bundle"]

    models = server.models()
    assert models.keys() == {"first", "second"}
    assert bundle() == bundle(model="first") == models["first"] != models["second"] == bundle(model="second")
    assert server.client.get("/model", params={"model": "second"}).json()["exit"]["threshold"] == 0.9
    refused = server.client.post("/classify", files=GOOD, params={"model": "third"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_model")
    assert str(server.folder) not in refused.text


def test_options_change_the_answer(server: Server) -> None:
    def ask(**query: object) -> dict:
        return server.client.post("/classify", files=GOOD, params=query).json()

    whole = ask(exit_confidence=1)
    assert whole["steps_used"] == len(whole["per_timestep"]) == 3
    assert ask(exit_confidence=0)["steps_used"] == 1
    assert ask(exit_confidence=1, steps=2)["per_timestep"] == whole["per_timestep"][:2]
    assert ask(top_k=2)["top_k"] == ask()["top_k"][:2]
    assert {"per_timestep", "spike_rates"}.isdisjoint(ask(detail="false"))
    assert ask(steps=4)["error"]["code"] == "bad_option"


def test_a_new_model_is_served_without_a_restart(server: Server) -> None:
    write_bundle(server.folder / ".third", samples=1, threshold=0.5)
    (server.folder / ".third").rename(server.folder / "third")
    until(lambda: "third" in server.models())
    assert server.client.post("/classify", files=GOOD, params={"model": "third"}).status_code == 200


def test_bundles_are_swapped_under_load_and_no_request_fails(server: Server) -> None:
    """Every answer is one bundle's: the exit at 0.66 takes 2 steps for this image, the one at 0.9 all 3."""
    answers: list[tuple[int, str, int]] = []
    stop = threading.Event()
    second = server.folder / "second"

    def call() -> None:
        with httpx.Client(base_url=server.client.base_url, headers=server.client.headers, timeout=30) as client:
            while not stop.is_set():
                answer = client.post("/classify", files=GOOD, params={"model": "second"})
                body = answer.json()
                answers.append((answer.status_code, body.get("bundle", ""), body.get("steps_used", 0)))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    steps, shown = {server.models()["second"]: 3}, server.models()["second"]
    for n in range(5):
        describe(second, threshold=(0.66, 0.9)[n % 2])
        before = shown
        until(lambda before=before: server.models()["second"] != before)
        shown = server.models()["second"]
        steps[shown] = 2 + n % 2
    stop.set()
    for caller in callers:
        caller.join()
    assert len(steps) == 2
    assert {status for status, *_ in answers} == {200}
    assert {(bundle, used) for _, bundle, used in answers} == set(steps.items())


def test_a_broken_bundle_is_refused_and_the_old_one_serves_on(server: Server) -> None:
    before = server.models()["first"]
    model = server.folder / "first" / "model.onnx"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1])
    until(lambda: "first is refused" in server.log.read_text())
    for _ in range(10):
        assert server.client.post("/classify", files=GOOD).json()["bundle"] == before
    model.write_bytes(whole)
    metrics = server.client.get("/metrics").text
    assert 'tserve_swaps_total{model="first",outcome="refused"} 1.0' in metrics


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children() if "service" in " ".join(child.cmdline())]


def test_a_killed_worker_is_replaced(server: Server) -> None:
    (worker,) = workers(server.process)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait(5)

    def answers() -> bool:
        try:
            return server.client.post("/classify", files=GOOD, timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    until(answers, 30)
    assert worker.pid not in {each.pid for each in workers(server.process)}


def test_whoever_was_accepted_is_answered_when_the_server_ends(serve_env: dict[str, str], tmp_path: Path) -> None:
    """Large requests are under way, and wait, when the signal comes."""
    batch = [[(draw(n) / 255).tolist()] for n in range(256)]
    answers = []
    env = serve_env | {"BENTOML_HOME": str(tmp_path / "bentoml"), "TSERVE_QUEUE": "2048"}
    with started(*SERVE, env=env, ready="/readyz", log=tmp_path / "log") as (url, process):
        accepted = threading.Barrier(9)

        def call() -> None:
            with httpx.Client(base_url=url, timeout=30) as client:
                client.get("/livez")
                accepted.wait()
                answers.append(client.post("/classify_batch", json={"images": batch}))

        callers = [threading.Thread(target=call) for _ in range(8)]
        for caller in callers:
            caller.start()
        accepted.wait()
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        for caller in callers:
            caller.join()
        assert process.wait(30) == 0
    assert [answer.status_code for answer in answers] == [200] * 8
    assert {len(answer.json()) for answer in answers} == {256}


def test_an_open_page_does_not_hold_up_the_end(serve_env: dict[str, str], tmp_path: Path) -> None:
    """A browser keeps one request under way for as long as it shows the page."""
    env = serve_env | {"BENTOML_HOME": str(tmp_path / "bentoml")}
    with (
        started(*SERVE, env=env, ready="/readyz", log=tmp_path / "log") as (url, process),
        httpx.stream("GET", f"{url}/ui/gradio_api/heartbeat/abc", timeout=30) as heartbeat,
    ):
        stream = heartbeat.iter_raw()
        assert b"ALIVE" in next(stream)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_rush_is_shed_with_a_time_to_come_again(serve_env: dict[str, str], tmp_path: Path) -> None:
    batch = {"images": [[(draw(n) / 255).tolist()] for n in range(64)]}
    env = serve_env | {"BENTOML_HOME": str(tmp_path / "bentoml"), "TSERVE_QUEUE": "4", "TSERVE_RUNNERS": "1"}
    with started(*SERVE, env=env, ready="/readyz", log=tmp_path / "log") as (url, _):
        answers = []

        def call() -> None:
            with httpx.Client(base_url=url, timeout=30) as client:
                answers.extend(client.post("/classify_batch", json=batch) for _ in range(4))

        callers = [threading.Thread(target=call) for _ in range(24)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        shed = [answer for answer in answers if answer.status_code != 200]
        assert shed
        assert len(shed) < len(answers) == 96
        for answer in shed:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
        assert {len(answer.json()) for answer in answers if answer.status_code == 200} == {64}
        assert httpx.post(f"{url}/classify", files=GOOD).status_code == 200
