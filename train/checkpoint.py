"""A trained network as one file of tensors and JSON types; reading it never runs code from it."""

import dataclasses
import hashlib
import json
import math
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from train.config import NetConfig
from train.networks import Network, build
from train.record import atomic
from train.schema import from_dict


FORMAT = 1


class CheckpointError(ValueError):
    """A file that cannot be used as a checkpoint; the message says which and why."""


@lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[C, 1, 1]; kept, because making a tensor on a GPU from numbers waits for the GPU, and every step needs it."""
    return torch.tensor(values, dtype=dtype, device=device)[:, None, None]


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """From an image to what the network sees: resize and crop to size x size, scale to [0, 1], then normalise."""

    mean: tuple[float, ...]
    """Per channel, in [0, 1] units."""
    std: tuple[float, ...]
    """Per channel, in [0, 1] units."""
    size: int
    """Side in pixels."""

    def __call__(self, images: Tensor) -> Tensor:
        """Images [..., C, H, W], uint8 or float in [0, 1], to normalised floats (float32 unless given as float64)."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        mean, std = (_per_channel(values, images.dtype, images.device) for values in (self.mean, self.std))
        return (images - mean) / std


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A network with all that is needed to use it and to know where it comes from."""

    net: NetConfig
    weights: dict[str, Tensor]
    preprocess: Preprocess
    labels: tuple[str, ...]
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    """Of the file that it was loaded from."""

    def network(self) -> Network:
        """The network in eval mode; it takes images that went through `preprocess`."""
        network = build(self.net)
        network.load_state_dict(self.weights)
        return network.eval()

    def save(self, path: Path | str) -> None:
        """Write the file, whole or not at all."""
        content = {
            "format": FORMAT,
            "net": dataclasses.asdict(self.net),
            "weights": {name: tensor.detach().cpu().contiguous() for name, tensor in self.weights.items()},
            "preprocess": dataclasses.asdict(self.preprocess),
            "labels": list(self.labels),
            "metrics": self.metrics,
            "provenance": self.provenance,
        }
        json.dumps({k: v for k, v in content.items() if k != "weights"}, allow_nan=False)  # JSON types only
        with atomic(Path(path)) as new:
            torch.save(content, new)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a checkpoint that `save` wrote.

        Raises CheckpointError for a file that is missing, truncated, foreign, a training state, of a newer format, or
        whose parts do not fit together or hold values that are not finite. torch's weights_only reader refuses
        everything but tensors and plain types.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; train.teacher and train.distill write checkpoints")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's remarks on pickles that are not its own
                content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a foreign file provokes in the reader
            raise CheckpointError(
                f"{path}: not a TSERve checkpoint, or a damaged one ({_first_line(error)})"
            ) from error
        if not isinstance(content, dict) or "format" not in content:
            raise CheckpointError(f"{path}: not a TSERve checkpoint (no format number inside)")
        if {"identity", "progress"} <= content.keys():
            raise CheckpointError(f"{path}: the state of a training run; give the student.pt or teacher.pt beside it")
        if content["format"] != FORMAT:
            raise CheckpointError(
                f"{path}: checkpoint format {content['format']!r}; this version reads {FORMAT}. Update TSERve."
            )
        try:
            preprocess = content["preprocess"]
            checkpoint = cls(
                net=from_dict(NetConfig, content["net"]),
                weights=dict(content["weights"]),
                preprocess=Preprocess(
                    mean=tuple(preprocess["mean"]), std=tuple(preprocess["std"]), size=preprocess["size"]
                ),
                labels=tuple(content["labels"]),
                metrics=content["metrics"],
                provenance=content["provenance"],
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            )
            checkpoint.network()
            if wrong := misfit(checkpoint):
                raise ValueError(wrong)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError(f"{path}: the checkpoint does not fit together ({_first_line(error)})") from error
        return checkpoint

    @classmethod
    def load_student(cls, path: Path | str) -> Self:
        """Like `load`, and refuse a teacher."""
        checkpoint = cls.load(path)
        if not checkpoint.net.spiking:
            raise CheckpointError(f"{path}: a teacher (ReLU), not a spiking student; give a student.pt")
        return checkpoint

    @classmethod
    def load_teacher(cls, path: Path | str) -> Self:
        """Like `load`, and refuse a student."""
        checkpoint = cls.load(path)
        if checkpoint.net.spiking:
            raise CheckpointError(f"{path}: a spiking student, not a teacher; `python -m train.teacher` trains one")
        return checkpoint


def misfit(checkpoint: Checkpoint) -> str | None:
    """What does not fit in a checkpoint whose weights are those of its network, in words; None if all does."""
    net, preprocess = checkpoint.net, checkpoint.preprocess
    for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
        if len(values) != net.in_channels or not all(map(math.isfinite, values)):
            return f"preprocess.{name} is {list(values)}; expected {net.in_channels} finite numbers, one a channel"
    if min(preprocess.std) <= 0:
        return f"preprocess.std is {list(preprocess.std)}; it must be above 0"
    if preprocess.size != net.size:
        return f"preprocess.size is {preprocess.size}, net.size {net.size}"
    if len(checkpoint.labels) != net.num_classes or not all(isinstance(label, str) for label in checkpoint.labels):
        return f"labels are {len(checkpoint.labels)}; expected {net.num_classes} names, one a class"
    for name in ("metrics", "provenance"):
        if not isinstance(getattr(checkpoint, name), dict):
            return f"{name} is {getattr(checkpoint, name)!r}; expected a table of keys"
    bad = [name for name, value in checkpoint.weights.items() if not bool(value.isfinite().all())]
    return f"{bad[0]} holds a value that is not finite" if bad else None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
