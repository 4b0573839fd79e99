"""Trajectories: recording, reading, principal components, projections, MDS, similarity."""

import importlib
import math
import os
import signal
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pylandscape as pl
from pylandscape.trajectories.components import random_walk_shares
from pylandscape.trajectories.embedding import strain_mds
from pylandscape.trajectories.sources import ArraySource


def network(seed=0, norm=False, dtype=torch.float32):
    torch.manual_seed(seed)
    layers = [nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)]
    if norm:
        layers.insert(1, nn.BatchNorm1d(6))
    return nn.Sequential(*layers).to(dtype)


def data(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 5, generator=generator, dtype=dtype)
    return x, x[:, :3].argmax(1)


def train(model, steps, each=lambda loss: None, dtype=torch.float32):
    x, y = data(dtype)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        each(loss.item())


def copied(model):
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


# Recording


def test_a_recording_holds_every_state_bit_for_bit_with_its_metrics_and_statistics(tmp_path):
    model, kept, losses = network(norm=True), [], []
    with pl.Recorder(model, tmp_path / "run.h5", every=3) as recorder:

        def each(loss):
            if recorder.step(loss=loss):
                kept.append(copied(model))
                losses.append(loss)

        train(model, 10, each)
        meanwhile = pl.trajectory(tmp_path / "run.h5")  # unfinished, from beside it
        assert len(meanwhile) == 4
    path = pl.trajectory(tmp_path / "run.h5")
    assert path.steps.tolist() == [0, 3, 6, 9]
    assert path.metrics["loss"].tolist() == losses
    for state, want in zip(path, kept, strict=True):
        for name in set(want) - {"1.num_batches_tracked"}:
            assert torch.equal(state[name], want[name]), name
    assert os.listdir(tmp_path) == ["run.h5"]


def test_the_model_is_only_read(tmp_path):
    model = network(norm=True)
    before = copied(model)
    flags = [(m.training, dict(m.__dict__)) for m in model.modules()]
    with pl.Recorder(model, tmp_path / "run.h5") as recorder:
        recorder.step()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [(m.training, dict(m.__dict__)) for m in model.modules()] == flags
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("dtype", "eps"), [("float16", 1e-3), ("float32", 0.0)])
def test_numbers_are_kept_in_the_dtype_asked_for(tmp_path, dtype, eps):
    model = network()
    with pl.Recorder(model, tmp_path / "run.h5", dtype=dtype) as recorder:
        recorder.step()
    found = pl.trajectory(tmp_path / "run.h5")[0]
    for name, want in model.state_dict().items():
        assert (found[name].to(want) - want).abs().max() <= eps * want.abs().max()


def test_parameters_can_be_chosen_by_pattern(tmp_path):
    model = network()
    with pl.Recorder(model, tmp_path / "run.h5", params=["2.*"]) as recorder:
        recorder.step()
    path = pl.trajectory(tmp_path / "run.h5")
    assert [e.name for e in path.layout.entries] == ["2.weight", "2.bias"]


def test_a_closed_recording_is_continued_after_its_last_step(tmp_path):
    model = network()
    for _ in range(2):
        with pl.Recorder(model, tmp_path / "run.h5", every=2) as recorder:
            train(model, 3, lambda loss: recorder.step(loss=loss))
    assert pl.trajectory(tmp_path / "run.h5").steps.tolist() == [0, 2, 4, 6]


