"""Methods that read logits: value and gradient against transcriptions that go step by step, image by image."""

import dataclasses
from math import log

import numpy as np
import pytest
import torch
from cases import agree, case, ce, draw, kd, kl, mean, outputs, probs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from train.methods import METHODS, Method
from train.methods.hta_kl import HTAKL, head_tail_kl
from train.methods.meom import MEOM, perspectives, running_ahead
from train.methods.seal import SeAl, error_aware, other_steps
from train.methods.strong2weak import Strong2Weak
from train.methods.tet import TET
from train.methods.tser import tser_loss
from train.methods.twd import TWD, self_teacher


SIZES = [(1, 4, 7), (2, 1, 2), (4, 5, 3), (6, 3, 11)]
SEEDS = range(5)


def check(method: Method, transcription, seed: int, size: tuple[int, int, int]) -> None:
    """The method's total against transcription(z, zt, y) -> one value for all, in the student's logits."""
    student, teacher, target = case(seed, *size)

    def loss(z: Tensor) -> Tensor:
        return method.loss(outputs(z), outputs(teacher) if method.needs_teacher else None, target)["total"]

    agree(loss, lambda z: transcription(z, teacher, target), student)


def each(z: Tensor) -> list[tuple[int, int]]:
    return [(t, b) for t in range(z.shape[0]) for b in range(z.shape[1])]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", SIZES)
def test_tet_is_its_transcription(seed: int, size: tuple[int, int, int]) -> None:
    def transcription(z: Tensor, _: Tensor, y: Tensor) -> Tensor:
        hard = mean([ce(z[t, b], y[b]) for t, b in each(z)])
        near = mean([(value - 0.7) * (value - 0.7) for value in z.flatten()])
        return 0.8 * hard + 0.2 * near

    check(TET(mse_weight=0.2, level=0.7), transcription, seed, size)


def test_the_gradient_of_tet_is_the_closed_form() -> None:
    z, _, y = case(0)
    z.requires_grad_()
    TET(mse_weight=0.3, level=2.0).loss(outputs(z), None, y)["total"].backward()
    numbers = z.detach().numpy()
    e = np.exp(numbers)
    wanted = 0.7 * (e / e.sum(-1, keepdims=True) - np.eye(7)[y.numpy()]) / 12 + 0.6 * (numbers - 2) / 84
    assert np.abs(z.grad.numpy() - wanted).max() < 1e-12


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", ["paper", "code"])
def test_twd_is_its_transcription(seed: int, size: tuple[int, int, int], variant: str) -> None:
    def transcription(z: Tensor, zt: Tensor, y: Tensor) -> Tensor:
        values = []
        for t, b in each(z):
            steps = [
                z[s, b].detach() for s in range(len(z)) if variant == "paper" or int(z[s, b].argmax()) == int(y[b])
            ]
            own = mean(steps) if steps else torch.zeros_like(z[t, b])
            values.append(ce(z[t, b], y[b]) + 0.3 * kd(zt[b], z[t, b], 2.0) + 0.6 * kd(own, z[t, b], 2.0))
        return mean(values)

    check(TWD(alpha=0.3, beta=0.6, temperature=2.0, variant=variant), transcription, seed, size)


