"""The rule that names a spectrum, and the same rule on bounds."""

from __future__ import annotations

import numpy as np
import pytest

from pylandscape.errors import InvalidArgument
from pylandscape.results.curvature_classes import (
    classes_of,
    exact_bounds,
    flip_points,
    inertia_of,
    kinds_within,
    margins,
)

RTOL = 1e-6


def spectra(count: int = 400, n: int = 5) -> np.ndarray:
    """Random spectra of every class, some with small or exact zeros."""
    rng = np.random.default_rng(0)
    found = rng.standard_normal((count, n)) * 10.0 ** rng.uniform(-3, 3, (count, 1))
    found[::4] = np.abs(found[::4])
    found[1::4] = -np.abs(found[1::4])
    found[::5, 0] *= 10.0 ** rng.uniform(-9, -3, len(found[::5]))
    found[::11, 1] = 0.0
    found[::97] = 0.0
    return np.sort(found, axis=1)


@pytest.mark.parametrize(
    ("eigenvalues", "kind"),
    [
        ([1, 2], "convex"),
        ([-1, -2], "concave"),
        ([1, -1], "saddle"),
        ([1, 0], "singular"),
        ([0, 0], "singular"),
        ([1, -1, 0], "singular"),
        ([1, float("nan")], "invalid"),
        ([1, float("inf")], "invalid"),
        ([3], "convex"),
    ],
)
def test_a_spectrum_has_its_class(eigenvalues, kind):
    assert classes_of(eigenvalues, RTOL) == kind
    assert classes_of([eigenvalues, eigenvalues], RTOL).tolist() == [kind, kind]


@pytest.mark.parametrize("factor", [1e-200, 1e-9, 7.0, 1e200])
def test_classes_do_not_depend_on_the_scale_of_the_loss(factor):
    values = spectra()
    for rtol in (0.0, 1e-9, RTOL, 1e-2):
        assert np.array_equal(classes_of(values, rtol), classes_of(factor * values, rtol))


def test_a_loss_turned_upside_down_swaps_convex_and_concave():
    kinds, turned = classes_of(spectra(), RTOL), classes_of(-spectra(), RTOL)
    swap = {"convex": "concave", "concave": "convex"}
    assert [swap.get(kind, kind) for kind in kinds] == turned.tolist()
    assert set(kinds) == {"convex", "concave", "saddle", "singular"}


def test_an_eigenvalue_at_the_tolerance_is_a_zero():
    assert classes_of([2.0**-20, 1.0], 2.0**-20) == "singular"
    assert classes_of([2.0**-20 * (1 + 2**-50), 1.0], 2.0**-20) == "convex"


def test_without_a_tolerance_only_exact_zeros_count():
    assert classes_of([[1e-300, 1.0], [0.0, 1.0]], 0.0).tolist() == ["convex", "singular"]


def test_index_and_nullity_leave_the_positive_ones():
    values = spectra()
    index, nullity = inertia_of(values, RTOL)
    tau = RTOL * np.abs(values).max(axis=1, keepdims=True)
    assert np.array_equal(index + nullity + (values > tau).sum(axis=1), np.full(400, 5))
    assert np.array_equal(nullity > 0, classes_of(values, RTOL) == "singular")
    assert [int(a[0]) for a in inertia_of([[np.nan, 1.0]], RTOL)] == [-1, -1]


@pytest.mark.parametrize("rtol", [0.0, 1e-9, 1e-6, 1e-3, 0.5])
def test_bounds_without_width_give_the_classes_of_the_eigenvalues(rtol):
    values = spectra()
    assert np.array_equal(kinds_within(exact_bounds(values), rtol), classes_of(values, rtol))


@pytest.mark.parametrize("width", [1e-8, 1e-3, 0.3])
def test_wide_bounds_decide_nothing_that_a_spectrum_inside_contradicts(width):
    rng, values = np.random.default_rng(1), spectra()
    scale = np.abs(values).max(axis=1)[:, None, None]
    bounds = exact_bounds(values)
    low, high = rng.uniform(0, width, (2, *bounds.shape[:2])) * scale[..., 0]
    bounds[..., 0] -= low
    bounds[..., 1] += high
    bounds[:, 2, 0] = np.maximum(bounds[:, 2, 0], 0.0)
    kinds = kinds_within(bounds, RTOL)
    decided = kinds != "undecided"
    assert np.array_equal(kinds[decided], classes_of(values, RTOL)[decided])
    assert decided.any()
    assert decided.all() == (width < RTOL)


def test_the_margin_is_the_factor_at_which_the_class_is_lost():
    values = np.array([[1e-3, 1.0], [1e-9, 1.0], [0.0, 1.0], [-1.0, 1.0], [np.nan, 1.0]])
    bounds = exact_bounds(values)
    assert kinds_within(bounds, RTOL).tolist() == [
        "convex", "singular", "singular", "saddle", "invalid",
    ]  # fmt: skip
    assert margins(bounds, RTOL)[:4] == pytest.approx([1e3, 1e3, np.inf, 1e6], rel=1e-14)
    assert np.isnan(margins(bounds, RTOL)[4])
    assert np.isinf(margins(bounds, 0.0)[:4]).all()
    flips = flip_points(bounds, RTOL)
    for k in (0, 1):
        assert kinds_within(bounds[k : k + 1], flips[k]) == "singular"
        assert kinds_within(bounds[k : k + 1], flips[k] * 0.999) != "singular"


@pytest.mark.parametrize("rtol", [-1e-9, 1.0, float("nan"), "1e-6", None, True])
def test_a_tolerance_outside_0_to_1_is_refused(rtol):
    with pytest.raises(InvalidArgument, match="rtol"):
        classes_of([1.0, 2.0], rtol)


@pytest.mark.parametrize("eigenvalues", [1.0, [], "many", [[]]])
def test_what_is_no_spectrum_is_refused(eigenvalues):
    with pytest.raises(InvalidArgument, match="eigenvalues"):
        classes_of(eigenvalues, RTOL)
