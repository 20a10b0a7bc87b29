"""When a student may stop: thresholds chosen on validation images, and what they are worth on test images.

`python -m export.exits CKPT MODEL.onnx` measures the exported file itself, in onnxruntime, and writes exits.json and
exits.png. `python -m export.bundle` does it for every model of a bundle. The rules are those that the server applies:
serve/exits.py.

Shapes: T time steps, N images, K classes, M spike-driven synaptic layers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from tyro.conf import Positional

from serve.exits import RULES, Exit, first_sure, running_mean, steps_needed, sureness_by_step
from train import cli


if TYPE_CHECKING:
    from export.images import RealImages
    from hardware.chip import Chip


TOLERANCE = 0.005
STANDARD_ERRORS = 2.0
"""How many are added to the loss that is seen."""
THRESHOLDS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
"""Rows of the table, beside the one that is chosen."""
RELAX = (0.0, 0.5, 1.0, 1.5, 2.0)
"""Growths of the allowed doubt that are tried."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What a model did with N images."""

    logits: np.ndarray
    """[T, N, K], of each step alone."""
    labels: np.ndarray
    """[N]."""
    energy_J: np.ndarray
    """[T, N]: joules of an image that stops after step t."""
    on: dict[str, Any]
    """Which images."""


def correct(measured: Measured) -> np.ndarray:
    """Whether an image that stops after step t is answered right, bool [T, N]."""
    return np.asarray(running_mean(measured.logits).argmax(-1) == measured.labels)


def calibrate(logits: np.ndarray, labels: np.ndarray, *, tolerance: float = TOLERANCE) -> Exit:
    """The rule and threshold with the fewest steps that lose at most `tolerance` of the accuracy of all T steps.

    logits [T, N, K], labels [N]. Other images may lose more than these: what is held against the tolerance is the loss
    plus STANDARD_ERRORS of it. The difference is paired: each image counts as 1 if it is right after all steps only, as
    -1 if it is right early only, else as 0. With n that are not 0, the mean of N has a standard error of about
    sqrt(n) / N; one more is assumed, so that few images cannot show more than they can know: at a tolerance of 0.005
    fewer than 400 show nothing. A threshold of 1, which loses nothing, is the last resort.

    Two standard errors are 97.7 % of confidence for one threshold, but the best of thousands is also the luckiest. Of
    120 choices on 5,000 images drawn anew from 15,000 (three models of CIFAR-10) 2 lost more than the tolerance on all
    15,000; with 1.64 standard errors 10 did, with one 25.
    """
    right = running_mean(logits).argmax(-1) == labels
    sure = {rule: sureness_by_step(logits, rule) for rule in RULES}
    best, fewest = Exit("confidence", 1.0), float(len(logits))
    for rule, relax in product(RULES, RELAX):
        for threshold in candidates(sure[rule], relax):
            exit = Exit(rule, threshold, relax)
            steps = first_sure(sure[rule], exit)
            lost = right[-1].astype(int) - right[steps - 1, np.arange(len(labels))]
            error = np.sqrt(np.abs(lost).sum() + 1) / len(lost)
            if steps.mean() < fewest and max(0.0, lost.mean()) + STANDARD_ERRORS * error <= tolerance:
                best, fewest = exit, float(steps.mean())
    return best


def candidates(sureness: np.ndarray, relax: float, *, count: int = 200) -> list[float]:
    """Thresholds at which equal shares of the images stop, at most `count`, in [0, 1]; sureness: [T, N]."""
    doubt = (1 - sureness[:-1]) / np.arange(1, len(sureness))[:, None] ** relax
    if not doubt.size:
        return []
    return np.unique(np.clip(1 - np.quantile(doubt, np.linspace(0, 1, count)), 0, 1)).tolist()


