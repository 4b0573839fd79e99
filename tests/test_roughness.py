"""Bumpiness and ruggedness (methods: 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cloud_support import free, quadratic, xor
from spectral_support import with_spectrum

from pylandscape.clouds.roughness import bumpiness, mean_absolute_form, ruggedness
from pylandscape.errors import InvalidArgument

TIGHT = 1e-9


def two_by_two(values: np.ndarray) -> np.ndarray:
    """E|a cos^2 + b sin^2| over the angle, in closed form."""
    m, r = values.mean(axis=1), np.abs(values[:, 0] - values[:, 1]) / 2
    share = np.clip(m / r, -1.0, 1.0)
    crossing = 2 / np.pi * (m * np.arcsin(share) + np.sqrt(np.maximum(r * r - m * m, 0.0)))
    return np.where(np.abs(m) >= r, np.abs(m), crossing)


def test_two_dimensional_ruggedness_is_its_closed_form_at_every_scale() -> None:
    draw = np.random.default_rng(0)
    values = draw.standard_normal((500, 2)) * 10.0 ** draw.uniform(-9, 3, (500, 2))
    np.testing.assert_allclose(mean_absolute_form(values), two_by_two(values), rtol=TIGHT)


def test_plus_and_minus_one_give_two_over_pi() -> None:
    found = ruggedness(np.diag([1.0, -1.0]))
    assert found.method == "exact"
    assert found.standard_error == 0.0
    np.testing.assert_allclose(found.value, 2 / np.pi, rtol=TIGHT)
    assert bumpiness(np.diag([1.0, -1.0])).value == 0.0


def test_a_multiple_of_the_identity_has_that_bumpiness_and_ruggedness() -> None:
    for c in (3.0, -3.0, 0.0):
        assert bumpiness(c * np.eye(7)).value == pytest.approx(c, rel=1e-15)
        assert ruggedness(c * np.eye(7)).value == pytest.approx(abs(c), rel=1e-15)


def test_ruggedness_is_at_least_the_absolute_bumpiness_equal_if_semidefinite() -> None:
    draw = np.random.default_rng(1)
    for n in (2, 5, 40):
        values = draw.standard_normal((200, n))
        r, b = mean_absolute_form(values), values.mean(axis=1)
        assert (r >= np.abs(b) * (1 - TIGHT)).all()
        mixed = (values.min(axis=1) < 0.0) & (values.max(axis=1) > 0.0)
        if n < 6:  # with many eigenvalues the difference can be below rounding
            assert (r[mixed] > np.abs(b[mixed])).all()
        semidefinite = np.abs(values)
        semidefinite[:, 0] = 0.0
        np.testing.assert_allclose(
            mean_absolute_form(-semidefinite), semidefinite.mean(axis=1), rtol=1e-13
        )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [3, 15, 60])
def test_the_exact_ruggedness_is_what_sampling_finds(n: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    values = draw.standard_normal(n) * 10.0 ** draw.uniform(-3, 0, n)
    h = with_spectrum(values, seed)[None]
    exact = ruggedness(h).value
    found = ruggedness(h, method="products", samples=20_000, seed=seed)
    assert abs(found.value[0] - exact[0]) < 4 * found.standard_error[0]
    assert found.products == 20_000
    assert found.standard_error[0] < 0.02 * exact[0]


def test_extreme_spectra_keep_the_accuracy() -> None:
    # E|z_1^2 - sum of m others| by averaging the two-dimensional form over their length is hard;
    # what is known: a vanishing eigenvalue changes R by less than itself.
    base = np.r_[1.0, -0.5, np.zeros(300)]
    near = base + np.r_[0.0, 0.0, 1e-13 * np.ones(300)]
    np.testing.assert_allclose(mean_absolute_form(near[None]), mean_absolute_form(base[None]),
                               rtol=1e-10)  # fmt: skip
    # n R does not change with zeros: z^T H z has the same law
    two = mean_absolute_form([[1.0, -0.5]])[0] * 2
    np.testing.assert_allclose(mean_absolute_form(base[None])[0] * 302, two, rtol=TIGHT)
    # one small negative value among many large ones: R = B up to what cannot be seen
    np.testing.assert_allclose(mean_absolute_form([[*np.ones(400), -1e-9]]), [400 / 401], rtol=1e-8)


def test_scaling_the_loss_scales_both_and_its_sign_only_bumpiness() -> None:
    values = np.random.default_rng(3).standard_normal((20, 6))
    np.testing.assert_allclose(mean_absolute_form(-7e5 * values), 7e5 * mean_absolute_form(values),
                               rtol=1e-12)  # fmt: skip


def test_empty_wide_and_lost_spectra() -> None:
    found = mean_absolute_form([[0.0, 0.0], [np.nan, 1.0], [-2.0, -4.0]])
    np.testing.assert_allclose(found, [0.0, np.nan, 3.0])
    assert mean_absolute_form(np.zeros((0, 4))).shape == (0,)


def test_a_landscape_is_asked_at_points_or_at_its_own() -> None:
    land = quadratic(5, c=3.0)
    points = np.random.default_rng(0).standard_normal((4, 5))
    np.testing.assert_allclose(bumpiness(land, points).value, 3.0, rtol=1e-14)
    np.testing.assert_allclose(ruggedness(land, points).value, 3.0, rtol=1e-14)
    assert isinstance(ruggedness(land).value, float)


def test_products_and_differences_agree_with_the_exact_value() -> None:
    land = xor()
    points = np.random.default_rng(0).uniform(-2, 2, (3, 9))
    for ask in (bumpiness, ruggedness):
        exact = ask(land, points).value
        for method in ("products", "finite"):
            found = ask(land, points, method=method, samples=4000)
            assert (np.abs(found.value - exact) < 4.5 * found.standard_error).all(), method
    same = [ruggedness(land, points, method=m, samples=50).value for m in ("products", "finite")]
    np.testing.assert_allclose(same[1], same[0], atol=1e-6)  # h^2 L'''' / 12 and eps L / h^2


def test_finite_differences_see_what_derivatives_do_not() -> None:
    land = free(3, lambda theta: theta.abs().sum())  # all second derivatives are 0
    found = ruggedness(land, np.zeros((1, 3)), method="finite", step=1e-2, samples=500)
    assert found.value[0] > 10.0
    assert ruggedness(land, np.ones((1, 3))).value[0] == 0.0


def test_a_float32_landscape_is_differenced_in_float64() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (2, 9))
    found = [ruggedness(xor(d), points, method="finite") for d in (torch.float32, torch.float64)]
    np.testing.assert_allclose(found[0].value, found[1].value, rtol=1e-10)


def test_a_point_that_is_lost_loses_only_itself() -> None:
    points = np.ones((3, 9))
    points[1, 4] = np.nan
    found = ruggedness(xor(), points).value
    assert np.isnan(found[1])
    assert np.isfinite(found[[0, 2]]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 3)),), r"source: expected shape \(P, n, n\)"),
        (("here",), "source: expected a Landscape or Hessians"),
        ((np.eye(2), np.zeros((1, 2))), "points: expected only with a Landscape"),
        ((xor(), np.zeros((1, 4))), r"points: expected shape \(P, 9\)"),
    ],
)
def test_bad_sources_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        ruggedness(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, "method: expected one of auto, exact, products, finite"),
        ({"method": "finite"}, "method: expected a Landscape for 'finite'"),
        ({"samples": 1}, "samples: expected at least 2"),
        ({"step": 0.0}, "step: expected a positive number"),
        ({"seed": 1.5}, "seed: expected an integer"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        bumpiness(np.eye(2), **options)
