"""Directions that are not stored: the same bits as stored ones, and no memory for them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.errors import InvalidArgument, LayoutMismatch
from pylandscape.surfaces import grids
from pylandscape.theta import directions, pieces
from pylandscape.theta.directions import NORMALIZATIONS
from pylandscape.theta.pieces import Random, Row, Rows, Stored, Tensors, write_sum

DTYPES = [torch.float32, torch.float64]
AXIS = (-1, 1, 3)


class Mixed(nn.Module):
    """Filters of one chunk and of several, a norm layer, a scalar, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(40_000, 2)  # rows longer than a chunk of the sums
        self.norm = nn.LayerNorm(2)
        self.mid = nn.Linear(2, 33)
        self.head = nn.Linear(33, 3)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mid(self.norm(self.wide(x))))) * self.scale


def landscape(model: nn.Module | None = None, **options: Any) -> pl.Landscape:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4, 40_000, generator=generator)
    y = torch.randint(3, (4,), generator=generator)
    dtype = options.get("dtype")
    options = {"engine": "torch", **options}
    model = Mixed() if model is None else model
    return pl.Landscape(model, nn.CrossEntropyLoss(), (x.to(dtype), y), **options)


@pytest.fixture(scope="module")
def land() -> pl.Landscape:
    torch.manual_seed(0)
    return landscape()


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 1 << 14)
    monkeypatch.setattr(pieces, "WRITTEN", 1 << 14)


@pytest.fixture(scope="module")
def wide() -> pl.Landscape:
    torch.manual_seed(0)
    return landscape(dtype=torch.float64)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.usefixtures("small_pieces")
def test_a_direction_that_is_not_stored_has_the_bits_of_the_stored_one(
    normalize: str | None, double: bool, land: pl.Landscape, wide: pl.Landscape
) -> None:
    ignore = () if double else ("bias", "norm")
    land = wide if double else land
    asked: dict[str, Any] = {"normalize": normalize, "ignore": ignore, "seed": 5}
    stored = pl.random_directions(land, 2, **asked)
    named = pl.random_directions(land, 2, **asked, stored=False)
    for a, b in zip(stored, named, strict=True):
        assert "not stored" in repr(b)
        assert torch.equal(a.vector.view(torch.uint8), b.vector.view(torch.uint8))
        assert pieces.digest_of(b.row) == pieces.digest_of(a.vector)
        assert b.info["norm"] == pytest.approx(a.info["norm"], rel=1e-12)
        assert {**b.info, "norm": 0} == {**a.info, "norm": 0}
        for begin, end in [
            (0, 1),
            (5, 20_011),
            (39_999, 40_001),
            (land.n_params - 7, land.n_params),
        ]:
            assert torch.equal(b.row.piece(begin, end), a.vector[begin:end])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_has_the_same_bits_in_whatever_pieces_it_is_written(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(2, 30_011, generator=generator, dtype=dtype)
    base = torch.randn(30_011, generator=generator, dtype=dtype)
    c = [0.3, -1.7]
    want = base.clone()
    for factor, row in zip(c, d, strict=True):
        want += torch.tensor(factor, dtype=dtype) * row
    out = torch.empty_like(base)
    write_sum(out, 0, Stored(base), [Stored(row) for row in d], c)
    assert torch.equal(out, want)
    for begin, end in [(0, 13), (13, 20_000), (20_000, 30_011)]:
        part = torch.empty(end - begin, dtype=dtype)
        write_sum(part, begin, Stored(base), [Stored(row) for row in d], c)
        assert torch.equal(part, want[begin:end])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["filter", "weight", "none"])
