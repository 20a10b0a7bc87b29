"""The any-time runner: whatever comes, goes and stays behind, an image gets what the unrolled model says of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import OUTPUTS, build_model, build_step, exact_images

from serve.anytime import StepModel, Trace
from serve.bundle import BundleError
from serve.exits import RULES, Exit, Rule, steps_needed, sureness_by_step
from serve.place import Slot, joiner
from serve.session import open_session


T, COUNT = 6, 40
IMAGES = exact_images(COUNT)
CPU = ["CPUExecutionProvider"]
Change = Callable[[onnx.ModelProto], object]


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    """[T, COUNT, ...]: the unrolled model's outputs."""
    session = ort.InferenceSession(build_model(steps=T).SerializeToString(), providers=CPU)
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"image": IMAGES}), strict=True))


@pytest.fixture(scope="module", params=[False, True], ids=["host", "device"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StepModel:
    """The step form, its tensors in numpy arrays, or in OrtValues as on a device."""
    path = tmp_path_factory.mktemp("step") / "step.onnx"
    onnx.save(build_step(steps=T), path)
    return StepModel(open_session(path, provider="cpu"), on_device=request.param)


def check(trace: Trace, expected: dict[str, np.ndarray], image: int, steps: int) -> None:
    """The trace is the first `steps` rows of the unrolled model's, bit for bit."""
    for name, wanted in expected.items():
        np.testing.assert_array_equal(getattr(trace, name), wanted[:steps, image], strict=True)


def test_the_images_differ_in_the_steps_that_they_need(expected: dict[str, np.ndarray]) -> None:
    """Holds the tests below against emptiness."""
    steps = steps_needed(expected["logits"], Exit("confidence", 0.5))
    assert set(steps.tolist()) >= {1, 2, T}
    assert len(np.unique(expected["taps"][:, :, 0])) > COUNT


def test_threshold_1_gives_exactly_the_unrolled_models_outputs(
    model: StepModel, expected: dict[str, np.ndarray]
) -> None:
    for b, trace in enumerate(model.run(IMAGES, Exit("confidence", 1.0))):
        check(trace, expected, b, T)


@settings(deadline=None, max_examples=60)
@given(
    exit=st.builds(Exit, st.sampled_from(list(RULES)), st.floats(0, 1), st.sampled_from([0.0, 0.5, 2.0])),
    chosen=st.sets(st.integers(0, COUNT - 1)),
)
def test_a_batch_that_shrinks_stops_where_the_offline_form_says(
    model: StepModel, expected: dict[str, np.ndarray], exit: Exit, chosen: set[int]
) -> None:
    picked = sorted(chosen)
    steps = steps_needed(expected["logits"], exit)
    traces = model.run(IMAGES[picked], exit)
    assert len(traces) == len(picked)
    for image, trace in zip(picked, traces, strict=True):
        check(trace, expected, image, int(steps[image]))


@pytest.mark.parametrize("rule", RULES)
def test_an_image_that_is_as_sure_as_the_threshold_goes_on(
    model: StepModel, expected: dict[str, np.ndarray], rule: Rule
) -> None:
    """Greater stops, equal does not; so that 1.0 never stops, not even an image that is certain."""
    for image, threshold in enumerate(sureness_by_step(expected["logits"], rule)[0, :8].tolist()):
        for limit, steps in ((threshold, 2), (np.nextafter(threshold, 0), 1)):
            (trace,) = model.run(IMAGES[image : image + 1], Exit(rule, limit), 2)
            assert len(trace.logits) == steps


@pytest.mark.parametrize("limit", range(1, T + 1))
def test_a_limit_cuts_what_would_go_on(model: StepModel, expected: dict[str, np.ndarray], limit: int) -> None:
    exit = Exit("margin", 0.3)
    steps = np.minimum(steps_needed(expected["logits"], exit), limit)
    for b, trace in enumerate(model.run(IMAGES, exit, limit)):
        check(trace, expected, b, int(steps[b]))


arrivals = st.lists(
    st.lists(st.tuples(st.floats(0.2, 1), st.integers(1, T)), max_size=12), min_size=1, max_size=8
)  # at each step: the threshold and the limit of each new image


@settings(deadline=None, max_examples=60)
@given(arrivals=arrivals, rule=st.sampled_from(list(RULES)), relax=st.sampled_from([0.0, 1.0]))
def test_images_that_join_midway_get_what_they_get_alone(
    model: StepModel,
    expected: dict[str, np.ndarray],
    arrivals: list[list[tuple[float, int]]],
    rule: Rule,
    relax: float,
) -> None:
    crowd = model.crowd(rule, relax)
    wanted: dict[int, tuple[int, int, int]] = {}  # number -> image, steps, when it is done
    done: dict[int, Trace] = {}
    time = 0
    while time < len(arrivals) or len(crowd):
        new = arrivals[time] if time < len(arrivals) else []
        assert crowd.entered == len(wanted)
        entering = [(len(wanted) + i) % COUNT for i in range(len(new))]
        for image, (threshold, limit) in zip(entering, new, strict=True):
            needed = steps_needed(expected["logits"][:, [image]], Exit(rule, threshold, relax))
            steps = min(int(needed[0]), limit)
            wanted[len(wanted)] = (image, steps, time + steps - 1)
        thresholds, limits = [threshold for threshold, _ in new], [limit for _, limit in new]
        for number, trace in crowd.advance(IMAGES[entering], threshold=thresholds, steps=limits):
            assert number not in done
            assert wanted[number][2] == time
            done[number] = trace
        time += 1
    assert done.keys() == wanted.keys()
    for number, (image, steps, _) in wanted.items():
        check(done[number], expected, image, steps)


def test_one_threshold_and_one_limit_may_be_for_all_who_enter(
    model: StepModel, expected: dict[str, np.ndarray]
) -> None:
    crowd = model.crowd("margin")
    crowd.advance(IMAGES[:2], threshold=1.0)
    done = crowd.advance(IMAGES[2:5], threshold=1.0, steps=1)
    assert [number for number, _ in done] == [2, 3, 4]
    for number, trace in done:
        check(trace, expected, number, 1)
    assert len(crowd) == 2


def test_nobody_takes_no_step(model: StepModel) -> None:
    assert model.run(IMAGES[:0], Exit("confidence", 0.5)) == []
    assert model.crowd("entropy").advance() == []


def test_traces_stay_as_they_are_when_the_model_runs_on(model: StepModel, expected: dict[str, np.ndarray]) -> None:
    first = model.run(IMAGES[:3], Exit("confidence", 1.0))
    model.run(IMAGES[5:15], Exit("confidence", 1.0))
    for b, trace in enumerate(first):
        check(trace, expected, b, T)


@pytest.mark.parametrize("steps", [0, T + 1, -1])
def test_steps_that_the_model_has_not_are_refused(model: StepModel, steps: int) -> None:
    with pytest.raises(ValueError, match=rf"steps must be 1 to {T}, got {steps}"):
        model.run(IMAGES[:1], Exit("confidence", 0.5), steps)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"threshold": 1.5}, r"must lie in \[0, 1\], 1 for always all time steps, got 1.5"),
        ({"threshold": [0.5, 0.5, -1.0]}, r"must lie in \[0, 1\].*got -1.0"),
        ({"steps": [1, T + 1, 1]}, rf"steps must be 1 to {T}, got {T + 1}"),
        ({"threshold": [0.5, 0.5]}, "2 values for 3 images; give one for all, or one for each"),
        ({"steps": [1] * 4}, "4 values for 3 images"),
    ],
)
def test_who_cannot_enter_leaves_the_others_as_they_are(
    model: StepModel, expected: dict[str, np.ndarray], entry: dict[str, Any], said: str
) -> None:
    crowd = model.crowd("margin")
    crowd.advance(IMAGES[:1], steps=2)
    with pytest.raises(ValueError, match=said):
        crowd.advance(IMAGES[1:4], **entry)
    assert (len(crowd), crowd.entered) == (1, 1)
    ((number, trace),) = crowd.advance()
    assert number == 0
    check(trace, expected, 0, 2)


