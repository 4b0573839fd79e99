"""Grids of any dimension: values, slices, files, pictures, volumes."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import pylandscape as pl
from pylandscape.errors import InvalidArgument, ResumeMismatch
from pylandscape.plots.isosurfaces import isosurface
from tests.grid_support import scalar_landscape

AXES = [(-1, 1, 5), (-2, 1, 4), (0, 1, 3), (-1, 0, 2)]


@pytest.fixture(scope="module")
def quartic():
    weights = torch.arange(1.0, 7.0, dtype=torch.float64)
    land = scalar_landscape(lambda t: (weights * t**2).sum() + t[0] * t[1] ** 3, np.full(6, 0.25))
    return land, np.random.default_rng(0).normal(size=(4, 6))


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_a_grid_holds_the_loss_at_every_sum_of_steps(quartic, d):
    land, directions = quartic
    grid = pl.grid(land, directions[:d], AXES[:d], progress=False)
    assert grid.values.shape == tuple(n for *_, n in AXES[:d])
    for index in np.ndindex(grid.values.shape):
        steps = np.array([axis[i] for axis, i in zip(grid.axes, index, strict=True)])
        theta = land.theta.double().numpy() + steps @ directions[:d]
        assert grid.values[index] == pytest.approx(float(land.losses(points=theta[None])[0]))


def test_one_and_two_dimensions_are_lines_and_planes_bit_for_bit(quartic):
    land, d = quartic
    line = pl.line(land, d[0], AXES[0], progress=False)
    plane = pl.plane(land, d[0], d[1], *AXES[:2], progress=False)
    assert np.array_equal(pl.grid(land, d[:1], AXES[:1], progress=False).flat().values, line.values)
    flat = pl.grid(land, d[:2], AXES[:2], progress=False).flat()
    assert np.array_equal(flat.values, plane.values)
    assert flat.check().ok == plane.check().ok


def test_a_slice_at_zero_is_the_plane_of_the_other_directions(quartic):
    land, d = quartic
    grid = pl.grid(land, d[:3], [(-1, 1, 5)] * 3, progress=False)
    for axis, (a, b) in enumerate(((1, 2), (0, 2), (0, 1))):
        cut = grid.slice(axis, 2)
        plane = pl.plane(land, d[a], d[b], (-1, 1, 5), (-1, 1, 5), progress=False)
        np.testing.assert_allclose(cut.values, plane.values, rtol=1e-14)
        assert cut.info["direction_norms"] == plane.info["direction_norms"]
        assert cut.check().ok
    off = grid.slice(-1, -1)
    assert np.array_equal(off.values, grid.values[:, :, 4])
    assert off.info["slice"] == [{"axis": 2, "index": 4, "at": 1.0}]
    assert "model_loss" not in off.info
    assert isinstance(off.slice(0, 1) if isinstance(off, pl.Grid) else off, pl.Surface)


def test_a_grid_is_written_loaded_and_answered_only_for_the_same_call(quartic, tmp_path):
    land, d = quartic
    call = {"path": tmp_path / "g.h5", "progress": False}
    grid = pl.grid(land, d[:3], AXES[:3], **call)
    again = pl.load(tmp_path / "g.h5")
    assert isinstance(again, pl.Grid)
    assert np.array_equal(again.values, grid.values)
    assert again.info == grid.info
    assert all(np.array_equal(a, b) for a, b in zip(again.axes, grid.axes, strict=True))
    assert np.array_equal(pl.grid(land, d[:3], AXES[:3], **call).values, grid.values)
    with pytest.raises(ResumeMismatch):
        pl.grid(land, d[:3], [*AXES[:2], (0, 2, 3)], **call)


def test_a_volume_is_read_back_by_vtk(quartic, tmp_path):
    from vtk.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkIOXML import vtkXMLImageDataReader

    land, d = quartic
    grid = pl.grid(land, d[:3], AXES[:3], progress=False)
    reader = vtkXMLImageDataReader()
    reader.SetFileName(str(pl.save_vti(grid, tmp_path / "g.vti")))
    reader.Update()
    image = reader.GetOutput()
    assert image.GetDimensions() == grid.values.shape
    assert image.GetOrigin() == tuple(axis[0] for axis in grid.axes)
    found = vtk_to_numpy(image.GetPointData().GetArray("loss"))
    assert np.array_equal(found.reshape(grid.values.shape, order="F"), grid.values)


def test_slices_share_their_range_of_colours(quartic):
    import matplotlib.pyplot as plt

    land, d = quartic
    grid = pl.grid(land, d[:3], [(-1, 1, 7)] * 3, progress=False)
    first = grid.plot()
    panels = [a for a in first.figure.axes if a.get_title().startswith("step")]
    assert len(panels) == 5
    ranges = {a.collections[0].get_clim() for a in panels}
    assert len(ranges) == 1
    plt.close(first.figure)


def test_isosurfaces_of_a_bowl_are_spheres_of_their_levels(tmp_path):
    pytest.importorskip("skimage")
    axes = [np.linspace(-1, 1, n) for n in (21, 25, 17)]
    axes[1] = np.sinh(axes[1])  # uneven steps
    bowl = sum(m**2 for m in np.meshgrid(*axes, indexing="ij"))
    bowl[12:, 14:, 10:] = np.inf
    grid = pl.Grid(axes, metrics={"loss": bowl})
    ax = grid.plot("isosurface", levels=[0.1, 0.4])
    try:
        assert {c.get_gid() for c in ax.collections if c.get_gid()} == {
            "isosurface 0.1",
            "isosurface 0.4",
        }
        for level in (0.1, 0.4):
            corners, _ = isosurface(bowl, axes, np.isfinite(bowl), level)
            assert len(corners) > 150
            np.testing.assert_allclose((corners**2).sum(axis=1), level, atol=0.012)
            assert not ((corners > [axes[k][n] for k, n in enumerate((12, 14, 10))]).all(1)).any()
        assert ax.figure.axes[-1].get_ylabel() == "loss"
    finally:
        plt.close(ax.figure)
    with pytest.raises(pl.InvalidArgument, match="levels: expected some between"):
        grid.plot("isosurface", levels=[9.0])
    with pytest.raises(pl.InvalidArgument, match="three axes of at least two points"):
        pl.Grid(axes[:2], metrics={"loss": bowl[..., 0]}).plot("isosurface")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"directions": []}, "directions: expected a sequence"),
        ({"axes": [(-1, 1, 3)]}, "axes: expected one per direction, 2 of them, got 1"),
        ({"axes": [(0, 0, 1), (-1, 1, 3)]}, r"axes\[0\]: expected at least two points, got 1"),
        ({"axes": [(-1, 1, 3), np.array([])]}, r"axes\[1\]: expected an increasing"),
        ({"axes": [(-1, 1, 3), np.array([1.0, 0.0])]}, r"axes\[1\]: expected an increasing"),
        ({"axes": [(-1, 1, 50_000)] * 2}, r"at most 2\^31 points, got 2,500,000,000.*GiB"),
        ({"axes": 3}, "axes: expected one per direction, got 3"),
    ],
)
def test_bad_grids_are_refused(quartic, change, message):
    land, d = quartic
    asked = {"directions": d[:2], "axes": AXES[:2], **change}
    with pytest.raises(InvalidArgument, match=message):
        pl.grid(land, **asked, progress=False)


def test_bad_slices_are_refused(quartic):
    land, d = quartic
    grid = pl.grid(land, d[:2], AXES[:2], progress=False)
    with pytest.raises(InvalidArgument, match="axis: expected -2 to 1, got 2"):
        grid.slice(2, 0)
    with pytest.raises(InvalidArgument, match="index: expected -5 to 4, got 5"):
        grid.slice(0, 5)
    with pytest.raises(InvalidArgument, match="at least two dimensions"):
        pl.grid(land, d[:1], AXES[:1], progress=False).slice(0, 0)
    with pytest.raises(InvalidArgument, match="three dimensions"):
        pl.save_vti(grid, "x.vti")
