"""Options of pictures: one error that names the option, whatever the picture."""

import inspect

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import pylandscape as pl
from pylandscape import Curve, InvalidArgument, Surface
from pylandscape.plots import lines, side_by_side, spectra, surface
from pylandscape.plots.cloud_steps import plot_steps
from pylandscape.plots.isosurfaces import plot_isosurfaces
from pylandscape.plots.options import TYPES
from pylandscape.plots.pictures import DRAWN_BY

DRAWERS = sorted(
    {
        *DRAWN_BY.values(), lines.plot_lines, surface.plot_surface, spectra.plot_spectra,
        side_by_side.compare_surfaces, pl.plot_clouds, plot_steps, plot_isosurfaces,
    } - {surface.plot},
    key=lambda function: function.__name__,
)  # fmt: skip
AXIS = np.linspace(-1.0, 1.0, 5)
BOWL = Surface(AXIS, AXIS, 0.5 * np.add.outer(AXIS**2, AXIS**2) + 0.1)
LINE = Curve(AXIS, values=AXIS**2 + 0.1)


@pytest.mark.parametrize("draws", DRAWERS, ids=lambda f: f.__name__)
def test_every_picture_refuses_values_of_another_type_by_name(draws):
    known = list(inspect.signature(draws).parameters.values())[1:]
    if not any(p.kind == p.VAR_KEYWORD for p in known):
        with pytest.raises(InvalidArgument, match=r"colour: .* has no such option"):
            draws(None, colour="red")
    checked = 0
    for parameter in known:
        parts = {part.strip() for part in str(parameter.annotation).split("|")} - {"None"}
        if parameter.name in ("ax", "axes", "cmap", "figsize") or (parts and parts <= {*TYPES}):
            with pytest.raises(InvalidArgument, match=rf"^{parameter.name}: expected"):
                draws(None, **{parameter.name: object()})
            checked += 1
    assert checked
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"colormap": "viridis"},
            r"colormap: plot_surface has no such option; did you mean colorbar or cmap",
        ),
        ({"cmap": "virids"}, r"cmap: matplotlib has no colour map 'virids'; did you mean viridis"),
        ({"cmap": 3}, "cmap: expected the name of a colour map"),
        ({"title": 3}, "title: expected a text, got 3"),
        ({"levels": 2.5}, "levels: expected an integer or numbers, got 2.5"),
        ({"levels": "ten"}, "levels: expected an integer or numbers, got 'ten'"),
        ({"levels": True}, "levels: expected an integer or numbers, got True"),
        ({"log": "yes"}, "log: expected True or False, got 'yes'"),
        ({"vmin": "0"}, "vmin: expected a finite number, got '0'"),
        ({"figsize": 3}, "figsize: expected"),
        ({"vmax": np.inf}, "vmax: expected a finite number, got inf"),
        ({"ax": 3}, "ax: expected Axes of matplotlib, got 3"),
    ],
)
def test_a_wrong_option_says_what_was_expected(options, message):
    with pytest.raises(InvalidArgument, match=message):
        BOWL.plot(**options)
    assert not plt.get_fignums()


def test_an_option_without_a_near_name_lists_what_there_is():
    with pytest.raises(InvalidArgument, match=r"such option\. Its options: .*metric.*figsize"):
        LINE.plot(zzz=1)
    with pytest.raises(InvalidArgument, match=r"compare_surfaces has no such option.*columns"):
        pl.compare(BOWL, BOWL, column=2)
    with pytest.raises(InvalidArgument, match="plot_lines: too many positional arguments"):
        lines.plot_lines([LINE], None, "loss")


def test_colour_maps_are_taken_as_objects_and_labels_as_numbers():
    ax = BOWL.plot("surface", cmap=mpl.colormaps["cividis"])
    named = pl.compare(LINE, LINE, labels=[0.1, 0.2])
    texts = [t.get_text() for t in named[0].get_legend().get_texts()]
    assert texts == ["0.1", "0.2"]
    plt.close(ax.figure)
    plt.close(named.figure)
