"""The flat parameter vector theta: which parameter lies where, and in which role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arrays import all_finite, text_digest
from ..errors import InvalidArgument, LayoutMismatch
from .checkpoints import fitted, some, tensors_of


@dataclass(frozen=True)
class ParameterEntry:
    """One parameter tensor: ``numel`` elements of theta, from ``offset`` on.

    ``kind`` is "norm" for parameters of normalisation layers, "bias" for other tensors of at most
    one dimension, "weight" for the rest; "statistic" for buffers (see running_statistics.py).
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    numel: int
    dtype: torch.dtype
    kind: str


@dataclass(frozen=True)
class ParameterLayout:
    """The entries of theta in ``named_parameters()`` order; tied parameters stand once.

    ``aliases`` maps every name of every parameter of the layout to its entry's name.
    """

    entries: tuple[ParameterEntry, ...]
    aliases: Mapping[str, str]

    @property
    def half(self) -> str | None:
        """Its dtypes of less than 32 bits, "bfloat16" for example; None where there are none."""
        kinds = {e.dtype for e in self.entries if torch.finfo(e.dtype).bits < 32}
        return " and ".join(sorted(str(k).removeprefix("torch.") for k in kinds)) or None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        params: Sequence[str] | None = None,
        others: Mapping[str, str] | None = None,
    ) -> ParameterLayout:
        """The layout of all parameters, or of those whose names match a pattern of ``params``.

        ``others``: more names, and whose they are. Patterns are shell-style (``"layer1.*"``).
        Raises InvalidArgument for a pattern that matches nothing, and for a model without
        parameters.
        """
        if isinstance(params, str):
            params = (params,)
        kinds = _kinds(model)
        first_name: dict[int, str] = {}
        names: dict[str, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            own = first_name.setdefault(id(parameter), name)
            names.setdefault(own, []).append(name)
        for other, name in (others or {}).items():
            if other != name and name in names:
                names[name].append(other)
        chosen = set(names) if params is None else _matching(names, params)
        entries: list[ParameterEntry] = []
        aliases: dict[str, str] = {}
        offset = 0
        for name, parameter in model.named_parameters():
            if name not in chosen:
                continue
            if parameter.is_complex():
                raise InvalidArgument(f"model: expected real parameters, but {name!r} is complex")
            if not parameter.is_floating_point():
                continue  # whole numbers, the weights of a quantized layer: they cannot move
            shape = tuple(parameter.shape)
            kind = kinds[id(parameter)]
            entries.append(
                ParameterEntry(name, shape, offset, parameter.numel(), parameter.dtype, kind)
            )
            aliases.update(dict.fromkeys(names[name], name))
            offset += parameter.numel()
        if offset == 0:
            raise InvalidArgument(
                "model: expected at least one parameter element, got a model without any"
                f"{_quantized(model)}"
            )
        return cls(tuple(entries), aliases)

    @property
    def n(self) -> int:
        """The length of theta."""
        return self.entries[-1].offset + self.entries[-1].numel

    def __getitem__(self, name: str) -> ParameterEntry:
        """The entry of that name."""
        return next(e for e in self.entries if e.name == name)

    def select(self, params: Sequence[str]) -> ParameterLayout:
        """The layout of the entries whose names match a pattern, with offsets of their own.

        Raises InvalidArgument for a pattern that matches nothing.
        """
        if isinstance(params, str):
            params = (params,)
        names: dict[str, list[str]] = {e.name: [] for e in self.entries}
        for alias, own in self.aliases.items():
            names[own].append(alias)
        chosen = _matching(names, params)
        entries: list[ParameterEntry] = []
        for e in self.entries:
            if e.name in chosen:
                offset = entries[-1].offset + entries[-1].numel if entries else 0
                entries.append(replace(e, offset=offset))
        kept = {alias: own for alias, own in self.aliases.items() if own in chosen}
        return ParameterLayout(tuple(entries), kept)

    @property
    def digest(self) -> str:
        """SHA-256 of the names and shapes."""
        text = ";".join(f"{e.name}:{'x'.join(map(str, e.shape))}" for e in self.entries)
        return text_digest(text)

    def flatten(
        self, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device | str
    ) -> Tensor:
        """theta (n,), a copy, from tensors by name."""
        parts = [
            tensors[e.name].detach().to(device=device, dtype=dtype).reshape(-1)
            for e in self.entries
        ]
        return torch.cat(parts)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Shaped views of vector (n,) by name."""
        return {e.name: vector[e.offset : e.offset + e.numel].view(e.shape) for e in self.entries}

    def vector(
        self, value: Any, name: str, dtype: torch.dtype, device: torch.device | str
    ) -> Tensor:
        """A vector (n,) from a tensor, an array, a Direction, a module, a state dict, or the path
        of a checkpoint.

        Raises LayoutMismatch naming ``name`` for another length or layout, InvalidArgument for
        non-finite elements and other types.
        """
        if hasattr(value, "blocks") and hasattr(value, "steps"):
            raise InvalidArgument(
                f"{name}: expected one point, got a {type(value).__name__} of {len(value)}; its "
                "end is [-1]"
            )
        value = tensors_of(getattr(value, "vector", value), name)
        if isinstance(value, Mapping):
            vector = self.flatten(self.named(value, name), dtype, device)
        elif isinstance(value, Tensor | np.ndarray) or hasattr(value, "__dlpack__"):
            own = isinstance(value, Tensor | np.ndarray)
            tensor = torch.as_tensor(value) if own else torch.from_dlpack(value)
            vector = tensor.detach().to(device=device, dtype=dtype)
            if vector.shape != (self.n,):
                raise LayoutMismatch(
                    f"{name}: expected shape ({self.n},) (the model's parameters), "
                    f"got {tuple(vector.shape)}"
                )
        else:
            raise InvalidArgument(
                f"{name}: expected a tensor, array, direction, module, state dict or checkpoint's "
                f"path, got {type(value).__name__}"
            )
        if not all_finite(vector):
            bad = int((~torch.isfinite(vector)).sum())
            raise InvalidArgument(f"{name}: expected finite elements, got {bad} that are not")
        return vector

    def named(self, value: Mapping[str, Any], name: str) -> dict[str, Tensor]:
        """The layout's tensors by name from a state dict, as they are. Raises LayoutMismatch."""
        found: dict[str, Tensor] = {}
        value = fitted(value, self.aliases)
        for alias, own in self.aliases.items():
            if alias in value:
                found.setdefault(own, torch.as_tensor(value[alias]))
        missing = [e for e in self.entries if e.name not in found]
        if missing:
            what = "buffer" if missing[0].kind == "statistic" else "parameter"
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            left = [str(k) for k in value if k not in self.aliases]
            over = f"; left over: {some(left)}" if left else ""
            raise LayoutMismatch(
                f"{name}: expected the {what} {missing[0].name!r}{more}, but it has only "
                f"{_listed(list(value))}{over}"
            )
        for entry in self.entries:
            shape = tuple(found[entry.name].shape)
            if shape != entry.shape:
                raise LayoutMismatch(
                    f"{name}: expected shape {entry.shape} for {entry.name!r}, got {shape}"
                )
        return found


_NORM_TYPES = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def _kinds(model: nn.Module) -> dict[int, str]:
    kinds: dict[int, str] = {}
    for module in model.modules():
        norm = isinstance(module, _NORM_TYPES) or "Norm" in type(module).__name__
        for parameter in module.parameters(recurse=False):
            kind = "norm" if norm else "bias" if parameter.dim() <= 1 else "weight"
            kinds.setdefault(id(parameter), kind)
    return kinds


def _matching(names: Mapping[str, list[str]], params: Sequence[str]) -> set[str]:
    chosen: set[str] = set()
    for pattern in params:
        hits = {
            own for own, every in names.items() if any(fnmatchcase(name, pattern) for name in every)
        }
        if not hits:
            every = [name for own in names.values() for name in own]
            rest = next((p for p in (f"*{pattern}", f"*{pattern}*") if _any(every, p)), None)
            hint = f"; {rest!r} does" if rest else f"; the model has {_listed(list(names))}"
            raise InvalidArgument(f"params: {pattern!r} matches no parameter{hint}")
        chosen |= hits
    return chosen


def _any(names: Sequence[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _listed(names: Sequence[str], limit: int = 8) -> str:
    shown = ", ".join(map(repr, names[:limit]))
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown or "nothing"


def _quantized(model: nn.Module) -> str:
    """What to do about weights that are integers, as the end of a sentence."""
    packed = [
        name
        for name, m in model.named_modules()
        if "quantized" in type(m).__module__ and not name.endswith("_packed_params")
    ]
    if not packed:
        return ""
    return (
        f": the weights of {some(packed)} are quantized integers, which do not move; pass the "
        "model from before the quantization"
    )
