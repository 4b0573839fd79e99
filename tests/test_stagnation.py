"""Stagnation of walks (methods: 5)."""

from __future__ import annotations

import numpy as np
import pytest

from pylandscape.errors import InvalidArgument
from pylandscape.results.stagnations import stagnation


def test_a_constant_walk_is_one_plateau() -> None:
    found = stagnation(np.full((2, 100), 3.7))
    np.testing.assert_array_equal(found.counts, [1, 1])
    np.testing.assert_array_equal(found.lengths, [100, 100])


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05])
def test_a_staircase_has_as_many_plateaus_as_levels(noise: float) -> None:
    levels = np.repeat([3.0, 2.0, 1.0], 33)
    found = stagnation(levels + noise * np.random.default_rng(0).standard_normal((20, 99)))
    np.testing.assert_array_equal(found.counts, 3)
    np.testing.assert_array_equal(found.windows, 6)
    assert abs(found.mean_length - 26.0) < 1.5


def test_a_straight_descent_counts_less_than_a_plateau() -> None:
    flat = np.r_[np.linspace(1, 0, 20), np.zeros(80)]
    assert stagnation(flat).lengths[0] > 60


def test_scale_and_shift_do_not_matter() -> None:
    losses = np.cumsum(np.random.default_rng(0).standard_normal((10, 80)), axis=1)
    first, second = stagnation(losses), stagnation(100.0 - 3.0 * losses)
    np.testing.assert_array_equal(first.counts, second.counts)
    np.testing.assert_array_equal(first.lengths, second.lengths)


def test_walks_do_not_change_each_other_and_lost_ones_are_named() -> None:
    losses = np.random.default_rng(0).standard_normal((3, 50))
    losses[1, 7] = np.inf
    found = stagnation(losses)
    assert np.isnan(found.counts[1])
    assert found.counts[2] == stagnation(losses[2]).counts[0]
    assert found.mean_count == np.mean(found.counts[[0, 2]])
    assert "1 not finite" in repr(found)
    assert np.isnan(stagnation(losses[1]).mean_length)


def test_short_walks_use_the_windows_that_fit() -> None:
    assert stagnation(np.r_[np.zeros(8), 1.0]).windows[0] <= 8


@pytest.mark.parametrize("losses", [np.zeros((2, 6)), np.zeros((2, 3, 9)), "abc", np.zeros((0, 9))])
def test_bad_losses_are_refused(losses: object) -> None:
    with pytest.raises(InvalidArgument, match="losses: expected"):
        stagnation(losses)
