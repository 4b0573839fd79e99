"""Is my plot right? Checks of a finished Curve or Surface, in plain language.

Each check reads the values, the axes and the provenance (`info`) of the result, and says what to
do about what it finds. A check whose facts are missing from the file is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidArgument
from ..theta.sampling import DIFFERENCE, STANDARD, SUBSET

Array = NDArray[np.float64]
Level = Literal["ok", "note", "warning", "error"]

EPS = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
}
# Relative length of the largest step, ||max step * d|| / ||theta||.
SHORT_STEP, LONG_STEP = 1e-3, 10.0
# |cos| between two directions. Random ones in n dimensions have about 1/sqrt(n).
OBLIQUE, PARALLEL = 0.3, 0.99
MOSTLY = 0.5  # share of values that are not finite beyond which a picture shows no landscape
PLATEAU_SHARE = 0.5  # of the points within PLATEAU_BAND of the range from the top (or the bottom)
PLATEAU_BAND = 0.02
TAIL_RATIO = 20.0  # full range over that of the lower 90 %
JUMP_SHARE = 0.5  # of the robust range, between two neighbours
COARSE = 15  # points along an axis
MOST_FOR_TREES = 1 << 20  # values whose merge tree a check computes
SLICES = ("line", "plane", "grid")
SHOWN_NOISE = 10.0  # times the rounding noise that a range must exceed
NOISE = 64.0  # rounding errors of the loss that a range must exceed to be a landscape

# (x, y) of the vertices of interpolations.
CORNERS: dict[str, tuple[tuple[float, ...], ...]] = {
    "interpolation": ((0.0,), (1.0,)),
    "barycentric": ((0.0, 0.0), (1.0, 1.0), (1.0, 0.0)),
    "bilinear": ((1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)),
}


class Finding(NamedTuple):
    level: Level
    name: str
    message: str


@dataclass(frozen=True)
class Verdict:
    """`ok` is False if a finding is an "error": the picture does not show what it claims to.

    A "warning" is a picture that is right but easily misread, a "note" a hint.
    """

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(f.level != "error" for f in self.findings)

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        counts = [
            (sum(f.level == level for f in self.findings), level) for level in ("error", "warning")
        ]
        said = ", ".join(f"{n} {level}{'s' if n > 1 else ''}" for n, level in counts if n)
        head = f"sanity: {'OK' if self.ok else 'NOT OK'}{f' ({said})' if said else ''}"
        return "\n".join([head, *(f"  {f.level:<8}{f.name:<12}{f.message}" for f in self.findings)])


class Checked(Protocol):
    """A Curve (with x), a Surface (also y) or a Grid (axes), as far as it is checked."""

    kind: str
    values: Array
    info: dict[str, Any]


def check(result: Checked) -> Verdict:
    """Judge a result: centre, axes' lengths and angle, finiteness, saturation, BatchNorm, points,
    and whether derivatives of this landscape are its slope.

    The centre is compared with `info["model_loss"]`, the model's own loss computed without the
    engines; the tolerance is sqrt(eps) of the dtype, relative, plus eps.
    """
    values = np.asarray(result.values, dtype=np.float64)
    axes = [np.asarray(axis, dtype=np.float64) for axis in axes_of(result)]
    info = dict(result.info or {})
    facts = {**(info.get("request") or {}), **info}
    slice_kind = result.kind in SLICES
    findings: list[Finding] = []
    if slice_kind:
        findings += _centre(values, axes, facts)
        findings += _lengths(axes, facts)
        findings += _angle(facts)
    else:
        findings += _vertices(values, axes, result.kind, facts)
    findings += _finite(values, axes, facts)
    if np.isfinite(values).any():
        findings += _range(values, axes, facts, slice_kind)
        findings += _resolution(values, axes)
    findings += _batch_norm(facts, slice_kind)
    findings += _subset(facts, result)
    findings += _noise(result, axes)
    findings += _rounding(values, facts)
    if facts.get("slope_mismatch"):
        findings.append(Finding("note", "slope", str(facts["slope_mismatch"])))
    return Verdict(tuple(findings))


def axes_of(result: Any) -> list[Array]:
    """The axes of a Curve, a Surface or a Grid, in the order of its values' dimensions."""
    given: list[Array] = getattr(result, "axes", [])
    return given or [getattr(result, name) for name in "xy" if hasattr(result, name)]


