"""What every data set is once it is loaded: three splits of uint8 images, and what they are.

Shapes: N images or recordings, T frames of a recording, C channels, H = W = size.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from train.config import DataConfig
from train.datasets.files import Files


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Images that are used for one purpose."""

    images: Tensor | Files
    """uint8 [N, C, H, W], of recordings [N, T, C, H, W]; in memory, or files that give such a tensor for some rows."""
    labels: Tensor
    """Class indices, int64 [N]."""
    indices: Tensor
    """Where each image stands in the split that the data set was published with, int64 [N]."""

    def __post_init__(self) -> None:
        """Raise ValueError for tensors that are not those."""
        if self.images.dtype != torch.uint8 or self.images.ndim not in (4, 5):
            shape = list(self.images.shape)
            raise ValueError(f"images must be uint8 [N, C, H, W] or [N, T, C, H, W], got {self.images.dtype} {shape}")
        for name, numbers in (("labels", self.labels), ("indices", self.indices)):
            if numbers.dtype != torch.int64 or numbers.shape != (len(self.images),):
                got = f"{numbers.dtype} {list(numbers.shape)}"
                raise ValueError(f"{name} must be int64 [N] = [{len(self.images)}], got {got}")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> "Split":
        """The images at `rows` (int64 [M]), in that order."""
        images = self.images.take(rows) if isinstance(self.images, Files) else self.images[rows]
        return Split(images=images, labels=self.labels[rows], indices=self.indices[rows])

    def to(self, device: torch.device | str) -> "Split":
        """The same split on another device."""
        return Split(**{field.name: getattr(self, field.name).to(device) for field in dataclasses.fields(self)})


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Images with labels, split for training, validation and test."""

    name: str
    train: Split
    val: Split
    """Kept apart from the published training images; empty for data.val_fraction 0."""
    test: Split
    classes: tuple[str, ...]
    """Names in the order of the class indices."""
    mean: tuple[float, ...]
    """Per channel, of the training images in [0, 1]; of events 0."""
    std: tuple[float, ...]
    """Per channel, of the training images in [0, 1]; of events 1 / 255, so that a network sees their counts."""
    size: int
    """Side of an image, pixels."""
    channels: int
    mirror: bool
    """Whether a mirrored image keeps its class."""
    frames: int | None = None
    """Frames of a recording of events; None for images."""
    md5: Mapping[str, str]
    """Of what was read, by file (digits: of the array; folder: of all files of a split, with data.stream of
    their names and lengths; events: of all frames of a split)."""


def check_limit(config: DataConfig, available: int, name: str) -> None:
    """Raise ValueError if a data set has fewer training images than `data.limit`."""
    if config.limit is not None and config.limit > available:
        raise ValueError(f"data.limit is {config.limit}, but {name} has {available} training images")


def train_and_val(published: Split, config: DataConfig) -> tuple[Split, Split]:
    """(training, validation) from the first `data.limit` images of the published training split.

    round(val_fraction * N) of these N are validation images, the same ones in every run: the choice depends on N
    alone, not on any seed, and numpy guarantees the stream of RandomState for good. Both keep the published order.
    """
    total = len(published) if config.limit is None else config.limit
    order = np.random.RandomState(0).permutation(total)
    held = round(total * config.val_fraction)
    train, val = (torch.from_numpy(np.sort(rows).astype(np.int64)) for rows in (order[held:], order[:held]))
    return published.take(train), published.take(val)


def checked(dataset: Dataset) -> Dataset:
    """The same data set; raises ValueError where its splits are not of the images and classes that it names."""
    frames = () if dataset.frames is None else (dataset.frames,)
    one = (*frames, dataset.channels, dataset.size, dataset.size)
    if not len(dataset.mean) == len(dataset.std) == dataset.channels:
        raise ValueError(f"{dataset.name}: mean and std must be {dataset.channels} numbers, one a channel")
    for name in ("train", "val", "test"):
        split = getattr(dataset, name)
        if tuple(split.images.shape[1:]) != one:
            raise ValueError(f"{dataset.name}: {name} has images {list(split.images.shape[1:])}, not {list(one)}")
        if len(split) and not 0 <= int(split.labels.min()) <= int(split.labels.max()) < len(dataset.classes):
            raise ValueError(f"{dataset.name}: {name} has labels that are not those of {len(dataset.classes)} classes")
    return dataset
