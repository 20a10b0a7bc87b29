"""Untrained students whose every layer fires, and checkpoints of untrained networks, for the tests of several packages.

In a fresh network the batch normalisations do nothing and deep layers may be silent: a test on it would compare zeros.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from train import cli
from train.checkpoint import Checkpoint, Preprocess
from train.config import DataConfig, NetConfig
from train.networks import Network, build


DIGITS = Preprocess(mean=(0.3,), std=(0.4,), size=8)


def live_network(config: NetConfig, images: Tensor, *, seed: int = 0) -> Network:
    """A student in float64 and eval mode; every normalisation has its own scale, shift and skewed statistics.

    images: normalised, float64 [B, C, H, W]; the statistics are those that they give, changed at random.
    """
    torch.manual_seed(seed)
    network = build(config).double()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # the statistics of this one batch
    with torch.no_grad():
        network.train()(images)
        for norm in norms:
            size = norm.running_mean.shape
            norm.running_mean += 0.2 * norm.running_var.sqrt() * torch.randn(size)
            norm.running_var *= torch.empty(size).uniform_(0.6, 1.6)
            norm.weight *= torch.empty(size).uniform_(0.7, 1.4)
            norm.bias += 0.3 * torch.randn(size)
    return network.eval()


def write_checkpoint(path: Path, net: NetConfig, *, labels: tuple[str, ...] = tuple("0123456789")) -> Path:
    """Write an untrained network of the embedded digits as a checkpoint."""
    torch.manual_seed(0)
    checkpoint = Checkpoint(
        net=net,
        weights=build(net).state_dict(),
        preprocess=Preprocess(
            mean=DIGITS.mean * net.in_channels, std=DIGITS.std * net.in_channels, size=net.size or DIGITS.size
        ),
        labels=labels,
        provenance={
            "config": {"data": cli.to_dict(DataConfig()), "method": {"name": "ce"}},
            **{"seed": 0, "device": "cpu", "versions": {}},
        },
    )
    checkpoint.save(path)
    return path
