"""Stems, tasks and wrappers of awkward modules: what stands around the habits.

A stem takes a batch's inputs to (B, d); a task makes targets, the head's width, and the loss or
objective; a wrapper is put around the finished module. Everything draws from torch's global
generator, which the caller seeds.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Stems: (module of d, inputs of (batch size, d)).


def _vectors(b: int, d: int) -> Tensor:
    return torch.randn(b, d)


def _images(b: int, d: int) -> Tensor:
    return torch.randn(b, 2, 5, 5)


def _tokens(b: int, d: int) -> Tensor:
    return torch.randint(1, 7, (b, 4))


def _padded(b: int, d: int) -> Tensor:
    tokens = torch.randint(1, 7, (b, 5))
    tokens[:, 3:] = 0
    return tokens


class Images(nn.Module):
    def __init__(self, d: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3, padding=1), norm or nn.Identity()
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(12, d)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(torch.tanh(self.norm(self.conv(x)))), 1))


class NormedImages(Images):
    def __init__(self, d: int) -> None:
        super().__init__(d, nn.BatchNorm2d(3))
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)


class Tokens(nn.Module):
    max_norm = None

    def __init__(self, d: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, d, padding_idx=0, max_norm=self.max_norm)

    def forward(self, i):
        return self.embedding(i).mean(1)


class MaxNormTokens(Tokens):
    max_norm = 0.5


class Recurrent(Tokens):
    kind: Any = nn.LSTM

    def __init__(self, d: int) -> None:
        super().__init__(d)
        self.rnn = self.kind(d, d, batch_first=True)

    def forward(self, i):
        return self.rnn(self.embedding(i))[0][:, -1]


class Gru(Recurrent):
    kind = nn.GRU


class Rnn(Recurrent):
    kind = nn.RNN


class RecurrentWithState(Recurrent):
    """Truncated backpropagation through time: the hidden state goes from batch to batch."""

    hidden = None

    def forward(self, i):
        hidden = self.hidden
        if hidden is not None and hidden[0].shape[1] != len(i):
            hidden = None
        out, hidden = self.rnn(self.embedding(i), hidden)
        self.hidden = tuple(h.detach() for h in hidden)
        return out[:, -1]


class PackedRecurrent(Recurrent):
    def forward(self, i):
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embedding(i), (i > 0).sum(1), batch_first=True, enforce_sorted=False
        )
        return self.rnn(packed)[1][0][0]


class Transformer(Tokens):
    def __init__(self, d: int) -> None:
        super().__init__(d)
        layer = nn.TransformerEncoderLayer(d, 1, 2 * d, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)

    def forward(self, i):
        return self.encoder(self.embedding(i), src_key_padding_mask=i == 0).mean(1)


class Attention(Tokens):
    def __init__(self, d: int) -> None:
        super().__init__(d)
        self.mha = nn.MultiheadAttention(d, 1, batch_first=True)

    def forward(self, i):
        e = self.embedding(i)
        return self.mha(e, e, e, key_padding_mask=i == 0)[0].sum(1)


class Bag(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(7, d, mode="sum")

    def forward(self, i):
        return self.bag(i)


class TwoInputs(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(d, d), nn.Linear(2, d, bias=False)

    def forward(self, x, z):
        return torch.tanh(self.a(x)) * self.b(z)


class KindAndValue(nn.Module):
    """Keyword inputs of two kinds."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.kind, self.value = nn.Embedding(3, d), nn.Linear(d, d)

    def forward(self, *, kind, value):
        return self.value(value) + self.kind(kind)


class InPlaceKind(KindAndValue):
    def forward(self, *, kind, value):
        value.mul_(0.5)
        kind.clamp_(max=1)
        return self.value(value) + self.kind(kind)


class Masked(nn.Module):
    """An optional second input, and a boolean one."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.fc = nn.Linear(d, d)

    def forward(self, x, mask, bias=None):
        y = self.fc(x).masked_fill(mask, 0.0)
        return y if bias is None else y + bias


class Graph(nn.Module):
    """A layer on a graph whose adjacency, sparse, is an input."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.fc = nn.Linear(d, d)

    def forward(self, x, adjacency):
        return torch.sparse.mm(adjacency, self.fc(x))


