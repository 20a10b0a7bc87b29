"""`python benchmarks/inference.py RUN/student.pt`: what an image costs on a CPU, beside SpikingJelly and the ANN.

Variants take turns for several rounds, and ratios are taken within a round. Every call has other real test images; the
any-time rows, whose cost depends on the image, are timed over all of `--timed` images in each round. Times include the
normalisation and, of the exported students, the spike counts that energy is reckoned from. The process keeps memory
that is freed, which helps torch most. Writes OUT/inference-DATASET-NET-TT.json and prints the table drawn from it.
The variants:
  spikingjelly   the student's own network in torch, SpikingJelly's multi-step modules
  folded         its Graph in plain torch: normalisations folded, T in the batch, the first convolution once
  naive          onnxruntime, every layer written once for each time step, the first convolution too
  fp32, int8     as python -m export.to_onnx writes them, all T steps
  anytime_*      their step form; an image stops when it is sure, by the exit that export.bundle would choose
  ann_*          the same network with ReLU: the teacher if it is that network, else untrained and only timed;
                 int8 by onnxruntime's static quantisation
"""

import itertools
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from tyro.conf import Positional


sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from train_speed import cpu_name

from train import cli


if TYPE_CHECKING:
    from inference_variants import Variant


TITLES = {
    "spikingjelly": "SpikingJelly, eager",
    "folded": "torch, T in the batch",
    "naive": "onnxruntime, naive unroll",
    "fp32": "ours fp32",
    "int8": "ours int8",
    "anytime_fp32": "any-time fp32",
    "anytime_int8": "any-time int8",
    "ann_fp32": "ANN fp32",
    "ann_int8": "ANN int8",
}
VARIANTS = tuple(TITLES)
BASES = ("fp32", "ann_fp32")
"""What the others are compared with."""
PATHS = ("checkpoint", "teacher", "scales", "data_root", "out")
"""Settings that mean something on one machine only."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is timed."""

    checkpoint: Annotated[Path, Positional]
    """student.pt."""
    scales: Path | None = None
    """An exported .net file of the student whose scales int8 takes; default: chosen as export.to_onnx does."""
    teacher: Path | None = None
    """The ANN's weights; default: teacher/teacher.pt beside the student."""
    threads: int = 1
    """Threads of torch and of onnxruntime."""
    batch_sizes: tuple[int, ...] = (1, 8)
    """Images of one call."""
    rounds: int = 5
    """Times that each variant is timed."""
    seconds: float = 0.3
    """Shortest time of a variant and round."""
    images: int = 1000
    """Accuracies and mean steps are of the first N test images; 0: all."""
    timed: int = 200
    """Times are of the first N test images."""
    val_images: int = 0
    """Exits are chosen on the first N validation images; 0: all."""
    tolerance: float = 0.005
    """Largest loss of accuracy by an exit, on validation images, two standard errors included."""
    calibration: int = 64
    """Training images on which the scales of int8 are chosen, of student and ANN."""
    variants: tuple[str, ...] = VARIANTS
    """Which variants; ratios are to fp32 and ann_fp32."""
    data_root: Path | None = None
    """Where data sets live; default: the environment variable TSERVE_DATA, else where it was trained from."""
    out: Path = Path("results")
    """Folder of the JSON file."""

    def __post_init__(self) -> None:
        positive = {key: getattr(self, key) for key in ("threads", "rounds", "timed", "calibration")}
        for name, value in (positive | {"batch_sizes": min(self.batch_sizes, default=0)}).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if min(self.images, self.val_images, self.seconds) < 0:
            raise ValueError("images, val_images and seconds must not be negative")
        if self.timed < max(self.batch_sizes):
            raise ValueError(f"timed images ({self.timed}) must fill the largest batch, {max(self.batch_sizes)}")
        if unknown := [name for name in self.variants if name not in VARIANTS]:
            raise cli.unknown("variant", unknown[0], VARIANTS)


