"""Eigenpairs, spectra and densities: what they promise, on quadratures that are known; files."""

from __future__ import annotations

import os
from dataclasses import fields

import h5py
import numpy as np
import pytest
import torch

import pylandscape as pl
import pylandscape.results.smoothing
from pylandscape.errors import FileFormatError, InvalidArgument
from pylandscape.results.eigen_pairs import EigenPairs
from pylandscape.results.loading import load
from pylandscape.results.spectra import Density, Spectrum

EPS = np.finfo(np.float64).eps


def pairs(k: int = 3, n: int = 7, **changes) -> EigenPairs:
    options = {
        "values": np.arange(k, 0, -1.0),
        "vectors": torch.eye(n, dtype=torch.float64)[:k],
        "residuals": np.full(k, 1e-9),
        "converged": np.ones(k, dtype=bool),
        "products": 21,
        "tol": 1e-6,
    }
    return EigenPairs(**{**options, **changes})


def spectrum(nodes, weights=None, **changes) -> Spectrum:
    """One row per probe; equal weights by default."""
    nodes = np.atleast_2d(np.asarray(nodes, dtype=float))
    if weights is None:
        there = ~np.isnan(nodes)
        weights = there / np.maximum(there.sum(axis=1, keepdims=True), 1)
    options = {
        "bounds": np.where(np.isnan(nodes), np.nan, 0.0),
        "n": 100,
        "outcomes": ("complete",) * len(nodes),
    }
    return Spectrum(nodes, np.atleast_2d(weights), **{**options, **changes})


def exact_quadrature(eigenvalues, probes: int, seed: int = 0, **changes) -> Spectrum:
    """m = n: the nodes are the eigenvalues, the weights (v^T q_i)^2 of random unit vectors v."""
    eigenvalues = np.sort(eigenvalues)
    squares = np.random.default_rng(seed).normal(size=(probes, eigenvalues.size)) ** 2
    weights = squares / squares.sum(axis=1, keepdims=True)
    nodes = np.tile(eigenvalues, (probes, 1))
    return spectrum(nodes, weights, n=eigenvalues.size, **changes)


def kernel(t, centre, sigma):
    return np.exp(-((t - centre) ** 2) / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))


def test_density_is_the_mean_over_probes_of_weighted_gaussians():
    s = spectrum([[0.0, 1.0], [0.5, 2.0]], [[0.25, 0.75], [0.5, 0.5]], sigma2=0.01)
    found = s.density()
    each = [
        0.25 * kernel(found.grid, 0.0, 0.1) + 0.75 * kernel(found.grid, 1.0, 0.1),
        0.5 * kernel(found.grid, 0.5, 0.1) + 0.5 * kernel(found.grid, 2.0, 0.1),
    ]
    # A cell's mean differs from its centre's value by width^2 / 24 times the second derivative.
    curvature = (found.widths.max() / 0.1) ** 2 / 24 * kernel(0.0, 0.0, 0.1)
    assert np.abs(found.values - np.mean(each, axis=0)).max() <= 2 * curvature
    errors = np.std(each, axis=0, ddof=1) / np.sqrt(2)
    assert np.abs(found.standard_error - errors).max() <= 2 * curvature


def test_default_grid_is_10_000_points_five_sigma_beyond_the_nodes():
    found = spectrum([[-1.0, 3.0]], sigma2=0.04).density()
    assert found.grid.size == 10_000
    assert found.grid[[0, -1]] == pytest.approx([-2.0, 4.0], rel=1e-14)
    assert found.mass == pytest.approx(1.0, abs=1e-6)


def test_a_coarse_grid_keeps_the_mass_of_a_narrow_peak():
    s = spectrum([[0.0, 0.3333]], [[0.2, 0.8]], sigma2=1e-6)
    found = s.density(np.linspace(-1, 1, 50))
    assert found.mass == pytest.approx(1.0, abs=1e-12)
    assert np.count_nonzero(found.values > 1e-6) <= 4
    uneven = np.sort(np.random.default_rng(0).uniform(-1, 1, 50))
    uneven[[0, -1]] = -1, 1
    assert s.density(uneven).mass == pytest.approx(1.0, abs=1e-12)


