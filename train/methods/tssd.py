"""TSSD: temporal and spatial self-distillation (Zuo et al. 2024, arXiv 2406.07862). No teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from train.methods.base import (
    Layers,
    Method,
    Outputs,
    check_shapes,
    check_temperature,
    check_weight,
    cross_entropy,
    distillation,
)


if TYPE_CHECKING:
    from torch import Tensor, nn

    from train.methods.base import Shapes
    from train.networks import Places


@dataclass(frozen=True, kw_only=True)
class TSSD(Method):
    """The student over more steps teaches itself over its own, and its end teaches a weak classifier in its middle.

    total = CE + alpha TSD + beta SSD with KD(p, q) = temperature^2 KL(softmax(p / temperature) || softmax(q /
    temperature)), `long` the mean logits over all steps, `short` over the first ones (as many as the exported
    student's), and the teaching side a constant:
    TSD = KD(long, short);  SSD = KD(long, mean over t of the weak classifier's logits)
    Paper: L_task + alpha L_tsd + beta L_ssd, the two ideas and T; recalled or ours: all else. The weak classifier
    (ours: global average pooling, one linear layer) is trained beside the student and left behind.
    """

    needs_teacher: ClassVar[bool] = False

    name: str = "tssd"
    step_factor: int = 2
    """Training runs so many times the student's time steps, at least 1 (the paper trains 2 with 4; recalled)."""
    alpha: float = 1.0
    """Weight of the longer run, at least 0; ours."""
    beta: float = 1.0
    """Weight of the weak classifier, at least 0; 0: none; ours."""
    temperature: float = 2.0
    """Temperature of both, greater than 0; ours."""
    task: Literal["student", "all"] = "student"
    """The steps whose mean learns from the label: the student's, or all that training runs."""
    student_layers: tuple[str, ...] = ()
    """Module paths of features that get a weak classifier each; none: the network's middle stage."""

    def __post_init__(self) -> None:
        check_weight("method.step_factor", self.step_factor, 1, 1000)
        check_weight("method.alpha", self.alpha, 0, 1e6)
        check_weight("method.beta", self.beta, 0, 1e6)
        check_temperature("method.temperature", self.temperature)

    def steps(self, T: int) -> int:
        return T * self.step_factor

    def layers(self, student: Places, teacher: Places | None) -> Layers:
        if not self.beta:
            return Layers()
        return Layers(student=self.student_layers or (student.stages[len(student.stages) // 2],))

    def adapter(self, student: Shapes, teacher: Shapes, classes: int) -> nn.Module | None:
        if not self.beta:
            return None
        from train.methods.adapters import Each, WeakClassifier

        return Each({path: WeakClassifier(shape, classes) for path, shape in student.items()})

    def loss(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        check_shapes(student.logits, None, target)
        long = student.logits.mean(0)
        short = student.logits[: max(1, len(student.logits) // self.step_factor)].mean(0)
        ce = cross_entropy(short if self.task == "student" else long, target)
        tsd = distillation(long.detach(), short, self.temperature)
        terms = {"ce": ce, "tsd": tsd, "total": ce + self.alpha * tsd}
        if self.beta:
            weak = [
                distillation(long.detach(), logits.mean(0), self.temperature) for logits in student.features.values()
            ]
            terms["ssd"] = sum(weak[1:], weak[0]) / len(weak)
            terms["total"] = terms["total"] + self.beta * terms["ssd"]
        return terms
