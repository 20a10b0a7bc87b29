"""digits: 1,797 scans of handwritten digits, 8 x 8 pixels, that come with scikit-learn (UCI, Alpaydin and Kaynak 1998).

Real data without a download. scikit-learn has the UCI test set only, without a split: 20 % of every class are kept
for the test, chosen once by a fixed seed. The same writers are in both parts.
"""

from hashlib import md5

import numpy as np
import torch

from train.config import DataConfig
from train.datasets.dataset import Dataset, Split, check_limit, train_and_val


TEST_FRACTION = 0.2

# Measured once on the 1,438 training images; a test measures them again.
MEAN, STD = (0.30582,), (0.37640,)


def load(config: DataConfig) -> Dataset:
    """digits, with its scans' grey levels 0 to 16 as 0 to 255. `Split.indices` count in scikit-learn's order."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = np.round(raw.images * (255 / 16)).astype(np.uint8)[:, None]  # [N, 1, 8, 8]
    labels = raw.target.astype(np.int64)
    test = _test_rows(labels)
    everything = Split(
        images=torch.from_numpy(images), labels=torch.from_numpy(labels), indices=torch.arange(len(labels))
    )
    published = everything.take(torch.from_numpy(np.flatnonzero(~test)))
    check_limit(config, len(published), "digits")
    train, val = train_and_val(published, config)
    return Dataset(
        name="digits",
        train=train,
        val=val,
        test=everything.take(torch.from_numpy(np.flatnonzero(test))),
        classes=tuple("0123456789"),
        mean=MEAN,
        std=STD,
        size=8,
        channels=1,
        mirror=False,
        md5={"digits": md5(images.tobytes() + labels.tobytes(), usedforsecurity=False).hexdigest()},
    )


def _test_rows(labels: np.ndarray) -> np.ndarray:
    """Which images are test images, bool [N]: TEST_FRACTION of every class, rounded."""
    random = np.random.RandomState(0)  # its stream is guaranteed for good
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        test[rows[: round(TEST_FRACTION * len(rows))]] = True
    return test
