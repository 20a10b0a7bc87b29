"""CKDSNN: saliency-scaled activation maps and noise-smoothed logits (Liu et al. 2025, AAAI 2026, arXiv 2511.06902)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from train.methods.base import (
    Layers,
    Outputs,
    check_shapes,
    check_temperature,
    check_weight,
    cross_entropy,
    distillation,
    logits_of,
    needed,
)
from train.methods.features import FeatureMethod
from train.methods.saliency import Variant, activation_map, class_map, grad_cam, samd


if TYPE_CHECKING:
    from torch import Tensor

    from train.networks import Places


def nld(
    z: Tensor, teacher_logits: Tensor, *, noise_weight: float, temperature: float, variant: Variant, noise: Tensor
) -> Tensor:
    """Distillation of noise-smoothed logits z [B, K]; noise: standard normal [B, K].

    paper: temperature^2 KL(teacher || softmax((z + noise_weight eps) / temperature)), eps = mean(z) + noise std(z).
    code: the student's distribution is (1 - noise_weight) softmax(z / temperature) + noise_weight softmax(eps /
    temperature), with std(z)^2 in place of std(z). In both the gradient goes through mean and std over K.
    """
    spread = z.std(-1, keepdim=True)
    if variant == "paper":
        eps = z.mean(-1, keepdim=True) + noise * spread
        return distillation(teacher_logits, z + noise_weight * eps, temperature)
    eps = z.mean(-1, keepdim=True) + noise * spread**2
    mixed = (1 - noise_weight) * (z / temperature).softmax(-1) + noise_weight * (eps / temperature).softmax(-1)
    return distillation(teacher_logits, temperature * mixed.log(), temperature)  # softmax(log p) = p


@dataclass(frozen=True, kw_only=True)
class CKDSNN(FeatureMethod):
    """The student's spikes are where the teacher sees its class, its smoothed logits are the teacher's.

    total = CE(mean logits, y) + samd_weight SAMD + nld_weight NLD
    SAMD compares the sum of the last stage's spikes over t and c with the teacher's Grad-CAM for its predicted class.
    The authors' code takes the classifier's weights for the gradient (`variant` code), which a classifier on flattened
    maps or behind a hidden layer does not have; its trainer does not run as published.
    """

    name: str = "ckdsnn"
    samd_weight: float = 1.0
    """Weight of the activation maps, at least 0; 0: logits alone (paper: 1)."""
    map_temperature: float = 2.0
    """Temperature of the maps, greater than 0 (paper: 2)."""
    nld_weight: float = 1.0
    """Weight of the logits, at least 0; 0: maps alone (paper: 1)."""
    noise_weight: float = 0.1
    """Part of noise in the student's logits, in [0, 1] (paper and code: 0.1)."""
    temperature: float = 2.0
    """Temperature of the logits, greater than 0 (paper: 2)."""
    variant: Variant = "paper"
    """Grad-CAM, noise on logits; or as in the authors' code: CAM, maps scaled by batch, noise on probabilities."""

    def __post_init__(self) -> None:
        check_weight("method.samd_weight", self.samd_weight, 0, 1e6)
        check_temperature("method.map_temperature", self.map_temperature)
        check_weight("method.nld_weight", self.nld_weight, 0, 1e6)
        check_weight("method.noise_weight", self.noise_weight, 0, 1)
        check_temperature("method.temperature", self.temperature)

    @property
    def reads_features(self) -> bool:
        return self.samd_weight > 0

    def roles(self, places: Places) -> tuple[str, ...]:
        return places.stages[-1:]

    def layers(self, student: Places, teacher: Places | None) -> Layers:
        found = super().layers(student, teacher)
        if self.variant == "code" or not self.reads_features:
            return found
        if len(found.teacher) > 1:
            raise ValueError(
                f"method {self.name} takes the gradient of the teacher's logits in one feature: name one of "
                f"--method.teacher_layers, got {len(found.teacher)} ({', '.join(found.teacher)})"
            )
        return Layers(student=found.student, teacher=found.teacher, differentiable=True)

    def loss(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        teacher_logits = logits_of(teacher, self.name)
        check_shapes(student.logits, teacher_logits, target)
        z = student.logits.mean(0)
        terms = {"ce": cross_entropy(z, target)}
        terms["total"] = terms["ce"]
        if self.reads_features:
            terms["samd"] = self.maps(student, needed(teacher, self.name))
            terms["total"] = terms["total"] + self.samd_weight * terms["samd"]
        if self.nld_weight > 0:
            terms["nld"] = nld(
                z,
                teacher_logits,
                noise_weight=self.noise_weight,
                temperature=self.temperature,
                variant=self.variant,
                noise=z.new_empty(z.shape).normal_(),
            )
            terms["total"] = terms["total"] + self.nld_weight * terms["nld"]
        return terms

    def maps(self, student: Outputs, teacher: Outputs) -> Tensor:
        """SAMD, summed over the pairs of features."""
        saliency = grad_cam if self.variant == "paper" else class_map
        distances = [
            samd(activation_map(own), saliency(teacher, theirs), temperature=self.map_temperature, variant=self.variant)
            for _, own, theirs in self.pairs(student.features, teacher.features)
        ]
        return sum(distances[1:], distances[0])
