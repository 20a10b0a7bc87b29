"""The data sets by name, and batches of them: uint8 images, changed for training on their own device.

Shapes: N images of a split, B of a batch, T frames of a recording of events, C channels, H, W pixels.
"""

from collections.abc import Callable, Iterator
from copy import copy
from functools import cached_property

import torch
from torch import Tensor

from train.augment import (
    Draw,
    augment,
    auto_augment,
    cutout,
    draw_augmentation,
    draw_holes,
    draw_mix,
    draw_policy,
    key,
    keyed,
    mix,
)
from train.config import DataConfig
from train.datasets import cifar, digits, events, folder, mnist
from train.datasets.dataset import Dataset, Split, checked
from train.datasets.files import Files
from train.registry import Registry


__all__ = ["DATASETS", "Dataset", "Shuffled", "Split", "Targets", "batches", "load"]

Targets = list[tuple[float, Tensor]]
"""Weights and labels [B] of a batch: one pair, or two whose weights add up to 1 where images are mixed."""

DATASETS: Registry[Callable[[DataConfig], Dataset]] = Registry(
    "data set",
    {
        "digits": digits.load,
        "mnist": mnist.load,
        "fashion_mnist": mnist.load,
        "cifar10": cifar.load,
        "cifar100": cifar.load,
        "folder": folder.load,
        "cifar10_dvs": events.load,
        "dvs_gesture": events.load,
    },
)
OF_IMAGES = frozenset(DATASETS) - frozenset(events.SETS)
OF_ONE_SIZE = OF_IMAGES - {"folder"}


def load(config: DataConfig) -> Dataset:
    """The data set that `config` names, in memory; with data.stream, `folder` as files that are decoded when needed.

    Raises ValueError for an unknown name (with the nearest), for settings of other data sets, for files that are
    missing or not what they should be, for a limit above the number of training images, and for a data set of one's own
    whose parts do not fit together.
    """
    make = DATASETS.find(config.name)
    if config.stream and config.name != "folder":
        raise ValueError(f"data.stream is for data.name folder; {config.name} is always kept in memory")
    if config.size is not None and config.name in OF_ONE_SIZE:
        raise ValueError(f"data.size is for data.name folder and recordings of events; {config.name} has its own size")
    if config.frames != DataConfig.frames and config.name in OF_IMAGES:
        raise ValueError(f"data.frames is for recordings of events; {config.name} has images")
    return checked(make(config))


