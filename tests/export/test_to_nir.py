"""The command writes a verified NIR file or nothing, and other simulators read the file and give the same spikes."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import snntorch
import torch
from live_networks import DIGITS, live_network, write_checkpoint
from snntorch.import_nir import import_from_nir as import_snntorch
from spikingjelly.activation_based.nir_exchange import import_from_nir as import_spikingjelly
from test_nir_graph import LABELS, SHA, dyadic_input, residual_graph
from torch import Tensor, nn

from export import graph as g
from export import nir_graph, reference, to_nir
from export.images import real_images
from export.lower import lower
from export.verify import Run
from export.verify_nir import execute, verify_nir
from train import cli
from train.checkpoint import Checkpoint
from train.config import NetConfig


STUDENTS = {
    "vgg_small": NetConfig(width=0.25),
    "vgg_small IF": NetConfig(width=0.25, neuron="if", T=3),
    "vgg_small PLIF": NetConfig(width=0.25, neuron="plif", tau=2.3),
    "resnet20": NetConfig(name="resnet20", width=0.25),
    "resnet20 tau 3": NetConfig(name="resnet20", width=0.25, tau=3.0, decay_input=False, T=2),
    "resnet19": NetConfig(name="resnet19_td", width=0.05, v_reset=-0.25, T=2),
}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Callable[[NetConfig], Path]:
    """Checkpoints of untrained students of the digits, all of whose layers fire."""

    def path_of(net: NetConfig) -> Path:
        path = tmp_path_factory.mktemp("run") / "student.pt"
        digits = real_images(Checkpoint.load(write_checkpoint(path, net)), limit=32).images
        network = live_network(net, DIGITS(torch.from_numpy(digits).double())).float()
        checkpoint = dataclasses.replace(Checkpoint.load(path), weights=network.state_dict())
        checkpoint.save(path)
        return path

    return path_of


def exported(path: Path, samples: int = 8) -> tuple[g.Graph, np.ndarray, Path]:
    """The Graph of a student, real images in float64, and the NIR file that the command wrote."""
    checkpoint = Checkpoint.load(path)
    written = to_nir.main(to_nir.NirConfig(checkpoint=path, samples=samples)).path
    return lower(checkpoint), real_images(checkpoint, limit=samples).images.astype(np.float64), written


def wanted(graph: g.Graph, images: np.ndarray) -> Run:
    """What the reference says."""
    values = reference.run(graph, images)
    spikes = {lif.name: values[lif.name].astype(np.uint8) for lif in graph.lif_layers}
    return Run(spikes=spikes, logits=reference.logits(graph, values))


def simulate(model: nn.Module, graph: g.Graph, images: Tensor) -> Run:
    """Step an imported model through T steps, its state handed on; what its neurons give is recorded by hooks."""
    spikes: dict[str, list[np.ndarray]] = {lif.name: [] for lif in graph.lif_layers}

    def record(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, out: spikes[name].append(np.asarray(out[0] if isinstance(out, tuple) else out))

    modules = dict(model.named_modules())
    hooks = [modules[name.replace(".", "_")].register_forward_hook(record(name)) for name in spikes]
    logits, state = [], None
    with torch.no_grad():
        for _ in range(graph.T):
            y, state = model(images, state)
            logits.append(y.numpy())
    for hook in hooks:
        hook.remove()
    return Run(spikes={name: np.stack(steps) for name, steps in spikes.items()}, logits=np.stack(logits))


def in_spikingjelly(path: Path, graph: g.Graph, images: np.ndarray) -> Run:
    """SpikingJelly's importer, in float64."""
    return simulate(import_spikingjelly(path, dtype=torch.float64), graph, torch.from_numpy(images))


def in_snntorch(net: nir.NIRGraph, graph: g.Graph, images: np.ndarray) -> Run:
    """snnTorch's importer, in float32 and one image at a time: its Flatten would flatten the batch too."""
    model = import_snntorch(net)
    runs = []
    for image in torch.from_numpy(images.astype(np.float32)):
        for module in model.modules():
            if isinstance(module, snntorch.Leaky):
                module.reset_mem()
        runs.append(simulate(model, graph, image))
    spikes = {name: np.stack([run.spikes[name] for run in runs], 1) for name in runs[0].spikes}
    return Run(spikes=spikes, logits=np.stack([run.logits for run in runs], 1))


def flips(a: Run, b: Run) -> int:
    """How many spikes differ in all layers."""
    assert a.spikes.keys() == b.spikes.keys()
    return sum(int((a.spikes[name] != b.spikes[name]).sum()) for name in a.spikes)


def assert_alive(run: Run) -> None:
    """Every layer fires and none always."""
    assert all(0 < spikes.mean() < 1 for spikes in run.spikes.values())


