"""Collect the operators of an ONNX model under readable names, in either form (export/onnx_model.py)."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export import graph as g
from export.onnx_model import IR_VERSION, OPSET, Form, info


Branch = Literal["first", "next"]
Outputs = dict[str, tuple[str, tuple[int, ...]]]
"""By name of an output, the tensor [T*B, ...] that holds it and its shape without that axis."""
TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor of the model: [B, ...] where `static` (the same at every step), [T*B, ...] otherwise."""

    tensor: str
    static: bool


@dataclass(frozen=True, kw_only=True)
class Passed:
    """A tensor that a step hands to the next: its names, its shape without the batch axis, its numpy type."""

    input: str
    output: str
    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True, kw_only=True)
class State(Passed):
    """A membrane; an image's first step takes `start`.

    After the reset; where int8 holds it in float32, before, and the next step begins with the reset (onnx_membrane.py).
    """

    start: float


@dataclass(kw_only=True)
class Builder:
    """Collects the operators and constants of one model, or of one branch of it, and knows its form.

    Whoever writes an operator calls tensors by plain names. In a branch, what reads constants alone goes to `top`, once
    for both branches; all else is called first/NAME or next/NAME in the model.
    """

    graph: g.Graph
    form: Form
    branch: Branch | None = None
    top: "Builder | None" = None
    """Of a branch: the model around it."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    """Plain names of the tensors that the nodes give."""
    carried: list[Passed] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    given: dict[str, str] = field(default_factory=dict)
    """By the name of what is handed on, the tensor that holds it."""
    inner: list[onnx.ValueInfoProto] = field(default_factory=list)

    @property
    def T(self) -> int:
        """Steps that one run of the model makes."""
        return self.graph.T if self.form == "unrolled" else 1

    def own(self, tensor: str) -> str:
        """What the model calls a tensor."""
        return f"{self.branch}/{tensor}" if self.branch and tensor in self.made else tensor

    def op(self, kind: str, inputs: Sequence[str], name: str, *, output: str | None = None, **attributes: Any) -> str:
        """Append one operator and return its tensor, which has the operator's name unless `output` says otherwise."""
        tensor = output or name
        if self.top is not None and not self.made.intersection(inputs) and self.top.has(inputs):
            if not self.top.has([tensor]):
                self.top.op(kind, inputs, name, output=output, **attributes)
            return tensor
        sources = [self.own(source) for source in inputs]
        self.made.add(tensor)
        called = f"{self.branch}/{name}" if self.branch else name
        self.nodes.append(helper.make_node(kind, sources, [self.own(tensor)], name=called, **attributes))
        return tensor

    def has(self, tensors: Sequence[str]) -> bool:
        """Whether all of these are constants or given by an operator."""
        return all(tensor in self.constants or tensor in self.made for tensor in tensors)

    def constant(self, name: str, value: np.ndarray | float | Sequence[int]) -> str:
        """Store one constant; Python's floats as float32, its integers as int64. What is stored under a name stays."""
        array = np.asarray(value)
        if not isinstance(value, np.ndarray):
            array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        (self.top or self).constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def describe(self, x: Value, shape: Sequence[int], *, type: int = TensorProto.FLOAT) -> None:
        """State the shape of a value, for readers of the model; `shape` is without the batch axis."""
        batch = ("B", "T*B") if self.form == "unrolled" else ("N", "B")
        self.inner.append(info(self.own(x.tensor), (batch[not x.static], *shape), type=type))

    def every_step(self, x: Value, name: str, *, shape: tuple[int, ...]) -> str:
        """A value at all steps of the model, [T*B, ...]; `name` is of the node that it belongs to or that reads it."""
        if not x.static:
            return x.tensor
        if self.form == "unrolled":
            return self.op("Concat", [x.tensor] * self.T, f"{name}/hold", axis=0)
        source = x.tensor.removesuffix("/out")
        passed = Passed(input=f"{source}/carried", output=f"{source}/carry", shape=shape, type="float32")
        if passed.output not in self.given:
            self.carried.append(passed)
            held = x.tensor
            if self.branch != "first":
                held = self.op("Concat", [passed.input, x.tensor], f"{source}/join", output=passed.output, axis=0)
            self.given[passed.output] = held
        return self.given[passed.output]

    def by_step(self, x: Value, name: str, *, shape: tuple[int, ...]) -> list[str]:
        """A value at each step of the model, T tensors [B, ...]."""
        if x.static and self.form == "unrolled":
            return [x.tensor] * self.T
        tensor = self.every_step(x, name, shape=shape)
        if self.T == 1:
            return [tensor]
        parts = [f"{name}/t{t}/current" for t in range(self.T)]
        self.nodes.append(
            helper.make_node("Split", [tensor], parts, name=f"{name}/currents", axis=0, num_outputs=self.T)
        )
        self.made.update(parts)
        return parts

    def together(self, parts: list[str], name: str, *, output: str) -> str:
        """T tensors [B, ...] as one [T*B, ...]."""
        if len(parts) == 1:
            return self.op("Identity", parts, name, output=output)
        return self.op("Concat", parts, name, output=output, axis=0)

    def membrane(self, node: g.Node, *, start: float, type: str) -> str | None:
        """The potential [B, ...] that a layer of neurons has before the model's first step; None: `start`, everywhere.

        In the step form the potential after the step goes out as `after(node, 0)`.
        """
        if self.form == "unrolled":
            return None
        names = {"input": f"{node.name}/v", "output": f"{node.name}/v_next"}
        self.states.append(State(**names, shape=node.shape, type=type, start=start))
        self.given[names["output"]] = names["output"]
        return None if self.branch == "first" else names["input"]

    def after(self, node: g.Node, t: int) -> str | None:
        """The name of the potential after step t; None where nothing reads it."""
        if self.form == "step":
            return f"{node.name}/v_next"
        return f"{node.name}/t{t}/v" if t + 1 < self.T else None

    def hand_on(self, tensor: str, after: str) -> None:
        """Let a tensor that is there go out as the potential that `after` names."""
        if self.branch is None or tensor in self.given.values():  # what goes out twice needs two tensors
            self.op("Identity", [tensor], after)
        else:
            self.given[after] = tensor

    def at(self, node: g.Node, t: int) -> str:
        """What the names of a layer's operators at step t begin with."""
        return f"{node.name}/t{t}" if self.form == "unrolled" else f"{node.name}/t"

    def body(
        self,
        name: str,
        results: Sequence[onnx.ValueInfoProto],
        inputs: Sequence[onnx.ValueInfoProto] = (),
    ) -> onnx.GraphProto:
        """The operators as a graph; `results` are called as whoever reads them calls them."""
        held = []
        for result in results:
            held.append(onnx.ValueInfoProto())
            held[-1].CopyFrom(result)
            held[-1].name = self.own(self.given.get(result.name, result.name))
        return helper.make_graph(self.nodes, name, inputs, held, list(self.constants.values()), value_info=self.inner)


