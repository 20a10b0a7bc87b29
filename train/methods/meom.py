"""MEOM: another view of the teacher at each step, and steps that run ahead (Sun et al. 2026, ICLR)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from train.methods.base import (
    Layers,
    Method,
    Outputs,
    check_shapes,
    check_temperature,
    check_weight,
    cross_entropy,
    distillation,
    logits_of,
    needed,
    soft_cross_entropy,
)


if TYPE_CHECKING:
    from torch import Tensor

    from train.networks import Places


def perspectives(teacher: Outputs, masks: Tensor, *, blend: float) -> Tensor:
    """(1 - blend) z_teacher + blend head(f * m_t): logits [T, B, K] for masks [T, B, D] of the feature f [B, D]."""
    from torch.nn.functional import linear

    assert teacher.classifier is not None
    (feature,) = teacher.features.values()
    weight, bias = teacher.classifier.weight, teacher.classifier.bias
    seen = linear(feature * masks, weight, bias)
    return ((1 - blend) * teacher.logits + blend * seen).detach()


def running_ahead(student_logits: Tensor) -> Tensor:
    """1/(T-1) sum_t CE(softmax(c(t+1)), softmax(c(t))) with c(t) the mean logits of the steps up to t; 0 for T = 1.

    The later mean is a constant (ours).
    """
    if len(student_logits) == 1:
        return student_logits.new_zeros(())
    counts = student_logits.new_ones(len(student_logits)).cumsum(0)[:, None, None]
    means = student_logits.cumsum(0) / counts
    return soft_cross_entropy(means[1:].detach(), means[:-1], 1.0).mean()


@dataclass(frozen=True, kw_only=True)
class MEOM(Method):
    """Every step learns from the label and from its own masked view of the teacher, and each from the next.

    total = alpha 1/T sum_t CE(z(t), y) + beta 1/T sum_t KD(view(t), z(t)) + gamma 1/(T-1) sum_t CE(c(t+1), c(t)) with
    KD(p, q) = temperature^2 KL(softmax(p / temperature) || softmax(q / temperature)), c(t) the mean up to t, and
    view(t) = (1 - blend) z_teacher + blend head(f * m_t): m_t drops values of the teacher's penultimate feature f at
    random, anew for each step and image. The paper's form and weights; masks, blend and temperature are ours.
    """

    name: str = "meom"
    alpha: float = 1.0
    """Weight of the label, at least 0 (paper: 1)."""
    beta: float = 0.5
    """Weight of the teacher, at least 0 (paper: 0.5)."""
    gamma: float = 0.3
    """Weight of the next step, at least 0 (paper: 0.3)."""
    mask: float = 0.5
    """Probability that a value of the teacher's feature is dropped, in [0, 1]; ours."""
    blend: float = 0.5
    """Part of the masked view in the teacher's logits, in [0, 1]; ours."""
    temperature: float = 1.0
    """Temperature of the teacher, greater than 0; ours."""

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "gamma"):
            check_weight(f"method.{name}", getattr(self, name), 0, 1e6)
        check_weight("method.mask", self.mask, 0, 1)
        check_weight("method.blend", self.blend, 0, 1)
        check_temperature("method.temperature", self.temperature)

    def layers(self, student: Places, teacher: Places | None) -> Layers:
        return Layers(teacher=(needed(teacher, self.name).penultimate,))

    def loss(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        z = student.logits
        check_shapes(z, logits_of(teacher, self.name), target)
        taught = needed(teacher, self.name)
        (feature,) = taught.features.values()
        masks = feature.new_empty(len(z), *feature.shape).uniform_() >= self.mask
        ce = cross_entropy(z, target)
        kl = distillation(perspectives(taught, masks, blend=self.blend), z, self.temperature)
        ahead = running_ahead(z)
        total = self.alpha * ce + self.beta * kl + self.gamma * ahead
        return {"ce": ce, "kl": kl, "ahead": ahead, "total": total}
