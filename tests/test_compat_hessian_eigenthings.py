"""compat.hessian_eigenthings against the package itself and against dense matrices."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl
from pylandscape.compat import hessian_eigenthings as ours
from pylandscape.compat import patched
from pylandscape.compat._current import ConvergenceWarning
from pylandscape.errors import InvalidArgument

EPS = float(torch.finfo(torch.float32).eps)
ROUNDING = 100 * EPS  # of a product in float32
V = "1.0.0a5"

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture
def theirs() -> Any:
    return pytest.importorskip("hessian_eigenthings")


def problem(sizes: tuple[int, ...] = (5, 5)) -> tuple[nn.Module, Batches]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).eval()
    return model, [(torch.randn(n, 4), torch.randint(0, 3, (n,))) for n in sizes]


def operators(package: Any, model: nn.Module, batches: Batches, **options: Any) -> list[Any]:
    loss, output = package.supervised_loss, package.supervised_loss_of_output
    sample, entropy = package.supervised_per_sample_loss, F.cross_entropy
    return [
        package.HessianOperator(model, batches, loss(entropy), **options),
        package.GGNOperator(model, batches, package.supervised_forward, output(entropy), **options),
        package.EmpiricalFisherOperator(model, batches, sample(entropy), **options),
    ]


def free(model: nn.Module, batches: Batches, **options: Any) -> list[Any]:
    """The same by functions that cannot be compiled."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    return [
        ours.HessianOperator(model, batches, loss, **options),
        ours.GGNOperator(
            model, batches, lambda m, b: m(b[0]), lambda o, b: F.cross_entropy(o, b[1]), **options
        ),
        ours.EmpiricalFisherOperator(
            model, batches, lambda m, s: F.cross_entropy(m(s[0][None]), s[1][None]), **options
        ),
    ]


def error(a: Any, b: Any) -> float:
    v = torch.randn(a.size, generator=torch.Generator().manual_seed(3))
    x, y = (a @ v).detach(), (b @ v).detach()
    return float((x - y).norm() / y.norm())


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("sizes", [(5, 5), (8, 2)])
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_operators_weigh_samples_and_with_compat_batches(
    theirs: Any, sizes: tuple[int, ...], compiled: bool
):
    model, batches = problem(sizes)
    whole = [tuple(torch.cat(part) for part in zip(*batches, strict=True))]
    make = (lambda *a, **k: operators(ours, *a, **k)) if compiled else free
    for own, want in zip(make(model, batches), operators(theirs, model, whole), strict=True):
        assert error(own, want) < ROUNDING
    own_compat = make(model, batches, compat=V)
    for own, want in zip(own_compat, operators(theirs, model, batches), strict=True):
        assert error(own, want) < ROUNDING


def test_known_losses_are_compiled():
    for operator in operators(ours, *problem()):
        assert operator.landscape.engine == "native"
        assert operator.dtype == torch.float32
        assert operator.size == 43


def test_a_filter_chooses_parameters(theirs: Any):
    model, batches = problem()
    own = ours.HessianOperator(
        model, batches, ours.supervised_loss(F.cross_entropy),
        param_filter=ours.match_names("2.*"),
    )  # fmt: skip
    want = theirs.HessianOperator(
        model, batches, theirs.supervised_loss(F.cross_entropy),
        param_filter=theirs.match_regex("^2"),
    )  # fmt: skip
    assert own.size == 18
    assert error(own, want) < ROUNDING
    with pytest.raises(ValueError, match="param_filter"):
        ours.HessianOperator(model, batches, F.cross_entropy, param_filter=lambda *_: False)


def test_finite_differences_are_exact_products_and_differences_with_compat(theirs: Any):
    model, batches = problem()
    exact, difference = (
        ours.HessianOperator(
            model, batches, ours.supervised_loss(F.cross_entropy), method="finite_difference",
            compat=compat,
        )
        for compat in (None, V)
    )  # fmt: skip
    want = operators(theirs, model, batches)[0]
    assert error(exact, want) < ROUNDING
    assert ROUNDING < error(difference, want) < 1e-2


