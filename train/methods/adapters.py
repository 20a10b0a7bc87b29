"""What methods train beside a student: modules from features to features (or logits), never in a checkpoint.

Imported only where a method makes one, as it needs torch.
"""

import torch
from torch import Tensor, nn


class Each(nn.Module):
    """A module for each named feature: {path: feature} -> {path: what its module makes of it}."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.paths = tuple(parts)  # a ModuleDict takes no dots
        self.parts = nn.ModuleList(parts.values())

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {path: part(features[path]) for path, part in zip(self.paths, self.parts, strict=True)}


class Aligned(nn.Module):
    """The mean over t, linearly to the teacher's channels: [T, B, C, ..] -> [1, B, C_teacher, ..]."""

    def __init__(self, own: tuple[int, ...], theirs: tuple[int, ...]) -> None:
        super().__init__()
        c_in, c_out = own[2], theirs[1]
        self.align: nn.Module = nn.Identity()
        if c_in != c_out:
            self.align = nn.Linear(c_in, c_out) if len(theirs) == 2 else nn.Conv2d(c_in, c_out, 1)

    def forward(self, feature: Tensor) -> Tensor:
        return self.align(feature.mean(0)).unsqueeze(0)


class Restored(nn.Module):
    """BKDSNN's blurred feature: the aligned mean over t with channels masked at random, restored by two convolutions.

    [T, B, C, H, W] -> [2, B, C_teacher, H, W]: restored, and before the mask.
    """

    def __init__(self, own: tuple[int, ...], theirs: tuple[int, ...], *, mask: float) -> None:
        super().__init__()
        channels = theirs[1]
        self.mask = mask
        self.aligned = Aligned(own, theirs)
        self.restore = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, feature: Tensor) -> Tensor:
        aligned = self.aligned(feature)[0]
        keep = torch.rand(*aligned.shape[:2], 1, 1, device=aligned.device) >= self.mask
        return torch.stack([self.restore(aligned * keep), aligned])


class WeakClassifier(nn.Module):
    """Global average pooling and a linear layer at every step: [T, B, C, H, W] -> logits [T, B, K]."""

    def __init__(self, own: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(own[2], classes)

    def forward(self, feature: Tensor) -> Tensor:
        return self.linear(feature.flatten(3).mean(3) if feature.dim() > 3 else feature)
