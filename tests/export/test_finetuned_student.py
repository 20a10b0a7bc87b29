"""What fine-tuning writes is what it computed, and who taught it is said."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from chip_graphs import (
    LIMITS,
)
from live_networks import DIGITS, live_network
from torch import Tensor

from export import execute, finetune
from export import graph as g
from export.finetune import FinetuneConfig, find_teacher
from export.integer_network import IntegerNetwork
from export.lower import lower
from export.netx_build import to_net
from export.prepare import prepare, synapses_of
from export.quantize import quantize
from export.scales import rebuild
from hardware.net import check
from train import cli
from train.checkpoint import Checkpoint
from train.config import DataConfig, NetConfig
from train.data import Dataset, Split, load
from train.evaluate import dataset_of


def checkpoint_of(net: NetConfig, dataset: Dataset) -> Checkpoint:
    """An untrained student of which every layer fires."""
    preprocess = dataclasses.replace(DIGITS, size=net.size)
    return Checkpoint(
        net=net,
        weights=live_network(net, preprocess(dataset.train.images.double() / 255)).float().state_dict(),
        preprocess=preprocess,
        labels=tuple("0123456789"),
        provenance={"config": {"data": cli.to_dict(DataConfig()), "method": {"name": "tser", "alpha": 0.4}}},
    )


def some_images(size: int, *, count: int = 24) -> Dataset:
    """Digits, enlarged to `size` pixels."""
    digits = load(DataConfig())
    train = digits.train
    repeats = size // 8
    images = train.images[:count].repeat_interleave(repeats, -1).repeat_interleave(repeats, -2)
    part = Split(images=images, labels=train.labels[:count], indices=train.indices[:count])
    return dataclasses.replace(digits, train=part, size=size)


NETS = {
    "vgg_small": NetConfig(name="vgg_small", width=0.25, T=3),
    "vgg11_avg": NetConfig(name="vgg11", width=0.05, T=2, size=32),
    "vgg11_max": NetConfig(name="vgg11", width=0.05, T=2, size=32, pool="max"),
    "resnet20": NetConfig(name="resnet20", width=0.25, T=3),
    "resnet19_tet": NetConfig(name="resnet19_tet", width=0.03, T=2, neuron="if"),
    "sew_resnet18": NetConfig(name="sew_resnet18", width=0.06, T=2, size=16, tau=3.0, decay_input=False),
}


@pytest.mark.parametrize("name", NETS)
def test_what_is_written_gives_the_very_integers_that_were_trained(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = some_images(NETS[name].size)
    student = checkpoint_of(NETS[name], dataset)
    graph = lower(student)
    images = dataset.train.images.numpy() / np.float32(255)
    before, scales = quantize(graph, images[:8], LIMITS)
    trained: list[IntegerNetwork] = []
    write = finetune.written_back

    def watched(checkpoint: Checkpoint, network: IntegerNetwork, config: FinetuneConfig) -> Checkpoint:
        trained.append(network)
        return write(checkpoint, network, config)

    monkeypatch.setattr(finetune, "written_back", watched)
    tuned, learnt = finetune.finetune(
        student, graph, prepare(graph), scales,
        dataset=dataset, teacher=None, config=FinetuneConfig(epochs=2, lr=0.1, batch_size=8),
    )  # fmt: skip
    tuned.save(tmp_path / "tuned.pt")
    read = Checkpoint.load_student(tmp_path / "tuned.pt")  # with weights_only
    assert read.net == student.net
    assert {k: v.shape for k, v in read.weights.items()} == {k: v.shape for k, v in student.weights.items()}
    assert read.provenance["finetuned"]["settings"]["epochs"] == 2
    twin = rebuild(prepare(lower(read)), learnt)
    (network,) = trained
    changed = 0
    for head in (*network.graph.lif_layers, network.graph.output):
        for i, synapse in enumerate(synapses_of(network.graph, head)):
            node, old = twin[synapse.name], before[synapse.name]
            assert isinstance(node, g.Conv | g.Dense)
            assert isinstance(old, g.Conv | g.Dense)
            np.testing.assert_array_equal(node.weight, network.integer_weight(synapse).detach().numpy())
            bias = network.integer_bias(head.name).detach().numpy() if i == 0 else 0
            np.testing.assert_array_equal(node.bias, bias + np.zeros_like(node.bias))
            changed += int((node.weight != old.weight).sum())
    assert changed > 50, f"training moved only {changed} weights"
    with torch.no_grad():
        got = network(read.preprocess(torch.from_numpy(images[:4]))).double().numpy()
    wanted = execute.logits(twin, execute.run(twin, images[:4]))
    np.testing.assert_array_equal(np.rint(got * learnt.currents[twin.output.name]), wanted)
    if name == "vgg11_avg":
        for conv in ("body.conv2.conv", "body.conv3.conv", "body.conv5.conv"):
            weight = twin[conv].weight  # type: ignore[attr-defined]
            assert weight.shape[2:] == (6, 6)
            np.testing.assert_array_equal(weight, weight[..., ::2, ::2].repeat(2, 2).repeat(2, 3))


def test_the_float_network_that_is_written_computes_what_the_integers_stand_for(student: Path) -> None:
    """Written back without a step of training, its logits are those of the rounded network, not of the old one."""
    checkpoint = Checkpoint.load_student(student)
    graph = lower(checkpoint)
    images = dataset_of(checkpoint).test.images[:50].numpy() / np.float32(255)
    twin, scales = quantize(graph, images, LIMITS)
    network = IntegerNetwork(graph, prepare(graph), scales, surrogate="atan")
    written = finetune.written_back(checkpoint, network, FinetuneConfig(epochs=1))
    for node in lower(written).synapses:
        integers = twin[node.name]
        assert isinstance(integers, g.Conv | g.Dense)
        np.testing.assert_allclose(node.weight * network.unit[node.name], integers.weight, atol=1e-4)
    with torch.no_grad():
        logits = written.network()(written.preprocess(torch.from_numpy(images))).sum(0)
    answers = execute.logits(twin, execute.run(twin, images)).sum(0).argmax(-1)
    assert (logits.argmax(-1).numpy() == answers).mean() >= 0.94


def test_steps_lower_the_loss(student: Path) -> None:
    checkpoint = Checkpoint.load_student(student)
    part = dataset_of(checkpoint).train
    images, labels = checkpoint.preprocess(part.images[:64].float() / 255), part.labels[:64]
    graph = lower(checkpoint)
    _, scales = quantize(graph, part.images[:32].numpy() / np.float32(255), LIMITS)
    network = IntegerNetwork(graph, prepare(graph), scales, surrogate=checkpoint.net.surrogate)
    updates = torch.optim.SGD(network.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(network(images).mean(0), labels)
        losses.append(loss.item())
        updates.zero_grad()
        loss.backward()
        updates.step()
    assert min(losses[-2:]) < 0.95 * losses[0]


def test_the_same_seed_gives_the_same_weights_and_another_gives_others() -> None:
    dataset = some_images(8)
    student = checkpoint_of(NETS["vgg_small"], dataset)
    graph = lower(student)
    _, scales = quantize(graph, dataset.train.images[:8].numpy() / np.float32(255), LIMITS)

    def weights(seed: int) -> dict[str, Tensor]:
        config = FinetuneConfig(epochs=1, batch_size=8, seed=seed, lr=0.1)
        return finetune.finetune(
            student, graph, prepare(graph), scales, dataset=dataset, teacher=None, config=config
        )[0].weights  # fmt: skip

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_loss_that_is_not_finite_ends_it_with_what_to_change() -> None:
    dataset = some_images(8)
    student = checkpoint_of(NETS["vgg_small"], dataset)
    graph = lower(student)
    _, scales = quantize(graph, dataset.train.images[:8].numpy() / np.float32(255), LIMITS)
    weights = student.weights | {"body.classifier.bias": torch.full((10,), math.nan)}
    teacher = dataclasses.replace(student, weights=weights)
    with pytest.raises(ValueError, match=r"fine-tuning: the loss is nan at step 1; take a smaller --finetune_lr"):
        finetune.finetune(
            student, graph, prepare(graph), scales,
            dataset=dataset, teacher=teacher, config=FinetuneConfig(epochs=1, batch_size=8),
        )  # fmt: skip


def test_whatever_it_learns_fits_the_chip() -> None:
    """A rate that throws the weights far out still leaves 8 bits and the chip's biases."""
    dataset = some_images(8)
    student = checkpoint_of(NETS["vgg_small"], dataset)
    graph = lower(student)
    _, scales = quantize(graph, dataset.train.images[:8].numpy() / np.float32(255), LIMITS)
    tuned, learnt = finetune.finetune(
        student, graph, prepare(graph), scales,
        dataset=dataset, teacher=None, config=FinetuneConfig(epochs=2, batch_size=8, lr=1e6),
    )  # fmt: skip
    assert max(abs(bias) for biases in learnt.biases.values() for bias in biases) == LIMITS.bias
    twin = rebuild(prepare(lower(tuned)), learnt)
    check(to_net(twin, learnt, labels=["a"], checkpoint_sha256="0"), LIMITS)


