"""Asymmetric valleys against closed forms, and averages of trajectories."""

import numpy as np
import pytest
import torch
from torch import nn

import pylandscape as pl

QUIET = {"progress": False}


class Valley(nn.Module):
    """L(w) = a w for w >= 0, -c a w for w < 0: slopes a and -c a."""

    def __init__(self, c, a=1.0, at=0.0):
        super().__init__()
        self.c, self.a = c, a
        self.w = nn.Parameter(torch.tensor([at], dtype=torch.float64))

    def forward(self, x):
        return torch.where(self.w >= 0, self.a * self.w, -self.c * self.a * self.w).expand(len(x))


def valley(c, **options):
    data = torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    return pl.Landscape(Valley(c, **options), lambda o, y: o.mean(), data)


def normed(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias)
    return model


def data(seed=7):
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, x[:, :3].argmax(1)


@pytest.mark.parametrize("c", [2.0, 5.0, 10.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_c_star_of_two_slopes_is_their_ratio_whatever_the_sign_of_the_direction(c, sign):
    u = torch.tensor([3.0 * sign], dtype=torch.float64)
    found = pl.asymmetry(valley(c), u, r=0.5, points=7, **QUIET)
    assert found.ratio[0] == pytest.approx(c)
    assert found.asymmetric[0]
    assert found.flat_side[0] == sign
    assert found.ends[0] == pytest.approx([0.5 * c, 0.5] if sign > 0 else [0.5, 0.5 * c])
    assert pl.asymmetry(valley(c), u, points=3, **QUIET).r[0] == 3.0


def test_a_symmetric_valley_and_a_descending_line_are_not_asymmetric():
    u = torch.ones(1, dtype=torch.float64)
    even = pl.asymmetry(valley(1.0), u, r=1.0, **QUIET)
    assert even.ratio[0] == pytest.approx(1.0)
    assert even.flat_side[0] == 0
    line = pl.asymmetry(valley(3.0, at=5.0), u, r=1.0, **QUIET)  # a slope without a minimum
    assert np.isnan(line.ratio[0]) or line.ratio[0] < 0
    assert not line.asymmetric[0]
    wall = pl.Landscape(
        Valley(1.0), lambda o, y: torch.relu(o.mean() - 0.25),
        (torch.zeros(2, 1).double(), torch.zeros(2).double()),
    )  # fmt: skip
    assert not pl.asymmetry(wall, u, r=0.2, **QUIET).asymmetric[0]  # constant


def test_shifted_to_either_side_the_flat_side_is_the_better_place():
    c, delta = 4.0, 0.25
    found = pl.asymmetry(valley(c), torch.ones(1, dtype=torch.float64), r=1.0, points=20, **QUIET)
    expected, s = found.shifted(delta), found.s[0]
    assert expected[np.argmin(abs(s))] == pytest.approx((1 + c) * delta / 2)
    assert np.nanmin(expected) == pytest.approx(delta)
    assert s[np.nanargmin(expected)] == pytest.approx(delta)
    assert np.isnan(expected[0])
    for options, word in (({"delta": -1.0}, "delta"), ({"delta": 1.0, "i": 3}, "i"),
                          ({"delta": 1.0, "test": True}, "test")):  # fmt: skip
        with pytest.raises(pl.InvalidArgument, match=f"^{word}"):
            found.shifted(**options)


@pytest.mark.parametrize(("c", "mean"), [(2, 0.05), (5, 0.2), (10, 0.45)])
def test_noisy_sgd_in_a_valley_averages_to_its_flat_side(c, mean):
    eta, a = 0.1, 1.0
    generator = np.random.default_rng(c)
    w, kept = np.zeros(500), []
    for step in range(160):
        slope = np.where(w >= 0, a, -c * a)
        w = w - eta * (slope + generator.uniform(-a, a, 500))
        if step >= 60:
            kept.append(w)
    state = pl.swa(np.concatenate(kept)[:, None], valley(float(c)))
    assert float(state["w"]) == pytest.approx(mean, abs=0.02)  # (c - 1) eta a / 2


def test_sgd_without_noise_cycles_through_c_plus_1_points():
    c, eta, lowest = 4, 0.1, -0.03
    w, points = lowest, []
    for _ in range(c + 1):
        points.append([w])
        w -= eta * (1.0 if w >= 0 else -float(c))
    assert w == pytest.approx(lowest)
    state = pl.swa(np.array(points), valley(float(c)))
    assert float(state["w"]) == pytest.approx(lowest + c * eta / 2)


def test_an_average_has_the_running_statistics_of_update_bn():
    models = [normed(seed) for seed in range(3)]
    x, y = data()
    batches = [(x[:16], y[:16]), (x[16:32], y[16:32]), (x[32:], y[32:])]
    own = normed(9)
    before = {name: t.clone() for name, t in own.state_dict().items()}
    for bn in ("eval", "recompute", "batch", "interpolate"):
        land = pl.Landscape(own, "cross_entropy", batches, bn=bn)
        state = pl.swa(models, land)
        want = normed(9)
        with torch.no_grad():
            for name, p in want.named_parameters():
                p.copy_(torch.stack([m.get_parameter(name) for m in models]).mean(0))
        torch.optim.swa_utils.update_bn(batches, want)
        for name, tensor in want.state_dict().items():
            assert torch.allclose(state[name], tensor, rtol=1e-12, atol=1e-15), (bn, name)
        same = land.loss()
        assert pl.Landscape(own, "cross_entropy", batches, bn=bn).loss() == same
    land = pl.Landscape(own, "cross_entropy", batches, bn="eval")
    recomputed = pl.Landscape(own, "cross_entropy", batches, bn="recompute")
    assert land.loss(state) == pytest.approx(recomputed.loss(state), rel=1e-12)
    assert all(torch.equal(before[name], t) for name, t in own.state_dict().items())


def test_averages_weigh_files_and_parts_of_runs(tmp_path):
    models = [nn.Linear(2, 2) for _ in range(3)]
    for k, model in enumerate(models):
        torch.save(model.state_dict(), tmp_path / f"{k}.pt")
    weights = [m.weight.detach() for m in models]
    whole = pl.swa(tmp_path)  # no running statistics: no landscape is needed
    assert whole["weight"] == pytest.approx(sum(weights) / 3, abs=1e-6)
    assert whole["weight"].dtype == torch.float32
    part = pl.swa(pl.trajectory(tmp_path)[1:], weights=[1, 3])
    assert part["weight"] == pytest.approx(0.25 * weights[1] + 0.75 * weights[2], abs=1e-6)
    assert all(torch.equal(t, models[0].state_dict()[n]) for n, t in pl.swa([models[0]]).items())
    with pytest.raises(pl.InvalidArgument, match=r"^land.*running_mean"):
        pl.swa([normed(0), normed(1)])
    with pytest.raises(pl.InvalidArgument, match=r"^weights"):
        pl.swa(models, weights=[1, 2])
    with pytest.raises(pl.InvalidArgument, match="not of this model"):
        pl.swa(models, pl.Landscape(normed(), "cross_entropy", data()))


def test_values_are_losses_on_the_line_and_a_model_lies_at_its_distance(tmp_path):
    a, b = normed(1), normed(2)
    land = pl.Landscape(a, "cross_entropy", data(), bn="recompute")
    path = tmp_path / "a.h5"
    asked = [b, (b, "norm"), (b, "rest"), ("random", "norm"), "random"]
    found = pl.asymmetry(land, asked, r=1.5, points=4, path=path, **QUIET)
    theta = land.theta
    step = torch.nn.utils.parameters_to_vector(b.parameters()).detach() - theta
    for k, s in enumerate(found.s[0]):
        want = land.loss(theta + s * step / step.norm())
        assert found.values[0, k] == pytest.approx(want, rel=1e-9)
    assert found.labels == ["model", "model, norm", "model, rest", "random, norm", "random"]
    norm = [e for e in land.layout.entries if e.kind == "norm"]
    d = torch.zeros_like(theta)
    for e in norm:
        d[e.offset : e.offset + e.numel] = step[e.offset : e.offset + e.numel]
    assert found.ends[1, 1] == pytest.approx(land.loss(theta + 1.5 * d / d.norm()), rel=1e-9)
    again = pl.asymmetry(land, [b, b, b, ("random", "norm")], r=1.5, points=4, **QUIET)
    assert again.ends[3] == pytest.approx(found.ends[3], rel=1e-9)
    assert again.labels[0] == "model 1"
    loaded = pl.load(path)
    assert np.array_equal(loaded.values, found.values)
    assert np.array_equal(loaded.ratio, found.ratio, equal_nan=True)
    assert str(loaded) == str(found)
    with pytest.raises(pl.ResumeMismatch):
        pl.asymmetry(land, asked, r=1.0, points=4, path=path, **QUIET)
    exact = pl.asymmetry(land, b, points=3, **QUIET)
    assert exact.r[0] == pytest.approx(float(step.norm()))
    assert exact.ends[0, 1] == pytest.approx(land.loss(b), rel=1e-9)
    assert list(exact.marks) == ["model"]
    ax = exact.plot()
    assert [line.get_label() for line in ax.lines][1].startswith("model, $c^*$")


@pytest.mark.parametrize("bn", ["recompute", "eval"])
def test_test_losses_have_the_running_statistics_of_the_training_data(bn):
    a, b = normed(1), normed(2)
    land = pl.Landscape(a, "cross_entropy", data(), bn=bn)
    other = {"recompute": "interpolate", "eval": "eval"}[bn]
    test = pl.Landscape(normed(5), "cross_entropy", data(8), bn=other)
    step = torch.nn.utils.parameters_to_vector(b.parameters()).detach() - land.theta
    found = pl.asymmetry(land, step, points=3, test=test, **QUIET)
    model, x = normed(3), data(8)
    for s, value in zip(found.s[0], found.test[0], strict=True):
        model.load_state_dict(a.state_dict())
        nn.utils.vector_to_parameters(land.theta + s * step / step.norm(), model.parameters())
        if bn == "recompute":
            torch.optim.swa_utils.update_bn([data()], model)
        want = nn.functional.cross_entropy(model.eval()(x[0]), x[1]).item()
        assert value == pytest.approx(want, rel=1e-9)
    assert "dashed" in found.plot().get_ylabel()
    wrong = pl.Landscape(normed(5), "cross_entropy", data(8), bn="batch")
    with pytest.raises(pl.InvalidArgument, match=r"^test: expected bn="):
        pl.asymmetry(land, step, test=wrong, **QUIET)


def test_bad_input_is_named():
    land = valley(2.0)
    u = torch.ones(1, dtype=torch.float64)
    for options, word in (
        ({"r": 0.0}, "r"), ({"r": -1}, "r"), ({"points": 1}, "points"), ({"zeta": 1.0}, "zeta"),
        ({"zeta": -0.5}, "zeta"), ({"labels": ["a", "b"]}, "labels"),
        ({"points": 2, "zeta": 0.9}, "zeta"),
    ):  # fmt: skip
        with pytest.raises(pl.InvalidArgument, match=rf"^{word}: expected"):
            pl.asymmetry(land, u, **{"r": 1.0, **options}, **QUIET)
    with pytest.raises(pl.InvalidArgument, match=r"^directions: .*norm above 0"):
        pl.asymmetry(land, 0 * u, r=1.0, **QUIET)
    with pytest.raises(pl.InvalidArgument, match=r"^r: expected how far to go along"):
        pl.asymmetry(land, "random", **QUIET)
    with pytest.raises(pl.InvalidArgument, match="normalisation layer"):
        pl.asymmetry(land, ("random", "norm"), r=1.0, **QUIET)
    with pytest.raises(pl.InvalidArgument, match=r"^directions: expected at least one"):
        pl.asymmetry(land, [], r=1.0, **QUIET)
    with pytest.raises(pl.LayoutMismatch, match=r"^directions\[1\]"):
        pl.asymmetry(land, [u, nn.Linear(2, 2)], **QUIET)
    with pytest.raises(pl.InvalidArgument, match=r"^test: .*another layout"):
        pl.asymmetry(land, u, test=pl.Landscape(normed(), "cross_entropy", data()), **QUIET)
