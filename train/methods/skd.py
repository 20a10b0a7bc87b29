"""Vanilla SNN distillation, the baseline of TSER (Eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from train.methods.base import Method, Outputs, check_temperature, check_weight, logits_of
from train.methods.tser import tser_loss


if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SKD(Method):
    """Hinton distillation of the mean logits over T."""

    name: str = "skd"
    alpha: float = 0.5
    """Weight of the teacher against the label, in [0, 1]."""
    temperature: float = 5.0
    """Temperature of the KL term, greater than 0."""

    def __post_init__(self) -> None:
        check_weight("method.alpha", self.alpha, 0, 1)
        check_temperature("method.temperature", self.temperature)

    def loss(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        terms = tser_loss(
            student.logits,
            logits_of(teacher, self.name),
            target,
            alpha=self.alpha,
            temperature=self.temperature,
            entropy_weight=0.0,
            separate_ce=False,
            separate_kl=False,
        )
        return {name: terms[name] for name in ("ce", "kl", "total")}
