"""Count spikes and synaptic operations inside an int8 model, at the cost of one small matrix product a layer."""

from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto

from export import graph as g
from export.counts import fan_out, spike_driven
from export.onnx_builder import Builder


@dataclass(kw_only=True)
class Columns:
    """What is counted of one value: sums of its nonzero entries, each weighted by row and by column of the map."""

    rows: list[np.ndarray] = field(default_factory=list)
    columns: list[np.ndarray] = field(default_factory=list)

    def index(self, rows: np.ndarray, columns: np.ndarray) -> int:
        """Where these weights stand; they are added if they are not there yet."""
        for i, known in enumerate(zip(self.rows, self.columns, strict=True)):
            if np.array_equal(known[0], rows) and np.array_equal(known[1], columns):
                return i
        self.rows.append(rows)
        self.columns.append(columns)
        return len(self.rows) - 1


class Counter:
    """Appends the counts of spikes, taps and nonzero inputs (see onnx_graph.build_model) of an unfolded twin's values.

    tensors: by node, uint8 or float32, channels last. Counts are integers in float32, exact up to 2^24.
    """

    def __init__(self, builder: Builder, twin: g.Graph, tensors: dict[str, str]) -> None:
        self.builder, self.twin = builder, twin
        wanted: dict[str, Columns] = {}
        spikes = [(node.name, *self.ones(node)) for node in builder.graph.lif_layers]
        synapses = [self.weights(node) for node in spike_driven(builder.graph)]
        inputs = [(name, *self.ones(twin[name])) for name, *_ in synapses]
        places = [(name, wanted.setdefault(name, Columns()).index(*ab)) for name, *ab in (*spikes, *synapses, *inputs)]
        starts, parts, position = {}, [], 0
        for name, columns in wanted.items():
            starts[name] = position
            position += len(columns.rows)
            parts.append(self.count(name, tensors[name], columns))
        self.all = builder.op("Concat", parts, "counts/all", axis=1)
        self.order = [starts[name] + index for name, index in places]
        self.layers, self.synapses = len(spikes), len(synapses)

    def spike_rates(self) -> str:
        """The mean of every LIF layer's spikes, [T*B, L]."""
        order = self.builder.constant("spike_rates/order", self.order[: self.layers])
        counts = self.builder.op("Gather", [self.all, order], "spike_rates/counts", axis=1)
        sizes = np.array([np.prod(node.shape) for node in self.builder.graph.lif_layers], np.float32)
        return self.builder.op("Div", [counts, self.builder.constant("spike_rates/neurons", sizes)], "spike_rates/mean")

    def taps(self) -> str:
        """The taps of every spike-driven layer, [T*B, M]."""
        return self.gathered("taps", self.order[self.layers : self.layers + self.synapses])

    def nonzero(self) -> str:
        """The nonzero inputs of every spike-driven layer, [T*B, M]."""
        return self.gathered("nonzero", self.order[self.layers + self.synapses :])

    def gathered(self, output: str, order: list[int]) -> str:
        """These columns of all counts."""
        places = self.builder.constant(f"{output}/order", order)
        return self.builder.op("Gather", [self.all, places], f"{output}/by_layer", axis=1)

    def ones(self, node: g.Node) -> tuple[np.ndarray, np.ndarray]:
        """Weights that count every entry once."""
        height, width = node.shape[1:] or (1, 1)
        return np.ones(height, np.int64), np.ones(width, np.int64)

    def weights(self, node: g.Conv | g.Dense) -> tuple[str, np.ndarray, np.ndarray]:
        """Which value a synapse of the Graph reads, and how many outputs of one channel each row and column reaches."""
        source = self.builder.graph[node.inputs[0]]
        if isinstance(node, g.Conv):
            return source.name, *fan_out(node, source.shape)
        if isinstance(source, g.Flatten):
            source = self.builder.graph[source.inputs[0]]
        return source.name, *self.ones(source)

    def count(self, name: str, tensor: str, columns: Columns) -> str:
        """The weighted sums of one value, [T*B, sums]."""
        op, constant = self.builder.op, self.builder.constant
        node = self.twin[name]
        spikes = self.events(node, tensor)
        ones = constant(f"ones/{node.shape[0]}", np.ones((node.shape[0], 1), np.int8))
        counts = op("MatMulInteger", [spikes, ones], f"{name}/count/channels")
        counts = op("Cast", [counts], f"{name}/count/float", to=TensorProto.FLOAT)
        if len(node.shape) == 1:
            return counts
        size = int(np.prod(node.shape[1:]))
        counts = op("Reshape", [counts, constant(f"shape/map/{size}", [0, size])], f"{name}/count/map")
        # The weights of a map are a row's times a column's: the file holds these, the runtime multiplies when it loads.
        down, across = (
            np.stack(columns.rows, 1)[:, None],
            np.stack(columns.columns, 1)[None],
        )  # [H, 1, sums], [1, W, sums]
        number = np.uint8 if down.max() * across.max() < 256 else np.int32
        parts = [
            constant(f"{name}/count/fan/{key}", values.astype(number))
            for key, values in (("rows", down), ("columns", across))
        ]
        fan = op("Mul", parts, f"{name}/count/fan")
        fan = op("Reshape", [fan, constant(f"shape/fan/{size}", [size, -1])], f"{name}/count/fan/flat")
        wide = op("Cast", [fan], f"{name}/count/fan/float", to=TensorProto.FLOAT)
        return op("MatMul", [counts, wide], f"{name}/count")

    def events(self, node: g.Node, tensor: str) -> str:
        """1 where a value is not zero, uint8; no value here is negative."""
        if g.is_binary(self.builder.graph)[node.name]:
            return tensor
        fires = self.builder.op("Cast", [tensor], f"{node.name}/count/nonzero", to=TensorProto.BOOL)
        return self.builder.op("Cast", [fires], f"{node.name}/count/events", to=TensorProto.UINT8)
