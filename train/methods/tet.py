"""TET: Temporal Efficient Training (Deng et al. 2022, ICLR, arXiv 2202.11946). No teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from train.methods.base import Method, Outputs, check_shapes, check_weight, cross_entropy


if TYPE_CHECKING:
    from torch import Tensor


def tet_loss(student_logits: Tensor, target: Tensor, *, mse_weight: float, level: float) -> dict[str, Tensor]:
    """TET's loss for student logits [T, B, K] and target [B].

    total = (1 - mse_weight) ce + mse_weight mse
    ce    = 1/T sum_t CE(softmax(z(t)), y)
    mse   = mean over t, images and classes of (z(t) - level)^2
    As in the authors' code (functions.py of github.com/Gus-Lab/temporal_efficient_training).
    """
    check_shapes(student_logits, None, target)
    ce = cross_entropy(student_logits, target)
    mse = ((student_logits - level) ** 2).mean()
    return {"ce": ce, "mse": mse, "total": (1 - mse_weight) * ce + mse_weight * mse}


@dataclass(frozen=True, kw_only=True)
class TET(Method):
    """Every time step learns from the label by itself; its logits are kept near a level."""

    needs_teacher: ClassVar[bool] = False

    name: str = "tet"
    mse_weight: float = 1e-3
    """Lambda: the part of the loss that keeps the logits near `level`, in [0, 1] (default of the authors' code)."""
    level: float = 1.0
    """Where the logits are kept: the authors take the threshold of their neurons."""

    def __post_init__(self) -> None:
        check_weight("method.mse_weight", self.mse_weight, 0, 1)
        check_weight("method.level", self.level, -1e6, 1e6)

    def loss(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        return tet_loss(student.logits, target, mse_weight=self.mse_weight, level=self.level)