def _names(axes: list[Array]) -> list[str]:
    return [*"xyz"] if len(axes) < 4 else [f"x{k}" for k in range(len(axes))]


def _eps(facts: dict[str, Any]) -> float:
    return EPS.get(str(facts.get("dtype", "float32")).removeprefix("torch."), EPS["float32"])


def _centre(values: Array, axes: list[Array], facts: dict[str, Any]) -> Iterator[Finding]:
    expected, found = facts.get("model_loss"), facts.get("center_loss")
    nearest = [int(np.argmin(np.abs(axis))) for axis in axes]
    for name, axis, k in zip(_names(axes), axes, nearest, strict=False):
        if abs(axis[k]) > 1e-9 * max(abs(axis[0]), abs(axis[-1])):
            yield Finding(
                "note", "centre",
                f"{name} = 0 is not on the grid, so the picture does not show the model itself; "
                "use a range around 0 with an odd number of points",
            )  # fmt: skip
            break
    else:
        found = values[tuple(nearest)]
    if expected is None or found is None:
        return
    centre, expected = float(found), float(expected)
    eps = _eps(facts)
    error = abs(centre - expected)
    if error <= eps**0.5 * abs(expected) + eps:
        yield Finding("ok", "centre", f"loss at 0 is the model's own loss, {expected:.6g}")
    elif facts.get("bn", "eval") in ("recompute", "batch"):
        yield Finding(
            "note", "centre",
            f"loss at 0 is {centre:.6g}, the model's own (running statistics) {expected:.6g}: "
            f"bn={facts['bn']!r} takes the statistics from the data instead",
        )  # fmt: skip
    elif eps < EPS["float32"] and error <= EPS["float32"] ** 0.5 * abs(expected) + EPS["float32"]:
        yield Finding(
            "ok", "centre",
            f"loss at 0 is the model's own loss, {expected:.6g}, to float32's precision",
        )  # fmt: skip
    else:
        yield Finding(
            "error", "centre",
            f"loss at 0 is {centre:.6g}, but the model's own loss is {expected:.6g}: check that "
            "model and data have no randomness (dropout, augmentation) and that the model was not "
            "changed in between; engine='torch' tells whether the engine is to blame"
            if np.isfinite(expected)
            else f"the model's own loss is {expected:.6g}: look at the data, the weights and the "
            "loss or objective before any picture",
        )  # fmt: skip


def _vertices(
    values: Array, axes: list[Array], kind: str, facts: dict[str, Any]
) -> Iterator[Finding]:
    """Interpolations: the corners of the grid against the losses of the solutions themselves."""
    expected = facts.get("vertex_losses")
    corners = CORNERS.get(kind)
    if expected is None or corners is None:
        return
    eps = max(_eps(facts), EPS["float32"])
    worst, compared = 0.0, 0
    for corner, loss in zip(corners, expected, strict=True):
        at = [np.flatnonzero(a == c) for a, c in zip(axes, corner, strict=True)]
        if loss is None or not all(k.size for k in at):
            continue
        value = values[tuple(int(k[0]) for k in at)]
        worst = max(worst, abs(value - loss) / (eps**0.5 * abs(loss) + eps))
        compared += 1
    losses = ", ".join("?" if v is None else f"{v:.4g}" for v in expected)
    if compared and worst <= 1:
        yield Finding("ok", "vertices", f"the corners have the losses of the solutions: {losses}")
    elif compared:
        yield Finding(
            "error", "vertices",
            f"the corners do not have the losses of the solutions themselves ({losses}): check "
            "that all checkpoints are of this model and that data and loss have no randomness",
        )  # fmt: skip


