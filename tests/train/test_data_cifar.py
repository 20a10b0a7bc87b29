import hashlib
import os
import pickle
import urllib.error
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from train.config import DataConfig
from train.data import load
from train.datasets import cifar
from train.torchvision_guard import import_torchvision


ROOT = Path(os.environ.get("TSERVE_DATA", "data"))


class Malicious:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A published set of five training images a file, and the folder where its true files lie."""
    folder = tmp_path / "small"
    folder.mkdir()
    sums = {}
    for name, start in (("one", 0), ("two", 5), ("test", 10)):
        data = np.random.default_rng(start).integers(0, 256, (5, 3072), np.uint8)
        content = pickle.dumps({"data": data, "labels": [(start + i) % 10 for i in range(5)]}, protocol=3)
        content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")  # as the published files say
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    published = replace(
        cifar.SETS["cifar10"],
        folder="small",
        train={name: sums[name] for name in ("one", "two")},
        test={"test": sums["test"]},
        images_per_file=5,
    )
    monkeypatch.setitem(cifar.SETS, "cifar10", published)
    return folder


def config(folder: Path, **changes) -> DataConfig:
    return DataConfig(name="cifar10", root=folder.parent, **changes)


def test_files_are_read_in_order_and_split(small):
    dataset = load(config(small, val_fraction=0.2))
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (8, 2, 5)
    assert torch.cat([dataset.train.labels, dataset.val.labels]).sort().values.tolist() == list(range(10))
    assert torch.equal(dataset.train.labels, dataset.train.indices)
    raw = np.random.default_rng(10).integers(0, 256, (5, 3072), np.uint8)
    assert np.array_equal(dataset.test.images.numpy().reshape(5, -1), raw)


@pytest.mark.parametrize("limit", [1, 5])
def test_limit_needs_only_the_files_that_hold_those_images(small, limit):
    (small / "two").unlink()
    dataset = load(config(small, limit=limit, val_fraction=0))
    assert dataset.train.labels.tolist() == list(range(limit))
    assert dataset.md5.keys() == {"one", "test"}
    with pytest.raises(ValueError, match="two is missing"):
        load(config(small, limit=6))


def test_missing_file_is_named_with_its_md5_and_the_command_that_gets_it(tmp_path):
    with pytest.raises(ValueError, match="data_batch_1 is missing") as caught:
        load(DataConfig(name="cifar10", root=tmp_path))
    for part in (
        "c99cafc152244af753f735de768cd75f",
        "python -m train.distill --data.name cifar10 --data.download",
        str(tmp_path),
        "170 MB",
    ):
        assert part in str(caught.value)


def test_limit_above_the_set_is_refused_before_files_are_needed(tmp_path):
    with pytest.raises(ValueError, match=r"data\.limit is 50001, but CIFAR-100 has 50000"):
        load(DataConfig(name="cifar100", root=tmp_path, limit=50_001))


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-1], lambda content: content[:99] + b"?" + content[100:], lambda content: b""]
)
def test_truncated_altered_and_empty_files_are_refused_with_both_md5s(small, damage):
    content = damage((small / "one").read_bytes())
    (small / "one").write_bytes(content)
    with pytest.raises(ValueError, match="one is damaged") as caught:
        load(config(small))
    assert hashlib.md5(content).hexdigest() in str(caught.value)
    assert cifar.SETS["cifar10"].train["one"] in str(caught.value)


def test_code_in_a_file_with_a_wrong_md5_never_runs(small, tmp_path):
    (small / "one").write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    with pytest.raises(ValueError, match="one is damaged"):
        load(config(small))
    assert not (tmp_path / "ran").exists()


def test_code_in_a_file_with_the_right_md5_never_runs_either(small, tmp_path, monkeypatch):
    content = pickle.dumps(Malicious(tmp_path / "ran"))
    (small / "one").write_bytes(content)
    train = {"one": hashlib.md5(content).hexdigest()}
    monkeypatch.setitem(cifar.SETS, "cifar10", replace(cifar.SETS["cifar10"], train=train))
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        load(config(small, limit=5))
    pickle.loads(content)  # our own bytes, which make a folder: proof that the refusal above refused something
    assert (tmp_path / "ran").exists(), "the file would have run, had it been let"


class FakeCIFAR10:
    """torchvision's class, without a network: puts the files there, or fails as urllib does."""

    files: dict[Path, bytes] = {}  # noqa: RUF012

    def __init__(self, root, download):
        if not self.files:
            raise urllib.error.URLError("no route to host")
        for path, content in self.files.items():
            path.write_bytes(content)


