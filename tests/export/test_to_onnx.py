"""The command writes a verified model under its final name, or nothing."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from live_networks import live_network

from export import to_onnx
from export.images import RealImages
from train import cli
from train.checkpoint import Checkpoint, Preprocess
from train.config import DataConfig, NetConfig
from train.data import load
from train.networks import build


ROWS = np.arange(16)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained student of the embedded digits, with a threshold at which it fires."""
    torch.manual_seed(0)
    net = NetConfig(width=0.125, T=2, v_threshold=0.2)
    checkpoint = Checkpoint(
        net=net,
        weights=build(net).state_dict(),
        preprocess=Preprocess(mean=(0.3,), std=(0.4,), size=8),
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


def test_two_exports_are_the_same_bytes(student: Path, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        to_onnx.main(to_onnx.OnnxConfig(checkpoint=student, out=tmp_path / name, samples=1))
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
