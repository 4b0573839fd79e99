"""The model families that landscapes are drawn of, in plain torch, at any width, depth and size.

Defaults are the published sizes; tests use narrow versions on small images. Images are (N, C, H, W)
and outputs (N, classes); the language model takes tokens (N, L) and gives (N, vocabulary, L).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def lenet(
    side: int = 28,
    channels: int = 1,
    widths: Sequence[int] = (6, 16, 120, 84),
    classes: int = 10,
    bn: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling; 61,706 parameters at 28 x 28."""
    a, b, c, d = widths
    left = (side // 2 - 4) // 2  # 5 x 5 with padding 2, pooled; 5 x 5 without, pooled
    return nn.Sequential(
        nn.Conv2d(channels, a, 5, padding=2),
        *_bn_relu(a, bn),
        nn.MaxPool2d(2),
        nn.Conv2d(a, b, 5),
        *_bn_relu(b, bn),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(b * left * left, c),
        nn.ReLU(),
        *_dropout(dropout),
        nn.Linear(c, d),
        nn.ReLU(),
        nn.Linear(d, classes),
    )


def nin(
    channels: int = 3, width: int = 192, classes: int = 10, bn: bool = False, dropout: float = 0.5
) -> nn.Sequential:
    """Network in network (Lin et al. 2014): three blocks with 1 x 1 convolutions, global average.

    966,986 parameters at the default width.
    """

    def block(inputs: int, widths: Sequence[int], kernel: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise((inputs, *widths))):
            k = 1 if i else kernel
            layers += [nn.Conv2d(a, b, k, padding=k // 2), *_bn_relu(b, bn)]
        return layers

    small, middle = width // 2, (5 * width) // 6
    return nn.Sequential(
        *block(channels, (width, middle, small), 5),
        nn.MaxPool2d(3, stride=2, padding=1),
        *_dropout(dropout),
        *block(small, (width, width, width), 5),
        nn.AvgPool2d(3, stride=2, padding=1),
        *_dropout(dropout),
        *block(width, (width, width, classes), 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def vgg(
    plan: Sequence[int | str] = VGG16,
    side: int = 32,
    channels: int = 3,
    hidden: int = 512,
    classes: int = 10,
    bn: bool = False,
    dropout: float = 0.5,
) -> nn.Sequential:
    """VGG (Simonyan and Zisserman 2015) for small images; "M" in the plan is a 2 x 2 maximum."""
    layers: list[nn.Module] = []
    width = channels
    for step in plan:
        if isinstance(step, str):
            layers.append(nn.MaxPool2d(2))
            side //= 2
        else:
            layers += [nn.Conv2d(width, step, 3, padding=1), *_bn_relu(step, bn)]
            width = step
    layers += [nn.Flatten(), *_dropout(dropout), nn.Linear(width * side * side, hidden), nn.ReLU()]
    return nn.Sequential(*layers, *_dropout(dropout), nn.Linear(hidden, classes))


def dcnn(
    widths: Sequence[int] = (128, 64, 64, 64, 64),
    channels: int = 3,
    side: int = 32,
    classes: int = 10,
) -> nn.Sequential:
    """Strided 3 x 3 convolutions with biases, batch norm without affine, a linear read-out.

    188,810 parameters by default: with padding 1, 32 pixels become 16, 8, 4, 2 and 1.
    """
    layers: list[nn.Module] = []
    for a, b in pairwise((channels, *widths)):
        layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b, affine=False)]
        layers.append(nn.ReLU())
        side = (side + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * side * side, classes))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: "A" pads with zeros, "B" is 1 x 1, None is absent."""

    def __init__(self, inputs: int, width: int, stride: int, shortcut: str | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.kind, self.stride, self.more = shortcut, stride, width - inputs
        self.shortcut: nn.Module = nn.Identity()
        if shortcut == "B" and (stride > 1 or self.more):
            conv = nn.Conv2d(inputs, width, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        if self.kind == "A" and (self.stride > 1 or self.more):
            kept = x[:, :, :: self.stride, :: self.stride]
            h = h + F.pad(kept, (0, 0, 0, 0, 0, self.more))
        elif self.kind is not None:
            h = h + self.shortcut(x)
        return F.relu(h)


class ResNet(nn.Module):
    """The CIFAR ResNets (He et al. 2016, section 4.2); 269,722 parameters at depth 20, option A.

    shortcut: "A", "B", or None for the same without shortcuts ("noshort").
    """

    def __init__(
        self,
        depth: int = 20,
        width: int = 16,
        channels: int = 3,
        classes: int = 10,
        shortcut: str | None = "A",
    ) -> None:
        super().__init__()
        count, rest = divmod(depth - 2, 6)
        if rest or count < 1:
            raise ValueError(f"depth: expected 6 n + 2 with n >= 1, got {depth}")
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        blocks, inputs = [], width
        for stage in range(3):
            for i in range(count):
                stride = 2 if stage and i == 0 else 1
                blocks.append(ResidualBlock(inputs, width << stage, stride, shortcut))
                inputs = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.linear(F.adaptive_avg_pool2d(h, 1).flatten(1))


class WideBlock(nn.Module):
    """Pre-activation: BN, ReLU, 3 x 3, BN, ReLU, dropout, 3 x 3."""

    def __init__(self, inputs: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        same = inputs == width and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(x), inplace=True)
        left = x if self.shortcut is None else self.shortcut(h)
        h = F.relu(self.bn2(self.conv1(h)), inplace=True)
        return self.conv2(self.dropout(h)) + left


def wide_resnet(
    depth: int = 16,
    widen: int = 4,
    width: int = 16,
    channels: int = 3,
    classes: int = 10,
    dropout: float = 0.3,
) -> nn.Sequential:
    """Wide-ResNet (Zagoruyko and Komodakis 2016); 2,748,890 parameters for WRN-16-4."""
    count = (depth - 4) // 6
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
    inputs = width
    for stage in range(3):
        for i in range(count):
            stride = 2 if stage and i == 0 else 1
            layers.append(WideBlock(inputs, (width * widen) << stage, stride, dropout))
            inputs = (width * widen) << stage
    return nn.Sequential(*layers, *_bn_relu(inputs, True), *_head(inputs, classes))


class DenseLayer(nn.Module):
    """BN, ReLU, 1 x 1 to 4 growth, BN, ReLU, 3 x 3 to growth, concatenated to the input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(4 * growth)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(F.relu(self.bn2(h)))], 1)


