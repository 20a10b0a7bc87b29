"""The chip's neurons in an int8 model, step by step.

Membranes are float32 that hold integers in 2^-6 of a weight unit exactly; where that cannot be proven from the weights,
float64 with the chip's truncation and saturation.
"""

from dataclasses import replace

import numpy as np
from onnx import TensorProto

from export import integer
from export.integer import IntegerLIF
from export.onnx_builder import Builder
from export.onnx_integers import Integers, flat_shape, in_floats, out


def neurons(builder: Builder, node: IntegerLIF, x: Integers, *, T: int) -> Integers:
    """Append the steps of a layer of the chip's neurons under a current; spikes uint8 [T*B, ...]. T: of a whole run."""
    op, name = builder.op, node.name
    simple = is_simple(node, x, T=T)
    drive = replace(x, tensor=in_floats(builder, x, name), type=TensorProto.FLOAT)
    placed = replace(node, shape=flat_shape(node))
    v = builder.membrane(placed, start=0.0, type="float32" if simple else "float64")
    fired: list[str] = []
    for t, current in enumerate(builder.by_step(drive, name, shape=placed.shape)):
        step, after = builder.at(node, t), builder.after(node, t)
        fire, v = (plain_step if simple else chip_step)(builder, node, current, v, step, after)
        fired.append(fire)
    steps = builder.together(fired, f"{name}/steps", output=f"{name}/fired")
    tensor = op("Cast", [steps], name, output=out(node), to=TensorProto.UINT8)
    return Integers(tensor=tensor, static=False, type=TensorProto.UINT8, low=0, high=1)


def plain_step(
    builder: Builder, node: IntegerLIF, current: str, h: str | None, step: str, after: str | None
) -> tuple[str, str | None]:
    """One step in weight units, float32: h = v * kept / 4096 + a. What fires, and h, which `after` may name.

    What fired is taken off h by the next step (v = h up to the threshold, else 0), for most images have no next one: a
    first step is then a comparison and nothing else.
    """
    op, constant, threshold = builder.op, builder.constant, float(node.threshold)
    if h is None:
        h = current
        if after is not None and builder.form == "step":
            builder.hand_on(h, after)
    else:
        # h where it is above the threshold, else 0: onnxruntime does this and a subtraction faster than a Where.
        spent = op("ThresholdedRelu", [h], f"{step}/spent", alpha=threshold)
        v = op("Sub", [h, spent], f"{step}/reset")
        if node.v_decay:
            v = op("Mul", [v, constant(f"{node.name}/kept", 1 - node.v_decay / 2**integer.DECAY_BITS)], f"{step}/kept")
        h = op("Add", [v, current], f"{step}/h", output=after)
    return op("Greater", [h, constant(f"{node.name}/threshold", threshold)], f"{step}/fire"), h


def chip_step(
    builder: Builder, node: IntegerLIF, current: str, v: str | None, step: str, after: str | None
) -> tuple[str, str | None]:
    """One step as the chip does it, in 2^-6 of a weight unit, float64: h = clip(trunc(v * kept / 4096) + 64 a)."""
    op, constant, name = builder.op, builder.constant, node.name
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
