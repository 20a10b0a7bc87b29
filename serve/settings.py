"""What a server is told from outside: environment variables, read once, checked by name.

How a bundle is run (TSERVE_PRECISION, TSERVE_EXIT_THRESHOLD, TSERVE_PROVIDER, TSERVE_THREADS) stands in serve.predictor
and serve.session.
"""

import os
from dataclasses import dataclass
from typing import TypeVar


MEGABYTE = 1024 * 1024
DEFAULT_BUNDLES = ("runs/latest/bundle", "bundle")
"""What is served where nothing is named: the newest run's, or what `bentoml build` packs; the first that is there."""
SHOWN = 40
"""Characters of a wrong value that its message repeats."""
LONGEST_S = 86_400.0
MOST_MB = 1024
MOST = 1_000_000
"""Of everything that is counted. Far more than anything can do; beyond it lies what no timer or queue can take."""
Default = TypeVar("Default", int, None)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the HTTP service serves."""

    bundles: tuple[str, ...]
    """TSERVE_BUNDLE: what is served, separated by commas: a bundle, a folder of bundles, or `bentoml:TAG`, a model of
    BentoML's store."""
    default_model: str | None = None
    """TSERVE_MODEL: which model answers a request that names none; by default the first of TSERVE_BUNDLE."""
    watch_s: float = 2.0
    """TSERVE_WATCH: seconds between looks for new bundles; 0: never."""
    workers: int = 1
    """TSERVE_WORKERS: processes; each has its models, its queue and its runners."""
    runners: int | None = None
    """TSERVE_RUNNERS: runs of the network at a time, each on TSERVE_THREADS threads; by default as many as the
    processor's cores allow, shared among the workers, and one on a GPU."""
    max_batch: int | None = None
    """TSERVE_MAX_BATCH: images in one run; by default 64 on a GPU, few on a CPU, where larger batches gain nothing."""
    queue: int = 256
    """TSERVE_QUEUE: images that may wait, over all models; requests beyond are answered 503."""
    timeout_s: float = 30.0
    """TSERVE_TIMEOUT: seconds in which a request's body must be there, and seconds that it may wait for its answer."""
    max_body: int = 10 * MEGABYTE
    """TSERVE_MAX_BODY_MB, in bytes here: the longest body of a request."""
    api_key: str | None = None
    """TSERVE_API_KEY: without it, or as a password, nobody gets anything but health; None: everybody does."""


def read() -> Settings:
    """Read the environment; ValueError names the variable that cannot be and says what it may be."""
    named = [part.strip() for part in os.environ.get("TSERVE_BUNDLE", "").split(",")]
    defaults = Settings(bundles=tuple(filter(None, named)) or (_default_bundle(),))
    return Settings(
        bundles=defaults.bundles,
        default_model=os.environ.get("TSERVE_MODEL") or None,
        watch_s=_number("TSERVE_WATCH", defaults.watch_s, least=0),
        workers=_whole("TSERVE_WORKERS", defaults.workers),
        runners=_whole("TSERVE_RUNNERS", None),
        max_batch=_whole("TSERVE_MAX_BATCH", None),
        queue=_whole("TSERVE_QUEUE", defaults.queue),
        timeout_s=_number("TSERVE_TIMEOUT", defaults.timeout_s, least=0.1),
        max_body=_whole("TSERVE_MAX_BODY_MB", defaults.max_body // MEGABYTE, most=MOST_MB) * MEGABYTE,
        api_key=os.environ.get("TSERVE_API_KEY") or None,
    )


def cores() -> int:
    """Cores that this process may use: containers and `taskset` may give it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _default_bundle() -> str:
    return next((folder for folder in DEFAULT_BUNDLES if os.path.isdir(folder)), DEFAULT_BUNDLES[0])


def _whole(name: str, default: Default, *, most: int = MOST) -> int | Default:
    text = os.environ.get(name)
    if not text:
        return default
    digits = text.isascii() and text.isdecimal() and len(text) <= len(str(most))  # Python reads those of every script
    if not digits or not 1 <= int(text) <= most:
        raise ValueError(f"{name} must be a whole number, 1 to {most}, got {text[:SHOWN]!r}")
    return int(text)


def _number(name: str, default: float, *, least: float) -> float:
    text = os.environ.get(name)
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not least <= value <= LONGEST_S:
        raise ValueError(f"{name} must be a number of seconds, {least:g} to {LONGEST_S:g}, got {str(text)[:SHOWN]!r}")
    return value
