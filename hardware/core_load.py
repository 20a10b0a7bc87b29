"""What a core takes to hold a box of a layer's neurons, by the facts of a chip's TOML. The model of hardware.mapping.

- Synapses: an input axon with n synapses to a core takes n * (weight bits + index bits) + a header for every block,
  rounded up to words. Weight bits are the fewest that hold the layer's weights; zero weights are stored like others.
  There is one such list for every source neuron, counted as long as the longest; or, where a convolution is stored as
  `kernels` on a chip that shares them, one for every tap and input channel, once a core.
- Input axons: one for every source that the box reads, overlaps included and padding not.
- Output axons: one for every source in the box; times the cores of the next layer that read it, on chips whose axons
  have one target each; times the slots that a population's axon takes.
A source is a neuron; for kernels it is a pixel with all its channels.

A box is (channels, rows, columns) of neurons; `sizes` are the candidates on the three axes, and what they take is an
int array over all combinations of them, or one that broadcasts to it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from hardware.net import ConvLayer, InputLayer, SpikingLayer


FACTS = {
    "cores": "capacity.cores",
    "neurons": "capacity.neurons_per_core",
    "synapse_words": "capacity.synapse_words_per_core",
    "input_axons": "capacity.input_axons_per_core",
    "output_axons": "capacity.output_axons_per_core",
    "word_bits": "synapse.word_bits",
    "block": "synapse.block",
    "header_bits": "synapse.header_bits",
    "index_bits": "synapse.index_bits",
    "shared_kernels": "convolution.shared_kernels",
    "kernel_index_bits": "convolution.index_bits",
    "power_of_two_columns": "convolution.power_of_two_columns",
    "population_slots": "convolution.axon_slots",
    "axon_per_target": "axon.per_target_core",
}
"""What is read from a chip's TOML: name -> key."""

Block = InputLayer | SpikingLayer
"""A layer with neurons."""


def box(block: Block) -> tuple[int, int, int]:
    """A layer's (channels, rows, columns); a flat one is all channels."""
    if len(block.shape) == 3:
        channels, rows, columns = block.shape
        return channels, rows, columns
    return prod(block.shape), 1, 1


def layouts(block: Block, core: Mapping[str, int]) -> tuple[bool, ...]:
    """Whether a layer may be stored as `kernels`: of those that the chip allows, each in turn."""
    return (True, False) if isinstance(block, ConvLayer) and core["shared_kernels"] else (False,)


