import dataclasses
import gzip
import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from train.config import DataConfig
from train.data import load
from train.datasets import mnist
from train.torchvision_guard import import_torchvision


ROOT = Path(os.environ.get("TSERVE_DATA", "data"))
OFFICIAL = next((path for path in (ROOT / "MNIST/raw", ROOT / "mnist") if path.is_dir()), ROOT / "MNIST/raw")
NAMES = ["mnist", "fashion_mnist"]


def idx(values: np.ndarray) -> bytes:
    """A compressed idx file."""
    sizes = np.array(values.shape, ">i4").tobytes()
    return gzip.compress(bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes())


def arrays(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (6, 28, 28), np.uint8), random.integers(0, 10, 6, np.uint8)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Both sets in small: six images in each of their splits."""
    monkeypatch.setattr(mnist, "TRAIN_IMAGES", 6)
    for name in NAMES:
        published, sums = mnist.SETS[name], {}
        folder = tmp_path / published.folder
        folder.mkdir(parents=True)
        for seed, part in enumerate((published.train, published.test)):
            for file, values in zip(part, arrays(seed), strict=True):
                (folder / file).write_bytes(idx(values))
                sums[file] = hashlib.md5((folder / file).read_bytes()).hexdigest()
        own = {key: {file: sums[file] for file in getattr(published, key)} for key in ("train", "test")}
        monkeypatch.setitem(mnist.SETS, name, dataclasses.replace(published, **own))
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_images_and_labels_are_those_of_the_files(root, name):
    dataset = load(DataConfig(name=name, root=root, val_fraction=0))
    for split, (images, labels) in ((dataset.train, arrays(0)), (dataset.test, arrays(1))):
        assert np.array_equal(split.images[:, 0].numpy(), images)
        assert split.labels.tolist() == labels.tolist()
        assert torch.equal(split.indices, torch.arange(6))
    assert (dataset.size, dataset.channels, dataset.frames) == (28, 1, None)
    assert len(dataset.md5) == 4


def test_limit_takes_the_first_and_is_checked_before_files_are_needed(root, tmp_path):
    assert len(load(DataConfig(name="mnist", root=root, limit=4, val_fraction=0.5)).val) == 2
    with pytest.raises(ValueError, match=r"data\.limit is 7, but MNIST has 6 training images"):
        load(DataConfig(name="mnist", root=tmp_path / "nothing", limit=7))


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-1], lambda content: b"", lambda content: idx(arrays(9)[0])]
)
def test_what_is_not_the_published_file_is_refused_unread(root, damage):
    path = root / "MNIST/raw/train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"MNIST: .*train-images-idx3-ubyte\.gz is damaged: its md5 is"):
        load(DataConfig(name="mnist", root=root))


def test_missing_file_is_named_with_the_command_that_gets_it(tmp_path):
    with pytest.raises(ValueError, match=r"train-images.* is missing \(md5 8d4fb7e.*fashion_mnist .*\(31 MB\)"):
        load(DataConfig(name="fashion_mnist", root=tmp_path))


@pytest.fixture
def fetched(root, monkeypatch):
    """torchvision's downloader, which finds at the second mirror what was in the folder; the list of its calls."""
    stored = {path.name: path.read_bytes() for path in (root / "MNIST/raw").iterdir()}
    calls: list[str] = []

    def download_url(url: str, folder: str, filename: str, md5: str) -> None:
        path = Path(folder) / filename
        if path.is_file() and hashlib.md5(path.read_bytes()).hexdigest() == md5:
            return
        calls.append(url)
        if "second" not in url:
            raise OSError("no route to host")
        path.write_bytes(stored[filename])

    utils = SimpleNamespace(download_url=download_url)
    official = SimpleNamespace(mirrors=["https://first/", "https://second/"])
    module = SimpleNamespace(datasets=SimpleNamespace(MNIST=official, utils=utils))
    monkeypatch.setattr(mnist, "import_torchvision", lambda: module)
    official.calls = calls
    return official


def test_download_gets_what_is_missing_or_damaged_and_says_how_large(root, fetched, capsys):
    (root / "MNIST/raw/t10k-labels-idx1-ubyte.gz").write_bytes(b"half")
    load(DataConfig(name="mnist", root=root, download=True))
    assert fetched.calls == [f"https://{mirror}/t10k-labels-idx1-ubyte.gz" for mirror in ("first", "second")]
    assert "Fetching MNIST (12 MB)" in capsys.readouterr().out


def test_failed_download_says_what_to_put_where(root, fetched):
    fetched.mirrors = ["https://first/"]
    (root / "MNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ValueError, match=r"no route to host\. Put the four files of https.*MNIST/raw"):
        load(DataConfig(name="mnist", root=root, download=True))


@pytest.mark.parametrize("name", NAMES)
def test_names_md5_and_classes_are_torchvisions(name):
    published = mnist.SETS[name]
    official = getattr(import_torchvision().datasets, published.official)
    assert {**published.train, **published.test} == dict(official.resources)
    assert [label.partition(" - ")[0] for label in official.classes] == list(published.classes)


@pytest.mark.skipif(
    not (OFFICIAL / "t10k-images-idx3-ubyte.gz").is_file(),
    reason="no MNIST files under TSERVE_DATA: python -m train.distill --data.name mnist --data.download",
)
def test_official_test_files_are_read(tmp_path, monkeypatch):
    """The test split in place of the training split, too: only its files are needed."""
    (tmp_path / "MNIST").mkdir()
    (tmp_path / "MNIST/raw").symlink_to(OFFICIAL.resolve())
    published = mnist.SETS["mnist"]
    monkeypatch.setitem(mnist.SETS, "mnist", dataclasses.replace(published, train=published.test))
    dataset = load(DataConfig(name="mnist", root=tmp_path))
    assert dataset.test.images.shape == (10_000, 1, 28, 28)
    assert dataset.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    pixels = dataset.test.images.double() / 255
    assert (pixels.mean().item(), pixels.std().item()) == pytest.approx((dataset.mean[0], dataset.std[0]), abs=0.003)
