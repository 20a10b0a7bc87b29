"""An exponential moving average of the weights, with normalisation statistics of its own."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from train.checkpoint import Preprocess
from train.data import Split, batches
from train.neurons import Norm


# Training images on which the normalisation statistics are estimated.
ESTIMATE_ON = 10_000
BATCH = 250


class Average:
    """The moving average of a network's weights; its buffers are not averaged. torch's AveragedModel computes the same
    but waits for the GPU in every step."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = deepcopy(network).requires_grad_(False)
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take the weights after a step in; the first ones are taken as they are."""
        weight = 1 - self.decay if self.steps else 1.0
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), weight)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs."""
        return {"network": self.network.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved average."""
        self.network.load_state_dict(state["network"])
        self.steps = state["steps"]


def estimated(average: Average, split: Split, preprocess: Preprocess) -> nn.Module:
    """A copy of the averaged network whose normalisation statistics fit its weights, taken on the first images of
    `split` as they are, not augmented."""
    network = deepcopy(average.network)
    for module in network.modules():
        if isinstance(module, Norm):
            module.sync = False  # every process sees the same images here
    whole = min(ESTIMATE_ON, len(split) // BATCH * BATCH) or len(split)  # equal batches: each counts the same
    head = split.take(torch.arange(whole, device=split.labels.device))
    dtype = next(network.parameters()).dtype
    update_bn((preprocess(images).to(dtype) for images, _ in batches(head, BATCH)), network)
    return network
