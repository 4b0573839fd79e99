"""Products by differences of gradients and their bound; the rounding of half-precision models;
blocks of parameters by pattern."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.engines.differences import LINEAR
from pylandscape.errors import InvalidArgument
from pylandscape.theta import checks


def net(last: type[nn.Module] = nn.Tanh) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(9, 24), nn.GELU(), nn.Linear(24, 16), last(), nn.Linear(16, 4))


def data(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 9, generator=generator).to(dtype)
    return x, torch.randint(4, (64,), generator=generator)


@pytest.mark.parametrize(
    ("dtype", "engine"),
    [
        (torch.float32, "torch"),
        (torch.bfloat16, "torch"),
        (torch.float64, "auto"),
        pytest.param(torch.float32, "auto", marks=pytest.mark.ci),
        pytest.param(torch.float64, "torch", marks=pytest.mark.ci),
    ],
)
def test_a_product_by_differences_lies_within_its_own_bound(
    dtype: torch.dtype, engine: str
) -> None:
    model = net().to(dtype)
    x, y = data(dtype)
    land = pl.Landscape(model, "cross_entropy", (x, y), engine=engine)
    exact = pl.Landscape(net().to(dtype), "cross_entropy", (x.double(), y), dtype=torch.float64)
    v = torch.randn(20, land.n_params, generator=torch.Generator().manual_seed(2))
    want = exact.hvp(v)
    got, bounds = land.hvp_by_differences(v)
    errors = torch.linalg.vector_norm(got - want, dim=1)
    assert bool((errors <= bounds).all())
    assert float(bounds.median()) <= 10 * float(errors.median())
    small = {torch.float32: 2e-3, torch.bfloat16: 0.5, torch.float64: 1e-7}[dtype]
    assert float((errors / torch.linalg.vector_norm(want, dim=1)).max()) < small
    one, bound = land.hvp_by_differences(v[3])
    assert torch.equal(one, got[3])
    assert torch.equal(bound, bounds[3])


def test_zero_vectors_and_a_theta_of_zeros_have_their_products() -> None:
    land = pl.Landscape(nn.Linear(3, 1), "mse", (torch.randn(5, 3), torch.randn(5, 1)))
    v = torch.stack([torch.zeros(4), torch.ones(4)])
    got, bounds = land.hvp_by_differences(v, theta=torch.zeros(4))
    assert torch.equal(got[0], torch.zeros(4, dtype=torch.float64))
    assert bounds[0] == 0
    assert torch.allclose(got[1], land.hvp(v[1]), rtol=1e-4)


def scaled_away() -> nn.Module:
    """A gradient that is far from linear: a norm behind weights of a hundredth."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 4))
    with torch.no_grad():
        model[0].weight *= 0.01
    return model.bfloat16()


def test_steps_are_short_enough_for_a_gradient_that_is_not_linear() -> None:
    x, y = data(torch.bfloat16)
    land = pl.Landscape(scaled_away(), "cross_entropy", (x, y), engine="torch")
    exact = pl.Landscape(
        scaled_away(), "cross_entropy", (x.double(), y), engine="torch", dtype=torch.float64
    )
    v = torch.randn(20, land.n_params, generator=torch.Generator().manual_seed(2))
    want = exact.hvp(v)
    got, bounds = land.hvp_by_differences(v)
    errors = torch.linalg.vector_norm(got - want, dim=1)
    assert bool((errors <= bounds).all())
    assert float((errors / torch.linalg.vector_norm(want, dim=1)).max()) < 0.2


def test_a_product_that_no_step_gives_is_said_to_have_no_bound() -> None:
    """Of a slope of 1000 a rounding to bfloat16 is larger than the change by a curvature of 1."""

    def steep(model: nn.Module, batch: Tensor) -> Tensor:
        w = model.weight
        return (1000 * w * batch).sum() + 0.5 * (w**2).sum()

    torch.manual_seed(0)
    batch, model = torch.randn(1, 9).bfloat16(), nn.Linear(9, 1, bias=False).bfloat16()
    notes = []
    for dtype in (None, torch.float32):
        land = pl.Landscape(
            model, objective=steep, data=[batch.to(dtype)], engine="torch", dtype=dtype,
            products="differences",
        )  # fmt: skip
        notes.append(pl.spectrum(land, 1, 2, progress=False).info["notes"][0])
        assert (land.worst_product > LINEAR) == (dtype is None)
    assert "whatever the step" in notes[0]
    assert "dtype=torch.float32" in notes[0]
    assert "off by at most" in notes[1]


def test_what_has_no_second_derivative_names_the_way_by_differences() -> None:
    torch.manual_seed(0)
    x, y = data(torch.float64)

    def model() -> nn.Module:
        return net(nn.Hardsigmoid).double()

    land = pl.Landscape(model(), "cross_entropy", (x, y), engine="torch")
    with pytest.raises(InvalidArgument, match=r"hardsigmoid.*products='differences'"):
        land.hvp(torch.ones(land.n_params))
    other = pl.Landscape(model(), "cross_entropy", (x, y), engine="torch", products="differences")
    assert "differences" in str(other.engine_report())
    v = torch.randn(other.n_params, dtype=torch.float64)
    got = other.hvp(v)
    assert torch.equal(got, other.hvp_by_differences(v)[0])
    assert 0 < other.worst_product < 1e-3
    step = 1e-6
    slope = (other.gradient(other.theta + step * v) - other.gradient(other.theta - step * v)) / (
        2 * step
    )
    assert (got - slope).norm() < 1e-4 * slope.norm()
    found = pl.spectrum(other, 1, 6, progress=False)
    assert any("central differences" in note for note in found.info["notes"])
    pairs = pl.eigenpairs(other, 1, progress=False)
    assert any("of its norm" in note for note in pairs.info["notes"])
    assert other.describe()["products"] == "differences"
    assert "products" not in land.describe()
    with pytest.raises(InvalidArgument, match="products: expected 'exact' or 'differences', got 1"):
        pl.Landscape(model(), "cross_entropy", (x, y), products=1)  # type: ignore[arg-type]


