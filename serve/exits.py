"""When an image has had enough time steps: how sure the mean of the logits so far is, held against a threshold.

The rule and its threshold are calibrated when a bundle is written and applied when it is served, both with this file.

Shapes: T time steps, B images, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np


Rule = Literal["confidence", "entropy", "margin"]


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(x) / sum(exp(x)) over the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def confidence(probs: np.ndarray) -> np.ndarray:
    """The largest probability, [..., K] -> [...]."""
    return probs.max(axis=-1)


def entropy(probs: np.ndarray) -> np.ndarray:
    """1 - H(p) / log K, [..., K] -> [...]: 0 where all classes are equally probable, 1 where one is certain."""
    classes = probs.shape[-1]
    if classes == 1:  # nothing to be unsure of
        return np.ones(probs.shape[:-1])
    logs = np.log(probs, out=np.zeros_like(probs), where=probs > 0)
    return 1 + (probs * logs).sum(axis=-1) / np.log(classes)


def margin(probs: np.ndarray) -> np.ndarray:
    """The largest probability less the second largest, [..., K] -> [...]."""
    if probs.shape[-1] == 1:
        return probs[..., 0]
    best = np.partition(probs, -2, axis=-1)
    return best[..., -1] - best[..., -2]


RULES: dict[Rule, Callable[[np.ndarray], np.ndarray]] = {"confidence": confidence, "entropy": entropy, "margin": margin}
assert tuple(RULES) == get_args(Rule)


@dataclass(frozen=True)
class Exit:
    """An image stops after the first step t whose sureness is greater than `at(t)`, at the latest after all."""

    rule: Rule
    threshold: float
    """What the first step is held against, in [0, 1]; 1 never stops early."""
    relax: float = 0.0
    """How the doubt that is allowed grows with the steps taken: 1 - at(t) = (1 - threshold) t^relax. 0: not at all.

    The mean of more steps is right more often when it is as unsure, and fewer steps are left to change it."""

    def at(self, t: int) -> float:
        """What the sureness after step t = 1, 2, .. is held against; at t = 1 or relax = 0 the threshold itself."""
        return self.threshold - (1 - self.threshold) * (t**self.relax - 1)

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"the exit rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        checked_threshold(self.threshold)
        if not 0 <= self.relax <= 4:  # also for NaN
            raise ValueError(f"relax must lie in [0, 4], 0 for the same threshold at every step, got {self.relax}")


def checked_threshold(threshold: float) -> float:
    """The threshold as it is; ValueError unless it lies in [0, 1]."""
    if not 0 <= threshold <= 1:  # also for NaN
        raise ValueError(f"the exit threshold must lie in [0, 1], 1 for always all time steps, got {threshold}")
    return threshold


def running_mean(logits: np.ndarray) -> np.ndarray:
    """The mean of the first t logits, t = 1..T: [T, ..., K] -> float64 of the same shape, summed from step 1 on."""
    steps = np.arange(1, len(logits) + 1).reshape(-1, *[1] * (logits.ndim - 1))
    return np.cumsum(logits, axis=0, dtype=np.float64) / steps


def sureness(mean_logits: np.ndarray, rule: Rule) -> np.ndarray:
    """How sure the softmax of these logits [B, K] is by `rule`: [B] in [0, 1]; NaN, never sure, where a logit is NaN.

    One image's value does not depend on the others, to the last bit.
    """
    # Contiguous: numpy adds in another order along strided rows.
    return np.clip(RULES[rule](softmax(np.ascontiguousarray(mean_logits))), 0.0, 1.0)


def sureness_by_step(logits: np.ndarray, rule: Rule) -> np.ndarray:
    """How sure the mean of the first t logits is, t = 1..T: [T, B, K] -> [T, B]."""
    if logits.ndim != 3 or not len(logits):
        raise ValueError(f"logits must have the shape [T, B, K] with T >= 1, got {list(logits.shape)}")
    return np.stack([sureness(mean, rule) for mean in running_mean(logits)])


def steps_needed(logits: np.ndarray, exit: Exit) -> np.ndarray:
    """After how many steps each image stops, from its logits at all steps: [T, B, K] -> int64 [B] in 1..T."""
    return first_sure(sureness_by_step(logits, exit.rule), exit)


def first_sure(sureness: np.ndarray, exit: Exit) -> np.ndarray:
    """The same from how sure each step is: [T, B] -> int64 [B] in 1..T."""
    bounds = np.array([exit.at(t) for t in range(1, len(sureness) + 1)])
    sure = sureness > bounds[:, None]
    sure[-1] = True
    return sure.argmax(axis=0) + 1
