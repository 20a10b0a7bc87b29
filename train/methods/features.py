"""What the methods that compare features share: which features, pair by pair, and their sizes.

Shapes as in base.py. Where student and teacher differ in H or W, the larger one is averaged (adaptive average pooling)
to the smaller size of each axis.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from train.methods.base import Layers, Method, Outputs, needed


if TYPE_CHECKING:
    from torch import Tensor, nn

    from train.methods.base import Shapes
    from train.networks import Places

    Pairs = list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    """Path in the student, shape in the student, shape in the teacher."""

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class FeatureMethod(Method):
    """A method that brings features of the student towards features of the teacher, pair by pair."""

    student_layers: tuple[str, ...] = ()
    """Module paths of the student's features; none: those of the method, by the network's stages."""
    teacher_layers: tuple[str, ...] = ()
    """Module paths of the teacher's features, as many as the student's; none: those of the method."""

    @property
    @abstractmethod
    def reads_features(self) -> bool:
        """Whether a weight asks for features at all: where none does, none are kept."""

    def roles(self, places: Places) -> tuple[str, ...]:
        """The features of a network with such places where the settings name none: the end of every stage."""
        return places.stages

    def layers(self, student: Places, teacher: Places | None) -> Layers:
        if not self.reads_features:
            return Layers()
        own = self.student_layers or self.roles(student)
        theirs = self.teacher_layers or self.roles(needed(teacher, self.name))
        if len(own) != len(theirs):
            raise ValueError(
                f"method {self.name} compares features in pairs, but the student has {len(own)} ({', '.join(own)}) "
                f"and the teacher {len(theirs)} ({', '.join(theirs)}): name as many of both with "
                "--method.student_layers and --method.teacher_layers"
            )
        return Layers(student=own, teacher=theirs)

    def pairs(self, student: dict[str, Item], teacher: dict[str, Item]) -> list[tuple[str, Item, Item]]:
        """(path in the student, the student's, the teacher's) of every pair: features, or their shapes."""
        own = self.student_layers or tuple(student)
        theirs = self.teacher_layers or tuple(teacher)
        return [(a, student[a], teacher[b]) for a, b in zip(own, theirs, strict=True)]

    def rates(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        """The student's mean over t and the teacher's feature (a constant) of every pair, of one H and W."""
        return [
            same_size(own.mean(0), theirs.detach()) for _, own, theirs in self.pairs(student.features, teacher.features)
        ]

    def adapter(self, student: Shapes, teacher: Shapes, classes: int) -> nn.Module | None:
        return self.beside(self.pairs(student, teacher)) if self.reads_features else None

    def beside(self, pairs: Pairs) -> nn.Module | None:
        """The adapter for pairs of shapes. Here none; raises ValueError where these are not maps."""
        self.check_maps(pairs)
        return None

    def check_maps(self, pairs: Pairs) -> None:
        """Raise ValueError unless all features are maps: [T, B, C, H, W] and [B, C, H, W]."""
        for path, own, theirs in pairs:
            if len(own) != 5 or len(theirs) != 4:
                raise ValueError(
                    f"method {self.name} compares maps, but the student's {path} is {list(own)} (wanted "
                    f"[T, B, C, H, W]) and the teacher's feature for it {list(theirs)} (wanted [B, C, H, W])"
                )


def same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two features [B, C, H, W], each averaged to the smaller H and W of the two; flat ones [B, D] as they are."""
    from torch.nn.functional import adaptive_avg_pool2d

    if a.shape[2:] == b.shape[2:]:
        return a, b
    size = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    return adaptive_avg_pool2d(a, size), adaptive_avg_pool2d(b, size)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """||a - b||^2 of each image, summed over all else; mean over B."""
    from torch.nn.functional import mse_loss

    return mse_loss(a, b, reduction="sum") / len(a)
