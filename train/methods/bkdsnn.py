"""BKDSNN: blurred features and weighted soft labels (Xu et al. 2024, ECCV, arXiv 2407.09083)."""

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
from train.methods.features import FeatureMethod, same_size, squared_distance


if TYPE_CHECKING:
    from torch import Tensor, nn

    from train.methods.features import Pairs
    from train.networks import Places


def weighted_soft_labels(z: Tensor, teacher_logits: Tensor, target: Tensor, *, temperature: float) -> Tensor:
    """WSLD (Zhou et al. 2021) for student logits z and teacher logits [B, K], target [B].

    temperature^2 mean_b w CE(softmax(z_teacher / temperature), softmax(z / temperature)) with the constants
    w = 1 - exp(-CE(z, y) / CE(z_teacher, y)): images that the student knows better than the teacher count less.
    """
    hard, teachers = (
        -logits.detach().log_softmax(-1).gather(1, target[:, None])[:, 0] for logits in (z, teacher_logits)
    )
    weight = 1 - (-hard / (teachers + 1e-7)).exp()  # 1e-7: as in the authors' code
    return temperature**2 * (weight * soft_cross_entropy(teacher_logits, z, temperature)).mean()


def restoration(feature: Tensor, teacher_feature: Tensor, *, rescale_teacher: bool) -> Tensor:
    """1/B ||restored - F_teacher||^2 for [2, B, C, H, W] (restored, aligned) of train.methods.adapters.Restored.

    rescale_teacher: F_teacher times max(aligned) / max(F_teacher), so that both end at the same value.
    """
    restored, aligned = feature
    teacher_feature = teacher_feature.detach()
    if rescale_teacher:
        teacher_feature = teacher_feature * (aligned.max() / teacher_feature.max())
    return squared_distance(*same_size(restored, teacher_feature))


@dataclass(frozen=True, kw_only=True)
class BKDSNN(FeatureMethod):
    """The teacher's feature is restored from a part of the student's firing rates; hard images weigh more.

    total = CE(mean logits, y) + feature_weight 1/B ||G(M * rate) - F_teacher||^2 + logit_weight WSLD
    rate: mean over t of the last stage, by a 1x1 convolution to the teacher's channels where they differ; M drops
    channels of single images; G: convolution 3x3, ReLU, convolution 3x3, trained beside the student.
    """

    name: str = "bkdsnn"
    feature_weight: float = 7e-5
    """Weight of the restored feature, at least 0; 0: logits alone (the authors: 7e-5 for CNNs)."""
    mask: float = 0.15
    """Probability that a channel of an image is dropped, in [0, 1] (the authors' default)."""
    rescale_teacher: bool = False
    """Scale the teacher's feature to the student's largest value, an option of the authors' code (use_clip)."""
    logit_weight: float = 1.0
    """Weight of the teacher's logits, at least 0 (the authors: 1)."""
    temperature: float = 2.0
    """Temperature of the logits, greater than 0 (the authors: 2)."""

    def __post_init__(self) -> None:
        check_weight("method.feature_weight", self.feature_weight, 0, 1e6)
        check_weight("method.mask", self.mask, 0, 1)
        check_weight("method.logit_weight", self.logit_weight, 0, 1e6)
        check_temperature("method.temperature", self.temperature)

    @property
    def reads_features(self) -> bool:
        return self.feature_weight > 0

    def roles(self, places: Places) -> tuple[str, ...]:
        return places.stages[-1:]

    def beside(self, pairs: Pairs) -> nn.Module | None:
        self.check_maps(pairs)
        from train.methods.adapters import Each, Restored

        return Each({path: Restored(own, theirs, mask=self.mask) for path, own, theirs in pairs})

    def loss(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        teacher_logits = logits_of(teacher, self.name)
        check_shapes(student.logits, teacher_logits, target)
        z = student.logits.mean(0)
        ce = cross_entropy(z, target)
        wsld = weighted_soft_labels(z, teacher_logits, target, temperature=self.temperature)
        terms = {"ce": ce, "wsld": wsld, "total": ce + self.logit_weight * wsld}
        if self.reads_features:
            pairs = self.pairs(student.features, needed(teacher, self.name).features)
            distances = [restoration(own, theirs, rescale_teacher=self.rescale_teacher) for _, own, theirs in pairs]
            terms["feature"] = sum(distances[1:], distances[0])
            terms["total"] = terms["total"] + self.feature_weight * terms["feature"]
        return terms
