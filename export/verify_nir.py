"""Hold a NIR file against its checkpoint: what was read back is executed and compared, spike for spike, in float64.

The executor knows NIR's nodes and the file's metadata, and nothing of the Graph that the file was made from.
"""

import json
from collections.abc import Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from export.lower import lower
from export.nir_graph import FORMAT, metadata
from export.verify import Rule, Run, Verdict, compare
from export.verify_onnx import join, run_torch
from train.checkpoint import Checkpoint


FLOAT64 = Rule(
    text="float64: no spike flips, and logits differ by at most 1e-9 of the largest",
    first_flips=0.0,
    disagreements=0.0,
    logit_error=1e-9,
)


def verify_nir(
    checkpoint: Checkpoint, path: Path, images: np.ndarray, *, name: str | None = None, batch_size: int = 8
) -> tuple[Verdict, int]:
    """Run the file on images [N, C, H, W] in [0, 1] (events: [T, N, C, H, W]) and compare with the torch network.

    Both in float64. The number is how many spikes flip where a neuron fires at h > v_threshold only, as NIR's own
    equation and many simulators have it: none do unless a membrane meets its threshold exactly.
    Raises ValueError for a file that is damaged or was not exported from this checkpoint.
    """
    name = name or path.name
    graph = read(path, checkpoint, name)
    network = checkpoint.network().double()
    images = images.astype(np.float64)
    axis = images.ndim - 4
    batches = np.split(images, range(batch_size, images.shape[axis], batch_size), axis)
    wanted = join([run_torch(network, checkpoint, batch) for batch in batches])
    got, strict = (join([execute(graph, batch, strict=strict) for batch in batches]) for strict in (False, True))
    verdict = compare(
        wanted, got, FLOAT64, file=name, reference="the torch network", engine="TSERve's executor of NIR nodes"
    )
    return verdict, sum(int((strict.spikes[layer] != wanted.spikes[layer]).sum()) for layer in wanted.spikes)


def read(path: Path, checkpoint: Checkpoint, name: str) -> nir.NIRGraph:
    """The graph in a file that was exported from this checkpoint."""
    if not path.is_file():
        raise ValueError(f"{name}: no such file; `python -m export.to_nir CKPT` writes one")
    try:
        graph = nir.read(path)
        about = graph.metadata
        source, known = about["checkpoint_sha256"], int(about["format"])
        layers, _, _ = json.loads(about["lif_layers"]), int(about["T"]), float(about["dt"])
    except Exception as error:  # whatever a foreign file provokes in h5py and nir
        raise ValueError(f"{name}: not a NIR file that TSERve wrote, or a damaged one") from error
    if known != FORMAT:
        raise ValueError(f"{name}: NIR metadata of format {known}; this version reads {FORMAT}. Update TSERve.")
    if source != checkpoint.sha256:
        raise ValueError(f"{name}: it was exported from another checkpoint; export again with python -m export.to_nir")
    own = metadata(lower(checkpoint), checkpoint.labels, checkpoint.sha256)
    if wrong := [key for key, value in own.items() if about.get(key) != value]:
        raise ValueError(
            f"{name}: {', '.join(wrong)} in it are not the checkpoint's; export again with python -m export.to_nir"
        )
    if missing := [layer for layer in layers if layer not in graph.nodes]:
        raise ValueError(f"{name}: there is no node for the layer {missing[0]}")
    return graph


def execute(graph: nir.NIRGraph, images: np.ndarray, *, strict: bool = False) -> Run:
    """Spikes of every layer of metadata's lif_layers, and logits, of images [B, C, H, W] or frames [T, B, C, H, W].

    In float64, as metadata's `step` and `spikes` say; strict: a neuron fires at h > v_threshold only.
    Raises ValueError for a node that is not known.
    """
    T, dt = int(graph.metadata["T"]), float(graph.metadata["dt"])
    layers: list[str] = json.loads(graph.metadata["lif_layers"])
    sources: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in graph.edges:
        sources[target].append(source)
    order = [name for name in TopologicalSorter(sources).static_order() if name not in ("input", "output")]
    frames = torch.from_numpy(images).double()
    spikes: dict[str, list[np.ndarray]] = {name: [] for name in layers}
    logits: list[np.ndarray] = []
    membranes: dict[str, Tensor] = {}
    for t in range(T):
        values: dict[str, Tensor] = {"input": frames[t] if frames.dim() == 5 else frames}
        for name in order:
            x = total(values, sources[name])
            node = graph.nodes[name]
            if isinstance(node, nir.LIF | nir.IF):
                values[name], membranes[name] = fire(node, x, membranes.get(name), dt=dt, strict=strict)
            else:
                values[name] = compute(name, node, x)
        for name in layers:
            spikes[name].append(values[name].numpy().astype(np.uint8))
        logits.append(total(values, sources["output"]).numpy())
    return Run(spikes={name: np.stack(steps) for name, steps in spikes.items()}, logits=np.stack(logits))


def total(values: Mapping[str, Tensor], sources: list[str]) -> Tensor:
    """The sum of what the incoming edges bring."""
    first, *others = (values[name] for name in sources)
    return sum(others, start=first)


def fire(node: nir.LIF | nir.IF, x: Tensor, v: Tensor | None, *, dt: float, strict: bool) -> tuple[Tensor, Tensor]:
    """Spikes and the membrane after one step of dt; x: [B, *shape], v: the membrane before it, None at first."""
    parameter = {key: torch.from_numpy(value) for key, value in vars(node).items() if isinstance(value, np.ndarray)}
    r, threshold, reset = (parameter[key] for key in ("r", "v_threshold", "v_reset"))
    if v is None:
        v = reset.expand_as(x)
    if isinstance(node, nir.LIF):
        steps = parameter["tau"] / dt
        h = v + (parameter["v_leak"] - v + r * x) / steps
    else:
        h = v + dt * r * x
    fired = h > threshold if strict else h >= threshold
    return fired.to(x), torch.where(fired, reset, h)


def compute(name: str, node: nir.NIRNode, x: Tensor) -> Tensor:
    """The value of a node without memory; x: [B, ...]."""
    match node:
        case nir.Conv2d():
            weight, bias = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
            return F.conv2d(
                x, weight, bias, pair(node.stride), pair(node.padding), pair(node.dilation), int(node.groups)
            )
        case nir.Affine():
            return F.linear(x, torch.from_numpy(node.weight), torch.from_numpy(node.bias))
        case nir.AvgPool2d():
            return F.avg_pool2d(x, pair(node.kernel_size), pair(node.stride), pair(node.padding))
        case nir.Flatten():
            start, end = (int(axis) + 1 if axis >= 0 else int(axis) for axis in (node.start_dim, node.end_dim))
            return x.flatten(start, end)
    raise ValueError(f"{name}: {type(node).__name__} is none of the NIR nodes that TSERve writes")


def pair(value: Any) -> tuple[int, int]:
    """(rows, columns) of what NIR keeps as one number for both or as two."""
    rows, columns = np.broadcast_to(np.asarray(value), 2).tolist()
    return rows, columns
