"""Real images for calibration, verification and counting: those of the data set that a checkpoint was trained on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.checkpoint import Checkpoint
from train.evaluate import dataset_of


@dataclass(frozen=True, kw_only=True)
class RealImages:
    """Some images of one split: images float32 [N, C, H, W] in [0, 1], labels and their indices in the split [N]."""

    dataset: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray

    def describe(self) -> dict[str, object]:
        """Which images these are, as JSON types."""
        return {"dataset": self.dataset, "split": self.split, "indices": self.indices.tolist()}


def real_images(
    checkpoint: Checkpoint, *, split: str = "test", limit: int | None = None, root: Path | None = None
) -> RealImages:
    """The first `limit` images of a split ("train", "val", "test"; all if None), read under `root`.

    Raises ValueError or OSError, with the command that gets the data, where the data set is not there.
    """
    dataset = dataset_of(checkpoint, root=root)
    part = getattr(dataset, split)
    if not len(part.labels):
        raise ValueError(f"the {split} split of {dataset.name} is empty")
    return RealImages(
        dataset=dataset.name,
        split=split,
        images=part.images[:limit].numpy().astype(np.float32) / np.float32(255),
        labels=part.labels[:limit].numpy(),
        indices=part.indices[:limit].numpy(),
    )
