"""Disturb an image before the network sees it: less or more contrast, blur, noise.

Shapes: C channels, H rows, W columns.
"""

from dataclasses import dataclass

import numpy as np


NOISE, BLUR, CONTRAST = 0.5, 3.0, 2.0
"""The most that may be asked for; the least is 0."""
_SEED = 0
_TRUNCATE = 4  # the kernel ends after so many sigmas


@dataclass(frozen=True, kw_only=True)
class Effects:
    """How an image is disturbed; by default not at all. Raises ValueError for what is out of range."""

    noise: float = 0.0
    """Standard deviation of Gaussian noise, in [0, 0.5]; the image lies in [0, 1]."""
    blur: float = 0.0
    """Sigma of a Gaussian, in pixels of the network's image, in [0, 3]."""
    contrast: float = 1.0
    """Factor on the distance to the image's mean, in [0, 2]."""

    def __post_init__(self) -> None:
        for name, most in (("noise", NOISE), ("blur", BLUR), ("contrast", CONTRAST)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:  # NaN too
                raise ValueError(f"{name} must be a number from 0 to {most:g}, got {str(value)[:40]!r}")


def disturb(image: np.ndarray, effects: Effects) -> np.ndarray:
    """Give the disturbed image, float32 [C, H, W] in [0, 1] as `image` is; with no effect set, `image` itself.

    In the order of a camera: the light (contrast), the lens (blur), the sensor (noise, then the ends of its range).
    Noise that came before the blur would be blurred away, and would not have the strength that was asked for. The noise
    is the same each time, and only its strength changes: a link shows everybody the same picture.
    """
    if effects == Effects():
        return image
    result = image.astype(np.float64)
    if effects.contrast != 1:
        mean = result.mean()
        result = mean + effects.contrast * (result - mean)
    if effects.blur:
        result = _blurred(_blurred(result, effects.blur, axis=1), effects.blur, axis=2)
    if effects.noise:
        # Not default_rng: only of RandomState is it promised that the numbers stay the same in later versions of numpy.
        result = result + effects.noise * np.random.RandomState(_SEED).standard_normal(image.shape)
    return np.clip(result, 0, 1).astype(np.float32)


def _blurred(image: np.ndarray, sigma: float, *, axis: int) -> np.ndarray:
    """Blur along one axis; beyond the edge, the image goes on as its last pixel."""
    radius = int(_TRUNCATE * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    around = [(radius, radius) if i == axis else (0, 0) for i in range(image.ndim)]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(image, around, mode="edge"), len(kernel), axis=axis)
    return windows @ (kernel / kernel.sum())
