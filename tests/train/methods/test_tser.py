"""The distillation losses against closed forms and independent transcriptions."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from train.checkpoint import Preprocess
from train.config import DataConfig, NetConfig
from train.data import load
from train.methods import METHODS, Outputs
from train.methods.tser import TSER, tser_loss
from train.networks import Network, build


def case(seed: int, T: int = 3, B: int = 4, K: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits [T, B, K], teacher logits [B, K] and targets [B] in float64."""
    generator = torch.Generator().manual_seed(seed)
    student = 3 * torch.randn(T, B, K, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(B, K, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(K, (B,), generator=generator)


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


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.needs_teacher])
def test_a_method_that_needs_a_teacher_says_so(name: str) -> None:
    student, _, target = case(5)
    with pytest.raises(ValueError, match=f"method {name} distils from a teacher"):
        METHODS[name].loss(Outputs(logits=student), None, target)


def quick_teacher(images: Tensor, target: Tensor) -> Network:
    """A teacher that knows these images, frozen."""
    teacher = build(NetConfig(spiking=False, width=0.5))
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.1, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(teacher(images), target).backward()
        optimizer.step()
    teacher.eval().requires_grad_(False)
    assert (teacher(images).argmax(-1) == target).float().mean() > 0.9
    return teacher


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_real_digits_and_leaves_its_teacher_alone(name: str) -> None:
    torch.manual_seed(0)
    digits, method = load(DataConfig()), METHODS[name]
    preprocess = Preprocess(mean=digits.mean, std=digits.std, size=digits.size)
    images, target = preprocess(digits.train.images[:128]), digits.train.labels[:128]
    teacher = quick_teacher(images, target)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    student = build(NetConfig(width=0.5, T=2))  # a fresh one
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    totals = []
    for _ in range(30):
        with torch.no_grad():
            taught = Outputs(logits=teacher(images))
        terms = method.loss(Outputs(logits=student(images)), taught if method.needs_teacher else None, target)
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
        totals.append(terms["total"].item())
    assert np.mean(totals[-3:]) < 0.8 * totals[0]
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
