"""The exceptions of the package: one type per kind of mistake."""

from __future__ import annotations

from typing import Any


class PylandscapeError(Exception):
    """Base of every error that pylandscape raises on purpose."""


class InvalidArgument(PylandscapeError, ValueError):
    """An argument of the wrong type, shape or value."""


class NotDifferentiable(InvalidArgument):
    """A derivative was asked for of what has none, or of what torch cannot differentiate."""


class LayoutMismatch(InvalidArgument):
    """A vector or a state dict of another length or parameter layout."""


class FileFormatError(PylandscapeError, ValueError):
    """A file that is truncated, foreign or not readable."""


class ResumeMismatch(PylandscapeError, ValueError):
    """A file that does not belong to the request that wants to resume or reuse it."""


class RankFailed(PylandscapeError, RuntimeError):
    """Work of several processes that one of them stopped, or did not come to.

    Attributes:
        told: another rank has an error of its own, which says more.
    """

    def __init__(self, message: str, told: bool = False) -> None:
        super().__init__(message)
        self.told = told


class NotLowered(PylandscapeError):
    """The native engine cannot run this model, loss or data; ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnknownOp(NotLowered):
    """The captured graph holds a call that the program has no op for."""


class CudaUnavailable(PylandscapeError, RuntimeError):
    """CUDA kernels were asked for where there are none; the message says how to get them."""


def wrapping(
    error: BaseException, message: str, kind: type[PylandscapeError] = InvalidArgument
) -> PylandscapeError:
    """An error of ours about an error of the user's code or torch: an instance of both types.

    So ``except RuntimeError`` finds a RuntimeError of the user's loss. Types that cannot be joined
    give ``kind`` alone.
    """

    def initialise(self: Any, *args: Any) -> None:
        Exception.__init__(self, *args)

    def text(self: Any) -> str:  # some types have one of their own: KeyError puts it in quotes
        return message

    if isinstance(error, kind):
        return kind(message)
    try:
        own = {"__init__": initialise, "__str__": text}
        joined = type(kind.__name__, (kind, type(error)), own)
        found: PylandscapeError = joined(message)
        found.__dict__.update(getattr(error, "__dict__", {}))  # what ``except`` may read of it
    except TypeError:
        return kind(message)
    return found


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or torch says that memory ran out."""
    names = {c.__name__ for c in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
