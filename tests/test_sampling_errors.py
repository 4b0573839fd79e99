"""Errors of L from the data: against float64 per-sample losses, and what they are worth over many
draws of the data."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pylandscape as pl
from pylandscape.errors import InvalidArgument
from pylandscape.theta import sampling
from pylandscape.theta.data import Dataset, Subset

BOTH = ("standard_error", "difference_standard_error")
QUIET = {"progress": False}
CPU = torch.device("cpu")
N, TOKENS, CLASSES = 90, 3, 4


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, CLASSES, shape, generator=torch.Generator().manual_seed(seed))


def some_ignored(y: torch.Tensor) -> torch.Tensor:
    found = y.clone()
    found[torch.rand(y.shape, generator=torch.Generator().manual_seed(5)) < 0.3] = -100
    return found


class Tokens(nn.Module):
    """(N, T, 5) to (N, classes, T), or to (N T, classes) as language models' losses take it."""

    def __init__(self, merged: bool) -> None:
        super().__init__()
        self.body, self.merged = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)), merged

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return y.flatten(0, 1) if self.merged else y.transpose(1, 2)


def network(*more: nn.Module, outputs: int = CLASSES, norm: bool = False) -> nn.Module:
    torch.manual_seed(3)
    norms = [nn.BatchNorm1d(6)] if norm else []
    return nn.Sequential(nn.Linear(5, 6), *norms, nn.Tanh(), nn.Linear(6, outputs), *more).double()


ELEMENTWISE = (
    nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.KLDivLoss, nn.PoissonNLLLoss
)  # fmt: skip
WEIGHT = torch.tensor([0.2, 1.0, 3.0, 0.5], dtype=torch.float64)


def cases() -> dict[str, tuple[nn.Module, nn.Module, torch.Tensor, torch.Tensor]]:
    """name -> model, loss, x, y."""
    x, y, many = draw(N, 5), labels(N), labels(N, TOKENS)
    soft = draw(N, CLASSES, seed=2).softmax(1)
    torch.manual_seed(4)
    long, merged = Tokens(False).double(), Tokens(True).double()
    texts = draw(N, TOKENS, 5)
    return {
        "cross_entropy": (network(), nn.CrossEntropyLoss(), x, y),
        "class weights": (network(), nn.CrossEntropyLoss(WEIGHT), x, y),
        "ignored": (network(), nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1), x,
                    some_ignored(y)),
        "probabilities": (network(), nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2), x, soft),
        "nll": (network(nn.LogSoftmax(1)), nn.NLLLoss(WEIGHT), x, y),
        "mse": (network(), nn.MSELoss(), x, draw(N, CLASSES, seed=6)),
        "bce": (network(), nn.BCEWithLogitsLoss(WEIGHT, pos_weight=1 / WEIGHT), x, soft.round()),
        "l1": (network(), nn.L1Loss(), x, draw(N, CLASSES, seed=6)),
        "smooth l1": (network(), nn.SmoothL1Loss(beta=0.4), x, draw(N, CLASSES, seed=6)),
        "huber": (network(), nn.HuberLoss(delta=0.7), x, draw(N, CLASSES, seed=6)),
        "bce of shares": (network(nn.Sigmoid()), nn.BCELoss(WEIGHT), x, soft),
        "kl": (network(nn.LogSoftmax(1)), nn.KLDivLoss(reduction="batchmean"), x, soft),
        "poisson": (network(), nn.PoissonNLLLoss(), x, 5 * soft),
        "tokens": (long, nn.CrossEntropyLoss(WEIGHT), texts, some_ignored(many)),
        "merged tokens": (merged, nn.CrossEntropyLoss(), texts, some_ignored(many.flatten())),
        "sum": (network(), nn.CrossEntropyLoss(WEIGHT, reduction="sum"), x, y),
    }  # fmt: skip


