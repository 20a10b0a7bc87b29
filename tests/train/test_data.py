import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from train.config import DataConfig
from train.data import DATASETS, Shuffled, Split, augment, batches, draw_augmentation, keyed, load
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


def shuffled(split: Split, size: int, *, seed: int = 0, mirror: bool = False, **config) -> Shuffled:
    return Shuffled(split, size, config=DataConfig(**config), seed=seed, mirror=mirror)


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
    stream = shuffled(split, 16, mirror=True, alternate_flip=True)
    seen = []
    for step in range(2):
        images, [(_, labels)] = stream(step)
        assert all(
            torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in zip(images, split.images[labels], strict=True)
        )
        seen.append(images[labels.argsort()])
    assert torch.equal(seen[0], seen[1].flip(-1))
    assert not torch.equal(seen[0], split.images)


def shifted(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """The pixel loop: out[i, j] = image[i + down, j + right], 0 outside."""
    _, H, W = image.shape
    out = torch.zeros_like(image)
    for i in range(H):
        for j in range(W):
            if 0 <= i + down < H and 0 <= j + right < W:
                out[:, i, j] = image[:, i + down, j + right]
    return out


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(3, 6), st.integers(3, 6)),
    pad=st.integers(0, 2),
    mirror=st.booleans(),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float16]),
)
def test_every_augmented_image_is_a_shifted_or_mirrored_copy(seed, shape, pad, mirror, dtype):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 255, shape, generator=generator).to(dtype)
    drawn = draw_augmentation(len(images), generator=generator, pad=pad)
    out = augment(images, drawn, pad=pad, mirror=mirror)
    assert (out.dtype, out.shape) == (images.dtype, images.shape)
    shifts = [(down, right) for down in range(-pad, pad + 1) for right in range(-pad, pad + 1)]
    for image, new in zip(images, out, strict=True):
        copies = [shifted(image, down, right) for down, right in shifts]
        copies += [copy.flip(-1) for copy in copies] if mirror else []
        assert any(torch.equal(new, copy) for copy in copies)


def test_all_shifts_and_flips_occur_equally_often_and_independently():
    image = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3)
    drawn = draw_augmentation(18_000, generator=torch.Generator().manual_seed(0), pad=1)
    out = augment(image.expand(18_000, 1, 3, 3), drawn, pad=1, mirror=True)
    kinds, counts = out.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 18
    assert (counts - 1000).abs().max() < 150  # five standard deviations


def test_augment_without_pad_and_mirror_is_the_identity():
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    drawn = draw_augmentation(5, generator=torch.Generator(), pad=0)
    assert torch.equal(augment(images, drawn, pad=0, mirror=False), images)
