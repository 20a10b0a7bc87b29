"""A network together with the features that a distillation method reads of it."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from train.errors import unknown
from train.methods import Outputs
from train.networks import Network


Answer = tuple[Tensor, dict[str, Tensor]]
"""Logits and features: a tuple, as what wraps a module (DistributedDataParallel) wants it."""


class Observed(nn.Module):
    """A network whose calls also give the outputs of named modules: images -> (logits, features).

    `adapter` is trained beside the network and makes further features of these. With `differentiable` the features are
    leaves that the logits depend on, and what stands before them keeps no graph.
    Raises ValueError for a layer that the network does not have (with the nearest ones).
    """

    def __init__(self, network: Network, layers: tuple[str, ...] = (), *, differentiable: bool = False) -> None:
        super().__init__()
        self.network, self.layers, self.differentiable = network, layers, differentiable
        self.adapter: nn.Module | None = None
        modules = dict(network.named_modules())
        self._seen: dict[str, Tensor] | None = None
        for name in layers:
            if name not in modules or not name:
                raise unknown(f"{network.config.name} layer", name, [n for n in modules if n])
            modules[name].register_forward_hook(self._keeper(name))

    def _keeper(self, name: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, out: Any) -> Tensor | None:
            if self._seen is None:  # a call of the network alone
                return None
            if not isinstance(out, Tensor):
                raise ValueError(f"layer {name} is computed as a part of the activation after it: name that one")
            self._seen[name] = out.detach().requires_grad_() if self.differentiable else out
            return self._seen[name] if self.differentiable else None

        return keep

    def forward(self, images: Tensor) -> Answer:
        features = self._seen = {}
        try:
            with torch.set_grad_enabled(self.differentiable or torch.is_grad_enabled()):
                logits = self.network(images)
        finally:
            self._seen = None
        if self.adapter is not None:
            features |= self.adapter(features)
        return logits, features

    def outputs(self, answer: Answer) -> Outputs:
        """What a method reads of an answer, which may have come through what wraps this module."""
        path = self.network.places.classifier  # none in some of a zoo's models
        classifier = cast(nn.Linear, self.network.get_submodule(path)) if path else None
        return Outputs(logits=answer[0], features=answer[1], classifier=classifier)

    def shapes(self, images: Tensor) -> dict[str, tuple[int, ...]]:
        """The features' shapes for these images; the network stays in the mode and state in which it is."""
        training = self.network.training
        self.network.eval()
        with torch.no_grad():
            _, features = self(images)
        self.network.train(training)
        return {name: tuple(feature.shape) for name, feature in features.items()}
