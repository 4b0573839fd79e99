"""Pictures of clouds: rendered headless and checked for what they show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import PathCollection

from pylandscape.errors import InvalidArgument
from pylandscape.plots.cloud_look import CLASS_STYLES, Look
from pylandscape.plots.cloud_steps import plot_steps
from pylandscape.plots.clouds import plot_cloud, plot_clouds
from pylandscape.plots.style import save
from pylandscape.results.cloud import Cloud

BOX = ((0.1, 0.5), (0.2, 0.6))
SOLID_BOX = (*BOX, (0.5, 2.0))


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def cloud(walks: int = 8, steps: int = 25, seed: int = 0, **changes: Any) -> Cloud:
    draw = np.random.default_rng(seed)
    count = walks * steps
    losses = draw.uniform(0.01, 1.0, count)
    curvature = draw.standard_normal(count)
    kinds = draw.choice(["singular", "saddle", "convex"], count, p=[0.8, 0.15, 0.05])
    made = Cloud(
        losses, np.sqrt(losses) * draw.uniform(0.1, 1.0, count),
        steps=np.tile(np.arange(steps, dtype=float), walks),
        walks=np.repeat(np.arange(walks, dtype=float), steps), kinds=kinds,
        negative=draw.integers(0, 5, count) / 9, bumpiness=curvature,
        ruggedness=np.abs(curvature) + 0.1, n=9,
    )  # fmt: skip
    return replace(made, **changes)


def solid(**changes: Any) -> Cloud:
    return cloud(height="ruggedness", color="step", **changes)


def drawn(ax: Any) -> list[PathCollection]:
    return [a for a in ax.get_children() if a.get_gid() == "dots"]


def count(ax: Any) -> int:
    return sum(len(d.get_offsets()) for d in drawn(ax))


def overlapping(figure: Any) -> list[tuple[str, str]]:
    """Pairs of upright texts of a figure that lie over each other (a slanted one's box is wide)."""
    figure.canvas.draw()
    texts = [
        t for t in figure.findobj(matplotlib.text.Text)
        if t.get_visible() and t.get_text().strip() and t.get_rotation() % 90 == 0
    ]  # fmt: skip
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts if _shown(t)]
    return [
        (a, b)
        for i, (a, first) in enumerate(boxes)
        for b, second in boxes[:i]
        if first.overlaps(second) and a != b
    ]


def _shown(text: Any) -> bool:
    """Ticks beyond the axes' range have texts that are not drawn."""
    box, page = text.get_window_extent(), text.figure.bbox
    return bool(box.width > 0 and page.x0 <= box.x0 and box.x1 <= page.x1)


def test_every_class_has_its_colour_and_marker_and_is_counted() -> None:
    given = cloud()
    ax = plot_cloud(given)
    assert count(ax) == len(given)
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert labels == [f"{k} ({v})" for k, v in sorted(given.counts().items(), key=lambda i: -i[1])]
    assert len({marker for _, marker in CLASS_STYLES.values()}) == len(CLASS_STYLES)
    rarest = drawn(ax)[-1]
    assert len(rarest.get_offsets()) == given.counts()["convex"]
    assert rarest.get_zorder() == max(d.get_zorder() for d in drawn(ax))


@pytest.mark.parametrize("color", ["kind", "step", "bumpiness", "ruggedness", "negative"])
@pytest.mark.parametrize("height", [None, "ruggedness", "bumpiness"])
def test_all_colours_and_heights_draw_all_dots_without_overlapping_texts(
    color: str, height: str | None
) -> None:
    ax = plot_cloud(cloud(height=height), color=color, title="XOR")
    if height is None:
        assert count(ax) == 200
    assert overlapping(ax.figure) == []


def test_dots_are_pixels_in_vector_files(tmp_path: Any) -> None:
    many = cloud(100, 200)
    for each in (many, replace(many, height="ruggedness")):
        ax = plot_cloud(each)
        assert all(d.get_rasterized() for d in drawn(ax))
        path = save(ax, tmp_path / "c.pdf")
        assert path.stat().st_size < 400_000


def test_the_drawing_order_of_steps_is_shuffled() -> None:
    ax = plot_cloud(cloud(), color="step")
    steps = drawn(ax)[0].get_array()
    assert abs(np.corrcoef(np.arange(steps.size), steps)[0, 1]) < 0.3


def test_logarithmic_axes_leave_out_zeros_and_say_so() -> None:
    losses = cloud().losses
    losses[:3] = 0.0
    norms = cloud().gradient_norms
    norms[5] = np.nan
    given = cloud(losses=losses, gradient_norms=norms)
    ax = plot_cloud(given, log="xy")
    assert ax.get_xscale() == ax.get_yscale() == "log"
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert "0, no logarithm: 3" in texts
    assert "not finite: 1" in texts
    assert count(ax) == 196
    assert overlapping(ax.figure) == []


def test_a_window_is_outlined_and_drawn_again_in_an_empty_corner() -> None:
    given = cloud()
    ax = plot_cloud(given, boxes=BOX)
    (inner,) = (a for a in ax.child_axes if a.get_gid() == "inset")
    assert count(inner) == int(given.inside(*BOX).sum())
    assert inner.get_xlim() == BOX[0]
    assert inner.get_ylim() == BOX[1]
    assert [a for a in ax.get_children() if a.get_gid() == "window"]


