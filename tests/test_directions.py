"""Directions: normalisation against a plain reference, bits, known results, bad input."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from direction_support import CAPABILITIES, run_python
from torch import Tensor, nn

import pylandscape as pl
from pylandscape._native import ops
from pylandscape.errors import InvalidArgument, LayoutMismatch
from pylandscape.theta.directions import NORMALIZATIONS, as_directions

DTYPES = [torch.float32, torch.float64]
MODES = [mode or "none" for mode in NORMALIZATIONS]
CHUNK = 1 << 14  # longer segments are measured chunk by chunk (csrc/directions/directions.cpp)


class Odd(nn.Module):
    """Convolution, norm layers, linear, a scalar and an empty parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 3)
        self.bn = nn.BatchNorm2d(5)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 3)
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.nothing = nn.Parameter(torch.empty(0, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn(self.conv(x)).relu().mean((2, 3))
        return self.head(self.norm(h)) * self.temperature + self.nothing.sum()


def landscape(model: nn.Module | None = None, dtype: torch.dtype | None = None) -> pl.Landscape:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 1, 5, 5, generator=generator)
    y = torch.randint(3, (6,), generator=generator)
    model = Odd().eval() if model is None else model
    return pl.Landscape(model, nn.CrossEntropyLoss(), (x, y), dtype=dtype, engine="torch")


def segments_of(*edges: tuple[int, int]) -> Tensor:
    return torch.tensor(edges, dtype=torch.int64).reshape(-1, 2)


def random_segments(generator: torch.Generator) -> tuple[int, Tensor]:
    """A length and segments with gaps, empty and one-element ones, and ones beyond a chunk."""
    sizes = [0, 1, 2, 15, 16, 17, 63, 64, 65, 333, 4608, CHUNK, CHUNK + 1, 2 * CHUNK + 17, 3]
    edges, at = [], 0
    for i in torch.randperm(len(sizes), generator=generator).tolist():
        at += int(torch.randint(3, (1,), generator=generator)) * int(
            torch.randint(90, (1,), generator=generator)
        )
        edges.append((at, at + sizes[i]))
        at += sizes[i]
    return at + int(torch.randint(50, (1,), generator=generator)), segments_of(*edges)


def reference(d: Tensor, theta: Tensor, segments: Tensor, mode: str) -> Tensor:
    """Li et al.'s formula in float64, segment by segment."""
    d, theta = d.double(), theta.double()
    out = torch.zeros_like(d)
    ranges = [slice(*pair) for pair in segments.tolist()]
    joint = mode == "model"
    whole = torch.cat([torch.arange(r.start, r.stop) for r in ranges]) if ranges else []
    for r in ranges:
        if mode == "none":
            out[r] = d[r]
        elif mode == "weight":
            out[r] = d[r] * theta[r]
        else:
            own = whole if joint else r
            wanted = 1.0 if mode.startswith("d") else theta[own].norm()
            norm = d[own].norm()
            out[r] = d[r] * (wanted / (norm + 1e-10)) if norm > 0 else 0.0
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_normalisation_is_the_plain_formula(mode: str, dtype: torch.dtype) -> None:
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        n, segments = random_segments(generator)
        theta = torch.randn(n, generator=generator, dtype=torch.float64).to(dtype)
        d = torch.randn(n, generator=generator, dtype=torch.float64).to(dtype)
        got = ops.normalize_direction(d, theta, segments, mode)
        want = reference(d, theta, segments, mode)
        # The factor and the product round once each; in float64 the sums of squares round too.
        rtol = (3 if dtype == torch.float32 else 24) * torch.finfo(dtype).eps
        torch.testing.assert_close(got.double(), want, rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_drawing_fused_is_drawing_and_then_normalising(mode: str, dtype: torch.dtype) -> None:
    n, segments = random_segments(torch.Generator().manual_seed(9))
    theta = torch.randn(n, dtype=dtype)
    z = pl.gaussian(4, 7, 0, n).to(dtype)
    fused = ops.random_direction(theta, segments, mode, 4, 7)
    assert torch.equal(fused, ops.normalize_direction(z, theta, segments, mode))


@pytest.mark.parametrize("mode", MODES)
def test_bits_do_not_depend_on_threads(mode: str) -> None:
    n, segments = random_segments(torch.Generator().manual_seed(2))
    theta = torch.randn(n)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(ops.random_direction(theta, segments, mode, 1, 2))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


BITS = """
import hashlib, torch
from pylandscape._native import ops
hash, n = hashlib.sha256(), 70_001
edges = [0, 1, 18, 147, 5000, 5000, 22_000, 69_000, 70_001]
segments = torch.tensor(list(zip(edges, edges[1:])))
for dtype in (torch.float32, torch.float64):
    theta = torch.linspace(-1, 1, n, dtype=dtype)
    for mode in ("filter", "model", "weight", "dlayer"):
        d = ops.random_direction(theta, segments, mode, 3, 1)
        hash.update(d.numpy().tobytes())
    c = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)
    hash.update(ops.perturb(theta, c, torch.stack([d, theta])).numpy().tobytes())
print(hash.hexdigest())
"""


def test_bits_do_not_depend_on_the_instruction_set() -> None:
    digests = {run_python(BITS, capability) for capability in _present()}
    assert len(digests) == 1


def _present() -> list[str]:
    best = pl.cpu_capability()
    return list(CAPABILITIES[: CAPABILITIES.index(best) + 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_filter_has_the_norm_of_thetas(dtype: torch.dtype) -> None:
    land = landscape(dtype=dtype)
    rtol = 4 * torch.finfo(dtype).eps + 1e-10  # the formula's own 1e-10 beside |d| > 1
    for direction in pl.random_directions(land, 2, seed=5):
        parts, own = land.layout.unflatten(direction.vector), land.layout.unflatten(land.theta)
        for name in ("conv.weight", "head.weight"):
            got = parts[name].flatten(1).double().norm(dim=1)
            want = own[name].flatten(1).double().norm(dim=1)
            torch.testing.assert_close(got, want, rtol=rtol, atol=0)
        for name in ("conv.bias", "bn.weight", "bn.bias", "norm.weight", "temperature"):
            assert not parts[name].any(), name


@pytest.mark.parametrize(
    ("normalize", "norm_of"),
    [
        ("layer", lambda own: own.norm()),
        ("dlayer", lambda own: torch.tensor(1.0, dtype=torch.float64)),
    ],
)
def test_per_tensor_modes_give_each_tensor_its_norm(normalize: str, norm_of: Any) -> None:
    land = landscape()
    (d,) = pl.random_directions(land, 1, normalize=normalize, ignore=())
    parts, own = land.layout.unflatten(d.vector), land.layout.unflatten(land.theta)
    for name, part in parts.items():
        if part.numel() and own[name].any():
            torch.testing.assert_close(
                part.double().norm(), norm_of(own[name].double()), rtol=1e-6, atol=0
            )


def test_model_mode_gives_all_that_is_not_ignored_one_norm() -> None:
    land = landscape()
    (d,) = pl.random_directions(land, 1, normalize="model", ignore=("norm", "head.*"))
    kept = d.vector != 0
    torch.testing.assert_close(d.vector.double().norm(), land.theta[kept].double().norm())
    parts = land.layout.unflatten(d.vector)
    assert parts["conv.bias"].all()
    assert not parts["head.weight"].any()
    assert not parts["bn.weight"].any()


@pytest.mark.parametrize("mode", MODES)
def test_zero_filters_and_zero_draws_give_zero_never_nan(mode: str) -> None:
    segments = segments_of((0, 3), (3, 6), (6, 9))
    theta = torch.tensor([0.0, 0, 0, 1, 2, 3, 1, 1, 1])
    d = torch.tensor([1.0, 2, 3, 0, 0, 0, 1, 0, 0])
    out = ops.normalize_direction(d, theta, segments, mode)
    assert out.isfinite().all()
    assert not out[3:6].any()
    if mode in ("filter", "layer", "weight"):
        assert not out[:3].any()
        assert out[6:].any()
    assert not ops.normalize_direction(torch.zeros(9), theta, segments, mode).any()


def test_tiny_and_huge_float32_filters_keep_their_norm() -> None:
    theta = torch.cat([torch.full((50,), 1e-30), torch.full((50,), 1e30)])
    out = ops.random_direction(theta, segments_of((0, 50), (50, 100)), "filter", 0, 0).double()
    for part in (slice(0, 50), slice(50, 100)):
        torch.testing.assert_close(out[part].norm(), theta[part].double().norm(), rtol=1e-6, atol=0)


def test_raw_draws_are_the_stream_of_the_index_in_either_dtype() -> None:
    for dtype in DTYPES:
        land = landscape(dtype=dtype)
        found = pl.random_directions(land, 3, normalize=None, ignore=(), seed=8)
        for index, direction in enumerate(found):
            z = pl.gaussian(8, index, 0, land.n_params)
            assert torch.equal(direction.vector, z.to(dtype))
            assert (direction.info["seed"], direction.info["index"]) == (8, index)


def test_a_direction_is_a_function_of_seed_and_index_alone() -> None:
    land = landscape()
    state = torch.get_rng_state()
    one = pl.random_directions(land, 1, seed=1)[0]
    many = pl.random_directions(land, 3, seed=np.int64(1))
    assert torch.equal(one.vector, many[0].vector)
    assert not torch.equal(many[0].vector, many[1].vector)
    assert not torch.equal(one.vector, pl.random_directions(land, 1, seed=2)[0].vector)
    assert torch.equal(torch.get_rng_state(), state)


def test_orthogonal_removes_the_earlier_components_and_little_else() -> None:
    land = landscape(nn.Sequential(nn.Flatten(), nn.Linear(25, 30), nn.ReLU(), nn.Linear(30, 3)))
    plain = pl.random_directions(land, 3, seed=0)
    orthogonal = pl.random_directions(land, 3, seed=0, orthogonal=True)
    q = torch.stack([d.vector.double() / d.vector.double().norm() for d in orthogonal])
    torch.testing.assert_close(q @ q.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-7)
    assert torch.equal(orthogonal[0].vector, plain[0].vector)
    for with_, without in zip(orthogonal, plain, strict=True):
        a, b = with_.vector, without.vector
        assert not a[b == 0].any()  # ignored parameters stay at rest
        assert (a - b).norm() < 0.2 * b.norm()


def test_orthogonal_to_a_zero_direction_changes_nothing() -> None:
    land = landscape()
    zero = torch.zeros_like(land.theta)
    for d in pl.random_directions(land, 2, orthogonal=True, theta=zero):
        assert not d.vector.any()


def test_loss_is_invariant_when_layers_are_rescaled_only_with_filter_norms() -> None:
    """methods.md 8: a ReLU layer times c (its bias too), the next by 1 / c."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 9), nn.ReLU(), nn.Linear(9, 3)).double()
    scaled = nn.Sequential(nn.Flatten(), nn.Linear(25, 9), nn.ReLU(), nn.Linear(9, 3)).double()
    scaled.load_state_dict(model.state_dict())
    with torch.no_grad():
        scaled[1].weight.mul_(7), scaled[1].bias.mul_(7), scaled[3].weight.div_(7)
    c = np.array([[0.3, -0.2], [1.0, 0.7], [-0.5, 0.9]])
    losses = {}
    for normalize in ("filter", None):
        for name, module in (("model", model), ("scaled", scaled)):
            land = landscape(module, torch.float64)
            d = pl.random_directions(land, 2, normalize=normalize, seed=6)
            losses[normalize, name] = land.losses(c, d)
    np.testing.assert_allclose(
        losses["filter", "model"], losses["filter", "scaled"], rtol=1e-13, atol=0
    )
    assert (abs(losses[None, "model"] - losses[None, "scaled"]) > 1e-3).all()


def test_quadratic_form_of_raw_draws_has_the_trace_and_its_variance() -> None:
    """methods.md 8: E[d' H d] = tr H, Var = 2 |H|_F^2, for H = diag(h)."""
    h = torch.linspace(-1, 3, 40, dtype=torch.float64)
    draws = torch.stack([pl.gaussian(0, stream, 0, 40) for stream in range(4000)]).double()
    forms = draws.square() @ h
    variance = 2 * float(h.square().sum())
    assert abs(float(forms.mean() - h.sum())) < 4 * (variance / 4000) ** 0.5
    assert abs(float(forms.var()) / variance - 1) < 0.15


def test_normalize_direction_takes_views_arrays_and_directions() -> None:
    land = landscape()
    given = torch.randn(2 * land.n_params)[::2]
    want = pl.normalize_direction(land, given.contiguous()).vector
    assert torch.equal(pl.normalize_direction(land, given).vector, want)
    assert torch.equal(pl.normalize_direction(land, given.numpy()).vector, want)
    for place in (Odd(), Odd().state_dict()):
        with pytest.raises(pl.InvalidArgument, match="a place and no direction; target_direction"):
            pl.normalize_direction(land, place)
    raw = pl.random_directions(land, 1, normalize=None, ignore=(), seed=3)[0]
    again = pl.normalize_direction(land, raw, normalize="filter")
    assert torch.equal(again.vector, pl.random_directions(land, 1, seed=3)[0].vector)
    assert (again.info["kind"], again.info["seed"]) == ("random", 3)
    assert (again.info["normalize"], again.info["ignore"]) == ("filter", ["bias", "norm"])


def test_target_direction_leads_to_the_target() -> None:
    land, other = landscape(), Odd()
    d = pl.target_direction(land, other)
    end = land.layout.vector(other, "other", land.dtype, land.device)
    assert torch.equal(d.vector, end - land.theta)
    assert d.info["kind"] == "target"
    assert d.info["norm"] == pytest.approx(float((end - land.theta).double().norm()), rel=1e-12)


def test_as_directions_takes_what_gives_directions() -> None:
    land = landscape()
    a, b = pl.random_directions(land, 2)
    both = torch.stack([a.vector, b.vector])
    for given in ((a, b), [a.vector, b.vector.numpy()], both, both.double().numpy()):
        matrix, infos = as_directions(land, given)
        assert torch.equal(matrix, both)
        assert len(infos) == 2
    matrix, infos = as_directions(land, a)
    assert matrix.shape == (1, land.n_params)
    assert infos[0]["seed"] == 0


def test_as_directions_names_what_does_not_fit() -> None:
    land = landscape()
    n = land.n_params
    good = torch.ones(n)
    other = landscape(nn.Sequential(nn.Flatten(), nn.Linear(25, 3)))
    foreign = pl.random_directions(other, 1)[0]
    cases: list[tuple[Any, type[Exception], str]] = [
        (torch.ones(n + 1), LayoutMismatch, rf"d: expected shape \({n},\).*got \({n + 1},\)"),
        (
            torch.ones(2, n - 1),
            LayoutMismatch,
            rf"d: expected shape \(k, {n}\).*got \(2, {n - 1}\)",
        ),
        ([good, torch.ones(3)], LayoutMismatch, r"d\[1\]: expected shape"),
        ([good, good * torch.nan], InvalidArgument, r"d\[1\]: expected finite"),
        (foreign, LayoutMismatch, "d: expected a direction of this model's parameter layout"),
        ([], InvalidArgument, "d: expected at least one direction, got none"),
        ("filter", InvalidArgument, "d: expected a Direction, a tensor or an array .* got str"),
    ]
    for given, error, message in cases:
        with pytest.raises(error, match=message):
            as_directions(land, given, "d")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"normalize": "filters"}, "normalize: expected one of 'filter'.*got 'filters'"),
        ({"ignore": ("biases",)}, "ignore: expected 'bias', 'norm' or the name.*got 'biases'"),
        ({"count": 0}, "count: expected an integer >= 1, got 0"),
        ({"count": 1.5}, "count: expected an integer, got 1.5"),
        ({"seed": 2**63}, "seed: expected a 64-bit integer"),
        ({"seed": "a"}, "seed: expected an integer, got 'a'"),
        ({"theta": torch.ones(3)}, r"theta: expected shape"),
    ],
)
def test_bad_arguments_of_random_directions_are_named(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        pl.random_directions(landscape(), **{"count": 1, **arguments})


@pytest.mark.parametrize("vector", [torch.ones(2, 3), np.ones(3), [1.0]])
def test_a_direction_holds_a_vector(vector: Any) -> None:
    with pytest.raises(InvalidArgument, match="vector: expected a tensor of shape"):
        pl.Direction(vector)


GOOD: dict[str, Any] = {
    "direction": torch.ones(9),
    "theta": torch.ones(9),
    "segments": segments_of((0, 4), (4, 9)),
    "mode": "filter",
}


@pytest.mark.parametrize(
    "bad",
    [
        {"mode": "filters"},
        {"segments": segments_of((0, 10))},
        {"segments": segments_of((4, 9), (0, 4))},
        {"segments": segments_of((0, 5), (4, 9))},
        {"segments": segments_of((3, 2))},
        {"segments": segments_of((-1, 2))},
        {"segments": torch.zeros(4, dtype=torch.int64)},
        {"segments": torch.zeros(2, 2)},
        {"direction": torch.ones(8)},
        {"direction": torch.ones(9, dtype=torch.float64)},
        {"direction": torch.ones(9, device="meta")},
        {"theta": torch.ones(9, dtype=torch.float16), "direction": torch.ones(9).half()},
        {"theta": torch.ones(3, 3), "direction": torch.ones(3, 3)},
        {"out": torch.empty(8)},
        {"out": torch.empty(18)[::2]},
        {"out": torch.empty(9, dtype=torch.float64)},
    ],
    ids=lambda bad: ", ".join(bad),
)
def test_ops_refuse_what_they_cannot_do(bad: dict[str, Any]) -> None:
    with pytest.raises((RuntimeError, ValueError)) as error:
        ops.normalize_direction(**{**GOOD, **bad})
    if torch.__version__ >= "2.13":  # older ones drop the text
        assert f"{next(iter(bad))}: expected" in str(error.value)


def test_perturb_gives_each_point_its_combination() -> None:
    for dtype in DTYPES:
        theta, d = torch.randn(5003, dtype=dtype), torch.randn(3, 5003, dtype=dtype)
        c = torch.randn(7, 3, dtype=torch.float64)
        want = theta.double() + c.to(dtype).double() @ d.double()
        got = ops.perturb(theta, c, d)
        eps = torch.finfo(dtype).eps
        scale = theta.abs() + c.abs().to(dtype) @ d.abs()
        assert ((got.double() - want).abs() <= 4 * eps * scale.double()).all()
    assert ops.perturb(theta, c[:0], d).shape == (0, 5003)
    assert torch.equal(ops.perturb(theta, c[:, :0], d[:0]), theta.expand(7, -1))
    with pytest.raises((RuntimeError, ValueError)):
        ops.perturb(theta, c[:, :2], d)


def test_ops_work_in_place_on_views_and_on_nothing() -> None:
    segments = segments_of((0, 40), (50, 100))
    wide_theta, wide_d = torch.randn(100, 2), torch.randn(100, 2)
    theta, d = wide_theta[:, 0], wide_d[:, 1]
    want = ops.normalize_direction(d.contiguous(), theta.contiguous(), segments, "filter")
    assert torch.equal(ops.normalize_direction(d, theta, segments, "filter"), want)
    assert torch.equal(ops.normalize_direction(d, theta, segments.T.contiguous().T, "filter"), want)
    own = d.contiguous()
    assert ops.normalize_direction(own, theta, segments, "filter", out=own) is own
    assert torch.equal(own, want)
    nothing = torch.empty(0)
    assert ops.random_direction(nothing, segments_of(), "model", 0, 0).shape == (0,)
    assert not ops.random_direction(theta, segments_of(), "filter", 0, 0).any()


def test_ops_tell_the_compiler_their_shapes() -> None:
    theta, segments = torch.randn(40), segments_of((0, 15), (20, 40))
    checks = ("test_schema", "test_faketensor")
    c, d = torch.randn(3, 2, dtype=torch.float64), torch.randn(2, 40)
    for op, arguments in (
        (ops.random_direction.default, (theta, segments, "filter", 1, 2)),
        (ops.normalize_direction.default, (theta, theta, segments, "layer")),
        (ops.perturb.default, (theta, c, d)),
    ):
        torch.library.opcheck(op, arguments, test_utils=checks)


def test_the_landscape_is_left_as_it_was() -> None:
    land = landscape()
    before = land.theta.clone()
    for d in pl.random_directions(land, 2, orthogonal=True):
        d.vector.zero_()
    pl.normalize_direction(land, land.theta)
    assert torch.equal(land.theta, before)


def test_stored_seeds_keep_their_meaning_from_version_to_version() -> None:
    z = pl.gaussian(2018, 1, 0, 1000).numpy()
    assert hashlib.sha256(z.tobytes()).hexdigest()[:16] == "c536b5b4ef8d7c81"
