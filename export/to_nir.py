"""`python -m export.to_nir CKPT`: write a student in NIR, the exchange format of spiking simulators and chips.

The file is written aside, read back, executed on real test images by NIR's equations and held against the checkpoint,
spike for spike in float64; it gets its name only if it passes. docs/nir.md says what the file holds and who reads it.
"""

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from export.verify import NotVerified, Verdict, judged, named, table
from train import cli


@dataclass(frozen=True, kw_only=True)
class NirConfig:
    """Export a student to NIR."""

    checkpoint: Annotated[Path, Positional]
    """The student.pt to export."""
    out: Path | None = None
    """The .nir file to write; default: the checkpoint's name with .nir."""
    samples: int = 16
    """Test images on which the file is run and compared."""
    data_root: Path | None = None
    """Where data sets live; default: the environment variable TSERVE_DATA, else where it was trained from."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1 image, got {self.samples}")
        named(self.out, ".nir")

    @property
    def path(self) -> Path:
        """The file that is written."""
        return self.out or self.checkpoint.with_suffix(".nir")


@dataclass(frozen=True, kw_only=True)
class Result:
    """The written file and what the verification found."""

    path: Path
    verdict: Verdict
    strict_flips: int
    """Spikes that flip in a simulator that fires at h > v_threshold, not at h >= v_threshold."""
    report: dict[str, Any]
    """What student.nir.json holds."""


def main(config: NirConfig) -> Result:
    """Write the file and its report. Raises NotVerified, and leaves what was there before, if it fails.

    Raises UnsupportedLayer (a ValueError), before any data is read, for a student that NIR cannot say.
    """
    import nir

    from export.images import real_images
    from export.lower import lower
    from export.nir_graph import DT, build
    from export.verify_nir import verify_nir
    from train.checkpoint import Checkpoint
    from train.record import atomic, versions, write_json

    checkpoint = Checkpoint.load_student(config.checkpoint)
    graph = lower(checkpoint)
    built = build(graph, labels=checkpoint.labels, checkpoint_sha256=checkpoint.sha256)
    real = real_images(checkpoint, split="test", limit=config.samples, root=config.data_root)
    path = config.path
    with atomic(path) as new:
        content = io.BytesIO()  # on a full disk the HDF5 library itself breaks off with a segmentation fault
        nir.write(content, built)
        new.write_bytes(content.getbuffer())
        verdict, strict_flips = verify_nir(checkpoint, new, real.images, name=path.name)
        if not verdict.ok:
            raise NotVerified(verdict)
    report = {
        "format": 1,
        "file": path.name,
        "checkpoint_sha256": checkpoint.sha256,
        "T": graph.T,
        "dt": DT,
        "nodes": [
            {"name": name, "kind": type(node).__name__, "output": output_shape(node)}
            for name, node in built.nodes.items()
        ],
        "edges": len(built.edges),
        "on": real.describe(),
        "verify": verdict.to_json(),
        "strict_threshold_flips": strict_flips,
        "ok": verdict.ok,
        "versions": versions(),
    }
    write_json(path.with_name(path.name + ".json"), report)
    return Result(path=path, verdict=verdict, strict_flips=strict_flips, report=report)


def output_shape(node: Any) -> list[int]:
    """The shape of what a NIR node gives, without T and B."""
    (shape,) = node.output_type.values()
    return [int(side) for side in shape]


@judged
def command(argv: list[str]) -> int:
    """Parse, write, print what the verification found; 1 where it failed."""
    config = cli.parse(NirConfig, argv=argv, prog="python -m export.to_nir", description=__doc__ or "")
    result = main(config)
    print(table(result.verdict))
    print(result.verdict)
    print(f"a simulator that fires at h > v_threshold, not at >=, would flip {result.strict_flips:,} spikes here")
    print(f"\nwritten: {result.path} ({result.path.stat().st_size / 1e6:.1f} MB), {result.path.name}.json")
    print("read by: SpikingJelly, snnTorch and others; docs/nir.md has a snippet for each")
    print(f"next:    python -m export.bundle {config.checkpoint}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
