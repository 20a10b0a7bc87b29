"""Servers as processes of their own: start one, wait until it answers, look at what it uses, end it."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
from serve_client import pin


ROOT = Path(__file__).parents[1]
WORKER = "_bentoml_impl.worker"
READY_S = 60.0
END_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path
    """What it has written to stdout and stderr."""

    @property
    def workers(self) -> list[int]:
        """Ids of the processes that answer requests: BentoML's workers, or the process itself where it has none."""
        children = [child.pid for child in self._tree() if any(WORKER in part for part in _arguments(child))]
        return children or [self.process.pid]

    @property
    def rss(self) -> int:
        """Bytes of memory that the workers hold."""
        return sum(psutil.Process(pid).memory_info().rss for pid in self.workers)

    @property
    def cpu_s(self) -> float:
        """Processor time of all its processes since they began."""
        return sum(sum(process.cpu_times()[:2]) for process in self._tree())

    def get(self, path: str, *, timeout_s: float = 5.0) -> tuple[int, bytes]:
        """(status, body) of a GET on a new connection; (0, b"") where there is no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def lines(self) -> list[dict[str, Any]]:
        """The lines of its log that are JSON objects."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [line for line in found if isinstance(line, dict)]

    def _tree(self) -> list[psutil.Process]:
        try:
            whole = psutil.Process(self.process.pid)
            return [whole, *whole.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is served, how, and where."""

    bundle: Path
    settings: Mapping[str, str]
    """TSERVE_ variables."""
    server_cores: tuple[int, ...] = ()
    client_cores: tuple[int, ...] = ()

    def service(self, more: Mapping[str, str] | None = None) -> contextlib.AbstractContextManager[Server]:
        """A running `bentoml serve`, with `more` settings."""
        return service(self.bundle, settings={**self.settings, **(more or {})}, cores=self.server_cores)


@contextlib.contextmanager
def service(
    bundle: Path, *, settings: Mapping[str, str] | None = None, cores: Sequence[int] = (), ready_s: float = READY_S
) -> Iterator[Server]:
    """`bentoml serve` with a BentoML home of its own; of the environment's TSERVE_ variables only `settings` count."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TSERVE_")}
    environment |= {"TSERVE_BUNDLE": str(bundle.absolute()), "BENTOML_DO_NOT_TRACK": "True", **(settings or {})}
    command = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port"]
    with tempfile.TemporaryDirectory() as home:
        environment["BENTOML_HOME"] = home
        with running(command, environment, cores=cores, ready="/readyz", ready_s=ready_s) as server:
            yield server


@contextlib.contextmanager
def running(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    cores: Sequence[int] = (),
    ready: str,
    ready_s: float = READY_S,
) -> Iterator[Server]:
    """Run COMMAND PORT from the repository root, on these cores, until the end of the block.

    The block begins when a GET of `ready` answers 200. Raises RuntimeError with the end of the log if it never does.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = _pinned(cores, [*command, str(port)], cwd=ROOT, env=environment, stdout=output, stderr=output)
        server = Server(process=process, port=port, log=log)
        try:
            wait_until_ready(server, ready, ready_s)
            yield server
        finally:
            end(server)


def wait_until_ready(server: Server, path: str, seconds: float = READY_S) -> None:
    """Wait for an answer 200; RuntimeError after `seconds`, or when the process has ended."""
    deadline = time.monotonic() + seconds
    while server.get(path, timeout_s=1)[0] != 200:
        status = server.process.poll()
        if status is not None or time.monotonic() > deadline:
            what = f"ended with status {status}" if status is not None else f"was not ready after {seconds:g} s"
            said = server.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"the server {what}; its log ends:\n{said}")
        time.sleep(0.1)


def end(server: Server) -> None:
    """End the server and all that it started, at first kindly."""
    tree = server._tree()
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(END_S)
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    server.process.wait()


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Watcher:
    """Reads a server's memory once in `every_s` seconds, in a thread, until the block ends."""

    def __init__(self, server: Server, every_s: float = 1.0) -> None:
        self.seconds: list[float] = []
        """When, from the beginning."""
        self.rss: list[int] = []
        self._server, self._every_s, self._over = server, every_s, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        began = time.monotonic()
        while not self._over.wait(self._every_s):
            self.seconds.append(round(time.monotonic() - began, 2))
            self.rss.append(self._server.rss)


def _pinned(cores: Sequence[int], command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
    """Start a process on these cores. A child inherits them; Popen's preexec_fn is not safe beside threads."""
    before = os.sched_getaffinity(0)
    pin(cores)
    try:
        return subprocess.Popen(command, **options)
    finally:
        pin(sorted(before))


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []
