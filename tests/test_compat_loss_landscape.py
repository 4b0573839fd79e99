"""net_plotter and evaluation of loss-landscape: the same names and numbers, its defects away."""

from __future__ import annotations

import copy
import gc
import weakref

import h5py
import numpy as np
import pytest
import torch
from tg_support import checkpoint, data, model, options
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pylandscape import InvalidArgument, LayoutMismatch, ResumeMismatch
from pylandscape.compat import patched, report
from pylandscape.compat.loss_landscape import evaluation, net_plotter

EPS = float(torch.finfo(torch.float32).eps)


def close(a, b, factor=8):
    return torch.allclose(torch.as_tensor(a), torch.as_tensor(b), rtol=factor * EPS, atol=EPS)


# --- weights and states ------------------------------------------------------------------------


def test_set_weights_moves_along_one_or_two_directions_and_keeps_the_weights():
    net = model()
    w = net_plotter.get_weights(net)
    before = [p.clone() for p in w]
    dx, dy = ([torch.randn_like(p) for p in w] for _ in range(2))
    net_plotter.set_weights(net, w, [dx, dy], (0.5, -2.0))
    assert all(
        close(p, b + 0.5 * a - 2 * c)
        for p, b, a, c in zip(net.parameters(), before, dx, dy, strict=True)
    )
    net_plotter.set_weights(net, w, [[d.numpy() for d in dx]], 3.0)
    assert all(close(p, b + 3.0 * a) for p, b, a in zip(net.parameters(), before, dx, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(w, before, strict=True))
    net_plotter.set_weights(net, w)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))


