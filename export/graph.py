"""The Graph: what a spiking student computes, in about twenty frozen nodes that do not depend on T.

A Graph is a topological tuple of nodes. Every node holds numpy arrays and says its equation in its docstring;
`export.reference.run` is the definition of what a Graph means. Passes are pure functions Graph -> Graph.

Shapes: T time steps, B images, C channels, H rows, W columns, N features, K classes. `shape` of a node is its output
for one image and one step, without T and B. Values travel as `[T, B, *shape]`, or `[1, B, *shape]` while they
do not change over time (a static image and what is computed from it before the first LIF). Recordings of events are
frames `[T, B, C, H, W]`, another one at every step.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """One operation: its unique `name` (the module path in the student), the names it reads, its output shape."""

    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Input(Node):
    """y = (x - mean) / std; mean, std: [C].

    x is an image [B, C, H, W] in [0, 1], the same at every step; with `event`, frames [T, B, C, H, W] in [0, 1]: counts
    of events / 255, so that mean 0 and std 1 / 255 give the counts back.
    """

    mean: np.ndarray
    std: np.ndarray
    event: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv(Node):
    """y[o, i, j] = bias[o] + sum_{c,u,v} weight[o, c, u, v] x[c, i*stride+u-padding, j*stride+v-padding].

    weight: [C_out, C_in / groups, kH, kW] (the order of torch.nn.Conv2d), bias: [C_out]; zeros outside the map.
    """

    weight: np.ndarray
    bias: np.ndarray
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense(Node):
    """y = weight x + bias; weight: [N_out, N_in], bias: [N_out]."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class LIF(Node):
    """Leaky integrate-and-fire with hard reset (SpikingJelly's LIFNode; TSER Eq. 2 without the input delay).

    h[t] = v[t-1] + (x[t] - (v[t-1] - v_reset)) / tau     if decay_input
    h[t] = v[t-1] - (v[t-1] - v_reset) / tau + x[t]       otherwise
    s[t] = 1 if h[t] >= v_threshold else 0
    v[t] = v_reset if s[t] else h[t];                     v[0] = v_reset before the first step

    tau = inf, only without decay_input, is integrate-and-fire (SpikingJelly's IFNode): 1 / tau = 0 and
    h[t] = v[t-1] + x[t].
    """

    tau: float
    v_threshold: float
    v_reset: float
    decay_input: bool

    def __post_init__(self) -> None:
        assert not (self.tau == math.inf and self.decay_input), f"{self.name}: an input divided by tau = inf is nothing"


@dataclass(frozen=True, kw_only=True, eq=False)
class AvgPool(Node):
    """Mean over kernel x kernel windows with stride = kernel and no padding; a remainder at the border is dropped."""

    kernel: tuple[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxPool(Node):
    """y[c, i, j] = max_{u,v} x[c, i*stride+u-padding, j*stride+v-padding], u and v over the kernel.

    kernel, stride, padding: (rows, columns). Windows may overlap; a remainder at the border is dropped. Outside the map
    is -inf, which never wins (padding is at most half of the kernel, so every window holds a value of the map).
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mean(Node):
    """Mean over H and W (global average pooling): [C, H, W] -> [C]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Flatten(Node):
    """[C, H, W] -> [C*H*W] in row-major order."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Node):
    """Sum of two values of one shape."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """A student for T steps. `nodes` are in topological order; the first is the Input, the last gives the logits [K].

    The network's logits are the last node's value at each step, [T, B, K]; the prediction is the argmax of their mean
    over T (TSER Algorithm 1).
    """

    nodes: tuple[Node, ...]
    T: int

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for node in self.nodes:
            missing = [name for name in node.inputs if name not in seen]
            assert not missing, f"{node.name} reads {missing} before they are computed"
            assert node.name not in seen, f"two nodes are called {node.name}"
            seen.add(node.name)
        assert isinstance(self.nodes[0], Input), "the first node is the Input"

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __getitem__(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    @property
    def input(self) -> Input:
        """The first node."""
        node = self.nodes[0]
        assert isinstance(node, Input)
        return node

    @property
    def output(self) -> Node:
        """The last node, the logits."""
        return self.nodes[-1]

    @property
    def lif_layers(self) -> tuple[LIF, ...]:
        """The LIF layers in order; the last axis of every `spike_rates` follows it."""
        return tuple(node for node in self.nodes if isinstance(node, LIF))

    @property
    def synapses(self) -> tuple[Conv | Dense, ...]:
        """Layers with weights, in order."""
        return tuple(node for node in self.nodes if isinstance(node, Conv | Dense))

    def readers(self, name: str) -> tuple[Node, ...]:
        """Nodes that read `name`."""
        return tuple(node for node in self.nodes if name in node.inputs)

    def replace(self, *nodes: Node) -> "Graph":
        """The same Graph with nodes of the same names replaced."""
        new = {node.name: node for node in nodes}
        return dataclasses.replace(self, nodes=tuple(new.get(node.name, node) for node in self.nodes))


def is_static(graph: Graph) -> dict[str, bool]:
    """For every node: whether its value is the same at every step: made of one image, with no LIF before it."""
    static: dict[str, bool] = {}
    for node in graph:
        changes = isinstance(node, LIF) or (isinstance(node, Input) and node.event)
        static[node.name] = not changes and all(static[name] for name in node.inputs)
    return static


def is_binary(graph: Graph) -> dict[str, bool]:
    """For every node: whether its values are 0 or 1, so that a following synapse adds and never multiplies.

    Spikes are; max pooling and flattening keep it; averages, sums (two spikes make 2), images and counts are not.
    """
    binary: dict[str, bool] = {}
    for node in graph:
        keeps = isinstance(node, MaxPool | Flatten) and all(binary[name] for name in node.inputs)
        binary[node.name] = isinstance(node, LIF) or keeps
    return binary
