"""Flatness measures against closed forms on quadratics, and what they are invariant to."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import pylandscape as pl

MATRIX = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]], dtype=torch.float64)


class Quadratic(nn.Module):
    """L(theta) = (theta - m)^T H (theta - m) / 2 as the output of a module."""

    def __init__(self, minimum=(0.0, 0.0, 0.0), at=None):
        super().__init__()
        self.register_buffer("minimum", torch.tensor(minimum, dtype=torch.float64))
        self.theta = nn.Parameter(self.minimum.clone() if at is None else torch.tensor(at).double())

    def forward(self, x):
        d = self.theta - self.minimum
        return (0.5 * d @ MATRIX @ d).expand(len(x))


def landscape(minimum=(0.0, 0.0, 0.0), at=None):
    data = (torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    return pl.Landscape(Quadratic(minimum, at), lambda o, y: o.mean(), data)


def test_measures_of_the_hessian_are_its_own():
    found = pl.flatness(landscape(), ("lambda_max", "trace", "frobenius", "gradient_norm"))
    assert found["lambda_max"].value == pytest.approx(float(torch.linalg.eigvalsh(MATRIX)[-1]))
    assert found["trace"].value == pytest.approx(6.0)
    assert found["frobenius"].value == pytest.approx(float(MATRIX.norm()))
    assert found["gradient_norm"].value == 0.0


@pytest.mark.parametrize("kind", ["average", "average_element", "average_filter"])
def test_average_case_is_rho_squared_tr_tht_over_two_within_its_error(kind):
    minimum = (0.5, -2.0, 1.0)
    scale = {
        "average": torch.ones(3, dtype=torch.float64),
        "average_element": torch.tensor(minimum).abs().double(),
        "average_filter": torch.full((3,), math.sqrt(0.25 + 4 + 1), dtype=torch.float64),
    }[kind]
    row = pl.flatness(landscape(minimum), (kind,), rho=0.1, draws=400)[kind]
    want = 0.5 * 0.01 * float((scale * MATRIX.diagonal() * scale).sum())
    assert abs(row.value - want) < 4 * row.standard_error
    assert 0 < row.standard_error < 0.1 * want


@pytest.mark.parametrize("kind", ["worst_l2", "worst_l2_element"])
def test_worst_case_in_the_ball_is_rho_squared_lambda_max_tht_over_two(kind):
    minimum = (0.5, -2.0, 1.0)
    t = torch.eye(3).double() if kind == "worst_l2" else torch.diag(torch.tensor(minimum).abs())
    t = t.double()
    row = pl.flatness(landscape(minimum), (kind,), rho=0.1, steps=60)[kind]
    want = 0.5 * 0.01 * float(torch.linalg.eigvalsh(t @ MATRIX @ t)[-1])
    assert row.value == pytest.approx(want, rel=1e-3)
    assert row.value <= want * (1 + 1e-12)
    assert row.bound == "lower"


def test_worst_case_in_the_box_is_the_best_corner():
    row = pl.flatness(landscape(), ("worst_linf",), rho=0.2)["worst_linf"]
    corners = torch.cartesian_prod(*[torch.tensor([-0.2, 0.2], dtype=torch.float64)] * 3)
    want = float((0.5 * (corners @ MATRIX * corners).sum(1)).max())
    assert row.value == pytest.approx(want)


def test_worst_cases_rise_with_the_radius():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    land = pl.Landscape(model, "cross_entropy", (torch.randn(30, 4), torch.randint(0, 3, (30,))))
    radii = (0.01, 0.02, 0.05, 0.1)
    for kind in ("worst_l2", "worst_linf", "worst_l2_element"):
        found = pl.flatness(land, (kind,), rho=radii, steps=5, starts=2)
        values = [found[kind, r].value for r in radii]
        assert values == sorted(values)
        assert values[0] > 0


def test_critical_sharpness_of_a_quadratic_is_the_rayleigh_quotient_of_its_gradient():
    land = landscape((0.0, 0.0, 0.0), at=(1.0, -2.0, 0.5))
    g = land.gradient()
    want = float(g @ MATRIX @ g / (g @ g))
    assert pl.critical_sharpness(land) == pytest.approx(want, rel=1e-4)
    u = torch.tensor([-1.0, 1.0, 0.0]).double()
    along = float(2 * (u @ MATRIX @ u) / (-2 * (g @ u)))  # 2 / eta, eta = -2 g.u / u.Hu
    assert pl.critical_sharpness(land, u) == pytest.approx(along, rel=1e-4)


def test_critical_sharpness_where_nothing_rises_or_moves():
    falls = pl.Landscape(
        nn.Linear(1, 1, bias=False).double(), lambda o, y: -o.mean(),
        (torch.ones(2, 1).double(), torch.zeros(2, 1).double()),
    )  # fmt: skip
    assert pl.critical_sharpness(falls) == 0.0
    assert math.isnan(pl.critical_sharpness(landscape()))


def rescaled(model, c):
    """The same function: the first ReLU layer times c, the next by 1 / c."""
    other = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        other[0].weight.copy_(c * model[0].weight)
        other[0].bias.copy_(c * model[0].bias)
        other[2].weight.copy_(model[2].weight / c)
        other[2].bias.copy_(model[2].bias)
    return other


def test_adaptive_measures_do_not_see_a_rescaling_of_relu_layers_and_absolute_ones_do():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    data = (torch.randn(30, 4).double(), torch.randint(0, 3, (30,)))
    kinds = ("average_element", "average_filter", "worst_l2_element", "worst_linf_element",
             "average", "worst_l2", "trace")  # fmt: skip
    first, second = (
        pl.flatness(pl.Landscape(m, "cross_entropy", data), kinds, draws=10, steps=3, starts=2)
        for m in (model, rescaled(model, 4.0))
    )
    for kind in kinds[:4]:
        assert second[kind].value == pytest.approx(first[kind].value, rel=1e-12), kind
    for kind in kinds[4:]:
        assert abs(second[kind].value / first[kind].value - 1) > 0.01, kind


def test_draws_are_those_of_the_seed_whatever_the_blocks(monkeypatch):
    land = landscape((0.5, -2.0, 1.0))
    whole = pl.flatness(land, ("average_element",), draws=50, seed=3)["average_element"]
    monkeypatch.setattr("pylandscape.connectivity.flatness_measures._BLOCK_BYTES", 16 * 3 * 7)
    assert pl.flatness(land, ("average_element",), draws=50, seed=3)["average_element"] == whole
    other = pl.flatness(land, ("average_element",), draws=50, seed=4)["average_element"]
    assert other.value != whole.value


def test_another_point_is_taken_with_its_statistics():
    torch.manual_seed(0)
    make = lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))  # noqa: E731
    a, b = make(), make()
    for _ in range(5):
        b(torch.randn(20, 4) * 3)
    data = (torch.randn(30, 4), torch.randint(0, 3, (30,)))
    kinds = ("average", "trace", "critical")
    at = pl.flatness(pl.Landscape(a.eval(), "cross_entropy", data), kinds, theta=b.eval(), draws=5)
    own = pl.flatness(pl.Landscape(b, "cross_entropy", data), kinds, draws=5)
    assert at.loss == own.loss
    for kind in kinds:
        assert at[kind].value == pytest.approx(own[kind].value, rel=1e-6)


def test_eigen_directions_are_the_top_eigenvectors():
    land = landscape((0.5, -2.0, 1.0))
    d1, d2 = pl.eigen_directions(land, 2)
    values, vectors = torch.linalg.eigh(MATRIX)
    assert abs(float(d1.vector @ vectors[:, -1])) == pytest.approx(1.0)
    assert d2.info["eigenvalue"] == pytest.approx(float(values[-2]))
    surface = pl.plane(land, d1, d2, x=(-1, 1, 3), y=(-1, 1, 3), progress=False)
    assert surface.values[2, 1] == pytest.approx(0.5 * float(values[-1]))


def test_the_worst_direction_reaches_the_rise_that_the_table_says():
    land = landscape((0.5, -2.0, 1.0))
    d = pl.worst_direction(land, 0.1)
    rise = pl.line(land, d, x=(0, 1, 2), progress=False).values
    table = pl.flatness(land, ("worst_l2",), rho=0.1)
    assert rise[1] - rise[0] == pytest.approx(table["worst_l2"].value)
    assert d.info["norm"] <= 0.1 * (1 + 1e-12)


def test_a_table_reads_like_one():
    text = repr(pl.flatness(landscape((0.5, -2.0, 1.0)), draws=10))
    assert "worst_l2 (rho 0.05)" in text
    assert ">= " in text
    assert "+- " in text


def test_bad_input_is_named():
    land = landscape()
    with pytest.raises(pl.InvalidArgument, match="measures"):
        pl.flatness(land, ("sam",))
    for rho in (0.0, -1.0, (0.2, 0.1), (), float("nan")):
        with pytest.raises(pl.InvalidArgument, match="rho"):
            pl.flatness(land, rho=rho)
    with pytest.raises(pl.InvalidArgument, match="several rows"):
        pl.flatness(land, ("average",), rho=(0.1, 0.2), draws=2)["average"]
    with pytest.raises(pl.InvalidArgument, match="norm"):
        pl.worst_direction(land, 0.1, norm="l1")
    assert np.isnan(pl.flatness(land, ("worst_l2",))["worst_l2"].standard_error)
