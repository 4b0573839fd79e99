"""Pictures of spectra: rendered headless and checked for what they show."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import QuadMesh

from pylandscape.arrays import edges
from pylandscape.errors import InvalidArgument
from pylandscape.plots.spectra import plot_spectra
from pylandscape.results.eigen_pairs import EigenPairs
from pylandscape.results.spectra import Spectrum
from pylandscape.results.surface import Surface

BULK = np.concatenate([np.linspace(-0.05, 0.1, 95), [1.0, 2.0, 5.0, 20.0, 300.0]])


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def spectrum(eigenvalues=BULK, probes: int = 5, seed: int = 0, **changes) -> Spectrum:
    """All nodes, with the weights of random starts."""
    n = len(eigenvalues)
    squares = np.random.default_rng(seed).normal(size=(probes, n)) ** 2
    nodes = np.tile(np.sort(eigenvalues), (probes, 1))
    weights = squares / squares.sum(axis=1, keepdims=True)
    outcomes = ("exhausted",) * probes
    return Spectrum(nodes, weights, np.zeros_like(nodes), n, outcomes=outcomes, **changes)


def pairs(values=(3.0, 2.0, 1.0), converged=None) -> EigenPairs:
    k = len(values)
    good = np.ones(k, dtype=bool) if converged is None else np.array(converged)
    return EigenPairs(np.array(values), torch.eye(9)[:k], np.full(k, 0.1), good, 30)


def named(ax, gid: str) -> list:
    return [a for a in ax.get_children() if a.get_gid() == gid]


def drawn(ax) -> np.ndarray:
    ax.figure.canvas.draw()
    return np.asarray(ax.figure.canvas.buffer_rgba())[..., :3]


def overlaps(texts) -> int:
    boxes = [t.get_window_extent() for t in texts if t.get_text() and t.get_visible()]
    return sum(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def inside(ax) -> bool:
    """Whether every text lies within the figure."""
    ax.figure.canvas.draw()
    frame = ax.figure.bbox
    texts = [ax.xaxis.label, ax.yaxis.label, ax.title]
    texts += [] if ax.get_legend() is None else ax.get_legend().get_texts()
    boxes = [t.get_window_extent() for t in texts if t.get_text()]
    return all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= frame.x1 and b.y1 <= frame.y1 for b in boxes)


@pytest.mark.parametrize("xscale", ["linear", "symlog"])
def test_a_spectrum_is_a_log_density_with_its_standard_error(xscale):
    s = spectrum()
    ax = s.plot(xscale=xscale, sigma2=1e-5, title="spectrum")
    assert ax.get_yscale() == "log"
    assert ax.get_xscale() == xscale
    (line,) = named(ax, "density")
    grid, values = line.get_data()
    assert np.allclose(values, np.maximum(s.density(grid).values, 1e-300))
    assert named(ax, "band")
    assert not named(spectrum(probes=1).plot(), "band")
    assert not named(s.plot(band=False), "band")
    low, high = ax.get_ylim()
    peak = 1 / (s.n * np.sqrt(2 * np.pi * s.sigma2))  # of one eigenvalue; cells can be wider
    assert low < peak
    assert values.max() < high < 10 * values.max()
    left, right = ax.get_xlim()
    assert left < -0.05
    assert right > 300
    assert inside(ax)


def test_the_exact_histogram_has_the_density_s_normalisation():
    s = spectrum()
    ax = s.plot(BULK, bins=40, sigma2=1e-5)
    (bars,) = named(ax, "histogram")
    heights, borders, _ = bars.get_data()
    assert heights @ np.diff(borders) == pytest.approx(1.0)
    (line,) = named(ax, "exact")
    grid, values = line.get_data()
    assert np.allclose(values, np.maximum(s.exact_density(BULK, grid).values, 1e-300))
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts[:3] == ["5 probes of 100 steps", "exact, same kernel", "exact, 40 bins"]
    assert ax.get_ylim()[1] > heights.max()
    assert inside(ax)


def test_ticks_of_a_symlog_axis_do_not_overlap():
    for eigenvalues in (BULK, -BULK, 1e3 * BULK, 1e-3 * BULK, np.concatenate([BULK, -BULK])):
        ax = spectrum(eigenvalues).plot(xscale="symlog")
        drawn(ax)
        texts = ax.get_xticklabels()
        assert sum(bool(t.get_text()) for t in texts) >= 2
        assert overlaps(texts) == 0


def test_a_symlog_axis_is_linear_where_half_of_the_spectrum_is_and_over_the_kernel():
    wide = spectrum(100 * np.linspace(-1, 1, 101))
    assert wide.plot(xscale="symlog").xaxis.get_transform().linthresh == pytest.approx(50, rel=0.2)
    tiny = spectrum(np.concatenate([np.zeros(99), [1.0]]), sigma2=1e-4)
    assert tiny.plot(xscale="symlog").xaxis.get_transform().linthresh == pytest.approx(0.1)
    chosen = wide.plot(xscale="symlog", linthresh=3.0)
    assert chosen.xaxis.get_transform().linthresh == 3.0


def hill(ax) -> float:
    """The share of the picture's width where the density is above half of its highest value."""
    (line,) = named(ax, "density")
    values = line.get_ydata()
    return float((values > 0.5 * values.max()).mean())


