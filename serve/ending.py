"""The server's end. uvicorn finishes every request before it ends, and a browser that shows the page has one under way
for as long as it is open.
"""

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType


def on_signal(ending: Callable[[], None], *, grace_s: float) -> None:
    """Call `ending` in the running event loop when the process is told to end; uvicorn goes on as it would.

    What is not finished `grace_s` seconds later, such as an answer that nobody reads, is cut off: a second interrupt
    tells uvicorn so. Does nothing outside of the main thread, where there are no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    begun = False

    def begin() -> None:
        nonlocal begun
        if not begun:
            begun = True
            ending()
            loop.call_later(grace_s, os.kill, os.getpid(), signal.SIGINT)

    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)

        def handle(signum: int, frame: FrameType | None, before: object = before) -> None:
            loop.call_soon_threadsafe(begin)
            if callable(before):
                before(signum, frame)

        signal.signal(number, handle)
