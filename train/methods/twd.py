"""TWD: temporal-wise distillation with a self-teacher (Yu et al. 2025, ICML, arXiv 2501.15925)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from train.methods.base import (
    Method,
    Outputs,
    check_shapes,
    check_temperature,
    check_weight,
    cross_entropy,
    distillation,
    logits_of,
)


if TYPE_CHECKING:
    from torch import Tensor


def self_teacher(student_logits: Tensor, target: Tensor, *, variant: Literal["paper", "code"]) -> Tensor:
    """What the student [T, B, K] teaches its own steps, a constant [B, K].

    paper: the mean logits over t. code: the mean over the steps that are right about the image, and 0 (a uniform
    answer) where none is.
    """
    z = student_logits.detach()
    if variant == "paper":
        return z.mean(0)
    right = (z.argmax(-1) == target).unsqueeze(-1)
    return (z * right).sum(0) / right.sum(0).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class TWD(Method):
    """Every time step learns from the label, the teacher and the student's own answer over all steps.

    total = 1/T sum_t [CE(z(t), y) + alpha KD(teacher, z(t)) + beta KD(self-teacher, z(t))] with
    KD(p, q) = temperature^2 KL(softmax(p / temperature) || softmax(q / temperature))
    """

    name: str = "twd"
    alpha: float = 0.2
    """Weight of the teacher, at least 0 (default of the authors' code)."""
    beta: float = 0.5
    """Weight of the self-teacher, at least 0 (default of the authors' code)."""
    temperature: float = 3.0
    """Temperature of both, greater than 0 (the authors' code: 3, for ImageNet 1)."""
    variant: Literal["paper", "code"] = "paper"
    """The self-teacher: the mean over all steps, or (in the authors' code) over those that are right."""

    def __post_init__(self) -> None:
        check_weight("method.alpha", self.alpha, 0, 1e6)
        check_weight("method.beta", self.beta, 0, 1e6)
        check_temperature("method.temperature", self.temperature)

    def loss(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        teacher_logits = logits_of(teacher, self.name)
        check_shapes(student.logits, teacher_logits, target)
        ce = cross_entropy(student.logits, target)
        kl = distillation(teacher_logits, student.logits, self.temperature)
        own = self_teacher(student.logits, target, variant=self.variant)
        self_kl = distillation(own, student.logits, self.temperature)
        return {"ce": ce, "kl": kl, "self": self_kl, "total": ce + self.alpha * kl + self.beta * self_kl}
