"""Paths on surfaces: what may be given, what is drawn and said; labels inside the figure; films."""

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import pylandscape as pl
from pylandscape.plots import paths, surface_strokes
from pylandscape.plots.style import close


def states(steps=6, seed=0, dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).to(dtype)
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    y = (x[:, 0] > 0).long()
    found = []
    for _ in range(steps):
        found.append({k: v.detach().clone() for k, v in model.state_dict().items()})
        loss = nn.functional.cross_entropy(model(x), y)
        for p, g in zip(
            model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            p.data -= 0.5 * g
    return model, (x, y), found


@pytest.fixture(scope="module")
def made():
    model, data, found = states()
    land = pl.Landscape(model, "cross_entropy", data)
    path = pl.trajectory(found, land)
    d1, d2 = pl.pca_directions(path)
    x, y = path.project(d1, d2).axes(7)
    surface = pl.plane(land, d1, d2, x=x, y=y, theta=path[-1], progress=False)
    return land, path, (d1, d2), surface


def legend_of(ax):
    return [text.get_text() for legend in ax.figure.legends for text in legend.get_texts()]


def drawn(ax):
    return [line.get_xydata() for line in ax.lines if line.get_gid() == "trajectory"]


@pytest.mark.parametrize("kind", ["contour", "filled", "heat"])
def test_a_trajectory_is_drawn_where_its_projection_is(made, kind):
    _, path, (d1, d2), surface = made
    ax = surface.plot(kind, trajectory=path)
    (points,) = drawn(ax)
    want = path.project(d1, d2)
    assert points == pytest.approx(want.coordinates, abs=1e-12)
    assert legend_of(ax)[0] == "steps 0 to 5: light to dark"
    assert legend_of(ax)[1].startswith("at most ")
    assert f"{100 * want.worst:.2g} % off the plane" in legend_of(ax)[1]
    close(ax)


def test_a_path_in_3d_lies_on_the_sheet(made):
    _, path, _, surface = made
    ax = surface.plot("surface", trajectory=path)
    (line,) = [line for line in ax.lines if line.get_gid() == "trajectory"]
    heights = np.asarray(line.get_data_3d()[2])
    assert np.isfinite(heights).all()
    assert heights.max() <= surface.values.max()
    close(ax)


def test_the_order_of_the_parameters_may_be_another(made):
    land, path, _, surface = made
    other = pl.trajectory([dict(reversed(s.items())) for s in path])
    assert other.layout.digest != land.layout.digest
    assert surface.project(other).coordinates == pytest.approx(
        surface.project(path).coordinates, abs=1e-12
    )


def test_several_runs_have_one_legend_with_their_labels(made):
    land, path, _, surface = made
    other = pl.trajectory(states(4, seed=3)[2], land)
    ax = surface.plot(trajectory={"first": path, "second": other})
    assert [text.partition(" (")[0] for text in legend_of(ax)[:2]] == ["first", "second"]
    assert len(drawn(ax)) == 2
    close(ax)
    ax = surface.plot(trajectory=[path, surface.project(other), [[0.0, 0.0], [0.1, 0.1]]])
    assert [text.partition(" (")[0] for text in legend_of(ax)[:3]] == ["run 0", "run 1", "run 2"]
    close(ax)


def test_a_surface_from_a_file_takes_a_projection_and_says_so(made, tmp_path):
    land, path, (d1, d2), surface = made
    surface.save(tmp_path / "s.h5")
    again = pl.load(tmp_path / "s.h5")
    other = pl.trajectory(states(4, seed=3)[2], land)
    with pytest.raises(pl.InvalidArgument, match=r"read from a file.*does not know"):
        again.plot(trajectory=other)
    ax = again.plot(trajectory=other.project(d1, d2, theta=path[-1]))
    assert len(drawn(ax)) == 1
    close(ax)


def test_a_surface_from_a_file_takes_the_path_whose_components_it_is_of(made, tmp_path):
    land, path, _, surface = made
    surface.save(tmp_path / "s.h5")
    again = pl.load(tmp_path / "s.h5")
    found = again.project(path).coordinates
    assert found == pytest.approx(surface.project(path).coordinates, abs=1e-6)
    random = pl.plane(land, *pl.random_directions(land, 2), x=(-1, 1, 3), y=(-1, 1, 3),
                      theta=path[-1], progress=False)  # fmt: skip
    assert path.frame_of(random.info) is None
    assert path.frame_of({}) is None


def test_what_does_not_fit_the_surface_is_refused(made):
    _, path, (d1, d2), surface = made
    with pytest.raises(pl.InvalidArgument, match="of norms 1, 1"):
        surface.plot(trajectory=path.project(3 * d1.vector, d2))
    small = pl.trajectory(np.zeros((3, 4)) + np.arange(3)[:, None], nn.Linear(4, 1, bias=False))
    with pytest.raises(pl.InvalidArgument, match=r"like=land"):
        surface.plot(trajectory=small)
    with pytest.raises(pl.LayoutMismatch, match="another layout"):
        small.project(d1, d2)
    with pytest.raises(pl.InvalidArgument, match=r"trajectory\['a'\]: expected shape"):
        surface.plot(trajectory={"a": np.zeros((2, 3))})
    with pytest.raises(pl.InvalidArgument, match="got Linear"):
        surface.plot(trajectory=nn.Linear(2, 2))


def boxes(ax):
    figure = ax.figure
    figure.draw_without_rendering()
    labels = [ax.xaxis.label, ax.yaxis.label, ax.title]
    labels += [text for legend in figure.legends for text in legend.get_texts()]
    if ax.name == "3d":
        labels.append(ax.zaxis.label)
    return [label.get_window_extent() for label in labels if label.get_text()]


@pytest.mark.parametrize(
    ("kind", "elevation"),
    [("contour", 32.0), ("filled", 32.0), ("surface", 32.0), ("surface", 60.0)],
)
@pytest.mark.parametrize("shape", [(4.0, 1.1), (1.0, 3.9), (1.0, 1.0)])
def test_labels_stay_inside_the_figure(kind, shape, elevation):
    x, y = np.linspace(0, shape[0], 5), np.linspace(0, shape[1], 5)
    info = {"direction_norms": [1.0, 1.0]}
    surface = pl.Surface(x, y, x[:, None] ** 2 + y, info=info)
    runs = {f"run {k} with a rather long name of its own": np.eye(2) * k for k in (1, 2, 3)}
    ax = surface.plot(kind, trajectory=runs, title="a title", elevation=elevation)
    width, height = ax.figure.bbox.size
    for box in boxes(ax):
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1
    close(ax)


def test_runs_are_several_paths(made):
    land, path, _, surface = made
    runs = pl.train(land, [path[0], path[1]], pl.SGD(lr=0.5), steps=2, progress=False)
    ax = surface.plot(trajectory=runs)
    assert len(drawn(ax)) == 2
    assert legend_of(ax)[0].startswith("run 0")
    close(ax)


def test_numbers_of_levels_lie_over_a_path(made):
    _, path, _, surface = made
    ax = surface.plot(trajectory=path)
    levels = [text for text in ax.texts if text.get_gid() == "level"]
    lines = [line for line in ax.lines if line.get_gid() in ("trajectory", "steps")]
    assert levels
    assert min(t.get_zorder() for t in levels) > max(line.get_zorder() for line in lines)
    close(ax)


def test_labels_of_models_that_lie_together_do_not_cover_each_other():
    points = np.array([[0.0, 0.0], [1.0, 0.0], [1.001, 0.0], [1.002, 0.0]])
    found = pl.Embedding(
        points, np.zeros((4, 4)), 0.0, np.ones(4), np.zeros(4, int), np.arange(4), "cosine", ()
    )
    ax = found.plot(labels=["start", "second", "third", "end"])
    assert sorted(text.get_text() for text in ax.texts) == ["end", "start"]
    close(ax)


def test_eigenvalues_far_below_their_threshold_are_seen():
    values = np.array([[2.0, 1.0], [3.0, 1.5]])
    for limit, scale in ((5.0, "linear"), (2000.0, "log")):
        found = pl.Track(
            np.arange(2), values, 0 * values, values > 0, np.ones(2), np.full(2, limit), "rule"
        )
        ax = found.plot()
        assert ax.get_yscale() == scale
        close(ax)


def test_a_films_legend_is_that_of_the_picture(made, tmp_path, monkeypatch):
    _, path, _, surface = made
    from pylandscape.plots import surface as drawing

    seen = []
    monkeypatch.setattr(drawing, "animate", lambda points, name, ax, *a, **k: seen.append(ax))
    path.animate(tmp_path / "path.gif", surface=surface)
    ax = surface.plot(trajectory=path)
    assert legend_of(seen[0]) == legend_of(ax)
    assert not drawn(seen[0])
    close(ax)


def test_a_film_has_what_lies_over_a_path(tmp_path):
    """The numbers of levels; here a green square."""
    figure = Figure(figsize=(2, 2))
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    ax.plot(0.5, 0.5, "s", color=(0, 1, 0), markersize=20, zorder=surface_strokes.LABEL_ORDER)
    paths.animate(np.linspace([0, 0], [1, 1], 9), tmp_path / "path.gif", ax, frames=2)
    with Image.open(tmp_path / "path.gif") as film:
        film.seek(1)
        picture = np.asarray(film.convert("RGB")).astype(int)
    green = (picture[..., 1] > 200) & (picture[..., [0, 2]].max(-1) < 60)
    rows, columns = np.nonzero(green)
    assert green.any()
    assert green[rows.min() + 1 : rows.max(), columns.min() + 1 : columns.max()].all()


def test_a_film_grows_along_the_path(made, tmp_path):
    _, path, _, surface = made
    found = path.animate(tmp_path / "path.gif", surface=surface, frames=3)
    with Image.open(found) as film:
        assert film.n_frames == 3
        frames = []
        for k in range(3):
            film.seek(k)
            frames.append(np.asarray(film.convert("RGB")))
    assert (frames[0] != frames[2]).any()
    with pytest.raises(pl.InvalidArgument, match=r"\.gif or \.mp4"):
        path.animate(tmp_path / "path.avi", surface=surface)
    with pytest.raises(pl.InvalidArgument, match="frames"):
        path.animate(tmp_path / "path.gif", surface=surface, frames=0)
    assert [p.name for p in tmp_path.iterdir()] == ["path.gif"]