class Whole(nn.Module):
    """Integer inputs, divided in place after the cast."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.fc = nn.Linear(d, d)

    def forward(self, x):
        return self.fc(x.to(self.fc.weight.dtype).div_(4))


class Plain(nn.Module):
    def forward(self, x):
        return x


B = 4  # what the stems of a fixed batch size expect


class FixedView(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.d, self.fc = d, nn.Linear(d, d)

    def forward(self, x):
        return self.fc(x.view(B, -1))


class FixedBuffer(FixedView):
    def __init__(self, d: int) -> None:
        super().__init__(d)
        self.register_buffer("offset", torch.randn(B, d))

    def forward(self, x):
        return torch.tanh(self.fc(x) + self.offset)


class FixedTensor(FixedView):
    def __init__(self, d: int) -> None:
        super().__init__(d)
        self.offset = torch.randn(B, d)

    def forward(self, x):
        return self.fc(x) * self.offset


class FixedParameter(FixedView):
    def __init__(self, d: int) -> None:
        super().__init__(d)
        self.offset = nn.Parameter(torch.randn(B, d))

    def forward(self, x):
        return self.fc(x) * self.offset


class FixedZeros(FixedView):
    def forward(self, x):
        return self.fc(x) + torch.ones(B, self.d)


class FixedUnbind(FixedView):
    def forward(self, x):
        a, b, c, d = x.unbind(0)
        return self.fc(torch.stack([b, a, d, c]))


class FixedAssert(FixedView):
    def forward(self, x):
        assert x.shape[0] == B, "the batch has another size"
        return self.fc(x)


class FixedRecurrent(FixedView):
    def __init__(self, d: int) -> None:
        super().__init__(d)
        self.gru, self.h0 = nn.GRU(d, d, batch_first=True), nn.Parameter(torch.zeros(1, B, d))

    def forward(self, x):
        return self.gru(x[:, None], self.h0)[0][:, -1]


def _adjacency(b: int) -> Tensor:
    return ((torch.rand(b, b) > 0.5).float() + torch.eye(b)).to(torch.get_default_dtype())


@dataclass(frozen=True)
class Stem:
    module: Callable[[int], nn.Module]
    inputs: Callable[[int, int], Any] = _vectors
    arity: str = "one"  # or "two", "keywords"
    must: bool = True


STEMS = {
    "vectors": Stem(lambda d: Plain()),
    "linear": Stem(lambda d: nn.Linear(d, d)),
    "images": Stem(Images, _images),
    "images_normed": Stem(NormedImages, _images),
    "tokens": Stem(Tokens, _tokens),
    "tokens_max_norm": Stem(MaxNormTokens, _tokens, must=False),
    "lstm": Stem(Recurrent, _tokens),
    "gru": Stem(Gru, _tokens),
    "rnn": Stem(Rnn, _tokens),
    "lstm_with_state": Stem(RecurrentWithState, _tokens, must=False),
    "lstm_packed": Stem(PackedRecurrent, _padded),
    "transformer_padded": Stem(Transformer, _padded),
    "attention_padded": Stem(Attention, _padded),
    "bag": Stem(Bag, _tokens),
    "two_inputs": Stem(TwoInputs, lambda b, d: (torch.randn(b, d), torch.randn(b, 2)), "two"),
    "keywords": Stem(
        KindAndValue,
        lambda b, d: {"kind": torch.randint(0, 3, (b,)), "value": torch.randn(b, d)},
        "keywords",
    ),
    "keywords_in_place": Stem(
        InPlaceKind,
        lambda b, d: {"kind": torch.randint(0, 3, (b,)), "value": torch.randn(b, d)},
        "keywords",
        must=False,
    ),
    "masked": Stem(Masked, lambda b, d: [torch.randn(b, d), torch.rand(b, d) > 0.6], "two"),
    "graph": Stem(Graph, lambda b, d: (torch.randn(b, d), _adjacency(b).to_sparse()), "two"),
    "whole_numbers": Stem(Whole, lambda b, d: torch.randint(-5, 6, (b, d))),
    "fixed_view": Stem(FixedView),
    "fixed_buffer": Stem(FixedBuffer),
    "fixed_tensor": Stem(FixedTensor),
    "fixed_parameter": Stem(FixedParameter),
    "fixed_zeros": Stem(FixedZeros),
    "fixed_unbind": Stem(FixedUnbind),
    "fixed_assert": Stem(FixedAssert),
    "fixed_recurrent": Stem(FixedRecurrent),
}


class Net(nn.Module):
    def __init__(self, stem: nn.Module, blocks: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem, self.body, self.head = stem, nn.Sequential(*blocks), head

    def forward(self, x):
        return self.head(self.body(self.stem(x)))


class NetOfTwo(Net):
    def forward(self, x, z):
        return self.head(self.body(self.stem(x, z)))


class NetOfKeywords(Net):
    def forward(self, *, kind, value):
        return self.head(self.body(self.stem(kind=kind, value=value)))


NETS = {"one": Net, "two": NetOfTwo, "keywords": NetOfKeywords}

# Tasks: loss or objective. Free losses and objectives are averaged by batch size.

Both = namedtuple("Both", "first second")


class AsTuple(nn.Module):
    def forward(self, y):
        return y, torch.sin(y)


class AsDict(nn.Module):
    def forward(self, y):
        return {"out": y, "size": y.pow(2).mean()}


class AsNamed(nn.Module):
    def forward(self, y):
        return Both(y, y.abs())


class Learned(nn.Module):
    """A criterion with a parameter of its own, which is no part of theta."""

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.tensor(0.3))

    def forward(self, o, t):
        return F.mse_loss(o, t) * torch.exp(-self.log_variance) + self.log_variance


class Counting(nn.Module):
    """A criterion with state: it forgets nothing."""

    mean = 0.0

    def forward(self, o, t):
        self.mean = 0.5 * self.mean + float(o.detach().mean())
        return F.mse_loss(o, t) + self.mean


def _in_place(o, t):
    o -= o.detach().mean()
    return (o - t).abs().mean()


def _in_place_target(o, t):
    t -= t.mean()
    return (o - t).pow(2).mean()


def _random_loss(o, t):
    return (o * torch.rand_like(o) - t).pow(2).mean()


@torch.no_grad()
def _no_grad_loss(o, t):
    return (o - t).pow(2).mean()


def _with_decay(model: nn.Module) -> Callable:
    parameters = list(model.parameters())
    return lambda o, t: F.mse_loss(o, t) + 0.1 * sum(p.pow(2).sum() for p in parameters)


def _reads_model(model: nn.Module) -> Callable:
    def loss(o, t):
        return F.mse_loss(o, t) + sum(p.abs().sum() for p in model.parameters()) / 10

    return loss


def _distill(model: nn.Module) -> Callable:
    """A target of the model's own making, cut off."""
    return lambda o, t: (o - (0.5 * o + t).detach()).pow(2).mean()


