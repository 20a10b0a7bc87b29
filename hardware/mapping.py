"""Place a network on the cores of a chip: cores per layer, what they hold, what limits them, how many chips it takes.

    python -m hardware.mapping student.net --chip loihi2

This is a model, not the chip's compiler. A layer's neurons are cut into equal boxes of (channels, rows, columns), one
to a core, and a core holds one layer; of all boxes that fit, one that needs the fewest cores is taken. Where the chip
asks for a width that is a power of two, a box reserves all its columns, even those beyond the layer. A flat layer of N
neurons is cut as (N, 1, 1). A convolution is stored as kernels or, where that needs fewer cores, synapse by synapse.
An input layer without neurons takes no cores: its values come from outside.
hardware/core_load.py says what a box takes; every constant is a fact in hardware/chips/NAME.toml.

Against netx's compiler, by its output in lava-dl's tutorials: PilotNet LIF takes 65 cores here and 74 there, PilotNet
SDNN, which has no input neurons, 52 and 61, MNIST 5 and 5, Oxford 4 and 5. All layers agree to the core but three: the
second convolution of PilotNet takes 9 and 13 (there only columns are cut), its first dense layer 7 and 12 (there it is
cut in 6 and, as they do not fit, in 12), the first of Oxford 2 and 3. So expect the compiler to take some more.
"""

import json
import sys
from collections.abc import Mapping as Dict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from hardware import core_load, netx
from hardware.chip import Chip, load
from hardware.core_load import FACTS, Block, Readers
from hardware.net import InputLayer, Net, check


RESOURCES = ("neurons", "synapse_words", "input_axons", "output_axons")
"""What a core has a limited number of."""

ADVICE = {
    "neurons": "this chip holds no network",
    "synapse_words": "use fewer input channels or a smaller kernel, or weights of fewer bits",
    "input_axons": "use fewer inputs: pool or stride before this layer",
    "output_axons": "make the next layer smaller, so that fewer cores read this one",
}


