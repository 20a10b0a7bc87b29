"""What the tests of the methods share: random cases, and slow primitives that no method uses."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from train.methods import Outputs
from train.networks import Places


PLACES = Places(stages=("s1", "s2", "s3"), penultimate="flat", classifier="head")
SEEDS = range(5)
T, B, K = 3, 4, 7


def draw(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal tensors of standard deviation 3 in float64."""
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def case(seed: int, T: int = 3, B: int = 4, K: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits [T, B, K], teacher logits [B, K] and targets [B] in float64."""
    student, teacher = draw(seed, (T, B, K), (B, K))
    return student, teacher, torch.randint(K, (B,), generator=torch.Generator().manual_seed(seed))


def outputs(logits: Tensor, features: dict[str, Tensor] | None = None, classifier: nn.Linear | None = None) -> Outputs:
    return Outputs(logits=logits, features=features or {}, classifier=classifier)


def probs(z: Tensor, temperature: float = 1.0) -> Tensor:
    """Softmax of one vector, written out."""
    e = torch.exp((z - z.max().detach()) / temperature)
    return e / e.sum()


def ce(z: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of one vector."""
    return -torch.log(probs(z)[y])


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL of two distributions."""
    return torch.dot(p, torch.log(p / q))


def kd(teacher: Tensor, z: Tensor, temperature: float) -> Tensor:
    """temperature^2 KL of two vectors of logits."""
    return temperature**2 * kl(probs(teacher, temperature), probs(z, temperature))


def mean(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values)


def agree(
    loss: Callable[..., Tensor], transcription: Callable[..., Tensor], *leaves: Tensor, tolerance: float = 1e-9
) -> None:
    """Assert that two functions of the same leaves have the same value and the same gradient in every leaf."""
    found = []
    for function in (loss, transcription):
        own = [leaf.clone().requires_grad_() for leaf in leaves]
        value = function(*own)
        found.append((value.detach(), torch.autograd.grad(value, own, allow_unused=True)))
    (value, gradients), (wanted, wanted_gradients) = found
    assert abs(value - wanted) < tolerance * max(1.0, abs(wanted))
    for gradient, other in zip(gradients, wanted_gradients, strict=True):
        assert (gradient is None) == (other is None)
        if gradient is not None:
            assert torch.isfinite(gradient).all()
            assert (gradient - other).abs().max() < tolerance * max(1.0, other.abs().max())


def averages(z: Tensor) -> list[Tensor]:
    return [mean(list(z[:, b])) for b in range(z.shape[1])]


def hard(z: Tensor, y: Tensor) -> Tensor:
    return mean([ce(average, y[b]) for b, average in enumerate(averages(z))])


def rate(feature: Tensor, b: int) -> Tensor:
    """The mean over t of one image, summed up step by step."""
    return mean([feature[t, b] for t in range(feature.shape[0])])


def halved(feature: Tensor) -> Tensor:
    """Mean of 2x2 blocks."""
    return (feature[..., ::2, ::2] + feature[..., 1::2, ::2] + feature[..., ::2, 1::2] + feature[..., 1::2, 1::2]) / 4
