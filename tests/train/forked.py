"""Training commands in processes of their own that need not import torch and Fabric: each is forked from one that has.

Importing them costs 4 s of a core a process. Nothing else is shared: the folder, the environment, the signals and the
exit status are those of `python -m COMMAND FLAGS`.
"""

import importlib
import multiprocessing
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train.distill", "train.lesson", "train.loop", "train.runs"])


def start(
    command: str, flags: Sequence[str], *, folder: Path, environment: Mapping[str, str], log: Path
) -> BaseProcess:
    """`python -m COMMAND FLAGS` in `folder`; what it says is appended to `log`. Its exitcode is the command's."""
    process = CONTEXT.Process(target=_main, args=(command, tuple(flags), folder, dict(environment), log))
    process.start()
    return process


def start_two(command: str, flags: Sequence[str], *, folder: Path, log: Path) -> tuple[BaseProcess, BaseProcess]:
    """The two processes that `torchrun --nproc_per_node 2 -m COMMAND FLAGS` starts, with what it tells them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none"}
    told |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1"}

    def process(rank: str) -> BaseProcess:
        return start(command, flags, folder=folder, environment=told | {"RANK": rank, "LOCAL_RANK": rank}, log=log)

    return process("0"), process("1")


def ended(*processes: BaseProcess, seconds: float) -> list[int | None]:
    """Their exit codes; what still runs after so many seconds is killed, and the test fails."""
    for process in processes:
        process.join(seconds)
    late = [process for process in processes if process.exitcode is None]
    for process in late:
        process.kill()
        process.join()
    assert not late, f"{len(late)} of {len(processes)} processes still ran after {seconds} s"
    return [process.exitcode for process in processes]


def _main(command: str, flags: tuple[str, ...], folder: Path, environment: dict[str, str], log: Path) -> None:
    """What the forked process does."""
    with log.open("ab") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    os.chdir(folder)
    os.environ.update(environment)
    module = importlib.import_module(command)
    sys.argv = [str(module.__file__), *flags]
    sys.exit(module.cli.exit_status(lambda: module.command(list(flags))))
