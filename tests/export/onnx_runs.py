"""Run exported models in the tests: both runtimes, the unrolled form, and the step form in any order of images.

`expected` says by brute force what a model must give, from every node's values.
Shapes: T steps, B images; every output is [T, B, ...].
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from chip_graphs import naive_scales
from onnx.reference import ReferenceEvaluator

from export import execute, reference
from export import graph as g
from export.counts import spike_driven
from export.onnx_int8 import build_int8
from export.onnx_model import Form, branches_of, expose_spikes, spikes_tensor
from export.prepare import prepare
from export.scales import Scales, rebuild


FLOATS = ("logits", "spike_rates", "taps", "nonzero")
Feed = dict[str, np.ndarray]
Runner = Callable[[Feed], Feed]


def about(model: onnx.ModelProto) -> dict[str, Any]:
    """The metadata of a model."""
    return {item.key: json.loads(item.value) for item in model.metadata_props}


def exposed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every layer's spikes among its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    expose_spikes(copy, about(model)["lif_layers"])
    return copy


def graphs(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    """The graph of a model and those of its branches, `first` before `next`."""
    branches = (branch for node in model.graph.node for branch in branches_of(node))
    return [model.graph, *sorted(branches, key=lambda branch: branch.name)]


def operators(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """All operators of a model, those of its branches too."""
    return [node for graph in graphs(model) for node in graph.node]


def taken(model: onnx.ModelProto, branch: str) -> onnx.ModelProto:
    """The model that computes what one branch computes, whoever goes on; its operators and tensors by plain names."""
    flat = onnx.ModelProto()
    flat.CopyFrom(model)
    *before, choice = model.graph.node
    (body,) = (graph for graph in branches_of(choice) if graph.name == branch)
    plain = {tensor: tensor.removeprefix(f"{branch}/") for node in body.node for tensor in node.output}
    plain |= {own.name: output for own, output in zip(body.output, choice.output, strict=True)}
    assert not set(plain.values()) & {tensor for node in before for tensor in node.output}
    del flat.graph.node[:]
    flat.graph.node.extend(node for node in before if not node.name.startswith("step/"))
    for node in body.node:
        inputs, outputs = ([plain.get(tensor, tensor) for tensor in names] for names in (node.input, node.output))
        flat.graph.node.add().CopyFrom(node)
        flat.graph.node[-1].input[:], flat.graph.node[-1].output[:] = inputs, outputs
        flat.graph.node[-1].name = node.name.removeprefix(f"{branch}/")
    return flat


def paths(model: onnx.ModelProto) -> list[onnx.ModelProto]:
    """The model, or if it has branches what each of them computes: models without branches."""
    return [taken(model, graph.name) for graph in graphs(model)[1:]] or [model]


def in_onnxruntime(model: onnx.ModelProto, *, optimised: bool = True, threads: int = 1) -> Runner:
    """A function from inputs to outputs by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, feed), strict=True))


def in_onnx(model: onnx.ModelProto) -> Runner:
    """The same in onnx's reference evaluator."""
    evaluator = ReferenceEvaluator(model)
    return lambda feed: dict(zip(evaluator.output_names, map(np.asarray, evaluator.run(None, feed)), strict=True))


def unrolled(model: onnx.ModelProto, run: Runner, images: np.ndarray) -> Feed:
    """The outputs of one run, each [T, B, ...]; spikes in the model's own layout."""
    return {name: split_steps(about(model), name, value) for name, value in run({"image": images}).items()}


def split_steps(known: dict[str, Any], name: str, value: np.ndarray) -> np.ndarray:
    """Spikes [T*B, ...] as [T, B, ...]; all else as it is."""
    spikes = name in map(spikes_tensor, known["lif_layers"])
    return value.reshape(known["T"], -1, *value.shape[1:]) if spikes else value


def first(known: dict[str, Any], batch: int) -> Feed:
    """What the first step of new images reads besides the images."""
    feed = {one["input"]: np.zeros((0, *one["shape"]), one["type"]) for one in known["carried"]}
    return feed | {one["input"]: np.full((batch, *one["shape"]), one["start"], one["type"]) for one in known["states"]}


def stepped(model: onnx.ModelProto, run: Runner, images: np.ndarray) -> Feed:
    """The outputs of T steps, each [T, B, ...], without what is handed on."""
    return scheduled(model, run, images, [(0, about(model)["T"])] * len(images))


def scheduled(model: onnx.ModelProto, run: Runner, images: np.ndarray, times: Sequence[tuple[int, int]]) -> Feed:
    """What a step model gives when image i joins at step start and stays for n steps, times[i] = (start, n).

    Those that go on come first, in the order in which they joined, as the form wants it. Outputs [T, B, ...] count from
    each image's own first step; zeros after it has left.
    """
    known = about(model)
    states = {one["input"] for one in known["states"]}
    handed = {one["output"] for one in (*known["carried"], *known["states"])}
    active: list[int] = []
    previous = first(known, 0)
    seen: dict[tuple[int, int], Feed] = {}
    for now in range(max(start + n for start, n in times)):
        going = [row for row, image in enumerate(active) if now < sum(times[image])]
        new = [image for image, (start, n) in enumerate(times) if start == now and n]
        starts = first(known, len(new))
        feed = {
            name: np.concatenate([value[going], starts[name]]) if name in states else value[going]
            for name, value in previous.items()
        }
        active = [*(active[row] for row in going), *new]
        outputs = run({"image": images[new], **feed})
        previous = {one["input"]: outputs[one["output"]] for one in (*known["carried"], *known["states"])}
        for row, image in enumerate(active):
            own = {name: value[row] for name, value in outputs.items() if name not in handed}
            seen[now - times[image][0], image] = own
    sample = next(iter(seen.values()))
    nothing = {name: np.zeros_like(value) for name, value in sample.items()}
    return {
        name: np.stack(
            [np.stack([seen.get((t, i), nothing)[name] for i in range(len(times))]) for t in range(known["T"])]
        )
        for name in sample
    }


