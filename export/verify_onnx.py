"""Hold an ONNX file against its checkpoint's torch network: spikes of every LIF layer and step, logits, answers."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch

from export.onnx_graph import expose_spikes, spikes_tensor
from export.verify import FLOAT32, Run, Verdict, compare
from train.checkpoint import Checkpoint
from train.networks import Network, lif_layers


Engine = Literal["onnxruntime", "onnx"]
NAMES: dict[Engine, str] = {"onnxruntime": "onnxruntime (CPU)", "onnx": "onnx's reference evaluator"}


def verify_onnx(
    checkpoint: Checkpoint,
    path: Path,
    images: np.ndarray,
    *,
    engine: Engine = "onnxruntime",
    name: str | None = None,
    batch_size: int = 50,
) -> Verdict:
    """Run the file on images [N, C, H, W] in [0, 1] and compare with the torch network in float32.

    Raises ValueError for a file that is damaged or was not exported from this checkpoint.
    """
    name = name or path.name
    model, layers = load(path, checkpoint, name)
    network = checkpoint.network()
    runs = [
        (run_torch(network, checkpoint, batch), run_file(model, layers, batch, engine, name))
        for batch in np.split(images, range(batch_size, len(images), batch_size))
    ]
    wanted, got = (join([pair[i] for pair in runs]) for i in (0, 1))
    return compare(wanted, got, FLOAT32, file=name, reference="the torch network", engine=NAMES[engine])


def load(path: Path, checkpoint: Checkpoint, name: str) -> tuple[onnx.ModelProto, list[str]]:
    """The model with every LIF layer's spikes among its outputs, and the layers' names."""
    if not path.is_file():
        raise ValueError(f"{name}: no such file; `python -m export.to_onnx CKPT` writes one")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        metadata = {item.key: json.loads(item.value) for item in model.metadata_props}
        layers = [str(layer) for layer in metadata["lif_layers"]]
        source = metadata["checkpoint_sha256"]
    except Exception as error:  # whatever a foreign file provokes in the protobuf reader
        raise ValueError(f"{name}: not an ONNX model that TSERve wrote, or a damaged one") from error
    if source != checkpoint.sha256:
        raise ValueError(f"{name}: it was exported from another checkpoint; export again with python -m export.to_onnx")
    produced = {tensor for node in model.graph.node for tensor in node.output}
    if missing := [layer for layer in layers if spikes_tensor(layer) not in produced]:
        raise ValueError(f"{name}: no tensor holds the spikes of layer {missing[0]}")
    expose_spikes(model, layers)
    return model, layers


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


def run_file(model: onnx.ModelProto, layers: list[str], images: np.ndarray, engine: Engine, name: str) -> Run:
    """What the file does in an engine."""
    wanted = ["logits", *map(spikes_tensor, layers)]
    feed = {"image": images.astype(np.float32)}
    try:
        if engine == "onnx":
            from onnx.reference import ReferenceEvaluator

            out = ReferenceEvaluator(model).run(wanted, feed)
        else:
            import onnxruntime

            session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            out = session.run(wanted, feed)
    except Exception as error:  # the engines have no common error type
        raise ValueError(f"{name}: {NAMES[engine]} cannot run it: {str(error).strip().splitlines()[0]}") from error
    logits, *flat = (np.asarray(array) for array in out)
    spikes = {
        layer: array.reshape(len(logits), len(images), *array.shape[1:]).astype(np.uint8)
        for layer, array in zip(layers, flat, strict=True)
    }
    return Run(spikes=spikes, logits=logits)


def join(runs: list[Run]) -> Run:
    """Runs over batches as one, along the image axis."""
    spikes = {name: np.concatenate([run.spikes[name] for run in runs], 1) for name in runs[0].spikes}
    return Run(spikes=spikes, logits=np.concatenate([run.logits for run in runs], 1))
