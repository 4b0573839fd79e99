"""The data of a landscape: batches read once, in order, and kept."""

from __future__ import annotations

import copy
import itertools
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data import Dataset as TorchDataset

from ..arguments import integer
from ..arrays import digest_of_all, is_plain
from ..errors import InvalidArgument, PylandscapeError, out_of_memory, wrapping
from .held_state import dense_parts
from .outside import reading
from .random_source import SUBSET, fill

_ROWS = 1_000  # of a Dataset, in a batch
_MOST_BATCHES = 200_000  # of an iterable that does not tell its length
_RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
_LABELS = ("labels", "label", "targets", "target", "y")  # what dict batches call their targets


@dataclass(frozen=True)
class Batch:
    """One batch: ``raw`` as it was given, split into model inputs and target where it can be."""

    raw: Any
    inputs: Any
    target: Any
    size: int

    def mapped(self, f: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with f of its tensors; what stands in it twice does so afterwards."""
        memo: dict[int, Any] = {}
        raw, inputs, target = (
            _mapped(part, f, memo) for part in (self.raw, self.inputs, self.target)
        )
        return Batch(raw, inputs, target, self.size)

    def fresh(self) -> Batch:
        """A copy that code may write into."""
        return self.mapped(_clone)

    def apart(self) -> Batch:
        """The same tensors in dicts, lists and objects of its own, which code may change; itself
        where it has none of these."""
        parts = self.raw if isinstance(self.raw, tuple) else (self.raw,)
        if all(isinstance(part, Tensor) for part in parts):
            return self
        return self.mapped(lambda t: t)

    def first(self, count: int) -> Batch:
        """Its first samples: of tensors with a sample a row, the first rows; itself where it has
        no more."""
        if self.size <= count:
            return self

        def rows(t: Tensor) -> Tensor:
            whole = t.dim() > 0 and len(t) == self.size and t.layout == torch.strided
            return t[:count] if whole else t

        few = self.mapped(rows)
        return Batch(few.raw, few.inputs, few.target, count)

    def tensors(self) -> list[Tensor]:
        """Its tensors, each once."""
        found: dict[int, Tensor] = {}

        def note(t: Tensor) -> Tensor:
            found[id(t)] = t
            return t

        self.mapped(note)
        return list(found.values())


@dataclass(frozen=True)
class Subset:
    """A random subset of the data without replacement: ``samples`` of ``of``, drawn with
    ``seed``."""

    samples: int
    of: int
    seed: int

    def rows(self) -> Tensor:
        """(samples,) which ones, ascending."""
        drawn = torch.empty(self.of)
        fill(drawn, self.seed, SUBSET)
        return torch.argsort(drawn, stable=True)[: self.samples].sort().values

    def __str__(self) -> str:
        return f"{self.samples:,} of {self.of:,} samples, drawn with seed {self.seed}"


@contextmanager
def untouched_random_state(device: torch.device | None = None) -> Iterator[None]:
    """Runs user code without moving torch's global generators."""
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def chosen_batches(sizes: Sequence[int], count: int) -> list[int]:
    """At most ``count`` batches on which engines are compared: the largest one, the first ones."""
    largest = min(range(len(sizes)), key=lambda b: (-sizes[b], b))
    others = [b for b in range(min(count, len(sizes))) if b != largest]
    return sorted([largest, *others][:count])


def generator_states() -> dict[str, Any]:
    """The states of Python's and numpy's global generators, comparable."""
    state: Any = np.random.get_state()  # noqa: NPY002
    return {"random": random.getstate(), "numpy": (state[0], state[1].tobytes(), *state[2:])}


def set_generators(states: dict[str, Any]) -> None:
    random.setstate(states["random"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.frombuffer(keys, dtype=np.uint32), *rest))  # noqa: NPY002


@contextmanager
def _untouched_generators() -> Iterator[None]:
    """Runs user code without moving the global generators of torch, Python and numpy."""
    states = generator_states()
    try:
        with untouched_random_state():
            yield
    finally:
        set_generators(states)


class Dataset:
    """Batches of (inputs, target), or of anything when they go to an objective.

    Args:
        data: see `Landscape`; None is one batch None.
        targets: what a loss needs: "classes" (integers become int64, as torch's losses want them),
            "values" or "any"; batches must then be pairs (inputs, target), and but for classes a
            batch that is one tensor x is the pair (x, x). None: batches go to an objective.
        device, move: tensors must be on this device, unless they may be moved there.
        max_batches: the first so many are read, and no more.

        samples, seed: how many rows are kept, a random subset in the order of the data; batches
            stay apart, those without a row are left out. ``subset`` says so, None for all.

    Attributes:
        notes: what a user may not expect of how the data were read, as parts of a sentence.

    Raises InvalidArgument for empty data and for batches that are no pair where pairs are needed;
    it says what to write instead.

    A batch may have several targets per input, where the model gives as many rows of outputs
    (tokens). The tensors kept are copies: what happens to the caller's later does not reach them.
    What the reading changes in the objects that give the data is put back (`reading`).
    """

    def __init__(
        self,
        data: Any,
        *,
        targets: str | None,
        device: torch.device,
        move: bool,
        max_batches: int | None = None,
        samples: int | None = None,
        seed: int = 0,
    ) -> None:
        pairs = targets is not None
        self.targets = targets
        with _untouched_generators(), reading(data):
            whole = data is None or _is_one_batch(data, pairs)
            if whole and targets not in (None, "classes"):
                _check_unambiguous(data)
            raw = [data] if whole else _read(data, max_batches)
            placed = [_placed(item, device, move) for item in raw]
            self.notes = () if whole else _notes(data, len(raw))
        if not raw:
            raise InvalidArgument("data: expected at least one batch, got none")
        if pairs:  # an objective may differentiate in its inputs
            for t in (t for item in placed for t in Batch(item, None, None, 0).tensors()):
                t.requires_grad_(False)
        self.batches = [_batch(item, i, targets) for i, item in enumerate(placed)]
        self.size = sum(batch.size for batch in self.batches)
        if self.size == 0:
            raise InvalidArgument("data: expected at least one sample, got none")
        if pairs and any(b.inputs is b.target for b in self.batches):
            self.notes += ("the inputs are their own targets",)
        self.subset: Subset | None = None
        if samples is not None:
            self.subset = Subset(integer(samples, "samples", 1), self.size, integer(seed, "seed"))
            if self.subset.samples > self.size:
                raise InvalidArgument(
                    f"samples: expected at most the {self.size} of the data, got {samples}"
                )
            self.batches = self._drawn(self.subset, targets)
            self.size = self.subset.samples

    def _drawn(self, subset: Subset, targets: str | None) -> list[Batch]:
        rows, start = subset.rows(), 0
        found: list[Batch] = []
        for index, batch in enumerate(self.batches):
            own = rows[(rows >= start) & (rows < start + batch.size)] - start
            start += batch.size
            if len(own):
                raw = _rows_of(batch.raw, own, batch.size, index)
                found.append(_batch(raw, len(found), targets))
        return found

    @cached_property
    def digest(self) -> str:
        """sha256 of the batches, read when it is first asked for: a file's identity, which most
        landscapes never write."""
        return digest_of_all(batch.raw for batch in self.batches)

    @property
    def plain(self) -> bool:
        """Whether the digest tells all of the batches."""
        return all(is_plain(batch.raw) for batch in self.batches)

    def of(self, batches: list[Batch]) -> Dataset:
        """The same with these batches alone."""
        found = copy.copy(self)
        found.batches, found.size = batches, sum(batch.size for batch in batches)
        vars(found).pop("digest", None)
        return found

    def rows(self, first: int, last: int) -> Dataset:
        """The samples [first, last), in their batches."""
        start = 0
        found: list[Batch] = []
        for index, batch in enumerate(self.batches):
            low, high = max(first - start, 0), min(last - start, batch.size)
            start += batch.size
            if low < high:
                own = torch.arange(low, high)
                raw = _rows_of(batch.raw, own, batch.size, index)
                found.append(_batch(raw, len(found), self.targets))
        return self.of(found)

    def tensors(self) -> tuple[Tensor, Tensor] | None:
        """All inputs and targets, concatenated; None where batches are not plain tensor pairs."""
        inputs = [batch.inputs for batch in self.batches]
        targets = [batch.target for batch in self.batches]
        for parts in (inputs, targets):
            if not all(isinstance(part, Tensor) and part.dim() > 0 for part in parts):
                return None
            if len({(part.shape[1:], part.dtype) for part in parts}) > 1:
                return None
        if len(inputs) == 1:
            return inputs[0], targets[0]
        return torch.cat(inputs), torch.cat(targets)


def _is_one_batch(data: Any, pairs: bool) -> bool:
    """Whether data are one batch, and not an iterable of batches.

    A tensor or a dict is one, a tuple of tensors, and a pair whose parts are of different forms
    (several inputs and one target); of two tuples or dicts, each is a batch.
    """
    if isinstance(data, Tensor | np.ndarray | Mapping):
        return True
    if not isinstance(data, tuple | list):
        return False
    forms = [_form(part) for part in data]
    if len(data) != 2:
        return isinstance(data, tuple) and len(data) > 0 and set(forms) == {"tensor"}
    if None in forms or (forms[0] == forms[1] == "sequence"):
        return False
    if forms[0] == forms[1] == "mapping":
        return pairs and isinstance(data, tuple)
    return True


def _form(part: Any) -> str | None:
    if isinstance(part, Tensor | np.ndarray):
        return "tensor"
    if isinstance(part, Mapping):
        return "mapping"
    return "sequence" if isinstance(part, tuple | list) else None


def _check_unambiguous(data: Any) -> None:
    """Refuses a list of two tensors that could as well be two batches of x alone."""
    if not isinstance(data, list) or [_form(part) for part in data] != ["tensor", "tensor"]:
        return
    a, b = (torch.as_tensor(part) for part in data)
    if a.shape == b.shape and a.is_floating_point() and b.is_floating_point():
        raise InvalidArgument(
            f"data: a list of two tensors of the same shape {tuple(a.shape)} is either inputs and "
            "targets or two batches of inputs; pass the tuple (x, y), or [(x1, x1), (x2, x2)] "
            "where the inputs are their own targets"
        )


def _notes(data: Any, read: int) -> tuple[str, ...]:
    """What the reading of a Dataset or a loader leaves out or decides."""
    found: list[str] = []
    if isinstance(data, DataLoader):
        sampler = getattr(data.batch_sampler, "sampler", data.sampler)
        if isinstance(sampler, _RANDOM) or (
            isinstance(sampler, DistributedSampler) and sampler.shuffle
        ):
            found.append("the loader shuffles and was read once, in the order that it then had")
        if data.drop_last and isinstance(data.dataset, Sized) and data.batch_size:
            left = len(data.dataset) % data.batch_size
            if left and isinstance(sampler, Sized) and len(sampler) == len(data.dataset):
                found.append(f"drop_last left {left} samples out")
    there = None if isinstance(data, TorchDataset) else _length(data)
    there = read if there is None else there
    if read < there:
        found.append(f"the first {read:,} of {there:,} batches")
    return tuple(found)


def _length(data: Any) -> int | None:
    """How many batches it says that it has; a loader of a stream has a ``len`` that raises."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def _read(data: Any, most_batches: int | None = None) -> list[Any]:
    if isinstance(data, TorchDataset):  # one sample at a time: as a loader without options
        data = DataLoader(data, batch_size=_ROWS)
    if isinstance(data, str) or not isinstance(data, Iterable):
        raise InvalidArgument(
            "data: expected a pair (x, y) of tensors, a Dataset, a DataLoader or an iterable of "
            f"batches, got {type(data).__name__}{_instead(data)}"
        )
    kept: list[Any] = []
    most, taken = _most_bytes(), 0
    bounded = most_batches is not None or _length(data) is not None
    states = [(g, g.get_state()) for g in _generators(data)]
    try:
        for batch in itertools.islice(data, most_batches):
            kept.append(batch)
            if bounded:
                continue
            taken += _bytes(batch)  # it may have no end
            if len(kept) > _MOST_BATCHES or taken > most:
                raise InvalidArgument(_endless(len(kept), taken) + " and goes on")
    except PylandscapeError:
        raise
    except Exception as error:
        if not bounded and out_of_memory(error):
            raise wrapping(error, _endless(len(kept), taken) + ", and memory ran out") from error
        said = f"{type(error).__name__}: {error}"
        raise wrapping(error, f"data: reading batch {len(kept)} raised {said}") from error
    finally:
        for generator, state in states:
            generator.set_state(state)
    return kept


def _generators(data: Any) -> list[torch.Generator]:
    """Those that a loader draws its order from: as the user has them afterwards, also where a
    file of the data has moved on and `reading` puts nothing back."""
    if not isinstance(data, DataLoader):
        return []
    parts = (data, data.sampler, data.batch_sampler, getattr(data.batch_sampler, "sampler", None))
    found = {id(g): g for g in (getattr(part, "generator", None) for part in parts)}
    return [g for g in found.values() if isinstance(g, torch.Generator)]


def _endless(count: int, taken: int) -> str:
    return (
        "data: expected an iterable that ends; batches are read once and kept: pass max_batches=, "
        f"or a list; it gave {count} batches ({taken / 2**30:.3g} GiB)"
    )


def _most_bytes() -> float:
    """How much an iterable without a length may give: half of the machine's memory."""
    return 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _bytes(item: Any) -> int:
    if isinstance(item, Tensor):
        return item.numel() * item.element_size()
    if isinstance(item, np.ndarray):
        return int(item.nbytes)
    if isinstance(item, Mapping):
        return sum(map(_bytes, item.values()))
    return sum(map(_bytes, item)) if isinstance(item, tuple | list) else 0


def _clone(t: Tensor) -> Tensor:
    return t.detach().clone().requires_grad_(t.requires_grad)


def _mapped(item: Any, f: Callable[[Tensor], Tensor], memo: dict[int, Any]) -> Any:
    if id(item) in memo:
        return memo[id(item)]
    found: Any = item
    if isinstance(item, Tensor):
        found = f(item)
    elif isinstance(item, Mapping):
        found = {key: _mapped(value, f, memo) for key, value in item.items()}
    elif isinstance(item, tuple | list):
        parts = [_mapped(value, f, memo) for value in item]
        found = type(item)(*parts) if hasattr(item, "_fields") else type(item)(parts)
    elif _is_record(item):
        found = memo[id(item)] = copy.copy(item)
        if found is not item:
            vars(found).update({k: _mapped(v, f, memo) for k, v in vars(found).items()})
    memo[id(item)] = found
    return found


def _is_record(item: Any) -> bool:
    """Whether it is an object of plain attributes with tensors, dicts or lists among them, as a
    graph's data are."""
    held = getattr(item, "__dict__", None)
    if not isinstance(held, dict) or callable(item) or isinstance(item, nn.Module | type):
        return False
    return any(isinstance(v, Tensor | Mapping | list) or _is_record(v) for v in held.values())


def not_finite(batches: Sequence[Batch]) -> str | None:
    """Where the data hold a NaN or an infinity, as the end of a sentence; None where nowhere."""
    for index, batch in enumerate(batches):
        for t in batch.tensors():
            if t.is_floating_point():
                bad = sum(int((~torch.isfinite(part)).sum()) for part in dense_parts(t))
                if bad:
                    return f"batch {index} has {bad} elements that are NaN or infinite"
    return None


def _placed(item: Any, device: torch.device, move: bool) -> Any:
    """A copy of the item with its arrays as tensors on ``device``; moved there only if
    ``move``."""
    if isinstance(item, np.ndarray):
        return torch.from_numpy(np.array(item)).to(device)
    if isinstance(item, Tensor):
        if item.device != device and not move:
            raise InvalidArgument(
                f"data: expected tensors on {device}, where the model is, got {item.device}; "
                f"move one of them, or pass device= to have the data moved"
            )
        return (
            item.detach().to(device, copy=True).requires_grad_(item.requires_grad and item.is_leaf)
        )
    if isinstance(item, Mapping):
        return {key: _placed(value, device, move) for key, value in item.items()}
    if isinstance(item, tuple | list):
        placed = [_placed(value, device, move) for value in item]
        return type(item)(*placed) if hasattr(item, "_fields") else type(item)(placed)
    try:
        return copy.deepcopy(item)
    except Exception:  # a handle or the like
        return item


def _batch(item: Any, index: int, needed: str | None) -> Batch:
    pairs = needed is not None
    alone = item[0] if isinstance(item, tuple | list) and len(item) == 1 else item
    if needed in ("values", "any") and isinstance(alone, Tensor):
        item = (alone, alone)
    if isinstance(item, tuple | list) and len(item) == 2:
        inputs, target = item
        if needed == "classes" and isinstance(target, Tensor) and target.dtype in _SMALL:
            target = target.long()
            item = (inputs, target)
        size = leading_size(inputs)
        targets = leading_size(target)
        if _is_sample(inputs) and _is_sample(target) and size and targets and targets % size:
            size = targets = 1
        if needed in ("classes", "values") and not _has_tensor(target):
            raise InvalidArgument(
                f"data: expected targets in batch {index} that are a tensor, got a "
                f"{type(target).__name__}{_instead(target)}"
            )
        # A multiple: targets of tokens, where the model gives (N * T, ...) for N sequences.
        if pairs and size is not None and targets is not None and targets % max(size, 1):
            raise InvalidArgument(f"data: batch {index} has {size} inputs but {targets} targets")
        return Batch(item, inputs, target, size if size is not None else 1)
    if pairs:
        raise InvalidArgument(
            f"data: expected batch {index} to be a pair (inputs, target), got "
            f"{_described(item)}; {_as_pair(item)}"
        )
    size = leading_size(item)
    return Batch(item, None, None, size if size is not None else 1)


_SMALL = (torch.int32, torch.int16, torch.int8)


def _is_sample(item: Any) -> bool:
    """Whether it may be one sample, without a dimension of samples."""
    return isinstance(item, Tensor) and item.dim() == 1


def _has_tensor(item: Any) -> bool:
    return bool(Batch(item, None, None, 0).tensors())


def _described(item: Any) -> str:
    if isinstance(item, Mapping):
        return f"a {type(item).__name__} with {', '.join(map(repr, item))}"
    if isinstance(item, tuple | list):
        return f"a {type(item).__name__} of {len(item)}"
    return f"one {type(item).__name__}"


def _as_pair(item: Any) -> str:
    """What to write for batches of this form."""
    own = "for other batches use objective=f(model, batch)"
    if isinstance(item, Mapping):
        key = next((k for k in _LABELS if k in item), None)
        if key is None:
            return own
        rest = [k for k in item if k != key]
        one = f"b[{rest[0]!r}]" if len(rest) == 1 else f"{{k: b[k] for k in {rest!r}}}"
        return (
            "leave loss= out where the model returns its own loss, otherwise pass "
            f"[({one}, b[{key!r}]) for b in data]; a dict of inputs is called as model(**inputs)"
        )
    if isinstance(item, tuple | list) and len(item) > 2:
        names = ", ".join(f"x{i + 1}" for i in range(len(item) - 1))
        return (
            f"several inputs are written (({names}), y), here "
            f"[(({names}), y) for {names}, y in data], and called as model({names}); {own}"
        )
    if isinstance(item, Tensor):
        return f"this loss needs targets: pass (x, y); {own}"
    return f"{_instead(item).removeprefix('; ') or own}"


def _instead(item: Any) -> str:
    """What to write in place of something that is no tensor, as the end of a sentence."""
    if hasattr(item, "train_dataloader") or hasattr(item, "val_dataloader"):
        return "; of a DataModule pass one of its loaders, data.setup() and data.val_dataloader()"
    if hasattr(item, "to_numpy"):
        return "; pass torch.as_tensor(data.to_numpy(), dtype=torch.float32) of each part"
    if isinstance(item, str | os.PathLike):
        return "; read the file first"
    if isinstance(item, tuple | list) and all(isinstance(v, int | float) for v in item):
        return "; pass torch.tensor(...) of it"
    return ""


def _rows_of(item: Any, rows: Tensor, size: int, index: int, each: bool = False) -> Any:
    """Some of the rows of a batch of ``size`` samples; ``each``: several rows may belong to one
    sample (targets of tokens). What is no tensor and no list of one thing per sample stays."""
    if len(rows) == size:
        return item
    if isinstance(item, Tensor):
        if item.dim() == 0:
            return item
        count = len(item) if item.layout == torch.strided else -1
        if count != size and not (each and count > 0 and count % size == 0):
            raise InvalidArgument(
                f"samples: expected data with a row for each sample, but batch {index} has "
                f"{size} samples and a tensor of shape {tuple(item.shape)}"
            )
        grouped = item.detach().view(size, count // size, *item.shape[1:])
        taken = grouped.index_select(0, rows.to(item.device)).flatten(0, 1)
        return taken.requires_grad_(item.requires_grad)
    if isinstance(item, Mapping):
        return {key: _rows_of(value, rows, size, index) for key, value in item.items()}
    if isinstance(item, tuple | list):
        if leading_size(item) is None and len(item) == size:
            taken_parts = [item[i] for i in rows.tolist()]
        else:
            last = len(item) - 1 if len(item) == 2 else None  # the target of a pair
            taken_parts = [
                _rows_of(value, rows, size, index, i == last) for i, value in enumerate(item)
            ]
        named = hasattr(item, "_fields")
        return type(item)(*taken_parts) if named else type(item)(taken_parts)
    return item


def leading_size(item: Any) -> int | None:
    """The length of the first tensor with a leading dimension."""
    if isinstance(item, Tensor):
        return int(item.shape[0]) if item.dim() > 0 else None
    values: Sequence[Any] = ()
    if isinstance(item, Mapping):
        values = list(item.values())
    elif isinstance(item, tuple | list):
        values = item
    return next((size for size in map(leading_size, values) if size is not None), None)
