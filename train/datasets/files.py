"""Image files: decoding one, and a split of them that is decoded only when a step needs it, ahead of it.

Shapes: N images, RGB, size x size pixels.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader

from train.torchvision_guard import import_torchvision


def upright_rgb(content: bytes) -> Image.Image:
    """An image file's content: turned upright, alpha laid over white, RGB.

    Raises ValueError if it is not an image, or for 32 bits a channel, whose range nobody knows.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            upright = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's decoders answer broken files with a dozen types, struct.error among them
        raise ValueError(f"not an image that can be read ({error})") from error
    if upright.mode.startswith("I;16"):
        upright = Image.fromarray((np.asarray(upright).astype(np.uint16) >> 8).astype(np.uint8))
    if upright.mode in ("I", "F"):
        raise ValueError(f"32 bits a channel (mode {upright.mode}); save it with 8 or 16")
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return upright.convert("RGB")


def read_image(content: bytes, size: int) -> np.ndarray:
    """An image file's content as uint8 [3, size, size], by the same steps as serve.images.decode (a test compares).

    Upright RGB (see `upright_rgb`), short side scaled, centre cut. An RGB image of that size keeps its pixels.
    """
    rgb = upright_rgb(content)
    if rgb.size != (size, size):
        rgb = ImageOps.fit(rgb, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb).transpose(2, 0, 1)


def read_crop(content: bytes, size: int, seed: int) -> np.ndarray:
    """A random part of an image (8 % to all of its area, sides 3:4 to 4:3), resized to uint8 [3, size, size]."""
    rgb = upright_rgb(content)
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPU's generator, too
        return np.asarray(_random_crop(size)(rgb)).transpose(2, 0, 1)


@cache
def _random_crop(size: int) -> Any:
    import_torchvision()
    from torchvision.transforms import v2

    return v2.RandomResizedCrop(size, antialias=True)


@dataclass(frozen=True, eq=False)
class Files:
    """Images that are decoded whenever they are asked for; it stands where a uint8 tensor [N, 3, size, size] does."""

    root: Path
    names: np.ndarray
    """Paths below root as the file system's bytes [N]: one array, which processes share without copying it."""
    size: int
    workers: int
    """Processes that decode ahead; 0: none."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where decoded images go."""

    dtype: ClassVar[torch.dtype] = torch.uint8
    ndim: ClassVar[int] = 4

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> torch.Size:
        """Of the tensor that it stands for."""
        return torch.Size((len(self), 3, self.size, self.size))

    def take(self, rows: Tensor) -> "Files":
        """The images at `rows` (int64 [M]), in that order, not decoded."""
        return replace(self, names=self.names[rows.cpu().numpy()])

    def to(self, device: torch.device | str) -> "Files":
        """The same images, for another device."""
        return replace(self, device=torch.device(device))

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """The images at `rows`, decoded in this process: centre cuts."""
        return self.decoded(rows).to(self.device)

    def decoded(self, rows: Tensor | slice, seeds: Iterable[int] | None = None) -> Tensor:
        """The images at `rows` in main memory: centre cuts, or random crops by a seed each."""
        names = self.names[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]
        images = np.empty((len(names), 3, self.size, self.size), np.uint8)
        drawn: Iterable[int | None] = repeat(None, len(names)) if seeds is None else seeds
        for i, (name, seed) in enumerate(zip(names, drawn, strict=True)):
            path = self.root / os.fsdecode(name)
            try:
                content = path.read_bytes()
                images[i] = read_image(content, self.size) if seed is None else read_crop(content, self.size, seed)
            except ValueError as error:
                raise ValueError(f"{path}: {error}; repair it or take it out") from error
        return torch.from_numpy(images)

    def ahead(self, make: Callable[[int], Tensor], numbers: Iterable[int]) -> Iterator[Tensor]:
        """make(n) on the images' device for every number, computed ahead of need by `workers` processes.

        Raises in this process the ValueError or OSError that `make` raised in another.
        """
        loader = DataLoader(
            _Made(make),
            batch_size=None,
            sampler=numbers,
            num_workers=self.workers,
            generator=torch.Generator(),  # or it would draw from the global one
            pin_memory=self.device.type == "cuda",
        )
        for made in loader:
            if isinstance(made, Exception):
                raise made
            yield made.to(self.device, non_blocking=True)


class _Made(torch.utils.data.Dataset[Tensor | Exception]):
    """`make` as a data set, whose expected errors are values: a loader would pass on their traceback as the message."""

    def __init__(self, make: Callable[[int], Tensor]) -> None:
        self.make = make

    def __getitem__(self, number: int) -> Tensor | Exception:
        try:
            return self.make(number)
        except (ValueError, OSError) as error:
            return error
