"""Normalisation and LIF of a student as one operation on a CPU: the currents are never written to memory.

A training step of plain modules writes the normalised current of every layer and step, reads it again for the LIF,
and keeps it for the way back. Here a normalisation in training only measures its batch and hands on a `Drive`, the
recipe of the current; the LIF that receives it computes current, membrane and spikes in one pass, and on the way back
computes them again. What is kept of a layer is the convolution's output and the spikes.
Shapes: T steps, B images, C channels; a tensor that is the same at every step has 1 step.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from train.parallel import all_reduce, processes, update_running_statistics


if TYPE_CHECKING:
    from train import kernels


@dataclass(frozen=True, kw_only=True)
class Term:
    """One summand of a current: x [1 or T, B, C, ..], with `mean` a normalisation of it over the batch."""

    x: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    mean: Tensor | None = None
    """Per channel, float64 [C]."""
    invstd: Tensor | None = None
    """1 / sqrt(variance + eps) per channel, float64 [C]."""
    count: int = 0
    """Values per channel that mean and variance were taken of."""
    sync: bool = False
    """Whether those are values of all processes."""


@dataclass(frozen=True)
class Drive:
    """A current [T, B, C, ..] that nobody has computed yet: the sum of its terms."""

    terms: tuple[Term, ...]
    T: int

    def __add__(self, other: Drive | Tensor) -> Drive:
        other = other if isinstance(other, Drive) else Drive((Term(x=other),), other.shape[0])
        return Drive((*self.terms, *other.terms), max(self.T, other.T))

    __radd__ = __add__

    def held(self, T: int) -> Drive:
        """The same current at each of T steps."""
        return replace(self, T=T)


def normalise(norm: nn.BatchNorm2d, x: Tensor, *, sync: bool) -> Drive:
    """The batch normalisation of x [S, B, C, H, W] in training mode, as a Drive; updates the running statistics.

    sync: mean and variance are those of the batches of all processes together.
    """
    rows = as_rows(x.detach())
    L = tile(x.shape[2])
    sums, squares = np.zeros((2, loops().PARTS, L))
    run(loops().moments, rows, L, sums, squares)
    totals = torch.stack([per_channel(sums, x.shape[2]), per_channel(squares, x.shape[2])])
    count = rows.size // x.shape[2]
    if sync:
        totals, count = all_reduce(totals), count * processes()  # every process has as many (parallel.own_part)
    mean = totals[0] / count
    variance = (totals[1] / count - mean**2).clamp_min(0)
    update_running_statistics(norm, mean, variance, count)
    invstd = (variance + norm.eps).rsqrt()
    term = Term(x=x, weight=norm.weight, bias=norm.bias, mean=mean, invstd=invstd, count=count, sync=sync)
    return Drive((term,), x.shape[0])


def fire(lif: neuron.LIFNode, drive: Drive | Tensor) -> Tensor:
    """The spikes [T, B, C, ..] of `lif`, which starts at rest, for a current."""
    drive = drive if isinstance(drive, Drive) else Drive((Term(x=drive),), drive.shape[0])
    terms = sorted(drive.terms, key=lambda term: term.mean is None)  # the normalised ones first
    if len(terms) > 1:
        # A term of one step counts T times beside one of T steps.
        terms = [
            replace(term, x=term.x.expand(drive.T, *term.x.shape[1:]), count=term.count * drive.T // len(term.x))
            for term in terms
        ]
    tensors = [tensor for term in terms for tensor in (term.x, term.weight, term.bias)]
    spikes: Tensor = _Fire.apply(lif, terms, drive.T, *tensors)
    return spikes


class _Fire(torch.autograd.Function):
    """`fire`; the gradient goes through the normalisation of every term."""

    @staticmethod
    def forward(ctx: Any, lif: neuron.LIFNode, terms: list[Term], T: int, *tensors: Tensor) -> Tensor:
        x = terms[0].x
        ctx.neuron, ctx.terms = constants(lif, x.dtype), [replace(term, x=None) for term in terms]  # type: ignore[arg-type]
        ctx.save_for_backward(*(term.x for term in terms))
        spikes = np.empty((T, x[0].numel()), numpy_type(x.dtype))
        rows = tuple(as_rows(term.x) for term in terms)
        run(loops().spikes, rows, *affine(terms, x)[:2], spikes, ctx.neuron)
        return as_images(spikes, (T, *x.shape[1:]))

    @staticmethod
    @once_differentiable  # the kernels leave the graph
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g_spikes,) = grads
        terms = [replace(term, x=x) for term, x in zip(ctx.terms, ctx.saved_tensors, strict=True)]
        rows = tuple(as_rows(term.x) for term in terms)
        scales, shifts, means = affine(terms, terms[0].x)
        L, normed = scales.shape[1], sum(term.mean is not None for term in terms)
        g_drive = np.empty_like(rows[0])
        sums, products = np.zeros((loops().PARTS, L)), np.zeros((normed, loops().PARTS, L))
        steps = (scales, shifts, means, as_rows(g_spikes), g_drive, sums, products)
        run(loops().drive_gradient, rows, *steps, ctx.neuron)
        result: list[Tensor | None] = []
        for k, term in enumerate(terms):
            # The last term's gradient takes the place of the current's.
            out = g_drive if k == len(terms) - 1 else np.empty_like(g_drive)
            if k < normed:
                result += norm_gradient(term, g_drive, sums, products[k], out)
            else:
                out[...] = g_drive
                result += [as_images(out, term.x.shape), None, None]
        return (None, None, None, *result)


def norm_gradient(
    term: Term, g_drive: np.ndarray, sums: np.ndarray, products: np.ndarray, out: np.ndarray
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss's gradients by a normalised term's x (written to `out`), weight and bias.

    With y = (x - mean) invstd weight + bias over n values per channel:
    dL/dx = invstd weight (dL/dy - sum(dL/dy) / n - (x - mean) invstd^2 sum(dL/dy (x - mean)) / n).
    """
    assert term.mean is not None
    assert term.invstd is not None
    C, L = term.x.shape[2], sums.shape[1]
    g_sum, g_product = per_channel(sums, C), per_channel(products, C)
    everywhere = torch.stack([g_sum, g_product])
    if term.sync:
        everywhere = all_reduce(everywhere)
    scale = term.invstd if term.weight is None else term.invstd * term.weight.double()
    slope = -scale * term.invstd**2 * everywhere[1] / term.count
    shift = -scale * everywhere[0] / term.count
    tiled = (tiles(values, term.x.dtype, L) for values in (term.mean, scale, slope, shift))
    run(loops().input_gradient, g_drive, as_rows(term.x), *tiled, out)
    g_weight = None if term.weight is None else (g_product * term.invstd).to(term.weight.dtype)
    g_bias = None if term.bias is None else g_sum.to(term.bias.dtype)
    return as_images(out, term.x.shape), g_weight, g_bias


