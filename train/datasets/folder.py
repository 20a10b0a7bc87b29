"""folder: one's own images in the layout of ImageNet, ROOT/train/CLASS/*.png and ROOT/test/CLASS/*.png."""

import os
from collections.abc import Sequence
from hashlib import md5
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from train.config import DataConfig
from train.datasets.dataset import Dataset, Split, check_limit, train_and_val
from train.datasets.files import Files, read_image


SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
SIZE = 32
"""Pixels, without data.size."""
MEASURE_ON = 2000
"""Training images on which mean and deviation are measured with data.stream; they are of all classes in turn."""


def load(config: DataConfig) -> Dataset:
    """The class folders under config.root/train and config.root/test (or val, where there is no test).

    Images become RGB, data.size x data.size: the short side is scaled and the centre cut, as the endpoint does it.
    They are decoded here and kept in memory; with data.stream whenever a step or a measurement needs them, in training
    as random resized crops. Classes are in alphabetical order; images go round the classes (the first of each, the
    second of each, ...), so that the first N of them are balanced.
    Raises ValueError for a layout that is not that, for an image that cannot be read, with its path (data.stream: when
    it is needed), and for images that do not fit into memory.
    """
    train_root = config.root / "train"
    test_root = next((path for path in (config.root / "test", config.root / "val") if path.is_dir()), None)
    if not train_root.is_dir() or test_root is None:
        raise ValueError(
            f"data.root {config.root} must hold train/CLASS/*.png and test/CLASS/*.png; "
            f"{'train' if not train_root.is_dir() else 'test'}/ is missing"
        )
    train_files, test_files = _class_files(train_root), _class_files(test_root)
    if len(train_files) < 2:
        raise ValueError(f"{train_root} holds {len(train_files)} class folder(s); a classifier needs 2 or more")
    if train_files.keys() != test_files.keys():
        raise ValueError(
            f"{train_root} and {test_root} must hold the same classes; "
            f"only in {train_root.name}: {_listed(train_files.keys() - test_files.keys())}; "
            f"only in {test_root.name}: {_listed(test_files.keys() - train_files.keys())}"
        )
    check_limit(config, sum(map(len, train_files.values())), str(train_root))
    train_images, test_images = _interleaved(train_files)[: config.limit], _interleaved(test_files)
    size = config.size or SIZE
    if config.stream:
        train, train_md5 = _listing(train_images, train_root, size, config.workers)
        test, test_md5 = _listing(test_images, test_root, size, config.workers)
    else:
        check_memory(len(train_images) + len(test_images), size)
        train, train_md5 = _read(train_images, train_root, size)
        test, test_md5 = _read(test_images, test_root, size)
    train, val = train_and_val(train, config)
    mean, std = channel_statistics(train.images[:MEASURE_ON] if isinstance(train.images, Files) else train.images)
    return Dataset(
        name="folder",
        train=train,
        val=val,
        test=test,
        classes=tuple(train_files),
        mean=mean,
        std=std,
        size=size,
        channels=3,
        mirror=True,
        md5={train_root.name: train_md5, test_root.name: test_md5},
    )


def check_memory(count: int, size: int) -> None:
    """Raise ValueError for more decoded images than half of this machine's memory holds."""
    needed, there = count * 3 * size**2, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there / 2:
        raise ValueError(
            f"{count} images of {size} x {size} pixels are {needed / 1e9:.1f} GB, too much for the "
            f"{there / 1e9:.1f} GB of memory here: decode them on the way with --data.stream, or take "
            "fewer with --data.limit"
        )


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel of uint8 images [N, C, H, W], in [0, 1] units.

    Raises ValueError for a channel that is the same everywhere: it cannot be normalised.
    """
    channels = images.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.float64)
    for some in images.split(256):  # a histogram is exact, and small parts keep the memory small
        for channel in range(channels):
            counts[channel] += torch.bincount(some[:, channel].flatten(), minlength=256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    weights = counts / counts.sum(1, keepdim=True)
    mean = weights @ levels
    variance = (weights * (levels - mean[:, None]) ** 2).sum(1)
    if not bool((variance > 0).all()):
        raise ValueError("a colour channel has the same value in every pixel of the training images")
    return tuple(mean.tolist()), tuple(variance.sqrt().tolist())


def _class_files(root: Path) -> dict[str, list[Path]]:
    """Every class folder's images in alphabetical order. Raises ValueError for a class without images."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = {
        folder.name: sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES) for folder in folders
    }
    for name, found in files.items():
        if not found:
            raise ValueError(f"{root / name} holds no images ({', '.join(sorted(SUFFIXES))})")
    return files


def _interleaved(files: dict[str, list[Path]]) -> list[tuple[Path, int]]:
    """(file, class index), going round the classes."""
    ranked = [(rank, label, path) for label, paths in enumerate(files.values()) for rank, path in enumerate(paths)]
    return [(path, label) for rank, label, path in sorted(ranked)]


def _read(files: Sequence[tuple[Path, int]], root: Path, size: int) -> tuple[Split, str]:
    """The images, and the md5 of all files with their names under `root`."""
    images = np.empty((len(files), 3, size, size), np.uint8)
    digest = md5(usedforsecurity=False)
    for i, (path, _) in enumerate(tqdm(files, desc=f"Reading {root.name}", unit="image", disable=None)):
        content = path.read_bytes()
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + content)
        try:
            images[i] = read_image(content, size)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; repair it or take it out") from error
    return _split(torch.from_numpy(images), files), digest.hexdigest()


def _listing(files: Sequence[tuple[Path, int]], root: Path, size: int, workers: int) -> tuple[Split, str]:
    """The images, not decoded, and the md5 of all files' names and lengths: their contents would take hours."""
    digest = md5(usedforsecurity=False)
    names = [path.relative_to(root).as_posix() for path, _ in files]
    for name, (path, _) in zip(names, files, strict=True):
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
    images = Files(root=root, names=np.array([os.fsencode(name) for name in names]), size=size, workers=workers)
    return _split(images, files), digest.hexdigest()


def _split(images: Tensor | Files, files: Sequence[tuple[Path, int]]) -> Split:
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    return Split(images=images, labels=labels, indices=torch.arange(len(files)))


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