def lower_thresholds(net: nir.NIRGraph) -> None:
    """Put every threshold at the float32 below it: h > threshold is then h >= what it was, for h in float32."""
    for node in net.nodes.values():
        if isinstance(node, nir.LIF):
            node.v_threshold = np.nextafter(node.v_threshold.astype(np.float32), np.float32(-np.inf))


@pytest.mark.parametrize("name", STUDENTS)
def test_spikingjelly_reads_the_file_and_gives_every_spike(name: str, live: Callable[[NetConfig], Path]) -> None:
    graph, images, path = exported(live(STUDENTS[name]))
    want, got = wanted(graph, images), in_spikingjelly(path, graph, images)
    assert_alive(want)
    assert flips(want, got) == 0
    np.testing.assert_allclose(got.logits, want.logits, rtol=0, atol=1e-12)


def test_spikingjelly_gives_every_spike_of_a_trained_student(student: Path, tmp_path: Path) -> None:
    written = to_nir.main(to_nir.NirConfig(checkpoint=student, out=tmp_path / "student.nir")).path
    checkpoint = Checkpoint.load(student)
    graph, real = lower(checkpoint), real_images(checkpoint, limit=100)
    want = wanted(graph, real.images.astype(np.float64))
    got = in_spikingjelly(written, graph, real.images.astype(np.float64))
    assert flips(want, got) == 0
    assert (got.logits.mean(0).argmax(-1) == real.labels).mean() > 0.85


@pytest.mark.parametrize("name", ["vgg_small", "vgg_small PLIF", "resnet20", "resnet20 tau 3"])
def test_snntorch_reads_the_file_and_gives_the_spikes_in_float32(name: str, live: Callable[[NetConfig], Path]) -> None:
    graph, images, path = exported(live(STUDENTS[name]))
    want, got = wanted(graph, images), in_snntorch(nir.read(path), graph, images)
    assert_alive(want)
    assert flips(want, got) <= 1e-3 * sum(int(spikes.sum()) for spikes in want.spikes.values())
    np.testing.assert_array_equal(got.logits.mean(0).argmax(-1), want.logits.mean(0).argmax(-1))


@pytest.mark.parametrize(("tau", "decay_input"), [(2.0, True), (2.0, False), (4.0, True)])
def test_snntorch_fires_above_the_threshold_and_not_at_it(tau: float, decay_input: bool) -> None:
    graph = residual_graph(tau=tau, decay_input=decay_input, mean=False)
    images = dyadic_input(graph, batch=8)  # sums of these are exact in float32 too, so only the rule differs
    net = nir_graph.build(graph, labels=LABELS, checkpoint_sha256=SHA)
    want, strict = wanted(graph, images), execute(net, images, strict=True)
    assert flips(want, strict) > 0
    assert flips(strict, in_snntorch(net, graph, images)) == 0
    lower_thresholds(net)
    assert flips(want, in_snntorch(net, graph, images)) == 0


def test_snntorch_refuses_a_membrane_that_rests_elsewhere_and_integrate_and_fire() -> None:
    for neuron, message in (({"v_reset": -0.25}, "v_leak"), ({"tau": np.inf, "decay_input": False}, "r != 1")):
        net = nir_graph.build(residual_graph(**neuron), labels=LABELS, checkpoint_sha256=SHA)
        with pytest.raises(AssertionError, match=message):
            import_snntorch(net)


