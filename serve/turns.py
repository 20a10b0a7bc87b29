"""Whose turn it is: the queue of requests, for all models, from which the runners of serve.batching take images.

Requests take turns: one image of the first request begins, and that request goes to the back, so that a large batch
does not hold up single images. Runners share what there is evenly.

Images join a crowd (serve.anytime) only while the request whose turn it is asks for its model; else the crowd runs
empty, in at most T steps, and its runner goes to the model whose turn it is. So the models that are wanted take turns,
a crowd each.

No threads in here: who uses it holds a lock.

Shapes: B images, C channels, H rows, W columns, T time steps.
"""

import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from serve.anytime import Trace
from serve.exits import Exit, Rule
from serve.predictor import Prediction


class Run(Protocol):
    """A crowd (serve.anytime): images under way together."""

    entered: int

    def advance(
        self, images: np.ndarray | None, *, threshold: Sequence[float], steps: Sequence[int]
    ) -> list[tuple[int, Trace]]:
        """Let images in, move all by a step, give those that are done by the number with which they entered."""


class Model(Protocol):
    """StepModel or AllSteps of serve.anytime."""

    @property
    def T(self) -> int:
        """Time steps at most."""

    @property
    def no_images(self) -> np.ndarray:
        """[0, C, H, W]."""

    def crowd(self, rule: Rule, relax: float = 0.0) -> Run:
        """Nobody yet."""


class Engine(Protocol):
    """What runs: serve.predictor.Predictor."""

    @property
    def steps(self) -> Model:
        """The model."""

    @property
    def exit(self) -> Exit:
        """When images stop that bring no threshold of their own."""

    @property
    def whole(self) -> "Engine | None":
        """What is quicker for images that take all steps, if something is."""

    def prediction(self, trace: Trace, *, latency_s: float) -> Prediction:
        """Make the answer of what the network did with one image."""


@dataclass(kw_only=True, eq=False, slots=True, weakref_slot=True)
class Request:
    """Images that are answered together."""

    engine: Engine
    images: np.ndarray
    """[B, C, H, W], B >= 1."""
    threshold: float
    limit: int
    """Steps, 1 to T."""
    future: Future[list[Prediction]]
    submitted: float
    """time.perf_counter() then."""
    answers: dict[int, Prediction] = field(default_factory=dict)
    """Of the images that are done, by their place."""
    begun: int = 0
    """Images that have begun: the first of them."""
    over: bool = False
    """Answered, failed or cancelled."""


Part = tuple[Request, int]
"""One image of a request, by its place."""


class Turns:
    """The requests that are not over, and how many of their images wait and run."""

    def __init__(self, *, runners: int, max_batch: int) -> None:
        self._runners, self._max_batch = runners, max_batch
        self._queue: deque[Request] = deque()  # those that have images which have not begun
        self.open: set[Request] = set()
        """The requests that are not over."""
        self.waiting = 0
        """Images that have not begun."""
        self.running = 0
        """Images under way, those of requests that are over included."""

    @property
    def engine(self) -> Engine | None:
        """The engine whose turn it is; None: nothing waits."""
        return self._queue[0].engine if self._queue else None

    def put(self, request: Request) -> None:
        """Put a new request at the back."""
        self._queue.append(request)
        self.open.add(request)
        self.waiting += len(request.images)

    def take(self, engine: Engine, own: int) -> list[Part]:
        """Begin images of `engine` for a runner that has `own` of them under way.

        Whoever begins a crowd also takes images from behind requests for other models, which are the first then: where
        requests for two models alternate, every image would run alone otherwise.
        """
        share = math.ceil((self.waiting + self.running) / self._runners)
        room = min(self._max_batch, share) - own
        taken: list[Part] = []
        passed: list[Request] = []
        while self._queue and len(taken) < room:
            request = self._queue[0]
            if request.engine is not engine and own:
                break
            self._queue.popleft()
            if request.engine is not engine:
                passed.append(request)
                continue
            taken.append((request, request.begun))
            request.begun += 1
            if request.begun < len(request.images):
                self._queue.append(request)
        self._queue.extendleft(reversed(passed))
        self.waiting -= len(taken)
        self.running += len(taken)
        return taken

    def leave(self, images: int) -> None:
        """So many images run no more."""
        self.running -= images

    def end(self, request: Request) -> bool:
        """Take a request out, with its images that have not begun.

        True for the first caller alone, who then settles the request's future: it is settled once.
        """
        if request.over:
            return False
        request.over = True
        self.open.remove(request)
        if request.begun < len(request.images):
            self.waiting -= len(request.images) - request.begun
            self._queue.remove(request)
        return True
