"""`python -m export.energy CKPT [--samples 256] [--out DIR]`: count a student's operations and price them in joules.

Runs named test images through the student, counts every synaptic operation exactly (export/counts.py), prices them by
a named convention (export/conventions.py) beside the ANN of the same layers, and writes energy.json and energy.png.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from export.conventions import CONVENTIONS
from export.counts import Counts, SynapseCounts, count
from export.graph import Graph
from train import cli


if TYPE_CHECKING:
    from hardware.chip import Chip, Fact

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class EnergyConfig:
    """What to count, and where to write it."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """student.pt, as `python -m train.distill` writes it."""
    samples: int = 256
    """Count on the first N test images."""
    out: Path | None = None
    """Folder for energy.json and energy.png; default: the checkpoint's."""
    convention: str = "event_exact"
    """What is counted as an operation."""
    chip: str = "cmos45nm"
    """Prices: a file of hardware/chips that has energy.ac_fp32 and energy.mac_fp32."""
    data_root: Path | None = None
    """Where data sets live; default: the environment variable TSERVE_DATA, else where it was trained from."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1 image, got {self.samples}")
        if self.convention not in CONVENTIONS:
            raise cli.unknown("convention", self.convention, CONVENTIONS)


@dataclass(frozen=True, kw_only=True)
class Result:
    """The written files and what energy.json holds."""

    json: Path
    plot: Path
    report: dict[str, Any]


def report(
    graph: Graph, images: np.ndarray, *, named: dict[str, Any], chip: Chip, convention: str = "event_exact"
) -> dict[str, Any]:
    """What energy.json holds: counts and joules for `images` [N, C, H, W] in [0, 1], means per image; JSON types.

    Of a Graph of events the images are recordings, frames [T, N, C, H, W], and its ANN sees one frame, their mean.
    named: which images these are (dataset, split, indices), recorded as it is. `energy_J` is in joules. Step t is
    counted from 1. `input` of a layer is static (before the first LIF), binary (0 or 1) or graded.
    """
    counts = count(graph, images)
    ops = CONVENTIONS[convention](graph, counts)
    ac, mac = (chip[f"energy.{key}"] for key in ("ac_fp32", "mac_fp32"))
    events = {layer.name: layer for layer in counts.synapses}
    layers = [
        {
            "name": op.name,
            **_events(events[op.name], counts),
            "acs": _per_image(op.acs),
            "macs": _per_image(op.macs),
            "energy_J": _per_image(op.acs) * ac.value + _per_image(op.macs) * mac.value,
            "dense_macs": op.dense_macs,
            "ann_energy_J": op.dense_macs * mac.value,
        }
        for op in ops
    ]
    sops = np.sum([layer.sops for layer in counts.synapses], axis=0)  # [T, N]
    acs, macs = np.sum([op.acs for op in ops], axis=0), np.sum([op.macs for op in ops], axis=0)
    energy = acs * ac.value + macs * mac.value
    ann_macs = sum(op.dense_macs for op in ops)
    totals = {
        "sops": _per_image(sops),
        "acs": _per_image(acs),
        "macs": _per_image(macs),
        "static_macs": sum(layer.dense_macs for layer in counts.synapses if layer.static),
        "energy_J": _per_image(energy),
        "energy_J_std": float(energy.sum(axis=0).std()),
        "ann": {"macs": ann_macs, "energy_J": ann_macs * mac.value},
        "ratio": _per_image(energy) / (ann_macs * mac.value),
    }
    return {
        "format": FORMAT,
        "images": {**named, "count": counts.num_images},
        "T": graph.T,
        "chip": chip.name,
        "convention": {"name": convention, "rules": inspect.getdoc(CONVENTIONS[convention])},
        "prices": {"ac": _price(ac), "mac": _price(mac)},
        "layers": layers,
        "per_image": totals,
        "per_step": [
            {
                "t": t + 1,
                "sops": float(sops[t].mean()),
                "acs": float(acs[t].mean()),
                "macs": float(macs[t].mean()),
                "energy_J": float(energy[t].mean()),
            }
            for t in range(graph.T)
        ],
        "lif_layers": [
            {
                "name": layer.name,
                "neurons": layer.neurons,
                "spikes": _per_image(layer.spikes),
                "firing_rate": [float(rate) for rate in layer.spikes.mean(axis=1) / layer.neurons],
            }
            for layer in counts.neurons
        ],
        "unpriced_per_image": {
            "bias_additions": counts.bias_additions,
            "neuron_updates": counts.neuron_updates,
            "pooled_values": counts.pooled_values,
            "residual_additions": counts.residual_additions,
        },
        "verdict": verdict(totals, chip.name),
    }


def verdict(totals: dict[str, Any], chip: str) -> str:
    """One sentence that follows from the totals, favourable or not."""
    snn, ann, ratio = totals["energy_J"], totals["ann"]["energy_J"], totals["ratio"]
    word = "Favourable" if ratio < 1 else "Not favourable"
    return (
        f"{word}: an image costs the SNN {joules(snn)} and the ANN {joules(ann)}, a ratio of {ratio:.3g}, counting"
        f" the arithmetic of synapses at the prices of {chip} and no memory access."
    )


def joules(value: float) -> str:
    """Joules with a prefix, three significant digits: 4.2e-7 -> '420 nJ'."""
    value = float(f"{value:.3g}")
    scale, prefix = next(((s, p) for s, p in PREFIXES if value >= s), PREFIXES[-1])
    return f"{value / scale:.3g} {prefix}J"


PREFIXES = ((1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"), (1e-12, "p"))


def _events(layer: SynapseCounts, counts: Counts) -> dict[str, Any]:
    """What was counted of one layer; no firing rate before the first spike."""
    return {
        "kind": layer.kind,
        "input": "static" if layer.static else "binary" if layer.binary else "graded",
        "firing_rate_in": None if layer.static else float(layer.nonzero.mean() / layer.inputs),
        "sops": _per_image(layer.sops),
    }


def _per_image(counted: np.ndarray) -> float:
    """Mean over the images of the sum over the steps of [T, N]."""
    return float(counted.sum(axis=0).mean())


def _price(price: Fact) -> dict[str, Any]:
    return {"value": price.value, "unit": price.unit, "source": price.source, "status": price.status}


def main(config: EnergyConfig) -> Result:
    """Count, price, and write energy.json and energy.png."""
    from export.energy_view import plot
    from export.images import real_images
    from export.lower import lower
    from hardware import chip
    from train import record
    from train.checkpoint import Checkpoint

    prices = chip.load(config.chip)
    checkpoint = Checkpoint.load_student(config.checkpoint)
    graph = lower(checkpoint)
    real = real_images(checkpoint, split="test", limit=config.samples, root=config.data_root)
    content = report(graph, real.images, named=real.describe(), chip=prices, convention=config.convention)
    content["checkpoint_sha256"] = checkpoint.sha256
    out = config.out or config.checkpoint.parent
    result = Result(json=out / "energy.json", plot=out / "energy.png", report=content)
    record.write_json(result.json, content)
    with record.atomic(result.plot) as new:
        plot(content, new)
    return result


def command(argv: list[str]) -> None:
    """Parse, run, print the table, and say what was written."""
    from export.energy_view import table

    config = cli.parse(EnergyConfig, argv=argv, prog="python -m export.energy", description=__doc__ or "")
    result = main(config)
    print(table(result.report))
    print(f"\nwritten: {result.json}\n         {result.plot}")
    print(f"next:    python -m export.bundle {config.checkpoint}")


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
