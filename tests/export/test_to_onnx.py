"""The command writes a verified model under its final name, or nothing."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from live_networks import live_network, write_checkpoint
from onnx_runs import about, exposed, in_onnxruntime, stepped, unrolled

from export import integer, to_loihi, to_nir, to_onnx, verify
from export.images import RealImages, real_images
from hardware import netx, netx_sim
from hardware.net import Net
from train import cli
from train.checkpoint import Checkpoint, Preprocess
from train.config import DataConfig, NetConfig
from train.data import load


ROWS = np.arange(16)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained student of the embedded digits of which every layer fires."""
    net = NetConfig(width=0.125, T=2)
    preprocess = Preprocess(mean=(0.3,), std=(0.4,), size=8)
    images = preprocess(load(DataConfig()).train.images[:64]).double()
    checkpoint = Checkpoint(
        net=net,
        weights=live_network(net, images).float().state_dict(),
        preprocess=preprocess,
        labels=tuple("0123456789"),
        provenance={"config": {"data": cli.to_dict(DataConfig())}},
    )
    path = tmp_path_factory.mktemp("run") / "student.pt"
    checkpoint.save(path)
    return path


def test_a_verified_model_is_written_beside_the_checkpoint(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert to_onnx.command([str(student), "--samples", "8"]) == 0
    model = onnx.load(student.with_suffix(".onnx"))
    metadata = {item.key: item.value for item in model.metadata_props}
    assert metadata["checkpoint_sha256"] == f'"{Checkpoint.load(student).sha256}"'
    printed = capsys.readouterr().out
    assert f"written: {student.with_suffix('.onnx')}" in printed
    assert "8 images: 0 of" in printed


@pytest.mark.parametrize(
    "options",
    [{"name": "sew_resnet18", "size": 32, "in_channels": 1}, {"neuron": "if"}, {"neuron": "if", "v_reset": -0.25}],
    ids=str,
)
def test_sew_networks_and_integrate_and_fire_are_exported_and_verified(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = NetConfig(**{"width": 0.125, "T": 3, **options})
    images = load(DataConfig()).test.images
    images = images.repeat_interleave(net.size // 8, 2).repeat_interleave(net.size // 8, 3)
    preprocess = Preprocess(mean=(0.3,), std=(0.4,), size=net.size)
    checkpoint = Checkpoint(
        net=net,
        weights=live_network(net, preprocess(images[:64]).double()).state_dict(),
        preprocess=preprocess,
        labels=tuple("0123456789"),
        provenance={"config": {"data": cli.to_dict(DataConfig())}},
    )
    checkpoint.save(tmp_path / "student.pt")
    real = RealImages(
        dataset="digits", split="test", images=images[:16].numpy() / np.float32(255), labels=ROWS, indices=ROWS
    )
    monkeypatch.setattr("export.images.real_images", lambda *_, **__: real)
    result = to_onnx.main(to_onnx.OnnxConfig(checkpoint=tmp_path / "student.pt"))
    assert result.verdict.ok
    assert result.evaluated.ok
    assert result.verdict.images == 16
    assert all(layer.spikes for layer in result.verdict.layers)
    assert result.path == tmp_path / "student.onnx"
    kinds = {entry["name"]: entry["kind"] for entry in result.metadata["synapses"]}
    if net.name == "sew_resnet18":
        assert kinds["body.layer1.0.conv1.conv"] == "ac"  # reads pooled spikes
        assert kinds["body.layer1.1.conv1.conv"] == "mac"  # reads a sum of spikes


@pytest.mark.parametrize(("precision", "form"), [("fp32", "unrolled"), ("fp16", "step"), ("int8", "step")])
def test_two_exports_are_the_same_bytes(precision: Any, form: Any, student: Path, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        config = to_onnx.OnnxConfig(checkpoint=student, out=tmp_path / name, samples=1)
        to_onnx.main(dataclasses.replace(config, precision=precision, form=form))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_model_that_computes_something_else_leaves_the_old_file_and_exits_with_1(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from export import onnx_graph

    built = onnx_graph.build_model

    def harder_to_fire(graph: Any, **named: Any) -> onnx.ModelProto:
        wrong = [dataclasses.replace(lif, v_threshold=2 * lif.v_threshold) for lif in graph.lif_layers]
        return built(graph.replace(*wrong), **named)

    monkeypatch.setattr(onnx_graph, "build_model", harder_to_fire)
    out = tmp_path / "student.onnx"
    out.write_bytes(b"old")
    assert to_onnx.command([str(student), "--out", str(out), "--samples", "8"]) == 1
    assert "FAILED: student.onnx" in capsys.readouterr().err
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_a_missing_checkpoint_and_bad_flags_are_errors_of_the_user(tmp_path: Path) -> None:
    missing = tmp_path / "student.pt"
    for argv in ([str(missing)], [str(missing), "--samples", "0"], [str(missing), "--precision", "fp64"], []):
        assert cli.exit_status(lambda argv=argv: to_onnx.command(argv)) == 2


@pytest.mark.parametrize(
    ("precision", "form", "name"),
    [
        ("fp32", "unrolled", "student.onnx"),
        ("fp32", "step", "student.step.onnx"),
        ("fp16", "unrolled", "student.fp16.onnx"),
        ("fp16", "step", "student.fp16.step.onnx"),
        ("int8", "unrolled", "student.int8.onnx"),
        ("int8", "step", "student.int8.step.onnx"),
    ],
)
def test_each_precision_and_form_has_its_own_name_and_rule(
    precision: Any, form: Any, name: str, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "student.pt"
    shutil.copy(student, checkpoint)
    argv = [str(checkpoint), "--precision", precision, "--form", form, "--samples", "6", "--calibration", "8"]
    assert to_onnx.command(argv) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"student.pt", name}
    known = about(onnx.load(tmp_path / name))
    assert (known["precision"], known["form"]) == (precision, form)
    printed = capsys.readouterr().out
    assert f"ok: {name} in onnxruntime (CPU) against the " in printed
    rule = {"fp32": "float32:", "fp16": "float16:", "int8": "bit-exact:"}[precision]
    assert f"(rule: {rule}" in printed
    assert ("in onnx's reference evaluator" in printed) is (precision != "fp16")
    assert f"written: {tmp_path / name}" in printed
    assert f"python -m export.verify {checkpoint} {tmp_path / name}" in printed


@pytest.fixture(scope="module")
def net(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student's .net, its scales chosen on other images than `to_onnx` takes by default."""
    path = tmp_path_factory.mktemp("net") / "student.net"
    flags = ["--verify", "none", "--calibration", "5", "--test_images", "1", "--out", str(path)]
    assert to_loihi.command([str(student), *flags]) == 0
    return path


@pytest.mark.parametrize("form", ["unrolled", "step"])
def test_the_scales_of_a_net_make_a_model_that_spikes_as_that_net_does(
    form: Any, student: Path, net: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student.int8.onnx"
    config = to_onnx.OnnxConfig(checkpoint=student, out=out, precision="int8", form=form, samples=2)
    chosen = to_onnx.main(config)
    given = to_onnx.main(dataclasses.replace(config, scales=net))
    chip = netx.read(net)
    assert given.metadata["scales"] == chip.meta["scales"]
    assert chosen.metadata["scales"] != chip.meta["scales"]

    images = real_images(Checkpoint.load(student), limit=8).images
    model = exposed(onnx.load(out))
    got = (unrolled if form == "unrolled" else stepped)(model, in_onnxruntime(model), images)
    twin_input = integer.QuantizedInput(
        name="image",
        inputs=(),
        shape=images.shape[1:],
        mean=np.array(chip.meta["input"]["mean"]),
        std=np.array(chip.meta["input"]["std"]),
        scale=chip.meta["scales"]["input"],
    )
    ran = netx_sim.simulate(chip, integer.quantize_images(twin_input, images))
    for lif, (layer, start, stop) in chip.meta["lif_layers"].items():
        spikes = ran.spikes[layer][:, :, start:stop]
        mine = got[f"{lif}/out"]
        if spikes.ndim == 5:
            mine = np.moveaxis(mine, -1, 2)
        np.testing.assert_array_equal(mine.reshape(spikes.shape), spikes, err_msg=lif)
        assert spikes.any(), lif
    logits = np.diff(ran.v_out, axis=0, prepend=0) // 64
    readout = np.float32(list(chip.meta["scales"]["currents"].values())[-1])
    np.testing.assert_array_equal(got["logits"], logits.astype(np.float32) / readout)


def status_of(*argv: Any) -> int:
    return cli.exit_status(lambda: to_onnx.command([str(one) for one in argv]))


def test_the_scales_of_another_checkpoint_and_files_that_are_no_net_are_refused(
    student: Path, net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_checkpoint(tmp_path / "other.pt", NetConfig(width=0.125, T=2))
    junk = tmp_path / "junk.net"
    junk.write_bytes(b"no net")
    bare = tmp_path / "bare.net"
    netx.write(Net(layers=netx.read(net).layers, meta={"T": 2}), bare)
    before = set(tmp_path.iterdir())
    for checkpoint, scales, message in (
        (
            other,
            net,
            "student.net: it was exported from another checkpoint; export again with python -m export.to_loihi",
        ),
        (student, junk, "junk.net"),
        (student, bare, "bare.net: TSERve did not write this file (no scales inside)"),
        (student, tmp_path / "missing.net", "missing.net"),
    ):
        out = tmp_path / "student.int8.onnx"
        assert status_of(checkpoint, "--precision", "int8", "--scales", scales, "--out", out) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
        assert set(tmp_path.iterdir()) == before


def test_a_net_whose_integers_are_not_those_of_its_scales_gives_no_model(
    student: Path, net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is served would not be what the chip runs."""
    known = netx.read(net)
    layers: list[Any] = list(known.layers)
    index = layers.index(known.spiking[2])
    layers[index] = dataclasses.replace(layers[index], weight=np.roll(layers[index].weight, 1, 0))
    changed = tmp_path / "changed.net"
    netx.write(Net(layers=tuple(layers), meta=known.meta), changed)
    out = tmp_path / "student.int8.onnx"
    assert status_of(student, "--precision", "int8", "--scales", changed, "--out", out) == 2
    assert f"changed.net: the integers of layer {known.spiking[2].name} are not those" in capsys.readouterr().err
    assert not out.exists()


def test_no_file_that_is_read_is_overwritten(student: Path, net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = student.read_bytes(), net.read_bytes()
    commands: list[tuple[Any, list[Any], str]] = [
        (to_onnx.command, [student, "--out", student], ".onnx"),
        (to_loihi.command, [student, "--out", student], ".net"),
        (to_nir.command, [student, "--out", student], ".nir"),
        (verify.command, [student, net, "--out", net], ".json"),
    ]
    for command, argv, suffix in commands:
        assert cli.exit_status(lambda command=command, argv=argv: command([str(one) for one in argv])) == 2
        assert f"the file that is written must end in {suffix}" in capsys.readouterr().err
    assert (student.read_bytes(), net.read_bytes()) == before


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_scales_are_for_integers_alone(
    precision: str, student: Path, net: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(student, "--precision", precision, "--scales", net) == 2
    assert f"--scales is for --precision int8, not {precision}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"v_reset": -0.25}, "the chip resets to 0, v_reset is -0.25; train with --net.v_reset 0"),
        ({"tau": 9000.0}, "a decay of 1/9000 is 0 in the chip's 12 bits"),
    ],
)
def test_a_student_without_an_integer_form_is_refused_for_int8_and_exported_in_floats(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = write_checkpoint(tmp_path / "student.pt", NetConfig(width=0.125, T=2, v_threshold=0.2, **changes))
    for form in ("unrolled", "step"):
        assert status_of(student, "--precision", "int8", "--form", form) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [student]
    assert status_of(student, "--form", "step", "--samples", "2") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"student.pt", "student.step.onnx"}


@pytest.mark.parametrize("form", ["unrolled", "step"])
def test_integers_that_are_not_the_twins_leave_the_old_file_and_exit_with_1(
    form: str, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One weight of one layer, one unit."""
    from export import onnx_int8

    built = onnx_int8.build_int8

    def altered(graph: Any, twin: Any, *rest: Any, **named: Any) -> onnx.ModelProto:
        last = twin.output
        weight = last.weight.copy()
        weight[0, :] -= np.sign(weight[0, :])
        return built(graph, twin.replace(dataclasses.replace(last, weight=weight)), *rest, **named)

    monkeypatch.setattr(onnx_int8, "build_int8", altered)
    out = tmp_path / "student.onnx"
    out.write_bytes(b"old")
    flags = ["--precision", "int8", "--form", form, "--samples", "8", "--calibration", "8"]
    assert status_of(student, "--out", out, *flags) == 1
    error = capsys.readouterr().err
    assert "FAILED: student.onnx" in error
    assert "first difference: layer logits" in error
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_half_precision_may_flip_a_few_neurons_and_no_more(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from export import onnx_graph

    config = to_onnx.OnnxConfig(checkpoint=student, out=tmp_path / "half.onnx", precision="fp16", samples=64)
    verdict = to_onnx.main(config).verdict
    assert verdict.ok
    assert verdict.first_flips <= np.ceil(2e-4 * verdict.unchanged)
    built = onnx_graph.build_model

    def quarter(graph: Any, **named: Any) -> onnx.ModelProto:
        """Weights of five bits."""
        coarse = []
        for node in graph.synapses:
            size = 2.0 ** np.floor(np.log2(np.abs(node.weight) + 1e-9))
            coarse.append(dataclasses.replace(node, weight=np.rint(node.weight / size * 16) / 16 * size))
        return built(graph.replace(*coarse), **named)

    monkeypatch.setattr(onnx_graph, "build_model", quarter)
    argv = ["--out", tmp_path / "quarter.onnx", "--precision", "fp16", "--samples", "64"]
    assert status_of(student, *argv) == 1
    assert "FAILED: quarter.onnx" in capsys.readouterr().err
    assert not (tmp_path / "quarter.onnx").exists()
