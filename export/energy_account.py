"""One convention's account of counted images, in the form in which energy.json and bundle.json have it."""

from typing import Any

import numpy as np

from export.conventions import Convention
from export.conventions_terms import CannotCount, Charge, Origin, Spent, evaluate
from export.counts import Counts
from export.graph import Graph
from hardware.chip import Chip, Fact


QUANTITIES = ("acs", "macs", "accesses", "access_J")


def account(convention: Convention, graph: Graph, counts: Counts, origin: Origin | None, chip: Chip) -> dict[str, Any]:
    """One convention's entry in energy.json; of one that cannot count the Graph, `unavailable` says why.

    `charges` are the coefficients from which the server prices a single image: serve/energy_record.py. `access_J` are
    the joules of memory accesses; the rest of `energy_J` is acs and macs at their prices.
    """
    prices = {key: chip[fact] for key, fact in convention.prices().items()}
    ac, mac = prices["ac"].value, prices["mac"].value
    about: dict[str, Any] = {key: getattr(convention, key) for key in ("name", "title", "says", "source", "rules")}
    about["blind_spots"] = list(convention.blind_spots)
    about["prices"] = {key: price_of(price) for key, price in prices.items()}
    try:
        charges = convention.charges(graph, origin, chip)
    except CannotCount as reason:
        return {**about, "unavailable": str(reason)}
    spent = [evaluate(charge, counts) for charge in charges]
    joules_of = [_joules(layer, ac, mac) for layer in spent]
    ann = [_ann_joules(charge, ac, mac) for charge in charges]
    energy = np.sum(joules_of, axis=0)  # [T, N]
    sums = {key: np.sum([getattr(layer, key) for layer in spent], axis=0) for key in QUANTITIES}
    totals = {
        **{key: per_image(value) for key, value in sums.items()},
        "energy_J": per_image(energy),
        "energy_J_std": float(energy.sum(axis=0).std()),
        "ann": {**once(charges), "energy_J": sum(ann)},
        "ratio": per_image(energy) / sum(ann),
    }
    return {
        **about,
        "charges": [_written(charge, cost) for charge, cost in zip(charges, ann, strict=True)],
        "layers": [
            {
                "name": charge.name,
                **{key: per_image(getattr(layer, key)) for key in QUANTITIES},
                "energy_J": per_image(joules),
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


def once(charges: tuple[Charge, ...]) -> dict[str, float]:
    """What the ANN of the charged layers does for one image."""
    return {key: float(sum(getattr(charge.ann, key) for charge in charges)) for key in QUANTITIES}


def verdict(totals: dict[str, Any], counting: str) -> str:
    """One sentence that follows from the totals, favourable or not; `counting` is its end."""
    snn, ann, ratio = totals["energy_J"], totals["ann"]["energy_J"], totals["ratio"]
    word = "Favourable" if ratio < 1 else "Not favourable"
    return f"{word}: an image costs the SNN {joules(snn)} and the ANN {joules(ann)}, a ratio of {ratio:.3g}, {counting}"


PREFIXES = ((1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"), (1e-12, "p"))


def joules(value: float) -> str:
    """Joules with a prefix, three significant digits: 4.2e-7 -> '420 nJ'."""
    value = float(f"{value:.3g}")
    scale, prefix = next(((s, p) for s, p in PREFIXES if value >= s), PREFIXES[-1])
    return f"{value / scale:.3g} {prefix}J"


def per_image(counted: np.ndarray) -> float:
    """Mean over the images of the sum over the steps of [T, N]."""
    return float(counted.sum(axis=0).mean())


def price_of(price: Fact) -> dict[str, Any]:
    """A price with its source, JSON types."""
    return {"value": price.value, "unit": price.unit, "source": price.source, "status": price.status}


def _joules(layer: Spent, ac: float, mac: float) -> np.ndarray:
    return layer.acs * ac + layer.macs * mac + layer.access_J


def _ann_joules(charge: Charge, ac: float, mac: float) -> float:
    return charge.ann.acs * ac + charge.ann.macs * mac + charge.ann.access_J


def _written(charge: Charge, ann_energy_J: float) -> dict[str, Any]:
    """A Charge as bundle.json has it: what is zero is left out."""
    terms = {key: getattr(charge, key).written() for key in QUANTITIES}
    places = {key: getattr(charge, key) for key in ("synapse", "lif") if getattr(charge, key) is not None}
    return {
        "name": charge.name,
        **places,
        **{key: term for key, term in terms.items() if term},
        "ann_energy_J": ann_energy_J,
    }
