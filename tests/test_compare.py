"""Results side by side: one scale for all of them."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.contour import ContourSet

import pylandscape as pl


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def bowl(factor=1.0, size=1.0, **request):
    x = np.linspace(-size, size, 21)
    return pl.Surface(x, x, factor * (x[:, None] ** 2 + x**2) + 0.1, info={"request": request})


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("kind", ["contour", "filled"])
def test_surfaces_share_levels_colours_and_axes(kind, log):
    panels = pl.compare([bowl(), bowl(0.01), bowl(5.0, 0.5)], kind=kind, log=log, labels="abc")
    drawn = [next(c for c in a.collections if isinstance(c, ContourSet)) for a in panels]
    for one in drawn[1:]:
        assert np.array_equal(one.levels, drawn[0].levels)
        assert (one.norm.vmin, one.norm.vmax) == (drawn[0].norm.vmin, drawn[0].norm.vmax)
        assert np.array_equal(one.to_rgba(one.levels), drawn[0].to_rgba(drawn[0].levels))
    assert {a.get_xlim() for a in panels} == {(-1.0, 1.0)}
    assert [a.get_title() for a in panels] == list("abc")
    assert len(panels[0].figure.axes) == 4  # three panels and one bar


def test_heat_maps_share_their_range():
    panels = pl.compare([bowl(), bowl(0.01)], kind="heat")
    limits = {a.collections[0].get_clim() for a in panels}
    assert len(limits) == 1
    assert panels[0].figure.axes[-1].get_ylim() == limits.pop()


def test_curves_share_one_picture():
    x = np.linspace(0.0, 1.0, 5)
    (axes,) = pl.compare([pl.Curve(x, x**2), pl.Curve(x, x)], labels=["a", "b"])
    assert len(axes.lines) == 2


def test_what_differs_between_the_requests_is_said():
    said = pl.compare([bowl(data="x"), bowl(data="y")])[0].figure.get_supxlabel()
    assert said == "not the same data"
    assert pl.compare([bowl(data="x"), bowl(data="x")])[0].figure.get_supxlabel() == ""


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([bowl()], "at least two, got 1"),
        ([bowl(), pl.Curve([0.0, 1.0], [1.0, 2.0])], r"got Curve \(line\), Surface \(plane\)"),
        ([1, 2], "got int"),
    ],
)
def test_results_that_cannot_be_compared_are_refused(results, message):
    with pytest.raises(pl.InvalidArgument, match=message):
        pl.compare(results)