def _inner(m, b):
    """A physics-informed network: u' + u = 0 at points (B, d)."""
    x = b[0].clone().requires_grad_(True)
    u = m(x)
    return (torch.autograd.grad(u.sum(), x, create_graph=True)[0] + u.mean()).pow(2).mean()


def _penalty(m, b):
    x = b[0].detach().clone().requires_grad_(True)
    g = torch.autograd.grad(m(x).sum(), x, create_graph=True)[0]
    return m(b[0]).pow(2).mean() + (g.norm(dim=1) - 1).pow(2).mean()


def _laplacian(m, b):
    one = torch.func.jacfwd(torch.func.jacrev(lambda s: m(s[None])[0].sum()))
    return torch.func.vmap(one)(b[0]).diagonal(dim1=1, dim2=2).sum(1).pow(2).mean()


def _own_decay(m, b):
    return F.mse_loss(m(b[0]), b[1]) + 0.01 * sum(p.pow(2).sum() for p in m.parameters())


def _closure(model: nn.Module) -> Callable:
    return lambda m, b: F.mse_loss(model(b[0]), b[1])


def _train_inside(m, b):
    m.train()
    value = F.mse_loss(m(b[0]), b[1])
    m.eval()
    return value


def _zero_one(m, b):
    return torch.tensor(float((m(b[0]).argmax(1) != b[1].argmax(1)).float().mean()))


def _mixup(m, b):
    order = torch.randperm(len(b[0]))
    return F.mse_loss(m(0.5 * (b[0] + b[0][order])), b[1])


def _attributes(m, b):
    """Parts of the model by name."""
    inner = getattr(m, "module", m)
    return (inner.head(torch.tanh(inner.stem(b[0]))) - b[1]).pow(2).mean()


def _functional(m, b):
    moved = {k: 0.5 * p for k, p in m.named_parameters()}
    return F.mse_loss(torch.func.functional_call(m, moved, (b[0],)), b[1])


@dataclass(frozen=True)
class Task:
    loss: Callable[[nn.Module], Any]  # of the model
    target: str = "real"  # or "class", "ignored", "binary", "soft", "count"
    out: Callable[[], nn.Module] | None = None  # after the head
    objective: bool = False
    must: bool = True
    draws: str | None = None


def _weighted(model: nn.Module) -> nn.Module:
    return nn.CrossEntropyLoss(weight=torch.rand(3) + 0.5, ignore_index=1)