def _lengths(axes: list[Array], facts: dict[str, Any]) -> Iterator[Finding]:
    norms, theta = facts.get("direction_norms"), facts.get("theta_norm")
    if not norms or not theta:
        return
    for name, axis, norm in zip(_names(axes), axes, norms, strict=False):
        if norm is None:
            continue
        if norm == 0:
            yield Finding(
                "error", "step",
                f"the direction along {name} is zero: every parameter is ignored or has norm 0; "
                "change ignore= or normalize=",
            )  # fmt: skip
            continue
        reach = float(np.abs(axis).max())
        share = reach * norm / theta
        text = f"{name} reaches {share:.3g} x the norm of theta"
        if share < SHORT_STEP:
            yield Finding(
                "warning", "step",
                f"{text}: so near that any smooth loss looks quadratic; widen the range about "
                f"{0.1 / share:.0e} times",
            )  # fmt: skip
        elif share > LONG_STEP:
            yield Finding(
                "warning", "step",
                f"{text}: far outside what training visits; narrow the range to about "
                f"+-{reach / share:.2g} or use normalize='filter'",
            )  # fmt: skip
        else:
            yield Finding("ok", "step", text)


def _angle(facts: dict[str, Any]) -> Iterator[Finding]:
    cosine = facts.get("direction_cosine")
    if cosine is None:
        return
    angle = float(np.degrees(np.arccos(np.clip(abs(cosine), 0, 1))))
    text = f"the directions meet at {angle:.1f} degrees (cosine {cosine:.3g})"
    if abs(cosine) > PARALLEL:
        yield Finding(
            "error",
            "angle",
            f"{text}: this is one line drawn as a plane; use another second direction",
        )
    elif abs(cosine) > OBLIQUE:
        made = [d.get("kind") for d in facts.get("directions") or [] if isinstance(d, dict)]
        remedy = "say so in the caption"
        if "random" in made:
            remedy = "draw them with random_directions(..., orthogonal=True), or " + remedy
        yield Finding("warning", "angle", f"{text}: shapes are sheared; {remedy}")
    else:
        yield Finding("ok", "angle", text)


def _finite(values: Array, axes: list[Array], facts: dict[str, Any]) -> Iterator[Finding]:
    bad = ~np.isfinite(values)
    count = int(bad.sum())
    if count == 0:
        yield Finding("ok", "finite", f"all {values.size} values are finite")
        return
    text = f"{count} of {values.size} values ({100 * count / values.size:.3g} %) are not finite"
    if count == values.size:
        yield Finding(
            "error", "finite",
            f"{text}: nothing to draw; look at the loss at theta itself, try dtype=torch.float64",
        )  # fmt: skip
        return
    mesh = np.meshgrid(*axes, indexing="ij")
    radius = np.max(np.abs(np.stack(mesh)), axis=0)
    nearest = float(radius[bad].min())
    inside = radius[(radius < nearest) & ~bad]
    advice = (
        f"all are finite up to +-{float(inside.max()):.3g}; narrow the range to that, or try "
        "dtype=torch.float64"
        if inside.size and inside.max() > 0
        else "even near the centre; try dtype=torch.float64"
    )
    negative = facts.get("negative_variance") or 0
    if negative:
        advice = (
            f"{negative} of them because interpolated variances are negative there; narrow the "
            "range to between the models, or use bn='recompute'"
        )
    level: Level = "note"
    if count > MOSTLY * values.size:  # what is drawn is mostly a hole
        level = "error"
    elif count > 0.05 * values.size:
        level = "warning"
    yield Finding(level, "finite", f"{text}: {advice}")


def _range(
    values: Array, axes: list[Array], facts: dict[str, Any], slice_kind: bool
) -> Iterator[Finding]:
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    span = high - low
    if finite.size < 3:
        return
    if span <= NOISE * _eps(facts) * max(abs(low), abs(high)):
        yield Finding(
            "error", "range",
            f"the loss is flat: it changes by {span:.2g} around {high:.6g}, which is rounding; "
            "are the directions zero, the range too small, or the layers they move unused?",
        )  # fmt: skip
        return
    q90 = float(np.quantile(finite, 0.9))
    top = float((finite >= high - PLATEAU_BAND * span).mean())
    bottom = float((finite <= low + PLATEAU_BAND * span).mean())
    steep = q90 > low and span > TAIL_RATIO * (q90 - low)
    if top > PLATEAU_SHARE:
        yield Finding(
            "warning", "range",
            f"saturated: {100 * top:.0f} % of the points lie on a plateau at {high:.4g}; "
            "narrow the range",
        )  # fmt: skip
    elif steep or (bottom > 0.8 and finite.size >= 50):
        yield Finding(
            "note", "range",
            f"few points dominate: 90 % lie below {q90:.3g}, the largest is {high:.3g}; "
            "use log=True or vmax=",
        )  # fmt: skip
    else:
        yield Finding("ok", "range", f"loss from {low:.4g} to {high:.4g}, no plateau")
    yield from _minimum(values, axes, low, span, slice_kind)


