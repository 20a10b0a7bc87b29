"""Export students to int8 ONNX in both forms, and count the spikes and logits that differ from the integer twin.

`python benchmarks/onnx_exactness.py CKPT [CKPT ...]` writes results/onnx_exactness.json. A .net file that stands beside
a checkpoint gives the scales (student.net), so that the file on the server and the file on the chip are compared with
the same integers. Exits with 1 if one spike or one bit of a logit differs.
"""

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


sys.path.insert(0, str(Path(__file__).parents[1]))

from export import to_onnx
from export.lower import lower
from export.verify import NotVerified
from train.checkpoint import Checkpoint
from train.record import git_state, versions, write_json


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which students."""

    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """student.pt files."""
    samples: int = 64
    """Test images."""
    out: Path = Path("results")
    """Folder of the JSON file."""


def export(path: Path, form: Literal["unrolled", "step"], config: Config) -> dict[str, Any]:
    """One row: a student in one form."""
    student = Checkpoint.load_student(path)
    net = student.net
    row: dict[str, Any] = {
        "student": path.parent.name,
        "net": {key: getattr(net, key) for key in ("name", "width", "size", "pool", "tau", "neuron", "decay_input")},
        "T": net.T,
        "form": form,
    }
    scales = path.parent / "student.net"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "student.onnx"
        settings = to_onnx.OnnxConfig(
            checkpoint=path,
            out=out,
            precision="int8",
            form=form,
            samples=config.samples,
            scales=scales if scales.is_file() else None,
        )
        began = time.perf_counter()
        try:
            result = to_onnx.main(settings)
        except NotVerified as failure:
            return {**row, "failed": str(failure)}
        seconds, size = time.perf_counter() - began, out.stat().st_size
    verdict = result.verdict
    return {
        **row,
        "scales_of_net": scales.is_file(),
        "samples": verdict.images,
        "lif_layers": len(verdict.layers),
        "spikes": verdict.spikes,
        "spike_mismatches": verdict.flips,
        "largest_logit_difference": verdict.max_logit_difference,
        "bytes": size,
        "weight_bytes": sum(node.weight.size + 4 * node.bias.size for node in lower(student).synapses),
        "seconds": seconds,
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as lines of Markdown, one a student: both forms together."""
    lines = [
        "| student | T | LIF layers | spikes compared | that differ | file, by weights |",
        "|---|---|---|---|---|---|",
    ]
    for student in dict.fromkeys(row["student"] for row in rows):
        own = [row for row in rows if row["student"] == student]
        net, spikes, apart = own[0]["net"], *(sum(row[key] for row in own) for key in ("spikes", "spike_mismatches"))
        name = f"`{net['name']}`" + (f", {net['pool']} pooling" if net["name"].startswith("vgg1") else "")
        name += f", width {net['width']:g}" if net["width"] != 1 else ""
        size = f"{own[0]['bytes'] / 1e6:.2f} MB, {own[0]['bytes'] / own[0]['weight_bytes']:.2f}"
        lines.append(f"| {name} | {own[0]['T']} | {own[0]['lif_layers']} | {spikes:,} | {apart} | {size} |")
    return lines


def main(config: Config) -> list[dict[str, Any]]:
    """Export all and write the file after each."""
    rows: list[dict[str, Any]] = []
    for path in config.checkpoints:
        for form in ("unrolled", "step"):
            rows.append(export(path, form, config))
            print({key: value for key, value in rows[-1].items() if key != "net"}, flush=True)
            about = {"settings": {"samples": config.samples}, "rows": rows, "git": git_state(), "versions": versions()}
            write_json(config.out / "onnx_exactness.json", about)
    return rows


if __name__ == "__main__":
    found = main(tyro.cli(Config, description=__doc__))
    print("\n".join(table(found)))
    exact = all(row.get("spike_mismatches") == 0 and row.get("largest_logit_difference") == 0 for row in found)
    sys.exit(0 if exact else 1)
