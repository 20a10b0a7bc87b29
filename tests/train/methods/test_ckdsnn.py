"""CKDSNN: its maps, its noise-smoothed logits, and their gradients against transcriptions."""

import pytest
import torch
from cases import PLACES, SEEDS, B, K, T, agree, averages, case, draw, halved, hard, kd, mean, outputs, probs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from train.methods import METHODS, Outputs
from train.methods.base import Layers
from train.methods.ckdsnn import CKDSNN
from train.methods.saliency import class_map, unit_range


def seen_by(feature: Tensor, head: nn.Linear) -> Outputs:
    """A teacher whose logits are head(mean over positions of feature^2)."""
    return outputs(head((feature * feature).mean((2, 3))), {"A": feature}, head)


def grad_cam_by_hand(feature: Tensor, head: nn.Linear) -> Tensor:
    """Of `seen_by`: dlogit/dF = W 2 F / (H W)."""
    predicted = head((feature * feature).mean((2, 3))).argmax(-1)
    maps = []
    for b, k in enumerate(predicted):
        positions = feature.shape[2] * feature.shape[3]
        slopes = [head.weight[k, c] * 2 * feature[b, c].sum() / positions**2 for c in range(feature.shape[1])]
        maps.append(sum(slope * feature[b, c] for c, slope in enumerate(slopes)).clamp(min=0))
    return torch.stack(maps).detach()


def cam_by_hand(feature: Tensor, head: nn.Linear) -> Tensor:
    predicted = head((feature * feature).mean((2, 3))).argmax(-1)
    maps = [
        sum(head.weight[k, c] * feature[b, c] for c in range(feature.shape[1])).clamp(min=0)
        for b, k in enumerate(predicted)
    ]
    return torch.stack(maps).detach()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("larger", [False, True])
def test_ckdsnn_is_its_transcription(seed: int, variant: str, larger: bool) -> None:
    z, _, y = case(seed, T, B, K)
    size = 4 if larger else 2
    (own,), (theirs,) = draw(seed + 1, (T, B, 3, 2, 2)), draw(seed + 2, (B, 5, size, size))
    torch.manual_seed(seed)
    head = nn.Linear(5, K, dtype=torch.float64).requires_grad_(False)
    teacher = seen_by(theirs.requires_grad_(variant == "paper"), head)
    zt = teacher.logits.detach()
    method = CKDSNN(
        samd_weight=0.8, map_temperature=1.5, nld_weight=0.6, noise_weight=0.2, temperature=2.0, variant=variant
    )

    def loss(z: Tensor, feature: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return method.loss(outputs(z, {"a": feature}), teacher, y)["total"]

    def transcription(z: Tensor, feature: Tensor) -> Tensor:
        torch.manual_seed(seed)
        noise = torch.randn(B, K, dtype=torch.float64)
        there = (grad_cam_by_hand if variant == "paper" else cam_by_hand)(theirs, head)
        there = halved(there) if larger else there
        here = torch.stack([sum(feature[t, b, c] for t in range(T) for c in range(3)) for b in range(B)])
        maps = []
        for m in (there, here):
            if variant == "code":
                maps.append((m - m.min()) / (m.max() - m.min() + 1e-3))
            else:
                maps.append(torch.stack([(x - x.min()) / (x.max() - x.min() + 1e-8) for x in m]))
        saliency = mean([kd(maps[0][b].flatten(), maps[1][b].flatten(), 1.5) for b in range(B)])
        smooth = []
        for b, average in enumerate(averages(z)):
            middle = average.sum() / K
            variance = ((average - middle) ** 2).sum() / (K - 1)
            if variant == "paper":
                eps = middle + noise[b] * torch.sqrt(variance)
                smooth.append(kd(zt[b], average + 0.2 * eps, 2.0))
            else:
                q = 0.8 * probs(average, 2.0) + 0.2 * probs(middle + noise[b] * variance, 2.0)
                p = probs(zt[b], 2.0)
                smooth.append(4 * torch.dot(p, torch.log(p / q)))
        return hard(z, y) + 0.8 * saliency + 0.6 * mean(smooth)

    agree(loss, transcription, z, own)
    assert theirs.grad is None


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_ckdsnn_without_noise_and_maps_is_distillation(seed: int) -> None:
    z, zt, y = case(seed)
    skd = type(METHODS["skd"])(temperature=2.0).loss(outputs(z), outputs(zt), y)
    for variant in ("paper", "code"):
        method = CKDSNN(samd_weight=0, noise_weight=0, variant=variant)
        terms = method.loss(outputs(z), outputs(zt), y)
        assert torch.allclose(terms["nld"], skd["kl"], rtol=1e-9, atol=1e-12)
        assert torch.allclose(terms["total"], skd["ce"] + skd["kl"], rtol=1e-9, atol=1e-12)
    assert set(CKDSNN(nld_weight=0, samd_weight=0).loss(outputs(z), outputs(zt), y)) == {"ce", "total"}


def test_ckdsnns_class_map_needs_a_classifier_of_the_features_channels() -> None:
    (feature,) = draw(0, (B, 5, 2, 2))
    teacher = outputs(torch.zeros(B, K), {"A": feature}, nn.Linear(20, K))
    with pytest.raises(ValueError, match=r"reads 20 values, not the 5 channels.*variant paper"):
        class_map(teacher, feature)


def test_a_map_without_differences_is_brought_to_zero() -> None:
    for whole_batch in (False, True):
        assert torch.equal(unit_range(torch.full((2, 4), 3.0), whole_batch=whole_batch), torch.zeros(2, 4))


def test_grad_cam_is_of_one_feature() -> None:
    two = {"student_layers": ("x", "y"), "teacher_layers": ("u", "v")}
    with pytest.raises(ValueError, match=r"one of --method.teacher_layers, got 2 \(u, v\)"):
        CKDSNN(**two).layers(PLACES, PLACES)
    assert CKDSNN(**two, variant="code").layers(PLACES, PLACES).teacher == ("u", "v")


def test_only_grad_cam_asks_for_a_differentiable_teacher() -> None:
    assert CKDSNN().layers(PLACES, PLACES) == Layers(student=("s3",), teacher=("s3",), differentiable=True)
    assert not CKDSNN(variant="code").layers(PLACES, PLACES).differentiable
    assert not CKDSNN(samd_weight=0).layers(PLACES, PLACES).differentiable
