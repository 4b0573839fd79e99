"""Pictures of spectra: rendered headless and checked for what they show."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import QuadMesh

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
    ax = s.plot(xscale=xscale, title="spectrum")
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
    ax = s.plot(BULK, bins=40)
    (bars,) = named(ax, "histogram")
    heights, borders, _ = bars.get_data()
    assert heights @ np.diff(borders) == pytest.approx(1.0)
    (line,) = named(ax, "exact")
    grid, values = line.get_data()
    assert np.allclose(values, np.maximum(s.exact_density(BULK, grid).values, 1e-300))
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts == ["5 probes of 100 steps", "exact, same kernel", "exact, 40 bins"]
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


def test_eigenpairs_of_the_run_are_marked():
    ax = spectrum(pairs=pairs((300.0, 20.0))).plot()
    (marks,) = named(ax, "pairs")
    assert list(marks.get_xdata()) == [300.0, 20.0]
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
        (lambda s: s.plot(linthresh=1.0), "linthresh: expected a positive number with xscale"),
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