def batches(split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over a split in its order: (images uint8 [B, C, H, W] or [T, B, C, H, W], labels int64 [B])."""
    files, starts = split.images, range(0, len(split), batch_size)
    if isinstance(files, Files):
        found = files.ahead(lambda start: files.decoded(slice(start, start + batch_size)), starts)
    else:
        found = (files[start : start + batch_size] for start in starts)
    for start, images in zip(starts, found, strict=True):
        yield time_first(images), split.labels[start : start + batch_size]


def time_first(images: Tensor) -> Tensor:
    """Recordings [B, T, C, H, W] as a network takes them, [T, B, C, H, W]; images as they are."""
    return images.transpose(0, 1) if images.ndim == 5 else images


class Shuffled:
    """The batches of a training run. Which images a step sees, and what is done to them, is a function of the seed and
    the step's number alone: a run can go on at any step, and every process can take its own part of a batch.

    mean: by channel in [0, 1], what is seen in the holes of data.cutout; without it they are black.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        config: DataConfig,
        seed: int,
        mirror: bool,
        mean: tuple[float, ...] = (),
    ) -> None:
        self.split, self.config, self.seed, self.mirror = split, config, seed, mirror
        self.shape = split.images.shape
        if config.alternate_flip and not mirror:
            raise ValueError("data.alternate_flip: a mirrored image of this data set is not of the same class")
        if config.auto_augment and self.shape[1:-2] not in ((1,), (3,)):
            raise ValueError(f"data.auto_augment is for grey and RGB images, not for {list(self.shape[1:])}")
        if config.cutout > self.shape[-1]:
            raise ValueError(f"data.cutout is {config.cutout}, but an image has a side of {self.shape[-1]} pixels")
        self.batch_size = min(batch_size, len(split))
        self.steps = len(split) // self.batch_size
        """Steps of one epoch; a last batch that is smaller is left out."""
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))
        fill = [round(255 * value) for value in mean or (0.0,) * self.shape[-3]]  # 0 after normalisation, nearly
        self._fill = torch.tensor(fill, dtype=torch.uint8, device=split.labels.device)
        self._ahead: tuple[int, slice, Iterator[Tensor]] = (-1, slice(0), iter(()))

    def __call__(self, step: int, part: slice = slice(None)) -> tuple[Tensor, Targets]:
        """Images uint8 [b, C, H, W] or [T, b, C, H, W] and targets of `part` of the batch of a step (over all epochs).

        In this order: shifts (of data.stream random crops), mirroring, AutoAugment, cutout, mixing.
        """
        own = torch.arange(self.batch_size)[part]
        at = self._needed(step, part)
        rows = self._rows(step)[at]
        there = self._there(rows)
        labels = self.split.labels[there]
        images = self._augmented(self._raw(step, part, there), rows, step, at)
        if not self.config.mixup:
            return time_first(images), [(1.0, labels)]
        first, second = (
            self._there(torch.searchsorted(at, positions)) for positions in (own, self._partners(step)[own])
        )
        weight = draw_mix(self.config.mixup, self.seed, Draw.MIX, step)
        mixed = mix(images[first], images[second], weight)
        return time_first(mixed), [(weight, labels[first]), (1 - weight, labels[second])]

    def order(self, epoch: int) -> Tensor:
        """The order of the images in an epoch, int64 [N]."""
        if self._order[0] != epoch:
            order = torch.randperm(len(self.split), generator=keyed(self.seed, Draw.ORDER, epoch))
            self._order = epoch, order
        return self._order[1]

    @cached_property
    def first_flip(self) -> Tensor:
        """Whether each image is mirrored in the first epoch, 0 or 1 [N]."""
        return torch.randint(2, (len(self.split),), generator=keyed(self.seed, Draw.FIRST_FLIP))

    def _rows(self, step: int) -> Tensor:
        """Where the images of a step's whole batch stand in the split, [B]."""
        epoch, i = divmod(step, self.steps)
        return self.order(epoch)[i * self.batch_size : (i + 1) * self.batch_size]

    def _partners(self, step: int) -> Tensor:
        """The position in the batch of the image that each is mixed with, [B]."""
        return torch.randperm(self.batch_size, generator=keyed(self.seed, Draw.PARTNER, step))

    def _needed(self, step: int, part: slice) -> Tensor:
        """The positions in the batch of the images that `part` is made of, ascending: its own and their partners."""
        own = torch.arange(self.batch_size)[part]
        return torch.cat([own, self._partners(step)[own]]).unique() if self.config.mixup else own

    def _there(self, numbers: Tensor) -> Tensor:
        """Small numbers on the images' device."""
        return numbers.to(self.split.labels.device, non_blocking=True)

    def _raw(self, step: int, part: slice, rows: Tensor) -> Tensor:
        """The images at `rows`; those of files come from the processes that decode them, which go on with the next
        steps meanwhile."""
        files = self.split.images
        if not isinstance(files, Files):
            return files[rows]
        expected, of, ahead = self._ahead
        if (step, part) != (expected, of):
            decoder = copy(self)  # without a way back to `ahead`: a cycle would keep the processes after their use
            del decoder._ahead
            ahead = files.ahead(lambda step: decoder._decoded(step, part), range(step, 2**62))
        self._ahead = step + 1, part, ahead
        return next(ahead)

    def _decoded(self, step: int, part: slice) -> Tensor:
        """The files of a step's images in main memory, random crops where images are augmented."""
        files, at = self.split.images, self._needed(step, part)
        assert isinstance(files, Files)
        seeds = [key(self.seed, Draw.CROP, step, position) for position in at.tolist()]
        return files.decoded(self._rows(step)[at], seeds if self.config.augment else None)

    def _augmented(self, images: Tensor, rows: Tensor, step: int, at: Tensor) -> Tensor:
        """The images [b, ..] at `rows` of the split and at the positions `at` of the batch, all but mixed."""
        config, B, (H, W) = self.config, self.batch_size, self.shape[-2:]
        if config.augment:
            pad = 0 if isinstance(self.split.images, Files) else W // 8  # files were cropped at random
            drawn = draw_augmentation(B, generator=keyed(self.seed, Draw.SHIFT, step), pad=pad)[:, at]
            if config.alternate_flip:
                drawn[2] = (self.first_flip[rows] + step // self.steps) % 2
            images = augment(images, self._there(drawn), pad=pad, mirror=self.mirror)
        if config.auto_augment:
            images = auto_augment(images, draw_policy(B, generator=keyed(self.seed, Draw.POLICY, step))[:, at])
        if config.cutout:
            centres = draw_holes(B, generator=keyed(self.seed, Draw.HOLE, step), height=H, width=W)[:, at]
            images = cutout(images, self._there(centres), side=config.cutout, fill=self._fill)
        return images
