"""Theory that a user can check: what theorems say of small networks, beside what is found here.

group   the equioutput group: orders, outputs, isometry, wedge (Chen, Lu, Hecht-Nielsen 1993)
xor     the 2-2-1 sigmoid network on XOR: stationary points, plateaus, paths that never rise
        (Hamey 1998; Sprinkhuizen-Kuyper, Boers 1996)
linear  linear networks and autoencoders: every critical point (Baldi, Hornik 1989)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..arrays import Array
from ..critical.find import find_critical_points
from ..critical.linear_networks import LinearNetwork, deep_linear_landscape, linear_network
from ..critical.monotone import is_non_ascending, monotone_path
from ..critical.symmetry import EquioutputGroup
from ..curvature.at_points import gradients, hessians
from ..errors import InvalidArgument
from ..landscape import Landscape

EPS = float(np.finfo(np.float64).eps)
CHECKS = ("group", "xor", "linear")
XOR_LEVELS = (0.25, 0.28234557897)  # of finite stationary points with L > 0.01, mse
# Near the stationary point at the second level: each hidden unit sees one input.
XOR_UPPER = (2.959, 0.0, 0.0, 3.276, -1.479, -1.638, 2.683, -2.502, -0.934)
PLATEAUS = {
    "mse": (0.0, 1.0 / 8.0, 1.0 / 6.0),
    # 1/2 ln 2: two of four patterns undecided; 3/4 H(1/3): three share the output 1/3 or 2/3
    "ce": (0.0, math.log(2.0) / 2.0, 0.75 * (math.log(3.0) - 2.0 / 3.0 * math.log(2.0))),
}
ZERO = 1e-9  # eigenvalues up to this share of the largest count as zero in these tables
DEPART = 0.01  # loss above which a stationary point is none of the global minimum at infinity


@dataclass(frozen=True)
class Check:
    """One row: what is claimed, what is expected, what was found; `error` against `tolerance`."""

    claim: str
    expected: str
    found: str
    ok: bool
    error: float | None = None
    tolerance: float | None = None


@dataclass(frozen=True)
class TheoryTable:
    """Checks with a verdict each; `print` shows them."""

    title: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def __str__(self) -> str:
        lines = [self.title]
        width = max((len(c.claim) for c in self.checks), default=0)
        middle = max((len(c.expected) for c in self.checks), default=0)
        for c in self.checks:
            error = "" if c.error is None else f"  (error {c.error:.1e}, allowed {c.tolerance:.1e})"
            mark = "ok  " if c.ok else "FAIL"
            lines.append(
                f"  {mark}  {c.claim:<{width}}  expected {c.expected:<{middle}}  found {c.found}"
                f"{error}"
            )
        return "\n".join(lines)


class _Rows:
    def __init__(self, title: str) -> None:
        self.title, self.rows = title, list[Check]()

    def same(self, claim: str, expected: Any, found: Any) -> None:
        self.rows.append(Check(claim, str(expected), str(found), bool(expected == found)))

    def near(self, claim: str, expected: str, found: str, error: float, tolerance: float) -> None:
        self.rows.append(Check(claim, expected, found, bool(error <= tolerance), error, tolerance))

    def table(self) -> TheoryTable:
        return TheoryTable(self.title, tuple(self.rows))


def theory(
    checks: Any = CHECKS, *, starts: int = 60, descents: int = 60, seed: int = 0
) -> list[TheoryTable]:
    """Run the named checks ("group", "xor", "linear"), a table each; seconds to a minute.

    Args:
        checks: names.
        starts: of the search for XOR's stationary points.
        descents: XOR descents to a plateau, and a tenth as many paths that never rise.
        seed: of everything random.

    Raises:
        InvalidArgument: an unknown name, counts below 1.
    """
    names = [checks] if isinstance(checks, str) else list(checks)
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        raise InvalidArgument(f"checks: expected some of {', '.join(CHECKS)}, got {unknown[0]!r}")
    for name, value in (("starts", starts), ("descents", descents)):
        if value < 1:
            raise InvalidArgument(f"{name}: expected at least 1, got {value}")
    tables: list[TheoryTable] = []
    for name in names:
        if name == "group":
            tables.append(check_group(seed=seed))
        elif name == "xor":
            tables.append(check_xor("mse", starts=starts, descents=descents, seed=seed))
            tables.append(check_xor("ce", starts=starts, descents=descents, seed=seed))
        else:
            rng = np.random.default_rng(seed)
            x = rng.standard_normal((40, 5))
            y = x @ rng.standard_normal((5, 4)) + rng.standard_normal((40, 4))
            tables.append(check_linear_network(x, y, 2, seed=seed))
            tables.append(check_linear_network(x, None, 2, seed=seed))
            tables.append(_other_depths(x, y))
    return tables


def xor_landscape(loss: str = "mse") -> Landscape:
    """XOR with two sigmoid hidden units and a sigmoid output, float64, at theta = 0.

    loss: "mse", or "ce": cross-entropy of the sigmoid output.
    """
    if loss not in PLATEAUS:
        raise InvalidArgument(f"loss: expected mse or ce, got {loss!r}")
    last = [nn.Sigmoid()] if loss == "mse" else []
    model = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 1), *last).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    y = torch.tensor([[0.0], [1.0], [1.0], [0.0]], dtype=torch.float64)
    return Landscape(model, "mse" if loss == "mse" else "bce_with_logits", (x, y))


def check_group(samples: int = 200_000, seed: int = 0) -> TheoryTable:
    """Orders; equal outputs and norms of all images; the canonical form; the wedge's share."""
    rows = _Rows("Equioutput group (tanh networks)")
    for units, order in ((2, 8), (3, 48), (10, 3_715_891_200)):
        rows.same(
            f"order, {units} hidden units", order, EquioutputGroup([(2, units), (units, 1)]).order
        )
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    group, rng = EquioutputGroup(model), np.random.default_rng(seed)
    theta, x = rng.standard_normal(group.n), torch.as_tensor(rng.standard_normal((50, 2)))
    images = group.images(theta)
    rows.same("distinct images, 2-2-1", 8, len(np.unique(images, axis=0)))
    given = np.stack([_output(model, image, x) for image in images])
    rows.near(
        "their outputs are the same", "0", f"{np.abs(given - given[0]).max():.1e}",
        float(np.abs(given - given[0]).max()), 1e-12,
    )  # fmt: skip
    norms = np.linalg.norm(images, axis=1)
    error = float(np.abs(norms / norms[0] - 1.0).max())
    rows.near("their norms are the same", f"{norms[0]:.6g}", f"{norms.max():.6g}", error, 8 * EPS)
    rows.same("distinct canonical forms", 1, len(np.unique(group.canonical(images), axis=0)))
    wedge = EquioutputGroup([(2, 3), (3, 1)])
    share, p = wedge.in_wedge(rng.standard_normal((samples, wedge.n))).mean(), 1.0 / wedge.order
    rows.near(
        "Gaussian biases in the wedge, 3 units", f"{p:.4f} = 1/48", f"{share:.4f}",
        float(abs(share - p)), 4.0 * math.sqrt(p * (1.0 - p) / samples),
    )  # fmt: skip
    return rows.table()


