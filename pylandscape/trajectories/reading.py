"""`trajectory`: whatever people have of a run, as a Trajectory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from ..errors import InvalidArgument
from ..theta.checkpoints import fitted, read_state, series, some, state_in, step_of
from ..theta.layout import ParameterLayout
from . import log
from .base import Trajectory, layout_of, of_points, of_states, state_of
from .store import of_file, of_log

if TYPE_CHECKING:
    from ..landscape import Landscape


def trajectory(
    source: Any, like: Landscape | nn.Module | None = None, *, steps: Any = None,
    run: int | None = None,
) -> Trajectory:  # fmt: skip
    """The points of a run, in order.

    Args:
        source: a recording of `Recorder` (finished or not), a pattern ("checkpoints/*.pt") or
            folder of checkpoints (.pt, .pth, .ckpt, .bin, .safetensors; read without executing
            anything in them; numbers in the names give the order), or a sequence of paths,
            modules, state dicts or vectors (n,), or an array (T, n).
        like: a landscape or module whose parameters, in its order, make up theta. Default: the
            first state's floating-point tensors without running statistics. Needed for vectors,
            and where a model has other floating-point buffers.
        steps: (T,) integers; default those recorded, or the last number in the files' names where
            these increase, else 0 .. T - 1.
        run: which one of a recording of several runs (`train`), counted from 0.

    Raises:
        InvalidArgument: nothing there, a recording of several runs without ``run``, a state of
            another model (it says which names are missing and which are left over), vectors
            without ``like``.
        FileFormatError: a damaged recording.
    """
    layout = _layout(like)
    if isinstance(source, Trajectory):
        return source if steps is None else _with_steps(source, steps)
    if isinstance(source, str | os.PathLike):
        found = _recording(Path(source), run)
        if found is not None:
            found = _as(found, layout, source)
            return found if steps is None else _with_steps(found, steps)
        source = series(source, "trajectory")
    if run is not None:
        raise InvalidArgument("run: expected with a recording of several runs, got another source")
    if hasattr(source, "shape") and getattr(source, "ndim", 0) == 2:
        if layout is None:
            raise _needs_like("an array")
        return of_points(source, layout, steps=steps)
    if isinstance(source, Mapping | nn.Module | Tensor) or not isinstance(source, Iterable):
        raise InvalidArgument(
            "trajectory: expected a recording, a pattern, a folder, or a sequence of checkpoints, "
            f"modules, state dicts or vectors, got {type(source).__name__}"
        )
    return _of_items(list(source), layout, steps)


def _of_items(items: list[Any], layout: ParameterLayout | None, steps: Any) -> Trajectory:
    if not items:
        raise InvalidArgument("trajectory: expected at least one point, got none")
    if all(isinstance(x, Tensor | np.ndarray) and x.ndim == 1 for x in items):
        if layout is None:
            raise _needs_like("vectors")
        rows = [x.detach().cpu().numpy() if isinstance(x, Tensor) else x for x in items]
        if any(len(row) != layout.n for row in rows):
            wrong = next(len(row) for row in rows if len(row) != layout.n)
            raise InvalidArgument(
                f"trajectory: expected vectors of {layout.n} parameters, got one of {wrong}"
            )
        return of_points(np.stack(rows), layout, steps=steps)
    states, names = [], []
    for k, item in enumerate(items):
        if isinstance(item, str | os.PathLike):
            names.append(str(item))
            states.append(read_state(item, "trajectory", mapped=True))
        elif isinstance(item, nn.Module):
            layout = layout or ParameterLayout.of(item)
            names.append(f"module {k}")
            states.append(state_of(item))
        elif isinstance(item, Mapping):
            names.append(f"state {k}")
            own = state_in(item)
            states.append({n: v for n, v in own.items() if isinstance(v, Tensor)})
        else:
            raise InvalidArgument(
                f"trajectory: expected paths, modules, state dicts or vectors, got "
                f"{type(item).__name__} at {k}"
            )
    if steps is None and all(isinstance(x, str | os.PathLike) for x in items):
        numbers = [step_of(Path(x)) for x in items]
        known = [n for n in numbers if n is not None]
        if len(known) == len(items) and all(np.diff(known) > 0):
            steps = known
    return of_states(states, layout or layout_of(states[0]), names, steps=steps)


def _recording(path: Path, run: int | None) -> Trajectory | None:
    """The recording at ``path``, or the one that goes on beside it; None if it is neither."""
    beside = path.with_name(path.name + log.SUFFIX)
    if beside.is_file():  # a finished file that goes on is in it
        return of_log(beside, run)
    if not path.is_file():
        return None
    if log.is_log(path):
        return of_log(path, run)
    with open(path, "rb") as file:
        is_hdf5 = file.read(8) == b"\x89HDF\r\n\x1a\n"
    return of_file(path, run) if is_hdf5 else None


def _layout(like: Any) -> ParameterLayout | None:
    if like is None:
        return None
    if isinstance(like, nn.Module):
        return ParameterLayout.of(like)
    found = getattr(like, "layout", None)
    if not isinstance(found, ParameterLayout):
        raise InvalidArgument(f"like: expected a landscape or module, got {type(like).__name__}")
    return found


def _as(found: Trajectory, wanted: ParameterLayout | None, where: Any) -> Trajectory:
    """The recording with the names of the wanted layout, which those of a module that holds or
    wraps the model end in (Lightning, torch.compile, DataParallel). InvalidArgument says what is
    missing."""
    if wanted is None or wanted.digest == found.layout.digest:
        return found
    shapes = {e.name: e.shape for e in found.layout.entries}
    known = [*shapes, *(name for name in found[0] if name not in shapes)]
    names = {old: new for new, old in fitted({k: k for k in known}, wanted.aliases).items()}
    own = [(names[name], shape) for name, shape in shapes.items()]
    if own == [(e.name, e.shape) for e in wanted.entries]:
        return found.renamed(wanted, names)
    there, needed = dict(own), {e.name: e.shape for e in wanted.entries}
    missing = [name for name in needed if name not in there]
    left = [name for name in there if name not in needed]
    other = [f"{k} {there[k]} for {v}" for k, v in needed.items() if there.get(k, v) != v]
    what = [f"missing {some(missing)}"] if missing else []
    what += [f"left over {some(left)}"] if left else []
    what += [f"other shapes: {some(other)}"] if other else []
    raise InvalidArgument(
        f"trajectory: {where} is not of this model: {'; '.join(what) or 'another order of names'}"
    )


def _with_steps(found: Trajectory, steps: Any) -> Trajectory:
    again = found[:]
    return Trajectory(
        again._source, again.layout, steps=steps, metrics=again.metrics, info=again.info,
        rows=again._rows,
    )  # fmt: skip


def _needs_like(what: str) -> InvalidArgument:
    return InvalidArgument(
        f"like: expected the landscape or module whose parameters {what} are, got none"
    )
