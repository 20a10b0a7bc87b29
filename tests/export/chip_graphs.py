"""Random students for the chip: every kind of block that a TSERve network has, in Graphs small enough for hypothesis.

Weights have no pattern, so that no sum lies on a threshold, where two orders of adding would disagree.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from small_graphs import Maker

from export import graph as g
from export.chip_range import options
from export.integer import WEIGHT_LIMIT
from export.prepare import synapses_of, theta, v_decay
from export.scales import Scales
from export.sequence import relay_drive, sequence
from hardware.net import Limits


LIMITS = Limits.load("loihi2")
LIF: dict[str, Any] = {"tau": 2.0, "decay_input": True, "v_reset": 0.0, "v_threshold": 0.75}
SUMS = ("residual", "flipped", "nested", "projected", "sew", "sew_projected")
BLOCKS = ("conv", "strided", *SUMS, "avg", "max", "overlap")
NEURONS = ((2.0, True), (2.0, False), (3.0, True), (3.0, False), (1.5, True), (math.inf, False))
"""tau and decay_input."""


class Smooth(Maker):
    """A Maker of weights whose sums lie on no threshold."""

    def dyadic(self, *shape: int) -> np.ndarray:
        if len(shape) == 1:  # biases
            return self.rng.normal(0.05, 0.3, shape)
        return self.rng.normal(0.2, 1.0, shape) / np.sqrt(np.prod(shape[1:]) / 4)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What `build` makes a Graph of."""

    seed: int
    blocks: tuple[str, ...]
    side: tuple[int, int]
    neuron: tuple[float, bool]
    v_threshold: float
    T: int
    head: str


def recipes(blocks: tuple[str, ...] = BLOCKS, *, most: int = 3) -> st.SearchStrategy[Recipe]:
    """Recipes with up to `most` blocks of these kinds."""
    return st.builds(
        Recipe,
        seed=st.integers(0, 2**32 - 1),
        blocks=st.lists(st.sampled_from(blocks), max_size=most).map(tuple),
        side=st.tuples(st.integers(4, 8), st.integers(4, 8)),
        neuron=st.sampled_from(NEURONS),
        v_threshold=st.sampled_from([0.5, 0.75, 1.3]),
        T=st.integers(1, 7),
        head=st.sampled_from(["flatten", "mean", "hidden", "dense_residual"]),
    )


def a_recipe(*blocks: str, **changes: Any) -> Recipe:
    """A Recipe of these blocks, usual in everything else."""
    usual = Recipe(seed=0, blocks=blocks, side=(8, 6), neuron=(2.0, True), v_threshold=0.75, T=4, head="flatten")
    return replace(usual, **changes)


def build(recipe: Recipe) -> g.Graph:
    """A Graph: a first convolution with its LIF, the blocks, then the classifier of 3 classes."""
    tau, decay_input = recipe.neuron
    lif = {"tau": tau, "decay_input": decay_input, "v_reset": 0.0, "v_threshold": recipe.v_threshold}
    m = Smooth(rng=np.random.default_rng(recipe.seed), lif=lif)
    m.image(2, *recipe.side)
    m.conv("stem", 4)
    m.spike("stem.lif")
    for i, kind in enumerate(recipe.blocks):
        add_block(m, kind, f"block{i}")
    if recipe.head == "mean":
        m.features(g.Mean, "mean")
    else:
        m.features(g.Flatten, "flatten")
    if recipe.head in ("hidden", "dense_residual"):
        m.dense("hidden", 6)
        m.spike("hidden.lif")
    if recipe.head == "dense_residual":
        m.dense("hidden1", 5)
        m.spike("hidden1.lif")
        m.add("hidden.add", m.dense("hidden2", 6), "hidden.lif")
        m.spike("hidden2.lif")
    m.dense("classifier", 3)
    return g.Graph(nodes=tuple(m.nodes), T=recipe.T)


