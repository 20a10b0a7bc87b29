"""What student.net.json says of an export, and how it is measured: accuracies, cores, cost, one row a layer."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from export import execute
from export import graph as g
from export.images import RealImages
from export.netx_build import describe
from export.verify_netx import Verified
from hardware import chip, estimate, netx_sim
from hardware.bounds import bounds
from hardware.mapping import Mapping
from hardware.net import Net
from train.checkpoint import Checkpoint
from train.record import versions


FORMAT = 2
BATCH = 50


def batches(test: RealImages, title: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images and labels of a data set, with progress on a terminal."""
    for start in tqdm(range(0, len(test), BATCH), desc=title, unit="batch", disable=None, leave=False):
        rows = slice(start, start + BATCH)
        yield test.batch(rows), test.labels[rows]


def float_accuracy(checkpoint: Checkpoint, test: RealImages, *, device: str = "cpu") -> dict[str, Any]:
    """Accuracy in [0, 1] of the student itself, with the images that it was measured on."""
    network, right = checkpoint.network().to(device), 0
    for images, labels in batches(test, "float student"):
        right += int((float_answers(checkpoint, network, images, device) == labels).sum())
    return {"images": len(test), "dataset": test.dataset, "split": test.split, "float": right / len(test)}


def integer_accuracy(twin: g.Graph, test: RealImages, *, device: str = "cpu") -> float:
    """Accuracy in [0, 1] of the integer twin."""
    right = 0
    for images, labels in batches(test, "integer twin"):
        (logits,) = execute.predict(twin, [images], device=device)
        right += int((logits.sum(0).argmax(-1) == labels).sum())
    return right / len(test)


@torch.no_grad()
def float_answers(checkpoint: Checkpoint, network: torch.nn.Module, images: np.ndarray, device: str) -> np.ndarray:
    """The classes that the student names, [B]."""
    logits = network(checkpoint.preprocess(torch.from_numpy(images).to(device)))
    return np.asarray(logits.mean(0).argmax(-1).cpu().numpy())


def on_samples(checkpoint: Checkpoint, twin: g.Graph, test: RealImages, verified: Verified | None) -> dict[str, Any]:
    """Accuracy of the float student, of its twin and of the file itself on the images that the file was run on."""
    if verified is None:
        return {}
    count = verified.logits.shape[1]
    images, labels = test.batch(slice(count)), test.labels[:count]
    (own,) = execute.predict(twin, [images])
    answers = {
        "float": float_answers(checkpoint, checkpoint.network(), images, "cpu"),
        "integer": own.sum(0).argmax(-1),
        "file": verified.logits.sum(0).argmax(-1),
    }
    right = {key: float((answer == labels).mean()) for key, answer in answers.items()}
    return {"images": count, "engine": verified.verdict.engine, **right}


def report(
    net: Net,
    *,
    file: str,
    placed: Mapping,
    calibration: RealImages,
    test: RealImages,
    accuracy: dict[str, Any],
    verified: Verified | None,
    samples: dict[str, Any],
    finetuned: dict[str, Any] | None,
) -> dict[str, Any]:
    """The content of student.net.json."""
    T, window = netx_sim.schedule(net)
    scales = net.meta["scales"]
    cores = {layer.name: layer.cores for layer in placed.layers}
    cost = None
    if verified is not None:
        sent = netx_sim.frames(net, verified.sent, T=T)
        events = estimate.count(net, sent, verified.run)
        cost = estimate.estimate(net, events, prices=chip.load("loihi1"), board=chip.load("loihi2"))
    return {
        "format": FORMAT,
        "file": file,
        "checkpoint_sha256": net.meta["checkpoint_sha256"],
        "chip": placed.chip,
        "T": T,
        "window": window,
        "latency_steps": T + len(net.spiking),
        "input": {**encoding(net), **net.meta["input"], "scale": scales["input"]},
        "scales": {key: scales[key] for key in ("currents", "thresholds")},
        "lif_layers": net.meta["lif_layers"],
        "layers": [{**row, "cores": cores[row["name"]]} for row in describe(net)],
        "mapping": placed.to_json(),
        "risks": [risk for layer in bounds(net, T=T) for risk in layer.risks],
        "calibration": calibration.describe(),
        "accuracy": accuracy,
        "accuracy_on_samples": samples,
        "finetuned": finetuned,
        "verify": verified.verdict.to_json() if verified else None,
        "ok": verified.verdict.ok if verified else None,
        "cost": cost,
        "versions": versions(),
    }


def encoding(net: Net) -> dict[str, Any]:
    """How an image is sent."""
    if net.meta["input"]["event"]:
        return {"encoding": "counts of events, sent at each of the T steps", "bits": 8}
    return {"encoding": "pixels, sent once and held in the current of the first layer", "bits": 8}


def table(said: dict[str, Any]) -> str:
    """The report for a person: one row a layer, then what was measured."""
    width = max(len(row["name"]) for row in said["layers"])
    lines = [
        f"\n{'layer':<{width}} {'shape':>11} {'weights':>10} {'bias max':>9} {'vThMant':>8} {'vDecay':>7} {'cores':>6}"
    ]
    for row in said["layers"]:
        shape = "x".join(map(str, row["shape"]))
        lines.append(
            f"{row['name']:<{width}} {shape:>11} {row['weights']:>10,} {row['bias_max']:>9} "
            f"{row['vThMant']:>8} {row['vDecay']:>7} {row['cores']:>6}"
        )
    lines += [f"risk: {risk}" for risk in said["risks"]]
    accuracy = said["accuracy"]
    words = f"float {accuracy['float']:.2%}, as integers {accuracy['integer']:.2%}"
    if "integer_before" in accuracy:
        words += f" (before fine-tuning {accuracy['integer_before']:.2%})"
    lines.append(f"accuracy on {accuracy['images']} test images: {words}")
    mapping = said["mapping"]
    lines.append(f"on {said['chip']}: {mapping['cores']} cores, {mapping['chips']} chip(s) (a model of the placement)")
    if said["cost"]:
        cost = said["cost"]["per_image"]
        lines.append(
            f"one image (estimate): {cost['synops']:,.0f} synaptic operations, {cost['energy_J'] * 1e6:.1f} uJ at "
            f"Loihi 1's prices, {cost['time_s'] * 1e3:.2f} ms in a stream, {cost['latency_s'] * 1e3:.2f} ms alone"
        )
    if said["ok"] is None:
        lines.append("not verified (--verify none)")
    return "\n".join(lines)