def terms(loss: nn.Module, out: torch.Tensor, y: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Each sample's sum of terms and its part of the denominator, written out."""
    logits = out.double()
    if isinstance(loss, nn.MSELoss):
        each, own = (logits - y) ** 2, torch.ones_like(logits)
    elif isinstance(loss, ELEMENTWISE):
        plain = copy.copy(loss)
        plain.reduction = "none"
        each, own = plain(logits, y), torch.ones_like(logits)
        if loss.reduction == "batchmean":
            own = own / own[0].numel()
    elif isinstance(loss, nn.BCEWithLogitsLoss):
        each = F.binary_cross_entropy_with_logits(
            logits, y, loss.weight, pos_weight=loss.pos_weight, reduction="none"
        )
        own = torch.ones_like(logits)
    else:
        weight = torch.ones(CLASSES, dtype=torch.float64) if loss.weight is None else loss.weight
        logp = logits if isinstance(loss, nn.NLLLoss) else logits.log_softmax(1)
        smooth = getattr(loss, "label_smoothing", 0.0)
        lead = (1, -1, *[1] * (logits.dim() - 2))
        if y.is_floating_point():
            t = (1 - smooth) * y + smooth / CLASSES
            each, own = -(weight.view(lead) * t * logp).sum(1), torch.ones(len(y))
        else:
            counts = (y != loss.ignore_index).double()
            at = y.clamp(min=0)
            hit = -logp.gather(1, at.unsqueeze(1)).squeeze(1) * weight[at]
            flat = -(weight.view(lead) * logp).sum(1) * smooth / CLASSES
            each, own = ((1 - smooth) * hit + flat) * counts, weight[at] * counts
    if loss.reduction == "sum":
        own = torch.full_like(own, 1 / own.numel())
    return tuple(t.double().reshape(N, -1).sum(1).detach().numpy() for t in (each, own))


def error_of(a: np.ndarray, b: np.ndarray) -> float:
    """The standard error of sum a / sum b by its linear part."""
    u = N * (a - a.sum() / b.sum() * b) / b.sum()
    return float(np.sqrt(u @ u / (N - 1) / N))


def reference(case, d, c) -> np.ndarray:
    """(2, g): both errors at theta + c d."""
    model, loss, x, y = case
    names = list(dict(model.named_parameters()))
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    rows = []
    for point in (theta, *(theta + torch.as_tensor(c) @ d)):
        parts = point.split([p.numel() for p in model.parameters()])
        shaped = [v.view(p.shape) for v, p in zip(parts, model.parameters(), strict=True)]
        state = dict(zip(names, shaped, strict=True))
        rows.append(terms(loss, torch.func.functional_call(model, state, (x,)), y))
    home = rows[0][0]
    return np.array([[error_of(a, b), error_of(a - home, b)] for a, b in rows[1:]]).T


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("name", list(cases()))
def test_errors_are_those_of_the_samples_own_losses(name, engine):
    case = cases()[name]
    model, loss, x, y = case
    land = pl.Landscape(model.eval(), loss, (x, y), engine=engine)
    d, c = 0.1 * draw(2, land.n_params, seed=8), np.array([[0, 0], [1, 0.5], [-2, 3]], dtype=float)
    found = land.evaluate(c, d, metrics=("loss", *BOTH))
    want = reference(case, d, c)
    np.testing.assert_allclose(found["standard_error"], want[0], rtol=1e-10)
    np.testing.assert_allclose(found[BOTH[1]][1:], want[1][1:], rtol=1e-9)
    assert found[BOTH[1]][0] == 0.0
    assert np.array_equal(found["loss"], land.evaluate(c, d)["loss"])


@pytest.mark.parametrize(("samples", "width"), [(11, 3), (700, 20)])  # points as lanes; tiles
def test_errors_have_the_same_bits_in_any_chunks_and_on_any_threads(samples, width):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, CLASSES))
    y = some_ignored(labels(samples))
    land = pl.Landscape(model, "cross_entropy", (torch.randn(samples, 4), y), engine="native")
    d, c = torch.randn(3, land.n_params), np.random.default_rng(0).normal(size=(23, 3))
    metrics = ("loss", "accuracy", *BOTH)
    ask = land.prepare(d, metrics=metrics)
    whole = ask(c)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        parts = [land.prepare(d, metrics=metrics)(p) for p in (c[:1], c[1:6], c[6:])]
    finally:
        torch.set_num_threads(threads)
    for metric in metrics:
        assert np.array_equal(whole[metric], np.concatenate([p[metric] for p in parts])), metric
    plain = land.evaluate(c, d, metrics=("loss", "accuracy"))
    assert all(np.array_equal(plain[m], whole[m]) for m in plain)


