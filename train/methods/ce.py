"""Plain training without a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from train.methods.base import Method, Outputs, check_shapes, check_weight, cross_entropy


if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CE(Method):
    """Cross-entropy of the mean over T of the logits."""

    needs_teacher: ClassVar[bool] = False

    name: str = "ce"
    label_smoothing: float = 0.0
    """Part of the target that is spread over all classes, in [0, 1]."""

    def __post_init__(self) -> None:
        check_weight("method.label_smoothing", self.label_smoothing, 0, 1)

    def loss(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        check_shapes(student.logits, None, target)
        ce = cross_entropy(student.logits.mean(0), target, label_smoothing=self.label_smoothing)
        return {"ce": ce, "total": ce}
