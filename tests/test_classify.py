"""Classes of points: known Hessians, tolerance, blocks, files, resumed runs, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from grid_support import Point, classifier, quadratic, scalar_landscape
from torch import nn

from pylandscape.critical.classification import classify
from pylandscape.engines.points.evaluator import PointEvaluator
from pylandscape.errors import FileFormatError, InvalidArgument, ResumeMismatch
from pylandscape.landscape import Landscape
from pylandscape.results.critical_points import EPS, CriticalPoints
from pylandscape.results.loading import load

QUIET = {"progress": False}


def quartic() -> Landscape:
    """L = sum theta^4 / 12 - theta_0^2: its Hessian is diag(theta^2) - 2 e_0 e_0^T."""
    return scalar_landscape(lambda t: (t**4).sum() / 12 - t[0] ** 2, [0.0, 0.5, 1.0])


def arrays_of(found: CriticalPoints) -> list[bytes]:
    return [getattr(found, name).tobytes() for name in found.ARRAYS]


@pytest.mark.parametrize(
    ("curvature", "kind", "index", "nullity"),
    [
        ([1, 2], "convex", 0, 0),
        ([-1, -2], "concave", 2, 0),
        ([1, -1], "saddle", 1, 0),
        ([1, 0], "singular", 0, 1),
        ([0, 0], "singular", 0, 2),
    ],
)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_quadratic_has_one_class_everywhere(curvature, kind, index, nullity, scale):
    land = quadratic(scale * np.array(curvature))
    found = classify(land, np.random.default_rng(0).normal(size=(5, 2)), **QUIET)
    assert found.kinds.tolist() == [kind] * 5
    assert set(found.index) == {index}
    assert set(found.nullity) == {nullity}
    assert found.method == "exact"


def test_classes_follow_the_point():
    points = [[2, 1, 1], [0, 1, 1], [0, 1, 0], [2**0.5, 1, 1], [np.nan, 1, 1], [3, 3, 3]]
    found = classify(quartic(), points, **QUIET)
    assert found.kinds.tolist() == [
        "convex", "saddle", "singular", "singular", "invalid", "convex",
    ]  # fmt: skip
    assert found.eigenvalues[0] == pytest.approx([1, 1, 2], rel=1e-14)
    assert found.losses[0] == pytest.approx(18 / 12 - 4, rel=1e-14)
    assert found.gradient_norms[1] == pytest.approx(2**0.5 / 3, rel=1e-14)
    assert found.counts() == {"convex": 2, "concave": 0, "saddle": 1, "singular": 2, "invalid": 1}


def test_a_point_that_is_not_finite_leaves_the_others_alone():
    good = np.random.default_rng(0).normal(size=(6, 51))
    bad = good.copy()
    bad[2, 7], bad[4, 0] = np.nan, np.inf
    found, clean = (classify(classifier(), points, **QUIET) for points in (bad, good))
    rest = [0, 1, 3, 5]
    assert found.kinds[[2, 4]].tolist() == ["invalid"] * 2
    assert found.index[2] == found.nullity[2] == -1
    assert np.array_equal(found.kinds[rest], clean.kinds[rest])
    scale = np.abs(clean.eigenvalues).max()
    assert np.abs(found.eigenvalues[rest] - clean.eigenvalues[rest]).max() <= 51 * EPS * scale
    assert np.isnan(found.bounds[2]).all()


def test_an_iteration_that_fails_makes_no_point_invalid(monkeypatch):
    points = np.random.default_rng(0).normal(size=(5, 51))
    points[3, 0] = np.nan
    clean, honest = classify(classifier(), points, **QUIET), PointEvaluator.spectra

    def failing(evaluator, points):
        losses, gradients, values = honest(evaluator, points)
        return losses, gradients, np.full_like(values, np.nan)

    monkeypatch.setattr(PointEvaluator, "spectra", failing)
    found = classify(classifier(), points, **QUIET)
    assert (
        found.kinds.tolist() == clean.kinds.tolist() == [*["singular"] * 3, "invalid", "singular"]
    )
    good = [0, 1, 2, 4]
    scale = np.abs(clean.eigenvalues[good]).max()
    assert np.abs(found.eigenvalues[good] - clean.eigenvalues[good]).max() <= 51 * EPS * scale


def test_the_default_tolerance_is_n_eps_of_float64_even_for_a_float32_model():
    land = classifier()
    assert land.dtype == torch.float32
    found = classify(land, land.theta[None], **QUIET)
    assert found.rtol == land.n_params * EPS
    # shifting all outputs of a softmax does nothing: h + 1 null directions (methods 0)
    assert found.kinds[0] == "singular"
    assert found.nullity[0] == 7


def test_softmax_cross_entropy_is_singular_at_every_point_of_iris():
    data = pytest.importorskip("sklearn.datasets").load_iris()
    x = torch.as_tensor((data.data - data.data.mean(0)) / data.data.std(0))
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    land = Landscape(model, nn.CrossEntropyLoss(), (x, torch.as_tensor(data.target)))
    points = np.random.default_rng(0).uniform(-1, 1, (40, land.n_params))
    found = classify(land, points, **QUIET)
    assert found.counts()["singular"] == 40
    assert found.nullity.min() == 5


def test_the_sensitivity_counts_the_points_that_change():
    ratios = np.array([1e-12, 3e-7, 0.7e-6, 3e-6, 8e-6, 1e-4, 1e-2])
    points = np.stack([np.sqrt(ratios), np.ones(7)], axis=1)
    land = scalar_landscape(lambda t: (t**4).sum() / 12, [0.0, 0.0])  # Hessian diag(theta^2)
    found = classify(land, points, rtol=1e-6, **QUIET)
    moved = found.sensitivity()
    assert moved.rtols == pytest.approx((1e-7, 1e-6, 1e-5))
    assert [row["singular"] for row in moved.counts] == [1, 3, 5]
    assert [row["convex"] for row in moved.counts] == [6, 4, 2]
    assert moved.changed == (2, 0, 2)
    assert found.flip_points == pytest.approx(ratios, rel=1e-12)
    factor = np.maximum(ratios / 1e-6, 1e-6 / ratios)
    assert found.margins == pytest.approx(factor, rel=1e-12)
    assert "singular" in str(moved)
    exact = classify(land, points, rtol=0.0, **QUIET).sensitivity()
    assert exact.rtols == (0.0, 0.0, 2 * EPS)
    with pytest.raises(InvalidArgument, match="factor"):
        found.sensitivity(1.0)


class Two(nn.Module):
    """Two parameter tensors of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(1, dtype=torch.float64))


