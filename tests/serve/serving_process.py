"""Start a command of the project that listens on a port, wait until it answers, stop it."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx


ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(*arguments: str, env: dict[str, str], ready: str, log: Path, seconds: float = 60) -> Iterator[str]:
    """Run `python -m ARGUMENTS --port P` from the repository root; gives its URL once URL + `ready` answers 200."""
    with started(*arguments, env=env, ready=ready, log=log, seconds=seconds) as (url, _):
        yield url


@contextlib.contextmanager
def started(
    *arguments: str, env: dict[str, str], ready: str, log: Path, seconds: float = 60
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The same, with the process."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with open(log, "wb") as output:
        command = [sys.executable, "-m", *arguments, "--port", str(port)]
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + seconds
        while not _answers(url + ready):
            assert process.poll() is None, f"the process ended with {process.returncode}:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"not ready after {seconds} s:\n{log.read_text()}"
            time.sleep(0.2)
        yield url, process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