def test_set_states_moves_running_statistics():
    net = model()
    s = copy.deepcopy(net.state_dict())
    d = [torch.ones_like(v) for v in s.values()]
    net_plotter.set_states(net, s, [d], 2.0)
    for name, value in net.state_dict().items():
        assert close(value, s[name] + 2)
    net_plotter.set_states(net, s)
    assert all(torch.equal(v, s[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    ("step", "count", "error", "said"),
    [
        (None, 1, InvalidArgument, "step: expected a number or a pair"),
        (1.0, 2, InvalidArgument, "step: expected 2 numbers, got 1"),
        ((1.0, 2.0), 1, InvalidArgument, "step: expected 1 numbers, got 2"),
    ],
)
def test_a_step_that_does_not_fit_the_directions_is_refused(step, count, error, said):
    net = model()
    w = net_plotter.get_weights(net)
    with pytest.raises(error, match=said):
        net_plotter.set_weights(net, w, [w] * count, step)


def test_directions_of_other_shapes_are_refused():
    net = model()
    w = net_plotter.get_weights(net)
    with pytest.raises(LayoutMismatch, match="got 5 and 6 tensors"):
        net_plotter.set_weights(net, w, [w[:-1]], 1.0)
    with pytest.raises(LayoutMismatch, match="of tensor 0"):
        net_plotter.set_weights(net, w, [w[::-1]], 1.0)


# --- normalisation -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (5, 7), (6,)])
def test_normalisations_are_what_they_are_called(shape):
    w, d = torch.randn(shape), torch.randn(shape)
    rows = shape[0] if len(shape) > 1 else 1
    for norm, axis, want in [
        ("filter", 1, w.reshape(rows, -1).norm(dim=1)),
        ("dfilter", 1, torch.ones(rows)),
        ("layer", 0, w.norm()),
        ("dlayer", 0, torch.tensor(1.0)),
    ]:
        found = d.clone()
        net_plotter.normalize_direction(found, w, norm)
        flat = found.reshape(rows, -1) if axis else found.reshape(1, -1)
        assert close(flat.norm(dim=1).squeeze(), want.squeeze(), 32)
        cosine = F.cosine_similarity(flat, d.reshape(flat.shape), dim=1)
        assert close(cosine, torch.ones_like(cosine), 32)
    found = d.clone()
    net_plotter.normalize_direction(found, w, "weight")
    assert torch.equal(found, d * w)


@pytest.mark.parametrize("norm", ["filter", "layer", "dfilter", "dlayer", "weight"])
def test_zero_weights_and_zero_directions_never_give_nan(norm):
    for d, w in [(torch.zeros(3, 2), torch.ones(3, 2)), (torch.ones(3, 2), torch.zeros(3, 2))]:
        net_plotter.normalize_direction(d, w, norm)
        assert torch.isfinite(d).all()


def test_an_unknown_norm_is_refused():
    with pytest.raises(InvalidArgument, match=r"norm: expected one of 'filter'.* got 'fliter'"):
        net_plotter.normalize_direction(torch.ones(2), torch.ones(2), "fliter")


# --- directions --------------------------------------------------------------------------------


def reference_draw(net, seed):
    """What its program draws for filter and biasbn: one filter after the other."""
    torch.manual_seed(seed)
    found = [torch.randn(p.size()) for p in net.parameters()]
    for d, p in zip(found, net.parameters(), strict=True):
        for row, filter_ in zip(d, p.data, strict=True):
            if d.dim() > 1:
                row *= filter_.norm() / (row.norm() + 1e-10)
        if d.dim() <= 1:
            d.zero_()
    return found


@pytest.mark.parametrize("compat", [None, "2020"])
def test_a_seed_draws_the_direction_that_it_draws_there(compat):
    net = model()
    want = reference_draw(net, 123)
    torch.manual_seed(123)
    found = net_plotter.create_random_direction(net, compat=compat)
    assert all(close(a, b, 16) for a, b in zip(found, want, strict=True))


def test_without_biasbn_tensors_of_one_dimension_are_drawn_and_as_the_weights_on_request():
    net = model()
    found = net_plotter.create_random_direction(net, ignore="")
    theirs = net_plotter.create_random_direction(net, ignore="", compat="2020")
    with patched(compat={"loss_landscape": "2020"}):
        patched_theirs = net_plotter.create_random_direction(net, ignore="")
    for ours, original, again, w in zip(
        found, theirs, patched_theirs, net.parameters(), strict=True
    ):
        if w.dim() == 1:
            assert close(ours.norm(), w.norm(), 16)
            assert not close(ours, w)
            assert torch.equal(original, w)
            assert torch.equal(again, w)


def test_random_states_leave_the_buffers_alone():
    net = model()
    found = dict(
        zip(
            net.state_dict(),
            net_plotter.create_random_direction(net, "states", ignore=""),
            strict=True,
        )
    )
    buffers = {name for name, _ in net.named_buffers()}
    assert len(buffers) == 3
    assert all((not d.any()) == (name in buffers) for name, d in found.items())


def test_target_directions_lead_to_the_other_model():
    net, other = model(), model()
    with torch.no_grad():
        for value in other.state_dict().values():
            value += 1
    for kind, count in (("weights", 6), ("states", 9)):
        found = net_plotter.create_target_direction(net, other, kind)
        assert len(found) == count
        assert all(close(d, torch.ones_like(d)) for d in found)
    with pytest.raises(InvalidArgument, match="dir_type"):
        net_plotter.create_target_direction(net, other, "weight")


# --- direction files ---------------------------------------------------------------------------


def test_direction_files_have_their_layout(tmp_path):
    args = options(xignore="biasbn", xnorm="filter", y="-1:1:3", same_dir=True)
    path, net = str(tmp_path / "d.h5"), model()
    net_plotter.setup_direction(args, path, net)
    with h5py.File(path, "r") as f:
        assert sorted(f) == ["xdirection", "ydirection"]
        for group in f.values():
            assert sorted(group) == [str(i) for i in range(6)]
            for i, p in enumerate(net.parameters()):
                assert group[str(i)].shape == tuple(p.shape)
                assert group[str(i)].dtype == np.float32
    x, y = net_plotter.load_directions(path)
    assert all(np.array_equal(a, b) for a, b in zip(x, y, strict=True))


def test_a_direction_file_is_used_again_but_not_for_another_network(tmp_path):
    args, path, net = options(xnorm="filter"), str(tmp_path / "d.h5"), model()
    net_plotter.setup_direction(args, path, net)
    first = net_plotter.load_directions(path)
    net_plotter.setup_direction(args, path, net)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(first[0], net_plotter.load_directions(path)[0], strict=True)
    )
    with pytest.raises(ResumeMismatch, match="expected 2 directions"):
        net_plotter.setup_direction(options(y="-1:1:3"), path, net)
    with torch.no_grad():
        net[4].bias += 1
    with pytest.raises(ResumeMismatch, match=r"another network[\s\S]*theta"):
        net_plotter.setup_direction(args, path, net)
    with pytest.raises(LayoutMismatch):
        net_plotter.setup_direction(args, path, nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"xignore": "biasbn", "xnorm": "filter"}, "a/m.pt_weights_xignore=biasbn_xnorm=filter.h5"),
        ({"y": "0:1:2", "ynorm": "layer", "idx": 2}, "a/m.pt_weights_ynorm=layer_idx=2.h5"),
        ({"y": "0:1:2", "same_dir": True}, "a/m.pt_weights_same_dir.h5"),
        ({"model_file2": "a/n.pt", "dir_type": "states"}, "a/m.pt_n.pt_states.h5"),
        ({"model_file2": "b/n.pt"}, "a_m.pt__n.pt_weights.h5"),
        (
            {"model_file2": "a/n.pt", "model_file3": "a/o.pt", "y": "0:1:2"},
            "a/m.pt_n.pt_weights_o.pt.h5",
        ),
        (
            {"model_file2": "a/n.pt", "model_file3": "b/p.pt", "y": "0:1:2"},
            "a/m.pt_n.pt_weights_b_p.pt.h5",
        ),
        ({"model_file": "m.pt", "model_file2": "n.pt"}, "m.pt_n.pt_weights.h5"),
    ],
)
def test_direction_files_have_their_names(tmp_path, monkeypatch, given, name):
    monkeypatch.chdir(tmp_path)
    for folder in "ab":
        (tmp_path / folder).mkdir()
    for file in ("n.pt", "a/n.pt", "b/n.pt", "a/o.pt", "b/p.pt"):
        (tmp_path / file).touch()
    assert net_plotter.name_direction_file(options(**{"model_file": "a/m.pt", **given})) == name


