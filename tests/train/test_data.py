import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from train.config import DataConfig
from train.data import DATASETS, Split, augment, batches, load
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


@given(n=st.integers(0, 60), size=st.integers(1, 70), seed=st.none() | st.integers(0, 9))
def test_batches_give_every_image_once_with_its_label(n, size, seed):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    parts = list(batches(numbered(n), size, generator=generator))
    assert [len(labels) for _, labels in parts] == [size] * (n // size) + [n % size] * (n % size > 0)
    labels = torch.cat([labels for _, labels in parts]) if parts else torch.arange(0)
    assert all(torch.equal(images.flatten().long(), labels) for images, labels in parts)
    assert torch.equal(labels.sort().values, torch.arange(n))
    if generator is None:
        assert torch.equal(labels, torch.arange(n))


def test_batches_are_shuffled_anew_in_every_pass_and_repeat_with_the_seed():
    generator = torch.Generator().manual_seed(0)
    passes = [torch.cat([y for _, y in batches(numbered(50), 8, generator=generator)]) for _ in range(2)]
    again = torch.cat([y for _, y in batches(numbered(50), 8, generator=torch.Generator().manual_seed(0))])
    assert not torch.equal(passes[0], torch.arange(50))
    assert not torch.equal(passes[0], passes[1])
    assert torch.equal(passes[0], again)


def test_drop_last_leaves_out_the_smaller_batch():
    assert [len(y) for _, y in batches(numbered(25), 8, drop_last=True)] == [8, 8, 8]
    assert [len(y) for _, y in batches(numbered(24), 8, drop_last=True)] == [8, 8, 8]


def test_drop_last_refuses_to_leave_nothing():
    with pytest.raises(ValueError, match="32 images is larger than the 25"):
        next(batches(numbered(25), 32, drop_last=True))


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
    out = augment(images, generator=generator, pad=pad, mirror=mirror)
    assert (out.dtype, out.shape) == (images.dtype, images.shape)
    shifts = [(down, right) for down in range(-pad, pad + 1) for right in range(-pad, pad + 1)]
    for image, new in zip(images, out, strict=True):
        copies = [shifted(image, down, right) for down, right in shifts]
        copies += [copy.flip(-1) for copy in copies] if mirror else []
        assert any(torch.equal(new, copy) for copy in copies)


def test_all_shifts_and_flips_occur_equally_often_and_independently():
    image = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3)
    out = augment(image.expand(18_000, 1, 3, 3), generator=torch.Generator().manual_seed(0), pad=1, mirror=True)
    kinds, counts = out.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 18
    assert (counts - 1000).abs().max() < 150  # five standard deviations


def test_augment_without_pad_and_mirror_is_the_identity():
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(augment(images, generator=torch.Generator(), pad=0, mirror=False), images)


def test_augment_repeats_with_the_generator_state():
    images = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8)
    a, b = (augment(images, generator=torch.Generator().manual_seed(3), pad=1, mirror=True) for _ in range(2))
    c = augment(images, generator=torch.Generator().manual_seed(4), pad=1, mirror=True)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
