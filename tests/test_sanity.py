"""The verdict: each mistake a user can make is found by its check, and a good picture passes."""

from __future__ import annotations

import numpy as np
import pytest

from pylandscape.results.curve import Curve
from pylandscape.results.sanity import EPS, check
from pylandscape.results.surface import Surface

GOOD = {
    "request": {"dtype": "float32", "bn": "eval"},
    "model_loss": 0.1,
    "theta_norm": 10.0,
    "direction_norms": [9.0, 9.5],
    "direction_cosine": 0.01,
}


def plane(
    change: dict | None = None, n: int = 21, reach: float = 1.0, f=None, **request
) -> Surface:
    axis = np.linspace(-reach, reach, n)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    values = 0.1 + 3 * x**2 + y**2 if f is None else f(x, y)
    info = {**GOOD, **(change or {}), "request": {**GOOD["request"], **request}}
    return Surface(axis, axis.copy(), values, info=info)


def levels(result) -> dict[str, str]:
    """The worst level of each check."""
    order = ["ok", "note", "warning", "error"]
    found: dict[str, str] = {}
    for level, name, _ in check(result).findings:
        found[name] = max(found.get(name, "ok"), level, key=order.index)
    return found


def message(result, name: str) -> str:
    return " ".join(m for _, n, m in check(result).findings if n == name)


def test_a_good_plane_passes_every_check():
    verdict = plane().check()
    assert verdict.ok
    assert bool(verdict)
    assert {f.level for f in verdict.findings} == {"ok"}
    assert {f.name for f in verdict.findings} == {
        "centre", "step", "angle", "finite", "range", "minimum", "resolution"
    }  # fmt: skip
    assert str(verdict).splitlines()[0] == "sanity: OK"


def test_another_centre_loss_is_an_error_that_says_both_values():
    wrong = plane({"model_loss": 0.2})
    assert levels(wrong)["centre"] == "error"
    assert not wrong.check().ok
    text = str(wrong.check())
    assert text.startswith("sanity: NOT OK (1 error)")
    assert "0.1" in text
    assert "0.2" in text


@pytest.mark.parametrize("dtype", sorted(EPS))
def test_the_centre_tolerance_follows_the_dtype(dtype):
    share = EPS[dtype] ** 0.5
    near, far = (plane({"model_loss": 0.1 * (1 + k * share)}, dtype=dtype) for k in (0.5, 4))
    assert levels(near)["centre"] == "ok"
    if dtype == "float64":  # a float32 model evaluated in float64 agrees to float32's precision
        far = plane({"model_loss": 0.1 * (1 + 4 * EPS["float32"] ** 0.5)}, dtype=dtype)
        assert "float32" in message(
            plane({"model_loss": 0.1 * (1 + 4 * share)}, dtype=dtype), "centre"
        )
    assert levels(far)["centre"] == "error"


def test_recomputed_batch_norm_explains_another_centre():
    found = plane({"model_loss": 0.2}, bn="recompute", has_batchnorm=True)
    assert levels(found)["centre"] == "note"
    assert "running statistics" in message(found, "centre")
    assert levels(found)["batchnorm"] == "ok"


def test_a_grid_without_zero_says_how_to_get_one():
    found = plane(n=20)
    assert levels(found)["centre"] == "note"
    assert "odd number" in message(found, "centre")
    assert levels(plane({"center_loss": 0.3}, n=20))["centre"] == "error"
    assert "model's own loss" in message(plane({"center_loss": 0.1}, n=20), "centre")


@pytest.mark.parametrize(
    ("norm", "level", "words"),
    [
        (0.0, "error", "is zero"),
        (1e-4, "warning", "widen"),
        (1e3, "warning", "narrow"),
        (5.0, "ok", "reaches"),
    ],
)
def test_step_lengths_are_judged_against_theta(norm, level, words):
    found = plane({"direction_norms": [norm, norm]})
    assert levels(found)["step"] == level
    assert words in message(found, "step")