def test_a_model_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(InvalidArgument, match="--model_file2: expected a file"):
        net_plotter.name_direction_file(options(model_file2=str(tmp_path / "none.pt")))


# --- evaluation --------------------------------------------------------------------------------


def batches(size=8):
    x, y = data()
    return list(zip(x.split(size), y.split(size), strict=True))


def test_eval_loss_is_the_loss_of_all_data_and_percent():
    net = model().train()
    x, y = data()
    loss, acc = evaluation.eval_loss(net, nn.CrossEntropyLoss(), batches())
    assert net.training
    outputs = net.eval()(x)
    assert loss == pytest.approx(F.cross_entropy(outputs, y).item(), rel=16 * EPS)
    assert isinstance(acc, torch.Tensor)
    assert acc.item() == pytest.approx(100 * (outputs.argmax(1) == y).float().mean().item())


def test_class_weights_count_over_all_batches():
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    x, y = data()
    loss, _ = evaluation.eval_loss(model(), nn.CrossEntropyLoss(weight), batches(7))
    want = F.cross_entropy(model()(x), y, weight).item()
    assert loss == pytest.approx(want, rel=16 * EPS)


def test_mse_of_classes_compares_softmax_with_one_hot_rows():
    x, y = data()
    loss, acc = evaluation.eval_loss(model(), nn.MSELoss(), batches())
    outputs = model()(x)
    want = F.mse_loss(outputs.softmax(1), F.one_hot(y, 4).float()).item()
    assert loss == pytest.approx(want, rel=16 * EPS)
    assert acc.item() == pytest.approx(100 * (outputs.argmax(1) == y).float().mean().item())


def test_other_tasks_have_a_loss_and_no_accuracy():
    x = data()[0]
    target = torch.randn(30, 4)
    pairs = list(zip(x.split(7), target.split(7), strict=True))
    loss, acc = evaluation.eval_loss(model(), nn.MSELoss(), pairs)
    assert loss == pytest.approx(F.mse_loss(model()(x), target).item(), rel=16 * EPS)
    assert acc.isnan()
    loss, _ = evaluation.eval_loss(model(), lambda a, b: (a - b).abs().mean(), pairs)
    assert loss == pytest.approx((model()(x) - target).abs().mean().item(), rel=16 * EPS)


