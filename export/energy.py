"""`python -m export.energy CKPT [--samples 256] [--out DIR]`: count a student's operations and price them in joules.

Runs named test images through the student, counts every synaptic operation exactly (export/counts.py), prices them by
four named conventions (export/conventions.py) beside the ANN of the same layers, and writes energy.json and energy.png.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from export.conventions import CONVENTIONS, Convention
from export.conventions_terms import CannotCount, Charge, Origin, Spent, evaluate
from export.counts import Counts, SynapseCounts, count
from export.graph import Graph
from train import cli


if TYPE_CHECKING:
    from hardware.chip import Chip, Fact

FORMAT = 2


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
    graph: Graph, images: np.ndarray, *, named: dict[str, Any], chip: Chip, origin: Origin | None = None
) -> dict[str, Any]:
    """What energy.json holds: counts and joules for `images` [N, C, H, W] in [0, 1], means per image; JSON types.

    Of a Graph of events the images are recordings, frames [T, N, C, H, W], and its ANN sees one frame, their mean.
    named: which images these are (dataset, split, indices), recorded as it is. origin: what the Graph was lowered from;
    without it the conventions that charge batch normalisation are left out. `energy_J` is in joules. Step t is counted
    from 1. `input` of a layer is static (before the first LIF), binary (0 or 1) or graded. What stands outside of
    `conventions` is priced by `convention`, event_exact.
    """
    counts = count(graph, images)
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
            "sops": _per_image(sops),
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
        "conventions": accounts,
        "verdict": exact["verdict"],
    }


def account(convention: Convention, graph: Graph, counts: Counts, origin: Origin | None, chip: Chip) -> dict[str, Any]:
    """One convention's entry in energy.json; of one that cannot count the Graph, `unavailable` says why.

    `charges` are the coefficients from which the server prices a single image: serve/energy_record.py.
    """
    prices = {key: chip[fact] for key, fact in convention.prices().items()}
    ac, mac = prices["ac"].value, prices["mac"].value
    about: dict[str, Any] = {key: getattr(convention, key) for key in ("name", "title", "says", "source", "rules")}
    about["blind_spots"] = list(convention.blind_spots)
    about["prices"] = {key: _price(price) for key, price in prices.items()}
    try:
        charges = convention.charges(graph, origin, chip)
    except CannotCount as reason:
        return {**about, "unavailable": str(reason)}
    spent = [evaluate(charge, counts) for charge in charges]
    joules_of = [_joules(layer, ac, mac) for layer in spent]
    ann = [_ann_joules(charge, ac, mac) for charge in charges]
    energy = np.sum(joules_of, axis=0)  # [T, N]
    sums = {key: np.sum([getattr(layer, key) for layer in spent], axis=0) for key in ("acs", "macs", "accesses")}
    totals = {
        **{key: _per_image(value) for key, value in sums.items()},
        "energy_J": _per_image(energy),
        "energy_J_std": float(energy.sum(axis=0).std()),
        "ann": {
            **{key: float(sum(getattr(charge.ann, key) for charge in charges)) for key in sums},
            "energy_J": sum(ann),
        },
        "ratio": _per_image(energy) / sum(ann),
    }
    return {
        **about,
        "charges": [_written(charge, cost) for charge, cost in zip(charges, ann, strict=True)],
        "layers": [
            {
                "name": charge.name,
                **{key: _per_image(getattr(layer, key)) for key in sums},
                "energy_J": _per_image(joules),
                "ann_energy_J": cost,
            }
            for charge, layer, joules, cost in zip(charges, spent, joules_of, ann, strict=True)
        ],
        "per_image": totals,
        "per_step": [
            {
                "t": t + 1,
                **{key: float(value[t].mean()) for key, value in sums.items()},
                "energy_J": float(energy[t].mean()),
            }
            for t in range(counts.T)
        ],
        "verdict": verdict(totals, convention.counting.format(chip=chip.name)),
    }


def verdict(totals: dict[str, Any], counting: str) -> str:
    """One sentence that follows from the totals, favourable or not; `counting` is its end."""
    snn, ann, ratio = totals["energy_J"], totals["ann"]["energy_J"], totals["ratio"]
    word = "Favourable" if ratio < 1 else "Not favourable"
    return f"{word}: an image costs the SNN {joules(snn)} and the ANN {joules(ann)}, a ratio of {ratio:.3g}, {counting}"


def joules(value: float) -> str:
    """Joules with a prefix, three significant digits: 4.2e-7 -> '420 nJ'."""
    value = float(f"{value:.3g}")
    scale, prefix = next(((s, p) for s, p in PREFIXES if value >= s), PREFIXES[-1])
    return f"{value / scale:.3g} {prefix}J"


PREFIXES = ((1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"), (1e-12, "p"))


def _joules(layer: Spent, ac: float, mac: float) -> np.ndarray:
    return layer.acs * ac + layer.macs * mac + layer.access_J


def _ann_joules(charge: Charge, ac: float, mac: float) -> float:
    return charge.ann.acs * ac + charge.ann.macs * mac + charge.ann.access_J


def _written(charge: Charge, ann_energy_J: float) -> dict[str, Any]:
    """A Charge as bundle.json has it: what is zero is left out."""
    terms = {key: getattr(charge, key).written() for key in ("acs", "macs", "accesses", "access_J")}
    places = {key: getattr(charge, key) for key in ("synapse", "lif") if getattr(charge, key) is not None}
    return {
        "name": charge.name,
        **places,
        **{key: term for key, term in terms.items() if term},
        "ann_energy_J": ann_energy_J,
    }


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
    from export.conventions_origin import origin_of
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
    origin = origin_of(checkpoint.network(), graph)
    content = report(graph, real.images, named=real.describe(), chip=prices, origin=origin)
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
