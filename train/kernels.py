"""What a layer of LIF neurons computes on a CPU, as plain loops that Numba compiles: each value is read once.

Numba needs no C++ compiler on the user's machine. Arrays are [T, N] or, for what is the same at every step, [1, N],
with N = rows x C and channels fastest, so that one tile of L values (a multiple of C) of every step stays in the
first-level cache while all T steps pass over it. Values per channel come repeated to that tile, [L].

Work is divided into PARTS parts whatever the number of threads, and sums over a layer are taken part by part in
float64: the result does not depend on how many threads there are. No fast-math: an operation rounds as torch's does.
"""

from typing import NamedTuple

import numba
import numpy as np
from numba import config


PARTS = 32
TILE = 1024  # of L; three rows of a tile per step fit into 32 KiB at T = 4

# Under OpenMP the loops run on torch's own threads; others would compete with them (244 ms a step, not 197).
config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]  # type: ignore[attr-defined]

_jit = numba.njit(cache=True, error_model="numpy")
_parallel = numba.njit(cache=True, error_model="numpy", parallel=True)


SIGMOID, ATAN, TRIANGLE, RECT = range(4)


class Neuron(NamedTuple):
    """A LIF neuron's constants in the arrays' own type (train.neurons.activation has the equation)."""

    zero: np.floating
    one: np.floating
    tau: np.floating
    v_threshold: np.floating
    v_reset: np.floating
    alpha: np.floating
    """Of the surrogate Sigmoid(alpha), ATan(alpha), PiecewiseQuadratic(alpha) or Rect(alpha)."""
    half_alpha: np.floating
    slope: np.floating
    """pi / 2 * alpha."""
    half_width: np.floating
    """0.5 / alpha."""
    surrogate: int
    """SIGMOID, ATAN, TRIANGLE (PiecewiseQuadratic) or RECT."""
    soft: bool
    """A spike lowers the membrane by v_threshold (v_reset, where it rests, is then 0); otherwise sets it to v_reset."""
    decay_input: bool
    detach_reset: bool


@_jit
def _affine(x, scale, shift, y):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        y[i] = x[i] * scale[i] + shift[i]


@_jit
def _add_affine(x, scale, shift, y):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        y[i] += x[i] * scale[i] + shift[i]


@_jit
def _charge(y, v, h, lif):  # type: ignore[no-untyped-def]
    if lif.decay_input:
        for i in range(h.shape[0]):
            h[i] = v[i] + (y[i] - (v[i] - lif.v_reset)) / lif.tau
    else:
        for i in range(h.shape[0]):
            h[i] = v[i] - (v[i] - lif.v_reset) / lif.tau + y[i]


@_jit
def _reset(h, v, lif):  # type: ignore[no-untyped-def]
    if lif.soft:
        for i in range(h.shape[0]):
            v[i] = h[i] - lif.v_threshold if h[i] >= lif.v_threshold else h[i]
    else:
        for i in range(h.shape[0]):
            v[i] = lif.v_reset if h[i] >= lif.v_threshold else h[i]


@_jit
def _fire(h, spikes, lif):  # type: ignore[no-untyped-def]
    for i in range(h.shape[0]):
        spikes[i] = lif.one if h[i] >= lif.v_threshold else lif.zero


@_jit
def _surrogate(h, gradient, lif):  # type: ignore[no-untyped-def]
    """d spike / d h (SpikingJelly's formulas)."""
    if lif.surrogate == SIGMOID:
        for i in range(h.shape[0]):
            s = lif.one / (lif.one + np.exp(-lif.alpha * (h[i] - lif.v_threshold)))
            gradient[i] = lif.alpha * s * (lif.one - s)
    elif lif.surrogate == TRIANGLE:
        for i in range(h.shape[0]):
            height = lif.alpha - lif.alpha * lif.alpha * abs(h[i] - lif.v_threshold)
            gradient[i] = height if height > lif.zero else lif.zero
    elif lif.surrogate == RECT:
        for i in range(h.shape[0]):
            gradient[i] = lif.alpha if abs(h[i] - lif.v_threshold) < lif.half_width else lif.zero
    else:
        for i in range(h.shape[0]):
            u = lif.slope * (h[i] - lif.v_threshold)
            gradient[i] = lif.half_alpha / (lif.one + u * u)


@_jit
def _back(h, surrogate, g_spikes, carry, g_drive, lif):  # type: ignore[no-untyped-def]
    """One step back in time; carry is d loss / d v[t], and d loss / d v[t - 1] after it."""
    for i in range(h.shape[0]):
        if lif.soft:
            kept = lif.one if lif.detach_reset else lif.one - lif.v_threshold * surrogate[i]
        else:
            kept = lif.zero if h[i] >= lif.v_threshold else lif.one
            kept = kept if lif.detach_reset else kept + (lif.v_reset - h[i]) * surrogate[i]
        g_h = g_spikes[i] * surrogate[i] + carry[i] * kept
        leak = g_h / lif.tau
        carry[i] = g_h - leak
        g_drive[i] = leak if lif.decay_input else g_h


