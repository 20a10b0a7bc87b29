"""What the networks of TSER's Table 4 do on an image, recounted from their shapes, in three conventions.

`tser_compat`, `bn_fused` and `event_exact` are those of docs/energy.md. What depends on the spikes is left open here
and filled in at one rate; `memory_aware` needs to know where every event falls, so it is counted of students alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import torch
from torch import nn

from train.config import NetConfig
from train.experiments.table4 import AC_J, COUNTED, MAC_J, row_of
from train.networks import build, lif_layers
from train.networks.operations import LayerOperations, count_operations


CONVENTIONS = ("tser_compat", "bn_fused", "event_exact")
PAPERS = tuple(NetConfig(name=name, T=4, in_channels=3, size=32, num_classes=100) for name in ("resnet18", "vgg16"))
NETWORKS = (*PAPERS, replace(PAPERS[1], pool="max"))
WINDOWS = {"resnet18": 16, "vgg16": 4}
"""Spikes that a pooling makes one value of: 4 x 4 before ResNet-18's classifier, 2 x 2 everywhere in VGG-16."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Operations on one image over all steps, sorted by when they happen."""

    spiking: int = 0
    """An accumulation where the input spikes."""
    after_max: int = 0
    """An accumulation where a maximum of spikes is 1."""
    neurons: int = 0
    """An accumulation always."""
    macs: int = 0
    """A multiply-accumulation always."""
    after_average: int = 0
    """A multiply-accumulation where an average of spikes is not 0."""
    ann_macs: int = 0
    """All of the ANN of the same layers, run once."""

    @property
    def operations(self) -> int:
        """All of the student, as if every value were there."""
        return self.spiking + self.after_max + self.neurons + self.macs + self.after_average

    def rate(self, acs: float) -> float:
        """The mean rate of spikes, weighted by operations, that gives so many accumulations. Needs `spiking` alone."""
        if self.after_max:
            raise ValueError("the rates before and after a maximum cannot be told apart in one number")
        return (acs - self.neurons) / self.spiking

    def energy_J(self, rate: float, window: int) -> tuple[float, float]:
        """Least and largest energy at a mean rate of spikes. A pooling of `window` spikes is not 0 at `rate`, where
        they fire together, to `window` x `rate`, where never two do."""
        low, high = (
            float(AC_J) * (self.spiking * rate + self.after_max * pooled + self.neurons)
            + float(MAC_J) * (self.macs + self.after_average * pooled)
            for pooled in (rate, min(1.0, window * rate))
        )
        return low, high


def work(config: NetConfig, convention: str) -> Work:
    """What a student does on one image. Raises ValueError for another convention than CONVENTIONS."""
    counted = count_operations(config)
    average = {entry.name: entry.macs for entry in count_operations(replace(config, pool="avg")).layers}
    with torch.device("meta"):
        lifs = {*lif_layers(build(replace(config, spiking=True)))}
        modules = dict(build(replace(config, spiking=False)).named_modules())
    match convention:
        case "tser_compat":
            layers = counted.layers
        case "bn_fused":
            layers = tuple(_fused(counted.layers, modules))
        case "event_exact":
            return _events(counted.layers, lifs, average, config.T)
        case _:
            raise ValueError(f"convention {convention!r}: from shapes there are {', '.join(CONVENTIONS)}")
    sums = dict.fromkeys(("neurons", "macs", "after_max", "spiking"), 0)
    for entry in layers:
        if entry.name in lifs:
            kind = "neurons"
        elif entry.macs:
            kind = "macs"
        else:
            kind = "after_max" if average[entry.name] else "spiking"
        sums[kind] += config.T * entry.operations
    return Work(**sums, ann_macs=sum(entry.operations for entry in layers))


def _fused(layers: tuple[LayerOperations, ...], modules: dict[str, nn.Module]) -> Iterator[LayerOperations]:
    """Without normalisations: a convolution before one has a bias instead, if it had none."""
    outputs = {_parent(e.name): e.operations // 2 for e in layers if isinstance(modules[e.name], nn.BatchNorm2d)}
    for entry in layers:
        module = modules[entry.name]
        if isinstance(module, nn.BatchNorm2d):
            continue
        if isinstance(module, nn.Conv2d) and module.bias is None and _parent(entry.name) in outputs:
            operations = entry.operations + outputs[_parent(entry.name)]
            yield replace(entry, operations=operations, macs=operations if entry.macs else 0)
        else:
            yield entry


def _events(layers: tuple[LayerOperations, ...], lifs: set[str], average: dict[str, int], T: int) -> Work:
    """Products inside the image alone; what stands before the first LIF layer once."""
    sums = dict.fromkeys(("macs", "after_average", "after_max", "spiking"), 0)
    static = True
    for entry in layers:
        static = static and entry.name not in lifs
        if static:
            kind = "macs"
        elif entry.macs:
            kind = "after_average"
        else:
            kind = "after_max" if average[entry.name] else "spiking"
        sums[kind] += entry.taps if static else T * entry.taps
    return Work(**sums, ann_macs=sum(entry.taps for entry in layers))


def _parent(name: str) -> str:
    """The pair that a convolution and its normalisation are in."""
    return name.rpartition(".")[0]


def content() -> list[dict[str, Any]]:
    """Every network in every convention, at the mean rate that the paper's TSER row implies, as JSON types; joules."""
    return [_recounted(config) for config in NETWORKS]


def _recounted(config: NetConfig) -> dict[str, Any]:
    printed = COUNTED[config.name]
    compat = work(replace(config, pool="avg"), "tser_compat")
    ours = {"operations": Decimal(compat.operations), "macs": Decimal(compat.macs)}
    rate = compat.rate(float(row_of(config.name, "TSER").acs.value))
    return {
        "network": config.name,
        "pool": config.pool,
        "paper": {
            key: {"printed": float(number.value), "agrees": number.holds(ours[key], ours[key])}
            for key, number in printed.items()
        }
        if config.pool == "avg"
        else None,
        "rate": rate,
        "conventions": [_counted(name, work(config, name), rate, WINDOWS[config.name]) for name in CONVENTIONS],
    }


def _counted(name: str, found: Work, rate: float, window: int) -> dict[str, Any]:
    low, high = found.energy_J(rate, window)
    return {
        "name": name,
        "operations": found.operations,
        "macs": found.macs + found.after_average,
        "least_J": low,
        "most_J": high,
        "ann_macs": found.ann_macs,
        "ann_J": float(MAC_J) * found.ann_macs,
    }
