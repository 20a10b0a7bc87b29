"""KDSNN: logits and features of an ANN teacher (Xu et al. 2023, CVPR, arXiv 2304.05627)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from train.methods.base import (
    Outputs,
    check_shapes,
    check_temperature,
    check_weight,
    cross_entropy,
    logits_of,
    needed,
    soft_cross_entropy,
)
from train.methods.features import FeatureMethod, squared_distance


if TYPE_CHECKING:
    from torch import Tensor, nn

    from train.methods.features import Pairs


def kdsnn_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    rates: list[tuple[Tensor, Tensor]],
    *,
    alpha: float,
    temperature: float,
    feature_weight: float,
) -> dict[str, Tensor]:
    """KDSNN's loss for student logits [T, B, K], teacher logits [B, K], target [B].

    rates: pairs of the student's mean over t and the teacher's feature, [B, C, H, W] or [B, D].
    total   = (1 - alpha) ce + alpha soft + feature_weight feature, of the mean logits z over t:
    ce      = CE(softmax(z), y)
    soft    = temperature^2 CE(softmax(z_teacher / temperature), softmax(z / temperature))
    feature = sum over pairs of the mean over B of ||student - teacher||^2, summed over C, H, W
    The form is recalled; that `soft` is a cross-entropy instead of a KL is confirmed by TSER's section on training
    time. Its gradient is the KL's. The repository of BKDSNN has a loss of this name: `feature` of the last stage alone
    (alpha 0), and its "LaSNN" is `feature` of four stages.
    """
    check_shapes(student_logits, teacher_logits, target)
    z = student_logits.mean(0)
    ce = cross_entropy(z, target)
    soft = soft_cross_entropy(teacher_logits, z, temperature).mean() * temperature**2
    terms = {"ce": ce, "soft": soft, "total": (1 - alpha) * ce + alpha * soft}
    if rates:
        terms["feature"] = sum((squared_distance(own, theirs) for own, theirs in rates), z.new_zeros(()))
        terms["total"] = terms["total"] + feature_weight * terms["feature"]
    return terms


@dataclass(frozen=True, kw_only=True)
class KDSNN(FeatureMethod):
    """The student's mean logits follow the teacher's, its firing rates the teacher's features.

    A student of other channels gets a 1x1 convolution at each feature while it trains.
    """

    name: str = "kdsnn"
    alpha: float = 0.5
    """Weight of the teacher's logits against the label, in [0, 1]; 0: features alone. The paper's is not known."""
    temperature: float = 5.0
    """Temperature of the teacher's logits, greater than 0; ours, as in TSER."""
    feature_weight: float = 7e-5
    """Weight of the features, at least 0; 0: logits alone (default of BKDSNN's repository)."""

    def __post_init__(self) -> None:
        check_weight("method.alpha", self.alpha, 0, 1)
        check_temperature("method.temperature", self.temperature)
        check_weight("method.feature_weight", self.feature_weight, 0, 1e6)

    @property
    def reads_features(self) -> bool:
        return self.feature_weight > 0

    def beside(self, pairs: Pairs) -> nn.Module | None:
        for path, own, theirs in pairs:
            if len(own) != len(theirs) + 1:
                raise ValueError(
                    f"method {self.name} compares maps with maps and vectors with vectors: the student's {path} is "
                    f"{list(own)}, the teacher's feature for it {list(theirs)}"
                )
        if all(own[2] == theirs[1] for _, own, theirs in pairs):
            return None
        from train.methods.adapters import Aligned, Each

        return Each({path: Aligned(own, theirs) for path, own, theirs in pairs})

    def loss(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        return kdsnn_loss(
            student.logits,
            logits_of(teacher, self.name),
            target,
            self.rates(student, needed(teacher, self.name)) if self.reads_features else [],
            alpha=self.alpha,
            temperature=self.temperature,
            feature_weight=self.feature_weight,
        )