TASKS = {
    "ce": Task(lambda m: nn.CrossEntropyLoss(), "class"),
    "ce_name": Task(lambda m: "cross_entropy", "class"),
    "ce_sum": Task(lambda m: nn.CrossEntropyLoss(reduction="sum"), "class"),
    "ce_weighted": Task(_weighted, "class"),
    "ce_ignored": Task(lambda m: nn.CrossEntropyLoss(), "ignored"),
    "ce_smooth": Task(lambda m: nn.CrossEntropyLoss(label_smoothing=0.1), "class"),
    "ce_soft": Task(lambda m: nn.CrossEntropyLoss(), "soft"),
    "ce_function": Task(lambda m: F.cross_entropy, "class"),
    "nll": Task(lambda m: nn.NLLLoss(), "class", lambda: nn.LogSoftmax(dim=1)),
    "mse": Task(lambda m: nn.MSELoss()),
    "mse_sum": Task(lambda m: nn.MSELoss(reduction="sum")),
    "bce": Task(lambda m: nn.BCEWithLogitsLoss(), "binary"),
    "bce_weighted": Task(lambda m: nn.BCEWithLogitsLoss(pos_weight=torch.ones(3) * 2), "binary"),
    "huber": Task(lambda m: nn.HuberLoss()),
    "l1": Task(lambda m: nn.L1Loss()),
    "smooth_l1": Task(lambda m: nn.SmoothL1Loss()),
    "poisson": Task(lambda m: nn.PoissonNLLLoss(), "count"),
    "kl": Task(lambda m: nn.KLDivLoss(reduction="batchmean"), "soft", lambda: nn.LogSoftmax(1)),
    "bce_probabilities": Task(lambda m: nn.BCELoss(), "binary", nn.Sigmoid),
    "free": Task(lambda m: lambda o, t: (o - t).abs().pow(1.5).mean()),
    "tuple_out": Task(lambda m: lambda o, t: (o[0] - t).pow(2).mean() + o[1].mean(), out=AsTuple),
    "dict_out": Task(lambda m: lambda o, t: F.mse_loss(o["out"], t) + o["size"], out=AsDict),
    "named_out": Task(lambda m: lambda o, t: F.mse_loss(o.first, t) + o.second.sum(), out=AsNamed),
    "criterion_with_parameter": Task(lambda m: Learned()),
    "criterion_with_state": Task(lambda m: Counting(), must=False),
    "loss_in_place": Task(lambda m: _in_place, must=False),
    "loss_in_place_target": Task(lambda m: _in_place_target, must=False),
    "loss_random": Task(lambda m: _random_loss, must=False, draws="torch"),
    "loss_without_gradient": Task(lambda m: _no_grad_loss, must=False),
    "loss_item": Task(lambda m: lambda o, t: float((o - t).pow(2).mean().item()), must=False),
    "decay_over_a_list": Task(_with_decay, must=False),
    "loss_reads_model": Task(_reads_model, must=False),
    "loss_detaches": Task(_distill),
    "objective": Task(lambda m: lambda m, b: (m(b[0]) - b[1]).pow(4).mean(), objective=True),
    "objective_pinn": Task(lambda m: _inner, objective=True),
    "objective_penalty": Task(lambda m: _penalty, objective=True),
    "objective_laplacian": Task(lambda m: _laplacian, objective=True),
    "objective_decay": Task(lambda m: _own_decay, objective=True),
    "objective_of_a_closure": Task(_closure, objective=True, must=False),
    "objective_trains": Task(lambda m: _train_inside, objective=True, must=False),
    "objective_zero_one": Task(lambda m: _zero_one, objective=True, must=False),
    "objective_mixup": Task(lambda m: _mixup, objective=True, must=False, draws="torch"),
    "objective_of_parts": Task(lambda m: _attributes, objective=True, must=False),
    "objective_functional": Task(lambda m: _functional, objective=True, must=False),
}


def target_of(kind: str, b: int) -> Tensor:
    if kind == "class":
        return torch.randint(0, 3, (b,))
    if kind == "ignored":
        target = torch.randint(0, 3, (b,))
        target[1] = -100
        return target
    if kind == "binary":
        return (torch.rand(b, 3) > 0.5).to(torch.get_default_dtype())
    if kind == "soft":
        return torch.softmax(torch.randn(b, 3), 1)
    if kind == "count":
        return torch.randint(0, 4, (b, 3)).to(torch.get_default_dtype())
    return torch.randn(b, 3)


class Wrapped(nn.Module):
    """A user's own wrapper, which hands on what it has not."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *a, **k):
        return self.inner(*a, **k)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "data_parallel": nn.DataParallel,
    "compile": lambda m: torch.compile(m, backend="eager"),
    "own_wrapper": Wrapped,
    "averaged": torch.optim.swa_utils.AveragedModel,
}
