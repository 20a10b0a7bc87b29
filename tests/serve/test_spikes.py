"""The probe's spikes against what the network means: export's reference in floats, the integer twin in int8."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import synthetic
from onnx import TensorProto, helper

from export import execute, reference
from export import graph as g
from export.onnx_graph import build_model
from export.onnx_int8 import build_int8
from export.quantize import quantize
from hardware.net import Limits
from serve import spikes as module
from serve.bundle import BundleError, read
from serve.predictor import Predictor
from serve.spikes import OtherSpikes, Probe, by_step, compare, outputs


LAYERS = {"a.lif": (3, 6, 4), "b.lif": (5, 3, 2), "c.lif": (4,)}
LABELS = ("x", "y", "z")
Change = Callable[[onnx.ModelProto], None]


def network(T: int) -> g.Graph:
    """conv-LIF-conv/2-LIF-Flatten-Dense-LIF-Dense; on images of sixteenths no sum of it is rounded in float32."""
    rng = np.random.default_rng(T)
    lif = {"tau": 2.0, "v_threshold": 0.75, "v_reset": 0.0, "decay_input": True}

    def weights(*shape: int) -> dict[str, np.ndarray]:
        return {"weight": rng.integers(-10, 17, shape) / 16, "bias": rng.integers(-4, 9, shape[0]) / 16}

    windows = {"padding": (1, 1)}
    nodes = (
        g.Input(name="image", inputs=(), shape=(1, 6, 4), mean=np.array([0.25]), std=np.array([0.5])),
        g.Conv(name="a", inputs=("image",), shape=(3, 6, 4), stride=(1, 1), **windows, **weights(3, 1, 3, 3)),
        g.LIF(name="a.lif", inputs=("a",), shape=(3, 6, 4), **lif),
        g.Conv(name="b", inputs=("a.lif",), shape=(5, 3, 2), stride=(2, 2), **windows, **weights(5, 3, 3, 3)),
        g.LIF(name="b.lif", inputs=("b",), shape=(5, 3, 2), **lif),
        g.Flatten(name="flat", inputs=("b.lif",), shape=(30,)),
        g.Dense(name="c", inputs=("flat",), shape=(4,), **weights(4, 30)),
        g.LIF(name="c.lif", inputs=("c",), shape=(4,), **lif),
        g.Dense(name="readout", inputs=("c.lif",), shape=(3,), **weights(3, 4)),
    )
    return g.Graph(nodes=nodes, T=T)


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 17, (count, 1, 6, 4)).astype(np.float32) / np.float32(16)


def exported(folder: Path, graph: g.Graph, precision: str) -> tuple[Path, g.Graph]:
    """A bundle of the graph in this precision, and the integer twin that int8 is written of, else the graph itself."""
    named: dict[str, Any] = {"labels": LABELS, "checkpoint_sha256": synthetic.CHECKPOINT}
    (folder / "samples").mkdir(parents=True)
    twin, scales = quantize(graph, images(16, seed=9), Limits.load("loihi2"))
    for form, name in (("unrolled", synthetic.model_name(precision)), ("step", synthetic.step_name(precision))):
        if precision == "int8":
            model = build_int8(graph, twin, scales, **named, form=form)
        else:
            model = build_model(graph, **named, precision=precision, form=form)
        onnx.save(model, folder / name)
    about = {item.key: json.loads(item.value) for item in model.metadata_props}
    description = synthetic.description(folder, (precision,), 1.0)
    description["exits"][precision]["accuracy_by_T"] = [0.9] * about["T"]
    description |= {key: about[key] for key in ("T", "labels", "lif_layers", "lif_shapes", "synapses")}
    description["input"] = {"channels": 1, "height": 6, "width": 4}
    (folder / "bundle.json").write_text(json.dumps(description))
    return folder, twin if precision == "int8" else graph


@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_they_are_the_spikes_of_the_reference_neuron_for_neuron(tmp_path: Path, precision: str, T: int) -> None:
    folder, meant = exported(tmp_path / "bundle", network(T), precision)
    predictor, seen = Predictor(folder, provider="cpu"), images(6)
    probe = Probe(predictor)
    values = (execute.run if precision == "int8" else reference.run)(meant, seen)
    predictions = predictor.predict(seen, exit_threshold=1.0)
    for b, image in enumerate(seen):
        got = probe.run(image, rates=predictions[b].spike_rates)
        assert list(got) == list(LAYERS)
        for index, (layer, spikes) in enumerate(got.items()):
            assert spikes.dtype == bool
            wanted = values[layer][:, b].reshape(T, *(*LAYERS[layer], 1, 1)[:3])
            np.testing.assert_array_equal(spikes, wanted, strict=False)
            rates = np.float32(spikes.mean(axis=(1, 2, 3)))
            np.testing.assert_allclose(rates, predictions[b].spike_rates[:, index], rtol=1e-6)
    fired = {layer: values[layer].mean() for layer in LAYERS}
    assert all(0 < share < 1 for share in fired.values()), f"some layers say nothing here: {fired}"


def test_logits_are_the_same_bits_with_and_without_the_outputs(bundle_dir: Path) -> None:
    from serve.session import open_session

    data = (bundle_dir / "model.onnx").read_bytes()
    plain, probing = open_session(data), open_session(data + outputs(["features.0.lif/out"]))
    feed = {"image": synthetic.exact_images(5)}
    for one, other in zip(plain.run(None, feed), probing.run(None, feed)[:-1], strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


@pytest.mark.parametrize(
    "names", [["x"], ["a" * 127], ["a" * 128], ["é" * 9000, "b"], [f"layer{i}/out" for i in range(99)]]
)
def test_what_is_appended_is_read_by_onnx_as_outputs(names: list[str]) -> None:
    model = synthetic.build_model()
    before = [output.name for output in model.graph.output]
    merged = onnx.load_from_string(model.SerializeToString() + outputs(names))
    assert [output.name for output in merged.graph.output] == before + names
    del merged.graph.output[len(before) :]
    assert merged == model


def test_one_session_is_opened_when_it_is_first_needed(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, opened, plain = Predictor(bundle_dir, provider="cpu"), [], module.open_session
    monkeypatch.setattr(module, "open_session", lambda *a, **k: opened.append(k["name"]) or plain(*a, **k))
    probe, picture = Probe(predictor), synthetic.exact_images(1)[0]
    assert opened == []
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(probe.run, [picture] * 24))
    assert opened == [str(bundle_dir / "model.onnx")]
    for run in runs:
        for layer, spikes in run.items():
            np.testing.assert_array_equal(spikes, runs[0][layer])


def test_it_runs_what_was_verified_and_no_other_file(own_bundle: Path) -> None:
    predictor = Predictor(own_bundle, provider="cpu")
    probe, picture = Probe(predictor), synthetic.exact_images(1)[0]
    onnx.save(synthetic.build_model(seed=99), own_bundle / "model.onnx")
    with pytest.raises(BundleError, match=r"model\.onnx: not the file that bundle\.json lists"):
        probe.run(picture)
    onnx.save(synthetic.build_model(), own_bundle / "model.onnx")
    assert list(probe.run(picture)) == synthetic.LIF_LAYERS  # a failure is not kept
    (own_bundle / "model.onnx").unlink()
    probe.run(picture)  # it needs the file no more


def changed(folder: Path, change: Change) -> Probe:
    """A probe into a bundle whose unrolled model is another exporter's."""
    model = synthetic.build_model()
    change(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    synthetic.describe(folder)
    return Probe(Predictor(read(folder), provider="cpu"))


def renamed(model: onnx.ModelProto) -> None:
    """Nothing is called features.1.lif/out any more."""
    next(node for node in model.graph.node if node.output[0] == "features.1.lif/out").output[0] = "elsewhere"


def replaced(op: str, **attributes: Any) -> Change:
    """features.0.lif/out is what this operator makes of the spikes."""

    def change(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if node.output[0] == "features.0.lif/out").output[0] = "spikes"
        model.graph.node.append(helper.make_node(op, ["spikes"], ["features.0.lif/out"], **attributes))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (renamed, r"features\.1\.lif/out.*does not exist in the graph"),
        (replaced("Transpose", perm=[0, 2, 3, 1]), r"shape \[3, 8, 8, 4\], expected \[3, 4, 8, 8\]"),
        (replaced("Flatten"), r"shape \[3, 256\], expected \[3, 4, 8, 8\]"),
        (replaced("Neg"), "values other than 0 and 1"),
    ],
    ids=["missing", "other order", "other shape", "no spikes"],
)
def test_a_model_without_the_spikes_is_refused_with_its_name_and_what_to_do(
    own_bundle: Path, change: Change, said: str
) -> None:
    probe = changed(own_bundle, change)
    with pytest.raises(
        BundleError, match=rf"model\.onnx: does not give .*{said}.*python -m export\.bundle CKPT"
    ) as told:
        probe.run(synthetic.exact_images(1)[0])
    assert "features.0.lif/out, features.1.lif/out" in str(told.value)
    assert str(told.value).count("write the bundle again") == 1


