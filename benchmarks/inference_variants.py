"""The rows of benchmarks/inference.py: how each network answers a batch of images.

Shapes: T time steps, B images, C channels, H rows, W columns, K classes.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import torch
from inference_models import Folded, ann_of, export_ann, naive_unroll, quantize_ann

from export.exits import calibrate
from export.graph import Graph
from export.images import RealImages, real_images
from export.lower import lower
from export.onnx_graph import build_model
from export.onnx_int8 import build_int8
from export.onnx_model import Form, check
from export.to_onnx import OnnxConfig, integers
from serve.anytime import StepModel
from serve.exits import Exit, running_mean, steps_needed
from serve.session import ENV_THREADS, open_session
from train.checkpoint import Checkpoint


BATCH = 50  # images at once where nothing is timed


class Answer(NamedTuple):
    """What a network says of B images."""

    logits: np.ndarray
    """[B, K], of a student the mean over the steps used."""
    steps: np.ndarray
    """Time steps used, [B]."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table."""

    answer: Callable[[np.ndarray], Answer]
    """Images float32 [B, C, H, W] in [0, 1]."""
    varies: bool = False
    """Whether an image's cost depends on the image."""
    trained: bool = True
    """False: its answers mean nothing."""
    about: dict[str, Any] = field(default_factory=dict)
    """What else there is to say; JSON types."""


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Makes the variants of one student; their files stand in `folder`, which must outlive them."""

    checkpoint: Checkpoint
    path: Path
    """student.pt."""
    folder: Path
    threads: int
    teacher: Path
    scales: Path | None
    calibration: int
    tolerance: float
    val_images: int | None
    data_root: Path | None

    def __post_init__(self) -> None:
        check(self.graph, self.checkpoint.labels)

    def make(self, name: str) -> Variant:
        """The variant of this name. Raises ValueError for one that the student cannot have."""
        match name:
            case "spikingjelly":
                network, preprocess = self.checkpoint.network(), self.checkpoint.preprocess
                return self.by_torch(lambda images: network(preprocess(images)))
            case "folded":
                return self.by_torch(Folded(self.graph))
            case "naive":
                return self.by_session(self.saved("naive", lambda: naive_unroll(self.graph).SerializeToString()))
            case "fp32" | "int8":
                return self.by_session(self.model(name, "unrolled"))
            case "anytime_fp32" | "anytime_int8":
                return self.any_time(name.removeprefix("anytime_"))
            case "ann_fp32" | "ann_int8":
                return self.ann(name.removeprefix("ann_"))
        raise ValueError(f"unknown variant {name!r}")

    # What several variants need, made when the first of them does.
    @cached_property
    def graph(self) -> Graph:
        """The student's Graph."""
        return lower(self.checkpoint)

    @cached_property
    def integers(self) -> Any:
        """Its integer twin and the scales."""
        config = OnnxConfig(
            checkpoint=self.path,
            precision="int8",
            scales=self.scales,
            calibration=self.calibration,
            data_root=self.data_root,
        )
        return integers(config, self.checkpoint, self.graph)

    @cached_property
    def validation(self) -> RealImages:
        """The images on which the exits are chosen."""
        return real_images(self.checkpoint, split="val", limit=self.val_images, root=self.data_root)

    def saved(self, name: str, content: Callable[[], bytes]) -> Path:
        """NAME.onnx in the folder, written if it is not there."""
        path = self.folder / f"{name}.onnx"
        if not path.exists():
            path.write_bytes(content())
        return path

    def model(self, precision: str, form: Form) -> Path:
        """The student's exported model."""
        named: Any = {"labels": self.checkpoint.labels, "checkpoint_sha256": self.checkpoint.sha256, "form": form}

        def build() -> bytes:
            if precision == "int8":
                return build_int8(self.graph, *self.integers, **named).SerializeToString()
            return build_model(self.graph, **named).SerializeToString()

        return self.saved(f"{precision}.{form}", build)

    def open(self, model: Path) -> ort.InferenceSession:
        """A session as the server opens it, on the CPU."""
        with environment(ENV_THREADS, str(self.threads)):
            return open_session(model, provider="cpu")

    def by_torch(self, network: Callable[[torch.Tensor], torch.Tensor]) -> Variant:
        """Images to logits [T, B, K] in torch."""

        def answer(images: np.ndarray) -> Answer:
            with torch.no_grad():
                return every_step(network(torch.from_numpy(images)).numpy())

        return Variant(answer=answer)

    def by_session(self, model: Path, **options: Any) -> Variant:
        """`image` to `logits` [T, B, K] or [B, K] in onnxruntime, with all else that the model gives."""
        session = self.open(model)
        place = [output.name for output in session.get_outputs()].index("logits")
        return Variant(answer=lambda images: every_step(session.run(None, {"image": images})[place]), **options)

    def any_time(self, precision: str) -> Variant:
        """The step form under the exit that a bundle would have."""
        exit, about = self.exit(precision)
        model = StepModel(self.open(self.model(precision, "step")))

        def answer(images: np.ndarray) -> Answer:
            traces = model.run(images, exit)
            logits = np.stack([trace.logits.mean(0) for trace in traces])
            return Answer(logits, np.array([len(trace.logits) for trace in traces]))

        return Variant(answer=answer, varies=True, about={"exit": about})

    def exit(self, precision: str) -> tuple[Exit, dict[str, Any]]:
        """The exit chosen on validation images alone, and what it did with them."""
        session, real = self.open(self.model(precision, "unrolled")), self.validation
        starts = range(0, len(real), BATCH)
        parts = [session.run(["logits"], {"image": real.batch(slice(i, i + BATCH))})[0] for i in starts]
        logits = np.concatenate(parts, axis=1)
        exit = calibrate(logits, real.labels, tolerance=self.tolerance)
        steps, right = steps_needed(logits, exit), running_mean(logits).argmax(-1) == real.labels
        return exit, {
            "rule": exit.rule,
            "threshold": exit.threshold,
            "relax": exit.relax,
            "tolerance": self.tolerance,
            "calibrated_on": {"dataset": real.dataset, "split": real.split, "images": len(real)},
            "val_mean_steps": float(steps.mean()),
            "val_accuracy": float(right[steps - 1, np.arange(len(steps))].mean()),
            "val_accuracy_of_all_steps": float(right[-1].mean()),
        }

    def ann(self, precision: str) -> Variant:
        """The same network with ReLU."""
        ann, weights = ann_of(self.checkpoint, self.teacher)
        model = self.folder / "ann.onnx"
        if not model.exists():
            export_ann(ann, model)
        if precision == "int8":
            images = real_images(self.checkpoint, split="train", limit=self.calibration, root=self.data_root).images
            quantize_ann(model, self.folder / "ann.int8.onnx", images)
            model = self.folder / "ann.int8.onnx"
        return self.by_session(model, trained=weights == "teacher", about={"weights": weights})


def every_step(logits: np.ndarray) -> Answer:
    """The answer of a network that used all its steps: logits [T, B, K], or [B, K] of an ANN, which has one."""
    if logits.ndim == 2:
        return Answer(logits, np.ones(len(logits), np.int64))
    return Answer(logits.mean(0), np.full(logits.shape[1], len(logits)))


def answers(variant: Variant, images: np.ndarray, *, batch_size: int = BATCH) -> Answer:
    """The answer to any number of images."""
    parts = [variant.answer(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
    return Answer(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """One environment variable, for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