def test_compiled_products_are_not_taken_where_differences_are_asked_for() -> None:
    x, y = data(torch.float64)
    exact, other = (
        pl.Landscape(net().double(), "cross_entropy", (x, y), products=p)
        for p in ("exact", "differences")
    )
    assert other.engine == "native"
    a, b = (pl.eigenpairs(land, 2, progress=False).values for land in (exact, other))
    assert np.allclose(a, b, rtol=1e-5)
    assert not np.array_equal(a, b)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.ci)]
)
def test_the_rounding_of_a_half_precision_model_is_measured_and_told(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    x, y = data(dtype)
    land = pl.Landscape(model, "cross_entropy", (x, y))
    (d,) = pl.random_directions(land, 1, seed=3)
    spacing = torch.finfo(dtype).eps
    fine = np.linspace(-20 * spacing, 20 * spacing, 201)
    curve = pl.line(land, d, fine, progress=False)
    exact = pl.Landscape(net().to(dtype), "cross_entropy", (x.double(), y), dtype=torch.float64)
    smooth = pl.line(exact, d.vector.double(), fine, progress=False)
    noise = float(np.std(curve.values - smooth.values))
    assert 1 / 3 < curve.info["rounding_noise"] / noise < 3
    name = str(dtype).removeprefix("torch.")
    wide = pl.line(land, d, (-1, 1, 21), progress=False).check()
    assert f"{name}: its rounding scatters" in str(wide)
    assert wide.ok
    near = pl.line(land, d, (-spacing, spacing, 21), progress=False).check()
    assert not near.ok
    assert "it shows rounding" in str(near)
    converted = pl.Landscape(model, "cross_entropy", (x.float(), y), dtype=torch.float32)
    assert "rounding_noise" not in pl.line(converted, d, (-1, 1, 3), progress=False).info


def test_full_precision_models_have_no_rounding_finding() -> None:
    x, y = data(torch.float32)
    land = pl.Landscape(net(), "cross_entropy", (x, y))
    (d,) = pl.random_directions(land, 1)
    assert "rounding scatters" not in str(pl.line(land, d, (-1, 1, 21), progress=False).check())


class Layered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        part = lambda: nn.ModuleDict({"attn": nn.ModuleDict({"q": nn.Linear(3, 3)}),  # noqa: E731
                                      "mlp": nn.Linear(3, 3)})  # fmt: skip
        self.h = nn.ModuleList([part(), part()])
        self.out = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Any:
        for each in self.h:
            x = torch.tanh(each["mlp"](torch.tanh(each["attn"]["q"](x))))
        return self.out(x)


def test_blocks_of_parameters_are_named_by_patterns() -> None:
    torch.manual_seed(0)
    land = pl.Landscape(Layered(), "mse", (torch.randn(6, 3), torch.randn(6, 1)))

    def sizes(**options: Any) -> dict[str, int]:
        found = pl.layer_spectra(land, 1, 2, progress=False, **options)
        return {name: s.n for name, s in found.items()}

    assert sizes(blocks="h.*.attn.*") == {"h.0.attn": 12, "h.1.attn": 12}
    assert sizes(blocks=["h.*", "out.bias"]) == {"h": 48, "out.bias": 1}
    assert sizes(blocks=["h.*.*.weight"]) == {
        "h.0.attn.q.weight": 9, "h.0.mlp.weight": 9, "h.1.attn.q.weight": 9, "h.1.mlp.weight": 9,
    }  # fmt: skip
    assert sizes(blocks={"all": "h.*.mlp.*", "ends": ["out.*", "h.0.*"]}) == {"all": 24, "ends": 28}
    assert sizes(params=["h.0.*"]) == {"h.0.attn.q": 12, "h.0.mlp": 12}
    block = pl.layer_spectra(land, 1, 12, blocks="h.*.attn.*", progress=False)["h.1.attn"]
    names = ["h.1.attn.q.weight", "h.1.attn.q.bias"]
    own = pl.spectrum(land, 1, 12, params=names, progress=False)
    assert np.array_equal(block.nodes, own.nodes)
    with pytest.raises(
        InvalidArgument, match=r"'attn\.\*' matches no parameter; '\*attn\.\*' does"
    ):
        sizes(blocks="attn.*")
    with pytest.raises(InvalidArgument, match="blocks, params: expected at most one"):
        sizes(blocks="h.*", params=["h.*"])


def test_a_landscape_says_what_it_needs_before_it_takes_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Linear(64, 64)
    x, y = torch.randn(2, 64), torch.randn(2, 64)
    size = 4 * sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(checks, "free_memory", lambda device: 2 * size - 1)
    with pytest.raises(InvalidArgument, match=r"needs .* GiB of memory beside it .*copy=False"):
        pl.Landscape(model, "mse", (x, y))
    with caplog.at_level(logging.INFO, logger="pylandscape"):
        pl.Landscape(model, "mse", (x, y), copy=False)
    assert "are free on cpu" in caplog.text
    with pytest.raises(InvalidArgument, match="needs"):
        pl.Landscape(model, "mse", (x.double(), y.double()), dtype=torch.float64, copy=False)
    monkeypatch.undo()
    assert 1 << 20 < checks.free_memory(torch.device("cpu")) < 1 << 50