class MappingError(ValueError):
    """A layer of which not one neuron fits a core, or a network that needs more chips than there are."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A layer on its cores. `used` is of the fullest core, by resource (RESOURCES); `share` is used / limit.

    tile: the (channels, rows, columns) of a core; (neurons, 1, 1) of a dense layer. weights: those of the file.
    synapses: connections with a weight other than zero, every use of a kernel counted, padding not.
    shared_kernels: a convolution is stored as its kernels, once a core, and not synapse by synapse.
    """

    name: str
    shape: tuple[int, ...]
    tile: tuple[int, int, int]
    cores: int
    neurons: int
    synapses: int
    weights: int
    weight_bits: int
    shared_kernels: bool
    used: Dict[str, int]
    share: Dict[str, float]
    limited_by: str
    """The resource that alone asks for the most cores; among equals the one whose share is largest."""


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """A network on a chip, or on `chips` of them: a layer may lie on two."""

    chip: str
    cores_per_chip: int
    layers: tuple[Placement, ...]

    @property
    def cores(self) -> int:
        """Cores of all layers."""
        return sum(layer.cores for layer in self.layers)

    @property
    def chips(self) -> int:
        """Chips that hold so many cores."""
        return -(-self.cores // self.cores_per_chip)

    def to_json(self) -> dict[str, Any]:
        """JSON types: totals, and one row a layer."""
        totals = {key: sum(getattr(layer, key) for layer in self.layers) for key in ("neurons", "synapses", "weights")}
        head = {"chip": self.chip, "cores": self.cores, "cores_per_chip": self.cores_per_chip, "chips": self.chips}
        rows = [{**asdict(layer), "shape": list(layer.shape), "tile": list(layer.tile)} for layer in self.layers]
        return {**head, **totals, "layers": rows}

    def table(self) -> str:
        """Lines for the screen: a row a layer, shares in percent of a core, the totals last."""
        width = max(len("layer"), *(len(layer.name) for layer in self.layers))
        heads = ("neurons", "words", "in axons", "out axons")
        lines = [f"{'layer':{width}}  {'shape':>11}  {'cores':>5}  {'a core':>10}  " + _cells(heads) + "  limited by"]
        for layer in self.layers:
            shape, tile = ("x".join(map(str, sizes)) for sizes in (layer.shape, layer.tile))
            cells = [f"{layer.used[key]} {layer.share[key]:4.0%}" for key in RESOURCES]
            text = f"{layer.name:{width}}  {shape:>11}  {layer.cores:5}  {tile:>10}  " + _cells(cells)
            lines.append(f"{text}  {layer.limited_by.replace('_', ' ')}")
        totals = self.to_json()
        lines.append(
            f"{self.cores} cores, {self.chips} chip{'s' * (self.chips > 1)} {self.chip} of {self.cores_per_chip}; "
            f"{totals['neurons']:,} neurons, {totals['synapses']:,} synapses, {totals['weights']:,} weights"
        )
        return "\n".join(lines)


def _cells(texts: Sequence[str]) -> str:
    return "  ".join(f"{text:>11}" for text in texts)


def place(net: Net, chip: Chip, *, chips: int | None = None) -> Mapping:
    """Place every layer with neurons; this file's head says how. `net` must pass hardware.net.check.

    Raises MappingError where one neuron does not fit a core, or the network does not fit `chips` chips; ChipError where
    the chip's file lacks a fact.
    """
    if chips is not None and chips < 1:
        raise MappingError(f"chips is {chips}, must be at least 1")
    core = {name: int(chip[key].value) for name, key in FACTS.items()}
    inputs = {id(layer): before.shape for before, layer in zip(net.layers, net.layers[1:], strict=False)}
    placements: list[Placement] = []
    blocks = net.blocks
    for index in reversed(range(len(blocks))):  # how many axons leave a core depends on the cores of the next layer
        block = blocks[index]
        readers = Readers.nobody(block)
        if placements:
            following = blocks[index + 1]
            assert not isinstance(following, InputLayer), "only the first layer is an input layer"
            there = placements[0]
            readers = Readers.of(
                block, following, core, tile=there.tile, cores=there.cores, kernels=there.shared_kernels
            )
        before = inputs.get(id(block), ())
        found = [_place(block, before, readers, core, kernels) for kernels in core_load.layouts(block, core)]
        fitting = [placement for placement in found if isinstance(placement, Placement)]
        if not fitting:
            raise MappingError(f"layer {block.name!r} on {chip.name}: {found[0]}")
        placements.insert(0, min(fitting, key=lambda placement: placement.cores))
    mapping = Mapping(chip=chip.name, cores_per_chip=core["cores"], layers=tuple(placements))
    if chips is not None and mapping.chips > chips:
        raise MappingError(
            f"the network needs {mapping.cores} cores of {chip.name}, and {chips} chip{'s' * (chips > 1)} of "
            f"{core['cores']} hold {chips * core['cores']}; make it narrower, or use {mapping.chips} chips"
        )
    return mapping


def _place(
    block: Block, before: tuple[int, ...], readers: Readers, core: Dict[str, int], kernels: bool
) -> Placement | str:
    """The box with the fewest cores; among equals the one with the fewest cuts through channels, then fewest inputs.

    A sentence where one neuron does not fit a core. kernels: how the synapses are stored.
    """
    shape, cuts = core_load.box(block), core_load.sizes(block, core, kernels=kernels)
    grid = np.broadcast_arrays(*np.ix_(*cuts))
    parts = [-(-extent // size) for extent, size in zip(shape, grid, strict=True)]
    cores = parts[0] * parts[1] * parts[2]
    words, axons = core_load.synapse_load(block, before, cuts, core, kernels=kernels)
    amounts = (grid[0] * grid[1] * grid[2], words, axons, readers.load(cuts))
    loads = {key: np.broadcast_to(load, cores.shape) for key, load in zip(RESOURCES, amounts, strict=True)}
    fits = {key: loads[key] <= core[key] for key in RESOURCES}
    for key in RESOURCES:
        if not fits[key].flat[0]:  # the box of one neuron, which takes the least of everything
            needed = f"one neuron takes {loads[key].flat[0]} {key.replace('_', ' ')}"
            return f"{needed}, a core has {core[key]}; {ADVICE[key]}"
    order = np.lexsort((loads["input_axons"].ravel(), parts[0].ravel(), cores.ravel()))  # the last key is the first
    best = next(at for at in order if all(fit.flat[at] for fit in fits.values()))
    used = {key: int(loads[key].flat[best]) for key in RESOURCES}
    share = {key: used[key] / core[key] for key in RESOURCES}
    channels, rows, columns = (min(int(size.flat[best]), extent) for size, extent in zip(grid, shape, strict=True))
    return Placement(
        name=block.name,
        shape=block.shape,
        tile=(channels, rows, columns),
        cores=int(cores.flat[best]),
        neurons=prod(shape),
        synapses=core_load.synapses(block, before),
        weights=0 if isinstance(block, InputLayer) else block.weight.size,
        weight_bits=core_load.weight_bits(block),
        used=used,
        share=share,
        shared_kernels=kernels,
        limited_by=max(RESOURCES, key=lambda key: (cores[fits[key]].min(), share[key])),
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """Place a .net file on the cores of a chip and print what each layer takes.

    Exit status: 0 done, 2 bad usage or input, or a network that does not fit.
    """

    file: tyro.conf.Positional[Path]
    """The netx file (.net)."""
    chip: str = "loihi2"
    """A chip of hardware/chips."""
    chips: int | None = None
    """Refuse a network that needs more chips than this."""
    json: bool = False
    """Print JSON instead of the table."""


def main(config: Config) -> Mapping:
    """Read, place, print. Raises ValueError for bad input and for a network that does not fit."""
    found = load(config.chip)
    net = netx.read(config.file)
    check(net)
    mapping = place(net, found, chips=config.chips)
    print(json.dumps(mapping.to_json(), indent=2) if config.json else mapping.table())
    return mapping


def cli(argv: Sequence[str] | None = None) -> int:
    """The command: parse, place, turn errors into a message and an exit status."""
    config = tyro.cli(Config, args=argv, prog="python -m hardware.mapping")
    try:
        main(config)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(cli())
