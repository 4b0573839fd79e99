"""What newcomers stumbled over: clear words instead of raw errors, and nothing silent."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import pylandscape as pl

QUIET = {"progress": False}


def data(samples: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(samples, 4, generator=torch.Generator().manual_seed(7))
    return x, x[:, :3].argmax(1)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def land() -> pl.Landscape:
    return pl.Landscape(net(), "cross_entropy", data())


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.a(u) + self.b(v)


def test_equal_models_have_a_barrier_of_exactly_zero():
    here = land()
    with pytest.warns(UserWarning, match="models 0 and 1 are equal"):
        found = pl.barriers(here, [net(1), net(1), net(2)], **QUIET)
    assert found.labels == ["0", "1", "2"]
    assert found.barrier[0, 1] == 0.0
    assert found.curve(0, 1).barrier == 0.0
    assert found.barrier[0, 2] == pytest.approx(found.barrier[1, 2])
    with pytest.warns(UserWarning, match="are equal"):
        curve = pl.connect(here, net(1), net(1), steps=2, **QUIET)
    assert (curve.barrier, curve.line_barrier) == (0.0, 0.0)


def test_a_connection_without_steps_says_that_it_is_the_line():
    found = pl.connect(land(), net(1), net(2), steps=0, **QUIET)
    assert found.info["notes"] == ["steps=0 trains nothing: the curve is the straight line from a "
                                   "to b"]  # fmt: skip
    np.testing.assert_allclose(found.values, found.line, rtol=1e-5)


def test_an_unknown_word_as_direction_is_no_missing_file():
    with pytest.raises(pl.InvalidArgument, match=r"expected 'random', the path .* 'radnom'"):
        pl.asymmetry(land(), "radnom", **QUIET)


def test_the_engine_report_says_what_the_data_of_several_inputs_are():
    x, y = data()

    class Masked(Two):
        def forward(self, x, mask):
            return super().forward(x, x * mask)

    assert pl.Landscape(Two(), "cross_entropy", ((x, x), y)).engine == "native"
    masked, batch = Masked(), ((x, x > 0), y)
    native, exact = (pl.Landscape(masked, "cross_entropy", batch, engine=e)
                     for e in ("native", "torch"))  # fmt: skip
    assert native.loss() == pytest.approx(exact.loss(), rel=1e-6)
    torch.testing.assert_close(native.gradient(), exact.gradient(), rtol=1e-5, atol=1e-6)
    said = str(pl.Landscape(masked, "cross_entropy", ((x, (x > 0).byte()), y)).engine_report())
    assert "the model takes 2 inputs (an input is torch.uint8" in said


def test_indices_out_of_range_are_explained():
    x, y = data()
    with pytest.raises(pl.InvalidArgument, match=r"classes are counted from 0 .* they are 4 to 6"):
        pl.Landscape(net(), "cross_entropy", (x, y + 4))
    words = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(pl.InvalidArgument, match=r"embedding has fewer rows .* they are 0 to 8"):
        pl.Landscape(words, "cross_entropy", (torch.tensor([[0, 8], [1, 2]]), y[:2]))


def test_a_loss_that_is_nan_at_the_model_itself_is_said_at_once_and_in_the_check():
    def broken(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return model(batch[0]).sum() * float("nan")

    with pytest.warns(UserWarning, match="L is nan at the model's own parameters"):
        here = pl.Landscape(net(), objective=broken, data=data())
    assert "L is nan" in repr(here)
    (d,) = pl.random_directions(here, 1, seed=0)
    verdict = pl.line(here, d, (-1, 1, 3), **QUIET).check()
    assert not verdict.ok
    assert "loss or objective" in str(verdict)


def test_a_surface_that_is_mostly_a_hole_is_not_ok():
    axis = np.linspace(-1, 1, 11)
    values = np.full((11, 11), np.nan)
    values[4:7] = 1 + axis[4:7, None] ** 2 + axis**2
    verdict = pl.Surface(axis, axis, values).check()
    assert not verdict.ok
    assert "88 of 121 values" in str(verdict)


def test_advice_about_an_angle_fits_the_directions():
    here = land()
    found = pl.merge_plane(here, [net(1), net(2), net(3)], x=(0, 1, 3), y=(0, 1, 3), **QUIET)
    assert abs(found.info["direction_cosine"]) > 0.3
    assert "say so in the caption" in str(found.check())
    assert "orthogonal" not in str(found.check())


def test_results_are_compared_as_a_list_or_one_by_one():
    axis = np.linspace(-1, 1, 5)
    one, two = (pl.Curve(axis, axis**2 + k) for k in range(2))
    for drawn in (pl.compare(one, two), pl.compare([one, two], labels=["a", "b"])):
        assert len(drawn) == 1
        assert len(drawn[0].lines) >= 2
        close(drawn)
    with pytest.raises(pl.InvalidArgument, match="results: expected at least two, got 1"):
        pl.compare(one)


def close(drawn) -> None:
    import matplotlib.pyplot as plt

    plt.close(drawn.figure)


def test_a_picture_that_fails_leaves_no_figure_open():
    import matplotlib.pyplot as plt

    axis = np.linspace(-1, 1, 5)
    surface = pl.Surface(axis, axis, axis[:, None] ** 2 + axis**2)
    before = plt.get_fignums()
    with pytest.raises(ValueError, match="nope"):
        surface.plot("filled", cmap="nope")
    with pytest.raises(pl.InvalidArgument, match="levels: expected an integer or numbers"):
        surface.plot("filled", levels="some")
    assert plt.get_fignums() == before


def test_a_list_of_directions_is_told_from_a_missing_one():
    here = land()
    pair = pl.random_directions(here, 2, seed=0)
    with pytest.raises(
        pl.InvalidArgument, match=r"d2: .* unpacked by \*: plane\(land, \*directions"
    ):
        pl.plane(here, pair)
    with pytest.raises(pl.InvalidArgument, match=r"given, inputs \(30, 2\), target \(30,\): "):
        pl.Landscape(net(), "cross_entropy", (data()[0][:, :2], data()[1]))


def test_pictures_of_two_axes_unpack_and_have_their_figure():
    runs = pl.train(land(), 2, pl.SGD(lr=0.1), steps=4, record=1, **QUIET)
    for made in (pl.pca(runs[0]), runs[0].project(*pl.pca_directions(runs[0]))):
        drawn = made.plot()
        left, right = drawn
        assert left.figure is right.figure is drawn.figure
        close(drawn)


def test_steps_have_whole_ticks_and_an_exploded_run_a_logarithmic_axis():
    here = pl.Landscape(nn.Linear(4, 1), "mse", (data()[0], data()[0][:, :1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs = pl.train(here, [here.theta] * 2, pl.SGD(lr=30.0), steps=6, record=1, **QUIET)
    assert runs.exploded == [0, 1]
    axes = runs.plot()
    assert axes.get_yscale() == "log"
    assert all(float(t).is_integer() for t in axes.get_xticks())
    close(axes)
    calm = pl.train(here, 1, pl.SGD(lr=0.01), steps=2, record=1, **QUIET)
    assert calm.exploded == []
    axes = calm.plot()
    assert axes.get_yscale() == "linear"
    close(axes)


def test_the_flatness_table_says_what_its_radii_are_of():
    table = pl.flatness(land(), ("average", "worst_l2_element", "trace"), draws=2, steps=1)
    text = str(table)
    assert "rho of average: sigma of each weight" in text
    assert "rho of worst_l2_element: norm of the whole step, in units of |weight|" in text
    assert table["trace"].meaning == ""
    assert table.table_columns()["rho_is"][0] == "sigma of each weight"


def test_an_alignment_without_barriers_says_why():
    why = "no barriers: models[0] has other running statistics"
    theta, order = np.zeros(3), {"0.weight[0]": np.arange(2)}
    info = {"notes": [why]}
    found = pl.ModelAlignment(theta, order, (2.0, 1.0), (0.5, 0.5), info=info)
    assert f"note: {why}" in str(found)


@pytest.mark.ci
def test_an_alignment_under_fixed_statistics_names_the_way_to_barriers():
    def normed(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
        model(seed * data()[0])
        return model.eval()

    here = pl.Landscape(normed(1), "cross_entropy", data())
    said = str(pl.align(here, normed(1), normed(2), **QUIET))
    assert "note: no barriers: " in said
    assert "bn='recompute'" in said
