"""Pictures: rendered headless and checked for what they show."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from pylandscape.arrays import edges
from pylandscape.errors import InvalidArgument
from pylandscape.plots import surface as plotting
from pylandscape.plots.scale import Scale, format_levels
from pylandscape.plots.view import triangle, view_of
from pylandscape.results.curve import Curve
from pylandscape.results.surface import Surface

FILTER = {"request": {"directions": [{"kind": "random", "normalize": "filter"}] * 2}}
FLAT_KINDS = ("contour", "filled", "heat")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def bowl(nx: int = 21, ny: int = 17, info: dict | None = None, **extra) -> Surface:
    x, y = np.linspace(-1, 1, nx), np.linspace(-1, 1, ny)
    values = 0.1 + 3 * x[:, None] ** 2 + y[None, :] ** 2
    return Surface(x, y, values, info=FILTER if info is None else info, **extra)


def with_hole(surface: Surface) -> Surface:
    values = surface.values.copy()
    values[-3:, -2:] = np.nan
    values[0, 0] = np.inf
    return Surface(surface.x, surface.y, values, info=surface.info, kind=surface.kind)


def barycentric(info: dict | None = None) -> Surface:
    a = np.linspace(0, 1, 13)
    values = 1 + a[:, None] * (2 + a[None, :])
    return Surface(a, a, values, info=info or {}, kind="barycentric")


def pixels(ax) -> np.ndarray:
    ax.figure.canvas.draw()
    return np.asarray(ax.figure.canvas.buffer_rgba())[..., :3].astype(float)


def gids(ax) -> list:
    return [a.get_gid() for a in ax.get_children() if a.get_gid()]


def shown_levels(ax) -> list[str]:
    return [t.get_text() for t in ax.texts if t.get_gid() == "level"]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("kind", ["contour", "filled", "heat", "surface", "line"])
def test_every_kind_draws_something_column_wide_and_returns_its_axes(kind, log):
    ax = bowl().plot(kind, log=log)
    image = pixels(ax)
    assert isinstance(ax, matplotlib.axes.Axes)
    assert ax.figure.get_figwidth() == pytest.approx(3.35)
    assert image.std() > 10
    colours = np.unique(image.reshape(-1, 3).round(-1), axis=0)
    assert len(colours) > 8


def test_matplotlib_is_not_imported_before_a_picture_is_asked_for():
    import subprocess
    import sys

    modules = "pylandscape.plots.surface, pylandscape.results.sanity"
    code = f"import sys, {modules}; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_axes_name_the_direction_and_its_unit():
    ax = bowl().plot()
    assert ax.get_xlabel() == "step along $d_1$ (units: filter norm)"
    assert ax.get_ylabel() == "step along $d_2$ (units: filter norm)"
    raw = {"request": {"directions": [{"kind": "random", "normalize": None}] * 2},
           "direction_norms": [12.34, 5.0]}  # fmt: skip
    assert "absolute" in bowl(info=raw).plot().get_xlabel()
    assert "12.3" in bowl(info=raw).plot().get_xlabel()
    assert bowl(info={}).plot().get_xlabel() == "step along $d_1$"


def test_contour_lines_lie_at_the_levels_and_carry_their_numbers():
    ax = bowl().plot("contour", levels=[0.5, 1.0, 2.0])
    (drawn,) = [c for c in ax.collections if isinstance(c, matplotlib.contour.ContourSet)]
    assert list(drawn.levels) == [0.5, 1.0, 2.0]
    assert set(shown_levels(ax)) == {"0.5", "1", "2"}
    path = drawn.get_paths()[0].vertices  # 3 x^2 + y^2 = 0.4, up to the mesh
    assert np.abs(0.1 + 3 * path[:, 0] ** 2 + path[:, 1] ** 2 - 0.5).max() < 0.02


def test_first_axis_of_values_is_drawn_along_x():
    x, y = np.linspace(0, 1, 5), np.linspace(0, 1, 9)
    surface = Surface(x, y, np.broadcast_to(x[:, None], (5, 9)).copy() + 1)
    (mesh,) = [c for c in surface.plot("heat").collections if isinstance(c, QuadMesh)]
    grid = mesh.get_array().reshape(9, 5)  # rows are y
    assert np.allclose(grid, x[None, :] + 1)
    (drawn,) = [
        c for c in surface.plot("contour", levels=[1.5]).collections
        if isinstance(c, matplotlib.contour.ContourSet)
    ]  # fmt: skip
    assert np.allclose(drawn.get_paths()[0].vertices[:, 0], 0.5)


def test_log_labels_stay_in_units_of_the_loss():
    ax = bowl().plot("filled", log=True)
    bar = ax.figure.axes[-1]
    assert bar.get_ylabel() == "loss (log scale)"
    ticks = [float(t.get_text()) for t in bar.get_yticklabels()]
    assert (ticks[0], ticks[-1]) == (0.1, 4.1)  # the ends of the range
    assert np.allclose(np.log10(ticks), bar.get_yticks(), atol=1e-9)


@pytest.mark.parametrize("kind", FLAT_KINDS)
def test_non_finite_values_are_hatched_and_counted(kind):
    surface = with_hole(bowl())
    ax = surface.plot(kind)
    (patch,) = [p for p in ax.patches if p.get_gid() == "nonfinite"]
    assert patch.get_hatch()
    inside = patch.get_path().contains_point
    assert inside((0.95, 0.95))
    assert not inside((0.0, 0.0))
    (text,) = ax.get_legend().get_texts()
    assert text.get_text() == f"not finite (7 of {surface.values.size} points)"
    assert pixels(ax).std() > 10


def test_heat_hatches_exactly_the_cells_of_bad_points():
    surface = bowl()
    surface.values[10, 8] = np.nan
    (patch,) = [p for p in surface.plot("heat").patches if p.get_gid() == "nonfinite"]
    box = patch.get_path().get_extents()
    assert np.allclose(box.get_points(), [[-0.05, -0.0625], [0.05, 0.0625]])


def test_non_finite_cells_of_a_sheet_are_grey_at_the_top():
    ax = with_hole(bowl()).plot("surface")
    (sheet,) = [c for c in ax.collections if isinstance(c, Poly3DCollection)]
    colours = np.asarray(sheet.get_facecolor())[:, :3]
    grey = np.ptp(colours, axis=1) < 1e-9
    assert grey.sum() == 3 * 2 + 1  # cells with a bad corner
    assert "not finite" in ax.get_legend().get_texts()[0].get_text()
    assert np.isfinite(ax.get_zlim()).all()


def test_a_fine_sheet_is_thinned_but_its_holes_are_kept():
    surface = bowl(401, 301)
    surface.values[201, 151] = np.nan
    ax = surface.plot("surface")
    (sheet,) = [c for c in ax.collections if isinstance(c, Poly3DCollection)]
    colours = np.asarray(sheet.get_facecolor())[:, :3]
    assert len(colours) == 150 * 150
    assert 1 <= (np.ptp(colours, axis=1) < 1e-9).sum() <= 4


def test_no_legend_where_everything_is_finite():
    assert bowl().plot("filled").get_legend() is None


def test_huge_values_do_not_flatten_the_centre():
    surface = bowl()
    surface.values[0, :] = 1e30
    scale = Scale.of(surface.values)
    assert scale.vmax < 10
    assert scale.extend == "max"
    assert np.diff(scale.levels(surface.values, None)).min() > 0
    bar = surface.plot("heat").figure.axes[-1]
    assert max(float(t) for t in bar.get_yticks()) < 10


@pytest.mark.parametrize("log", [False, True])
def test_default_levels_are_round_increasing_and_inside(log):
    rng = np.random.default_rng(0)
    for values in (
        bowl().values,
        np.exp(rng.normal(size=(30, 30)) * 4),
        1 + 1e-3 * rng.random((9, 9)),
        1e-12 * bowl().values,
        np.where(rng.random((20, 20)) < 0.9, 2.3, 0.01),
    ):
        scale = Scale.of(values, log=log)
        levels = scale.levels(values, None)
        assert 3 <= levels.size <= 16
        assert (np.diff(levels) > 0).all()
        assert scale.vmin < levels[0]
        assert levels[-1] < scale.vmax
        texts = format_levels(levels)
        assert len(set(texts)) == levels.size
        assert max(map(len, texts)) <= 8


def is_round(number: float, digits: int = 2) -> bool:
    return float(f"{number:.{digits - 1}e}") == pytest.approx(number, rel=1e-12)


def test_default_linear_levels_are_round_and_closer_where_most_values_are():
    x = np.linspace(-1, 1, 41)
    flat = 0.1 + 3 * x[:, None] ** 2 + x**2
    assert Scale.of(flat).levels(flat, None).tolist() == [0.5, 1, 1.5, 2, 2.5, 3, 3.5]
    steep = 0.1 + 20 * (x[:, None] ** 2 + x**2) ** 2
    levels = Scale.of(steep).levels(steep, None)
    assert levels.tolist() == [5, 10, 15, 20, 40, 60]
    for values in (steep, 1e5 * steep, steep - 30, -steep, np.exp(steep / 20), 1 / (0.02 + flat)):
        scale = Scale.of(values)
        levels = scale.levels(values, None)
        assert all(is_round(v, 3) for v in levels)
        borders = np.concatenate([[scale.vmin], levels, [scale.vmax]])
        counts, _ = np.histogram(np.clip(values, scale.vmin, scale.vmax), borders)
        assert counts.max() < 0.6 * values.size


@pytest.mark.parametrize("kind", ["filled", "heat"])
@pytest.mark.parametrize("log", [False, True])
def test_a_colour_bar_has_its_end_values(kind, log):
    bar = bowl().plot(kind, log=log).figure.axes[-1]
    texts = [t.get_text() for t in bar.get_yticklabels()]
    assert (texts[0], texts[-1]) == ("0.1", "4.1")
    assert 4 <= len(set(texts)) == len(texts)
    assert np.allclose(sorted(bar.get_yticks()), bar.get_yticks())


def test_a_band_that_holds_what_is_beyond_the_range_says_so():
    bar = bowl().plot("filled", vmin=0.5, vmax=2.0).figure.axes[-1]
    texts = [t.get_text() for t in bar.get_yticklabels()]
    assert texts[0] == r"$\leq$ 0.5"
    assert texts[-1] == r"$\geq$ 2"


def test_levels_outside_of_the_values_are_said():
    with pytest.warns(UserWarning, match=r"levels: 2 of 2 lie outside .* 0.1 to 4.1: 100, 200"):
        ax = bowl().plot("contour", levels=[100, 200])
    assert ax.get_legend().get_texts()[0].get_text() == "no level within the values, 0.1 to 4.1"
    with pytest.warns(UserWarning, match="levels: 1 of 2 lie outside"):
        ax = bowl().plot("filled", levels=[1, 200])
    assert ax.get_legend() is None


CI = pytest.mark.ci


@pytest.mark.parametrize("shape", [(4, 1), pytest.param((1, 4), marks=CI)])
@pytest.mark.parametrize("kind", ["contour", pytest.param("filled", marks=CI)])
def test_no_label_of_an_elongated_plane_is_cut(kind, shape):
    one = bowl(9, 7)
    ax = Surface(one.x * shape[0], one.y * shape[1], one.values, info=FILTER).plot(kind, title="t")
    assert not cut_words(ax)


@pytest.mark.parametrize(
    ("elevation", "azimuth"),
    [(60, -58), *(pytest.param(*view, marks=CI) for view in [(60, 30), (5, -120), (85, 100)])],
)
def test_no_label_of_a_3d_view_is_cut(elevation, azimuth):
    ax = bowl(5, 5).plot(
        "surface", elevation=elevation, azimuth=azimuth, title="a title", colorbar=azimuth > 0
    )
    assert not cut_words(ax)


def cut_words(ax) -> list[str]:
    """Texts that are partly outside of the figure. (Ticks beyond the axes' range are not drawn.)"""
    ax.figure.canvas.draw()
    width, height = ax.figure.bbox.size
    found = []
    for each in ax.figure.axes:
        words = [each.xaxis.label, each.yaxis.label, each.title, each._left_title]
        if each.name == "3d":
            words.append(each.zaxis.label)
        boxes = [w.get_window_extent() for w in words if w.get_text()]
        boxes.append(each.get_tightbbox())
        found += [
            str(b) for b in boxes
            if b.x0 < -1 or b.y0 < -1 or b.x1 > width + 1 or b.y1 > height + 1
        ]  # fmt: skip
    return found


def test_a_figure_has_the_size_that_was_asked_for():
    for ax in (
        bowl(9, 7).plot(figsize=(5, 2)),
        bowl(9, 7).plot("surface", figsize=(5, 2), title="t"),
        curve().plot(figsize=(5, 2)),
    ):
        assert ax.figure.get_size_inches().tolist() == [5, 2]
    with pytest.raises(InvalidArgument, match=r"figsize: expected \(width, height\) in inches"):
        bowl().plot(figsize=3)


def test_offset_of_a_log_scale_is_only_used_when_needed():
    positive = np.array([[0.1, 1.0], [2.0, 3.0]])
    assert Scale.of(positive, log=True).offset == 0
    zero = np.array([[0.0, 1.0], [2.0, 3.0]])
    scale = Scale.of(zero, log=True)
    assert scale.offset == pytest.approx(1e-3 * 1.5)
    assert "offset" in scale.label("loss")
    assert np.allclose(scale.inverse(scale.forward(zero)), zero)
    with pytest.raises(InvalidArgument, match="offset: expected value"):
        Scale.of(zero, log=True, offset=0.0)
    with pytest.raises(InvalidArgument, match="offset: expected log=True"):
        Scale.of(zero, offset=1.0)


def test_constant_values_still_draw():
    surface = Surface(np.arange(3.0), np.arange(3.0), np.full((3, 3), 2.0))
    for kind in FLAT_KINDS:
        with np.errstate(all="raise"):
            assert pixels(surface.plot(kind)).std() > 0


def test_vmax_clips_or_leaves_out():
    surface = bowl()
    kept, left = (surface.plot("surface", vmax=1.0, clip=c) for c in (True, False))
    assert kept.get_zlim()[1] <= 1.0 + 1e-9
    sheets = [
        next(c for c in axes.collections if isinstance(c, Poly3DCollection))
        for axes in (kept, left)
    ]
    counts = [len(sheet.get_facecolor()) for sheet in sheets]
    assert counts[0] == 20 * 16
    assert counts[1] < counts[0]


def test_trajectory_is_drawn_where_it_is():
    path = np.array([(0.8, 0.8), (0.4, 0.1), (0.0, 0.0)])
    for kind in FLAT_KINDS:
        ax = bowl().plot(kind, trajectory=path)
        (line,) = [a for a in ax.lines if a.get_gid() == "trajectory"]
        assert np.allclose(line.get_xydata(), path)
    ax = bowl(41, 41).plot("surface", trajectory=path)
    (line,) = [a for a in ax.lines if a.get_gid() == "trajectory"]
    heights = line.get_data_3d()[2]
    assert np.allclose(heights, 0.1 + 3 * path[:, 0] ** 2 + path[:, 1] ** 2, atol=5e-3)


def test_barycentric_surfaces_lie_in_the_triangle_of_true_distances():
    distances = [[0, 3, 4], [3, 0, 5], [4, 5, 0]]
    corners, _ = triangle(distances)
    got = np.linalg.norm(corners[:, None] - corners[None], axis=-1)
    assert np.allclose(got, distances)
    surface = barycentric({"vertex_distances": distances})
    view = view_of(surface)
    assert np.allclose(view.place(view.vertices), corners)
    px, _ = view.grid()
    assert np.allclose(px[0], corners[0, 0])  # alpha = 0 collapses to theta0
    for kind in FLAT_KINDS:
        ax = surface.plot(kind)
        assert ax.get_aspect() == 1.0
        (outline,) = [a for a in ax.lines if a.get_gid() == "outline"]
        assert np.allclose(outline.get_xydata()[:3], corners)
        assert {t.get_text() for t in ax.texts if t.get_gid() != "level"} == {
            r"$\theta_0$", r"$\theta_1$", r"$\theta_2$"
        }  # fmt: skip
    filled = surface.plot("filled", colorbar=False)
    image = pixels(filled)
    inside = filled.transData.transform((0.8, 1.0)).astype(int)
    outside = filled.transData.transform((2.5, 3.0)).astype(int)
    white = [bool((image[-p[1], p[0]] == 255).all()) for p in (inside, outside)]
    assert white == [False, True]


@pytest.mark.parametrize("distances", [None, [[0, 1, 2], [1, 0, 1], [2, 1, 0]]])
def test_triangles_without_an_area_are_drawn_equilateral_and_say_so(distances):
    corners, unit = triangle(distances)
    assert np.allclose(np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1), 1)
    assert "not to scale" in unit


