"""Malformed requests of our own making, as many as one likes, the same for the same seed; what a server makes of them.

The server's side of the bargain: every request that can be answered is, with a status that fits; an error has the
server's one shape and tells nothing of its inside; there is no 5xx but 503.
"""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import NamedTuple

import hostile_http as http
import hostile_images as images
import hostile_json as jsons
from hostile_case import Case, Target
from serve_client import Cut, read_answer


Kind = Callable[[Random, Target], Case]
KINDS: dict[str, Kind] = {
    "truncated image": images.truncated,
    "damaged image": images.damaged,
    "no image": images.no_image,
    "bomb": images.bomb,
    "broken JSON": jsons.broken_json,
    "wrong JSON": jsons.wrong_json,
    "wrong array": jsons.wrong_array,
    "wrong base64": jsons.wrong_base64,
    "wrong option": jsons.wrong_option,
    "wrong form": http.wrong_form,
    "wrong type": http.wrong_type,
    "wrong length": http.wrong_length,
    "too large": http.too_large,
    "slow body": http.slow,
    "early disconnect": http.disconnected,
    "no HTTP": http.no_http,
    "headers": http.headers,
    "wrong place": http.wrong_place,
    "upgrade": http.upgrade,
    "stalled body": http.stalled,
}
RARE = {"stalled body": 5, "too large": 3}
"""Of these, which take long, only one in so many rounds of the kinds."""
LEAKS = ("Traceback", 'File "', "site-packages", ".py", "/usr/", "/home/", "/tmp/", "0x7f", "bentoml", "starlette")


class Outcome(NamedTuple):
    """What came of a case."""

    case: Case
    status: int
    """0: no answer."""
    problem: str
    """"" where everything is as it must be."""


def cases(count: int, seed: int, target: Target) -> list[Case]:
    """So many cases, all kinds in turn, the same for the same arguments; stalled bodies only where stall_s is set."""
    made: list[Case] = []
    turn = 0
    while len(made) < count:
        for name, kind in KINDS.items():
            if turn % RARE.get(name, 1) or (name == "stalled body" and target.stall_s is None):
                continue
            made.append(replace(kind(Random(f"{seed}/{turn}/{name}"), target), kind=name))
        turn += 1
    return made[:count]


def attack(port: int, several: Iterable[Case], *, at_once: int = 8) -> list[Outcome]:
    """Send the cases, some at a time, and judge what comes back; outcomes in the cases' order."""
    return asyncio.run(_attack(port, list(several), at_once))


def verdict(case: Case, status: int, head: bytes, body: bytes) -> str:
    """What is wrong with an answer, "" if nothing is."""
    if status == 503:
        return _misshapen(head, body) if case.shaped else ""
    if status >= 500 and status not in case.expect:
        return f"status {status}"
    if status not in case.expect:
        return f"status {status}, expected {', '.join(map(str, sorted(case.expect)))}: {body[:200]!r}"
    return _misshapen(head, body) if status >= 400 and case.shaped else ""


def _misshapen(head: bytes, body: bytes) -> str:
    """How an error is not of the one shape, or tells too much."""
    if b"application/json" not in head.lower():
        return f"an error that is not JSON: {body[:200]!r}"
    try:
        error = json.loads(body)["error"]
        texts = [error[key] for key in ("code", "message", "hint")]
    except (ValueError, LookupError, TypeError):
        return f"an error of another shape: {body[:200]!r}"
    if not all(isinstance(text, str) and text for text in texts):
        return f"an error with empty parts: {body[:200]!r}"
    leaks = [leak for leak in LEAKS if leak in " ".join(texts)]
    return f"an error that tells of the inside ({leaks[0]}): {body[:300]!r}" if leaks else ""


async def _attack(port: int, several: Sequence[Case], at_once: int) -> list[Outcome]:
    turns = asyncio.Semaphore(at_once)

    async def one(case: Case) -> Outcome:
        async with turns:
            return await _send(port, case)

    return await asyncio.gather(*map(one, several))


async def _send(port: int, case: Case) -> Outcome:
    """One case on a connection of its own."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    except OSError as error:
        return Outcome(case, 0, f"no connection: {error}")
    try:
        async with asyncio.timeout(case.wait_s + case.pause_s * len(case.parts)):
            with_answer = await _exchange(case, reader, writer)
    except TimeoutError:
        return Outcome(case, 0, "" if case.may_close else f"no answer in {case.wait_s:g} s")
    except (OSError, EOFError, Cut) as error:
        return Outcome(case, 0, "" if case.may_close else f"closed without an answer: {error!r}")
    except ValueError as error:
        return Outcome(case, 0, "" if not case.shaped else str(error))
    finally:
        writer.close()
    if with_answer is None:
        return Outcome(case, 0, "")
    return Outcome(case, with_answer[0], verdict(case, *with_answer))


async def _exchange(
    case: Case, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[int, bytes, bytes] | None:
    """Send the parts; the answer, or None for who does not wait for one."""
    with contextlib.suppress(ConnectionError):  # the server may have answered before it had read everything
        for part in case.parts:
            writer.write(part)
            await writer.drain()
            if case.pause_s:
                await asyncio.sleep(case.pause_s)
    if case.ending == "reset":
        link: socket.socket = writer.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    if case.ending != "answer":
        return None
    while (answer := await read_answer(reader))[0] == 100:
        pass
    return answer
