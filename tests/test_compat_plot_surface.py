"""The command line of loss-landscape: its files both ways, resuming, pictures."""

from __future__ import annotations

import re

import h5py
import numpy as np
import pytest
import torch
from tg_support import (
    RANDOM,
    checkpoint,
    data,
    losses,
    model,
    options,
    read_as_plot_2d_does,
    run,
    written_by_the_original,
)

import pylandscape as pl
from pylandscape.compat.loss_landscape import (
    _crunch,
    h52vtp,
    net_plotter,
    plot_1D,
    plot_2D,
    plot_surface,
    plot_trajectory,
    projection,
)
from pylandscape.runs import chunks

EPS = float(torch.finfo(torch.float32).eps)
SMALL = ["--x=-1:1:4", "--y=0:0.5:3"]  # a bound of 0, nx != ny


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "m.pt")


def the_file(tmp_path, pattern="*]x[[]*.h5"):
    (found,) = tmp_path.glob(pattern)
    return found


def test_a_surface_has_its_name_layout_and_numbers(tmp_path, capsys):
    assert run(*SMALL, *RANDOM, "--model_file", "m.pt") == 0
    dir_file = "m.pt_weights_xignore=biasbn_xnorm=filter_yignore=biasbn_ynorm=filter.h5"
    path = tmp_path / f"{dir_file}_[-1.0,1.0,4]x[0.0,0.5,3].h5"
    with h5py.File(path, "r") as f:
        assert sorted(f) == ["dir_file", "train_acc", "train_loss", "xcoordinates", "ycoordinates"]
        assert f["dir_file"].asstr()[()] == dir_file
        assert f["xcoordinates"][:].tolist() == np.linspace(-1, 1, 4).tolist()
        assert f["ycoordinates"][:].tolist() == [0, 0.25, 0.5]
        assert {f[name].dtype.str for name in f if name != "dir_file"} == {"<f8"}
    x_mesh, y_mesh, z = read_as_plot_2d_does(path)
    assert x_mesh.shape == y_mesh.shape == z.shape == (3, 4)
    dx, dy = net_plotter.load_directions(dir_file)
    want = losses(model(), x_mesh[0], y_mesh[:, 0], dx, dy)
    assert np.allclose(z, want, rtol=64 * EPS)
    loaded = pl.load(path)
    assert np.array_equal(loaded.values, z.T)
    assert loaded.metrics["accuracy"].max() <= 1.0
    assert loaded.info["direction_cosine"] == pytest.approx(
        projection.cal_angle(*map(projection.nplist_to_tensor, (dx, dy)))
    )
    said = capsys.readouterr().out
    assert re.search(r"train_loss +12 points .*; 0 were there", said)
    assert "engine     native" in said


def test_the_same_command_computes_nothing_again_whatever_the_sign(tmp_path, capsys):
    words = [*SMALL, *RANDOM, "--model_file", "m.pt", "--loss_name", "tg_support:negative"]
    assert run(*words) == 0
    path = the_file(tmp_path)
    _, _, z = read_as_plot_2d_does(path)
    assert (z < 0).all()
    before = path.read_bytes()
    capsys.readouterr()
    assert run(*words) == 0
    assert re.search(r"train_loss +0 points .*; 12 were there", capsys.readouterr().out)
    assert path.read_bytes() == before


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch, capsys):
    words = [*SMALL, *RANDOM, "--model_file", "m.pt"]
    assert run(*words) == 0
    path = the_file(tmp_path)
    _, _, whole = read_as_plot_2d_does(path)
    path.unlink()
    append, calls = _crunch.Record.append, []
    monkeypatch.setattr(chunks, "MAX_GROWTH", 2)

    def interrupted(self, begin, block):
        append(self, begin, block)
        calls.append(len(block))
        if sum(calls) > 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_crunch.Record, "append", interrupted)
        assert run(*words) == 130
    _, _, part = read_as_plot_2d_does(path)
    assert (part == -1).sum() == part.size - sum(calls) > 0
    assert pl.load(path).info["unfilled"] == part.size - sum(calls)
    capsys.readouterr()
    assert run(*words) == 0
    assert f"{part.size - sum(calls)} points" in capsys.readouterr().out
    assert np.array_equal(read_as_plot_2d_does(path)[2], whole)


