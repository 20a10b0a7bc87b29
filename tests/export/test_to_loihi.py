"""`python -m export.to_loihi`: a .net that is bit for bit the integer twin, or no file at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_networks import write_checkpoint

from export import to_loihi
from export.images import RealImages, real_images
from export.verify_netx import verify_netx
from hardware import chip, netx, netx_sim
from hardware.mapping import place
from hardware.net import ConvLayer, Net, check
from train.checkpoint import Checkpoint
from train.cli import exit_status
from train.config import NetConfig


@pytest.fixture(scope="module")
def exported(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """student.net with student.net.json beside it, verified by our model of netx."""
    out = tmp_path_factory.mktemp("loihi") / "student.net"
    assert to_loihi.command([str(student), "--out", str(out), "--verify", "reference"]) == 0
    return out


@pytest.fixture(scope="module")
def digits(student: Path) -> RealImages:
    return real_images(Checkpoint.load(student))


def report_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.with_name(path.name + ".json").read_text())
    return content


def pixels_of(net: Net, images: np.ndarray) -> np.ndarray:
    """The integers that the chip is sent, by what the file itself says."""
    mean, std = (np.array(net.meta["input"][key])[:, None, None] for key in ("mean", "std"))
    scaled = (images.astype(np.float64) - mean) / std * net.meta["scales"]["input"]
    return np.clip(np.rint(scaled), -127, 127).astype(np.int64)


def test_integers_answer_the_whole_test_split_about_as_well(exported: Path, student: Path, digits: RealImages) -> None:
    # One image is 0.28 points. Six seeds of this half-width student: -1.4 to +0.6 points, -0.4 in the mean.
    accuracy = report_of(exported)["accuracy"]
    assert accuracy["images"] == len(digits.labels) == 359
    assert abs(accuracy["integer"] - accuracy["float"]) <= 0.02
    assert accuracy["float"] == pytest.approx(Checkpoint.load(student).metrics["accuracy"])


def test_the_reported_accuracy_is_what_the_file_itself_reaches(exported: Path, digits: RealImages) -> None:
    net = netx.read(exported)
    sums = netx_sim.simulate(net, pixels_of(net, digits.images)).v_out[-1]  # of the readout, over all steps
    assert (sums.argmax(-1) == digits.labels).mean() == report_of(exported)["accuracy"]["integer"]


def test_the_file_has_the_students_layers_within_the_chips_ranges(exported: Path, student: Path) -> None:
    net, checkpoint = netx.read(exported), Checkpoint.load(student)
    check(net)
    convs = [module for module in checkpoint.network().modules() if isinstance(module, torch.nn.Conv2d)]
    assert [layer.weight.shape for layer in net.spiking[:-1]] == [conv.weight.shape for conv in convs]
    assert [layer.neuron.iDecay for layer in net.spiking] == [0] + [4096] * 6  # the image is held in the first layer
    assert [layer.neuron.vDecay for layer in net.spiking] == [2048] * 6 + [0]  # tau = 2; the readout forgets nothing
    for layer in net.spiking:
        assert np.abs(layer.weight).max() <= 127
        assert np.abs(layer.bias).max() <= 4095
        assert 0 < layer.neuron.vThMant <= 131071
        assert layer.weight.any()
    assert isinstance(net.spiking[0], ConvLayer)


def lif_of(net: Net, name: str) -> str:
    """The LIF that stands in the layer of that name."""
    index = [layer.name for layer in net.spiking].index(name)
    return next(lif for lif, (layer, _, _) in net.meta["lif_layers"].items() if layer == index)


def test_integer_weights_are_the_folded_ones_to_half_a_step(exported: Path, student: Path) -> None:
    net, network = netx.read(exported), Checkpoint.load(student).network().double()
    for layer in net.spiking[:-1]:
        conv, norm = network.get_submodule(layer.name.removesuffix(".conv")).children()
        scales = net.meta["scales"]
        current = scales["currents"][lif_of(net, layer.name)]
        scale = current / scales["input"] if layer is net.spiking[0] else current
        factor = norm.weight / (norm.running_var + norm.eps).sqrt() * scale
        wanted = (conv.weight * factor[:, None, None, None]).detach().numpy().clip(-127, 127)
        assert np.abs(layer.weight - wanted).max() <= 0.5 + 1e-9


REPORT_KEYS = {
    *("format", "file", "checkpoint_sha256", "chip", "T", "window", "latency_steps", "input", "scales", "lif_layers"),
    *("layers", "mapping", "risks", "calibration", "accuracy", "accuracy_on_samples", "finetuned", "verify", "ok"),
    *("cost", "versions"),
}


def test_the_json_says_what_was_written_and_on_what_it_was_measured(exported: Path, student: Path) -> None:
    report, net, checkpoint = report_of(exported), netx.read(exported), Checkpoint.load(student)
    assert report.keys() == REPORT_KEYS
    assert report["format"] == net.meta["format"] == 2
    assert (report["file"], report["T"], report["window"], report["chip"]) == ("student.net", 4, 4, "loihi2")
    assert report["latency_steps"] == 4 + 7
    assert report["checkpoint_sha256"] == net.meta["checkpoint_sha256"] == checkpoint.sha256
    scales = net.meta["scales"]
    assert report["scales"] == {key: scales[key] for key in ("currents", "thresholds")}
    assert (report["input"]["scale"], report["input"]["event"]) == (scales["input"], False)
    assert report["lif_layers"] == net.meta["lif_layers"]
    assert net.meta["labels"] == list("0123456789")
    assert [row["name"] for row in report["layers"]] == [layer.name for layer in net.spiking]
    assert [row["weights"] for row in report["layers"]] == [np.count_nonzero(layer.weight) for layer in net.spiking]
    assert report["calibration"] == real_images(checkpoint, split="train", limit=64).describe()
    assert report["ok"] is True
    verdict = report["verify"]
    assert (verdict["images"], verdict["flips"], verdict["max_logit_difference"]) == (16, 0, 0.0)
    assert all(layer["spikes"] > 0 for layer in verdict["layers"])
    assert (report["finetuned"], report["risks"]) == (None, [])
    assert {"python", "torch", "numpy"} <= report["versions"].keys()


def test_the_json_says_where_the_layers_lie_on_the_chip(exported: Path) -> None:
    report, net = report_of(exported), netx.read(exported)
    placed = place(net, chip.load("loihi2"))
    assert report["mapping"] == json.loads(json.dumps(placed.to_json()))
    assert [row["cores"] for row in report["layers"]] == [layer.cores for layer in placed.layers]
    assert all(row["cores"] > 0 for row in report["layers"])


def test_the_json_says_what_an_image_is_expected_to_cost_and_by_whose_figures(exported: Path) -> None:
    cost = report_of(exported)["cost"]
    image, sources = cost["per_image"], cost["sources"]
    prices = {key: source["value"] for key, source in sources.items()}
    dynamic = image["synops"] * prices["synaptic_operation"] + image["updates"] * prices["neuron_update"]
    assert image["energy_J"] == pytest.approx(dynamic)
    assert image["synops"] == pytest.approx(sum(layer["synops"] for layer in cost["layers"]))
    assert image["time_s"] == pytest.approx(4 * prices["time_per_step"])
    assert image["latency_s"] == pytest.approx(11 * prices["time_per_step"])
    assert all(source["source"] for source in sources.values())
    assert "estimate" in cost["note"]


def test_the_accuracy_on_the_samples_is_that_of_the_student_of_its_integers_and_of_the_file(
    exported: Path, student: Path, digits: RealImages
) -> None:
    said, net = report_of(exported)["accuracy_on_samples"], netx.read(exported)
    labels = digits.labels[:16]
    sums = netx_sim.simulate(net, pixels_of(net, digits.images[:16])).v_out[-1]
    checkpoint = Checkpoint.load(student)
    with torch.no_grad():
        own = checkpoint.network()(checkpoint.preprocess(torch.from_numpy(digits.images[:16]))).mean(0).argmax(-1)
    assert (said["images"], said["engine"]) == (16, "the numpy model of netx")
    assert said["file"] == said["integer"] == (sums.argmax(-1) == labels).mean()
    assert said["float"] == (own.numpy() == labels).mean()


def test_the_same_student_gives_the_same_bytes(exported: Path, student: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.net"
    to_loihi.main(to_loihi.LoihiConfig(checkpoint=student, out=out, verify="none"))
    assert out.read_bytes() == exported.read_bytes()
    assert report_of(out)["ok"] is None


@pytest.mark.lava
def test_lava_gives_every_spike_and_every_logit_of_the_twin(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "student.net"
    assert to_loihi.command([str(student), "--out", str(out), "--samples", "16"]) == 0
    verdict = report_of(out)["verify"]
    assert verdict["engine"] == "Lava's fixed-point simulator"
    assert (verdict["ok"], verdict["flips"], verdict["max_logit_difference"]) == (True, 0, 0.0)
    assert (verdict["images"], verdict["argmax_agreement"]) == (16, 1.0)
    assert verdict["spikes"] > 1000
    printed = capsys.readouterr().out
    assert f"next:    python -m export.verify {student} {out}" in printed


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line on stderr with which the command ends with status 2."""
    assert exit_status(lambda: to_loihi.command(argv)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    return error


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (NetConfig(width=0.1, v_reset=-0.5), "body.act1: the chip resets to 0, v_reset is -0.5; train with"),
        (NetConfig(width=0.1, reset="soft"), "body.act1: soft reset has no Graph node; train with --net.reset hard"),
        (
            NetConfig(name="resnet18", width=0.05, tau=9000.0),
            "body.act: tau is 9000, and a decay of 1/9000 is 0 in the chip's 12 bits; train with --net.tau up to 8191",
        ),
        (NetConfig(name="resnet19_ckd", width=0.05), "body.layer3.1.act2: ReLU has no Graph node"),
    ],
    ids=["v_reset", "soft", "tau", "relu"],
)
def test_a_student_that_netx_cannot_express_is_refused_by_layer_and_nothing_is_written(
    net: NetConfig, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_checkpoint(tmp_path / "student.pt", net)
    assert message in refused([str(path)], capsys)
    assert [entry.name for entry in tmp_path.iterdir()] == ["student.pt"]


def test_a_missing_lava_names_the_command_that_builds_it_and_nothing_is_written(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TSERVE_LAVA_PYTHON", "/nonexistent")
    error = refused([str(student), "--out", str(tmp_path / "a.net")], capsys)
    assert "make lava" in error
    assert "TSERVE_LAVA_PYTHON names /nonexistent" in error
    assert not list(tmp_path.iterdir())


def test_a_file_that_does_something_else_is_status_1_and_leaves_the_old_one(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write: Callable[[Net, Path], None] = netx.write

    def write_wrongly(net: Net, path: Path) -> None:
        net.spiking[2].weight[:] *= -1
        write(net, path)

    monkeypatch.setattr(netx, "write", write_wrongly)
    out = tmp_path / "a.net"
    out.write_text("old")
    assert to_loihi.command([str(student), "--out", str(out), "--verify", "reference"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("FAILED: a.net in the numpy model of netx")
    assert "first difference: layer body.act3" in captured.err
    assert captured.err.endswith("nothing was written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.net"]
    assert out.read_text() == "old"


def test_a_teacher_and_bad_numbers_are_refused(
    teacher: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "a teacher (ReLU), not a spiking student" in refused([str(teacher)], capsys)
    assert "samples must be at least 1, got 0" in refused([str(student), "--samples", "0"], capsys)
    assert "calibration must be at least 1, got 0" in refused([str(student), "--calibration", "0"], capsys)
    assert "test_images must not be negative, got -1" in refused([str(student), "--test_images", "-1"], capsys)
    assert "finetune must not be negative, got -1" in refused([str(student), "--finetune", "-1"], capsys)
    assert "finetune_lr must be greater than 0, got 0" in refused([str(student), "--finetune_lr", "0"], capsys)
    told = refused([str(student), "--teacher", str(teacher)], capsys)
    assert "--teacher is for fine-tuning; say for how many epochs: --finetune N" in told


def test_a_layer_of_zeros_is_named(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = Checkpoint.load(student)
    checkpoint.weights["body.conv3.conv.weight"].zero_()
    checkpoint.save(tmp_path / "student.pt")
    error = refused([str(tmp_path / "student.pt"), "--verify", "none"], capsys)
    assert "body.conv3.conv: every weight is zero" in error
    assert [path.name for path in tmp_path.iterdir()] == ["student.pt"]


def test_a_plif_with_a_time_constant_for_each_channel_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_checkpoint(tmp_path / "student.pt", NetConfig(width=0.1, neuron="plif"))
    network = Checkpoint.network

    def by_channel(self: Checkpoint) -> torch.nn.Module:
        made = network(self)
        made.body.act3.w = torch.nn.Parameter(torch.zeros(6))
        return made

    monkeypatch.setattr(Checkpoint, "network", by_channel)
    error = refused([str(path)], capsys)
    assert "body.act3: PLIF with 6 time constants has no Graph node, a layer has one tau; train with" in error


def test_what_a_file_does_is_given_with_the_verdict(exported: Path, student: Path, digits: RealImages) -> None:
    checkpoint = Checkpoint.load_student(student)
    verified = verify_netx(checkpoint, exported, digits.images[:3], engine="reference")
    net = netx.read(exported)
    np.testing.assert_array_equal(verified.sent, pixels_of(net, digits.images[:3]))
    assert verified.run.names == tuple(layer.name for layer in net.spiking)
    assert verified.logits.shape == (4, 3, 10)
    np.testing.assert_array_equal(verified.logits.sum(0), verified.run.v_out[-1] / 64)
    assert verified.verdict.ok
