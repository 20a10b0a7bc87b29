"""Recordings of event cameras as frames of counts: CIFAR10-DVS (Li et al. 2017) and DVS128 Gesture (Amir et al. 2017).

SpikingJelly checks the published archives, unpacks them and counts the events of a recording into frames, on disk and
once for each number of frames. Shapes: N recordings, T frames, C = 2 channels (off, on), H = W = size pixels.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from train.config import DataConfig
from train.datasets.dataset import Dataset, Split, check_limit, train_and_val
from train.datasets.guard import import_data_sets
from train.record import in_turn
from train.torchvision_guard import import_torchvision


CAMERA = 128
"""Side of the recordings, pixels."""
SIZE = 48
"""Side of the frames without data.size: that of most published recipes."""


@dataclass(frozen=True, kw_only=True)
class Recordings:
    """One of the two sets as it was published."""

    title: str
    folder: str
    """Below data.root: its download/ holds the archives, events_np/ the recordings that SpikingJelly made of them."""
    train: int
    test: int
    """Recordings."""
    mirror: bool
    download_GB: int
    """About."""
    classes: tuple[str, ...]


SETS = {
    "cifar10_dvs": Recordings(
        title="CIFAR10-DVS",
        folder="CIFAR10DVS",
        train=9000,
        test=1000,
        mirror=True,
        download_GB=8,
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "dvs_gesture": Recordings(
        title="DVS128 Gesture",
        folder="DVS128Gesture",
        train=1176,
        test=288,
        mirror=False,  # right and left hand are classes
        download_GB=3,
        classes=(
            *("hand clapping", "right hand wave", "left hand wave", "right arm clockwise"),
            *("right arm counter clockwise", "left arm clockwise", "left arm counter clockwise", "arm roll"),
            *("air drums", "air guitar", "other gestures"),
        ),
    ),
}
TRAIN_PER_CLASS = 900
"""Of CIFAR10-DVS, which was published without a split: as in most papers, recordings 0 to 899 of every class are for
training and 900 to 999 for the test."""


def load(config: DataConfig) -> Dataset:
    """A set's recordings as data.frames frames of data.size x data.size counts.

    The frames of a recording hold the same number of events each. A count above 255 becomes 255. Smaller frames are
    sums of the camera's pixels, see `summed`. mean 0 and std 1 / 255 make the network see the counts themselves.
    Recordings go round the classes, so that the first N of them are balanced.
    Raises ValueError for archives that are missing or not the published ones, saying how to get them, for recordings
    that are not complete, and for frames that cannot be read.
    """
    published = SETS[config.name]
    check_limit(config, published.train, published.title)
    size = config.size or SIZE
    if size > CAMERA:
        raise ValueError(f"data.size is {size}, but {published.title} was recorded with {CAMERA} x {CAMERA} pixels")
    official = _official(config.name)
    folder = config.root / published.folder
    if config.download:
        folder.mkdir(parents=True, exist_ok=True)
    with in_turn(config.root) if folder.is_dir() else nullcontext():  # several processes would unpack into it
        train_files, test_files = _files(official, published, config)
    train, train_md5 = _read(train_files[: config.limit], "train", size, config)
    test, test_md5 = _read(test_files, "test", size, config)
    train, val = train_and_val(train, config)
    return Dataset(
        name=config.name,
        train=train,
        val=val,
        test=test,
        classes=published.classes,
        mean=(0.0, 0.0),
        std=(1 / 255, 1 / 255),
        size=size,
        channels=2,
        mirror=published.mirror,
        frames=config.frames,
        md5={"train": train_md5, "test": test_md5},
    )


def summed(frames: np.ndarray, size: int) -> np.ndarray:
    """Counts [T, C, H, H] summed down to [T, C, size, size] and rounded: uint8, at most 255.

    A pixel's events are shared among the cells that it overlaps, by area: the sum of all counts stays as it was, to
    rounding. An average, which is this over the number of pixels in a cell, would round most counts to 0.
    """
    if frames.shape[-1] != size:
        share = overlaps(frames.shape[-1], size)
        frames = share @ frames.astype(np.float32) @ share.T
    return np.minimum(np.rint(frames), 255).astype(np.uint8)


def overlaps(pixels: int, cells: int) -> np.ndarray:
    """The part of each of `pixels` equal lengths that lies in each of `cells` equal lengths of the same row, float32
    [cells, pixels]."""
    width = pixels / cells
    starts, edges = np.arange(pixels), np.arange(cells)[:, None] * width
    inside = np.minimum(starts + 1, edges + width) - np.maximum(starts, edges)
    return np.maximum(inside, 0).astype(np.float32)


def _official(name: str) -> Any:
    """SpikingJelly's class."""
    if name == "cifar10_dvs":
        return import_data_sets("cifar10_dvs").CIFAR10DVS
    return import_data_sets("dvs128_gesture").DVS128Gesture


@contextmanager
def _one_thread_where_python_needs_it() -> Iterator[None]:
    """Have SpikingJelly count in one thread where CPython, before 3.11.8, cannot parse in two.

    numpy parses the head of every .npy file, and such a Python then fails by chance with a SystemError (its gh-106905).
    """
    from spikingjelly import configure

    threads = configure.max_threads_number_for_datasets_preprocess
    if sys.version_info < (3, 11, 8):
        configure.max_threads_number_for_datasets_preprocess = 1
    try:
        yield
    finally:
        configure.max_threads_number_for_datasets_preprocess = threads


