"""Context variables: code runs in a context of its own, and the user's stays as it is.

A variable that has no value can get one, but only a token of the moment takes it away again; so
a context without it takes the place of the one that has it. Python offers this to C alone.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any

UNSET = object()  # the value of a variable that has none


class _Entered(threading.local):
    def __init__(self) -> None:
        self.contexts: list[Context] = []


_ENTERED = _Entered()


@contextmanager
def own_context() -> Iterator[None]:
    """Inside, context variables are a copy; after it, they are as they were."""
    stack = _ENTERED.contexts
    stack.append(copy_context())
    _enter(stack[-1])
    try:
        yield
    finally:
        _exit(stack.pop())


def value_of(variable: ContextVar[Any]) -> Any:
    """Its value, `UNSET` where it has none."""
    return copy_context().get(variable, UNSET)


def give(variable: ContextVar[Any], value: Any) -> None:
    """The variable gets the value; `UNSET`, which takes it away, only in an `own_context`."""
    if value is not UNSET:
        variable.set(value)
        return
    rest = Context()
    for other, kept in copy_context().items():
        if other is not variable:
            rest.run(other.set, kept)
    stack = _ENTERED.contexts
    _exit(stack[-1])
    stack[-1] = rest
    _enter(rest)


def _enter(context: Context) -> None:
    ctypes.pythonapi.PyContext_Enter(ctypes.py_object(context))


def _exit(context: Context) -> None:
    ctypes.pythonapi.PyContext_Exit(ctypes.py_object(context))
