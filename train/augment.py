"""What is drawn for training images and done to them: whole batches on their own device, every image by its own draw.

Nothing here draws by itself: what a function needs comes in as numbers of `B` images, so that a process can take its
part of them. Shapes: B images of a batch, C channels, H, W pixels; recordings have a dimension of frames before C, all
treated the same.
"""

from collections import defaultdict
from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad as zero_pad

from train.torchvision_guard import import_torchvision


class Draw(IntEnum):
    """What is drawn: a part of the key of its generator. The numbers make runs repeatable; they never change."""

    ORDER = 0
    SHIFT = 1
    FIRST_FLIP = 2
    CROP = 3
    POLICY = 4
    HOLE = 5
    PARTNER = 6
    MIX = 7


def key(*numbers: int) -> int:
    """32 bits, all that torch takes of a seed, that are others for every row of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def keyed(*numbers: int) -> torch.Generator:
    """A generator of its own for every row of numbers."""
    return torch.Generator().manual_seed(key(*numbers))


def draw_augmentation(B: int, *, generator: torch.Generator, pad: int) -> Tensor:
    """Shifts down and right, 0 to 2 pad, and mirroring, 0 or 1, of B images: int64 [3, B] on the generator's device."""
    highs = (2 * pad + 1, 2 * pad + 1, 2)
    return torch.stack([torch.randint(h, (B,), generator=generator, device=generator.device) for h in highs])


def augment(images: Tensor, drawn: Tensor, *, pad: int, mirror: bool) -> Tensor:
    """Shift every image by its own -pad to pad pixels in both directions and, with `mirror`, flip those drawn for it.

    images: [B, C, H, W] or [B, T, C, H, W] of any type; drawn: [3, B] from `draw_augmentation`, on the images' device.
    What comes in from outside is 0 (black), as in torchvision's RandomCrop with padding before normalisation (He et
    al. 2015: pad = 4 for 32 pixels, here H // 8). All images at once, without a loop.
    """
    shape, (H, W) = images.shape, images.shape[-2:]
    images = images.flatten(1, -3)
    down, right, flip = drawn
    if pad:
        windows = zero_pad(images, (pad, pad, pad, pad)).unfold(2, H, 1).unfold(3, W, 1)  # [B, C, 2p+1, 2p+1, H, W]
        images = windows[torch.arange(len(images), device=images.device), :, down, right]
    if mirror:
        images = torch.where(flip.bool()[:, None, None, None], images.flip(-1), images)
    return images.reshape(shape)


def draw_policy(B: int, *, generator: torch.Generator) -> Tensor:
    """For B images: which of the policy's pairs of operations, then for both operations a chance in [0, 1) and a sign,
    0 or 1: float64 [5, B]."""
    which = torch.randint(len(cifar10_policy()._policies), (1, B), generator=generator)
    chances = torch.rand((2, B), generator=generator, dtype=torch.float64)
    signs = torch.randint(2, (2, B), generator=generator)
    return torch.cat([which.double(), chances, signs.double()])


def auto_augment(images: Tensor, drawn: Tensor) -> Tensor:
    """AutoAugment's policy for CIFAR-10 (Cubuk et al. 2019) on uint8 images [B, 1 or 3, H, W].

    drawn: [5, B] from `draw_policy`, on the CPU. The operations are torchvision's (v2.AutoAugment: nearest pixels,
    black outside). That draws one operation for all of a batch, so images of the same operation and strength are
    taken together here; every operation treats each image of a batch by itself.
    """
    policy = cifar10_policy()
    images = images.clone()
    pairs, chances, signs = drawn[0].long().tolist(), drawn[1:3].tolist(), drawn[3:].bool().tolist()
    for place in range(2):
        alike: dict[tuple[str, int | None, bool], list[int]] = defaultdict(list)
        for row, pair in enumerate(pairs):
            name, probability, strength = policy._policies[pair][place]
            if chances[place][row] < probability:
                alike[name, strength, signs[place][row]].append(row)
        for (name, strength, negative), found in alike.items():
            scale, signed = policy._AUGMENTATION_SPACE[name]
            scale = scale(10, *images.shape[-2:])
            magnitude = 0.0 if scale is None else float(scale[strength])
            rows = torch.tensor(found).to(images.device, non_blocking=True)
            images[rows] = policy._apply_image_or_video_transform(
                images[rows],
                name,
                -magnitude if signed and negative else magnitude,
                interpolation=policy.interpolation,
                fill=policy._fill,
            )
    return images


@cache
def cifar10_policy() -> Any:
    """torchvision's transform, which holds the policy's table and applies its operations."""
    import_torchvision()
    from torchvision.transforms import v2

    return v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)


def draw_holes(B: int, *, generator: torch.Generator, height: int, width: int) -> Tensor:
    """Rows and columns of the holes' centres in B images: int64 [2, B]."""
    return torch.stack([torch.randint(side, (B,), generator=generator) for side in (height, width)])


def cutout(images: Tensor, centres: Tensor, *, side: int, fill: Tensor) -> Tensor:
    """Cut a square hole into every image (DeVries and Taylor 2017); what lies outside of the image is not cut.

    centres: [2, B] from `draw_holes`, on the images' device; fill: what is seen in the hole, by channel [C].
    """
    H, W = images.shape[-2:]
    tops, lefts = centres - side // 2
    rows, columns = (torch.arange(n, device=images.device) for n in (H, W))
    in_rows = (rows >= tops[:, None]) & (rows < tops[:, None] + side)  # [B, H]
    in_columns = (columns >= lefts[:, None]) & (columns < lefts[:, None] + side)
    hole = in_rows[:, :, None] & in_columns[:, None, :]
    hole = hole.view(len(images), *(1 for _ in images.shape[1:-2]), H, W)
    return torch.where(hole, fill[:, None, None], images)


def draw_mix(alpha: float, *numbers: int) -> float:
    """Part of an image's own pixels in its mixture, in [0, 1]: Beta(alpha, alpha) by a generator for these numbers."""
    return float(np.random.default_rng(np.random.SeedSequence(numbers)).beta(alpha, alpha))


def mix(images: Tensor, partners: Tensor, own: float) -> Tensor:
    """own * images + (1 - own) * partners (mixup, Zhang et al. 2018), rounded to whole grey levels: uint8."""
    return torch.lerp(partners.float(), images.float(), own).round().to(torch.uint8)