def reference(net, x, y, criterion):
    with torch.no_grad():
        outputs = net(x)
        return criterion(outputs.double(), y).item(), 100 * (outputs.argmax(1) == y).double().mean()


def engines():
    return {engine for _, engine in report.counts()}


@pytest.mark.parametrize("as_loader", [False, True])
def test_a_loop_over_points_is_compiled_and_has_the_same_numbers(as_loader):
    net, criterion, (x, y) = model(), nn.CrossEntropyLoss(), data()
    loader = batches()
    if as_loader:
        loader = DataLoader(TensorDataset(x, y), batch_size=7)
    w, d = net_plotter.get_weights(net), net_plotter.create_random_direction(net)
    report.clear()
    for step in np.linspace(-1, 1, 6):
        net_plotter.set_weights(net, w, [d], step)
        loss, acc = evaluation.eval_loss(net, criterion, loader)
        want, share = reference(net, x, y, criterion)
        assert loss == pytest.approx(want, rel=64 * EPS)
        assert acc.item() == pytest.approx(float(share))
    assert report.counts() == {
        ("loss_landscape.eval_loss", "torch"): 2,
        ("loss_landscape.eval_loss", "native"): 4,
    }


def test_what_changes_in_a_compiled_loop_is_noticed():
    net, criterion, (x, y) = model(), nn.CrossEntropyLoss(torch.ones(4)), data()
    loader = [(x, y)]

    def check():
        for _ in range(4):
            loss, _ = evaluation.eval_loss(net, criterion, loader)
            want = criterion(net(x), y).item()
            assert loss == pytest.approx(want, rel=64 * EPS)
        assert engines() == {"torch", "native"}
        return want

    found = [check()]
    for change in (
        lambda: x.mul_(0.5),
        lambda: net[1].running_mean.add_(1),
        lambda: criterion.weight.mul_(torch.arange(1, 5)),
        lambda: setattr(criterion, "label_smoothing", 0.3),
        lambda: net.__setitem__(2, nn.Tanh()),
        lambda: y.fill_(1),
    ):
        report.clear()
        change()
        found.append(check())
    assert len(set(found)) == len(found)


def test_loaders_that_may_change_and_losses_in_python_run_as_they_are():
    x, y = data()
    shuffled = DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True)
    report.clear()
    first, second, listed = model(), model(), batches()
    for _ in range(4):
        evaluation.eval_loss(first, nn.CrossEntropyLoss(), shuffled)
        evaluation.eval_loss(second, lambda a, b: F.cross_entropy(a, b), listed)
    assert engines() == {"torch"}


def test_a_compiled_network_is_forgotten_with_its_original():
    net, loader = model(), batches()
    for _ in range(3):
        evaluation.eval_loss(net, nn.CrossEntropyLoss(), loader)
    there = weakref.ref(net)
    del net
    gc.collect()
    assert there() is None


def test_nothing_to_evaluate_is_said():
    with pytest.raises(InvalidArgument, match="at least one sample"):
        evaluation.eval_loss(model(), nn.CrossEntropyLoss(), [])
    if not torch.cuda.is_available():
        with pytest.raises(InvalidArgument, match="use_cuda"):
            evaluation.eval_loss(model(), nn.CrossEntropyLoss(), batches(), True)


def test_the_modules_are_found_under_the_original_name():
    with patched("loss_landscape"):
        import loss_landscape.net_plotter as theirs
        from loss_landscape import h52vtp
    assert theirs is net_plotter
    assert h52vtp.h5_to_vtp.__module__.startswith("pylandscape")


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    from pylandscape.compat.loss_landscape import model_loader

    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "o.pt")
    with pytest.raises(InvalidArgument, match=r"--model_file: .* is not of this model"):
        model_loader.load("", "tg_support:model", str(tmp_path / "o.pt"))
    net = model_loader.load("", "tg_support:model", checkpoint(tmp_path / "m.pt", 1.0))
    assert not close(net[4].bias, model()[4].bias)