def test_the_teacher_beside_the_student_is_taken_if_it_is_the_one_that_taught(
    student: Path, teacher: Path, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.load_student(student)
    dataset = dataset_of(checkpoint)
    own = Checkpoint.load_teacher(teacher).sha256
    found, words = find_teacher(None, student, checkpoint, dataset)
    assert found is not None
    assert (found.sha256, words) == (own, f"the teacher {teacher}")
    moved = tmp_path / "student.pt"  # no teacher beside it, and none where the record says
    nowhere = dataclasses.replace(
        checkpoint, provenance={"config": {**checkpoint.provenance["config"], "teacher": str(tmp_path / "gone.pt")}}
    )
    found, words = find_teacher(None, moved, nowhere, dataset)
    assert found is None
    assert words.startswith("its own float network")
    assert "--teacher" in words
    stranger = dataclasses.replace(checkpoint, metrics={**checkpoint.metrics, "teacher_sha256": "0" * 64})
    assert find_teacher(None, student, stranger, dataset)[0] is None


def test_the_teacher_is_found_where_the_record_says(student: Path, teacher: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.load_student(student)
    recorded = dataclasses.replace(
        checkpoint, provenance={"config": {**checkpoint.provenance["config"], "teacher": str(teacher)}}
    )
    found, words = find_teacher(None, tmp_path / "student.pt", recorded, dataset_of(checkpoint))
    assert found is not None
    assert words == f"the teacher {teacher}"


def test_a_named_teacher_is_taken_and_a_student_is_refused_as_one(student: Path, teacher: Path) -> None:
    checkpoint = Checkpoint.load_student(student)
    dataset = dataset_of(checkpoint)
    found, words = find_teacher(str(teacher), student, checkpoint, dataset)
    assert found is not None
    assert words == f"the teacher {teacher}"
    with pytest.raises(ValueError, match="a spiking student, not a teacher"):
        find_teacher(str(student), student, checkpoint, dataset)
    with pytest.raises(ValueError, match="no such file"):
        find_teacher("nowhere/teacher.pt", student, checkpoint, dataset)
