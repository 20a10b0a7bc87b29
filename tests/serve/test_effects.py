"""What the page does to an image before the network sees it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from serve.ui.effects import BLUR, CONTRAST, NOISE, Effects, disturb


def within(most: float) -> st.SearchStrategy[float]:
    return st.floats(0, most)


EFFECTS = st.builds(Effects, noise=within(NOISE), blur=within(BLUR), contrast=within(CONTRAST))
SHAPES = st.tuples(st.sampled_from([1, 3]), st.integers(1, 12), st.integers(1, 12))


@st.composite
def images(draw: st.DrawFn) -> np.ndarray:
    """Images of noise, of all shapes: effects know nothing of what is shown."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.random(draw(SHAPES), np.float32)


@given(images(), EFFECTS)
def test_the_result_is_an_image_and_the_same_each_time(image: np.ndarray, effects: Effects) -> None:
    before = image.copy()
    result = disturb(image, effects)
    assert result.shape == image.shape
    assert result.dtype == np.float32
    assert result.min() >= 0
    assert result.max() <= 1
    assert np.array_equal(disturb(image, effects), result)
    assert np.array_equal(image, before)


def test_without_effects_the_image_is_the_very_same() -> None:
    image = np.random.default_rng(0).random((3, 8, 8), np.float32)
    assert disturb(image, Effects()) is image


@given(images(), within(BLUR))
def test_the_blur_is_that_of_scipy(image: np.ndarray, sigma: float) -> None:
    expected = ndimage.gaussian_filter(image.astype(np.float64), (0, sigma, sigma), mode="nearest")
    np.testing.assert_allclose(disturb(image, Effects(blur=sigma)), expected, atol=1e-6)


@given(SHAPES, within(1), within(BLUR), within(CONTRAST))
def test_a_plain_picture_stays_as_it_is(shape: tuple[int, int, int], grey: float, blur: float, contrast: float) -> None:
    image = np.full(shape, grey, np.float32)
    np.testing.assert_allclose(disturb(image, Effects(blur=blur, contrast=contrast)), image, atol=1e-6)


@given(st.integers(0, 2**32), within(1))
def test_blur_moves_light_and_takes_none(seed: int, sigma: float) -> None:
    """Where nothing is near the edge: beyond it, an edge goes on and would bring light of its own."""
    image = np.zeros((1, 20, 20), np.float32)
    image[:, 8:12, 8:12] = np.random.default_rng(seed).random((4, 4))
    assert disturb(image, Effects(blur=sigma)).mean() == pytest.approx(image.mean(), rel=1e-5)


@given(images(), within(BLUR))
def test_without_contrast_all_is_the_mean(image: np.ndarray, blur: float) -> None:
    np.testing.assert_allclose(disturb(image, Effects(contrast=0, blur=blur)), image.mean(), atol=1e-6)


@given(images(), within(CONTRAST))
def test_contrast_scales_the_distance_to_the_mean(image: np.ndarray, factor: float) -> None:
    dim = 0.4 + 0.2 * image  # far enough from black and white
    result = disturb(dim, Effects(contrast=factor))
    np.testing.assert_allclose(result - dim.mean(), factor * (dim - dim.mean()), atol=1e-6)


def test_noise_has_the_strength_that_was_asked_for() -> None:
    image = np.full((3, 64, 64), 0.5, np.float32)
    strong = disturb(image, Effects(noise=0.1)) - image
    assert strong.std() == pytest.approx(0.1, rel=0.03)
    assert abs(strong.mean()) < 0.003
    weak = disturb(image, Effects(noise=0.05)) - image
    np.testing.assert_allclose(2 * weak, strong, atol=1e-6)  # one field of noise, weaker or stronger
    blurred = disturb(image, Effects(noise=0.1, blur=2.0)) - image
    np.testing.assert_allclose(blurred, strong, atol=1e-6)  # noise comes after the lens


@pytest.mark.parametrize("value", [-0.01, 3.01, float("nan"), float("inf"), "1", None, True, [0.1]])
@pytest.mark.parametrize("name", ["noise", "blur", "contrast"])
def test_what_is_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a number from 0 to "):
        Effects(**{name: value})
