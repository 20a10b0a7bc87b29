"""Write an integer twin as an ONNX model in integers: int8 weights, exact int32 sums, the chip's spikes bit for bit.

Maps are channels last, [T*B, H*W, C], so that a convolution is one Gather of the inputs under its kernel and one
MatMulInteger, whose sum is exact (QLinearConv rounds it to 8 bits) and fast (ConvInteger is exact and four times slower
than float32 in onnxruntime). Spikes are uint8, currents int32. Membranes are float32 that hold integers in 2^-6 of a
weight unit exactly; where that cannot be proven from the weights, float64.

Every value carries the bounds that the weights prove for it; what is exact follows from them, not from a data set.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto

from export import graph as g
from export import integer
from export.counts import spike_driven
from export.integer import IntegerLIF, QuantizedInput, SumPool
from export.onnx_counts import Counter
from export.onnx_model import Builder, Form, Value, check, metadata
from export.scales import Scales
from export.unfold import unfold


# Two products of uint8 and int8 are added in 16 bits by processors without VNNI: 2 * 129 * 127 still fits.
LARGEST_UINT8 = 129


@dataclass(frozen=True, kw_only=True)
class Integers(Value):
    """A tensor of integers [B or T*B, H*W, C] or [B or T*B, N] between `low` and `high`."""

    type: int
    """TensorProto.UINT8, INT32 or FLOAT (which holds them exactly)."""
    low: int
    high: int
    bias: np.ndarray | None = None
    """By channel, to be added where the value is used; then within the bounds already."""


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

    logits are the twin's integers divided by the readout's scale, in float32. spike_rates and taps count the twin's
    spikes in the layers of the Graph. Metadata has also `scales`, from which the checkpoint gives the twin again.
    """
    check(graph, labels)
    builder = Builder(graph=graph, form=form)
    emitter = Emitter(builder, unfold(graph, twin))
    values: dict[str, Integers] = {}
    for node in emitter.twin:
        values[node.name] = emitter.emit(node, [values[name] for name in node.inputs])
    counter = Counter(builder, emitter.twin, {name: value.tensor for name, value in values.items()})
    logits = emitter.ready(values[graph.output.name], graph.output.name)
    scale = builder.constant("logits/scale", float(scales.currents[graph.output.name]))
    outputs = {
        "logits": (builder.op("Div", [logits, scale], "logits/unscaled"), graph.output.shape),
        "spike_rates": (counter.spike_rates(), (len(graph.lif_layers),)),
        "taps": (counter.taps(), (len(spike_driven(graph)),)),
    }
    about = metadata(graph, labels=labels, checkpoint_sha256=checkpoint_sha256, precision="int8", form=form)
    return builder.finish(outputs, metadata={**about, "layout": "channels_last", "scales": asdict(scales)})