def test_a_picture_looks_the_same_in_every_unit_of_the_eigenvalues():
    drawn_lines = []
    for unit in (1e-4, 1.0, 1e6):
        ax = spectrum(unit * BULK).plot()
        assert ax.get_xscale() == "symlog"
        assert ax.xaxis.get_transform().linthresh == pytest.approx(unit * 0.05, rel=0.2)
        assert hill(ax) > 0.01
        drawn_lines.append(named(ax, "density")[0].get_ydata() * unit)
    for line in drawn_lines[1:]:
        assert np.allclose(line, drawn_lines[0], rtol=1e-6, atol=1e-12)
    needles = spectrum(1e6 * BULK).plot(sigma2=1e-5, xscale="linear")
    assert hill(needles) < 0.001


def test_the_axis_is_linear_where_the_range_does_not_ask_for_more():
    assert spectrum(np.linspace(-1, 3, 50)).plot().get_xscale() == "linear"
    assert spectrum().plot().get_xscale() == "symlog"
    assert spectrum().plot(linthresh=1.0).get_xscale() == "symlog"
    assert spectrum().plot(xlim=(-0.2, 0.4)).get_xscale() == "linear"
    assert spectrum().plot(xscale="linear").get_xscale() == "linear"


@pytest.mark.parametrize("xscale", ["linear", "symlog"])
def test_the_kernel_of_pictures_keeps_the_mass(xscale):
    s = spectrum()
    (line,) = named(s.plot(xscale=xscale), "density")
    grid, values = line.get_data()
    assert values @ np.diff(edges(grid)) == pytest.approx(1.0, abs=1e-6)
    beyond = grid > 150.0  # one eigenvalue, 300
    share = np.mean(s.weights[:, -1])
    assert (values @ np.diff(edges(grid)) - values[~beyond] @ np.diff(edges(grid))[~beyond]) == (
        pytest.approx(share, rel=1e-6)
    )


def test_a_variance_chosen_with_the_spectrum_is_drawn():
    for s, kernel in (
        (spectrum(sigma2=1e-3), 1e-3),
        (spectrum(sigma2=1e-5, relative_sigma2=True), 1e-5),
    ):
        (line,) = named(s.plot(), "density")
        grid, values = line.get_data()
        assert np.allclose(values, np.maximum(s.density(grid, kernel).values, 1e-300))


def test_one_eigenvalue_alone_is_drawn():
    for value in (0.0, 3.0, -1e-7):
        ax = spectrum(np.full(20, value)).plot()
        left, right = ax.get_xlim()
        assert left < value < right
        assert drawn(ax).std() > 5


