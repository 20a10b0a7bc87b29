"""Values of an int8 model: tensors of integers with the bounds that the weights prove for them.

Maps are channels last, [T*B, H*W, C]; what is exact follows from the bounds, not from a data set.
"""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from export import graph as g
from export.onnx_builder import Builder, Value


# Two products of uint8 and int8 are added in 16 bits by processors without VNNI: 2 * 129 * 127 still fits.
LARGEST_UINT8 = 129


@dataclass(frozen=True, kw_only=True)
class Integers(Value):
    """A tensor of integers [B or T*B, H*W, C] or [B or T*B, N] between `low` and `high`."""

    type: int
    """TensorProto.UINT8, or FLOAT, which holds them exactly."""
    low: int
    high: int


def sums(builder: Builder, spikes: str, weight: np.ndarray, name: str, *, output: str) -> str:
    """Products of uint8 [., M, inputs] and int8 weights [inputs, N], summed in int32 and given in float32.

    The product by one is there for onnxruntime: a MatMulInteger, a Cast, a product with such a scale and the Add of a
    bias are one operator to it (MatMulIntegerToFloat), which writes each sum once and not three times. It is so only
    where each layer has a scale of its own, that is computed of the input: what is known to be one is optimised away
    first, and what is there twice is shared.
    """
    op, constant = builder.op, builder.constant
    raw = op("MatMulInteger", [spikes, constant(f"{name}/weight", weight)], f"{name}/integer")
    wide = op("Cast", [raw], f"{name}/float", to=TensorProto.FLOAT)
    if not builder.has(["one"]):
        some = op("GreaterOrEqual", [op("Size", ["image"], "one/size"), constant("one/least", 0)], "one/true")
        op("Cast", [some], "one", to=TensorProto.FLOAT)
    scale = op("Mul", ["one", constant(f"{name}/ones", np.ones(weight.shape[1], np.float32))], f"{name}/scale")
    return op("Mul", [wide, scale], f"{name}/sums", output=output)


def in_floats(builder: Builder, x: Integers, name: str) -> str:
    """A value in float32; `name` is of the node that it belongs to or that reads it."""
    if x.type == TensorProto.FLOAT:
        return x.tensor
    return builder.op("Cast", [x.tensor], f"{name}/float", to=TensorProto.FLOAT)


def flat(shape: tuple[int, ...]) -> list[int]:
    """The shape of a map [C, H, W] or a vector [N] here, with a batch axis that stays as it is."""
    return [0, int(np.prod(shape[1:])), shape[0]] if len(shape) > 1 else [0, *shape]


def flat_shape(node: g.Node) -> tuple[int, ...]:
    """The shape that a node's value has here, without the batch axis."""
    return tuple(flat(node.shape)[1:])


def out(node: g.Node) -> str:
    """The tensor of a node's value."""
    return f"{node.name}/out"
