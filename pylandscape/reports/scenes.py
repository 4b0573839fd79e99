"""Scenes for plotly, as plain dictionaries: nothing of plotly is needed to make them.

Values are drawn on the scales of plots/ (`Scale`, the axis of eigenvalues); ticks and what the
pointer shows are in the units of the metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..plots.overlay import Run
from ..plots.scale import Array, Scale, bar_ticks, format_levels, round_steps
from ..plots.spectral_axis import Axis
from ..plots.style import LINE_COLOURS
from ..plots.surface_strokes import heights
from ..plots.view import View, view_of
from ..results.cloud import Cloud
from ..results.curve import Curve
from ..results.spectra import Spectrum
from ..results.surface import Surface
from ..results.tracks import Track

POINTS = 121  # of a surface, along each axis
DENSITY_POINTS = 1500
DOTS = 4000  # of a cloud
LINES = 14  # contour lines
DIGITS = 5  # significant, of numbers on the page
LIFT = 0.01  # of the height, of a path over its surface
PATH = "#D55E00"
LEGEND = {"orientation": "h", "y": 1.08}  # above the axes, off the colour bar
ASPECT = 0.7  # height of a 3-D scene over its longest side

Scene = dict[str, Any]


def surface(result: Surface, runs: Sequence[Run], log: bool) -> Scene:
    """The surface in 3-D, with its paths a little above it."""
    view, scale, z, loss = _drawn(result, log)
    px, py = view.grid()
    rows, columns = (_thinned(n) for n in z.shape)
    at = np.ix_(rows, columns)
    low, high = scale.z_range
    data: list[dict[str, Any]] = [
        {
            "type": "surface", "x": numbers(px[at].T), "y": numbers(py[at].T),
            "z": numbers(z[at].T), "cmin": low, "cmax": high, "colorscale": "Viridis",
            "text": texts(loss[at].T), "hovertemplate": "%{text}<extra></extra>",
            "colorbar": _bar(scale), "showscale": view.corners is not None,
        }
    ]  # fmt: skip  # the contours beside it have the same bar
    for k, run in enumerate(runs):
        height = heights(view, result.values, scale, True, run.points) + LIFT * (high - low)
        x, y = view.place(run.points).T
        data.append({"type": "scatter3d", **_run(run, k, len(runs), x, y), "z": numbers(height)})
    if len(view.vertices):
        height = heights(view, result.values, scale, True, view.vertices) + LIFT * (high - low)
        data.append({"type": "scatter3d", **_marks(view, "#000000", 4), "z": numbers(height)})
    span = np.array([np.ptp(px), np.ptp(py)])
    wide = span / span.max() if view.equal else np.ones(2)
    ticks, words = _ticks(scale)
    axes = {
        "xaxis": {"title": {"text": _short(view.xlabel)}, "nticks": 3 + int(4 * wide[0])},
        "yaxis": {"title": {"text": _short(view.ylabel)}, "nticks": 3 + int(4 * wide[1])},
        "zaxis": {"title": {"text": scale.label("loss")}, "tickvals": ticks, "ticktext": words},
        "aspectmode": "manual",
        "aspectratio": {"x": float(wide[0]), "y": float(wide[1]), "z": ASPECT},
        "camera": {"eye": {"x": 1.85, "y": -2.35, "z": 1.35}},
    }
    return {
        "data": data,
        "layout": {"scene": axes, "height": 460, "margin": _margin(10), "legend": LEGEND},
    }


def contour(result: Surface, runs: Sequence[Run], log: bool) -> Scene | None:
    """Filled contours, the loss under the pointer; None for a triangle, which plotly cannot."""
    view, scale, z, loss = _drawn(result, log)
    if view.corners is not None:
        return None
    rows, columns = (_thinned(n) for n in z.shape)
    at = np.ix_(rows, columns)
    low, high = scale.z_range
    lines = round_steps(low, high, LINES)
    steps = {"start": float(lines[0]), "end": float(lines[-1])} if lines.size > 1 else {}
    size = {"size": float(lines[1] - lines[0])} if lines.size > 1 else {}
    data: list[dict[str, Any]] = [
        {
            "type": "contour", "x": numbers(view.x[rows]), "y": numbers(view.y[columns]),
            "z": numbers(z[at].T), "zmin": low, "zmax": high, "colorscale": "Viridis",
            "contours": {"coloring": "heatmap", **steps, **size},
            "line": {"width": 0.6, "color": "rgba(255,255,255,0.7)"},
            "text": texts(loss[at].T), "hovertemplate": "%{text}<extra></extra>",
            "colorbar": _bar(scale),
        }
    ]  # fmt: skip
    for k, run in enumerate(runs):
        x, y = run.points.T
        data.append({"type": "scatter", **_run(run, k, len(runs), x, y)})
    if len(view.vertices):
        data.append({"type": "scatter", **_marks(view, "#ffffff", 7)})
    tall = float(np.ptp(view.y) / np.ptp(view.x)) if view.equal else 1.0
    yaxis: dict[str, Any] = {
        "title": {"text": plain(view.ylabel) if tall > 0.5 else _short(view.ylabel)},
        "range": [view.y[0], view.y[-1]],
    }  # fmt: skip
    if view.equal:
        yaxis |= {"scaleanchor": "x", "constrain": "domain"}
    xaxis = {
        "title": {"text": plain(view.xlabel)}, "range": [view.x[0], view.x[-1]],
        "constrain": "domain",
    }  # fmt: skip
    return {"data": data, "layout": {"xaxis": xaxis, "yaxis": yaxis, "height": 460,
                                     "margin": _margin(30), "legend": LEGEND}}  # fmt: skip


def curve(result: Curve) -> Scene:
    """Every metric over x; accuracies on an axis of their own."""
    data, layout = [], _layout("step" if result.kind == "line" else "alpha", "loss")
    for k, (name, values) in enumerate(result.metrics.items()):
        share = "accuracy" in name
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": name, "x": numbers(result.x),
                "y": numbers(values), "line": {"color": LINE_COLOURS[k % len(LINE_COLOURS)]},
                "yaxis": "y2" if share else "y",
                "hovertemplate": "%{x:.4g}: %{y:.5g}",
            }
        )  # fmt: skip
        if share:
            layout["yaxis2"] = {
                "title": {"text": "accuracy"}, "overlaying": "y", "side": "right",
                "range": [-0.02, 1.02], "showgrid": False, "tickmode": "auto", "dtick": 0.2,
            }  # fmt: skip
            layout["margin"] = _margin(30) | {"r": 60}
    return {"data": data, "layout": layout}


def spectrum(result: Spectrum) -> Scene:
    """The log density, its standard error and its outliers, on the axis of the picture."""
    axis = Axis.of([result], None, None, None, None)
    grid = axis.points(DENSITY_POINTS)
    density = axis.density(result, grid)
    low, high = axis.limits([result], [density], None, None, None)
    place = numbers(axis.forward(grid))
    shown = np.where(density.values >= low, density.values, np.nan)
    words = [f"lambda {v:.4g}" for v in grid]
    data: list[dict[str, Any]] = []
    if np.isfinite(density.standard_error).all():
        for name, sign, fill in (("lower", -1.0, None), ("upper", 1.0, "tonexty")):
            edge = np.maximum(density.values + sign * density.standard_error, low)
            data.append(
                {
                    "type": "scatter", "mode": "lines", "x": place, "y": numbers(edge),
                    "line": {"width": 0}, "fill": fill, "fillcolor": "rgba(0,114,178,0.3)",
                    "hoverinfo": "skip", "showlegend": False, "name": name,
                }
            )  # fmt: skip
    data.append(
        {
            "type": "scatter", "mode": "lines", "x": place, "y": numbers(shown), "text": words,
            "hovertemplate": "%{text}: density %{y:.3g}<extra></extra>", "name": "density",
            "line": {"color": LINE_COLOURS[0], "width": 1.5},
        }
    )  # fmt: skip
    values, bounds = result.outliers()
    if values.size:
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": "outliers",
                "x": numbers(axis.forward(values)), "y": [1.3 * low] * values.size,
                "marker": {"symbol": "triangle-up", "size": 9, "color": PATH},
                "text": [f"{v:.6g} +- {b:.1g}" for v, b in zip(values, bounds, strict=True)],
                "hovertemplate": "outlier %{text}<extra></extra>",
            }
        )  # fmt: skip
    layout = _layout("eigenvalue", "density")
    layout["yaxis"] |= {"type": "log", "range": [float(np.log10(low)), float(np.log10(high))],
                        "exponentformat": "power", "dtick": 1}  # fmt: skip
    if high / low > 1e8:
        layout["yaxis"]["dtick"] = 2
    first, last = (float(v) for v in axis.forward([axis.low, axis.high]))
    layout["xaxis"]["range"] = [first, last]
    if np.isfinite(axis.linthresh):
        at, _ = axis.ticks()
        layout["xaxis"] |= {
            "tickvals": numbers(axis.forward(at)), "ticktext": [f"{v:g}" for v in at],
        }  # fmt: skip
    return {"data": data, "layout": layout}


def track(result: Track) -> Scene:
    """Eigenvalues over the training step, and the threshold."""
    data = [
        {
            "type": "scatter", "mode": "lines+markers", "name": f"lambda {k + 1}",
            "x": result.steps.tolist(), "y": numbers(column), "marker": {"size": 4},
            "line": {"color": LINE_COLOURS[k % len(LINE_COLOURS)]},
            "hovertemplate": "step %{x}: %{y:.5g}",
        }
        for k, column in enumerate(result.values.T)
    ]  # fmt: skip
    if result.threshold is not None:
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": result.rule or "threshold",
                "x": result.steps.tolist(), "y": numbers(result.threshold),
                "line": {"color": "#888888", "dash": "dash"},
            }
        )  # fmt: skip
    return {"data": data, "layout": _layout("training step", "eigenvalue")}


def cloud(result: Cloud) -> Scene:
    """Dots of loss, gradient norm and, where there is one, height; classes as traces of their own.
    One dot in so many (`cloud_step`)."""
    step = cloud_step(result)
    shown = result.select(slice(None, None, step))
    names = ["loss", "gradient_norm", *([result.height] if result.height else [])]
    places = dict(zip("xyz", (shown.values(n).astype(np.float64) for n in names), strict=False))
    style: dict[str, Any] = {
        "type": "scatter3d" if result.height else "scatter", "mode": "markers",
    }  # fmt: skip
    data = []
    if shown.kinds is not None and shown.color == "kind":
        for k, kind in enumerate(shown.counts()):
            rows = shown.values("kind") == kind
            data.append(
                style | {a: numbers(v[rows]) for a, v in places.items()} | {
                    "name": f"{kind} ({result.counts()[kind]:,})",
                    "marker": {"size": 3, "color": LINE_COLOURS[k % len(LINE_COLOURS)]},
                }
            )  # fmt: skip
    else:
        colours = shown.values(shown.color).astype(np.float64)
        data.append(
            style | {a: numbers(v) for a, v in places.items()} | {
                "name": shown.color,
                "marker": {
                    "size": 3, "color": numbers(colours), "colorscale": "Viridis",
                    "colorbar": {"title": {"text": shown.color}}, "showscale": True,
                },
            }
        )  # fmt: skip
    layout = _layout("loss", "gradient norm")
    if result.height:
        layout["scene"] = {
            "xaxis": layout.pop("xaxis"), "yaxis": layout.pop("yaxis"),
            "zaxis": {"title": {"text": result.height}}, "aspectmode": "cube",
            "camera": {"eye": {"x": 1.5, "y": -1.9, "z": 0.9}},
        }  # fmt: skip
        layout["height"] = 520
    return {"data": data, "layout": layout}


def cloud_step(result: Cloud) -> int:
    """One dot in how many is drawn."""
    return max(1, -(-len(result) // DOTS))


def path(x: Array, y: Array, steps: Any, names: Sequence[str]) -> Scene:
    """A path, its steps as colours and under the pointer."""
    trace = _run(Run(np.stack([x, y], axis=1), None, np.asarray(steps)), 0, 1, x, y)
    return {"data": [{"type": "scatter", **trace}], "layout": _layout(*names)}


def _drawn(result: Surface, log: bool) -> tuple[View, Scale, Array, Array]:
    values = np.asarray(result.values, dtype=np.float64)
    scale = Scale.of(values, log=log)
    return view_of(result), scale, scale.cut(values, clip=True), values


def _run(run: Run, k: int, count: int, x: Array, y: Array) -> dict[str, Any]:
    """What a path is in the plane and in space."""
    size = len(run.points)
    steps = np.arange(size) if run.steps is None else np.asarray(run.steps)
    words = [f"step {s}" for s in steps.tolist()]
    if run.off is not None:
        words = [f"{w}, {100 * o:.2g} % off the plane" for w, o in zip(words, run.off, strict=True)]
    colour = PATH if count == 1 else LINE_COLOURS[k % len(LINE_COLOURS)]
    symbols = ["circle-open", *["circle"] * (size - 2), "diamond"][:size]
    return {
        "mode": "lines+markers", "x": numbers(x), "y": numbers(y), "text": words,
        "hovertemplate": "%{text}<extra></extra>", "name": run.label or "path",
        "line": {"color": colour, "width": 3},
        "marker": {"color": colour, "size": [8, *[3] * (size - 2), 9][:size], "symbol": symbols},
        "showlegend": count > 1,
    }  # fmt: skip


def _marks(view: View, ink: str, size: int) -> dict[str, Any]:
    """The models that a plane goes through, with their names."""
    x, y = view.place(view.vertices).T
    names = [plain(name) for name in view.names]
    return {
        "mode": "markers+text" if names else "markers", "x": numbers(x), "y": numbers(y),
        "text": names, "textposition": "top center", "name": "models", "showlegend": False,
        "hovertemplate": "%{text}<extra></extra>", "textfont": {"color": ink, "size": 12},
        "marker": {"color": "#ffffff", "size": size, "line": {"color": "#000000", "width": 1}},
    }  # fmt: skip


def _ticks(scale: Scale) -> tuple[list[float], list[str]]:
    """Of the height: positions as z, and texts in the metric's units."""
    low, high = scale.z_range
    if scale.log:
        every = scale.forward(scale.levels(np.array([scale.vmin, scale.vmax]), None))
        at = every[:: max(1, -(-every.size // 6))]
    else:
        at = round_steps(low, high, 5)
    return numbers(at), format_levels(scale.inverse(at)) if at.size else []


def _bar(scale: Scale) -> dict[str, Any]:
    at, _ = _ticks(scale)
    shown, words = bar_ticks(scale, np.array(at), scale.z_range, 9, even=False)
    words = [f"{w}+" if scale.cut_high and k == len(words) - 1 else w for k, w in enumerate(words)]
    return {
        "title": {"text": scale.label("loss"), "side": "right"}, "tickvals": numbers(shown),
        "ticktext": words, "thickness": 14, "len": 0.85,
    }  # fmt: skip


def _layout(x: str, y: str) -> dict[str, Any]:
    return {
        "xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}, "height": 400,
        "margin": _margin(30), "legend": LEGEND,
    }  # fmt: skip


def _margin(top: int) -> dict[str, int]:
    return {"l": 60, "r": 20, "t": top, "b": 50}


def _thinned(n: int) -> Any:
    return np.unique(np.linspace(0, n - 1, min(n, POINTS)).round().astype(int))


def _short(text: str) -> str:
    """Without the units, which the contours beside it have."""
    return plain(text.split(" (")[0].removesuffix(" in parameter space"))


def plain(text: str) -> str:
    """matplotlib's mathematics as plain text."""
    for tex, word in (
        (r"\alpha", "alpha"), (r"\beta", "beta"), (r"\Vert ", "|"), (r"\Vert", "|"),
        (r"\theta", "theta"),
        ("$", ""), ("d_1", "d1"), ("d_2", "d2"),
    ):  # fmt: skip
        text = text.replace(tex, word)
    return text


def numbers(values: Any) -> list[Any]:
    """Lists with few digits; None for what is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim > 1:
        return [numbers(row) for row in array]
    return [float(f"{v:.{DIGITS}g}") if np.isfinite(v) else None for v in array.tolist()]


def texts(values: Array) -> list[list[str]]:
    """What the pointer shows: the loss."""
    return [[f"loss {v:.{DIGITS}g}" for v in row] for row in values.tolist()]