def sizes(block: Block, core: Mapping[str, int], *, kernels: bool) -> list[np.ndarray]:
    """The sizes of boxes on each axis, from 1 up: all that cutting it into equal parts gives, or powers of two."""
    cuts = [np.unique(-(-extent // np.arange(1, extent + 1))) for extent in box(block)]
    columns = box(block)[2]
    if (kernels or isinstance(block, InputLayer)) and core["power_of_two_columns"]:
        cuts[2] = 2 ** np.arange((columns - 1).bit_length() + 1)
    return cuts


def synapse_load(
    block: Block, before: tuple[int, ...], sizes: Sequence[np.ndarray], core: Mapping[str, int], *, kernels: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Words of synapses, and input axons, of the core that has most. before: the shape of the layer's input."""
    if isinstance(block, InputLayer):  # its neurons are driven from outside
        return np.zeros((1, 1, 1), int), np.zeros((1, 1, 1), int)
    words = _words(weight_bits(block) + _index_bits(block, core, kernels=kernels), core)
    lists, channels = np.array([_fan_in(block, size, words) for size in sizes[0].tolist()]).T[:, :, None, None]
    if not isinstance(block, ConvLayer):
        return lists, channels
    axes = [reads(block, axis, before) for axis in (0, 1)]
    pixels = _most(axes[0], sizes[1])[:, None] * _most(axes[1], sizes[2])
    if kernels:
        return prod(block.weight.shape[2:]) * lists, pixels
    longest = np.minimum(sizes[0], block.shape[0] // block.groups)[:, None, None]
    longest = longest * _longest(axes[0], sizes[1])[:, None] * _longest(axes[1], sizes[2])
    return pixels * channels * words(longest), pixels * channels


def _index_bits(block: SpikingLayer, core: Mapping[str, int], *, kernels: bool) -> int:
    """Bits that say which neuron a synapse is of; a convolution stored synapse by synapse skips neurons."""
    if kernels:
        return core["kernel_index_bits"]
    return max(core["index_bits"], core["kernel_index_bits"]) if isinstance(block, ConvLayer) else core["index_bits"]


def _words(bits: int, core: Mapping[str, int]) -> Callable[[np.ndarray], np.ndarray]:
    """The words that lists of so many synapses of so many bits take."""

    def words(synapses: np.ndarray) -> np.ndarray:
        headers = -(-synapses // core["block"]) * core["header_bits"]
        return -(-(synapses * bits + headers) // core["word_bits"])

    return words


def _fan_in(block: SpikingLayer, size: int, words: Callable[[np.ndarray], np.ndarray]) -> tuple[int, int]:
    """Words of one tap's lists, and input channels, of the core with most, where each holds `size` channels."""
    outputs, fan_in = block.weight.shape[:2]
    group = outputs // (block.groups if isinstance(block, ConvLayer) else 1)
    starts = np.union1d(np.arange(0, outputs, size), np.arange(0, outputs, group))  # runs of one core and one group
    lengths = np.diff(starts, append=outputs)
    cores = starts // size
    most = [np.bincount(cores, of_run).max() for of_run in (fan_in * words(lengths), np.full(len(starts), fan_in))]
    return int(most[0]), int(most[1])


def reads(layer: ConvLayer, axis: int, before: tuple[int, ...]) -> np.ndarray:
    """bool [outputs, inputs] of one axis (0 rows, 1 columns): whether an output reads an input, whatever its weight."""
    outputs, inputs = np.arange(layer.shape[axis + 1]), np.arange(before[axis + 1])
    offset = inputs - (outputs[:, None] * layer.stride[axis] - layer.padding[axis])
    taps, left = np.divmod(offset, layer.dilation[axis])
    result: np.ndarray = (left == 0) & (taps >= 0) & (taps < layer.weight.shape[axis + 2])
    return result


def _by_tile(reads: np.ndarray, size: int) -> np.ndarray:
    """bool [tiles, inputs]: what `size` neighbouring outputs read together."""
    return np.logical_or.reduceat(reads, np.arange(0, len(reads), size), axis=0)


def _most(reads: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The inputs of the tile that reads the most, for each size."""
    return np.array([_by_tile(reads, size).sum(axis=1).max() for size in sizes.tolist()])


def _longest(reads: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The outputs in one tile that read one input, at most, for each size."""
    starts = [np.arange(0, len(reads), size) for size in sizes.tolist()]
    return np.array([np.add.reduceat(reads.astype(int), start, axis=0).max() for start in starts])


@dataclass(frozen=True, kw_only=True, eq=False)
class Readers:
    """Output axons of a layer's neurons: rows[y] * columns[x] * each, of a pixel if `population`, else of a neuron."""

    rows: np.ndarray
    columns: np.ndarray
    each: int
    population: bool = False

    @classmethod
    def nobody(cls, block: Block) -> "Readers":
        """Those of the last layer."""
        _, rows, columns = box(block)
        return cls(rows=np.ones(rows, int), columns=np.ones(columns, int), each=0)

    @classmethod
    def of(
        cls,
        source: Block,
        layer: SpikingLayer,
        core: Mapping[str, int],
        *,
        tile: tuple[int, int, int],
        cores: int,
        kernels: bool,
    ) -> "Readers":
        """Those of `source`, which `layer` reads that lies on so many cores, a `tile` on each."""
        _, height, width = box(source)
        rows, columns, each = np.ones(height, int), np.ones(width, int), cores
        if isinstance(layer, ConvLayer):
            rows, columns = (_by_tile(reads(layer, axis, source.shape), tile[axis + 1]).sum(axis=0) for axis in (0, 1))
            each = -(-layer.shape[0] // tile[0])
        if not core["axon_per_target"]:
            rows, columns, each = np.minimum(rows, 1), np.minimum(columns, 1), 1
        each *= core["population_slots"] if kernels else 1
        return cls(rows=rows, columns=columns, each=each, population=kernels)

    def load(self, sizes: Sequence[np.ndarray]) -> np.ndarray:
        """Output axons of the core that has the most."""
        rows, columns = (
            np.array([np.add.reduceat(count, np.arange(0, len(count), size)).max() for size in axis.tolist()])
            for count, axis in ((self.rows, sizes[1]), (self.columns, sizes[2]))
        )
        channels = np.ones_like(sizes[0]) if self.population else sizes[0]
        result: np.ndarray = self.each * channels[:, None, None] * rows[:, None] * columns
        return result


def weight_bits(block: Block) -> int:
    """The fewest bits that hold a layer's weights, sign included, after the powers of two that they share."""
    if isinstance(block, InputLayer):
        return 0
    common = int(np.bitwise_or.reduce(np.abs(block.weight), axis=None))
    shift = (common & -common).bit_length() - 1 if common else 0
    low, high = int(block.weight.min()) >> shift, int(block.weight.max()) >> shift
    magnitude = max(high.bit_length(), (-low - 1).bit_length() if low < 0 else 0)
    return max(magnitude + (low < 0 <= high), 1)


def synapses(block: Block, before: tuple[int, ...]) -> int:
    """Connections with a weight other than zero, every use of a kernel counted, padding not."""
    if isinstance(block, InputLayer):
        return 0
    if not isinstance(block, ConvLayer):
        return int(np.count_nonzero(block.weight))
    uses = []
    for axis in (0, 1):
        first = np.arange(block.shape[axis + 1]) * block.stride[axis] - block.padding[axis]
        at = first + np.arange(block.weight.shape[axis + 2])[:, None] * block.dilation[axis]
        uses.append(((at >= 0) & (at < before[axis + 1])).sum(axis=1))
    return int((np.count_nonzero(block.weight, axis=(0, 1)) * np.outer(*uses)).sum())