@_jit
def _add(x, y):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        y[i] += x[i]


@_jit
def _add_product(x, y, mean, total):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        total[i] += x[i] * (y[i] - mean[i])


@_jit
def _drive(xs, scales, shifts, t, a, b, y):  # type: ignore[no-untyped-def]
    """The current into the tile a:b at step t: sum of the terms x * scale + shift."""
    for k in range(len(xs)):
        x = xs[k][min(t, xs[k].shape[0] - 1), a:b]
        if k == 0:
            _affine(x, scales[k], shifts[k], y)
        else:
            _add_affine(x, scales[k], shifts[k], y)


@_parallel
def spikes(xs, scales, shifts, out, lif):  # type: ignore[no-untyped-def]
    """out [T, N] = the spikes of neurons with the current sum_k xs[k] * scales[k] + shifts[k]."""
    T, N = out.shape
    L = scales.shape[1]
    blocks = (N + L - 1) // L
    for part in numba.prange(PARTS):
        y, h, v = np.empty(L, out.dtype), np.empty(L, out.dtype), np.empty(L, out.dtype)
        for block in range(part * blocks // PARTS, (part + 1) * blocks // PARTS):
            a, b = block * L, min(block * L + L, N)
            n = b - a
            v[:] = lif.v_reset
            for t in range(T):
                _drive(xs, scales, shifts, t, a, b, y[:n])
                _charge(y[:n], v[:n], h[:n], lif)
                _fire(h[:n], out[t, a:b], lif)
                _reset(h[:n], v[:n], lif)


@_parallel
def drive_gradient(xs, scales, shifts, means, g_spikes, g_drive, sums, products, lif):  # type: ignore[no-untyped-def]
    """g_drive [T or 1, N] = d loss / d current, from g_spikes [T, N] = d loss / d spikes.

    The membrane is computed again from the terms. Where g_drive has one step the gradients of all steps are added.
    sums [PARTS, L] and products [K, PARTS, L], float64: sum of g_drive, and of g_drive * (xs[k] - means[k]) for the
    first K terms, which then have g_drive's number of steps.
    """
    T, N = g_spikes.shape
    L = scales.shape[1]
    blocks = (N + L - 1) // L
    held = g_drive.shape[0] == 1
    for part in numba.prange(PARTS):
        h = np.empty((T, L), g_drive.dtype)
        y, v, carry = np.empty(L, g_drive.dtype), np.empty(L, g_drive.dtype), np.empty(L, g_drive.dtype)
        for block in range(part * blocks // PARTS, (part + 1) * blocks // PARTS):
            a, b = block * L, min(block * L + L, N)
            n = b - a
            v[:] = lif.v_reset
            carry[:] = lif.zero
            for t in range(T):
                _drive(xs, scales, shifts, t, a, b, y[:n])
                _charge(y[:n], v[:n], h[t, :n], lif)
                _reset(h[t, :n], v[:n], lif)
            for t in range(T - 1, -1, -1):
                _surrogate(h[t, :n], v[:n], lif)  # v is free by now
                if held and t < T - 1:
                    _back(h[t, :n], v[:n], g_spikes[t, a:b], carry[:n], y[:n], lif)
                    _add(y[:n], g_drive[0, a:b])
                else:
                    _back(h[t, :n], v[:n], g_spikes[t, a:b], carry[:n], g_drive[0 if held else t, a:b], lif)
            for t in range(g_drive.shape[0]):
                _add(g_drive[t, a:b], sums[part, :n])
                for k in range(products.shape[0]):
                    _add_product(g_drive[t, a:b], xs[k][t, a:b], means[k], products[k, part, :n])


@_parallel
def moments(x, L, sums, squares):  # type: ignore[no-untyped-def]
    """sums, squares [PARTS, L] float64: sum of x [S, N] and of x^2 over steps and rows."""
    S, N = x.shape
    blocks = (N + L - 1) // L
    for part in numba.prange(PARTS):
        for t in range(S):
            for block in range(part * blocks // PARTS, (part + 1) * blocks // PARTS):
                _add_moments(x[t, block * L : min(block * L + L, N)], sums[part], squares[part])


@_parallel
def input_gradient(g_drive, x, mean, scale, slope, shift, out):  # type: ignore[no-untyped-def]
    """out [S, N] = g_drive * scale + (x - mean) * slope + shift; out may be g_drive."""
    S, N = x.shape
    L = scale.shape[0]
    blocks = (N + L - 1) // L
    for part in numba.prange(PARTS):
        for t in range(S):
            for block in range(part * blocks // PARTS, (part + 1) * blocks // PARTS):
                a, b = block * L, min(block * L + L, N)
                _combine(g_drive[t, a:b], x[t, a:b], mean, scale, slope, shift, out[t, a:b])


@_jit
def _add_moments(x, total, squares):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        value = np.float64(x[i])
        total[i] += value
        squares[i] += value * value


@_jit
def _combine(g, x, mean, scale, slope, shift, out):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        out[i] = g[i] * scale[i] + (x[i] - mean[i]) * slope[i] + shift[i]