def test_lanczos_converges_by_default():
    model, batches = problem()
    operator = operators(ours, model, batches)[0]
    dense = torch.linalg.eigvalsh(operator.landscape.hessian()).numpy()
    want = dense[np.argsort(-abs(dense))]
    found = ours.lanczos(operator, k=5, tol=1e-5)
    assert found.converged.all()
    assert np.allclose(found.eigenvalues, want[:5], atol=ROUNDING)
    assert found.eigenvectors.shape == (5, 43)
    every = ours.lanczos(operator, k=43, which="SA")  # k = n
    assert np.allclose(every.eigenvalues, dense, atol=ROUNDING)


def test_compat_lanczos_is_the_original(theirs: Any):
    model, batches = problem()
    own, want = operators(ours, model, batches)[0], operators(theirs, model, batches)[0]
    a = ours.lanczos(own, k=3, seed=3, compat=V)
    b = theirs.lanczos(want, k=3, seed=3)
    assert torch.allclose(a.eigenvalues, b.eigenvalues, atol=ROUNDING)
    assert torch.allclose(a.residuals, b.residuals, atol=ROUNDING)
    assert a.iterations == b.iterations == 6
    assert torch.equal(a.converged, b.converged)
    assert a.eigenvectors.shape == b.eigenvectors.shape
    t, u = (p.lanczos_tridiagonal(o, torch.ones(43), 5) for p, o in ((ours, own), (theirs, want)))
    assert torch.allclose(t.alphas, u.alphas, atol=ROUNDING)
    assert torch.allclose(t.betas, u.betas, atol=ROUNDING)
    assert t.last_beta == pytest.approx(u.last_beta, abs=ROUNDING)
    assert torch.allclose(torch.stack(t.basis), torch.stack(u.basis), atol=ROUNDING)


@pytest.mark.parametrize("method", ["hutch++", "hutchinson"])
def test_traces_have_the_original_samples(theirs: Any, method: str):
    model, batches = problem()
    own, want = operators(ours, model, batches)[0], operators(theirs, model, batches)[0]
    a = ours.trace(own, num_matvecs=30, method=method, seed=1)
    b = theirs.trace(want, num_matvecs=30, method=method, seed=1)
    assert torch.allclose(a.samples, b.samples, atol=10 * ROUNDING)
    assert a.estimate == pytest.approx(b.estimate, rel=ROUNDING)
    assert a.stderr == pytest.approx(b.stderr, rel=ROUNDING)


@pytest.mark.parametrize("compat", [None, V])
def test_density_is_the_original(theirs: Any, compat: str | None):
    model, batches = problem()
    own, want = operators(ours, model, batches)[0], operators(theirs, model, batches)[0]
    options: dict[str, Any] = {"num_runs": 3, "lanczos_steps": 15, "seed": 1}
    a = ours.spectral_density(own, compat=compat, **options)
    b = theirs.spectral_density(want, **options)
    assert a.sigma == pytest.approx(b.sigma, rel=ROUNDING)
    assert torch.allclose(a.grid, b.grid, atol=ROUNDING)
    # A node that moves by eps moves the density by eps / sigma of its height.
    assert torch.allclose(a.density, b.density, atol=float(b.density.max()) * 10 * ROUNDING)
    assert a.raw_eigenvalues.shape == b.raw_eigenvalues.shape


def test_a_narrow_kernel_keeps_its_mass():
    operator = operators(ours, *problem())[0]
    found = ours.spectral_density(
        operator, num_runs=2, lanczos_steps=60, num_grid_points=50, sigma=1e-6
    )
    mass = float(found.density.sum() * (found.grid[1] - found.grid[0]))
    assert mass == pytest.approx(1, abs=ROUNDING)
    assert found.raw_eigenvalues.shape == (2, 43)


