"""Linear networks with one hidden layer: all critical points by formula (Baldi, Hornik 1989).

y^ = A B x, A (o, p), B (p, d), no biases; L = (1/N) sum ‖y - y^‖^2. With Sigma_UV = (1/N) sum u v^T
and S = Sigma_YX Sigma_XX^-1 Sigma_XY = U diag(lambda) U^T, lambda falling, every set I of at most p
indices of positive eigenvalues gives critical points

    A = [U_I 0] C,    B = C^-1 [U_I^T Sigma_YX Sigma_XX^-1; 0],    C in GL(p),
    L = tr Sigma_YY - sum_{i in I} lambda_i.

With r = |I|, s = rank S and R = Sigma_YX - U_I U_I^T Sigma_YX (rank s - r, the part that is not
learnt), H has

    sum_{i in I} #{j not in I: lambda_j > lambda_i} + (p - r) (s - r)    negative and
    r^2 + (p - r) (o + d - 2 (s - r))                                    zero eigenvalues:

exchanging u_i for a better u_j goes down; so does each of the p - r idle units along each singular
pair of R, with curvature -2 sigma, and up against it, with +2 sigma. For r = p: p^2 zeros, the
directions of GL(p). The minimum has I = {1 .. p}; all others are saddles.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..arguments import integer
from ..arrays import Array
from ..errors import InvalidArgument
from ..landscape import Landscape
from .mlp_structure import numbers

EPS = float(np.finfo(np.float64).eps)
MOST = 10_000  # sets I
DISTINCT = (
    1e-6  # gaps between eigenvalues, relative to the largest, below which indices mean little
)


@dataclass(frozen=True, eq=False, repr=False)
class LinearNetwork:
    """A linear network's landscape, and its critical points in closed form.

    Attributes:
        land: the landscape, float64; theta is B, then A.
        hidden: p.
        eigenvalues: (s,) lambda of S that are positive, falling.
        sets: K tuples of 0-based indices, the sets I.
        points: (K, n) float64, a critical point for each, n = p (d + o).
        losses: (K,) by formula.
        index, nullity: (K,) by formula.
        singular_values: (s,) of Sigma_YX: the Hessian at 0 has +2 sigma and -2 sigma, p times each.
    """

    land: Landscape
    hidden: int
    eigenvalues: Array
    sets: tuple[tuple[int, ...], ...]
    points: Array
    losses: Array
    index: Array
    nullity: Array
    singular_values: Array

    def __repr__(self) -> str:
        return (
            f"LinearNetwork({len(self.sets)} critical points up to GL({self.hidden}), "
            f"n = {self.land.n_params})"
        )


def linear_network(
    x: Any, y: Any = None, hidden: int = 1, *, lower_ranks: bool = True, seed: int = 0
) -> LinearNetwork:
    """Every critical point of y^ = A B x up to GL(p), each for a random C.

    (Of rank r < p, those whose idle units have no weights at all; others share their losses.)

    Args:
        x: (N, d), of rank d.
        y: (N, o); None for the autoencoder, y = x.
        hidden: p, at most rank S.
        lower_ranks: also the sets of fewer than p indices.
        seed: of the matrices C, well conditioned.

    Raises:
        InvalidArgument: shapes that do not fit, inputs that are not of full rank, eigenvalues of S
            that coincide (the critical points are then not isolated up to GL(p)), too many sets.
    """
    inputs = _matrix(x, "x")
    targets = inputs if y is None else _matrix(y, "y")
    if len(inputs) != len(targets):
        raise InvalidArgument(f"y: expected {len(inputs)} rows as x has, got {len(targets)}")
    count, d = inputs.shape
    o = targets.shape[1]
    if np.linalg.matrix_rank(inputs) < d:
        raise InvalidArgument(
            f"x: expected rank {d}, got {np.linalg.matrix_rank(inputs)}: Sigma_XX has no inverse"
        )
    # X / sqrt(N) = Q T: S = (Y^T Q / sqrt N)(Y^T Q / sqrt N)^T without forming Sigma_XX
    q, t = np.linalg.qr(inputs / math.sqrt(count))
    u, sizes, _ = np.linalg.svd(targets.T @ q / math.sqrt(count), full_matrices=False)
    rank = int((sizes > max(d, o) * EPS * sizes[0]).sum()) if sizes[0] > 0.0 else 0
    values, u = sizes[:rank] ** 2, u[:, :rank]
    p = integer(hidden, "hidden")
    if not 1 <= p <= rank:
        raise InvalidArgument(f"hidden: expected 1 .. {rank} (the rank of S), got {hidden}")
    gaps = -np.diff(values)
    if gaps.size and gaps.min() < DISTINCT * values[0]:
        raise InvalidArgument("y: expected eigenvalues of S that differ, got some that coincide")
    ranks = range(0 if lower_ranks else p, p + 1)
    if sum(math.comb(rank, r) for r in ranks) > MOST:
        raise InvalidArgument(f"hidden: expected at most {MOST} sets of indices, got more")
    sets = tuple(i for r in ranks for i in itertools.combinations(range(rank), r))
    solved = np.linalg.solve(t, q.T @ targets / math.sqrt(count)).T  # Sigma_YX Sigma_XX^-1
    rng = np.random.default_rng(seed)
    total = float((targets**2).sum() / count)
    found = [_point(u[:, list(i)], solved, p, rng) for i in sets]
    return LinearNetwork(
        _landscape(inputs, targets, [d, p, o]), p, values, sets, np.stack(found),
        np.array([total - values[list(i)].sum() for i in sets]),
        np.array([_negative(i, rank) + (p - len(i)) * (rank - len(i)) for i in sets]),
        np.array([len(i) ** 2 + (p - len(i)) * (o + d - 2 * (rank - len(i))) for i in sets]),
        np.linalg.svd(targets.T @ inputs / count, compute_uv=False)[:rank],
    )  # fmt: skip


def deep_linear_landscape(x: Any, y: Any, widths: list[int]) -> Landscape:
    """L = (1/N) sum ‖y - y^‖^2 of a linear network without biases; widths of its hidden layers."""
    inputs, targets = _matrix(x, "x"), _matrix(y, "y")
    return _landscape(inputs, targets, [inputs.shape[1], *widths, targets.shape[1]])


def _point(u: Array, solved: Array, p: int, rng: np.random.Generator) -> Array:
    """theta (n,) of [U_I 0] C and C^-1 [U_I^T Sigma_YX Sigma_XX^-1; 0], C random."""
    r = u.shape[1]
    c = np.linalg.qr(rng.standard_normal((p, p)))[0] * rng.uniform(0.7, 1.4, p)
    a = np.zeros((len(u), p))
    b = np.zeros((p, solved.shape[1]))
    a[:, :r], b[:r] = u, u.T @ solved
    return np.r_[np.linalg.solve(c, b).ravel(), (a @ c).ravel()]


def _negative(chosen: tuple[int, ...], rank: int) -> int:
    """Pairs of a chosen index and a better one that is not."""
    return sum(j not in chosen for i in chosen for j in range(min(i, rank)))


def _landscape(inputs: Array, targets: Array, widths: list[int]) -> Landscape:
    """MSE summed over outputs, averaged over samples: both halves of the data over sqrt(N)."""
    layers = [
        nn.Linear(i, o, bias=False, dtype=torch.float64) for i, o in itertools.pairwise(widths)
    ]
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_()
    scale = 1.0 / math.sqrt(len(inputs))
    data = torch.as_tensor(inputs * scale), torch.as_tensor(targets * scale)
    return Landscape(nn.Sequential(*layers), nn.MSELoss(reduction="sum"), data)


def _matrix(value: Any, name: str) -> Array:
    found = numbers(value, name)
    if found.ndim != 2 or 0 in found.shape or not np.isfinite(found).all():
        raise InvalidArgument(f"{name}: expected finite numbers (N, k), got shape {found.shape}")
    return found
