"""The one interface of distillation methods, and the losses that several of them share.

A method is a frozen dataclass: its fields are its hyper-parameters (and its command-line flags). It says which features
it needs, what is trained beside the student, and gives the loss, a function of its arguments (and of torch's random
state, where a method draws).
Shapes: T time steps, B images, K classes, C channels, H, W pixels of a feature, D values of a flat one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, TypeVar


if TYPE_CHECKING:  # a method is also a command line; `--help` must not wait for torch
    from torch import Tensor, nn

    from train.networks import Places

    Shapes = dict[str, tuple[int, ...]]
    """Features by module path: [T, B, ..] of a student, [B, ..] of a teacher, with B = 2."""

Teacher = TypeVar("Teacher")


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a network gave for one batch."""

    logits: Tensor
    """[T, B, K] of a student, [B, K] of a teacher."""
    features: dict[str, Tensor] = field(default_factory=dict)
    """The outputs of the modules that the method asked for, by module path: [T, B, C, H, W] or [T, B, D] of a student,
    without T of a teacher, in the order of the forward pass. What a method's adapter makes of a student's feature
    stands under the same path, in its place."""
    classifier: nn.Linear | None = None
    """The network's last layer, which makes logits of the feature `Places.penultimate`."""


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Module paths of the features that a method reads."""

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    differentiable: bool = False
    """Whether the teacher's logits can be differentiated by its features (class activation maps)."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """One way to train a student."""

    needs_teacher: ClassVar[bool] = True

    name: str
    """The method's name in the registry."""

    @abstractmethod
    def loss(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        """Named scalar terms and "total", the one that is minimised; target: class indices [B]."""

    def layers(self, student: Places, teacher: Places | None) -> Layers:
        """The features that `loss` and `adapter` read, of networks with such places. None by default."""
        return Layers()

    def adapter(self, student: Shapes, teacher: Shapes, classes: int) -> nn.Module | None:
        """What is trained beside the student and left behind at its checkpoint: a module that maps the student's
        features to entries that replace or join them (dict -> dict). Raises ValueError for shapes that cannot be
        matched."""
        return None

    def steps(self, T: int) -> int:
        """Time steps that a student of T steps runs in training."""
        return T

    def remarks(self, classes: int) -> list[str]:
        """What a person should know about these settings before the first step."""
        return []


def kl_divergence(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """KL(softmax(z_teacher / temperature) || softmax(z_student / temperature)), summed over K, mean over the rest."""
    teacher_log = (teacher_logits / temperature).log_softmax(-1)
    student_log = (student_logits / temperature).log_softmax(-1)
    return (teacher_log.exp() * (teacher_log - student_log)).sum(-1).mean()


def distillation(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """kl_divergence * temperature^2, whose gradient keeps its size at every temperature (Hinton et al. 2015).

    student_logits may have leading axes that the teacher's have not (time steps); the mean is taken over them.
    """
    return kl_divergence(teacher_logits, student_logits, temperature) * temperature**2


def soft_cross_entropy(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """-sum_k softmax(z_teacher / temperature) log softmax(z_student / temperature), without the mean: [..., B]."""
    return -((teacher_logits / temperature).softmax(-1) * (student_logits / temperature).log_softmax(-1)).sum(-1)


def cross_entropy(logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean of -log softmax(z)[target] over [..., B, K]; every leading axis sees the same target [B].

    label_smoothing: part of the target that is spread evenly over the K classes (Szegedy et al. 2016).
    """
    log_probs = logits.log_softmax(-1)
    index = target.expand(logits.shape[:-1]).unsqueeze(-1)
    hard = -log_probs.gather(-1, index).mean()
    return hard if not label_smoothing else (1 - label_smoothing) * hard - label_smoothing * log_probs.mean()


def entropy(logits: Tensor, temperature: float) -> Tensor:
    """Mean of -sum_k q log q over everything but K, q = softmax(z / temperature), in nats (TSER Eq. 9)."""
    log_probs = (logits / temperature).log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1).mean()


def check_shapes(student_logits: Tensor, teacher_logits: Tensor | None, target: Tensor) -> None:
    """Raise ValueError unless student [T, B, K], teacher [B, K] and target [B] belong together."""
    if student_logits.dim() != 3 or student_logits.shape[0] == 0:
        raise ValueError(f"student logits must be [T, B, K], got {list(student_logits.shape)}")
    _, b, k = student_logits.shape
    if teacher_logits is not None and teacher_logits.shape != (b, k):
        raise ValueError(f"teacher logits must be [B, K] = [{b}, {k}], got {list(teacher_logits.shape)}")
    if target.shape != (b,):
        raise ValueError(f"target must be [B] = [{b}], got {list(target.shape)}")


def logits_of(teacher: Outputs | None, method: str) -> Tensor:
    """The teacher's logits as constants, or a ValueError that names the method that cannot do without."""
    return needed(teacher, method).logits.detach()


def needed(teacher: Teacher | None, method: str) -> Teacher:
    """`teacher` (its outputs, its places), or a ValueError that names the method that cannot do without."""
    if teacher is None:
        raise ValueError(f"method {method} distils from a teacher: give --teacher PATH")
    return teacher


def check_weight(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {value}")


def check_temperature(name: str, value: float) -> None:
    """Raise ValueError unless the temperature is positive and finite."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be greater than 0, got {value}")