def _minimum(
    values: Array, axes: list[Array], low: float, span: float, slice_kind: bool
) -> Iterator[Finding]:
    at = np.unravel_index(
        int(np.nanargmin(np.where(np.isfinite(values), values, np.nan))), values.shape
    )
    where = ", ".join(f"{n} = {a[k]:.3g}" for n, a, k in zip(_names(axes), axes, at, strict=False))
    border = any(a.size > 2 and k in (0, a.size - 1) for a, k in zip(axes, at, strict=False))
    if border and slice_kind:
        yield Finding(
            "warning", "minimum",
            f"the lowest loss, {low:.4g}, is at the border ({where}): widen the range to see "
            "where it ends",
        )  # fmt: skip
        return
    centre = tuple(int(np.argmin(np.abs(a))) for a in axes)
    if slice_kind and values[centre] > low + 0.01 * span:
        yield Finding(
            "note", "minimum",
            f"the lowest loss, {low:.4g}, is at {where}, not at 0 ({values[centre]:.4g}): theta is "
            "not a minimum along these directions",
        )  # fmt: skip
    elif slice_kind:
        yield Finding("ok", "minimum", f"lowest at or beside 0 ({where})")


def _resolution(values: Array, axes: list[Array]) -> Iterator[Finding]:
    sizes = [a.size for a in axes if a.size > 1]
    if not sizes:
        return
    finite = values[np.isfinite(values)]
    top = float(np.quantile(finite, 0.95))
    robust = top - float(finite.min())
    seen = np.where(np.isfinite(values) & (values <= top), values, np.nan)  # not the steep rim
    jumps = _jumps(seen)
    jump = float(np.quantile(jumps, 0.99)) if jumps.size else 0.0
    if robust > 0 and jump > JUMP_SHARE * robust:
        yield Finding(
            "warning", "resolution",
            f"neighbours differ by up to {100 * jump / robust:.0f} % of the range: what lies "
            "between them is not seen; use more points or a narrower range",
        )  # fmt: skip
    elif min(sizes) < COARSE:
        yield Finding(
            "note", "resolution",
            f"{' x '.join(map(str, sizes))} points: fine for a look, use 51 for a picture to show",
        )  # fmt: skip
    else:
        yield Finding(
            "ok", "resolution", f"{' x '.join(map(str, sizes))} points, steps well resolved"
        )


def _subset(facts: dict[str, Any], result: Checked) -> Iterator[Finding]:
    subset = facts.get("subset")
    if not subset:
        return
    text = (
        f"{subset['samples']:,} of {subset['of']:,} samples, drawn with seed {subset['seed']}: L "
        "is theirs"
    )
    errors = getattr(result, "metrics", {}).get(SUBSET)
    finite = np.isfinite(errors) if errors is not None else np.zeros(1, dtype=bool)
    if errors is None:
        text += f"; metrics=({SUBSET!r},) gives its error against all of them"
    elif finite.any():
        text += (
            f", with standard errors of {errors[finite].min():.2g} to {errors[finite].max():.2g} "
            "against all of them"
        )
    yield Finding("note", "samples", text)


def _rounding(values: Array, facts: dict[str, Any]) -> Iterator[Finding]:
    """The noise floor of a model of half precision."""
    noise, half = facts.get("rounding_noise"), facts.get("half")
    finite = values[np.isfinite(values)]
    if noise is None or not finite.size:
        return
    noise, span = float(noise), float(finite.max() - finite.min())
    text = (
        f"{half}: its rounding scatters the loss by about {noise:.2g} (standard deviation between "
        "points as near as the weights' spacing)"
    )
    if span <= SHOWN_NOISE * noise:
        yield Finding(
            "error", "rounding",
            f"{text}, and the picture's range is {span:.2g}: it shows rounding; "
            "dtype=torch.float32 computes in float32",
        )  # fmt: skip
        return
    every = _jumps(values)
    hidden = float((every <= 2 * noise).mean()) if every.size else 0.0
    if hidden > 0.5:
        yield Finding(
            "warning", "rounding",
            f"{text}; {100 * hidden:.0f} % of neighbours differ by less than twice that: small "
            "structures are noise; dtype=torch.float32 computes in float32",
        )  # fmt: skip
    else:
        yield Finding("note", "rounding", f"{text}, a {noise / span:.1g} part of the range")


