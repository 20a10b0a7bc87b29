"""Continuous batching: requests of many callers share runs of the network, and images enter a run at every time step.

    batcher = Batcher(runners=2, max_batch=4, max_waiting=128)
    future = batcher.submit(predictor, images, exit_threshold=None, steps=None)  # at once; raises Overloaded
    predictions = future.result()

A runner is a thread with a crowd (serve.anytime) of one model at a time. serve.turns says which images enter it.

Shapes: B images, C channels, H rows, W columns, T time steps.
"""

import logging
import math
import threading
import time
import traceback
import weakref
from collections.abc import Iterable
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import Protocol

import numpy as np

from serve.anytime import checked_steps
from serve.exits import checked_threshold
from serve.predictor import Prediction
from serve.turns import Engine, Part, Request, Run, Turns


MEMORY = 0.98
"""How much of what is known of an image's cost is kept at each run; the rest is that run's."""
logger = logging.getLogger(__name__)


class Overloaded(Exception):
    """A request that does not get in: too many images wait, or the batcher is closed."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """Whole seconds, 1 or more, after which there should be room."""


class Watch(Protocol):
    """Who is told what runs, in the runners' threads. What it raises fails the images that are under way."""

    def ran(self, images: int, seconds: float) -> None:
        """One run of the network, of one time step."""

    def waited(self, seconds: float) -> None:
        """One image has begun, so long after it was submitted."""


