"""Modules that do more than a plain forward pass, and ops that are nearly like supported ones.

Whatever engine answers, the numbers are float64 torch's, and torch's engine comes with a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from network_support import CLASSES, losses_at, plane, worst_error
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import pylandscape as pl

pytestmark = pytest.mark.filterwarnings(  # torch's own, of slow paths
    "ignore:Using padding='same' with even kernel", "ignore:LSTM with projections"
)
Make = Callable[[], nn.Module]
DEPTH = 12  # more layers than any of these has


def _checked(model: nn.Module, x: Tensor, y: Tensor) -> pl.EngineReport:
    """The report, after the losses near theta and far out have been compared."""
    model.eval()
    land = pl.Landscape(model, "cross_entropy", (x, y))
    d = plane(land)
    c = torch.tensor([[0.0, 0], [1, 0], [-0.7, 1], [30, 20]], dtype=torch.float64)
    want = losses_at(land, x, y, c, d)
    assert worst_error(land.losses(c, d), want, DEPTH, torch.float32) <= 1
    report = land.engine_report()
    assert (report.engine == "torch") == bool(report.reason)
    return report


def _labels(samples: int) -> Tensor:
    return torch.randint(0, CLASSES, (samples,))


class Head(nn.Module):
    """Whatever comes, flattened, through a linear layer."""

    def __init__(self, body: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.body = body.eval()
        with torch.no_grad():
            width = self.body(torch.randn(2, *shape)).flatten(1).shape[1]
        self.linear = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.body(x).flatten(1))
        return out


class Apply(nn.Module):
    """A function of x as a module, after a convolution that keeps the shape."""

    def __init__(self, function: Callable[[Tensor], Tensor], channels: int = 3) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(channels, channels, 3, padding=1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


# Modules that do more than a plain forward pass, on images (3, 6, 5)


def _conv() -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3, padding=1)


def _hooked(kind: str) -> nn.Module:
    conv = _conv()
    if kind == "forward":
        conv.register_forward_hook(lambda module, args, output: output * 2)
    else:
        conv.register_forward_pre_hook(lambda module, args: (args[0] - 1,))
    return conv


class Branches(nn.Module):
    """Control flow on the data, which no trace describes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = _conv(), _conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.mean() > 0 else self.b(x)


class Loop(nn.Module):
    """As many rounds as a value says."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _conv()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        for _ in range(int(x.abs().max()) + 1):
            h = torch.tanh(h)
        return h


class InPlace(nn.Module):
    """In-place ops that other names of the memory see, and one on a part of a tensor."""

    def __init__(self, part: bool) -> None:
        super().__init__()
        self.conv, self.bn, self.part = _conv(), nn.BatchNorm2d(3), part

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        kept = h.view(x.size(0), 3, -1)
        F.relu_(h)
        h += 0.5
        h.mul_(x)
        if self.part:
            h[:, 1] = 0.25
            h[:, :, 2:4, 1].add_(1.0)
        h = self.bn(h)
        F.relu(h, inplace=True)
        return kept * h.flatten(2)


class Repeated(nn.Module):
    """One convolution and one norm used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = _conv(), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + F.relu(self.bn(self.conv(x)))
        return x


def _tied() -> nn.Module:
    a, b = _conv(), _conv()
    b.weight = a.weight
    return nn.Sequential(a, nn.ReLU(), b)


class Standardised(nn.Module):
    """A convolution whose weights are computed (weight standardisation, Qiao et al. 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, w, padding=1)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # a wrong one, which nobody asks
        return grad


class Counting(nn.Module):
    """Keeps what it saw last, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.calls, self.last = _conv(), 0, torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.detach()
        return self.conv(x)


