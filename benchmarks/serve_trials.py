"""What a server goes through in benchmarks/serve_endurance.py: each trial gives its figures and lines that hold or not.

A trial starts the service itself. Times are of time.monotonic, the load generator's too.
"""

import signal
import subprocess
import time
from collections.abc import Sequence
from random import Random
from statistics import median
from typing import Any

import psutil
from serve_client import BUSY, Apart, Plan, Sample, run
from serve_figures import Line, at_least, at_most, latencies, summary
from serve_process import Server, Setup, Watcher
from serve_requests import Request, get


Found = tuple[dict[str, Any], list[Line]]
PROBE_S = 0.5
"""An answer that takes longer is given up and asked for again."""
SHED_S, RECOVERY_S, RESTART_S, GROWTH = 0.1, 5.0, 10.0, 0.05


def overload(
    setup: Setup, requests: tuple[Request, ...], *, callers: int, queue: int, seconds: float, on_busy: Any
) -> Found:
    """Many more callers than the queue has places, for a while; one more caller asks now and then, before and after."""
    calm_s, after_s = 3.0, RECOVERY_S + 3
    with (
        setup.service({"TSERVE_QUEUE": str(queue)}) as server,
        Apart(setup.client_cores) as crowd,
        Apart(setup.client_cores) as other,
    ):
        asked = Plan(port=server.port, requests=requests, number=50)
        crowd.run(asked)
        whole = calm_s + seconds + after_s
        probes = other.start(Plan(port=server.port, requests=requests, seconds=whole, pause_s=0.02))
        time.sleep(calm_s)
        burst_began = time.monotonic()
        plan = Plan(
            port=server.port,
            requests=requests,
            callers=callers,
            seconds=seconds,
            on_busy=on_busy,
            greeting=get("/livez"),
        )
        report = crowd.run(plan)
        alone = probes.result().samples
    burst_end = max(sample.began for sample in report.samples)
    calm = [s for s in alone if s.began + s.seconds < burst_began and s.status == 200]
    shed = [s for s in report.samples if s.status in BUSY]
    recovery = recovered(alone, burst_end, normal_s=median(s.seconds for s in calm))
    start = min(sample.began for sample in report.samples)
    found = {
        "burst": summary(report),
        "shed_ms": in_ms(shed),
        "shed_at_first_ms": in_ms([s for s in shed if s.began < start + 0.5]),
        "shed_later_ms": in_ms([s for s in shed if s.began >= start + 0.5]),
        "shed_over_100_ms": sum(s.seconds > SHED_S for s in shed),
        "calm_ms": in_ms(calm),
        "recovery_s": recovery,
    }
    unanswered = sum(s.status != 200 and s.status not in BUSY for s in report.samples)
    slowest = max((s.seconds for s in shed), default=None)
    return found, [
        at_least(f"requests shed at {callers} callers and {queue} places, at least 1", len(shed), 1),
        at_most("seconds to the slowest 503 or 429, at most 0.1", slowest, SHED_S),
        at_most("503 and 429 without Retry-After", sum(not s.answer["retry_after"] for s in shed), 0),
        at_most("requests that were neither shed nor answered", unanswered, 0),
        at_most("seconds from the end of the burst to normal latency, at most 5", recovery, RECOVERY_S),
    ]


def in_ms(samples: Sequence[Sample]) -> dict[str, float]:
    """Latencies in milliseconds, and how many there are."""
    found = latencies([sample.seconds for sample in samples])
    return {key: 1e3 * value for key, value in found.items()} | {"number": len(samples)}


def recovered(samples: Sequence[Sample], end: float, *, normal_s: float, run_of: int = 10) -> float | None:
    """Seconds after `end` at which the first `run_of` requests in a row began that are answered 200 as fast as before.

    As fast: their median is at most 1.5 of `normal_s`. None: never.
    """
    after = sorted((sample for sample in samples if sample.began >= end), key=lambda sample: sample.began)
    for first in range(len(after) - run_of + 1):
        group = after[first : first + run_of]
        if all(s.status == 200 for s in group) and median(s.seconds for s in group) <= 1.5 * normal_s:
            return group[0].began - end
    return None


def soak(setup: Setup, requests: tuple[Request, ...], *, callers: int, minutes: float) -> Found:
    """A steady load for a long time; the workers' memory every second."""
    with setup.service() as server, Apart(setup.client_cores) as client, Watcher(server) as watcher:
        report = client.run(Plan(port=server.port, requests=requests, callers=callers, seconds=60 * minutes))
        still = len(server.workers)
    base, growth = grown(watcher.seconds, watcher.rss, after_s=min(60.0, 30 * minutes))
    found = {"load": summary(report), "workers": still, "rss_after_first_minute": base, "growth": growth}
    return found | {"seconds": watcher.seconds, "rss": watcher.rss}, [
        at_most("requests that were not answered 200", sum(s.status != 200 for s in report.samples), 0),
        at_most("growth of the workers' memory after the first minute, at most 0.05", growth, GROWTH),
    ]


