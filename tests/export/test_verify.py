"""What counts as equal, and that `python -m export.verify` sees what is not."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pytest
from live_networks import write_checkpoint
from onnx import numpy_helper

from export import integer, verify
from export.images import real_images
from export.verify import EXACT, FLOAT32, Rule, Run, Verdict, compare
from hardware import netx, netx_sim
from hardware.net import Net
from train.checkpoint import Checkpoint
from train.cli import exit_status
from train.config import NetConfig


T, B, K = 3, 1000, 4
LAYERS = {"first": (T, B, 2, 2), "second": (T, B, 3)}


def a_run(seed: int = 0) -> Run:
    """Layers `first` and `second` at a firing rate of a half, and logits whose answers are well apart."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 0.01, (T, B, K))
    logits[:, np.arange(B), rng.integers(0, K, B)] += 1
    return Run(spikes={name: rng.integers(0, 2, shape, np.uint8) for name, shape in LAYERS.items()}, logits=logits)


def judged(got: Run, rule: Rule) -> Verdict:
    return compare(a_run(), got, rule, file="a.net", reference="the twin", engine="numpy")


@pytest.mark.parametrize("rule", [EXACT, FLOAT32])
def test_equal_runs_are_ok_and_counted(rule: Rule) -> None:
    verdict = judged(a_run(), rule)
    assert verdict.ok
    assert verdict.flips == 0
    assert verdict.spikes == sum(int(spikes.sum()) for spikes in a_run().spikes.values())
    assert (verdict.argmax_agreement, verdict.max_logit_difference, verdict.images) == (1.0, 0.0, B)
    assert verdict.first_difference is None
    assert str(verdict).startswith("ok: a.net in numpy against the twin, 1000 images: 0 of ")


def test_the_first_difference_is_in_the_first_layer_of_the_network_and_its_first_step() -> None:
    got = a_run()
    got.spikes["second"][0, 0, 0] ^= 1  # an earlier step, but a later layer
    got.spikes["first"][2, 3, 0, 0] ^= 1
    got.spikes["first"][1, 7, 1, 1] ^= 1
    got.spikes["first"][1, 9, 1, 1] ^= 1
    verdict = judged(got, EXACT)
    assert verdict.first_difference == {"layer": "first", "step": 2, "image": 7}
    assert [layer.flips for layer in verdict.layers] == [3, 1]
    assert not verdict.ok
    assert "FAILED: a.net" in str(verdict)
    assert "first difference: layer first, step 2" in str(verdict)
    assert json.dumps(verdict.to_json())


def test_an_exact_rule_sees_one_bit_of_one_logit() -> None:
    got = a_run()
    got.logits[1, 5, 2] = np.nextafter(got.logits[1, 5, 2], 9)
    verdict = judged(got, EXACT)
    assert not verdict.ok
    assert verdict.first_difference == {"layer": "logits", "step": 2, "image": 5}
    assert judged(got, FLOAT32).ok


def test_float32_excuses_what_follows_from_a_flip_but_not_a_second_first_one() -> None:
    got = a_run()
    got.spikes["first"][1, 3, 0, 0] ^= 1
    got.spikes["first"][2, 3] ^= 1  # the same neurons later
    got.spikes["second"][1:, 3] ^= 1  # and those that read them
    verdict = judged(got, FLOAT32)
    assert (verdict.flips, verdict.first_flips, verdict.ok) == (1 + 4 + 6, 1, True)
    # Of image 3 what is before the flip counts: steps 1 and 2 of the first layer, step 1 of the second.
    assert verdict.unchanged == 4 * (T * B - 1) + 3 * (T * B - 2)
    got.spikes["second"][0, 3, 0] ^= 1  # before it, in another layer
    verdict = judged(got, FLOAT32)
    assert (verdict.first_flips, verdict.ok) == (2, False)