def test_other_spikes_than_those_that_were_counted_are_not_shown(own_bundle: Path) -> None:
    """The tensor called LAYER/out holds spikes, but turned to their opposite."""

    def opposite(model: onnx.ModelProto) -> None:
        replaced("Cast", to=TensorProto.FLOAT)(model)
        last = model.graph.node.pop()
        model.graph.node.append(helper.make_node("Cast", ["spikes"], ["fired"], to=TensorProto.BOOL))
        model.graph.node.append(helper.make_node("Not", ["fired"], ["silent"]))
        last.input[0] = "silent"
        model.graph.node.append(last)

    probe = changed(own_bundle, opposite)
    with pytest.raises(OtherSpikes, match=r"features\.0\.lif, step 1: \d+ of 256 neurons spiked .* none are shown"):
        probe.run(np.zeros((1, 8, 8), np.float32))


def test_spikes_are_held_against_the_prediction_that_is_shown(bundle_dir: Path) -> None:
    predictor = Predictor(bundle_dir, provider="cpu")
    probe, pictures = Probe(predictor), synthetic.exact_images(2)
    first, second = predictor.predict(pictures, exit_threshold=1.0)
    early = predictor.predict(pictures[:1], exit_threshold=1.0, steps=2)[0]
    alone = probe.run(pictures[0])
    for rates in (first.spike_rates, early.spike_rates, first.spike_rates[:1]):
        for layer, spikes in probe.run(pictures[0], rates=rates).items():
            np.testing.assert_array_equal(spikes, alone[layer])
    with pytest.raises(OtherSpikes, match="these are not the spikes behind the answer"):
        probe.run(pictures[0], rates=second.spike_rates)


