"""The state of a run on disk: everything that the next step depends on, whole or absent, and only for the same run."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from train.errors import Diverged
from train.record import atomic


STATE_FORMAT = 3


@dataclass(kw_only=True)
class Progress:
    """How far a run is."""

    step: int = 0
    """Steps that are done, over all epochs; order and augmentation are functions of the seed and of this number."""
    losses: dict[str, float] = field(default_factory=dict)
    """Sums of the loss terms over the steps of the current epoch."""
    seconds: float = 0.0
    """Training time of the current epoch so far."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One record per finished epoch."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What is saved: every part has state_dict() and load_state_dict()."""

    path: Path
    identity: dict[str, Any]
    """The settings that shape the result; a state of others is refused."""
    parts: dict[str, Any]

    def save(self, progress: Progress) -> None:
        """Write the state, whole or not at all, and through to the disk.

        Raises OSError where it cannot be written and Diverged as `check`; the state before is kept then.
        """
        self.check(progress)
        content = {
            "format": STATE_FORMAT,
            "identity": self.identity,
            "progress": vars(progress),
            "random": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()},
            **{name: part.state_dict() for name, part in self.parts.items()},
        }
        try:
            with atomic(self.path) as new:
                torch.save(content, new)
                with new.open("rb") as file:
                    os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
            free = shutil.disk_usage(self.path.parent).free / 1e6
            raise OSError(
                f"{self.path}: could not be written ({free:,.0f} MB free there: {error}). {self.kept()}"
            ) from error

    def check(self, progress: Progress) -> None:
        """Raise Diverged for a network that is not finite."""
        if bad := not_finite(self.parts["model"]):
            raise Diverged(
                f"{bad[0]} holds a value that is not finite after step {progress.step}; start anew with a smaller "
                f"--optim.lr and another --out. {self.kept()}, with that rate"
            )

    def kept(self) -> str:
        """What there is to go on from, as a sentence."""
        if not self.path.exists():
            return "No state of this run was saved yet"
        return f"The state saved last is kept in {self.path}; --resume goes on from it"

    def load(self) -> Progress:
        """Put every part back. Raises ValueError for a state that is damaged, newer, or another run's."""
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            version, stored = content["format"], content["identity"]
        except Exception as error:  # whatever a foreign file provokes in the reader
            raise ValueError(f"{self.path}: not a training state, or a damaged one; remove it to start anew") from error
        if version != STATE_FORMAT:
            raise ValueError(
                f"{self.path}: training state of format {version!r}; this version reads {STATE_FORMAT}. "
                "Go on with the version of TSERve that wrote it, or remove the file to start anew"
            )
        if differing := differences(stored, self.identity):
            raise ValueError(
                f"{self.path} belongs to another run: {'; '.join(differing)}. Give another --out, or no --resume"
            )
        for name, part in self.parts.items():
            part.load_state_dict(content[name])
        torch.set_rng_state(content["random"]["cpu"])
        if len(content["random"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(content["random"]["cuda"])
        return Progress(**content["progress"])


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The keys in which two nested settings differ, each with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for key in keys for d in differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == new else [f"{path} was {old!r}, is {new!r}"]


def not_finite(network: nn.Module) -> list[str]:
    """Names of the parameters and statistics that hold NaN or infinity."""
    return [name for name, value in network.state_dict().items() if not bool(value.isfinite().all())]
