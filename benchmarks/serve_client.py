"""Ask a server, with many callers, and time its answers.

A closed loop: each caller holds one connection, sends a prepared request, waits for the answer, sends the next. So
that it is not itself what is measured, it prepares all bytes beforehand, runs in a process of its own (`Apart`) and
tells what processor time a request cost it. Times are of time.monotonic, which all processes of a machine share.
"""

import asyncio
import gc
import json
import multiprocessing
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any, Literal, NamedTuple, Self

from serve_requests import Request


BUSY = (429, 503)
RECONNECT_S = 0.05
_stop: Event | None = None
"""In the process of `Apart`: set when a run is to end early."""


class Cut(Exception):
    """The connection ended within an answer."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked, by how many, and for how long: until `number` requests are sent or `seconds` are over."""

    port: int
    requests: tuple[Request, ...]
    """Taken in turn by all callers together."""
    callers: int = 1
    number: int | None = None
    seconds: float | None = None
    fields: tuple[str, ...] = ()
    """Keys of an answer's JSON that are kept."""
    on_busy: Literal["go_on", "retry_after", "back_off"] = "go_on"
    """What a caller does after 429 or 503: the next request at once, or after Retry-After, or after `back_off_s`; both
    times with up to half of it added by chance, so that callers do not come back all at once."""
    back_off_s: float = 0.1
    pause_s: float = 0.0
    """Mean pause of a caller between requests, exponentially distributed."""
    timeout_s: float = 60.0
    """After this the caller gives an answer up, and its connection."""
    greeting: Request | None = None
    """Sent once over every connection, before anything is timed: its answer shows that the server has taken the
    connection, and it does not lie in the system's queue or, that being full, nowhere."""
    ids: str = ""
    """Prefix of the X-Request-ID that each request carries; "": none."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.callers < 1 or not self.requests:
            raise ValueError(f"a plan needs callers and requests, got {self.callers} and {len(self.requests)}")
        if self.number is None and self.seconds is None:
            raise ValueError("a plan must end: give `number`, `seconds` or both")


class Sample(NamedTuple):
    """One request and what came of it."""

    began: float
    """When it was about to be sent."""
    sent: float
    """When its bytes were with the operating system; 0 where there was no connection."""
    seconds: float
    """From `began` to the last byte of the answer, or to its failure."""
    status: int
    """0: no answer."""
    error: str
    """Without an answer: connect, closed (before the answer), cut (within it), reset, timeout, unreadable."""
    request: int
    """Place of the request in Plan.requests."""
    id: str
    answer: dict[str, Any]
    """The fields asked for, of an answer 200; `retry_after`, of 429 and 503, "" where they do not say."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A finished run."""

    samples: list[Sample]
    """In the order in which they ended."""
    wall_s: float
    cpu_s: float
    """Processor time of this generator."""
    loop: str
    """The event loop: uvloop where it is installed, else asyncio."""


def run(plan: Plan) -> Report:
    """Carry a plan out in this process."""
    try:
        import uvloop
    except ImportError:
        name, runner = "asyncio", asyncio.run
    else:
        name, runner = "uvloop", uvloop.run
    gc.collect()
    gc.disable()  # nothing here makes cycles, and a collection in the middle would be taken for a slow answer
    try:
        cpu, began = time.process_time(), time.monotonic()
        samples = runner(_ask(plan))
        return Report(samples=samples, wall_s=time.monotonic() - began, cpu_s=time.process_time() - cpu, loop=name)
    finally:
        gc.enable()


class Apart:
    """A load generator in a process of its own, for any number of plans one after the other."""

    def __init__(self, cores: Sequence[int] = ()) -> None:
        """Start it, on these cores only (default: all)."""
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._pool = ProcessPoolExecutor(1, context, initializer=_prepare, initargs=(tuple(cores), self._stop))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self._pool.shutdown()

    def start(self, plan: Plan) -> "Future[Report]":
        """Begin; `stop` ends it early."""
        self._stop.clear()
        return self._pool.submit(run, plan)

    def run(self, plan: Plan) -> Report:
        """Carry a plan out."""
        return self.start(plan).result()

    def stop(self) -> None:
        """Let the running plan send nothing more; its report comes when what is under way has ended."""
        self._stop.set()


def pin(cores: Sequence[int]) -> None:
    """Keep this thread, and threads and processes that it starts later, on these cores; () changes nothing."""
    if cores:
        os.sched_setaffinity(0, cores)


def _prepare(cores: Sequence[int], stop: Event) -> None:
    global _stop
    _stop = stop
    pin(cores)


