"""The training loop, flat: every call of Lightning Fabric is in this file."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from train.checkpoint import Preprocess
from train.config import OptimConfig, RunConfig
from train.data import Dataset, augment, batches
from train.metrics import pick_device, run_split, summary
from train.record import atomic, write_jsonl


PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
STATE_FORMAT = 1

# One step's named loss terms and "total", from the (wrapped) network, augmented uint8 images [B, C, H, W], target [B].
Step = Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor]]


def fit(
    network: nn.Module,
    step: Step,
    *,
    dataset: Dataset,
    preprocess: Preprocess,
    config: RunConfig,
    identity: dict[str, Any],
    out: Path,
    title: str,
) -> list[dict[str, Any]]:
    """Train `network` in place and return one record an epoch; also written to out/metrics.jsonl.

    After every epoch out/state.pt holds all that is needed to go on; with config.resume == "auto" training
    does so, bit for bit, if `identity` (the settings that shape the result) is the one the state was made with.
    Raises ValueError where it is not, ValueError also when a loss stops being finite.
    """
    fabric = start(config)
    optim = config.optim
    optimizer = torch.optim.SGD(
        parameter_groups(network, optim), lr=optim.lr, momentum=optim.momentum, nesterov=optim.momentum > 0
    )
    model, optimizer = fabric.setup(network, optimizer)
    state_path = out / "state.pt"
    history: list[dict[str, Any]] = []
    if config.resume == "auto" and state_path.exists():
        history = load_state(state_path, network, optimizer, identity)
        print(f"{title}: resumed after epoch {len(history)} from {state_path}")
    epochs, batch_size = config.optim.epochs, min(config.optim.batch_size, len(dataset.train.labels))
    steps = len(dataset.train.labels) // batch_size
    writer = SummaryWriter(str(out / "tensorboard"), purge_step=len(history))
    for epoch in range(len(history), epochs):
        # Order and augmentation are a function of (seed, epoch), so a resumed epoch is the one that was lost.
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        began = time.perf_counter()
        sums: dict[str, Tensor] = {}
        stream = batches(dataset.train, batch_size, generator=generator, drop_last=True)
        bar = tqdm(stream, total=steps, desc=f"{title} {epoch + 1}/{epochs}", leave=False, disable=None)
        model.train()
        for i, (images, target) in enumerate(bar):
            set_learning_rate(optimizer, config.optim, epoch * steps + i, epochs * steps)
            if config.data.augment:
                images = augment(images, generator=generator, pad=dataset.size // 8, mirror=dataset.mirror)
            terms = step(model, images.to(fabric.device), target.to(fabric.device))
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(terms["total"])
            optimizer.step()
            for name, value in terms.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        losses = {name: float(value) / steps for name, value in sums.items()}
        record: dict[str, Any] = {"epoch": epoch + 1, "loss": losses}
        if bad := [name for name, value in losses.items() if not math.isfinite(value)]:
            kept = f"; the state after epoch {epoch} is kept in {state_path}" if epoch else ""
            raise ValueError(
                f"{title}: the loss stopped being finite in epoch {epoch + 1}, term {bad[0]}; "
                f"try a smaller --optim.lr (now {config.optim.lr}){kept}"
            )
        record["seconds"] = time.perf_counter() - began
        if len(dataset.val.labels):
            measured = summary(run_split(network, dataset.val, preprocess, device=fabric.device))
            record |= {"val_accuracy": measured["accuracy"], "val_firing_rate": measured["firing_rate"]}
        history.append(record)
        save_state(state_path, network, optimizer, identity, history)
        write_jsonl(out / "metrics.jsonl", history)
        log(writer, record)
        print(line(record, epochs, title), flush=True)
    writer.close()
    return history


def start(config: RunConfig) -> Fabric:
    """A Fabric on the asked device. Raises ValueError for a GPU that is not there."""
    fabric = Fabric(accelerator=pick_device(config.device), devices=1, precision=PRECISIONS[config.precision])
    fabric.launch()
    return fabric


def parameter_groups(network: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Weight decay on convolution and linear weights only."""
    decayed = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() <= 1]
    return [
        {"params": decayed, "weight_decay": optim.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """Linear warm-up over the first `warmup` part of all steps, then a cosine to zero."""
    rise = round(optim.warmup * steps)
    if step < rise:
        return optim.lr * (step + 1) / rise
    return optim.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def set_learning_rate(optimizer: torch.optim.Optimizer, optim: OptimConfig, step: int, steps: int) -> None:
    """Set the rate of this step on every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(optim, step, steps)


def save_state(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
    history: list[dict[str, Any]],
) -> None:
    """Write what `load_state` needs, whole or not at all."""
    content = {
        "format": STATE_FORMAT,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "identity": identity,
        "history": history,
    }
    with atomic(path) as new:
        torch.save(content, new)


def load_state(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, Any]
) -> list[dict[str, Any]]:
    """Put network and optimizer back and return the history. Raises ValueError for another run's or a damaged file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        stored, history = content["identity"], content["history"]
    except Exception as error:  # whatever a foreign file provokes in the reader
        raise ValueError(f"{path}: not a training state, or a damaged one; remove it to start anew") from error
    if differing := differences(stored, identity):
        raise ValueError(f"{path} belongs to another run: {'; '.join(differing)}. Give another --out, or no --resume")
    network.load_state_dict(content["network"])
    optimizer.load_state_dict(content["optimizer"])
    return history


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The keys in which two nested settings differ, each with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for key in keys for d in differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == new else [f"{path} was {old!r}, is {new!r}"]


def log(writer: SummaryWriter, record: dict[str, Any]) -> None:
    """Send one epoch's record to TensorBoard."""
    for name, value in record["loss"].items():
        writer.add_scalar(f"loss/{name}", value, record["epoch"])
    for name in ("val_accuracy", "val_firing_rate"):
        if record.get(name) is not None:
            writer.add_scalar(name, record[name], record["epoch"])
    writer.flush()


def line(record: dict[str, Any], epochs: int, title: str) -> str:
    """One epoch on one line."""
    terms = " ".join(f"{name} {value:.3f}" for name, value in record["loss"].items() if name != "total")
    parts = [f"{title} epoch {record['epoch']}/{epochs}", f"loss {record['loss']['total']:.3f} ({terms})"]
    if "val_accuracy" in record:
        parts.append(f"val {record['val_accuracy']:.2%}")
    if record.get("val_firing_rate") is not None:
        parts.append(f"rate {record['val_firing_rate']:.3f}")
    return "  ".join([*parts, f"{record['seconds']:.1f} s"])
