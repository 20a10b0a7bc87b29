"""An exponential moving average of the weights, with normalisation statistics of its own."""

from copy import deepcopy

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from train.checkpoint import Preprocess
from train.data import Split, batches
from train.neurons import Norm


# Training images on which the normalisation statistics are estimated.
ESTIMATE_ON = 10_000
BATCH = 250


def averaged(network: nn.Module, decay: float) -> AveragedModel | None:
    """The moving average of a network's weights, None for decay 0; its buffers are not averaged."""
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None


def estimated(average: AveragedModel, split: Split, preprocess: Preprocess) -> nn.Module:
    """A copy of the averaged network whose normalisation statistics fit its weights, taken on the first images of
    `split` as they are, not augmented."""
    network = deepcopy(average.module)
    for module in network.modules():
        if isinstance(module, Norm):
            module.sync = False  # every process sees the same images here
    whole = min(ESTIMATE_ON, len(split) // BATCH * BATCH) or len(split)  # equal batches: each counts the same
    head = split.take(torch.arange(whole, device=split.labels.device))
    dtype = next(network.parameters()).dtype
    update_bn((preprocess(images).to(dtype) for images, _ in batches(head, BATCH)), network)
    return network
