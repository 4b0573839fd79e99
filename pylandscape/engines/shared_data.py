"""L over samples that several processes share out: `Landscape(..., shard="data")`.

The samples are cut into fixed chunks, whatever the number of ranks; each rank holds some. Chunk c
has the loss L_c of its own denominator D_c, so that

    L = sum_c D_c L_c / sum_c D_c

and so have gradients and products with the Hessian and the Gauss-Newton matrix; of the gradients'
covariance, whose g_i carry N / D each, the weight is D_c^2 / N_c. The terms are added in double, in
a tree of fixed shape over the chunks: a rank sends the sums of whole branches, and all ranks add
the same numbers in the same order, so that bits do not depend on how many there are.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..arguments import callers_level
from ..arrays import all_finite, text_digest
from ..errors import InvalidArgument, NotLowered
from ..ranks import current
from ..theta.checks import as_coefficients
from ..theta.data import Dataset
from ..theta.losses import KnownLoss, Objective, metric_name

if TYPE_CHECKING:
    from .contract import Engine, Evaluate, EvaluatePoints

CHUNKS = 16  # of the samples, where a known loss lets them be cut anywhere
METRICS = ("loss", "accuracy")
MIXER = 0x9E3779B97F4A7C15  # odd, for hashes of samples
NEEDS_ALL = (
    "expected a landscape whose samples are all in this process; with shard='data' there are "
    "losses, accuracies, gradients and products, and what is made of them: lines, planes, grids, "
    "eigenpairs, spectra, traces"
)


class SharedData(Dataset):
    """What is known of all samples, of which this process holds some; it has no batches."""

    def __init__(self, of: Dataset, size: int, told: str) -> None:
        self.size, self.digest = size, told
        self.subset, self.notes, self.targets = of.subset, of.notes, of.targets

    def __getattr__(self, name: str) -> Any:
        if name == "batches":
            raise InvalidArgument(f"shard: {NEEDS_ALL}")
        raise AttributeError(name)

    @property
    def plain(self) -> bool:
        return True


@dataclass(frozen=True)
class Part:
    """One chunk: its number among all, its samples, and the loss over them."""

    index: int
    data: Dataset
    loss: Any


@dataclass(frozen=True)
class Plan:
    """Which chunks there are, and which of them this rank holds.

    Attributes:
        parts: this rank's, in order; of a rank without any, the first of all, which is not summed.
        own: their numbers [first, last).
        weights, counted, sizes: (C,) of all chunks: D_c, targets with an accuracy, samples N_c.
        whole: all samples, as far as they are known here.
        ranks: how many hold them.
    """

    parts: Sequence[Part]
    own: tuple[int, int]
    weights: np.ndarray
    counted: np.ndarray
    sizes: np.ndarray
    whole: SharedData
    ranks: int


def plan(data: Dataset, loss: Any, padded: bool) -> Plan:
    """Cut the samples: all of them, where every rank was given the same, else each rank's own.

    Args:
        padded: the loader has a DistributedSampler, which may repeat samples.

    Raises:
        InvalidArgument: samples on several ranks, repeated by a sampler; data that cannot be cut.
    """
    if not data.plain:
        raise InvalidArgument("shard: expected batches of tensors and numbers, got objects in them")
    if isinstance(loss, KnownLoss):
        edges = np.unique(np.linspace(0, data.size, min(CHUNKS, data.size) + 1).round().astype(int))
        chunks = [data.rows(int(a), int(b)) for a, b in itertools.pairwise(edges)]
        losses: list[Any] = [loss] * len(chunks)
    else:
        chunks = [data.of([batch]) for batch in data.batches]
        losses = [loss] * len(chunks)
        if isinstance(loss, Objective):
            losses = [replace(loss, weights=(weight,)) for weight in loss.weights]
    table = np.array([_numbers(c, each) for c, each in zip(chunks, losses, strict=True)])
    ranks = current()
    first, last, before, count, told = 0, len(chunks), 0, 1, data.digest
    if ranks is not None:
        count = ranks.size
        with ranks.call("sharing out the data", {}) as call:
            text = np.frombuffer(data.digest.encode(), dtype=np.uint8)
            given = call.exchange([text, table])
            digests = [found[0].tobytes().decode() for found in given]
            same = len(set(digests)) == 1
            hashes = [] if same else [found[0] for found in call.exchange([_hashes(data)])]
        if same:  # every rank was given all
            first, last = (len(chunks) * (ranks.rank + k) // count for k in (0, 1))
        else:
            _check_apart(hashes, padded)
            if data.subset is not None:
                raise InvalidArgument("samples: expected the same data on all ranks, with a subset")
            starts = np.cumsum([0, *(len(found[1]) for found in given)])
            first, last = int(starts[ranks.rank]), int(starts[ranks.rank + 1])
            table = np.concatenate([found[1] for found in given])
            told = text_digest(" ".join(digests))
            before = first
    which = range(first, last) if last > first else range(1)
    parts = [Part(i, chunks[i - before], losses[i - before]) for i in which]
    whole = SharedData(data, int(table[:, 2].sum()), told)
    weights, counted, sizes = table.T.copy()
    return Plan(parts, (first, last), weights, counted, sizes, whole, count)


class DataShards:
    """The engine of a landscape whose samples are shared out.

    Args:
        answers: for each part of the plan the engines that answer, the compiled one first.
    """

    name = "native"

    def __init__(self, plan: Plan, answers: Sequence[Sequence[Engine]], loss: Any) -> None:
        self._plan, self._loss = plan, loss
        first, last = plan.own
        self._own = {
            part.index: engines
            for part, engines in zip(plan.parts, answers, strict=True)
            if first <= part.index < last
        }
        self._adds = isinstance(loss, KnownLoss) and loss.reduction == "sum"
        self._weights = np.ones(len(plan.weights)) if self._adds else plan.weights
        self._sum = 1.0 if self._adds else float(plan.weights.sum())

    def prepare(
        self, theta: Tensor, directions: Tensor, metrics: Sequence[Any], between: bool = False
    ) -> Evaluate:
        names, k = self._checked(metrics), len(directions)
        asks = {i: e[0].prepare(theta, directions, metrics) for i, e in self._own.items()}
        fixed = [_crc(x) for x in (theta, directions)] if self._plan.ranks > 1 else []

        def evaluate(coefficients: np.ndarray) -> dict[str, np.ndarray]:
            c = as_coefficients(coefficients, k)
            return self._values(names, asks, c, len(c), (*fixed, c))

        return evaluate

    def prepare_points(self, metrics: Sequence[Any]) -> EvaluatePoints:
        names = self._checked(metrics)
        asks = {i: engines[0].prepare_points(metrics) for i, engines in self._own.items()}

        def evaluate(points: Tensor) -> dict[str, np.ndarray]:
            return self._values(names, asks, points, len(points), (points,))

        return evaluate

    def gradient(self, theta: Tensor) -> Tensor:
        found = self._derived(lambda e: e.gradient(theta), self._weights, theta.shape, "gradient",
                              (theta,))  # fmt: skip
        return found.to(theta.device) / self._sum

    def product(self, matrix: str, theta: Tensor, vectors: Tensor) -> Tensor:
        weights, whole = self._weights, self._sum
        if matrix == "covariance":
            sizes = self._plan.sizes
            weights, whole = weights**2 / sizes, self._sum**2 / float(sizes.sum())
        found = self._derived(
            lambda e: e.product(matrix, theta, vectors), weights, vectors.shape, matrix,
            (theta, vectors),
        )  # fmt: skip
        return found.to(theta.device) / whole

    def per_sample_gradients(self, theta: Tensor) -> Tensor:
        raise InvalidArgument(f"per_sample_gradients: {NEEDS_ALL}")

    def _values(
        self, names: Sequence[str], asks: Mapping[int, Callable[[Any], Any]], at: Any, count: int,
        asked: Sequence[Any],
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """{metric: (count,)} from those of the chunks."""
        totals = {"loss": self._weights, "accuracy": self._plan.counted}

        def term(index: int) -> np.ndarray:
            found = asks[index](at)
            return np.stack([_times(totals[name][index], found[name]) for name in names])

        found = self._added(term, (len(names), count), "values", asked)
        divisors = {"loss": self._sum, "accuracy": float(self._plan.counted.sum())}
        with np.errstate(invalid="ignore", divide="ignore"):
            rows = {name: row / divisors[name] for name, row in zip(names, found, strict=True)}
        return rows

    def _derived(
        self, ask: Callable[[Engine], Tensor], weights: np.ndarray, shape: Sequence[int],
        what: str, asked: Sequence[Any],
    ) -> Tensor:  # fmt: skip
        def term(index: int) -> np.ndarray:
            if weights[index] == 0.0:
                return np.zeros(tuple(shape))
            *compiled, last = self._own[index]
            found = None
            for engine in compiled:
                with contextlib.suppress(NotLowered):
                    found = ask(engine)
            if found is None or (compiled and not all_finite(found)):
                found = ask(last)
            return _times(weights[index], found.detach().double().cpu().numpy())

        return torch.from_numpy(self._added(term, tuple(shape), what, asked))

    def _added(
        self, term: Callable[[int], np.ndarray], shape: tuple[int, ...], what: str,
        asked: Sequence[Any],
    ) -> np.ndarray:  # fmt: skip
        """The terms of all chunks, added in the tree."""
        ranks, count = current(), len(self._weights)
        if (1 if ranks is None else ranks.size) != self._plan.ranks:
            raise InvalidArgument(
                f"shard: the samples of this landscape are shared out among {self._plan.ranks} "
                "processes, which must ask together; here "
                f"{'one asks alone' if ranks is None else f'are {ranks.size}'}"
            )
        size = 1 << max(count - 1, 0).bit_length()
        nodes = _branches(0, size, *self._plan.own, count)

        def leaf(low: int, high: int) -> np.ndarray | None:
            return term(low) if high - low == 1 else None

        if ranks is None:
            return _summed(*nodes[0], leaf, count)
        request = {"kind": what, "asked": [a if isinstance(a, str) else _crc(a) for a in asked]}
        with ranks.call(f"{what} of shared samples", request) as call:
            sums = [_summed(*node, leaf, count) for node in nodes]
            own = np.stack(sums) if sums else np.empty((0, *shape))
            bounds = np.array(nodes, dtype=np.int64).reshape(-1, 2)
            found = call.exchange([bounds, own])
        known = {
            (int(a), int(b)): total
            for each, totals in found
            for (a, b), total in zip(each, totals, strict=True)
        }
        return _summed(0, size, lambda low, high: known.get((low, high)), count)

    def _checked(self, metrics: Sequence[Any]) -> list[str]:
        for metric in metrics:
            if metric not in METRICS:
                raise InvalidArgument(
                    f"metrics: expected some of {', '.join(METRICS)} with shard='data', got "
                    f"{metric_name(metric)!r}, which needs the outputs for all samples"
                )
        return [metric_name(metric) for metric in metrics]


def _numbers(data: Dataset, loss: Any) -> tuple[float, float, float]:
    """D_c, the number of targets that an accuracy counts, N_c."""
    if isinstance(loss, Objective):
        return float(sum(loss.weights)), 0.0, float(data.size)
    if not isinstance(loss, KnownLoss):
        return float(data.size), 0.0, float(data.size)
    weight = counted = 0.0
    for batch in data.batches:
        y = batch.target
        weight += loss.denominator(y, tuple(y.shape))
        if y.is_floating_point() and loss.targets == "classes":
            counted += y.numel() // y.shape[1]
        elif loss.targets == "classes":
            counted += int((y != loss.ignore_index).sum())
        else:
            counted += y.numel()
    return weight, counted, float(data.size)


def _times(weight: float, values: np.ndarray) -> np.ndarray:
    """weight values, and 0 without weight: a chunk of ignored targets alone has no loss."""
    return np.zeros(np.shape(values)) if weight == 0.0 else weight * np.asarray(values, np.float64)


def _branches(low: int, high: int, first: int, last: int, count: int) -> list[tuple[int, int]]:
    """The largest branches of the tree over [low, high) within the chunks [first, last)."""
    if low >= min(last, count) or high <= first or first >= last:
        return []
    if first <= low and min(high, count) <= last:
        return [(low, high)]
    middle = (low + high) // 2
    return [
        *_branches(low, middle, first, last, count),
        *_branches(middle, high, first, last, count),
    ]


def _summed(
    low: int, high: int, known: Callable[[int, int], np.ndarray | None], count: int
) -> np.ndarray:
    """The sum over the chunks [low, high), by the tree from the branches that are known."""
    if (found := known(low, high)) is not None:
        return found
    middle = (low + high) // 2
    left = _summed(low, middle, known, count)
    return left if middle >= count else left + _summed(middle, high, known, count)


def _crc(array: Any) -> str:
    """Tells arrays apart, fast."""
    raw = np.ascontiguousarray(array.detach().cpu().numpy() if isinstance(array, Tensor) else array)
    return f"{raw.dtype} {raw.shape} {zlib.crc32(raw.tobytes()):08x}"


def _hashes(data: Dataset) -> np.ndarray:
    """(N,) uint64 of the samples, of batches whose tensors have a sample a row."""
    found = []
    for batch in data.batches:
        own = np.zeros(batch.size, dtype=np.uint64)
        for tensor in batch.tensors():
            if tensor.layout != torch.strided or tensor.dim() == 0 or len(tensor) % batch.size:
                continue
            raw = np.ascontiguousarray(tensor.detach().cpu().reshape(batch.size, -1).numpy())
            rows = raw.view(np.uint8).reshape(batch.size, -1)
            for column in rows.T:
                own = (own ^ column) * np.uint64(MIXER)
                own ^= own >> np.uint64(29)
        found.append(own)
    return np.concatenate(found)


def _check_apart(hashes: Sequence[np.ndarray], padded: bool) -> None:
    """Samples that stand on several ranks: repeated by a sampler, or equal by themselves."""
    each = np.concatenate([np.unique(own) for own in hashes])
    _values, times = np.unique(each, return_counts=True)
    twice = int((times > 1).sum())
    if not twice:
        return
    message = (
        f"{twice} of the samples stand on several ranks and count on each. A DistributedSampler "
        "pads its shards with duplicates of the first samples (unless drop_last=True): give every "
        "rank all of the data, which shard='data' cuts exactly, or parts without duplicates"
    )
    if padded:
        raise InvalidArgument(f"data: {message}")
    warnings.warn(message, stacklevel=callers_level())
