"""Write an integer twin as an ONNX model in integers: int8 weights, exact int32 sums, the chip's spikes bit for bit.

Maps are channels last, [T*B, H*W, C], so that a convolution is one Gather of the inputs under its kernel and one
MatMulInteger, whose sum is exact (QLinearConv rounds it to 8 bits) and fast (ConvInteger is exact and four times slower
than float32 in onnxruntime). Spikes are uint8, currents and membranes floats that hold integers (onnx_membrane.py).
"""

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import onnx
from onnx import TensorProto

from export import graph as g
from export import integer
from export.counts import spike_driven
from export.integer import IntegerLIF, QuantizedInput, SumPool
from export.onnx_builder import Builder, Outputs, write_model
from export.onnx_counts import Counter
from export.onnx_integers import LARGEST_UINT8, Integers, flat, flat_shape, in_floats, out, sums
from export.onnx_membrane import neurons
from export.onnx_model import Form, check, metadata
from export.onnx_windows import Windows, is_identity, matrix
from export.scales import Scales
from export.unfold import unfold


def build_int8(
    graph: g.Graph,
    twin: g.Graph,
    scales: Scales,
    *,
    labels: Sequence[str],
    checkpoint_sha256: str,
    form: Form = "unrolled",
) -> onnx.ModelProto:
    """A checked ONNX model of the twin that `scales` give of a Graph. Inputs, outputs, forms: onnx_graph.build_model.

    logits are the twin's integers divided by the readout's scale, in float32. spike_rates, taps and nonzero count the
    twin's spikes in the layers of the Graph. Metadata has also `scales`, which make the twin again of the checkpoint.
    """
    check(graph, labels)
    about = metadata(graph, labels=labels, checkpoint_sha256=checkpoint_sha256, precision="int8", form=form)
    about |= {"layout": "channels_last", "scales": asdict(scales)}
    unfolded = unfold(graph, twin)
    # In floats branches would cost more than they save: onnxruntime gives a convolution its fast layout only where its
    # weights stand in the same graph.
    return write_model(graph, form, lambda builder: write(builder, unfolded, scales), metadata=about, first_apart=True)


def write(builder: Builder, twin: g.Graph, scales: Scales) -> Outputs:
    """Append an unfolded twin and what is counted of it."""
    graph = builder.graph
    emitter = Emitter(builder, twin)
    values: dict[str, Integers] = {}
    for node in twin:
        values[node.name] = emitter.emit(node, [values[name] for name in node.inputs])
    counter = Counter(builder, twin, {name: value.tensor for name, value in values.items()})
    logits = in_floats(builder, values[graph.output.name], "logits")
    scale = builder.constant("logits/scale", float(scales.currents[graph.output.name]))
    return {
        "logits": (builder.op("Div", [logits, scale], "logits/unscaled"), graph.output.shape),
        "spike_rates": (counter.spike_rates(), (len(graph.lif_layers),)),
        "taps": (counter.taps(), (len(spike_driven(graph)),)),
        "nonzero": (counter.nonzero(), (len(spike_driven(graph)),)),
    }