def test_bilinear_corners_are_named_where_they_are():
    a = np.linspace(0, 1, 5)
    ax = Surface(a, a, np.add.outer(a, a) + 1, kind="bilinear").plot("filled")
    at = {t.get_text(): tuple(t.xy) for t in ax.texts}
    assert at == {
        r"$\theta_0$": (1, 1),
        r"$\theta_1$": (0, 1),
        r"$\theta_2$": (1, 0),
        r"$\theta_3$": (0, 0),
    }


def test_a_thin_grid_draws_as_heat_and_line_and_says_so_for_the_rest():
    thin = Surface(np.array([0.0]), np.linspace(-1, 1, 9), np.linspace(1, 2, 9)[None])
    assert pixels(thin.plot("heat")).std() > 10
    assert len(thin.plot("line").lines) == 1
    with pytest.raises(InvalidArgument, match="1 x 9 points"):
        thin.plot("contour")


def test_lines_of_a_surface_are_its_slices_through_the_origin():
    surface = bowl()
    ax = surface.plot("line")
    along_x, along_y = ax.lines
    assert np.array_equal(along_x.get_ydata(), surface.values[:, 8])
    assert np.array_equal(along_y.get_ydata(), surface.values[10, :])
    assert len(ax.get_legend().get_texts()) == 2


