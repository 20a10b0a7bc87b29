"""Hold an ONNX file against its checkpoint: spikes of every LIF layer and step, logits, answers.

A file in floats is held against the torch network, an int8 one against the integer twin under the scales that stand in
it, bit for bit. A step model is run step by step, T times.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch

from export import execute
from export import graph as g
from export.lower import lower
from export.onnx_model import computed, expose_spikes, metadata, spikes_tensor
from export.prepare import prepare
from export.scales import Scales, recorded
from export.verify import EXACT, FLOAT16, FLOAT32, Rule, Run, Verdict, compare
from export.verify_counts import COUNTS, first_miscount
from train.checkpoint import Checkpoint
from train.networks import Network, lif_layers


Engine = Literal["onnxruntime", "onnx"]
NAMES: dict[Engine, str] = {"onnxruntime": "onnxruntime (CPU)", "onnx": "onnx's reference evaluator"}
RULES: dict[str, Rule] = {"fp32": FLOAT32, "fp16": FLOAT16, "int8": EXACT}
Feed = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class OnnxFile:
    """A model with every LIF layer's spikes among its outputs, and its metadata."""

    name: str
    model: onnx.ModelProto
    about: dict[str, Any]


def verify_onnx(
    checkpoint: Checkpoint,
    path: Path,
    images: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    engine: Engine = "onnxruntime",
    name: str | None = None,
    batch_size: int = 50,
) -> Verdict:
    """Run the file on images [N, C, H, W] in [0, 1], with labels [N], and compare with what the checkpoint computes.

    Raises ValueError for a file that is damaged or was not exported from this checkpoint.
    """
    graph = lower(checkpoint)
    file = load(path, checkpoint, name or path.name)
    reference, wanted_of = reference_of(checkpoint, graph, file)
    run = open_engine(file, engine)
    runs, miscounts = [], []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        outputs = run_file(file, run, batch)
        got = run_of(file, graph, outputs, len(batch))
        runs.append((wanted_of(batch), got))
        counted = {name: np.stack([step[name] for step in outputs]) for name in COUNTS}
        if found := first_miscount(graph, got.spikes, counted):
            miscounts.append(found | {"image": None if found["image"] is None else start + found["image"]})
    wanted, got = (join([pair[i] for pair in runs]) for i in (0, 1))
    rule = RULES[file.about["precision"]]
    verdict = compare(wanted, got, rule, file=file.name, reference=reference, engine=NAMES[engine], labels=labels)
    if verdict.ok and miscounts:
        verdict = replace(verdict, ok=False, first_difference=miscounts[0])
    return verdict


def load(path: Path, checkpoint: Checkpoint, name: str) -> OnnxFile:
    """Read and check a file and what it says. Raises ValueError where it is damaged or not this checkpoint's."""
    if not path.is_file():
        raise ValueError(f"{name}: no such file; `python -m export.to_onnx CKPT` writes one")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        about = {item.key: json.loads(item.value) for item in model.metadata_props}
        outputs = {output.name for output in model.graph.output}
        known = about["precision"] in RULES and about["form"] in ("unrolled", "step")
        source = about["checkpoint_sha256"]
        if about["form"] == "step":
            first_feed(about, np.empty(0, np.float32))
            if not {one["output"] for one in (*about["carried"], *about["states"])} <= outputs:
                raise ValueError("it hands on what it does not give")
    except Exception as error:  # whatever a foreign file provokes in the protobuf reader
        raise ValueError(f"{name}: not an ONNX model that TSERve wrote, or a damaged one") from error
    if not known:
        raise ValueError(
            f"{name}: precision {about['precision']!r} and form {about['form']!r} are not known here, only "
            f"{', '.join(RULES)} and unrolled, step; export again with python -m export.to_onnx"
        )
    if source != checkpoint.sha256:
        raise ValueError(f"{name}: it was exported from another checkpoint; export again with python -m export.to_onnx")
    own = metadata(
        lower(checkpoint),
        labels=checkpoint.labels,
        checkpoint_sha256=source,
        precision=about["precision"],
        form=about["form"],
    )
    if wrong := [key for key, value in own.items() if about.get(key) != value]:
        raise ValueError(
            f"{name}: {', '.join(wrong)} in it are not the checkpoint's; export again with python -m export.to_onnx"
        )
    found = computed(model)
    if missing := [layer for layer in own["lif_layers"] if spikes_tensor(layer) not in found]:
        raise ValueError(f"{name}: no tensor holds the spikes of layer {missing[0]}")
    expose_spikes(model, own["lif_layers"])
    return OnnxFile(name=name, model=model, about=about)


def reference_of(checkpoint: Checkpoint, graph: g.Graph, file: OnnxFile) -> tuple[str, Callable[[np.ndarray], Run]]:
    """What a file must be equal to, in words and as a function of images."""
    if file.about["precision"] != "int8":
        network = checkpoint.network()
        return "the torch network", lambda images: run_torch(network, checkpoint, images)
    twin, scales = recorded(prepare(graph), file.about.get("scales"), file.name)
    return "the checkpoint's integer twin", lambda images: run_twin(twin, scales, images, file.about["lif_layers"])