@pytest.mark.parametrize("axes", [SMALL, ["--x=-1:1:3", "--y=-1:0:3"]])
def test_a_surface_that_the_original_began_is_finished(tmp_path, axes, capsys):
    words = [*axes, *RANDOM, "--model_file", "m.pt", "--surf_file", "s.h5"]
    assert run(*words) == 0
    x_mesh, y_mesh, loss = read_as_plot_2d_does("s.h5")
    _, _, accuracy = read_as_plot_2d_does("s.h5", "train_acc")
    dir_file = the_file(tmp_path, "*ynorm=filter.h5")
    dir_file.rename(tmp_path / "d.h5")
    words += ["--dir_file", "d.h5"]
    written_by_the_original("s.h5", x_mesh[0], y_mesh[:, 0], loss, accuracy, done=5)
    capsys.readouterr()
    assert run(*words) == 0
    assert re.search(rf"{loss.size - 5} points .*; 5 were there", capsys.readouterr().out)
    assert np.allclose(read_as_plot_2d_does("s.h5")[2], loss, rtol=64 * EPS)
    assert np.array_equal(read_as_plot_2d_does("s.h5", "train_acc")[2], accuracy)


def test_values_that_this_model_does_not_have_are_noticed(tmp_path, capsys):
    words = [*SMALL, *RANDOM, "--model_file", "m.pt", "--surf_file", "s.h5"]
    assert run(*words) == 0
    x_mesh, y_mesh, loss = read_as_plot_2d_does("s.h5")
    the_file(tmp_path, "*ynorm=filter.h5").rename(tmp_path / "d.h5")
    written_by_the_original("s.h5", x_mesh[0], y_mesh[:, 0], 1.01 * loss, loss, done=5)
    capsys.readouterr()
    assert run(*words, "--dir_file", "d.h5") == 2
    assert "records a loss of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--x=-1:1:5"], "other xcoordinates than asked for: -1:1:4, not -1:1:5"),
        (["--loss_name", "mse"], "another request; .*loss.name"),
        (["--ynorm", "layer"], "is of the directions in .*ynorm=filter.h5, not in .*ynorm=layer"),
    ],
)
def test_a_file_of_another_request_is_left_alone(tmp_path, more, said, capsys):
    words = [*SMALL, *RANDOM, "--model_file", "m.pt", "--surf_file", "s.h5"]
    assert run(*words) == 0
    before = (tmp_path / "s.h5").read_bytes()
    assert run(*words, *more) == 2
    assert re.search(said, capsys.readouterr().err)
    assert (tmp_path / "s.h5").read_bytes() == before


def test_states_move_the_running_statistics_to_another_model(tmp_path):
    checkpoint(tmp_path / "n.pt", 0.5)
    words = ["--x=0:1:3", "--model_file", "m.pt", "--model_file2", "n.pt", "--dir_type", "states"]
    assert run(*words) == 0
    path = the_file(tmp_path, "*[[]*.h5")
    assert path.name == "m.pt_n.pt_states.h5_[0.0,1.0,3].h5"
    curve = pl.load(path)
    assert isinstance(curve, pl.Curve)
    net, end = model(), torch.load("n.pt", weights_only=True)["state_dict"]
    start = {k: v.clone() for k, v in net.state_dict().items()}
    x, y = data()
    for t, value in zip(curve.x, curve.values, strict=True):
        net.load_state_dict(
            {k: torch.lerp(v, end[k], t) if v.dim() else v for k, v in start.items()}
        )
        with torch.no_grad():
            want = torch.nn.functional.cross_entropy(net(x).double(), y)
        assert value == pytest.approx(float(want), rel=64 * EPS)


def test_repeated_experiments_have_their_own_directions(tmp_path):
    for idx in ("0", "1"):
        assert run("--x=-1:1:2", "--xnorm", "filter", "--model_file", "m.pt", "--idx", idx) == 0
    first, second = (
        net_plotter.load_directions(f"m.pt_weights_xnorm=filter{i}.h5")[0] for i in ("", "_idx=1")
    )
    assert not np.allclose(first[0], second[0])


def test_falling_axes_and_test_data_are_taken(tmp_path):
    assert run("--x=1:-1:3", "--model_file", "m.pt", "--test_data", "tg_support:data") == 0
    path = the_file(tmp_path, "*[[]*.h5")
    with h5py.File(path, "r") as f:
        assert f["xcoordinates"][:].tolist() == [1, 0, -1]
        assert np.array_equal(f["train_loss"], f["test_loss"])
    assert pl.load(path).x.tolist() == [-1, 0, 1]