@pytest.mark.parametrize(
    ("cosine", "level"), [(0.0, "ok"), (-0.6, "warning"), (-0.999, "error"), (1.0, "error")]
)
def test_angles(cosine, level):
    assert levels(plane({"direction_cosine": cosine}))["angle"] == level


def test_non_finite_share_and_where_it_begins():
    def f(x, y):
        return np.where(np.maximum(abs(x), abs(y)) > 0.75, np.nan, 0.1 + x**2 + y**2)

    found = plane(f=f)
    assert levels(found)["finite"] == "warning"
    assert "+-0.7" in message(found, "finite")
    one = plane()
    one.values[0, 0] = np.inf
    assert levels(one)["finite"] == "note"
    nothing = plane(f=lambda x, y: x * np.nan)
    assert not nothing.check().ok
    assert levels(nothing)["finite"] == "error"


def test_a_plateau_is_saturation():
    found = plane(f=lambda x, y: np.minimum(0.1 + 40 * (x**2 + y**2), 2.3))
    assert levels(found)["range"] == "warning"
    assert "saturated" in message(found, "range")


def test_a_flat_loss_is_an_error():
    found = plane(f=lambda x, y: 0.1 + 1e-8 * x)
    assert levels(found)["range"] == "error"
    assert "flat" in message(found, "range")
    assert (
        levels(plane(f=lambda x, y: 0.1 + 1e-8 * (x**2 + y**2), dtype="float64"))["range"] == "ok"
    )


def test_a_few_huge_values_ask_for_a_log_scale():
    found = plane(f=lambda x, y: 0.1 + x**2 + y**2 + 1e6 * (x > 0.95) * (y > 0.95))
    assert "log=True" in message(found, "range")


def test_a_minimum_at_the_border_is_reported():
    assert levels(plane(f=lambda x, y: 0.1 + np.exp(x)))["minimum"] == "warning"
    inner = plane(f=lambda x, y: 0.1 + (x - 0.5) ** 2 + y**2)
    assert levels(inner)["minimum"] == "note"
    assert "x = 0.5" in message(inner, "minimum")


def test_resolution():
    assert levels(plane(n=11))["resolution"] == "note"
    rough = np.random.default_rng(0)
    found = plane(f=lambda x, y: 0.1 + rough.random(x.shape))
    assert levels(found)["resolution"] == "warning"


def test_batch_norm_modes():
    assert "batchnorm" not in levels(plane())
    assert levels(plane(has_batchnorm=True))["batchnorm"] == "ok"
    assert levels(plane(has_batchnorm=True, bn="batch"))["batchnorm"] == "note"
    x = np.linspace(-0.5, 1.5, 41)
    between = Curve(
        x,
        (x - 1) ** 2,
        kind="interpolation",
        info={"request": {"bn": "eval", "has_batchnorm": True}},
    )
    assert levels(between)["batchnorm"] == "warning"
    assert "recompute" in message(between, "batchnorm")


def test_ends_of_an_interpolation_are_compared_with_the_vertices():
    x = np.linspace(-0.5, 1.5, 41)
    for losses, level in (([1.0, 0.0], "ok"), ([1.0, 0.3], "error")):
        found = Curve(x, (x - 1) ** 2, kind="interpolation", info={"vertex_losses": losses})
        assert levels(found)["vertices"] == level
    a = np.linspace(0, 1, 21)
    values = np.add.outer(a, 2 * a) + 1
    square = Surface(a, a, values, kind="bilinear", info={"vertex_losses": [4.0, 3.0, 2.0, 1.0]})
    assert levels(square)["vertices"] == "ok"


def test_a_result_without_provenance_is_judged_by_its_values():
    verdict = Curve(np.linspace(-1, 1, 31), np.linspace(-1, 1, 31) ** 2).check()
    assert verdict.ok
    assert {f.name for f in verdict.findings} == {"finite", "range", "minimum", "resolution"}


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (3, 1)])
def test_small_grids_get_a_verdict(shape):
    nx, ny = shape
    values = np.arange(nx * ny, dtype=float).reshape(shape) + 1
    assert str(Surface(np.arange(nx) * 1.0, np.arange(ny) * 1.0, values).check())