def test_power_iterations_are_lanczos_or_the_original(theirs: Any):
    model, batches = problem()
    own, want = operators(ours, model, batches)[0], operators(theirs, model, batches)[0]
    a = ours.deflated_power_iteration(own, k=3, seed=1, max_iter=20, compat=V)
    b = theirs.deflated_power_iteration(want, k=3, seed=1, max_iter=20)
    assert torch.allclose(a.eigenvalues, b.eigenvalues, atol=ROUNDING)
    assert a.iterations == b.iterations
    best = ours.deflated_power_iteration(own, k=3, max_iter=20)
    assert best.converged.all()
    assert best.residuals.max() < 1e-4
    value, vector, residual, _, converged = ours.power_iteration_one(own, seed=1)
    assert converged
    assert residual <= 1e-4 * value
    assert value == pytest.approx(float(best.eigenvalues[0]), rel=ROUNDING)
    assert vector.shape == (43,)


def test_operators_of_the_package_itself_and_lambdas_are_taken(theirs: Any):
    model, batches = problem()
    own, want = operators(ours, model, batches)[0], operators(theirs, model, batches)[0]
    top = float(ours.lanczos(own, k=1, which="LA").eigenvalues)
    assert float(ours.lanczos(want, k=1, which="LA").eigenvalues) == pytest.approx(top)
    assert pl.eigenpairs(want, progress=False).values[0] == pytest.approx(top)
    by_hand = ours.LambdaOperator(own.matvec, own.size)
    assert float(ours.lanczos(by_hand, k=1, which="LA").eigenvalues) == pytest.approx(top)


def test_an_operator_follows_the_model():
    model, batches = problem()
    operator = operators(ours, model, batches)[0]
    before = operator @ torch.ones(43)
    with torch.no_grad():
        model[0].weight.mul_(2)
    fresh = operators(ours, model, batches)[0]
    assert not torch.allclose(operator @ torch.ones(43), before)
    assert torch.equal(operator @ torch.ones(43), fresh @ torch.ones(43))


def test_batch_norm_in_train_mode_uses_each_batch_as_the_original_does(theirs: Any):
    model, batches = problem()
    model.insert(1, nn.BatchNorm1d(5))
    model.train()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    own = operators(ours, model, batches)[0]
    assert own.landscape.bn == "batch"
    own @ torch.ones(own.size)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert error(own, operators(theirs, model, batches)[0]) < ROUNDING


def test_language_models_of_both_families_work():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))

        def forward(self, input_ids: Any, labels: Any = None, return_type: str = "") -> Any:
            logits = self.body(input_ids)
            entropy = F.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
            if return_type:
                return entropy if return_type == "loss" else logits
            return SimpleNamespace(logits=logits, loss=entropy)

    torch.manual_seed(0)
    model, tokens = Model(), torch.randint(0, 7, (4, 6))
    hf = [{"input_ids": tokens, "labels": tokens}]
    pairs = [
        (ours.HessianOperator(model, hf, ours.hf_lm_loss()),
         ours.HessianOperator(model, [tokens], ours.tlens_loss())),
        (ours.GGNOperator(model, hf, ours.hf_lm_forward(), ours.hf_lm_loss_of_output()),
         ours.GGNOperator(model, [tokens], ours.tlens_forward(), ours.tlens_loss_of_output())),
    ]  # fmt: skip
    for a, b in pairs:
        assert error(a, b) < ROUNDING
    # The Hessian is the Gauss-Newton matrix plus what is linear in the loss' gradient.
    assert 0 < error(pairs[0][0], pairs[1][0]) < 10


@pytest.mark.parametrize("mode", ["power_iter", "lanczos"])
def test_the_one_function_of_0_0_2_converges(mode: str):
    model, batches = problem((8, 2))
    values, vectors = ours.compute_hessian_eigenthings(
        model, batches, F.cross_entropy, 3, mode=mode, use_gpu=False
    )
    dense = torch.linalg.eigvalsh(operators(ours, model, batches)[0].landscape.hessian()).numpy()
    want = dense[np.argsort(-abs(dense))][:3]
    assert np.allclose(values, np.sort(want) if mode == "lanczos" else want, rtol=1e-3)
    assert isinstance(vectors, np.ndarray)
    assert vectors.shape == (3, 43)