def test_batches_and_splits_of_the_data_are_taken(tmp_path):
    common = ["--x=-1:1:3", "--model_file", "m.pt"]
    assert run(*common, "--surf_file", "a.h5") == 0
    assert run(*common, "--surf_file", "b.h5", "--batch_size", "7") == 0
    for i in "01":
        assert run(*common, "--data_split", "2", "--split_idx", i) == 0
    a, b = (pl.load(name).values for name in ("a.h5", "b.h5"))
    assert np.allclose(a, b, rtol=16 * EPS)
    halves = [pl.load(p).values for p in sorted(tmp_path.glob("*_datasplit=2_splitidx=?.h5"))]
    assert np.allclose(np.mean(halves, axis=0), a, rtol=16 * EPS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--x=-1:1"], "--x: expected min:max:n"),
        (["--model_file", "none.pt"], "no file 'none.pt'"),
        (["--data", ""], "--data: expected package.module:factory"),
        (["--xnorm", "fliter"], "norm: expected one of"),
        (["--loss_name", "hinge"], "loss: expected one of"),
        (["--trainloader", "a.pkl"], "need pickle"),
        (["--surf_file", "m.pt"], "surf_file: expected an HDF5 file"),
        (["--dir_file", "none.h5"], "--dir_file: expected a file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, said, capsys):
    assert run("--x=-1:1:3", "--model_file", "m.pt", *words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_of_several_mpi_ranks_the_first_computes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    assert run("--x=-1:1:3", "--mpi") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.h5"))


def test_crunch_takes_the_arguments_of_forks_that_call_it(tmp_path):
    args, net = options(x="-1:1:3"), model()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net_plotter.setup_direction(args, "d.h5", net)
    plot_surface.setup_surface_file(args, "s.h5", "d.h5")
    w, s, d = net_plotter.get_weights(net), net.state_dict(), net_plotter.load_directions("d.h5")
    plot_surface.crunch("s.h5", net, w, s, d, data(), "train_loss", "train_acc", None, 0, args)
    assert pl.load("s.h5").info["unfilled"] == 0
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


# --- pictures and projections ------------------------------------------------------------------


def test_pictures_have_their_names(tmp_path):
    assert run(*SMALL, *RANDOM, "--model_file", "m.pt", "--plot") == 0
    path = the_file(tmp_path)
    for kind in ("2dcontour", "2dcontourf", "2dheat", "3dsurface"):
        assert (tmp_path / f"{path.name}_train_loss_{kind}.pdf").stat().st_size > 1000
    assert run("--x=-1:1:5", "--model_file", "m.pt", "--plot", "--log") == 0
    path = the_file(tmp_path, "m.pt_weights.h5_*.h5")
    for kind in ("1d_loss_acc_log", "1d_train_loss_log", "1d_train_err"):
        assert (tmp_path / f"{path.name}_{kind}.pdf").stat().st_size > 1000


def trajectory(tmp_path):
    """Four checkpoints and the last one's weights and states."""
    files = [
        checkpoint(tmp_path / f"model_{i}.t7", shift, seed=i)
        for i, shift in enumerate((0.9, 0.5, 0.2, 0.0))
    ]
    net = model()
    return files, net_plotter.get_weights(net), net.state_dict()


@pytest.mark.parametrize("kind", ["weights", "states"])
def test_principal_directions_and_projections_have_their_layout(tmp_path, kind):
    files, w, s = trajectory(tmp_path)
    args = options(dir_type=kind, ignore="", save_epoch=1, model_folder=str(tmp_path))
    dir_file = projection.setup_PCA_directions(args, files, w, s)
    assert dir_file == f"{tmp_path}/PCA_{kind}_save_epoch=1/directions.h5"
    with h5py.File(dir_file, "r") as f:
        assert len(f["xdirection"]) == len(w if kind == "weights" else s)
        for name in ("explained_variance_ratio_", "singular_values_", "explained_variance_"):
            assert f[name].shape == (2,)
        assert np.allclose(f["singular_values_"][:] ** 2 / 3, f["explained_variance_"][:])
        assert 0.5 < f["explained_variance_ratio_"][:].sum() <= 1 + EPS
    dx, dy = map(projection.nplist_to_tensor, net_plotter.load_directions(dir_file))
    assert float(dx.norm()) == pytest.approx(1, rel=16 * EPS)
    assert abs(projection.cal_angle(dx, dy)) < 64 * EPS
    proj_file = projection.project_trajectory(dir_file, w, s, "", args.model, files, kind)
    assert proj_file == f"{dir_file}_proj_cos.h5"
    with h5py.File(proj_file, "r") as f:
        assert sorted(f) == ["proj_xcoord", "proj_ycoord"]
        assert f["proj_xcoord"].shape == (4,)
        assert f["proj_xcoord"][-1] == f["proj_ycoord"][-1] == 0
        assert f["proj_xcoord"].attrs[projection.FARNESS][-1] == 0


def test_a_path_is_drawn_in_units_of_the_directions(tmp_path):
    files, w, s = trajectory(tmp_path)
    dx, dy = ([torch.randn_like(p) for p in w] for _ in range(2))
    dy = [a + 0.5 * b for a, b in zip(dy, dx, strict=True)]  # neither orthogonal nor of length 1
    with h5py.File("d.h5", "w") as f:
        for name, direction in (("xdirection", dx), ("ydirection", dy)):
            for i, part in enumerate(direction):
                f[f"{name}/{i}"] = part.numpy()
    state = {k: v.clone() for k, v in s.items()}
    for (name, _), p, a, b in zip(model().named_parameters(), w, dx, dy, strict=True):
        state[name] = p + 0.25 * a - 2 * b
    torch.save(state, files[1])
    for method in ("cos", "lstsq"):
        proj_file = projection.project_trajectory(
            "d.h5", w, s, "", "tg_support:model", files, "weights", method
        )
        track = projection.coefficients(proj_file, "d.h5")
        assert track[1] == pytest.approx([0.25, -2], abs=64 * EPS)
        with h5py.File(proj_file, "r") as f:
            assert f["proj_xcoord"].attrs[projection.FARNESS][1] < 64 * EPS * 10
    assert (
        run(*SMALL, "--model_file", "m.pt", "--dir_file", "d.h5", "--plot", "--proj_file",
            "d.h5_proj_cos.h5")
        == 0
    )  # fmt: skip
    assert (tmp_path / "d.h5_proj_cos.h5_train_loss_2dcontour_proj.pdf").stat().st_size > 1000


def test_vectors_and_lists_of_tensors_are_turned_into_one_another():
    w = net_plotter.get_weights(model())
    vector = projection.tensorlist_to_tensor(w)
    again = projection.npvec_to_tensorlist(vector.numpy(), w)
    assert all(torch.equal(a, b) for a, b in zip(again, w, strict=True))
    with pytest.raises(pl.LayoutMismatch, match="expected shape"):
        projection.npvec_to_tensorlist(vector[1:], w)


def test_the_path_of_checkpoints_is_drawn_by_its_own_program(tmp_path):
    trajectory(tmp_path)
    folder = tmp_path / "PCA_weights_ignore=biasbn_save_epoch=1"
    words = ["--model", "tg_support:model", "--model_folder", str(tmp_path), "--max_epoch", "3"]
    assert plot_trajectory.main([*words, "--ignore", "biasbn"]) == 0
    with h5py.File(folder / "directions.h5_proj_cos.h5", "r") as f:
        path = np.stack([f["proj_xcoord"][:], f["proj_ycoord"][:]])
    assert path.shape == (2, 4)
    assert np.allclose(path[:, -1], 0.0, atol=1e-6)  # the last model is the origin
    assert np.abs(path[0]).max() > 0.0
    assert (folder / "directions.h5_proj_cos.h5.pdf").stat().st_size > 1000


@pytest.mark.ci
def test_pictures_of_surface_files_have_programs(tmp_path, capsys):
    for file in ("r_1.h5", "r_2.h5"):
        words = ["--surf_file", file, "--x=-1:1:3", *RANDOM[:4]]
        assert run(*words, "--model_file", "m.pt") == 0
    curve, grid = "r_1.h5", "g.h5"
    (tmp_path / "r_2.h5").rename(tmp_path / "c_1.h5")
    assert run(*SMALL, *RANDOM, "--model_file", "m.pt", "--surf_file", "g.h5") == 0
    assert plot_1D.main(["-f", curve, "--loss_max", "9"]) == 0
    assert plot_1D.main(["--prefix", "c", "--idx_max", "1"]) == 0
    assert plot_2D.main(["--surf_file", grid, "--vlevel", "1"]) == 0
    assert h52vtp.main(["--surf_file", grid, "--zmax", "9"]) == 0
    named = [
        f"{curve}_1d_loss_acc.pdf",
        "c_1d_loss_err_repeat.pdf",
        f"{grid}_train_loss_2dheat.pdf",
    ]
    assert all((tmp_path / name).stat().st_size > 1000 for name in named)
    assert (tmp_path / f"{grid}_train_loss_zmax=9.0.vtp").exists()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("program", "words", "said"),
    [
        (plot_2D, [], "expected --surf_file, or --proj_file and --dir_file"),
        (plot_2D, ["--proj_file", "p.h5"], "expected both, or neither"),
        (plot_2D, ["--surf_file", "none.h5"], "none.h5"),
        (plot_1D, ["--prefix", "none"], "none_1.h5"),
        (plot_trajectory, ["--model", "tg_support:model"], "got none for 301: ./model_0.t7"),
        (plot_trajectory, ["--model", "m:f", "--save_epoch", "0"], "--save_epoch: expected"),
    ],
)
def test_programs_of_pictures_say_what_is_missing(program, words, said, capsys):
    assert program.main(words) == 2
    found = capsys.readouterr().err
    assert said in found
    assert len(found.splitlines()) == 1
