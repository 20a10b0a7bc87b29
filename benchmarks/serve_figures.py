"""What is made of measurements of a server: figures of a run, ratios over rounds, lines that hold or do not."""

import os
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from serve_client import Report


sys.path.insert(0, str(Path(__file__).parents[1]))

PACKAGES = (
    "bentoml",
    "starlette",
    "uvicorn",
    "uvloop",
    "httptools",
    "fastapi",
    "python-multipart",
    "pydantic",
    "pillow",
)


class Line(NamedTuple):
    """A claim and what was measured of it."""

    claim: str
    measured: float | int | str | None
    """None: nothing was, and the line does not hold."""
    holds: bool

    def __str__(self) -> str:
        measured = f"{self.measured:.4g}" if isinstance(self.measured, float) else self.measured
        return f"{'holds' if self.holds else 'FAILS'}  {self.claim}: {measured}"


def at_most(claim: str, measured: float | None, limit: float) -> Line:
    """The line that a figure is `limit` at most."""
    return Line(claim, measured, measured is not None and measured <= limit)


def at_least(claim: str, measured: float | None, limit: float) -> Line:
    """The line that a figure is `limit` at least."""
    return Line(claim, measured, measured is not None and measured >= limit)


def summary(report: Report) -> dict[str, Any]:
    """Figures of a run: answers a second, latencies of the answers 200 in ms, counts by status and by error."""
    good = sorted(sample.seconds for sample in report.samples if sample.status == 200)
    statuses = Counter(str(sample.status) for sample in report.samples if sample.status)
    errors = Counter(sample.error for sample in report.samples if sample.error)
    number = len(report.samples)
    return {
        "requests": number,
        "answers_per_s": len(good) / report.wall_s,
        **{f"{name}_ms": 1e3 * value for name, value in latencies(good).items()},
        "statuses": dict(sorted(statuses.items())),
        "errors": dict(sorted(errors.items())),
        "failed": number - len(good),
        "wall_s": report.wall_s,
        "client_cpu_s_per_request": report.cpu_s / max(number, 1),
        "client_loop": report.loop,
    }


def latencies(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the greatest of these times, whatever their unit; {} of none."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    return {f"p{p}": percentile(ordered, p) for p in (50, 95, 99)} | {"max": ordered[-1]}


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of the values do not exceed (nearest rank); `ordered` ascends."""
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(int(rank) - 1, 0)]


def over_rounds(values: Sequence[float | None]) -> dict[str, float] | None:
    """Median, least and greatest of a figure over the rounds; None where a round lacks it."""
    found = [value for value in values if value is not None]
    if not found or len(found) < len(values):
        return None
    return {"median": median(found), "min": min(found), "max": max(found)}


def spread(figure: dict[str, float] | None, digits: int = 3) -> str:
    """A figure with its least and greatest value, for a table."""
    if figure is None:
        return ""
    return f"{figure['median']:.{digits}f} ({figure['min']:.{digits}f} to {figure['max']:.{digits}f})"


def circumstances() -> dict[str, Any]:
    """Machine, versions and commit."""
    from train_speed import cpu_name

    from train.record import git_state, versions

    found = versions()
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.platform()}
    return {"machine": machine, "versions": found, "git": git_state()}
