"""`python -m export.bundle`: one folder that says what is true of the student and that the server serves."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from live_networks import write_checkpoint

from export import bundle as command
from export import card, energy
from export.conventions_origin import origin_of
from export.energy_account import joules
from export.images import RealImages, real_images
from export.lower import lower
from hardware import chip
from serve.anytime import StepModel
from serve.bundle import read as read_bundle
from serve.energy import accounts
from serve.exits import Exit
from serve.images import decode
from serve.predictor import Predictor
from serve.session import open_session
from serve.ui.chip import chip_tab
from serve.web.schema import Classification
from train.checkpoint import Checkpoint
from train.config import NetConfig


@pytest.fixture(scope="module", params=["fp32", "int8"])
def predictor(bundle: Path, request: pytest.FixtureRequest) -> Predictor:
    """The bundle's student as it is served on a CPU, in both precisions."""
    return serving(bundle, request.param)


def serving(bundle: Path, precision: str) -> Predictor:
    """The bundle's student as it is served on a CPU in one precision."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TSERVE_PRECISION", precision)
        return Predictor(bundle, provider="cpu")


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
    for precision in ("fp32", "int8"):
        for form in ("unrolled", "step"):
            engines = verification["onnx"][precision][form]
            assert all(engines[name]["ok"] for name in ("onnxruntime", "evaluator"))
            assert (engines["onnxruntime"]["images"], engines["evaluator"]["images"]) == (256, 4)
    exact = verification["onnx"]["int8"]["step"]["onnxruntime"]
    assert (exact["flips"], exact["max_logit_difference"]) == (0, 0.0)
    assert exact["spikes"] > verification["netx"]["verify"]["spikes"] > 0
    netx = verification["netx"]["verify"]
    assert (netx["flips"], netx["max_logit_difference"], netx["images"]) == (0, 0.0, 16)


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


def test_the_energy_is_compared_with_what_the_bundle_found_out(bundle: Path, student: Path) -> None:
    about, counted, netx = (read(bundle, name) for name in ("bundle", "energy", "student.net"))
    rows = {(row["what"], row["precision"]): row for row in counted["comparison"]["rows"]}
    for precision, found in about["exits"].items():
        chosen = next(row for row in found["table"] if row["threshold"] == found["threshold"])
        early = rows["early", precision]
        assert (early["mean_steps"], early["accuracy"]) == (chosen["mean_steps"], chosen["accuracy"])
    assert counted["comparison"]["teacher"]["sha256"] == Checkpoint.load(student).metrics["teacher_sha256"]
    assert counted["comparison"]["teacher"]["taught"]
    assert counted["chips"]["of_the_net_file"] == netx["cost"]
    described = (bundle / "card.md").read_text()
    for sentence in (*counted["comparison"]["verdicts"], counted["comparison"]["verdict"]):
        assert sentence in described


def test_the_server_gives_what_onnxruntime_gives_and_what_the_student_answers(
    predictor: Predictor, bundle: Path, student: Path, digits: RealImages
) -> None:
    model = bundle / ("model.onnx" if predictor.precision == "fp32" else "model.int8.onnx")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    logits, rates = session.run(["logits", "spike_rates"], {"image": digits.images})
    served = predictor.predict(digits.images, exit_threshold=1.0)
    np.testing.assert_allclose(np.stack([p.logits for p in served], 1), logits, atol=1e-6)
    np.testing.assert_allclose(np.stack([p.spike_rates for p in served], 1), rates, atol=1e-6)
    assert rates.min(axis=1).max() > 0  # some layer fires for every image
    checkpoint = Checkpoint.load(student)
    with torch.no_grad():
        own = checkpoint.network()(checkpoint.preprocess(torch.from_numpy(digits.images))).mean(0).argmax(-1).numpy()
    answers = np.array([p.probs.argmax() for p in served])
    table = read(bundle, "bundle")["exits"][predictor.precision]["table"]
    assert (answers == digits.labels).mean() == pytest.approx(table[-1]["accuracy"], abs=1.5 / 360)
    if predictor.precision == "fp32":
        assert (answers != own).sum() <= 1  # float32 may flip a spike
        assert table[-1]["accuracy"] == pytest.approx(read(bundle, "evaluate")["accuracy"], abs=1.5 / 360)


def test_images_stop_at_the_server_as_the_table_says(predictor: Predictor, bundle: Path, digits: RealImages) -> None:
    about = read(bundle, "bundle")["exits"][predictor.precision]
    assert about["calibrated_on"] == {"dataset": "digits", "split": "val", "images": 144}
    assert about["measured_on"] == {"dataset": "digits", "split": "test", "images": len(digits)}
    rows = {row["threshold"]: row for row in about["table"]}
    assert {0.0, 0.5, 0.9, 1.0, about["threshold"]} <= rows.keys()
    assert len(rows) >= 10
    assert rows[1.0]["mean_steps"] == 4
    for threshold in (0.5, 0.9, 0.99):
        served = predictor.predict(digits.images, exit_threshold=threshold)
        right = [p.probs.argmax() == label for p, label in zip(served, digits.labels, strict=True)]
        assert rows[threshold]["mean_steps"] == pytest.approx(np.mean([len(p.logits) for p in served]))
        assert rows[threshold]["accuracy"] == pytest.approx(np.mean(right))
        assert rows[threshold]["energy_J"] == pytest.approx(np.mean([p.energy_J for p in served]), rel=1e-6)
    assert rows[0.5]["mean_steps"] < rows[0.99]["mean_steps"] < 4


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_with_the_threshold_at_1_the_steps_give_exactly_the_unrolled_models_logits(
    precision: str, bundle: Path, digits: RealImages
) -> None:
    forms = read(bundle, "bundle")["models"][precision]
    images = digits.images[:50]
    session = open_session(bundle / forms["unrolled"], provider="cpu")
    logits, rates, taps, nonzero = session.run(["logits", "spike_rates", "taps", "nonzero"], {"image": images})
    traces = StepModel(open_session(bundle / forms["step"], provider="cpu")).run(images, Exit("confidence", 1.0))
    for n, trace in enumerate(traces):
        np.testing.assert_array_equal(trace.logits, logits[:, n])
        np.testing.assert_array_equal(trace.spike_rates, rates[:, n])
        np.testing.assert_array_equal(trace.taps, taps[:, n])
        np.testing.assert_array_equal(trace.nonzero, nonzero[:, n])


def test_the_exit_table_stands_in_every_model_too(bundle: Path) -> None:
    about = read(bundle, "bundle")
    for precision, forms in about["models"].items():
        for name in forms.values():
            props = {item.key: json.loads(item.value) for item in onnx.load(bundle / name).metadata_props}
            assert props["exits"] == about["exits"][precision]
            assert (props["precision"], props["T"]) == (precision, 4)


def test_int8_is_served_unless_it_costs_accuracy(bundle: Path, student: Path, tmp_path: Path) -> None:
    about = read(bundle, "bundle")
    by_all = {precision: found["table"][-1]["val_accuracy"] for precision, found in about["exits"].items()}
    assert about["precision"] == ("int8" if by_all["int8"] >= by_all["fp32"] - 0.005 else "fp32")
    other = "fp32" if about["precision"] == "int8" else "int8"
    result = command.main(quick(student, out=tmp_path / "bundle", precision=other))
    assert result.about["precision"] == other


def test_the_gallery_is_the_test_images_pixel_by_pixel_with_their_labels(
    bundle: Path, predictor: Predictor, digits: RealImages
) -> None:
    samples = read(bundle, "bundle")["samples"]
    assert [sample["label"] for sample in samples] == list("0123456789") * 2
    for k, sample in enumerate(samples):
        wanted = digits.images[digits.labels == k % 10][k // 10]
        assert np.array_equal(decode(bundle / sample["file"], predictor.about.input), wanted)


def test_energy_of_an_image_at_the_server_is_the_counted_one(bundle: Path, student: Path, digits: RealImages) -> None:
    """In floats, as the Graph is counted; tests of the int8 model count its own spikes."""
    checkpoint, prices = Checkpoint.load(student), chip.load("cmos45nm")
    graph = lower(checkpoint)
    origin, predictor = origin_of(checkpoint.network(), graph), serving(bundle, "fp32")
    for i, answer in enumerate(predictor.predict(digits.images[:5], exit_threshold=1.0)):
        counted = energy.report(graph, digits.images[i : i + 1], named={}, chip=prices, origin=origin)
        total = counted["per_image"]
        assert (answer.sops, answer.macs) == (total["acs"], total["macs"])
        assert answer.sops > 0
        assert answer.energy_J == pytest.approx(total["energy_J"], rel=1e-12)
        found = accounts(predictor.about, taps=answer.taps, nonzero=answer.nonzero, spike_rates=answer.spike_rates)
        for account, entry in zip(found, counted["conventions"], strict=True):
            assert (account.convention, account.unavailable) == (entry["name"], None)
            assert account.energy_J == pytest.approx(entry["per_image"]["energy_J"], rel=1e-12)
            assert account.ann_energy_J == pytest.approx(entry["per_image"]["ann"]["energy_J"], rel=1e-12)
            for layer, wanted in zip(account.layers, entry["layers"], strict=True):
                assert layer.energy_J == pytest.approx(wanted["energy_J"], rel=1e-12)
        assert found[2].energy_J == answer.energy_J
        said = Classification.of(answer, predictor.about).energies  # what /classify answers
        for entry in counted["conventions"]:
            wanted = (entry["per_image"]["energy_J"], entry["per_image"]["ann"]["energy_J"])
            told = said[entry["name"]]
            assert (told.energy_J, told.ann_energy_J) == pytest.approx(wanted, rel=1e-12)


def test_the_page_shows_what_the_net_file_is(bundle: Path) -> None:
    page, report = chip_tab(read_bundle(bundle)), read(bundle, "student.net")
    assert 'id="chip-layers"' in page
    for layer in report["layers"]:
        assert layer["name"] in page
        assert f"{layer['vThMant']:,}" in page


def test_the_card_and_the_summary_are_drawn_from_the_json_files(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card.command([str(bundle), "--json", str(tmp_path / "figures.json")])
    table = capsys.readouterr().out.split("\n\n")[0].strip()
    assert table in (bundle / "card.md").read_text()
    assert card.percent(read(bundle, "evaluate")["accuracy"]) in table
    kept = json.loads((tmp_path / "figures.json").read_text())
    counted = read(bundle, "energy")
    for entry in counted["conventions"]:
        total = entry["per_image"]
        both = f"{joules(total['energy_J'])}, ANN {joules(total['ann']['energy_J'])}"
        assert f"by {entry['name']} | {both}, ratio {total['ratio']:.3f}" in table
        assert entry["verdict"] in (bundle / "card.md").read_text()
        del entry["charges"]  # of use to the server alone
    assert kept["energy"] == counted
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

    def interrupt(_: Any, **__: Any) -> None:
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
    assert not list(bundle.glob("*int8*"))
    assert read(bundle, "verify")["onnx"]["int8"]["unsupported"] == reason
    about = Predictor(bundle).about
    assert (about.precision, list(about.models)) == ("fp32", ["fp32"])
    assert (about.T, len(about.samples), about.metrics.teacher_accuracy) == (2, 3, None)
