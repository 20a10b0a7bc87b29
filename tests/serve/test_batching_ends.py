"""How a request ends other than answered: cancelled, failed, too late, refused; and that nothing of it stays."""

import asyncio
import copy
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from typing import Any

import engine_kit
import numpy as np
import pytest
from engine_kit import ALWAYS, IMAGES, SOON, Broken, Engine, Gate, T, same, submit, until, with_place

from serve.anytime import StepModel, Trace
from serve.batching import Batcher, Overloaded
from serve.predictor import Prediction


models, gate, batchers = engine_kit.models, engine_kit.gate, engine_kit.batchers


def test_a_request_that_is_cancelled_midway_gives_its_place_up(
    models: list[StepModel], gate: Gate, batchers: Callable[..., Batcher]
) -> None:
    batcher, engine = batchers(max_waiting=2), Engine(with_place(models[0], gate))
    large = submit(batcher, engine, *range(12))
    gate.held()
    last = submit_when_open(batcher, large, engine)
    gate.let_all()
    same(last.result(SOON)[0], models[0].run(IMAGES[20:21], ALWAYS)[0])
    assert wait([large], timeout=SOON).done == {large}  # also who waits for several is told
    with pytest.raises(CancelledError):
        large.result()
    assert max(engine.steps.place.runs) == 4


def submit_when_open(batcher: Batcher, large: Future[Any], engine: Engine) -> Future[list[Prediction]]:
    """Nothing gets in before `large` is cancelled."""
    assert batcher.waiting == 8
    with pytest.raises(Overloaded):
        submit(batcher, engine, 20)
    assert large.cancel()
    assert batcher.waiting == 0
    return submit(batcher, engine, 20)


def test_a_caller_in_asyncio_that_waits_no_longer_takes_its_images_along(
    models: list[StepModel], gate: Gate, batchers: Callable[..., Batcher]
) -> None:
    batcher, engine = batchers(max_batch=1), Engine(with_place(models[0], gate))

    async def call() -> None:
        await asyncio.wait_for(asyncio.wrap_future(submit(batcher, engine, 0, 1, 2)), 0.02)

    with pytest.raises(TimeoutError):
        asyncio.run(call())
    assert batcher.waiting == 0


def test_a_run_that_raises_fails_those_in_it_and_nobody_else(
    models: list[StepModel], gate: Gate, batchers: Callable[..., Batcher], caplog: pytest.LogCaptureFixture
) -> None:
    def fail_at_the_second(run: int) -> None:
        gate(run)
        if run == 2:
            raise Broken("the second")

    batcher, weak = batchers(max_batch=3), Engine(with_place(models[0], fail_at_the_second))
    failing = submit(batcher, weak, 0), submit(batcher, weak, 1, 2, 3)
    gate.held()
    other, later = submit(batcher, Engine(models[1]), 5), submit(batcher, weak, 6)
    with caplog.at_level(logging.ERROR, "serve.batching"):
        gate.let_all()
        same(other.result(SOON)[0], models[1].run(IMAGES[5:6], ALWAYS)[0])
        same(later.result(SOON)[0], models[0].run(IMAGES[6:7], ALWAYS)[0])
    for future in failing:
        with pytest.raises(Broken, match="the second"):
            future.result(SOON)
    assert [record.getMessage() for record in caplog.records] == ["a run failed, and with it 2 requests"]
    assert "the second" in caplog.text  # the trace


@pytest.mark.parametrize("where", ["prediction", "ran", "waited", "crowd"])
def test_the_runner_lives_on_whatever_raises(
    models: list[StepModel], batchers: Callable[..., Batcher], where: str
) -> None:
    class Weak(Engine):
        broken = True

        def prediction(self, trace: Trace, *, latency_s: float) -> Prediction:
            self.may_break("prediction")
            return super().prediction(trace, latency_s=latency_s)

        def may_break(self, place: str) -> None:
            if self.broken and where == place:
                raise SystemExit(place)  # not even an Exception

        def ran(self, images: int, seconds: float) -> None:
            self.may_break("ran")

        def waited(self, seconds: float) -> None:
            self.may_break("waited")

    weak = Weak(models[0])
    if where == "crowd":
        weak.steps = copy.copy(models[0])
        weak.steps.crowd = lambda rule, relax: weak.may_break("crowd") or models[0].crowd(rule, relax)
    batcher = batchers(watch=weak)
    with pytest.raises(SystemExit, match=where):
        submit(batcher, weak, 0, 1).result(SOON)
    weak.broken = False
    same(submit(batcher, weak, 2).result(SOON)[0], models[0].run(IMAGES[2:3], ALWAYS)[0])
    assert batcher._turns.running == 0


