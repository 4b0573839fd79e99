"""Results as notebooks and numpy take them."""

import inspect
import re
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import pylandscape as pl
from pylandscape.plots.pictures import DRAWN_BY
from pylandscape.plots.surface import plot_lines, plot_surface
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
    for name in pl.__all__:
        getattr(pl, name)
    assert set(DRAWN_BY) <= set(dict(below(Pictured)))


def below(kind):
    return {kind.__name__: kind}.items() | {
        pair for each in kind.__subclasses__() for pair in below(each)
    }


def test_the_options_of_a_picture_are_in_the_help_of_its_plot():
    for name in pl.__all__:
        getattr(pl, name)
    kinds, silent = dict(below(Pictured)), []
    for name, function in DRAWN_BY.items():
        drawn = plot_surface if name == "Surface" else plot_lines if name == "Curve" else function
        method = kinds[name].draw if name == "Topology" else kinds[name].plot
        said = set(re.findall(r"\w+", inspect.getdoc(method)))
        options = [
            p.name for p in inspect.signature(drawn).parameters.values() if p.kind == p.KEYWORD_ONLY
        ]
        silent += [f"{name}.plot: {each}" for each in options if each not in said]
        silent += [f"{name}.plot takes no figsize"] * ("figsize" not in options)
    assert not silent, "list them in the docstring of the result's plot: " + ", ".join(silent)


def test_a_notebook_shows_facts_beside_the_picture():
    page = bowl()._repr_html_()
    assert page.count("data:image/png;base64,") == 1
    assert "5 x 5 points" in page
    assert "<td" in page
    lost = pl.Curve([0.0, 1.0], [np.nan, np.inf])._repr_html_()
    assert "<img" not in lost
    assert "2 points" in lost
    pairs = pl.EigenPairs(
        np.array([3.0, 1.0]), torch.eye(4)[:2], np.full(2, 1e-7), np.ones(2, bool)
    )
    assert "3 +- 1e-07" in pairs._repr_html_()
    spectrum = pl.spectrum(np.diag([*np.linspace(0, 1, 60), 9.0]), steps=30, progress=False)
    assert dict(spectrum.facts())["outliers"] == "9"


def test_markup_in_a_result_is_text():
    x = np.linspace(0.0, 1.0, 3)
    page = pl.Curve(x, x, {"loss": x, "<script>alert(1)</script>": x})._repr_html_()
    assert "<script>" not in page


def tables():
    x = np.arange(3.0)
    yield bowl(), 25, ["x", "y", "loss"]
    yield pl.Curve(x, x, {"loss": x, "accuracy": x}), 3, ["x", "loss", "accuracy"]
    yield pl.Grid([x, x, x], np.zeros((3, 3, 3))), 27, ["x", "y", "z", "loss"]
    pairs = pl.EigenPairs(np.array([3.0]), torch.eye(4)[:1], np.zeros(1), np.ones(1, bool))
    yield pairs, 1, ["value", "residual", "converged"]
    spectrum = pl.spectrum(np.diag(x + 1), probes=2, steps=3, progress=False)
    yield spectrum, 6, ["probe", "node", "weight", "bound"]
    yield bowl().topology(), 5, ["of", "birth", "death", "persistence"]
    two = np.zeros((2, 2))
    barriers = pl.Barriers(x / 2, np.zeros((2, 2, 3)), two, two, ["a", "b"])
    yield barriers, 2, ["a", "b", "barrier", "functional", "disagreement"]
    yield pl.Cloud(x, x, steps=x, color="step"), 3, ["loss", "gradient_norm", "step"]
    yield pl.Track(x, two[:1].repeat(3, 0), x[:, None], x[:, None], x), 3, ["step", "value 1"]
    yield pl.Projection(np.zeros((3, 2)), x, x, x), 3, ["step", "x", "y", "off_plane", "distance"]
    yield pl.Walks(np.zeros((2, 3, 4)), np.zeros((2, 3)), np.zeros((2, 3))), 6, ["walk", "step"]


def test_every_table_has_columns_of_one_length():
    for result, rows, names in tables():
        columns = result.table_columns()
        assert list(columns)[: len(names)] == names
        assert {len(c) for c in columns.values()} == {rows}, type(result).__name__


def test_pandas_takes_a_result_where_it_is_installed():
    pytest.importorskip("pandas")
    surface = bowl()
    frame = surface.to_dataframe()
    assert np.array_equal(frame.pivot(index="x", columns="y", values="loss"), surface.values)


def test_without_pandas_one_error_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(pl.PylandscapeError, match=r"needs pandas.*pip install pandas"):
        bowl().to_dataframe()


def test_a_direction_and_a_verdict_are_shown_in_short():
    d = pl.Direction(torch.ones(4), {"kind": "random", "normalize": "filter", "seed": 3})
    assert repr(d) == "Direction(random, n = 4, norm 2, normalize filter, seed 3)"
    verdict = bowl().check()
    assert repr(verdict) == str(verdict)
    assert repr(verdict).startswith("sanity: OK")


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
