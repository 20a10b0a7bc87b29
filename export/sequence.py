"""A prepared Graph in a row: which neurons share a layer of the .net file, and how spikes get past layers.

A .net is a chain: layer d reads the spikes of layer d - 1 one step later, and nothing else. So neurons stand in layer
d = 1 + the deepest of what they read, neurons of one depth share a layer, and spikes that are read further down are
handed on by relays: neurons that fire exactly when the one that they stand for did, a step later. A relay has one
weight and the layer's own threshold and decay; it starts every sample at rest and fires on every input spike, so it
never remembers anything. Max pooling of spikes is their OR: a relay with a window.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from export import graph as g
from export.integer import FRACTION_BITS, WEIGHT_LIMIT, IntegerLIF
from export.prepare import NotForLoihi, sources, synapses_of, v_decay


ADVICE = "a chain of layers cannot hold that; export this student to ONNX"


@dataclass(frozen=True, kw_only=True)
class Window:
    """The geometry of a convolution, each pair (rows, columns)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


POINT = Window(kernel=(1, 1), stride=(1, 1), padding=(0, 0))


@dataclass(frozen=True, kw_only=True, eq=False)
class Term:
    """What one part of a layer reads from a part of the layer before: through a synapse, or each through one weight."""

    source: str
    """The neurons whose spikes are read, by name."""
    synapse: g.Conv | g.Dense | None
    """None for a relay and for max pooling."""
    window: Window | None
    """None in a dense layer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Some of a layer's channels (or, in a dense layer, neurons): a LIF, a MaxPool, the logits, or a relay."""

    name: str
    """The node; for a relay the node that it stands for."""
    node: g.Node | None
    """None for a relay."""
    shape: tuple[int, ...]
    terms: tuple[Term, ...]
    every: tuple[int, int] = (1, 1)
    """Of a relay: it has every so many rows and columns of its node's maps; strides on the way dropped the rest."""

    @property
    def size(self) -> int:
        """How many neurons these are."""
        return prod(self.shape)

    @property
    def hands_on(self) -> bool:
        """Whether it fires whenever one of its inputs does: relays and max pooling."""
        return self.node is None or isinstance(self.node, g.MaxPool)


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """One layer of the file."""

    parts: tuple[Part, ...]
    window: Window | None
    """None for a dense layer."""

    @property
    def neurons(self) -> tuple[Part, ...]:
        """The LIF parts, which set the layer's threshold and decay."""
        return tuple(part for part in self.parts if isinstance(part.node, g.LIF | IntegerLIF))

    @property
    def has_relays(self) -> bool:
        """Whether LIF neurons share the layer with neurons that hand spikes on."""
        return bool(self.neurons) and any(part.hands_on for part in self.parts)

    def part(self, name: str) -> Part:
        """The part of that name."""
        return next(part for part in self.parts if part.name == name)

    def start(self, name: str) -> int:
        """The first channel (or neuron) of the part of that name."""
        return sum(part.shape[0] for part in self.parts[: self.parts.index(self.part(name))])


def sequence(graph: g.Graph) -> tuple[Stage, ...]:
    """The layers of a prepared Graph (or of its integer twin) in order.

    Raises NotForLoihi where one chain of layers cannot hold it.
    """
    populations = [node for node in graph if is_population(graph, node)]
    depth: dict[str, int] = {graph.input.name: 0}
    for node in populations:
        depth[node.name] = 1 + max(depth[term.source] for term in terms(graph, node))
    last_read = dict(depth)
    for node in populations:
        for term in terms(graph, node):
            last_read[term.source] = max(last_read[term.source], depth[node.name])
    for node in populations:
        if node is not graph.output and last_read[node.name] == depth[node.name]:
            raise NotForLoihi(f"{node.name}: no layer reads its spikes; remove it")
    if last_read[graph.input.name] > 1:
        late = next(n for n in populations if depth[n.name] > 1 and _reads(graph, n, graph.input.name))
        raise NotForLoihi(f"{late.name}: only the first layer of a .net can read the image; add a LIF on the way")
    stages: list[Stage] = []
    for d in range(1, max(depth.values()) + 1):
        own = [node for node in populations if depth[node.name] == d]
        passing = [node for node in populations if depth[node.name] < d < last_read[node.name]]
        stages.append(stage(graph, own, passing, stages[-1] if stages else None))
    return tuple(stages)


def is_population(graph: g.Graph, node: g.Node) -> bool:
    """Whether a node becomes neurons of its own."""
    return node is graph.output or not isinstance(node, g.Input | g.Conv | g.Dense | g.Add | g.Flatten)


def terms(graph: g.Graph, node: g.Node) -> Iterator[Term]:
    """What neurons read, one term for each source and synapse."""
    window: Window | None
    if isinstance(node, g.MaxPool):
        window = Window(kernel=node.kernel, stride=node.stride, padding=node.padding)
        for source in sources(graph, node.inputs[0]):
            yield Term(source=source.name, synapse=None, window=window)
        return
    for synapse in synapses_of(graph, node):
        window = None
        if isinstance(synapse, g.Conv):
            kernel = (synapse.weight.shape[2], synapse.weight.shape[3])
            window = Window(kernel=kernel, stride=synapse.stride, padding=synapse.padding)
        for source in sources(graph, synapse.inputs[0]):
            yield Term(source=source.name, synapse=synapse, window=window)