def taps_by_hand(graph: g.Graph, values: dict[str, np.ndarray], node: g.Conv | g.Dense) -> np.ndarray:
    """Convolve (x != 0) with ones in one output channel of each group, and add up: [T, B]."""
    events = (values[node.inputs[0]] != 0).astype(np.int64)
    if isinstance(node, g.Dense):
        return events.sum(axis=2)
    ones = np.ones((node.groups, *node.weight.shape[1:]), np.int64)
    landed = reference.conv2d(events, ones, stride=node.stride, padding=node.padding, groups=node.groups)
    return landed.sum(axis=(2, 3, 4))


def expected(graph: g.Graph, values: dict[str, np.ndarray], logits: np.ndarray, *, last: bool = False) -> Feed:
    """What a model of the Graph must give, from every node's values [T or 1, B, ...] and the logits [T, B, K].

    last: spikes of maps with channels last and one axis for rows and columns, as int8 models have them.
    """
    rates = [values[lif.name].reshape(*logits.shape[:2], -1).mean(axis=2) for lif in graph.lif_layers]
    layers = spike_driven(graph)
    hands = [taps_by_hand(graph, values, node) for node in layers]
    inputs = [np.count_nonzero(values[node.inputs[0]].reshape(*logits.shape[:2], -1), axis=2) for node in layers]
    spikes = {}
    for lif in graph.lif_layers:
        value = values[lif.name]
        if last and len(lif.shape) > 1:
            value = np.moveaxis(value.reshape(*value.shape[:3], -1), 2, -1)
        spikes[spikes_tensor(lif.name)] = value
    counts = {"taps": np.stack(hands, -1), "nonzero": np.stack(inputs, -1)}
    return {"logits": logits, "spike_rates": np.stack(rates, -1), **counts, **spikes}


def twin_of(graph: g.Graph) -> tuple[g.Graph, Scales]:
    """The integer twin that plain rounding gives of a Graph, and its scales."""
    prepared = prepare(graph)
    scales = naive_scales(prepared)
    return rebuild(prepared, scales), scales


def expected_int8(graph: g.Graph, twin: g.Graph, scales: Scales, images: np.ndarray) -> Feed:
    """What the int8 model of a Graph must give: what its integer twin does, counted in the layers of the Graph.

    What the Graph pools is pooled here by hand from the twin's spikes.
    """
    values = execute.run(twin, images)
    for node in graph:
        if isinstance(node, g.AvgPool | g.Mean | g.Flatten | g.Add | g.MaxPool):
            values[node.name] = by_hand(node, [values[name] for name in node.inputs])
    logits = execute.logits(twin, values).astype(np.float32) / np.float32(scales.currents[twin.output.name])
    return expected(graph, values, logits, last=True)


def by_hand(node: g.Node, inputs: list[np.ndarray]) -> np.ndarray:
    """A node without weights, of spikes or currents [T or 1, B, ...]; averages as sums."""
    x = inputs[0].astype(np.int64)
    match node:
        case g.Add():
            return x + inputs[1]
        case g.Flatten():
            return x.reshape(*x.shape[:2], -1)
        case g.Mean():
            return x.sum(axis=(3, 4))
        case g.MaxPool():
            edges = [(0, 0)] * 3 + [(p, p + k) for p, k in zip(node.padding, node.kernel, strict=True)]
            x = np.pad(x, edges, constant_values=np.iinfo(np.int64).min)
    kernel, stride = node.kernel, getattr(node, "stride", node.kernel)  # type: ignore[attr-defined]
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(3, 4))[:, :, :, :: stride[0], :: stride[1]]
    windows = windows[:, :, :, : node.shape[1], : node.shape[2]]
    return windows.max(axis=(5, 6)) if isinstance(node, g.MaxPool) else windows.sum(axis=(5, 6))


def int8_of(graph: g.Graph, twin: g.Graph, scales: Scales, form: Form = "unrolled") -> onnx.ModelProto:
    """The int8 model of a Graph of three classes, with its spikes among the outputs."""
    return exposed(build_int8(graph, twin, scales, labels=tuple("abc"), checkpoint_sha256="0" * 64, form=form))


def assert_same(got: Feed, want: Feed, *, spikes: type = np.float32) -> None:
    """Every output equal to the last bit, in the type that was promised."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].dtype == (np.float32 if name in FLOATS else spikes), name
        assert got[name].shape == value.shape, name
        np.testing.assert_array_equal(got[name], value.astype(got[name].dtype), err_msg=name)


def assert_is_twin(graph: g.Graph, twin: g.Graph, scales: Scales, images: np.ndarray) -> Feed:
    """Both forms in onnxruntime give what the twin gives; that is returned."""
    images = images.astype(np.float32)
    want = expected_int8(graph, twin, scales, images)
    model = int8_of(graph, twin, scales)
    assert_same(unrolled(model, in_onnxruntime(model), images), want, spikes=np.uint8)
    model = int8_of(graph, twin, scales, "step")
    assert_same(stepped(model, in_onnxruntime(model), images), want, spikes=np.uint8)
    return want
