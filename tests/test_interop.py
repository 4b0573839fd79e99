"""Operators, arrays and functions of other packages, in and out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl
from pylandscape import interop
from pylandscape.errors import InvalidArgument

ROUNDING = 100 * float(torch.finfo(torch.float32).eps)


class Exported:
    """An array of some library: DLPack is all that it has."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, **options: object) -> object:
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> object:
        return self._tensor.__dlpack_device__()


def problem() -> tuple[nn.Module, Tensor, Tensor, pl.Landscape]:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(20, 4), torch.randint(0, 3, (20,))
    return model, x, y, pl.Landscape(model, "cross_entropy", (x, y))


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton", "covariance"])
def test_scipy_finds_our_eigenvalues(matrix: str):
    *_, land = problem()
    operator = interop.as_scipy(land, matrix)
    top = eigsh(operator, 2, which="LA", return_eigenvectors=False)
    ours = pl.eigenpairs(land, 2, matrix=matrix, progress=False)
    assert np.allclose(np.sort(top), np.sort(ours.values), atol=ROUNDING)
    block = np.eye(land.n_params)
    assert np.allclose(operator @ block, (operator @ block).T, atol=ROUNDING)


def test_tensors_arrays_lists_and_dlpack_go_through_in_kind():
    model, _, _, land = problem()
    a, h = interop.as_tensors(land), land.hessian().float()
    v = torch.randn(land.n_params, 3)
    assert a.shape == (43, 43)
    assert a.dtype == torch.float32
    assert torch.allclose(a @ v, h @ v, atol=ROUNDING)
    assert torch.allclose(a @ v[:, 0], (h @ v)[:, 0], atol=ROUNDING)
    found = a @ v.numpy()
    assert isinstance(found, np.ndarray)
    assert np.allclose(found, h @ v, atol=ROUNDING)
    assert torch.allclose(a @ Exported(v), h @ v, atol=ROUNDING)
    pieces = zip(v.split([20, 5, 15, 3]), model.parameters(), strict=True)
    parts = [piece.reshape(*p.shape, 3) for piece, p in pieces]
    got = torch.cat([p.reshape(-1, 3) for p in a @ parts])
    assert torch.allclose(got, h @ v, atol=ROUNDING)
    single = [p[..., 0] for p in parts]
    assert [p.shape for p in a @ single] == [p.shape for p in model.parameters()]
    assert a.to_scipy().dtype == np.float32


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of curvlinops and its imports
def test_curvlinops_takes_ours_and_we_take_curvlinops():
    curvlinops = pytest.importorskip("curvlinops")
    model, x, y, land = problem()
    theirs = curvlinops.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)]
    )
    ours = interop.as_tensors(land)
    torch.manual_seed(1)
    want = curvlinops.hutchinson_trace(theirs, 10)
    torch.manual_seed(1)
    assert torch.allclose(curvlinops.hutchinson_trace(ours, 10), want, rtol=ROUNDING)
    pairs = pl.eigenpairs(theirs, 3, which="BE", progress=False)
    assert pairs.converged.all()
    assert np.allclose(
        pairs.values, pl.eigenpairs(land, 3, which="BE", progress=False).values, atol=ROUNDING
    )
    assert pl.spectrum(theirs, 2, 5, progress=False).products == 10
    assert pl.trace(ours, 43).value == pytest.approx(float(land.hessian().trace()), rel=ROUNDING)


def test_lanczos_runs_on_scipy_and_plain_functions():
    a = np.diag(np.arange(1.0, 31.0))
    operator = LinearOperator((30, 30), matvec=lambda v: a @ v, dtype=np.float64)
    tensors = interop.from_product(lambda v: torch.as_tensor(a) @ v, 30)
    arrays = interop.from_product(lambda v: a @ v, 30, like=np.ndarray)
    exported = interop.from_product(lambda v: Exported(torch.as_tensor(a) @ v), 30)
    for one in (operator, tensors, arrays, exported):
        assert np.allclose(pl.eigenpairs(one, 3, progress=False).values, [30, 29, 28])


def test_a_product_of_another_shape_is_refused():
    with pytest.raises(InvalidArgument, match=r"shape \(5,\)"):
        pl.eigenpairs(interop.from_product(lambda v: v[:2], 5), progress=False)
    with pytest.raises(InvalidArgument, match="function"):
        interop.from_product(3, 5)  # type: ignore[arg-type]


def quartic(theta: dict[str, Tensor]) -> Tensor:
    return (theta["a.w"] ** 4).sum() + theta["b"].prod()


def test_a_function_of_a_dict_has_surfaces_and_derivatives():
    params = {"a.w": torch.arange(6.0).reshape(3, 2).double(), "b": torch.ones(2).double()}
    land = interop.from_function(quartic, params)
    assert [e.name for e in land.layout.entries] == ["a.w", "b"]
    assert land.loss() == float(quartic(params))
    want = torch.diag(torch.cat([12 * params["a.w"].flatten() ** 2, torch.zeros(2)]).double())
    want[6, 7] = want[7, 6] = 1
    assert torch.allclose(land.hessian(), want)
    d1, d2 = pl.random_directions(land, 2, ignore=())
    surface = pl.plane(land, d1, d2, x=(-1, 1, 3), y=(-1, 1, 5), progress=False)
    moved = land.layout.unflatten(land.theta - d1.vector + d2.vector)
    assert surface.values[0, 4] == pytest.approx(float(quartic(moved)), rel=1e-12)


def test_a_function_of_arrays_has_surfaces_and_says_that_it_has_no_derivatives():
    def loss(theta: dict[str, np.ndarray]) -> float:
        assert isinstance(theta["w"], np.ndarray)
        return float((theta["w"] ** 2).sum())

    land = interop.from_function(loss, {"w": np.full((3, 2), 2.0)})
    assert land.loss() == 24
    with pytest.raises(InvalidArgument, match="function of tensors"):
        land.hvp(np.ones(6))


def test_a_function_takes_batches():
    x, y = torch.randn(10, 3), torch.randn(10, 1)

    def loss(theta: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.mse_loss(batch[0] @ theta["w"], batch[1])

    w = Exported(torch.randn(3, 1))
    land = interop.from_function(loss, {"w": w}, data=[(x[:8], y[:8]), (x[8:], y[8:])])
    want = F.mse_loss(x @ torch.from_dlpack(w), y)
    assert land.loss() == pytest.approx(float(want), rel=ROUNDING)


def test_a_point_may_come_through_dlpack():
    *_, land = problem()
    theta = torch.randn(land.n_params)
    assert land.loss(Exported(theta)) == land.loss(theta)


@pytest.mark.parametrize(
    "params",
    [{}, {"w": torch.ones(2, dtype=torch.int64)}, {"a": torch.ones(1), "a.b": torch.ones(1)}],
)
def test_parameters_that_are_none_are_refused(params: dict[str, Tensor]):
    with pytest.raises(InvalidArgument, match="params"):
        interop.from_function(quartic, params)


def test_vectors_of_another_shape_are_refused():
    *_, land = problem()
    a = interop.as_tensors(land)
    with pytest.raises(InvalidArgument, match=r"\(43, k\)"):
        a @ torch.ones(7)
    with pytest.raises(InvalidArgument, match="shapes"):
        a @ [torch.ones(7)]
    with pytest.raises(InvalidArgument, match="DLPack"):
        a @ "text"
