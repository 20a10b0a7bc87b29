"""HTA-KL: a KL that heeds both the teacher's likely and unlikely classes (Zhang et al. 2025, arXiv 2504.20445)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from train.methods.base import (
    Method,
    Outputs,
    check_shapes,
    check_temperature,
    check_weight,
    cross_entropy,
    logits_of,
)


if TYPE_CHECKING:
    from torch import Tensor


def head_tail_kl(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float, head: float) -> Tensor:
    """HTA-KL of logits [.., B, K] of one shape; mean over all but K.

    w_head KL(p || q) + w_tail KL(q || p) with p, q = softmax(z / temperature) of teacher and student,
    w_head = d_head / (d_head + d_tail), d_head the sum of |p - q| over the head, d_tail over the rest. The head is the
    classes whose cumulative probability, from the teacher's largest on, is below `head`; the largest always belongs to
    it (ours: as printed, the head of a teacher that is sure is empty). The weights are constants (ours), their form is
    recalled from AKL (Wu et al. 2024).
    """
    log_p = (teacher_logits / temperature).log_softmax(-1)
    log_q = (student_logits / temperature).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    ranked, order = p.sort(-1, descending=True)
    in_head = ranked.cumsum(-1) < head
    in_head[..., 0] = True
    gap = (p - q).abs().detach().gather(-1, order)
    total = gap.sum(-1).clamp(min=1e-12)  # equal distributions: both divergences are 0
    w_head, w_tail = (gap * in_head).sum(-1) / total, (gap * ~in_head).sum(-1) / total
    forward, reverse = (p * (log_p - log_q)).sum(-1), (q * (log_q - log_p)).sum(-1)
    return (w_head * forward + w_tail * reverse).mean()


@dataclass(frozen=True, kw_only=True)
class HTAKL(Method):
    """The mean logits follow the teacher, by forward KL where likely classes differ, by reverse KL where others do.

    total = (1 - alpha) CE(mean logits, y) + alpha temperature^2 HTA-KL; that sum is ours, the text that we have
    gives the divergence alone.
    """

    name: str = "hta_kl"
    alpha: float = 0.5
    """Weight of the teacher against the label, in [0, 1]; ours."""
    temperature: float = 5.0
    """Temperature of the divergence, greater than 0; ours, as in TSER."""
    head: float = 0.5
    """Delta: the teacher's cumulative probability where the head ends, in [0, 1] (paper: 0.5)."""

    def __post_init__(self) -> None:
        check_weight("method.alpha", self.alpha, 0, 1)
        check_temperature("method.temperature", self.temperature)
        check_weight("method.head", self.head, 0, 1)

    def loss(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        teacher_logits = logits_of(teacher, self.name)
        check_shapes(student.logits, teacher_logits, target)
        z = student.logits.mean(0)
        ce = cross_entropy(z, target)
        kl = head_tail_kl(teacher_logits, z, temperature=self.temperature, head=self.head) * self.temperature**2
        return {"ce": ce, "kl": kl, "total": (1 - self.alpha) * ce + self.alpha * kl}
