"""Is what is exported bit-exact, whatever the family and T? Exports students as .net files and runs them in Lava.

    python benchmarks/loihi_exactness.py RUN/student.pt ... [--T 1 2 3 4 6] [--samples 16] [--out results]

Every student is exported at every T (its weights are those of its own T), calibrated on its own training images, run in
Lava's fixed-point simulator on test images, and every spike of every LIF layer and every logit is held against the
integer twin. Writes OUT/loihi_exactness.json: mismatches, spikes compared, layers of the file, seconds of the export.
"""

import dataclasses
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


sys.path.insert(0, str(Path(__file__).parents[1]))

from export import to_loihi
from export.verify import NotVerified
from train.checkpoint import Checkpoint
from train.record import git_state, versions, write_json


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which students, and at which T."""

    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """student.pt files."""
    T: tuple[int, ...] = (1, 2, 3, 4, 6)
    """Time steps."""
    samples: int = 16
    """Test images that Lava runs."""
    test_images: int = 200
    """Test images on which the accuracies are measured."""
    calibration: int = 32
    """Training images on which scales are chosen."""
    verify: Literal["lava", "reference"] = "lava"
    """What runs the files."""
    out: Path = Path("results")
    """Folder of the JSON file."""


def export(path: Path, T: int, config: Config, folder: Path) -> dict[str, Any]:
    """One row: a student at T steps."""
    student = Checkpoint.load_student(path)
    net = dataclasses.replace(student.net, T=T)
    dataclasses.replace(student, net=net).save(folder / "student.pt")
    began = time.perf_counter()
    row: dict[str, Any] = {
        "student": path.parent.name,
        "net": {key: getattr(net, key) for key in ("name", "width", "size", "pool", "tau", "neuron", "decay_input")},
        "trained_T": student.net.T,
        "T": T,
    }
    settings = to_loihi.LoihiConfig(
        checkpoint=folder / "student.pt",
        samples=config.samples,
        calibration=config.calibration,
        test_images=config.test_images,
        verify=config.verify,
    )
    try:
        report = to_loihi.main(settings)
    except NotVerified as failure:
        return {**row, "failed": str(failure)}
    verdict = report["verify"]
    return {
        **row,
        "samples": verdict["images"],
        "lif_layers": len(verdict["layers"]),
        "spikes": verdict["spikes"],
        "spike_mismatches": verdict["flips"],
        "largest_logit_difference": verdict["max_logit_difference"],
        "layers": len(report["layers"]),
        "cores": report["mapping"]["cores"],
        "bytes": (folder / "student.net").stat().st_size,
        "accuracy": report["accuracy"],
        "accuracy_on_samples": report["accuracy_on_samples"],
        "seconds": time.perf_counter() - began,
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as lines of Markdown, one a student: all its T together, the cores of the one at T = 4."""
    lines = ["| student | T | spikes compared | that differ | cores |", "|---|---|---|---|---|"]
    for student in dict.fromkeys(row["student"] for row in rows):
        own = [row for row in rows if row["student"] == student]
        (four,) = (row for row in own if row["T"] == 4)
        net = four["net"]
        name = f"`{net['name']}`" + (f", {net['pool']} pooling" if net["name"].startswith("vgg1") else "")
        name += f", width {net['width']:g}" if net["width"] != 1 else ""
        steps = ", ".join(str(row["T"]) for row in own)
        spikes, apart = (sum(row[key] for row in own) for key in ("spikes", "spike_mismatches"))
        lines.append(f"| {name} | {steps} | {spikes:,} | {apart} | {four['cores']} |")
    return lines


def main(config: Config) -> list[dict[str, Any]]:
    """Export all and write the file after each."""
    rows: list[dict[str, Any]] = []
    for path in config.checkpoints:
        for T in config.T:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(export(path, T, config, Path(folder)))
            print({k: v for k, v in rows[-1].items() if k not in ("net", "accuracy_on_samples")}, flush=True)
            about = {"settings": {"samples": config.samples, "calibration": config.calibration}}
            write_json(
                config.out / "loihi_exactness.json",
                {**about, "rows": rows, "git": git_state(), "versions": versions()},
            )
    return rows


if __name__ == "__main__":
    found = main(tyro.cli(Config, description=__doc__))
    print("\n".join(table(found)))
    sys.exit(0 if all(row.get("spike_mismatches") == 0 for row in found) else 1)
