"""line, plane and interpolate: known surfaces, exact corners, axes, provenance."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from grid_support import classifier, directions, quadratic, scalar_landscape
from torch import nn

from pylandscape.errors import InvalidArgument, LayoutMismatch
from pylandscape.landscape import Landscape
from pylandscape.results.curve import Curve
from pylandscape.results.loading import load
from pylandscape.results.surface import Surface
from pylandscape.runs.chunks import evaluate_in_chunks, next_size
from pylandscape.surfaces.grids import interpolate, line, make_axis, plane

EPS = np.finfo(np.float64).eps
QUIET = {"progress": False}
UNIT = np.eye(3)


# --- known surfaces ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ((-1, 1, 5), (-2, 3, 4)),
        ((0, 1, 4), (0, 0, 1)),
        ((2, 2, 1), (-1, 0, 7)),
        (np.array([-3.0, 0.1, 7.0]), np.array([0.0, 1e-3])),
        ((0.5, 0.5, 1), np.array([4])),
    ],
)
def test_plane_puts_the_first_direction_on_rows_for_any_grid(x, y):
    surface = plane(quadratic([2.0, 6.0, 9.0]), UNIT[0], UNIT[1], x, y, **QUIET)
    a, b = surface.x[:, None], surface.y[None]
    assert surface.values.shape == (surface.x.size, surface.y.size)
    exact = a**2 + 3 * b**2
    assert np.abs(surface.values - exact).max() <= 8 * EPS * exact.max()


def test_line_through_a_quadratic_is_the_exact_parabola():
    curve = line(
        quadratic([2.0, 6.0], theta=[1.0, -1.0]), np.array([1.0, 2.0]), (-2, 2, 9), **QUIET
    )
    exact = (1 + curve.x) ** 2 + 3 * (2 * curve.x - 1) ** 2
    assert np.abs(curve.values - exact).max() <= 8 * EPS * exact.max()


def test_the_centre_of_a_line_is_the_loss_of_the_model():
    land = classifier()
    curve = line(land, directions(land, 1)[0], (-1, 1, 5), **QUIET)
    assert curve.values[2] == curve.info["center_loss"]
    assert curve.values[2] == pytest.approx(curve.info["model_loss"], rel=1e-6)


def test_the_centre_loss_is_there_even_if_the_axis_misses_it():
    curve = line(quadratic([2.0], theta=[3.0]), np.array([1.0]), (1, 2, 2), **QUIET)
    assert curve.values.shape == (2,)
    assert curve.info["center_loss"] == 9.0


def test_theta_moves_the_centre():
    land = quadratic([2.0, 2.0])
    curve = line(land, np.array([1.0, 0.0]), (-1, 1, 3), theta=np.array([1.0, 3.0]), **QUIET)
    assert curve.values.tolist() == [9, 10, 13]
    assert curve.info["model_loss"] is None
    with pytest.raises(LayoutMismatch, match="theta"):
        line(land, np.array([1.0, 0.0]), theta=np.array([1.0]), **QUIET)


def test_values_that_are_not_finite_are_kept_and_counted():
    land = scalar_landscape(
        lambda t: torch.where(t[0] > 0.5, 1 / (t[0] - 1).clamp_min(0), t[0]), [0]
    )
    curve = line(land, np.array([1.0]), (0, 2, 5), **QUIET)
    assert curve.values.tolist() == [0, 0.5, np.inf, 2, 1]
    assert curve.info["nonfinite"] == curve.nonfinite == 1


def test_metrics_come_from_one_pass_with_the_loss_always_there():
    land = classifier()

    def worst(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, reduction="none").max()

    curve = line(land, directions(land, 1)[0], (-1, 1, 5), metrics=["accuracy", worst], **QUIET)
    assert list(curve.metrics) == ["loss", "accuracy", "worst"]
    assert (curve.metrics["worst"] >= curve.values).all()
    told = curve.info["request"]["metrics"][2]
    assert told["name"] == "worst"
    assert "code of worst" in told
    alone = line(land, directions(land, 1)[0], (-1, 1, 5), metrics="accuracy", **QUIET)
    assert alone.metrics["accuracy"].tolist() == curve.metrics["accuracy"].tolist()


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ([3], "expected 'loss', 'accuracy' or callables, got 3"),
        (None, "expected 'loss', 'accuracy' or callables, got None"),
        (["accuracy", "accuracy"], "accuracy twice"),
        ([lambda o, t: 0.0, lambda o, t: 1.0], "<lambda> twice"),
    ],
)
def test_metrics_that_cannot_be_told_apart_or_called_are_refused(metrics, said):
    land = classifier()
    with pytest.raises(InvalidArgument, match=f"metrics: .*{said}"):
        line(land, directions(land, 1)[0], metrics=metrics, **QUIET)


def test_the_model_is_left_as_it_was():
    land = classifier()
    before = {k: v.clone() for k, v in land.model.state_dict().items()}
    state = torch.random.get_rng_state()
    plane(land, *directions(land, 2), (-1, 1, 3), (-1, 1, 3), **QUIET)
    assert all(torch.equal(v, before[k]) for k, v in land.model.state_dict().items())
    assert all(p.grad is None for p in land.model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


# --- interpolation -----------------------------------------------------------------------------


def solutions(land, count):
    return list(directions(land, count, seed=5))


def loss_at(land, theta):
    return float(land.losses(points=theta[None])[0])


def test_two_solutions_are_met_exactly_with_theta0_at_alpha_zero():
    land = quadratic([2.0, 0.5])
    curve = interpolate(land, np.array([[1.0, 2.0], [3.0, -1.0]]), **QUIET)
    assert curve.kind == "interpolation"
    assert curve.x.size == 401
    assert curve.x[[0, 100, 300, 400]].tolist() == [-0.5, 0, 1, 1.5]
    assert curve.values[[100, 300]].tolist() == [2.0, 9.25]
    assert curve.info["vertex_losses"] == [2.0, 9.25]
    exact = (1 + 2 * curve.x) ** 2 + 0.25 * (2 - 3 * curve.x) ** 2
    assert np.abs(curve.values - exact).max() <= 16 * EPS * exact.max()
    assert curve.barrier == 0.0
    assert curve.distance[100] == pytest.approx(13**0.5)


def test_basin_width_along_an_interpolated_quadratic_is_the_known_one():
    land = quadratic([8.0, 8.0])
    curve = interpolate(land, np.array([[3.0, 4.0], [0.0, 0.0]]), **QUIET)
    eps = 0.1 * curve.info["vertex_losses"][0]
    exact, step = 2 * np.sqrt(2 * eps / 8.0), 5 * 0.005
    assert abs(curve.basin_width() - exact) <= step**2 / (2 * exact) * 1.01


def test_corners_are_bitwise_those_of_the_points_themselves():
    land = classifier()
    for count, kind in ((2, "interpolation"), (3, "barycentric"), (4, "bilinear")):
        vertices = solutions(land, count)
        axis = (0, 1, 3)
        result = interpolate(land, vertices, axis, None if count == 2 else axis, **QUIET)
        assert result.kind == kind
        zeros = torch.zeros(1, land.n_params, dtype=land.theta.dtype)
        alone = [land.losses(np.ones((1, 1)), v[None], theta=zeros[0])[0] for v in vertices]
        at = {
            2: [0, -1],
            3: [(0, 0), (-1, -1), (-1, 0)],
            4: [(-1, -1), (0, -1), (-1, 0), (0, 0)],
        }[count]
        corners = [result.values[index] for index in at]
        assert corners == pytest.approx(result.info["vertex_losses"], rel=1e-6)
        assert corners == pytest.approx(alone, rel=1e-6)
        assert corners == pytest.approx([loss_at(land, each) for each in vertices], rel=1e-6)


def test_the_edge_alpha_zero_of_a_barycentric_surface_is_theta0():
    land = classifier()
    surface = interpolate(land, solutions(land, 3), **QUIET)
    assert surface.values.shape == (25, 25)
    assert len(set(surface.values[0].tolist())) == 1
    points, values = surface.triangle()
    assert len(points) == len(values) == 24 * 25 + 1


@pytest.mark.parametrize("count", [3, 4])
def test_a_linear_loss_gives_a_linear_surface(count):
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    land = scalar_landscape(lambda t: t @ slope, np.zeros(3))
    vertices = solutions(land, count)
    surface = interpolate(land, vertices, (0, 1, 5), (0, 1, 5), **QUIET)
    at = np.array([float(v @ slope) for v in vertices])
    a, b = surface.x[:, None], surface.y[None]
    if count == 3:
        exact = at[0] + a * (b * (at[1] - at[0]) + (1 - b) * (at[2] - at[0]))
    else:
        exact = b * (a * at[0] + (1 - a) * at[1]) + (1 - b) * (a * at[2] + (1 - a) * at[3])
    assert np.abs(surface.values - exact).max() <= 32 * EPS * np.abs(at).max()


def test_triangle_positions_keep_the_distances_of_the_solutions():
    land = classifier()
    vertices = torch.stack(solutions(land, 3)).double().numpy()
    info = interpolate(land, list(vertices), (0, 1, 2), (0, 1, 2), **QUIET).info
    wanted = np.linalg.norm(vertices[:, None] - vertices[None], axis=-1)
    p = np.array(info["vertex_positions"])
    found = np.linalg.norm(p[:, None] - p[None], axis=-1)
    assert np.allclose(found, wanted, rtol=1e-6)
    assert np.allclose(info["vertex_distances"], wanted, rtol=1e-6)


def test_solutions_may_be_modules_state_dicts_or_vectors():
    land, other = classifier(), classifier(seed=3)
    ways = [other.model, other.model.state_dict(), other.theta, other.theta.numpy()]
    curves = [interpolate(land, [land.model, way], (0, 1, 3), **QUIET) for way in ways]
    assert len({curve.values.tobytes() for curve in curves}) == 1
    assert curves[0].info["request"] == curves[-1].info["request"]


def test_frozen_batchnorm_statistics_between_solutions_are_noted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    data = (torch.randn(8, 3), torch.randint(0, 2, (8,)))
    land = Landscape(model, nn.CrossEntropyLoss(), data)
    curve = interpolate(land, [land.theta, land.theta * 2], (0, 1, 3), **QUIET)
    assert "BatchNorm statistics were not recomputed" in curve.info["notes"][0]
    assert curve.info["has_batchnorm"]
    assert not line(land, land.theta, (0, 1, 3), **QUIET).info["notes"]
    plain = classifier()
    assert not interpolate(plain, solutions(plain, 2), (0, 1, 3), **QUIET).info["notes"]


@pytest.mark.parametrize(
    ("vertices", "said"),
    [
        ([UNIT[0]], "got 1 of them"),
        ([UNIT[0]] * 5, "got 5 of them"),
        ([], "'list'"),
        (None, "'NoneType'"),
        ({"theta": torch.zeros(3)}, "'dict'"),
        ("ab", "'str'"),
    ],
)
def test_a_number_of_solutions_without_a_meaning_is_refused(vertices, said):
    with pytest.raises(InvalidArgument, match=f"vertices: expected .* 2, 3 or 4 .*{said}"):
        interpolate(quadratic([1.0, 1.0, 1.0]), vertices, **QUIET)


def test_a_solution_of_another_length_is_named_by_its_index():
    with pytest.raises(LayoutMismatch, match=r"vertices\[1\]"):
        interpolate(quadratic([1.0, 1.0]), [np.zeros(2), np.ones(3)], **QUIET)


def test_a_second_axis_needs_three_solutions():
    with pytest.raises(InvalidArgument, match="y: expected None for two vertices"):
        interpolate(quadratic([1.0]), [[0.0], [1.0]], y=(0, 1, 2), **QUIET)


# --- axes and directions -----------------------------------------------------------------------


def test_axes_are_those_of_linspace_with_an_exact_zero_and_exact_ends():
    for n in range(2, 300):
        for low, high in ((-1, 1), (-0.3, 0.3), (0, 0.7), (-0.5, 1.5)):
            axis = make_axis((low, high, n), "x")
            assert (axis[0], axis[-1]) == (low, high)
            assert np.abs(axis - np.linspace(low, high, n)).max() <= 4 * EPS
            if n % 2 and low == -high:
                assert axis[n // 2] == 0.0


def test_tiny_axes_keep_their_points():
    assert make_axis((-1e-300, 1e-300, 3), "x").tolist() == [-1e-300, 0.0, 1e-300]
    assert make_axis((1.0, 1.0 + 4 * EPS, 3), "x").size == 3
    assert make_axis((1e-9, 1.0, 4), "x")[0] == 1e-9
    assert make_axis((np.int64(0), np.float32(1), np.int64(3)), "x").tolist() == [0, 0.5, 1]


@pytest.mark.parametrize(
    "axis",
    [
        (1, -1, 5),
        (0, 0, 2),
        (0, 1, 1),
        (0, 1, 0),
        (0, 1, -3),
        (0, 1, 2.5),
        (0, 1, True),
        (0, 1, "3"),
        (0, np.nan, 3),
        (0, np.inf, 3),
        (-1e308, 1e308, 3),
        (1.0, 1.0 + EPS, 9),
        (0, 1),
        (0.0, 0.5, 1.0),
        [-1, 1, 51],
        [1, 0],
        [],
        None,
        "axis",
        5,
        {},
        object(),
    ],
)
@pytest.mark.parametrize("name", ["x", "y"])
def test_an_axis_without_a_meaning_is_one_clear_error(axis, name):
    with pytest.raises(InvalidArgument, match=f"^{name}: expected .*increasing 1-D array.*got"):
        plane(quadratic([1.0, 1.0]), *np.eye(2), progress=False, **{name: axis})


def test_axes_may_be_lists_or_tensors():
    assert make_axis([0.0, 0.5, 1.0], "x").tolist() == [0, 0.5, 1]
    assert make_axis(torch.tensor([1, 2], requires_grad=False), "x").tolist() == [1, 2]
    assert make_axis(torch.ones(1, requires_grad=True), "x").tolist() == [1]


def test_directions_of_another_length_or_number_are_named():
    land = quadratic([1.0, 1.0])
    with pytest.raises(LayoutMismatch, match="d2"):
        plane(land, np.array([1.0, 0.0]), np.array([1.0, 0.0, 0.0]), **QUIET)
    with pytest.raises(InvalidArgument, match="direction: expected one direction"):
        line(land, np.eye(2), **QUIET)


# --- provenance --------------------------------------------------------------------------------


def test_info_says_what_was_asked_and_found():
    land = classifier()
    d1, d2 = directions(land, 2).numpy().astype(np.float64)
    surface = plane(land, d1, d2, (-1, 1, 3), (0, 2, 2), metrics="accuracy", **QUIET)
    info = surface.info
    assert info == json.loads(json.dumps(info))
    assert info["direction_norms"] == pytest.approx([np.linalg.norm(d1), np.linalg.norm(d2)])
    cosine = d1 @ d2 / np.linalg.norm(d1) / np.linalg.norm(d2)
    assert info["direction_cosine"] == pytest.approx(cosine)
    assert info["theta_norm"] == pytest.approx(float(land.theta.double().norm()))
    assert info["engine"] == land.engine
    assert info["nonfinite"] == info["resumed"] == 0
    assert info["dtype"] == "float32"
    request = info["request"]
    assert request["kind"] == "plane"
    assert request["axes"]["y"] == {
        "min": 0.0, "max": 2.0, "n": 2, "digest": request["axes"]["y"]["digest"]
    }  # fmt: skip
    assert request["metrics"] == ["loss", "accuracy"]
    assert len(request["directions"]) == 2


def test_a_direction_of_zeros_is_refused_by_name_before_any_point_is_asked_for():
    asked = quadratic([1.0, 1.0])
    zeros, one = np.array([0.0, 0.0]), np.array([0.0, 1.0])
    with pytest.raises(InvalidArgument, match="d2: expected a direction along which something"):
        plane(asked, one, zeros, (0, 1, 2), (0, 1, 2), **QUIET)
    with pytest.raises(InvalidArgument, match=r"^direction: expected a direction along which"):
        line(asked, zeros, (0, 1, 2), **QUIET)


def test_a_file_given_by_path_is_the_result(tmp_path):
    land = classifier()
    d1, d2 = directions(land, 2)
    made = plane(land, d1, d2, (-1, 1, 5), (-1, 1, 4), path=tmp_path / "s.h5", **QUIET)
    read = load(tmp_path / "s.h5")
    assert isinstance(made, Surface)
    assert read.values.tobytes() == made.values.tobytes()
    assert read.info == made.info
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5"]
    again = line(land, d1, (-1, 1, 5), path=str(tmp_path / "c.h5"), **QUIET)
    assert isinstance(load(tmp_path / "c.h5"), Curve)
    assert again.values.shape == (5,)


# --- chunks and progress -----------------------------------------------------------------------


def test_chunks_grow_to_a_fifth_of_a_second_and_shrink_to_one_point():
    assert next_size(1, 1e-6) == 16
    assert next_size(100, 0.05) == 400
    assert next_size(100, 2.0) == 10
    assert next_size(1, 60.0) == 1
    assert next_size(8, 0.0) == 128


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_values_do_not_depend_on_the_chunks_bit_for_bit(monkeypatch, engine):
    land = classifier(engine=engine)
    found = set()
    for seconds in (0.0, 1e9):  # one point at a time; all that the growth allows
        monkeypatch.setattr("pylandscape.runs.chunks.CHUNK_SECONDS", seconds)
        surface = plane(
            land, *directions(land, 2), (-1, 1, 13), (-1, 1, 11), metrics="accuracy", **QUIET
        )
        found.add(b"".join(values.tobytes() for values in surface.metrics.values()))
    assert len(found) == 1


def test_every_point_is_asked_for_once_in_order():
    asked = []

    def evaluate(c):
        asked.extend(c[:, 0])
        return {"loss": c[:, 0], "twice": 2 * c[:, 0]}

    rows = np.arange(1000.0)[:, None]
    values = evaluate_in_chunks(rows, ["loss", "twice"], lambda: evaluate, progress=False)
    assert asked == list(range(1000))
    assert np.array_equal(values, np.concatenate([rows, 2 * rows], axis=1))


def test_progress_goes_to_stderr_and_can_be_silenced(capsys, monkeypatch):
    monkeypatch.setattr("pylandscape.progress.DELAY", 0)
    line(quadratic([1.0]), np.array([1.0]), (0, 1, 4))
    shown = capsys.readouterr()
    assert not shown.out
    assert "line: 100%" in shown.err
    line(quadratic([1.0]), np.array([1.0]), (0, 1, 4), progress=False)
    assert capsys.readouterr() == ("", "")
