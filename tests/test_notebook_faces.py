"""Results as notebooks and numpy take them."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

import pylandscape as pl
from pylandscape.plots.pictures import DRAWN_BY
from pylandscape.results.base import Pictured


def bowl():
    x = np.linspace(-1.0, 1.0, 5)
    return pl.Surface(x, x, x[:, None] ** 2 + x**2)


def test_a_notebook_shows_the_picture_and_leaves_no_figure_open():
    before = plt.get_fignums()
    for result in (bowl(), pl.Curve([0.0, 1.0, 2.0], [1.0, 0.5, 2.0])):
        assert result._repr_png_().startswith(b"\x89PNG")
    assert plt.get_fignums() == before


def test_what_cannot_be_drawn_is_shown_as_text():
    before = plt.get_fignums()
    assert pl.Curve([0.0, 1.0], [np.nan, np.inf])._repr_png_() is None
    assert plt.get_fignums() == before


def test_every_result_with_a_picture_has_it_in_notebooks():
    def below(kind):
        return {kind.__name__}.union(*(below(k) for k in kind.__subclasses__()))

    for name in pl.__all__:
        getattr(pl, name)
    assert set(DRAWN_BY) <= below(Pictured)


def test_numpy_takes_a_surface_for_its_loss():
    surface = bowl()
    assert np.shares_memory(np.asarray(surface), surface.values)
    assert np.array_equal(np.asarray(surface), surface.values)
    assert np.asarray(surface, dtype=np.float32).dtype == np.float32
    assert not np.shares_memory(np.array(surface), surface.values)


@pytest.mark.parametrize("name", ["s.png", "s.PDF", "s.svg", "s.jpeg"])
def test_a_picture_is_no_data_file(name, tmp_path):
    with pytest.raises(pl.InvalidArgument, match=r"plot\(\)\.figure\.savefig"):
        bowl().save(tmp_path / name)
    assert not list(tmp_path.iterdir())
