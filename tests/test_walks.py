"""Progressive gradient walks and their baselines (methods: 1)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cloud_support import absolute_sum, quadratic, xor
from torch import nn

import pylandscape as pl
from pylandscape.clouds.walks import (
    MACRO,
    MICRO,
    gradient_walk,
    progressive_random_walk,
    random_walk,
)
from pylandscape.errors import InvalidArgument, ResumeMismatch

QUIET: dict[str, Any] = {"progress": False}
PUBLISHED = {  # mean loss, XOR 2-2-1 sigmoid, b = 10, 100 walks: micro, macro
    "random": (0.457, 0.457),
    "progressive": (0.451, 0.450),
    "bounded": (0.092, 0.174),
    "unbounded": (0.098, 0.146),
}
SAMPLERS: dict[str, Any] = {
    "random": random_walk,
    "progressive": progressive_random_walk,
    "bounded": lambda *a, **k: gradient_walk(*a, bounded=True, **k),
    "unbounded": gradient_walk,
}


@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.parametrize("size", [0, 1], ids=["micro", "macro"])
def test_mean_losses_are_the_published_ones(kind: str, size: int) -> None:
    found = SAMPLERS[kind](xor(), 100, bound=10.0, **(MICRO, MACRO)[size], **QUIET)
    assert found.points.shape == (100, (1000, 100)[size], 9)
    assert abs(found.losses.mean() - PUBLISHED[kind][size]) <= 0.03


@pytest.mark.parametrize("kind", PUBLISHED)
def test_no_component_moves_further_than_the_longest_step(kind: str) -> None:
    found = SAMPLERS[kind](xor(), 20, 50, 2.0, 0.07, **QUIET)
    moves = np.abs(np.diff(found.points, axis=1))
    assert moves.max() <= 0.07 * 4.0 * (1 + 4 * np.finfo(float).eps)
    assert moves.max() > 0.95 * 0.07 * 4.0


def test_a_gradient_walk_moves_every_component_against_its_derivative() -> None:
    land = xor()
    found = gradient_walk(land, 5, 20, **QUIET)
    for walk in found.points:
        for before, after in pairwise(walk):
            g = land.gradient(torch.as_tensor(before)).numpy()
            assert ((after - before) * g <= 0.0).all()


def test_the_loss_falls_on_the_absolute_sum_until_a_component_is_near_zero() -> None:
    found = gradient_walk(absolute_sum(6), 50, 100, 1.0, 0.02, **QUIET)
    far = np.abs(found.points[:, :-1]).min(axis=2) > 0.04
    falls = np.diff(found.losses, axis=1) < 0.0
    assert far.any()
    assert falls[far].all()


@pytest.mark.parametrize("kind", ["random", "progressive", "bounded"])
@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_bounded_walks_stay_within_the_bound(kind: str, fraction: float) -> None:
    found = SAMPLERS[kind](xor(), 20, 100, 3.0, fraction, **QUIET)
    assert np.abs(found.points).max() <= 3.0
    assert np.abs(found.points).max() > 2.8


def test_unbounded_walks_leave() -> None:
    found = random_walk(xor(), 20, 100, 1.0, bounded=False, **QUIET)
    assert np.abs(found.points).max() > 1.5
    found = progressive_random_walk(xor(), 20, 100, 1.0, bounded=False, **QUIET)
    assert np.abs(found.points[:, -1]).min() > 5.0


def test_a_progressive_random_walk_turns_at_bounds_only() -> None:
    found = progressive_random_walk(xor(), 20, 200, 1.0, 0.1, **QUIET)
    moves = np.sign(np.diff(found.points, axis=1))
    turned = moves[:, 1:] != moves[:, :-1]
    assert turned.any()
    assert np.abs(found.points[:, 1:-1][turned]).min() > 1.0 - 0.2


@pytest.mark.parametrize(("tie", "signs"), [("plus", {1}), ("stay", {0}), ("random", {-1, 1})])
def test_a_zero_derivative_moves_as_the_tie_rule_says(tie: str, signs: set[int]) -> None:
    found = gradient_walk(quadratic(4, used=2), 10, 30, tie=tie, **QUIET)
    moves = np.sign(np.diff(found.points, axis=1))
    assert set(moves[..., 2:].ravel().astype(int)) == signs
    assert set(moves[..., :2].ravel().astype(int)) == {-1, 1}


def test_starts_are_uniform_on_the_cube() -> None:
    starts = gradient_walk(xor(), 2000, 1, 2.0, **QUIET).points.ravel()
    counts = np.histogram(starts, 10, (-2.0, 2.0))[0]
    assert counts.sum() == 18_000
    assert np.abs(counts / 1800 - 1).max() < 0.1


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_walk_does_not_change_with_the_number_of_walks_and_steps(kind: str) -> None:
    few = SAMPLERS[kind](xor(), 3, 20, seed=5, **QUIET)
    many = SAMPLERS[kind](xor(), 11, 50, seed=5, **QUIET)
    np.testing.assert_allclose(many.points[:3, :20], few.points, rtol=1e-12)
    np.testing.assert_allclose(many.losses[:3, :20], few.losses, rtol=1e-12)
    assert not np.array_equal(many.points[0], many.points[1])
    other = SAMPLERS[kind](xor(), 3, 20, seed=6, **QUIET)
    assert np.abs(other.points - few.points).max() > 0.1


def test_losses_and_norms_belong_to_the_points() -> None:
    land = xor()
    for sample in SAMPLERS.values():
        found = sample(land, 4, 6, **QUIET)
        norms = [float(land.gradient(torch.as_tensor(p)).norm()) for p in found.flat()]
        np.testing.assert_allclose(found.losses.ravel(), land.losses(points=found.flat()),
                                   rtol=1e-12)  # fmt: skip
        np.testing.assert_allclose(found.gradient_norms.ravel(), norms, rtol=1e-10)


def test_a_float32_model_is_walked_in_float64() -> None:
    single, double = xor(torch.float32), xor()
    a, b = gradient_walk(single, 5, 20, **QUIET), gradient_walk(double, 5, 20, **QUIET)
    assert a.points.dtype == a.losses.dtype == np.float64
    np.testing.assert_allclose(a.losses, b.losses, rtol=1e-12)


def test_given_starts_are_the_first_points() -> None:
    starts = np.random.default_rng(0).normal(size=(3, 9))
    found = gradient_walk(xor(), starts=torch.as_tensor(starts), steps=4, **QUIET)
    np.testing.assert_array_equal(found.points[:, 0], starts)


def test_a_derivative_that_is_not_a_number_stops_its_walk_only() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(torch.ones(1, dtype=torch.float64))

    land = pl.Landscape(Root(), objective=lambda m, _: m.theta.sum().sqrt(), data=[torch.ones(1)])
    found = gradient_walk(land, steps=5, starts=[[9.0], [-1.0]], **QUIET)
    assert np.isfinite(found.points[0]).all()
    assert found.points[1, 0, 0] == -1.0
    assert np.isnan(found.points[1, 1:]).all()
    assert found.nonfinite == 5
    assert "5 points not finite" in repr(found)


def test_a_file_gives_back_every_bit(tmp_path: Path) -> None:
    found = gradient_walk(xor(), 3, 5, path=tmp_path / "w.h5", **QUIET)
    again = pl.load(tmp_path / "w.h5")
    assert type(again) is type(found)
    for name in ("points", "losses", "gradient_norms"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    assert again.info["request"] == found.info["request"]
    assert again.info["request"]["kind"] == "gradient walk"
    with pytest.raises(ResumeMismatch, match="steps: file 5, request 6"):
        gradient_walk(xor(), 3, 6, path=tmp_path / "w.h5", **QUIET)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bounded": True, "bound": 0.5, "fraction": 0.4},
        {"tie": "random"},
        {"tie": "stay"},
        {"seed": (1 << 64) - 1, "starts": np.linspace(-2, 2, 19 * 15).reshape(19, 15)},
    ],
    ids=str,
)
def test_the_core_takes_the_steps_that_are_written_in_python(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    x, y = torch.rand(11, 2), torch.rand(11, 1)
    model = nn.Sequential(
        nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)
    )  # with dead units
    land = pl.Landscape(model, "mse", (x, y))
    found = gradient_walk(land, 19, 33, **options, **QUIET)
    with monkeypatch.context() as patch:
        patch.setattr(type(land.point_evaluator()), "walker", None)
        want = gradient_walk(land, 19, 33, **options, **QUIET)
    np.testing.assert_array_equal(found.points, want.points)
    np.testing.assert_array_equal(found.losses, want.losses)
    np.testing.assert_allclose(found.gradient_norms, want.gradient_norms, rtol=1e-14)


def test_gradients_that_torch_alone_knows_are_asked_for_in_the_middle_of_a_walk() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.inner(x)).sqrt().sum(1, keepdim=True)

    torch.manual_seed(0)
    land = pl.Landscape(Root(), "mse", (torch.rand(5, 2), torch.rand(5, 1)))
    found = gradient_walk(land, 9, 12, **QUIET)
    want_losses, want = land.point_evaluator().gradients(found.points.reshape(-1, 6))
    np.testing.assert_array_equal(found.losses.ravel(), want_losses)
    norms = np.linalg.norm(want, axis=1)
    np.testing.assert_allclose(found.gradient_norms.ravel(), norms, rtol=1e-14)


@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.parametrize("at", [1, 7])
def test_an_interrupted_walk_goes_on_to_the_same_points(
    kind: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pylandscape.clouds import walk_steps
    from pylandscape.engines.points.native import NativePoints

    monkeypatch.setattr(walk_steps, "HELD", 5 * 3 * 9)  # blocks of five steps
    monkeypatch.setattr(walk_steps, "BLOCK_SECONDS", 0.0)  # the core takes one step at a time
    options = {"tie": "random"} if "bounded" in kind else {}
    whole = SAMPLERS[kind](xor(), 3, 12, **options, **QUIET)
    owner: Any = NativePoints if "bounded" in kind else walk_steps.Advance
    name = "walk" if "bounded" in kind else "_evaluate"
    work = getattr(owner, name)
    calls = 0

    def stopping(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == (at if "bounded" in kind else 2):
            raise KeyboardInterrupt
        return work(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stopping)
        with pytest.raises(KeyboardInterrupt):
            SAMPLERS[kind](xor(), 3, 12, path=tmp_path / "w.h5", **options, **QUIET)
    kept = tmp_path / "w.h5.lanczos"
    assert kept.exists() == (at > 1 or "bounded" not in kind)
    found = SAMPLERS[kind](xor(), 3, 12, path=tmp_path / "w.h5", **options, **QUIET)
    np.testing.assert_array_equal(found.points, whole.points)
    np.testing.assert_array_equal(found.losses, whole.losses)
    assert not kept.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"walks": 0}, "walks: expected at least 1, got 0"),
        ({"steps": 2.5}, "steps: expected an integer, got 2.5"),
        ({"bound": -1.0}, "bound: expected a positive number, got -1.0"),
        ({"fraction": float("nan")}, "fraction: expected a positive number, got nan"),
        ({"fraction": 0.6, "bounded": True}, "fraction: expected at most 0.5"),
        ({"tie": "minus"}, "tie: expected one of plus, random, stay, got 'minus'"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"seed": 1 << 64}, "seed: expected a 64-bit integer"),
        ({"starts": np.zeros((2, 8))}, r"starts: expected shape \(P, 9\), got \(2, 8\)"),
        ({"starts": np.full((1, 9), np.nan)}, "starts: expected finite numbers"),
        ({"starts": np.full((1, 9), 2.0), "bounded": True}, r"starts: expected numbers in \[-1, 1"),
        ({"starts": "here"}, "starts: expected numbers"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        gradient_walk(xor(), **options, **QUIET)
