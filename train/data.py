"""The data sets by name, and batches of them: uint8 images in memory, shifted and mirrored on their own device.

Shapes: N images of a split, B of a batch, C channels, H, W pixels.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad as zero_pad

from train.config import DataConfig
from train.datasets import cifar, digits, folder
from train.datasets.dataset import Dataset, Split
from train.errors import unknown


__all__ = ["DATASETS", "Dataset", "Split", "augment", "batches", "load"]

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


def augment(images: Tensor, *, generator: torch.Generator, pad: int, mirror: bool) -> Tensor:
    """Shift every image by its own -pad to pad pixels in both directions and, with `mirror`, flip each with
    probability 1/2.

    images: [B, C, H, W] of any type; what comes in from outside is 0 (black), as in torchvision's RandomCrop with
    padding before normalisation (He et al. 2015: pad = 4 for 32 pixels, here H // 8). All images at once, without a
    loop; numbers are drawn on the generator's device, so a CPU generator gives the same result everywhere.
    """
    B, _, H, W = images.shape
    down, right, flip = (
        torch.randint(high, (B,), generator=generator, device=generator.device).to(images.device)
        for high in (2 * pad + 1, 2 * pad + 1, 2)
    )
    if pad:
        windows = zero_pad(images, (pad, pad, pad, pad)).unfold(2, H, 1).unfold(3, W, 1)  # [B, C, 2p+1, 2p+1, H, W]
        images = windows[torch.arange(B, device=images.device), :, down, right]
    if mirror:
        images = torch.where(flip.bool()[:, None, None, None], images.flip(-1), images)
    return images


def batches(
    split: Split, batch_size: int, *, generator: torch.Generator | None = None, drop_last: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over a split: (images uint8 [B, C, H, W], labels int64 [B]), in random order if a generator is given.

    drop_last leaves out a last batch that is smaller. Raises ValueError if that leaves nothing.
    """
    if drop_last and batch_size > len(split):
        raise ValueError(f"a batch of {batch_size} images is larger than the {len(split)} training images")
    images, labels = split.images, split.labels
    order = None
    if generator is not None:
        order = torch.randperm(len(split), generator=generator, device=generator.device).to(labels.device)
    for start in range(0, len(split) - (batch_size - 1 if drop_last else 0), batch_size):
        rows = slice(start, start + batch_size)
        yield (images[rows], labels[rows]) if order is None else (images[order[rows]], labels[order[rows]])