def check_xor(
    loss: str = "mse", *, starts: int = 60, descents: int = 60, seed: int = 0
) -> TheoryTable:
    """The origin's spectrum, stationary points, plateaus and non-ascending paths of XOR 2-2-1.

    Stationary points at the level of a constant output (1/4, ln 2) form continua, so how many are
    found depends on the starts; their levels do not. The upper one of mse is found from a start
    beside it, which is among the starts.
    """
    land = xor_landscape(loss)
    rows = _Rows(f"XOR, 2-2-1 sigmoid network, {loss}")
    rng = np.random.default_rng(seed)
    origin = hessians(land, np.zeros((1, 9)))
    at_zero = 0.25 if loss == "mse" else math.log(2.0)
    top = 0.1875 if loss == "mse" else 0.375
    values = origin.eigenvalues()[0]
    rows.near(
        "L at theta = 0", f"{at_zero:.6g}", f"{origin.losses[0]:.6g}",
        abs(float(origin.losses[0]) - at_zero), 4 * EPS,
    )  # fmt: skip
    rows.near(
        "gradient at theta = 0", "0", f"{origin.norms[0]:.1e}", float(origin.norms[0]), 4 * EPS
    )
    error = float(np.abs(values - np.r_[np.zeros(8), top]).max())
    rows.near(
        "spectrum at theta = 0", f"{{{top:g}, 0 x 8}}",
        f"{{{values[-1]:.6g}, |rest| <= {np.abs(values[:-1]).max():.0e}}}", error, 9 * EPS,
    )  # fmt: skip
    _stationary(rows, land, loss, at_zero, rng, starts)
    _plateaus(rows, land, loss, rng, descents)
    paths = [
        monotone_path(land, rng.standard_normal(9) * 2.0, DEPART, seed=seed + k)
        for k in range(max(1, descents // 10))
    ]
    reached = sum(path.reached for path in paths)
    rows.same(f"paths that never rise, to L <= {DEPART}", f"{len(paths)} of {len(paths)}",
              f"{reached} of {len(paths)}")  # fmt: skip
    down = sum(is_non_ascending(p.points, 64 * EPS, land=land, between=200) for p in paths)
    rows.same("  of these non-ascending, resampled", len(paths), down)
    return rows.table()


def _stationary(
    rows: _Rows, land: Landscape, loss: str, level: float, rng: np.random.Generator, starts: int
) -> None:
    points = 2.0 * rng.standard_normal((starts, 9))
    found = find_critical_points(
        land, np.concatenate([points, np.array(XOR_UPPER)[None]]), dedupe="symmetry", rtol=ZERO,
        progress=False,
    )  # fmt: skip
    finite = found.losses > DEPART
    levels = np.array([level, XOR_LEVELS[1]] if loss == "mse" else [level])
    off = np.abs(found.losses[finite][:, None] - levels)
    near = off.argmin(axis=1)
    counts = [f"{(near == k).sum()} at {value:.6g}" for k, value in enumerate(levels)]
    claim = f"stationary points ({len(found)} from {starts + 1} starts)"
    if loss == "ce":  # other levels are possible; only the continuum's is claimed
        counts = [f"{(off.min(axis=1) < 1e-9).sum()} of {finite.sum()} at {level:.6g}"]
        rows.same(claim, "some at ln 2", "some at ln 2" if (off < 1e-9).any() else "none")
    else:
        error = float(off.min(axis=1).max(initial=0.0))
        rows.near(claim, "levels 1/4, .282346", ", ".join(counts), error, 1e-9)
    rows.near(
        "  largest gradient of these", "0", f"{found.gradient_norms.max(initial=0.0):.1e}",
        float(found.gradient_norms.max(initial=0.0)), 1e-10,
    )  # fmt: skip
    rows.same("  of these strictly convex", 0, int((found.kinds[finite] == "convex").sum()))


def _plateaus(
    rows: _Rows, land: Landscape, loss: str, rng: np.random.Generator, descents: int
) -> None:
    ends = _descended(land, rng.standard_normal((descents, 9)))
    levels = np.array(PLATEAUS[loss])
    off = np.abs(ends[:, None] - levels)
    on = off.min(axis=1) <= DEPART
    names = ("0", "1/8", "1/6") if loss == "mse" else ("0", "ln(2)/2", "3H(1/3)/4")
    shares = [f"{(on & (off.argmin(axis=1) == k)).sum()} at {names[k]}" for k in range(3)]
    rows.same(
        f"descents that end within {DEPART} of a plateau ({', '.join(shares)})",
        f"{descents} of {descents}", f"{on.sum()} of {descents}",
    )  # fmt: skip


def _descended(land: Landscape, points: Array, steps: int = 150) -> Array:
    """Losses after damped descent from points (P, n): Newton's with |H| + mu for H, mu adapted."""
    mu = np.full(len(points), 1e-2)
    for _ in range(steps):
        found = hessians(land, points)
        assert found.matrices is not None
        values, vectors = (v.numpy() for v in torch.linalg.eigh(torch.as_tensor(found.matrices)))
        c = np.einsum("pij,pi->pj", vectors, found.gradients)
        step = -np.einsum("pij,pj->pi", vectors, c / (np.abs(values) + mu[:, None]))
        step *= np.minimum(1.0, 1.0 / np.linalg.norm(step, axis=1).clip(1e-300))[:, None]
        better = gradients(land, points + step).losses < found.losses
        points = np.where(better[:, None], points + step, points)
        mu = np.clip(np.where(better, mu / 3.0, mu * 4.0), 1e-12, 1e6)
    return gradients(land, points).losses


def check_linear_network(
    x: Any, y: Any = None, hidden: int = 2, *, lower_ranks: bool = True, seed: int = 0
) -> TheoryTable:
    """Every critical point of y^ = A B x: gradient, loss, index and nullity; then the origin.

    Args: as `linear_networks.linear_network`; y None for the autoencoder.
    """
    net = linear_network(x, y, hidden, lower_ranks=lower_ranks, seed=seed)
    (_, d), (o, _) = (tuple(p.shape) for p in net.land.model.parameters())
    what = "autoencoder" if y is None else "network"
    rows = _Rows(f"Linear {what} {d}-{hidden}-{o}: critical points of the sets I")
    _each_set(rows, net)
    found = hessians(net.land, np.zeros((1, net.land.n_params)))
    wanted = np.zeros(net.land.n_params)
    sizes = np.repeat(2.0 * net.singular_values, net.hidden)
    wanted[: sizes.size], wanted[wanted.size - sizes.size :] = -sizes, sizes[::-1]
    error = float(np.abs(found.eigenvalues()[0] - np.sort(wanted)).max() / sizes[0])
    rows.near(
        "spectrum at theta = 0", f"+-2 sigma_i(Sigma_YX), {net.hidden} times each",
        f"{found.eigenvalues()[0][-1]:.6g} ...", error, net.land.n_params * EPS,
    )  # fmt: skip
    if y is None:
        rows.near("A B at the minimum is PCA's projection", "0", *_projection_error(net))
    return rows.table()


def _each_set(rows: _Rows, net: LinearNetwork) -> None:
    found = hessians(net.land, net.points)
    values = found.eigenvalues()
    zero = ZERO * np.abs(values).max(axis=1, keepdims=True)
    index, nullity = (values < -zero).sum(axis=1), (np.abs(values) <= zero).sum(axis=1)
    scale = float(net.losses.max())
    for k, chosen in enumerate(net.sets):
        name = "{" + ",".join(str(i + 1) for i in chosen) + "}"
        error = max(
            abs(float(found.losses[k] - net.losses[k])) / scale, float(found.norms[k]) / scale
        )
        good = index[k] == net.index[k] and nullity[k] == net.nullity[k]
        tolerance = 8 * net.land.n_params * EPS
        rows.rows.append(
            Check(
                f"I = {name}",
                f"L {net.losses[k]:.8g}, {net.index[k]} negative, {net.nullity[k]} zero",
                f"L {found.losses[k]:.8g}, {index[k]} negative, {nullity[k]} zero",
                bool(good and error <= tolerance), error, tolerance,
            )
        )  # fmt: skip


def _projection_error(net: LinearNetwork) -> tuple[str, float, float]:
    """How far A B at the minimum is from the projection on the data's first p components."""
    (x, _), *_ = [(b.inputs, b.target) for b in net.land.dataset.batches]
    x = np.asarray(x)
    best = net.points[int(np.argmin(net.losses))]
    d, p = x.shape[1], net.hidden
    product = best[p * d :].reshape(d, p) @ best[: p * d].reshape(p, d)
    first = np.linalg.svd(x, full_matrices=False)[2][:p]
    error = float(np.abs(product - first.T @ first).max())
    return f"{error:.1e}", error, 1e3 * EPS


def _other_depths(x: Array, y: Array) -> TheoryTable:
    rows = _Rows("Linear networks of other depths")
    none = deep_linear_landscape(x, y, [])
    values = hessians(none, np.zeros((1, none.n_params))).eigenvalues()[0]
    rows.same("no hidden layer: convex", "all > 0", "all > 0" if values[0] > 0.0 else "not")
    two = deep_linear_landscape(x, y, [3, 3])
    found = hessians(two, np.zeros((1, two.n_params)))
    assert found.matrices is not None
    largest = float(np.abs(found.matrices).max())
    rows.near("two hidden layers: H(0)", "0", f"{largest:.1e}", largest, 0.0)
    return rows.table()


def _output(model: nn.Module, theta: Array, x: torch.Tensor) -> Array:
    shapes = {name: p.shape for name, p in model.named_parameters()}
    parts = torch.as_tensor(theta).split([s.numel() for s in shapes.values()])
    state = {name: v.view(s) for (name, s), v in zip(shapes.items(), parts, strict=True)}
    found: Array = torch.func.functional_call(model, state, (x,)).detach().numpy()
    return found