def test_outliers_are_those_beyond_the_bulk_once_each():
    values, bounds = spectrum().outliers()
    assert values.tolist() == [300.0, 20.0, 5.0, 2.0, 1.0]
    assert bounds.max() <= 8 * 300 * np.finfo(np.float64).eps
    assert not spectrum(np.linspace(-1, 1, 100)).outliers()[0].size
    tail = spectrum(np.concatenate([np.linspace(0, 0.1, 90), 0.15 * 1.3 ** np.arange(8), [9.0]]))
    assert tail.outliers()[0].tolist() == [9.0]  # of the tail, 0.15 to 0.94, none
    negative = spectrum(np.concatenate([np.linspace(0, 1, 50), [-40.0]]))
    assert negative.outliers()[0].tolist() == [-40.0]
    s = spectrum()
    s.bounds[:, -1] = 10.0  # 300 +- 10 was not resolved
    assert s.outliers()[0].tolist() == [20.0, 5.0, 2.0, 1.0]


def test_nodes_of_several_probes_within_their_bounds_are_one_eigenvalue():
    s = spectrum()
    s.nodes[1, -1] += 0.5
    s.bounds[1, -1] = 0.6
    values, bounds = s.resolved()
    assert values[:2].tolist() == [300.0, 20.0]
    assert bounds[0] <= 8 * 301 * np.finfo(np.float64).eps


def test_outliers_are_marked_and_listed():
    ax = spectrum().plot(title="outliers")
    (marks,) = named(ax, "outliers")
    assert list(marks.get_xdata()) == [300.0, 20.0, 5.0, 2.0, 1.0]
    assert "outliers: 300, 20, 5, 2 + 1 more" in [t.get_text() for t in ax.get_legend().get_texts()]
    assert inside(ax)
    assert not named(spectrum().plot(outliers=False), "outliers")
    assert not named(spectrum().plot(xlim=(-0.2, 0.4)), "outliers")
    assert not named(spectrum(np.linspace(-1, 1, 100)).plot(), "outliers")


def test_an_evolution_marks_outliers_in_their_rows():
    spectra = [spectrum(np.append(BULK, 1e3 * (1 + t)), seed=t) for t in range(3)]
    ax = plot_spectra(spectra, kind="evolution", at=[0, 10, 20])
    rows = [np.asarray(c.get_offsets()) for c in named(ax, "outliers")]
    assert [row[0].tolist() for row in rows] == [[1e3, 0], [2e3, 10], [3e3, 20]]
    assert not named(plot_spectra(spectra, kind="evolution", outliers=False), "outliers")


def test_ridges_stand_on_their_checkpoints():
    spectra = [spectrum(seed=t) for t in range(9)]
    ax = plot_spectra(spectra, kind="ridges", at=10 * np.arange(9), ylabel="step", title="ridges")
    lines = named(ax, "ridge")
    assert sorted(line.get_ydata().min() for line in lines) == pytest.approx(10 * np.arange(9))
    front = max(lines, key=lambda line: line.get_zorder())
    assert front.get_ydata().min() == pytest.approx(0)
    assert ax.get_ylim()[1] > max(line.get_ydata().max() for line in lines)
    assert ax.get_ylabel() == "step"
    assert inside(ax)


def test_top_eigenvalues_are_drawn_against_the_step():
    spectra = [spectrum(np.concatenate([BULK, [1e3 * (1 + t), -7.0 - t]])) for t in range(3)]
    ax = plot_spectra(spectra, kind="top", most=2, at=[0, 100, 300], ylabel="step", title="top")
    first, second, least = (line for line in ax.lines if line.get_gid() == "top")
    assert first.get_xydata().tolist() == [[0, 1000], [100, 2000], [300, 3000]]
    assert second.get_ydata().tolist() == [300, 300, 300]
    assert least.get_ydata().tolist() == [-7, -8, -9]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["largest 2", "smallest"]
    assert (ax.get_xlabel(), ax.get_yscale()) == ("step", "symlog")
    assert inside(ax)


def test_eigenpairs_of_the_run_are_marked():
    ax = spectrum(pairs=pairs((300.0, 20.0))).plot()
    (marks,) = named(ax, "pairs")
    assert list(marks.get_xdata()) == [300.0, 20.0]
    assert not named(spectrum(pairs=pairs((300.0,))).plot(xlim=(-0.2, 0.4)), "pairs")
    assert "eigenpairs" in [t.get_text() for t in ax.get_legend().get_texts()]


