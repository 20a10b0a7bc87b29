"""Fig. 5 as numbers: how well the classes lie apart in what a network's classifier reads."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np


IMAGES = 1000
NEIGHBOURS = 10


def embedding(student: Path, teacher: Path | None, seed: int, data_root: Path | None = None) -> dict[str, Any]:
    """Measures of a student's features and, as "teacher_..", of its teacher's; with seed 0 also their places."""
    measures = measured(student, data_root, shown=seed == 0)
    if teacher is None:
        return measures
    theirs = measured(teacher, data_root, shown=seed == 0)
    return measures | {f"teacher_{name}": value for name, value in theirs.items()}


@lru_cache(maxsize=2)
def measured(checkpoint: Path, data_root: Path | None, *, shown: bool) -> dict[str, Any]:
    """Measures of the features of the first test images; `shown`: also their places by t-SNE, and their labels.

    The feature of an image is the classifier's input, the mean over T of a student's. silhouette: mean silhouette
    coefficient of the true classes in [-1, 1] (Rousseeuw 1987), by cosine distance; neighbours: accuracy of the
    majority of the NEIGHBOURS nearest other images.
    """
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors

    x, labels = features(checkpoint, data_root)
    nearest = NearestNeighbors(n_neighbors=NEIGHBOURS, metric="cosine").fit(x).kneighbors(return_distance=False)
    answers = np.array([np.bincount(labels[others]).argmax() for others in nearest])
    numbers = {
        "silhouette": float(silhouette_score(x, labels, metric="cosine")),
        "neighbours": float((answers == labels).mean()),
    }
    if not shown:
        return numbers
    places = TSNE(2, metric="cosine", init="random", random_state=0, perplexity=min(30, len(x) // 4)).fit_transform(x)
    return numbers | {"tsne": np.round(places, 2).astype(float).tolist(), "labels": labels.tolist()}


def features(checkpoint: Path, data_root: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What the classifier reads of the first test images, [N, D], and their labels [N]; read under `data_root`."""
    import torch

    from train.checkpoint import Checkpoint
    from train.data import batches
    from train.evaluate import dataset_of
    from train.features import Observed

    found = Checkpoint.load(checkpoint)
    split = dataset_of(found, root=data_root).test
    split = split.take(torch.arange(min(IMAGES, len(split))))
    network = found.network()
    observed = Observed(network, (network.places.penultimate,))
    rows = []
    with torch.no_grad():
        for images, _ in batches(split, 100):
            _, seen = observed(found.preprocess(images))
            feature = seen[network.places.penultimate]
            rows.append(feature.mean(0) if found.net.spiking else feature)
    return torch.cat(rows).flatten(1).numpy(), split.labels.numpy()
