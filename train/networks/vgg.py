"""VGG networks: convolution, batch normalisation, activation, in a row; then one linear classifier."""

from spikingjelly.activation_based import layer
from torch import nn

from train.config import NetConfig
from train.networks.network import Network, Places, conv_norm
from train.neurons import activation


# A number is a 3x3 convolution with so many channels, "/2" one with stride 2, "A" average pooling after the activation.
PLANS: dict[str, tuple[str, ...]] = {
    "vgg_small": ("32", "32/2", "64", "64/2", "128", "128/2"),
    "vgg11": ("64", "A", "128", "A", "256", "256", "A", "512", "512", "A", "512", "512", "A"),
    "vgg16": (
        *("64", "64", "A", "128", "128", "A", "256", "256", "256", "A"),
        *("512", "512", "512", "A", "512", "512", "512", "A"),
    ),
}


def vgg(config: NetConfig) -> Network:
    """vgg_small (strided; 8 to 64 pixels), vgg11 and vgg16 (five average poolings; at least 32 pixels).

    vgg11 and vgg16 follow the networks behind TSER's Table 4: 3x3 convolutions with bias, average pooling after the
    activation, and one linear layer as the classifier.
    """
    plan = PLANS[config.name]
    pooled = "A" in plan
    body = nn.Sequential()
    stem = nn.Sequential()
    channels, size, depth = config.in_channels, config.size, 0
    stages: list[str] = []
    for item in plan:
        if item == "A":
            body.add_module(f"pool{depth}", layer.AvgPool2d(2))
            stages.append(f"body.act{depth}")
            size //= 2
            continue
        text, _, factor = item.partition("/")
        depth, c_out, stride = depth + 1, max(1, round(int(text) * config.width)), int(factor or 1)
        if stride > 1:
            stages.append(f"body.act{depth - 1}")
        pair = conv_norm(channels, c_out, 3, stride, bias=pooled)
        if depth == 1:
            stem = pair
        else:
            body.add_module(f"conv{depth}", pair)
        body.add_module(f"act{depth}", activation(config))
        channels, size = c_out, (size - 1) // stride + 1
    if size < 1:
        raise ValueError(f"{config.name} halves an image five times: it needs at least 32 pixels, got {config.size}")
    body.add_module("flatten", layer.Flatten())
    body.add_module("classifier", layer.Linear(channels * size * size, config.num_classes))
    if not pooled:
        stages.append(f"body.act{depth}")
    places = Places(stages=tuple(stages), penultimate="body.flatten", classifier="body.classifier")
    return Network(config, stem, body, places)
