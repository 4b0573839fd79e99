"""One op of a compiled program, and what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from .conv import Conv

Source = tuple[int, int]  # an offset in theta (or -1 - offset in the constants), and how many


class Op(SimpleNamespace):
    """One op of a program, its fields as csrc/binding/program_lists.h names them: ``kind``, slots
    ``inputs`` and ``output``, parameters, sizes, and what else csrc/program/op.h says of its kind.
    """

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Op:
        conv = described["conv"]
        return cls(**{**described, "conv": None if conv is None else Conv.of(conv)})

    def own_statistics(self) -> bool:
        """Whether it is a batch norm with the statistics of each batch."""
        return self.norm is not None and bool(self.norm["own"])

    def uses(self) -> list[Source]:
        """All parameters that it reads."""
        given = [self.weight, self.bias, self.second]
        names = ("gain", "shift", "mean", "variance")
        given += [] if self.norm is None else [self.norm[name] for name in names]
        return [use for use in given if use is not None]

    def folded(self) -> bool:
        """Whether its parameters are computed by `fold`, not read as they are."""
        return self.kind == "conv" or (self.kind == "batch_norm" and not self.own_statistics())

    def first(self) -> int:
        """The first row of the first input."""
        return self.rows[0][0] if self.rows else 0
