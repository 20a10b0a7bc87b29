"""A training run of a second, for tests of what a run does besides learning."""

import dataclasses
from pathlib import Path
from typing import Any

from train.config import DataConfig, DistillConfig, NetConfig, OptimConfig
from train.methods import METHODS


def quick(out: Path, *, epochs: int = 1, **changes: Any) -> DistillConfig:
    """A student without a teacher on 300 digits: under a second an epoch."""
    config = DistillConfig(
        data=DataConfig(limit=300),
        net=NetConfig(width=0.25, T=2),
        optim=OptimConfig(epochs=epochs, batch_size=64),
        method=METHODS["ce"],
        out=out,
    )
    return dataclasses.replace(config, **changes)
