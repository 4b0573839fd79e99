"""Surfaces for ParaView, read back with VTK's own reader."""

from __future__ import annotations

import numpy as np
import pytest
from grid_support import run_python
from tg_support import written_by_the_original

import pylandscape as pl
from pylandscape.compat.loss_landscape import h52vtp
from pylandscape.results.vtp import save_vtp

xml = pytest.importorskip("vtkmodules.vtkIOXML", reason="needs vtk: pip install '.[test]'")
from vtkmodules.util.numpy_support import vtk_to_numpy  # noqa: E402

EPS = float(np.finfo(np.float32).eps)


def surface(nx=5, ny=3, f=lambda x, y: x * x + 2 * y + 3):
    x, y = np.linspace(-1, 1, nx), np.linspace(0, 3, ny)
    return pl.Surface(x, y, f(x[:, None], y[None]))


def read(path):
    """points (p, 3), quads (c, 4), zvalue (p,), averaged zvalue (c,)."""
    reader = xml.vtkXMLPolyDataReader()
    reader.SetFileName(str(path))
    reader.Update()
    assert reader.GetErrorCode() == 0
    sheet = reader.GetOutput()
    polys = sheet.GetPolys()
    assert set(np.diff(vtk_to_numpy(polys.GetOffsetsArray()))) == {4}
    return (
        vtk_to_numpy(sheet.GetPoints().GetData()),
        vtk_to_numpy(polys.GetConnectivityArray()).reshape(-1, 4),
        vtk_to_numpy(sheet.GetPointData().GetArray("zvalue")),
        vtk_to_numpy(sheet.GetCellData().GetArray("averaged zvalue")),
    )


@pytest.mark.parametrize(("nx", "ny"), [(2, 2), (2, 7), (7, 2), (5, 3), (4, 4)])
def test_every_grid_comes_back_as_a_sheet_of_quads(tmp_path, nx, ny):
    s = surface(nx, ny)
    assert save_vtp(s, tmp_path / "s.vtp") == tmp_path / "s.vtp"
    points, cells, z, average = read(tmp_path / "s.vtp")
    want = [(x, y, s.values[i, j]) for j, y in enumerate(s.y) for i, x in enumerate(s.x)]
    assert np.array_equal(points, np.array(want, dtype=np.float32))
    assert np.array_equal(z, points[:, 2])
    assert len(cells) == (nx - 1) * (ny - 1)
    corners = points[cells]
    # x and y of each cell: one step of the grid each, counterclockwise
    steps = np.diff(np.concatenate([corners, corners[:, :1]], axis=1), axis=1)
    dx, dy = 2 / (nx - 1), 3 / (ny - 1)
    assert np.allclose(steps[..., 0], [dx, 0, -dx, 0], atol=8 * EPS)
    assert np.allclose(steps[..., 1], [0, dy, 0, -dy], atol=8 * EPS)
    assert np.allclose(average, corners[..., 2].mean(axis=1), rtol=8 * EPS)


def test_points_that_are_not_finite_are_left_out_with_their_cells(tmp_path):
    s = surface(5, 4)
    s.values[0, 0], s.values[2, 1], s.values[4, 3] = np.nan, np.inf, 1e300
    save_vtp(s, tmp_path / "s.vtp")
    points, cells, z, average = read(tmp_path / "s.vtp")
    assert len(points) == 20 - 3
    assert len(cells) == 12 - 1 - 4 - 1
    assert np.isfinite(z).all()
    assert np.allclose(z, points[:, 0] ** 2 + 2 * points[:, 1] + 3, rtol=8 * EPS)
    assert np.allclose(average, z[cells].mean(axis=1), rtol=8 * EPS)


def test_a_limit_cuts_and_a_logarithm_is_of_z_plus_a_tenth(tmp_path):
    s = surface()
    s.values[0, 0] = np.inf
    save_vtp(s, tmp_path / "s.vtp", log=True, zmax=5.0)
    _, cells, z, _ = read(tmp_path / "s.vtp")
    assert len(cells) == 8
    assert np.allclose(z, np.log(np.minimum(s.values, 5).T.ravel() + 0.1), rtol=8 * EPS)


