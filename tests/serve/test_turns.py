"""Whose turn it is: in what order images begin, with no thread and no network."""

from concurrent.futures import Future
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.turns import Request, Turns


def request(engine: Any, images: int = 1) -> Request:
    """A request of which nothing is run."""
    pixels = np.zeros((images, 1, 1, 1), np.float32)
    return Request(engine=engine, images=pixels, threshold=1.0, limit=1, future=Future(), submitted=0.0)


def test_a_large_batch_and_single_images_take_turns() -> None:
    turns = Turns(runners=1, max_batch=1)
    large, first, second = request("a", 5), request("a"), request("a")
    for each in (large, first, second):
        turns.put(each)
    begun = [turns.take(turns.engine, 0)[0] for _ in range(7)]
    assert begun == [(large, 0), (first, 0), (second, 0), (large, 1), (large, 2), (large, 3), (large, 4)]
    assert turns.engine is None


def test_runners_share_evenly() -> None:
    turns = Turns(runners=3, max_batch=4)
    turns.put(request("a", 7))
    assert [len(turns.take("a", 0)) for _ in range(3)] == [3, 3, 1]
    turns.put(request("a", 1))
    assert turns.take("a", 3) == []  # it is for a runner that has less
    assert len(turns.take("a", 1)) == 1
    turns.put(request("a", 90))
    assert len(turns.take("a", 3)) == 1  # no more than max_batch


def test_nobody_joins_while_it_is_the_turn_of_another_model() -> None:
    turns = Turns(runners=1, max_batch=4)
    turns.put(request("a"))
    turns.take("a", 0)
    other, later = request("b"), request("a")
    turns.put(other)
    turns.put(later)
    assert turns.take("a", 1) == []
    turns.leave(1)
    assert turns.engine == "b"
    assert turns.take("b", 0) == [(other, 0)]
    assert turns.engine == "a"


def test_who_begins_a_crowd_fills_it_up_and_leaves_the_others_in_order() -> None:
    turns = Turns(runners=1, max_batch=3)
    first, second, third, fourth = (request("a") for _ in range(4))
    b, c = request("b"), request("c")
    for each in (first, b, second, c, third, fourth):
        turns.put(each)
    assert [part for part, _ in turns.take("a", 0)] == [first, second, third]
    turns.leave(3)
    assert turns.engine == "b"
    assert [part for part, _ in turns.take("b", 0)] == [b]
    turns.leave(1)
    assert turns.engine == "c"
    turns.take("c", 0)
    assert turns.engine == "a"


puts = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), max_size=20)


@settings(deadline=None)
@given(puts, st.integers(1, 4), st.integers(1, 8), st.randoms(use_true_random=False))
def test_every_image_begins_once_and_no_crowd_begins_out_of_turn(
    puts: list[tuple[str, int]], runners: int, max_batch: int, random: Any
) -> None:
    """Before a request gets its turn, no more crowds begin than there were requests before it: nobody starves.

    Runners come at random: an empty one serves the model whose turn it is, a busy one its own, of which some leave.
    """
    turns = Turns(runners=runners, max_batch=max_batch)
    crowds: list[tuple[Any, int]] = [(None, 0)] * runners
    coming, requests = list(puts), []
    begun: set[tuple[Request, int]] = set()
    allowed: dict[Request, int] = {}  # for each that waits: how many crowds may begin before its turn

    def waiting() -> list[Request]:
        return [each for each in turns.open if each.begun < len(each.images)]

    while coming or turns.waiting or turns.running:
        if coming and random.random() < 0.5:
            requests.append(request(*coming.pop(0)))
            allowed[requests[-1]] = len(waiting())
            turns.put(requests[-1])
        runner = random.randrange(runners)
        engine, own = crowds[runner]
        leaving = random.randint(0, own)
        turns.leave(leaving)
        own -= leaving
        crowds[runner] = (engine, own)
        if not own:
            engine = turns.engine
            if engine is None:
                continue
        taken = turns.take(engine, own)
        assert taken or own
        assert own + len(taken) <= max_batch
        assert {part.engine for part, _ in taken} <= {engine}
        assert not begun & set(taken)
        begun |= set(taken)
        served = {part for part, _ in taken}
        for each in waiting():
            allowed[each] = len(waiting()) if each in served else allowed[each] - (not own)
            assert allowed[each] >= 0
        crowds[runner] = (engine, own + len(taken))
    assert begun == {(each, i) for each in requests for i in range(len(each.images))}