def test_a_grid_inside_the_spectrum_holds_only_its_share():
    s = spectrum([[0.0, 1.0, 5.0]], [[0.2, 0.3, 0.5]], sigma2=1e-4)
    assert s.density(np.linspace(-2, 2, 21)).mass == pytest.approx(0.5, abs=1e-12)
    assert s.density([5.0]).mass == pytest.approx(0.5, abs=1e-12)


def test_density_in_the_tails_is_relatively_accurate_on_both_sides():
    found = spectrum([[0.0]], sigma2=1.0).density(np.linspace(-30, 30, 60_001))
    for t in (-20.0, 20.0):
        i = int(np.argmin(np.abs(found.grid - t)))
        # width 1e-3: (z width)^2 / 24 = 2e-5
        assert found.values[i] == pytest.approx(kernel(t, 0.0, 1.0), rel=1e-4)


def test_small_pieces_of_work_give_the_same_density(monkeypatch):
    rng = np.random.default_rng(0)
    s = spectrum(np.sort(rng.normal(size=(3, 40)), axis=1), sigma2=1e-2)
    whole = s.density()
    exact = rng.normal(size=100)
    distance = s.compare(exact)
    monkeypatch.setattr(pylandscape.results.smoothing, "PAIRS", 1000)
    monkeypatch.setattr(pylandscape.results.smoothing, "CELLS", 97)
    pieces = s.density()
    assert np.abs(whole.values - pieces.values).max() <= 100 * EPS * whole.values.max()
    assert s.compare(exact) == pytest.approx(distance, rel=1e-12)


def test_a_spectrum_far_from_zero_or_wider_than_the_kernel_resolves_has_a_density():
    for nodes in ([1e10], [0.0, 1e12], [-1e-9, 1e-9], [3.0]):
        found = spectrum([nodes]).density()
        assert found.mass == pytest.approx(1.0, abs=1e-6)
        assert spectrum([nodes], n=len(nodes)).compare(nodes) <= 1e-10


def test_standard_error_is_nan_for_one_probe_and_zero_for_equal_ones():
    one = spectrum([[0.0, 1.0]])
    assert np.isnan(one.density().standard_error).all()
    assert np.isnan(one.trace[1])
    assert np.isnan(one.expected_distance())
    same = spectrum([[0.0, 1.0]] * 3)
    assert same.density().standard_error.max() <= 100 * EPS * same.density().values.max()
    assert same.trace == pytest.approx((50.0, 0.0), abs=1e-12)


def test_the_trace_of_a_spectrum_is_an_estimate_as_pl_trace_s():
    a = np.diag(np.arange(1.0, 31.0))
    ours, theirs = pl.spectrum(a, probes=3, steps=30, progress=False).trace, pl.trace(a, 20)
    for found in (ours, theirs):
        value, error = found
        assert (value, error) == (found.value, found.standard_error) == (found[0], found[1])
        assert abs(float(found) - 465.0) <= 5 * error
        assert "+-" in repr(found)
    assert (ours.products, ours.method) == (90, "lanczos")


def test_relative_sigma2_scales_with_the_width_of_a_wide_spectrum():
    narrow = spectrum([[0.0, 0.5]], sigma2=0.01, relative_sigma2=True)
    wide = spectrum([[-20.0, 30.0]], sigma2=0.01, relative_sigma2=True)
    assert narrow.variance == 0.01
    assert wide.variance == pytest.approx(0.5)
    assert wide.density().grid[0] == pytest.approx(-20 - 5 * np.sqrt(0.5))
    assert spectrum([[-20.0, 30.0]], sigma2=0.01).variance == 0.01
    # a sigma2 that is given is relative too
    same = spectrum([[-20.0, 30.0]], sigma2=0.02 * 50).density()
    assert np.allclose(wide.density(sigma2=0.02).values, same.values, rtol=1e-12)


def test_mean_trace_and_moments_are_those_of_the_quadrature():
    s = spectrum([[0.0, 2.0], [1.0, 3.0]], [[0.5, 0.5], [0.5, 0.5]], n=10)
    assert s.mean(np.exp)[0] == pytest.approx(np.exp([0, 1, 2, 3]).mean())
    assert s.trace == pytest.approx((15.0, 10 * np.std([1, 2], ddof=1) / np.sqrt(2)))
    values, errors = s.moments(3)
    assert values == pytest.approx([1.5, (0 + 4 + 1 + 9) / 4, (0 + 8 + 1 + 27) / 4])
    assert errors[0] == pytest.approx(0.5)
    assert s.mean(lambda t: 1.0) == (1.0, 0.0)
    assert s.extremes == (0.0, 3.0)
    with pytest.raises(InvalidArgument, match=r"f: expected finite values.*f\(0\) = -inf"):
        s.mean(np.log)


