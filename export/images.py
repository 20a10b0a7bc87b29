"""Real images for calibration, verification and counting: those of the data set that a checkpoint was trained on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.checkpoint import Checkpoint
from train.data import time_first
from train.evaluate import dataset_of


@dataclass(frozen=True, kw_only=True)
class RealImages:
    """Some images of one split with their labels.

    Of a data set of events they are recordings, and the time axis stands first, as a student and `reference.run` take
    them: what holds for both kinds goes through `len` and `batch`.
    """

    dataset: str
    split: str
    images: np.ndarray
    """float32 [N, C, H, W] in [0, 1]; of events [T, N, C, H, W], counts / 255."""
    labels: np.ndarray
    """Class indices [N]."""
    indices: np.ndarray
    """Where each stands in the split that the data set was published with, [N]."""

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: slice) -> np.ndarray:
        """Some of the images, [B, C, H, W] or [T, B, C, H, W]."""
        return self.images[:, rows] if self.images.ndim == 5 else self.images[rows]

    def describe(self) -> dict[str, object]:
        """Which images these are, as JSON types."""
        return {"dataset": self.dataset, "split": self.split, "indices": self.indices.tolist()}


def real_images(
    checkpoint: Checkpoint, *, split: str = "test", limit: int | None = None, root: Path | None = None
) -> RealImages:
    """The first `limit` images or recordings of a split ("train", "val", "test"; all if None), read under `root`.

    Raises ValueError or OSError, with the command that gets the data, where the data set is not there.
    """
    # Scales may be chosen on images that are new; images of "val" must not be among those that it was trained on.
    dataset = dataset_of(checkpoint, root=root, split="val" if split == "val" else "test")
    part = getattr(dataset, split)
    if not len(part.labels):
        raise ValueError(f"the {split} split of {dataset.name} is empty")
    return RealImages(
        dataset=dataset.name,
        split=split,
        images=time_first(part.images[:limit]).numpy().astype(np.float32) / np.float32(255),
        labels=part.labels[:limit].numpy(),
        indices=part.indices[:limit].numpy(),
    )
