"""ResNets for small images, with the addition before the activation (membrane shortcut)."""

from spikingjelly.activation_based import layer
from torch import Tensor, nn

from train.config import NetConfig
from train.networks.network import Network, Places, conv_norm
from train.neurons import Add, activation


BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}


class BasicBlock(nn.Module):
    """activation(norm(conv(activation(norm(conv(x))))) + shortcut(x)); the shortcut is x or a 1x1 conv and norm.

    The sum is a current into the second LIF, so a student's block passes on spikes and nothing else.
    """

    def __init__(self, config: NetConfig, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(c_in, c_out, 3, stride)
        self.act1 = activation(config)
        self.conv2 = conv_norm(c_out, c_out, 3, 1)
        self.shortcut = nn.Identity() if stride == 1 and c_in == c_out else conv_norm(c_in, c_out, 1, stride)
        self.add = Add()
        self.act2 = activation(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(self.add(self.conv2(self.act1(self.conv1(x))), self.shortcut(x)))


def resnet(config: NetConfig) -> Network:
    """ResNet-18 or -34 with a 3x3 stem and no first pooling (He et al. 2016, as in CIFAR work); stages 64 to 512."""
    widths = [max(1, round(c * config.width)) for c in (64, 128, 256, 512)]
    body = nn.Sequential()
    body.add_module("act", activation(config))
    c_in = widths[0]
    for i, (c_out, depth) in enumerate(zip(widths, BLOCKS[config.name], strict=True)):
        stage = nn.Sequential()
        for j in range(depth):
            stage.add_module(str(j), BasicBlock(config, c_in, c_out, stride=2 if i > 0 and j == 0 else 1))
            c_in = c_out
        body.add_module(f"layer{i + 1}", stage)
    body.add_module("pool", layer.AdaptiveAvgPool2d((1, 1)))
    body.add_module("flatten", layer.Flatten())
    body.add_module("classifier", layer.Linear(c_in, config.num_classes))
    places = Places(
        stages=tuple(f"body.layer{i + 1}" for i in range(len(widths))),
        penultimate="body.flatten",
        classifier="body.classifier",
    )
    return Network(config, conv_norm(config.in_channels, widths[0], 3, 1), body, places)