@pytest.mark.parametrize("bn", ["eval", "recompute", "interpolate"])
def test_both_engines_agree_whatever_the_statistics(bn):
    x, y = draw(N, 5), labels(N)
    found = []
    for engine in ("native", "torch"):
        land = pl.Landscape(network(norm=True), nn.CrossEntropyLoss(WEIGHT), [(x, y)], bn=bn,
                            engine=engine)  # fmt: skip
        d = 0.1 * draw(1, land.n_params, seed=8)
        found.append(pl.line(land, d[0], (-1, 1, 5), metrics=BOTH, **QUIET).metrics)
    for metric in BOTH:
        np.testing.assert_allclose(found[0][metric], found[1][metric], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_losses_that_are_nearly_equal_keep_the_digits_of_their_spread(engine):
    """l_i = (t_i - 1e4)^2, t_i of size 1e-4: the sum of squares alone would leave no digit."""
    tiny = 1e-4 * draw(N, 1)
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 1.0)
    land = pl.Landscape(model, "mse", (tiny, torch.full((N, 1), 1e4).double()), engine=engine)
    found = land.evaluate([[0.0]], torch.ones(1, 1).double(), metrics=("standard_error",))
    own = (tiny[:, 0].numpy() - 1e4) ** 2
    want = np.std(own, ddof=1) / np.sqrt(N)
    np.testing.assert_allclose(found["standard_error"], want, rtol=1e-7)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_between_solutions_the_difference_is_the_excess_over_their_mixture(engine):
    model, x, y = network(), draw(N, 5), labels(N)
    land = pl.Landscape(model, nn.CrossEntropyLoss(WEIGHT), (x, y), engine=engine)
    ends = torch.stack([land.theta, land.theta + 0.5 * draw(land.n_params, seed=3)])
    curve = pl.interpolate(land, list(ends), (0, 1, 3), metrics=BOTH, **QUIET)
    each = []
    for point in (*ends, ends.mean(0)):
        moved = pl.Landscape(model, nn.CrossEntropyLoss(WEIGHT), (x, y), engine="torch")
        parts = moved.layout.unflatten(point)
        out = torch.func.functional_call(model, parts, (x,))
        each.append(terms(nn.CrossEntropyLoss(WEIGHT), out, y))
    (a0, b), (a1, _), (half, _) = each
    got = curve.metrics[BOTH[1]]
    np.testing.assert_allclose(got[1], error_of(half - (a0 + a1) / 2, b), rtol=1e-9)
    np.testing.assert_allclose(got[[0, 2]], 0.0, atol=1e-14)


def test_a_point_that_is_not_finite_has_no_error():
    land = pl.Landscape(network(), "cross_entropy", (draw(N, 5), labels(N)))
    far = torch.full((land.n_params,), 1e200, dtype=torch.float64)
    curve = pl.line(land, far, (-1e200, 1e200, 3), metrics=BOTH, **QUIET)
    assert np.isfinite(curve.metrics["standard_error"]).tolist() == [False, True, False]