def test_twds_self_teacher_is_uniform_where_no_step_is_right_and_the_mean_where_all_are() -> None:
    z = torch.tensor([[[2.0, 0.0], [2.0, 0.0]], [[4.0, 0.0], [3.0, 1.0]]])
    assert torch.equal(self_teacher(z, torch.tensor([0, 1]), variant="code"), torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
    assert torch.equal(self_teacher(z, torch.tensor([0, 1]), variant="paper"), z.mean(0))


@given(seed=st.integers(0, 2**31), T=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_twd_without_itself_is_tser_without_entropy(seed: int, T: int) -> None:
    z, zt, y = case(seed, T)
    twd = TWD(alpha=1.0, beta=0.0, temperature=5.0).loss(outputs(z), outputs(zt), y)
    tser = tser_loss(z, zt, y, alpha=0.5, temperature=5.0, entropy_weight=0.0)
    assert torch.allclose(twd["total"], 2 * tser["total"], rtol=1e-12, atol=1e-12)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_one_step_teaches_itself_nothing(seed: int) -> None:
    z, zt, y = case(seed, T=1)
    assert abs(TWD().loss(outputs(z), outputs(zt), y)["self"]) < 1e-12
    assert Strong2Weak().loss(outputs(z), None, y)["kl"].abs() < 1e-12
    assert SeAl().loss(outputs(z), outputs(zt), y)["sta"] == 0
    assert running_ahead(z) == 0


def slow_head_tail(zt: Tensor, z: Tensor, temperature: float, head: float) -> Tensor:
    p, q = probs(zt, temperature), probs(z, temperature)
    gap = (p - q).detach().abs().tolist()
    reached, distance = 0.0, {True: 0.0, False: 0.0}
    for rank, k in enumerate(sorted(range(len(p)), key=lambda k: -p[k])):
        reached += float(p[k])
        distance[rank == 0 or reached < head] += gap[k]
    total = sum(distance.values())
    return (distance[True] * kl(p, q) + distance[False] * kl(q, p)) / total


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("head", [0.0, 0.5, 0.9])
def test_hta_kl_is_its_transcription(seed: int, size: tuple[int, int, int], head: float) -> None:
    def transcription(z: Tensor, zt: Tensor, y: Tensor) -> Tensor:
        averages = [mean(list(z[:, b])) for b in range(z.shape[1])]
        hard = mean([ce(average, y[b]) for b, average in enumerate(averages)])
        soft = mean([slow_head_tail(zt[b], average, 4.0, head) for b, average in enumerate(averages)])
        return 0.4 * hard + 0.6 * 16 * soft

    check(HTAKL(alpha=0.6, temperature=4.0, head=head), transcription, seed, size)


def test_all_classes_in_the_head_make_hta_kl_the_forward_kl() -> None:
    z, zt, y = case(1)
    hta, skd = HTAKL(head=1.0), METHODS["skd"]
    # The last class belongs to the tail where rounding brings the cumulative sum to 1: its share of the gap is tiny.
    zt[:, 3] = -60
    z[..., 3] = -60
    here, there = (method.loss(outputs(z), outputs(zt), y)["kl"] for method in (hta, skd))
    assert torch.allclose(here, there, rtol=1e-4)


def test_hta_kl_of_equal_logits_is_zero_with_a_zero_gradient() -> None:
    _, zt, _ = case(2)
    z = zt.clone().requires_grad_()
    value = head_tail_kl(zt, z, temperature=3.0, head=0.5)
    value.backward()
    assert abs(value) < 1e-12
    assert z.grad.abs().max() < 1e-12


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("direction", ["strong2weak", "weak2strong"])
def test_strong2weak_is_its_transcription(seed: int, size: tuple[int, int, int], direction: str) -> None:
    def transcription(z: Tensor, _: Tensor, y: Tensor) -> Tensor:
        T, B, _ = z.shape
        sure = [sum(float(probs(z[t, b]).detach().max()) for b in range(B)) for t in range(T)]
        strong, weak = sure.index(max(sure)), sure.index(min(sure))
        teaching, taught = (strong, weak) if direction == "strong2weak" else (weak, strong)
        hard = mean([ce(mean(list(z[:, b])), y[b]) for b in range(B)])
        return hard + 0.7 * mean([kd(z[teaching, b].detach(), z[taught, b], 2.5) for b in range(B)])

    check(Strong2Weak(direction=direction, weight=0.7, temperature=2.5), transcription, seed, size)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", SIZES)
def test_seal_is_its_transcription(seed: int, size: tuple[int, int, int]) -> None:
    def transcription(z: Tensor, zt: Tensor, y: Tensor) -> Tensor:
        T, _, K = z.shape
        values = []
        for t, b in each(z):
            own, theirs = list(z[t, b]), list(zt[b])
            chosen, true = int(z[t, b].argmax()), int(y[b])
            if chosen != true:
                own[chosen] = own[true]
                theirs[chosen] = theirs[true] = min(theirs[chosen], theirs[true])
            value = ce(z[t, b], y[b]) + 0.6 * kd(torch.stack(theirs), torch.stack(own), 3.0)
            others = [z[s, b].detach() for s in range(T) if s != t]
            if others:
                here = z[t, b].detach()
                scores = []
                for other in others:
                    p = probs(other)
                    confidence = 1 + float(torch.dot(p, torch.log(p))) / log(K)
                    scores.append(confidence * torch.dot(here, other) / (here.norm() * other.norm()))
                weights = probs(torch.stack(scores))
                teaching = sum(weight * other for weight, other in zip(weights, others, strict=True))
                value = value + 0.15 * kd(teaching, z[t, b], 3.0)
            values.append(value)
        return mean(values)

    check(SeAl(), transcription, seed, size)


def test_seal_leaves_right_steps_alone_and_levels_wrong_ones() -> None:
    z = torch.tensor([[[1.0, 3.0, 0.0]], [[3.0, 1.0, 0.0]]])
    own, theirs = error_aware(z, torch.tensor([[5.0, 2.0, 1.0]]), torch.tensor([0]))
    assert torch.equal(own, torch.tensor([[[1.0, 1.0, 0.0]], [[3.0, 1.0, 0.0]]]))
    assert torch.equal(theirs, torch.tensor([[[2.0, 2.0, 1.0]], [[5.0, 2.0, 1.0]]]))


def test_of_two_steps_seal_teaches_each_the_other() -> None:
    z, _, _ = case(3, T=2)
    assert torch.allclose(other_steps(z), z.flip(0), rtol=0, atol=1e-12)


def linear(seed: int, D: int, K: int) -> nn.Linear:
    head = nn.Linear(D, K, dtype=torch.float64)
    with torch.no_grad():
        weight, bias = draw(seed, (K, D), (K,))
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head.requires_grad_(False)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", SIZES)
def test_meom_is_its_transcription(seed: int, size: tuple[int, int, int]) -> None:
    T, B, K = size
    student, _, target = case(seed, *size)
    (feature,) = draw(seed + 1, (B, 5))
    head = linear(seed + 2, 5, K)
    teacher = outputs(head(feature), {"flat": feature}, head)
    method = MEOM(alpha=0.9, beta=0.5, gamma=0.3, mask=0.4, blend=0.3, temperature=2.0)

    def loss(z: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return method.loss(outputs(z), teacher, target)["total"]

    def transcription(z: Tensor) -> Tensor:
        torch.manual_seed(seed)
        drawn = torch.rand(T, B, 5, dtype=torch.float64)
        steps, ahead = [], []
        for t, b in each(z):
            seen = torch.stack([f if r >= 0.4 else 0 * f for f, r in zip(feature[b], drawn[t, b], strict=True)])
            view = 0.7 * (head.weight @ feature[b] + head.bias) + 0.3 * (head.weight @ seen + head.bias)
            steps.append(0.9 * ce(z[t, b], target[b]) + 0.5 * kd(view, z[t, b], 2.0))
            if t + 1 < T:
                now, later = mean(list(z[: t + 1, b])), mean(list(z[: t + 2, b])).detach()
                ahead.append(-torch.dot(probs(later), torch.log(probs(now))))
        return mean(steps) + (0.3 * mean(ahead) if ahead else 0)

    agree(loss, transcription, student)


def test_an_unmasked_view_is_the_teacher_itself_and_a_fully_masked_one_the_bias() -> None:
    (feature,) = draw(0, (4, 5))
    head = linear(1, 5, 7)
    teacher = outputs(head(feature), {"flat": feature}, head)
    ones = torch.ones(3, 4, 5, dtype=torch.float64)
    assert torch.allclose(perspectives(teacher, ones, blend=0.5), teacher.logits.expand(3, 4, 7), rtol=0, atol=1e-12)
    assert torch.allclose(perspectives(teacher, 0 * ones, blend=1.0), head.bias.expand(3, 4, 7), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [TET(), TWD(), TWD(variant="code"), SeAl(), Strong2Weak(), HTAKL()])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_the_order_of_the_steps_does_not_matter(method: Method, seed: int) -> None:
    z, zt, y = case(seed, T=4)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    here, there = (method.loss(outputs(steps), outputs(zt), y)["total"] for steps in (z, z[order]))
    assert torch.allclose(here, there, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", [TET(), TWD(), TWD(variant="code"), SeAl(), HTAKL()])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_the_mean_over_a_batch_is_the_mean_over_its_halves(method: Method, seed: int) -> None:
    z, zt, y = case(seed, B=6)
    halves = [method.loss(outputs(z[:, part]), outputs(zt[part]), y[part]) for part in (slice(3), slice(3, 6))]
    whole = method.loss(outputs(z), outputs(zt), y)
    assert all(torch.allclose(whole[k], (halves[0][k] + halves[1][k]) / 2, rtol=1e-10, atol=1e-10) for k in whole)


@pytest.mark.parametrize(("name", "term"), [("skd", "kl"), ("tser", "kl"), ("twd", "kl"), ("hta_kl", "kl")])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it(
    name: str, term: str, temperature: float
) -> None:
    _, zt, y = case(6)
    method = dataclasses.replace(METHODS[name], temperature=temperature)
    assert abs(method.loss(outputs(zt.expand(3, -1, -1)), outputs(zt), y)[term]) < 1e-12
