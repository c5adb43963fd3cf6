"""The Cholesky factor of an inverse, in float64 and in one order of sums, so that every CPU gives the same bits.

Knows no layers."""

import numpy as np

from .. import functions

_BLOCK = 64  # rows that are worked on one by one; what lies outside is left to products


def inverse_factor(a: np.ndarray) -> np.ndarray:
    """The upper triangular U with UᵀU = a⁻¹, of a symmetric positive definite float64 a (n, n).

    With L the lower factor of `a` whose rows and columns are reversed, U is L⁻¹, reversed likewise: neither the inverse
    nor a second factor is worked out."""
    return np.ascontiguousarray(_inverted(_factored(a[::-1, ::-1]))[::-1, ::-1])


def _factored(a: np.ndarray) -> np.ndarray:
    """The lower triangular L with LLᵀ = a, block column by block column."""
    lower = np.zeros_like(a, order="C")
    for start in range(0, len(a), _BLOCK):
        end = min(start + _BLOCK, len(a))
        rest = a[start:, start:end] - functions.matmul(lower[start:, :start], lower[start:end, :start].T)
        corner = rest[: end - start]
        for i in range(end - start):  # one column after another
            corner[i, i] = np.sqrt(corner[i, i])
            rest[i + 1 :, i] /= corner[i, i]
            rest[i + 1 :, i + 1 :] -= rest[i + 1 :, i, None] * corner[i + 1 :, i]
        lower[start:, start:end] = rest
        lower[start:end, start:end] = np.tril(corner)
    return lower


def _inverted(lower: np.ndarray) -> np.ndarray:
    """The inverse of a lower triangular matrix, block row by block row."""
    inverse = np.zeros_like(lower)
    for start in range(0, len(lower), _BLOCK):
        end = min(start + _BLOCK, len(lower))
        rows = np.concatenate(
            (-functions.matmul(lower[start:end, :start], inverse[:start, :start]), np.eye(end - start)), axis=1
        )
        for i in range(end - start):
            rows[i] -= (lower[start + i, start : start + i, None] * rows[:i]).sum(axis=0)
            rows[i] /= lower[start + i, start + i]
        inverse[start:end, :end] = rows
    return inverse
