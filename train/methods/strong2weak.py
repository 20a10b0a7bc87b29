"""Strong2Weak and Weak2Strong: time steps teach each other (Ding et al. 2025, NeurIPS, arXiv 2510.07924).

No teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from train.methods.base import (
    Method,
    Outputs,
    check_shapes,
    check_temperature,
    check_weight,
    cross_entropy,
    distillation,
)


if TYPE_CHECKING:
    from torch import Tensor


def strongest_and_weakest(student_logits: Tensor) -> tuple[Tensor, Tensor]:
    """The logits [B, K] of the steps with the largest and the smallest confidence.

    Confidence of a step: the largest probability, mean over the batch.
    """
    confidence = student_logits.detach().softmax(-1).amax(-1).mean(1, keepdim=True)
    # Not logits[argmax], which would wait for the GPU.
    strong, weak = (student_logits.index_select(0, t)[0] for t in (confidence.argmax(0), confidence.argmin(0)))
    return strong, weak


@dataclass(frozen=True, kw_only=True)
class Strong2Weak(Method):
    """The most confident time step teaches the least confident one, or the other way round.

    total = CE(mean logits, y) + weight temperature^2 KL(teaching step || taught step), the teaching step a constant.
    One pair of steps; the paper also has ensembles, simultaneous and cascaded pairs. temperature^2 is ours.
    """

    needs_teacher: ClassVar[bool] = False

    name: str = "strong2weak"
    direction: Literal["strong2weak", "weak2strong"] = "strong2weak"
    """Who teaches: the most confident step, or the least confident one."""
    weight: float = 1.0
    """Lambda: weight of the distillation, at least 0 (paper: 1)."""
    temperature: float = 2.0
    """Temperature of the distillation, greater than 0 (paper: 2)."""

    def __post_init__(self) -> None:
        check_weight("method.weight", self.weight, 0, 1e6)
        check_temperature("method.temperature", self.temperature)

    def loss(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        check_shapes(student.logits, None, target)
        ce = cross_entropy(student.logits.mean(0), target)
        teaching, taught = strongest_and_weakest(student.logits)
        if self.direction == "weak2strong":
            teaching, taught = taught, teaching
        kl = distillation(teaching.detach(), taught, self.temperature)
        return {"ce": ce, "kl": kl, "total": ce + self.weight * kl}
