"""What an image costs on the chip, as far as published figures allow to say: events counted, prices named.

Events are counted from the spikes of a real run, relays and pooling layers included. No table of energies per operation
has been published for Loihi 2, so they are priced by Loihi 1's, and time and static power by those measured on a Loihi
2 board with another network: both are estimates, and each names its source.
"""

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np

from hardware import netx_sim
from hardware.chip import Chip, Fact
from hardware.net import ConvLayer, Net, SpikingLayer


@dataclass(frozen=True, kw_only=True)
class Events:
    """Means per image of one layer over the T steps that count.

    inputs: nonzero values that arrive, graded or spikes. synops: synaptic operations, an arriving value times each
    nonzero weight that leads from it to a neuron. spikes: of its own neurons. updates: neurons times the steps of a
    window.
    """

    name: str
    inputs: float
    synops: float
    spikes: float
    updates: float


def count(net: Net, sent: np.ndarray, run: netx_sim.Run) -> tuple[Events, ...]:
    """The events of every layer with weights, from what was sent in (netx_sim.frames) and a run that kept all spikes.

    Raises ValueError for a run that kept only some layers.
    """
    if run.names != tuple(layer.name for layer in net.spiking):
        raise ValueError(f"the run kept {len(run.names)} of {len(net.spiking)} layers; record all of them")
    T, images = run.v_out.shape[:2]
    _, window = netx_sim.schedule(net, T)
    events, x = [], sent
    for layer, spikes in zip(net.spiking, run.spikes, strict=True):
        arriving = (x != 0).astype(np.int64)
        events.append(
            Events(
                name=layer.name,
                inputs=float(arriving.sum() / images),
                synops=synops(layer, arriving) / images,
                spikes=float(spikes.sum(dtype=np.int64) / images),
                updates=float(window * prod(layer.shape)),
            )
        )
        x = spikes
    return tuple(events)


def synops(layer: SpikingLayer, arriving: np.ndarray) -> int:
    """Nonzero weights met by the values that arrive, 0 or 1 [L, B, ...]; the border's missing neurons do not count."""
    used = layer.weight != 0
    if not isinstance(layer, ConvLayer):
        per_input = used.sum(0)
        return int((arriving.reshape(-1, len(per_input)).sum(0) * per_input).sum())
    # A kernel of one output channel a group whose every tap says how many output channels it leads to.
    per_group = used.reshape(layer.groups, -1, *used.shape[1:]).sum(1)
    summed = ConvLayer(
        name=layer.name,
        shape=(layer.groups, *layer.shape[1:]),
        weight=per_group,
        bias=np.zeros(layer.groups, np.int64),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        neuron=layer.neuron,
    )
    return int(netx_sim.weighted_sum(summed, arriving).sum())


def estimate(net: Net, events: tuple[Events, ...], *, prices: Chip, board: Chip) -> dict[str, Any]:
    """Time and energy of one image, as JSON types, with the facts that they are made of.

    prices: a chip with energy.synaptic_operation and energy.neuron_update_active, in joules.
    board: a chip with board.pilotnet_lif.time_per_step and .power_static.
    energy_J counts synapses and neurons (each updated at every step, at the price of an active one); static_energy_J
    is the board's static power for the time that an image takes.
    """
    T, window = netx_sim.schedule(net)
    depth = len(net.spiking)
    synop, update = prices["energy.synaptic_operation"], prices["energy.neuron_update_active"]
    step, power = board["board.pilotnet_lif.time_per_step"], board["board.pilotnet_lif.power_static"]
    total = {key: sum(getattr(layer, key) for layer in events) for key in ("synops", "spikes", "updates")}
    time_s = window * step.value
    return {
        "per_image": {
            **total,
            "steps": window,
            "time_s": time_s,
            "latency_steps": T + depth,
            "latency_s": (T + depth) * step.value,
            "energy_J": total["synops"] * synop.value + total["updates"] * update.value,
            "static_energy_J": power.value * time_s,
        },
        "layers": [asdict(layer) for layer in events],
        "sources": {
            "synaptic_operation": cited(synop, prices),
            "neuron_update": cited(update, prices),
            "time_per_step": cited(step, board),
            "power_static": cited(power, board),
        },
        "note": (
            "an estimate: operations of this network priced by Loihi 1's pre-silicon figures (Loihi 2 has no published "
            "ones), time and static power as measured on a Loihi 2 board with another network"
        ),
    }


def cited(fact: Fact, chip: Chip) -> dict[str, Any]:
    """A fact with where it comes from."""
    return {"chip": chip.name, **asdict(fact)}
