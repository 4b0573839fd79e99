"""Embeddings, recurrent layers and losses over tokens: the compiled numbers are torch's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from core_support import PROGRAM, QUESTION, outputs_of
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl
from pylandscape._native import core

DTYPES = [torch.float32, torch.float64]
TOKENS = 7


class Language(nn.Module):
    """An LSTM language model; ``shape`` is how it gives its logits."""

    def __init__(self, shape: str = "classes first", tied: bool = False, **options: Any) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(TOKENS, 5, padding_idx=2)
        self.lstm = nn.LSTM(5, 5, num_layers=2, batch_first=True, **options)
        self.readout = nn.Linear(5, TOKENS)
        if tied:
            self.readout.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.lstm(self.embedding(x))
        if self.shape == "flat states":
            return F.log_softmax(self.readout(F.relu(h.reshape(-1, h.shape[-1]))), dim=1)
        logits: Tensor = self.readout(h)
        return logits.transpose(1, 2) if self.shape == "classes first" else logits.view(-1, TOKENS)


class Layers(nn.Module):
    """A recurrent layer on sequences (N, T, 4), one of its results, and a readout."""

    def __init__(self, kind: Any, result: str, time_first: bool = False, **options: Any) -> None:
        super().__init__()
        self.result, self.time_first = result, time_first
        self.layer = kind(4, 5, batch_first=not time_first, **options)
        self.readout = nn.Linear(5 * (1 + self.layer.bidirectional), 3)

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.layer(x.transpose(0, 1) if self.time_first else x)
        h = state[0] if isinstance(self.layer, nn.LSTM) else state
        if self.result == "out":
            last = out[-1] if self.time_first else out[:, -1]
        elif self.result == "all":
            last = torch.tanh(out)[:, 0] * out[:, -1] + out[:, -1]
        else:
            last = state[1][-1] if self.result == "c" else h[-1]
        found: Tensor = self.readout(last)
        return found


def _matches(
    model: nn.Module,
    loss: Any,
    x: Tensor,
    y: Tensor,
    *,
    dtype: torch.dtype = torch.float64,
    samples: bool = True,
) -> pl.Landscape:
    """Loss, gradient, HVP and per-sample gradients against the torch engine in float64."""
    model = model.to(dtype)
    exact = copy.deepcopy(model).double()
    wide = [t.double() if t.is_floating_point() else t for t in (x, y)]
    x, y = (t.to(dtype) if t.is_floating_point() else t for t in (x, y))
    native = pl.Landscape(model, loss, (x, y), engine="native")
    reference = pl.Landscape(exact, copy.deepcopy(loss), tuple(wide), engine="torch")
    bound = 400 * torch.finfo(dtype).eps  # of the largest element; a dozen are typical
    g = torch.Generator().manual_seed(0)
    d = 0.2 * torch.randn(2, native.n_params, generator=g, dtype=torch.float64)
    c = np.array([[0.0, 0.0], [1.0, 0.0], [-0.5, 1.5]])
    want = reference.losses(c, d)
    np.testing.assert_allclose(native.losses(c, d.to(dtype)), want, rtol=bound, atol=bound)
    points = reference.theta.double() + torch.from_numpy(c) @ d
    np.testing.assert_allclose(native.losses(points=points), want, rtol=bound, atol=bound)

    def close(found: Any, expected: Any) -> None:
        found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected).double()
        assert (found - expected).abs().max() <= bound * expected.abs().max()

    close(native.gradient(), reference.gradient())
    close(native.hvp(d[0].to(dtype)), reference.hvp(d[0].to(dtype).double()))
    if samples:
        close(native.per_sample_gradients(), reference.per_sample_gradients())
    return native


def _tokens(samples: int, length: int) -> Tensor:
    return torch.randint(0, TOKENS, (samples, length))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 5, 16, 37])
def test_embedding_gives_each_column_its_row(size: int, dtype: torch.dtype) -> None:
    table = torch.randn(TOKENS, size, dtype=dtype)
    program = PROGRAM[dtype](table.numel(), 0, 0)
    program.input(3)
    program.finish(program.embedding([2, 0], TOKENS, size, -1, 0))
    ids = _tokens(21, 3)
    data = ids.to(dtype)
    program.set_data(21, data.data_ptr())
    target = torch.zeros(21, 2 * size, dtype=torch.float64)
    program.set_loss(core.Loss.mse, 2 * size, 1, 0.0, [], [], 0, target.data_ptr())
    found, loss = torch.empty(21, 2, size, dtype=dtype), np.empty(1)
    question = QUESTION[dtype](program)
    question.run(1, table.data_ptr(), loss.ctypes.data, 0, found.data_ptr())
    assert torch.equal(found, table[ids[:, [2, 0]]])


def test_ids_that_are_no_rows_are_refused_by_the_core() -> None:
    for bad in (-1.0, 7.0, 0.5):
        program = core.ProgramF32(14, 0, 0)
        program.input(1)
        program.finish(program.embedding([0], TOKENS, 2, -1, 0))
        data = torch.tensor([[0.0], [bad]])
        with pytest.raises(ValueError, match="no row of the weight"):
            program.set_data(2, data.data_ptr())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_cells_are_accurate_to_a_few_eps(kind: str, scale: float, dtype: torch.dtype) -> None:
    hidden, gates = 3, 4 if kind == "lstm" else 3
    x = torch.randn(41, (2 * gates + 1) * hidden, dtype=torch.float64).to(dtype) * scale

    def build(program: Any, slot: int) -> int:
        rows = [list(range(first, first + gates * hidden)) for first in (0, gates * hidden)]
        index = [torch.tensor(r) for r in rows]
        a, b = (program.gather(slot, len(i), i.data_ptr(), 0.0) for i in index)
        cell: int = program.cell(getattr(core.Cell, kind), hidden, a, b, slot, 2 * gates * hidden)
        return cell

    a, b, last = x.double().split([gates * hidden, gates * hidden, hidden], dim=1)
    if kind == "lstm":
        i, f, g, o = (a + b).chunk(4, 1)
        c = torch.sigmoid(f) * last + torch.sigmoid(i) * torch.tanh(g)
        want = torch.cat([torch.sigmoid(o) * torch.tanh(c), c], 1)
    else:
        (xr, xz, xn), (hr, hz, hn) = a.chunk(3, 1), b.chunk(3, 1)
        r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        n = torch.tanh(xn + r * hn)
        want = (1 - z) * n + z * last
    found = outputs_of(x.shape[1], x, build).double()
    # A gate carries its argument's rounding, eps |argument|.
    bound = 16 * torch.finfo(dtype).eps * (1 + scale) * (want.abs() + last.abs().max())
    assert ((found - want).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("samples", "length"), [(1, 1), (1, 6), (9, 1), (37, 6)])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_have_torchs_derivatives(
    kind: Any, samples: int, length: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(length)
    x, y = torch.randn(samples, length, 4), torch.randint(0, 3, (samples,))
    _matches(Layers(kind, "out", num_layers=2), nn.CrossEntropyLoss(), x, y, dtype=dtype)


OPTIONS: list[tuple[Any, str, dict[str, Any]]] = [
    (nn.LSTM, "h", {"num_layers": 2}),
    (nn.LSTM, "c", {"num_layers": 2}),
    (nn.LSTM, "all", {"num_layers": 2, "dropout": 0.5}),
    (nn.LSTM, "out", {"time_first": True, "num_layers": 3}),
    (nn.LSTM, "out", {"bidirectional": True, "num_layers": 2}),
    (nn.LSTM, "out", {"bias": False}),
    (nn.GRU, "h", {"bias": False}),
    (nn.GRU, "all", {"bidirectional": True, "num_layers": 2}),
    (nn.RNN, "h", {"nonlinearity": "tanh", "bias": False}),
    (nn.RNN, "out", {"nonlinearity": "relu", "num_layers": 2}),
]


@pytest.mark.parametrize(("kind", "result", "options"), OPTIONS)
def test_options_and_results_of_recurrent_layers(
    kind: Any, result: str, options: dict[str, Any]
) -> None:
    torch.manual_seed(1)
    x, y = torch.randn(9, 6, 4), torch.randint(0, 3, (9,))
    _matches(Layers(kind, result, **options), nn.CrossEntropyLoss(), x, y)


class GivenStates(nn.Module):
    """An LSTM that starts from constants it makes itself, or from a learnt or computed state."""

    def __init__(self, given: str) -> None:
        super().__init__()
        self.given = given
        self.first, self.layer = nn.Linear(4, 5), nn.LSTM(4, 5, batch_first=True)
        self.start = nn.Parameter(torch.randn(1, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        if self.given == "computed":
            h = self.first(x[:, 0]).unsqueeze(0)
            c = torch.tanh(h)
        elif self.given == "learnt":
            h = self.start.expand(1, x.size(0), 5)
            c = h.contiguous()
        else:
            h = torch.zeros(1, x.size(0), 5, dtype=x.dtype).to(x.device)
            c = h + 0.5 if self.given == "constant" else h
        out, _ = self.layer(x, (h, c))
        found: Tensor = out[:, -1]
        return found


@pytest.mark.parametrize("given", ["zeros", "constant", "learnt", "computed"])
def test_first_states_may_be_given(given: str) -> None:
    torch.manual_seed(2)
    x, y = torch.randn(9, 4, 4), torch.randint(0, 5, (9,))
    _matches(GivenStates(given), nn.CrossEntropyLoss(), x, y)


class Positions(nn.Module):
    """Token and position embeddings, both from tables."""

    def __init__(self, padding_idx: int | None = None) -> None:
        super().__init__()
        self.token = nn.Embedding(TOKENS, 5)
        self.position = nn.Embedding(8, 5, padding_idx=padding_idx)
        self.readout = nn.Linear(5, TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.token(x) + self.position(torch.arange(6)))
        found: Tensor = self.readout(h).transpose(1, 2)
        return found


def test_embedded_positions_are_a_view_of_their_table() -> None:
    torch.manual_seed(9)
    x, y = _tokens(9, 6), _tokens(9, 6)
    _matches(Positions(padding_idx=7), nn.CrossEntropyLoss(), x, y)
    report = pl.Landscape(Positions(padding_idx=3), "cross_entropy", (x, y)).engine_report()
    assert "padding" in report.reason


class Loop(nn.Module):
    """A cell in a Python loop over the steps; ``traced`` keeps the loop within what fx can run."""

    def __init__(self, cell: nn.Module, traced: bool) -> None:
        super().__init__()
        self.cell, self.traced = cell, traced

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        if not self.traced:
            zeros = torch.zeros(x.shape[0], 5, dtype=x.dtype)
            state = (zeros, zeros) if isinstance(self.cell, nn.LSTMCell) else zeros
        for t in range(3 if self.traced else x.shape[1]):
            state = self.cell(x[:, t], state)
        found: Tensor = state[0] if isinstance(self.cell, nn.LSTMCell) else state
        return found


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_in_a_loop(kind: Any, traced: bool) -> None:
    torch.manual_seed(3)
    x, y = torch.randn(9, 3, 4), torch.randint(0, 5, (9,))
    _matches(Loop(kind(4, 5), traced), nn.CrossEntropyLoss(), x, y)


LOSSES: dict[str, Callable[[], nn.Module]] = {
    "plain": nn.CrossEntropyLoss,
    "ignoring": lambda: nn.CrossEntropyLoss(ignore_index=3),
    "weighted": lambda: nn.CrossEntropyLoss(
        torch.linspace(0.5, 2, TOKENS).double(), label_smoothing=0.1
    ),
    "sum": lambda: nn.CrossEntropyLoss(reduction="sum"),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", ["classes first", "flat"])
def test_language_models_with_losses_over_tokens(shape: str, loss: str, tied: bool) -> None:
    torch.manual_seed(4)
    x, y = _tokens(37, 6), _tokens(37, 6)
    y[0] = 3  # a sequence of which no token counts, where 3 is ignored
    target = y if shape == "classes first" else y.flatten()
    model = Language(shape, tied)
    samples = shape == "classes first"  # torch's engine wants one row of outputs per sample
    native = _matches(model, LOSSES[loss](), x, target, samples=samples)
    if shape == "flat":
        same = Language("classes first", tied).double()
        same.load_state_dict(model.state_dict())
        want = pl.Landscape(same, LOSSES[loss](), (x, y), engine="torch").per_sample_gradients()
        torch.testing.assert_close(native.per_sample_gradients(), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", ["flat states", "flat"])
def test_accuracy_counts_the_tokens(shape: str) -> None:
    torch.manual_seed(5)
    x, y = _tokens(9, 6), _tokens(9, 6).flatten()
    model = Language(shape)
    engines = [
        pl.Landscape(model, nn.NLLLoss(ignore_index=1), (x, y), engine=e)
        for e in ("native", "torch")
    ]
    d, c = torch.randn(1, engines[0].n_params), np.linspace(-1, 1, 5)[:, None]
    found, want = (e.evaluate(c, d, metrics=("loss", "accuracy")) for e in engines)
    np.testing.assert_allclose(found["accuracy"], want["accuracy"], atol=1e-12)
    np.testing.assert_allclose(found["loss"], want["loss"], rtol=1e-5)


def test_soft_and_dense_targets_of_tokens() -> None:
    torch.manual_seed(6)
    x, soft = _tokens(9, 4), torch.softmax(torch.randn(9, 4, TOKENS), -1)
    _matches(Language(), nn.CrossEntropyLoss(), x, soft.transpose(1, 2))
    _matches(Language("flat"), nn.CrossEntropyLoss(), x, soft.flatten(0, 1), samples=False)
    _matches(Language(), nn.MSELoss(), x, soft.transpose(1, 2))
    weight = torch.rand(TOKENS).double()
    bce = nn.BCEWithLogitsLoss(pos_weight=weight)
    _matches(Language("flat"), bce, x, (soft > 0.2).double().flatten(0, 1), samples=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("frozen", [(), ("embedding.*",), ("lstm.*",), ("readout.*",)])
def test_looked_up_products_are_the_products(frozen: tuple[str, ...], dtype: torch.dtype) -> None:
    """Widths of whole vectors and more tokens than rows: the first products are looked up."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(TOKENS, 12)
            self.lstm = nn.LSTM(12, 16, batch_first=True)
            self.readout = nn.Linear(16, TOKENS)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.readout(self.lstm(self.embedding(x))[0]).transpose(1, 2)
            return found

    torch.manual_seed(7)
    model = Wide().to(dtype)
    every = ("embedding.*", "lstm.*", "readout.*")
    chosen = tuple(p for p in every if p not in frozen)
    x, y = _tokens(37, 6), _tokens(37, 6)
    native = pl.Landscape(model, "cross_entropy", (x, y), engine="native", params=chosen)
    exact = pl.Landscape(
        copy.deepcopy(model).double(), "cross_entropy", (x, y), engine="torch", params=chosen
    )
    d = 0.3 * torch.randn(2, native.n_params, dtype=torch.float64)
    c = np.random.default_rng(0).normal(size=(5, 2))
    bound = 100 * torch.finfo(dtype).eps
    np.testing.assert_allclose(native.losses(c, d.to(dtype)), exact.losses(c, d), rtol=bound)
    few = pl.Landscape(model, "cross_entropy", (x[:1, :1], y[:1, :1]), engine="native")
    want = pl.Landscape(model, "cross_entropy", (x[:1, :1], y[:1, :1]), engine="torch")
    assert few.loss() == pytest.approx(want.loss(), rel=bound)


