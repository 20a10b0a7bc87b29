"""What several seeds say: means, and differences of students that share their seeds."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any


CONFIDENCE = 0.95


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation (None for one value)."""
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else None}


def paired(values: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    """Mean of the differences seed by seed, their standard deviation, and the 95 % confidence interval of their mean
    by Student's t with n - 1 degrees of freedom (None for one seed)."""
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    found = spread(differences)
    if found["std"] is None:
        return {**found, "interval": None}
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * found["std"] / len(differences) ** 0.5
    return {**found, "interval": [found["mean"] - half, found["mean"] + half]}
