"""`python -m export.to_loihi CKPT`: quantise a student, check the chip's limits, write netx, prove it in Lava.

The .net file is written aside, read back, run on real images and held against the integer twin, bit for bit; only then
does it get its name. What the twin's accuracy is on the whole test split stands in the JSON beside it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from export.verify import NotVerified, judged
from train import cli


@dataclass(frozen=True, kw_only=True)
class LoihiConfig:
    """Export a student to Lava-DL's netx format for Loihi 2."""

    checkpoint: Annotated[Path, Positional]
    """The student.pt to export."""
    out: Path | None = None
    """The .net file to write; default: student.net beside the checkpoint."""
    samples: int = 16
    """Test images on which the file is run and compared."""
    calibration: int = 64
    """Training images on which the integer scales are chosen."""
    verify: Literal["lava", "reference", "none"] = "lava"
    """lava: Lava's fixed-point simulator; reference: our numpy model of it; none: write without running."""
    data_root: Path | None = None
    """Where data sets live; default: the environment variable TSERVE_DATA, else where it was trained from."""

    def __post_init__(self) -> None:
        for name in ("samples", "calibration"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def main(config: LoihiConfig) -> dict[str, Any]:
    """Export, verify and measure; return what student.net.json says. Its "ok" is None where nothing was verified.

    Raises NotForLoihi (a ValueError) for a student that netx cannot express, NotVerified where the file does not do
    what the integer twin does; nothing is written then.
    """
    from export import netx_build
    from export.images import real_images
    from export.lower import lower
    from export.quantize import prepare, quantize
    from export.verify_netx import verify_netx
    from hardware import lava, netx
    from hardware.net import Limits, check
    from train.checkpoint import Checkpoint
    from train.record import atomic, versions, write_json

    checkpoint = Checkpoint.load_student(config.checkpoint)
    graph = lower(checkpoint)
    prepare(graph)  # what cannot be expressed is reported before any data is read
    if config.verify == "lava":
        lava.python()  # and so is a simulator that is not there
    calibration = real_images(checkpoint, split="train", limit=config.calibration, root=config.data_root)
    test = real_images(checkpoint, split="test", root=config.data_root)
    limits = Limits.load("loihi2")
    twin, scales = quantize(graph, calibration.images, limits)
    net = netx_build.to_net(twin, scales, labels=checkpoint.labels, checkpoint_sha256=checkpoint.sha256)
    check(net, limits)
    out = config.out or config.checkpoint.parent / "student.net"
    report: dict[str, Any] = {
        "format": 1,
        "file": out.name,
        "checkpoint_sha256": checkpoint.sha256,
        "chip": limits.chip,
        "T": graph.T,
        "window": net.meta["window"],
        "scales": net.meta["scales"],
        "layers": netx_build.describe(net),
        "calibration": calibration.describe(),
        "accuracy": netx_build.accuracies(checkpoint, twin, test),
        "verify": None,
        "ok": None,
        "versions": versions(),
    }
    with atomic(out) as new:
        netx.write(net, new)
        if config.verify != "none":
            verdict = verify_netx(checkpoint, new, test.images[: config.samples], engine=config.verify, name=out.name)
            report |= {"verify": verdict.to_json(), "ok": verdict.ok}
            if not verdict.ok:
                raise NotVerified(verdict)
            print(verdict)
    write_json(out.with_name(out.name + ".json"), report)
    return report


@judged
def command(argv: list[str]) -> int:
    """Parse, export, print the table; 1 where verification failed."""
    config = cli.parse(LoihiConfig, argv=argv, prog="python -m export.to_loihi", description=__doc__ or "")
    report = main(config)
    print(f"\n{'layer':<28} {'shape':>14} {'weights':>10} {'bias max':>9} {'vThMant':>8} {'vDecay':>7}")
    for row in report["layers"]:
        shape = "x".join(map(str, row["shape"]))
        print(
            f"{row['name']:<28} {shape:>14} {row['weights']:>10,} {row['bias_max']:>9} "
            f"{row['vThMant']:>8} {row['vDecay']:>7}"
        )
    accuracy = report["accuracy"]
    both = f"float {accuracy['float']:.2%}, as integers {accuracy['integer']:.2%}"
    print(f"accuracy on {accuracy['images']} test images: {both}")
    if report["ok"] is None:
        print("not verified (--verify none)")
    out = config.out or config.checkpoint.parent / "student.net"
    print(f"\nwritten: {out}, {out.name}.json")
    print(f"next:    python -m export.verify {config.checkpoint} {out}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
