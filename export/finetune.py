"""Quantisation-aware training: a student learns to spike as the chip computes it.

The integer network (export/integer_network.py) runs in the forward pass. Scales and thresholds stay as
`export.quantize` chose them; weights and biases learn under TSER's loss. What comes out is a checkpoint of the same
network whose folded weights lie on the chip's grid, so that everything else of the chain takes it: exporting it again
under the same scales gives these very integers.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from export import graph as g
from export.integer_network import IntegerNetwork, key
from export.prepare import synapses_of
from export.scales import Scales
from export.unfold import folding
from train import teachers
from train.checkpoint import Checkpoint
from train.config import DataConfig
from train.data import Dataset, Shuffled
from train.loop import weighted
from train.methods.tser import TSER, tser_loss


AUGMENTATION = ("augment", "alternate_flip", "auto_augment", "cutout", "mixup")
"""Keys of DataConfig that say what is done to a training image."""
EPS = nn.BatchNorm2d(1).eps


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How long and how fast."""

    epochs: int
    """Passes over the training images."""
    lr: float = 0.002
    """Peak learning rate of Adam; it falls to 0 along a cosine."""
    batch_size: int = 128
    """Images of one step."""
    seed: int = 0
    """Of order and augmentation."""


def finetune(
    checkpoint: Checkpoint,
    original: g.Graph,
    prepared: g.Graph,
    scales: Scales,
    *,
    dataset: Dataset,
    teacher: Checkpoint | None,
    config: FinetuneConfig,
    device: str = "cpu",
) -> tuple[Checkpoint, Scales]:
    """The student after `config.epochs` as integers, and its scales.

    teacher: without one the student teaches itself, by the mean of its logits over time.
    Raises ValueError where the loss stops being finite.
    """
    network = IntegerNetwork(original, prepared, scales, surrogate=checkpoint.net.surrogate).to(device)
    guide = teacher or checkpoint
    guiding = guide.network().requires_grad_(False).to(device)
    method = checkpoint.provenance.get("config", {}).get("method", {})
    named = {field.name for field in dataclasses.fields(TSER)} - {"name"}
    weights = {k: v for k, v in method.items() if k in named} if method.get("name") == "tser" else {}
    recorded = checkpoint.provenance["config"]["data"]
    data = dataclasses.replace(DataConfig(), **{k: recorded[k] for k in AUGMENTATION if k in recorded})
    stream = Shuffled(
        dataset.train.to(torch.device(device)),
        config.batch_size,
        config=data,
        seed=config.seed,
        mirror=dataset.mirror,
        mean=dataset.mean,
    )
    total = stream.steps * config.epochs
    # Adam: folding has left channels and biases of very different sizes, and SGD moves either some or none of them.
    updates = torch.optim.Adam(network.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(updates, total)
    with tqdm(range(total), desc="fine-tuning", unit="step", disable=None) as bar:
        for i in bar:
            images, targets = stream(i)
            with torch.no_grad():
                answer = guiding(guide.preprocess(images))
            answer = answer.mean(0) if answer.dim() == 3 else answer
            logits = network(checkpoint.preprocess(images))
            loss = weighted(targets, partial(tser_loss, logits, answer, **weights))["total"]
            if not torch.isfinite(loss):
                raise ValueError(
                    f"fine-tuning: the loss is {loss.item()} at step {i + 1}; take a smaller --finetune_lr"
                )
            updates.zero_grad(set_to_none=True)
            loss.backward()
            updates.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    network.cpu()
    return written_back(checkpoint, network, config), network.scales_now()


def find_teacher(spec: str | None, path: Path, student: Checkpoint, dataset: Dataset) -> tuple[Checkpoint | None, str]:
    """The teacher of a fine-tuning, and who that is in words; None: the student itself.

    spec: what --teacher names; otherwise the teacher that the student at `path` was distilled from is looked for where
    distillation leaves it, and taken if it is that very file. Raises ValueError for a spec that does not fit.
    """
    if spec is not None:
        return teachers.load(spec, dataset), f"the teacher {spec}"
    recorded = student.provenance.get("config", {}).get("teacher")
    for candidate in ([Path(recorded)] if recorded else []) + [path.parent / "teacher" / "teacher.pt"]:
        if not candidate.is_file():
            continue
        found = Checkpoint.load(candidate)
        if found.sha256 == student.metrics.get("teacher_sha256") and not found.net.spiking:
            return found, f"the teacher {candidate}"
    return None, "its own float network (its teacher's file is not in its place; --teacher names one)"


def written_back(checkpoint: Checkpoint, network: IntegerNetwork, config: FinetuneConfig) -> Checkpoint:
    """The checkpoint with the weights that the chip computes with; every normalisation only adds the bias."""
    weights = dict(checkpoint.weights)
    graph = network.graph
    with torch.no_grad():
        for node in (*graph.lif_layers, graph.output):
            for i, synapse in enumerate(synapses_of(graph, node)):
                if key(synapse.name) not in network.weights:
                    continue
                bias = network.integer_bias(node.name).double() / network.scales.currents[node.name]
                put(weights, synapse.name, on_grid(network, synapse), bias if i == 0 else torch.zeros_like(bias))
    provenance: dict[str, Any] = {
        **checkpoint.provenance,
        "finetuned": {"from_sha256": checkpoint.sha256, "settings": dataclasses.asdict(config)},
    }
    return dataclasses.replace(checkpoint, weights=weights, provenance=provenance, metrics={}, sha256="")


def on_grid(network: IntegerNetwork, synapse: g.Conv | g.Dense) -> Tensor:
    """A layer's weights before folding, such that rounding gives the integers that it learned."""
    integers = network.integer_weight(synapse).double() / network.unit[synapse.name]
    if not network.folds(synapse):
        return integers
    (c, h, w), kh, kw = folding(network.original, network.graph, synapse)
    spread = integers.reshape(len(integers), c, h, kh, w, kw)
    return (spread[:, :, :, 0, :, 0] * (kh * kw)).reshape(network.weights[key(synapse.name)].shape)


def put(weights: dict[str, Tensor], name: str, weight: Tensor, bias: Tensor) -> None:
    """Set a layer's weight and bias; the normalisation after a convolution becomes the bias alone."""
    own = weights[f"{name}.weight"]
    weights[f"{name}.weight"] = weight.to(own.dtype)
    if f"{name}.bias" in weights:
        weights[f"{name}.bias"] = bias.to(own.dtype)
        bias = torch.zeros_like(bias)
    norm = f"{name.rpartition('.')[0]}.norm"
    if not name.endswith(".conv") or f"{norm}.running_var" not in weights:
        return
    weights[f"{norm}.running_mean"] = torch.zeros_like(weights[f"{norm}.running_mean"])
    weights[f"{norm}.running_var"] = torch.ones_like(weights[f"{norm}.running_var"])
    weights[f"{norm}.weight"] = torch.full_like(weights[f"{norm}.weight"], (1 + EPS) ** 0.5)
    weights[f"{norm}.bias"] = bias.to(own.dtype)