def edit(name: str, change: Callable[[Any], object]) -> Change:
    """Change one value of the metadata."""

    def apply(model: onnx.ModelProto) -> None:
        (entry,) = (item for item in model.metadata_props if item.key == name)
        value = [json.loads(entry.value)]
        change(value)
        entry.value = json.dumps(value[0])

    return apply


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edit("form", lambda v: v.__setitem__(0, "unrolled")), "form is 'unrolled', expected 'step'"),
        (edit("states", lambda v: v[0][0].pop("shape")), r"metadata cannot be read: KeyError\('shape'\)"),
        (edit("states", lambda v: v[0][1].update(type="float16")), "v2: type 'float16', expected one of float32, fl"),
        (edit("carried", lambda v: v[0].clear()), "takes image, current, v1, v2, not what its metadata say"),
        (lambda m: m.ClearField("metadata_props"), "form is None, expected 'step'"),
        (lambda m: m.metadata_props[0].__setattr__("value", "{"), "form is None, expected 'step'"),
    ],
)
def test_a_model_that_is_no_step_form_is_refused(tmp_path: Path, change: Change, said: str) -> None:
    model = build_step(steps=T)
    change(model)
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(BundleError, match=said):
        StepModel(open_session(tmp_path / "x.onnx", provider="cpu"))


@given(st.lists(st.integers(0, 3), max_size=6), st.integers(0, 3))
def test_the_model_that_joins_rows_is_valid_onnx_and_joins_rows(rows: list[int], new: int) -> None:
    slots = [
        Slot(input="a", output="b", shape=(2,), type="float32", start=None),
        Slot(input="c", output="d", shape=(200, 3), type="float64", start=0.25),
    ]
    model = onnx.load_from_string(joiner(slots))
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(joiner(slots), providers=CPU)
    carried, state = np.arange(8, dtype=np.float32).reshape(4, 2), np.random.default_rng(0).random((4, 200, 3))
    feeds = {"tensor0": carried, "start0": np.zeros((1, 2), np.float32)}
    feeds |= {"tensor1": state, "start1": np.full((1, 200, 3), 0.25)}
    feeds |= {"rows": np.array(rows, np.int64), "new": np.zeros(new, np.int64)}
    kept, joined = session.run(None, feeds)
    np.testing.assert_array_equal(kept, carried[rows])
    np.testing.assert_array_equal(joined, np.concatenate([state[rows], np.full((new, 200, 3), 0.25)]))
