"""One training run: its folder, its network and what it writes; shared by teachers and students."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from train import cli, loop, parallel, record
from train.checkpoint import Checkpoint, CheckpointError, Preprocess
from train.config import NetConfig, RunConfig
from train.data import Dataset
from train.metrics import run_split, summary
from train.networks import Network, build
from train.state import differences


# Settings that may change on the way. The loss is the same function under all of them; rounding differs and, with
# several devices and no sync_bn, the images that a normalisation sees.
NOT_IDENTITY = {
    *("out", "resume", "save_steps", "save_minutes", "teacher"),
    *("device", "devices", "nodes", "engine", "channels_last", "compress_spikes", "checkpoint_segments"),
}


# What other commands write beside a student, of the student that is there then.
DERIVED = (
    *("bundle", "evaluate.json", "student.onnx", "student.int8.onnx", "student.step.onnx", "student.net"),
    *("student.nir", "energy.json", "verify.json"),
)


def fit_to(dataset: Dataset, net: NetConfig) -> NetConfig:
    """The network's settings with the data set's channels, size and classes, for images or for recordings of events.

    Raises ValueError for a student that does not take a step for each of a recording's frames.
    """
    if dataset.frames is not None and net.spiking and dataset.frames != net.T:
        raise ValueError(
            f"{dataset.name} has {dataset.frames} frames a recording and the student takes {net.T} time steps, which "
            f"must be the same: set --net.T {dataset.frames} or --data.frames {net.T}"
        )
    return dataclasses.replace(
        net,
        in_channels=dataset.channels,
        size=dataset.size,
        num_classes=len(dataset.classes),
        event=dataset.frames is not None,
    )


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is about to start; config.out and config.net are resolved."""

    config: RunConfig
    dataset: Dataset
    title: str
    teacher_sha256: str | None = None
    """Of the teacher's file: what a student learned from counts, not where it lies."""

    @property
    def out(self) -> Path:
        """The run's folder."""
        assert self.config.out is not None
        return self.config.out

    @cached_property
    def preprocess(self) -> Preprocess:
        """How this run's network wants its images."""
        return Preprocess(mean=self.dataset.mean, std=self.dataset.std, size=self.dataset.size)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All settings that shape the result, and the data's fingerprint; equal identities give equal networks, to
        rounding where NOT_IDENTITY differs."""
        settings = {k: v for k, v in cli.to_dict(self.config).items() if k not in NOT_IDENTITY}
        settings["data"] = {k: v for k, v in settings["data"].items() if k not in ("root", "download", "workers")}
        return {"settings": settings, "dataset_md5": dict(self.dataset.md5), "teacher_sha256": self.teacher_sha256}

    def refuse_to_replace(self, file_name: str) -> None:
        """Raise ValueError if the folder holds a finished checkpoint of other settings, other data or, where ours is
        known, another teacher: it is a result, and what was exported of it lies beside it."""
        path = self.out / file_name
        try:
            theirs = Checkpoint.load(path).provenance.get("identity") if path.exists() else None
        except CheckpointError:
            return  # no loss
        ours = {key: value for key, value in self.identity.items() if key != "teacher_sha256" or value is not None}
        if theirs and (differing := differences({key: theirs.get(key) for key in ours}, ours)):
            raise ValueError(
                f"{path} belongs to another run: {'; '.join(differing)}. Give another --out, or move that folder away"
            )

    def train(
        self,
        step: loop.Step,
        file_name: str,
        *,
        prepare: Callable[[Network], nn.Module] = lambda network: network,
        before_step: Callable[[Network, float], None] = lambda network, done: None,
        extra: Mapping[str, Any] | None = None,
    ) -> tuple[Path, dict[str, Any]]:
        """Build, train, measure on the test split once, and write checkpoint and run.json.

        prepare: may change the fresh network, and gives what is trained: the network or a module around it.
        before_step: see `loop.fit`.
        Returns the checkpoint's path and its metrics, `extra` ones among them, when the files are written.
        Raises ValueError where another process trains in the same folder, and what `loop.fit` raises.
        """
        with record.only_writer(self.out) if parallel.starts_as_main() else nullcontext():
            began = time.time()
            torch.manual_seed(self.config.seed)
            network = build(self.config.net)
            history = loop.fit(
                network,
                step,
                model=prepare(network),
                dataset=self.dataset,
                preprocess=self.preprocess,
                config=self.config,
                identity=self.identity,
                out=self.out,
                title=self.title,
                before_step=lambda done: before_step(network, done),
            )
            network.float()  # of fp64
            device = next(network.parameters()).device
            metrics = {
                **summary(run_split(network, self.dataset.test, self.preprocess, device=device)),
                **(extra or {}),
            }
            provenance = record.circumstances(
                config=cli.to_dict(self.config),
                seed=self.config.seed,
                dataset_md5=self.dataset.md5,
                device=str(device),
            )
            checkpoint = Checkpoint(
                net=self.config.net,
                weights=network.state_dict(),
                preprocess=self.preprocess,
                labels=self.dataset.classes,
                metrics=metrics,
                provenance=provenance | {"identity": self.identity},
            )
            path = self.out / file_name
            if parallel.is_main():
                if path.exists() and (old := [name for name in DERIVED if (self.out / name).exists()]):
                    parallel.say(f"note: {', '.join(old)} in {self.out}: made of the {self.title} before; make anew")
                checkpoint.save(path)
                record.write_json(
                    self.out / "run.json",
                    {**provenance, "seconds": time.time() - began, "metrics": metrics, "history": history},
                )
            parallel.barrier()
            return path, metrics