def test_limits_are_taken_as_given():
    ax = spectrum().plot(xlim=(-0.2, 0.4), vmin=1e-3, vmax=1e3)
    assert ax.get_xlim() == (-0.2, 0.4)
    assert ax.get_ylim() == (1e-3, 1e3)


def test_several_spectra_are_lines_and_many_are_a_heat_map():
    few = plot_spectra([spectrum(seed=i) for i in range(3)], labels=["a", "b", "c"])
    assert len(named(few, "density")) == 3
    assert [t.get_text() for t in few.get_legend().get_texts()] == ["a", "b", "c"]
    many = plot_spectra([spectrum(seed=i) for i in range(9)])
    assert len(named(many, "evolution")) == 1
    assert many.get_ylabel() == "checkpoint"
    by_name = plot_spectra({"fc1.weight": spectrum(), "fc2.weight": spectrum(seed=1)})
    assert [t.get_text() for t in by_name.get_legend().get_texts()] == ["fc1.weight", "fc2.weight"]


def test_evolution_has_eigenvalues_along_x_and_checkpoints_along_y():
    spectra = [spectrum(np.array([0.0, 1.0 + t]), sigma2=1e-2) for t in range(4)]
    ax = plot_spectra(spectra, kind="evolution", at=[0, 10, 20, 100], ylabel="step", title="moves")
    (mesh,) = [c for c in ax.collections if isinstance(c, QuadMesh)]
    corners = mesh.get_coordinates()
    assert corners[:, 0, 1].tolist() == [-5, 5, 15, 60, 140]
    values = np.asarray(mesh.get_array()).reshape(4, -1)
    centres = 0.5 * (corners[0, 1:, 0] + corners[0, :-1, 0])
    for t in range(4):
        beyond = centres > 0.5
        assert centres[beyond][np.argmax(values[t, beyond])] == pytest.approx(1.0 + t, abs=0.02)
    assert ax.get_ylabel() == "step"
    assert ax.figure.axes[-1].get_ylabel() == "density"
    assert inside(ax)


def test_evolution_names_its_rows_by_labels():
    ax = plot_spectra({f"layer{i}": spectrum(seed=i) for i in range(8)}, xscale="symlog")
    assert [t.get_text() for t in ax.get_yticklabels()] == [f"layer{i}" for i in range(8)]
    assert overlaps(ax.get_yticklabels()) == 0


def test_divided_spectra_keep_their_mass():
    spectra = [spectrum(c * np.linspace(0, 1, 50), sigma2=1e-4 * c**2) for c in (1.0, 10.0)]
    ax = plot_spectra(spectra, divide=[1.0, 10.0])
    first, second = (line.get_ydata() for line in named(ax, "density"))
    x = named(ax, "density")[0].get_xdata()
    assert second.sum() * (x[1] - x[0]) == pytest.approx(1.0, abs=1e-3)
    assert x[-1] < 1.2
    assert np.abs(first - second).max() < 0.5 * first.max()


def test_eigenvalues_have_bars_of_their_residuals_and_a_mark_where_they_did_not_converge():
    ax = pairs(converged=(True, False, True)).plot(title="pairs")
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts == ["converged (2)", "not converged (1)"]
    _, (marker, _, (bar,)) = ax.containers
    assert marker.get_markerfacecolor() == "white"
    assert marker.get_xdata() == [2]
    assert np.ravel(bar.get_segments()) == pytest.approx([2, 1.9, 2, 2.1])
    assert inside(ax)
    assert pairs().plot().get_legend() is None
    assert pairs((5.0,)).plot(log=True).get_yscale() == "symlog"