def _legacy(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return norm(_conv())


PECULIAR: dict[str, Make] = {
    "forward hook": partial(_hooked, "forward"),
    "forward pre-hook": partial(_hooked, "pre"),
    "branch on the data": Branches,
    "loop on the data": Loop,
    "in-place ops": partial(InPlace, False),
    "in-place ops on a part": partial(InPlace, True),
    "in-place activation": lambda: nn.Sequential(_conv(), nn.ReLU(inplace=True), _conv()),
    "one block thrice": Repeated,
    "tied weights": _tied,
    "weight_norm": lambda: parametrizations.weight_norm(_conv()),
    "spectral_norm": lambda: parametrizations.spectral_norm(_conv()),
    "orthogonal": lambda: nn.Sequential(
        _conv(), nn.Flatten(2), parametrizations.orthogonal(nn.Linear(30, 30))
    ),
    "spectral_norm by hooks": partial(_legacy, nn.utils.spectral_norm),
    "weight standardisation": Standardised,
    "autograd function": partial(Apply, Square.apply),
    "state": Counting,
    "gradient switched off": partial(Apply, torch.no_grad()(torch.tanh)),
    "statistics of the batch": lambda: nn.Sequential(
        _conv(), nn.BatchNorm2d(3, track_running_stats=False)
    ),
    "mean over the samples": partial(Apply, lambda h: h - h.mean(0)),
    "size of the batch": partial(Apply, lambda h: h / h.shape[0]),
    "flip of the samples": partial(Apply, lambda h: h.flip(0)),
    "active dropout": partial(Apply, lambda h: F.dropout(h, 0.0, training=True)),
}
COMPILED = (
    "in-place ops", "in-place activation", "one block thrice", "tied weights",
    "weight standardisation",
)  # fmt: skip
WHY_NOT = {  # what a reason must say
    "forward hook": "hooks",
    "forward pre-hook": "hooks",
    "branch on the data": "could not be captured",
    "loop on the data": "could not be captured",
    "in-place ops on a part": "could not be captured",
    "weight_norm": "parametrised",
    "spectral_norm": "parametrised",
    "orthogonal": "parametrised",
    "spectral_norm by hooks": "hooks",
    "mean over the samples": "mean",
    "size of the batch": "how many samples a batch has",
    "flip of the samples": "mixes samples",
}


@pytest.mark.parametrize("name", PECULIAR)
def test_a_peculiar_module_gets_the_right_numbers_from_one_engine_or_the_other(name: str) -> None:
    shape = (3, 6, 5)
    model = Head(PECULIAR[name](), shape)
    report = _checked(model, torch.randn(9, *shape), _labels(9))
    if name in COMPILED:
        assert report.engine == "native"
    if name in WHY_NOT:
        assert WHY_NOT[name] in str(report.reason)


class TiedLanguageModel(nn.Module):
    """The embedding is the read-out's weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, 6)
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.linear = nn.Linear(6, CLASSES)
        self.linear.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.linear(self.lstm(self.embedding(tokens))[0])
        return out.transpose(1, 2)


class LastState(nn.Module):
    """Classifies tokens by a bag of them, or by a recurrent network's last state."""

    def __init__(self, embedding: nn.Module, cell: nn.Module | None) -> None:
        super().__init__()
        self.embedding, self.cell = embedding, cell
        width = 6 if cell is None else cell(torch.randn(2, 3, 6))[0].shape[-1]
        self.linear = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embedding(tokens)
        if self.cell is not None:
            h = self.cell(h)[0][:, -1]
        elif h.dim() == 3:
            h = h.mean(1)
        out: Tensor = self.linear(h)
        return out


TOKENS: dict[str, Make] = {
    "tied embedding": TiedLanguageModel,
    "padding_idx": lambda: LastState(nn.Embedding(CLASSES, 6, padding_idx=1), None),
    "max_norm": lambda: LastState(nn.Embedding(CLASSES, 6, max_norm=1.0), None),
    "EmbeddingBag": lambda: LastState(nn.EmbeddingBag(CLASSES, 6, mode="sum"), None),
    "GRU": lambda: LastState(nn.Embedding(CLASSES, 6), nn.GRU(6, 5, 2, batch_first=True)),
    "one-hot": lambda: LastState(OneHot(), nn.LSTM(6, 5, batch_first=True)),
}


class OneHot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.scale * F.one_hot(tokens, 6)


@pytest.mark.parametrize("name", TOKENS)
def test_networks_of_tokens_get_the_right_numbers(name: str) -> None:
    model = TOKENS[name]()
    x = torch.randint(0, CLASSES, (9, 4))
    y = torch.randint(0, CLASSES, (9, 4)) if name == "tied embedding" else _labels(9)
    _as_expected(name, _checked(model, x, y))


# Ops that are nearly like supported ones; what is not listed here is compiled

FALLS_BACK = {  # what the reason must say
    "power mean": "lp_pool2d",
    "LSTM along the samples": "batch_first",
    "LSTM projected": "proj_size",
    "multi-head along the samples": "(batch, length, features)",
    "multi-head, more keys": "bias_k",
    "multi-head, zero key": "add_zero_attn",
    "sorted": "sort",
    "max_norm": "changes tensors that it keeps",
    "EmbeddingBag": "could not be captured",
}


def _as_expected(name: str, report: pl.EngineReport) -> None:
    if name in FALLS_BACK:
        assert FALLS_BACK[name] in str(report.reason)
    else:
        assert report.engine == "native", report.reason


IMAGES: dict[str, Make] = {
    **{
        f"conv {mode}": partial(nn.Conv2d, 3, 4, 3, padding=(2, 1), padding_mode=mode)
        for mode in ("zeros", "circular", "reflect", "replicate")
    },
    "conv same, even kernel": lambda: nn.Conv2d(3, 4, (2, 4), padding="same"),
    "conv same, dilated": lambda: nn.Conv2d(3, 4, 3, padding="same", dilation=2),
    "conv valid": lambda: nn.Conv2d(3, 4, 3, padding="valid"),
    "conv same, circular": lambda: nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular"),
    "conv dilated in groups": lambda: nn.Conv2d(3, 6, 2, padding=2, dilation=(2, 3), groups=3),
    "conv of a long stride": lambda: nn.Conv2d(3, 5, 1, stride=(5, 3)),
    "conv of one pixel": lambda: nn.Conv2d(3, 5, (7, 6)),
    "depthwise, thrice as many": lambda: nn.Conv2d(3, 9, 3, padding=1, groups=3, bias=False),
    "transposed conv": lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1),
    "conv 1d": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 5, 4, stride=3, padding=2)),
    "conv 3d": lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 2, 2)),
    "max": lambda: nn.MaxPool2d(3, 2, 1),
    "max, ceil_mode": lambda: nn.MaxPool2d(2, 2, ceil_mode=True),
    "max, ceil_mode and padding": lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "max, dilated": lambda: nn.MaxPool2d(2, 1, dilation=2),
    "max and where": lambda: First(nn.MaxPool2d(2, return_indices=True)),
    "mean, ceil_mode": lambda: nn.AvgPool2d(2, 2, ceil_mode=True),
    "mean, ceil_mode and padding": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "mean, padding not counted": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "mean, own divisor": lambda: nn.AvgPool2d(3, 2, 1, divisor_override=5),
    "power mean": lambda: nn.Sequential(nn.Softplus(), nn.LPPool2d(2, 2)),
    "max 1d, ceil_mode": lambda: nn.Sequential(nn.Flatten(2), nn.MaxPool1d(4, ceil_mode=True)),
    "mean 1d": lambda: nn.Sequential(nn.Flatten(2), nn.AvgPool1d(4, 3, 1)),
    "adaptive mean, unequal bins": lambda: nn.AdaptiveAvgPool2d((5, 3)),
    "adaptive mean, one side": lambda: nn.AdaptiveAvgPool2d((None, 2)),
    "adaptive max": lambda: nn.AdaptiveMaxPool2d((4, 3)),
    "batch norm, plain average": lambda: _seen(nn.BatchNorm2d(3, momentum=None)),
    "batch norm, no affine": lambda: _seen(nn.BatchNorm2d(3, affine=False)),
    "batch norm, large eps": lambda: _seen(nn.BatchNorm2d(3, eps=0.5)),
    "batch norm 1d of sequences": lambda: nn.Sequential(
        nn.Flatten(2), _seen(nn.BatchNorm1d(3), 3, 42)
    ),
    "instance norm": lambda: nn.InstanceNorm2d(3, affine=True),
    "instance norm, running": lambda: _seen(nn.InstanceNorm2d(3, track_running_stats=True)),
    "group norm": lambda: nn.GroupNorm(3, 3),
    "layer norm of images": lambda: nn.LayerNorm((3, 7, 6)),
    "rms norm": lambda: nn.RMSNorm((7, 6)),
    "local response norm": lambda: nn.LocalResponseNorm(2),
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "bilinear, corners": lambda: nn.Upsample(size=(5, 9), mode="bilinear", align_corners=True),
    "nearest": lambda: nn.Upsample(scale_factor=(2, 1.5)),
    "unfold": lambda: nn.Unfold(2),
    "pixel shuffle": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.PixelShuffle(2)),
    "cropping pad": lambda: nn.ZeroPad2d((-1, 2, 1, -2)),
    "circular pad": lambda: nn.CircularPad2d((1, 2, 0, 1)),
    "reflection pad": lambda: nn.ReflectionPad2d((1, 2, 0, 1)),
    "softmax of channels": nn.Softmax2d,
    "gated": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.GLU(1)),
    "PReLU": lambda: nn.PReLU(3),
    "RReLU": nn.RReLU,
    "Hardswish": nn.Hardswish,
    "Mish": nn.Mish,
    "Threshold": lambda: nn.Threshold(0.1, 20.0),
}


