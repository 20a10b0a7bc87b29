"""`python -m export.to_loihi CKPT`: quantise a student, check the chip's limits, write netx, prove it in Lava.

The .net file is written aside, read back, run on real images and held against the integer twin, bit for bit; only then
does it get its name. The JSON beside it says what the file holds, what it was measured to do, and what it is expected
to cost. `--finetune N` first trains the student for N epochs as the chip computes it (export/finetune.py).
"""

import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from export.verify import NotVerified, judged, named
from train import cli


@dataclass(frozen=True, kw_only=True)
class LoihiConfig:
    """Export a student to Lava-DL's netx format for Loihi 2."""

    checkpoint: Annotated[Path, Positional]
    """The student.pt to export."""
    out: Path | None = None
    """The .net file to write; default: student.net beside the checkpoint."""
    samples: int = 16
    """Test images on which the file is run and compared, step by step and layer by layer."""
    calibration: int = 64
    """Training images on which the integer scales are chosen."""
    test_images: int = 1000
    """Test images on which the accuracy as integers is measured, the first ones; 0: all."""
    verify: Literal["lava", "reference", "none"] = "lava"
    """lava: Lava's fixed-point simulator; reference: our numpy model of it; none: write without running."""
    finetune: int = 0
    """Epochs of training with the integer network in the forward pass; the result is student.finetuned.pt."""
    finetune_lr: float = 0.002
    """Peak learning rate of the fine-tuning."""
    teacher: str | None = None
    """Teacher of the fine-tuning; default: the one that the student was distilled from where its file is still in its
    place, otherwise the student itself."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the integer network is fine-tuned and its accuracy measured; auto takes a GPU where there is one."""
    data_root: Path | None = None
    """Where data sets live; default: the environment variable TSERVE_DATA, else where it was trained from."""

    def __post_init__(self) -> None:
        for name in ("samples", "calibration"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("test_images", "finetune"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        named(self.out, ".net")
        if not self.finetune_lr > 0:
            raise ValueError(f"finetune_lr must be greater than 0, got {self.finetune_lr}")
        if self.teacher is not None and not self.finetune:
            raise ValueError("--teacher is for fine-tuning; say for how many epochs: --finetune N")


def main(config: LoihiConfig) -> dict[str, Any]:
    """Export, verify and measure; return what student.net.json says. Its "ok" is None where nothing was verified.

    Raises NotForLoihi (a ValueError) for a student that netx cannot express, MappingError (another) for one that no
    number of cores can hold, NotVerified where the file does not do what the integer twin does; nothing is written
    then.
    """
    from export import loihi_report, netx_build
    from export.images import real_images
    from export.lower import lower
    from export.prepare import prepare
    from export.quantize import quantize
    from export.scales import rebuild
    from export.sequence import sequence
    from export.verify_netx import verify_netx
    from hardware import chip, lava, netx
    from hardware.mapping import place
    from hardware.net import Limits, check
    from train.checkpoint import Checkpoint
    from train.engine import keep_freed_memory
    from train.metrics import pick_device
    from train.record import atomic, write_json

    device = pick_device(config.device)
    keep_freed_memory()
    checkpoint = Checkpoint.load_student(config.checkpoint)
    graph = lower(checkpoint)
    sequence(prepare(graph))  # what cannot be expressed is reported before any data is read
    if config.verify == "lava":
        lava.python()  # and so is a simulator that is not there
    calibration = real_images(checkpoint, split="train", limit=config.calibration, root=config.data_root)
    test = real_images(checkpoint, split="test", limit=config.test_images or None, root=config.data_root)
    limits = Limits.load("loihi2")
    twin, scales = quantize(graph, calibration.images, limits)
    out = config.out or config.checkpoint.parent / "student.net"
    accuracy = loihi_report.float_accuracy(checkpoint, test, device=device)
    with ExitStack() as files:
        tuned = None
        if config.finetune:
            accuracy["integer_before"] = loihi_report.integer_accuracy(twin, test, device=device)
            path = files.enter_context(atomic(finetuned_path(out)))
            tuned, checkpoint, scales = finetuned(config, checkpoint, graph, scales, path, device=device)
            twin = rebuild(prepare(lower(checkpoint)), scales)
        net = netx_build.to_net(twin, scales, labels=checkpoint.labels, checkpoint_sha256=checkpoint.sha256)
        check(net, limits)
        placed = place(net, chip.load(limits.chip))
        accuracy["integer"] = loihi_report.integer_accuracy(twin, test, device=device)
        new = files.enter_context(atomic(out))
        netx.write(net, new)
        verified = None
        if config.verify != "none":
            rows = slice(config.samples)
            verified = verify_netx(checkpoint, new, test.batch(rows), engine=config.verify, name=out.name)
            if not verified.verdict.ok:
                raise NotVerified(verified.verdict)
            print(verified.verdict)
        report = loihi_report.report(
            net,
            file=out.name,
            placed=placed,
            calibration=calibration,
            test=test,
            accuracy=accuracy,
            verified=verified,
            samples=loihi_report.on_samples(checkpoint, twin, test, verified),
            finetuned=tuned,
        )
        write_json(out.with_name(out.name + ".json"), report)
    return report


def finetuned_path(out: Path) -> Path:
    """Where the fine-tuned checkpoint of a .net file stands."""
    return out.with_name(f"{out.stem}.finetuned.pt")


def finetuned(config: LoihiConfig, checkpoint: Any, graph: Any, scales: Any, path: Path, *, device: str) -> Any:
    """What is said about the fine-tuning, the fine-tuned student, written to `path`, and its scales."""
    from export import finetune
    from export.prepare import prepare
    from train.checkpoint import Checkpoint
    from train.evaluate import dataset_of

    dataset = dataset_of(checkpoint, root=config.data_root)
    settings = finetune.FinetuneConfig(epochs=config.finetune, lr=config.finetune_lr)
    teacher, taught_by = finetune.find_teacher(config.teacher, config.checkpoint, checkpoint, dataset)
    print(f"fine-tuning for {config.finetune} epochs under {taught_by}")
    student, scales = finetune.finetune(
        checkpoint, graph, prepare(graph), scales, dataset=dataset, teacher=teacher, config=settings, device=device
    )
    student.save(path)
    student = Checkpoint.load_student(path)
    about = {
        "file": finetuned_path(config.out or config.checkpoint.parent / "student.net").name,
        "from_sha256": checkpoint.sha256,
        "teacher": taught_by,
        **asdict(settings),
    }
    return about, student, scales


@judged
def command(argv: list[str]) -> int:
    """Parse, export, print the table; 1 where verification failed."""
    config = cli.parse(LoihiConfig, argv=argv, prog="python -m export.to_loihi", description=__doc__ or "")
    report = main(config)
    from export.loihi_report import table

    print(table(report))
    out = config.out or config.checkpoint.parent / "student.net"
    files = [str(out), f"{out.name}.json", *([report["finetuned"]["file"]] if report["finetuned"] else [])]
    print(f"\nwritten: {', '.join(files)}")
    source = finetuned_path(out) if report["finetuned"] else config.checkpoint
    print(f"next:    python -m export.verify {source} {out}")
    print(f"         python -m hardware.mapping {out}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
