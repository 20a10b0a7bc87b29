"""Operations of a network by the counting of syops-counter (github.com/iCGY96/syops-counter), as in TSER's Table 4.

Per image and step: a convolution counts every tap, zero padding included; a linear layer its weights; both their
biases. An unfused normalisation counts 2 a value, a LIF 1 a neuron, a pooling 1 a value that it reads, a ReLU 1.
Sums of branches are not counted. The stem is counted in every step, although it is computed once an image.
An operation is a MAC where its input is not spikes (0 or 1): the stem, normalisations, and what reads averages or sums
of spikes; elsewhere it is an accumulation that happens at the rate of the spikes. LIFs accumulate always.
syops asks the data what is spikes; here the layer's place in the network says it, so silent layers change nothing.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from spikingjelly.activation_based import layer
from torch import Tensor, nn

from train.config import NetConfig
from train.networks import NETWORKS, build, lif_layers


@dataclass(frozen=True, kw_only=True)
class LayerOperations:
    """What one layer does in one step on one image."""

    name: str
    operations: int
    """All of them, as if every input were there."""
    macs: int
    """Those that are multiply-accumulations: all or none."""
    taps: int
    """Products of a weight and an input inside the image: no zero padding, no bias; 0 for layers without weights."""


@dataclass(frozen=True, kw_only=True)
class NetworkOperations:
    """What a student does on one image."""

    T: int
    layers: tuple[LayerOperations, ...]

    @property
    def operations(self) -> int:
        """Over all T steps, as if every spike were fired (the column OPs of TSER's Table 4)."""
        return self.T * sum(entry.operations for entry in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulations over all T steps (the column MACs)."""
        return self.T * sum(entry.macs for entry in self.layers)

    @property
    def taps(self) -> int:
        """Products inside the image over all T steps: the padding of convolutions is not counted."""
        return self.T * sum(entry.taps for entry in self.layers)


def count_operations(config: NetConfig) -> NetworkOperations:
    """Count the operations of the student that `config` describes, on one image; nothing is computed.

    Raises ValueError for a model of SpikingJelly's zoo, whose forward pass does things that no module does.
    """
    if config.name not in NETWORKS:
        raise ValueError(f"{config.name}: operations are counted for {', '.join(NETWORKS)}")
    with torch.device("meta"):  # shapes alone; the teacher is the same modules with ReLU for LIF
        spiking = {*lif_layers(build(dataclasses.replace(config, spiking=True)))}
        network = build(dataclasses.replace(config, spiking=False)).eval()
        image = torch.zeros(1, config.in_channels, config.size, config.size)
    found: list[LayerOperations] = []
    spikes: list[Tensor] = []  # kept, so that no other tensor takes their identity
    hooks = [
        module.register_forward_hook(_counter(name, name in spiking, found, spikes))
        for name, module in network.named_modules()
        if not any(True for _ in module.children())
    ]
    with torch.no_grad():
        network(image)
    for hook in hooks:
        hook.remove()
    return NetworkOperations(T=config.T, layers=tuple(found))


def _counter(name: str, lif: bool, found: list[LayerOperations], spikes: list[Tensor]) -> Callable[..., None]:
    """A hook that counts one layer, and keeps its output in `spikes` if that is spikes."""

    def count(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        binary = any(inputs[0] is tensor for tensor in spikes)
        operations = 1 * out.numel() if lif else _operations(module, inputs[0], out)
        if operations:
            macs = 0 if lif or binary else operations
            found.append(
                LayerOperations(name=name, operations=operations, macs=macs, taps=_taps(module, inputs[0], out))
            )
        if lif or (binary and isinstance(module, nn.MaxPool2d | layer.Flatten | nn.Identity)):
            spikes.append(out)

    return count


def _operations(module: nn.Module, x: Tensor, out: Tensor) -> int:
    match module:
        case nn.Conv2d():
            bias = 0 if module.bias is None else 1
            return out.numel() * (module.weight[0].numel() + bias)
        case nn.Linear():
            return module.weight.numel() + (0 if module.bias is None else out.numel())
        case nn.BatchNorm2d():
            return 2 * x.numel()
        case nn.AvgPool2d() | nn.MaxPool2d() | nn.AdaptiveAvgPool2d():
            return x.numel()
        case nn.ReLU():
            return out.numel()
    return 0


def _taps(module: nn.Module, x: Tensor, out: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return module.weight.numel()
    if not isinstance(module, nn.Conv2d):
        return 0
    windows = [
        sum(
            0 <= i * module.stride[axis] + k - int(module.padding[axis]) < x.shape[2 + axis]
            for i in range(out.shape[2 + axis])
            for k in range(module.kernel_size[axis])
        )
        for axis in (0, 1)
    ]
    return windows[0] * windows[1] * module.weight.shape[0] * module.weight.shape[1]
