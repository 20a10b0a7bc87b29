"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from the published python batches, in the layout that torchvision uses."""

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from train.config import DataConfig
from train.datasets.dataset import Dataset, Split, check_limit, train_and_val
from train.datasets.published import Source, checked, read_or_fetch
from train.torchvision_guard import import_torchvision


@dataclass(frozen=True, kw_only=True)
class Published(Source):
    """One of the two sets as it was published; files with their md5. The title without its hyphen is the name of
    torchvision's class."""

    train: Mapping[str, str]
    test: Mapping[str, str]
    images_per_file: int
    """In a training file."""
    label_key: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# The std of CIFAR-10 is the one of nearly all published recipes (TET, TD, SeAl-KD): the mean of every image's own
# deviation. That over all pixels is (0.2470, 0.2435, 0.2616).
SETS = {
    "cifar10": Published(
        title="CIFAR-10",
        folder="cifar-10-batches-py",
        by_hand="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz, unpacked",
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        images_per_file=10_000,
        label_key="labels",
        classes=_names("airplane automobile bird cat deer dog frog horse ship truck"),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        download_MB=170,
    ),
    "cifar100": Published(
        title="CIFAR-100",
        folder="cifar-100-python",
        by_hand="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz, unpacked",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        images_per_file=50_000,
        label_key="fine_labels",
        classes=_names(
            """
            apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
            castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
            elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
            lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
            pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
            shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
            telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
            """
        ),
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        download_MB=169,
    ),
}


def load(config: DataConfig) -> Dataset:
    """CIFAR-10 or CIFAR-100, as config.name says; with a limit only the training files that hold those images.

    Raises ValueError for a file that is missing or not the published one, with the command that fetches it.
    """
    published = SETS[config.name]
    available = len(published.train) * published.images_per_file
    check_limit(config, available, published.title)
    needed = -(-(config.limit or available) // published.images_per_file)  # rounded up
    train_files = dict(list(published.train.items())[:needed])

    def read() -> tuple[Split, Split]:
        return _read(train_files, published, config), _read(published.test, published, config)

    def fetch() -> None:
        official = getattr(import_torchvision().datasets, published.title.replace("-", ""))
        official(config.root, download=True)

    train, test = read_or_fetch(published, config, read=read, fetch=fetch)
    train, val = train_and_val(train, config)
    return Dataset(
        name=config.name,
        train=train,
        val=val,
        test=test,
        classes=published.classes,
        mean=published.mean,
        std=published.std,
        size=32,
        channels=3,
        mirror=True,
        md5={**train_files, **published.test},
    )


def _read(files: Mapping[str, str], published: Published, config: DataConfig) -> Split:
    """The images of some files, in order."""
    images, labels = [], []
    for name, expected in files.items():
        path = config.root / published.folder / name
        batch = _unpickle(checked(path, expected, published, config))
        images.append(batch["data"].reshape(-1, 3, 32, 32))
        labels += batch[published.label_key]
    return Split(
        images=torch.from_numpy(np.concatenate(images)),
        labels=torch.tensor(labels, dtype=torch.int64),
        indices=torch.arange(len(labels)),
    )


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays, dicts, lists and texts; refuses everything that could run code."""

    ALLOWED = {  # noqa: RUF012  (a constant; pickle.Unpickler is no dataclass)
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"a data file asks for {module}.{name}, which no array needs")
        return self.ALLOWED[module, name]


def _unpickle(content: bytes) -> dict[str, Any]:
    """A batch: written by Python 2, whose texts numpy's arrays need as latin-1."""
    batch: dict[str, Any] = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    return batch