def curve(**extra) -> Curve:
    x = np.linspace(-1, 1, 41)
    metrics = {"loss": 0.1 + x**2, "accuracy": 1 - 0.5 * np.abs(x)}
    return Curve(x, metrics=metrics, info=FILTER, **extra)


def test_a_curve_shows_accuracy_on_a_second_axis():
    ax = curve().plot()
    left, right = ax.figure.axes
    assert left is ax
    assert left.get_ylabel() == "loss"
    assert right.get_ylabel() == "accuracy"
    assert np.array_equal(right.lines[0].get_ydata(), curve().metrics["accuracy"])
    assert len(curve().plot(second=None).figure.axes) == 1


def test_several_curves_share_axes_and_are_named():
    ax = plotting.plot_lines([curve(), curve()], labels=["plain", "residual"], second=None)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["plain", "residual"]
    assert len({line.get_color() for line in ax.lines}) == 2
    with pytest.raises(InvalidArgument, match="labels: expected 2, got 1"):
        plotting.plot_lines([curve(), curve()], labels=["one"])
    with pytest.raises(InvalidArgument, match="at least one"):
        plotting.plot_lines([])


def test_gaps_of_a_curve_are_hatched_and_counted():
    one = curve()
    one.values[:5] = np.nan
    one.values[-1] = np.inf
    ax = one.plot(second=None)
    spans = [p for p in ax.patches if p.get_gid() == "nonfinite"]
    assert len(spans) == 2
    assert all(s.get_hatch() for s in spans)
    assert ax.get_legend().get_texts()[0].get_text() == "not finite (6 of 41 points)"


