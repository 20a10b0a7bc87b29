import dataclasses
import hashlib
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from train.augment import draw_augmentation, keyed
from train.config import DataConfig
from train.data import DATASETS, Shuffled, Split, batches, load
from train.datasets.dataset import checked
from train.datasets.folder import channel_statistics


@pytest.fixture(scope="module")
def digits():
    return load(DataConfig())


def test_digits_parts_are_all_scans_once(digits):
    parts = [digits.train, digits.val, digits.test]
    indices = torch.cat([part.indices for part in parts])
    assert [len(part) for part in parts] == [1294, 144, 359]
    assert torch.equal(indices.sort().values, torch.arange(1797))


def test_digits_images_and_labels_are_those_of_scikit_learn(digits):
    raw = load_digits()
    for part in (digits.train, digits.val, digits.test):
        grey = part.images[:, 0].double() / 255 * 16
        assert torch.equal(grey.round(), torch.from_numpy(raw.images[part.indices]))
        assert part.labels.tolist() == raw.target[part.indices].tolist()


def test_digits_test_split_holds_a_fifth_of_every_class(digits):
    whole = torch.from_numpy(load_digits().target).bincount()
    assert torch.equal(digits.test.labels.bincount(), (whole / 5).round().long())


def test_digits_split_never_changes(digits):
    """Published accuracies refer to these images."""
    content = digits.test.indices.numpy().astype("<i8").tobytes() + digits.val.indices.numpy().astype("<i8").tobytes()
    assert hashlib.md5(content).hexdigest() == "2b7fdcabda558458ca339ddd1ad7418b"
    assert digits.md5 == {"digits": "717a258403283d25fecfadab063a2716"}


def test_digits_test_split_does_not_depend_on_the_config(digits):
    other = load(DataConfig(limit=50, val_fraction=0.5, augment=False))
    assert torch.equal(other.test.images, digits.test.images)


def test_digits_constants_are_the_measured_ones():
    mean, std = channel_statistics(load(DataConfig(val_fraction=0)).train.images)
    dataset = load(DataConfig())
    assert dataset.mean == pytest.approx(mean, abs=1e-5)
    assert dataset.std == pytest.approx(std, abs=1e-5)


def test_limit_takes_the_first_published_training_images(digits):
    limited = load(DataConfig(limit=100, val_fraction=0.25))
    both = torch.cat([limited.train.indices, limited.val.indices]).sort().values
    published = torch.cat([digits.train.indices, digits.val.indices]).sort().values
    assert torch.equal(both, published[:100])
    assert (len(limited.train), len(limited.val)) == (75, 25)


def test_val_fraction_zero_holds_nothing_out():
    dataset = load(DataConfig(val_fraction=0))
    assert (len(dataset.train), len(dataset.val)) == (1438, 0)
    assert dataset.val.images.shape == (0, 1, 8, 8)


def test_limit_above_the_set_is_refused_with_its_size():
    with pytest.raises(ValueError, match=r"data\.limit is 1439, but digits has 1438 training images"):
        load(DataConfig(limit=1439))


def test_unknown_name_is_refused_with_the_nearest_and_all_names():
    with pytest.raises(ValueError, match="unknown data set 'cifar'") as caught:
        load(DataConfig(name="cifar"))
    nearest, known = str(caught.value).split("Known:")
    assert "cifar10 or cifar100" in nearest
    assert all(name in known for name in DATASETS)


def numbered(n: int) -> Split:
    labels = torch.arange(n)
    return Split(images=labels.to(torch.uint8).reshape(n, 1, 1, 1), labels=labels, indices=labels)