def test_interpolation_goes_through_a_cubic(tmp_path):
    def f(x, y):
        return x**3 - x * y**2 + y**3

    save_vtp(surface(7, 6, f), tmp_path / "s.vtp", interp=11)
    points, cells, z, _ = read(tmp_path / "s.vtp")
    assert len(points) == 121
    assert len(cells) == 100
    assert np.allclose(z, f(points[:, 0], points[:, 1]), atol=100 * EPS)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"metric": "acc"}, r"metric: expected one of \['loss'\]"),
        ({"interp": 1}, "interp: expected an integer >= 2"),
        ({"surface": pl.Curve([0.0, 1.0], [1.0, 2.0])}, "expected a Surface, got Curve"),
        ({"surface": surface(1, 3)}, "at least 2 x 2"),
        ({"surface": surface(f=lambda x, y: np.nan * x * y)}, "a cell of four finite values"),
        ({"surface": surface(f=lambda x, y: np.inf + x * y), "interp": 4}, "15 that are not"),
    ],
)
def test_what_makes_no_sheet_is_refused(tmp_path, given, said):
    with pytest.raises(pl.InvalidArgument, match=said):
        save_vtp(given.pop("surface", surface()), tmp_path / "s.vtp", **given)
    assert not list(tmp_path.iterdir())


def test_files_of_the_original_are_put_in_order(tmp_path):
    s = surface(5, 3)
    path = tmp_path / "s.h5"
    written_by_the_original(path, s.x, s.y, s.values.T, 10 * s.values.T, done=13)
    name = h52vtp.h5_to_vtp(str(path))
    assert name == f"{path}_train_loss.vtp"
    points, cells, z, _ = read(name)
    assert len(points) == 13  # of 15: the others were never computed
    assert len(cells) == 6
    assert np.allclose(z, points[:, 0] ** 2 + 2 * points[:, 1] + 3, rtol=8 * EPS)
    error = h52vtp.h5_to_vtp(str(path), "train_err", log=True, zmax=50)
    assert error == f"{path}_train_err_zmax=50_log.vtp"
    points, _, z, _ = read(error)
    accuracy = 10 * (points[:, 0] ** 2 + 2 * points[:, 1] + 3)
    assert np.allclose(z, np.log(np.minimum(100 - accuracy, 50) + 0.1), rtol=64 * EPS)


def test_our_own_files_are_taken_and_names_are_checked(tmp_path):
    path = str(tmp_path / "s.h5")
    pl.Surface([0.0, 1.0], [0.0, 1.0], metrics={"loss": np.eye(2), "mine": np.ones((2, 2))}).save(
        path
    )
    assert read(h52vtp.h5_to_vtp(path, "mine"))[2].tolist() == [1] * 4
    assert read(h52vtp.h5_to_vtp(path))[2].tolist() == [1, 0, 0, 1]
    with pytest.raises(pl.InvalidArgument, match=r"surf_name: expected one of .*train_loss"):
        h52vtp.h5_to_vtp(path, "test_loss")
    pl.Curve([0.0, 1.0], [1.0, 2.0]).save(path)
    with pytest.raises(pl.InvalidArgument, match="expected a surface, got a curve"):
        h52vtp.h5_to_vtp(path)


def test_the_command_converts_and_says_what_is_wrong_in_one_line(tmp_path, capsys):
    path = str(tmp_path / "s.h5")
    surface().save(path)
    assert h52vtp.main(["-f", path, "--log", "--interp", "4"]) == 0
    assert capsys.readouterr().out == f"{path}_train_loss_log.vtp\n"
    assert h52vtp.main(["-f", path, "--surf_name", "none"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("module", ["plot_surface", "loss_landscape.h52vtp"])
def test_the_programs_start_as_modules(module):
    done = run_python("-m", f"pylandscape.compat.{module}", "--help")
    assert done.returncode == 0
    assert "usage" in done.stdout
