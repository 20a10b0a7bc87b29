"""`python benchmarks/energy_measured.py RUN/student.pt`: joules an image that meters measure, of ANN and student.

Needs a meter: an NVIDIA GPU (NVML) or a processor with readable RAPL; without one it says so and ends with status 2.
Variants take turns for several rounds; before each round the machine idles for as long as a variant runs, with all
models loaded, and its idle power is reported and subtracted. A meter sees all that its part of the machine does, so
nothing else should run there, and meters are not added. Every call has other real test images; all models run in
onnxruntime. These joules are measured, those of export.energy are counted: they are never mixed.
Writes OUT/energy_measured-DATASET-NET-TT-DEVICE.json and prints the table drawn from it. The variants:
  ann_fp32, ann_int8          the same network with ReLU: the teacher if it is that network, else untrained
  fp32, int8                  the student, all T steps
  anytime_fp32, anytime_int8  its step form; an image stops when it is sure, by the exit export.bundle would choose
"""

import itertools
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from tyro.conf import Positional


sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from inference import TITLES
from train_speed import cpu_name

from hardware.meter import Meters, find_meters
from hardware.meter import measure as metered
from train import cli


if TYPE_CHECKING:
    from inference_variants import Variant


VARIANTS = ("ann_fp32", "ann_int8", "fp32", "int8", "anytime_fp32", "anytime_int8")
PATHS = ("checkpoint", "teacher", "data_root", "out")
"""Settings that mean something on one machine only."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is measured."""

    checkpoint: Annotated[Path, Positional]
    """student.pt."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Where the models run; the meters are all that the machine has."""
    teacher: Path | None = None
    """The ANN's weights; default: teacher/teacher.pt beside the student."""
    batch_sizes: tuple[int, ...] = (1, 16, 256)
    """Images of one call."""
    rounds: int = 3
    """Times that each variant is measured."""
    seconds: float = 10.0
    """Shortest time of a variant and round, and of idling; counters of GPUs move some ten times a second."""
    images: int = 1024
    """The first N test images."""
    threads: int = 1
    """Threads of onnxruntime on the processor."""
    tolerance: float = 0.005
    """Largest loss of accuracy by an exit, on validation images, two standard errors included."""
    calibration: int = 64
    """Training images on which the scales of int8 are chosen."""
    variants: tuple[str, ...] = VARIANTS
    """Which variants."""
    data_root: Path | None = None
    """Where data sets live; default: the environment variable TSERVE_DATA, else where it was trained from."""
    out: Path = Path("results")
    """Folder of the JSON file."""

    def __post_init__(self) -> None:
        if min(self.rounds, self.threads, self.calibration, *self.batch_sizes) < 1 or self.seconds <= 0:
            raise ValueError("rounds, threads, calibration and batch_sizes must be at least 1, seconds above 0")
        if self.images < max(self.batch_sizes):
            raise ValueError(f"images ({self.images}) must fill the largest batch, {max(self.batch_sizes)}")
        if unknown := [name for name in self.variants if name not in VARIANTS]:
            raise cli.unknown("variant", unknown[0], VARIANTS)


def main(config: Config, *, meters: Meters | None = None) -> dict[str, Any]:
    """Make the variants, measure them, write the JSON and return it. Raises ValueError where there is no meter."""
    meters = find_meters() if meters is None else meters
    if not meters.found:
        raise ValueError(f"no meter of energy can be read on this machine, so nothing is measured ({meters})")
    from inference_variants import answers

    from export.images import real_images
    from train.checkpoint import Checkpoint
    from train.record import git_state, versions, write_json

    student = Checkpoint.load_student(config.checkpoint)
    test = real_images(student, split="test", limit=config.images, root=config.data_root)
    if len(test) < max(config.batch_sizes):
        raise ValueError(f"{test.dataset} has {len(test)} test images, fewer than a batch of {max(config.batch_sizes)}")
    rows: dict[str, dict[str, Any]] = {}
    made: dict[str, Variant] = {}
    with tempfile.TemporaryDirectory() as folder:
        shop = workshop(config, student, Path(folder))
        for name in config.variants:
            try:
                variant = shop.make(name)
                found = answers(variant, test.images)
            except Exception as error:  # no integer twin, or onnxruntime cannot run it there: one row less
                rows[name] = {"error": (str(error).strip().splitlines() or [type(error).__name__])[0]}
                print(f"{name:14s}{rows[name]['error']}", flush=True)
                continue
            made[name] = variant
            right = float((found.logits.argmax(-1) == test.labels).mean())
            steps = float(found.steps.mean())
            rows[name] = {"accuracy": right if variant.trained else None, "mean_steps": steps, **variant.about}
        if not made:
            raise ValueError("none of the variants runs here; the lines above say why")
        rounds = measure(made, test.images, meters, config)
    content = {
        "settings": {k: v for k, v in cli.to_dict(config).items() if k not in PATHS},
        "student": {"net": cli.to_dict(student.net), "sha256": student.sha256},
        "images": {"dataset": test.dataset, "number": len(test)},
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.platform()},
        "meters": {meter.name: meter.how for meter in meters.found},
        "missing": dict(meters.missing),
        "versions": versions(),
        "git": git_state(),
        "rows": {name: row if "error" in row else row | summarise(rounds, name) for name, row in rows.items()},
        "rounds": rounds,
    }
    path = config.out / f"energy_measured-{test.dataset}-{student.net.name}-T{student.net.T}-{config.device}.json"
    write_json(path, content)
    print(f"\n{table(content)}\nwritten: {path}")
    return content


