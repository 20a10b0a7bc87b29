"""`python -m export.to_onnx CKPT [--precision int8] [--form step]`: write a student as an ONNX model, verified.

The model is written aside, run on real test images and held against the checkpoint; it gets its name only if it passes.
fp32 and fp16 are the student; int8 is its integer twin, whose spikes are those of the .net file, bit for bit.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from export.verify import NotVerified, Verdict, judged, named, table
from train import cli


EVALUATOR_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class OnnxConfig:
    """What to write, and on how many images to verify it."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """student.pt, as `python -m train.distill` writes it."""
    out: Path | None = None
    """The file to write; default: the checkpoint's name with .onnx, before it .int8 or .fp16 and .step."""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """fp32: the student. fp16: half precision for a GPU, membranes in float32. int8: the chip's integers."""
    form: Literal["unrolled", "step"] = "unrolled"
    """unrolled: all T steps in one run. step: one step, states in and out, for students that stop when sure."""
    samples: int = 64
    """Verify on the first N test images."""
    scales: Path | None = None
    """int8: take the scales of this exported .net file; default: choose them as `python -m export.to_loihi` does."""
    calibration: int = 64
    """int8: training images on which the scales are chosen."""
    data_root: Path | None = None
    """Where data sets live; default: the environment variable TSERVE_DATA, else where it was trained from."""

    def __post_init__(self) -> None:
        for name in ("samples", "calibration"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 image, got {getattr(self, name)}")
        named(self.out, ".onnx")
        if self.scales is not None and self.precision != "int8":
            raise ValueError(f"--scales is for --precision int8, not {self.precision}")


@dataclass(frozen=True, kw_only=True)
class Result:
    """The written file and what the verification found."""

    path: Path
    verdict: Verdict
    """In onnxruntime."""
    evaluated: Verdict | None
    """In onnx's reference evaluator, on a few images; None for fp16, which it sums in half precision."""
    metadata: dict[str, Any]
    """What the model says about itself."""


def main(config: OnnxConfig) -> Result:
    """Write the ONNX model. Raises NotVerified, and leaves what was there before, if it fails its verification.

    Raises NotForLoihi (a ValueError) for int8 of a student that has no integer twin.
    """
    from export.images import real_images
    from export.lower import lower
    from export.onnx_graph import build_model
    from export.onnx_int8 import build_int8
    from export.verify_onnx import verify_onnx
    from train import record
    from train.checkpoint import Checkpoint
    from train.engine import keep_freed_memory

    keep_freed_memory()  # choosing scales takes and returns large tensors all the time
    checkpoint = Checkpoint.load_student(config.checkpoint)
    graph = lower(checkpoint)
    named: Any = {"labels": checkpoint.labels, "checkpoint_sha256": checkpoint.sha256, "form": config.form}
    if config.precision == "int8":
        model = build_int8(graph, *integers(config, checkpoint, graph), **named)
    else:
        model = build_model(graph, precision=config.precision, **named)
    real = real_images(checkpoint, split="test", limit=config.samples, root=config.data_root)
    path = config.out or default_path(config)
    with record.atomic(path) as new:
        new.write_bytes(model.SerializeToString(deterministic=True))
        # onnx's own evaluator is slow and independent of onnxruntime: a few images say whether the file means the same.
        evaluated = None
        if config.precision != "fp16":
            evaluated = verify_onnx(checkpoint, new, real.images[:EVALUATOR_IMAGES], engine="onnx", name=path.name)
        verdict = verify_onnx(checkpoint, new, real.images, labels=real.labels, name=path.name)
        for found in (evaluated, verdict):
            if found is not None and not found.ok:
                raise NotVerified(found)
    about = {item.key: json.loads(item.value) for item in model.metadata_props}
    return Result(path=path, verdict=verdict, evaluated=evaluated, metadata=about)


def default_path(config: OnnxConfig) -> Path:
    """student.onnx, student.int8.onnx, student.step.onnx, student.int8.step.onnx and so on, beside the checkpoint."""
    precision = "" if config.precision == "fp32" else f".{config.precision}"
    form = "" if config.form == "unrolled" else f".{config.form}"
    return config.checkpoint.with_suffix(f"{precision}{form}.onnx")


def integers(config: OnnxConfig, checkpoint: Any, graph: Any) -> Any:
    """The integer twin and its scales: those of a .net file, or chosen on training images."""
    from export.images import real_images
    from export.prepare import prepare
    from export.quantize import quantize
    from export.verify_netx import twin_with_scales
    from hardware import netx
    from hardware.net import Limits

    prepare(graph)  # what has no integer twin is reported before any data is read
    if config.scales is not None:
        return twin_with_scales(checkpoint, netx.read(config.scales), config.scales.name)
    calibration = real_images(checkpoint, split="train", limit=config.calibration, root=config.data_root)
    return quantize(graph, calibration.images, Limits.load("loihi2"))


@judged
def command(argv: list[str]) -> int:
    """Parse, run, print what the verification found, and say what was written."""
    config = cli.parse(OnnxConfig, argv=argv, prog="python -m export.to_onnx", description=__doc__ or "")
    result = main(config)
    print(table(result.verdict))
    print(result.verdict)
    if result.evaluated is not None:
        print(result.evaluated)
    print(f"\nwritten: {result.path} ({result.path.stat().st_size / 1e6:.1f} MB)")
    print(f"next:    python -m export.verify {config.checkpoint} {result.path}")
    print(f"         python -m export.bundle {config.checkpoint}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
