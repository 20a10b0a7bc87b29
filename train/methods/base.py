"""The one interface of distillation methods, and the losses that several of them share.

A method is a frozen dataclass: its fields are its hyper-parameters (and its command-line flags), `loss` is pure.
Shapes: T time steps, B images, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar


if TYPE_CHECKING:  # a method is also a command line; `--help` must not wait for torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a network gave for one batch: logits ([T, B, K] of a student, [B, K] of a teacher) and named features."""

    logits: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """One way to train a student."""

    needs_teacher: ClassVar[bool] = True

    name: str
    """The method's name in the registry."""

    @abstractmethod
    def loss(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Tensor]:
        """Named scalar terms and "total", the one that is minimised; target: class indices [B]."""


def kl_divergence(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """KL(softmax(z_teacher / temperature) || softmax(z_student / temperature)), summed over K, mean over the rest."""
    teacher_log = (teacher_logits / temperature).log_softmax(-1)
    student_log = (student_logits / temperature).log_softmax(-1)
    return (teacher_log.exp() * (teacher_log - student_log)).sum(-1).mean()


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
    """The teacher's logits, or a ValueError that names the method that cannot do without."""
    if teacher is None:
        raise ValueError(f"method {method} distils from a teacher: give --teacher PATH")
    return teacher.logits


def check_weight(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {value}")


def check_temperature(name: str, value: float) -> None:
    """Raise ValueError unless the temperature is positive and finite."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be greater than 0, got {value}")