def test_blocks_of_parameters_can_be_convex_where_the_whole_is_a_saddle():
    def loss(m, _):
        return (m.a**2 / 2 + 3 * m.a * m.b + m.b**2).sum()

    land = Landscape(Two(), objective=loss, data=[torch.zeros(1)])
    whole, blocks = (
        classify(land, np.zeros((1, 2)), rtol=0.0, blocks=b, **QUIET) for b in (False, True)
    )
    assert whole.kinds[0] == "saddle"
    assert blocks.kinds[0] == "convex"
    assert blocks.eigenvalues[0] == pytest.approx([1, 2], rel=1e-14)
    assert "blocks" in repr(blocks)


def test_a_saved_classification_comes_back_bit_for_bit(tmp_path):
    points = np.random.default_rng(0).normal(size=(9, 3))
    points[4] = np.nan
    found = classify(quartic(), points, **QUIET)
    found.save(tmp_path / "c.h5")
    again = load(tmp_path / "c.h5")
    assert isinstance(again, CriticalPoints)
    assert arrays_of(again) == arrays_of(found)
    assert again.info == found.info
    assert repr(again) == repr(found)
    assert CriticalPoints.load(tmp_path / "c.h5").kinds.tolist() == found.kinds.tolist()


def test_another_result_is_not_loaded_as_a_classification(tmp_path):
    from pylandscape.surfaces.grids import line

    line(quartic(), np.eye(3)[0], x=(-1, 1, 3), path=tmp_path / "l.h5", **QUIET)
    with pytest.raises(FileFormatError, match="expected critical points"):
        CriticalPoints.load(tmp_path / "l.h5")


