"""The energy of one image in every convention of its bundle, from what the network reported of it. Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve.bundle import Description
from serve.energy_record import ConventionRecord, LayerRecord, TermsRecord


@dataclass(frozen=True, kw_only=True)
class LayerEnergy:
    """What one layer did for the image, over the steps that were run, by one convention's counting."""

    name: str
    acs: float
    """Accumulations."""
    macs: float
    """Multiply-accumulations."""
    accesses: float
    """Words read from or written to memory; 0 where the convention does not count them."""
    energy_J: float
    ann_energy_J: float
    """Of the same layer in the ANN, which runs once."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """The energy of one image in one convention, beside the ANN of the same layers."""

    convention: str
    title: str
    says: str
    """What the convention counts, in one sentence."""
    layers: tuple[LayerEnergy, ...]
    energy_J: float
    ann_energy_J: float
    unavailable: str | None
    """Why the convention cannot count this network; then there are no layers, and both energies are 0."""


def counted(about: Description, spike_rates: np.ndarray) -> np.ndarray:
    """Spikes, int64 [t, L], from spikes per neuron [t, L]."""
    return np.rint(spike_rates.astype(np.float64) * about.neurons).astype(np.int64)


def energies_J(
    about: Description, *, taps: np.ndarray, nonzero: np.ndarray, spike_rates: np.ndarray
) -> dict[str, tuple[float, float]]:
    """(SNN's, ANN's) joules in every convention that can count the network; arguments as of `accounts`, much faster."""
    pricing = about.pricing
    snn = pricing.energies_J(taps, nonzero, counted(about, spike_rates))
    return dict(zip(pricing.names, zip(snn, pricing.ann_energy_J, strict=True), strict=True))


def accounts(
    about: Description, *, taps: np.ndarray, nonzero: np.ndarray, spike_rates: np.ndarray
) -> tuple[Account, ...]:
    """Price an image that was run for t steps in every convention of its bundle, in the bundle's order.

    taps, nonzero: [t, M], of the M spike-driven layers (`synapses`); spike_rates: [t, L], spikes per neuron of the L
    LIF layers. For an image that stops earlier give the first rows. ValueError for arrays of other shapes.
    """
    wanted = {"taps": len(about.synapses), "nonzero": len(about.synapses), "spike_rates": len(about.lif_layers)}
    for (name, size), array in zip(wanted.items(), (taps, nonzero, spike_rates), strict=True):
        if array.shape != (len(taps), size) or not len(taps):
            raise ValueError(f"{name} is {list(array.shape)}, expected [t, {size}] with the same t >= 1 for all")
    spikes = counted(about, spike_rates)
    seen = _Seen(
        steps=len(taps),
        taps=np.rint(taps).astype(np.int64).sum(axis=0).tolist(),
        nonzero=np.rint(nonzero).astype(np.int64).sum(axis=0).tolist(),
        spikes=spikes.sum(axis=0).tolist(),
    )
    return tuple(_account(convention, seen) for convention in about.energy.conventions)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What was seen of one image: sums over the steps that were run."""

    steps: int
    taps: Sequence[int]
    nonzero: Sequence[int]
    spikes: Sequence[int]

    def of(self, terms: TermsRecord, layer: LayerRecord) -> float:
        """One quantity of one layer."""
        value = terms.once + terms.per_step * self.steps
        if layer.synapse is not None:
            value += terms.per_tap * self.taps[layer.synapse] + terms.per_nonzero * self.nonzero[layer.synapse]
        if layer.lif is not None:
            value += terms.per_spike * self.spikes[layer.lif]
        return value


def _account(convention: ConventionRecord, seen: _Seen) -> Account:
    layers, access_J = [], 0.0
    for layer in convention.layers:
        acs, macs, accesses, spent = (
            seen.of(terms, layer) for terms in (layer.acs, layer.macs, layer.accesses, layer.access_J)
        )
        access_J += spent
        layers.append(
            LayerEnergy(
                name=layer.name,
                acs=acs,
                macs=macs,
                accesses=accesses,
                energy_J=acs * convention.ac_J + macs * convention.mac_J + spent,
                ann_energy_J=layer.ann_energy_J,
            )
        )
    acs, macs = sum(layer.acs for layer in layers), sum(layer.macs for layer in layers)
    return Account(
        convention=convention.name,
        title=convention.title,
        says=convention.says,
        layers=tuple(layers),
        # Operations are added before they are priced: whole numbers, and so the very joules of Prediction.energy_J.
        energy_J=acs * convention.ac_J + macs * convention.mac_J + access_J,
        ann_energy_J=sum((layer.ann_energy_J for layer in layers), 0.0),
        unavailable=convention.unavailable,
    )