def test_the_command_writes_a_verified_file_and_its_report(
    live: Callable[[NetConfig], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = live(NetConfig(name="resnet20", width=0.25, T=2))
    assert to_nir.command([str(path), "--samples", "4"]) == 0
    printed, out = capsys.readouterr().out, path.with_suffix(".nir")
    assert f"written: {out}" in printed
    assert "ok: student.nir" in printed
    assert "4 images: 0 of" in printed
    report = json.loads(out.with_name("student.nir.json").read_text())
    assert report["ok"] is True
    assert report["verify"]["flips"] == 0
    assert report["verify"]["spikes"] > 1000
    assert report["strict_threshold_flips"] == 0
    assert report["checkpoint_sha256"] == Checkpoint.load(path).sha256
    assert report["on"]["indices"] == real_images(Checkpoint.load(path), limit=4).indices.tolist()
    assert {node["name"]: node["output"] for node in report["nodes"]}["body.layer2.0.conv1.conv"] == [8, 4, 4]
    assert report["versions"]["nir"] == "1.0.8"
    assert {file.name for file in out.parent.iterdir()} == {"student.pt", "student.nir", "student.nir.json"}


def test_two_exports_are_the_same_bytes(live: Callable[[NetConfig], Path], tmp_path: Path) -> None:
    path = live(NetConfig(width=0.125, T=2))
    for name in ("a.nir", "b.nir"):
        to_nir.main(to_nir.NirConfig(checkpoint=path, out=tmp_path / name, samples=1))
    assert (tmp_path / "a.nir").read_bytes() == (tmp_path / "b.nir").read_bytes()


def test_a_file_that_computes_something_else_leaves_the_old_one_and_exits_with_1(
    live: Callable[[NetConfig], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build = nir_graph.build

    def one_weight_off(graph: g.Graph, **named: Any) -> nir.NIRGraph:
        net = build(graph, **named)
        net.nodes["body.conv3.conv"].weight[0, 0, 1, 1] += 0.5
        return net

    monkeypatch.setattr(nir_graph, "build", one_weight_off)
    out = tmp_path / "student.nir"
    out.write_bytes(b"old")
    assert to_nir.command([str(live(NetConfig(width=0.25))), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert "FAILED: student.nir" in error
    assert "first difference: layer body.act3, step " in error
    assert "nothing was written" in error
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            NetConfig(name="vgg11", width=0.05, size=32, pool="max"),
            r"body\.pool1: NIR has no max pooling; train .* --net\.pool avg",
        ),
        (NetConfig(name="sew_resnet18", width=0.05, size=32), r"body\.maxpool: NIR has no max pooling; .*to_onnx"),
        (NetConfig(width=0.125, reset="soft"), r"body\.act1: soft reset .*--net\.reset hard"),
    ],
)
def test_what_nir_cannot_say_is_refused_by_name_with_status_2(
    net: NetConfig, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_checkpoint(tmp_path / "student.pt", net)
    assert cli.exit_status(lambda: to_nir.command([str(path)])) == 2
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_checkpoint_a_teacher_and_bad_flags_are_errors_of_the_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "student.pt"
    teacher = write_checkpoint(tmp_path / "teacher.pt", NetConfig(width=0.125, spiking=False))
    for argv, message in (
        ([str(missing)], "no such file"),
        ([str(teacher)], "a teacher"),
        ([str(missing), "--samples", "0"], "samples must be at least 1 image, got 0"),
        ([], "python -m export.to_nir --help"),
    ):
        assert cli.exit_status(lambda argv=argv: to_nir.command(argv)) == 2
        assert message in capsys.readouterr().err.lower()


def test_files_that_are_not_of_this_checkpoint_are_refused(live: Callable[[NetConfig], Path], tmp_path: Path) -> None:
    path = live(NetConfig(width=0.125, T=2))
    graph, images, written = exported(path, samples=2)
    checkpoint = Checkpoint.load(path)

    def refuse(file: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            verify_nir(checkpoint, file, images)

    refuse(tmp_path / "none.nir", "none.nir: no such file")
    broken = tmp_path / "broken.nir"
    broken.write_bytes(written.read_bytes()[:-2000])
    refuse(broken, "broken.nir: not a NIR file that TSERve wrote, or a damaged one")
    foreign = tmp_path / "foreign.nir"
    nir.write(foreign, nir.NIRGraph.from_list(nir.Affine(np.eye(3), np.zeros(3))))
    refuse(foreign, "foreign.nir: not a NIR file that TSERve wrote")
    other = tmp_path / "other.nir"
    nir.write(other, nir_graph.build(graph, labels=checkpoint.labels, checkpoint_sha256="1" * 64))
    refuse(other, "other.nir: it was exported from another checkpoint; export again with python -m export.to_nir")


def test_a_student_of_events_is_held_against_its_network_frame_by_frame(tmp_path: Path) -> None:
    net = NetConfig(width=0.25, in_channels=2, event=True, T=3)
    events = dataclasses.replace(DIGITS, mean=(0.0, 0.0), std=(1 / 255, 1 / 255))
    frames = np.random.default_rng(0).integers(0, 4, (3, 5, 2, 8, 8)) / 255
    path = write_checkpoint(tmp_path / "student.pt", net)
    network = live_network(net, events(torch.from_numpy(frames))).float()
    dataclasses.replace(Checkpoint.load(path), weights=network.state_dict(), preprocess=events).save(path)
    checkpoint = Checkpoint.load(path)
    file = tmp_path / "student.nir"
    nir.write(file, nir_graph.build(lower(checkpoint), labels=checkpoint.labels, checkpoint_sha256=checkpoint.sha256))
    verdict, _ = verify_nir(checkpoint, file, frames, batch_size=2)
    assert verdict.ok, verdict
    assert verdict.images == 5
    assert all(layer.spikes > 0 for layer in verdict.layers)
