"""`python -m export.bundle`: one folder that says what is true of the student and that the server serves."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from live_networks import write_checkpoint

from export import bundle as command
from export import card, energy
from export.images import RealImages, real_images
from export.lower import lower
from hardware import chip
from serve.images import decode
from serve.predictor import Predictor
from train.checkpoint import Checkpoint
from train.config import NetConfig


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor(bundle)


@pytest.fixture(scope="module")
def digits(student: Path) -> RealImages:
    return real_images(Checkpoint.load(student))


def read(bundle: Path, name: str) -> Any:
    return json.loads((bundle / f"{name}.json").read_text())


def quick(checkpoint: Path, **changes: Any) -> command.BundleConfig:
    config = command.BundleConfig(checkpoint=checkpoint, samples=8, netx_samples=2, gallery=2, verify="reference")
    return dataclasses.replace(config, **changes)


def test_every_file_is_listed_with_its_sha256_and_size(bundle: Path) -> None:
    found = {
        path.relative_to(bundle).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": len(path.read_bytes()),
        }
        for path in bundle.rglob("*")
        if path.is_file() and path.name != "bundle.json"
    }
    assert read(bundle, "bundle")["files"] == found
    named = {"model.onnx", "student.net", "student.net.json", "evaluate.json", "energy.json", "verify.json", "card.md"}
    assert named <= found.keys()


def test_every_form_is_verified_and_the_net_in_every_spike(bundle: Path) -> None:
    verification = read(bundle, "verify")
    assert all(verification[name]["ok"] for name in ("onnx", "onnx_evaluator", "netx"))
    netx = verification["netx"]["verify"]
    assert (netx["flips"], netx["max_logit_difference"], netx["images"]) == (0, 0.0, 16)
    assert netx["spikes"] > 0
    assert verification["onnx"]["images"] == 256


def test_the_parts_agree_on_what_was_measured(bundle: Path, student: Path) -> None:
    about, evaluation, counted = (read(bundle, name) for name in ("bundle", "evaluate", "energy"))
    checkpoint = Checkpoint.load(student)
    assert about["metrics"]["accuracy"] == evaluation["accuracy"] == checkpoint.metrics["accuracy"]
    assert about["metrics"]["teacher_accuracy"] == checkpoint.metrics["teacher_accuracy"]
    shas = {part["checkpoint_sha256"] for part in (about, evaluation, counted, read(bundle, "student.net"))}
    assert shas == {checkpoint.sha256}
    assert about["name"] == "digits-vgg_small-tser-T4"
    assert about["lif_layers"] == [layer["name"] for layer in counted["lif_layers"]]
    assert about["energy"]["static_macs"] == counted["per_image"]["static_macs"]


def test_the_server_gives_what_onnxruntime_gives_and_what_the_student_answers(
    predictor: Predictor, bundle: Path, student: Path, digits: RealImages
) -> None:
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    logits, rates = session.run(["logits", "spike_rates"], {"image": digits.images})
    served = predictor.predict(digits.images)
    np.testing.assert_allclose(np.stack([p.logits for p in served], 1), logits, atol=1e-6)
    np.testing.assert_allclose(np.stack([p.spike_rates for p in served], 1), rates, atol=1e-6)
    assert rates.min(axis=1).max() > 0  # some layer fires for every image
    checkpoint = Checkpoint.load(student)
    with torch.no_grad():
        own = checkpoint.network()(checkpoint.preprocess(torch.from_numpy(digits.images))).mean(0).argmax(-1).numpy()
    answers = np.array([p.probs.argmax() for p in served])
    assert (answers != own).sum() <= 1  # float32 may flip a spike
    assert (answers == digits.labels).mean() == pytest.approx(read(bundle, "evaluate")["accuracy"], abs=1.5 / 360)


def test_the_gallery_is_the_test_images_pixel_by_pixel_with_their_labels(
    bundle: Path, predictor: Predictor, digits: RealImages
) -> None:
    samples = read(bundle, "bundle")["samples"]
    assert [sample["label"] for sample in samples] == list("0123456789") * 2
    for k, sample in enumerate(samples):
        wanted = digits.images[digits.labels == k % 10][k // 10]
        assert np.array_equal(decode(bundle / sample["file"], predictor.about.input), wanted)


def test_energy_of_an_image_at_the_server_is_the_counted_one(
    predictor: Predictor, student: Path, digits: RealImages
) -> None:
    graph, prices = lower(Checkpoint.load(student)), chip.load("cmos45nm")
    for i, served in enumerate(predictor.predict(digits.images[:5])):
        counted = energy.report(graph, digits.images[i : i + 1], named={}, chip=prices)["per_image"]
        assert (served.sops, served.macs) == (counted["acs"], counted["macs"])
        assert served.sops > 0
        assert served.energy_J == pytest.approx(counted["energy_J"], rel=1e-12)


def test_the_card_and_the_summary_are_drawn_from_the_json_files(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card.command([str(bundle), "--json", str(tmp_path / "figures.json")])
    table = capsys.readouterr().out.split("\n\n")[0].strip()
    assert table in (bundle / "card.md").read_text()
    assert card.percent(read(bundle, "evaluate")["accuracy"]) in table
    kept = json.loads((tmp_path / "figures.json").read_text())
    assert kept["energy"] == read(bundle, "energy")
    assert "files" not in kept["bundle"]


def test_a_folder_that_is_no_bundle_is_not_replaced(student: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="exists and is not a bundle; it is not replaced, give another --out"):
        command.main(quick(student, out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_interrupted_bundle_leaves_the_old_one(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "bundle.json").write_text("old")

    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(energy, "main", interrupt)
    with pytest.raises(KeyboardInterrupt):
        command.main(quick(student, out=out))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert [path.read_text() for path in out.iterdir()] == ["old"]


def test_a_model_that_fails_its_verification_is_status_1_and_no_bundle(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from export import onnx_graph

    built = onnx_graph.build_model

    def harder_to_fire(graph: Any, **named: Any) -> Any:
        wrong = [dataclasses.replace(lif, v_threshold=2 * lif.v_threshold) for lif in graph.lif_layers]
        return built(graph.replace(*wrong), **named)

    monkeypatch.setattr(onnx_graph, "build_model", harder_to_fire)
    assert command.command([str(student), "--out", str(tmp_path / "bundle"), "--samples", "8"]) == 1
    assert "FAILED: model.onnx" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_student_that_loihi_cannot_express_is_bundled_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_checkpoint(tmp_path / "student.pt", NetConfig(width=0.1, T=2, v_reset=-0.5))
    assert command.command([str(path), "--samples", "8", "--gallery", "3"]) == 0
    bundle = tmp_path / "bundle"
    printed = capsys.readouterr().out
    assert "TSERVE_BUNDLE=" in printed
    assert f"python -m serve.demo {bundle}" in printed
    reason = read(bundle, "verify")["netx"]["unsupported"]
    assert reason.startswith("body.act1: the chip resets to 0, v_reset is -0.5")
    assert reason in printed
    assert reason in (bundle / "card.md").read_text()
    assert not list(bundle.glob("*.net"))
    about = Predictor(bundle).about
    assert (about.T, len(about.samples), about.metrics.teacher_accuracy) == (2, 3, None)
