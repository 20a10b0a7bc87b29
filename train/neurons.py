"""Spiking neurons and the two joints between an image and time.

Inside a student, values travel as [T, B, ...], or as [1, B, ...] while they are the same at every step.
"""

import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import nn

from train.config import NetConfig


SURROGATES = {"atan": lambda: surrogate.ATan(alpha=2.0), "sigmoid": lambda: surrogate.Sigmoid(alpha=4.0)}


def activation(config: NetConfig) -> nn.Module:
    """The non-linearity after a layer: SpikingJelly's multi-step LIFNode in a student, ReLU in a teacher.

    LIFNode with decay_input=True is TSER's Eq. 2 with the input of the same step:
    h[t] = v[t-1] + (x[t] - (v[t-1] - v_reset)) / tau, s[t] = (h[t] >= v_threshold), hard reset to v_reset.
    """
    if not config.spiking:
        return nn.ReLU()
    return neuron.LIFNode(
        tau=config.tau,
        decay_input=config.decay_input,
        v_threshold=config.v_threshold,
        v_reset=config.v_reset,
        surrogate_function=SURROGATES[config.surrogate](),
        detach_reset=config.detach_reset,
        step_mode="m",
    )


class Hold(nn.Module):
    """[1, B, ...] -> [T, B, ...], the same value at every step (direct coding); event input [T, B, ...] passes.

    It stands after the first convolution and its normalisation, so that they run once for a static image.
    """

    def __init__(self, T: int) -> None:
        super().__init__()
        self.T = T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] not in (1, self.T):
            raise ValueError(f"event input must have T = {self.T} steps on its first axis, got {x.shape[0]}")
        return x.expand(self.T, *x.shape[1:])


class Add(nn.Module):
    """Sum of a block's two branches; a module, so that tracing, counters and exports can name it."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y
