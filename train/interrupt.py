"""SIGTERM and Ctrl-C while training: the step in progress is finished and saved before the command ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def caught() -> Iterator[list[int]]:
    """While open, the first SIGTERM or SIGINT is put into the list; a second Ctrl-C interrupts at once.

    Signals reach only a process's main thread: in another one the list stays empty.
    """
    signals: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        if signals and number == signal.SIGINT:
            raise KeyboardInterrupt
        signals.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