def write_model(
    graph: g.Graph,
    form: Form,
    write: Callable[[Builder], Outputs],
    *,
    metadata: dict[str, Any],
    first_apart: bool = False,
) -> onnx.ModelProto:
    """The model that `write` appends to a Builder, checked by onnx with strict shape inference.

    first_apart: a step is written twice, into the branches of one If: `first`, for C = 0, where all images are new and
    no membrane need be read, and `next`. They share constants and what is computed from them, and give the same bits.
    """
    top = Builder(graph=graph, form=form)
    results = branched(top, write) if form == "step" and first_apart else written(top, write)
    inputs = [info("image", ("B" if form == "unrolled" else "N", *graph.input.shape))]
    for passed, batch in [*((x, "C") for x in top.carried), *((x, "B") for x in top.states)]:
        inputs.append(info(passed.input, (batch, *passed.shape), type=TYPES[passed.type]))
    if form == "step":
        metadata = {
            **metadata,
            "carried": [asdict(passed) for passed in top.carried],
            "states": [asdict(state) for state in top.states],
        }
    opset = helper.make_opsetid("", OPSET)
    body = top.body("tserve", results, inputs)
    model = helper.make_model(body, opset_imports=[opset], ir_version=IR_VERSION, producer_name="tserve")
    helper.set_model_props(model, {key: json.dumps(value, separators=(",", ":")) for key, value in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    return model


def written(builder: Builder, write: Callable[[Builder], Outputs]) -> list[onnx.ValueInfoProto]:
    """Let `write` append to a Builder, and divide its outputs [T*B, ...] into steps; all that the model gives."""
    unrolled = builder.form == "unrolled"
    free, lead = ([builder.T, -1], (builder.T, "B")) if unrolled else ([-1], ("B",))
    results = []
    for name, (tensor, shape) in write(builder).items():
        size = builder.constant(f"{name}/shape", [*free, *shape])
        builder.op("Reshape", [tensor, size], f"{name}/steps", output=name)
        results.append(info(name, (*lead, *shape)))
    for passed in (*builder.carried, *builder.states):
        results.append(info(passed.output, ("B", *passed.shape), type=TYPES[passed.type]))
    return results


def branched(top: Builder, write: Callable[[Builder], Outputs]) -> list[onnx.ValueInfoProto]:
    """The same with `write` in both branches of an If."""
    first, following = (Builder(graph=top.graph, form=top.form, branch=name, top=top) for name in get_args(Branch))
    results = written(first, write)
    assert written(following, write) == results, "the branches differ in what they give"
    top.carried, top.states = following.carried, following.states
    under_way = top.op("Size", [top.carried[0].input], "step/under_way")
    all_new = top.op("Equal", [under_way, top.constant("step/nobody", 0)], "step/all_new")
    branches = {"then_branch": first.body("first", results), "else_branch": following.body("next", results)}
    top.nodes.append(helper.make_node("If", [all_new], [result.name for result in results], name="step", **branches))
    return results