class Ids(nn.Module):
    """An embedding of the ids that ``f`` makes of the input."""

    def __init__(self, f: Callable[[Tensor], Tensor], **options: Any) -> None:
        super().__init__()
        self.f, self.embedding = f, nn.Embedding(TOKENS, 3, **options)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.embedding(self.f(x)).flatten(1)
        return found


def test_views_of_the_ids_are_embedded() -> None:
    x, y = _tokens(9, 4), torch.randint(0, 3, (9,))
    _matches(Ids(lambda x: (x + 1) % TOKENS), nn.CrossEntropyLoss(), x, y)
    _matches(Ids(lambda x: F.pad(x, (1, 1))), nn.CrossEntropyLoss(), x, y)
    model = Ids(lambda x: x[:, 1:].flip(1))
    _matches(model, nn.CrossEntropyLoss(), x, y)
    _matches(model, nn.CrossEntropyLoss(), x.int(), y)


def test_an_embedding_with_sparse_gradients_is_an_embedding() -> None:
    x, y = _tokens(9, 4), torch.randint(0, 3, (9,))
    _matches(Ids(lambda x: x, sparse=True), nn.CrossEntropyLoss(), x, y)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Ids(lambda x: x, max_norm=1.0), "changes tensors that it keeps"),
        (Ids(lambda x: x, scale_grad_by_freq=True), "scale_grad_by_freq"),
    ],
)
def test_what_embedding_cannot_do_runs_on_torch_and_says_why(model: Ids, reason: str) -> None:
    x, y = torch.randint(0, TOKENS - 1, (9, 2)), torch.randint(0, 3, (9,))
    report = pl.Landscape(model, "cross_entropy", (x, y)).engine_report()
    assert report.engine == "torch"
    assert reason in report.reason