def test_float32_may_flip_one_neuron_in_a_million_and_no_more() -> None:
    rng = np.random.default_rng(0)
    wanted = Run(spikes={"one": rng.integers(0, 2, (1, 8, 400_000), np.uint8)}, logits=np.ones((1, 8, 2)))
    for flips, ok in ((4, True), (5, False)):  # 3.2, rounded up
        got = Run(spikes={"one": wanted.spikes["one"].copy()}, logits=wanted.logits)
        got.spikes["one"][0, 0, :flips] ^= 1
        verdict = compare(wanted, got, FLOAT32, file="a.onnx", reference="the twin", engine="numpy")
        assert (verdict.first_flips, verdict.ok) == (flips, ok)


def test_float32_may_change_one_answer_in_a_thousand_and_no_more() -> None:
    for changed, ok in ((1, True), (2, False)):
        got = a_run()
        got.logits[:, :changed] *= -1
        got.spikes["second"][:, :changed, 0] ^= 1  # or the logits would be wrong by themselves
        verdict = judged(got, FLOAT32)
        assert verdict.argmax_agreement == pytest.approx(1 - changed / B)
        assert verdict.ok is ok


def test_labels_give_the_accuracy_of_either_run() -> None:
    labels = a_run().logits.mean(0).argmax(1)
    got = a_run()
    got.logits[:, :250] *= -1
    labels[200:300] = (labels[200:300] + 1) % K  # 100 that the reference misses
    named = {"file": "a.net", "reference": "the twin", "engine": "numpy"}
    verdict = compare(a_run(), got, FLOAT32, **named, labels=labels)
    right = int((got.logits.mean(0).argmax(1) == labels).sum())
    assert right < 750
    assert verdict.accuracy == {"reference": 0.9, "file": right / B}
    assert f"right are {right / B:.2%} (of the reference 90.00%)" in str(verdict)
    assert judged(got, FLOAT32).accuracy is None
    assert "right are" not in str(judged(got, FLOAT32))


@pytest.mark.parametrize("factor", [1.001, 2.0, np.nan])
def test_float32_does_not_excuse_other_logits_from_equal_spikes(factor: float) -> None:
    got = a_run()
    got.logits[2, 5] *= factor
    verdict = judged(got, FLOAT32)
    assert not verdict.ok
    assert verdict.first_difference == {"layer": "logits", "step": 3, "image": 5}


def test_float32_excuses_rounding_and_logits_that_come_from_other_spikes() -> None:
    got = a_run()
    got.logits[2, 5] *= 1 + 1e-6
    got.logits[1, 4] *= 2
    got.spikes["second"][1, 4, 0] ^= 1
    assert judged(got, FLOAT32).ok


def test_runs_of_other_networks_are_not_compared() -> None:
    run = a_run()
    renamed = Run(spikes={"first": run.spikes["first"], "third": run.spikes["second"]}, logits=run.logits)
    smaller = Run(spikes=run.spikes | {"second": run.spikes["second"][..., :2]}, logits=run.logits)
    shorter = Run(spikes=run.spikes, logits=run.logits[..., :2])
    for other, message in ((renamed, "third"), (smaller, "layer second has shape"), (shorter, "are not those of")):
        with pytest.raises(ValueError, match=message):
            judged(other, EXACT)


@pytest.fixture
def files(bundle: Path, tmp_path: Path) -> Path:
    """A folder with copies of the bundle's model.onnx and student.net."""
    for name in ("model.onnx", "student.net"):
        shutil.copy(bundle / name, tmp_path)
    return tmp_path


def status_of(student: Path, file: Path, *flags: str) -> int:
    argv = [str(student), str(file), "--out", str(file.parent / "verify.json"), *flags]
    return exit_status(lambda: verify.command(argv))


