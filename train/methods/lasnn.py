"""LaSNN: layer-wise attention transfer from an ANN (Hong et al. 2023, arXiv 2304.09101)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from train.methods.base import (
    Outputs,
    check_shapes,
    check_temperature,
    check_weight,
    cross_entropy,
    distillation,
    logits_of,
    needed,
)
from train.methods.features import FeatureMethod


if TYPE_CHECKING:
    from torch import Tensor


def attention(feature: Tensor) -> Tensor:
    """A / ||A|| with A = sum_c F^2 over the positions: [B, C, H, W] -> [B, H W] (Zagoruyko & Komodakis 2017)."""
    from torch.nn.functional import normalize

    return normalize(feature.pow(2).sum(1).flatten(1), dim=1)


def attention_distance(rates: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum over pairs of || A_student / ||A_student|| - A_teacher / ||A_teacher|| ||_2, mean over B.

    Each is in [0, sqrt 2]. The norm itself, as attention transfer is printed; its code takes the mean of the squares,
    to which the well known weight 1000 belongs.
    """
    from torch.linalg import vector_norm

    distances = [vector_norm(attention(own) - attention(theirs), dim=1).mean() for own, theirs in rates]
    return sum(distances[1:], distances[0])


@dataclass(frozen=True, kw_only=True)
class LaSNN(FeatureMethod):
    """Each stage of the student looks where the teacher's stage looks.

    total = (1 - alpha) CE(mean logits, y) + alpha temperature^2 KL(teacher || mean logits) + attention_weight attention
    The abstract says "attention scheme, layer-wise", the rest is recalled; no code of the authors is known. The loss of
    this name in BKDSNN's repository has no attention: it is kdsnn with alpha 0 (train/methods/kdsnn.py). Channels may
    differ, as attention sums over them.
    """

    name: str = "lasnn"
    attention_weight: float = 1.0
    """Weight of the attention maps, at least 0; ours: the paper's is not known."""
    alpha: float = 0.0
    """Weight of the teacher's logits against the label, in [0, 1]; ours: 0, attention alone."""
    temperature: float = 5.0
    """Temperature of the logits, greater than 0; ours, as in TSER."""

    def __post_init__(self) -> None:
        check_weight("method.attention_weight", self.attention_weight, 0, 1e6)
        check_weight("method.alpha", self.alpha, 0, 1)
        check_temperature("method.temperature", self.temperature)

    @property
    def reads_features(self) -> bool:
        return self.attention_weight > 0

    def loss(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        teacher_logits = logits_of(teacher, self.name)
        check_shapes(student.logits, teacher_logits, target)
        z = student.logits.mean(0)
        ce, kl = cross_entropy(z, target), distillation(teacher_logits, z, self.temperature)
        terms = {"ce": ce, "kl": kl, "total": (1 - self.alpha) * ce + self.alpha * kl}
        if self.reads_features:
            terms["attention"] = attention_distance(self.rates(student, needed(teacher, self.name)))
            terms["total"] = terms["total"] + self.attention_weight * terms["attention"]
        return terms