def main(config: Config) -> dict[str, Any]:
    """Make the variants, measure them, write the JSON and return it."""
    import torch
    from inference_variants import Workshop

    from export.images import real_images
    from train.checkpoint import Checkpoint
    from train.engine import keep_freed_memory
    from train.record import git_state, versions, write_json

    keep_freed_memory()
    torch.set_num_threads(config.threads)
    student = Checkpoint.load_student(config.checkpoint)
    needed = max(config.images, config.timed) if config.images else None
    test = real_images(student, split="test", limit=needed, root=config.data_root)
    judged, timed = (slice(n or None) for n in (config.images, config.timed))
    if len(test) < max(config.batch_sizes):
        raise ValueError(f"{test.dataset} has {len(test)} test images, fewer than a batch of {max(config.batch_sizes)}")
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(
            checkpoint=student,
            path=config.checkpoint,
            folder=Path(folder),
            threads=config.threads,
            teacher=config.teacher or config.checkpoint.parent / "teacher" / "teacher.pt",
            scales=config.scales,
            calibration=config.calibration,
            tolerance=config.tolerance,
            val_images=config.val_images or None,
            data_root=config.data_root,
        )
        rows: dict[str, dict[str, Any]] = {}
        made: dict[str, Variant] = {}
        for name in config.variants:
            began = time.perf_counter()
            try:
                made[name] = workshop.make(name)
            except ValueError as error:  # no integer twin, no validation images
                rows[name] = {"error": str(error)}
                print(f"{name:14s}{error}", flush=True)
                continue
            rows[name] = row = answered(made[name], test.images, test.labels, judged=judged, timed=timed)
            said = "untrained" if row["accuracy"] is None else f"{row['accuracy']:.2%}"
            took = time.perf_counter() - began
            print(f"{name:14s}{said}, {row['mean_steps']:.3f} steps  ({took:.0f} s)", flush=True)
        if not made:
            raise ValueError("none of the variants can be made of this student")
        sizes, number = config.batch_sizes, config.rounds
        rounds = measure(made, test.images[timed], batch_sizes=sizes, rounds=number, seconds=config.seconds)
    content = {
        "settings": {k: v for k, v in cli.to_dict(config).items() if k not in PATHS},
        "student": {
            "net": cli.to_dict(student.net),
            "sha256": student.sha256,
            "scales": config.scales.name if config.scales else f"of {config.calibration} training images",
        },
        "images": {"dataset": test.dataset, "accuracy": len(test.labels[judged]), "timed": len(test.labels[timed])},
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": versions(),
        "git": git_state(),
        "rows": {name: row if "error" in row else row | summarise(rounds, name) for name, row in rows.items()},
        "rounds": rounds,
    }
    path = config.out / f"inference-{test.dataset}-{student.net.name}-T{student.net.T}.json"
    write_json(path, content)
    print(f"\n{table(content)}\nwritten: {path}")
    return content


def answered(
    variant: "Variant", images: np.ndarray, labels: np.ndarray, *, judged: slice, timed: slice
) -> dict[str, Any]:
    """What a variant answers and after how many steps, on the images that are judged and on those that are timed."""
    from inference_variants import answers

    found = answers(variant, images)
    right = found.logits.argmax(-1) == labels
    return {
        "accuracy": float(right[judged].mean()) if variant.trained else None,
        "mean_steps": float(found.steps[judged].mean()),
        "mean_steps_of_timed": float(found.steps[timed].mean()),
        **variant.about,
    }