class Batcher:
    """The queue and its runners, which are daemon threads."""

    def __init__(self, *, runners: int, max_batch: int, max_waiting: int, watch: Watch | None = None) -> None:
        """Start `runners` threads, of at most `max_batch` images each at a time; ValueError unless all are 1 or more.

        A request gets in while fewer than `max_waiting` images wait.
        """
        for name, value in (("runners", runners), ("max_batch", max_batch), ("max_waiting", max_waiting)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        self._runners, self._max_waiting, self._watch = runners, max_waiting, watch
        self._changed = threading.Condition()  # its lock guards what follows, and the requests
        self._turns = Turns(runners=runners, max_batch=max_batch)
        self._cost = (0.0, 0.0)  # seconds of runs, images that they finished; both fade
        self._closed = False
        names = [f"tserve-runner-{n}" for n in range(runners)]
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Images that have not begun."""
        return self._turns.waiting

    def submit(
        self, engine: Engine, images: np.ndarray, *, exit_threshold: float | None, steps: int | None
    ) -> Future[list[Prediction]]:
        """Put images [B, C, H, W], float32 as `engine` takes them, into the queue; do not change them any more.

        `exit_threshold` (default: the engine's) and `steps` (default: all) are as those of Predictor.predict. The
        future gives the answers in the order of the images, or what running them raised. Cancelling it drops the
        images that have not begun.

        Raises Overloaded, and ValueError for images, steps or a threshold that cannot be.
        """
        model, exit = engine.steps, engine.exit
        shape = model.no_images.shape[1:]
        if images.dtype != np.float32 or images.shape[1:] != shape or not len(images):
            wanted = f"float32 images [B, {', '.join(map(str, shape))}] with B >= 1"
            raise ValueError(f"the batcher takes {wanted}, got {images.dtype} {list(images.shape)}")
        threshold = exit.threshold if exit_threshold is None else checked_threshold(exit_threshold)
        limit = checked_steps(steps, model.T)
        future: Future[list[Prediction]] = Future()
        request = Request(
            engine=(engine.whole if threshold == 1 and limit == model.T else None) or engine,
            images=images,
            threshold=threshold,
            limit=limit,
            future=future,
            submitted=time.perf_counter(),
        )
        with self._changed:
            if (wait := self._retry_after()) is not None:
                why = "the server is closing" if self._closed else f"{self._turns.waiting} images wait already"
                raise Overloaded(why, retry_after_s=wait)
            self._turns.put(request)
            self._changed.notify(len(images))
        # Weak: whoever keeps the future shall not keep the images and the engine.
        future.add_done_callback(partial(self._forget, weakref.ref(request)))
        return future

    def retry_after(self) -> int | None:
        """None: there is room; else in how many whole seconds, 1 or more, there should be."""
        return self._retry_after()  # without the lock, for which an event loop would wait: it reads single values

    def close(self, timeout_s: float | None = None) -> None:
        """Take nothing new, finish what was accepted and end the threads; wait for it at most `timeout_s`.

        What is not finished by then fails with Overloaded.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        with self._changed:
            late = list(self._turns.open)
        if late:
            self._fail(late, Overloaded("the server has closed before this was finished", retry_after_s=1))

    def _retry_after(self) -> int | None:
        """See retry_after; exact if the lock is held."""
        if self._closed:
            return 1
        if self._turns.waiting < self._max_waiting:
            return None
        seconds, images = self._cost
        return max(1, math.ceil(self._turns.waiting * seconds / images / self._runners)) if images else 1

    def _work(self) -> None:
        under_way: dict[int, Part] = {}
        more = True
        while more:
            try:
                more = self._serve(under_way)
            except BaseException as error:  # the runner lives on: whoever waits for an answer gets the error
                self._lose(list(under_way.values()), error)
                under_way.clear()

    def _serve(self, under_way: dict[int, Part]) -> bool:
        """Wait for a request and run a crowd of its model until nobody is left; False when closed and all is done.

        `under_way` is empty and becomes so again; if this raises, it has the images of the crowd that is lost.
        """
        with self._changed:
            while (engine := self._turns.engine) is None:  # nothing of the last crowd is held meanwhile
                if self._closed:
                    return False
                self._changed.wait()
            entering = self._turns.take(engine, 0)
            under_way |= enumerate(entering)
        crowd = engine.steps.crowd(engine.exit.rule, engine.exit.relax)
        while under_way:
            self._step(engine, crowd, under_way, entering)
            if under_way:
                with self._changed:
                    entering = self._turns.take(engine, len(under_way))
                under_way |= zip(count(crowd.entered), entering, strict=False)
        return True

    def _step(self, engine: Engine, crowd: Run, under_way: dict[int, Part], entering: list[Part]) -> None:
        """Let images enter, move the crowd by one time step and answer the requests that this finishes."""
        start = time.perf_counter()
        images = [request.images[i : i + 1] for request, i in entering]
        done = crowd.advance(
            np.concatenate(images) if len(images) > 1 else images[0] if images else None,
            threshold=[request.threshold for request, _ in entering],
            steps=[request.limit for request, _ in entering],
        )
        end = time.perf_counter()
        if self._watch:
            self._watch.ran(len(under_way), end - start)
            for request, _ in entering:
                self._watch.waited(start - request.submitted)
        for number, trace in done:
            request, i = under_way[number]
            request.answers[i] = engine.prediction(trace, latency_s=end - request.submitted)
        finished = []
        with self._changed:
            spent, answered = self._cost
            self._cost = MEMORY * spent + end - start, MEMORY * answered + len(done)
            self._turns.leave(len(done))
            for number, _ in done:
                request, _ = under_way.pop(number)
                if len(request.answers) == len(request.images) and self._turns.end(request):
                    finished.append(request)
        for request in finished:
            if request.future.set_running_or_notify_cancel():
                request.future.set_result([request.answers[i] for i in range(len(request.images))])

    def _forget(self, reference: "weakref.ref[Request]", future: Future[list[Prediction]]) -> None:
        """Take out a request whose future was cancelled; one that is answered is out."""
        request = reference()
        if request is None:
            return
        with self._changed:
            cancelled = self._turns.end(request)
        if cancelled:
            future.set_running_or_notify_cancel()  # tells who waits for several futures

    def _lose(self, parts: list[Part], error: BaseException) -> None:
        """Give up a crowd that raised: all requests that it had images of fail."""
        _release(error)
        with self._changed:
            self._turns.leave(len(parts))
        requests = {request for request, _ in parts}
        logger.error("a run failed, and with it %d requests", len(requests), exc_info=error)
        self._fail(requests, error)

    def _fail(self, requests: Iterable[Request], error: BaseException) -> None:
        with self._changed:
            ended = [request for request in requests if self._turns.end(request)]
        for request in ended:
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(error)


def _release(error: BaseException) -> None:
    """Let go of the images and engines in the frames of an error's trace, which live as long as its future."""
    link: BaseException | None = error
    while link:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