@given(n=st.integers(0, 60), size=st.integers(1, 70))
def test_batches_give_every_image_once_with_its_label_and_in_order(n, size):
    parts = list(batches(numbered(n), size))
    assert [len(labels) for _, labels in parts] == [size] * (n // size) + [n % size] * (n % size > 0)
    labels = torch.cat([labels for _, labels in parts]) if parts else torch.arange(0)
    assert all(torch.equal(images.flatten().long(), labels) for images, labels in parts)
    assert torch.equal(labels, torch.arange(n))


def shuffled(split: Split, size: int, *, seed: int = 0, mirror: bool = False, mean=(), **config) -> Shuffled:
    return Shuffled(split, size, config=DataConfig(**config), seed=seed, mirror=mirror, mean=mean)


@given(n=st.integers(1, 60), size=st.integers(1, 70), seed=st.integers(0, 9))
def test_an_epoch_gives_every_image_of_its_whole_batches_once_with_its_label(n, size, seed):
    stream = shuffled(numbered(n), size, seed=seed, augment=False)
    assert (stream.batch_size, stream.steps) == (min(n, size), n // min(n, size))
    for epoch in range(2):
        parts = [stream(epoch * stream.steps + i) for i in range(stream.steps)]
        assert all(weight == 1 and len(own) == stream.batch_size for _, [(weight, own)] in parts)
        labels = torch.cat([own for _, [(_, own)] in parts])
        assert len(labels.unique()) == len(labels)
        assert all(torch.equal(images.flatten().long(), own) for images, [(_, own)] in parts)


def test_epochs_are_shuffled_anew_and_repeat_with_the_seed():
    order = shuffled(numbered(50), 8).order
    assert not torch.equal(order(0), torch.arange(50))
    assert not torch.equal(order(0), order(1))
    assert torch.equal(order(0), shuffled(numbered(50), 8).order(0))
    assert not torch.equal(order(0), shuffled(numbered(50), 8, seed=1).order(0))


def pictures(n: int, size: int = 8) -> Split:
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(1, 255, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    return Split(images=images, labels=torch.arange(n), indices=torch.arange(n))


def test_a_step_is_a_function_of_its_number_and_can_be_asked_for_in_any_order():
    first, second = (shuffled(pictures(40), 8, mirror=True) for _ in range(2))
    there = [first(step)[0] for step in range(12)]
    back = [second(step)[0] for step in reversed(range(12))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(there, back, strict=True))
    assert not torch.equal(shuffled(pictures(40), 8, seed=1, mirror=True)(0)[0], there[0])


def test_another_seed_or_step_draws_another_augmentation_and_another_order():
    def drawn(*key: int) -> torch.Tensor:
        return draw_augmentation(64, generator=keyed(*key), pad=4)

    keys = [(0, 1, 3), (1, 1, 3), (7, 1, 3), (2**31 - 1, 1, 3), (0, 1, 4), (0, 0, 3), (0, 2)]
    found = [drawn(*key) for key in keys]
    assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])
    assert torch.equal(drawn(*keys[0]), found[0])
    split, flat = pictures(40), {"mirror": False}
    first, second = (shuffled(split, 40, seed=seed, **flat) for seed in (0, 1))
    second._order = first._order = (0, torch.arange(40))
    assert not torch.equal(first(0)[0], second(0)[0])


def test_the_parts_of_a_batch_are_the_batch():
    stream = shuffled(pictures(40), 8, mirror=True)
    whole, [(_, labels)] = stream(3)
    halves = [stream(3, part) for part in (slice(0, 4), slice(4, 8))]
    assert torch.equal(torch.cat([images for images, _ in halves]), whole)
    assert torch.equal(torch.cat([own for _, [(_, own)] in halves]), labels)


def test_alternate_flip_is_refused_where_it_would_do_nothing():
    with pytest.raises(ValueError, match=r"data\.alternate_flip mirrors augmented images: it needs data\.augment"):
        DataConfig(alternate_flip=True, augment=False)
    with pytest.raises(ValueError, match=r"data\.alternate_flip: a mirrored image of this data set is not of the same"):
        shuffled(pictures(8), 4, alternate_flip=True)


def test_alternate_flip_shows_each_image_both_ways_in_two_epochs():
    split = pictures(16, size=4)  # H // 8 = 0: mirrored or not, nothing else
    stream = shuffled(split, 4, mirror=True, alternate_flip=True)
    seen = []
    for epoch in range(2):
        parts = [stream(4 * epoch + i) for i in range(4)]
        images, labels = (torch.cat(column) for column in zip(*((x, y) for x, [(_, y)] in parts), strict=True))
        assert all(
            torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in zip(images, split.images[labels], strict=True)
        )
        seen.append(images[labels.argsort()])
    assert torch.equal(seen[0], seen[1].flip(-1))
    assert not torch.equal(seen[0], split.images)


ALL = {"mirror": True, "auto_augment": True, "cutout": 3, "mixup": 1.0, "mean": (0.5, 0.4, 0.3)}


def same(a, b) -> bool:
    """Whether two answers of `Shuffled` are the same, bit for bit."""
    return torch.equal(a[0], b[0]) and all(
        v == w and torch.equal(x, y) for (v, x), (w, y) in zip(a[1], b[1], strict=True)
    )


def test_with_every_augmentation_a_step_is_a_function_of_seed_and_number():
    first, second = (shuffled(pictures(40), 8, **ALL) for _ in range(2))
    there = [first(step) for step in range(7)]
    back = [second(step) for step in reversed(range(7))][::-1]
    assert all(map(same, there, back))
    assert not any(same(a, b) for i, a in enumerate(there) for b in there[:i])
    assert not same(shuffled(pictures(40), 8, seed=1, **ALL)(0), there[0])


def test_augmentation_leaves_torchs_own_draws_alone():
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    shuffled(pictures(40), 8, **ALL)(2)
    assert torch.equal(torch.rand(4), wanted)


@pytest.mark.parametrize("change", [{}, {"mixup": 0.0}, {"mixup": 0.0, "alternate_flip": True, "auto_augment": False}])
@pytest.mark.parametrize("edges", [(0, 4, 8), (0, 1, 2, 8), (0, 8)])
def test_with_every_augmentation_the_parts_of_a_batch_are_the_batch(edges, change):
    stream = shuffled(pictures(40), 8, **ALL | change)
    whole, targets = stream(3)
    parts = [stream(3, slice(a, b)) for a, b in itertools.pairwise(edges)]
    joined = torch.cat([images for images, _ in parts])
    own = [(w, torch.cat([part[i][1] for _, part in parts])) for i, (w, _) in enumerate(targets)]
    assert same((whole, targets), (joined, own))


def test_mixed_images_have_both_labels_by_their_parts():
    split = numbered(20)
    images, [(weight, own), (rest, other)] = shuffled(split, 20, augment=False, mixup=0.5)(0)
    assert weight + rest == 1
    assert torch.equal(images.flatten(), torch.lerp(other.float(), own.float(), weight).round().to(torch.uint8))
    assert torch.equal(own.sort().values, torch.arange(20))
    assert torch.equal(other.sort().values, torch.arange(20))
    weights = [shuffled(split, 20, augment=False, mixup=0.5)(step)[1][0][0] for step in range(300)]
    assert all(0 <= w <= 1 for w in weights)
    assert sum(weights) / 300 == pytest.approx(0.5, abs=0.1)
    assert sum(w < 0.1 or w > 0.9 for w in weights) > 90  # Beta(0.5, 0.5) is high at its ends: 41 % lie there


def recordings(n: int) -> Split:
    """Four frames of one picture in six brightnesses."""
    base = pictures(n).images[:, None, :2] // 6
    images = torch.cat([base * k for k in range(1, 5)], 1)
    return Split(images=images, labels=torch.arange(n), indices=torch.arange(n))


def test_recordings_come_with_time_first_and_all_frames_treated_the_same():
    config = {"mirror": True, "cutout": 3}
    images, [(_, labels)] = shuffled(recordings(40), 8, **config)(1)
    assert images.shape == (4, 8, 2, 8, 8)
    assert all(torch.equal(images[k], images[0] * (k + 1)) for k in range(4))
    plain, _ = shuffled(recordings(40), 8, augment=False)(1)
    assert torch.equal(plain, recordings(40).images[labels].transpose(0, 1))
    assert not torch.equal(plain, images)


def test_batches_of_recordings_have_time_first():
    split = recordings(10)
    parts = list(batches(split, 4))
    assert [tuple(images.shape) for images, _ in parts] == [(4, b, 2, 8, 8) for b in (4, 4, 2)]
    assert torch.equal(torch.cat([images for images, _ in parts], 1).transpose(0, 1), split.images)


def test_holes_have_the_byte_nearest_the_mean_and_are_black_without_one():
    white = Split(
        images=torch.full((8, 3, 8, 8), 255, dtype=torch.uint8), labels=torch.arange(8), indices=torch.arange(8)
    )
    for mean, bytes_ in (((0.4914, 0.4822, 0.4465), (125, 123, 114)), ((), (0, 0, 0))):
        images, _ = shuffled(white, 8, augment=False, cutout=4, mean=mean)(0)
        found = images.transpose(0, 1).flatten(1)
        assert [sorted(channel.unique().tolist()) for channel in found] == [[byte, 255] for byte in bytes_]


def test_augmentations_that_do_not_fit_the_images_are_refused():
    with pytest.raises(ValueError, match=r"data\.auto_augment is for grey and RGB images, not for \[4, 2, 8, 8\]"):
        shuffled(recordings(8), 4, auto_augment=True)
    with pytest.raises(ValueError, match=r"data\.cutout is 9, but an image has a side of 8 pixels"):
        shuffled(pictures(8), 4, cutout=9)
    for name in ("cutout", "mixup", "workers"):
        with pytest.raises(ValueError, match=rf"data\.{name} must not be negative, got -1"):
            DataConfig(**{name: -1})
    with pytest.raises(ValueError, match=r"data\.stream is for data\.name folder; digits is always kept"):
        load(DataConfig(stream=True))


SHAPE = {"images": torch.zeros(3, 1, 8, 8, dtype=torch.uint8), "labels": torch.arange(3), "indices": torch.arange(3)}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images": torch.zeros(3, 1, 8, 8)}, "images must be uint8 .*, got torch.float32"),
        ({"images": torch.zeros(3, 8, dtype=torch.uint8)}, r"images must be .* got torch.uint8 \[3, 8\]"),
        ({"labels": torch.arange(2)}, r"labels must be int64 \[N\] = \[3\], got torch.int64 \[2\]"),
        ({"indices": torch.zeros(3)}, r"indices must be int64 \[N\] = \[3\], got torch.float32 \[3\]"),
    ],
)
def test_a_split_of_other_tensors_is_refused(changed: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Split(**(SHAPE | changed))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"size": 9}, r"digits: train has images \[1, 8, 8\], not \[1, 9, 9\]"),
        ({"frames": 2}, r"digits: train has images \[1, 8, 8\], not \[2, 1, 8, 8\]"),
        ({"mean": (0.5, 0.5)}, "digits: mean and std must be 1 numbers, one a channel"),
        ({"classes": tuple("012345678")}, "digits: train has labels that are not those of 9 classes"),
    ],
)
def test_a_data_set_whose_parts_do_not_fit_is_refused(changed: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        checked(dataclasses.replace(load(DataConfig()), **changed))
