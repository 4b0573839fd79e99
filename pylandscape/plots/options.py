"""What callers write to pictures, checked before anything is drawn: one error for an option that
is not there, with its nearest names, or for a value of another type than the signature says.
"""

from __future__ import annotations

import functools
import inspect
import numbers
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ..arguments import near
from ..errors import InvalidArgument
from .style import check_figsize

P = ParamSpec("P")
R = TypeVar("R")

AXES = ("ax", "axes")


def picture(function: Callable[P, R]) -> Callable[P, R]:
    """A function that draws, with its options checked by their names and annotations.

    Raises:
        InvalidArgument: an unknown option; a value of another type than the annotation says, a
            colour map that matplotlib does not have, a wrong `figsize`, what is no Axes.
    """
    signature = inspect.signature(function)
    known = list(signature.parameters.values())
    named = [p.name for p in known if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)][1:]
    free = any(p.kind == p.VAR_KEYWORD for p in known)
    name = function.__name__

    @functools.wraps(function)
    def checked(*arguments: P.args, **options: P.kwargs) -> R:
        for option in () if free else options:
            if option not in signature.parameters:
                raise InvalidArgument(unknown_option(option, named, name))
        try:
            given = signature.bind(*arguments, **options)
        except TypeError as error:  # too many without a name, or one twice
            raise InvalidArgument(f"{name}: {error}; its options: {', '.join(named)}") from None
        for option, value in given.arguments.items():
            parameter = signature.parameters[option]
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                given.arguments[option] = checked_value(option, value, str(parameter.annotation))
        return function(*given.args, **given.kwargs)

    return checked


def unknown_option(option: str, known: Iterable[str], name: str) -> str:
    """What an error says of an option that a function does not take."""
    known = [*known]
    meant = near(option, known, 0.55) or "."
    return f"{option}: {name} has no such option{meant} Its options: {', '.join(known)}"


def checked_value(name: str, value: Any, annotation: str) -> Any:
    """The value as the function takes it.

    Args:
        annotation: of the signature, such as "float | None"; a type that is not in TYPES is checked
            by the function itself, and so are numbers and words that have to fit each other.
    """
    if value is None and ("None" in annotation or annotation == "Any"):
        return None
    if name in AXES:
        return _checked_axes(name, value)
    if name == "figsize":
        return check_figsize(value)
    if name == "cmap":
        return _checked_map(value)
    parts = [part.strip() for part in annotation.split("|") if part.strip() != "None"]
    if not parts or any(part not in TYPES for part in parts):
        return value
    for part in parts:
        fits, _ = TYPES[part]
        if fits(value):
            several = part == "Sequence[str]"
            return [str(each) for each in value] if several else value
    expected = " or ".join(dict.fromkeys(TYPES[part][1] for part in parts))
    raise InvalidArgument(f"{name}: expected {expected}, got {reprlib.repr(value)}")


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _is_number(value: Any) -> bool:
    if isinstance(value, str) or _is_flag(value) or np.ndim(value):
        return False
    known = isinstance(value, numbers.Real) or hasattr(value, "__float__")
    return known and bool(np.isfinite(float(value)))


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not _is_flag(value)


def _is_array(value: Any) -> bool:
    try:
        found = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return found.dtype.kind in "fiu" and bool(np.isfinite(found).all())


def _is_several(value: Any) -> bool:
    return not isinstance(value, str | bytes) and hasattr(value, "__iter__") and hasattr(
        value, "__len__"
    )  # fmt: skip


# Of annotations: what fits, and how an error calls it.
TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bool": (_is_flag, "True or False"),
    "float": (_is_number, "a finite number"),
    "int": (_is_integer, "an integer"),
    "str": (lambda value: isinstance(value, str), "a text"),
    "Sequence[str]": (  # a text is one of letters
        lambda value: isinstance(value, str) or _is_several(value),
        "a sequence of texts",
    ),
    "Sequence[float]": (_is_several, "numbers"),
    "Sequence[int]": (_is_several, "a sequence of integers"),
    "ArrayLike": (_is_array, "finite numbers"),
    "Array": (_is_several, "numbers"),
    "tuple[float, float]": (
        lambda value: _is_several(value) and len(value) == 2 and all(map(_is_number, value)),
        "two numbers",
    ),
}


def _checked_axes(name: str, value: Any) -> Any:
    """Axes of matplotlib, one or several."""
    several = np.ravel(np.asarray(value, dtype=object)) if name == "axes" else [value]
    for each in several:
        if not (hasattr(each, "figure") and hasattr(each, "set_title")):
            raise InvalidArgument(
                f"{name}: expected Axes of matplotlib, got {reprlib.repr(value)}"
            )  # fmt: skip
    return value


def _checked_map(value: Any) -> Any:
    """A colour map by its name or as an object of matplotlib."""
    import matplotlib as mpl
    from matplotlib.colors import Colormap

    if isinstance(value, Colormap):
        return value
    if not isinstance(value, str):
        raise InvalidArgument(
            f"cmap: expected the name of a colour map or a Colormap, got {reprlib.repr(value)}"
        )
    if value not in mpl.colormaps:
        meant = near(value, mpl.colormaps) or ";"
        raise InvalidArgument(
            f"cmap: matplotlib has no colour map {value!r}{meant} list(matplotlib.colormaps) names "
            "them all, 'viridis' and 'cividis' are safe for colour-blind readers"
        )
    return value
