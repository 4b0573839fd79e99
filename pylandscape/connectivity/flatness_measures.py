"""How flat is L around a point, by the measures in use, each with what it is invariant to.

With T = I, diag(|theta|) (element-wise adaptive) or diag(norm of each filter) (filter-wise):
average case  A = E L(theta + rho T z) - L(theta), z ~ N(0, I);
worst case    max of L(theta + d) - L(theta) over ||T^-1 d||_p <= rho, p = 2 or infinity.
At a minimum of a quadratic: rho^2 tr(T H T) / 2 and, for p = 2, rho^2 lambda_max(T H T) / 2.

Sources: Dziugaite and Roy 2017 (average case); Kwon et al. 2021 (adaptive, "ASAM"); Andriushchenko
et al. 2023 ("A modern look at the relationship between sharpness and generalization").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..arguments import check_landscape, integer
from ..arrays import Array, digest
from ..curvature.eigen import eigenpairs
from ..curvature.traces import frobenius_norm, trace
from ..errors import InvalidArgument
from ..ranks import current
from ..results.flatness_table import Flatness, FlatnessRow
from ..runs.items import by_ranks, compared
from ..runs.request import build
from ..theta import random_source, running_statistics
from ..theta.directions import Direction
from ..theta.random_source import PERTURBATIONS

if TYPE_CHECKING:
    from ..landscape import Landscape

MEASURES = (
    "gradient_norm", "lambda_max", "trace", "frobenius", "critical", "average",
    "average_element", "average_filter", "worst_l2", "worst_l2_element", "worst_linf",
    "worst_linf_element",
)  # fmt: skip
_ROTATIONS = "rotations of theta"
_SIGNS = "permutations and signs of parameters"
_ELEMENT = "rescaling of single parameters, as between ReLU layers"
_FILTER = "rescaling of whole filters"
_INVARIANT = {
    "gradient_norm": _ROTATIONS, "lambda_max": _ROTATIONS, "trace": _ROTATIONS,
    "frobenius": _ROTATIONS, "critical": _ROTATIONS, "average": _ROTATIONS,
    "average_element": _ELEMENT, "average_filter": _FILTER, "worst_l2": _ROTATIONS,
    "worst_l2_element": _ELEMENT, "worst_linf": _SIGNS, "worst_linf_element": _ELEMENT,
}  # fmt: skip
_BLOCK_BYTES = 64 << 20  # of steps that are evaluated at once,
_BLOCK = 16  # and how many there are at most
_HALVINGS, _GRID = 30, 9  # of the search for critical sharpness
_SHRINKING = 10  # steps of the ascent after which they are half as long
_NOISE = 64  # eps of the loss: smaller rises are rounding


def flatness(
    land: Landscape,
    measures: Sequence[str] = MEASURES,
    *,
    rho: float | Sequence[float] = 0.05,
    draws: int = 100,
    steps: int = 20,
    starts: int = 3,
    products: int = 100,
    seed: int = 0,
    theta: Any = None,
    progress: bool = False,
) -> Flatness:
    """A table of flatness measures at one point.

    Args:
        measures: which, of "gradient_norm"; "lambda_max", "trace", "frobenius" of the Hessian;
            "critical" (critical sharpness, `critical_sharpness`); average case: "average",
            "average_element", "average_filter"; worst case: "worst_l2", "worst_l2_element",
            "worst_linf", "worst_linf_element".
        rho: radius of average and worst case, or several, increasing. Of the average case it is
            the standard deviation of each weight's noise, so that the step's norm is about rho
            sqrt(n); of worst_l2 the norm of the whole step, of worst_linf the largest change of
            a weight. For element and filter in units of the weight and of the filter's norm,
            otherwise absolute. The same number is thus another radius in each. Worst cases of a
            larger radius start from those of the smaller one too, so they rise with it.
        draws: pairs z, -z of the average case.
        steps, starts: of the projected ascent of the worst case: from the gradient, and from
            starts - 1 random points.
        products: of the trace and the Frobenius norm.
        seed: of all draws.
        theta: the point: (n,), a module or a state dict; default the model's parameters.
        progress: show bars on stderr.

    Raises:
        InvalidArgument: an unknown measure, rho <= 0, a count that is too small.
        NotDifferentiable: a loss without derivatives; average case and critical need none but
            critical's direction.
    """
    check_landscape(land, "flatness")
    chosen = (measures,) if isinstance(measures, str) else tuple(measures)
    for name in chosen:
        if name not in MEASURES:
            raise InvalidArgument(f"measures: expected some of {', '.join(MEASURES)}, got {name!r}")
    radii = _radii(rho)
    draws, steps = integer(draws, "draws", 2), integer(steps, "steps", 1)
    starts = integer(starts, "starts", 1)
    home = land.at(theta)
    at = _Around(home, theta)
    rows: list[FlatnessRow] = []

    def add(
        name: str, value: float, error: float = 0.0, rho: float | None = None,
        bound: str | None = None,
    ) -> None:  # fmt: skip
        rows.append(FlatnessRow(name, float(value), float(error), rho, bound, _INVARIANT[name]))

    def measure(name: str) -> None:
        if name == "gradient_norm":
            add(name, float(torch.linalg.vector_norm(home.gradient(at.point))))
        elif name == "lambda_max":
            found = eigenpairs(home, 1, theta=at.point, seed=seed, progress=progress)
            add(name, found.values[0], found.residuals[0])
        elif name in ("trace", "frobenius"):
            ask = trace if name == "trace" else frobenius_norm
            estimate = ask(home, products, seed=seed, theta=at.point, progress=progress)
            add(name, float(estimate.value), float(estimate.standard_error))
        elif name == "critical":
            add(name, critical_sharpness(home, theta=at.point))
        elif name.startswith("average"):
            scale = at.scale(name.removeprefix("average").lstrip("_"))
            for r in radii:
                add(name, *at.average(scale, r, draws, seed), r)
        else:
            p, _, kind = name.removeprefix("worst_").partition("_")
            scale, inner = at.scale(kind), None
            for r in radii:
                inner, value = at.worst(scale, r, p, steps, starts, seed, inner)
                add(name, value, np.nan, r, "lower")

    def asked() -> dict[str, Any]:
        return build(
            home, "flatness", measures=chosen, rho=radii, draws=draws, steps=steps, starts=starts,
            products=products, seed=seed, theta=digest(at.point),
        )  # fmt: skip

    with compared("flatness", asked):
        for name in chosen:
            measure(name)
    return Flatness(tuple(rows), at.loss, {"rho": list(radii), "draws": draws, "seed": seed})


def critical_sharpness(land: Landscape, direction: Any = None, *, theta: Any = None) -> float:
    """2 / eta, eta > 0 the smallest step along ``direction`` at which L is above L(theta).

    Forward passes alone, but for the default direction, minus the gradient. On a quadratic it is
    g^T H g / g^T g there; 0 where L never rises above L(theta), NaN for a zero direction.

    Args:
        direction: (n,), an update of an optimiser; default minus the gradient.
        theta: the point; default the model's parameters.
    """
    check_landscape(land, "critical_sharpness")
    home = land.at(theta)
    at = _Around(home, theta)
    if direction is None:
        u = -home.gradient(at.point)
    else:
        u = home.layout.vector(direction, "direction", torch.float64, at.point.device)
    if not float(u.abs().max()) > 0:
        return float("nan")
    u = torch.nn.functional.pad(u, (0, len(at.point) - len(u))).to(at.point)
    size = float(torch.linalg.vector_norm(u, dtype=torch.float64))
    reach = 1e-3 * float(torch.linalg.vector_norm(at.point, dtype=torch.float64)) / size or 1.0
    floor = at.loss + _NOISE * torch.finfo(home.dtype).eps * abs(at.loss)

    def above(etas: Any) -> np.ndarray:
        values = home.losses(etas[:, None], u[None, : home.n_params], theta=at.given)
        return np.asarray(~(values <= floor))

    etas = reach * 2.0 ** np.arange(-_HALVINGS // 2, _HALVINGS)
    rises = above(etas)
    if not rises.any():
        return 0.0
    k = int(np.argmax(rises))
    low, high = (0.0, etas[0]) if k == 0 else (etas[k - 1], etas[k])
    for _ in range(6):
        inner = np.linspace(low, high, _GRID)[1:-1]
        edges = np.concatenate([[low], inner, [high]])
        j = int(np.argmax(np.append(above(inner), True)))
        low, high = edges[j], edges[j + 1]
    return 2.0 / float(high)


def eigen_directions(
    land: Landscape, k: int = 2, *, theta: Any = None, tol: float = 1e-6, seed: int = 0,
    progress: bool = False,
) -> list[Direction]:  # fmt: skip
    """The eigenvectors of the k largest eigenvalues of the Hessian as directions of norm 1.

    Arguments and errors as in `eigenpairs`.
    """
    check_landscape(land, "eigen_directions")
    found = eigenpairs(land, k, theta=theta, tol=tol, seed=seed, progress=progress)
    return [
        Direction(
            vector.to(land.dtype),
            {
                "kind": "eigenvector", "index": i, "eigenvalue": float(found.values[i]),
                "layout": land.layout.digest, "norm": 1.0,
            },
        )
        for i, vector in enumerate(found.vectors)
    ]  # fmt: skip


def worst_direction(
    land: Landscape, rho: float = 0.05, *, norm: str = "l2", adaptive: bool = False,
    steps: int = 20, starts: int = 3, seed: int = 0, theta: Any = None,
) -> Direction:  # fmt: skip
    """The step d with ||T^-1 d|| <= rho along which `flatness` found the largest loss.

    Args:
        norm: "l2" or "linf".
        adaptive: T = diag(|theta|) instead of I.
        The others are those of `flatness`.
    """
    check_landscape(land, "worst_direction")
    if norm not in ("l2", "linf"):
        raise InvalidArgument(f"norm: expected 'l2' or 'linf', got {norm!r}")
    (radius,) = _radii(rho)
    home = land.at(theta)
    at = _Around(home, theta)
    scale = at.scale("element" if adaptive else "")
    step, value = at.worst(scale, radius, norm, steps, starts, seed, None)
    vector = (scale * step).to(home.dtype)
    size = float(torch.linalg.vector_norm(vector, dtype=torch.float64))
    info = {
        "kind": "worst", "norm": size, "rho": radius, "p": norm, "adaptive": adaptive,
        "rise": value, "layout": home.layout.digest,
    }  # fmt: skip
    return Direction(vector, info)


class _Around:
    """L around one point of a landscape. Steps are in the parameters alone, (n,) float64."""

    def __init__(self, land: Landscape, theta: Any) -> None:
        self.land = land
        self.given = None if theta is None else running_statistics.point(land, theta, "theta")
        self.point = land.origin if self.given is None else self.given
        self.loss = land.loss(self.given)
        self.theta = self.point[: land.n_params].double()

    def scale(self, kind: str) -> Tensor:
        """The diagonal of T (n,) float64."""
        if kind == "":
            return torch.ones_like(self.theta)
        if kind == "element":
            return self.theta.abs()
        parts = []
        for entry in self.land.layout.entries:
            part = self.theta[entry.offset : entry.offset + entry.numel]
            rows = part.view(entry.shape[0], -1) if len(entry.shape) > 1 else part.view(1, -1)
            parts.append(rows.norm(dim=1, keepdim=True).expand_as(rows).reshape(-1))
        return torch.cat(parts)

    def losses(self, steps: Tensor) -> Array:
        """(p,) L at theta + steps (p, n)."""
        points = self.point.expand(len(steps), -1).clone()
        points[:, : self.land.n_params] = (self.theta + steps).to(points)
        return np.asarray(self.land.losses(points=points))

    def average(self, scale: Tensor, rho: float, draws: int, seed: int) -> tuple[float, float]:
        """Mean rise and its standard error, from pairs of opposite steps.

        Both ends of a pair lie along one direction: linear layers that read the data multiply by
        every direction once, and by theta once in a block of them. Ranks share the blocks.
        """
        reach = rho * scale
        size = min(_BLOCK, max(1, _BLOCK_BYTES // (16 * len(self.theta))))

        def block(index: int) -> Array:
            first = index * size
            z = torch.empty(min(size, draws - first), len(scale), device=scale.device)
            for i, row in enumerate(z):
                random_source.fill(row, seed, PERTURBATIONS, first + i)
            steps = z.to(self.land.dtype) * reach.to(self.land.dtype)
            ask = self.land.prepare(steps, theta=self.given)
            signs = np.eye(len(z))
            both = ask(np.concatenate([signs, -signs]))["loss"].reshape(2, -1)
            return np.asarray(both.mean(axis=0) - self.loss)

        def work(at: np.ndarray, beat: Callable[[], None]) -> dict[str, Array]:
            rises = np.full((len(at), size), np.nan)  # the last block may be smaller
            for own, index in zip(rises, at, strict=True):
                values = block(int(index))
                own[: len(values)] = values
                beat()
            return {"rises": rises}

        rises = self._shared("average", -(-draws // size), work)["rises"]
        found = rises.reshape(-1)[:draws]
        return float(found.mean()), float(found.std(ddof=1) / np.sqrt(draws))

    def worst(
        self, scale: Tensor, rho: float, p: str, steps: int, starts: int, seed: int,
        inner: Tensor | None,
    ) -> tuple[Tensor, float]:  # fmt: skip
        """u = T^-1 d (n,) with the largest rise found, and the rise, never below 0.

        Ranks share the starts.
        """
        begins = self._starts(scale, rho, p, starts, seed, inner)

        def work(at: np.ndarray, beat: Callable[[], None]) -> dict[str, Array]:
            ends, rises = np.zeros((1, len(scale))), np.zeros(1)  # the best of these
            for index in at:
                u = begins[index]()
                for k in range(steps + 1):
                    value = float(self.losses((scale * u)[None])[0]) - self.loss
                    if value > rises[0]:
                        ends[0], rises[0] = u.cpu().numpy(), value
                    slope = scale * self._gradient(scale * u)
                    if not float(slope.abs().max()) > 0:
                        break
                    u = _ascended(u, slope, rho, p, 1.0 / (1.0 + k / _SHRINKING))
                    beat()
            return {"ends": ends, "rises": rises}

        found = self._shared("worst", len(begins), work)
        best = int(np.argmax(found["rises"]))
        return torch.from_numpy(found["ends"][best]).to(scale), float(found["rises"][best])

    def _starts(
        self, scale: Tensor, rho: float, p: str, starts: int, seed: int, inner: Tensor | None
    ) -> list[Callable[[], Tensor]]:
        slope = scale * self._gradient(torch.zeros_like(scale))
        found: list[Callable[[], Tensor]] = []
        if float(slope.abs().max()) > 0:
            found.append(partial(_onto, slope, rho, p))

        def noise(i: int) -> Tensor:
            drawn = random_source.fill(torch.empty_like(scale), seed, PERTURBATIONS, (1 << 40) + i)
            return _onto(drawn, rho, p)

        found += [partial(noise, i) for i in range(starts - 1)]
        if inner is not None:  # the step of the smaller radius is inside this one
            found.append(inner.clone)
            if float(inner.abs().max()) > 0:
                found.append(partial(_onto, inner, rho, p))
        return found

    def _shared(
        self, kind: str, count: int,
        work: Callable[[np.ndarray, Callable[[], None]], dict[str, Array]],
    ) -> Mapping[str, Array]:  # fmt: skip
        """What `work` gives for all items, of which each rank takes some."""
        if current() is not None and count > 1:
            request = build(self.land, f"flatness, {kind}", theta=digest(self.point))
            found = by_ranks(f"flatness, {kind}", request, count, work, most=1, progress=False)
            if found is not None:
                return found
        return work(np.arange(count), lambda: None)

    def _gradient(self, step: Tensor) -> Tensor:
        at = self.point.clone()
        at[: self.land.n_params] = (self.theta + step).to(at)
        return self.land.gradient(at)[: self.land.n_params].to(self.theta)


def _onto(u: Tensor, rho: float, p: str) -> Tensor:
    """The point of the ball's border in the direction of u: for l2 its multiple, for linf its
    signs."""
    return rho * torch.sign(u) if p == "linf" else rho * u / u.norm()


def _ascended(u: Tensor, slope: Tensor, rho: float, p: str, share: float) -> Tensor:
    """u after one step of steepest ascent of length ``share`` rho, back in the ball."""
    if p == "linf":
        return (u + share * rho * torch.sign(slope)).clamp(-rho, rho)
    moved = u + share * rho * slope / slope.norm()
    size = float(moved.norm())
    return moved * (rho / size) if size > rho else moved


def _radii(rho: Any) -> tuple[float, ...]:
    given = tuple(float(r) for r in (rho if isinstance(rho, Sequence) else (rho,)))
    rising = all(a < b for a, b in pairwise(given))
    if not given or not rising or not all(0 < r < float("inf") for r in given):
        raise InvalidArgument(f"rho: expected positive radii, increasing, got {rho!r}")
    return given
