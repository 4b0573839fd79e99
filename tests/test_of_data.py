"""Values that the inputs alone decide (masks, lengths, positions), packed sequences, and writing at
constant indices: the compiled numbers are torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from derivative_support import assert_same_answers, assert_trained_alike
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import pylandscape as pl

TOKENS, STEPS, WIDTH = 7, 5, 6


class Tokens(nn.Module):
    """``f`` of the module, the embedded tokens and what else the model is given, then classes."""

    def __init__(self, f: Callable[..., Tensor], parts: dict[str, nn.Module], out: int) -> None:
        super().__init__()
        self.f, self.parts = f, nn.ModuleDict(parts)
        self.embedding, self.head = nn.Embedding(TOKENS, WIDTH), nn.Linear(out, 3)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.head(self.f(self.parts, self.embedding(ids), ids))
        return found


class More(Tokens):
    """With another input."""

    def forward(self, ids: Tensor, more: Tensor) -> Tensor:  # type: ignore[override]
        found: Tensor = self.head(self.f(self.parts, self.embedding(ids), ids, more))
        return found


def _mean(m: Any, h: Tensor, ids: Tensor) -> Tensor:
    seen = (ids != 0).to(h.dtype).unsqueeze(-1)
    return (h * seen).sum(1) / seen.sum(1).clamp(min=1)


def _hand(m: Any, h: Tensor, ids: Tensor) -> Tensor:
    scores = (m["q"](h) @ h.mT).masked_fill((ids == 0)[:, None, :], float("-inf"))
    return torch.tanh(scores.softmax(-1) @ h).mean(1)


def _heads(m: Any, h: Tensor) -> tuple[Tensor, Tensor]:
    q = m["q"](h).unflatten(-1, (2, 3)).transpose(1, 2)
    return q, h[..., :3].unsqueeze(1)


def _sdpa(m: Any, h: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    q, k = _heads(m, h)
    causal = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool).tril()
    return F.scaled_dot_product_attention(
        q, k, k.sin(), attn_mask=mask[:, None, None, :] & causal, enable_gqa=True
    ).flatten(1)


def _added(m: Any, h: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    q, k = _heads(m, h)
    scores = torch.zeros_like(mask, dtype=h.dtype).masked_fill(~mask, -1e9)
    return F.scaled_dot_product_attention(q, k.expand_as(q), k.expand_as(q),
                                          attn_mask=scores[:, None, None]).flatten(1)  # fmt: skip


def _bias(m: Any, h: Tensor, ids: Tensor) -> Tensor:
    """A mask that theta moves."""
    q, k = _heads(m, h)
    return F.scaled_dot_product_attention(q, k, k, attn_mask=(h @ h.mT)[:, None]).flatten(1)


def _multihead(m: Any, h: Tensor, ids: Tensor) -> Tensor:
    found: Tensor = m["a"](h, h, h, key_padding_mask=ids == 0, need_weights=False)[0]
    return found.mean(1)


def _layer(m: Any, h: Tensor, ids: Tensor) -> Tensor:
    found: Tensor = m["layer"](h, src_key_padding_mask=ids == 0)
    return found[:, 0]


def _where(m: Any, h: Tensor, ids: Tensor) -> Tensor:
    odd = (ids % 2 == 1).unsqueeze(-1)
    h = torch.where(odd, h, torch.tanh(m["q"](h)))
    h = torch.where(odd, 0.5, h) + torch.where(ids.unsqueeze(-1) > 3, h, 0.0)
    return h.masked_fill(odd & (ids == 3).unsqueeze(-1), 2.0).flatten(1).tanh()


def _one_hot(m: Any, h: Tensor, ids: Tensor) -> Tensor:
    """Whole numbers times what theta moves."""
    return (torch.tanh(h) * F.one_hot(ids, TOKENS)[..., :WIDTH] + h.sin()).flatten(1)


def _positions(m: Any, h: Tensor, ids: Tensor) -> Tensor:
    seen = (ids != 0).long()
    return (h + m["p"](seen.cumsum(1) * seen)).flatten(1)


def _recurrent(name: str, last: bool = False, **options: Any) -> Callable[..., Tensor]:
    def f(m: Any, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(h, lengths.cpu(), batch_first=True, enforce_sorted=False)
        out, state = m[name](packed)
        if last:
            return (state[1] if name == "lstm" else state).transpose(0, 1).flatten(1)
        padded, _ = pad_packed_sequence(out, batch_first=True, total_length=h.shape[1], **options)
        return torch.tanh(padded).flatten(1)

    return f


def _started(m: Any, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
    """Time first, with a state to begin from."""
    packed = nn.utils.rnn.pack_padded_sequence(h.transpose(0, 1), lengths, enforce_sorted=False)
    out, c = m["gru"](packed, h[:, :1].transpose(0, 1).tanh())
    padded = pad_packed_sequence(out, total_length=STEPS)[0]
    return (padded * (1 + c)).transpose(0, 1).flatten(1)


def _equal(m: Any, h: Tensor, ids: Tensor) -> Tensor:
    """Sequences that are all one step shorter than the input."""
    lengths = torch.full((ids.shape[0],), STEPS - 1)
    out, _ = m["lstm"](pack_padded_sequence(h, lengths, batch_first=True))
    return pad_packed_sequence(out, batch_first=True)[0].flatten(1)


def _linear() -> dict[str, nn.Module]:
    return {"q": nn.Linear(WIDTH, WIDTH)}


def _lstm(**options: Any) -> dict[str, nn.Module]:
    return {"lstm": nn.LSTM(WIDTH, 4, batch_first=True, **options)}


CASES: dict[str, tuple[Callable[..., Tensor], Callable[[], dict[str, nn.Module]], int, str]] = {
    "mean of what is seen": (_mean, dict, WIDTH, ""),
    "attention by hand": (_hand, _linear, WIDTH, ""),
    "mask of bool": (_sdpa, _linear, WIDTH * STEPS, "mask"),
    "mask that is added": (_added, _linear, WIDTH * STEPS, "mask"),
    "mask that theta moves": (_bias, _linear, WIDTH * STEPS, ""),
    "multihead": (_multihead, lambda: {"a": nn.MultiheadAttention(WIDTH, 2, batch_first=True)},
                  WIDTH, ""),
    "encoder layer": (
        _layer, lambda: {"layer": nn.TransformerEncoderLayer(WIDTH, 2, 5, batch_first=True)},
        WIDTH, ""),
    "where": (_where, _linear, WIDTH * STEPS, ""),
    "one-hot": (_one_hot, dict, WIDTH * STEPS, ""),
    "positions": (_positions, lambda: {"p": nn.Embedding(STEPS + 1, WIDTH)}, WIDTH * STEPS, ""),
    "lstm": (_recurrent("lstm", padding_value=0.5), _lstm, 4 * STEPS, "lengths"),
    "lstm, last c": (_recurrent("lstm", last=True), lambda: _lstm(num_layers=2), 8, "lengths"),
    "lstm, both ways": (_recurrent("lstm"), lambda: _lstm(num_layers=2, bidirectional=True),
                        8 * STEPS, "lengths"),
    "lstm, both ways, last c": (_recurrent("lstm", last=True), lambda: _lstm(bidirectional=True),
                                8, "lengths"),
    "rnn": (_recurrent("rnn", last=True), lambda: {"rnn": nn.RNN(WIDTH, 4, batch_first=True)},
            4, "lengths"),
    "gru, with a state": (_started, lambda: {"gru": nn.GRU(WIDTH, WIDTH)}, WIDTH * STEPS,
                          "lengths"),
    "equal lengths": (_equal, _lstm, 4 * (STEPS - 1), ""),
}  # fmt: skip


def _data(more: str, sizes: tuple[int, ...] = (5, 9)) -> list[Any]:
    batches = []
    for n in sizes:
        ids, lengths = torch.randint(0, TOKENS, (n, STEPS)), torch.randint(1, STEPS + 1, (n,))
        ids[:, 0] = 1  # never all padding
        extra = {"mask": torch.arange(STEPS) < lengths[:, None], "lengths": lengths}
        inputs = (ids, extra[more]) if more else ids
        batches.append((inputs, torch.randint(0, 3, (n,))))
    return batches


def _model(name: str) -> tuple[nn.Module, list[Any]]:
    torch.manual_seed(0)
    f, parts, out, more = CASES[name]
    return (More if more else Tokens)(f, parts(), out).double().eval(), _data(more)


@pytest.mark.filterwarnings("ignore:second derivatives:UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_what_the_data_decide_has_torchs_numbers(name: str) -> None:
    model, data = _model(name)
    land, torchs = (pl.Landscape(model, "cross_entropy", data, engine=e) for e in ("auto", "torch"))
    assert land.engine == "native", land.engine_report().reason
    assert_same_answers(land, torchs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["mask of bool", "lstm, both ways"])
def test_models_with_masks_are_trained_by_the_core(name: str) -> None:
    model, data = _model(name)
    land = pl.Landscape(model, "cross_entropy", data, engine="native")
    assert_trained_alike(land)


def test_float32_and_whole_numbers_beside_others() -> None:
    torch.manual_seed(0)
    f, parts, out, more = CASES["lstm"]
    model, data = More(f, parts(), out), _data(more)
    land, torchs = (pl.Landscape(model, "cross_entropy", data, engine=e) for e in ("auto", "torch"))
    assert land.engine == "native"
    assert land.loss() == pytest.approx(torchs.loss(), rel=1e-5)
    assert not any("_packed_form" in vars(m) for m in (model, land.model))


def _batch_mask(m: Any, h: Tensor, ids: Tensor) -> Tensor:
    return (h * (ids > ids.double().mean())[..., None]).mean(1)


def _random_mask(m: Any, h: Tensor, ids: Tensor) -> Tensor:
    return (h * (torch.rand_like(ids, dtype=h.dtype) > 0.5)[..., None]).mean(1)


def _batch_scale(m: Any, h: Tensor, ids: Tensor) -> Tensor:
    return (h * ids.double().mean().sqrt()).mean(1)


def _seldom_mask(m: Any, h: Tensor, ids: Tensor) -> Tensor:
    """No two of its draws are likely to differ."""
    return (h * (torch.rand_like(ids, dtype=h.dtype) > 1e-12)[..., None]).mean(1)


def _blind(m: Any, h: Tensor, ids: Tensor) -> Tensor:
    q, k = _heads(m, h)
    mask = (ids > 3)[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, k, attn_mask=mask).flatten(1)


def _mask_per_sample(m: Any, h: Tensor, ids: Tensor) -> Tensor:
    mask = (ids == 0)[:, None, :].expand(-1, STEPS, -1).repeat_interleave(2, 0)
    found: Tensor = m["layer"](h, src_mask=mask)
    return found[:, 0]


def _trimmed(m: Any, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
    packed = pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(m["lstm"](packed)[0], batch_first=True)[0].mean(1)


def _number(m: Any, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
    return h.mean(1) * lengths.tolist()[0]


REFUSED = {
    "of the batch": (_batch_mask, dict, WIDTH, "", "op 'mean': over the batch dimension"),
    "of the batch as a number": (_batch_scale, dict, WIDTH, "",
                                 "op 'mean': over the batch dimension"),
    "of chance": (_random_mask, dict, WIDTH, "", "'rand_like'"),
    "of chance, seldom": (_seldom_mask, dict, WIDTH, "", "draw random numbers"),
    "of samples and heads": (_mask_per_sample, CASES["encoder layer"][1], WIDTH, "",
                             "'repeat_interleave'"),
    "no key": (_blind, _linear, WIDTH * STEPS, "", "without any key"),
    "of the longest": (_trimmed, _lstm, 4, "lengths", "total_length"),
    "a number": (_number, dict, WIDTH, "lengths", "Python numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_sample_does_not_decide_is_torchs(name: str) -> None:
    torch.manual_seed(0)
    f, parts, out, more, reason = REFUSED[name]
    model, data = (More if more else Tokens)(f, parts(), out).double(), _data(more)
    data = data[1:]
    if name == "no key":
        data[0][0][3] = 1
    land = pl.Landscape(model, "cross_entropy", data)
    assert land.engine == "torch"
    assert reason in str(land.engine_report().reason)


class Sizes(nn.Module):
    """Calls of one input alone that fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.cat([*map(torch.cumsum, x.split(2, 1), (1, 1))], 1).round())
        return found


