"""What the page says of a result: facts, pictures, tables, the verdict of its check, provenance."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import PylandscapeError
from ..plots.overlay import Run, runs_of
from ..plots.scale import Scale
from ..results.base import Pictured, draw
from ..results.cloud import Cloud
from ..results.curve import Curve
from ..results.eigen_pairs import EigenPairs
from ..results.flatness_table import Flatness
from ..results.merge_trees import Topology
from ..results.spectra import Spectrum
from ..results.surface import Surface
from ..results.tracks import Track
from . import scenes
from .panes import Pane, pane

ROWS = 20  # of a table
SHOWN = (
    "matrix", "probes", "steps", "seed", "products", "model_loss", "engine", "engine_reason",
    "seconds", "dtype", "bn", "loss", "n_params", "theta_norm", "direction_norms",
    "direction_cosine", "created", "versions", "layout", "theta", "data", "notes",
)  # fmt: skip
DIGEST = re.compile(r"[0-9a-f]{64}")
LONGEST = 20_000  # characters of the whole provenance


@dataclass(frozen=True)
class Table:
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass
class Section:
    """facts, provenance: (name, text); findings: (level, name, message); info: JSON."""

    heading: str
    facts: list[tuple[str, str]]
    panes: list[Pane] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    findings: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    provenance: list[tuple[str, str]] = field(default_factory=list)
    info: str = ""


def is_path(result: Any) -> bool:
    """A trajectory, or one that is projected on a plane."""
    return hasattr(result, "off_share") or (hasattr(result, "project") and hasattr(result, "steps"))


def section_of(result: Any, label: str, paths: Sequence[Any], number: int, live: bool) -> Section:
    """The section of a result.

    Args:
        paths: trajectories and projections of the report, which surfaces show.
        number: of the section, for the names of its panes.
        live: whether there is a script that draws scenes.
    """
    name = type(result).__name__
    facts = result.facts() if isinstance(result, Pictured) else _facts(result)
    section = Section(f"{label} ({name})" if label else name, facts)
    _fill(section, result, paths)
    for k, each in enumerate(section.panes):
        each.name = f"pane-{number}-{k}"
        each.scene = each.scene if live else None
    if hasattr(result, "check"):
        section.findings = [(f.level, f.name, f.message) for f in result.check().findings]
    info = dict(getattr(result, "info", None) or {})
    section.provenance = _provenance(info)
    text = json.dumps(info, indent=1, default=str, sort_keys=True) if info else ""
    cut = len(text) - LONGEST
    section.info = text if cut <= 0 else f"{text[:LONGEST]}\n... {cut:,} more characters"
    return section


def _facts(result: Any) -> list[tuple[str, str]]:
    name, _, rest = repr(result).partition("(")
    return [(name, rest.removesuffix(")"))] if rest.endswith(")") else []


def _fill(section: Section, result: Any, paths: Sequence[Any]) -> None:
    if isinstance(result, Surface):
        _surface(section, result, paths)
    elif isinstance(result, Curve):
        section.panes.append(pane("loss", result.plot, scenes.curve(result)))
    elif isinstance(result, Spectrum):
        section.panes.append(pane("spectral density", result.plot, scenes.spectrum(result)))
        values, bounds = result.outliers()
        section.tables += _eigenvalues("outliers", values, bounds)
        if result.pairs is not None:
            section.tables += _pairs(result.pairs)
    elif isinstance(result, EigenPairs):
        section.facts = section.facts[:1]
        section.tables += _pairs(result)
        if result.values.size:
            section.panes.append(pane("eigenvalues", result.plot))
    elif isinstance(result, Cloud):
        section.panes.append(pane("loss-gradient cloud", result.plot, scenes.cloud(result)))
        step = scenes.cloud_step(result)
        if step > 1:
            section.facts.append(("shown to the pointer", f"1 dot in {step}"))
    elif isinstance(result, Track):
        section.panes.append(pane("eigenvalues", result.plot, scenes.track(result)))
    elif isinstance(result, Topology):
        section.panes.append(pane("merge tree", result.draw))
        bars = [(f"{a:.6g}", f"{b:.6g}", f"{b - a:.6g}") for a, b in result.barcode()[:ROWS]]
        section.tables.append(Table("minima", ("born", "dies", "persistence"), bars))
    elif is_path(result):
        _path(section, result)
    elif isinstance(result, Flatness):
        section.panes.append(pane("measures of flatness", result.plot))
        section.tables.append(_flatness(result))
    elif isinstance(result, Pictured):
        section.panes.append(pane("picture", lambda **o: axes_of(draw(result, **o))))
    else:
        columns = result.table_columns()
        rows = list(zip(*(c[:ROWS] for c in columns.values()), strict=True))
        count = len(next(iter(columns.values()), []))
        more = f", the first {ROWS} of {count:,}" if count > ROWS else ""
        texts = [[_text(v) for v in row] for row in rows]
        section.tables.append(Table(f"values{more}", list(columns), texts))


def axes_of(drawn: Any) -> Any:
    """The first of what a picture's function returns."""
    return drawn[0] if isinstance(drawn, tuple | list) else drawn


