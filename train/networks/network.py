"""What every network shares: the stem that sees the image once, the body that lives in time, and counting spikes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from train.config import NetConfig
from train.memory import in_segments
from train.neurons import Hold, Norm


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a network's features are, by module path."""

    stages: tuple[str, ...]
    """What the network passes on at each resolution, in order: the last activation before the next halving, or the sum
    that ends the last block; a stem that is halved at once is none. [.., C, H, W]."""
    penultimate: str
    """What the classifier reads: [.., D]."""
    classifier: str
    """The last linear layer, which gives the logits."""


class Network(nn.Module):
    """A teacher, images [B, C, H, W] -> logits [B, K]; or a student, images -> logits [T, B, K].

    Both also take event frames [T, B, C, H, W], of which a teacher sees the mean over T. Images are normalised by the
    caller (Checkpoint.preprocess).
    `stem` is linear (first convolution, normalisation); `body` starts with the first activation and ends in the
    classifier. Membranes start at rest in every call.
    """

    divisible = True
    """Whether `body` is a row of modules that can be computed one after the other."""
    stateless = False
    """Whether in a training step no neuron reads or keeps a state (train.neurons.set_stateless)."""

    def __init__(self, config: NetConfig, stem: nn.Sequential, body: nn.Sequential, places: Places) -> None:
        super().__init__()
        self.config = config
        self.places = places
        self.stem = stem
        self.hold = Hold(config.T)
        self.body = body
        self.segments = 0
        """Segments of `body` between which a training step keeps its values; 0: it keeps all (train/memory.py)."""
        functional.set_step_mode(self, "m" if config.spiking else "s")
        initialise(self, config)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self.config.spiking:
            return self.body(self.stem(images.mean(0) if images.dim() == 5 else images))
        if self.config.event and images.dim() == 4:
            raise ValueError(f"{self.config.name} was made for event frames [T, B, C, H, W], got {list(images.shape)}")
        if not (self.stateless and self.training):
            functional.reset_net(self.body)
        frames = images.unsqueeze(0) if images.dim() == 4 else images
        drive = self.hold(self.stem(frames))
        if self.segments and self.training and torch.is_grad_enabled():
            return in_segments(self.body, drive, self.segments)
        return self.body(drive)


def conv_norm(c_in: int, c_out: int, kernel: int, stride: int, *, bias: bool = False) -> nn.Sequential:
    """A convolution that keeps the size (divided by stride) and its batch normalisation: children `conv`, `norm`."""
    pair = nn.Sequential()
    pair.add_module("conv", layer.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=bias))
    pair.add_module("norm", Norm(c_out))
    return pair


class NeuronLinear(layer.Linear):
    """A linear layer whose output is the current into neurons, without a normalisation between."""


def channels(config: NetConfig, *published: int) -> list[int]:
    """The published numbers of channels times config.width, at least 1."""
    return [max(1, round(c * config.width)) for c in published]


def initialise(network: nn.Module, config: NetConfig) -> None:
    """Kaiming-normal convolutions (fan out); in a student, normalised drives as wide as config.norm says.

    A drive of standard deviation 1 hardly reaches a LIF's threshold, and less so where the input decays by tau; the
    deeper layers of a fresh student would be silent and learn late. Like threshold-dependent batch normalisation
    (Zheng et al. 2021) the normalisation's weight starts, by default, at the drive that makes a neuron fire at once.
    Averaged spikes, whose mean square is about 0.05 in a fresh student, through torch's linear weights are a drive of a
    tenth of that: neurons behind a linear layer stayed silent and their network learned nothing. By default its weights
    start as wide as makes its drive as wide as the others.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Norm) and config.spiking:
            nn.init.constant_(module.weight, start_weight(config, module))
        elif isinstance(module, NeuronLinear) and config.spiking and config.norm == "drive":
            nn.init.normal_(module.weight, std=firing_drive(config) / (0.05 * module.in_features) ** 0.5)
            nn.init.zeros_(module.bias)


def start_weight(config: NetConfig, norm: Norm) -> float:
    """Where the weight of one of a student's normalisations starts (NetConfig.norm)."""
    if config.norm == "bn":
        return 1.0
    if config.norm == "tdbn":
        return config.v_threshold * (0.5**0.5 if norm.into_sum else 1.0)
    return firing_drive(config)


def firing_drive(config: NetConfig) -> float:
    """The drive that makes a neuron at rest, at v_reset, fire at once; what charges an IF neuron is not divided by
    tau."""
    divided = config.decay_input and config.neuron != "if"
    return (config.v_threshold - config.v_reset) * (config.tau if divided else 1.0)


def lif_layers(network: nn.Module) -> dict[str, neuron.BaseNode]:
    """A student's layers of neurons (LIF, PLIF, IF, those of a zoo's model) by module path, in order."""
    return {name: module for name, module in network.named_modules() if isinstance(module, neuron.BaseNode)}


@contextmanager
def firing_rates(network: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """While open, each forward pass leaves every LIF layer's mean spikes per step and image, [T, B], in the dict."""
    rates: dict[str, torch.Tensor] = {}

    def keep(name: str, module: neuron.BaseNode, spikes: torch.Tensor) -> None:
        if module.step_mode == "m":
            rates[name] = spikes.detach().flatten(2).float().mean(2)
        else:  # one step of several
            step = spikes.detach().flatten(1).float().mean(1)[None]
            rates[name] = torch.cat([rates[name], step]) if name in rates else step

    hooks = [
        module.register_forward_hook(lambda module, _i, spikes, name=name: keep(name, module, spikes))
        for name, module in lif_layers(network).items()
    ]
    hooks.append(network.register_forward_pre_hook(lambda _m, _i: rates.clear()))
    try:
        yield rates
    finally:
        for hook in hooks:
            hook.remove()