@pytest.mark.parametrize(
    ("name", "engine", "samples", "rule"),
    [
        ("model.onnx", "auto", 256, "float32"),
        ("model.onnx", "onnx", 2, "float32"),
        ("student.net", "reference", 16, "bit-exact"),
    ],
)
def test_what_was_exported_is_verified_and_reported(
    name: str, engine: str, samples: int, rule: str, files: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(student, files / name, "--engine", engine, "--samples", str(samples)) == 0
    report = json.loads((files / "verify.json").read_text())
    checkpoint = Checkpoint.load(student)
    assert report["checkpoint_sha256"] == checkpoint.sha256
    assert report["on"] == real_images(checkpoint, limit=samples).describe()
    assert report["rule"].startswith(rule)
    assert (report["ok"], report["file"], report["images"]) == (True, name, samples)
    assert all(layer["spikes"] > 0 for layer in report["layers"])
    assert f"ok: {name}" in capsys.readouterr().out


def test_one_altered_weight_of_a_net_is_seen_with_its_layer_and_step(
    files: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(files / "student.net", "r+") as net:
        weight = net["layer/1/weight"][()]
        largest = np.unravel_index(np.abs(weight).argmax(), weight.shape)
        weight[largest] *= -1
        net["layer/1/weight"][...] = weight
    assert status_of(student, files / "student.net", "--engine", "reference") == 1
    printed = capsys.readouterr().out
    assert "FAILED: student.net" in printed
    assert "first difference: layer body.act1, step 1" in printed
    report = json.loads((files / "verify.json").read_text())
    assert report["ok"] is False
    assert report["layers"][0]["flips"] > 0


def test_an_altered_weight_that_no_spike_shows_is_seen_too(
    files: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files / "student.net"
    net = netx.read(path)
    checkpoint = Checkpoint.load(student)
    images = real_images(checkpoint, limit=1).images
    meta = net.meta
    scaled = (images - np.array(meta["input"]["mean"])[:, None, None]) / np.array(meta["input"]["std"])[:, None, None]
    pixels = np.rint(scaled * meta["scales"]["input"]).astype(np.int64)
    spikes = netx_sim.simulate(net, pixels).spikes[-2].reshape(net.meta["T"], -1)
    silent = int(spikes.any(0).argmin())  # an input of the classifier that never fires for this image
    assert not spikes[:, silent].any()
    with h5py.File(path, "r+") as file:
        last = file[f"layer/{len(file['layer']) - 1}/weight"]
        weight = last[()]
        weight[0, silent] += 1 if weight[0, silent] < integer.WEIGHT_LIMIT else -1
        last[...] = weight
    assert status_of(student, path, "--engine", "reference", "--samples", "1") == 1
    assert "FAILED: student.net" in capsys.readouterr().out
    report = json.loads((files / "verify.json").read_text())
    assert report["flips"] == 0
    assert report["first_difference"] == {"layer": "body.classifier", "step": "none", "image": None}


@pytest.mark.lava
def test_lava_sees_the_altered_weight(files: Path, student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(files / "student.net", "r+") as net:
        net["layer/1/weight"][...] = -net["layer/1/weight"][()]
    assert status_of(student, files / "student.net", "--samples", "2") == 1
    assert "first difference: layer body.act1, step 1" in capsys.readouterr().out
    assert json.loads((files / "verify.json").read_text())["engine"] == "Lava's fixed-point simulator"


def edit_onnx(path: Path) -> None:
    """Double the weights of the second convolution."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name.startswith("body.conv2") and len(t.dims) == 4)
    tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, path)


def test_an_altered_onnx_model_is_seen_with_its_layer_and_step(
    files: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_onnx(files / "model.onnx")
    assert status_of(student, files / "model.onnx", "--samples", "8") == 1
    assert "first difference: layer body.act2, step 1" in capsys.readouterr().out


def test_an_altered_classifier_is_seen_though_every_spike_and_every_answer_is_right(
    files: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(files / "model.onnx")
    tensor = next(t for t in model.graph.initializer if t.name == "body.classifier/bias")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.25), tensor.name))
    onnx.save(model, files / "model.onnx")
    assert status_of(student, files / "model.onnx", "--samples", "8") == 1
    assert "answers agree on 100.00%; first difference: layer logits, step 1" in capsys.readouterr().out
    assert json.loads((files / "verify.json").read_text())["flips"] == 0


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def strip_meta(path: Path) -> None:
    net = netx.read(path)
    netx.write(Net(layers=net.layers, meta={"T": 4}), path)


def with_meta(**changes: Any) -> Callable[[Path], None]:
    """A change of what a .net file says about itself."""

    def change(path: Path) -> None:
        net = netx.read(path)
        netx.write(Net(layers=net.layers, meta={**net.meta, **changes}), path)

    return change


def of_another_layer(path: Path) -> None:
    """Scales from which one layer is missing."""
    scales = netx.read(path).meta["scales"]
    thresholds = {name: value for name, value in scales["thresholds"].items() if name != "body.act3"}
    with_meta(scales={**scales, "thresholds": thresholds})(path)


def biases_in_a_list(path: Path) -> None:
    with_meta(scales={**netx.read(path).meta["scales"], "biases": [1]})(path)


def of_no_number(path: Path) -> None:
    scales = netx.read(path).meta["scales"]
    with_meta(scales={**scales, "thresholds": {**scales["thresholds"], "body.act3": None}})(path)


def beyond_the_chip(path: Path) -> None:
    scales = netx.read(path).meta["scales"]
    with_meta(scales={**scales, "biases": {**scales["biases"], "body.act3": [10**12, 0]}})(path)


def renamed(path: Path) -> None:
    net = netx.read(path)
    layers = [dataclasses.replace(layer, name="x") if layer is net.spiking[1] else layer for layer in net.layers]
    netx.write(Net(layers=tuple(layers), meta=net.meta), path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.onnx", truncate, "model.onnx: not an ONNX model that TSERve wrote, or a damaged one"),
        ("model.onnx", lambda path: path.write_bytes(b"\x89PNG"), "model.onnx: not an ONNX model that TSERve wrote"),
        ("model.onnx", Path.unlink, "model.onnx: no such file"),
        ("student.net", truncate, "student.net"),
        ("student.net", strip_meta, "student.net: TSERve did not write this file (no scales inside)"),
        ("student.net", with_meta(format=1), "student.net: format 1, this version reads 2; export again with"),
        ("student.net", with_meta(scales={"input": 1.0, "layers": {}}), "student.net: its scales are not TSERve's"),
        ("student.net", with_meta(scales=[1]), "student.net: its scales are not TSERve's"),
        ("student.net", biases_in_a_list, "student.net: its scales are not TSERve's"),
        (
            "student.net",
            of_no_number,
            "thresholds of body.act3 must be a whole number from -131071 to 131071, not N",
        ),
        ("student.net", beyond_the_chip, "biases of body.act3 must be a whole number from -131071 to 131071, not 1000"),
        (
            "student.net",
            with_meta(T=2, window=2),
            "student.net: T, window in it are not the checkpoint's; export",
        ),
        ("student.net", with_meta(labels=list("9876543210")), "student.net: labels in it are not the checkpoint's"),
        ("student.net", of_another_layer, "body.act3: the scales are not those of this student; export it again"),
        ("student.net", renamed, "student.net: its layers are not the checkpoint's"),
    ],
    ids=[
        *("truncated onnx", "picture", "missing", "truncated net", "another program's net", "older format"),
        *("older scales", "scales that are a list", "biases that are a list", "no threshold", "a bias beyond the chip"),
        *("fewer steps", "labels in another order", "scales of other layers", "other layers"),
    ],
)
def test_damaged_and_foreign_files_are_status_2_in_one_line(
    name: str, damage: Any, message: str, files: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(files / name)
    assert status_of(student, files / name, "--engine", "auto" if name == "model.onnx" else "reference") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (files / "verify.json").exists()


@pytest.mark.parametrize(("name", "command"), [("model.onnx", "to_onnx"), ("student.net", "to_loihi")])
def test_a_file_of_another_checkpoint_is_refused_with_the_command_that_makes_one(
    name: str, command: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_checkpoint(files / "other.pt", NetConfig(width=0.5))
    assert status_of(other, files / name) == 2
    error = capsys.readouterr().err
    assert f"{name}: it was exported from another checkpoint; export again with python -m export.{command}" in error


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("model.onnx", ["--engine", "lava"], "--engine lava does not run .onnx; use onnxruntime or onnx"),
        ("student.net", ["--engine", "onnx"], "--engine onnx does not run .net; use lava or reference"),
        ("model.onnx", ["--samples", "0"], "samples must be at least 1, got 0"),
        ("model.pb", [], "the suffix must be .onnx, .net, .nir"),
    ],
)
def test_bad_usage_is_status_2(
    name: str, flags: list[str], message: str, files: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(student, files / name, *flags) == 2
    assert message in capsys.readouterr().err
