"""Outliers and sharpness: identities on spectra, subspaces and quadratics with known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from grid_support import classifier, directions, quadratic, scalar_landscape

from pylandscape.curvature.ends import both_ends
from pylandscape.curvature.gradient_subspace import (
    condition_number,
    covariance_spectrum,
    gradient_concentration,
    gradient_descent_factors,
    l1_energy,
    largest_stable_rate,
    outlier_ratio,
    outliers,
    rate_bound,
    subspace_overlap,
)
from pylandscape.curvature.operators import as_operator
from pylandscape.curvature.symmetric_operator import SymmetricOperator
from pylandscape.errors import InvalidArgument, LayoutMismatch
from pylandscape.surfaces.grids import interpolate, plane
from pylandscape.surfaces.picture_curvature import hidden_curvature
from pylandscape.theta.directions import random_directions

EPS = np.finfo(np.float64).eps
QUIET = {"progress": False}
SPECTRUM = np.array([4.0, 3.0, 1.0, 0.25, 0.01])


def basis(n, k, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, k, generator=gen, dtype=torch.float64))[0].T


# --- speed of gradient descent -----------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.05, 0.4, 0.499, 0.6])
def test_gradient_descent_on_a_bowl_shrinks_by_the_factors(rate):
    land = quadratic(SPECTRUM)
    start = torch.linspace(1, 2, 5, dtype=torch.float64)
    theta, steps = start.clone(), 7
    for _ in range(steps):
        theta = theta - rate * land.gradient(theta)
    exact = gradient_descent_factors(SPECTRUM, rate) ** steps * start.numpy()
    assert np.abs(theta.abs().numpy() - exact).max() <= 1e-12 * np.abs(exact).max()


def test_an_isotropic_bowl_is_done_in_one_step_of_one_over_lambda():
    land = quadratic([8.0] * 4)
    theta = torch.ones(4, dtype=torch.float64)
    assert (theta - land.gradient(theta) / 8.0).abs().max() <= EPS
    assert not gradient_descent_factors([8.0] * 4, 1 / 8.0).any()


@pytest.mark.parametrize(("share", "converges"), [(1.99, True), (2.01, False)])
def test_gradient_descent_converges_exactly_below_the_largest_stable_rate(share, converges):
    land = quadratic(SPECTRUM)
    rate = share / 2 * largest_stable_rate(SPECTRUM)
    theta = torch.ones(5, dtype=torch.float64)
    for _ in range(2000):
        theta = theta - rate * land.gradient(theta)
    assert (float(theta[0].abs()) < 1e-3) == converges
    assert (gradient_descent_factors(SPECTRUM, rate).max() < 1) == converges


def test_the_rate_bound_is_the_best_of_all_stable_rates():
    values = np.array([4.0, 2.5, 2.0, 1.0, 0.1, 0.0, -1.0])
    rates = np.linspace(0, largest_stable_rate(values), 20001)[1:-1]
    best = np.min([gradient_descent_factors(values, rate) for rate in rates], axis=0)
    assert np.abs(rate_bound(values) - best).max() <= 3e-4
    slow = (values >= 0) & (values <= 2)
    assert np.allclose(rate_bound(values)[slow], np.abs(1 - 2 * values[slow] / 4), atol=1e-12)


def test_without_positive_curvature_no_rate_diverges_by_it_and_none_converges():
    assert largest_stable_rate([-1.0, 0.0]) == np.inf
    assert rate_bound([-1.0, 0.0]).tolist() == [1.0, 1.0]


# --- spectra -----------------------------------------------------------------------------------


def test_the_outlier_ratio_is_scale_free_and_takes_any_order():
    for scale in (1e-12, 1.0, 1e9):
        assert outlier_ratio(scale * SPECTRUM[[3, 0, 4, 1, 2]], 3) == pytest.approx(4.0, rel=1e-12)
    assert outlier_ratio([2.0, 1.0, 0.0], 3) == np.inf
    assert outlier_ratio([2.0, -1.0], 2) == -2.0
    assert np.isnan(outlier_ratio([0.0, 0.0], 2))


@pytest.mark.parametrize("classes", [0, -1, 6, 2.5, None])
def test_an_outlier_ratio_without_a_meaning_is_refused(classes):
    with pytest.raises(InvalidArgument, match="classes: expected"):
        outlier_ratio(SPECTRUM, classes)


def test_the_condition_number_knows_zeros_by_their_size():
    found = condition_number([8.0, 2.0, 1e-17, -1e-16])
    assert found[:2] == (np.inf, 4.0)
    assert (found.lambda_max, found.lambda_min, found.lambda_min_plus) == (8.0, -1e-16, 2.0)
    assert found.zeros == 2
    assert (
        condition_number([8.0, 2.0, 0.5]).full == condition_number([8.0, 2.0, 0.5]).positive == 16
    )
    assert condition_number([8.0, 2.0, -4.0])[:2] == (-2.0, 4.0)
    assert condition_number([8.0, 2.0, 1e-3], rtol=1e-3)[:2] == (np.inf, 4.0)
    assert condition_number([8.0, 2.0, 1e-6], dtype=torch.float32, n=1000)[:2] == (np.inf, 4.0)
    assert condition_number([8.0, 2.0, 1e-300], rtol=0.0).zeros == 0


def test_the_condition_of_nothing_positive_is_not_a_number():
    found = condition_number([0.0, 0.0])
    assert np.isnan([found.full, found.positive, found.lambda_min_plus]).all()
    assert found.zeros == 2
    found = condition_number([-1.0, -2.0])
    assert found.full == 0.5
    assert np.isnan(found.positive)


@pytest.mark.parametrize("values", [[], [np.nan], np.zeros((0, 3))])
def test_no_eigenvalues_are_refused(values):
    for f in (condition_number, largest_stable_rate, rate_bound, lambda v: l1_energy(v, 1.0)):
        with pytest.raises(InvalidArgument, match="values: expected at least one"):
            f(values)


def test_l1_energy_is_the_share_of_the_bulk():
    values = np.array([4.0, -0.5, 0.25, 0.25])
    assert l1_energy(values, 1.0) == 0.2
    assert l1_energy(values, 0.5) == 0.1  # below eps, not at it
    assert l1_energy(values, 100.0) == 1.0
    nodes = np.array([[4.0, 0.5], [0.25, np.nan]])
    assert l1_energy(nodes, 1.0, [[0.25, 0.75], [1.0, 0.0]]) == 0.625 / 1.625
    assert np.isnan(l1_energy([0.0, 0.0], 1.0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"eps": 0.0}, "eps: expected a number > 0"),
        ({"eps": np.nan}, "eps: expected a number > 0"),
        ({"eps": 1.0, "weights": [1.0]}, r"weights: .* shape \(5,\), got shape \(1,\)"),
        ({"eps": 1.0, "weights": [-1.0] * 5}, "weights: expected numbers >= 0"),
    ],
)
def test_wrong_arguments_of_the_energy_are_named(options, said):
    with pytest.raises(InvalidArgument, match=said):
        l1_energy(SPECTRUM, **options)
    with pytest.raises(InvalidArgument, match="rtol: expected"):
        condition_number(SPECTRUM, rtol=-1.0)


# --- subspaces ---------------------------------------------------------------------------------


def test_equal_spaces_overlap_fully_and_orthogonal_ones_not_at_all():
    q = basis(20, 6)
    mixed = torch.randn(3, 3, dtype=torch.float64) @ q[:3]
    assert subspace_overlap(q[:3], mixed) == pytest.approx(1.0, abs=1e-12)
    assert subspace_overlap(q[:3], q[3:]) == pytest.approx(0.0, abs=1e-12)
    assert subspace_overlap(q[:3], q) == pytest.approx(1.0, abs=1e-12)
    assert subspace_overlap(q[:4], q[2:]) == pytest.approx(0.5, abs=1e-12)
    assert subspace_overlap(q[0], [3 * q[0], q[1]]) == pytest.approx(1.0, abs=1e-12)


def test_the_gradient_is_split_by_pythagoras():
    q = basis(20, 6)
    g = torch.linspace(-1, 2, 20, dtype=torch.float64)
    parts = [gradient_concentration(g, q[i : i + 2]) for i in (0, 2, 4)]
    assert sum(parts) == pytest.approx(gradient_concentration(g, q), abs=1e-12)
    assert gradient_concentration(2 * q[0] - q[1], q) == pytest.approx(1.0, abs=1e-12)
    assert gradient_concentration(q[4], q[:4]) == pytest.approx(0.0, abs=1e-12)
    assert np.isnan(gradient_concentration(torch.zeros(20), q))


def test_spaces_that_do_not_fit_are_refused():
    q = basis(20, 3)
    with pytest.raises(InvalidArgument, match="vectors: expected linearly independent"):
        subspace_overlap(torch.stack([q[0], 2 * q[0]]), q)
    with pytest.raises(InvalidArgument, match="vectors: expected linearly independent"):
        subspace_overlap(torch.zeros(1, 20), q)
    with pytest.raises(InvalidArgument, match="others: expected rows of length 20"):
        subspace_overlap(q, basis(19, 3))
    with pytest.raises(InvalidArgument, match=r"gradient: expected shape \(20,\)"):
        gradient_concentration(torch.zeros(19), q)
    with pytest.raises(InvalidArgument, match=r"vectors: expected rows \(k, n\)"):
        gradient_concentration(torch.zeros(2), torch.zeros(3, 2))


# --- the covariance of gradients ---------------------------------------------------------------


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_the_trace_of_the_covariance_is_the_mean_squared_gradient(engine, scale):
    land = classifier(engine=engine)
    theta = scale * land.theta
    g = land.per_sample_gradients(theta).double()
    found = covariance_spectrum(land, theta)
    assert found.values.sum() == pytest.approx(float(g.square().sum(1).mean()), rel=1e-12)
    assert (np.diff(found.values) <= 0).all()
    assert found.values.shape == (min(g.shape),)


@pytest.mark.parametrize("samples", [7, 40, 90])
def test_the_covariance_spectrum_is_that_of_the_matrix(samples):
    land = classifier()
    g = torch.randn(samples, land.n_params, dtype=torch.float64)
    land.per_sample_gradients = lambda theta=None: g
    found = covariance_spectrum(land)
    dense = g.T @ g / samples
    exact = torch.linalg.eigvalsh(dense).flip(0)[: min(g.shape)]
    assert np.abs(found.values - exact.numpy()).max() <= 1e-12 * float(exact[0])
    v = found.vectors
    assert len(v) == min(g.shape)
    assert (v @ v.T - torch.eye(len(v))).abs().max() <= 1e-12
    assert (v @ dense - torch.as_tensor(found.values)[:, None] * v).abs().max() <= 1e-12 * exact[0]
    assert len(covariance_spectrum(land, k=3).vectors) == 3


def test_gradients_that_vanish_have_no_covariance():
    land = classifier()
    land.per_sample_gradients = lambda theta=None: torch.zeros(5, land.n_params)
    found = covariance_spectrum(land)
    assert not found.values.any()
    assert found.vectors.shape == (0, land.n_params)
    with pytest.raises(InvalidArgument, match="k: expected"):
        covariance_spectrum(land, k=0)


# --- the report --------------------------------------------------------------------------------


def test_the_report_is_that_of_the_dense_hessian():
    land = classifier()
    h = land.hessian()
    values, vectors = torch.linalg.eigh(h)
    top = vectors.T[-3:]
    report = outliers(land, 3, **QUIET)
    assert report.values == pytest.approx(values.flip(0)[:3].numpy(), rel=1e-4)
    assert report.zeta == pytest.approx(float(values[-1] / values[-3]), rel=1e-4)
    exact = gradient_concentration(land.gradient(), top)
    assert report.gradient_concentration == pytest.approx(exact, abs=1e-3)
    sigma = covariance_spectrum(land, k=3)
    exact = subspace_overlap(top, sigma.vectors)
    assert report.covariance_overlap == pytest.approx(exact, abs=1e-3)
    assert report.lambda_min == pytest.approx(float(values[0]), abs=1e-3 * float(values[-1]))
    assert report.condition == pytest.approx(float(values[-1] / values[0]), rel=0.01)
    assert report.largest_stable_rate == pytest.approx(2 / float(values[-1]), rel=1e-4)
    assert report.converged


def test_the_report_reads_well():
    text = str(outliers(classifier(), 3, **QUIET))
    assert "zeta = lambda_1 / lambda_3" in text
    assert "largest eigenvalues (converged)" in text
    assert "nan" not in text
    assert len({line.index("  ") for line in text.splitlines()}) > 1


def test_without_samples_the_overlap_is_nan_and_the_report_says_why():
    land = scalar_landscape(lambda t: (t**2 * torch.arange(1, 6)).sum() / 2, np.ones(5))
    report = outliers(land, 2, covariance=False, **QUIET)
    assert np.isnan(report.covariance_overlap)
    assert "note: the gradient covariance was not asked for" in str(report)
    assert report.values == pytest.approx([5.0, 4.0])
    assert report.condition == pytest.approx(5.0)
    assert report.gradient_concentration == pytest.approx((16 + 25) / 55)


@pytest.mark.parametrize("classes", [0, 52, "3"])
def test_a_report_on_no_eigenvalues_or_too_many_is_refused(classes):
    with pytest.raises(InvalidArgument, match="classes: expected"):
        outliers(classifier(), classes, **QUIET)


# --- both ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_nearly_semidefinite_matrix_has_its_ends_in_few_products(dtype):
    values = torch.cat([torch.zeros(900), torch.logspace(-6, -2, 95), torch.arange(1.0, 6.0)])
    values[0] = -1e-9
    values = values.to(dtype)
    op = SymmetricOperator(1000, lambda v: v * values, dtype=dtype)
    ends = both_ends(op, 1e-3)
    assert ends.converged
    assert ends.products == op.products <= 60
    assert ends.high == pytest.approx(5.0, rel=1e-3)
    assert abs(ends.low) <= 1e-3 * 5.0
    assert max(ends.residuals) <= 1e-3 * 5.0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_ends_of_a_definite_matrix_keep_their_sign(sign):
    ends = both_ends(as_operator(sign * torch.diag(torch.linspace(1.0, 9.0, 30)).double()), 1e-4)
    assert (ends.low, ends.high) == pytest.approx(sorted([sign, 9 * sign]), abs=9e-4)
    assert ends.vectors[0, -1 if sign > 0 else 0].abs() == pytest.approx(1.0, abs=1e-3)


def test_the_ends_of_small_and_zero_matrices():
    assert both_ends(as_operator([[-3.0]]), 1e-3)[:2] == (-3.0, -3.0)
    assert both_ends(as_operator(np.zeros((4, 4))), 1e-3)[:2] == (0.0, 0.0)
    assert both_ends(as_operator(np.diag([2.0, -1.0])), 1e-3)[:2] == pytest.approx((-1.0, 2.0))


# --- sharpness ---------------------------------------------------------------------------------


def test_a_picture_along_the_axes_of_a_quadratic_shows_their_curvature_and_hides_the_rest():
    land = quadratic([5.0, 1.0, 100.0, -7.0, 2.0])
    found = hidden_curvature(land, 3 * np.eye(5)[:2], **QUIET)
    assert found.projected.tolist() == [[45, 0], [0, 9]]
    assert found.unit == pytest.approx(np.diag([5.0, 1.0]), abs=1e-12)
    assert found.gram.tolist() == [[9, 0], [0, 9]]
    assert found.curvatures == pytest.approx([5.0, 1.0], rel=1e-12)
    assert (found.across_max, found.across_min) == pytest.approx((100.0, -7.0), rel=1e-3)
    assert found.hidden == pytest.approx(20.0, rel=1e-3)
    assert "-7 to 100" in str(found)


def test_the_principal_curvatures_belong_to_the_plane_and_not_to_its_directions():
    curvature = [5.0, 1.0, 100.0, -7.0, 2.0]
    land = quadratic(curvature)
    plain = hidden_curvature(land, np.eye(5)[[0, 3]], **QUIET)
    skew = np.array([[2.0, 0, 0, 0.3, 0], [1.9, 0, 0, -0.1, 0]])
    found = hidden_curvature(land, skew, **QUIET)
    assert found.curvatures == pytest.approx([5.0, -7.0], rel=1e-12)
    assert found.across_max == pytest.approx(plain.across_max, rel=1e-3)
    axes = found.axes @ skew
    assert axes @ axes.T == pytest.approx(np.eye(2), abs=1e-12)
    assert np.diag(axes @ np.diag(curvature) @ axes.T) == pytest.approx([5.0, -7.0], rel=1e-12)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_definite_complement_keeps_both_its_ends(sign):
    found = hidden_curvature(
        quadratic(sign * np.array([50.0, 3.0, 4.0, 6.0])), np.eye(4)[0], **QUIET
    )
    ends = sorted([sign * 3.0, sign * 6.0])
    assert (found.across_min, found.across_max) == pytest.approx(tuple(ends), rel=1e-3)


def test_a_complement_of_one_dimension_or_none():
    land = quadratic([5.0, 1.0, 3.0])
    found = hidden_curvature(land, np.eye(3)[:2], **QUIET)
    assert (found.across_min, found.across_max) == pytest.approx((3.0, 3.0), rel=1e-12)
    found = hidden_curvature(land, np.eye(3), **QUIET)
    assert np.isnan([found.across_min, found.across_max]).all()
    assert found.curvatures == pytest.approx([5.0, 3.0, 1.0])


def test_an_mlp_across_its_picture_is_as_sharp_as_the_dense_complement():
    land = classifier()
    d = directions(land, 2)
    found = hidden_curvature(land, list(d), **QUIET)
    h, wide = land.hessian(), d.double()
    q, _ = torch.linalg.qr(wide.T)
    full, _ = torch.linalg.qr(torch.cat([q, torch.eye(land.n_params, dtype=q.dtype)], dim=1))
    rest = full[:, 2:]
    exact = torch.linalg.eigvalsh(rest.T @ h @ rest)
    scale = float(exact[-1])
    assert found.across_max == pytest.approx(scale, rel=2e-3)
    assert found.across_min == pytest.approx(float(exact[0]), abs=2e-3 * scale)
    assert found.curvatures == pytest.approx(
        torch.linalg.eigvalsh(q.T @ h @ q).flip(0).numpy(), abs=1e-5 * scale
    )


def test_the_directions_of_a_surface_are_drawn_again(tmp_path):
    land = classifier()
    d1, d2 = random_directions(land, 2, seed=3, orthogonal=True)
    surface = plane(land, d1, d2, (-1, 1, 3), (-1, 1, 3), path=tmp_path / "s.h5", **QUIET)
    found, wanted = (
        hidden_curvature(land, surface, **QUIET),
        hidden_curvature(land, [d1, d2], **QUIET),
    )
    assert found.projected.tolist() == wanted.projected.tolist()
    with pytest.raises(InvalidArgument, match="theta: expected the centre of the Surface"):
        hidden_curvature(land, surface, theta=2 * land.theta, **QUIET)


def test_a_surface_of_other_directions_or_none_is_refused():
    land = classifier()
    d = list(directions(land, 3))
    given = plane(land, d[0], d[1], (-1, 1, 3), (-1, 1, 3), **QUIET)
    with pytest.raises(InvalidArgument, match=r"number 0 of kind 'given'.*pass the directions"):
        hidden_curvature(land, given, **QUIET)
    between = interpolate(land, d, (0, 1, 2), (0, 1, 2), **QUIET)
    with pytest.raises(InvalidArgument, match=r"made by plane\(\), got one of kind 'barycentric'"):
        hidden_curvature(land, between, **QUIET)


@pytest.mark.parametrize(
    "d", [np.zeros(3), np.array([[1.0, 2, 3], [2, 4, 6]]), np.ones((4, 3)), np.eye(3)[[0, 0]]]
)
def test_directions_that_span_too_little_are_refused(d):
    with pytest.raises(InvalidArgument, match="directions: expected linearly independent"):
        hidden_curvature(quadratic([1.0, 2.0, 3.0]), d, **QUIET)


def test_directions_of_another_length_are_refused():
    with pytest.raises(LayoutMismatch, match="directions"):
        hidden_curvature(quadratic([1.0, 2.0, 3.0]), np.zeros(4), **QUIET)


def test_condition_numbers_take_tensors_and_refuse_what_is_no_number() -> None:
    assert condition_number(torch.tensor([1.0, 2.0], requires_grad=True)).full == 2.0
    with pytest.raises(InvalidArgument, match="values: expected eigenvalues, got list"):
        condition_number(["a"])
