"""MNIST (LeCun 1998) and Fashion-MNIST (Xiao 2017) from the published idx files, as torchvision lays them out."""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from train.config import DataConfig
from train.datasets.dataset import Dataset, Split, check_limit, train_and_val
from train.datasets.published import Source, checked, read_or_fetch
from train.torchvision_guard import import_torchvision


TRAIN_IMAGES = 60_000


@dataclass(frozen=True, kw_only=True)
class Published(Source):
    """One of the two sets as it was published; gz files of images and labels with their md5."""

    official: str
    """Name of torchvision's class."""
    train: Mapping[str, str]
    test: Mapping[str, str]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirror: bool


# Means and deviations are those over all training pixels, as in most published recipes.
SETS = {
    "mnist": Published(
        title="MNIST",
        official="MNIST",
        folder="MNIST/raw",
        by_hand="the four files of https://ossci-datasets.s3.amazonaws.com/mnist/",
        train={
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        },
        test={
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        classes=tuple("0123456789"),
        mean=(0.1307,),
        std=(0.3081,),
        mirror=False,
        download_MB=12,
    ),
    "fashion_mnist": Published(
        title="Fashion-MNIST",
        official="FashionMNIST",
        folder="FashionMNIST/raw",
        by_hand="the four files of http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        train={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        },
        test={
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        mean=(0.2860,),
        std=(0.3530,),
        mirror=True,
        download_MB=31,
    ),
}


def load(config: DataConfig) -> Dataset:
    """MNIST or Fashion-MNIST, as config.name says: 28 x 28 grey levels.

    Raises ValueError for a file that is missing or not the published one, with the command that fetches it.
    """
    published = SETS[config.name]
    check_limit(config, TRAIN_IMAGES, published.title)

    def read() -> tuple[Split, Split]:
        return _read(published.train, published, config), _read(published.test, published, config)

    train, test = read_or_fetch(published, config, read=read, fetch=lambda: _fetch(published, config))
    train, val = train_and_val(train, config)
    return Dataset(
        name=config.name,
        train=train,
        val=val,
        test=test,
        classes=published.classes,
        mean=published.mean,
        std=published.std,
        size=28,
        channels=1,
        mirror=published.mirror,
        md5={**published.train, **published.test},
    )


def _read(files: Mapping[str, str], published: Published, config: DataConfig) -> Split:
    """A file of images and one of labels."""
    images, labels = (
        _idx(checked(config.root / published.folder / name, expected, published, config))
        for name, expected in files.items()
    )
    return Split(images=images[:, None], labels=labels.long(), indices=torch.arange(len(labels)))


def _idx(content: bytes) -> torch.Tensor:
    """The array in a compressed idx file of bytes: magic number 8 (bytes) and dimensions, sizes, values."""
    raw = gzip.decompress(content)
    assert raw[:3] == b"\0\0\x08", "the md5 was right, so this is what was published"
    sizes = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    values = np.frombuffer(raw, np.uint8, offset=4 + sizes.nbytes).reshape(sizes)
    return torch.from_numpy(values.copy())


def _fetch(published: Published, config: DataConfig) -> None:
    """Fetch what is missing or damaged. torchvision's own class does not, where the unpacked files are there."""
    datasets = import_torchvision().datasets
    folder = str(config.root / published.folder)
    for name, expected in {**published.train, **published.test}.items():
        for mirror in (mirrors := getattr(datasets, published.official).mirrors):
            try:
                datasets.utils.download_url(f"{mirror}{name}", folder, filename=name, md5=expected)
            except (OSError, RuntimeError):
                if mirror == mirrors[-1]:
                    raise
            else:
                break
