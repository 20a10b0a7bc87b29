"""Methods that read features: value and gradients against transcriptions, their layers and their adapters."""

import pytest
import torch
from cases import PLACES, SEEDS, B, K, T, agree, averages, case, ce, draw, halved, hard, kd, mean, outputs, probs, rate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from train.methods import METHODS
from train.methods.adapters import Aligned, Restored, WeakClassifier
from train.methods.base import Layers
from train.methods.bkdsnn import BKDSNN
from train.methods.features import FeatureMethod, same_size
from train.methods.kdsnn import KDSNN
from train.methods.lasnn import LaSNN
from train.methods.tssd import TSSD


@pytest.mark.parametrize("seed", SEEDS)
def test_kdsnn_is_its_transcription(seed: int) -> None:
    z, zt, y = case(seed, T, B, K)
    # The teacher's second feature is twice as large and averaged; the third is a vector.
    own = draw(seed + 1, (T, B, 5, 4, 4), (T, B, 6, 2, 2), (T, B, 9))
    theirs = draw(seed + 2, (B, 5, 4, 4), (B, 6, 4, 4), (B, 9))
    method = KDSNN(alpha=0.4, temperature=3.0, feature_weight=0.01)
    taught = outputs(zt, dict(zip("ABC", theirs, strict=True)))

    def loss(z: Tensor, *features: Tensor) -> Tensor:
        return method.loss(outputs(z, dict(zip("abc", features, strict=True))), taught, y)["total"]

    def transcription(z: Tensor, *features: Tensor) -> Tensor:
        soft = mean(
            [-torch.dot(probs(zt[b], 3.0), torch.log(probs(average, 3.0))) for b, average in enumerate(averages(z))]
        )
        wanted = [theirs[0], halved(theirs[1]), theirs[2]]
        squares = mean(
            [
                sum(((rate(own, b) - other[b]) ** 2).sum() for own, other in zip(features, wanted, strict=True))
                for b in range(B)
            ]
        )
        return 0.6 * hard(z, y) + 0.4 * 9 * soft + 0.01 * squares

    agree(loss, transcription, z, *own)