def test_directions_that_are_drawn_in_one_pass_sum_to_the_same_bits(
    mode: str, dtype: torch.dtype
) -> None:
    n, gap = 600_011, 70_000  # beyond what goes past the cache; between gaps
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(n, generator=generator, dtype=dtype)
    theta = Stored(torch.randn(n, generator=generator, dtype=dtype))
    edges = torch.arange(5, n - gap, 2_999)
    segments = torch.stack([edges[:-1], edges[1:]], dim=1)
    apart = segments[::3]
    rows = [Random(theta, n, own, mode, 7, i) for i, own in enumerate([segments] * 3 + [apart] * 2)]
    other = Stored(torch.randn(n, generator=generator, dtype=dtype))
    for used in (rows[:1], rows[:3], rows, [*rows[:2], other, rows[2]], [other, rows[3]]):
        c = torch.randn(len(used), generator=generator, dtype=torch.float64).tolist()
        want = base.clone()
        for factor, row in zip(c, used, strict=True):
            want += torch.tensor(factor, dtype=dtype) * row.whole()
        for begin, end in [(0, n), (64, 64), (3, 4), (1_999, 530_001), (n - gap - 77, n)]:
            out = torch.full((end - begin + 1,), -1, dtype=dtype)
            write_sum(out[:-1], begin, Stored(base), used, c)
            assert torch.equal(out[:-1], want[begin:end])
            assert out[-1] == -1
            same = base[begin:end].clone()
            for row, factor in zip(used, c, strict=True):
                row.add_to(same, factor, begin)
            assert torch.equal(same, want[begin:end])


@pytest.mark.parametrize("flat", [True, False])
def test_lines_and_planes_have_the_same_bits(
    flat: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not flat:
        monkeypatch.setattr("pylandscape.engines.eager_parameters._FLAT", 0)
    torch.manual_seed(0)
    land = landscape()
    stored, named = (pl.random_directions(land, 2, seed=1, stored=s) for s in (True, False))
    path = tmp_path / "plane.h5"
    a = pl.plane(land, *stored, AXIS, AXIS, path=path, progress=False)
    b = pl.plane(land, *named, AXIS, AXIS, progress=False)
    assert np.array_equal(a.values, b.values)
    assert pl.plane(land, *named, AXIS, AXIS, path=path, progress=False).info == a.info  # its file
    for name in ("center_loss", "model_loss"):
        assert b.info[name] == a.info[name]
    for name in ("direction_norms", "direction_cosine", "theta_norm"):
        assert b.info[name] == pytest.approx(a.info[name], rel=1e-12, abs=1e-15)
    assert a.frame is not None
    assert b.frame is not None
    assert torch.equal(a.frame.directions, b.frame.directions)
    assert torch.equal(a.frame.theta, b.frame.theta)
    mixed = pl.plane(land, stored[0], named[1], AXIS, AXIS, progress=False)
    assert np.array_equal(mixed.values, a.values)
    off = np.array([0.5, 1.0])
    curve = pl.line(land, named[0], off, progress=False)
    assert np.array_equal(curve.values, pl.line(land, stored[0], off, progress=False).values)
    assert curve.info["center_loss"] == land.loss()


def test_the_native_engine_takes_them_too() -> None:
    x, y = torch.randn(8, 5), torch.randint(3, (8,))
    land = pl.Landscape(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)),
                        "cross_entropy", (x, y), engine="native")  # fmt: skip
    stored, named = (pl.random_directions(land, 2, seed=1, stored=s) for s in (True, False))
    for build in (lambda d: pl.plane(land, *d, AXIS, AXIS, progress=False),
                  lambda d: pl.convexity(land, *d, AXIS, AXIS, progress=False)):  # fmt: skip
        a, b = build(stored), build(named)
        assert all(np.array_equal(a.metrics[k], b.metrics[k]) for k in a.metrics)
    assert torch.equal(pl.as_directions(land, named)[0], pl.as_directions(land, stored)[0])