def test_compat_0_0_2_is_a_power_iteration_over_the_mean_of_batches():
    model, batches = problem((8, 2))
    torch.manual_seed(2)
    values, _ = ours.compute_hessian_eigenthings(
        model, batches, F.cross_entropy, 1, use_gpu=False, compat="0.0.2", power_iter_steps=200,
        power_iter_err_threshold=1e-6,
    )  # fmt: skip
    h = operators(ours, model, batches, compat=V)[0].landscape.hessian()
    assert abs(values[0]) == pytest.approx(float(torch.linalg.eigvalsh(h).abs().max()), rel=1e-3)


def test_too_few_products_are_named():
    model, batches = problem()
    with pytest.warns(ConvergenceWarning, match="residual"):
        ours.compute_hessian_eigenthings(
            model, batches, F.cross_entropy, 3, use_gpu=False, power_iter_steps=1
        )


def test_bad_requests_are_value_errors_that_say_what_was_expected():
    model, batches = problem()
    operator = operators(ours, model, batches)[0]
    with pytest.raises(ValueError, match="k: expected 1"):
        ours.lanczos(operator, k=44)
    with pytest.raises(ValueError, match="max_iter"):
        ours.lanczos(operator, k=4, max_iter=2)
    with pytest.raises(ValueError, match="shape"):
        operator @ torch.ones(3)
    with pytest.raises(ValueError, match="mode"):
        ours.compute_hessian_eigenthings(model, batches, F.cross_entropy, 1, mode="qr")
    with pytest.raises(ValueError, match="steps"):
        ours.compute_hessian_eigenthings(model, batches, F.cross_entropy, 1, steps=3)
    with pytest.raises(ValueError, match="batch"):
        operators(ours, model, [])[0] @ torch.ones(43)
    with pytest.raises(ValueError, match="backend"):
        ours.lanczos(operator, backend=object())
    model.append(nn.BatchNorm1d(3))
    with pytest.raises(InvalidArgument, match="BatchNorm"):
        ours.HessianOperator(model, batches, F.cross_entropy, microbatch_size=1)


def test_a_script_gets_ours_and_its_submodules():
    with patched(compat={"hessian_eigenthings": V}):
        from hessian_eigenthings import lanczos
        from hessian_eigenthings.operators.hessian import HessianOperator

        operator = HessianOperator(*problem(), ours.supervised_loss(F.cross_entropy))
        assert operator.compat == V
        assert lanczos(operator, k=3).iterations == 6
    assert lanczos is ours.lanczos


def test_single_batches_under_a_compat_mode_that_was_set_outside():
    model, batches = problem()
    loss = ours.supervised_loss(F.cross_entropy)
    with patched(compat={"hessian_eigenthings": V}):
        outside = ours.HessianOperator(model, batches, loss, full_dataset=False)
    own = ours.HessianOperator(model, batches, loss, full_dataset=False, compat=V)
    v = torch.randn(own.size, generator=torch.Generator().manual_seed(3))
    for _ in range(3):
        torch.testing.assert_close(outside @ v, own @ v)


@pytest.mark.parametrize("most", [5, 6, 20])
def test_lanczos_takes_at_most_max_iter_products(most: int):
    operator = operators(ours, *problem())[0]
    taken = []
    op = operator.symmetric_operator()
    multiply = op.multiply
    op.native, op.multiply = None, lambda v: (taken.extend(v), multiply(v))[1]
    ours.lanczos(op, k=5, max_iter=most, tol=1e-9)
    assert len(taken) <= most


def test_lanczos_with_max_iter_n_finds_what_only_the_last_step_shows():
    root = torch.randn(40, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    matrix = root.T @ root / 40  # whose small eigenvalues lie close together
    op = ours.LambdaOperator(
        lambda v: matrix @ v, size=40, device=torch.device("cpu"), dtype=torch.float64
    )
    found = ours.lanczos(op, k=3, max_iter=40, tol=1e-9, which="SA", seed=2)
    torch.testing.assert_close(found.eigenvalues, torch.linalg.eigvalsh(matrix)[:3])
    assert found.converged.all()
    assert found.iterations <= 40