@pytest.mark.parametrize("given", [cloud(), solid()], ids=["flat", "solid"])
def test_windows_can_have_panels(given: Cloud) -> None:
    box = BOX if given.height is None else SOLID_BOX
    ax = plot_cloud(given, boxes=[box, ((0.6, 0.9), (0.1, 0.5))], zoom="panels")
    panels = [a for a in ax.figure.axes if drawn(a)]
    assert len(panels) == 3
    assert panels[0] is ax
    inside = int(given.inside(*box).sum())
    assert panels[1].get_title() == f"a: {inside} of 200 dots"
    assert panels[1].get_xlim() == BOX[0]
    assert overlapping(ax.figure) == []


def test_panels_share_axes_colours_and_one_legend() -> None:
    first, second = cloud(seed=1), cloud(seed=2, losses=3.0 * cloud(seed=2).losses)
    panels = plot_clouds({"plain": first, "residual": second})
    assert panels[0].get_xlim() == panels[1].get_xlim()
    assert panels[0].get_ylim() == panels[1].get_ylim()
    assert panels[0].get_xlim()[1] > second.losses.max()
    (legend,) = panels[0].figure.legends
    total = first.counts()["convex"] + second.counts()["convex"]
    assert f"convex ({total})" in [t.get_text() for t in legend.get_texts()]
    assert panels[0].get_title().startswith("plain\n")
    assert f"{first.counts()['convex']} convex" in panels[0].get_title()
    assert overlapping(panels[0].figure) == []
    apart = plot_clouds([first, second], share=False)
    assert apart[0].get_xlim() != apart[1].get_xlim()


@pytest.mark.parametrize("color", ["step", "kind", "bumpiness"])
@pytest.mark.parametrize("number", [2, 3, 4, 6])
def test_solid_panels_share_axes(number: int, color: str) -> None:
    clouds = {f"net {k}": solid(seed=k) for k in range(number)}
    panels = plot_clouds(clouds, color=color, log="z")
    assert len({(*a.get_xlim(), *a.get_ylim(), *a.get_zlim()) for a in panels}) == 1
    assert overlapping(panels[0].figure) == []


def test_colour_scales_span_all_panels() -> None:
    a, b = cloud(seed=1), cloud(seed=2, bumpiness=5.0 * cloud(seed=2).bumpiness)
    look = Look.of([a, b], "bumpiness")
    assert look.norm.vmin == -look.norm.vmax
    assert look.norm.vmax > np.abs(a.bumpiness).max()
    assert look.extend == "both"
    assert Look.of([a], "step").norm.vmax == 24


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_equal_values_are_drawn(value: float) -> None:
    flat = cloud(bumpiness=np.full(200, value), ruggedness=np.full(200, value))
    for color in ("bumpiness", "ruggedness"):
        plot_cloud(flat, color=color).figure.canvas.draw()
    plot_cloud(replace(flat, height="ruggedness"), color="kind").figure.canvas.draw()


def test_extreme_bumpiness_has_a_scale_that_shows_the_rest() -> None:
    values = np.random.default_rng(0).standard_cauchy(200) * 10.0
    ax = plot_cloud(cloud(bumpiness=values), color="bumpiness")
    assert hasattr(drawn(ax)[0].norm, "linthresh")
    assert overlapping(ax.figure) == []


def test_the_callers_axes_are_used() -> None:
    figure, ax = plt.subplots()
    assert plot_cloud(cloud(), ax, color="step") is ax
    assert len(figure.axes) == 2
    with pytest.raises(InvalidArgument, match="ax: expected a 3-D Axes"):
        plot_cloud(solid(), ax)


def test_steps_show_the_middle_over_walks() -> None:
    given = cloud()
    ax = plot_steps({"plain": given, "residual": cloud(seed=3)}, "bumpiness")
    lines = [line for line in ax.get_lines() if line.get_gid() == "middle"]
    want = np.median(given.bumpiness.reshape(8, 25), axis=0)
    np.testing.assert_allclose(lines[0].get_ydata(), want)
    line = plot_steps(given).get_lines()[0]
    np.testing.assert_allclose(line.get_ydata(), given.negative.reshape(8, 25).mean(axis=0))
    shares = plot_steps(given, "kind")
    assert shares.get_ylim() == (0.0, 1.0)
    assert overlapping(ax.figure) == overlapping(shares.figure) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_cloud(cloud(), color="red"), "color: expected one of loss"),
        (lambda: plot_cloud(cloud(), log="z"), "log: expected some of the letters xy"),
        (lambda: plot_cloud(cloud(), zlim=(0, 1)), "zlim: expected None for a flat cloud"),
        (lambda: plot_cloud(cloud(), xlim=(1, 0)), "x: expected two increasing numbers"),
        (lambda: plot_cloud(cloud(), zoom="far"), "zoom: expected one of inset"),
        (lambda: plot_cloud(solid(), boxes=SOLID_BOX, zoom="inset"), "zoom: expected 'panels'"),
        (lambda: plot_cloud(cloud(), vmin=0.0), "vmin, vmax, cmap: expected none with the classes"),
        (lambda: plot_cloud(cloud(), color="step", vmin=2.0, vmax=1.0), "vmin, vmax: expected"),
        (lambda: plot_clouds([]), "clouds: expected at least one Cloud"),
        (lambda: plot_clouds([cloud()], labels=["a", "b"]), "labels: expected 1, got 2"),
        (lambda: plot_clouds([cloud(), solid()]), "clouds: expected one kind of height"),
        (lambda: plot_clouds([cloud()], columns=0.5), "columns: expected an integer"),
        (lambda: plot_steps([cloud(), cloud()], "kind"), "clouds: expected one for 'kind'"),
        (lambda: plot_steps(cloud(steps=25), "height"), "quantity: expected one of"),
    ],
)
def test_bad_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        call()
