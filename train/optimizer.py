"""Optimizers and the learning rate."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from train.config import OptimConfig


def build(network: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or Muon for the convolutions with SGD for the rest."""
    groups = parameter_groups(network, config)
    if config.optimizer == "muon":
        return Muon(groups, momentum=config.momentum, muon_scale=config.muon_lr / config.lr)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


def parameter_groups(network: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Weight decay on convolution and linear weights only; the body's convolutions apart where Muon takes them."""

    def by_muon(name: str, p: nn.Parameter) -> bool:
        return config.optimizer == "muon" and p.dim() == 4 and "stem" not in name.split(".")

    named = list(network.named_parameters())
    weights = [p for name, p in named if p.dim() > 1 and not by_muon(name, p)]
    others = [p for _, p in named if p.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": weights, "lr": config.lr, "weight_decay": config.weight_decay, "muon": False},
        {"params": others, "lr": config.lr, "weight_decay": 0.0, "muon": False},
    ]
    if muon := [p for name, p in named if by_muon(name, p)]:
        groups.append({"params": muon, "lr": config.lr, "weight_decay": config.weight_decay, "muon": True})
    return groups


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Linear warm-up over the first `warmup` part of all steps, then a cosine to zero."""
    rise = round(config.warmup * steps)
    if step < rise:
        return config.lr * (step + 1) / rise
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimConfig, step: int, steps: int) -> None:
    """Set the rate of this step on every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step, steps)


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz (Jordan et al. 2024, github.com/KellerJordan/Muon), else Nesterov SGD.

    A group with muon=True holds convolution weights [C_out, C_in, k, k], taken as matrices [C_out, C_in k k]: torch's
    own Muon takes matrices only. Their learning rate is the group's times muon_scale, so that one schedule drives both.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, momentum: float, muon_scale: float) -> None:
        super().__init__(groups, {"momentum": momentum, "muon_scale": muon_scale})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                gradient = p.grad if group["muon"] else p.grad.add(p, alpha=group["weight_decay"])
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"]
                buffer.mul_(group["momentum"]).add_(gradient)
                update = gradient.add(buffer, alpha=group["momentum"])
                rate = group["lr"]
                if group["muon"]:
                    rate *= group["muon_scale"]
                    p.mul_(1 - rate * group["weight_decay"])
                    matrix = update.flatten(1)
                    scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                    update = orthogonalised(matrix).view_as(p) * scale
                p.add_(update, alpha=-rate)
        return loss


def orthogonalised(matrix: Tensor, *, iterations: int = 5) -> Tensor:
    """Nearly U V^T for a matrix U S V^T, by the quintic Newton-Schulz iteration of Muon."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(iterations):
        square = wide @ wide.T
        wide = a * wide + (b * square + c * square @ square) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T