def test_closing_under_load_finishes_what_got_in(models: list[StepModel], batchers: Callable[..., Batcher]) -> None:
    batcher, engine = batchers(runners=2), Engine(with_place(models[0], lambda _: time.sleep(0.0005)))
    accepted: list[Future[list[Prediction]]] = []
    refused = threading.Semaphore(0)

    def call() -> None:
        try:
            while True:
                accepted.append(submit(batcher, engine, 0, 1, 2))
                time.sleep(0.0005)
        except Overloaded:
            refused.release()

    callers = [threading.Thread(target=call) for _ in range(4)]
    for thread in callers:
        thread.start()
    until(lambda: len(accepted) > 50)
    batcher.close()
    assert not any(thread.is_alive() for thread in batcher._threads)
    for thread in callers:
        thread.join(SOON)
    assert all(len(future.result(0)) == 3 for future in accepted)
    assert batcher.retry_after() == 1
    with pytest.raises(Overloaded, match="closing"):
        submit(batcher, engine, 0)
    batcher.close()  # again: nothing happens


def test_what_is_not_finished_in_time_fails_when_closing(
    models: list[StepModel], gate: Gate, batchers: Callable[..., Batcher]
) -> None:
    batcher, engine = batchers(max_batch=1), Engine(with_place(models[0], gate))
    futures = [submit(batcher, engine, i, steps=1) for i in range(3)]
    gate.held()
    batcher.close(0.02)
    for future in futures:
        with pytest.raises(Overloaded, match="closed before this was finished"):
            future.result(0)
    gate.let_all()
    batcher.close()
    assert engine.steps.place.runs == [1]


@pytest.mark.parametrize("fate", ["answered", "failed", "cancelled"])
def test_nothing_holds_images_and_engines_that_are_done(
    models: list[StepModel], batchers: Callable[..., Batcher], fate: str
) -> None:
    """Without the cycle collector: a model that was swapped out is freed at once, though callers keep their futures."""
    gate = Gate()

    def inside(held: object) -> None:
        raise Broken("inside")

    def before(run: int) -> None:
        gate(run)
        if fate == "failed":
            try:
                inside(references[1]())
            except Broken as error:
                raise Broken("outside") from error

    batcher, images = batchers(max_batch=2), IMAGES[:5].copy()
    engine = Engine(with_place(models[0], before))
    references = [weakref.ref(each) for each in (images, engine, engine.steps)]
    gc.disable()
    try:
        future = batcher.submit(engine, images, exit_threshold=None, steps=None)
        gate.held()
        if fate == "cancelled":
            assert future.cancel()
        gate.let_all()
        wait([future], timeout=SOON)
        del images, engine
        until(lambda: all(reference() is None for reference in references))
    finally:
        gc.enable()
    assert future.cancelled() == (fate == "cancelled")
    assert fate != "failed" or str(future.exception()) == "outside"


@pytest.mark.parametrize(
    ("images", "options", "said"),
    [
        (IMAGES[:0], {}, r"float32 images \[B, 1, 8, 8\] with B >= 1, got float32 \[0, 1, 8, 8\]"),
        (IMAGES[0], {}, r"got float32 \[1, 8, 8\]"),
        (IMAGES[:1, :, :4], {}, r"got float32 \[1, 1, 4, 8\]"),
        (IMAGES[:1].astype(np.float64), {}, "got float64"),
        (IMAGES[:1], {"steps": 0}, f"steps must be 1 to {T}, got 0"),
        (IMAGES[:1], {"steps": T + 1}, f"steps must be 1 to {T}, got {T + 1}"),
        (IMAGES[:1], {"exit_threshold": 1.5}, r"must lie in \[0, 1\].*got 1.5"),
        (IMAGES[:1], {"exit_threshold": float("nan")}, "got nan"),
    ],
)
def test_what_cannot_be_run_is_refused_at_once(
    models: list[StepModel], batchers: Callable[..., Batcher], images: np.ndarray, options: dict[str, Any], said: str
) -> None:
    batcher = batchers()
    with pytest.raises(ValueError, match=said):
        batcher.submit(Engine(models[0]), images, **({"exit_threshold": None, "steps": None} | options))
    assert (batcher.waiting, len(batcher._turns.open)) == (0, 0)


@pytest.mark.parametrize("name", ["runners", "max_batch", "max_waiting"])
def test_a_batcher_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
        Batcher(**({"runners": 1, "max_batch": 1, "max_waiting": 1} | {name: 0}))


def test_its_threads_are_daemons_with_names(batchers: Callable[..., Batcher]) -> None:
    batcher = batchers(runners=2)
    assert [(t.name, t.daemon) for t in batcher._threads] == [("tserve-runner-0", True), ("tserve-runner-1", True)]
