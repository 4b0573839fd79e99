"""From the command line's words to objects: pkg.mod:name, checkpoints, axes, losses."""

from __future__ import annotations

import difflib
import importlib
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidArgument, PylandscapeError

if TYPE_CHECKING:  # torch is imported where it is needed: wrong words are refused before it is
    from torch import Tensor, nn


def find(reference: str, option: str) -> Any:
    """The object that "pkg.mod:name" names; the current directory is importable.

    Raises:
        InvalidArgument: not of that form, no such module or name, or the module fails when
            imported.
    """
    module_name, colon, path = reference.partition(":")
    if not (module_name and colon and path):
        raise InvalidArgument(f"{option}: expected package.module:name, got {reference!r}")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise InvalidArgument(
                f"{option}: no module {error.name!r} on the path (the current directory is on it)"
            ) from error
        raise InvalidArgument(f"{option}: {module_name} needs {error.name!r}: {error}") from error
    except Exception as error:
        raise InvalidArgument(
            f"{option}: importing {module_name} raised {type(error).__name__}: {error}"
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            near = difflib.get_close_matches(name, dir(found), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InvalidArgument(f"{option}: {module_name} has no {name!r}{hint}")
        found = getattr(found, name)
    return found


def call(reference: str, option: str) -> Any:
    """What the factory "pkg.mod:name" returns."""
    factory = find(reference, option)
    if not callable(factory):
        return factory
    try:
        return factory()
    except PylandscapeError:
        raise
    except Exception as error:
        raise InvalidArgument(
            f"{option}: {reference}() raised {type(error).__name__}: {error}"
        ) from error


def load_model(reference: str, checkpoint: str | None, rest: bool = False) -> nn.Module:
    """The factory's model in eval mode, with the checkpoint's parameters and buffers.

    rest: the checkpoint is one of the models that a question is about, whose own check says what
    does not fit; here it only gives what all of them share.
    """
    from torch import nn

    found = find(reference, "--model")
    is_model = isinstance(found, nn.Module)
    model = found if is_model else call(reference, "--model")
    if not isinstance(model, nn.Module):
        raise InvalidArgument(
            f"--model: expected {reference}() to return a torch.nn.Module, got "
            f"{type(model).__name__}"
        )
    if checkpoint is not None:
        from ..theta.checkpoints import read_state

        state = read_state(checkpoint, "CHECKPOINTS" if rest else "--checkpoint")
        if rest:
            state = _fitting(state, model)
        load_into(model, state, checkpoint)
    return model.eval()


def _fitting(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Any]:
    """The model's own state dict, with what the state has of the same name and shape."""
    from ..theta.checkpoints import fitted

    own = model.state_dict()
    state = fitted(state, own)
    return {
        n: state[n] if n in state and getattr(v, "shape", None) == state[n].shape else v
        for n, v in own.items()
    }


def load_into(model: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    """Copy a state_dict into a model; names, but for prefixes of wrappers, and shapes must be the
    model's.

    Raises:
        InvalidArgument: lists the missing, unexpected and differently shaped names.
    """
    from torch import Tensor

    from ..theta.checkpoints import fitted, some

    own = model.state_dict()
    state = fitted(state, own)
    missing = [n for n in own if n not in state]
    extra = [n for n in state if n not in own]
    shapes = [
        f"{n}: model {tuple(v.shape)}, file {tuple(state[n].shape)}"
        for n, v in own.items()
        if n in state and isinstance(v, Tensor) and v.shape != state[n].shape
    ]
    problems = [
        f"{word} {some(names)}"
        for word, names in (("missing", missing), ("unexpected", extra), ("other shape", shapes))
        if names
    ]
    if problems:
        raise InvalidArgument(f"--checkpoint: {path} is not of this model: {'; '.join(problems)}")
    model.load_state_dict(state)


def parse_axis(text: str, option: str) -> tuple[float, float, int]:
    """(min, max, n) of "min:max:n".

    Raises:
        InvalidArgument: not three numbers, min >= max or n < 2, but for min == max and n == 1.
    """
    parts = text.split(":")
    try:
        low, high, count = float(parts[0]), float(parts[1]), int(parts[2])
        wide = math.isfinite(high - low) and low < high and count > 1
        ok = len(parts) == 3 and (wide or (low == high and count == 1))
    except (ValueError, IndexError):
        ok = False
    if not ok:
        raise InvalidArgument(
            f"{option}: expected min:max:n with min < max and n > 1, such as -1:1:51, got {text!r}"
        )
    return low, high, count


def parse_names(texts: list[str] | None) -> tuple[str, ...]:
    """Comma-separated and repeated options as one tuple; "none" is the empty one."""
    names = [n.strip() for text in texts or [] for n in text.split(",")]
    return tuple(n for n in names if n and n != "none")


def read_points(path: str, option: str) -> NDArray[np.float64]:
    """(T, 2) numbers of a .npy file, or of a text file with two columns.

    Raises:
        InvalidArgument: no such file, or something else in it.
    """
    if not Path(path).is_file():
        raise InvalidArgument(f"{option}: no file {path!r}")
    try:
        if path.endswith(".npy"):
            return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
        delimiter = "," if "," in Path(path).read_text().partition("\n")[0] else None
        return np.loadtxt(path, delimiter=delimiter, ndmin=2)
    except (ValueError, EOFError) as error:
        raise InvalidArgument(f"{option}: expected numbers (T, 2) in {path}: {error}") from error


def named(reference: str, option: str) -> Any:
    """A known name as it is, "pkg.mod:name" as the object; a Module class as its instance."""
    if ":" not in reference:
        return reference
    found = find(reference, option)
    from torch import nn

    return found() if isinstance(found, type) and issubclass(found, nn.Module) else found