def affine(terms: list[Term], like: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scale, shift, mean) of every term, tiled, [K, L]: current = x * scale + shift."""
    shape = (len(terms), tile(like.shape[2]))
    kind = numpy_type(like.dtype)
    scales, shifts, means = np.ones(shape, kind), np.zeros(shape, kind), np.zeros(shape, kind)
    for k, term in enumerate(terms):
        if term.mean is not None and term.invstd is not None:
            scale = term.invstd if term.weight is None else term.invstd * term.weight.detach().double()
            shift = -term.mean * scale if term.bias is None else term.bias.detach().double() - term.mean * scale
            for array, values in ((scales, scale), (shifts, shift), (means, term.mean)):
                array[k] = tiles(values, like.dtype, shape[1])
    return scales, shifts, means


def constants(lif: neuron.LIFNode, dtype: torch.dtype) -> kernels.Neuron:
    """A LIFNode's constants for the kernels. Raises ValueError for a surrogate that they do not cover."""
    function, number = lif.surrogate_function, numpy_type(dtype)
    known = {
        surrogate.Sigmoid: loops().SIGMOID,
        surrogate.ATan: loops().ATAN,
        surrogate.PiecewiseQuadratic: loops().TRIANGLE,
        surrogate.Rect: loops().RECT,
    }
    if type(function) not in known:
        names = ", ".join(cls.__name__ for cls in known)
        raise ValueError(
            f"the fused step knows the surrogates {names}, not {type(function).__name__}; take --engine plain"
        )
    return loops().Neuron(
        zero=number(0),
        one=number(1),
        tau=number(lif.tau),
        v_threshold=number(lif.v_threshold),
        v_reset=number(lif.v_reset or 0.0),
        alpha=number(function.alpha),
        half_alpha=number(function.alpha / 2),
        slope=number(np.pi / 2 * function.alpha),
        half_width=number(0.5 / function.alpha),
        surrogate=known[type(function)],
        soft=lif.v_reset is None,
        decay_input=lif.decay_input,
        detach_reset=lif.detach_reset,
    )


def numpy_type(dtype: torch.dtype) -> Any:
    """numpy's name of float32 or float64. Raises ValueError for other types, which the kernels do not know."""
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the fused step computes in fp32 or fp64, not in {dtype}; take --engine plain")
    return np.float32 if dtype == torch.float32 else np.float64


def tile(C: int) -> int:
    """Length of the kernels' tile for C channels."""
    return C * max(1, loops().TILE // C)


def tiles(values: Tensor, dtype: torch.dtype, L: int) -> np.ndarray:
    """Values per channel [C], repeated to a tile [L]."""
    repeated: np.ndarray = np.tile(values.detach().numpy(), L // len(values)).astype(numpy_type(dtype))
    return repeated


def per_channel(sums: np.ndarray, C: int) -> Tensor:
    """Partial sums [PARTS, L] to sums per channel [C]."""
    return torch.from_numpy(sums.reshape(-1, C).sum(0))


def as_rows(x: Tensor) -> np.ndarray:
    """[S, B, C, H, W] or [S, B, C] as [S, N] with channels fastest: a view if x is channels_last, otherwise a copy."""
    channels_last = x.detach().movedim(2, -1).contiguous()
    rows: np.ndarray = channels_last.reshape(len(x), -1).numpy()
    return rows


def as_images(rows: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `as_rows`, a view."""
    S, B, C, *size = shape
    return torch.from_numpy(rows).view(S, B, *size, C).movedim(-1, 2)


def run(kernel: Callable[..., None], *arguments: Any) -> None:
    """Run a kernel on torch's number of threads."""
    import numba

    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    kernel(*arguments)


@cache
def loops() -> Any:
    """The module train.kernels, loaded at the first training step: commands that only evaluate or export need none.

    Numba reads how many threads it may use when it is imported, and sets OpenMP's number to it at its first parallel
    loop, torch's with it: it is told torch's number.
    """
    os.environ.setdefault("NUMBA_NUM_THREADS", str(torch.get_num_threads()))  # Numba looks there again when it compiles
    try:
        from train import kernels
    except RuntimeError as error:  # Numba's, where it can keep its compiled loops neither here nor in the home folder
        raise ValueError(
            f"the fused step cannot be compiled ({error}): set NUMBA_CACHE_DIR to a folder that can be written, "
            "or take --engine plain"
        ) from error
    return kernels
