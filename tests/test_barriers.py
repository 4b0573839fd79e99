"""Barriers between models on the straight lines that join them."""

import numpy as np
import pytest
import torch
from torch import nn

import pylandscape as pl


def network(seed, norm=False):
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)]
    if norm:
        layers.insert(1, nn.BatchNorm1d(16))
    return nn.Sequential(*layers).double()


def data(count=60):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return x, (x[:, :3] ** 2).argmax(1)


def trained(seed, norm=False, steps=150):
    model, (x, y) = network(seed, norm), data()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval()


def test_values_are_those_of_moved_modules_and_of_interpolate():
    models = [trained(seed) for seed in range(3)]
    land = pl.Landscape(network(9), "cross_entropy", data())
    found = pl.barriers(land, models, points=5, progress=False)
    probe, (x, y) = network(9), data()
    for i in range(3):
        for j in range(3):
            for k, alpha in enumerate(found.alpha):
                state = {
                    name: (1 - alpha) * a + alpha * b
                    for (name, a), b in zip(
                        models[i].state_dict().items(), models[j].state_dict().values(), strict=True
                    )
                }
                probe.load_state_dict(state)
                want = nn.functional.cross_entropy(probe(x), y).item()
                assert found.values[i, j, k] == pytest.approx(want, rel=1e-12)
    line = pl.interpolate(land, [models[0], models[2]], x=(0, 1, 5), progress=False)
    assert found.barrier[0, 2] == pytest.approx(line.barrier, rel=1e-12)
    assert found.curve(0, 2).values == pytest.approx(line.values, rel=1e-12)
    assert found.losses[2] == pytest.approx(land.loss(models[2]), rel=1e-14)


def test_the_matrix_is_symmetric_with_a_zero_diagonal_and_independent_models_have_barriers():
    land = pl.Landscape(network(9), "cross_entropy", data())
    found = pl.barriers(land, [trained(seed) for seed in range(3)], progress=False)
    assert np.array_equal(found.barrier, found.barrier.T)
    assert np.array_equal(np.diag(found.barrier), np.zeros(3))
    assert found.barrier[0, 1] > 0.1
    assert found.values[0, 1] == pytest.approx(found.values[1, 0][::-1])


def test_a_convex_loss_has_no_barrier():
    x, y = data()
    land = pl.Landscape(nn.Linear(6, 3).double(), "cross_entropy", (x, y))
    points = torch.randn(4, land.n_params, dtype=torch.float64)
    found = pl.barriers(land, list(points), progress=False)
    assert (found.barrier <= 1e-12).all()


def test_functional_distance_and_disagreement_are_those_of_the_pairs():
    models = [trained(seed) for seed in range(2)]
    land = pl.Landscape(network(9), "cross_entropy", data())
    found = pl.barriers(land, models, points=3, progress=False)
    want = pl.functional_distance(land, *models)
    assert found.functional[0, 1] == pytest.approx(want.distance, rel=1e-12)
    assert found.disagreement[1, 0] == want.disagreement
    assert found.functional[0, 0] == 0.0


def test_an_equal_model_is_said_so():
    model = trained(0)
    land = pl.Landscape(network(9), "cross_entropy", data())
    with pytest.warns(UserWarning, match="models a and c are equal"):
        found = pl.barriers(
            land, [model, trained(1), model.state_dict()], labels=["a", "b", "c"], progress=False
        )
    assert found.barrier[0, 2] == 0.0
    assert found.info["notes"]


def test_batch_norm_between_models_needs_a_mode_that_says_what_happens_to_it():
    models = [trained(seed, norm=True) for seed in range(2)]
    land = pl.Landscape(models[0], "cross_entropy", data())
    with pytest.raises(pl.InvalidArgument, match=r"models\[1\].*recompute"):
        pl.barriers(land, models, progress=False)
    for mode in ("recompute", "interpolate"):
        found = pl.barriers(
            pl.Landscape(models[0], "cross_entropy", data(), bn=mode), models, progress=False
        )
        assert np.isfinite(found.values).all()