def test_a_killed_process_loses_nothing_that_it_recorded(tmp_path):
    script = textwrap.dedent(f"""
        import os, signal, torch, pylandscape as pl
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2)
        recorder = pl.Recorder(model, {str(tmp_path / "run.h5")!r})
        for k in range(7):
            with torch.no_grad():
                model.weight.fill_(k)
            recorder.step(loss=k)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    path = pl.trajectory(tmp_path / "run.h5")
    assert [float(state["weight"][0, 0]) for state in path] == list(range(7))
    model = nn.Linear(4, 2)
    with pl.Recorder(model, tmp_path / "run.h5") as recorder:
        assert recorder.steps == list(range(7))
        recorder.step(loss=0.0)
    assert pl.trajectory(tmp_path / "run.h5").steps.tolist() == list(range(8))


def test_a_torn_record_is_cut_off_and_recording_goes_on(tmp_path):
    model = network()
    recorder = pl.Recorder(model, tmp_path / "run.h5")
    for _ in range(3):
        recorder.step()
    whole = (tmp_path / "run.h5.recording").read_bytes()
    for cut in (1, 40, 200):
        (tmp_path / "cut.h5.recording").write_bytes(whole[:-cut])
        assert len(pl.trajectory(tmp_path / "cut.h5")) == 2
    with pl.Recorder(model, tmp_path / "cut.h5") as again:
        assert again.steps == [0, 1]
        again.step()
    assert len(pl.trajectory(tmp_path / "cut.h5")) == 3
    recorder.close()


def test_a_recording_of_another_model_is_refused(tmp_path):
    with pl.Recorder(network(), tmp_path / "run.h5") as recorder:
        recorder.step()
    with pytest.raises(pl.ResumeMismatch, match="another run"):
        pl.Recorder(nn.Linear(2, 2), tmp_path / "run.h5")
    unfinished = pl.Recorder(network(), tmp_path / "other.h5")
    unfinished.step()
    with pytest.raises(pl.PylandscapeError, match="another process"):
        pl.Recorder(network(), tmp_path / "other.h5")
    unfinished.close()


def test_a_recorder_says_what_is_wrong(tmp_path):
    model = network()
    with pytest.raises(pl.InvalidArgument, match="model: expected a torch"):
        pl.Recorder([1], tmp_path / "run.h5")
    with pytest.raises(pl.InvalidArgument, match="every: expected"):
        pl.Recorder(model, tmp_path / "run.h5", every=0)
    with pytest.raises(pl.InvalidArgument, match="dtype: expected one of"):
        pl.Recorder(model, tmp_path / "run.h5", dtype="int8")
    with pytest.raises(pl.InvalidArgument, match="folder"):
        pl.Recorder(model, tmp_path / "nowhere" / "run.h5")
    with (
        pl.Recorder(model, tmp_path / "run.h5") as recorder,
        pytest.raises(pl.InvalidArgument, match="accuracy"),
    ):
        recorder.step(accuracy=1.0)
    assert not (tmp_path / "run.h5").exists()  # nothing recorded


# Reading


def test_checkpoints_of_any_wrapping_come_in_the_order_of_their_numbers(tmp_path):
    model, kept = network(), {}
    keys = {2: "state_dict", 10: "model_state_dict", 1: "net", 30: None}
    prefixes = {2: "module.", 10: "model.", 1: "_orig_mod.", 30: "module._orig_mod."}
    for step, key in keys.items():
        train(model, 1)
        kept[step] = copied(model)
        state = {prefixes[step] + k: v for k, v in kept[step].items()}
        torch.save({key: state, "epoch": step} if key else state, tmp_path / f"epoch_{step}.pt")
    path = pl.trajectory(str(tmp_path / "*.pt"), model)
    assert path.steps.tolist() == [1, 2, 10, 30]
    assert pl.trajectory(tmp_path, model).steps.tolist() == [1, 2, 10, 30]
    for step, state in zip(path.steps, path, strict=True):
        assert all(torch.equal(state[k], v) for k, v in kept[int(step)].items())


def test_safetensors_are_read(tmp_path):
    save = pytest.importorskip("safetensors.torch").save_file
    model = network()
    save(model.state_dict(), tmp_path / "a.safetensors")
    found = pl.trajectory([tmp_path / "a.safetensors", model], model)
    assert torch.equal(found.vector(0), found.vector(1))


def test_modules_states_and_vectors_are_one_trajectory():
    model = network()
    states = [copied(model)]
    train(model, 2)
    from_states = pl.trajectory([*states, model])
    land = pl.Landscape(model, "cross_entropy", data())
    vectors = torch.stack([from_states.vector(0), from_states.vector(1)])
    from_vectors = pl.trajectory(vectors, land)
    assert np.array_equal(from_states.columns(0, 57), from_vectors.columns(0, 57))
    assert torch.equal(from_vectors[1]["0.weight"], model[0].weight.double())


def test_tied_parameters_count_once_and_come_back_under_all_names(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    torch.save(model.state_dict(), tmp_path / "a.pt")
    path = pl.trajectory(tmp_path / "a.pt")
    assert path.n == 9 + 3 + 3
    assert set(path[0]) >= set(model.state_dict())


def test_a_state_of_another_model_is_named_with_what_is_missing_and_left(tmp_path):
    other = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
    with pytest.raises(
        pl.InvalidArgument, match=r"state 1 is not of this model: missing 2\.weight"
    ):
        pl.trajectory([network().state_dict(), other.state_dict()])
    with pytest.raises(pl.InvalidArgument, match="other shapes"):
        pl.trajectory([nn.Linear(2, 2), nn.Linear(2, 3)])


def test_reading_says_what_is_wrong(tmp_path):
    with pytest.raises(pl.InvalidArgument, match="found none"):
        pl.trajectory(str(tmp_path / "*.pt"))
    with pytest.raises(pl.InvalidArgument, match="found none"):
        pl.trajectory(tmp_path)
    with pytest.raises(pl.InvalidArgument, match="like:"):
        pl.trajectory(torch.zeros(3, 4))
    with pytest.raises(pl.InvalidArgument, match=r"shape \(T, 57\)"):
        pl.trajectory(torch.zeros(3, 4), network())
    with pytest.raises(pl.InvalidArgument, match="at least one"):
        pl.trajectory([])
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(pl.InvalidArgument, match="not a torch checkpoint"):
        pl.trajectory(tmp_path / "bad.pt")
    (tmp_path / "code.pt").write_bytes(b"\x80\x04cposix\nsystem\n(X\x04\x00\x00\x00truetR.")
    with pytest.raises(pl.InvalidArgument, match="needs pickle"):
        pl.trajectory(tmp_path / "code.pt")


def test_a_saved_trajectory_comes_back_bit_for_bit(tmp_path):
    model = network(norm=True, dtype=torch.float64)
    states = []
    train(model, 5, lambda loss: states.append(copied(model)), torch.float64)
    path = pl.trajectory(states, model, steps=[1, 2, 5, 7, 9])
    path.save(tmp_path / "t.h5")
    again = pl.trajectory(tmp_path / "t.h5")
    assert np.array_equal(again.columns(0, path.n), path.columns(0, path.n))
    assert again.steps.tolist() == [1, 2, 5, 7, 9]
    assert torch.equal(again[3]["1.running_var"], states[3]["1.running_var"])
    assert again.layout == path.layout


def test_a_damaged_recording_is_refused(tmp_path):
    recorder = pl.Recorder(network(), tmp_path / "run.h5")
    recorder.step()
    beside = tmp_path / "run.h5.recording"
    content = bytearray(beside.read_bytes())
    content[20] ^= 1
    beside.write_bytes(bytes(content))
    with pytest.raises(pl.FileFormatError, match="header"):
        pl.trajectory(tmp_path / "run.h5")


# Principal components


def walk(count, n, seed=0):
    return np.cumsum(np.random.default_rng(seed).standard_normal((count, n)), axis=0)


def linear(n):
    return nn.Linear(n, 1, bias=False, dtype=torch.float64)


@pytest.mark.parametrize("centre", [-1, 0, "mean"])
def test_components_are_those_of_a_full_svd(centre):
    x = walk(12, 50)
    found = pl.pca(pl.trajectory(x, linear(50)), 4, centre=centre)
    centred = x - (x.mean(axis=0) if centre == "mean" else x[centre])
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    assert found.singular_values == pytest.approx(s[:4], rel=1e-12)
    assert found.ratios == pytest.approx(s[:4] ** 2 / (s**2).sum(), rel=1e-12)
    for k, d in enumerate(found.directions):
        sign = np.sign(vt[k] @ d.vector.numpy())
        assert d.vector.numpy() == pytest.approx(sign * vt[k], abs=1e-10)
        assert found.coordinates[:, k] == pytest.approx(sign * u[:, k] * s[k], abs=1e-10)
    assert sum(found.loadings.values()) == pytest.approx(np.ones(4))


def test_small_components_are_as_accurate_as_large_ones():
    generator = np.random.default_rng(0)
    u = np.linalg.qr(generator.standard_normal((6, 3)))[0]
    v = np.linalg.qr(generator.standard_normal((80, 3)))[0]
    u -= u[-1]  # seen from the end, nothing changes
    x = (u * [1.0, 1e-3, 1e-6]) @ v.T
    s, vt = np.linalg.svd(x, full_matrices=False)[1:]
    found = pl.pca(pl.trajectory(x, linear(80)), 3)
    assert found.singular_values == pytest.approx(s[:3], rel=1e-8)
    assert abs(found.directions[2].vector.numpy() @ vt[2]) == pytest.approx(1.0, abs=1e-8)


def test_a_planar_path_has_its_variance_in_two_components_and_no_point_off_the_plane():
    generator = np.random.default_rng(3)
    basis = generator.standard_normal((2, 60))
    points = generator.standard_normal((9, 2))
    path = pl.trajectory(5.0 + points @ basis, linear(60))
    found = pl.pca(path, 2)
    assert found.ratios.sum() == pytest.approx(1.0, abs=1e-12)
    projection = path.project(*found.directions)
    assert projection.off_plane.max() < 1e-12 * projection.distances.max()
    lengths = np.linalg.norm(np.diff(projection.coordinates, axis=0), axis=1)
    assert lengths == pytest.approx(path.lengths())


@pytest.mark.parametrize(
    ("centre", "shares"), [("mean", (0.608, 0.152, 0.068)), (-1, (0.81, 0.09, 0.03))]
)
def test_a_random_walk_has_the_shares_of_the_null(centre, shares):
    found = pl.pca(pl.trajectory(walk(120, 20_000), linear(20_000)), 3, centre=centre)
    assert found.null == pytest.approx(shares, abs=5e-3)
    assert found.ratios == pytest.approx(found.null, abs=0.02)
    assert random_walk_shares(10_000, centre).sum() == pytest.approx(1.0, abs=1e-3)


def test_blocks_of_parameters_change_nothing(monkeypatch):
    path = pl.trajectory(walk(7, 50), linear(50))
    whole = pl.pca(path, 3)
    monkeypatch.setattr("pylandscape.trajectories.base.BLOCK_BYTES", 8 * 7 * 11)
    parts = pl.pca(path, 3)
    assert parts.singular_values == pytest.approx(whole.singular_values, rel=1e-12)
    assert parts.directions[0].vector.numpy() == pytest.approx(
        whole.directions[0].vector.numpy(), abs=1e-12
    )


def test_blocks_that_lie_in_one_memory_have_the_numbers_of_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("pylandscape.trajectories.base.BLOCK_BYTES", 8 * 5 * 7)
    pl.trajectory(walk(5, 23), linear(23)).save(tmp_path / "run.h5")
    for path in (pl.trajectory(tmp_path / "run.h5"), pl.trajectory(tmp_path / "run.h5")[1:4]):
        kept = [block for _, _, block in path.blocks()]
        again = [block.copy() for _, _, block in path.blocks(reuse=True)]
        assert len(kept) > 2
        assert np.array_equal(np.concatenate(kept, axis=1), np.concatenate(again, axis=1))
        assert np.array_equal(kept[0], path.columns(0, kept[0].shape[1]))


def test_components_of_chosen_parameters_leave_the_others_alone():
    model = network(dtype=torch.float64)
    states = []
    train(model, 6, lambda loss: states.append(copied(model)), torch.float64)
    path = pl.trajectory(states, model)
    d1, d2 = pl.pca_directions(path, params=["2.weight"])
    inside = path.layout["2.weight"]
    part = slice(inside.offset, inside.offset + inside.numel)
    assert d1.vector[part].norm() == pytest.approx(1.0)
    assert d1.vector.norm() == pytest.approx(1.0)
    assert d1.vector @ d2.vector == pytest.approx(0.0, abs=1e-12)


def test_components_say_what_is_wrong():
    path = pl.trajectory(walk(4, 9), linear(9))
    with pytest.raises(pl.InvalidArgument, match="two points, got 1"):
        pl.pca(path[:1])
    with pytest.raises(pl.InvalidArgument, match="1 to 3"):
        pl.pca(path, 4)
    with pytest.raises(pl.InvalidArgument, match="moves"):
        pl.pca(pl.trajectory(np.ones((3, 9)), linear(9)))
    with pytest.raises(pl.InvalidArgument, match="centre"):
        pl.pca(path, centre=7)


def test_what_is_no_trajectory_is_refused_by_name(tmp_path):
    model = network()
    land = pl.Landscape(model, "cross_entropy", data())
    path = pl.trajectory([model, model], land)
    runs = pl.train(land, 2, pl.SGD(lr=0.1), steps=1, progress=False)
    for ask, message in (
        (
            lambda: pl.pca_directions(land, path),
            r"pca_directions\(\) expected a Trajectory, got Lan",
        ),
        (
            lambda: pl.pca(model),
            r"pca\(\) expected a Trajectory, got Sequential; pylandscape\.traj",
        ),
        (lambda: pl.pca(runs), r"expected a Trajectory, got Runs; the first of these is \[0\]"),
        (lambda: pl.track(land, path), r"track\(\) expected a Trajectory, got Landscape"),
        (lambda: pl.track(path, model), r"track\(\) expected a Landscape, got the module"),
        (lambda: pl.functional_distance(path[0], path[1], land), "expected a Landscape, got dict"),
        (lambda: pl.barriers(land.theta, [land]), r"barriers\(\) expected a Landscape, got Tensor"),
        (lambda: pl.classify(path, land.theta), "expected a Landscape, got Trajectory"),
        (lambda: land.loss(path), r"theta: expected one point, got a Trajectory of 2"),
    ):
        with pytest.raises(pl.InvalidArgument, match=message):
            ask()


# Projections


def test_coordinates_and_off_plane_distance_on_oblique_directions():
    generator = np.random.default_rng(5)
    d = generator.standard_normal((2, 30))
    d[1] += 3 * d[0]
    c = generator.standard_normal((6, 2))
    off = generator.standard_normal((6, 30))
    off -= off @ np.linalg.pinv(d) @ d
    theta = generator.standard_normal(30)
    path = pl.trajectory(theta + c @ d + off, linear(30))
    found = path.project(d[0], d[1], theta=theta)
    assert found.coordinates == pytest.approx(c, abs=1e-10)
    assert found.off_plane == pytest.approx(np.linalg.norm(off, axis=1))
    assert found.distances == pytest.approx(np.linalg.norm(c @ d + off, axis=1))


def test_the_plane_of_a_path_shows_the_path(tmp_path):
    model = network(dtype=torch.float64)
    states, losses = [], []

    def each(loss):
        states.append(copied(model))

    train(model, 30, each, torch.float64)
    x, y = data(torch.float64)
    land = pl.Landscape(model, "cross_entropy", (x, y))
    path = pl.trajectory(states, land)
    d1, d2 = pl.pca_directions(path)
    found = path.project(d1, d2)
    ax, ay = found.axes(9)
    surface = pl.plane(land, d1, d2, x=ax, y=ay, theta=path[-1], progress=False)
    assert surface.x[0] < found.coordinates[:, 0].min()
    for state in states[::10]:
        model.load_state_dict(state)
        losses.append(nn.functional.cross_entropy(model(x), y).item())
    at = land.losses(points=torch.stack([path.vector(i) for i in range(0, 30, 10)]))
    assert at == pytest.approx(losses)


def test_a_path_that_is_a_dot_on_random_directions_is_said_so():
    path = pl.trajectory(walk(5, 40_000), linear(40_000))
    generator = np.random.default_rng(9)
    with pytest.warns(UserWarning, match="shrinks to a dot"):
        found = path.project(*generator.standard_normal((2, 40_000)) / 200)
    assert found.is_dot


def test_directions_that_span_no_plane_are_refused():
    path = pl.trajectory(walk(4, 9), linear(9))
    with pytest.raises(pl.InvalidArgument, match="span a plane"):
        path.project(np.ones(9), 2 * np.ones(9))


def test_distances_are_from_the_point_asked_for():
    x = walk(6, 40)
    path = pl.trajectory(x, linear(40))
    assert path.distances() == pytest.approx(np.linalg.norm(x - x[0], axis=1))
    assert path.distances(-1) == pytest.approx(np.linalg.norm(x - x[-1], axis=1))


# MDS


def test_planar_points_come_back_up_to_rotation_and_reflection():
    generator = np.random.default_rng(2)
    plane = generator.standard_normal((8, 2))
    basis = np.linalg.qr(generator.standard_normal((400, 2)))[0]
    found = pl.mds(pl.trajectory(7.0 + plane @ basis.T, linear(400)), distance="euclidean")
    want = plane - plane.mean(axis=0)
    u, _, vt = np.linalg.svd(found.points.T @ want)
    assert found.points @ (u @ vt) == pytest.approx(want, abs=1e-12)
    assert found.strain < 1e-12


def test_cosine_distances_do_not_see_scales():
    x = walk(6, 40)
    scaled = x * np.array([1, 5, 0.1, 3, 2, 9])[:, None]
    first, second = (pl.mds(pl.trajectory(a, linear(40)), distance="angular") for a in (x, scaled))
    assert first.points == pytest.approx(second.points, abs=1e-12)
    cos = x[1] @ x[4] / np.linalg.norm(x[1]) / np.linalg.norm(x[4])
    assert first.distances[1, 4] == pytest.approx(math.sqrt(2 * (1 - cos)))


def test_distances_that_are_not_euclidean_are_said_so():
    line = np.outer(np.linspace(0, 1, 9), np.eye(30)[0]) + np.eye(30)[1]
    path = pl.trajectory(line, linear(30))
    with pytest.warns(UserWarning, match="angular"):
        pl.mds(path, distance="cosine")
    values = strain_mds([[0, 1, 1], [1, 0, 3], [1, 3, 0]])[2]
    assert values[-1] < 0


def test_one_layer_of_several_runs():
    runs = []
    for seed in (0, 1):
        model, states = network(seed), []
        train(model, 4, lambda loss, m=model, s=states: s.append(copied(m)))
        runs.append(pl.trajectory(states))
    found = pl.mds(runs, layer="2.weight", distance="angular")
    assert found.layer == ("2.weight",)
    assert found.run.tolist() == [0] * 4 + [1] * 4
    want = np.stack([s["2.weight"].double().reshape(-1).numpy() for r in runs for s in r])
    want /= np.linalg.norm(want, axis=1)[:, None]
    assert found.distances[1, 6] == pytest.approx(np.linalg.norm(want[1] - want[6]))


def test_mds_says_what_is_wrong():
    with pytest.raises(pl.InvalidArgument, match="distance"):
        pl.mds(pl.trajectory(walk(4, 9), linear(9)), distance="l1")
    with pytest.raises(pl.InvalidArgument, match="zeros in model 0"):
        pl.mds(pl.trajectory(np.vstack([np.zeros(9), walk(3, 9)]), linear(9)))
    with pytest.raises(pl.InvalidArgument, match="at least two"):
        pl.mds([network()])


# Similarity


class Table(nn.Module):
    """Outputs that are the parameters."""

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(torch.as_tensor(rows, dtype=torch.float64))

    def forward(self, index):
        return self.rows[index]


def answers(labels, classes=3, sure=60.0):
    rows = torch.zeros(len(labels), classes, dtype=torch.float64)
    rows[torch.arange(len(labels)), torch.as_tensor(labels)] = sure
    return {"rows": rows}


def tables(target):
    model = Table(answers(target)["rows"])
    return pl.Landscape(model, "cross_entropy", (torch.arange(len(target)), torch.tensor(target)))


def test_one_hot_outputs_that_disagree_on_a_share_p_are_at_squared_distance_2p():
    target = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    land = tables(target)
    other = [1, *target[1:8], 0, 0]
    found = pl.functional_distance(land, answers(target), answers(other))
    assert found.square == pytest.approx(2 * 0.2)
    assert found.distance == pytest.approx(math.sqrt(0.4))
    assert found.disagreement == pytest.approx(0.2)
    same = pl.functional_distance(land, answers(target), answers(target, sure=60.0))
    assert same.distance == 0.0


def test_agreement_by_hand():
    target = [0, 1, 2, 0, 1, 2]
    land = tables(target)
    first, second = [0, 1, 2, 0, 0, 0], [0, 1, 0, 1, 1, 0]
    found = pl.agreement(land, [answers(target), answers(first), answers(second)])
    assert found.accuracy == pytest.approx([1.0, 4 / 6, 3 / 6])
    assert found.right[1, 2] == pytest.approx(2 / 4)
    assert found.right[2, 1] == pytest.approx(2 / 3)
    assert found.right[1, 2] * found.accuracy[1] == pytest.approx(
        found.right[2, 1] * found.accuracy[2]
    )
    assert np.diag(found.right) == pytest.approx(np.ones(3))
    assert np.isnan(found.wrong[0]).all()  # it is never wrong
    assert found.wrong[1, 2] == pytest.approx(1 / 2)
    assert found.confusion[1].tolist() == [[2, 0, 0], [1, 1, 0], [1, 0, 1]]


def test_equioutput_copies_are_at_distance_zero():
    model = network(dtype=torch.float64)
    x, y = data(torch.float64)
    land = pl.Landscape(model, "cross_entropy", (x, y))
    group = pl.EquioutputGroup(land)
    (element,) = group.random_elements(1, seed=3)
    copy = group.apply(element, land.theta)
    found = pl.functional_distance(land, land.theta, copy)
    assert found.distance < 1e-12


def test_runs_agree_as_their_ends_do():
    land = pl.Landscape(network(), "cross_entropy", data())
    runs = pl.train(land, 2, pl.SGD(lr=0.5), steps=3, progress=False)
    want = pl.agreement(land, [run[-1] for run in runs])
    assert np.array_equal(pl.agreement(land, runs).right, want.right, equal_nan=True)


def test_similarity_says_what_is_wrong():
    land = pl.Landscape(nn.Linear(2, 2), "mse", (torch.zeros(3, 2), torch.zeros(3, 2)))
    with pytest.raises(pl.InvalidArgument, match="loss of classes"):
        pl.agreement(land, [land.theta])
    with pytest.raises(pl.InvalidArgument, match="at least one"):
        pl.agreement(tables([0, 1]), [])
    assert math.isnan(pl.functional_distance(land, land.theta, land.theta).disagreement)


# In other people's training loops


def stand_in(monkeypatch, package, name):
    """A base class of the other package's callbacks, which need not be installed."""
    module = types.ModuleType(package)
    setattr(module, name, type(name, (), {}))
    parent = package.partition(".")[0]
    monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, package, module)
    ours = f"pylandscape.trajectories.{parent}"
    monkeypatch.delitem(sys.modules, ours, raising=False)
    found = importlib.import_module(ours).Recorder
    monkeypatch.delitem(sys.modules, ours, raising=False)
    return found


