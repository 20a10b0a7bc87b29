"""SeAl-KD: selective alignment of wrong steps and of steps among themselves (Sun et al. 2026, arXiv 2605.14252)."""

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
    distillation,
    logits_of,
)


if TYPE_CHECKING:
    from torch import Tensor


def error_aware(student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """ELA: student and teacher logits, both [T, B, K], without the contest of wrong and true class.

    Where step t is wrong about image b, the student's logit of the class that it chose becomes that of the true class
    (with its gradient), and the teacher's logits of these two become the smaller of them.
    """
    import torch

    chosen = student_logits.argmax(-1, keepdim=True)
    true = target.expand(student_logits.shape[:2]).unsqueeze(-1)
    classes = torch.arange(student_logits.shape[-1], device=target.device)
    wrong, is_chosen, is_true = chosen != true, classes == chosen, classes == true
    teacher_logits = teacher_logits.expand_as(student_logits)
    low = torch.minimum(teacher_logits.gather(-1, chosen), teacher_logits.gather(-1, true))
    return (
        torch.where(wrong & is_chosen, student_logits.gather(-1, true), student_logits),
        torch.where(wrong & (is_chosen | is_true), low, teacher_logits),
    )


def other_steps(student_logits: Tensor) -> Tensor:
    """STA: what the other steps teach each step, a constant [T, B, K]; T is at least 2.

    The mean of the other steps' logits, weighted by the softmax over s != t of confidence_s cos(z(t), z(s)), with
    confidence = 1 - H(softmax(z(s))) / ln K as in the authors' code.
    """
    import torch
    from torch.nn.functional import normalize

    z = student_logits.detach()
    T, _, K = z.shape
    log_probs = z.log_softmax(-1)
    confidence = 1 + (log_probs.exp() * log_probs).sum(-1) / log(K)
    direction = normalize(z, dim=-1)
    score = confidence * (direction.unsqueeze(1) * direction).sum(-1)  # [t, s, B]
    itself = torch.eye(T, dtype=torch.bool, device=z.device).unsqueeze(-1)
    weight = score.masked_fill(itself, float("-inf")).softmax(1)
    return (weight.unsqueeze(-1) * z).sum(1)


@dataclass(frozen=True, kw_only=True)
class SeAl(Method):
    """Every step learns from the label; from the teacher without what contradicts it; and from sure, similar steps.

    total = 1/T sum_t [CE(z(t), y) + alpha KD(ELA teacher, ELA z(t)) + beta KD(STA(t), z(t))], beta's part 0 for T = 1,
    with KD(p, q) = temperature^2 KL(softmax(p / temperature) || softmax(q / temperature))
    """

    name: str = "seal"
    alpha: float = 0.6
    """Weight of the teacher, at least 0 (the authors: 0.6)."""
    beta: float = 0.15
    """Weight of the other steps, at least 0 (the authors: 0.15)."""
    temperature: float = 3.0
    """Temperature of both, greater than 0 (the authors: 3)."""

    def __post_init__(self) -> None:
        check_weight("method.alpha", self.alpha, 0, 1e6)
        check_weight("method.beta", self.beta, 0, 1e6)
        check_temperature("method.temperature", self.temperature)

    def loss(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        z, teacher_logits = student.logits, logits_of(teacher, self.name)
        check_shapes(z, teacher_logits, target)
        ce = cross_entropy(z, target)
        own, theirs = error_aware(z, teacher_logits, target)
        ela = distillation(theirs, own, self.temperature)
        sta = distillation(other_steps(z), z, self.temperature) if len(z) > 1 else z.new_zeros(())
        return {"ce": ce, "ela": ela, "sta": sta, "total": ce + self.alpha * ela + self.beta * sta}
