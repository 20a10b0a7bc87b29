"""Three small residual networks of SpikingJelly's layers, for counters that watch torch, and their Graphs.

Weights are multiples of 1/16, some of them zero, and everything is exact in float32 (small_graphs), so that torch and
`export.reference` fire the same spikes. A node of a Graph has the name under which SpikingJelly counts its module.
"""

from typing import Any

import numpy as np
import torch
from small_graphs import dyadic_images
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn
from torch.nn import functional as F

from export import graph as g
from export.lower import fold_batch_norm, trace
from train.neurons import Add


T, N = 3, 2


class PlainResidual(nn.Module):
    """A block that adds currents, grouped and strided, normalised; maximum pooling; a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = layer.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_norm = layer.BatchNorm2d(8)
        self.stem_lif = neuron.LIFNode()
        self.conv1 = layer.Conv2d(8, 12, 3, stride=2, padding=1, groups=2, bias=False)
        self.norm1 = layer.BatchNorm2d(12)
        self.lif1 = neuron.LIFNode()
        self.conv2 = layer.Conv2d(12, 12, (3, 2), padding=(1, 0), bias=False)
        self.norm2 = layer.BatchNorm2d(12)
        self.shortcut = layer.Conv2d(8, 12, (1, 3), stride=2, bias=False)
        self.add = Add()
        self.lif2 = neuron.LIFNode(decay_input=False)
        self.pool = layer.MaxPool2d(3, stride=2, padding=1)
        self.depthwise = layer.Conv2d(12, 12, 3, padding=1, groups=12)
        self.lif3 = neuron.LIFNode()
        self.flatten = layer.Flatten()
        self.classifier = layer.Linear(12 * 3 * 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_lif(self.stem_norm(self.stem(x)))
        y = self.norm2(self.conv2(self.lif1(self.norm1(self.conv1(x)))))
        x = self.lif2(self.add(y, self.shortcut(x)))
        return self.classifier(self.flatten(self.lif3(self.depthwise(self.pool(x)))))


class SEWResidual(nn.Module):
    """Two blocks that add spikes, so that values of 2 and 3 go on; average pooling; the mean of the map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = layer.Conv2d(3, 8, 3, stride=(2, 1), padding=1)
        self.stem_lif = neuron.IFNode()
        self.conv1 = layer.Conv2d(8, 8, 3, padding=1, groups=4)
        self.lif1 = neuron.LIFNode()
        self.add1 = Add()
        self.conv2 = layer.Conv2d(8, 8, 3, padding=1)
        self.lif2 = neuron.LIFNode()
        self.add2 = Add()
        self.pool = layer.AvgPool2d((1, 2))
        self.conv3 = layer.Conv2d(8, 8, 3, stride=2, padding=1)
        self.lif3 = neuron.LIFNode(decay_input=False, tau=4.0)
        self.mean = layer.AdaptiveAvgPool2d((1, 1))
        self.flatten = layer.Flatten()
        self.classifier = layer.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_lif(self.stem(x))
        x = self.add1(self.lif1(self.conv1(x)), x)
        x = self.add2(self.lif2(self.conv2(x)), x)
        x = self.lif3(self.conv3(self.pool(x)))
        return self.classifier(self.flatten(self.mean(x)))


class PooledResidual(nn.Module):
    """A shortcut that is halved by average pooling; maximum pooling; neurons between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = layer.Conv2d(3, 6, 3, padding=1)
        self.stem_lif = neuron.LIFNode(tau=4.0)
        self.conv1 = layer.Conv2d(6, 6, 2, stride=2, groups=3)
        self.lif1 = neuron.IFNode()
        self.conv2 = layer.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm2 = layer.BatchNorm2d(6)
        self.halve = layer.AvgPool2d(2)
        self.shortcut = layer.Conv2d(6, 6, 1, bias=False)
        self.shortcut_norm = layer.BatchNorm2d(6)
        self.add = Add()
        self.lif2 = neuron.LIFNode()
        self.pool = layer.MaxPool2d(2)
        self.flatten = layer.Flatten()
        self.hidden = layer.Linear(6 * 3 * 2, 7)
        self.hidden_lif = neuron.LIFNode()
        self.classifier = layer.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_lif(self.stem(x))
        y = self.norm2(self.conv2(self.lif1(self.conv1(x))))
        x = self.lif2(self.add(y, self.shortcut_norm(self.shortcut(self.halve(x)))))
        return self.classifier(self.hidden_lif(self.hidden(self.flatten(self.pool(x)))))


# The sides of an image, chosen so that the two branches of a block meet.
NETWORKS: dict[type[nn.Module], tuple[int, int]] = {
    PlainResidual: (10, 8),
    SEWResidual: (8, 8),
    PooledResidual: (12, 8),
}


def make(kind: type[nn.Module], *, seed: int = 0) -> tuple[nn.Module, g.Graph]:
    """A network in eval mode, multi-step, and its Graph of T steps."""
    network, rng = kind(), np.random.default_rng(seed)

    def draw(values: Any, like: Tensor) -> Tensor:
        return torch.from_numpy(rng.choice(values, like.shape).astype(np.float32))

    sixteenths = np.arange(-12, 13) / 16
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
            module.running_var = draw([0.25, 1.0, 4.0], module.running_var)
            module.running_mean = draw(sixteenths, module.running_mean)
            module.weight.data = draw([0.5, 1.0, 2.0], module.weight)
            module.bias.data = draw(sixteenths, module.bias)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data = draw(sixteenths, module.weight)
            if module.bias is not None:
                module.bias.data = draw(sixteenths, module.bias)
    network.eval()
    image = g.Input(
        name="image", inputs=(), shape=(3, *NETWORKS[kind]), mean=np.array([0.25, 0.5, 0.0]), std=np.full(3, 0.5)
    )
    nodes = trace(network, kind.__name__, image)
    functional.set_step_mode(network, "m")
    return network, fold_batch_norm(g.Graph(nodes=(image, *nodes), T=T))


def images_for(graph: g.Graph) -> np.ndarray:
    """N images; about a sixteenth of their normalised values are zero."""
    return dyadic_images(graph, batch=N, seed=1)


def repeated(graph: g.Graph, images: np.ndarray) -> Tensor:
    """Normalised images at every step, [T, N, C, H, W], as SpikingJelly's examples feed them."""
    mean, std = (torch.from_numpy(getattr(graph.input, key)).float()[:, None, None] for key in ("mean", "std"))
    return ((torch.from_numpy(images) - mean) / std).repeat(graph.T, 1, 1, 1, 1)


def landings(node: g.Conv | g.Dense, x: np.ndarray, weight: np.ndarray) -> int:
    """The sum of a layer's outputs for the inputs x [T, N, *shape] and other weights: brute force, in float64."""
    flat, kernel = torch.from_numpy(x.astype(np.float64)).flatten(0, 1), torch.from_numpy(weight.astype(np.float64))
    if isinstance(node, g.Dense):
        return int((flat @ kernel.T).sum())
    return int(F.conv2d(flat, kernel, stride=node.stride, padding=node.padding, groups=node.groups).sum())


def normalised_values(network: nn.Module, x: Tensor) -> dict[str, int]:
    """By scope of a normalisation, which the Graph has folded: the values that it reads."""
    sizes: dict[str, int] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: sizes.update({name: inputs[0].numel()}))
        for name, module in network.named_modules(prefix=type(network).__name__)
        if isinstance(module, nn.BatchNorm2d)
    ]
    functional.reset_net(network)
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return sizes