def grown(seconds: Sequence[float], rss: Sequence[int], *, after_s: float) -> tuple[float, float | None]:
    """(memory about `after_s`: the median of 10 s; the most later on over it, less 1). None: nothing came later."""
    base = [value for at, value in zip(seconds, rss, strict=True) if after_s - 5 <= at <= after_s + 5]
    later = [value for at, value in zip(seconds, rss, strict=True) if at > after_s + 5]
    if not base or not later:
        return 0.0, None
    return median(base), max(later) / median(base) - 1


def kill(setup: Setup, requests: tuple[Request, ...], *, times: int, seed: int) -> Found:
    """kill -9 of the worker under light load, again and again, at moments that are left to chance."""
    chance, rows = Random(seed), []
    with setup.service() as server, Apart(setup.client_cores) as client:
        load = client.start(
            Plan(port=server.port, requests=requests, callers=2, seconds=3600, pause_s=0.05, timeout_s=2)
        )
        for _ in range(times):
            time.sleep(1 + chance.uniform(0, 10))
            (victim, *_) = server.workers
            if victim == server.process.pid:
                raise RuntimeError("the server has no worker process that could be killed")
            psutil.Process(victim).kill()
            rows.append(back(server, requests[0], victim))
            print(f"killed {victim}: {rows[-1]}", flush=True)
        client.stop()
        report = load.result()
    slowest = [max((row[key] or float("inf") for row in rows), default=None) for key in ("ready_s", "answered_s")]
    finite = [value if value != float("inf") else None for value in slowest]
    return {"kills": rows, "load": summary(report)}, [
        at_most("seconds from kill -9 to /readyz 200, at most 10", finite[0], RESTART_S),
        at_most("seconds from kill -9 to an answer of /classify, at most 10", finite[1], RESTART_S),
    ]


def back(server: Server, request: Request, victim: int, *, patience_s: float = 60.0) -> dict[str, float | None]:
    """Seconds until /readyz and /classify answer 200 again; None where they do not in `patience_s`."""
    began = time.monotonic()
    found: dict[str, float | None] = {"ready_s": None, "answered_s": None}
    while time.monotonic() - began < patience_s and None in found.values():
        if found["ready_s"] is None and server.get("/readyz", timeout_s=PROBE_S)[0] == 200:
            found["ready_s"] = time.monotonic() - began
        probe = run(Plan(port=server.port, requests=(request,), number=1, timeout_s=PROBE_S)).samples[0]
        if found["answered_s"] is None and probe.status == 200 and victim not in server.workers:
            found["answered_s"] = time.monotonic() - began
        time.sleep(0.02)
    return found


def term(setup: Setup, requests: tuple[Request, ...], *, callers: int, times: int, seed: int) -> Found:
    """SIGTERM under load: what had been sent by then must be answered, and what the log has as answered, received."""
    chance, rows = Random(seed), []
    with Apart(setup.client_cores) as client:
        for number in range(times):
            with setup.service() as server:
                ids = f"term{number}-"
                plan = Plan(port=server.port, requests=requests, callers=callers, seconds=300, ids=ids, pause_s=0.0)
                load = client.start(plan)
                time.sleep(1.5 + chance.uniform(0, 1))
                at = time.monotonic()
                server.process.send_signal(signal.SIGTERM)
                status = _ended(server)
                took = time.monotonic() - at
                client.stop()
                samples = load.result().samples
                logged = {line.get("request_id") for line in server.lines() if line.get("status") == 200}
            rows.append(lost(samples, at, logged, ids) | {"ended_s": took, "exit_status": status})
            print(f"terminated: {rows[-1]}", flush=True)
    return {"rounds": rows}, [
        at_most("requests sent before SIGTERM that were not answered", sum(row["lost"] for row in rows), 0),
        at_most(
            "requests that the log has as answered and the caller not", sum(row["lost_of_logged"] for row in rows), 0
        ),
        at_least(
            "rounds in which the access log shows the requests' ids", sum(row["logged"] > 0 for row in rows), times
        ),
        at_least("rounds that ended with status 0", sum(row["exit_status"] == 0 for row in rows), times),
    ]


def lost(samples: Sequence[Sample], at: float, logged: set[Any], ids: str) -> dict[str, Any]:
    """What became of the requests that had been sent at `at`, the moment of the signal, and of those in the log."""
    before = [sample for sample in samples if sample.sent and sample.sent < at]
    answered = {sample.id for sample in samples if sample.status == 200}
    mine = {id for id in logged if isinstance(id, str) and id.startswith(ids)}
    under_way = [sample for sample in before if sample.began + sample.seconds > at]
    failures = [sample for sample in before if sample.status not in (200, *BUSY)]
    return {
        "under_way": len(under_way),
        "lost": len(failures),
        "refused": sum(sample.status in BUSY for sample in before),
        "how": sorted({sample.error or str(sample.status) for sample in failures}),
        "answered_after": sum(sample.sent >= at and sample.status == 200 for sample in samples),
        "logged": len(mine),
        "lost_of_logged": len(mine - answered),
    }


def _ended(server: Server, patience_s: float = 90.0) -> int | None:
    try:
        return server.process.wait(patience_s)
    except subprocess.TimeoutExpired:
        return None
