"""`python -m export.energy CKPT [--samples 256] [--teacher PATH]`: count a student's operations, price them in joules.

Runs named test images through the student, counts every synaptic operation exactly (export/counts.py), prices them by
four named conventions (export/conventions.py) beside the ANN of the same layers, its teacher, other precisions and
published prices of chips, and writes energy.json and energy.png.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from export.conventions import CONVENTIONS
from export.conventions_terms import Origin
from export.counts import Counts, SynapseCounts, count
from export.energy_account import account, per_image
from export.energy_beside import Beside, find
from export.energy_break_even import break_even
from export.energy_compare import compare
from export.graph import Graph
from hardware.chip import Chip, load
from hardware.estimate import itemise
from train import cli


FORMAT = 3


@dataclass(frozen=True, kw_only=True)
class EnergyConfig:
    """What to count, and where to write it."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """student.pt, as `python -m train.distill` writes it."""
    samples: int = 256
    """Count on the first N test images."""
    out: Path | None = None
    """Folder for energy.json and energy.png; default: the checkpoint's."""
    chip: str = "cmos45nm"
    """Prices: a file of hardware/chips that has those of every convention, as cmos45nm."""
    teacher: Path | None = None
    """An ANN to compare with; default: the student's teacher, where its file is still there."""
    steps: float | None = None
    """Mean steps of an image that stops when it is sure; default: as the bundle says."""
    bundle: Path | None = None
    """A bundle of this student, for the mean steps; default: bundle/ beside the checkpoint."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the student runs while its events are counted."""
    data_root: Path | None = None
    """Where data sets live; default: the environment variable TSERVE_DATA, else where it was trained from."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1 image, got {self.samples}")


@dataclass(frozen=True, kw_only=True)
class Result:
    """The written files and what energy.json holds."""

    json: Path
    plot: Path
    report: dict[str, Any]


def report(
    graph: Graph,
    images: np.ndarray,
    *,
    named: dict[str, Any],
    chip: Chip,
    origin: Origin | None = None,
    beside: Beside | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """What energy.json holds: counts and joules for `images` [N, C, H, W] in [0, 1], means per image; JSON types.

    Of a Graph of events the images are recordings, frames [T, N, C, H, W], and its ANN sees one frame, their mean.
    named: which images these are (dataset, split, indices), recorded as it is. origin: what the Graph was lowered from;
    without it the conventions that charge batch normalisation are left out. beside: what else is known of the student,
    for `comparison`, `chips` and `accuracy_by_T`. device: where the Graph runs. `energy_J` is in joules. Step t is
    counted from 1. `input` of a layer is static (before the first LIF), binary (0 or 1) or graded. What stands outside
    of `conventions`, `comparison` and `chips` is priced by `convention`, event_exact.
    """
    counts, beside = count(graph, images, device=device, progress=True), beside or Beside()
    accounts = [account(convention, graph, counts, origin, chip) for convention in CONVENTIONS.values()]
    exact = next(entry for entry in accounts if entry["name"] == "event_exact")
    events = {layer.name: layer for layer in counts.synapses}
    sops = np.sum([layer.sops for layer in counts.synapses], axis=0)  # [T, N]
    ann_macs = sum(layer.dense_macs for layer in counts.synapses)
    return {
        "format": FORMAT,
        "images": {**named, "count": counts.num_images},
        "T": graph.T,
        "chip": chip.name,
        "convention": {"name": exact["name"], "rules": exact["rules"]},
        "prices": exact["prices"],
        "layers": [
            {
                "name": layer["name"],
                **_events(events[layer["name"]], counts),
                **{key: layer[key] for key in ("acs", "macs", "energy_J")},
                "dense_macs": events[layer["name"]].dense_macs,
                "ann_energy_J": layer["ann_energy_J"],
            }
            for layer in exact["layers"]
        ],
        "per_image": {
            "sops": per_image(sops),
            **{key: exact["per_image"][key] for key in ("acs", "macs")},
            "static_macs": sum(layer.dense_macs for layer in counts.synapses if layer.static),
            **{key: exact["per_image"][key] for key in ("energy_J", "energy_J_std")},
            "ann": {"macs": ann_macs, "energy_J": exact["per_image"]["ann"]["energy_J"]},
            "ratio": exact["per_image"]["ratio"],
        },
        "per_step": [
            {"t": step["t"], "sops": float(at.mean()), **{key: step[key] for key in ("acs", "macs", "energy_J")}}
            for step, at in zip(exact["per_step"], sops, strict=True)
        ],
        "lif_layers": [
            {
                "name": layer.name,
                "neurons": layer.neurons,
                "spikes": per_image(layer.spikes),
                "updates": {"active": per_image(layer.active), "idle": per_image(layer.idle)},
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
        "conventions": accounts,
        "verdict": exact["verdict"],
        "comparison": compare(accounts, beside, chip, T=graph.T),
        "break_even": break_even(T=graph.T, spike_rate=spike_rate(counts)),
        "chips": chips(counts, beside),
        "accuracy_by_T": list(beside.accuracy_by_T) if beside.accuracy_by_T else None,
    }


def _events(layer: SynapseCounts, counts: Counts) -> dict[str, Any]:
    """What was counted of one layer; no firing rate before the first spike."""
    return {
        "kind": layer.kind,
        "input": "static" if layer.static else "binary" if layer.binary else "graded",
        "firing_rate_in": None if layer.static else float(layer.nonzero.mean() / layer.inputs),
        "sops": per_image(layer.sops),
    }


def chips(counts: Counts, beside: Beside) -> dict[str, Any]:
    """What is published of real chips, for the student's events and for its .net file; never mixed with conventions."""
    events = {
        "synops": sum(per_image(layer.sops) for layer in counts.synapses),
        "image_synops": float(sum(layer.dense_macs for layer in counts.synapses if layer.static)),
        "active": sum(per_image(layer.active) for layer in counts.neurons),
        "inactive": sum(per_image(layer.idle) for layer in counts.neurons),
        "spikes": sum(per_image(layer.spikes) for layer in counts.neurons),
    }
    net = {"left_out": beside.net} if isinstance(beside.net, str) else dict(beside.net)
    return {
        "of_the_student": [itemise(load(name), **events, T=counts.T) for name in ("loihi1", "loihi2")],
        "of_the_net_file": net,
    }


def spike_rate(counts: Counts) -> float:
    """Spikes per neuron and step."""
    neurons = sum(layer.neurons for layer in counts.neurons)
    return sum(per_image(layer.spikes) for layer in counts.neurons) / (neurons * counts.T)


def main(config: EnergyConfig, *, exits: dict[str, Any] | None = None, net: dict[str, Any] | None = None) -> Result:
    """Count, price, and write energy.json and energy.png. exits, net: see energy_beside.find."""
    from export.conventions_origin import origin_of
    from export.energy_plot import plot
    from export.images import real_images
    from export.lower import lower
    from train import record
    from train.checkpoint import Checkpoint
    from train.metrics import pick_device

    prices = load(config.chip)
    checkpoint = Checkpoint.load_student(config.checkpoint)
    named = {key: getattr(config, key) for key in ("teacher", "steps", "bundle")}
    beside = find(checkpoint, config.checkpoint, chip=prices, **named, exits=exits, net=net)
    graph = lower(checkpoint)
    real = real_images(checkpoint, split="test", limit=config.samples, root=config.data_root)
    origin = origin_of(checkpoint.network(), graph)
    shown: dict[str, Any] = {"named": real.describe(), "chip": prices, "origin": origin, "beside": beside}
    content = report(graph, real.images, **shown, device=pick_device(config.device))
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
