import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.augment import (
    augment,
    auto_augment,
    cifar10_policy,
    cutout,
    draw_augmentation,
    draw_holes,
    draw_mix,
    draw_policy,
    keyed,
)


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


def photographs(n: int, channels: int = 3) -> torch.Tensor:
    """Smooth uint8 images, whose levels do not fill the whole range."""
    noise = torch.rand((n, channels, 6, 6), generator=torch.Generator().manual_seed(n))
    smooth = torch.nn.functional.interpolate(noise, size=(32, 32), mode="bilinear")
    return (30 + 180 * smooth).to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pair", range(25))
def test_policy_does_what_torchvision_does_with_the_same_draws(pair, channels, monkeypatch):
    """torchvision draws for one image: which pair; then a chance and, if the operation is signed, a sign for both."""
    images = photographs(8, channels)
    drawn = draw_policy(8, generator=keyed(pair))
    drawn[0] = pair
    drawn[1, :4] = 0.0  # with certainty, as far as it can be
    found = auto_augment(images, drawn)
    policy = cifar10_policy()
    for i, image in enumerate(images):
        numbers = [float(pair)]
        for place in range(2):
            name, probability, _ = policy._policies[pair][place]
            chance = drawn[1 + place, i].item()
            numbers.append(chance)
            if chance < probability and policy._AUGMENTATION_SPACE[name][1]:
                numbers.append(0.0 if drawn[3 + place, i] else 1.0)
        queue = iter(numbers)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randint", lambda *_, queue=queue: torch.tensor(int(next(queue))))
            patch.setattr(torch, "rand", lambda *_, queue=queue: torch.tensor(next(queue)))
            wanted = policy(image)
        if policy._policies[pair][1][1] == 0.0 or policy._policies[pair][0][1] == 0.0:
            continue  # torchvision carries an operation of probability 0 out where it draws exactly 0
        assert torch.equal(found[i], wanted), (pair, i)


def test_policy_draws_all_pairs_chances_and_signs_evenly():
    drawn = draw_policy(25_000, generator=keyed(0))
    assert (drawn[0].long().bincount() - 1000).abs().max() < 160
    assert drawn[1:3].mean(1).tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    assert drawn[3:].mean(1).tolist() == pytest.approx([0.5, 0.5], abs=0.02)


def test_policy_gives_each_image_the_same_alone_and_does_not_write_into_what_it_is_given():
    images = photographs(40)
    before, drawn = images.clone(), draw_policy(40, generator=keyed(1))
    whole = auto_augment(images, drawn)
    alone = [auto_augment(images[i : i + 1], drawn[:, i : i + 1]) for i in range(40)]
    assert torch.equal(torch.cat(alone), whole)
    assert torch.equal(images, before)
    assert whole.dtype == torch.uint8
    assert 25 < sum(not torch.equal(a, b) for a, b in zip(images, whole, strict=True)) < 40


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 99),
    shape=st.sampled_from([(3, 1, 7, 7), (2, 3, 6, 9), (2, 4, 2, 8, 8)]),
    side=st.integers(1, 6),
)
def test_a_hole_is_a_square_around_its_centre_and_nothing_else_changes(seed, shape, side):
    B, C, (H, W) = shape[0], shape[-3], shape[-2:]
    images = torch.randint(100, 256, shape, generator=keyed(seed), dtype=torch.uint8)
    centres = draw_holes(B, generator=keyed(seed, 1), height=H, width=W)
    fill = torch.arange(C, dtype=torch.uint8)
    found = cutout(images, centres, side=side, fill=fill)
    for b, (row, column) in enumerate(centres.T.tolist()):
        wanted = images[b].clone()
        top, left = row - side // 2, column - side // 2
        rows, columns = slice(max(top, 0), max(top + side, 0)), slice(max(left, 0), max(left + side, 0))
        wanted[..., rows, columns] = fill[:, None, None]
        assert torch.equal(found[b], wanted)


def test_centres_of_holes_lie_everywhere_equally_often():
    rows, columns = draw_holes(14_000, generator=keyed(0), height=7, width=14)
    assert (rows.bincount() - 2000).abs().max() < 220
    assert (columns.bincount() - 1000).abs().max() < 160


def test_mixing_parts_follow_the_beta_distribution():
    parts = torch.tensor([draw_mix(2.0, 0, step) for step in range(4000)])
    assert parts.mean().item() == pytest.approx(0.5, abs=0.02)
    assert parts.var().item() == pytest.approx(1 / 20, rel=0.1)  # 1 / (4 (2 alpha + 1))
    assert draw_mix(2.0, 0, 5) == draw_mix(2.0, 0, 5) != draw_mix(2.0, 1, 5)