def test_interpolations_name_their_ends_and_take_the_distance_axis():
    one = curve(kind="interpolation")
    assert r"\theta_0" in one.plot().get_xlabel()
    one.info["vertex_distances"] = [[0, 2.5], [2.5, 0]]
    ax = one.plot(distance=True, second=None)
    assert np.allclose(ax.lines[0].get_xdata(), (1 - one.x) * 2.5)


def test_given_axes_are_used_and_keep_their_own_style():
    with plt.rc_context({"font.size": 20}):
        figure, axes = plt.subplots(1, 2)
        assert bowl().plot("filled", axes[0]) is axes[0]
        assert curve().plot(ax=axes[1]) is axes[1]
        assert axes[0].xaxis.label.get_size() == 20
    assert len(plt.get_fignums()) == 1
    with pytest.raises(InvalidArgument, match="ax: expected a 3-D Axes"):
        bowl().plot("surface", axes[0])
    assert figure is axes[0].figure


def test_pdf_text_is_truetype(tmp_path):
    path = plotting.save(bowl().plot("filled"), tmp_path / "a.pdf")
    data = path.read_bytes()
    assert b"/FontFile2" in data
    assert b"/Type3" not in data
    with pytest.raises(InvalidArgument, match="picture suffix"):
        plotting.save(bowl().plot(), tmp_path / "a.txt")


