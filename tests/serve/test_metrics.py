"""The metrics, of one process and of several, read back with Prometheus' own parser."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from asgi import ask
from prometheus_client.parser import text_string_to_metric_families
from serving_process import ROOT
from starlette.types import Receive, Scope, Send

from serve import metrics
from serve.settings import Settings
from serve.web.gate import Front, Gate, Refusal


WORKER = """
import sys
from serve import metrics

load = metrics.Load()
load.waiting = lambda: 3
metrics.IN_PROGRESS.inc()
metrics.done("/classify", 200, 0.02)
metrics.rejected("overloaded")
metrics.swapped("net", "loaded")
load.waited(0.5)
load.ran(4, 0.1)
metrics.serving({"net": type("Runs", (), {"id": "abc", "precision": "int8", "provider": "CPU"})})
print("counted", flush=True)
for line in sys.stdin:
    text, kind = metrics.render()
    print(text.decode(), flush=True)
    print("end", flush=True)
"""
CLASSIFY = {"endpoint": "/classify"}
NET = {"model": "net", "bundle": "abc", "precision": "int8", "provider": "CPU"}


def samples(text: str) -> dict[tuple[str, frozenset], float]:
    """(name, labels) -> value."""
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(text: str, name: str, **labels: str) -> float | None:
    return samples(text).get((name, frozenset(labels.items())))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[bool], subprocess.Popen]]:
    """Starts a process that has counted one of each."""
    processes = []
    alone = {key: text for key, text in os.environ.items() if key.lower() != "prometheus_multiproc_dir"}

    def begin(shared: bool) -> subprocess.Popen:
        env = alone | ({"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)} if shared else {})
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", WORKER]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=env, stdin=pipe, stdout=pipe, text=True))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def shown(process: subprocess.Popen) -> str:
    print("show", file=process.stdin, flush=True)
    return "".join(iter(process.stdout.readline, "end\n"))


def test_one_process_alone(start: Callable[[bool], subprocess.Popen]) -> None:
    process = start(False)
    assert process.stdout.readline() == "counted\n"
    text = shown(process)
    assert value(text, "tserve_requests_total", **CLASSIFY, status="200") == 1
    assert value(text, "tserve_request_seconds_bucket", **CLASSIFY, le="0.025") == 1
    assert value(text, "tserve_request_seconds_bucket", **CLASSIFY, le="0.01") == 0
    assert value(text, "tserve_rejected_total", reason="overloaded") == 1
    assert value(text, "tserve_requests_in_progress") == 1
    assert value(text, "tserve_queue_images") == 3
    assert value(text, "tserve_queue_seconds_sum") == 0.5
    assert value(text, "tserve_batch_images_sum") == 4
    assert value(text, "tserve_run_seconds_count") == 1
    assert value(text, "tserve_swaps_total", model="net", outcome="loaded") == 1
    assert value(text, "tserve_served", **NET) == 1


def test_several_workers_add_up_and_of_a_dead_one_the_counters_stay(
    start: Callable[[bool], subprocess.Popen],
) -> None:
    workers = [start(True) for _ in range(3)]
    assert [worker.stdout.readline() for worker in workers] == ["counted\n"] * 3
    for worker in workers[:2]:  # whichever is asked
        text = shown(worker)
        assert value(text, "tserve_requests_total", **CLASSIFY, status="200") == 3
        assert value(text, "tserve_request_seconds_bucket", **CLASSIFY, le="+Inf") == 3
        assert value(text, "tserve_request_seconds_count", **CLASSIFY) == 3
        assert value(text, "tserve_requests_in_progress") == 3
        assert value(text, "tserve_queue_images") == 9
        assert value(text, "tserve_served", **NET) == 1
    workers[2].send_signal(signal.SIGKILL)
    workers[2].wait()
    text = shown(workers[0])
    assert value(text, "tserve_requests_total", **CLASSIFY, status="200") == 3
    assert value(text, "tserve_batch_images_sum") == 12
    assert value(text, "tserve_requests_in_progress") == 2
    assert value(text, "tserve_queue_images") == 6
    assert start(True).stdout.readline() == "counted\n"  # a worker in its place
    text = shown(workers[1])
    assert value(text, "tserve_requests_total", **CLASSIFY, status="200") == 4
    assert value(text, "tserve_requests_in_progress") == 3


def now(name: str, **labels: str) -> float:
    return value(metrics.render()[0].decode(), name, **labels) or 0.0


def prediction(steps: int, rate: float, sops: int, energy_J: float) -> SimpleNamespace:
    rates = np.array([[rate - 0.01, rate + 0.01]] * steps, np.float32)
    return SimpleNamespace(logits=np.zeros((steps, 10)), spike_rates=rates, sops=sops, energy_J=energy_J)


def test_images_are_counted_by_their_model() -> None:
    about = SimpleNamespace(energy=SimpleNamespace(ann_energy_J=1e-3))
    metrics.answered("one", about, [prediction(2, 0.11, 1000, 2e-4), prediction(4, 0.31, 3000, 3e-4)])
    metrics.answered("two", about, [prediction(16, 0.11, 1, 1e-4)])
    one = {"model": "one"}
    assert now("tserve_images_total", **one) == 2
    assert [now("tserve_steps_used_bucket", **one, le=f"{t}.0") for t in (1, 2, 3, 4, 16)] == [0, 1, 1, 2, 2]
    assert now("tserve_steps_used_sum", **one) == 6
    assert [now("tserve_firing_rate_bucket", **one, le=le) for le in ("0.1", "0.15", "0.3", "0.4")] == [0, 1, 1, 2]
    assert now("tserve_sops_total", **one) == 4000
    assert now("tserve_energy_joules_total", **one) == pytest.approx(5e-4)
    assert now("tserve_ann_energy_joules_total", **one) == pytest.approx(2e-3)
    assert now("tserve_images_total", model="two") == 1


def test_what_is_no_longer_served_is_zero() -> None:
    def runs(id: str) -> SimpleNamespace:
        return SimpleNamespace(id=id, precision="fp32", provider="CPUExecutionProvider")

    def served(model: str, id: str) -> float | None:
        labels = {"precision": "fp32", "provider": "CPUExecutionProvider"}
        return value(metrics.render()[0].decode(), "tserve_served", model=model, bundle=id, **labels)

    metrics.serving({"a": runs("1"), "b": runs("2")})
    assert (served("a", "1"), served("b", "2")) == (1, 1)
    metrics.serving({"a": runs("3")})
    assert (served("a", "1"), served("b", "2"), served("a", "3")) == (0, 0, 1)
    metrics.serving({"a": runs("1")})
    assert (served("a", "1"), served("a", "3")) == (1, 0)


def test_nothing_that_clients_send_makes_the_metrics_grow() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise Refusal(404, "not_found", "no", "no")

    async def talk(start: int, end: int) -> None:
        gate = Gate(app, settings=Settings(bundles=("none",)), front=Front(ready=True))
        for n in range(start, end):
            headers = [(b"host", b"h%d" % n), (b"x-request-id", b"%d" % n), (b"user-agent", b"%d" % n)]
            await ask(gate, path=f"/{n}", method=f"M{n}", headers=headers)
            await ask(gate, path=f"/ui/{n}", method="GET")

    def series() -> set:
        return set(samples(metrics.render()[0].decode()))

    asyncio.run(talk(0, 1))
    before = series()
    asyncio.run(talk(1, 5_001))
    assert series() == before
    assert now("tserve_requests_total", endpoint="other", status="404") >= 5001


def test_the_reasons_are_bounded_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_MOST_REASONS", len(metrics._reasons) + 2)
    for n in range(10):
        metrics.rejected(f"made_up_{n}")
    assert now("tserve_rejected_total", reason="made_up_1") == 1
    assert now("tserve_rejected_total", reason="made_up_2") == 0
    assert now("tserve_rejected_total", reason="other") == 8


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [("/classify", "/classify"), ("/classify/", "other"), ("/ui", "/ui"), ("/ui/a/b", "/ui"), ("/uix", "other")],
)
def test_endpoints_are_of_a_fixed_set(path: str, endpoint: str) -> None:
    assert metrics.endpoint_of(path) == endpoint


def test_the_queue_is_shown_after_each_run() -> None:
    load = metrics.Load()
    load.waiting = lambda: 5
    load.ran(1, 0.1)
    assert now("tserve_queue_images") == 5