def workshop(config: Config, student: Any, folder: Path) -> Any:
    """Makes the variants as benchmarks/inference.py does, with sessions on the device that is asked for."""
    import onnxruntime as ort
    from inference_variants import Workshop, environment

    from serve.session import ENV_THREADS, open_session

    class OnDevice(Workshop):
        def open(self, model: Path) -> ort.InferenceSession:
            with environment(ENV_THREADS, str(self.threads)):
                return open_session(model, provider=config.device)

    return OnDevice(
        checkpoint=student,
        path=config.checkpoint,
        folder=folder,
        threads=config.threads,
        teacher=config.teacher or config.checkpoint.parent / "teacher" / "teacher.pt",
        scales=None,
        calibration=config.calibration,
        tolerance=config.tolerance,
        val_images=None,
        data_root=config.data_root,
    )


def measure(
    variants: Mapping[str, "Variant"], images: np.ndarray, meters: Meters, config: Config
) -> list[dict[str, Any]]:
    """The rounds: `idle` watts by meter, and by batch size and variant what `spent_on` found."""
    batches = {b: [images[i : i + b] for i in range(0, len(images) - b + 1, b)] for b in config.batch_sizes}
    queues = {(name, size): itertools.cycle(batches[size]) for name in variants for size in batches}
    rounds: list[dict[str, Any]] = []
    for number in range(config.rounds):
        idle = idle_watts(meters, seconds=config.seconds)
        found: dict[str, Any] = {str(size): {} for size in batches}
        for size, name in itertools.product(batches, variants):
            answer, queue = variants[name].answer, queues[name, size]
            row = spent_on(answer, queue, meters, seconds=config.seconds, idle=idle)
            found[str(size)][name] = row
            said = "  ".join(f"{meter} {joules:.3g} J" for meter, joules in row["net_J"].items())
            print(f"round {number + 1}/{config.rounds}  batch {size:<5d}{name:14s}{said} an image", flush=True)
        rounds.append({"idle_W": idle, "batches": found})
    return rounds


def idle_watts(meters: Meters, *, seconds: float) -> dict[str, float]:
    """The power of the machine while this program sleeps, by meter. Raises ValueError where no meter can be read."""
    with metered(meters) as spent:
        time.sleep(seconds)
    if not spent.joules:
        raise ValueError(f"the meters cannot be read: {spent.missing}")
    return {meter: joules / spent.seconds for meter, joules in spent.joules.items()}


def spent_on(
    answer: Callable[[np.ndarray], Any],
    queue: Iterator[np.ndarray],
    meters: Meters,
    *,
    seconds: float,
    idle: Mapping[str, float],
) -> dict[str, Any]:
    """Joules an image by meter, over at least `seconds`: all of them, and without what idling would have taken.

    One call before is not measured: it compiles, and brings weights into memory.
    """
    answer(next(queue))
    images = 0
    with metered(meters) as spent:
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            batch = next(queue)
            answer(batch)
            images += len(batch)
    return {
        "images": images,
        "seconds": spent.seconds,
        "total_J": {meter: joules / images for meter, joules in spent.joules.items()},
        "net_J": {
            meter: (joules - idle[meter] * spent.seconds) / images
            for meter, joules in spent.joules.items()
            if meter in idle
        },
    }


def summarise(rounds: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """A variant's medians over rounds with their spread, by batch size, quantity and meter."""
    batches: dict[str, Any] = {}
    for size in rounds[0]["batches"]:
        found = [entry["batches"][size][name] for entry in rounds]
        batches[size] = {"seconds_an_image": median(row["seconds"] / row["images"] for row in found)}
        for key in ("total_J", "net_J"):
            values = {meter: [row[key][meter] for row in found if meter in row[key]] for meter in found[0][key]}
            batches[size][key] = {
                meter: {"median": median(of), "min": min(of), "max": max(of)} for meter, of in values.items()
            }
    return {"batches": batches}


def table(content: Mapping[str, Any]) -> str:
    """The measurement as Markdown, a table for each meter."""
    net, sizes = content["student"]["net"], list(content["rounds"][0]["batches"])
    lines = [
        f"{net['name']} of {content['images']['dataset']}, T={net['T']}, on {content['settings']['device']}, "
        f"{len(content['rounds'])} rounds of {content['settings']['seconds']:g} s; measured, idle power subtracted"
    ]
    for meter, how in content["meters"].items():
        idle = [entry["idle_W"][meter] for entry in content["rounds"] if meter in entry["idle_W"]]
        lines += ["", f"{meter}: {how}; idle {median(idle):.1f} W" if idle else f"{meter}: could not be read", ""]
        head = ["variant", "mean steps", *(f"batch {size}: J an image (with idle power)" for size in sizes)]
        lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for name, row in content["rows"].items():
            if "error" in row:
                lines.append(f"| {TITLES[name]} | {row['error']} |" + " |" * len(sizes))
                continue
            cells = [_cell(row["batches"][size], meter) for size in sizes]
            lines.append(f"| {TITLES[name]} | {row['mean_steps']:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: Mapping[str, Any], meter: str) -> str:
    """Median, least and greatest joules without idling; the median with it."""
    if meter not in found["net_J"]:
        return "-"
    net, total = found["net_J"][meter], found["total_J"][meter]
    return f"{net['median']:.3g} ({net['min']:.3g} to {net['max']:.3g}; {total['median']:.3g})"


def command(argv: list[str]) -> None:
    """Parse and run."""
    main(cli.parse(Config, argv=argv, prog="python benchmarks/energy_measured.py", description=__doc__ or ""))


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