def test_large_models_do_not_store_directions_unless_asked(
    land: pl.Landscape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directions, "LARGE", land.n_params)
    assert "not stored" in repr(pl.random_directions(land, 1)[0])
    assert "not stored" not in repr(pl.random_directions(land, 1, stored=True)[0])
    assert "not stored" not in repr(pl.random_directions(land, 1, orthogonal=True)[0])
    monkeypatch.setattr(directions, "LARGE", land.n_params + 1)
    assert "not stored" not in repr(pl.random_directions(land, 1)[0])


@pytest.mark.parametrize("kind", ["module", "state", "pt", "safetensors"])
def test_solutions_are_read_tensor_by_tensor(
    kind: str, land: pl.Landscape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    other = Mixed()
    given: Any = other
    if kind == "state":
        given = other.state_dict()
    elif kind == "pt":
        given = tmp_path / "other.pt"
        torch.save(other.state_dict(), given)
    elif kind == "safetensors":
        given = tmp_path / "other.safetensors"
        pytest.importorskip("safetensors.torch").save_file(other.state_dict(), given)
    want = pl.interpolate(land, [land.model, given], (-0.5, 1.5, 5), progress=False)
    monkeypatch.setattr(grids, "LARGE", 1)
    read = grids._solutions(land, [land.model, given])
    assert isinstance(read, Rows)
    assert all(isinstance(row, Tensors) for row in read)
    found = pl.interpolate(land, [land.model, given], (-0.5, 1.5, 5), progress=False)
    assert np.array_equal(found.values, want.values)
    assert np.array_equal(found.info["vertex_losses"], want.info["vertex_losses"])
    assert np.allclose(found.info["vertex_distances"], want.info["vertex_distances"], rtol=1e-12)
    step = pl.target_direction(land, given, stored=False)
    assert torch.equal(step.vector, pl.target_direction(land, given).vector)
    a, b = (pl.line(land, d, AXIS, progress=False) for d in (step, step.vector))
    assert np.array_equal(a.values, b.values)


def test_half_precision_is_perturbed_in_float32_and_rounded_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).bfloat16()
    x, y = torch.randn(5, 6, dtype=torch.bfloat16), torch.randint(3, (5,))
    land = pl.Landscape(model, "cross_entropy", (x, y), engine="torch")
    stored, named = (pl.random_directions(land, 1, seed=1, stored=s) for s in (True, False))
    a, b = (pl.line(land, *d, AXIS, progress=False) for d in (stored, named))
    assert np.array_equal(a.values, b.values)
    point = (land.theta + stored[0].vector).bfloat16()
    with torch.no_grad():
        nn.utils.vector_to_parameters(point, model.parameters())
        assert a.values[2] == float(nn.functional.cross_entropy(model(x).double(), y))


def test_without_a_copy_the_point_is_the_modules_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pylandscape.engines.eager_parameters._FLAT", 0)
    torch.manual_seed(0)
    model = Mixed()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    land, own = landscape(model), landscape(model, copy=False)
    for l in (land, own):  # noqa: E741
        assert torch.equal(l.theta, nn.utils.parameters_to_vector(model.parameters()))
    d = pl.random_directions(own, 2, seed=1, stored=False)
    found = pl.plane(own, *d, AXIS, AXIS, progress=False)
    want = pl.plane(land, *pl.random_directions(land, 2, seed=1), AXIS, AXIS, progress=False)
    assert np.array_equal(found.values, want.values)
    assert torch.equal(own.gradient(), land.gradient())
    assert own.describe() == land.describe()
    assert pl.line(own, d[0].vector, AXIS, progress=False).values[1] == own.loss()
    for k, v in model.state_dict().items():
        assert torch.equal(v, before[k])
    with torch.no_grad():
        model.head.bias[0] += 1e-3
    with pytest.raises(InvalidArgument, match=r"head\.bias.*has changed.*copy=False"):
        pl.line(own, d[0], AXIS, progress=False)
    assert land.loss() == pytest.approx(want.info["model_loss"])


