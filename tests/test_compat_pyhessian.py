"""compat.pyhessian against the package itself, against the dense Hessian, and in its defects."""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pylandscape.compat import patched
from pylandscape.compat._current import ConvergenceWarning
from pylandscape.compat.pyhessian import density_generate, get_esd_plot, hessian, normalization
from pylandscape.errors import InvalidArgument

sys.path.append(str(Path(__file__).parent.parent))  # behind an installed package

from bench.curvature_peers import torch_eig

EPS = float(torch.finfo(torch.float32).eps)
ROUNDING = 200 * EPS  # of float32 products, through a few dozen steps


def problem(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return model, torch.randn(20, 4), torch.randint(0, 3, (20,))


def exact(model: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
    """All eigenvalues, by torch in float64."""
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    shapes = [p.shape for p in model.parameters() if p.requires_grad]
    wide = copy.deepcopy(model).double().eval()
    flat = torch.cat([p.flatten() for p in wide.parameters() if p.requires_grad]).detach()

    def loss(theta: Tensor) -> Tensor:
        parts = theta.split([s.numel() for s in shapes])
        tensors = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(wide, tensors, (x.double(),)), y)

    return torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat)).numpy()


def theirs(model: nn.Module, x: Tensor, y: Tensor) -> object:
    pyhessian = pytest.importorskip("pyhessian")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of its backward(create_graph=True)
        return pyhessian.hessian(copy.deepcopy(model), F.cross_entropy, data=(x, y), cuda=False)


def seeded(function: object, **options: object) -> object:
    torch.manual_seed(5)
    return function(**options)


def flat(vectors: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.cat([part.flatten() for part in v]) for v in vectors])


def test_eigenvalues_are_those_of_the_dense_hessian_by_magnitude():
    model, x, y = problem()
    values, vectors = hessian(model, F.cross_entropy, (x, y), cuda=False).eigenvalues(
        tol=1e-5, top_n=4
    )
    want = exact(model, x, y)
    want = want[np.argsort(-abs(want))][:4]
    assert np.allclose(values, want, rtol=1e-4, atol=0)
    assert [p.shape for p in vectors[0]] == [p.shape for p in model.parameters()]
    rows = flat(vectors)
    assert torch.allclose(rows @ rows.T, torch.eye(4), atol=100 * EPS)


def test_compat_reproduces_the_original_eigenvalues():
    model, x, y = problem()
    ours = hessian(model, F.cross_entropy, data=(x, y), cuda=False, compat="0.1")
    values, vectors = seeded(ours.eigenvalues, top_n=3)
    want, want_vectors = seeded(theirs(model, x, y).eigenvalues, top_n=3)
    assert np.allclose(values, want, rtol=ROUNDING)
    assert torch.allclose(flat(vectors), flat(want_vectors), atol=ROUNDING)


def test_the_trace_has_the_original_samples_and_an_honest_error():
    model, x, y = problem()
    ours = hessian(model, F.cross_entropy, data=(x, y), cuda=False)
    samples, want = seeded(ours.trace), seeded(theirs(model, x, y).trace)
    assert len(samples) > len(want)  # the original stops too early
    assert np.allclose(samples[: len(want)], want, rtol=ROUNDING, atol=ROUNDING)
    assert np.mean(samples) == samples.estimate
    truth = exact(model, x, y).sum()
    assert abs(samples.estimate - truth) < 4 * samples.standard_error
    stopped = seeded(ours.trace, maxIter=10_000, tol=0.05)
    assert stopped.standard_error <= 0.05 * stopped.estimate