class Emitter:
    """Writes the nodes of an unfolded twin into a Builder."""

    def __init__(self, builder: Builder, twin: g.Graph) -> None:
        self.builder, self.twin = builder, twin
        self.known: dict[str, str] = {}

    def emit(self, node: g.Node, inputs: list[Integers]) -> Integers:
        """Append what one node computes and return its value."""
        match node:
            case QuantizedInput():
                return self.pixels(node)
            case g.Conv() | g.Dense():
                return self.synapse(node, inputs[0])
            case IntegerLIF():
                return self.lif(node, inputs[0])
            case g.Add():
                return self.add(node, inputs)
            case SumPool():
                return self.sum_pool(node, inputs[0])
            case g.MaxPool():
                columns = self.under(node, inputs[0], node.kernel, node.stride, node.padding)
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
        """A layer with weights: its sums are exact, its bias is left to who reads them."""
        rows = node.weight.reshape(len(node.weight), -1).astype(np.int64)
        low = int(np.minimum(rows * x.low, rows * x.high).sum(1).min())
        high = int(np.maximum(rows * x.low, rows * x.high).sum(1).max())
        bias = np.asarray(node.bias, np.int64)
        value = Integers(
            tensor=out(node),
            static=x.static,
            type=TensorProto.INT32 if x.type == TensorProto.UINT8 else TensorProto.FLOAT,
            low=low + min(0, int(bias.min())),
            high=high + max(0, int(bias.max())),
            bias=bias if bias.any() else None,
        )
        assert np.abs(rows).sum(1).max() * max(-x.low, x.high) < integer.EXACT_FLOAT32, f"{node.name}: not exact"
        if is_identity(node):
            self.shortcut(node, x)
            return value
        columns = x.tensor
        if isinstance(node, g.Conv):
            columns = self.columns(node, x)
        weight = self.builder.constant(f"{node.name}/weight", matrix(node, self.twin))
        if x.type == TensorProto.UINT8:
            self.builder.op("MatMulInteger", [columns, weight], node.name, output=out(node))
        else:
            wide = self.builder.op("Cast", [weight], f"{node.name}/weight/float", to=TensorProto.FLOAT)
            self.builder.op("MatMul", [columns, wide], node.name, output=out(node))
        return value

    def shortcut(self, node: g.Conv | g.Dense, x: Integers) -> None:
        """A synapse from every neuron to itself: a product, no matrix."""
        op, name = self.builder.op, node.name
        weight = node.weight.reshape(-1) if isinstance(node, g.Conv) else np.diag(node.weight)
        kind = TensorProto.INT32 if x.type == TensorProto.UINT8 else TensorProto.FLOAT
        wide = op("Cast", [x.tensor], f"{name}/spikes", to=kind)
        number = np.int32 if kind == TensorProto.INT32 else np.float32
        op("Mul", [wide, self.builder.constant(f"{name}/weight", weight.astype(number))], name, output=out(node))

    def columns(self, node: g.Conv, x: Integers) -> str:
        """The inputs under the kernel at every output, [., H*W, kH*kW*C_in]."""
        kernel = (node.weight.shape[2], node.weight.shape[3])
        if kernel == (1, 1) and node.stride == (1, 1) and node.padding == (0, 0):
            return x.tensor
        under = self.under(node, x, kernel, node.stride, node.padding)
        channels = self.twin[node.inputs[0]].shape[0]
        outputs, inputs = int(np.prod(node.shape[1:])), kernel[0] * kernel[1] * channels
        shape = self.builder.constant(f"shape/columns/{outputs}x{inputs}", [0, outputs, inputs])
        return self.builder.op("Reshape", [under, shape], f"{node.name}/columns")

    def under(
        self,
        node: g.Node,
        x: Integers,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> str:
        """The values of the map that a node reads under each of its windows, [., H*W, kH*kW, C]; zeros outside."""
        op, constant, name = self.builder.op, self.builder.constant, node.name
        height, width = self.twin[node.inputs[0]].shape[1:]
        tensor = x.tensor
        if any(padding):  # one zero at the end serves all places outside
            tensor = op("Pad", [tensor, constant("pads/end", [0, 0, 0, 0, 1, 0])], f"{name}/padded")
        size = (node.shape[1], node.shape[2])
        where = self.places((height, width), size, kernel, stride, padding)
        return op("Gather", [tensor, where], f"{name}/under", axis=1)

    def places(
        self,
        inside: tuple[int, int],
        size: tuple[int, int],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> str:
        """Where the values under each window stand, int32 [H*W, kH*kW]; H*W of the map that is read for one outside.

        Runtimes compute it when they load the model: the file holds what a row and a column add.
        """
        (h, w), (kh, kw), (sh, sw), (ph, pw) = inside, kernel, stride, padding  # which say how many windows there are
        key = f"{h}x{w}/k{kh}x{kw}/s{sh}x{sw}/p{ph}x{pw}"
        if key not in self.known:
            op, constant = self.builder.op, self.builder.constant
            area = inside[0] * inside[1]
            rows, columns = (
                np.arange(size[i])[:, None] * stride[i] + np.arange(kernel[i]) - padding[i] for i in range(2)
            )
            rows = np.where((rows >= 0) & (rows < inside[0]), rows * inside[1], area).astype(np.int32)
            columns = np.where((columns >= 0) & (columns < inside[1]), columns, area).astype(np.int32)
            parts = [
                constant(f"places/{key}/rows", rows[:, None, :, None]),
                constant(f"places/{key}/columns", columns[None, :, None, :]),
            ]
            sums = op("Add", parts, f"places/{key}/sums")
            near = op("Min", [sums, constant(f"places/outside/{area}", np.array(area, np.int32))], f"places/{key}/near")
            shape = constant(f"places/{key}/shape", [size[0] * size[1], kernel[0] * kernel[1]])
            self.known[key] = op("Reshape", [near, shape], f"places/{key}")
        return self.known[key]

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
                tensor = self.builder.every_step(x, node.name, shape=self.flat_shape(node))
            if x.type != type:
                tensor = self.builder.op("Cast", [tensor], f"{node.name}/term{i}", to=type)
            terms.append(tensor)
        biases = [x.bias for x in inputs if x.bias is not None]
        tensor = self.builder.op("Add", terms, node.name, output=out(node))
        bias = sum(biases[1:], biases[0]) if biases else None
        return Integers(tensor=tensor, static=static, type=type, low=low, high=high, bias=bias)

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

    def ready(self, x: Integers, name: str) -> str:
        """A current with its bias, in float32, which holds it exactly."""
        assert max(-x.low, x.high) < integer.EXACT_FLOAT32, f"{name}: not exact"
        tensor = x.tensor
        if x.type != TensorProto.FLOAT:
            tensor = self.builder.op("Cast", [tensor], f"{name}/sums", to=TensorProto.FLOAT)
        if x.bias is None:
            return tensor
        bias = self.builder.constant(f"{name}/bias", x.bias.astype(np.float32))
        return self.builder.op("Add", [tensor, bias], f"{name}/drive")

    def lif(self, node: IntegerLIF, x: Integers) -> Integers:
        """The steps of a layer of the chip's neurons; spikes uint8 [T*B, ...]."""
        builder, op, name = self.builder, self.builder.op, node.name
        simple = is_simple(node, x, T=self.twin.T)
        drive = replace(x, tensor=self.ready(x, name), type=TensorProto.FLOAT, bias=None)
        placed = replace(node, shape=self.flat_shape(node))
        v = builder.membrane(placed, start=0.0, type="float32" if simple else "float64")
        fired: list[str] = []
        for t, current in enumerate(builder.by_step(drive, name, shape=placed.shape)):
            step, after = builder.at(node, t), builder.after(node, t)
            fire, v = (
                self.step(node, current, v, step, after) if simple else self.chip_step(node, current, v, step, after)
            )
            fired.append(fire)
        steps = builder.together(fired, f"{name}/steps", output=f"{name}/fired")
        tensor = op("Cast", [steps], name, output=out(node), to=TensorProto.UINT8)
        return Integers(tensor=tensor, static=False, type=TensorProto.UINT8, low=0, high=1)

    def step(
        self, node: IntegerLIF, current: str, v: str | None, step: str, after: str | None
    ) -> tuple[str, str | None]:
        """One step in weight units, float32: h = v * kept / 4096 + a. What fires and, called `after`, what is left."""
        op, constant, h = self.builder.op, self.builder.constant, current
        if v is not None and node.v_decay:
            kept = constant(f"{node.name}/kept", 1 - node.v_decay / 2**integer.DECAY_BITS)
            v = op("Mul", [v, kept], f"{step}/kept")
        if v is not None:
            h = op("Add", [v, current], f"{step}/h")
        if after is None:
            return op("Greater", [h, constant(f"{node.name}/threshold", float(node.threshold))], f"{step}/fire"), None
        # h where it is above the threshold, else 0: onnxruntime does this and a subtraction faster than a Where.
        spent = op("ThresholdedRelu", [h], f"{step}/spent", alpha=float(node.threshold))
        fire = op("Cast", [spent], f"{step}/fire", to=TensorProto.BOOL)
        return fire, op("Sub", [h, spent], f"{step}/reset", output=after)

    def chip_step(
        self, node: IntegerLIF, current: str, v: str | None, step: str, after: str | None
    ) -> tuple[str, str | None]:
        """One step as the chip does it, in 2^-6 of a weight unit, float64: h = clip(trunc(v * kept / 4096) + 64 a)."""
        op, constant, name = self.builder.op, self.builder.constant, node.name
        h = op("Cast", [current], f"{step}/double", to=TensorProto.DOUBLE)
        h = op("Mul", [h, constant("fraction", np.array(2.0**integer.FRACTION_BITS))], f"{step}/scaled")
        if v is not None:
            kept = constant(f"{name}/kept", np.array(1 - node.v_decay / 2**integer.DECAY_BITS))
            exact = op("Mul", [v, kept], f"{step}/exact")
            whole = op("Cast", [exact], f"{step}/whole", to=TensorProto.INT32)  # towards zero
            h = op("Add", [op("Cast", [whole], f"{step}/kept", to=TensorProto.DOUBLE), h], f"{step}/sum")
        limits = [constant(f"v_limit/{sign}", np.array(float(sign * integer.V_LIMIT))) for sign in (-1, 1)]
        h = op("Clip", [h, *limits], f"{step}/h")
        threshold = constant(f"{name}/threshold", np.array(float(node.threshold * 2**integer.FRACTION_BITS)))
        fire = op("Greater", [h, threshold], f"{step}/fire")
        if after is None:
            return fire, None
        return fire, op("Where", [fire, constant("v_reset", np.array(0.0)), h], f"{step}/reset", output=after)

    def flat_shape(self, node: g.Node) -> tuple[int, ...]:
        """The shape that a node's value has here, without the batch axis."""
        return tuple(flat(node.shape)[1:])


def is_simple(node: IntegerLIF, x: Integers, *, T: int) -> bool:
    """Whether float32 in weight units holds every membrane exactly and the chip neither truncates nor clips one.

    The decay must be a power of two whose bits stay within the six fractional ones over T steps. Of the range of the
    chip's membrane the negative end matters only: a membrane beyond the other has fired. Under a current that is the
    same at every step not even that does: a negative one never fires.
    """
    kept = 2**integer.DECAY_BITS - node.v_decay
    if kept & (kept - 1) or not kept:
        return False
    halvings = integer.DECAY_BITS - (kept.bit_length() - 1)
    unit = 2**integer.FRACTION_BITS
    lowest = unit * min(0, x.low) * sum(2.0 ** -(halvings * t) for t in range(T))
    return (
        halvings * (T - 1) <= integer.FRACTION_BITS
        and (x.static or lowest >= -integer.V_LIMIT)
        and unit * (node.threshold + max(0, x.high)) <= integer.EXACT_FLOAT32
        and 0 <= unit * node.threshold < integer.V_LIMIT
    )


def is_identity(node: g.Conv | g.Dense) -> bool:
    """Whether each input has one synapse, to the output of the same place."""
    if isinstance(node, g.Dense):
        weight = node.weight
        return weight.shape[0] == weight.shape[1] and not (weight - np.diag(np.diag(weight))).any()
    alone = node.groups == len(node.weight) and node.weight.shape[1:] == (1, 1, 1)
    return alone and node.stride == (1, 1) and node.padding == (0, 0)


def matrix(node: g.Conv | g.Dense, graph: g.Graph) -> np.ndarray:
    """The weights int8 [inputs, outputs] in the order of channels-last inputs."""
    if isinstance(node, g.Conv):
        groups, (c_out, c_in) = node.groups, node.weight.shape[:2]
        whole = np.zeros((c_out, c_in * groups, *node.weight.shape[2:]), np.int8)
        for k in range(groups):
            rows = slice(k * c_out // groups, (k + 1) * c_out // groups)
            whole[rows, k * c_in : (k + 1) * c_in] = node.weight[rows]
        return np.ascontiguousarray(whole.transpose(2, 3, 1, 0).reshape(-1, c_out))
    source = graph[node.inputs[0]]
    weight = node.weight
    if isinstance(source, g.Flatten):
        weight = weight.reshape(len(weight), *graph[source.inputs[0]].shape)
        weight = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    return np.ascontiguousarray(weight.T.astype(np.int8))


def flat(shape: tuple[int, ...]) -> list[int]:
    """The shape of a map [C, H, W] or a vector [N] here, with a batch axis that stays as it is."""
    return [0, int(np.prod(shape[1:])), shape[0]] if len(shape) > 1 else [0, *shape]


def out(node: g.Node) -> str:
    """The tensor of a node's value."""
    return f"{node.name}/out"
