"""How a gain goes with context: the slope of a line over log context, and which of three shapes predicts best.

All of it is about cells' gains at powers of two, with half-widths of their 95 % intervals over boots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orchestrator.sequential import ALPHA
from orchestrator.student import quantile

Floats = NDArray[np.float64]

SHAPES = ("log-linear", "linear", "step")
DRAWS = 2000
SEED = 0


@dataclass(frozen=True, slots=True)
class Slope:
    """Change of the gain a doubling of context, with its 95 % interval."""

    value: float
    low: float
    high: float


def slope(contexts: ArrayLike, gains: ArrayLike, half_widths: ArrayLike) -> Slope:
    """Least squares of gain over log2(context), unweighted, with the cells' own uncertainty carried through.

    The slope is a sum of c_i gain_i with c_i = (x_i - mean x) / sum (x - mean x)^2, its half-width sum |c_i| h_i: the
    law of propagation of uncertainty for fully correlated errors (JCGM 100:2008, 5.2.2, note 1), each sign the worst.
    Cells of a model share their boots, and a boot may tilt the whole curve, say by a slow core, which bounds short
    contexts alone. By the triangle inequality, the standard deviation over boots of single boots' slopes is at most the
    sum of |c_i| times the cells' own, so the interval is no narrower than Student's of those slopes, whatever boots do.
    Where they do to each cell something of its own, it is wider than need be. A lack of fit is not in it: the slope is
    that of the cells that were measured.
    """
    x = np.log2(np.asarray(contexts, dtype=float))
    y, h = np.asarray(gains, dtype=float), np.asarray(half_widths, dtype=float)
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    value, reach = float(weights @ y), float(np.abs(weights) @ h)
    return Slope(value, value - reach, value + reach)


def left_out_errors(contexts: ArrayLike, gains: ArrayLike) -> dict[str, Floats]:
    """Root mean square error of predicting each cell from all others, by shape (one of SHAPES).

    gains: (..., cells); errors: (...). Raises ValueError below four cells.
    log-linear, linear: a + b log(context), a + b context. step: one level up to a change point and another beyond it,
    the point chosen by least squares among the cells that are left in; a cell in the gap where the step lies is
    predicted by the mean of both levels.
    """
    x, y = np.asarray(contexts, dtype=float), np.asarray(gains, dtype=float)
    if x.size < 4:
        raise ValueError(f"{x.size} cells: too few to leave one out and fit a step to the others")
    order = np.argsort(x)
    x, y = x[order], y[..., order]
    left = {"log-linear": _line(np.log2(x), y), "linear": _line(x, y), "step": _step(y)}
    return {shape: np.sqrt((residuals**2).mean(axis=-1)) for shape, residuals in left.items()}


def best_share(contexts: ArrayLike, gains: ArrayLike, half_widths: ArrayLike, boots: ArrayLike) -> float:
    """In what share of draws the log-linear shape predicts best, if the cells' gains are drawn from their intervals.

    A parametric bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 6.5) of DRAWS draws by
    a fixed seed: Student's t with boots - 1 degrees of freedom, scaled to each cell's interval, cells independent.
    """
    y, h, n = (np.asarray(values, dtype=float) for values in (gains, half_widths, boots))
    reach = np.array([quantile(1 - ALPHA / 2, float(count) - 1) for count in n])
    drawn = y + h / reach * np.random.default_rng(SEED).standard_t(n - 1, (DRAWS, n.size))
    errors = left_out_errors(contexts, drawn)
    rivals = np.minimum(errors["linear"], errors["step"])
    return float((errors["log-linear"] < rivals).mean())


def _line(x: Floats, y: Floats) -> Floats:
    """Residuals of cells left out in turn: e_i / (1 - h_ii), with the hat matrix of the whole fit (Allen 1974)."""
    design = np.stack([np.ones_like(x), x - x.mean()], axis=1)
    hat = design @ np.linalg.pinv(design)
    return np.asarray((y - y @ hat) / (1 - np.diag(hat)))


def _step(y: Floats) -> Floats:
    cells = y.shape[-1]
    residuals = np.empty_like(y)
    for out in range(cells):
        rest = np.delete(y, out, axis=-1)
        squares, predicted = [], []
        for cut in range(1, cells - 1):
            low, high = rest[..., :cut].mean(-1), rest[..., cut:].mean(-1)
            spread = ((rest[..., :cut] - low[..., None]) ** 2).sum(-1) + ((rest[..., cut:] - high[..., None]) ** 2).sum(
                -1
            )
            squares.append(spread)
            predicted.append(low if out < cut else high if out > cut else (low + high) / 2)
        best = np.argmin(np.stack(squares), axis=0)
        chosen = np.take_along_axis(np.stack(predicted), best[None], axis=0)[0]
        residuals[..., out] = y[..., out] - chosen
    return residuals