class Out(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)[0]
        return found


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.LSTM(4, 5, proj_size=3, batch_first=True), "proj_size"),
        (nn.LSTM(4, 5), "batch_first"),
    ],
)
def test_what_recurrent_layers_cannot_do_says_why(layer: nn.Module, reason: str) -> None:
    x, model = torch.randn(9, 4, 4), Out(layer)
    report = pl.Landscape(model, "mse", (x, torch.randn(model(x).shape))).engine_report()
    assert report.engine == "torch"
    assert reason in report.reason


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("bad", [-1, TOKENS])
def test_ids_out_of_range_are_refused(bad: int, engine: str) -> None:
    x, y = _tokens(300, 4), _tokens(300, 4)
    x[290, 2] = bad
    with pytest.raises(pl.InvalidArgument, match=r"data: .*out of range"):
        pl.Landscape(Language(), "cross_entropy", (x, y), engine=engine)


def test_the_padding_row_moves_the_loss_but_has_no_derivative() -> None:
    torch.manual_seed(8)
    x, y = _tokens(9, 4), _tokens(9, 4)
    native = pl.Landscape(Language().double(), "cross_entropy", (x, y), engine="native")
    row = torch.zeros(native.n_params, dtype=torch.float64)
    row[2 * 5 : 3 * 5] = 1.0
    assert torch.as_tensor(native.gradient())[2 * 5 : 3 * 5].eq(0).all()
    assert torch.as_tensor(native.hvp(row)).eq(0).all()
    away = native.losses(np.array([[1.0]]), row[None])
    assert abs(away[0] - native.loss()) > 1e-6


def test_a_step_that_nobody_reads_is_not_computed() -> None:
    """Of `out` only the last step is used: no rows are joined."""
    x, y = torch.randn(9, 6, 4), torch.randint(0, 3, (9,))
    land = pl.Landscape(Layers(nn.GRU, "out"), "cross_entropy", (x, y), engine="native")
    program = land.native.program
    assert program.ops == 6 * 3 + 2  # per step two products and a cell; zeros; the readout