@given(seed=st.integers(0, 2**31), alpha=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_kdsnn_without_features_has_the_gradient_of_vanilla_distillation(seed: int, alpha: float) -> None:
    z, zt, y = case(seed)
    z.requires_grad_()
    gradients = []
    for method in (KDSNN(alpha=alpha, feature_weight=0), type(METHODS["skd"])(alpha=alpha)):
        (gradient,) = torch.autograd.grad(method.loss(outputs(z), outputs(zt), y)["total"], z)
        gradients.append(gradient)
    assert torch.allclose(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_lasnn_is_its_transcription(seed: int) -> None:
    z, zt, y = case(seed, T, B, K)
    own, theirs = draw(seed + 1, (T, B, 5, 4, 4), (T, B, 6, 4, 4)), draw(seed + 2, (B, 8, 4, 4), (B, 6, 2, 2))
    method = LaSNN(attention_weight=0.5, alpha=0.3, temperature=2.0)
    taught = outputs(zt, dict(zip("AB", theirs, strict=True)))

    def loss(z: Tensor, *features: Tensor) -> Tensor:
        return method.loss(outputs(z, dict(zip("ab", features, strict=True))), taught, y)["total"]

    def unit(feature: Tensor) -> Tensor:
        energy = sum(channel * channel for channel in feature)
        return energy / torch.sqrt((energy * energy).sum())

    def transcription(z: Tensor, first: Tensor, second: Tensor) -> Tensor:
        distances = []
        for b in range(B):
            one = unit(rate(first, b)) - unit(theirs[0][b])
            two = unit(halved(rate(second, b))) - unit(theirs[1][b])
            distances.append(torch.sqrt((one * one).sum()) + torch.sqrt((two * two).sum()))
        soft = mean([kd(zt[b], average, 2.0) for b, average in enumerate(averages(z))])
        return 0.7 * hard(z, y) + 0.3 * soft + 0.5 * mean(distances)

    agree(loss, transcription, z, *own)


def test_a_silent_stage_and_one_that_equals_the_teachers_have_finite_gradients_in_lasnn() -> None:
    z, zt, y = case(0, T, B, K)
    (feature,) = draw(1, (B, 5, 4, 4))
    for own in (torch.zeros(T, B, 5, 4, 4, dtype=torch.float64), feature.expand(T, B, 5, 4, 4).clone()):
        own.requires_grad_()
        terms = LaSNN().loss(outputs(z, {"a": own}), outputs(zt, {"A": feature}), y)
        terms["total"].backward()
        assert torch.isfinite(own.grad).all()
    assert terms["attention"] < 1e-12


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rescale", [False, True])
def test_bkdsnn_is_its_transcription(seed: int, rescale: bool) -> None:
    z, zt, y = case(seed, T, B, K)
    (made,), (theirs,) = draw(seed + 1, (2, B, 5, 4, 4)), draw(seed + 2, (B, 5, 4, 4))
    method = BKDSNN(feature_weight=0.02, rescale_teacher=rescale, logit_weight=0.7, temperature=2.0)

    def loss(z: Tensor, made: Tensor) -> Tensor:
        return method.loss(outputs(z, {"a": made}), outputs(zt, {"A": theirs}), y)["total"]

    def transcription(z: Tensor, made: Tensor) -> Tensor:
        soft, squares = [], []
        wanted = theirs / theirs.max() * made[1].max() if rescale else theirs + 0 * made[1]
        for b, average in enumerate(averages(z)):
            weight = 1 - torch.exp(-ce(average.detach(), y[b]) / (ce(zt[b], y[b]) + 1e-7))
            soft.append(-4 * weight * torch.dot(probs(zt[b], 2.0), torch.log(probs(average, 2.0))))
            squares.append(((made[0, b] - wanted[b]) ** 2).sum())
        return hard(z, y) + 0.02 * mean(squares) + 0.7 * mean(soft)

    agree(loss, transcription, z, made)


@pytest.mark.parametrize("channels", [5, 6])
def test_bkdsnns_adapter_restores_what_its_mask_leaves(channels: int) -> None:
    torch.manual_seed(0)
    part = Restored((T, B, 5, 4, 4), (B, channels, 4, 4), mask=0.4).double()
    (feature,) = draw(0, (T, B, 5, 4, 4))
    torch.manual_seed(1)
    restored, aligned = part(feature)
    torch.manual_seed(1)
    kept = (torch.rand(B, channels) >= 0.4).double()
    assert 0 < kept.mean() < 1
    convolutions = [module for module in part.modules() if isinstance(module, nn.Conv2d)]
    first, second = convolutions[-2:]
    base = feature.mean(0)
    if channels != 5:
        (align,) = convolutions[:-2]
        base = torch.einsum("oc,bchw->bohw", align.weight[:, :, 0, 0], base) + align.bias[:, None, None]
    assert torch.allclose(aligned, base, rtol=0, atol=1e-12)
    hidden = F.conv2d(base * kept[:, :, None, None], first.weight, first.bias, padding=1).clamp(min=0)
    assert torch.allclose(restored, F.conv2d(hidden, second.weight, second.bias, padding=1), rtol=0, atol=1e-12)


def test_a_mask_of_0_keeps_all_and_one_of_1_nothing() -> None:
    (feature,) = draw(0, (T, B, 5, 4, 4))
    for mask, seen in ((0.0, feature.mean(0)), (1.0, torch.zeros(B, 5, 4, 4, dtype=torch.float64))):
        part = Restored((T, B, 5, 4, 4), (B, 5, 4, 4), mask=mask).double()
        assert torch.equal(part(feature)[0], part.restore(seen))


def test_wsld_forgets_images_that_the_student_knows_and_the_teacher_does_not() -> None:
    _, zt, y = case(0, T, B, K)
    sure = 1e3 * F.one_hot(y, K).double()
    assert BKDSNN(feature_weight=0).loss(outputs(sure.expand(T, B, K)), outputs(zt), y)["wsld"] == 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("task", ["student", "all"])
@pytest.mark.parametrize("steps", [1, 2, 5, 6])
def test_tssd_is_its_transcription(seed: int, task: str, steps: int) -> None:
    z, _, y = case(seed, steps, B, K)
    weak = draw(seed + 1, (steps, B, K), (steps, B, K))
    method = TSSD(step_factor=2, alpha=0.7, beta=0.4, temperature=1.5, task=task)

    def loss(z: Tensor, *weak: Tensor) -> Tensor:
        return method.loss(outputs(z, dict(zip("ab", weak, strict=True))), None, y)["total"]

    def transcription(z: Tensor, *weak: Tensor) -> Tensor:
        first = z[: {1: 1, 2: 1, 5: 2, 6: 3}[steps]]
        values = []
        for b in range(B):
            long, short = mean(list(z[:, b])), mean(list(first[:, b]))
            value = ce(short if task == "student" else long, y[b]) + 0.7 * kd(long.detach(), short, 1.5)
            for logits in weak:
                value = value + 0.4 / 2 * kd(long.detach(), mean(list(logits[:, b])), 1.5)
            values.append(value)
        return mean(values)

    agree(loss, transcription, z, *weak)


def test_tssd_runs_longer_in_training_and_looks_at_the_middle() -> None:
    assert TSSD().steps(2) == 4
    assert TSSD(step_factor=3).steps(1) == 3
    assert TSSD().layers(PLACES, None) == Layers(student=("s2",))
    assert TSSD(student_layers=("s1", "s3")).layers(PLACES, None) == Layers(student=("s1", "s3"))
    assert TSSD(beta=0).layers(PLACES, None) == Layers()
    assert TSSD(beta=0).adapter({}, {}, K) is None


def test_tssds_weak_classifier_gives_logits_at_every_step_of_maps_and_of_vectors() -> None:
    maps, vectors = draw(0, (T, B, 5, 4, 2), (T, B, 5))
    part = WeakClassifier((T, B, 5, 4, 2), K).double()
    logits = part(maps)
    assert logits.shape == (T, B, K)
    assert torch.allclose(logits[1, 2], part.linear(maps[1, 2].flatten(1).mean(1)), rtol=0, atol=1e-12)
    assert torch.equal(part(vectors), part.linear(vectors))


FEATURES = [name for name, method in METHODS.items() if isinstance(method, FeatureMethod)]


@pytest.mark.parametrize("name", FEATURES)
def test_layers_come_from_the_networks_stages_or_from_the_settings(name: str) -> None:
    kind = type(METHODS[name])
    found = kind().layers(PLACES, PLACES)
    assert found.student == found.teacher
    assert found.student in (PLACES.stages, PLACES.stages[-1:])
    named = kind(student_layers=("x",), teacher_layers=("u",)).layers(PLACES, PLACES)
    assert (named.student, named.teacher) == (("x",), ("u",))


@pytest.mark.parametrize("name", FEATURES)
def test_features_that_do_not_pair_up_are_named(name: str) -> None:
    method = type(METHODS[name])(student_layers=("x", "y"), teacher_layers=("u",))
    with pytest.raises(ValueError, match=rf"method {name} .* the student has 2 \(x, y\) and the teacher 1 \(u\)"):
        method.layers(PLACES, PLACES)


@pytest.mark.parametrize("name", FEATURES)
def test_features_named_in_another_order_than_the_networks_stay_pairs(name: str) -> None:
    method = type(METHODS[name])(student_layers=("late", "early"), teacher_layers=("u", "v"))
    assert method.pairs({"early": 1, "late": 2}, {"u": 3, "v": 4}) == [("late", 2, 3), ("early", 1, 4)]


WEIGHTS = {"kdsnn": "feature_weight", "lasnn": "attention_weight", "bkdsnn": "feature_weight", "ckdsnn": "samd_weight"}


@pytest.mark.parametrize("name", FEATURES)
def test_without_a_weight_no_features_are_read_and_nothing_is_trained_beside(name: str) -> None:
    z, zt, y = case(0)
    method = type(METHODS[name])(**{WEIGHTS[name]: 0}, student_layers=("x",))
    assert method.layers(PLACES, PLACES) == Layers()
    assert method.adapter({}, {}, K) is None
    assert torch.isfinite(method.loss(outputs(z), outputs(zt), y)["total"])


@pytest.mark.parametrize("name", FEATURES)
def test_shapes_that_cannot_be_compared_are_named(name: str) -> None:
    method = METHODS[name]
    with pytest.raises(ValueError, match=rf"method {name} compares maps.*the student's flat is \[3, 2, 9\]"):
        method.adapter({"flat": (3, 2, 9)}, {"map": (2, 5, 4, 4)}, K)


def test_aligned_features_have_the_teachers_channels() -> None:
    maps, vectors = draw(0, (T, B, 5, 4, 4), (T, B, 5))
    assert Aligned((T, B, 5, 4, 4), (B, 8, 2, 2)).double()(maps).shape == (1, B, 8, 4, 4)
    assert Aligned((T, B, 5), (B, 8)).double()(vectors).shape == (1, B, 8)
    assert torch.equal(Aligned((T, B, 5, 4, 4), (B, 5, 2, 2))(maps)[0], maps.mean(0))
    assert KDSNN().adapter({"a": (T, B, 5, 4, 4)}, {"A": (B, 5, 2, 2)}, K) is None
    adapter = KDSNN().adapter({"a.b": (T, B, 5, 4, 4)}, {"A": (B, 8, 2, 2)}, K)
    assert adapter is not None
    assert {path: made.shape for path, made in adapter({"a.b": maps.float()}).items()} == {"a.b": (1, B, 8, 4, 4)}


def test_features_of_other_sizes_meet_at_the_smaller_of_each_axis() -> None:
    a, b = draw(0, (2, 3, 4, 2), (2, 3, 2, 4))
    small, other = same_size(a, b)
    assert small.shape == other.shape == (2, 3, 2, 2)
    assert torch.allclose(small[0, 0, 0], a[0, 0, :2].mean(0), rtol=0, atol=1e-12)
    assert all(x is y for x, y in zip(same_size(a, a), (a, a), strict=True))


@pytest.mark.parametrize("name", ["kdsnn", "lasnn"])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_the_mean_over_a_batch_is_the_mean_over_its_halves(name: str, seed: int) -> None:
    z, zt, y = case(seed, B=6)
    own, theirs = draw(seed, (3, 6, 5, 4, 4), (6, 5, 4, 4))
    method = METHODS[name]

    def total(part: slice) -> Tensor:
        return method.loss(outputs(z[:, part], {"a": own[:, part]}), outputs(zt[part], {"A": theirs[part]}), y[part])[
            "total"
        ]

    assert torch.allclose(total(slice(6)), (total(slice(3)) + total(slice(3, 6))) / 2, rtol=1e-10, atol=1e-10)
