"""The data sets by name, and batches of them: uint8 images in memory, shifted and mirrored on their own device.

Shapes: N images of a split, B of a batch, C channels, H, W pixels.
"""

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad as zero_pad

from train.config import DataConfig
from train.datasets import cifar, digits, folder
from train.datasets.dataset import Dataset, Split
from train.errors import unknown


__all__ = ["DATASETS", "Dataset", "Shuffled", "Split", "Targets", "augment", "batches", "draw_augmentation", "load"]

Targets = list[tuple[float, Tensor]]
"""Weights and labels [B] of a batch: one pair, or two whose weights add up to 1 where images are mixed."""

DATASETS: dict[str, Callable[[DataConfig], Dataset]] = {
    "digits": digits.load,
    "cifar10": cifar.load,
    "cifar100": cifar.load,
    "folder": folder.load,
}


def load(config: DataConfig) -> Dataset:
    """The data set that `config` names, in memory.

    Raises ValueError for an unknown name (with the nearest), for files that are missing or not what they should be,
    and for a limit above the number of training images.
    """
    if config.name not in DATASETS:
        raise unknown("data set", config.name, DATASETS)
    return DATASETS[config.name](config)


def draw_augmentation(B: int, *, generator: torch.Generator, pad: int) -> Tensor:
    """Shifts down and right, 0 to 2 pad, and mirroring, 0 or 1, of B images: int64 [3, B] on the generator's device."""
    highs = (2 * pad + 1, 2 * pad + 1, 2)
    return torch.stack([torch.randint(h, (B,), generator=generator, device=generator.device) for h in highs])


def augment(images: Tensor, drawn: Tensor, *, pad: int, mirror: bool) -> Tensor:
    """Shift every image by its own -pad to pad pixels in both directions and, with `mirror`, flip those drawn for it.

    images: [B, C, H, W] of any type; drawn: [3, B] from `draw_augmentation`, on the images' device. What comes in from
    outside is 0 (black), as in torchvision's RandomCrop with padding before normalisation (He et al. 2015: pad = 4 for
    32 pixels, here H // 8). All images at once, without a loop.
    """
    B, _, H, W = images.shape
    down, right, flip = drawn
    if pad:
        windows = zero_pad(images, (pad, pad, pad, pad)).unfold(2, H, 1).unfold(3, W, 1)  # [B, C, 2p+1, 2p+1, H, W]
        images = windows[torch.arange(B, device=images.device), :, down, right]
    if mirror:
        images = torch.where(flip.bool()[:, None, None, None], images.flip(-1), images)
    return images


def batches(split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over a split in its order: (images uint8 [B, C, H, W], labels int64 [B])."""
    for start in range(0, len(split), batch_size):
        rows = slice(start, start + batch_size)
        yield split.images[rows], split.labels[rows]


def keyed(*key: int) -> torch.Generator:
    """A generator of its own for every key. torch's takes 32 bits of a seed, so the key is hashed into them."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


class Shuffled:
    """The batches of a training run. Which images a step sees, and how they are augmented, is a function of the seed
    and the step's number alone: a run can go on at any step, and every process can take its own part of a batch."""

    def __init__(self, split: Split, batch_size: int, *, config: DataConfig, seed: int, mirror: bool) -> None:
        self.split, self.config, self.seed, self.mirror = split, config, seed, mirror
        if config.alternate_flip and not mirror:
            raise ValueError("data.alternate_flip: a mirrored image of this data set is not of the same class")
        self.batch_size = min(batch_size, len(split))
        self.steps = len(split) // self.batch_size
        """Steps of one epoch; a last batch that is smaller is left out."""
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def __call__(self, step: int, part: slice = slice(None)) -> tuple[Tensor, Targets]:
        """Augmented images uint8 [b, C, H, W] and targets of `part` of the batch of a step (over all epochs)."""
        epoch, i = divmod(step, self.steps)
        rows = self.order(epoch)[i * self.batch_size : (i + 1) * self.batch_size][part]
        images, labels = self.split.images[rows], self.split.labels[rows]
        if self.config.augment:
            pad = images.shape[-1] // 8
            drawn = draw_augmentation(self.batch_size, generator=keyed(self.seed, 1, step), pad=pad)[:, part]
            drawn = drawn.to(images.device, non_blocking=True)
            if self.config.alternate_flip:
                drawn[2] = (self.first_flip[rows] + epoch) % 2
            images = augment(images, drawn, pad=pad, mirror=self.mirror)
        return images, [(1.0, labels)]

    def order(self, epoch: int) -> Tensor:
        """The order of the images in an epoch, int64 [N], on their device."""
        if self._order[0] != epoch:
            order = torch.randperm(len(self.split), generator=keyed(self.seed, 0, epoch))
            self._order = epoch, order.to(self.split.labels.device)
        return self._order[1]

    @cached_property
    def first_flip(self) -> Tensor:
        """Whether each image is mirrored in the first epoch, 0 or 1 [N]."""
        drawn = torch.randint(2, (len(self.split),), generator=keyed(self.seed, 2))
        return drawn.to(self.split.labels.device)
