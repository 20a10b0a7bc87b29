"""What bundle.json says of energy: prices, and for each convention what every layer is charged, as coefficients.

A convention charges a layer linearly in what the network itself reports of an image: so much once an image, so much a
step, so much a tap or a nonzero input of a spike-driven layer, so much a spike of a LIF layer. `python -m
export.energy` writes these coefficients from the network's shapes; `serve.energy` evaluates them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator


Joules = Annotated[float, Field(ge=0)]
Coefficient = Annotated[float, Field(ge=0)]


class Record(BaseModel):
    """A part of bundle.json: frozen, every number finite; keys that this server does not know are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class TermsRecord(Record):
    """once + per_step * steps + per_tap * taps + per_nonzero * nonzero inputs + per_spike * spikes."""

    once: Coefficient = 0
    per_step: Coefficient = 0
    per_tap: Coefficient = 0
    """A tap: a nonzero input under a kernel position inside the output map, of layer `synapse`."""
    per_nonzero: Coefficient = 0
    """An input value of layer `synapse` that is not zero."""
    per_spike: Coefficient = 0
    """A spike of layer `lif`."""


class LayerRecord(Record):
    """What one layer is charged. access_J: joules of the accesses, which differ by the memory that they reach."""

    name: str
    synapse: NonNegativeInt | None = None
    """The place of the layer in `synapses` whose taps and nonzero inputs are meant."""
    lif: NonNegativeInt | None = None
    """The place of the layer in `lif_layers` whose spikes are meant."""
    acs: TermsRecord = TermsRecord()
    macs: TermsRecord = TermsRecord()
    accesses: TermsRecord = TermsRecord()
    access_J: TermsRecord = TermsRecord()
    ann_energy_J: Joules
    """Of the same layer in an ANN, for one image."""

    @model_validator(mode="after")
    def _driven_by_something(self) -> Self:
        terms = (self.acs, self.macs, self.accesses, self.access_J)
        if self.synapse is None and any(each.per_tap or each.per_nonzero for each in terms):
            raise ValueError(f"layer {self.name!r} is charged by the tap or input, but names no 'synapse'")
        if self.lif is None and any(each.per_spike for each in terms):
            raise ValueError(f"layer {self.name!r} is charged by the spike, but names no 'lif'")
        return self


class ConventionRecord(Record):
    """A way of counting energy: `layers`, or why it cannot count this network (`unavailable`)."""

    name: str
    title: str
    says: str
    """What it counts, in one sentence."""
    source: str
    ac_J: Joules
    """Joules of an accumulation in this convention."""
    mac_J: Joules
    layers: tuple[LayerRecord, ...] = ()
    unavailable: str | None = None

    @model_validator(mode="after")
    def _layers_or_a_reason(self) -> Self:
        if bool(self.layers) == (self.unavailable is not None):
            raise ValueError(f"convention {self.name!r} must have either 'layers' or a reason in 'unavailable'")
        return self


@dataclass(frozen=True, kw_only=True, eq=False)
class Pricing:
    """All conventions' totals as one matrix, for a server that prices every answer."""

    names: tuple[str, ...]
    """Of the conventions that can count the network."""
    ann_energy_J: tuple[float, ...]
    per: np.ndarray
    """[conventions, 2 + 2 M + L]: joules once, a step, a tap and a nonzero input of M layers, a spike of L."""

    @classmethod
    def of(cls, conventions: Sequence[ConventionRecord], *, synapses: int, lif_layers: int) -> Self:
        """Add up the layers' coefficients."""
        usable = [convention for convention in conventions if convention.unavailable is None]
        per = np.zeros((len(usable), 2 + 2 * synapses + lif_layers))
        for row, convention in zip(per, usable, strict=True):
            for layer in convention.layers:
                priced = ((layer.acs, convention.ac_J), (layer.macs, convention.mac_J), (layer.access_J, 1.0))
                for terms, joules in priced:
                    row[0] += joules * terms.once
                    row[1] += joules * terms.per_step
                    if layer.synapse is not None:
                        row[2 + layer.synapse] += joules * terms.per_tap
                        row[2 + synapses + layer.synapse] += joules * terms.per_nonzero
                    if layer.lif is not None:
                        row[2 + 2 * synapses + layer.lif] += joules * terms.per_spike
        return cls(
            names=tuple(convention.name for convention in usable),
            ann_energy_J=tuple(sum(layer.ann_energy_J for layer in each.layers) for each in usable),
            per=per,
        )

    def energies_J(self, taps: np.ndarray, nonzero: np.ndarray, spikes: np.ndarray) -> list[float]:
        """Joules of an image in each convention, from its taps and nonzero inputs [t, M] and spikes [t, L]."""
        seen = [[1, len(taps)], taps.sum(axis=0), nonzero.sum(axis=0), spikes.sum(axis=0)]
        return [float(joules) for joules in self.per @ np.concatenate(seen)]


class EnergyRecord(Record):
    """Joules per operation of the named chip, how operations are counted, and the counts that no image changes."""

    chip: str
    convention: str | None = None
    ac_J: Joules
    mac_J: Joules
    static_macs: NonNegativeInt
    ann_macs: NonNegativeInt
    ann_energy_J: Joules
    conventions: tuple[ConventionRecord, ...]
    """Ways of counting side by side; `convention` names the one that every answer is given in."""

    def misfit(self, *, synapses: int, lif_layers: int) -> str | None:
        """What does not fit a network of so many layers; None if all does."""
        for convention in self.conventions:
            for layer in convention.layers:
                for key, place, size in (("synapse", layer.synapse, synapses), ("lif", layer.lif, lif_layers)):
                    if place is not None and place >= size:
                        return f"{convention.name}: layer {layer.name!r} has {key} {place}, there are {size}"
        return None
