"""Which scales keep a layer of the file within the chip's ranges, whatever spikes or pixels arrive."""

from collections.abc import Iterator, Sequence

import numpy as np

from export import graph as g
from export import integer
from export.prepare import NotForLoihi, sources, synapses_of, theta, v_decay
from export.scales import quantized_input
from export.sequence import Stage, relay_drive
from hardware.net import Limits


# Fractions of the largest possible scale that are tried, a quarter of an octave apart.
STEPS = tuple(2 ** (-k / 4) for k in range(9))
# Integer values of the largest pixel that are tried: a finer input leaves fewer bits for the first layer's weights.
PIXEL_LEVELS = (127, 96, 64, 48, 32, 24, 16)


def options(
    graph: g.Graph, stage: Stage, heads: Sequence[g.Node], pixel: float, limits: Limits
) -> Iterator[tuple[float, float]]:
    """Scales (of the current, of the image) to try for one layer of the file."""
    synapses = [synapse for node in heads for synapse in synapses_of(graph, node)]
    for synapse in synapses:
        if not synapse.weight.any():
            raise NotForLoihi(f"{synapse.name}: every weight is zero; the layer does nothing (train longer)")
    # A layer before a LIF may clip its few largest weights; the logits keep theirs.
    room = 1.0 if heads[0] is graph.output else 2.0
    top = integer.WEIGHT_LIMIT / max(heaviest(graph, synapses_of(graph, node)) for node in heads) * room
    lifs = [node for node in heads if isinstance(node, g.LIF)]
    highest = min(
        [(highest_threshold(stage, node, graph.T, limits) + 0.5) / theta(node) for node in lifs], default=np.inf
    )
    # The last layer's membrane sums the logits of all steps; a margin of 1 % is for rounding.
    reach = max(largest_current(graph, synapses_of(graph, node)) for node in heads)
    steps = graph.T if heads[0] is graph.output else 1
    highest = min(highest, 0.99 * integer.ACCUMULATOR_LIMIT / (steps * reach))
    reads_image = any(synapse.inputs[0] == graph.input.name for synapse in synapses)
    for level in pixel_scales(graph.input) if reads_image else (pixel,):
        largest = top * level if reads_image else top
        for fraction in STEPS:
            yield float(min(largest, highest) * fraction), float(level)


def highest_threshold(stage: Stage, node: g.LIF, T: int, limits: Limits) -> int:
    """The largest threshold that neurons can have in their layer: relays among them must fire at it too."""
    if not stage.has_relays:
        return limits.threshold
    threshold = integer.WEIGHT_LIMIT - 1  # a relay needs no bias up to here
    while threshold + 2 - integer.WEIGHT_LIMIT <= limits.bias:
        if relay_drive(threshold=threshold + 1, v_decay=v_decay(node.tau), T=T) is None:
            break
        threshold += 1
    return threshold


def heaviest(graph: g.Graph, synapses: Sequence[g.Conv | g.Dense]) -> float:
    """A bound of the largest |weight| in the file: those of synapses that read the same neurons are added up there."""
    total: dict[str, float] = {}
    for synapse in synapses:
        for source in sources(graph, synapse.inputs[0]):
            total[source.name] = total.get(source.name, 0.0) + float(np.abs(synapse.weight).max())
    return max(total.values())


def pixel_scales(node: g.Input) -> tuple[float, ...]:
    """Scales of the image to try. Events are counts, which stay what they are."""
    if node.event:
        return (float((255 * node.std).min()),)
    largest = np.maximum(np.abs((0 - node.mean) / node.std), np.abs((1 - node.mean) / node.std)).max()
    return tuple(float(level / largest) for level in PIXEL_LEVELS)


def largest_current(graph: g.Graph, synapses: Sequence[g.Conv | g.Dense], pixel: float | None = None) -> float:
    """The largest |sum| that synapses can give together, for every image or spikes; their bias is not in it.

    Integer synapses that read the image read it under the scale `pixel`; None: float ones, which read it normalised.
    """
    up, down = np.zeros(1), np.zeros(1)
    for synapse in synapses:
        rows = synapse.weight.reshape(len(synapse.weight), -1)
        if synapse.inputs[0] == graph.input.name:
            values = extremes(graph.input) if pixel is None else sent_extremes(graph.input, pixel)
            low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        else:
            low, high = 0.0, float(sum(1 for _ in sources(graph, synapse.inputs[0])))
        up = up + np.maximum(rows * low, rows * high).sum(1)
        down = down + np.minimum(rows * low, rows * high).sum(1)
    return float(max(up.max(), -down.min()))


def extremes(node: g.Input) -> np.ndarray:
    """An all-black and an all-white image, normalised, [2, C, H, W]."""
    images = np.stack([np.zeros(node.shape), np.ones(node.shape)])
    column = (slice(None), None, None)
    return np.asarray((images - node.mean[column]) / node.std[column])


def sent_extremes(node: g.Input, pixel: float) -> np.ndarray:
    """The integers that are sent for them."""
    images = np.stack([np.zeros(node.shape), np.ones(node.shape)])
    return integer.quantize_images(quantized_input(node, pixel), images)