def test_lightnings_callback_records_each_batch_of_rank_0(tmp_path, monkeypatch):
    callback = stand_in(monkeypatch, "lightning.pytorch", "Callback")
    model = network()
    for rank, name in ((0, "run.h5"), (1, "other.h5")):
        trainer = types.SimpleNamespace(is_global_zero=rank == 0)
        made = callback(tmp_path / name, every=2)
        made.on_train_start(trainer, model)
        for k in range(5):
            loss = torch.tensor(float(k), requires_grad=True)
            made.on_train_batch_end(trainer, model, {"loss": loss}, None, k)
        made.on_exception(trainer, model, KeyboardInterrupt())
        made.on_train_end(trainer, model)
    path = pl.trajectory(tmp_path / "run.h5")
    assert path.steps.tolist() == [0, 2, 4]
    assert path.metrics["loss"].tolist() == [0.0, 2.0, 4.0]
    assert not (tmp_path / "other.h5").exists()


def test_transformers_callback_records_each_step_of_rank_0(tmp_path, monkeypatch):
    callback = stand_in(monkeypatch, "transformers", "TrainerCallback")
    model = network()
    made = callback(tmp_path / "run.h5")
    state = types.SimpleNamespace(is_world_process_zero=True, log_history=[])
    made.on_train_begin(None, state, None, model=model)
    for k in range(3):
        made.on_step_end(None, state, None)
        state.log_history.append({"loss": float(k)})
    made.on_train_end(None, state, None)
    path = pl.trajectory(tmp_path / "run.h5")
    assert path.metrics["loss"][1:].tolist() == [0.0, 1.0]
    assert math.isnan(path.metrics["loss"][0])