def test_one_spike_more_or_less_is_seen() -> None:
    spikes = {"a": np.ones((2, 64, 32, 32), bool), "b": np.zeros((2, 5, 1, 1), bool)}
    rates = np.array([[1, 0], [1, 0]], np.float32)
    compare(spikes, rates)
    spikes["a"][1, 63, 31, 31] = False
    with pytest.raises(OtherSpikes, match=r"a, step 2: 65535 of 65536 neurons spiked in this run, but 65536\.0 were"):
        compare(spikes, rates)
    compare(spikes, rates[:1])
    with pytest.raises(OtherSpikes, match="b, step 1: 0 of 5 neurons"):
        compare(spikes, np.array([[1, 0.2]], np.float32))
    with pytest.raises(OtherSpikes, match="a, step 1"):
        compare(spikes, np.array([[np.nan, 0]], np.float32))
    for wrong in (np.zeros((3, 2)), np.zeros((0, 2)), np.zeros((2, 3)), np.zeros(2)):
        with pytest.raises(ValueError, match="expected \\[t, 2\\], t from 1 to 2"):
            compare(spikes, wrong)


def test_layouts_are_told_apart() -> None:
    spikes = np.random.default_rng(0).random((3, 4, 2, 5)) < 0.5
    flat = np.stack([[spikes[t, :, i // 5, i % 5] for i in range(10)] for t in range(3)]).astype(np.uint8)
    np.testing.assert_array_equal(by_step(flat, 3, (4, 2, 5), channels_last=True), spikes)
    np.testing.assert_array_equal(by_step(spikes.astype(np.float32), 3, (4, 2, 5), channels_last=False), spikes)
    row = spikes[:, :, 0, 0]
    for last in (False, True):
        np.testing.assert_array_equal(by_step(row.astype(np.uint8), 3, (4,), channels_last=last)[:, :, 0, 0], row)
    for shape, wrong in (((4, 2), "neurons of shape"), ((4, 5, 2), "expected")):
        with pytest.raises(ValueError, match=wrong):
            by_step(spikes, 3, shape, channels_last=False)


def test_an_image_of_another_shape_is_refused(bundle_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"the image must have the shape \[1, 8, 8\], got \[1, 1, 8, 8\]"):
        Probe(Predictor(bundle_dir, provider="cpu")).run(synthetic.exact_images(1))


def test_it_is_of_the_precision_that_is_served(tmp_path: Path) -> None:
    """Both precisions of the synthetic bundle have weights of their own."""
    folder = synthetic.write_bundle(tmp_path / "bundle", precisions=("fp32", "int8"))
    bundle, picture = read(folder), synthetic.exact_images(1)[0]
    for precision in ("fp32", "int8"):
        about = bundle.about.model_copy(update={"precision": precision})
        predictor = Predictor(replace(bundle, about=about), provider="cpu")
        wanted = predictor.predict(picture[None], exit_threshold=1.0)[0]
        assert predictor.precision == precision
        Probe(predictor).run(picture, rates=wanted.spike_rates)
