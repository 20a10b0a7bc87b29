"""TSER and vanilla distillation against closed forms and independent transcriptions."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import case
from hypothesis import given, settings
from hypothesis import strategies as st

from train.methods import METHODS, Outputs
from train.methods.tser import TSER, tser_loss


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def closed_form_gradient(
    z: np.ndarray, zt: np.ndarray, y: np.ndarray, *, alpha: float, tau: float, weight: float, tau_h: float
) -> np.ndarray:
    """dL/dz of TSER per (t, b), divided by T B: facts of Eq. 8 to 11 worked out by hand, in numpy."""
    T, B, K = z.shape
    onehot = np.eye(K)[y]
    q = softmax(z / tau_h)
    entropy = -(q * np.log(q)).sum(-1, keepdims=True)
    ce = softmax(z) - onehot
    kl = tau * (softmax(z / tau) - softmax(zt / tau))
    return ((1 - alpha) * ce + alpha * kl + weight / tau_h * q * (np.log(q) + entropy)) / (T * B)


def test_tser_gradient_is_the_closed_form_in_100_random_cases() -> None:
    rng = np.random.default_rng(0)
    largest = 0.0
    for seed in range(100):
        T, B, K = rng.integers(1, 6), rng.integers(1, 9), rng.integers(2, 12)
        student, teacher, target = case(seed, T, B, K)
        student.requires_grad_()
        setting = {
            "alpha": rng.uniform(),
            "tau": rng.uniform(1, 6),
            "weight": rng.uniform(0, 0.2),
            "tau_h": rng.uniform(1, 3),
        }
        tser_loss(
            student,
            teacher,
            target,
            alpha=setting["alpha"],
            temperature=setting["tau"],
            entropy_weight=setting["weight"],
            entropy_temperature=setting["tau_h"],
        )["total"].backward()
        wanted = closed_form_gradient(student.detach().numpy(), teacher.numpy(), target.numpy(), **setting)
        assert student.grad is not None
        largest = max(largest, np.abs(student.grad.numpy() - wanted).max())
    assert largest < 1e-12


def test_the_terms_are_those_of_torch_written_step_by_step() -> None:
    student, teacher, target = case(1)
    terms = tser_loss(student, teacher, target, temperature=4.0, entropy_weight=0.1)
    ce = torch.stack([F.cross_entropy(z, target) for z in student]).mean()
    kl = torch.stack(
        [F.kl_div((z / 4).log_softmax(-1), (teacher / 4).softmax(-1), reduction="batchmean") for z in student]
    ).mean()
    h = torch.stack([torch.distributions.Categorical(logits=z).entropy().mean() for z in student]).mean()
    assert torch.allclose(terms["ce"], ce, rtol=0, atol=1e-12)
    assert torch.allclose(terms["kl"], 16 * kl, rtol=0, atol=1e-11)
    assert torch.allclose(terms["entropy"], -0.1 * h, rtol=0, atol=1e-12)
    assert torch.allclose(terms["total"], 0.5 * ce + 8 * kl - 0.1 * h, rtol=0, atol=1e-11)


@given(seed=st.integers(0, 2**31), T=st.integers(2, 6))
@settings(max_examples=50, deadline=None)
def test_permuting_the_steps_changes_nothing(seed: int, T: int) -> None:
    student, teacher, target = case(seed, T)
    order = torch.randperm(T, generator=torch.Generator().manual_seed(seed))
    here, there = (tser_loss(z, teacher, target)["total"] for z in (student, student[order]))
    assert torch.allclose(here, there, rtol=0, atol=1e-12)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_one_step_without_entropy_is_vanilla_distillation(seed: int) -> None:
    student, teacher, target = case(seed, T=1)
    tser = dataclasses.replace(METHODS["tser"], entropy_weight=0.0)
    pair = Outputs(logits=student), Outputs(logits=teacher)
    assert torch.equal(tser.loss(*pair, target)["total"], METHODS["skd"].loss(*pair, target)["total"])


@given(seed=st.integers(0, 2**31), T=st.integers(2, 5))
@settings(max_examples=50, deadline=None)
def test_separating_the_steps_never_lowers_the_loss(seed: int, T: int) -> None:
    # CE and KL are convex in the logits (Jensen), so the mean of the losses bounds the loss of the mean.
    student, teacher, target = case(seed, T)
    apart = tser_loss(student, teacher, target, entropy_weight=0.0)["total"]
    together = tser_loss(student, teacher, target, entropy_weight=0.0, separate_ce=False, separate_kl=False)["total"]
    assert apart >= together - 1e-12


def test_a_student_that_equals_its_teacher_has_no_kl() -> None:
    _, teacher, target = case(2)
    assert abs(tser_loss(teacher.expand(3, -1, -1), teacher, target)["kl"].item()) < 1e-12


def test_the_mean_over_a_batch_is_the_mean_over_its_halves() -> None:
    student, teacher, target = case(3, B=8)
    halves = [tser_loss(student[:, part], teacher[part], target[part])["total"] for part in (slice(4), slice(4, 8))]
    assert torch.allclose(tser_loss(student, teacher, target)["total"], sum(halves) / 2, rtol=0, atol=1e-12)


def test_the_five_rows_of_table_3_are_settings_of_one_function() -> None:
    student, teacher, target = case(4)
    rows = [
        tser_loss(student, teacher, target, separate_ce=ce, separate_kl=kl, entropy_weight=h)["total"].item()
        for ce, kl, h in ((False, False, 0), (True, False, 0), (False, True, 0), (True, True, 0), (True, True, 0.01))
    ]
    assert len(set(rows)) == 5


@pytest.mark.parametrize(
    ("student", "teacher", "target", "message"),
    [
        ((3, 4), (4, 5), (4,), r"student logits must be \[T, B, K\]"),
        ((2, 4, 5), (4, 6), (4,), r"teacher logits must be \[B, K\] = \[4, 5\], got \[4, 6\]"),
        ((2, 4, 5), (4, 5), (3,), r"target must be \[B\] = \[4\], got \[3\]"),
    ],
)
def test_shapes_that_do_not_belong_together_are_named(
    student: tuple[int, ...], teacher: tuple[int, ...], target: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tser_loss(torch.zeros(student), torch.zeros(teacher), torch.zeros(target, dtype=torch.long))


@pytest.mark.parametrize(
    ("field", "value"), [("alpha", 1.5), ("temperature", 0.0), ("entropy_weight", -1.0), ("entropy_temperature", 0.0)]
)
def test_a_hyper_parameter_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"method.{field} must be"):
        TSER(**{field: value})


@pytest.mark.parametrize(
    ("alpha", "entropy_weight", "warned"), [(0.5, 0.4, False), (0.5, 0.6, True), (1.0, 0.01, True)]
)
def test_an_entropy_weight_that_rewards_being_undecided_is_remarked(
    alpha: float, entropy_weight: float, warned: bool
) -> None:
    method = TSER(alpha=alpha, entropy_weight=entropy_weight)
    remarks = method.remarks(classes=7)
    assert bool(remarks) == warned
    undecided = torch.zeros(2, 4, 7, dtype=torch.float64)  # and so is the teacher: the smallest loss there can be
    terms = method.loss(Outputs(logits=undecided), Outputs(logits=undecided[0]), torch.zeros(4, dtype=torch.long))
    assert (terms["total"].item() < 0) == warned
    assert all(f"ln K = {terms['total'].item():.3f}" in remark for remark in remarks)
