"""How a command ends: errors of its user as one line and exit status 2, and names that were nearly right."""

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import NoReturn

from train import plugins


OWN = f" One of your own comes with {plugins.VARIABLE}."
"""What else an unknown name may mean."""


class Stopped(Exception):
    """A training run was stopped by a signal, and its state is saved; the message says how to go on."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.status = 128 + number
        """The exit status that a shell gives a process that the signal ended."""


class Diverged(ValueError):
    """A network, its losses or its answers stopped being finite: the settings do not work, other ones may."""


def unknown(kind: str, name: str, known: Iterable[str], *, more: str = "") -> ValueError:
    """The error for a `name` that is not one of `known`: the nearest of these first, `more`, then all of them."""
    names = list(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    return ValueError(f"unknown {kind} {name!r}{hint}{more} Known: {', '.join(names)}")


def exit_status(command: Callable[[], int | None]) -> int:
    """Run a command and give its exit status: what it returns (None is 0), 2 for an error of its user, 130 for Ctrl-C,
    128 + the signal for a training run that was stopped and saved. SIGTERM raises SystemExit(143) in the command.
    Before it, plugins are loaded (train/plugins.py).

    Errors of the user are ValueError (bad usage or input), OSError (files) and ImportError (a part that is not
    installed); they are printed on stderr as `error: ...`. With the environment variable TSERVE_TRACEBACK set their
    traceback comes first. Any other exception is a defect of ours and passes through.
    """
    # torch warns twice at import where Triton is not installed, which says nothing to a user without a GPU.
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    try:
        with _terminable():
            plugins.load()
            status = command()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return stop.status
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("TSERVE_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if status is None else status


@contextmanager
def _terminable() -> Iterator[None]:
    """While open, SIGTERM ends the command as an error does, so that nothing stays that was written aside."""

    def end(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    free = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if free:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if free:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
