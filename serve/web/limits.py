"""What a request may take: bytes, seconds, and only as long as somebody waits for the answer.

A request over a limit is stopped: its task is cancelled, and `Intake.refusal` says what to answer.
"""

import asyncio
from http import HTTPStatus

from starlette.types import Message, Receive

from serve.web.shape import Refusal, busy, too_large


BODIES_HELD = 32
"""The bodies of all requests together may take so many times the longest body."""
DRAIN_S = 5.0
CLIENT_GONE = 499
"""The status that logs and metrics show for it, as nginx does; nobody receives it."""
_DISCONNECT: Message = {"type": "http.disconnect"}


class Held:
    """The bytes of bodies that are in this process."""

    def __init__(self, most: int) -> None:
        self._room = most

    def take(self, size: int) -> bool:
        """Count `size` bytes in, unless they are too many."""
        if size > self._room:
            return False
        self._room -= size
        return True

    def give_back(self, size: int) -> None:
        """Count `size` bytes out."""
        self._room += size


class Intake:
    """A `receive` that stops the task that made it: at a body too long, too slow, or too much beside the others; at an
    answer that does not begin in time; at a client that has gone.
    """

    __slots__ = (
        "_cancelled_before",
        "_ended",
        "_ending",
        "_held",
        "_holds",
        "_loop",
        "_max_body",
        "_receive",
        "_since",
        "_task",
        "_timeout_s",
        "_timer",
        "_watcher",
        "_watches",
        "asked",
        "outstanding",
        "over",
        "received",
        "refusal",
    )

    def __init__(
        self,
        receive: Receive,
        held: Held,
        *,
        max_body: int,
        timeout_s: float,
        has_body: bool,
        watches: bool,
        ending: asyncio.Event,
    ) -> None:
        """`watches`: also the time to the answer's beginning, and whether the client stays, once the body is there.

        Where nothing is watched, `ending` tells the application that the client has gone.
        """
        self._receive, self._held, self._ending = receive, held, ending
        self._max_body, self._timeout_s, self._watches = max_body, timeout_s, watches
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._cancelled_before = self._task.cancelling() if self._task else 0
        self._ended = False  # the application has the whole body
        self._holds = 0
        self._since = self._loop.time()  # of the request, then of its body's end
        self._watcher: asyncio.Future[Message] | None = None
        self._timer = self._loop.call_later(timeout_s, self._late) if has_body or watches else None
        self.asked = False
        """The application has asked for the body: a client that waits to be told so begins to send it."""
        self.outstanding = has_body
        """Whether the client may have more to send."""
        self.over = False
        """Nothing is stopped any more: the answer has begun."""
        self.received = 0
        self.refusal: Refusal | None = None
        """Why the task was stopped."""

    async def __call__(self) -> Message:
        """Give the application the next message."""
        if self._ended:
            return await self._until_gone()
        self.asked = True
        message = await self._receive()
        if message["type"] != "http.request":
            self.outstanding = False
            refusal: Refusal | None = client_gone()
        else:
            refusal = self._counted(message)
        if refusal is None:
            return message
        self._stop(refusal)
        if self.refusal and asyncio.current_task() is self._task:
            await asyncio.sleep(0)  # here the task is cancelled
        return _DISCONNECT

    def begun(self) -> None:
        """The answer has begun."""
        self.over = True
        self._held.give_back(self._holds)
        self._holds = 0

    @property
    def cancelled_from_outside(self) -> bool:
        """Whether somebody else has cancelled the task, be it in addition."""
        own = 1 if self.refusal else 0
        return self._task is not None and self._task.cancelling() - own > self._cancelled_before

    def close(self) -> None:
        """End all that belongs to the request, and take back its own cancelling."""
        self.begun()
        if self._timer:
            self._timer.cancel()
        if self._watcher and not self._watcher.done():
            self._watcher.cancel()
        if self._task and self.refusal:
            self._task.uncancel()

    def _counted(self, message: Message) -> Refusal | None:
        size = len(message.get("body", b""))
        self.received += size
        self.outstanding = message.get("more_body", False)
        if self.received > self._max_body:
            return too_large(self._max_body)
        if not self._held.take(size):
            return busy("too_much_at_once", "the server is reading too many bodies", retry_after_s=1)
        self._holds += size
        if not self.outstanding:
            self._body_is_there()
        return None

    def _body_is_there(self) -> None:
        self._ended = True
        self._since = self._loop.time()
        if self._watches and not self.over:
            self._watcher = asyncio.ensure_future(self._receive())
            self._watcher.add_done_callback(self._seen)

    async def _until_gone(self) -> Message:
        if self._watcher:
            await asyncio.wait([self._watcher])
            return _DISCONNECT
        news = {asyncio.ensure_future(self._receive()), asyncio.ensure_future(self._ending.wait())}
        try:
            await asyncio.wait(news, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in news:
                each.cancel()
        return _DISCONNECT

    def _seen(self, watcher: asyncio.Future[Message]) -> None:
        if not watcher.cancelled():
            watcher.exception()  # whatever it was, the connection is no more
            self._stop(client_gone())

    def _late(self) -> None:
        now = self._loop.time()
        if self.outstanding:
            self._stop(too_slow(self._timeout_s))
        elif self._watches and (due := self._since + self._timeout_s) <= now:
            self._stop(timed_out(self._timeout_s))
        elif self._watches:
            self._timer = self._loop.call_at(due, self._late)

    def _stop(self, refusal: Refusal) -> None:
        if self.refusal is None and not self.over:
            self.refusal = refusal
            if self._task:
                self._task.cancel()


async def drain(receive: Receive, *, most: int, more: bool = True) -> None:
    """Read on while there is `more`, up to `most` bytes and DRAIN_S seconds."""
    try:
        async with asyncio.timeout(DRAIN_S):
            while more and most > 0:
                message = await receive()
                more = message.get("more_body", False)
                most -= len(message.get("body", b""))
    except TimeoutError:
        pass


def client_gone() -> Refusal:
    """What is noted of a client that has closed the connection before its answer; it does not receive it."""
    return Refusal(CLIENT_GONE, "client_gone", "the client has closed the connection", "wait for the answer")


def too_slow(timeout_s: float) -> Refusal:
    """The refusal of a body that was not there in time."""
    message = f"the request body was not complete after {timeout_s:g} s"
    return Refusal(HTTPStatus.REQUEST_TIMEOUT, "body_too_slow", message, "send a smaller image, or fewer at a time")


def timed_out(timeout_s: float) -> Refusal:
    """The refusal of a request whose answer took too long."""
    return busy("timed_out", f"no answer within {timeout_s:g} s", retry_after_s=max(1, round(timeout_s)))