def test_an_objective_has_barriers_and_no_functions_to_compare():
    x, y = data()
    land = pl.Landscape(
        network(0), objective=lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), data=[(x, y)]
    )
    found = pl.barriers(land, [network(1), network(2)], points=3, progress=False)
    assert np.isfinite(found.barrier).all()
    assert np.isnan(found.functional).all()


def test_a_stopped_run_goes_on_with_the_same_bits_and_loads(tmp_path, monkeypatch):
    models = [trained(seed) for seed in range(3)]
    land = pl.Landscape(network(9), "cross_entropy", data())
    whole = pl.barriers(land, models, progress=False)
    file = tmp_path / "b.h5"
    append, calls = __import__("pylandscape.runs.journal", fromlist=["Journal"]).Journal.append, []

    def stopping(self, start, block):
        append(self, start, block)
        calls.append(start)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("pylandscape.runs.journal.Journal.append", stopping)
    with pytest.raises(KeyboardInterrupt):
        pl.barriers(land, models, path=file, progress=False)
    monkeypatch.undo()
    found = pl.barriers(land, models, path=file, progress=False)
    assert np.array_equal(found.values, whole.values)
    again = pl.load(file)
    assert np.array_equal(again.barrier, whole.barrier)
    assert again.labels == ["0", "1", "2"]
    with pytest.raises(pl.ResumeMismatch):
        pl.barriers(land, models[:2], path=file, progress=False)


@pytest.mark.parametrize("what", ["barrier", "functional", "disagreement"])
def test_the_matrix_draws_itself_with_its_numbers(what):
    land = pl.Landscape(network(9), "cross_entropy", data())
    found = pl.barriers(land, [network(1), network(2)], points=3, progress=False)
    ax = found.plot(what=what)
    assert {t.get_text() for t in ax.texts} == {f"{v:.2g}" for v in getattr(found, what).ravel()}


def test_bad_input_is_named():
    land = pl.Landscape(network(9), "cross_entropy", data())
    with pytest.raises(pl.InvalidArgument, match="at least two models"):
        pl.barriers(land, [network(0)])
    with pytest.raises(pl.InvalidArgument, match="points"):
        pl.barriers(land, [network(0), network(1)], points=2)
    with pytest.raises(pl.InvalidArgument, match="labels: expected 2"):
        pl.barriers(land, [network(0), network(1)], labels=["a"])
    for other, names in ((nn.Linear(2, 2).double(), "0.weight.*weight"),
                         (trained(0, norm=True, steps=0), "3.weight")):  # fmt: skip
        with pytest.raises(pl.LayoutMismatch, match=rf"models\[1\].*{names}"):
            pl.barriers(land, [network(0), other])
    with pytest.raises(pl.InvalidArgument, match="land"):
        pl.barriers(network(0), [network(0), network(1)])


def test_recomputing_without_batch_norm_is_said_and_the_numbers_are_those_without():
    models = [network(1), network(2)]
    want = pl.barriers(pl.Landscape(network(9), "cross_entropy", data()), models, progress=False)
    land = pl.Landscape(network(9), "cross_entropy", data(), bn="recompute")
    with pytest.warns(UserWarning, match="no batch norm: nothing is recomputed"):
        found = pl.barriers(land, models, progress=False)
    assert np.array_equal(found.values, want.values)
    assert "recompute" in found.info["notes"][0]


def test_the_models_beside_a_line_change_no_bit_of_it():
    models = [nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 3)) for _ in range(5)]
    given = torch.randn(300, 64), torch.randint(0, 3, (300,))
    land = pl.Landscape(models[0], "cross_entropy", given, engine="native")
    found = pl.barriers(land, models, points=7, progress=False)
    for i, j in ((0, 1), (1, 4), (2, 3)):
        alone = pl.barriers(land, [models[i], models[j]], points=7, progress=False)
        assert np.array_equal(alone.values[0, 1], found.values[i, j])
