"""Clouds: what their dots are (methods: 2 and 4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cloud_support import quadratic, xor

import pylandscape as pl
from pylandscape.clouds.clouds import hessian_cloud, loss_gradient_cloud
from pylandscape.clouds.roughness import bumpiness, ruggedness
from pylandscape.clouds.walks import gradient_walk
from pylandscape.critical.classification import classify
from pylandscape.errors import FileFormatError, InvalidArgument
from pylandscape.results.cloud import Cloud, as_boxes
from pylandscape.results.walks import Walks

QUIET: dict[str, Any] = {"progress": False}


def walked(count: int = 4, steps: int = 6, seed: int = 0) -> Walks:
    return gradient_walk(xor(), count, steps, seed=seed, **QUIET)


def test_a_quadratic_puts_every_dot_on_its_parabola() -> None:
    land = quadratic(6, c=2.5)
    cloud = loss_gradient_cloud(land, gradient_walk(land, 20, 30, **QUIET), **QUIET)
    np.testing.assert_allclose(cloud.gradient_norms, np.sqrt(2 * 2.5 * cloud.losses), rtol=1e-12)
    assert cloud.counts() == {"convex": 600}
    np.testing.assert_allclose(cloud.bumpiness, 2.5, rtol=1e-12)
    np.testing.assert_allclose(cloud.ruggedness, 2.5, rtol=1e-12)
    np.testing.assert_array_equal(cloud.negative, 0.0)


def test_the_dots_are_those_of_classes_and_roughness() -> None:
    walks = walked()
    cloud = hessian_cloud(xor(), walks, **QUIET)
    found = classify(xor(), walks.flat(), **QUIET)
    np.testing.assert_array_equal(cloud.kinds, found.kinds)
    np.testing.assert_allclose(cloud.losses, walks.losses.ravel(), rtol=1e-13)
    np.testing.assert_allclose(cloud.gradient_norms, walks.gradient_norms.ravel(), rtol=1e-10)
    np.testing.assert_array_equal(cloud.negative, found.index / 9)
    np.testing.assert_allclose(cloud.bumpiness, bumpiness(xor(), walks.flat()).value, rtol=1e-9)
    np.testing.assert_allclose(cloud.ruggedness, ruggedness(xor(), walks.flat()).value, rtol=1e-9)
    assert (cloud.ruggedness >= np.abs(cloud.bumpiness) * (1 - 1e-9)).all()


def test_steps_and_walks_are_counted_from_zero() -> None:
    cloud = loss_gradient_cloud(xor(), walked(3, 5), "step", **QUIET)
    np.testing.assert_array_equal(cloud.steps, np.tile(np.arange(5), 3))
    np.testing.assert_array_equal(cloud.walks, np.repeat(np.arange(3), 5))


def test_colouring_by_step_needs_no_hessian(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("pylandscape.clouds.clouds.classify", never)
    cloud = loss_gradient_cloud(xor(), walked(), "step", **QUIET)
    assert cloud.kinds is None
    with pytest.raises(InvalidArgument, match="name: expected one of loss, gradient_norm, step"):
        cloud.values("kind")


def test_classes_found_before_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    walks = walked()
    critical = classify(xor(), walks, rtol=1e-3, **QUIET)
    monkeypatch.setattr("pylandscape.clouds.clouds.classify", None)
    cloud = hessian_cloud(xor(), walks, critical=critical, **QUIET)
    assert cloud.info["rtol"] == 1e-3
    np.testing.assert_array_equal(cloud.kinds, critical.kinds)
    with pytest.raises(InvalidArgument, match="critical: expected 20 points, got 24"):
        hessian_cloud(xor(), walked(4, 5), critical=critical, **QUIET)


def test_without_eigenvalues_the_curvature_is_sampled_with_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pylandscape.clouds.roughness.EXACT_ORDER", 8)
    walks = walked(1, 3)
    critical = classify(xor(), walks, keep=False, **QUIET)
    cloud = hessian_cloud(xor(), walks, critical=critical, samples=2000, **QUIET)
    exact = ruggedness(xor(), walks.flat()).value
    assert cloud.ruggedness_error is not None
    assert (np.abs(cloud.ruggedness - exact) < 4.5 * cloud.ruggedness_error).all()
    assert cloud.bumpiness is None


def test_points_need_not_be_of_walks() -> None:
    points = torch.randn(5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cloud = loss_gradient_cloud(xor(), points, **QUIET)
    assert cloud.steps is None
    np.testing.assert_allclose(cloud.losses, xor().losses(points=points), rtol=1e-12)
    array = points.reshape(1, 5, 9)
    np.testing.assert_array_equal(
        loss_gradient_cloud(xor(), array, "step", **QUIET).steps, np.arange(5)
    )
    with pytest.raises(InvalidArgument, match="color: expected walks for 'step'"):
        loss_gradient_cloud(xor(), points, "step", **QUIET)


def test_points_that_are_lost_are_counted() -> None:
    points = np.ones((4, 9))
    points[2] = np.nan
    cloud = hessian_cloud(xor(), points, color="kind", **QUIET)
    assert cloud.nonfinite == 1
    assert cloud.kinds[2] == "invalid"
    assert "1 not finite" in repr(cloud)


def test_a_box_chooses_dots() -> None:
    cloud = hessian_cloud(xor(), walked(), **QUIET)
    middle = float(np.median(cloud.losses))
    inside = cloud.inside(x=(-1.0, middle))
    np.testing.assert_array_equal(inside, cloud.losses <= middle)
    part = cloud.select(inside)
    assert len(part) == inside.sum()
    np.testing.assert_array_equal(part.kinds, cloud.kinds[inside])
    low = float(np.quantile(cloud.ruggedness, 0.3))
    both = cloud.inside(x=(-1.0, middle), z=(0.0, low))
    assert both.sum() < inside.sum()
    with pytest.raises(InvalidArgument, match="z: expected None for a flat cloud"):
        loss_gradient_cloud(xor(), walked(), **QUIET).inside(z=(0, 1))
    with pytest.raises(InvalidArgument, match="x: expected two increasing numbers"):
        cloud.inside(x=(1.0, 1.0))


def test_boxes_are_one_or_several() -> None:
    one = [{"x": (0.0, 1.0), "y": (0.0, 2.0)}]
    assert as_boxes(((0, 1), (0, 2))) == one
    assert as_boxes([((0, 1), (0, 2))]) == one
    assert as_boxes({"x": (0, 1), "y": (0, 2)}) == one
    assert as_boxes([{"y": (0, 2), "x": (0, 1)}] * 2) == one * 2
    assert as_boxes(None) == []
    with pytest.raises(InvalidArgument, match="boxes: expected ranges"):
        as_boxes([{"w": (0, 1)}])
    with pytest.raises(InvalidArgument, match="expected two increasing numbers"):
        as_boxes(((1, 0), (0, 2)))


@pytest.mark.parametrize("build", [loss_gradient_cloud, hessian_cloud])
def test_a_file_gives_back_every_bit(build: Any, tmp_path: Path) -> None:
    cloud = build(xor(), walked(), **QUIET)
    cloud.save(tmp_path / "c.h5")
    again = pl.load(tmp_path / "c.h5")
    assert isinstance(again, Cloud)
    for name in Cloud.ARRAYS:
        before, after = getattr(cloud, name), getattr(again, name)
        assert (before is None) == (after is None)
        if before is not None:
            np.testing.assert_array_equal(before, after)
    assert (again.height, again.color, again.n) == (cloud.height, cloud.color, 9)
    assert again.info["walks"]["kind"] == "gradient walk"
    assert repr(again) == repr(cloud)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    import h5py

    loss_gradient_cloud(xor(), walked(), "step", **QUIET).save(tmp_path / "c.h5")
    with h5py.File(tmp_path / "c.h5", "a") as file:
        file["pylandscape/losses"][3] += 1.0
    with pytest.raises(FileFormatError, match="do not match their checksum"):
        pl.load(tmp_path / "c.h5")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: loss_gradient_cloud(xor(), walked(), "red", **QUIET), "color: expected one of"),
        (lambda: hessian_cloud(xor(), walked(), "loss", **QUIET), "height: expected one of"),
        (lambda: loss_gradient_cloud(xor(), np.zeros((2, 5)), **QUIET), "points: expected shape"),
        (lambda: loss_gradient_cloud(xor(), np.zeros((0, 9)), **QUIET), "walks: expected at least"),
        (lambda: Cloud(np.zeros(3), np.zeros(2)), r"gradient_norms: expected shape \(3,\)"),
        (lambda: Cloud(np.zeros(3), np.zeros(3)), "color: expected one of loss, gradient_norm"),
    ],
)
def test_bad_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        call()
