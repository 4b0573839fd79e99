"""Convolutions of many points by torch's: one call or several, chosen from shapes.

Images are (points, samples, pixels * channels) with rows through (h, w, channel), which is torch's
channels_last; the weights of a point are (rows, taps, channels). Where a side is the same at all
points, it has 1 point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LOOPED = "looped"  # one convolution for each point
GROUPED = "grouped"  # one, the points as its groups
STACKED = "stacked"  # one, the points as its output channels: where all have the same input
PRODUCTS = "products"  # windows laid out in columns, and a batched product
WAYS = (LOOPED, GROUPED, STACKED, PRODUCTS)

_FILLS = 1 << 20  # outputs of one point with which a convolution alone fills a device
_COLUMNS = 1 << 24  # elements that one point's windows may take

# finish(result, first, to): what follows the convolution, from the result (points, samples, pixels
# * rows) of the points from `first` on into `to`, which may be the result.
Finish = Callable[[Tensor, int, Tensor], None]


@dataclass(frozen=True)
class Conv:
    """A convolution's shape: input and output channels of one group, sizes as (h, w)."""

    groups: int
    channels: int
    rows: int
    image: tuple[int, int]
    result: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(cls, described: dict[str, Any]) -> Conv:
        return cls(**described)

    @property
    def taps(self) -> int:
        return prod(self.kernel)

    @property
    def outputs(self) -> int:
        """Rows of the result."""
        return self.groups * self.rows

    def columns(self) -> int:
        """Elements of one sample's windows."""
        return prod(self.result) * self.taps * self.channels

    def plain(self) -> bool:
        """Whether it is a product of every pixel alone."""
        return self.groups == 1 and self.taps == 1 and self.pad == (0, 0) and self.stride == (1, 1)


def way_of(conv: Conv, samples: int, same_input: bool) -> str:
    """How a convolution whose weights differ between the points runs.

    The one place where this is decided, from shapes alone; bench/gpu_programs.py times the others.
    A point that fills the device alone runs alone, since the grouped convolutions of cuDNN can be
    slow and a loop over points costs only launches, which are replayed from a graph.
    """
    if conv.plain():
        return PRODUCTS
    if conv.groups > 1:
        small = samples * prod(conv.result) * conv.outputs < _FILLS
        return GROUPED if conv.channels == 1 or small else LOOPED
    if samples * prod(conv.result) * conv.outputs >= _FILLS:
        return LOOPED
    if same_input:
        return STACKED
    return PRODUCTS if samples * conv.columns() <= _COLUMNS else LOOPED


def extra_elements(conv: Conv, samples: int, way: str) -> int:
    """What a way holds for one point beside its input and its result."""
    size = samples * (prod(conv.image) * conv.groups * conv.channels)
    result = samples * prod(conv.result) * conv.outputs
    if way == PRODUCTS:
        return 0 if conv.plain() else samples * conv.columns() + size
    return {LOOPED: 0, GROUPED: size + result, STACKED: result}[way]


def convolve(conv: Conv, x: Tensor, weight: Tensor, way: str, finish: Finish) -> Tensor:
    """(g, samples, pixels * rows) of x (1 or g, samples, ...) and weights (1 or g, rows, taps,
    channels), finished. Where both have 1 point, so has the result."""
    g, samples = max(len(x), len(weight)), x.shape[1]
    shape = (samples, prod(conv.result) * conv.outputs)
    if len(weight) == 1:  # the points are more samples
        found = _one(conv, x.reshape(-1, x.shape[2]), weight[0]).view(len(x), *shape)
        finish(found, 0, found)
        return found
    if way == PRODUCTS:
        columns = _windows(conv, x).expand(g, -1, -1)
        found = torch.bmm(columns, weight.flatten(2).transpose(1, 2)).view(g, *shape)
    elif way == STACKED:
        found = _stacked(conv, x[0], weight)
    elif way == GROUPED:
        found = _grouped(conv, x.expand(g, -1, -1), weight)
    else:
        return _looped(conv, x, weight, finish)
    finish(found, 0, found)
    return found


def _one(conv: Conv, x: Tensor, weight: Tensor) -> Tensor:
    """(images, pixels * rows) of x (images, pixels * channels)."""
    found = _conv2d(conv, _images(conv, x), _filters(conv, weight), conv.groups)
    return found.permute(0, 2, 3, 1).reshape(len(x), -1)


def _conv2d(conv: Conv, images: Tensor, filters: Tensor, groups: int) -> Tensor:
    return F.conv2d(images, filters, None, conv.stride, conv.pad, conv.dilation, groups)


def _images(conv: Conv, x: Tensor) -> Tensor:
    """(images, channels, h, w) with the memory of x (images, pixels * channels): channels_last."""
    return x.view(len(x), *conv.image, -1).permute(0, 3, 1, 2)


def _filters(conv: Conv, weight: Tensor) -> Tensor:
    """(rows, channels, h, w) with the memory of weights (..., rows, taps, channels)."""
    return weight.view(-1, *conv.kernel, conv.channels).permute(0, 3, 1, 2)


def _looped(conv: Conv, x: Tensor, weight: Tensor, finish: Finish) -> Tensor:
    found = x.new_empty(len(weight), x.shape[1], prod(conv.result) * conv.outputs)
    for i, own in enumerate(weight):
        result = _one(conv, x[i if len(x) > 1 else 0], own)
        finish(result.unsqueeze(0), i, found[i : i + 1])
    return found


def _stacked(conv: Conv, x: Tensor, weight: Tensor) -> Tensor:
    images = _conv2d(conv, _images(conv, x), _filters(conv, weight), 1)
    apart = images.permute(0, 2, 3, 1).reshape(len(x), -1, len(weight), conv.rows)
    return apart.permute(2, 0, 1, 3).reshape(len(weight), len(x), -1)


def _grouped(conv: Conv, x: Tensor, weight: Tensor) -> Tensor:
    g, samples = x.shape[:2]
    planes = x.reshape(g, samples, *conv.image, -1).permute(1, 0, 4, 2, 3)
    images = planes.reshape(samples, -1, *conv.image)
    found = _conv2d(conv, images, _filters(conv, weight).contiguous(), g * conv.groups)
    apart = found.view(samples, g, -1, prod(conv.result)).permute(1, 0, 3, 2)
    return apart.reshape(g, samples, -1)


def _windows(conv: Conv, x: Tensor) -> Tensor:
    """(points, samples * pixels, taps * channels): what every output multiplies."""
    points, samples = x.shape[:2]
    if conv.plain():
        return x.reshape(points, -1, conv.channels)
    images = x.reshape(points, samples, *conv.image, conv.channels)
    (up, left), (down, right) = conv.pad, conv.stride
    if conv.pad != (0, 0):
        images = F.pad(images, (0, 0, left, left, up, up))
    images = images.contiguous()
    point, sample, row, column, channel = images.stride()
    shape = (points, samples, *conv.result, *conv.kernel, conv.channels)
    steps = (point, sample, row * down, column * right, row * conv.dilation[0],
             column * conv.dilation[1], channel)  # fmt: skip
    return images.as_strided(shape, steps).reshape(points, -1, conv.taps * conv.channels)