def _reads(graph: g.Graph, node: g.Node, name: str) -> bool:
    return any(term.source == name for term in terms(graph, node))


def stage(graph: g.Graph, own: list[g.Node], passing: list[g.Node], before: Stage | None) -> Stage:
    """The layer of the neurons `own` and of relays for `passing`, after the layer `before`."""
    check_together(own)
    size = own[0].shape[1:]
    parts: list[Part] = []
    strides: set[tuple[int, int]] = set()
    for node in own:
        if node.shape[1:] != size:
            raise NotForLoihi(f"{node.name}: has maps of {node.shape[1:]}, its layer of the .net has {size}; {ADVICE}")
        read = tuple(seen(graph, term, before, node) for term in terms(graph, node))
        strides |= {term.window.stride for term in read if term.window}
        parts.append(Part(name=node.name, node=node, shape=node.shape, terms=read))
    if len(strides) > 1:
        raise NotForLoihi(f"{own[0].name}: one layer of the .net would have the strides {sorted(strides)}; {ADVICE}")
    if not size:
        assert before is not None
        parts += [relay(node.name, (prod(before.part(node.name).shape),), window=None) for node in passing]
        return Stage(parts=tuple(parts), window=None)
    (stride,) = strides
    for node in passing:
        assert before is not None
        every = before.part(node.name).every
        handed = relay(node.name, (node.shape[0], *size), window=replace(POINT, stride=stride))
        parts.append(replace(handed, every=(every[0] * stride[0], every[1] * stride[1])))
    map_before = before.parts[0].shape[1:] if before else graph.input.shape[1:]
    window = common_window([term.window for part in parts for term in part.terms if term.window], map_before, size)
    if window is None:
        raise NotForLoihi(f"{own[0].name}: its layer of the .net has no kernel that fits all of its parts; {ADVICE}")
    return Stage(parts=tuple(parts), window=window)


def check_together(own: list[g.Node]) -> None:
    """Raise NotForLoihi for neurons that would share a layer and do not share a time constant and a threshold."""
    lifs = [node for node in own if isinstance(node, g.LIF)]
    for other in lifs[1:]:
        if v_decay(other.tau) != v_decay(lifs[0].tau):
            raise NotForLoihi(
                f"{other.name}: shares a layer of the .net with {lifs[0].name}, but not its time constant "
                f"({other.tau:g} and {lifs[0].tau:g}); train with --net.neuron lif"
            )


def relay(name: str, shape: tuple[int, ...], *, window: Window | None) -> Part:
    """The neurons that hand on the spikes of the node `name`."""
    return Part(name=name, node=None, shape=shape, terms=(Term(source=name, synapse=None, window=window),))


def seen(graph: g.Graph, term: Term, before: Stage | None, reader: g.Node) -> Term:
    """A term as it reads the layer before, where strides on the way may have left only some positions of the source."""
    if before is None:
        return term
    part, source = before.part(term.source), graph[term.source]
    dropped = NotForLoihi(
        f"{reader.name}: reads positions of {source.name} that a stride on the way has dropped; {ADVICE}"
    )
    window = term.window
    if window is None:
        if part.size != prod(source.shape):
            raise dropped
        return term
    stride = list(window.stride)
    for axis, (full, left, every) in enumerate(zip(source.shape[1:], part.shape[1:], part.every, strict=True)):
        point = window.kernel[axis] == 1 and window.padding[axis] == 0
        last = (reader.shape[1 + axis] - 1) * stride[axis]
        if point and stride[axis] % every == 0 and last <= (left - 1) * every:
            stride[axis] //= every
        elif left < full:
            raise dropped
    return replace(term, window=replace(window, stride=(stride[0], stride[1])))


def common_window(windows: list[Window], size: tuple[int, ...], out: tuple[int, ...]) -> Window | None:
    """One window that holds the others, all of one stride, from maps of `size` to maps of `out`; None if none does."""
    kernel, padding = [], []
    for axis in range(2):
        stride, pad = windows[0].stride[axis], max(window.padding[axis] for window in windows)
        k = max(window.kernel[axis] + pad - window.padding[axis] for window in windows)
        while (size[axis] + 2 * pad - k) // stride + 1 > out[axis]:
            k += 1
        if (size[axis] + 2 * pad - k) // stride + 1 != out[axis]:
            return None
        kernel.append(k)
        padding.append(pad)
    return Window(kernel=(kernel[0], kernel[1]), stride=windows[0].stride, padding=(padding[0], padding[1]))


def relay_drive(*, threshold: int, v_decay: int, T: int) -> tuple[int, int] | None:
    """Weight and bias of a relay among neurons of this threshold and decay; None if no 8-bit weight makes it fire.

    One spike must lift the membrane above the threshold from rest, and the bias alone must not in T steps. The bias
    makes room for thresholds beyond the largest weight: up to 252 where tau = 2, at whatever T.
    """
    bias = max(0, threshold + 1 - WEIGHT_LIMIT)
    return (threshold + 1 - bias, bias) if rests(bias, threshold, v_decay, T) else None


def rests(bias: int, threshold: int, v_decay: int, T: int) -> bool:
    """Whether a neuron that receives nothing but its bias stays silent for T steps."""
    v = 0
    for _ in range(T):
        v = (v * (4096 - v_decay) >> 12) + (bias << FRACTION_BITS)
        if v > threshold << FRACTION_BITS:
            return False
    return True