def _files(
    official: Any, published: Recordings, config: DataConfig
) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """(file of frames, class) of the training and of the test recordings, made if they are not there."""
    root = config.root / published.folder
    if not (root / "events_np").is_dir():
        _check_archives(official, published, config)
        print(f"Unpacking {published.title} in {root}; this is done once and takes a while", flush=True)
    elif not (root / f"frames_number_{config.frames}_split_by_number").is_dir():
        print(f"Counting the events of {published.title} into {config.frames} frames, once", flush=True)
    options: dict[str, Any] = {"data_type": "frame", "frames_number": config.frames, "split_by": "number"}
    try:
        with _one_thread_where_python_needs_it():
            if config.name == "cifar10_dvs":
                rows = _rows(official(str(root), **options).samples, published)
                split = [[row for row in rows if (_number(row[0]) < TRAIN_PER_CLASS) == t] for t in (True, False)]
            else:
                split = [_rows(official(str(root), train=t, **options).samples, published) for t in (True, False)]
    except (RuntimeError, OSError) as error:  # unfinished work of an earlier process, no space, a class without files
        raise ValueError(f"{published.title} in {root}: {error}") from error
    if (found := [len(files) for files in split]) != [published.train, published.test]:
        raise ValueError(
            f"{published.title}: {root} holds {found[0]} training and {found[1]} test recordings, it should be "
            f"{published.train} and {published.test}; remove {root / 'events_np'} and its frames_number_* "
            "folders to have them made anew from the archives"
        )
    return split[0], split[1]


def _rows(samples: list[tuple[str, int]], published: Recordings) -> list[tuple[Path, int]]:
    """SpikingJelly's (file, index of the folder in alphabetical order) as (file, class), going round the classes.

    DVS128 Gesture's folders are the classes' numbers, of which 10 comes before 2 in the alphabet.
    """
    by_class: dict[int, list[Path]] = {}
    for path in sorted((Path(name) for name, _ in samples), key=lambda path: (_number(path), path.name)):
        folder = path.parent.name
        by_class.setdefault(int(folder) if folder.isdigit() else published.classes.index(folder), []).append(path)
    ranked = [(rank, label, path) for label, paths in by_class.items() for rank, path in enumerate(paths)]
    return [(path, label) for rank, label, path in sorted(ranked)]


def _number(path: Path) -> int:
    """The number at the end of a recording's name: cifar10_cat_17, user01_led_0."""
    return int(path.stem.rpartition("_")[2])


def _check_archives(official: Any, published: Recordings, config: DataConfig) -> None:
    """Raise ValueError for archives that are missing or not the published ones, unless they may be fetched.

    SpikingJelly itself would delete what is damaged and fetch what is missing without being asked.
    """
    folder = config.root / published.folder / "download"
    bad = {name: url for name, url, expected in official.resource_url_md5() if _md5(folder / name) != expected}
    if not bad:
        return
    missing = f"{published.title}: {', '.join(bad)} missing in {folder}, or not the published ones"
    if not official.downloadable():
        url = next(iter(bad.values()))
        raise ValueError(f"{missing}; get them by hand from {url} (about {published.download_GB} GB)")
    if not config.download:
        raise ValueError(f"{missing}; get them with --data.download (about {published.download_GB} GB)")
    print(f"Fetching {published.title} (about {published.download_GB} GB) to {folder}", flush=True)
    fetch = import_torchvision().datasets.utils.download_url  # SpikingJelly's own would stop for good after a failure
    try:
        for name, url, expected in official.resource_url_md5():
            fetch(url, str(folder), filename=name, md5=expected)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{published.title} could not be fetched: {error}. Put {', '.join(bad)} into {folder}"
        ) from error


def _md5(path: Path) -> str | None:
    """Of a file; None if there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        digest = md5(usedforsecurity=False)
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _read(files: list[tuple[Path, int]], part: str, size: int, config: DataConfig) -> tuple[Split, str]:
    """The recordings, and the md5 of all names and frames."""
    images = np.empty((len(files), config.frames, 2, size, size), np.uint8)
    digest = md5(usedforsecurity=False)
    for i, (path, _) in enumerate(tqdm(files, desc=f"Reading {part}", unit="recording", disable=None)):
        frames = _frames(path, config.frames)
        digest.update(f"{path.parent.name}/{path.name}\0".encode() + frames.tobytes())
        images[i] = summed(frames, size)
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    split = Split(images=torch.from_numpy(images), labels=labels, indices=torch.arange(len(files)))
    return split, digest.hexdigest()


def _frames(path: Path, T: int) -> np.ndarray:
    """The counts [T, 2, H, W] in one of SpikingJelly's files of frames."""
    try:
        with np.load(path) as content:
            frames: np.ndarray = content["frames"]
    except Exception as error:  # whatever a damaged archive provokes in numpy and zipfile
        raise ValueError(f"{path}: no frames that can be read ({error}); remove {path.parent.parent}") from error
    if frames.shape != (T, 2, CAMERA, CAMERA):
        raise ValueError(f"{path}: frames of shape {frames.shape}, expected {(T, 2, CAMERA, CAMERA)}")
    return frames
