"""TSER: Temporal Separation with Entropy Regularization (Yu et al. 2025, arXiv 2503.03144)."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

from train.methods.base import (
    Method,
    Outputs,
    check_shapes,
    check_temperature,
    check_weight,
    cross_entropy,
    entropy,
    kl_divergence,
    logits_of,
)


if TYPE_CHECKING:
    from torch import Tensor


def tser_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.5,
    temperature: float = 5.0,
    entropy_weight: float = 0.01,
    entropy_temperature: float = 1.0,
    scale_by_temperature_squared: bool = True,
    separate_ce: bool = True,
    separate_kl: bool = True,
) -> dict[str, Tensor]:
    """TSER's loss (Eq. 8 to 11) for student logits [T, B, K], teacher logits [B, K], target [B].

    total = (1 - alpha) ce + alpha kl + entropy, with the means taken over t after each loss:
    ce      = 1/T sum_t CE(softmax(z(t)), y)
    kl      = 1/T sum_t KL(softmax(z_teacher / temperature) || softmax(z(t) / temperature)) [* temperature^2]
    entropy = -entropy_weight * 1/T sum_t H(softmax(z(t) / entropy_temperature))

    `separate_ce`, `separate_kl` False average the logits over t before that term, so Table 3 of the paper is five
    settings of this function and (False, False, entropy_weight=0) is vanilla SNN distillation (Eq. 7).
    Where the paper is silent or misprinted: CE at temperature 1, KL scaled by temperature^2 (Hinton et al. 2015),
    sum over classes and mean over images, the entropy of the student at `entropy_temperature`.
    The total turns negative where entropy_weight * H exceeds the rest; it is bounded by -entropy_weight * log K.
    """
    check_shapes(student_logits, teacher_logits, target)
    mean_logits = student_logits.mean(0)
    ce = cross_entropy(student_logits if separate_ce else mean_logits, target)
    kl = kl_divergence(teacher_logits, student_logits if separate_kl else mean_logits, temperature)
    if scale_by_temperature_squared:
        kl = kl * temperature**2
    regulariser = -entropy_weight * entropy(student_logits, entropy_temperature)
    return {"ce": ce, "kl": kl, "entropy": regulariser, "total": (1 - alpha) * ce + alpha * kl + regulariser}


@dataclass(frozen=True, kw_only=True)
class TSER(Method):
    """Every time step learns from the label and from the teacher by itself, and is kept from overconfidence."""

    name: str = "tser"
    alpha: float = 0.5
    """Weight of the teacher against the label, in [0, 1]; the paper does not give its value."""
    temperature: float = 5.0
    """Temperature of the KL term, greater than 0 (paper: 5)."""
    entropy_weight: float = 0.01
    """Lambda of Eq. 10, at least 0 (paper: stable from 0.0001 to 0.2)."""
    entropy_temperature: float = 1.0
    """Temperature inside the entropy, greater than 0."""
    scale_by_temperature_squared: bool = True
    """Multiply the KL term by temperature^2, so that its gradient keeps its size."""
    separate_ce: bool = True
    """CE at every step; otherwise of the mean logits."""
    separate_kl: bool = True
    """KL at every step; otherwise of the mean logits."""

    def __post_init__(self) -> None:
        check_weight("method.alpha", self.alpha, 0, 1)
        check_temperature("method.temperature", self.temperature)
        check_weight("method.entropy_weight", self.entropy_weight, 0, 1e6)
        check_temperature("method.entropy_temperature", self.entropy_temperature)

    def loss(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        return tser_loss(
            student.logits,
            logits_of(teacher, self.name),
            target,
            alpha=self.alpha,
            temperature=self.temperature,
            entropy_weight=self.entropy_weight,
            entropy_temperature=self.entropy_temperature,
            scale_by_temperature_squared=self.scale_by_temperature_squared,
            separate_ce=self.separate_ce,
            separate_kl=self.separate_kl,
        )

    def remarks(self, classes: int) -> list[str]:
        uniform = (1 - self.alpha - self.entropy_weight) * log(classes)
        if uniform >= 0:
            return []
        return [
            f"method.entropy_weight {self.entropy_weight} is more than 1 - method.alpha = {1 - self.alpha:g}: for a "
            f"student that finds all {classes} classes equally likely, label and entropy add up to "
            f"(1 - alpha - entropy_weight) ln K = {uniform:.3f}. Being undecided is rewarded and the loss can turn "
            "negative: take a smaller --method.entropy_weight (the paper: 0.0001 to 0.2) or a smaller --method.alpha"
        ]