def test_files_and_resumes_carry_errors_as_they_carry_other_metrics(tmp_path):
    land = pl.Landscape(network(), "cross_entropy", (draw(N, 5), labels(N)))
    d = draw(2, land.n_params, seed=8)
    asked = {"x": (-1, 1, 4), "y": (-1, 1, 3), "path": tmp_path / "s.h5", **QUIET}
    calls = []

    def stops(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        calls.append(0)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        pl.plane(land, *d, metrics=(*BOTH, stops), **asked)
    resumed = pl.plane(land, *d, metrics=(*BOTH, stops), **asked)
    assert resumed.info["resumed"] > 0
    alone = pl.plane(land, *d, asked["x"], asked["y"], metrics=BOTH, **QUIET)
    back = pl.load(tmp_path / "s.h5")
    for metric in BOTH:
        assert np.array_equal(alone.metrics[metric], back.metrics[metric]), metric


# --- what is refused ----------------------------------------------------------------------------


def _line(land, metrics):
    return pl.line(land, torch.ones(land.n_params).double(), (-1, 1, 3), metrics=metrics, **QUIET)


@pytest.mark.parametrize("metric", sampling.METRICS)
def test_losses_without_a_number_for_each_sample_are_refused_by_name(metric):
    x, y = draw(N, 5), labels(N)

    def free(outputs, target):
        return F.cross_entropy(outputs, target)

    def task(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    land = pl.Landscape(network(), free, (x, y))
    with pytest.raises(InvalidArgument, match=f"'{metric}' needs .* the loss 'free' gives one"):
        _line(land, (metric,))
    land = pl.Landscape(network(), objective=task, data=[(x, y)])
    with pytest.raises(InvalidArgument, match="the objective 'task' gives one number for a batch"):
        _line(land, (metric,))


@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.parametrize(("bn", "tracks"), [("batch", True), ("eval", False)])
def test_samples_that_depend_on_their_batch_are_refused(engine, bn, tracks):
    model = network(norm=True)
    model[1] = nn.BatchNorm1d(6, track_running_stats=tracks).double()
    land = pl.Landscape(model, "cross_entropy", (draw(N, 5), labels(N)), bn=bn, engine=engine)
    with pytest.raises(InvalidArgument, match="each batch makes them depend on one another"):
        _line(land, ("standard_error",))


def test_one_sample_has_no_spread():
    land = pl.Landscape(network(), "cross_entropy", (draw(1, 5), labels(1)))
    with pytest.raises(InvalidArgument, match="at least two of them, got 1"):
        _line(land, ("standard_error",))


# --- subsets ------------------------------------------------------------------------------------


def test_a_subset_is_drawn_without_replacement_in_the_order_of_the_data_and_said_everywhere():
    x, y = torch.arange(N, dtype=torch.float64)[:, None].repeat(1, 5), labels(N)
    batches = [(x[:40], y[:40]), (x[40:], y[40:])]
    land = pl.Landscape(network(), "cross_entropy", batches, samples=30, seed=4)
    kept = torch.cat([b.inputs[:, 0] for b in land.dataset.batches]).long()
    assert kept.unique().tolist() == kept.tolist()
    assert len(kept) == 30
    assert torch.equal(torch.cat([b.target for b in land.dataset.batches]), y[kept])
    one = pl.Landscape(network(), "cross_entropy", (x, y), samples=30, seed=4)
    assert torch.equal(one.dataset.batches[0].inputs[:, 0].long(), kept)  # whatever the batches
    said = "30 of 90 samples, drawn with seed 4"
    assert said in repr(land)
    assert said in str(land.engine_report())
    curve = _line(land, ("subset_error",))
    about = {"samples": 30, "of": N, "seed": 4}
    assert curve.info["subset"] == about
    assert curve.info["request"]["subset"] == about
    assert said in str(curve.check())
    other = pl.Landscape(network(), "cross_entropy", (x, y), samples=30, seed=5)
    assert other.dataset.digest != land.dataset.digest


def test_a_subset_of_all_has_no_error_against_all():
    x, y = draw(N, 5), labels(N)
    whole = _line(pl.Landscape(network(), "cross_entropy", (x, y)), sampling.METRICS)
    every = _line(pl.Landscape(network(), "cross_entropy", (x, y), samples=N), sampling.METRICS)
    for found in (whole, every):
        assert found.metrics["subset_error"].tolist() == [0, 0, 0]
        assert (found.metrics["standard_error"] > 0).all()
        assert np.array_equal(found.values, whole.values)


def test_rows_of_texts_dictionaries_and_nested_batches_stay_together():
    ids = torch.arange(12)[:, None].repeat(1, 4)
    data = {"input_ids": ids, "labels": ids.clone(), "names": [str(i) for i in range(12)], "k": 3}
    found = Dataset([data], targets=None, device=CPU, move=False, samples=5, seed=1)
    raw = found.batches[0].raw
    assert raw["names"] == [str(i) for i in raw["input_ids"][:, 0].tolist()]
    assert torch.equal(raw["input_ids"], raw["labels"])
    assert raw["k"] == 3
    assert found.size == found.batches[0].size == 5
    x, y = ((ids.double(), ids), {"mask": ids > 3}), torch.arange(24)
    pair = Dataset(
        [(x, y)], targets="any", device=torch.device("cpu"), move=False, samples=5, seed=1
    )
    (a, b), mask = pair.batches[0].inputs
    assert torch.equal(a.long(), b)
    assert torch.equal(mask["mask"], b > 3)
    assert torch.equal(pair.batches[0].target.view(5, 2)[:, 0], 2 * b[:, 0])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"samples": 0}, "samples: expected at least 1, got 0"),
        ({"samples": 91}, "samples: expected at most the 90 of the data, got 91"),
        ({"samples": 2.5}, "samples: expected an integer"),
        ({"samples": 5, "seed": "a"}, "seed: expected an integer"),
        ({"seed": 3}, "seed: expected only together with samples="),
        ({"samples": 5, "loss": nn.MSELoss(reduction="sum")}, "expected a loss with reduction"),
        ({"samples": 5, "loss": None, "objective": lambda m, b: m(b[0]).mean(), "weight": [1.0]},
         "weight: expected a function of the batch"),
    ],
)  # fmt: skip
def test_subsets_that_cannot_be_are_refused(more, said):
    asked = {"loss": "mse", "data": (draw(N, 5), draw(N, CLASSES)), **more}
    with pytest.raises(InvalidArgument, match=said):
        pl.Landscape(network(), **asked)