class Emitter:
    """Writes the nodes of an unfolded twin into a Builder."""

    def __init__(self, builder: Builder, twin: g.Graph) -> None:
        self.builder, self.twin = builder, twin
        self.windows = Windows(builder=builder)

    def emit(self, node: g.Node, inputs: list[Integers]) -> Integers:
        """Append what one node computes and return its value."""
        match node:
            case QuantizedInput():
                return self.pixels(node)
            case g.Conv() | g.Dense():
                return self.synapse(node, inputs[0])
            case IntegerLIF():
                return neurons(self.builder, node, inputs[0], T=self.twin.T)
            case g.Add():
                return self.add(node, inputs)
            case SumPool():
                return self.sum_pool(node, inputs[0])
            case g.MaxPool():
                source = inputs[0].tensor
                columns = self.windows.under(node, source, self.inside(node), node.kernel, node.stride, node.padding)
                axes = self.builder.constant("axes/2", [2])
                tensor = self.builder.op("ReduceMax", [columns, axes], node.name, output=out(node), keepdims=0)
                return replace(inputs[0], tensor=tensor)
            case g.Flatten():
                size = self.builder.constant(f"{node.name}/shape", [0, *node.shape])
                tensor = self.builder.op("Reshape", [inputs[0].tensor, size], node.name, output=out(node))
                return replace(inputs[0], tensor=tensor)
        raise TypeError(f"{node.name}: the int8 export does not know {type(node).__name__}")

    def pixels(self, node: QuantizedInput) -> Integers:
        """The image in integers, as integer.quantize_images makes them: in float64, where no tie falls otherwise."""
        op, constant, name = self.builder.op, self.builder.constant, node.name
        x = op("Cast", ["image"], f"{name}/double", to=TensorProto.DOUBLE)
        for kind, key, value in (("Sub", "mean", node.mean), ("Div", "std", node.std)):
            x = op(kind, [x, constant(f"{name}/{key}", value.reshape(1, -1, 1, 1))], f"{name}/by_{key}")
        x = op("Mul", [x, constant(f"{name}/scale", np.array(node.scale))], f"{name}/scaled")
        x = op("Round", [x], f"{name}/rounded")
        limits = [
            constant(f"{name}/{key}", np.array(sign * float(node.limit))) for key, sign in (("low", -1), ("high", 1))
        ]
        x = op("Clip", [x, *limits], f"{name}/clipped")
        x = op("Cast", [x], f"{name}/integers", to=TensorProto.FLOAT)
        x = op("Transpose", [x], f"{name}/channels_last", perm=[0, 2, 3, 1])
        tensor = op("Reshape", [x, constant(f"{name}/shape", flat(node.shape))], name, output=out(node))
        return Integers(tensor=tensor, static=True, type=TensorProto.FLOAT, low=-node.limit, high=node.limit)

    def synapse(self, node: g.Conv | g.Dense, x: Integers) -> Integers:
        """A layer with weights: its sums with its bias, exact in float32."""
        rows = node.weight.reshape(len(node.weight), -1).astype(np.int64)
        bias = np.asarray(node.bias, np.int64)
        low = int(np.minimum(rows * x.low, rows * x.high).sum(1).min()) + min(0, int(bias.min()))
        high = int(np.maximum(rows * x.low, rows * x.high).sum(1).max()) + max(0, int(bias.max()))
        assert np.abs(rows).sum(1).max() * max(-x.low, x.high) < integer.EXACT_FLOAT32, f"{node.name}: not exact"
        assert max(-low, high) < integer.EXACT_FLOAT32, f"{node.name}: not exact with its bias"
        name, biased = node.name, bool(bias.any())
        output = f"{name}/unbiased" if biased else out(node)
        if is_identity(node):
            self.shortcut(node, x, output)
        else:
            columns = self.columns(node, x) if isinstance(node, g.Conv) else x.tensor
            weight = matrix(node, self.twin)
            if x.type == TensorProto.UINT8:
                sums(self.builder, columns, weight, name, output=output)
            else:
                small = self.builder.constant(f"{name}/weight", weight)
                wide = self.builder.op("Cast", [small], f"{name}/weight/float", to=TensorProto.FLOAT)
                self.builder.op("MatMul", [columns, wide], f"{name}/sums", output=output)
        if biased:
            added = self.builder.constant(f"{name}/bias", bias.astype(np.float32))
            self.builder.op("Add", [output, added], name, output=out(node))
        return Integers(tensor=out(node), static=x.static, type=TensorProto.FLOAT, low=low, high=high)

    def shortcut(self, node: g.Conv | g.Dense, x: Integers, output: str) -> None:
        """A synapse from every neuron to itself: a product, no matrix."""
        weight = node.weight.reshape(-1) if isinstance(node, g.Conv) else np.diag(node.weight)
        factors = self.builder.constant(f"{node.name}/weight", weight.astype(np.float32))
        self.builder.op("Mul", [in_floats(self.builder, x, node.name), factors], f"{node.name}/sums", output=output)

    def columns(self, node: g.Conv, x: Integers) -> str:
        """The inputs under the kernel at every output, [., H*W, kH*kW*C_in]."""
        kernel = (node.weight.shape[2], node.weight.shape[3])
        if kernel == (1, 1) and node.stride == (1, 1) and node.padding == (0, 0):
            return x.tensor
        under = self.windows.under(node, x.tensor, self.inside(node), kernel, node.stride, node.padding)
        channels = self.twin[node.inputs[0]].shape[0]
        outputs, inputs = int(np.prod(node.shape[1:])), kernel[0] * kernel[1] * channels
        shape = self.builder.constant(f"shape/columns/{outputs}x{inputs}", [0, outputs, inputs])
        return self.builder.op("Reshape", [under, shape], f"{node.name}/columns")

    def add(self, node: g.Add, inputs: list[Integers]) -> Integers:
        """A sum of spikes or of currents."""
        low, high = sum(x.low for x in inputs), sum(x.high for x in inputs)
        kinds = {x.type for x in inputs}
        type = kinds.pop() if len(kinds) == 1 else TensorProto.FLOAT
        if type == TensorProto.UINT8 and high > LARGEST_UINT8:
            type = TensorProto.FLOAT
        static = all(x.static for x in inputs)
        terms = []
        for i, x in enumerate(inputs):
            tensor = x.tensor
            if x.static != static:
                tensor = self.builder.every_step(x, node.name, shape=flat_shape(node))
            if x.type != type:
                tensor = self.builder.op("Cast", [tensor], f"{node.name}/term{i}", to=type)
            terms.append(tensor)
        assert max(-low, high) < integer.EXACT_FLOAT32, f"{node.name}: not exact"
        tensor = self.builder.op("Add", terms, node.name, output=out(node))
        return Integers(tensor=tensor, static=static, type=type, low=low, high=high)

    def sum_pool(self, node: SumPool, x: Integers) -> Integers:
        """Sums over windows, uint8 where they fit."""
        op, constant, name = self.builder.op, self.builder.constant, node.name
        (kh, kw), (c, height, width) = node.kernel, self.twin[node.inputs[0]].shape
        high = x.high * kh * kw
        wide = op("Cast", [x.tensor], f"{name}/int32", to=TensorProto.INT32)
        if (kh, kw) == (height, width):
            kept = int(len(node.shape) > 1)
            summed = op("ReduceSum", [wide, constant("axes/1", [1])], f"{name}/sums", keepdims=kept)
        else:
            windows = [0, height // kh, kh, width // kw, kw, c]
            tensor = op("Reshape", [wide, constant(f"{name}/windows/shape", windows)], f"{name}/windows")
            summed = op("ReduceSum", [tensor, constant("axes/2,4", [2, 4])], f"{name}/sums", keepdims=0)
            summed = op("Reshape", [summed, constant(f"{name}/shape", flat(node.shape))], f"{name}/map")
        type = TensorProto.UINT8 if high <= LARGEST_UINT8 else TensorProto.FLOAT
        tensor = op("Cast", [summed], name, output=out(node), to=type)
        return Integers(tensor=tensor, static=x.static, type=type, low=0, high=high)

    def inside(self, node: g.Node) -> tuple[int, int]:
        """Rows and columns of the map that a node reads."""
        rows, columns = self.twin[node.inputs[0]].shape[1:]
        return rows, columns
