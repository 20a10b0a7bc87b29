"""The integer weights of one layer of the file: the kernels of its parts side by side, relays among them."""

from math import prod

import numpy as np

from export import graph as g
from export.sequence import Stage, Term


MOST_GROUPS = 127
"""Lava keeps the number of groups in 8 bits (chip TOML: limits.conv_parameter)."""


def place_weights(stage: Stage, before: Stage | None, channels: int, *, relay_weight: int) -> tuple[np.ndarray, int]:
    """The layer's integer weights [C_out, C_in / groups, kH, kW], or [N_out, N_in] of a dense layer, and its groups.

    channels: those of what the layer reads. relay_weight: of relays and max pooling.
    """
    if stage.window is None:
        return place_rows(stage, before, relay_weight), 1
    (part, *others) = stage.parts
    if not others and len(part.terms) == 1 and part.terms[0].window == stage.window:
        kernel, groups = kernel_of(part.terms[0], part.shape[0], relay_weight)
        if groups <= MOST_GROUPS:
            return kernel, groups
    weight = np.zeros((sum(part.shape[0] for part in stage.parts), channels, *stage.window.kernel), np.int32)
    for part in stage.parts:
        for term in part.terms:
            assert term.window is not None
            kernel = block_diagonal(*kernel_of(term, part.shape[0], relay_weight))
            row, column = stage.start(part.name), before.start(term.source) if before else 0
            top, left = (stage.window.padding[i] - term.window.padding[i] for i in range(2))
            height, width = term.window.kernel
            inputs = slice(column, column + kernel.shape[1])
            weight[row : row + part.shape[0], inputs, top : top + height, left : left + width] += kernel
    return weight, 1


def place_rows(stage: Stage, before: Stage | None, relay_weight: int) -> np.ndarray:
    """The matrix of a dense layer [N_out, N_in]; it reads channels, rows, columns in this order."""
    assert before is not None, "prepare() sees to it that the first layer is a convolution"
    weight = np.zeros((sum(part.shape[0] for part in stage.parts), sum(prod(p.shape) for p in before.parts)), np.int32)
    for part in stage.parts:
        for term in part.terms:
            source = before.part(term.source)
            row = stage.start(part.name)
            column = before.start(term.source) * prod(source.shape[1:])
            own = relay_weight * np.eye(prod(source.shape), dtype=np.int32)
            rows = own if term.synapse is None else term.synapse.weight
            weight[row : row + part.shape[0], column : column + prod(source.shape)] += rows
    return weight


def kernel_of(term: Term, channels: int, relay_weight: int) -> tuple[np.ndarray, int]:
    """One term's kernel [C_out, C_in / groups, kH, kW] and its groups."""
    if term.synapse is None:
        assert term.window is not None
        return np.full((channels, 1, *term.window.kernel), relay_weight, np.int32), channels
    assert isinstance(term.synapse, g.Conv)
    return term.synapse.weight, term.synapse.groups


def block_diagonal(kernel: np.ndarray, groups: int) -> np.ndarray:
    """A grouped kernel with all its input channels, [C_out, C_in, kH, kW]."""
    out, per_group = len(kernel) // groups, kernel.shape[1]
    full = np.zeros((len(kernel), per_group * groups, *kernel.shape[2:]), np.int32)
    for i in range(groups):
        full[i * out : (i + 1) * out, i * per_group : (i + 1) * per_group] = kernel[i * out : (i + 1) * out]
    return full
