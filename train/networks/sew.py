"""SEW-ResNets for ImageNet (Fang et al. 2021): a block adds the spikes of its two branches.

Stem: 7x7 convolution of stride 2, activation, 3x3 maximum pooling of stride 2; four stages of 64, 128, 256 and 512
channels. A block passes on 0, 1, 2 .., so the layer after it does not read spikes. Parameters for 10 classes and 3
channels: sew_resnet18 11,181,642, sew_resnet34 21,289,802 (with 1,000 classes those of torchvision's resnet18 and
resnet34).
"""

from spikingjelly.activation_based import layer
from torch import Tensor, nn

from train.config import NetConfig
from train.networks.network import Network, Places, channels, conv_norm
from train.networks.resnet import add_head, shortcut
from train.neurons import Add, activation


DEPTHS = {"sew_resnet18": (2, 2, 2, 2), "sew_resnet34": (3, 4, 6, 3)}


class SEWBlock(nn.Module):
    """activation(norm(conv(activation(norm(conv(x)))))) + shortcut(x); the shortcut is x or activation(norm(conv(x))).

    The ADD variant of Fang et al. 2021; a teacher has ReLU in the same places.
    """

    def __init__(self, config: NetConfig, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(c_in, c_out, 3, stride)
        self.act1 = activation(config)
        self.conv2 = conv_norm(c_out, c_out, 3, 1)
        self.act2 = activation(config)
        self.shortcut = shortcut(c_in, c_out, stride)
        if isinstance(self.shortcut, nn.Sequential):
            self.shortcut.add_module("act", activation(config))
        self.add = Add()

    def forward(self, x: Tensor) -> Tensor:
        return self.add(self.act2(self.conv2(self.act1(self.conv1(x)))), self.shortcut(x))


def sew_resnet(config: NetConfig) -> Network:
    """SEW-ResNet-18 or -34; `places.stages` are the four stages' sums, the stem's activation is none."""
    widths = channels(config, 64, 128, 256, 512)
    c_in = widths[0]
    body = nn.Sequential()
    body.add_module("act", activation(config))
    body.add_module("maxpool", layer.MaxPool2d(3, stride=2, padding=1))
    for i, (c_out, depth) in enumerate(zip(widths, DEPTHS[config.name], strict=True)):
        stage = nn.Sequential()
        for j in range(depth):
            stage.add_module(str(j), SEWBlock(config, c_in, c_out, stride=2 if i > 0 and j == 0 else 1))
            c_in = c_out
        body.add_module(f"layer{i + 1}", stage)
    stages = tuple(f"body.layer{i + 1}" for i in range(len(widths)))
    places = Places(stages=stages, **add_head(body, config, c_in, kind="linear"))
    return Network(config, conv_norm(config.in_channels, widths[0], 7, 2), body, places)