# What the review of the first version found


class Holder(nn.Module):
    """As a LightningModule holds its network."""

    def __init__(self, net):
        super().__init__()
        self.net = net


def test_a_recording_of_a_module_that_holds_the_model_is_the_models(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    with pl.Recorder(Holder(model), tmp_path / "run.h5") as recorder:
        recorder.step()
    land = pl.Landscape(model, "mse", (torch.randn(5, 4), torch.zeros(5, 3)))
    path = pl.trajectory(tmp_path / "run.h5", like=land)
    assert path[0].keys() == {k for k in model.state_dict() if "tracked" not in k}
    assert land.loss(path[0]) == land.loss()
    torch.save({"state_dict": Holder(model).state_dict()}, tmp_path / "a.pt")
    assert land.loss(tmp_path / "a.pt") == land.loss()
    other = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3))
    with pytest.raises(pl.InvalidArgument, match=r"other shapes: 0\.weight \(3, 4\) for \(2, 4\)"):
        pl.trajectory(tmp_path / "run.h5", like=other)
    two = nn.ModuleDict({"a": Holder(model), "b": Holder(model)})
    two["b"] = Holder(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    with pytest.raises(pl.LayoutMismatch):  # which of the two is not said
        land.loss(two.state_dict())


def test_a_finished_file_that_goes_on_is_never_the_shorter_one(tmp_path):
    model = network()
    with pl.Recorder(model, tmp_path / "run.h5") as recorder:
        for _ in range(3):
            recorder.step()
    again = pl.Recorder(model, tmp_path / "run.h5")
    again.step()
    assert len(pl.trajectory(tmp_path / "run.h5")) == 4  # what goes on, not the finished file
    again.close()
    assert len(pl.trajectory(tmp_path / "run.h5")) == 4
    # killed while the finished file was being turned into a log: the rest of that is no log
    (tmp_path / "run.h5.recording.tmp").write_bytes(b"begun")
    with pl.Recorder(model, tmp_path / "run.h5") as recorder:
        assert len(recorder.steps) == 4


def test_a_bit_that_flips_in_a_point_is_found(tmp_path):
    with pl.Recorder(network(), tmp_path / "run.h5") as recorder:
        for _ in range(3):
            recorder.step()
    content = bytearray((tmp_path / "run.h5").read_bytes())
    values = pl.trajectory(tmp_path / "run.h5").vector(1).float().numpy().tobytes()
    where = content.index(values)
    content[where + 9] ^= 4
    (tmp_path / "run.h5").write_bytes(bytes(content))
    with pytest.raises(pl.FileFormatError, match=r"point \d of .* checksum"):
        pl.trajectory(tmp_path / "run.h5")


def test_a_run_that_diverged_is_named_with_its_first_bad_point():
    x = walk(5, 9)
    x[3:, 2] = np.nan
    path = pl.trajectory(x, linear(9))
    with pytest.raises(pl.InvalidArgument, match=r"2 of 5 points, point 3 .*trajectory\[:3\]"):
        pl.pca(path, centre=0)
    with pytest.raises(pl.InvalidArgument, match="2 of 5 models"):
        pl.mds(path)
    assert len(pl.pca(path[:3], centre=0).directions) == 2


def test_a_walk_seen_from_between_has_the_shares_of_two_walks():
    found = pl.pca(pl.trajectory(walk(121, 20_000), linear(20_000)), 3, centre=40)
    assert found.null[:2] == pytest.approx([0.81 * 4 / 5, 0.81 / 5], abs=5e-3)
    assert found.ratios == pytest.approx(found.null[:3], abs=0.02)


def test_a_short_path_far_from_theta_is_no_dot():
    path = pl.trajectory(walk(4, 9), linear(9))
    d1, d2 = pl.pca_directions(path)
    far = path.vector(-1).numpy() + 1e4 * np.ones(9)
    assert not path.project(d1, d2, theta=far).is_dot


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no limits of files")
def test_a_full_disk_leaves_what_was_recorded_readable(tmp_path):
    script = textwrap.dedent(f"""
        import resource, signal, torch, pylandscape as pl
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        model = torch.nn.Linear(100, 10)
        recorder = pl.Recorder(model, {str(tmp_path / "run.h5")!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        done = 0
        try:
            for k in range(9):
                recorder.step(loss=k)
                done += 1
        except OSError as error:
            print(done, error)
        again = pl.trajectory({str(tmp_path / "run.h5")!r})
        assert again.metrics["loss"].tolist() == list(range(done)), again
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        recorder.step(loss=done)
        recorder.close()
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    count, said = int(done.stdout.split()[0]), done.stdout
    assert count == 4
    assert "the 4 before it are safe" in said
    assert len(pl.trajectory(tmp_path / "run.h5")) == 5


def test_agreement_of_binary_answers_refuses_probabilities():
    x = torch.zeros(4, 2)
    model = nn.Linear(2, 1)
    soft = pl.Landscape(model, "bce_with_logits", (x, torch.full((4, 1), 0.5)))
    with pytest.raises(pl.InvalidArgument, match="targets 0 or 1"):
        pl.agreement(soft, [model])
    hard = pl.Landscape(nn.Linear(2, 3), "bce_with_logits", (x, torch.ones(4, 3)))
    assert pl.agreement(hard, [hard.model]).confusion.shape == (1, 2, 2)


def test_ignored_samples_do_not_count_in_the_functional_distance():
    target = [0, 1, -100, -100]
    land = pl.Landscape(
        Table(answers([0, 1, 0, 0])["rows"]), "cross_entropy",
        (torch.arange(4), torch.tensor(target)),
    )  # fmt: skip
    found = pl.functional_distance(land, answers([0, 1, 0, 0]), answers([0, 2, 1, 1]))
    assert found.disagreement == pytest.approx(0.5)
    assert found.square == pytest.approx(1.0)


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs Linux' /proc")
def test_reading_a_file_leaves_few_of_its_pages_resident(tmp_path, monkeypatch):
    """A mapped file of any size would else fill the process's memory, page by page."""
    monkeypatch.setattr("pylandscape.trajectories.sources._RESIDENT", 1 << 20)
    values = np.random.default_rng(0).standard_normal((8, 500_000), dtype=np.float32)
    values.tofile(tmp_path / "values")
    mapped = np.memmap(tmp_path / "values", np.float32, "r", shape=values.shape)
    layout = pl.ParameterLayout.of(nn.Linear(values.shape[1], 1, bias=False))
    source = ArraySource(mapped, layout)
    parts = [source.columns(np.arange(8), i, i + 50_000) for i in range(0, 500_000, 50_000)]
    assert np.array_equal(np.concatenate(parts, axis=1), values)
    lines = Path("/proc/self/smaps").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.endswith(str(tmp_path / "values")))
    resident = next(line for line in lines[first:] if line.startswith("Rss:"))
    assert int(resident.split()[1]) < 4 << 10  # KiB, of 16 MB
