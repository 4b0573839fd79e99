"""The exceptions of the package: one type per kind of mistake."""

from __future__ import annotations


class PylandscapeError(Exception):
    """Base of every error that pylandscape raises on purpose."""


class InvalidArgument(PylandscapeError, ValueError):
    """An argument of the wrong type, shape or value."""


class LayoutMismatch(InvalidArgument):
    """A vector or a state dict of another length or parameter layout."""


class FileFormatError(PylandscapeError, ValueError):
    """A file that is truncated, foreign or not readable."""


class ResumeMismatch(PylandscapeError, ValueError):
    """A file that does not belong to the request that wants to resume or reuse it."""


class NotLowered(PylandscapeError):
    """The native engine cannot run this model, loss or data; ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnknownOp(NotLowered):
    """The captured graph holds a call that the program has no op for."""


class CudaUnavailable(PylandscapeError, RuntimeError):
    """CUDA kernels were asked for where there are none; the message says how to get them."""
