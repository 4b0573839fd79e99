"""A program in the making, with the calls that make it, so that they can make more of its kind.

Of one graph several programs are made: over few samples, in float64, over all the data. The calls
that give each its ops are the same, since they come from shapes and from where the parameters lie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .._native import core


class Recorded:
    """Stands for a program while it gets its ops; what the calls are given may hold tensors, whose
    addresses the program gets.

    ``of_dtype``: whether the calls depend on the dtype that the program computes in.
    """

    def __init__(self, program: Any) -> None:
        self._program = program
        self._calls: list[tuple[str, tuple[Any, ...], dict[str, Any], Any]] = []
        self.of_dtype = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._program, name)

        def call(*args: Any, **keywords: Any) -> Any:
            found = method(*map(_given, args), **keywords)
            self._calls.append((name, args, keywords, found))
            return found

        return call

    def features(self, slot: int) -> int:
        """How many rows a slot has."""
        return int(self._program.features(slot))

    @property
    def double(self) -> bool:
        """Whether the program computes in float64."""
        self.of_dtype = True
        return isinstance(self._program, core.ProgramF64)

    def again(self, program: Any) -> None:
        """The same ops for another program, which has none yet."""
        for name, args, keywords, found in self._calls:
            if getattr(program, name)(*map(_given, args), **keywords) != found:
                raise RuntimeError(f"the same call of {name!r} made something else")


def _given(x: Any) -> Any:
    return x.data_ptr() if isinstance(x, Tensor) else x