@pytest.fixture
def fake_torchvision(monkeypatch):
    module = SimpleNamespace(datasets=SimpleNamespace(CIFAR10=FakeCIFAR10))
    monkeypatch.setattr(cifar, "import_torchvision", lambda: module)


def test_download_replaces_a_damaged_file_and_says_how_large(small, fake_torchvision, monkeypatch, capsys):
    monkeypatch.setattr(FakeCIFAR10, "files", {small / "one": (small / "one").read_bytes()})
    (small / "one").write_bytes(b"half")
    assert len(load(config(small, download=True)).train) == 9
    assert "CIFAR-10 (170 MB)" in capsys.readouterr().out


def test_nothing_is_fetched_when_the_files_are_there(small, fake_torchvision, capsys):
    load(config(small, download=True))
    assert capsys.readouterr().out == ""


def test_failed_download_says_what_to_fetch_by_hand(small, fake_torchvision):
    (small / "one").unlink()
    with pytest.raises(ValueError, match="no route to host") as caught:
        load(config(small, download=True))
    assert cifar.SETS["cifar10"].by_hand in str(caught.value)


def needs(*files: str) -> pytest.MarkDecorator:
    name = "cifar100" if "100" in files[0] else "cifar10"
    return pytest.mark.skipif(
        not all((ROOT / file).is_file() for file in files),
        reason=f"no files under TSERVE_DATA: python -m train.distill --data.name {name} --data.download",
    )


@pytest.mark.cifar
@needs("cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/test_batch")
def test_first_batch_and_test_batch_are_enough_for_ten_thousand_images(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "test_batch"):
        (folder / name).symlink_to((ROOT / folder.name / name).resolve())
    dataset = load(DataConfig(name="cifar10", root=tmp_path, limit=10_000))
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (9000, 1000, 10_000)
    assert dataset.test.labels.bincount().tolist() == [1000] * 10


@pytest.mark.cifar
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("cifar10", marks=needs("cifar-10-batches-py/data_batch_5", "cifar-10-batches-py/batches.meta")),
        pytest.param("cifar100", marks=needs("cifar-100-python/train", "cifar-100-python/meta")),
    ],
)
def test_images_labels_classes_and_md5_are_torchvisions(name):
    dataset = load(DataConfig(name=name, root=ROOT, val_fraction=0.1))
    official = getattr(import_torchvision().datasets, name.upper())
    assert cifar.SETS[name].by_hand.startswith(official.url)
    train, test = (official(ROOT, train=part) for part in (True, False))
    assert dataset.classes == tuple(train.classes)
    assert dataset.md5 == dict(train.train_list + train.test_list)
    for part, oracle in ((dataset.train, train), (dataset.val, train), (dataset.test, test)):
        assert np.array_equal(part.images.permute(0, 2, 3, 1).numpy(), oracle.data[part.indices])
        assert part.labels.tolist() == np.array(oracle.targets)[part.indices].tolist()
    rows = torch.cat([dataset.train.indices, dataset.val.indices]).sort().values
    assert torch.equal(rows, torch.arange(50_000))
    parts = np.array_split(train.data, 100)
    means, stds = (
        np.concatenate([getattr(part, moment)((1, 2)) for part in parts]) / 255 for moment in ("mean", "std")
    )
    whole_std = np.sqrt((stds**2 + means**2).mean(0) - means.mean(0) ** 2)
    assert dataset.mean == pytest.approx(means.mean(0), abs=5e-4)
    assert dataset.std == pytest.approx(stds.mean(0) if name == "cifar10" else whole_std, abs=5e-4)
