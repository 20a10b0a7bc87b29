"""ResNets for small images, with the addition before the activation (membrane shortcut).

| network      | stem | stages                        | shortcut of another shape  | head                | parameters |
|--------------|------|-------------------------------|----------------------------|---------------------|------------|
| resnet18     | 64   | 64 x2, 128 x2, 256 x2, 512 x2 | 1x1 convolution, norm      | Linear              | 11,173,962 |
| resnet34     | 64   | 64 x3, 128 x4, 256 x6, 512 x3 | 1x1 convolution, norm      | Linear              | 21,282,122 |
| resnet20     | 16   | 16 x3, 32 x3, 64 x3           | 1x1 convolution, norm      | Linear              | 272,474    |
| resnet19_tet | 64   | 128 x3, 256 x3, 512 x2        | 1x1 convolution, norm      | Linear, LIF, Linear | 12,630,858 |
| resnet19_td  | 128  | 128 x3, 256 x3, 512 x2        | 1x1 convolution, norm      | Linear, LIF, Linear | 12,697,994 |
| resnet19_ckd | 128  | 128 x3, 256 x3, 512 x2        | average pooling, 1x1, norm | Linear, Linear      | 12,697,994 |

Parameters are those of 10 classes and 3 channels. Sources: He et al. 2016 (their ResNet-20 has a shortcut without
weights); resnet19_tet: Deng et al. 2022 (github.com/Gus-Lab/temporal_efficient_training); resnet19_td: Yu et al. 2025
(github.com/Intelli-Chip-Lab/snn_temporal_decoupling_distillation); resnet19_ckd: CKDSNN (AAAI 2026), whose last block
ends in a ReLU, in the student too, and whose two linear layers have nothing between them.
"""

from dataclasses import dataclass
from typing import Literal

from spikingjelly.activation_based import layer
from torch import Tensor, nn

from train.config import NetConfig
from train.networks.network import Network, NeuronLinear, Places, channels, conv_norm
from train.neurons import Add, activation


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one ResNet differs in from another; every stage but the first halves the image."""

    stem: int
    """Channels of the first convolution."""
    widths: tuple[int, ...]
    """Channels of each stage."""
    depths: tuple[int, ...]
    """Blocks of each stage."""
    head: Literal["linear", "neurons", "linears"] = "linear"
    """Linear(C, K), or Linear(C, 256) and Linear(256, K) with or without an activation between them."""
    pooled_shortcut: bool = False
    """Halve a shortcut by average pooling instead of the stride of its convolution."""
    relu_end: bool = False
    """The last activation is a ReLU in the student too."""


PLANS = {
    "resnet18": Plan(stem=64, widths=(64, 128, 256, 512), depths=(2, 2, 2, 2)),
    "resnet34": Plan(stem=64, widths=(64, 128, 256, 512), depths=(3, 4, 6, 3)),
    "resnet20": Plan(stem=16, widths=(16, 32, 64), depths=(3, 3, 3)),
    "resnet19_tet": Plan(stem=64, widths=(128, 256, 512), depths=(3, 3, 2), head="neurons"),
    "resnet19_td": Plan(stem=128, widths=(128, 256, 512), depths=(3, 3, 2), head="neurons"),
    "resnet19_ckd": Plan(
        stem=128, widths=(128, 256, 512), depths=(3, 3, 2), head="linears", pooled_shortcut=True, relu_end=True
    ),
}
HIDDEN = 256


class BasicBlock(nn.Module):
    """activation(norm(conv(activation(norm(conv(x))))) + shortcut(x)); the shortcut is x or a 1x1 conv and norm.

    The sum is a current into the second LIF, so a student's block passes on spikes and nothing else, unless relu_end.
    """

    def __init__(
        self, config: NetConfig, c_in: int, c_out: int, stride: int, *, pooled_shortcut: bool, relu_end: bool
    ) -> None:
        super().__init__()
        self.conv1 = conv_norm(c_in, c_out, 3, stride)
        self.act1 = activation(config)
        self.conv2 = conv_norm(c_out, c_out, 3, 1)
        self.shortcut = shortcut(c_in, c_out, stride, pooled=pooled_shortcut)
        self.add = Add()
        self.act2 = nn.ReLU() if relu_end else activation(config)
        for branch in (self.conv2, self.shortcut):
            if isinstance(branch, nn.Sequential):
                branch.get_submodule("norm").into_sum = True  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(self.add(self.conv2(self.act1(self.conv1(x))), self.shortcut(x)))


def shortcut(c_in: int, c_out: int, stride: int, *, pooled: bool = False) -> nn.Module:
    """What brings a block's input to the shape of its output: nothing, or a 1x1 convolution and its normalisation."""
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    if not pooled or stride == 1:
        return conv_norm(c_in, c_out, 1, stride)
    branch = nn.Sequential()
    branch.add_module("pool", layer.AvgPool2d(stride))
    for name, module in conv_norm(c_in, c_out, 1, 1).named_children():
        branch.add_module(name, module)
    return branch


def resnet(config: NetConfig) -> Network:
    """A ResNet of PLANS with a 3x3 stem and no first pooling.

    Raises ValueError for resnet19_ckd and a size that its pooled shortcuts cannot halve.
    """
    plan = PLANS[config.name]
    halvings = len(plan.widths) - 1
    if plan.pooled_shortcut and config.size % 2**halvings:
        raise ValueError(f"{config.name} halves an image twice: net.size must be a multiple of 4, got {config.size}")
    c_in, *widths = channels(config, plan.stem, *plan.widths)
    stem = conv_norm(config.in_channels, c_in, 3, 1)
    body = nn.Sequential()
    body.add_module("act", activation(config))
    for i, (c_out, depth) in enumerate(zip(widths, plan.depths, strict=True)):
        stage = nn.Sequential()
        for j in range(depth):
            last = i == halvings and j == depth - 1
            block = BasicBlock(
                config,
                c_in,
                c_out,
                stride=2 if i > 0 and j == 0 else 1,
                pooled_shortcut=plan.pooled_shortcut,
                relu_end=plan.relu_end and last,
            )
            stage.add_module(str(j), block)
            c_in = c_out
        body.add_module(f"layer{i + 1}", stage)
    stages = tuple(f"body.layer{i + 1}" for i in range(len(widths)))
    return Network(config, stem, body, Places(stages=stages, **add_head(body, config, c_in, kind=plan.head)))


def add_head(body: nn.Sequential, config: NetConfig, c_in: int, *, kind: str) -> dict[str, str]:
    """Append global average pooling and the classifier of a Plan; gives its part of the network's Places."""
    body.add_module("pool", layer.AdaptiveAvgPool2d((1, 1)))
    body.add_module("flatten", layer.Flatten())
    penultimate = "flatten"
    if kind != "linear":
        (hidden,) = channels(config, HIDDEN)
        body.add_module("hidden", NeuronLinear(c_in, hidden) if kind == "neurons" else layer.Linear(c_in, hidden))
        penultimate, c_in = "hidden", hidden
    if kind == "neurons":
        body.add_module("hidden_act", activation(config))
        penultimate = "hidden_act"
    body.add_module("classifier", layer.Linear(c_in, config.num_classes))
    return {"penultimate": f"body.{penultimate}", "classifier": "body.classifier"}
