"""Small Graphs made by hand for the tests of export: every node kind, and weights in which float32 is exact.

Weights, biases and images are multiples of 1/16 and means and pools cover a power of two, so every sum is exact in
float32 whatever its order, and two executors must agree bit for bit.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from export import graph as g


@dataclass(kw_only=True)
class Maker:
    """Appends nodes to a Graph and keeps track of shapes."""

    rng: np.random.Generator
    lif: dict[str, Any]
    nodes: list[g.Node] = field(default_factory=list)

    def last(self) -> str:
        return self.nodes[-1].name

    def shape(self, name: str) -> tuple[int, ...]:
        return next(node.shape for node in self.nodes if node.name == name)

    def dyadic(self, *shape: int) -> np.ndarray:
        return self.rng.integers(-12, 17, shape) / 16

    def image(self, *shape: int) -> None:
        channels = shape[0]
        mean, std = self.rng.integers(0, 3, channels) / 4, 2.0 ** -self.rng.integers(0, 3, channels)
        self.nodes.append(g.Input(name="image", inputs=(), shape=shape, mean=mean, std=std))

    def conv(
        self,
        name: str,
        channels: int,
        *,
        kernel: tuple[int, int] = (3, 3),
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (1, 1),
        groups: int = 1,
        source: str | None = None,
    ) -> str:
        source = source or self.last()
        c, *sides = self.shape(source)
        out = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(sides, kernel, stride, padding, strict=True)]
        weight, bias = self.dyadic(channels, c // groups, *kernel), self.dyadic(channels)
        self.nodes.append(
            g.Conv(
                name=name,
                inputs=(source,),
                shape=(channels, *out),
                weight=weight,
                bias=bias,
                stride=stride,
                padding=padding,
                groups=groups,
            )
        )
        return name

    def dense(self, name: str, features: int) -> str:
        (n,) = self.shape(self.last())
        weight, bias = self.dyadic(features, n), self.dyadic(features)
        self.nodes.append(g.Dense(name=name, inputs=(self.last(),), shape=(features,), weight=weight, bias=bias))
        return name

    def spike(self, name: str) -> str:
        self.nodes.append(g.LIF(name=name, inputs=(self.last(),), shape=self.nodes[-1].shape, **self.lif))
        return name

    def pool(self, kind: type[g.AvgPool] | type[g.MaxPool], name: str, kernel: tuple[int, int]) -> str:
        if kind is g.MaxPool:
            return self.max_pool(name, kernel, stride=kernel)
        c, h, w = self.nodes[-1].shape
        shape = (c, h // kernel[0], w // kernel[1])
        self.nodes.append(g.AvgPool(name=name, inputs=(self.last(),), shape=shape, kernel=kernel))
        return name

    def max_pool(
        self, name: str, kernel: tuple[int, int], *, stride: tuple[int, int], padding: tuple[int, int] = (0, 0)
    ) -> str:
        c, *sides = self.nodes[-1].shape
        out = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(sides, kernel, stride, padding, strict=True)]
        self.nodes.append(
            g.MaxPool(name=name, inputs=(self.last(),), shape=(c, *out), kernel=kernel, stride=stride, padding=padding)
        )
        return name

    def add(self, name: str, x: str, y: str) -> str:
        assert self.shape(x) == self.shape(y)
        self.nodes.append(g.Add(name=name, inputs=(x, y), shape=self.shape(x)))
        return name

    def features(self, kind: type[g.Mean] | type[g.Flatten], name: str) -> str:
        shape = self.nodes[-1].shape
        size = shape[:1] if kind is g.Mean else (int(np.prod(shape)),)
        self.nodes.append(kind(name=name, inputs=(self.last(),), shape=size))
        return name


def every_node(
    *,
    seed: int = 0,
    T: int = 4,
    side: tuple[int, int] = (10, 8),
    stride: tuple[int, int] = (2, 1),
    padding: tuple[int, int] = (1, 0),
    kernel: tuple[int, int] = (3, 2),
    groups: int = 2,
    mean: bool = False,
    tau: float = 2.0,
    decay_input: bool = True,
    v_reset: float = 0.0,
    v_threshold: float = 0.75,
) -> g.Graph:
    """A Graph of every node kind: static and spiking sums, grouped and strided convolutions, both pools, 5 logits."""
    lif = {"tau": tau, "decay_input": decay_input, "v_reset": v_reset, "v_threshold": v_threshold}
    m = Maker(rng=np.random.default_rng(seed), lif=lif)
    m.image(2, *side)
    m.conv("stem.conv", 4)
    m.spike("stem.lif")
    m.conv("hold.conv", 4, kernel=(1, 1), padding=(0, 0))
    m.add("hold.add", "stem.conv", "hold.conv")
    m.spike("hold.lif")
    m.conv("block.conv1", 6, kernel=kernel, stride=stride, padding=padding, groups=groups)
    m.spike("block.lif1")
    m.conv("block.conv2", 6)
    m.add("block.add", "block.conv2", "block.lif1")
    m.spike("block.lif2")
    m.add("spikes.add", "block.lif1", "block.lif2")
    m.conv("spikes.conv", 4)
    m.spike("spikes.lif")
    m.pool(g.AvgPool, "avg", (2, 1))
    m.conv("avg.conv", 4)
    m.spike("avg.lif")
    m.pool(g.MaxPool, "max", (1, 2))
    m.features(g.Mean if mean else g.Flatten, "features")
    m.dense("classifier", 5)
    return g.Graph(nodes=tuple(m.nodes), T=T)


def dyadic_images(graph: g.Graph, *, batch: int, seed: int = 0) -> np.ndarray:
    """Images [B, C, H, W] float32, multiples of 1/16 in [0, 1]."""
    values = np.random.default_rng(seed).integers(0, 17, (batch, *graph.input.shape)) / 16
    return values.astype(np.float32)