def test_compat_reproduces_the_original_trace():
    model, x, y = problem()
    ours = hessian(model, F.cross_entropy, data=(x, y), cuda=False, compat="0.1")
    samples, want = seeded(ours.trace), seeded(theirs(model, x, y).trace)
    assert len(samples) == len(want)
    assert np.allclose(samples, want, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("compat", [None, "0.1"])
def test_density_has_the_original_nodes(compat: str | None):
    model, x, y = problem()
    ours = hessian(model, F.cross_entropy, data=(x, y), cuda=False, compat=compat)
    nodes, weights = seeded(ours.density, iter=8, n_v=2)
    with torch_eig():
        want, want_weights = seeded(theirs(model, x, y).density, iter=8, n_v=2)
    order = np.argsort(want, axis=1)
    # 1e-6 in its normalisation moves them, beyond rounding, without compat.
    allowed = 20 * ROUNDING if compat is None else ROUNDING
    assert np.allclose(nodes, np.take_along_axis(np.array(want), order, 1), atol=allowed)
    want_weights = np.take_along_axis(np.array(want_weights), order, 1)
    assert np.allclose(weights, want_weights, atol=10 * allowed)


def test_density_makes_no_more_nodes_than_parameters():
    model, x, y = problem()
    nodes, weights = hessian(model, F.cross_entropy, (x, y), cuda=False).density(iter=100, n_v=2)
    assert np.shape(nodes) == np.shape(weights) == (2, 43)
    assert np.allclose(np.sum(weights, axis=1), 1)
    want = exact(model, x, y)
    assert np.isclose(np.max(nodes), want.max(), atol=ROUNDING)
    assert np.isclose(np.min(nodes), want.min(), atol=ROUNDING)


def test_batches_give_the_hessian_of_all_data():
    model, x, y = problem()
    loader = [(x[:13], y[:13]), (x[13:], y[13:])]
    one = hessian(model, nn.CrossEntropyLoss(), data=(x, y), cuda=False)
    all_of_them = hessian(model, nn.CrossEntropyLoss(), dataloader=loader, cuda=False)
    v = [torch.randn_like(p) for p in model.parameters()]
    value, product = all_of_them.dataloader_hv_product(v)
    want_value, want = one.dataloader_hv_product(v)
    assert value == pytest.approx(want_value, rel=ROUNDING)
    for a, b in zip(product, want, strict=True):
        assert torch.allclose(a, b, atol=ROUNDING)


def test_a_loader_follows_the_model_as_it_is_trained():
    model, x, y = problem()
    follows = hessian(model, F.cross_entropy, dataloader=[(x, y)], cuda=False)
    stays = hessian(model, F.cross_entropy, data=(x, y), cuda=False)
    before = follows.eigenvalues(tol=1e-5)[0]
    with torch.no_grad():
        model[0].weight *= 2
    after = follows.eigenvalues(tol=1e-5)[0]
    assert after[0] == pytest.approx(abs(exact(model, x, y)).max(), rel=1e-4)
    assert stays.eigenvalues(tol=1e-5)[0] == pytest.approx(before, rel=1e-4)


def test_gradients_have_a_graph_for_second_derivatives():
    from pylandscape.compat.pyhessian import hessian_vector_product

    model, x, y = problem()
    ours = hessian(model, F.cross_entropy, data=(x, y), cuda=False)
    v = [torch.randn_like(p) for p in ours.params]
    products = hessian_vector_product(ours.gradsH, ours.params, v)
    for a, b in zip(products, ours.dataloader_hv_product(v)[1], strict=True):
        assert torch.allclose(a, b, atol=ROUNDING)
    loaded = hessian(model, F.cross_entropy, dataloader=[(x, y)], cuda=False)
    for a, b in zip(loaded.gradsH, ours.gradsH, strict=True):
        assert torch.allclose(a, b.detach(), atol=ROUNDING)


def test_a_small_hessian_is_not_low():
    model, x, y = problem()

    def small(outputs: Tensor, target: Tensor) -> Tensor:
        return 1e-6 * F.cross_entropy(outputs, target)

    want = 1e-6 * abs(exact(model, x, y)).max()
    ours = hessian(model, small, data=(x, y), cuda=False)
    assert ours.eigenvalues(tol=1e-4)[0][0] == pytest.approx(want, rel=1e-3)
    assert np.max(ours.density(iter=30)[0]) == pytest.approx(want, rel=1e-3)
    low = hessian(model, small, data=(x, y), cuda=False, compat="0.1").density(iter=30)[0]
    assert np.max(low) < 0.9 * want


def test_what_has_not_converged_is_named_with_its_residual():
    model, x, y = problem()
    ours = hessian(model, F.cross_entropy, data=(x, y), cuda=False)
    with pytest.warns(ConvergenceWarning, match="residual"):
        ours.eigenvalues(maxIter=2, tol=1e-6, top_n=2)


def test_the_model_is_left_as_it_was():
    model, x, y = problem()
    model.insert(1, nn.BatchNorm1d(5))
    model(x)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    ours = hessian(model, F.cross_entropy, data=(x, y), cuda=False)
    ours.eigenvalues(), ours.trace(maxIter=3), ours.density(iter=3), ours.gradsH
    assert all(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_unused_and_fixed_parameters_work():
    model, x, y = problem()
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    model[0].bias.requires_grad_(False)
    ours = hessian(model, F.cross_entropy, data=(x, y), cuda=False)
    assert len(ours.params) == 4
    value = ours.eigenvalues(tol=1e-5)[0][0]
    assert [g.shape for g in ours.gradsH] == [p.shape for p in ours.params]
    del model.unused
    assert value == pytest.approx(abs(exact(model, x, y)).max(), rel=1e-4)


def test_a_double_model_stays_double():
    model, x, y = problem()
    ours = hessian(model.double(), F.cross_entropy, data=(x.double(), y), cuda=False)
    values, vectors = ours.eigenvalues(tol=1e-9)
    assert values[0] == pytest.approx(abs(exact(model, x, y)).max(), rel=1e-12)
    assert vectors[0][0].dtype == torch.float64
    assert len(ours.density(iter=5)[0][0]) == 5


def test_cuda_without_cuda_warns_and_works():
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    model, x, y = problem()
    with pytest.warns(UserWarning, match="no CUDA device"):
        ours = hessian(model, F.cross_entropy, data=(x, y))
    assert ours.device == "cpu"


def test_bad_requests_say_what_was_expected():
    model, x, y = problem()
    with pytest.raises(AssertionError, match="exactly one"):
        hessian(model, F.cross_entropy, cuda=False)
    with pytest.raises(InvalidArgument, match="exactly one"):
        hessian(model, F.cross_entropy, data=(x, y), dataloader=[(x, y)], cuda=False)
    with pytest.raises(InvalidArgument, match="compat"):
        hessian(model, F.cross_entropy, data=(x, y), cuda=False, compat="7")
    ours = hessian(model, F.cross_entropy, data=(x, y), cuda=False)
    with pytest.raises(AssertionError, match="top_n"):
        ours.eigenvalues(top_n=0)
    with pytest.raises(InvalidArgument, match="n_v"):
        ours.density(n_v=0)
    with pytest.raises(InvalidArgument, match="maxIter"):
        ours.trace(maxIter=0)


def test_a_script_gets_ours_and_the_version_that_patched_names():
    model, x, y = problem()
    with patched(compat={"pyhessian": "0.1"}):
        from pyhessian import hessian as found

        assert found(model, F.cross_entropy, data=(x, y), cuda=False).compat == "0.1"
    assert found is hessian
    assert hessian(model, F.cross_entropy, data=(x, y), cuda=False).compat is None


def test_a_peak_narrower_than_a_bin_keeps_its_mass():
    nodes, weights = [[0.0, 1000.0]], [[0.75, 0.25]]
    density, grid = density_generate(nodes, weights, num_bins=200, sigma_squared=1e-9)
    assert density.sum() * (grid[1] - grid[0]) == pytest.approx(1)
    assert density[:100].sum() == pytest.approx(3 * density[100:].sum())


def test_compat_density_is_the_mean_of_sampled_gaussians():
    nodes, weights = np.array([[0.0, 1.0], [0.1, 1.2]]), np.array([[0.6, 0.4], [0.5, 0.5]])
    density, grid = density_generate(nodes, weights, num_bins=50, compat="0.1")
    low, high = 0.05 - 0.01, 1.1 + 0.01
    assert grid[0] == pytest.approx(low)
    assert grid[-1] == pytest.approx(high)
    variance = 1e-5 * (high - low if high - low > 1 else 1)
    kernel = np.exp(-((grid[:, None, None] - nodes) ** 2) / (2 * variance))
    want = (kernel * weights).sum(axis=(1, 2))
    assert np.allclose(density, want / want.sum() / (grid[1] - grid[0]))


def test_the_picture_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    get_esd_plot([[0.0, 1.0]], [[0.5, 0.5]])
    assert (tmp_path / "example.pdf").stat().st_size > 0
    from matplotlib import pyplot

    pyplot.close("all")


def test_normalisation_of_zeros_is_zero():
    assert not normalization([torch.zeros(3)])[0].any()