def _surface(section: Section, surface: Surface, paths: Sequence[Any]) -> None:
    drawn, runs = _paths_on(surface, paths, section.notes)
    log = steep(surface.values)
    options: dict[str, Any] = {"log": log}
    if drawn:
        options["trajectory"] = drawn
    thin = min(surface.values.shape) < 2
    flat = "heat" if thin else "filled"
    section.panes.append(
        pane(
            "loss over the plane",
            lambda **o: surface.plot(flat, **options, **o),
            None if thin else scenes.contour(surface, runs, log),
        )
    )
    if not thin:
        section.panes.append(
            pane(
                "loss surface",
                lambda **o: surface.plot("surface", **options, **o),
                scenes.surface(surface, runs, log),
            )
        )


def _paths_on(surface: Surface, paths: Sequence[Any], notes: list[str]) -> tuple[Any, list[Run]]:
    """Which of the paths are drawn on the surface, as given and as runs. Notes say why others are
    not; what the surface brings along is drawn without any."""
    kept: list[Any] = []
    for each in paths:
        norms = surface.info.get("direction_norms")
        if hasattr(each, "off_share") and not norms:
            notes.append("The projected path is not drawn: the directions are not known.")
            continue
        try:
            runs_of(surface, each)
        except PylandscapeError as error:
            if surface.info.get("n_params") not in (None, getattr(each, "n", None)):
                continue  # of another model: the top of the page says it
            why = "its directions are not known (a file does not keep them)"
            if surface.frame is not None:
                why = str(error)
            notes.append(f"The path of {each!r} is not drawn: {why}.")
            continue
        kept.append(each)
    own = surface.info.get("paths")
    given = kept[0] if len(kept) == 1 else kept or own
    if given is None:
        return [], []
    if kept and own:  # the curve of a connection, say, and the runs beside it
        given = {
            **own,
            **{"path" if len(kept) == 1 else f"path {k}": p for k, p in enumerate(kept)},
        }
    return given if kept else [], runs_of(surface, given)


def _path(section: Section, path: Any) -> None:
    """A projection as it is, a trajectory along its two main components."""
    if hasattr(path, "off_share"):
        x, y = path.coordinates.T
        names = "step along d1", "step along d2"
        section.panes.append(
            pane("path", lambda **o: path.plot(**o)[0], scenes.path(x, y, path.steps, names))
        )
        return
    if len(path) < 3:
        section.notes.append("Fewer than three points: no picture.")
        return
    from ..trajectories.components import pca

    try:
        found = pca(path, 2)
    except PylandscapeError as error:
        section.notes.append(f"No picture: {error}")
        return
    x, y = found.coordinates[:, :2].T
    first, second = (f"component {k + 1} ({100 * found.ratios[k]:.1f} %)" for k in (0, 1))
    section.panes.append(
        pane(
            "path along its main components",
            lambda **o: found.plot(**o)[0],
            scenes.path(x, y, found.steps, (first, second)),
        )
    )


def steep(values: np.ndarray) -> bool:
    """Whether a linear scale would show little more than the rim."""
    finite = values[np.isfinite(values)]
    return bool(finite.size and finite.min() > 0 and Scale.of(finite).cut_high)


def _flatness(table: Flatness) -> Table:
    rows = []
    for r in table.rows:
        least = ">= " if r.bound == "lower" else ""
        error = f"{r.standard_error:.2g}" if r.standard_error > 0 else ""
        radius = "" if r.rho is None else f"{r.rho:g}"
        rows.append((r.name, radius, r.meaning, f"{least}{r.value:.4g}", error, r.invariant))
    heads = ("", "rho", "which is", "value", "standard error", "invariant to")
    return Table("measures", heads, rows)


def _pairs(pairs: EigenPairs) -> list[Table]:
    return _eigenvalues("eigenpairs", pairs.values, pairs.residuals, pairs.converged)


def _eigenvalues(
    caption: str, values: np.ndarray, bounds: np.ndarray, converged: np.ndarray | None = None
) -> list[Table]:
    if not values.size:
        return []
    head = ["", "eigenvalue", "residual" if converged is not None else "bound"]
    rows = []
    for k in range(min(ROWS, values.size)):
        rows.append([k + 1, f"{values[k]:.8g}", f"{bounds[k]:.2g}"])
        if converged is not None:
            rows[-1].append("yes" if converged[k] else "no")
    more = f", the first {ROWS} of {values.size}" if values.size > ROWS else ""
    return [Table(caption + more, [*head, *["converged"] * (converged is not None)], rows)]


def _provenance(info: dict[str, Any]) -> list[tuple[str, str]]:
    facts = {**(info.get("request") or {}), **info}
    return [(key, _text(facts[key])) for key in SHOWN if facts.get(key) not in (None, [], {}, "")]


def _text(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    return DIGEST.sub(lambda found: found.group()[:12], str(value))