def densenet_bc(
    layers: int = 16, growth: int = 12, channels: int = 3, classes: int = 10
) -> nn.Sequential:
    """DenseNet-BC (Huang et al. 2017), three blocks of ``layers``; 769,162 parameters for 16."""
    width = 2 * growth
    parts: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
    for block in range(3):
        for _ in range(layers):
            parts.append(DenseLayer(width, growth))
            width += growth
        if block < 2:
            narrow = nn.Conv2d(width, width // 2, 1, bias=False)
            parts += [nn.BatchNorm2d(width), nn.ReLU(), narrow, nn.AvgPool2d(2)]
            width //= 2
    return nn.Sequential(*parts, *_bn_relu(width, True), *_head(width, classes))


class SelfAttention(nn.Module):
    """One linear layer for queries, keys and values, and torch's fused attention."""

    def __init__(self, dim: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, dim = x.shape
        qkv = self.qkv(x).view(n, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(n, tokens, dim))


class TorchAttention(nn.Module):
    """nn.MultiheadAttention of a sequence with itself."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.inner(x, x, x, need_weights=False)[0]
        return mixed


class Encoder(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, attention: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021); 64 tokens and 207,946 parameters by default.

    token: "mean" averages the tokens, "class" reads an extra one (which makes 65).
    """

    def __init__(
        self,
        side: int = 32,
        patch: int = 4,
        dim: int = 64,
        depth: int = 4,
        heads: int = 4,
        channels: int = 3,
        classes: int = 10,
        token: str = "mean",
        attention: Callable[[int, int], nn.Module] = SelfAttention,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.first = nn.Parameter(0.02 * torch.randn(1, 1, dim)) if token == "class" else None
        tokens = (side // patch) ** 2 + (self.first is not None)
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, dim))
        self.blocks = nn.Sequential(*(Encoder(dim, heads, attention) for _ in range(depth)))
        self.norm, self.linear = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)
        if self.first is not None:
            h = torch.cat([self.first.expand(h.shape[0], -1, -1), h], 1)
        h = self.norm(self.blocks(h + self.position))
        return self.linear(h[:, 0] if self.first is not None else h.mean(1))


class LanguageModel(nn.Module):
    """Embedding, LSTM (or another ``cell``), linear: logits of each next token, (N, classes, L)."""

    def __init__(
        self,
        vocabulary: int = 64,
        hidden: int = 128,
        layers: int = 2,
        cell: Callable[..., nn.Module] = nn.LSTM,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.lstm = cell(hidden, hidden, layers, batch_first=True)
        self.linear = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(tokens))
        logits: Tensor = self.linear(states)
        return logits.transpose(1, 2)


class GPT(nn.Module):
    """Pre-norm decoder: the logits of each next token, (N, vocabulary, L)."""

    def __init__(
        self,
        vocabulary: int = 64,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        length: int = 128,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.position = nn.Parameter(0.02 * torch.randn(1, length, dim))
        attention = partial(SelfAttention, causal=True)
        self.blocks = nn.Sequential(*(Encoder(dim, heads, attention) for _ in range(depth)))
        self.norm, self.linear = nn.LayerNorm(dim), nn.Linear(dim, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embedding(tokens) + self.position[:, : tokens.shape[1]]
        logits: Tensor = self.linear(self.norm(self.blocks(h)))
        return logits.transpose(1, 2)


class InvertedResidual(nn.Module):
    """1 x 1 to ``expand`` times the width, depthwise 3 x 3, 1 x 1; each with batch norm."""

    def __init__(self, inputs: int, width: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inputs * expand
        layers: list[nn.Module] = []
        if expand > 1:
            layers += [nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()]
        layers.append(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False))
        layers += [nn.BatchNorm2d(wide), nn.ReLU6(), nn.Conv2d(wide, width, 1, bias=False)]
        self.inner = nn.Sequential(*layers, nn.BatchNorm2d(width))
        self.same = stride == 1 and inputs == width

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.inner(x)
        return x + h if self.same else h


MOBILE = ((16, 1, 1), (24, 1, 6), (24, 1, 6), (32, 2, 6), (32, 1, 6), (64, 2, 6), (64, 1, 6))


def mobilenet_v2(
    plan: Sequence[tuple[int, int, int]] = MOBILE, channels: int = 3, classes: int = 10
) -> nn.Sequential:
    """MobileNetV2 (Sandler et al. 2018) for small images; plan: width, stride, expansion."""
    parts: list[nn.Module] = [nn.Conv2d(channels, 32, 3, padding=1, bias=False)]
    parts += [nn.BatchNorm2d(32), nn.ReLU6()]
    inputs = 32
    for width, stride, expand in plan:
        parts.append(InvertedResidual(inputs, width, stride, expand))
        inputs = width
    parts += [nn.Conv2d(inputs, 4 * inputs, 1, bias=False), nn.BatchNorm2d(4 * inputs), nn.ReLU6()]
    return nn.Sequential(*parts, *_head(4 * inputs, classes))


def with_group_norm(model: nn.Module, groups: int = 8) -> nn.Module:
    """The model with every batch norm replaced by a group norm."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(model, name, nn.GroupNorm(groups, child.num_features))
        else:
            with_group_norm(child, groups)
    return model


class UNet(nn.Module):
    """Two levels (after Ronneberger et al. 2015): the logits of every pixel, (N, classes, H, W).

    up: "transposed" convolutions, or "bilinear" interpolation and 1 x 1.
    """

    def __init__(
        self, width: int = 16, channels: int = 3, classes: int = 4, up: str = "transposed"
    ) -> None:
        super().__init__()
        self.down1, self.down2 = _two(channels, width), _two(width, 2 * width)
        self.middle = _two(2 * width, 4 * width)
        self.up2, self.up1 = _up(4 * width, 2 * width, up), _up(2 * width, width, up)
        self.join2, self.join1 = _two(4 * width, 2 * width), _two(2 * width, width)
        self.last = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        h = self.middle(F.max_pool2d(b, 2))
        h = self.join2(torch.cat([b, self.up2(h)], 1))
        out: Tensor = self.last(self.join1(torch.cat([a, self.up1(h)], 1)))
        return out


def _two(inputs: int, width: int) -> nn.Sequential:
    first, second = nn.Conv2d(inputs, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


def _up(inputs: int, width: int, how: str) -> nn.Module:
    if how == "transposed":
        return nn.ConvTranspose2d(inputs, width, 2, 2)
    scale = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Sequential(scale, nn.Conv2d(inputs, width, 1))


def settle(model: nn.Module, x: Tensor) -> nn.Module:
    """The model in eval mode; the running statistics of its batch norms are those of x."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    with torch.no_grad():
        model.train()(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def _bn_relu(width: int, bn: bool) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.ReLU()] if bn else [nn.ReLU()]


def _dropout(p: float) -> list[nn.Module]:
    return [nn.Dropout(p)] if p > 0 else []


def _head(width: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