def test_trace_lies_within_its_standard_error():
    eigenvalues = np.random.default_rng(1).normal(size=500) ** 3
    s = exact_quadrature(eigenvalues, probes=100)
    value, error = s.trace
    assert abs(value - eigenvalues.sum()) < 4 * error
    assert error == pytest.approx(np.sqrt(2 * (eigenvalues**2).sum() / 100), rel=0.4)


def test_l1_energy_is_the_share_of_the_small_eigenvalues():
    s = spectrum([[-1.0, 0.5, 0.5, 2.0]], n=4)
    assert s.l1_energy(0.75) == pytest.approx(1.0 / 4.0)
    assert s.l1_energy(1.0) == pytest.approx(1.0 / 4.0)  # |lambda| < eps, strictly
    assert s.l1_energy(10.0) == 1.0
    assert np.isnan(spectrum([[0.0]]).l1_energy(1.0))


def test_compare_is_zero_for_the_spectrum_itself_and_two_for_another_place():
    eigenvalues = np.random.default_rng(0).normal(size=50)
    n = eigenvalues.size
    itself = spectrum([np.sort(eigenvalues)], n=n)
    assert itself.compare(eigenvalues) <= 1e-12
    assert itself.compare(eigenvalues + 100.0) == pytest.approx(2.0, abs=1e-12)
    # Two kernels half a sigma apart: 2 (2 Phi(1/4) - 1).
    from scipy.special import ndtr

    shifted = spectrum([[0.0]], n=1, sigma2=1.0).compare([0.5])
    assert shifted == pytest.approx(2 * (2 * ndtr(0.25) - 1), rel=1e-3)


def test_compare_resolves_outliers_far_away_without_a_giant_grid():
    # A grid from end to end at a third of sigma would have 1e12 points.
    s = spectrum([[0.0, 1e9]], [[0.75, 0.25]], n=4)
    assert s.compare([0.0, 0.0, 0.0, 1e9]) <= 1e-12
    assert s.compare([0.0, 0.0, 0.0, 1e9 + 1]) == pytest.approx(0.5, abs=1e-9)
    assert s.compare([0.0, 0.0, 1e9, 1e9]) == pytest.approx(0.5, abs=1e-9)


def test_distance_to_the_exact_spectrum_is_what_the_scatter_of_the_probes_says():
    eigenvalues = np.random.default_rng(2).normal(size=800)
    s = exact_quadrature(eigenvalues, probes=30)
    assert s.compare(eigenvalues) == pytest.approx(s.expected_distance(), rel=0.2)


