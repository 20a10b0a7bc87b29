"""What holds of every method in the registry."""

import copy
import dataclasses
import itertools
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import case, outputs
from torch import Tensor

from train.checkpoint import Preprocess
from train.config import DataConfig, NetConfig
from train.data import load
from train.features import Observed
from train.methods import METHODS, Method, Outputs
from train.methods.features import FeatureMethod
from train.networks import Network, Places, build


PLACES = Places(stages=("a", "b"), penultimate="flat", classifier="head")


def test_a_method_is_found_under_its_own_name() -> None:
    assert all(method.name == name for name, method in METHODS.items())


def test_the_methods_are_known_without_torch() -> None:
    code = "import sys, train.methods; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.needs_teacher])
def test_a_method_that_needs_a_teacher_says_so(name: str) -> None:
    student, _, target = case(5)
    with pytest.raises(ValueError, match=f"method {name} distils from a teacher"):
        METHODS[name].loss(outputs(student), None, target)


@pytest.mark.parametrize("name", ["meom", *(n for n, m in METHODS.items() if isinstance(m, FeatureMethod))])
def test_features_of_a_teacher_need_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"method {name} distils from a teacher"):
        METHODS[name].layers(PLACES, None)


NUMBERS = [
    (name, field.name)
    for name, method in METHODS.items()
    for field in dataclasses.fields(method)
    if isinstance(field.default, int | float) and not isinstance(field.default, bool)
]


@pytest.mark.parametrize(("name", "field"), NUMBERS)
def test_a_hyper_parameter_out_of_range_is_named(name: str, field: str) -> None:
    for value in (-1e9, float("nan")):
        with pytest.raises(ValueError, match=rf"method\.{field} must be"):
            dataclasses.replace(METHODS[name], **{field: value})


@pytest.mark.parametrize("name", METHODS)
def test_every_field_of_a_method_says_what_it_is(name: str) -> None:
    """A string stands under each field: the command line's help."""
    import ast
    import inspect

    for base in type(METHODS[name]).__mro__:
        if not dataclasses.is_dataclass(base):
            continue
        (tree,) = ast.parse(inspect.getsource(base)).body
        for field, below in itertools.pairwise([*tree.body, ast.Pass()]):
            if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field) and field.target.id != "name":
                assert isinstance(below, ast.Expr), f"{base.__name__}.{field.target.id}"


class Pair:
    """A student of a method and its frozen teacher on real digits, wired as a run wires them."""

    def __init__(self, method: Method, *, T: int, width: float = 0.5) -> None:
        self.method = method
        self.images, self.target = some_digits()
        network = copy.deepcopy(quick_teacher())
        torch.manual_seed(0)
        self.network = build(NetConfig(width=width, T=T))
        layers = method.layers(self.network.places, network.places if method.needs_teacher else None)
        self.network.hold.T = method.steps(T)
        self.student = Observed(self.network, layers.student)
        self.teacher = Observed(network, layers.teacher, differentiable=layers.differentiable)
        self.student.adapter = method.adapter(
            self.student.shapes(self.images[:2]),
            self.teacher.shapes(self.images[:2]) if method.needs_teacher else {},
            10,
        )

    def taught(self) -> Outputs | None:
        with torch.no_grad():
            return self.teacher.outputs(self.teacher(self.images)) if self.method.needs_teacher else None

    def terms(self, taught: Outputs | None) -> dict[str, Tensor]:
        return self.method.loss(self.student.outputs(self.student(self.images)), taught, self.target)


@cache
def some_digits() -> tuple[Tensor, Tensor]:
    """Normalised training images [128, 1, 8, 8] and their labels."""
    digits = load(DataConfig())
    preprocess = Preprocess(mean=digits.mean, std=digits.std, size=digits.size)
    return preprocess(digits.train.images[:128]), digits.train.labels[:128]


@cache
def quick_teacher() -> Network:
    """A teacher that knows these images, frozen; a test takes a copy."""
    images, target = some_digits()
    torch.manual_seed(0)
    teacher = build(NetConfig(spiking=False, width=0.5))
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.1, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(teacher(images), target).backward()
        optimizer.step()
    teacher.eval().requires_grad_(False).zero_grad()
    assert (teacher(images).argmax(-1) == target).float().mean() > 0.9
    return teacher


VARIANTS = [
    *METHODS.values(),
    *(dataclasses.replace(METHODS[name], variant="code") for name in ("twd",)),
    dataclasses.replace(METHODS["strong2weak"], direction="weak2strong"),
    dataclasses.replace(METHODS["bkdsnn"], rescale_teacher=True),
    dataclasses.replace(METHODS["tssd"], task="all"),
]


@pytest.mark.parametrize("method", VARIANTS, ids=lambda method: method.name)
def test_every_method_learns_real_digits_and_leaves_its_teacher_alone(method: Method) -> None:
    pair = Pair(method, T=2)
    before = {key: value.clone() for key, value in pair.teacher.network.state_dict().items()}
    plain = set(build(NetConfig(width=0.5, T=2)).state_dict())
    optimizer = torch.optim.SGD(pair.student.parameters(), lr=0.05, momentum=0.9)
    history = []
    for _ in range(30):
        terms = pair.terms(pair.taught())
        optimizer.zero_grad()
        terms["total"].backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in pair.student.parameters())
        optimizer.step()
        history.append([terms["total"].item(), terms["ce"].item()])
    first, last = np.array(history)[0], np.array(history)[-3:].mean(0)
    # A total may have a part that no student can remove: the entropy of the teacher in KDSNN's cross-entropy.
    assert (last < [0.9 * first[0], 0.8 * first[1]]).all()
    assert all(torch.equal(before[key], value) for key, value in pair.teacher.network.state_dict().items())
    assert all(parameter.grad is None for parameter in pair.teacher.network.parameters())
    assert set(pair.network.state_dict()) == plain


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_a_student_of_one_step_and_other_channels(name: str) -> None:
    pair = Pair(METHODS[name], T=1, width=0.25)
    terms = pair.terms(pair.taught())
    assert all(value.dim() == 0 and torch.isfinite(value) for value in terms.values())
    terms["total"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in pair.student.parameters())


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.needs_teacher])
def test_no_gradient_reaches_what_the_teacher_said(name: str) -> None:
    pair = Pair(METHODS[name], T=2)
    taught = pair.taught()
    assert taught is not None
    said = [tensor for tensor in (taught.logits, *taught.features.values()) if tensor.is_leaf]
    for tensor in said:
        tensor.requires_grad_()
    pair.terms(taught)["total"].backward()
    assert all(tensor.grad is None for tensor in said)