def test_nothing_asks_for_a_whole_point_on_the_way_to_a_plane(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pylandscape.engines.eager_parameters._FLAT", 0)
    torch.manual_seed(0)
    own = landscape(Mixed(), copy=False)

    def whole(row: Row) -> Tensor:
        raise AssertionError("n numbers that nothing needs")

    monkeypatch.setattr(Row, "whole", whole)
    d = pl.random_directions(own, 2, seed=1, stored=False)
    assert np.isfinite(pl.plane(own, *d, AXIS, AXIS, progress=False).values).all()


def test_changes_behind_torchs_back_are_noticed() -> None:
    torch.manual_seed(0)
    model = Mixed()
    own = landscape(model, copy=False)
    model.mid.weight.data.mul_(1.5)
    with pytest.raises(InvalidArgument, match=r"mid\.weight"):
        own.loss()


def test_bad_arguments_are_named(land: pl.Landscape) -> None:
    with pytest.raises(InvalidArgument, match="stored: expected True together with orthogonal"):
        pl.random_directions(land, 2, orthogonal=True, stored=False)
    with pytest.raises(InvalidArgument, match="stored: expected True, False or None, got 1"):
        pl.random_directions(land, 2, stored=1)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="stored: expected True together with normalize"):
        pl.target_direction(land, Mixed(), normalize="filter", stored=False)
    (d,) = pl.random_directions(land, 1, stored=False)
    with pytest.raises(LayoutMismatch, match="direction: expected a direction of this model"):
        pl.line(landscape(nn.Sequential(nn.Linear(40_000, 3))), d, AXIS, progress=False)
    other = dict(Mixed().state_dict())
    other["scale"] = torch.tensor(float("nan"))
    with pytest.raises(InvalidArgument, match="target: expected finite elements, got 1"):
        pl.target_direction(land, other, stored=False)
    assert dataclasses.is_dataclass(d)
    with pytest.raises(dataclasses.FrozenInstanceError):
        d.info = {}  # type: ignore[misc]


def test_the_gpus_way_of_drawing_a_piece_has_the_same_numbers(land: pl.Landscape) -> None:
    (d,) = pl.random_directions(land, 1, ignore=("norm",), stored=False)
    row = d.row
    assert isinstance(row, Random)
    drawn = pl.gaussian(0, 0, 0, land.n_params) * row._scales(0, land.n_params)
    assert torch.equal(drawn, d.vector)
    assert torch.equal(row._scales(77, 41_000), row._scales(0, land.n_params)[77:41_000])


MEASURED = """
import os, sys
import torch
from torch import nn
import pylandscape as pl
torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(2500, 4000), nn.ReLU(), nn.Linear(4000, 2500))
x = torch.randn(4, 2500)
with torch.no_grad():
    model(x)

def explore(model, x, count):
    land = pl.Landscape(model, "mse", (x, x), engine="torch", copy=False)
    d = pl.random_directions(land, count, stored=False)
    pl.grid(land, d, [(-1, 1, 2)] * count, progress=False)
    return land.n_params

explore(nn.Linear(3, 3), x[:, :3], 1)  # loads what is loaded once

def peak():
    rows = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(rows["VmHWM"].split()[0]) * 1024

before = peak()
n = explore(model, x, int(sys.argv[1]))
print((peak() - before - 4 * n) / 2**20)
"""


@pytest.mark.ci
def test_memory_does_not_grow_with_the_number_of_directions() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    # What is freed goes back to the system at once, so that the peak is what was held and no more.
    env["MALLOC_MMAP_THRESHOLD_"] = env["MALLOC_TRIM_THRESHOLD_"] = "131072"
    for count in (1, 4):
        run = subprocess.run(
            [sys.executable, "-c", MEASURED, str(count)], env=env, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        # Beside the module: one theta (76 MiB), and the pieces that are worked on (20 MiB), not
        # half of another theta.
        assert float(run.stdout) < 38
