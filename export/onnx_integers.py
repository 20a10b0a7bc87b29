"""Values of an int8 model: tensors of integers with the bounds that the weights prove for them.

Maps are channels last, [T*B, H*W, C]; what is exact follows from the bounds, not from a data set.
"""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from export import graph as g
from export import integer
from export.onnx_builder import Builder, Value


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


def ready(builder: Builder, x: Integers, name: str) -> str:
    """A current with its bias, in float32, which holds it exactly."""
    assert max(-x.low, x.high) < integer.EXACT_FLOAT32, f"{name}: not exact"
    tensor = x.tensor
    if x.type != TensorProto.FLOAT:
        tensor = builder.op("Cast", [tensor], f"{name}/sums", to=TensorProto.FLOAT)
    if x.bias is None:
        return tensor
    bias = builder.constant(f"{name}/bias", x.bias.astype(np.float32))
    return builder.op("Add", [tensor, bias], f"{name}/drive")


def flat(shape: tuple[int, ...]) -> list[int]:
    """The shape of a map [C, H, W] or a vector [N] here, with a batch axis that stays as it is."""
    return [0, int(np.prod(shape[1:])), shape[0]] if len(shape) > 1 else [0, *shape]


def flat_shape(node: g.Node) -> tuple[int, ...]:
    """The shape that a node's value has here, without the batch axis."""
    return tuple(flat(node.shape)[1:])


def out(node: g.Node) -> str:
    """The tensor of a node's value."""
    return f"{node.name}/out"
