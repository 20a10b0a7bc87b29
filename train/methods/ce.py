"""Plain training without a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from train.methods.base import Method, Outputs, check_shapes, cross_entropy


if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CE(Method):
    """Cross-entropy of the mean over T of the logits."""

    needs_teacher: ClassVar[bool] = False

    name: str = "ce"

    def loss(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        check_shapes(student.logits, None, target)
        ce = cross_entropy(student.logits.mean(0), target)
        return {"ce": ce, "total": ce}
