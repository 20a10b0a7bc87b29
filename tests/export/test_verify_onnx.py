"""`python -m export.verify` on every precision and form: what is right passes, what was altered or damaged is seen."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from live_networks import DIGITS, live_network
from onnx import numpy_helper
from onnx_runs import about, graphs, operators

from export import to_onnx, verify
from train import cli
from train.checkpoint import Checkpoint
from train.config import DataConfig, NetConfig
from train.data import load


KINDS = [(precision, form) for precision in ("fp32", "fp16", "int8") for form in ("unrolled", "step")]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained student of the digits of which every layer fires, with its ONNX files beside it."""
    net = NetConfig(width=0.25, T=3)
    weights = live_network(net, DIGITS(load(DataConfig()).train.images[:64]).double()).float().state_dict()
    provenance = {"config": {"data": cli.to_dict(DataConfig())}}
    path = tmp_path_factory.mktemp("run") / "student.pt"
    Checkpoint(net=net, weights=weights, preprocess=DIGITS, labels=tuple("0123456789"), provenance=provenance).save(
        path
    )
    for precision, form in KINDS:
        config: Any = {"precision": precision, "form": form}
        to_onnx.main(
            to_onnx.OnnxConfig(
                checkpoint=path, samples=2, calibration=12, out=file_of(path, *config.values()), **config
            )
        )
    return path


def file_of(student: Path, precision: str, form: str) -> Path:
    return student.with_name(f"{precision}.{form}.onnx")


def status_of(student: Path, file: Path, *flags: str) -> int:
    argv = [str(student), str(file), "--out", str(file.parent / "verify.json"), *flags]
    return cli.exit_status(lambda: verify.command(argv))