def test_pictures_go_into_axes_of_the_caller():
    figure, axes = plt.subplots(1, 4)
    before = plt.get_fignums()
    assert spectrum().plot(ax=axes[0]) is axes[0]
    assert plot_spectra([spectrum()], axes[1]) is axes[1]
    assert plot_spectra([spectrum()] * 2, axes[2], kind="evolution") is axes[2]
    assert pairs().plot(axes[3]) is axes[3]
    assert plt.get_fignums() == before
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda s: s.plot(xscale="log"), "xscale: expected one of linear, symlog, got 'log'"),
        (lambda s: s.plot(xscale="linear", linthresh=1.0), "linthresh: expected a positive number"),
        (lambda s: s.plot(width=2.0), "width: expected a share between 0 and 1, got 2.0"),
        (lambda s: s.plot(width=0.1, sigma2=1.0), "width: expected none beside sigma2=1.0"),
        (lambda s: s.plot(figsize=(3, 0)), r"figsize: expected \(width, height\) in inches"),
        (lambda s: plot_spectra([s], kind="top", most=0), "most: expected at least 1, got 0"),
        (lambda s: s.plot(xlim=(1, 0)), "xlim: expected two increasing numbers"),
        (lambda s: s.plot(xlim=(1e6, 2e6)), "xlim: expected a range with eigenvalues in it"),
        (lambda s: s.plot(vmin=-1.0), "vmin, vmax: expected 0 < vmin < vmax"),
        (lambda s: s.plot([1.0]), r"exact: expected numbers of shape \(100,\)"),
        (lambda s: s.plot(BULK, bins=0), "bins: expected at least 1, got 0"),
        (lambda s: plot_spectra([]), "spectra: expected at least one Spectrum"),
        (lambda s: plot_spectra([3]), "spectra: expected at least one Spectrum"),
        (lambda s: plot_spectra([s], labels=["a", "b"]), "labels: expected 1, got 2"),
        (lambda s: plot_spectra([s], kind="dots"), "kind: expected one of lines, evolution"),
        (lambda s: plot_spectra([s, s], divide=[1.0, 0.0]), "divide: expected 2 positive"),
        (lambda s: plot_spectra([s, s], kind="evolution", at=[1, 1]), "at: expected 2 increasing"),
        (lambda s: pairs(()).plot(), "pairs: expected at least one eigenvalue, got none"),
    ],
)  # fmt: skip
def test_bad_options_are_refused(draw, message):
    with pytest.raises(InvalidArgument, match=message):
        draw(spectrum())


def convexity_map(top) -> Surface:
    x = np.linspace(-1, 1, 5)
    low = -0.01 - x[:, None] ** 2 - x[None, :] ** 2
    metrics = {"lambda_min": low, "lambda_max": top, "ratio": np.abs(low / top)}
    return Surface(x, x, np.ones((5, 5)), metrics)


def test_a_convexity_map_has_its_symbols_and_crosses_points_without_positive_curvature():
    top = np.full((5, 5), 2.0)
    top[4, :2] = -1.0
    ax = convexity_map(top).plot("heat", metric="ratio", log=True)
    assert r"\lambda_{\min} / \lambda_{\max}" in ax.figure.axes[-1].get_ylabel()
    (flags,) = named(ax, "flags")
    assert np.array_equal(flags.get_xydata(), [[1.0, -1.0], [1.0, -0.5]])
    (text,) = ax.get_legend().get_texts()
    assert "(2 points)" in text.get_text()
    assert not named(convexity_map(np.full((5, 5), 2.0)).plot("heat", metric="ratio"), "flags")


def test_a_convexity_map_with_holes_keeps_its_legend_inside_the_picture():
    s = convexity_map(np.full((5, 5), -1.0))
    s.metrics["ratio"][0, 0] = np.nan
    ax = s.plot("heat", metric="ratio", log=True, title="convexity")
    assert len(ax.get_legend().get_texts()) == 2
    assert inside(ax)


def test_a_metric_of_the_user_that_is_called_ratio_keeps_its_name():
    x = np.linspace(-1, 1, 3)
    ax = Surface(x, x, np.ones((3, 3)), {"ratio": np.eye(3) + 1}).plot("heat", metric="ratio")
    assert ax.figure.axes[-1].get_ylabel() == "ratio"