def test_eigenvalues_are_left_out_on_request():
    points = np.random.default_rng(0).normal(size=(9, 3))
    whole, lean = (classify(quartic(), points, keep=k, **QUIET) for k in (None, False))
    assert lean.eigenvalues is None
    assert lean.bounds.tobytes() == whole.bounds.tobytes()
    assert lean.index.tolist() == whole.index.tolist()
    assert lean.sensitivity() == whole.sensitivity()


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    land, path = quartic(), tmp_path / "c.h5"
    points = np.random.default_rng(0).normal(size=(200, 3))
    whole = classify(land, points, **QUIET)
    honest, seen, limit = PointEvaluator.spectra, [], [20]

    def counted(evaluator, points):
        if len(seen) > limit[0]:
            raise KeyboardInterrupt
        seen.extend(points)
        return honest(evaluator, points)

    monkeypatch.setattr(PointEvaluator, "spectra", counted)
    monkeypatch.setattr("pylandscape.runs.chunks.next_size", lambda size, seconds: 7)
    with pytest.raises(KeyboardInterrupt):
        classify(land, points, path=path, **QUIET)
    kept = len(seen)
    assert 0 < kept < 200
    assert not path.exists()
    with pytest.raises(ResumeMismatch, match="rtol"):
        classify(land, points, path=path, rtol=1e-3, **QUIET)
    limit[0] = 1000
    found = classify(land, points, path=path, **QUIET)
    assert len(seen) == 200 + 1  # one that is there is checked
    assert found.info["resumed"] == kept
    assert arrays_of(found) == arrays_of(whole)
    assert [p.name for p in tmp_path.iterdir()] == ["c.h5"]
    monkeypatch.undo()
    assert arrays_of(classify(land, points, path=path, **QUIET)) == arrays_of(whole)
    with pytest.raises(ResumeMismatch, match="points"):
        classify(land, points[::-1], path=path, **QUIET)


def test_walks_are_taken_as_they_are():
    from pylandscape.clouds.walks import gradient_walk

    walks = gradient_walk(quartic(), 3, 4, **QUIET)
    found, flat = (classify(quartic(), p, **QUIET) for p in (walks, walks.flat()))
    assert len(found) == 12
    assert arrays_of(found) == arrays_of(flat)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": np.zeros((4, 2))}, r"points: expected shape \(P, 3\), got \(4, 2\)"),
        ({"points": np.zeros(3)}, "points"),
        ({"points": np.zeros((0, 3))}, "points: expected at least one"),
        ({"points": "here"}, "points"),
        ({"rtol": 1.0}, "rtol"),
        ({"rtol": -1e-6}, "rtol"),
        ({"method": "fast"}, "method: expected one of auto, exact, lanczos"),
        ({"method": "lanczos", "blocks": True}, "blocks"),
        ({"path": "/no/such/folder/c.h5"}, "path"),
    ],
)
def test_bad_input_is_named(arguments, message):
    given = {"points": np.zeros((2, 3)), **QUIET, **arguments}
    with pytest.raises(InvalidArgument, match=message):
        classify(quartic(), given.pop("points"), **given)


def test_a_model_too_large_for_the_exact_path_says_what_it_would_need():
    theta = np.zeros(20_000)
    land = Landscape(Point(theta), objective=lambda m, _: (m.theta**2).sum(), data=[torch.zeros(1)])
    with pytest.raises(InvalidArgument, match=r"2\.98 GiB.*lanczos"):
        classify(land, theta[None], method="exact", **QUIET)


def test_results_whose_shapes_do_not_fit_are_refused():
    found = classify(quartic(), np.ones((2, 3)), **QUIET)
    fields = {name: getattr(found, name) for name in found.ARRAYS}
    for name in ("index", "losses", "eigenvalues", "bounds"):
        with pytest.raises(InvalidArgument, match=name):
            CriticalPoints(**{**fields, name: fields[name][..., :1, :][:1]}
                           if fields[name].ndim > 1 else {**fields, name: fields[name][:1]},
                           rtol=0.0, n=3)  # fmt: skip
