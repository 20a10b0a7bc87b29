import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from serve.bundle import InputRecord
from serve.images import decode
from train.config import DataConfig
from train.data import load
from train.datasets.folder import channel_statistics, read_image


def noise(path, size=(12, 10), mode="RGB", seed=0):
    """Write a picture of `size` (width, height), RGB or grey; give its pixels [H, W, 3] or [H, W]."""
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def root(tmp_path):
    """dog (3 training images), ant and cat (2 each); one test image a class."""
    for seed, name in enumerate(["dog/a", "dog/b", "dog/c", "ant/x", "ant/y", "cat/1", "cat/2"]):
        noise(tmp_path / "train" / f"{name}.png", seed=seed)
    for seed, name in enumerate(["dog/a", "ant/b", "cat/c"]):
        noise(tmp_path / "test" / f"{name}.png", seed=10 + seed)
    return tmp_path


def config(root, **changes):
    return DataConfig(**{"name": "folder", "root": root, "size": 8, "val_fraction": 0.0} | changes)


def test_images_go_round_the_alphabetical_classes(root):
    dataset = load(config(root))
    assert dataset.classes == ("ant", "cat", "dog")
    assert dataset.train.labels.tolist() == [0, 1, 2, 0, 1, 2, 2]
    assert dataset.test.labels.tolist() == [0, 1, 2]
    assert dataset.train.images.shape == (7, 3, 8, 8)
    assert (dataset.size, dataset.channels, dataset.mirror) == (8, 3, True)


def test_limit_takes_a_balanced_part(root):
    assert load(config(root, limit=3)).train.labels.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"data\.limit is 8, but .*train has 7"):
        load(config(root, limit=8))


def test_mean_and_std_are_those_of_all_training_pixels(root):
    dataset = load(config(root))
    pixels = dataset.train.images.double() / 255
    assert dataset.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert dataset.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), rel=1e-12)


def test_md5_changes_with_content_and_with_names(root):
    before = load(config(root)).md5
    (root / "train/dog/c.png").rename(root / "train/dog/d.png")
    renamed = load(config(root)).md5
    noise(root / "train/dog/d.png", seed=99)
    changed = load(config(root)).md5
    assert len({sums["train"] for sums in (before, renamed, changed)}) == 3
    assert before["test"] == changed["test"]


def test_val_stands_in_for_a_missing_test_folder(root):
    (root / "test").rename(root / "val")
    assert len(load(config(root)).test) == 3


def test_files_that_are_no_images_and_hidden_folders_are_passed_over(root):
    (root / "train/dog/notes.txt").write_text("good dogs")
    (root / "train/.cache").mkdir()
    assert len(load(config(root)).train) == 7


@pytest.mark.parametrize("suffix", ["png", "PNG", "jpg", "jpeg", "webp", "bmp"])
def test_every_documented_suffix_is_read(root, suffix):
    noise(root / f"train/dog/more.{suffix}")
    assert len(load(config(root)).train) == 8


def test_corrupt_image_is_named(root):
    path = root / "train/cat/2.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"train.cat.2\.png: not an image"):
        load(config(root))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "test/cat/c.png").unlink(), "test.cat holds no images"),
        (lambda root: [p.unlink() for p in (root / "train/ant").iterdir()], "train.ant holds no images"),
        (lambda root: noise(root / "test/eel/e.png"), "only in train: none; only in test: eel"),
        (lambda root: noise(root / "train/eel/e.png"), "only in train: eel; only in test: none"),
        (lambda root: (root / "train").rename(root / "tree"), "train/ is missing"),
        (lambda root: (root / "test").rename(root / "tests"), "test/ is missing"),
    ],
)
def test_wrong_layout_is_refused(root, change, message):
    change(root)
    with pytest.raises(ValueError, match=message):
        load(config(root))


def test_one_class_is_refused(tmp_path):
    for part in ("train", "test"):
        noise(tmp_path / part / "dog/a.png")
    with pytest.raises(ValueError, match="1 class folder"):
        load(config(tmp_path))


def test_constant_channel_is_refused():
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    images[:, 1] = 7
    with pytest.raises(ValueError, match="same value"):
        channel_statistics(images)


def test_rgb_image_of_the_right_size_keeps_its_pixels(tmp_path):
    pixels = noise(tmp_path / "a.png", size=(8, 8))
    assert np.array_equal(read_image((tmp_path / "a.png").read_bytes(), 8), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("size", "cut"), [((12, 8), np.s_[:, 2:10]), ((8, 12), np.s_[2:10, :]), ((108, 8), np.s_[:, 50:58])]
)
def test_long_side_is_cut_at_the_centre(tmp_path, size, cut):
    pixels = noise(tmp_path / "a.png", size=size)
    assert np.array_equal(read_image((tmp_path / "a.png").read_bytes(), 8), pixels[cut].transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (7, 7), (301, 300)])
def test_every_size_becomes_a_square(tmp_path, size):
    noise(tmp_path / "a.png", size=size)
    assert read_image((tmp_path / "a.png").read_bytes(), 8).shape == (3, 8, 8)


def test_transparent_pixels_become_white_and_grey_becomes_rgb(tmp_path):
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert (read_image((tmp_path / "clear.png").read_bytes(), 8) == 255).all()
    grey = noise(tmp_path / "grey.png", size=(8, 8), mode="L")
    assert np.array_equal(read_image((tmp_path / "grey.png").read_bytes(), 8), np.stack([grey] * 3))


def test_photograph_is_turned_upright(tmp_path):
    image = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was held so that the picture has to be turned clockwise
    image.save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(np.asarray(image), -1).transpose(2, 0, 1)
    assert np.array_equal(read_image((tmp_path / "a.png").read_bytes(), 8), upright)


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "a.png")
    assert (read_image((tmp_path / "a.png").read_bytes(), 8) == 40_000 // 256).all()


def test_thirty_two_bits_are_refused():
    file = io.BytesIO()
    Image.fromarray(np.ones((8, 8), np.float32)).save(file, "TIFF")
    with pytest.raises(ValueError, match="32 bits"):
        read_image(file.getvalue(), 8)


@given(
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]),
    sides=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.integers(1, 20),
    turn=st.integers(1, 8),
)
def test_training_and_serving_make_the_same_pixels_of_a_file(mode, sides, size, turn):
    channels = {"LA": 2, "RGB": 3, "RGBA": 4}.get(mode, 1)
    noise = np.random.default_rng(0).integers(0, 256, (*sides, channels), np.uint8).squeeze(-1 if channels == 1 else ())
    image = Image.fromarray(noise.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(noise).convert(mode)
    exif = image.getexif()
    exif[0x0112] = turn
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    served = decode(file.getvalue(), InputRecord(channels=3, height=size, width=size))
    assert np.array_equal(np.rint(served * 255), read_image(file.getvalue(), size))
