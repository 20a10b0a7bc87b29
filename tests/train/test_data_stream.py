"""data.stream: class folders whose images are decoded when a step needs them."""

import dataclasses
import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from train import teacher
from train.augment import Draw, key
from train.config import DataConfig, NetConfig, OptimConfig, TeacherConfig
from train.data import Shuffled, batches, load
from train.datasets import files, folder
from train.datasets.files import Files, read_crop, read_image
from train.torchvision_guard import import_torchvision


@pytest.fixture
def root(tmp_path):
    """Two classes of 20 training images of several sizes and 5 test images."""
    for part, count in (("train", 20), ("test", 5)):
        for label, name in enumerate(("ant", "bee")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                random = np.random.default_rng((i, label, count))
                pixels = random.integers(0, 256, (*random.integers(12, 40, 2), 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i:02}.png")
    return tmp_path


def config(root, **changes):
    return DataConfig(**{"name": "folder", "root": root, "size": 16, "stream": True, "workers": 0} | changes)


def shuffled(dataset, data: DataConfig, *, seed: int = 0) -> Shuffled:
    return Shuffled(dataset.train, 8, config=data, seed=seed, mirror=True, mean=dataset.mean)


def same(a, b) -> bool:
    return torch.equal(a[0], b[0]) and all(
        v == w and torch.equal(x, y) for (v, x), (w, y) in zip(a[1], b[1], strict=True)
    )


def test_files_are_the_images_that_memory_would_hold(root):
    kept, streamed = load(config(root, stream=False)), load(config(root))
    for part in ("train", "val", "test"):
        one, other = getattr(kept, part), getattr(streamed, part)
        assert isinstance(other.images, Files)
        assert other.images.shape == one.images.shape
        assert torch.equal(other.images[:], one.images)
        rows = torch.tensor([1, 0])
        assert torch.equal(other.take(rows).images[:], one.take(rows).images)
        assert torch.equal(other.labels, one.labels)
    assert streamed.mean == pytest.approx(kept.mean)
    assert streamed.std == pytest.approx(kept.std)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_memory(root, workers):
    kept, streamed = load(config(root, stream=False)), load(config(root, workers=workers))
    for one, other in zip(batches(kept.train, 7), batches(streamed.train, 7), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


ALL = {"auto_augment": True, "cutout": 5, "mixup": 0.5}


def test_steps_are_the_same_from_any_processes_in_any_order_and_leave_torchs_draws_alone(root):
    dataset = load(config(root))
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    here, there = (shuffled(dataset, config(root, workers=workers, **ALL)) for workers in (0, 2))
    inline = [here(step) for step in range(9)]
    assert all(same(there(step), inline[step]) for step in (0, 1, 2, 7, 8, 3))
    assert torch.equal(torch.rand(4), wanted)
    assert not same(shuffled(dataset, config(root, **ALL), seed=1)(0), inline[0])
    assert not any(same(a, b) for i, a in enumerate(inline) for b in inline[:i])


def test_workers_make_the_batches(root, monkeypatch):
    """The processes that decode are others, and are asked once for consecutive steps."""
    monkeypatch.setattr(files, "read_crop", lambda *_: np.full((3, 16, 16), os.getpid() % 251, np.uint8))
    dataset = load(config(root, workers=2))
    stream = shuffled(dataset, config(root))
    seen = {int(value) for step in range(4) for value in stream(step)[0].unique()}
    assert len(seen) == 2
    assert os.getpid() % 251 not in seen


@pytest.mark.parametrize("change", [{}, ALL])
def test_the_parts_of_a_batch_are_the_batch(root, change):
    data = config(root, **change)
    stream, dataset = shuffled(load(data), data), load(data)
    whole, targets = stream(3)
    parts = [shuffled(dataset, data)(3, part) for part in (slice(0, 3), slice(3, 8))]
    assert torch.equal(torch.cat([images for images, _ in parts]), whole)
    for i, (_, labels) in enumerate(targets):
        assert torch.equal(torch.cat([own[i][1] for _, own in parts]), labels)
    assert torch.equal(stream(4, slice(0, 3))[0], shuffled(dataset, data)(4)[0][:3])  # another part of the next step


def test_training_images_are_random_resized_crops_and_mirrored(root):
    data = config(root, val_fraction=0.0)
    stream = shuffled(load(data), data)
    kinds = set()
    rows = stream._rows(2)
    for position, image in enumerate(stream(2)[0]):
        path = root / "train" / os.fsdecode(stream.split.images.names[rows[position]])
        crop = torch.from_numpy(read_crop(path.read_bytes(), 16, key(stream.seed, Draw.CROP, 2, position)).copy())
        kinds.add("plain" if torch.equal(image, crop) else "mirrored" if torch.equal(image, crop.flip(-1)) else "?")
    assert kinds == {"plain", "mirrored"}
    flat = config(root, val_fraction=0.0, augment=False)
    images, [(_, labels)] = shuffled(load(flat), flat)(2)
    assert torch.equal(images, load(flat).train.images[rows])
    assert len(labels) == 8


def test_a_crop_is_torchvisions_for_the_seed():
    import_torchvision()
    from torchvision.transforms import v2

    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    for seed in range(5):
        torch.manual_seed(seed)
        wanted = np.asarray(v2.RandomResizedCrop(16)(Image.fromarray(pixels))).transpose(2, 0, 1)
        assert np.array_equal(read_crop(file.getvalue(), 16, seed), wanted)
    assert not np.array_equal(wanted, read_image(file.getvalue(), 16))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_named_when_a_step_needs_it(root, workers):
    data = config(root, val_fraction=0.0, workers=workers, augment=False)
    dataset = load(data)
    path = root / "train/bee/07.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"train.bee.07\.png: not an image.*repair it or take it out") as caught:
        list(batches(dataset.train, 10))
    assert "Traceback" not in str(caught.value)
    path.unlink()
    with pytest.raises(OSError, match=r"07\.png"):
        list(batches(dataset.train, 10))


def test_md5_is_of_names_and_lengths(root):
    before = load(config(root)).md5
    path = root / "train/bee/07.png"
    path.write_bytes(path.read_bytes() + b"\0")
    changed = load(config(root)).md5
    path.rename(path.with_name("20.png"))
    assert len({sums["train"] for sums in (before, changed, load(config(root)).md5)}) == 3
    assert before["test"] == changed["test"]


def test_images_that_do_not_fit_into_memory_are_refused_with_the_way_out(root, monkeypatch):
    with pytest.raises(ValueError, match=r"50 images of 10000000 x 10000000 pixels are .* GB.*--data\.stream"):
        load(config(root, stream=False, size=10_000_000))
    monkeypatch.setattr(folder, "check_memory", lambda *_: pytest.fail("files take no memory"))
    load(config(root))


def test_a_run_trains_on_files_and_measures_on_files(root, tmp_path):
    data, optim = config(root, workers=1, cutout=4), OptimConfig(epochs=2, batch_size=12)
    setup = TeacherConfig(data=data, net=NetConfig(spiking=False, width=0.25), optim=optim, device="cpu")
    losses = []
    for name in ("one", "two"):
        result = teacher.main(dataclasses.replace(setup, out=tmp_path / name))
        losses.append((tmp_path / name / "metrics.jsonl").read_text().split('"seconds"')[0])
        assert 0 <= result.accuracy <= 1
    assert losses[0] == losses[1]