class First(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.inner(x)[0]
        return first


def _seen(norm: nn.Module, *shape: int) -> nn.Module:
    """A norm with running statistics of some data."""
    with torch.no_grad():
        norm.train()(1 + 2 * torch.randn(20, *(shape or (3, 7, 6))))
    return norm.eval()


@pytest.mark.parametrize("name", IMAGES)
def test_ops_of_images_are_right_or_fall_back_with_a_reason(name: str) -> None:
    shape = (3, 7, 6)
    body = nn.Sequential(nn.Conv2d(3, 3, 1), IMAGES[name]())
    _as_expected(name, _checked(Head(body, shape), torch.randn(5, *shape), _labels(5)))


def _attend(**options: object) -> Callable[[Tensor], Tensor]:
    def attend(h: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 3)).transpose(1, 2) for t in (h, h.tanh(), h.sigmoid()))
        return F.scaled_dot_product_attention(q, k, v, **options)  # type: ignore[arg-type]

    return attend


_CAUSAL = torch.ones(7, 7).tril().bool()


class MultiHead(nn.Module):
    def __init__(self, call: dict[str, object], **options: object) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(6, 2, **{"batch_first": True, **options})
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x, x, x, **self.call)[0]
        return out


class Then(nn.Module):
    """A linear layer, then a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(6, 6), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


SEQUENCES: dict[str, Make] = {
    "LSTM": lambda: First(nn.LSTM(6, 5, batch_first=True)),
    "LSTM without biases": lambda: First(nn.LSTM(6, 5, bias=False, batch_first=True)),
    "LSTM along the samples": lambda: First(nn.LSTM(6, 5)),
    "LSTM both ways": lambda: First(nn.LSTM(6, 5, bidirectional=True, batch_first=True)),
    "LSTM projected": lambda: First(nn.LSTM(6, 5, proj_size=3, batch_first=True)),
    "LSTM with dropout": lambda: First(nn.LSTM(6, 5, 3, dropout=0.3, batch_first=True)),
    "GRU": lambda: First(nn.GRU(6, 5, 2, batch_first=True)),
    "GRU both ways": lambda: First(nn.GRU(6, 5, bidirectional=True, batch_first=True)),
    "RNN": lambda: First(nn.RNN(6, 5, batch_first=True)),
    "RNN with ReLU": lambda: First(nn.RNN(6, 5, nonlinearity="relu", batch_first=True)),
    "attention": lambda: Then(_attend()),
    "causal attention": lambda: Then(_attend(is_causal=True)),
    "masked attention": lambda: Then(_attend(attn_mask=_CAUSAL)),
    "scaled attention": lambda: Then(_attend(scale=0.7)),
    "multi-head": lambda: MultiHead({"need_weights": False}),
    "multi-head with weights": lambda: MultiHead({"need_weights": True}),
    "multi-head, masked": lambda: MultiHead({"attn_mask": ~_CAUSAL, "need_weights": False}),
    "multi-head along the samples": lambda: MultiHead({}, batch_first=False),
    "multi-head, more keys": lambda: MultiHead({}, add_bias_kv=True),
    "multi-head, zero key": lambda: MultiHead({}, add_zero_attn=True),
    "multi-head without biases": lambda: MultiHead({"need_weights": False}, bias=False),
    "torch's encoder layer": lambda: nn.TransformerEncoderLayer(6, 2, 11, batch_first=True),
    "torch's encoder layer, norm first": lambda: nn.TransformerEncoderLayer(
        6, 2, 11, batch_first=True, norm_first=True, activation="gelu"
    ),
    "einsum": lambda: Then(lambda h: torch.einsum("bij,bkj->bik", h, h)),
    "matmul": lambda: Then(lambda h: h @ h.transpose(1, 2)),
    "bmm": lambda: Then(lambda h: torch.bmm(h, h.mT)),
    "cumsum": lambda: Then(lambda h: h.cumsum(1)),
    "maximum": lambda: Then(lambda h: h.amax(2) + h.max(1).values.sum(1, keepdim=True)),
    "spread": lambda: Then(lambda h: h.std(1) + h.var(1, unbiased=False)),
    "logsumexp": lambda: Then(lambda h: h.logsumexp(1)),
    "unit vectors": lambda: Then(lambda h: F.normalize(h, dim=-1)),
    "sorted": lambda: Then(lambda h: h.sort(1).values),
    "means": lambda: Then(
        lambda h: h.mean(1) + h.sum(dim=(1,)) + h.mean((1, 2), keepdim=True).flatten(1)
    ),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_ops_of_sequences_are_right_or_fall_back_with_a_reason(name: str) -> None:
    shape = (7, 6)
    model = Head(SEQUENCES[name](), shape)
    _as_expected(name, _checked(model, torch.randn(5, *shape), _labels(5)))


@pytest.mark.parametrize("samples", [1, 17])
@pytest.mark.parametrize(
    ("channels", "side"), [(1, (1, 1)), (5, (1, 1)), (17, (1, 3)), (7, (5, 2)), (33, (3, 3))]
)
def test_small_odd_images_and_a_batch_of_one(
    channels: int, side: tuple[int, int], samples: int
) -> None:
    shape = (channels, *side)
    body = nn.Sequential(
        nn.Conv2d(channels, channels + 2, 3, padding=1),
        _seen(nn.BatchNorm2d(channels + 2), channels + 2, 3, 3),
        nn.ReLU(),
        nn.Conv2d(channels + 2, channels + 2, 3, padding=1, groups=channels + 2),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(channels + 2, 3, 1),
        nn.AdaptiveAvgPool2d(1),
    )
    report = _checked(Head(body, shape), torch.randn(samples, *shape), _labels(samples))
    assert report.engine == "native", report.reason
