"""Curve and Surface: axes, barrier, basin width, distance, triangle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pylandscape.errors import InvalidArgument
from pylandscape.results.curve import Curve
from pylandscape.results.mixtures import barycentric_weights, bilinear_weights
from pylandscape.results.surface import Surface, triangle_layout

EPS = np.finfo(np.float64).eps


def interpolation(f, x=None, length=2.0, **info) -> Curve:
    x = np.linspace(-0.5, 1.5, 401) if x is None else np.asarray(x)
    ends = {"vertex_losses": [f(0.0), f(1.0)], "vertex_distances": [[0.0, length], [length, 0.0]]}
    return Curve(x, f(x), info={**ends, **info}, kind="interpolation")


def test_values_are_the_loss_in_float64_and_a_copy():
    loss = np.array([1, 2, 3], dtype=np.float32)
    curve = Curve([0, 1, 2], loss)
    loss[0] = 9
    assert curve.values is curve.metrics["loss"]
    assert curve.values.dtype == np.float64
    assert curve.values.tolist() == [1, 2, 3]


def test_metrics_keep_their_order_with_the_loss_first():
    curve = Curve([0, 1], metrics={"accuracy": [0, 1], "loss": [2, 3]})
    assert list(curve.metrics) == ["loss", "accuracy"]
    assert curve.values.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("x", "said"),
    [
        ([1.0, 0.0], "index 0"),
        ([0.0, 0.0], "index 0"),
        ([], "shape"),
        (1.0, "shape"),
        ([[0.0, 1.0]], "shape"),
        ([0.0, np.nan], "1 that are not"),
        (["a", "b"], "dtype"),
        ([1j, 2j], "dtype"),
        ([True, False], "dtype"),
        ([[1.0], [1.0, 2.0]], "x:"),
    ],
)
def test_an_axis_that_does_not_increase_is_refused_by_name(x, said):
    with pytest.raises(InvalidArgument, match="x: expected an increasing 1-D array") as caught:
        Curve(x, np.zeros(2))
    assert said in str(caught.value)


def test_metrics_of_another_shape_are_refused_by_name():
    with pytest.raises(InvalidArgument, match=r"metrics\['loss'\].*\(2, 3\), got shape \(3, 2\)"):
        Surface([0, 1], [0, 1, 2], np.zeros((3, 2)))
    with pytest.raises(InvalidArgument, match=r"metrics\['accuracy'\]"):
        Curve([0, 1], metrics={"loss": [0, 1], "accuracy": [0]})
    with pytest.raises(InvalidArgument, match="dtype <U1"):
        Curve([0, 1], ["a", "b"])
    with pytest.raises(InvalidArgument, match="expected 'loss' among them"):
        Curve([0, 1], metrics={"accuracy": [0, 1]})
    with pytest.raises(InvalidArgument, match="values: expected the same numbers"):
        Curve([0, 1], [0, 1], {"loss": [0, 2]})


def test_barrier_of_a_convex_curve_is_exactly_zero():
    assert interpolation(lambda a: 3.0 * (np.asarray(a) - 0.8) ** 2 + 1.0).barrier == 0.0


def test_barrier_is_measured_above_the_chord_and_within_the_two_solutions():
    # chord 1 -> 3, a bump of 2 at alpha = 1/2, a higher one beyond alpha = 1
    def loss(a):
        a = np.asarray(a, dtype=np.float64)
        return 1 + 2 * a + 2 * np.exp(-(((a - 0.5) / 0.05) ** 2)) + 50 * (a > 1.2)

    assert interpolation(loss).barrier == pytest.approx(2.0, abs=8 * EPS)


def test_barrier_uses_the_solutions_even_where_the_axis_misses_them():
    loss = np.polynomial.Polynomial([0.0, 4.0, -4.0])  # 4 a (1 - a): barrier 1 at 1/2
    assert interpolation(loss, x=np.linspace(0.1, 0.9, 9)).barrier == pytest.approx(
        1.0, abs=8 * EPS
    )


def test_barrier_is_nan_where_the_loss_on_the_way_is_nan():
    curve = interpolation(lambda a: np.where(np.abs(np.asarray(a) - 0.5) < 0.01, np.nan, 1.0))
    assert np.isnan(curve.barrier)


@pytest.mark.parametrize("kappa", [0.5, 20.0])
def test_basin_width_of_a_quadratic_is_two_sqrt_two_eps_over_kappa(kappa):
    # L(s) = kappa s^2 / 2 at distance s = length (1 - alpha) from theta1
    length, eps = 2.0, 0.05 * kappa
    curve = interpolation(
        lambda a: 0.5 * kappa * (length * (1 - np.asarray(a))) ** 2, length=length
    )
    step = length * (curve.x[1] - curve.x[0])
    exact = 2 * np.sqrt(2 * eps / kappa)
    # a secant of a parabola misses its root by at most step^2 / (8 s) on either side
    assert abs(curve.basin_width(eps) - exact) <= 2 * step**2 / (8 * exact / 2) * (1 + 1e-3)


def test_basin_width_defaults_to_a_tenth_of_the_descent():
    curve = interpolation(lambda a: 4.0 * (1 - np.asarray(a)) ** 2)
    assert curve.basin_width() == curve.basin_width(0.4)


def test_basin_width_counts_only_the_connected_interval_around_the_final_point():
    def loss(a):
        a = np.asarray(a, dtype=np.float64)
        return np.abs(np.sin(2 * np.pi * a)) + 0.0 * a  # as low at 0, 1/2 and 3/2 as at 1

    width = interpolation(loss, length=1.0).basin_width(0.5)
    assert width == pytest.approx(2 * np.arcsin(0.5) / (2 * np.pi), rel=1e-3)


def test_basin_width_at_the_end_of_the_axis_is_a_lower_bound_and_says_so():
    curve = interpolation(lambda a: 0.001 * (1 - np.asarray(a)) ** 2, length=3.0)
    with pytest.warns(UserWarning, match=r"alpha = -0\.5 and 1\.5: its width is a lower bound"):
        assert curve.basin_width(1.0) == pytest.approx(6.0)


def test_basin_width_stops_before_a_loss_that_is_not_finite():
    curve = interpolation(lambda a: np.where(np.abs(np.asarray(a) - 1) > 0.2501, np.inf, 0.0))
    assert curve.basin_width(0.1) == pytest.approx(2.0 * 0.5, rel=1e-9)


def test_basin_width_without_the_final_point_on_the_axis_uses_its_loss():
    curve = interpolation(lambda a: np.abs(1 - np.asarray(a)), x=np.linspace(0.55, 1.45, 10))
    assert not (curve.x == 1.0).any()
    assert curve.basin_width(0.2) == pytest.approx(2.0 * 0.4)


def test_basin_width_refuses_what_has_no_answer():
    falling = interpolation(lambda a: np.asarray(a, dtype=np.float64))
    with pytest.raises(InvalidArgument, match=r"needs L\(theta0\) > L\(theta1\), got 0 and 1"):
        falling.basin_width()
    with pytest.raises(InvalidArgument, match="eps: expected a finite number >= 0, got -1"):
        falling.basin_width(-1)
    with pytest.raises(InvalidArgument, match="contains alpha = 1"):
        interpolation(lambda a: 1 - np.asarray(a), x=[0.0, 0.5]).basin_width()
    with pytest.raises(InvalidArgument, match="'interpolation', got 'line'"):
        Curve([0, 1], [0, 1]).basin_width(1.0)
    with pytest.raises(InvalidArgument, match="'interpolation', got 'line'"):
        _ = Curve([0, 1], [0, 1]).barrier


def test_distance_is_measured_from_the_final_point():
    curve = interpolation(np.asarray, x=[-0.5, 0.0, 1.0, 1.5], length=4.0)
    assert curve.distance.tolist() == [6.0, 4.0, 0.0, -2.0]
    with pytest.raises(InvalidArgument, match="'interpolation', got 'line'"):
        _ = Curve([0, 1], [0, 1]).distance


def test_weights_sum_to_one_and_are_exact_at_the_corners():
    a, b = (m.ravel() for m in np.meshgrid(np.linspace(0, 1, 7), np.linspace(0, 1, 5)))
    for weights in (barycentric_weights(a, b), bilinear_weights(a, b)):
        assert (weights >= 0).all()
        assert np.abs(weights.sum(axis=1) - 1).max() <= 4 * EPS
    one, zero = np.ones(1), np.zeros(1)
    assert barycentric_weights(zero, one).tolist() == [[1, 0, 0]]
    assert barycentric_weights(one, one).tolist() == [[0, 1, 0]]
    assert barycentric_weights(one, zero).tolist() == [[0, 0, 1]]
    corners = [(one, one), (zero, one), (one, zero), (zero, zero)]
    assert np.concatenate([bilinear_weights(*c) for c in corners]).tolist() == np.eye(4).tolist()


def pairwise(points):
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def test_triangle_layout_keeps_the_distances():
    points = np.random.default_rng(0).normal(size=(3, 50))
    layout = triangle_layout(pairwise(points))
    assert np.abs(pairwise(layout) - pairwise(points)).max() <= 100 * EPS * pairwise(points).max()


def test_triangle_layout_of_points_on_a_line_and_of_equal_points():
    for points in ([[0.0], [2.0], [5.0]], [[1.0], [1.0], [4.0]], [[1.0], [1.0], [1.0]]):
        wanted = pairwise(np.array(points))
        assert np.abs(pairwise(triangle_layout(wanted)) - wanted).max() <= 10 * EPS


def test_triangle_holds_every_point_once_and_the_corners_at_the_vertices():
    x, y = np.linspace(0, 1, 4), np.linspace(0, 1, 3)
    values = np.arange(12.0).reshape(4, 3)
    positions = [[0.0, 0.0], [2.0, 0.0], [0.5, 1.0]]
    surface = Surface(x, y, values, info={"vertex_positions": positions}, kind="barycentric")
    points, shown = surface.triangle()
    assert points.shape == (10, 2)
    assert len(np.unique(points, axis=0)) == 10
    assert shown.tolist() == [0, *range(3, 12)]
    assert points[0].tolist() == positions[0]
    assert points[-1].tolist() == positions[1]  # alpha = beta = 1
    assert points[-3].tolist() == positions[2]  # alpha = 1, beta = 0
    with pytest.raises(InvalidArgument, match="'barycentric', got 'plane'"):
        Surface(x, y, values).triangle()
    with pytest.raises(InvalidArgument, match="metric: expected one of"):
        surface.triangle("accuracy")


def test_repr_is_one_short_line():
    values = np.array([[0.25, np.nan], [4.0, np.inf]])
    surface = Surface([0, 1], [0, 1], metrics={"loss": values, "accuracy": np.ones((2, 2))})
    assert repr(surface) == ("Surface(plane, 2 x 2, loss 0.25 to 4, 2 not finite, also accuracy)")
    assert repr(Curve([0], [np.nan])) == "Curve(line, 1, no finite loss, 1 not finite)"


def test_axes_may_be_integers_or_tensors():
    assert Curve(torch.arange(3), torch.zeros(3)).x.dtype == np.float64