def add_block(m: Smooth, kind: str, name: str) -> None:
    """Append one block; pooling that would leave a remainder is left out."""
    x = m.last()
    c, *sides = m.shape(x)
    even = [2 if side % 2 == 0 else 1 for side in sides]
    reads_sum = isinstance(m.nodes[-1], g.Add)
    match kind:
        case "conv":
            m.conv(f"{name}.conv", c + 1, kernel=(3, 2), padding=(1, 0) if sides[1] > 2 else (1, 1))
            m.spike(f"{name}.lif")
        case "strided":
            m.conv(f"{name}.conv", c, stride=(2, 1), groups=c)
            m.spike(f"{name}.lif")
        case "residual" | "flipped" | "nested":
            residual(m, kind, name, x)
        case "projected":
            m.conv(f"{name}.conv1", c, stride=(2, 2))
            m.spike(f"{name}.lif1")
            second = m.conv(f"{name}.conv2", c)
            shortcut = m.conv(f"{name}.shortcut", c, kernel=(1, 1), stride=(2, 2), padding=(0, 0), source=x)
            m.add(f"{name}.add", second, shortcut)
            m.spike(f"{name}.lif2")
        case "sew" | "sew_projected":
            stride = (1, 1) if kind == "sew" else (2, 2)
            m.conv(f"{name}.conv1", c, stride=stride)
            m.spike(f"{name}.lif1")
            m.conv(f"{name}.conv2", c)
            second, shortcut = m.spike(f"{name}.lif2"), x
            if kind == "sew_projected":
                m.conv(f"{name}.shortcut", c, kernel=(1, 1), stride=stride, padding=(0, 0), source=x)
                shortcut = m.spike(f"{name}.shortcut.lif")
            m.add(f"{name}.add", second, shortcut)
        case "avg":
            if even != [1, 1]:
                m.pool(g.AvgPool, f"{name}.pool", (even[0], even[1]))
                m.conv(f"{name}.conv", c)
                m.spike(f"{name}.lif")
        case "max" if not reads_sum and min(sides) > 1:
            m.max_pool(f"{name}.pool", (2, 2), stride=(2, 1))
        case "overlap" if not reads_sum and min(sides) > 1:
            m.max_pool(f"{name}.pool", (3, 3), stride=(2, 2), padding=(1, 1))


def residual(m: Smooth, kind: str, name: str, x: str) -> None:
    """A block that ends in conv2 + x (flipped: x + conv2; nested: conv2 + (x + a 1x1 convolution of x))."""
    c = m.shape(x)[0]
    m.conv(f"{name}.conv1", c)
    m.spike(f"{name}.lif1")
    second = m.conv(f"{name}.conv2", c)
    if kind == "nested":
        side = m.conv(f"{name}.side", c, kernel=(1, 1), padding=(0, 0), source=x)
        m.add(f"{name}.add", second, m.add(f"{name}.inner", x, side))
    else:
        m.add(f"{name}.add", *((x, second) if kind == "flipped" else (second, x)))
    m.spike(f"{name}.lif2")


def begin(*, side: tuple[int, int] = (8, 8), channels: int = 4, **lif: Any) -> Smooth:
    """A Graph that has begun: two channels of an image, `stem` and the spikes of `lif`."""
    m = Smooth(rng=np.random.default_rng(0), lif={**LIF, **lif})
    m.image(2, *side)
    m.conv("stem", channels)
    m.spike("lif")
    return m


def classified(m: Smooth) -> g.Graph:
    """The Graph with a classifier of 3 classes at its end."""
    if len(m.nodes[-1].shape) == 3:
        m.features(g.Flatten, "flatten")
    m.dense("classifier", 3)
    return g.Graph(nodes=tuple(m.nodes), T=4)


def flat(m: Smooth, source: str) -> None:
    """Append the maps of `source` as a row."""
    shape = (int(np.prod(m.shape(source))),)
    m.nodes.append(g.Flatten(name=f"{source}.flat", inputs=(source,), shape=shape))


def images_of(graph: g.Graph, count: int, *, seed: int = 1) -> np.ndarray:
    """Random images [B, C, H, W] float64 in [0, 1]."""
    return np.random.default_rng(seed).random((count, *graph.input.shape))


def naive_scales(graph: g.Graph, *, fraction: float = 1.0, limits: Limits = LIMITS) -> Scales:
    """What plain rounding gives a prepared Graph: the largest scale without clipping, times `fraction`,
    bias round(S b), threshold floor(S theta)."""
    currents: dict[str, float] = {}
    pixel = 1.0
    for stage in sequence(graph):
        heads = [part.node for part in stage.parts if part.node is not None and not part.hands_on]
        if not heads:
            continue
        synapses = [synapse for node in heads for synapse in synapses_of(graph, node)]
        scale, pixel = next(iter(options(graph, stage, heads, pixel, limits)))
        # A sum may read neurons twice (nested blocks do); their weights stand at one place.
        largest = max(sum(float(np.abs(s.weight).max()) for s in synapses_of(graph, node)) for node in heads)
        factor = pixel if synapses[0].inputs == (graph.input.name,) else 1.0
        bias = max(float(np.abs(synapse.bias).max()) for synapse in synapses)
        scale = min(scale, WEIGHT_LIMIT / largest * factor, (limits.bias - 1) / bias) * fraction
        lifs = [node for node in heads if isinstance(node, g.LIF)]
        while stage.has_relays and not all(
            relay_drive(threshold=int(theta(node) * scale), v_decay=v_decay(node.tau), T=graph.T) for node in lifs
        ):
            scale *= 0.9
        currents |= {node.name: scale for node in heads}
    heads = [*graph.lif_layers, graph.output]
    return Scales(
        input=pixel,
        currents=currents,
        thresholds={lif.name: int(theta(lif) * currents[lif.name]) for lif in graph.lif_layers},
        biases={
            node.name: np.rint(synapses_of(graph, node)[0].bias * currents[node.name]).astype(int).tolist()
            for node in heads
        },
    )