def test_probes_without_nodes_do_not_count():
    nodes = np.array([[0.0, 1.0], [np.nan, np.nan], [0.5, np.nan]])
    s = spectrum(nodes, outcomes=("complete", "not finite", "breakdown"))
    assert s.trace[0] == pytest.approx(50.0)
    assert s.density().mass == pytest.approx(1.0, abs=1e-6)
    assert "1 breakdown, 1 not finite" in repr(s)
    none = spectrum([[np.nan]], outcomes=("not finite",))
    assert "not finite" in repr(none)
    with pytest.raises(InvalidArgument, match="at least one probe with nodes, got not finite"):
        none.density()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": [[1.0, 0.0]]}, "nodes: expected rows of finite ascending"),
        ({"nodes": [[np.nan, 0.0]]}, "nodes: expected rows of finite ascending"),
        ({"nodes": [[0.0, np.inf]]}, "nodes: expected rows of finite ascending"),
        ({"nodes": [0.0, 1.0]}, r"nodes: expected numbers of 2 axes, got shape \(2,\)"),
        ({"nodes": np.zeros((0, 3))}, "nodes: expected at least one probe and step"),
        ({"nodes": [["a", "b"]]}, "nodes: expected numbers"),
        ({"nodes": [[0.0, np.nan]]}, "weights: expected numbers >= 0, and 0 where"),
        ({"nodes": [[np.nan, np.nan]], "weights": [[0, 0]]}, "nodes: expected nodes for every"),
        ({"weights": [[0.5, 0.4]]}, "weights: expected rows whose sum is 1, got"),
        ({"weights": [[1.5, -0.5]]}, "weights: expected numbers >= 0"),
        ({"weights": [[np.nan, 1.0]]}, "weights: expected numbers >= 0"),
        ({"weights": [[0.5, 0.5, 0.0]]}, r"weights: expected numbers of shape \(1, 2\)"),
        ({"bounds": [[np.nan, 0.0]]}, "bounds: expected numbers >= 0"),
        ({"n": 0}, "n: expected at least 1, got 0"),
        ({"sigma2": 0.0}, "sigma2: expected a positive variance, got 0.0"),
        ({"sigma2": np.nan}, "sigma2: expected a positive variance"),
        ({"outcomes": ()}, "outcomes: expected 1 of complete"),
        ({"outcomes": ("done",)}, "outcomes: expected 1 of complete"),
        ({"pairs": 3}, "pairs: expected EigenPairs or None, got int"),
    ],
)  # fmt: skip
def test_a_malformed_spectrum_is_refused(change, message):
    good = {
        "nodes": [[0.0, 1.0]], "weights": [[0.5, 0.5]], "bounds": [[0.0, 0.0]], "n": 5,
        "outcomes": ("complete",),
    }  # fmt: skip
    Spectrum(**good)
    with pytest.raises(InvalidArgument, match=message):
        Spectrum(**{**good, **change})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.density([1.0, 0.0]), "grid: expected an increasing"),
        (lambda s: s.density(sigma2=-1.0), "sigma2: expected a positive variance, got -1.0"),
        (lambda s: s.density(sigma2=0.0), "sigma2: expected a positive variance, got 0.0"),
        (lambda s: s.grid(1), "points: expected at least 2, got 1"),
        (lambda s: s.compare([1.0]), r"exact: expected numbers of shape \(100,\)"),
        (lambda s: s.compare(np.full(100, np.nan)), "exact: expected finite eigenvalues"),
        (lambda s: Density([0.0, 1.0], [1.0], [0.0]), r"values: expected numbers of shape \(2,\)"),
    ],
)  # fmt: skip
def test_bad_questions_are_refused(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call(spectrum([[0.0, 1.0]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": [[1.0]]}, "values: expected numbers of 1 axes"),
        ({"values": [1.0, np.nan, 0.0]}, "values: expected finite numbers"),
        ({"vectors": np.eye(7)[:3]}, "vectors: expected a float32 or float64 tensor, got float64"),
        ({"vectors": torch.eye(7, dtype=torch.int64)[:3]}, "got torch.int64"),
        ({"vectors": torch.eye(7)}, r"vectors: expected rows \(3, n\), got \(7, 7\)"),
        ({"residuals": [1.0]}, r"residuals: expected numbers of shape \(3,\)"),
        ({"residuals": [0.0, np.nan, 0.0]}, "residuals: expected norms >= 0"),
        ({"converged": [1, 1, 0]}, r"converged: expected booleans of shape \(3,\)"),
        ({"which": "XL"}, "which: expected one of LA, SA, LM, BE, got 'XL'"),
    ],
)  # fmt: skip
def test_malformed_eigenpairs_are_refused(change, message):
    with pytest.raises(InvalidArgument, match=message):
        pairs(**change)


def test_eigenpairs_say_how_many_did_not_converge():
    good = pairs()
    assert repr(good) == "EigenPairs(LA, 3 of n = 7, 3 to 1, residuals <= 1e-09, 21 products)"
    assert good.matvecs == good.products == 21
    bad = pairs(converged=[True, False, False])
    assert "2 NOT CONVERGED" in repr(bad)


def test_vectors_keep_their_dtype_and_lose_their_graph():
    leaf = torch.eye(7, requires_grad=True)
    kept = pairs(vectors=leaf[:3]).vectors
    assert kept.dtype == torch.float32
    assert not kept.requires_grad


def test_results_do_not_change_with_the_arrays_they_were_made_of():
    nodes = np.array([[0.0, 1.0]])
    s = spectrum(nodes)
    nodes[:] = 7.0
    assert s.extremes == (0.0, 1.0)


def test_repr_is_one_line():
    s = spectrum([[0.0, 1.0], [0.2, 1.5]])
    assert repr(s) == "Spectrum(n = 100, 2 probes of 2 steps, 0 to 1.5, trace 67.5 +- 18)"
    assert s.products == 4
    assert "\n" not in repr(s) + repr(s.density()) + repr(pairs())


def assert_same(a, b):
    assert type(a) is type(b)
    for field in fields(a):
        name, value, other = field.name, getattr(a, field.name), getattr(b, field.name)
        if isinstance(value, EigenPairs):
            assert_same(value, other)
        elif isinstance(value, np.ndarray):
            assert (value.dtype, value.shape) == (other.dtype, other.shape)
            assert value.tobytes() == other.tobytes()
        elif isinstance(value, torch.Tensor):
            assert value.dtype == other.dtype
            assert torch.equal(value, other)
        else:
            assert value == other, name


def full_spectrum(**changes) -> Spectrum:
    nodes = np.array([[0.1, 0.7, 2.5], [-1e-300, 1 / 3, np.nan], [np.nan] * 3])
    weights = np.array([[0.1, 0.2, 0.7], [0.4, 0.6, 0.0], [0.0] * 3])
    options = {
        "sigma2": 0.1 + 0.2, "relative_sigma2": True, "n": 12, "pairs": pairs(which="BE"),
        "outcomes": ("complete", "breakdown", "not finite"),
        "info": {"request": {"seed": 3}, "notes": ["é"], "seconds": 0.1},
    }  # fmt: skip
    return spectrum(nodes, weights, **{**options, **changes})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenpairs_come_back_bit_for_bit(tmp_path, dtype):
    before = pairs(
        vectors=torch.randn(3, 7, dtype=dtype), converged=[True, False, True], which="SA",
        residuals=[0.0, np.inf, 1e-310], info={"matrix": "hessian", "none": None},
    )  # fmt: skip
    before.save(tmp_path / "e.h5")
    assert_same(load(tmp_path / "e.h5"), before)
    nothing = pairs(0)
    nothing.save(tmp_path / "e.h5")
    assert_same(load(tmp_path / "e.h5"), nothing)
    assert os.listdir(tmp_path) == ["e.h5"]


def test_a_spectrum_comes_back_bit_for_bit(tmp_path):
    for before in (full_spectrum(), full_spectrum(pairs=None), spectrum([[0.0]])):
        before.save(str(tmp_path / "s.h5"))
        assert_same(load(str(tmp_path / "s.h5")), before)


def test_a_spectrum_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    good = full_spectrum()
    good.save(tmp_path / "s.h5")
    with pytest.raises(InvalidArgument, match="info: expected what JSON can hold"):
        full_spectrum(info={"thing": object()}).save(tmp_path / "s.h5")
    assert_same(load(tmp_path / "s.h5"), good)


def edit(change):
    def apply(path):
        with h5py.File(path, "a") as file:
            change(file["pylandscape"])

    return apply


def replace(name, value):
    def change(group):
        del group[name]
        group[name] = value

    return edit(change)


DAMAGES = {
    "another number": edit(lambda g: g["nodes"].__setitem__((0, 0), 0.2)),
    "another vector": edit(lambda g: g["vectors"].__setitem__((0, 0), 0.2)),
    "another dtype": replace("vectors", np.zeros((3, 7), np.float32)),
    "no weights": edit(lambda g: g.__delitem__("weights")),
    "words": replace("nodes", b"words"),
    "a link out": replace("bounds", h5py.ExternalLink("other.h5", "bounds")),
    "other content": edit(lambda g: g.attrs.__setitem__("content", "eigenpairs")),
    "unknown content": edit(lambda g: g.attrs.__setitem__("content", "hessian")),
    "no digest": edit(lambda g: g.attrs.__delitem__("digest")),
    "a newer format": edit(lambda g: g.attrs.__setitem__("format", 99)),
    "truncation": lambda path: os.truncate(path, os.path.getsize(path) // 2),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_a_file_format_error(tmp_path, damage):
    path = tmp_path / "s.h5"
    full_spectrum().save(path)
    damage(path)
    with pytest.raises(FileFormatError, match=r"s\.h5"):
        load(path)


def test_numbers_that_make_no_spectrum_are_refused_despite_a_right_checksum(tmp_path):
    broken = full_spectrum()
    broken.weights[0] *= 2.0
    broken.save(tmp_path / "s.h5")
    with pytest.raises(FileFormatError, match="weights: expected rows whose sum is 1"):
        load(tmp_path / "s.h5")
