"""A network, a method and a data set of your own, from the first step to a server and a chip:

TSERVE_PLUGINS=docs/own.py python -m train.distill --net.name separable --method.name mse --data.name parity
TSERVE_PLUGINS=docs/own.py python -m export.bundle runs/latest/student.pt
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spikingjelly.activation_based import layer
from torch import nn

from train.config import DataConfig, NetConfig
from train.data import DATASETS, Dataset, Split
from train.methods import METHODS, Method, Outputs
from train.methods.base import check_weight, cross_entropy, logits_of
from train.networks import NETWORKS, Network, Places
from train.networks.network import conv_norm
from train.neurons import Add, activation


if TYPE_CHECKING:
    from torch import Tensor


class Separable(nn.Module):
    """A depthwise and a pointwise convolution, added to what came in before the neurons: a membrane shortcut.

    `activation` gives neurons in a student and a ReLU in a teacher, so this class is a part of both.
    """

    def __init__(self, config: NetConfig, channels: int) -> None:
        super().__init__()
        self.depthwise = layer.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = layer.BatchNorm2d(channels)
        self.act = activation(config)
        self.pointwise = conv_norm(channels, channels, 1, 1)
        self.add = Add()
        self.out = activation(config)

    def forward(self, x: Tensor) -> Tensor:
        """Values are [T, B, C, H, W] in a student, [B, C, H, W] in a teacher; layers of SpikingJelly take both."""
        return self.out(self.add(self.pointwise(self.act(self.norm(self.depthwise(x)))), x))


def separable(config: NetConfig) -> Network:
    """Two such blocks, halved between them. The stem sees an image once, before there is time; the body begins with the
    first neurons and ends in the logits."""
    width = round(16 * config.width)
    stem = conv_norm(config.in_channels, width, 3, 1)
    body = nn.Sequential(
        activation(config),
        Separable(config, width),
        conv_norm(width, width, 3, stride=2),
        activation(config),
        Separable(config, width),
        layer.Flatten(),
        layer.Linear(width * ((config.size + 1) // 2) ** 2, config.num_classes),
    )
    # Where methods find features: the last output at each resolution, what the classifier reads, and the classifier.
    return Network(config, stem, body, Places(stages=("body.1", "body.4"), penultimate="body.5", classifier="body.6"))


@dataclass(frozen=True, kw_only=True)
class MSE(Method):
    """Every step's logits drawn to the teacher's by their mean squared difference. Its fields are flags."""

    name: str = "mse"
    alpha: float = 0.5
    """Weight of the teacher against the label, in [0, 1]."""

    def __post_init__(self) -> None:
        check_weight("method.alpha", self.alpha, 0, 1)

    def loss(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        ce = cross_entropy(student.logits, target)
        mse = (student.logits - logits_of(teacher, self.name)).square().mean()
        return {"ce": ce, "mse": mse, "total": (1 - self.alpha) * ce + self.alpha * mse}


def parity(config: DataConfig) -> Dataset:
    """The embedded digits as even and odd."""
    digits = DATASETS["digits"](config)

    def relabelled(split: Split) -> Split:
        return dataclasses.replace(split, labels=split.labels % 2)

    splits = {name: relabelled(getattr(digits, name)) for name in ("train", "val", "test")}
    return dataclasses.replace(digits, name="parity", classes=("even", "odd"), **splits)


NETWORKS["separable"] = separable
METHODS["mse"] = MSE()
DATASETS["parity"] = parity