def test_data_without_a_row_for_each_sample_are_refused():
    def task(model, batch):
        return model(batch["x"]).mean() + batch["scale"].mean()

    batch = {"x": draw(N, 5), "scale": draw(7)}
    with pytest.raises(InvalidArgument, match=r"batch 0 has 90 samples and a tensor of shape \(7,"):
        pl.Landscape(network(), objective=task, data=[batch], samples=5)


# --- what the errors are worth ------------------------------------------------------------------

SEEDS = 2000


def share_within(estimates: np.ndarray, errors: np.ndarray, truth: float) -> float:
    return float((np.abs(estimates - truth) <= 2 * errors).mean())


def test_two_errors_of_a_point_cover_the_loss_of_the_population():
    """A point is a draw of the data: on unit vectors x_i a linear model gives theta_i, and
    l_i = theta_i^2."""
    count = 150
    model = nn.Linear(count, 1, bias=False).double()
    data = torch.eye(count, dtype=torch.float64), torch.zeros(count, 1, dtype=torch.float64)
    land = pl.Landscape(model, "mse", data, engine="native")
    draws = np.random.default_rng(0).uniform(0, 1, (SEEDS, count))
    ask = land.native.prepare_points(("loss", "standard_error"))
    found = ask(torch.from_numpy(draws))
    np.testing.assert_allclose(found["loss"], (draws**2).mean(1), rtol=1e-12)
    assert 0.935 < share_within(found["loss"], found["standard_error"], 1 / 3) < 0.97


def test_two_errors_of_a_difference_or_a_ratio_cover_those_of_the_population():
    rng, count = np.random.default_rng(1), 150
    easy = rng.exponential(1.0, (SEEDS, count))
    pairs = 0.2 * easy + rng.uniform(0, 1, (SEEDS, count))  # l(theta) - l(theta0), truth 0.7
    one = np.ones(count)
    errors = sampling.errors(sampling.squares_of(pairs, one), count, count)
    assert 0.935 < share_within(pairs.mean(1), errors, 0.7) < 0.97
    tokens = rng.integers(1, 9, (SEEDS, count)).astype(float)  # texts of other lengths
    sums = tokens * rng.uniform(0.5, 1.5, (SEEDS, count)) + 0.3 * (tokens - 4.5)
    total = tokens.sum(1)
    errors = sampling.errors(sampling.squares_of(sums, tokens), count, total)
    truth = 1.0  # E l / E b
    assert 0.935 < share_within(sums.sum(1) / total, errors, truth) < 0.97


def test_two_errors_of_a_subset_cover_the_loss_of_all():
    count, some = 160, 60
    x, y = draw(count, 5), labels(count)
    model = network()
    own = F.cross_entropy(model(x), y, reduction="none").detach()
    estimates, errors = np.empty(SEEDS), np.empty(SEEDS)
    for seed in range(SEEDS):
        part = own[Subset(some, count, seed).rows()].numpy()
        estimates[seed] = part.mean()
        squares = sampling.squares_of(part, np.ones(some))
        errors[seed] = sampling.errors(squares, some, some) * sampling.remaining(some, count)
    assert 0.935 < share_within(estimates, errors, float(own.mean())) < 0.97
    land = pl.Landscape(model, "cross_entropy", (x, y), samples=some, seed=7)
    curve = _line(land, ("subset_error",))
    np.testing.assert_allclose(curve.metrics["subset_error"][1], errors[7], rtol=1e-10)