@dataclass
class _Turns:
    """Whose turn it is: hands out the numbers of requests until the plan ends."""

    plan: Plan
    end: float
    next: int = 0

    def take(self) -> int | None:
        plan = self.plan
        over = plan.number is not None and self.next >= plan.number
        if over or time.monotonic() >= self.end or (_stop is not None and _stop.is_set()):
            return None
        self.next += 1
        return self.next - 1


async def _ask(plan: Plan) -> list[Sample]:
    samples: list[Sample] = []
    # Everybody is connected before anybody asks: connecting is not what is timed.
    links = [_Link(plan.port) for _ in range(plan.callers)]
    await asyncio.gather(*(_greet(plan, link) for link in links))
    turns = _Turns(plan, time.monotonic() + (plan.seconds if plan.seconds is not None else float("inf")))
    callers = (_call(plan, turns, link, random.Random(f"{plan.seed}/{i}"), samples) for i, link in enumerate(links))
    await asyncio.gather(*callers)
    for link in links:
        link.close()
    return samples


async def _greet(plan: Plan, link: "_Link") -> None:
    """Connect a caller; one that cannot will say so when it asks."""
    try:
        async with asyncio.timeout(plan.timeout_s):
            reader, writer = await link.open()
            if plan.greeting:
                writer.write(b"%b\r\n\r\n%b" % plan.greeting)
                await read_answer(reader)
    except (OSError, EOFError, ValueError, Cut, asyncio.LimitOverrunError):
        link.close()


async def _call(plan: Plan, turns: _Turns, link: "_Link", chance: random.Random, samples: list[Sample]) -> None:
    while (turn := turns.take()) is not None:
        place, id = turn % len(plan.requests), f"{plan.ids}{turn}" if plan.ids else ""
        sample = await _one(plan, link, place, id)
        samples.append(sample)
        if sample.error:
            link.close()
        if sample.error == "connect":
            await asyncio.sleep(RECONNECT_S)
        if sample.status in BUSY and plan.on_busy != "go_on":
            wait = plan.back_off_s if plan.on_busy == "back_off" else float(sample.answer["retry_after"] or 1)
            await asyncio.sleep(wait * (1 + chance.random() / 2))
        if plan.pause_s:
            await asyncio.sleep(chance.expovariate(1 / plan.pause_s))


async def _one(plan: Plan, link: "_Link", place: int, id: str) -> Sample:
    """Send one request."""
    head, body = plan.requests[place]
    message = b"%b%b\r\n\r\n%b" % (head, f"\r\nX-Request-ID: {id}".encode() if id else b"", body)
    began, sent, status, error, found, content = time.monotonic(), 0.0, 0, "", b"", b""
    try:
        async with asyncio.timeout(plan.timeout_s):
            error = "connect"
            reader, writer = link.pair or await link.open()
            began = time.monotonic()
            writer.write(message)
            sent, error = time.monotonic(), "reset"
            status, found, content = await read_answer(reader)
            error = ""
    except TimeoutError:
        error = "timeout"
    except asyncio.IncompleteReadError:
        error = "closed"
    except Cut:
        error = "cut"
    except (ValueError, asyncio.LimitOverrunError):
        error = "unreadable"
    except OSError:
        pass  # `error` says where
    took = time.monotonic() - began
    answer = _chosen(content, plan.fields) if status == 200 and plan.fields else {}
    if status in BUSY:
        answer = {"retry_after": (header(found, b"retry-after") or b"").decode()}
    if b"connection: close" in found.lower():
        link.close()
    return Sample(began, sent, took, status, error, place, id, answer)


class _Link:
    """A caller's connection."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.pair: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.pair = await asyncio.open_connection("127.0.0.1", self.port, limit=2**24)
        return self.pair

    def close(self) -> None:
        if self.pair:
            self.pair[1].close()
        self.pair = None


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """(status, head, body) of an HTTP/1.1 answer.

    Raises ValueError for one without a length, Cut where the connection ends within it, asyncio.IncompleteReadError
    where it ends before.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as end:
        if end.partial:
            raise Cut from None
        raise
    length = header(head, b"content-length")
    if not head.startswith(b"HTTP/1.1 ") or length is None:
        raise ValueError(f"not an HTTP/1.1 answer with a length: {head[:200]!r}")
    try:
        return int(head[9:12]), head, await reader.readexactly(int(length))
    except asyncio.IncompleteReadError:
        raise Cut from None


def header(head: bytes, name: bytes) -> bytes | None:
    """The value of a header in an answer's head; None where it is missing. `name` in small letters."""
    at = head.lower().find(b"\r\n%b:" % name)
    if at < 0:
        return None
    begin = at + len(name) + 3
    return head[begin : head.index(b"\r\n", begin)].strip()


def _chosen(content: bytes, fields: Sequence[str]) -> dict[str, Any]:
    answer = json.loads(content)
    return {field: answer.get(field) for field in fields}