def row(measured: Measured, exit: Exit) -> dict[str, float]:
    """What an exit is worth on these images: mean steps, accuracy, joules an image."""
    steps = steps_needed(measured.logits, exit)
    last = (steps - 1, np.arange(len(steps)))
    return {
        "mean_steps": float(steps.mean()),
        "accuracy": float(correct(measured)[last].mean()),
        "energy_J": float(measured.energy_J[last].mean()),
    }


def report(test: Measured, validation: Measured | None, *, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """The chosen exit and the table of others by the same rule, JSON types.

    Without validation images nothing can be chosen: the exit is then after all T steps.
    """
    chosen = Exit("confidence", 1.0)
    if validation is not None:
        chosen = calibrate(validation.logits, validation.labels, tolerance=tolerance)
    rows = []
    for threshold in sorted({*THRESHOLDS, chosen.threshold}):
        exit = replace(chosen, threshold=threshold)
        seen = row(validation, exit) if validation is not None else {}
        rows.append(
            {
                "threshold": threshold,
                **row(test, exit),
                "val_mean_steps": seen.get("mean_steps"),
                "val_accuracy": seen.get("accuracy"),
            }
        )
    return {
        "rule": chosen.rule,
        "threshold": chosen.threshold,
        "relax": chosen.relax,
        "tolerance": tolerance,
        "calibrated_on": validation.on if validation is not None else None,
        "measured_on": test.on,
        "accuracy_by_T": correct(test).mean(axis=1).tolist(),
        "table": rows,
        "curves": {
            **{rule: curve(test, Exit(rule, 1.0)) for rule in RULES},
            f"{chosen.rule}, relax {chosen.relax:g}": curve(test, chosen),
        },
    }


def curve(measured: Measured, exit: Exit) -> list[dict[str, float]]:
    """Mean steps and accuracy over the thresholds of a rule, for the plot."""
    tried = candidates(sureness_by_step(measured.logits, exit.rule), exit.relax, count=33)
    points = [row(measured, replace(exit, threshold=threshold)) for threshold in (0.0, *tried, 1.0)]
    unique = {point["mean_steps"]: point for point in points}
    return [unique[steps] for steps in sorted(unique)]


def measure(model: Path, real: RealImages, *, prices: tuple[float, float, float], batch_size: int = 64) -> Measured:
    """Run an unrolled model over images in onnxruntime on the CPU.

    prices: joules of an addition and of a multiplication, and the multiplications of an image before the first spike.
    Raises ValueError for a model of another form.
    """
    import onnxruntime
    from tqdm import tqdm

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    if about.get("form") != "unrolled":
        raise ValueError(f"{model}: the form is {about.get('form')!r}; exits are measured on an unrolled model")
    starts = range(0, len(real), batch_size)
    outputs = [
        session.run(["logits", "taps"], {"image": real.batch(slice(start, start + batch_size))})
        for start in tqdm(starts, desc=f"{real.split} images", leave=False, disable=not sys.stderr.isatty())
    ]
    logits, taps = (np.concatenate(parts, axis=1) for parts in zip(*outputs, strict=True))
    return Measured(
        logits=logits,
        labels=real.labels,
        energy_J=joules(taps, about["synapses"], prices),
        on={"dataset": real.dataset, "split": real.split, "images": len(real)},
    )


def joules(taps: np.ndarray, synapses: Sequence[dict[str, Any]], prices: tuple[float, float, float]) -> np.ndarray:
    """Energy [T, N] of images that stop after step t, from taps [T, N, M]; prices as in `measure`."""
    ac_J, mac_J, static_macs = prices
    each = np.array([synapse["sops_per_tap"] * (ac_J if synapse["kind"] == "ac" else mac_J) for synapse in synapses])
    return np.asarray(np.cumsum(taps.astype(np.float64) @ each, axis=0) + static_macs * mac_J)


def short(content: dict[str, Any]) -> dict[str, Any]:
    """A report without the curves of the plot."""
    return {key: value for key, value in content.items() if key != "curves"}


def stamp(model: Path, content: dict[str, Any]) -> None:
    """Put a report into the metadata of a model, under `exits`."""
    import onnx
    from onnx import helper

    from train.record import atomic

    loaded = onnx.load(model)
    known = {item.key: item.value for item in loaded.metadata_props}
    helper.set_model_props(loaded, {**known, "exits": json.dumps(short(content))})
    with atomic(model) as new:
        new.write_bytes(loaded.SerializeToString(deterministic=True))


@dataclass(frozen=True, kw_only=True)
class ExitsConfig:
    """Measure when a student may stop."""

    checkpoint: Annotated[Path, Positional]
    """The student.pt that the model was exported from."""
    model: Annotated[Path, Positional]
    """An unrolled .onnx file of it."""
    tolerance: float = TOLERANCE
    """Largest loss of accuracy against all T steps on validation images, two standard errors included."""
    chip: str = "cmos45nm"
    """Whose prices (hardware/chips)."""
    images: int = 0
    """Validation and test images, the first ones of each; 0: all."""
    data_root: Path | None = None
    """Where data sets live; default: the environment variable TSERVE_DATA, else where it was trained from."""
    out: Path | None = None
    """Folder to write to; default: the model's."""

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance <= 1:
            raise ValueError(f"tolerance must be in [0, 1], got {self.tolerance}")
        if self.images < 0:
            raise ValueError(f"images must not be negative, got {self.images}")


def splits(checkpoint: Any, *, images: int, root: Path | None) -> tuple[RealImages, RealImages | None]:
    """Test images, and validation images where the student was trained with some kept apart."""
    from export.images import real_images

    test = real_images(checkpoint, split="test", limit=images or None, root=root)
    if not checkpoint.provenance["config"]["data"].get("val_fraction"):
        return test, None
    return test, real_images(checkpoint, split="val", limit=images or None, root=root)


def prices_of(checkpoint: Any, chip: Chip) -> tuple[float, float, float]:
    """Joules of an addition and a multiplication on a chip, and an image's multiplications before the first spike."""
    from export import graph as g
    from export.counts import dense_macs
    from export.lower import lower

    graph = lower(checkpoint)
    static = g.is_static(graph)
    before = (node for node in graph.synapses if static[node.inputs[0]])
    macs = sum(dense_macs(node, graph[node.inputs[0]].shape) for node in before)
    return chip["energy.ac_fp32"].value, chip["energy.mac_fp32"].value, float(macs)


def main(config: ExitsConfig) -> dict[str, Any]:
    """Measure, choose, and write exits.json and exits.png."""
    from export.exits_view import plot
    from export.verify_onnx import load
    from hardware import chip
    from train import record
    from train.checkpoint import Checkpoint

    checkpoint = Checkpoint.load_student(config.checkpoint)
    load(config.model, checkpoint, config.model.name)
    prices = prices_of(checkpoint, chip.load(config.chip))
    test, validation = splits(checkpoint, images=config.images, root=config.data_root)
    seen = measure(config.model, validation, prices=prices) if validation is not None else None
    content = report(measure(config.model, test, prices=prices), seen, tolerance=config.tolerance)
    out = config.out or config.model.parent
    record.write_json(out / "exits.json", {config.model.name: content, "checkpoint_sha256": checkpoint.sha256})
    with record.atomic(out / "exits.png") as new:
        plot({config.model.name: content}, new)
    return content


def command(argv: list[str]) -> None:
    """Parse, measure, print the table."""
    from export.exits_view import table

    config = cli.parse(ExitsConfig, argv=argv, prog="python -m export.exits", description=__doc__ or "")
    content = main(config)
    print(table(content))
    out = config.out or config.model.parent
    print(f"\nwritten: {out / 'exits.json'}\n         {out / 'exits.png'}")
    print(f"next:    python -m export.bundle {config.checkpoint}")


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
