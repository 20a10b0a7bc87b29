"""Every configuration of training: frozen dataclasses that are the command line, the recipe schema and the record.

A key that no code reads does not belong here. Ranges are checked where the value is made, so a bad recipe fails
before anything is loaded.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from train.methods import METHODS, Method


RECIPES = Path(__file__).parent / "recipes"


def _positive(**values: float | int) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be greater than 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images."""

    name: str = "digits"
    """Data set: digits (embedded), cifar10, cifar100, folder (class folders of images)."""
    root: Path = field(default_factory=lambda: Path(os.environ.get("TSERVE_DATA", "data")))
    """Where data sets live; for `folder`, the folder that holds train/ and test/."""
    limit: int | None = None
    """Use only the first N training images (validation images are taken from these)."""
    val_fraction: float = 0.1
    """Part of the training images that is kept apart for validation, in [0, 0.5]."""
    augment: bool = True
    """Shift the training images at random, and mirror them where mirrored images keep their class."""
    size: int = 32
    """Side to which images are resized and cropped, pixels (`folder` only)."""
    download: bool = False
    """Fetch a missing data set through torchvision; says what and how large."""

    def __post_init__(self) -> None:
        _positive(**{"data.size": self.size})
        if self.limit is not None:
            _positive(**{"data.limit": self.limit})
        if not 0 <= self.val_fraction <= 0.5:
            raise ValueError(f"data.val_fraction must be in [0, 0.5], got {self.val_fraction}")


@dataclass(frozen=True, kw_only=True)
class NetConfig:
    """Which network. The same definition is the teacher (ReLU) and the student (LIF)."""

    name: str = "vgg_small"
    """Network: vgg_small, vgg11, vgg16, resnet18, resnet34."""
    spiking: bool = True
    """LIF neurons over T steps (a student) or ReLU (a teacher)."""
    T: int = 4
    """Time steps of a student, 1 to 64."""
    tau: float = 2.0
    """Membrane time constant in steps, greater than 1."""
    v_threshold: float = 1.0
    """Membrane potential at which a neuron fires, greater than 0."""
    v_reset: float = 0.0
    """Membrane potential after a spike (hard reset), below v_threshold."""
    decay_input: bool = True
    """Whether the input is divided by tau, as in the paper's Eq. 2."""
    surrogate: Literal["atan", "sigmoid"] = "atan"
    """Surrogate gradient of the spike: SpikingJelly's ATan(2) or Sigmoid(4)."""
    detach_reset: bool = True
    """Keep the reset out of the gradient."""
    width: float = 1.0
    """Multiplier of every hidden layer's channels."""
    in_channels: int = 1
    """Channels of an image; set from the data set."""
    size: int = 8
    """Side of an image in pixels; set from the data set."""
    num_classes: int = 10
    """Classes; set from the data set."""

    def __post_init__(self) -> None:
        _positive(**{"net.v_threshold": self.v_threshold, "net.width": self.width, "net.size": self.size})
        if not 1 <= self.T <= 64:
            raise ValueError(f"net.T must be in 1 to 64 time steps, got {self.T}")
        if not self.tau > 1:
            raise ValueError(f"net.tau must be greater than 1 step, got {self.tau}")
        if not self.v_reset < self.v_threshold:
            raise ValueError(f"net.v_reset ({self.v_reset}) must be below net.v_threshold ({self.v_threshold})")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How to train: SGD with Nesterov momentum, linear warm-up, cosine to zero."""

    epochs: int = 30
    """Passes over the training images."""
    batch_size: int = 128
    """Images of one step."""
    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum, in [0, 1)."""
    weight_decay: float = 5e-4
    """L2 penalty on convolution and linear weights; none on biases and normalisation."""
    warmup: float = 0.1
    """Part of all steps in which the learning rate rises linearly, in [0, 1)."""

    def __post_init__(self) -> None:
        _positive(**{"optim.epochs": self.epochs, "optim.batch_size": self.batch_size, "optim.lr": self.lr})
        for name, value in (("momentum", self.momentum), ("warmup", self.warmup)):
            if not 0 <= value < 1:
                raise ValueError(f"optim.{name} must be in [0, 1), got {value}")
        if self.weight_decay < 0:
            raise ValueError(f"optim.weight_decay must not be negative, got {self.weight_decay}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every training command has."""

    data: DataConfig = field(default_factory=DataConfig)
    net: NetConfig = field(default_factory=NetConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    out: Path | None = None
    """Folder of the run; default runs/NAME, NAME made of data, network, method, T and seed."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    resume: Literal["no", "auto"] = "no"
    """auto: continue from the run folder's state.pt if there is one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU where there is one."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the training step (mixed precision for bf16 and fp16)."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in 0 to 2^31 - 1, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(RunConfig):
    """Train an ANN (ReLU) that a student can be distilled from."""

    net: NetConfig = field(default_factory=lambda: NetConfig(spiking=False, width=2.0))


@dataclass(frozen=True, kw_only=True)
class DistillConfig(RunConfig):
    """Distil a spiking student from a teacher."""

    method: Method = METHODS["tser"]
    """How the student learns."""
    teacher: Path | None = None
    """Checkpoint of the teacher; without one a teacher is trained first."""
    teacher_width: float = 2.0
    """Width of that teacher: the student's network with ReLU and so many times the channels."""
    teacher_epochs: int = 20
    """Epochs of that teacher."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(teacher_width=self.teacher_width, teacher_epochs=self.teacher_epochs)
