"""gpu_check's rows of directions and perturbation: against the CPU's result and, timed, against the
bytes that they must move over the bandwidth of a copy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .gpu_timing import Row, Run, median_ms


def resnet_segments(width: int) -> tuple[int, Tensor, Tensor]:
    """n, and the filter and layer segments, of ResNet-18's convolutions and head."""
    shapes, inside = [(width, 147)], width
    for stage in range(4):
        outside = width * 2**stage
        for block in range(2):
            shapes += [(outside, 9 * (inside if block == 0 else outside)), (outside, 9 * outside)]
            if block == 0 and stage > 0:
                shapes.append((outside, inside))
        inside = outside
    shapes.append((1000, inside))
    layers, filters, at = [], [], 0
    for rows, columns in shapes:
        layers.append((at, at + rows * columns))
        filters += [(at + r * columns, at + (r + 1) * columns) for r in range(rows)]
        at += rows * columns + 2 * rows  # what follows a weight is ignored: norm or bias
    return at, torch.tensor(filters), torch.tensor(layers)


def relative_error(got: Tensor, want: Tensor) -> float:
    got = got.cpu()
    if torch.equal(got, want):
        return 0.0
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())


class Bench:
    """Rows of one dtype; three input sets, so that none waits in the cache."""

    SETS = 3

    def __init__(self, width: int, dtype: torch.dtype, bandwidth: float) -> None:
        self.width, self.dtype, self.bandwidth = width, dtype, bandwidth
        self.n, self.filters, self.layers = resnet_segments(width)
        self.host = [torch.randn(self.n, dtype=dtype) for _ in range(self.SETS)]
        self.given = [torch.randn(self.n, dtype=dtype) for _ in range(self.SETS)]
        self.theta, self.d = [t.cuda() for t in self.host], [t.cuda() for t in self.given]
        self.out = [torch.empty_like(t) for t in self.theta]

    def row(
        self, name: str, run: Run, want: Tensor, elements: float, plain: Run | None = None
    ) -> Row:
        """Checks run's first result against `want`, and times it against moving `elements`."""
        error = relative_error(run(0), want)
        took = median_ms(run, self.SETS)
        floor = elements * want.element_size() / self.bandwidth
        other = None if plain is None else median_ms(plain, self.SETS)
        name = f"{name} {str(self.dtype).removeprefix('torch.')}"
        return Row(name, took, floor, floor / took, other, error)

    def directions(self, mode: str, segments: Tensor) -> Iterator[Row]:
        from pylandscape._native import ops

        theta, d, out = self.theta, self.d, self.out
        filters = mode == "filter"
        yield self.row(
            f"normalize_direction {mode}",
            lambda i: ops.normalize_direction(d[i], theta[i], segments, mode, out=out[i]),
            ops.normalize_direction(self.given[0], self.host[0], segments, mode),
            3 * self.n,
            self.normalise if filters else None,
        )
        yield self.row(
            f"random_direction {mode}",
            lambda i: ops.random_direction(theta[i], segments, mode, 1, 0, out=out[i]),
            ops.random_direction(self.host[0], segments, mode, 1, 0),
            2 * self.n,
            (lambda i: (out[i].normal_(), self.normalise(i))) if filters else None,
        )

    def normalise(self, i: int) -> None:
        """out[i], filter by filter, by plain torch: layer after layer."""
        heights = [self.width]
        for stage in range(4):
            heights += [self.width * 2**stage] * (4 + (stage > 0))
        for (a, b), rows in zip(self.layers.tolist(), [*heights, 1000], strict=True):
            w, v = self.theta[i][a:b].view(rows, -1), self.out[i][a:b].view(rows, -1)
            v.mul_(w.norm(dim=1, keepdim=True) / (v.norm(dim=1, keepdim=True) + 1e-10))

    def gaussian(self) -> Row:
        from pylandscape._native import ops

        return self.row(
            "gaussian",
            lambda i: ops.gaussian(1, 0, 0, out=self.out[i]),
            ops.gaussian(1, 0, 0, out=torch.empty(self.n)),
            self.n,
            lambda i: self.out[i].normal_(),
        )

    def perturb(self, k: int) -> Row:
        from pylandscape._native import ops

        points, n = 64, self.n // 64 * 4
        c = torch.randn(points, k, dtype=torch.float64)
        d = torch.randn(k, n, dtype=self.dtype)
        matrix, directions = c.to("cuda", self.dtype), d.cuda()
        theta = [t[:n] for t in self.theta]
        out = torch.empty(points, n, dtype=self.dtype, device="cuda")
        return self.row(
            f"perturb {points} points, k={k}",
            lambda i: ops.perturb(theta[i], c, directions, out=out),
            ops.perturb(self.host[0][:n], c, d),
            (1 + k + points) * n,
            lambda i: torch.addmm(theta[i], matrix, directions, out=out),
        )


def measure(width: int, bandwidth: float) -> Iterator[Row]:
    """A row for each kernel of directions; bandwidth in bytes per millisecond."""
    for dtype in (torch.float32, torch.float64):
        bench = Bench(width, dtype, bandwidth)
        for mode in ("filter", "layer", "model"):
            yield from bench.directions(mode, bench.filters if mode == "filter" else bench.layers)
        if dtype == torch.float32:
            yield bench.gaussian()
        for k in (1, 2, 3, 6):
            yield bench.perturb(k)
