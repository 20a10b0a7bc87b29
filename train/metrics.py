"""What is measured of a network on a split: accuracy over time, calibration, firing rates.

Shapes: logits [T, N, K] for N images (a teacher's are [1, N, K]), labels [N].
"""

from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

from train import parallel
from train.checkpoint import Preprocess
from train.data import Split, batches
from train.errors import Diverged
from train.networks import firing_rates


@dataclass(frozen=True, kw_only=True)
class SplitOutputs:
    """A network's answers on a split: logits [T, N, K], labels [N], mean firing rate [T] of every LIF layer."""

    logits: Tensor
    labels: Tensor
    rates: dict[str, Tensor]


def pick_device(asked: str) -> str:
    """auto, cpu or cuda -> cpu or cuda. Raises ValueError for a GPU that is not there."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no CUDA device that torch can use; try --device auto")
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


@torch.no_grad()
def run_split(
    network: nn.Module,
    split: Split,
    preprocess: Preprocess,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 250,
) -> SplitOutputs:
    """Run `network` in eval mode over `split`, and leave it in the mode it was in.

    Several processes share the images, if there are enough; each gets the answers to all, in the split's order.
    """
    was_training = network.training
    n, dtype = len(split), next(network.parameters()).dtype
    shared = 1 < parallel.processes() <= n
    if shared:
        split = split.take(torch.arange(n, device=split.labels.device)[parallel.own_rows(n)])
    network.eval()
    logits, labels = [], []
    sums: dict[str, Tensor] = {}
    with firing_rates(network) as rates:
        for images, target in batches(split, batch_size):
            out = network(preprocess(images.to(device)).to(dtype)).float().cpu()
            logits.append(out if out.dim() == 3 else out.unsqueeze(0))
            labels.append(target.cpu())
            for name, rate in rates.items():
                sums[name] = sums.get(name, torch.zeros(())) + rate.sum(1).double().cpu()
    network.train(was_training)
    found = SplitOutputs(
        logits=torch.cat(logits, 1), labels=torch.cat(labels), rates={name: total / n for name, total in sums.items()}
    )
    if not shared:
        return found
    return SplitOutputs(
        logits=parallel.gather(found.logits, axis=1),
        labels=parallel.gather(found.labels, axis=0),
        rates={name: parallel.all_reduce(rate) for name, rate in found.rates.items()},
    )


def running_mean(logits: Tensor) -> Tensor:
    """Mean of the logits of the first t steps, for t = 1 to T: [T, N, K]. The last is the network's answer."""
    steps = torch.arange(1, len(logits) + 1, dtype=logits.dtype)
    return logits.cumsum(0) / steps[:, None, None]


def accuracy(logits: Tensor, labels: Tensor) -> list[float]:
    """Fraction of right answers for each entry of the first axis."""
    return (logits.argmax(-1) == labels).double().mean(1).tolist()


def confusion(logits: Tensor, labels: Tensor) -> list[list[int]]:
    """Images by true class (row) and answer (column), from logits [N, K]: [K, K]."""
    K = logits.shape[-1]
    counts = torch.bincount(labels * K + logits.argmax(-1), minlength=K * K)
    return counts.view(K, K).tolist()


def calibration_error(logits: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Expected calibration error of logits [N, K] (Guo et al. 2017): mean |confidence - accuracy| over equal bins."""
    confidence, answer = logits.softmax(-1).max(-1)
    right = (answer == labels).double()
    which = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, which, right - confidence.double())
    return (gaps.abs().sum() / len(labels)).item()


def summary(outputs: SplitOutputs) -> dict[str, object]:
    """All measures of a split as JSON types: accuracies in [0, 1], firing rates per neuron and step in [0, 1].

    step_mean, step_spread: mean of the accuracies of the steps alone, largest minus smallest (TSER Fig. 2).
    firing_rate: the mean over the layers of their rates, so that a small layer counts as much as a large one.
    feature_firing_rate: that of the last LIF layer alone, over all steps (TSER Eq. 12).
    Raises Diverged for answers that are not finite.
    """
    if not bool(outputs.logits.isfinite().all()):
        raise Diverged("the network's answers are not finite: its weights are too large or damaged; train it anew")
    means = running_mean(outputs.logits)
    by_step = accuracy(outputs.logits, outputs.labels)
    by_T = accuracy(means, outputs.labels)
    rates = {name: rate.tolist() for name, rate in outputs.rates.items()}
    return {
        "accuracy": by_T[-1],
        "accuracy_by_T": by_T,
        "accuracy_by_step": by_step,
        "step_mean": sum(by_step) / len(by_step),
        "step_spread": max(by_step) - min(by_step),
        "calibration_error": calibration_error(means[-1], outputs.labels),
        "firing_rates": rates,
        "firing_rate": fmean(map(fmean, rates.values())) if rates else None,
        "feature_firing_rate": fmean(list(rates.values())[-1]) if rates else None,
        "images": len(outputs.labels),
    }