def _jumps(values: Array) -> Array:
    """|differences| between neighbours along every axis, where both are finite."""
    steps = [np.abs(np.diff(values, axis=k)) for k in range(values.ndim)]
    return np.concatenate([s[np.isfinite(s)].ravel() for s in steps])


def _noise(result: Any, axes: list[Array]) -> Iterator[Finding]:
    """Structures that other samples of the data might not show: a minimum that is not the centre, a
    barrier, minima beside the lowest one."""
    from .data_noise import ERRORS, reference, reference_errors, step_errors

    metrics = getattr(result, "metrics", {})
    if not {STANDARD, DIFFERENCE} & set(metrics) or not np.isfinite(result.values).any():
        return
    within = f"within {ERRORS:g} standard errors of the data's sampling noise"
    try:
        apart = result.values - reference(result)
        noise = reference_errors(result)
    except InvalidArgument:
        apart = None
    if apart is not None and np.isfinite(apart).any():
        slices = result.kind in SLICES
        best = int(np.nanargmin(apart) if slices else np.nanargmax(apart))
        size = float(-apart.flat[best] if slices else apart.flat[best])
        error = float(noise.flat[best])
        place = np.unravel_index(best, result.values.shape)
        where = ", ".join(
            f"{n} = {a[k]:.3g}" for n, a, k in zip(_names(axes), axes, place, strict=False)
        )
        what = (
            f"the lowest loss ({where}) is {size:.3g} below the centre's"
            if slices
            else f"the barrier ({where}) is {size:.3g} above the mixture of the solutions' losses"
        )
        told = f"its standard error is {error:.2g}"
        if size > 0 and not size > ERRORS * error:
            yield Finding("note", "noise", f"{what}, {within} ({told})")
        elif size > 0:
            yield Finding("ok", "noise", f"{what}, beyond the data's sampling noise ({told})")
    if result.values.ndim == 0 or not 1 < result.values.size <= MOST_FOR_TREES:
        return
    tree = result.topology()
    flat = result.values.ravel()
    ends = tree.join.deaths >= 0
    low, high = tree.join.extrema[ends], tree.join.deaths[ends]
    length = flat[high] - flat[low]
    seen = length > tree.noise
    few = int((length <= ERRORS * step_errors(result, low, high))[seen].sum()) if seen.any() else 0
    if few:
        yield Finding(
            "note", "noise",
            f"{few} of {int(seen.sum())} minima beside the lowest are no deeper than {ERRORS:g} "
            "standard errors: other samples of the data might not show them",
        )  # fmt: skip


def _batch_norm(facts: dict[str, Any], slice_kind: bool) -> Iterator[Finding]:
    if not facts.get("has_batchnorm"):
        return
    mode = facts.get("bn", "eval")
    if mode == "eval" and not slice_kind:
        yield Finding(
            "warning", "batchnorm",
            "running statistics of one model were kept between solutions, where they fit none; "
            "use bn='recompute'",
        )  # fmt: skip
        return
    meaning = {
        "eval": "running statistics fixed at the model's own (usual for random directions)",
        "interpolate": (
            "running statistics move along directions to another model, and stay on others"
            if slice_kind
            else "running statistics interpolated like the parameters: between the solutions they "
            "are those of no model; bn='recompute' computes them"
        ),
        "recompute": "statistics recomputed from all data at every point",
        "batch": "statistics of each batch: values depend on how the data is batched",
    }.get(str(mode), str(mode))
    unusual = mode == "batch" or (mode == "interpolate" and not slice_kind)
    yield Finding("note" if unusual else "ok", "batchnorm", f"bn={mode!r}: {meaning}")
