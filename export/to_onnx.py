"""`python -m export.to_onnx CKPT [--out PATH] [--samples 64]`: write a student as an ONNX model, verified.

The model is written aside, run on real test images and held against the checkpoint; it gets its name only if it passes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from export.verify import NotVerified, Verdict, judged, table
from train import cli


EVALUATOR_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class OnnxConfig:
    """What to write, and on how many images to verify it."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """student.pt, as `python -m train.distill` writes it."""
    out: Path | None = None
    """The file to write; default: the checkpoint's name with .onnx."""
    precision: Literal["fp32"] = "fp32"
    """Type of weights and membranes."""
    samples: int = 64
    """Verify on the first N test images."""
    data_root: Path | None = None
    """Where data sets live; default: the environment variable TSERVE_DATA, else where it was trained from."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1 image, got {self.samples}")


@dataclass(frozen=True, kw_only=True)
class Result:
    """The written file and what the verification found."""

    path: Path
    verdict: Verdict
    """In onnxruntime."""
    evaluated: Verdict
    """In onnx's reference evaluator, on a few images."""
    metadata: dict[str, Any]
    """What the model says about itself."""


def main(config: OnnxConfig) -> Result:
    """Write the ONNX model. Raises NotVerified, and leaves what was there before, if it fails its verification."""
    from export.images import real_images
    from export.lower import lower
    from export.onnx_graph import build_model, metadata
    from export.verify_onnx import verify_onnx
    from train import record
    from train.checkpoint import Checkpoint

    checkpoint = Checkpoint.load_student(config.checkpoint)
    graph = lower(checkpoint)
    about = metadata(graph, labels=checkpoint.labels, checkpoint_sha256=checkpoint.sha256)
    model = build_model(graph, labels=checkpoint.labels, checkpoint_sha256=checkpoint.sha256)
    real = real_images(checkpoint, split="test", limit=config.samples, root=config.data_root)
    path = config.out or config.checkpoint.with_suffix(".onnx")
    with record.atomic(path) as new:
        new.write_bytes(model.SerializeToString(deterministic=True))
        # onnx's own evaluator is slow and independent of onnxruntime: a few images say whether the file means the same.
        evaluated = verify_onnx(checkpoint, new, real.images[:EVALUATOR_IMAGES], engine="onnx", name=path.name)
        verdict = verify_onnx(checkpoint, new, real.images, name=path.name)
        for found in (evaluated, verdict):
            if not found.ok:
                raise NotVerified(found)
    return Result(path=path, verdict=verdict, evaluated=evaluated, metadata=about)


@judged
def command(argv: list[str]) -> int:
    """Parse, run, print what the verification found, and say what was written."""
    config = cli.parse(OnnxConfig, argv=argv, prog="python -m export.to_onnx", description=__doc__ or "")
    result = main(config)
    print(table(result.verdict))
    print(result.verdict)
    print(result.evaluated)
    print(f"\nwritten: {result.path} ({result.path.stat().st_size / 1e6:.1f} MB)")
    print(f"next:    python -m export.verify {config.checkpoint} {result.path}")
    print(f"         python -m export.bundle {config.checkpoint}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