def run_torch(network: Network, checkpoint: Checkpoint, images: np.ndarray) -> Run:
    """What the student itself does."""
    spikes: dict[str, np.ndarray] = {}
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out, key=key: spikes.__setitem__(key, out.numpy().astype(np.uint8)))
        for key, layer in lif_layers(network).items()
    ]
    try:
        with torch.no_grad():
            logits = network(checkpoint.preprocess(torch.from_numpy(images))).numpy()
    finally:
        for hook in hooks:
            hook.remove()
    return Run(spikes=spikes, logits=logits)


def run_twin(twin: g.Graph, scales: Scales, images: np.ndarray, layers: list[str]) -> Run:
    """What the integer twin does; its logits in the units of the student, as an int8 model gives them."""
    values = execute.run(twin, images)
    logits = execute.logits(twin, values).astype(np.float32) / np.float32(scales.currents[twin.output.name])
    return Run(spikes={layer: values[layer] for layer in layers}, logits=logits)


def open_engine(file: OnnxFile, engine: Engine) -> Callable[[Feed], Feed]:
    """A function from inputs by name to outputs by name. Raises ValueError where the engine cannot run the file."""
    try:
        if engine == "onnx":
            from onnx.reference import ReferenceEvaluator

            evaluator = ReferenceEvaluator(file.model)
            names, run = list(evaluator.output_names), evaluator.run
        else:
            import onnxruntime

            session = onnxruntime.InferenceSession(file.model.SerializeToString(), providers=["CPUExecutionProvider"])
            names, run = [output.name for output in session.get_outputs()], session.run
    except Exception as error:  # the engines have no common error type
        raise cannot_run(file, engine, error) from error

    def outputs(feed: Feed) -> Feed:
        try:
            return dict(zip(names, map(np.asarray, run(None, feed)), strict=True))
        except Exception as error:
            raise cannot_run(file, engine, error) from error

    return outputs


def cannot_run(file: OnnxFile, engine: Engine, error: Exception) -> ValueError:
    """The error of a person whose file an engine refuses."""
    return ValueError(f"{file.name}: {NAMES[engine]} cannot run it: {str(error).strip().splitlines()[0]}")


def run_file(file: OnnxFile, run: Callable[[Feed], Feed], images: np.ndarray) -> list[Feed]:
    """The outputs of the file for images [B, C, H, W], of its one run or of T runs of a step model."""
    images = images.astype(np.float32)
    return [run({"image": images})] if file.about["form"] == "unrolled" else run_steps(file, run, images)


def run_of(file: OnnxFile, graph: g.Graph, outputs: list[Feed], batch: int) -> Run:
    """Spikes and logits among the outputs of run_file."""
    shapes = {node.name: node.shape for node in graph.lif_layers}
    layout = file.about.get("layout")
    spikes = {
        layer: by_step([step[spikes_tensor(layer)] for step in outputs], shapes[layer], batch, layout=layout)
        for layer in file.about["lif_layers"]
    }
    logits = np.stack([step["logits"] for step in outputs]).reshape(-1, *outputs[0]["logits"].shape[-2:])
    return Run(spikes=spikes, logits=logits)


def run_steps(file: OnnxFile, run: Callable[[Feed], Feed], images: np.ndarray) -> list[Feed]:
    """The outputs of T runs of a step model."""
    feed, steps = first_feed(file.about, images), []
    handed_on = (*file.about["carried"], *file.about["states"])
    for _ in range(file.about["T"]):
        steps.append(run(feed))
        feed = {"image": images[:0]} | {one["input"]: steps[-1][one["output"]] for one in handed_on}
    return steps


def first_feed(about: dict[str, Any], images: np.ndarray) -> Feed:
    """What a step model reads in the first step of images, from what it says about itself."""
    feed = {"image": images}
    feed |= {one["input"]: np.zeros((0, *one["shape"]), one["type"]) for one in about["carried"]}
    feed |= {one["input"]: np.full((len(images), *one["shape"]), one["start"], one["type"]) for one in about["states"]}
    return feed


def by_step(parts: list[np.ndarray], shape: tuple[int, ...], batch: int, *, layout: str | None) -> np.ndarray:
    """The spikes of a layer, uint8 [T, B, *shape], from [T*B, ...] or T times [B, ...]."""
    spikes = np.concatenate(parts).astype(np.uint8)
    spikes = spikes.reshape(-1, batch, *spikes.shape[1:])
    if layout == "channels_last" and len(shape) > 1:
        spikes = np.moveaxis(spikes, -1, 2)
    return spikes.reshape(len(spikes), batch, *shape)


def join(runs: list[Run]) -> Run:
    """Runs over batches as one, along the image axis."""
    spikes = {name: np.concatenate([run.spikes[name] for run in runs], 1) for name in runs[0].spikes}
    return Run(spikes=spikes, logits=np.concatenate([run.logits for run in runs], 1))