def test_an_exported_graph_of_one_input_takes_rows_behind_it() -> None:
    torch.manual_seed(0)
    data = 3 * torch.randn(8, 4), torch.randint(0, 3, (8,))
    model = Sizes()
    land, torchs = (pl.Landscape(model, "cross_entropy", data, engine=e) for e in ("auto", "torch"))
    report = land.engine_report()
    assert (report.engine, report.capture) == ("native", "export"), report.reason
    assert land.loss() == pytest.approx(torchs.loss(), rel=1e-6)
    torch.testing.assert_close(land.gradient(), torchs.gradient(), rtol=1e-5, atol=1e-6)


class Written(nn.Module):
    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.f = nn.Linear(4, 6), nn.Linear(6, 2), f

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.b(self.f(torch.tanh(self.a(x))))
        return found


def _written_in_place(h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    out.index_add_(1, torch.tensor([0, 0, 2, 5, 2, 1]), h)
    return out * h


def _rows(h: Tensor, index: list[int]) -> Tensor:
    return torch.tensor(index).unsqueeze(0).repeat(h.shape[0], 1)


WRITTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "scatter": lambda h: h.scatter(1, _rows(h, [3, 1]), h[:, :2] * 2),
    "scatter into ones": lambda h: torch.ones_like(h).scatter(1, _rows(h, [3, 1]), h[:, :2] * 2),
    "scatter_add": lambda h: h.scatter_add(1, _rows(h, [3, 1, 3]), h[:, :3]),
    "index_copy": lambda h: h.index_copy(1, torch.tensor([5, 0]), h[:, 2:4].sin()),
    "index_add": lambda h: h.index_add(1, torch.tensor([0, 0, 2, 5, 2, 1]), h, alpha=0.5),
    "in place": _written_in_place,
    "gather": lambda h: h.gather(1, _rows(h, [5, 5, 0, 1, 2, 3])),
    "exponent of theta": lambda h: (h.square() + 0.5) ** h,
    "base": lambda h: 2.0**h + torch.pow(0.5, h),
    "tan": lambda h: torch.tan(h) + torch.sinh(h) * torch.cosh(h) - torch.erfc(h),
    "addcmul": lambda h: torch.addcmul(h, h, h.sin(), value=0.3) + torch.addcdiv(h, h, 2 + h),
    "lerp": lambda h: torch.lerp(h, h.sin(), 0.3) + torch.lerp(h, h.sin(), h),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_writing_at_constant_indices_and_powers(name: str) -> None:
    torch.manual_seed(0)
    model = Written(WRITTEN[name]).double()
    data = torch.randn(7, 4, dtype=torch.float64), torch.randint(0, 2, (7,))
    land, torchs = (pl.Landscape(model, "cross_entropy", data, engine=e) for e in ("auto", "torch"))
    assert land.engine == "native", land.engine_report().reason
    v = torch.randn(land.n_params, dtype=torch.float64)
    assert land.loss() == pytest.approx(torchs.loss(), rel=1e-12)
    torch.testing.assert_close(land.gradient(), torchs.gradient(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(land.hvp(v), torchs.hvp(v), rtol=1e-9, atol=1e-11)
