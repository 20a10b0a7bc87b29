"""Maps of where a network looks, from its features [.., C, H, W] to [B, H, W], and how far two are apart (CKDSNN)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from train.methods.base import distillation
from train.methods.features import same_size


if TYPE_CHECKING:
    from torch import Tensor

    from train.methods.base import Outputs

Variant = Literal["paper", "code"]


def activation_map(feature: Tensor) -> Tensor:
    """Sum over t and c of a student's feature [T, B, C, H, W]."""
    return feature.sum((0, 2))


def grad_cam(teacher: Outputs, feature: Tensor) -> Tensor:
    """relu(sum_c a_c F_c) with a_c the mean over H, W of d(logit of the predicted class)/dF_c (Selvaraju et al. 2017).

    feature: a leaf [B, C, H, W] that the teacher's logits depend on (Layers.differentiable).
    """
    import torch

    predicted = teacher.logits.amax(-1).sum()
    (slope,) = torch.autograd.grad(predicted, feature, retain_graph=True)
    return (slope.mean((2, 3), keepdim=True) * feature.detach()).sum(1).relu()


def class_map(teacher: Outputs, feature: Tensor) -> Tensor:
    """relu(sum_c W[predicted class, c] F_c) with the classifier's weight W (Zhou et al. 2016); feature [B, C, H, W].

    Raises ValueError unless the classifier reads the feature's channels.
    """
    assert teacher.classifier is not None
    weight = teacher.classifier.weight.detach()
    if weight.shape[1] != feature.shape[1]:
        raise ValueError(
            f"method.variant code weighs channels by the teacher's classifier, which reads {weight.shape[1]} values, "
            f"not the {feature.shape[1]} channels of the feature: take --method.variant paper (Grad-CAM)"
        )
    weights = weight[teacher.logits.argmax(-1)]
    return (weights[:, :, None, None] * feature.detach()).sum(1).relu()


def unit_range(maps: Tensor, *, whole_batch: bool) -> Tensor:
    """(m - min) / (max(m - min) + epsilon) of flat maps [B, H W]; the extremes of each image or of the whole batch."""
    if whole_batch:
        shifted = maps - maps.min()
        return shifted / (shifted.max() + 1e-3)
    shifted = maps - maps.amin(1, keepdim=True)
    return shifted / (shifted.amax(1, keepdim=True) + 1e-8)


def samd(student_map: Tensor, teacher_map: Tensor, *, temperature: float, variant: Variant) -> Tensor:
    """temperature^2 KL(softmax(M_teacher / temperature) || softmax(M_student / temperature)) of maps [B, H, W].

    The softmax is over the positions. The maps are first brought to [0, 1]: each image by itself, or (code) all
    of a batch together. The text that we have gives no scaling; without one a sum over steps and channels saturates.
    """
    own, theirs = same_size(student_map.unsqueeze(1), teacher_map.detach().unsqueeze(1))
    own, theirs = (unit_range(m.flatten(1), whole_batch=variant == "code") for m in (own, theirs))
    return distillation(theirs, own, temperature)
