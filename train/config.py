"""Every configuration of training: frozen dataclasses that are the command line, the recipe schema and the record.

A key that no code reads does not belong here. Ranges are checked where the value is made, so a bad recipe fails
before anything is loaded.
"""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from tyro.conf import Fixed, Suppress

from train.methods import METHODS, Method


RECIPES = Path(__file__).parent / "recipes"

Value = TypeVar("Value")
FromElsewhere = Annotated[Value, Fixed, Suppress]
"""What the command or the data set decides: no flag, which would be overwritten without a word."""


def _positive(**values: float | int) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be greater than 0, got {value}")
        if math.isinf(value):
            raise ValueError(f"{name} must be finite, got {value}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images."""

    name: str = "digits"
    """Data set: digits (embedded), mnist, fashion_mnist, cifar10, cifar100, folder (class folders of images), or
    recordings of events: cifar10_dvs, dvs_gesture; or one of your own (TSERVE_PLUGINS)."""
    root: Path = field(default_factory=lambda: Path(os.environ.get("TSERVE_DATA", "data")))
    """Where data sets live; for `folder`, the folder that holds train/ and test/."""
    limit: int | None = None
    """Use only the first N training images (validation images are taken from these)."""
    val_fraction: float = 0.1
    """Part of the training images that is kept apart for validation, in [0, 0.5]."""
    augment: bool = True
    """Shift the training images at random, and mirror them where mirrored images keep their class."""
    alternate_flip: bool = False
    """Mirror each image in every other epoch instead of at random (Jordan 2024, airbench)."""
    auto_augment: bool = False
    """Apply AutoAugment's policy for CIFAR-10 to the training images, after shifting and mirroring (Cubuk et al. 2019;
    torchvision's operations)."""
    cutout: int = 0
    """Side in pixels of a square hole in every training image, filled with the data set's mean (DeVries and Taylor
    2017); 0: none."""
    mixup: float = 0.0
    """Mix pairs of training images and their labels by a part from Beta(alpha, alpha), one for a batch (Zhang et al.
    2018); this is alpha, 0: do not mix."""
    size: int | None = None
    """Side in pixels to which images of `folder` are resized and cropped (default 32), and to which recordings of
    events are summed down (default 48)."""
    frames: int = 4
    """Frames to which a recording of events is counted, each of the same number of events; one for each time step."""
    stream: bool = False
    """Decode the images of `folder` when a step needs them and train on random resized crops, instead of keeping all in
    memory: for ImageNet."""
    workers: int = 4
    """Processes that decode images ahead of the step, with data.stream; 0: the training process does it."""
    download: bool = False
    """Fetch a missing data set through torchvision or SpikingJelly; says what and how large."""

    def __post_init__(self) -> None:
        _positive(**{"data.frames": self.frames})
        if self.size is not None:
            _positive(**{"data.size": self.size})
        for name in ("cutout", "mixup", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} must not be negative, got {getattr(self, name)}")
        if self.limit is not None:
            _positive(**{"data.limit": self.limit})
        if self.alternate_flip and not self.augment:
            raise ValueError("data.alternate_flip mirrors augmented images: it needs data.augment")
        if not 0 <= self.val_fraction <= 0.5:
            raise ValueError(f"data.val_fraction must be in [0, 0.5], got {self.val_fraction}")


@dataclass(frozen=True, kw_only=True)
class NetConfig:
    """Which network. The same definition is the teacher (ReLU) and the student (LIF)."""

    name: str = "vgg_small"
    """Network: vgg_small, vgg11, vgg16, resnet18, resnet34, resnet20, resnet19_tet, resnet19_td, resnet19_ckd,
    sew_resnet18, sew_resnet34; sj:NAME, a model of SpikingJelly's zoo; or one of your own (TSERVE_PLUGINS)."""
    spiking: FromElsewhere[bool] = True
    """LIF neurons over T steps (a student) or ReLU (a teacher)."""
    T: int = 4
    """Time steps of a student, 1 to 64."""
    tau: float = 2.0
    """Membrane time constant in steps, greater than 1."""
    v_threshold: float = 1.0
    """Membrane potential at which a neuron fires, greater than 0."""
    v_reset: float = 0.0
    """Membrane potential at rest and after a hard reset, below v_threshold."""
    reset: Literal["hard", "soft"] = "hard"
    """After a spike the membrane is set to v_reset (hard) or lowered by v_threshold (soft; it rests at 0)."""
    neuron: Literal["lif", "plif", "if"] = "lif"
    """LIF with the time constant tau; PLIF, whose layers learn theirs from tau on (Fang et al. 2021); or IF, which does
    not leak and has no tau and no decay_input."""
    decay_input: bool = True
    """Whether the input is divided by tau, as in the paper's Eq. 2."""
    surrogate: Literal["atan", "sigmoid", "triangle", "rect"] = "atan"
    """Surrogate gradient of the spike: SpikingJelly's ATan(2), Sigmoid(4), PiecewiseQuadratic(1) or Rect(1)."""
    detach_reset: bool = True
    """Keep the reset out of the gradient."""
    norm: Literal["drive", "tdbn", "bn"] = "drive"
    """Where a student's normalisation weights start: at the drive that makes a neuron fire at once; at v_threshold,
    before a residual sum v_threshold / sqrt(2) (tdBN, Zheng et al. 2021); or at 1."""
    pool: Literal["avg", "max"] = "avg"
    """Pooling after the activations of vgg11 and vgg16."""
    width: float = 1.0
    """Multiplier of every hidden layer's channels."""
    in_channels: FromElsewhere[int] = 1
    """Channels of an image; set from the data set."""
    size: FromElsewhere[int] = 8
    """Side of an image in pixels; set from the data set."""
    num_classes: FromElsewhere[int] = 10
    """Classes; set from the data set."""
    event: FromElsewhere[bool] = False
    """Whether inputs are event frames [T, B, C, H, W]; set from the data set."""

    def __post_init__(self) -> None:
        _positive(**{"net.v_threshold": self.v_threshold, "net.width": self.width, "net.size": self.size})
        if not 1 <= self.T <= 64:
            raise ValueError(f"net.T must be in 1 to 64 time steps, got {self.T}")
        if not self.tau > 1:
            raise ValueError(f"net.tau must be greater than 1 step, got {self.tau}")
        if not self.v_reset < self.v_threshold:
            raise ValueError(f"net.v_reset ({self.v_reset}) must be below net.v_threshold ({self.v_threshold})")
        if self.neuron == "if" and (self.tau != 2 or not self.decay_input):
            raise ValueError(
                "net.tau and net.decay_input are of neurons that leak; with net.neuron if leave them as they are "
                f"(tau 2, decay_input True), got {self.tau:g} and {self.decay_input}"
            )
        if self.reset == "soft" and self.v_reset != 0:
            raise ValueError(f"net.v_reset is for net.reset hard; with soft it must stay 0, got {self.v_reset}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How to train: one optimizer, linear warm-up, cosine to zero."""

    optimizer: Literal["sgd", "muon"] = "sgd"
    """SGD with Nesterov momentum; muon takes the body's convolutions by Muon and the rest by SGD."""
    epochs: int = 30
    """Passes over the training images."""
    batch_size: int = 128
    """Images of one step, over all devices together."""
    lr: float = 0.1
    """Peak learning rate."""
    muon_lr: float = 0.02
    """Peak learning rate of what Muon trains (optimizer muon only)."""
    momentum: float = 0.9
    """Momentum, in [0, 1)."""
    weight_decay: float = 5e-4
    """L2 penalty on convolution and linear weights; none on biases and normalisation."""
    warmup: float = 0.1
    """Part of all steps in which the learning rate rises linearly, in [0, 1)."""
    ema: float = 0.0
    """Decay of a moving average of the weights, in [0, 1); 0: none. The average is what is measured and kept, its
    normalisation statistics estimated anew on training images."""

    def __post_init__(self) -> None:
        _positive(**{"optim.epochs": self.epochs, "optim.batch_size": self.batch_size, "optim.lr": self.lr})
        _positive(**{"optim.muon_lr": self.muon_lr})
        for name, value in (("momentum", self.momentum), ("warmup", self.warmup), ("ema", self.ema)):
            if not 0 <= value < 1:
                raise ValueError(f"optim.{name} must be in [0, 1), got {value}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"optim.weight_decay must be finite and not negative, got {self.weight_decay}")


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
    save_steps: int = 0
    """Save the state also after every so many steps; 0: not by steps. It is always saved after an epoch."""
    save_minutes: float = 10.0
    """Save the state also when so many minutes have passed; 0: not by time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU where there is one."""
    devices: int = 1
    """Devices (processes) on this machine that share every batch; torchrun's number wins."""
    nodes: int = 1
    """Machines that take part; torchrun's number wins. Without it each needs NODE_RANK, MASTER_ADDR and MASTER_PORT."""
    sync_bn: bool = False
    """Take normalisation statistics over the batches of all devices."""
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    """Arithmetic of the training step: mixed for bf16 and fp16 (membranes stay in fp32); fp64 for proofs."""
    engine: Literal["auto", "plain", "fused", "compiled"] = "auto"
    """How a student's step is computed: plain (SpikingJelly's modules), fused (normalisation and LIF in one pass, CPU)
    or compiled (torch.compile, teachers too); auto takes fused on a CPU and plain elsewhere."""
    channels_last: bool = True
    """Keep images and weights in channels-last order."""
    compress_spikes: bool = False
    """Keep spikes for the way back as bytes: less memory, a little slower."""
    checkpoint_segments: int = 0
    """Keep only what stands between so many segments of a student and compute the rest twice; 0: keep all."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in 0 to 2^31 - 1, got {self.seed}")
        _positive(devices=self.devices, nodes=self.nodes)
        for name in ("save_steps", "save_minutes", "checkpoint_segments"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(RunConfig):
    """Train an ANN (ReLU) that a student can be distilled from."""

    net: NetConfig = field(default_factory=lambda: NetConfig(spiking=False, width=2.0))
    label_smoothing: float = 0.0
    """Part of the target that is spread over all classes, in [0, 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(RunConfig):
    """Distil a spiking student from a teacher."""

    method: Method = METHODS["tser"]
    """How the student learns."""
    teacher: Path | None = None
    """Checkpoint of the teacher, or torchvision:NAME with ImageNet's weights, or torchvision:NAME@FILE; without one a
    teacher is trained first."""
    teacher_width: float = 2.0
    """Width of that teacher: the student's network with ReLU and so many times the channels."""
    teacher_epochs: int = 20
    """Epochs of that teacher."""
    init_from_teacher: bool = False
    """Start from the teacher's weights; needs a teacher of the student's own network and width."""
    grow_T: float = 0.0
    """Part of all steps in which the student runs 1, 2, .. net.T - 1 time steps in turn, in [0, 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.grow_T < 1:
            raise ValueError(f"grow_T must be in [0, 1), got {self.grow_T}")
        if self.init_from_teacher and self.teacher is None and self.teacher_width != 1:
            raise ValueError(
                f"init_from_teacher needs a teacher of the student's width: set teacher_width to 1 (it is "
                f"{self.teacher_width}) or give a teacher"
            )
        if self.init_from_teacher and self.net.neuron != "lif":
            raise ValueError(f"init_from_teacher is for net.neuron lif, got {self.net.neuron}")
        _positive(teacher_width=self.teacher_width, teacher_epochs=self.teacher_epochs)
