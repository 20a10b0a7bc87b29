"""VGG networks: convolution, batch normalisation, activation, in a row; then one linear classifier."""

from spikingjelly.activation_based import layer
from torch import nn

from train.config import NetConfig
from train.networks.network import Network, Places, channels, conv_norm
from train.neurons import activation


# A number is a 3x3 convolution with so many channels, "/2" one with stride 2, "P" pooling after the activation.
PLANS: dict[str, tuple[str, ...]] = {
    "vgg_small": ("32", "32/2", "64", "64/2", "128", "128/2"),
    "vgg11": ("64", "P", "128", "P", "256", "256", "P", "512", "512", "P", "512", "512", "P"),
    "vgg16": (
        *("64", "64", "P", "128", "128", "P", "256", "256", "256", "P"),
        *("512", "512", "512", "P", "512", "512", "512", "P"),
    ),
}


POOLED = tuple(name for name, plan in PLANS.items() if "P" in plan)


def vgg(config: NetConfig) -> Network:
    """vgg_small (strided; 8 to 64 pixels), vgg11 and vgg16 (five poolings; at least 32 pixels).

    vgg11 and vgg16 follow the networks behind TSER's Table 4: 3x3 convolutions with bias, pooling after the activation
    (theirs is average pooling), and one linear layer as the classifier. Parameters for 10 classes and 3 channels of
    32 pixels: vgg_small 307,946, vgg11 9,231,114, vgg16 14,728,266.
    """
    plan = PLANS[config.name]
    pooled = config.name in POOLED
    body = nn.Sequential()
    stem = nn.Sequential()
    c_in, size, depth = config.in_channels, config.size, 0
    stages: list[str] = []
    for item in plan:
        if item == "P":
            body.add_module(f"pool{depth}", layer.MaxPool2d(2) if config.pool == "max" else layer.AvgPool2d(2))
            stages.append(f"body.act{depth}")
            size //= 2
            continue
        text, _, factor = item.partition("/")
        depth, stride = depth + 1, int(factor or 1)
        (c_out,) = channels(config, int(text))
        if stride > 1:
            stages.append(f"body.act{depth - 1}")
        pair = conv_norm(c_in, c_out, 3, stride, bias=pooled)
        if depth == 1:
            stem = pair
        else:
            body.add_module(f"conv{depth}", pair)
        body.add_module(f"act{depth}", activation(config))
        c_in, size = c_out, (size - 1) // stride + 1
    if size < 1:
        raise ValueError(f"{config.name} halves an image five times: it needs at least 32 pixels, got {config.size}")
    body.add_module("flatten", layer.Flatten())
    body.add_module("classifier", layer.Linear(c_in * size * size, config.num_classes))
    if not pooled:
        stages.append(f"body.act{depth}")
    places = Places(stages=tuple(stages), penultimate="body.flatten", classifier="body.classifier")
    return Network(config, stem, body, places)
