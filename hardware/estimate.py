"""What an image costs on the chip, as far as published figures allow to say: events counted, prices named.

Events are counted from the spikes of a real run, relays and pooling layers included. No table of energies per operation
has been published for Loihi 2, so they are priced by Loihi 1's, and time and static power by those measured on a Loihi
2 board with another network: both are estimates, and each names its source. `itemise` prices events by what is
published of one chip alone, and leaves out the rest with the reason.
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


LINES = (
    ("synaptic operations of spikes", "synops", "energy.synaptic_operation"),
    ("synaptic operations of the image, once and densely", "image_synops", "energy.synaptic_operation"),
    ("neuron updates that move a membrane (active)", "active", "energy.neuron_update_active"),
    ("neuron updates that do not (inactive)", "inactive", "energy.neuron_update_inactive"),
    ("spikes, as if each stayed within its tile", "spikes", "energy.spike_within_tile"),
)
"""What a chip spends energy on, which count of an image it goes by, and its price."""
STATIC = ("board.pilotnet_lif.power_static", "board.pilotnet_lif.time_per_step")


def itemise(
    chip: Chip, *, synops: float, image_synops: float, active: float, inactive: float, spikes: float, T: int
) -> dict[str, Any]:
    """An image's events at the published prices of one chip, line by line, JSON types; none is taken from another.

    What the chip has no price for has `left_out`, the reason, in place of `energy_J`. The published table does not say
    when an update is active: here, when it moves the membrane. `energy_J` is the sum of the lines that have a price,
    None where there are none. `static` is the power that flows while nothing happens, for T steps, and is in no sum.
    """
    counts = {"synops": synops, "image_synops": image_synops, "active": active, "inactive": inactive, "spikes": spikes}
    lines = [_line(chip, what, counts[count], key) for what, count, key in LINES]
    priced = [line["energy_J"] for line in lines if "energy_J" in line]
    hops = "these events are placed on no cores here, so the number of hops is not known"
    return {
        "chip": chip.name,
        "title": chip.title,
        "lines": [*lines, {"what": "spikes from tile to tile", "left_out": hops}],
        "energy_J": sum(priced) if priced else None,
        "static": _static(chip, T),
    }


def _line(chip: Chip, what: str, count: float, key: str) -> dict[str, Any]:
    line: dict[str, Any] = {"what": what, "count": count}
    if key not in chip:
        return {**line, "left_out": "no energy of this operation has been published for this chip"}
    return {**line, "energy_J": count * chip[key].value, "price": cited(chip[key], chip)}


def _static(chip: Chip, T: int) -> dict[str, Any]:
    what = "static power"
    if any(key not in chip for key in STATIC):
        return {"what": what, "left_out": "no static power and no time of a step have been published for this chip"}
    power, step = (chip[key] for key in STATIC)
    return {
        "what": what,
        "time_s": T * step.value,
        "energy_J": power.value * T * step.value,
        "power": cited(power, chip),
        "time_per_step": cited(step, chip),
        "note": "measured on a board with another network; it does not scale with this one",
    }


def cited(fact: Fact, chip: Chip) -> dict[str, Any]:
    """A fact with where it comes from."""
    return {"chip": chip.name, **asdict(fact)}
