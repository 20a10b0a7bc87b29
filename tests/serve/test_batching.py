"""Batching: whatever arrives together, is cancelled or fails, an image gets what it gets alone, and gets it once."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import engine_kit
import numpy as np
import pytest
from engine_kit import COUNT, IMAGES, SOON, Broken, Engine, Gate, T, same, submit, with_place
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.anytime import StepModel, Trace
from serve.batching import Batcher, Overloaded
from serve.exits import Exit
from serve.predictor import Prediction


models, gate, batchers = engine_kit.models, engine_kit.gate, engine_kit.batchers


@pytest.fixture(scope="module")
def engines(models: list[StepModel]) -> list[Engine]:
    exits = [Exit("confidence", 0.6), Exit("margin", 0.4, relax=0.5), Exit("entropy", 0.3)]
    return [Engine(model, exit) for model, exit in zip(models, exits, strict=True)]


@pytest.fixture(scope="module")
def alone(models: list[StepModel]) -> Callable[[int, int, Exit, int], Trace]:
    """What a model says of one image by itself."""

    @cache
    def run(model: int, image: int, exit: Exit, steps: int) -> Trace:
        return models[model].run(IMAGES[image : image + 1], exit, steps)[0]

    return run


@dataclass
class Order:
    """A request of the property below, and what its caller does."""

    model: int
    images: list[int]
    threshold: float | None
    steps: int | None
    cancel_after_s: float | None
    caller: int


orders = st.builds(
    Order,
    model=st.integers(0, 2),
    images=st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=7),
    threshold=st.none() | st.floats(0.2, 1),
    steps=st.none() | st.integers(1, T),
    cancel_after_s=st.none() | st.sampled_from([0, 0.0005, 0.002]),
    caller=st.integers(0, 3),
)


@settings(deadline=None, max_examples=120)
@given(
    orders=st.lists(orders, max_size=25),
    runners=st.integers(1, 3),
    max_batch=st.integers(1, 6),
    broken=st.sets(st.integers(1, 12)),
)
def test_every_image_gets_what_it_gets_alone_once_and_in_its_place(
    engines: list[Engine],
    alone: Callable[[int, int, Exit, int], Trace],
    orders: list[Order],
    runners: int,
    max_batch: int,
    broken: set[int],
) -> None:
    """Four callers at a time, three models; the last model raises at some of its runs."""

    def fail(run: int) -> None:
        if run in broken:
            raise Broken(run)

    weak = Engine(with_place(engines[2].steps, fail), engines[2].exit)
    batcher = Batcher(runners=runners, max_batch=max_batch, max_waiting=10_000)
    futures: dict[int, Future[list[Prediction]]] = {}
    cancelled: dict[int, bool] = {}

    def call(caller: int) -> None:
        for number, order in enumerate(orders):
            if order.caller == caller:
                engine = [*engines[:2], weak][order.model]
                images = IMAGES[order.images]
                futures[number] = batcher.submit(engine, images, exit_threshold=order.threshold, steps=order.steps)
                if order.cancel_after_s is not None:
                    time.sleep(order.cancel_after_s)
                    cancelled[number] = futures[number].cancel()

    callers = [threading.Thread(target=call, args=(caller,)) for caller in range(4)]
    start = time.perf_counter()
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(SOON)
    batcher.close(SOON)
    took = time.perf_counter() - start

    assert len(futures) == len(orders)
    assert not any(thread.is_alive() for thread in batcher._threads)
    assert (batcher._turns.waiting, batcher._turns.running, len(batcher._turns.open)) == (0, 0, 0)
    for number, order in enumerate(orders):
        future = futures[number]
        assert future.done()
        assert future.cancelled() == cancelled.get(number, False)
        if future.cancelled():
            continue
        if error := future.exception():
            assert isinstance(error, Broken)
            assert order.model == 2
            continue
        exit, predictions = engines[order.model].exit, future.result()
        exit = exit if order.threshold is None else Exit(exit.rule, order.threshold, exit.relax)
        assert len(predictions) == len(order.images)
        for image, prediction in zip(order.images, predictions, strict=True):
            same(prediction, alone(order.model, image, exit, order.steps or T))
            assert 0 < prediction.latency_s < took


def test_images_enter_a_crowd_at_every_step_and_only_those_of_its_model(
    models: list[StepModel], gate: Gate, batchers: Callable[..., Batcher]
) -> None:
    batcher, first, second = batchers(), Engine(with_place(models[0], gate)), Engine(with_place(models[1], gate))
    futures = [submit(batcher, first, 0)]
    gate.held()
    futures.append(submit(batcher, first, 1, 2, steps=2))
    gate.let()
    futures.append(submit(batcher, second, 3, steps=1))
    futures.append(submit(batcher, first, 4, steps=1))
    gate.let()
    gate.let()
    gate.let()  # the first image is done; the turn is the other model's
    gate.let()
    gate.let_all()
    for future in futures:
        future.result(SOON)
    assert first.steps.place.runs == [1, 3, 3, 1, 1]
    assert second.steps.place.runs == [1]


def test_two_models_under_load_fill_their_crowds(
    models: list[StepModel], gate: Gate, batchers: Callable[..., Batcher]
) -> None:
    batcher, both = batchers(max_batch=8), [Engine(with_place(model, gate)) for model in models[:2]]
    futures = [submit(batcher, both[0], 0, steps=1)]
    gate.held()
    futures += [submit(batcher, both[i % 2], i, steps=1) for i in range(16)]
    gate.let_all()
    for future in futures:
        future.result(SOON)
    assert [engine.steps.place.runs for engine in both] == [[1, 8], [8]]


def test_two_images_of_a_request_run_at_a_time_where_there_are_two_runners(
    models: list[StepModel], gate: Gate, batchers: Callable[..., Batcher]
) -> None:
    batcher, engine = batchers(runners=2), Engine(with_place(models[0], gate))
    future = submit(batcher, engine, 0, 1, steps=1)
    gate.held()
    gate.held()
    gate.let_all()
    assert len(future.result(SOON)) == 2
    assert engine.steps.place.runs == [1, 1]


def test_latency_counts_from_the_call(models: list[StepModel], gate: Gate, batchers: Callable[..., Batcher]) -> None:
    batcher, engine = batchers(max_batch=1), Engine(with_place(models[0], gate))
    futures = [submit(batcher, engine, 0, steps=1), submit(batcher, engine, 1, steps=1)]
    gate.held()
    time.sleep(0.05)
    gate.let_all()
    assert all(future.result(SOON)[0].latency_s >= 0.05 for future in futures)


def test_the_watch_sees_every_run_and_every_wait(
    models: list[StepModel], gate: Gate, batchers: Callable[..., Batcher]
) -> None:
    class Watch:
        def __init__(self) -> None:
            self.runs: list[tuple[int, float]] = []
            self.waits: list[float] = []

        def ran(self, images: int, seconds: float) -> None:
            self.runs.append((images, seconds))

        def waited(self, seconds: float) -> None:
            self.waits.append(seconds)

    watch = Watch()
    batcher, engine = batchers(watch=watch, max_batch=2), Engine(with_place(models[0], gate))
    first = submit(batcher, engine, 0, steps=1)
    gate.held()
    second = submit(batcher, engine, 1, 2, 3, steps=2)
    time.sleep(0.02)
    gate.let_all()
    first.result(SOON)
    second.result(SOON)
    assert [images for images, _ in watch.runs] == [1, 2, 2, 1, 1]
    assert watch.runs[0][1] >= 0.02
    assert len(watch.waits) == 4
    assert watch.waits[0] < min(watch.waits[1:])
    assert min(watch.waits[1:]) >= 0.02


def test_who_comes_when_too_many_wait_is_told_when_to_come_again(
    models: list[StepModel], gate: Gate, batchers: Callable[..., Batcher]
) -> None:
    batcher, engine = batchers(max_batch=1, max_waiting=3), Engine(with_place(models[0], gate))
    futures = [submit(batcher, engine, 0, steps=1)]
    gate.held()
    futures += [submit(batcher, engine, i, steps=1) for i in (1, 2)]
    assert (batcher.waiting, batcher.retry_after()) == (2, None)
    futures.append(submit(batcher, engine, 3, 4, 5, 6, steps=1))  # a batch may go beyond
    assert (batcher.waiting, batcher.retry_after()) == (6, 1)
    with pytest.raises(Overloaded, match="6 images wait already") as refusal:
        submit(batcher, engine, 7)
    assert refusal.value.retry_after_s == 1
    assert batcher.waiting == 6
    assert futures.pop().cancel()
    assert (batcher.waiting, batcher.retry_after()) == (2, None)
    futures.append(submit(batcher, engine, 7, steps=1))
    assert (batcher.waiting, batcher.retry_after()) == (3, 1)
    gate.let_all()
    for future in futures:
        future.result(SOON)
    assert (batcher.waiting, batcher.retry_after()) == (0, None)


@pytest.mark.parametrize("runners", [1, 2])
def test_the_wait_is_told_from_what_images_cost(
    models: list[StepModel],
    gate: Gate,
    batchers: Callable[..., Batcher],
    monkeypatch: pytest.MonkeyPatch,
    runners: int,
) -> None:
    now = 0.0
    monkeypatch.setattr("serve.batching.time", SimpleNamespace(perf_counter=lambda: now, monotonic=time.monotonic))

    def half_a_second(run: int) -> None:
        nonlocal now
        now += 0.5
        gate(run)

    batcher, engine = batchers(runners=runners, max_waiting=1), Engine(with_place(models[0], half_a_second))
    gate.open = True
    for _ in range(3):
        submit(batcher, engine, 0, steps=1).result(SOON)
        gate.held()
    assert batcher.retry_after() is None
    gate.open = False
    batcher.submit(engine, np.repeat(IMAGES[:1], 200, 0), exit_threshold=1.0, steps=1)
    for _ in range(runners):
        gate.held()
    assert batcher.waiting == 200 - 4 * runners
    assert batcher.retry_after() == pytest.approx(batcher.waiting * 0.5 / runners, abs=1)  # rounded up
    batcher.close(0)


def test_images_that_take_all_steps_go_where_that_is_quicker(models: list[StepModel]) -> None:
    """What may stop early, or is limited, stays; the answers of others are those of the second model here."""
    other = Engine(models[1])
    engine = Engine(models[0], Exit("confidence", 0.6), whole=other)
    batcher = Batcher(runners=1, max_batch=4, max_waiting=100)
    asked = [(1.0, None), (1.0, T), (1.0, T - 1), (0.99, None), (None, None)]
    runs = [batcher.submit(engine, IMAGES[:2], exit_threshold=value, steps=steps) for value, steps in asked]
    for (value, steps), future, whole in zip(asked, runs, (True, True, False, False, False), strict=True):
        model, exit = models[1 if whole else 0], Exit("confidence", 0.6 if value is None else value)
        for answer, trace in zip(future.result(SOON), model.run(IMAGES[:2], exit, steps), strict=True):
            np.testing.assert_array_equal(answer.logits, trace.logits)
    batcher.close()