def test_drawing_leaves_matplotlibs_settings_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    plotting.save(bowl().plot("surface"), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "pie"}, "kind: expected one of"),
        ({"metric": "f1"}, "metric: expected one of"),
        ({"levels": [2.0, 1.0]}, "levels: expected increasing"),
        ({"levels": 0}, "levels: expected at least 1"),
        ({"levels": [np.nan]}, "levels: expected an int or finite"),
        ({"vmin": 3.0, "vmax": 1.0}, "vmin, vmax: expected"),
        ({"trajectory": np.zeros((4, 3))}, r"trajectory: expected shape \(T, 2\), got \(4, 3\)"),
    ],
)
def test_bad_options_name_themselves(options, message):
    with pytest.raises(InvalidArgument, match=message):
        bowl().plot(**options)
    assert not plt.get_fignums() or "levels" in options


def test_nothing_finite_is_an_error_not_an_empty_picture():
    surface = Surface(np.arange(3.0), np.arange(3.0), np.full((3, 3), np.nan))
    with pytest.raises(InvalidArgument, match="at least one finite"):
        surface.plot()


def test_edges_of_axes():
    assert edges(np.array([3.0])).tolist() == [2.5, 3.5]
    assert edges(np.array([0.0, 1.0, 3.0])).tolist() == [-0.5, 0.5, 2.0, 4.0]