def measure(
    variants: dict[str, "Variant"], images: np.ndarray, *, batch_sizes: Sequence[int], rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """The rounds: by batch size, by variant, what `timing` found. Images that fill no batch are left out."""
    found: list[dict[str, Any]] = []
    batches = {b: [images[i : i + b] for i in range(0, len(images) - b + 1, b)] for b in batch_sizes}
    # A variant goes on where it was in the last round, with other images.
    queues = {(name, size): itertools.cycle(batches[size]) for name in variants for size in batches}
    for number in range(rounds):
        found.append({str(size): {} for size in batches})
        for size, name in itertools.product(batches, variants):
            whole = len(batches[size]) if variants[name].varies else 1
            row = timing(variants[name], queues[name, size], whole=whole, seconds=seconds)
            found[-1][str(size)][name] = row
            cpu, wall = (f"{1e3 * row[key]:.3f} ms" for key in ("cpu_seconds", "wall_seconds"))
            print(f"round {number + 1}/{rounds}  batch {size:<4d}{name:14s}{cpu} CPU, {wall}", flush=True)
    return found


def timing(variant: "Variant", queue: Iterator[np.ndarray], *, whole: int, seconds: float) -> dict[str, float]:
    """CPU and wall seconds of an image, over at least `seconds` and a multiple of `whole` batches of the queue.

    One call before is not timed: it brings back weights and code that the variant before has put out of the caches.
    """
    variant.answer(next(queue))
    images = calls = 0
    began, cpu_began = time.perf_counter(), time.process_time()
    while calls == 0 or calls % whole or time.perf_counter() - began < seconds:
        batch = next(queue)
        variant.answer(batch)
        images, calls = images + len(batch), calls + 1
    cpu, wall = time.process_time() - cpu_began, time.perf_counter() - began
    return {"cpu_seconds": cpu / images, "wall_seconds": wall / images, "images": images}


def summarise(rounds: Sequence[dict[str, Any]], name: str, *, bases: Sequence[str] = BASES) -> dict[str, Any]:
    """A variant's medians over rounds by batch size, and its ratios to `bases` within a round with their spread."""
    batches: dict[str, Any] = {}
    for size in rounds[0]:
        batches[size] = row = {}
        for key in ("cpu_seconds", "wall_seconds"):
            row[key] = median(r[size][name][key] for r in rounds)
            for base in bases:
                if base in rounds[0][size]:
                    ratios = [r[size][name][key] / r[size][base][key] for r in rounds]
                    row[f"{key}_over_{base}"] = {"median": median(ratios), "min": min(ratios), "max": max(ratios)}
    return {"batches": batches}


def table(content: dict[str, Any]) -> str:
    """The measurement as Markdown."""
    net, images, settings = content["student"]["net"], content["images"], content["settings"]
    sizes = list(content["rounds"][0])
    head = ["variant", "accuracy", "mean steps"]
    for size in sizes:
        head += [f"batch {size}: CPU ms an image", "wall ms", "CPU / ours fp32", "CPU / ANN fp32"]
    lines = [
        f"{net['name']} of {images['dataset']}, T={net['T']}, {content['machine']['cpu']}, threads: "
        f"{settings['threads']}, rounds: {settings['rounds']}; accuracy on {images['accuracy']:,} test images, "
        f"times of {images['timed']:,}",
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
    ]
    for name, row in content["rows"].items():
        if "error" in row:
            lines.append(f"| {TITLES[name]} | {row['error']} |" + " |" * (len(head) - 2))
            continue
        cells = [
            "untrained" if row["accuracy"] is None else f"{100 * row['accuracy']:.2f} %",
            f"{row['mean_steps']:.2f}",
        ]
        for size in sizes:
            found = row["batches"][size]
            cells += [f"{1e3 * found[key]:.3f}" for key in ("cpu_seconds", "wall_seconds")]
            cells += [spread(found.get(f"cpu_seconds_over_{base}")) for base in BASES]
        lines.append(f"| {TITLES[name]} | {' | '.join(cells)} |")
    lines += [exit_line(TITLES[name], row) for name, row in content["rows"].items() if "exit" in row]
    return "\n".join(lines)


def spread(ratio: dict[str, float] | None) -> str:
    """A ratio with its least and greatest value over the rounds."""
    return f"{ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})" if ratio else ""


def exit_line(title: str, row: dict[str, Any]) -> str:
    """How an any-time row's exit was chosen."""
    exit = row["exit"]
    of_exit, of_all = (f"{100 * exit[key]:.2f} %" for key in ("val_accuracy", "val_accuracy_of_all_steps"))
    return (
        f"\n{title}: {exit['rule']} > {exit['threshold']:.4f}, relax {exit['relax']:g}, chosen on "
        f"{exit['calibrated_on']['images']:,} "
        f"validation images: {exit['val_mean_steps']:.2f} steps, {of_exit} (all steps {of_all}); the timed images took "
        f"{row['mean_steps_of_timed']:.2f} steps."
    )


def command(argv: list[str]) -> None:
    """Parse and run."""
    main(cli.parse(Config, argv=argv, prog="python benchmarks/inference.py", description=__doc__ or ""))


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