def altered(student: Path, tmp_path: Path, kind: tuple[str, str], change: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy of one of the files, changed."""
    model = onnx.load(file_of(student, *kind))
    change(model)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


def constant(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[onnx.ModelProto], None]:
    """A change of one constant."""

    def apply(model: onnx.ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name == name)
        value = numpy_helper.to_array(tensor).copy()
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(value), value.dtype), name))

    return apply


def says(**changes: Any) -> Callable[[onnx.ModelProto], None]:
    """A change of what a model says about itself; None takes an entry away."""

    def apply(model: onnx.ModelProto) -> None:
        known = about(model) | changes
        onnx.helper.set_model_props(model, {k: json.dumps(v) for k, v in known.items() if v is not None})

    return apply


def scales(**changes: Any) -> Callable[[onnx.ModelProto], None]:
    """A change of some of the scales in an int8 model."""
    return lambda model: says(scales=about(model)["scales"] | changes)(model)


@pytest.mark.parametrize(("precision", "form"), KINDS)
@pytest.mark.parametrize(("engine", "samples"), [("auto", 60), ("onnx", 2)])
def test_every_precision_and_form_is_verified_by_its_own_rule(
    precision: str, form: str, engine: str, samples: int, student: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    shutil.copy(file_of(student, precision, form), path)
    assert status_of(student, path, "--engine", engine, "--samples", str(samples)) == 0
    report = json.loads((tmp_path / "verify.json").read_text())
    rule = {"fp32": "float32", "fp16": "float16", "int8": "bit-exact"}[precision]
    assert report["rule"].startswith(f"{rule}:")
    assert report["reference"] == ("the checkpoint's integer twin" if precision == "int8" else "the torch network")
    assert (report["images"], report["ok"]) == (samples, True)
    assert all(layer["spikes"] > 0 for layer in report["layers"])
    if precision == "int8":
        assert (report["flips"], report["max_logit_difference"]) == (0, 0.0)


def largest_turned(weight: np.ndarray) -> np.ndarray:
    weight.reshape(-1)[np.abs(weight.astype(int)).argmax()] *= -1
    return weight


def one_less(weight: np.ndarray) -> np.ndarray:
    weight[weight > 0] -= 1
    return weight


def forgotten_reset(model: onnx.ModelProto) -> None:
    """Of one layer's neurons that fired just above the threshold."""
    for node in operators(model):
        if node.op_type == "ThresholdedRelu" and "body.act3/" in node.name:
            node.attribute[0].f += 60


@pytest.mark.parametrize("form", ["unrolled", "step"])
@pytest.mark.parametrize("engine", ["onnxruntime", "onnx"])
@pytest.mark.parametrize(
    ("change", "where"),
    [
        (constant("body.conv2.conv/weight", largest_turned), "layer body.act2, step"),
        (constant("body.classifier/weight", one_less), "layer logits, step"),
        (constant("body.act3/threshold", lambda threshold: threshold + 60), "layer body.act3, step 1"),
        (forgotten_reset, "layer body.act3, step 2"),
        (constant("body.act4/kept", lambda kept: kept / 2), "layer body.act4, step 2"),
        (constant("logits/scale", lambda scale: np.nextafter(scale, np.float32(0))), "layer logits, step 1"),
    ],
    ids=["a weight", "the classifier", "a threshold", "a reset", "a decay", "the last bit of the logits' scale"],
)
def test_an_altered_integer_is_seen_with_its_layer(
    form: str,
    engine: str,
    change: Any,
    where: str,
    student: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = altered(student, tmp_path, ("int8", form), change)
    assert status_of(student, path, "--samples", "12", "--engine", engine) == 1
    printed = capsys.readouterr().out
    assert "FAILED: model.onnx" in printed
    assert f"first difference: {where}" in printed


@pytest.mark.parametrize(("precision", "form"), [("fp32", "step"), ("fp16", "unrolled"), ("fp16", "step")])
def test_an_altered_float_is_seen_with_its_layer(
    precision: str, form: str, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = altered(
        student, tmp_path, (precision, form), constant("body.conv3.conv/weight", lambda weight: 1.1 * weight)
    )
    assert status_of(student, path, "--samples", "12") == 1
    assert "first difference: layer body.act" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["unrolled", "step"])
@pytest.mark.parametrize(
    ("change", "where"),
    [
        (constant("spike_rates/neurons", lambda sizes: 2 * sizes), "layer body.act1 (spike_rates), step 1"),
        (constant("taps/order", lambda order: order[::-1].copy()), "layer body.conv2.conv (taps), step 1"),
        (constant("nonzero/order", lambda order: order[::-1].copy()), "layer body.conv2.conv (nonzero), step 1"),
    ],
    ids=["rates", "the layers of taps", "the layers of nonzero"],
)
def test_counts_that_are_not_those_of_the_spikes_are_seen(
    form: str, change: Any, where: str, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every joule that is reported of an image is made of them, and no spike or logit shows it."""
    path = altered(student, tmp_path, ("int8", form), change)
    assert status_of(student, path, "--samples", "12") == 1
    assert f"first difference: {where}" in capsys.readouterr().out


def test_membranes_that_are_not_handed_on_are_seen(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model is right in its first step and starts every other one afresh."""

    def forget(model: onnx.ModelProto) -> None:
        for node in operators(model):
            if node.name == "next/body.act2/t/reset":
                node.input[:] = [node.input[0], node.input[0]]

    path = altered(student, tmp_path, ("int8", "step"), forget)
    assert status_of(student, path, "--samples", "12") == 1
    assert "first difference: layer body.act2, step 2" in capsys.readouterr().out


@pytest.mark.parametrize(("branch", "step"), [("first", 1), ("next", 2)])
def test_a_neuron_that_is_wrong_in_one_branch_is_seen_at_its_step(
    branch: str, step: int, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def raise_threshold(model: onnx.ModelProto) -> None:
        for node in operators(model):
            if node.name == f"{branch}/body.act3/t/fire":
                node.input[1] = "higher"
        (threshold,) = (c for c in model.graph.initializer if c.name == "body.act3/threshold")
        model.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(threshold) + 60, "higher"))

    path = altered(student, tmp_path, ("int8", "step"), raise_threshold)
    assert status_of(student, path, "--samples", "12") == 1
    assert f"first difference: layer body.act3, step {step}" in capsys.readouterr().out


@pytest.mark.parametrize("branch", ["first", "next"])
def test_spikes_that_one_branch_does_not_give_are_missed_by_name(
    branch: str, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rename(model: onnx.ModelProto) -> None:
        (graph,) = (graph for graph in graphs(model) if graph.name == branch)
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [f"{branch}/other" if name == f"{branch}/body.act2/out" else name for name in names]

    path = altered(student, tmp_path, ("int8", "step"), rename)
    assert status_of(student, path, "--samples", "2") == 2
    assert "model.onnx: no tensor holds the spikes of layer body.act2" in capsys.readouterr().err


def test_scales_that_are_not_those_of_the_integers_are_seen(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = about(onnx.load(file_of(student, "int8", "unrolled")))["scales"]
    higher = known["thresholds"] | {"body.act2": known["thresholds"]["body.act2"] + 40}
    path = altered(student, tmp_path, ("int8", "unrolled"), scales(thresholds=higher))
    assert status_of(student, path, "--samples", "12") == 1
    assert "first difference: layer body.act2, step 1" in capsys.readouterr().out


def without(entry: str) -> Callable[[onnx.ModelProto], None]:
    """Scales from which a layer is missing."""

    def apply(model: onnx.ModelProto) -> None:
        table = about(model)["scales"][entry]
        scales(**{entry: {name: value for name, value in table.items() if name != "body.act3"}})(model)

    return apply


OTHER_LAYERS = "body.act3: the scales are not those of this student; export it again"
NOT_OURS = "model.onnx: its scales are not TSERve's"
OTHERWISE = "in it are not the checkpoint's; export again with python -m export.to_onnx"
DAMAGED = "model.onnx: not an ONNX model that TSERve wrote, or a damaged one"


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        (("int8", "unrolled"), says(scales=None), NOT_OURS),
        (("int8", "unrolled"), says(scales=[1.0]), NOT_OURS),
        (("int8", "unrolled"), says(scales={"input": 1.0, "layers": {}}), NOT_OURS),
        (("int8", "unrolled"), scales(input="wide"), NOT_OURS),
        (("int8", "unrolled"), scales(currents=3.0), NOT_OURS),
        (("int8", "step"), scales(biases=[1]), NOT_OURS),
        (("int8", "step"), without("thresholds"), OTHER_LAYERS),
        (("int8", "unrolled"), without("currents"), OTHER_LAYERS),
        (("int8", "unrolled"), without("biases"), OTHER_LAYERS),
        (
            ("int8", "unrolled"),
            says(precision="int4"),
            "model.onnx: precision 'int4' and form 'unrolled' are not known",
        ),
        (("fp32", "step"), says(form="folded"), "model.onnx: precision 'fp32' and form 'folded' are not known"),
        (("fp32", "step"), says(form=None), DAMAGED),
        (("fp32", "step"), says(states=None), DAMAGED),
        (("fp32", "step"), says(states=[{"input": "x"}]), DAMAGED),
        (("int8", "step"), says(carried=[3]), DAMAGED),
        (("int8", "step"), says(states=[]), "model.onnx: onnxruntime (CPU) cannot run it"),
        (("fp32", "unrolled"), says(form="step", carried=[], states=[]), "model.onnx"),
        (("fp32", "step"), says(form="unrolled"), "model.onnx: onnxruntime (CPU) cannot run it"),
        (("int8", "unrolled"), says(precision="fp32"), "model.onnx: onnxruntime (CPU) cannot run it"),
        (("fp32", "unrolled"), says(precision="fp16"), "model.onnx: onnxruntime (CPU) cannot run it"),
        (("fp32", "unrolled"), says(T="many"), f"T {OTHERWISE}"),
        (("int8", "unrolled"), says(T=4), f"T {OTHERWISE}"),
        (("int8", "step"), says(T=2), f"T {OTHERWISE}"),
        (("int8", "step"), says(labels=list("1023456789")), f"labels {OTHERWISE}"),
        (("fp32", "unrolled"), says(synapses=[]), f"synapses {OTHERWISE}"),
        (("fp32", "unrolled"), says(lif_layers=["body.act1"]), f"lif_layers {OTHERWISE}"),
        (("fp16", "step"), says(format=2), f"format {OTHERWISE}"),
        (("fp32", "unrolled"), says(lif_layers=["nobody"]), f"lif_layers {OTHERWISE}"),
    ],
)
def test_damaged_metadata_is_status_2_in_one_line(
    kind: tuple[str, str],
    damage: Callable[[onnx.ModelProto], None],
    message: str,
    student: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = altered(student, tmp_path, kind, damage)
    assert status_of(student, path, "--samples", "2") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "verify.json").exists()


@pytest.mark.parametrize(("precision", "form"), KINDS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_status_2(
    precision: str, form: str, share: float, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = file_of(student, precision, form).read_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(whole[: int(share * len(whole))])
    assert status_of(student, path, "--samples", "2") == 2
    assert capsys.readouterr().err.startswith(f"error: {DAMAGED}")
