"""A network brought into the order of another one, modulo the permutations of its units.

Networks that differ by a permutation alone are the same function at places far apart; the barrier
between two solutions means something once the permutations are undone. Nothing is believed here:
what the search for symmetries says is tried with random permutations, and the result is compared
with b before it is handed out.

Source: S. Ainsworth, J. Hayase, S. Srinivasa, "Git Re-Basin: merging models modulo permutation
symmetries", ICLR 2023, sections 3.1 (activations) and 3.2 (weights).
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..arguments import callers_level, check_landscape, integer
from ..arrays import digest_of_all, progress_bar
from ..errors import InvalidArgument, PylandscapeError
from ..results.model_alignment import ModelAlignment
from ..runs.checkpoint import Checkpoint
from ..runs.chunks import evaluate_in_chunks
from ..runs.request import build
from ..runs.resume import resumable
from ..theta import running_statistics
from ..theta.checkpoints import fitted, tensors_of
from ..theta.snapshot import Snapshot
from .axes import fix
from .matching import Correlations, weight_matching
from .symmetries import (
    COUNTED,
    Element,
    Symmetries,
    find_symmetries,
    plain_operations,
    statistics_of,
)

if TYPE_CHECKING:
    from ..landscape import Landscape

METHODS = ("weights", "activations")


def align(
    land: Landscape,
    a: Any,
    b: Any,
    *,
    method: str = "weights",
    orders: int = 3,
    seed: int = 0,
    points: int = 25,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> ModelAlignment:
    """b with its units permuted so that it is near to a; as a function it stays what it is.

    Args:
        land: whose model both are, and whose data prove the result.
        a, b: modules, state dicts, paths of checkpoints or vectors (n,).
        method: "weights": the distance of the parameters falls, never rises; "activations": units
            that answer alike on the data come together (the distance may rise).
        orders: random orders of the classes that weight matching tries beside two fixed ones,
            until two of its starts agree.
        seed: of these.
        points: on the lines from a to b before and after, whose barriers the result has; 0 for
            none. Between models with other running statistics there are lines with
            bn="recompute" or "interpolate" alone; a note says so.
        path: HDF5 file for the result; the same call answers from it.
        progress: show a bar on stderr.

    Raises:
        InvalidArgument: another layout (says which names differ), no symmetry in the model.
        PylandscapeError: the permuted network does not give the outputs of b.
        ResumeMismatch: `path` belongs to another call.

    Warns where a and b are equal.
    """
    check_landscape(land, "align")
    if method not in METHODS:
        raise InvalidArgument(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    orders, seed = integer(orders, "orders", 0), integer(seed, "seed", 0)
    if integer(points, "points", 0) in (1, 2):
        raise InvalidArgument(f"points: expected 0 or at least 3, got {points}")
    homes, points_of = [], []
    for name, value in (("a", a), ("b", b)):
        try:
            home = land.at(value)
            point = home.point(value)
        except InvalidArgument as error:
            text = str(error)
            where = f"{name}{text.removeprefix('theta')}" if text.startswith("theta") else text
            raise type(error)(where) from error
        homes.append(home)
        points_of.append(point.clone())
    states = [_state(h, p, v) for h, p, v in zip(homes, points_of, (a, b), strict=True)]
    notes = []
    if all(torch.equal(states[0][n], states[1][n]) for n in states[0]):
        notes.append("a and b are equal: their distance is 0")
        warnings.warn(notes[-1], stacklevel=callers_level())
    request = build(
        land, "align", path is not None, a=_digest(points_of[0], states[0]),
        b=_digest(points_of[1], states[1]), method=method, orders=orders, seed=seed, points=points,
    )  # fmt: skip

    def run(kept: Checkpoint) -> ModelAlignment:
        started = time.perf_counter()
        with progress_bar(orders + 3, "align", "step", progress) as bar:
            found = _aligned(land, homes, points_of, states, method, orders, seed, bar.update)
            if points:
                _draw_lines(land, a, b, found, points, notes, request)
            bar.update()
        info = {"request": request, "notes": notes, "seconds": time.perf_counter() - started}
        found.info = {**found.info, **info}
        return found

    found = resumable(path, request, run)
    if found.model is None:  # it comes from the file
        statistics = {n: torch.from_numpy(t) for n, t in found.statistics.items()}
        found.model = _module(homes[1], torch.from_numpy(found.theta).to(points_of[1]), statistics)
    return found


def _digest(point: Tensor, state: dict[str, Tensor]) -> str:
    return digest_of_all([point, {name: state[name] for name in sorted(state)}])


def _aligned(
    land: Landscape, homes: list[Landscape], points: list[Tensor], states: list[dict[str, Tensor]],
    method: str, orders: int, seed: int, done: Callable[[], Any],
) -> ModelAlignment:  # fmt: skip
    symmetries = proven(homes[1], points[1], states[1])
    if not symmetries.classes:
        reasons = [f"{axis}: {why}" for axis, why in symmetries.fixed.items()]
        ops = f"; operations without a rule: {', '.join(symmetries.unknown)}"
        raise InvalidArgument(
            "land: expected a model with units that may change places, but all axes of its "
            f"parameters are fixed ({'; '.join(reasons[:5]) or 'inputs and outputs'})"
            + (ops if symmetries.unknown else "")
        )
    names = [e.name for e in land.layout.entries]
    weights = [{n: s[n].double() for n in names} for s in states]
    if method == "weights":
        element = weight_matching(symmetries, *weights, orders=orders, seed=seed, done=done)
    else:
        element = _activation_matching(symmetries, homes, points)
    moved = symmetries.apply(element, states[1])
    point = _point(homes[1], points[1], moved)
    home, rounding = _checked(homes[1], points[1], states[1], moved, point)
    after = {n: moved[n].double() for n in names}
    distances = [
        float(np.sqrt(sum(float(((weights[0][n] - w[n]) ** 2).sum()) for n in names)))
        for w in (weights[1], after)
    ]
    losses = homes[1].loss(points[1]), home.loss(point)
    if not np.isclose(*losses, rtol=1e-3, atol=1e-6, equal_nan=True):
        raise _unproven(f"L is {losses[1]:.6g}, of b {losses[0]:.6g}")
    permutations = {
        name: element[id(atom)]
        for c in symmetries.classes
        for name, atom in ((c.name, c.atom), *c.inner.items())
    }
    statistics = {n: moved[n].double().cpu().numpy() for n in statistics_of(home.model)}
    return ModelAlignment(
        point.double().cpu().numpy(), permutations, (distances[0], distances[1]), losses,
        symmetries.fixed, method, {"rounding": rounding, "unknown": symmetries.unknown},
        _module(home, point, moved), statistics=statistics,
    )  # fmt: skip


def _draw_lines(
    land: Landscape, a: Any, b: Any, found: ModelAlignment, points: int, notes: list[str],
    request: Mapping[str, Any],
) -> None:  # fmt: skip
    """The losses on both lines, where the landscape says what statistics there are between; ranks
    share the points."""
    try:
        ends = [
            running_statistics.point(land, value, name, needed=True)
            for name, value in (("a", a), ("b", b), ("b", found.model))
        ]
    except InvalidArgument as error:
        notes.append(f"no barriers: {error}")
        return
    alpha = np.linspace(0.0, 1.0, points)
    weights = np.zeros((2, points, 3))
    weights[:, :, 0] = 1.0 - alpha
    weights[0, :, 1] = weights[1, :, 2] = alpha
    losses = evaluate_in_chunks(
        weights.reshape(-1, 3), ("loss",),
        lambda: land.prepare(torch.stack(ends), theta=torch.zeros_like(ends[0])),
        progress=False, label="align", request=request,
    )  # fmt: skip
    found.alpha = alpha
    found.line_before, found.line = losses.reshape(2, points)


def _state(home: Landscape, point: Tensor, value: Any = None) -> dict[str, Tensor]:
    """All tensors that a permutation may move, at a point; running statistics that the landscape
    finds anew are those that the value has."""
    own = {n: p.detach().clone() for n, p in home.model.named_parameters()}
    statistics = {n: t.detach().clone() for n, t in statistics_of(home.model).items()}
    tensors = tensors_of(value, "b")
    if isinstance(tensors, Mapping):
        tensors = fitted(tensors, statistics)
        statistics |= {n: tensors[n].detach().to(t) for n, t in statistics.items() if n in tensors}
    moved = {n: t.clone() for n, t in home.moved.unflatten(point).items()}
    return own | statistics | moved


def _point(home: Landscape, point: Tensor, moved: dict[str, Tensor]) -> Tensor:
    return home.moved.flatten(moved, point.dtype, point.device)


def proven(home: Landscape, point: Tensor, state: dict[str, Tensor]) -> Symmetries:
    """The symmetries, each tried with random permutations; a class that fails becomes fixed."""
    symmetries = find_symmetries(home, point)
    want = _outputs(home, point, state)
    if not symmetries.classes or _same(want, _permuted(home, point, state, symmetries, None)):
        return symmetries
    for k, c in enumerate(symmetries.classes):
        if not _same(want, _permuted(home, point, state, symmetries, k)):
            fix(c.atom, "")
            symmetries.fixed[c.name] = "a permutation of it changes the outputs"
    symmetries.classes = [c for c in symmetries.classes if not c.atom.fixed]
    if not symmetries.classes:
        return symmetries
    if not _same(want, _permuted(home, point, state, symmetries, None)):
        raise _unproven("random permutations change its outputs together")
    return symmetries


def _permuted(
    home: Landscape, point: Tensor, state: dict[str, Tensor], of: Symmetries, only: int | None
) -> list[Tensor]:
    element: Element = of.random(seed=1)
    if only is not None:
        chosen = {id(atom) for atom in of.classes[only].members}
        element = {k: p for k, p in element.items() if k in chosen}
    moved = of.apply(element, state)
    return _outputs(home, _point(home, point, moved), moved)


def _outputs(home: Landscape, point: Tensor, state: dict[str, Tensor]) -> list[Tensor]:
    """Outputs for the first batch at a point, with these running statistics; in double precision
    where the model can be run in it."""
    model = _module(home, point, state)
    engine = home.eager
    objective = not hasattr(home.loss_spec, "reduction") and hasattr(home.loss_spec, "weights")
    batch = engine.batch(0)
    with engine.session(), torch.no_grad():
        if not objective:
            from ..engines.forward_pass import call_model

            try:
                double = Snapshot(model, torch.float64).model
                wide = batch.mapped(lambda t: t.double() if t.is_floating_point() else t)
                return _leaves(call_model(double, wide.inputs))
            except Exception:  # a model that keeps to its own precision
                return _leaves(call_model(model, batch.fresh().inputs))
        engine.move(point)
        return _leaves(engine.outputs(engine.batch(0)))


def _leaves(output: Any) -> list[Tensor]:
    from .symmetries import tensors_in

    return [t.detach().clone() for t in tensors_in(output) if t.is_floating_point()]


def _same(want: list[Tensor], got: list[Tensor]) -> bool:
    return _apart(want, got) <= (1e-8 if all(t.dtype == torch.float64 for t in want) else 1e-3)


def _apart(want: list[Tensor], got: list[Tensor]) -> float:
    """The largest difference of outputs, relative to their size."""
    if [t.shape for t in want] != [t.shape for t in got]:
        return float("inf")
    found = 0.0
    for x, y in zip(want, got, strict=True):
        x, y = x.double(), y.double()
        if not torch.equal(torch.isfinite(x), torch.isfinite(y)):
            return float("inf")
        scale = float(torch.nan_to_num(x, 0.0, 0.0, 0.0).abs().max()) if x.numel() else 0.0
        far = float(torch.nan_to_num(x - y, 0.0, 0.0, 0.0).abs().max()) if x.numel() else 0.0
        found = max(found, far / max(scale, 1e-12))
    return found


def _checked(
    home: Landscape, point: Tensor, state: dict[str, Tensor], moved: dict[str, Tensor], to: Tensor
) -> tuple[Landscape, float]:
    """The landscape of the permuted network, and how far its outputs are from those of b."""
    want, got = _outputs(home, point, state), _outputs(home, to, moved)
    if not _same(want, got):
        raise _unproven(f"its outputs differ by {_apart(want, got):.3g} of their size")
    whole = {**dict(home.model.named_buffers()), **moved}
    return home.at(whole), _apart(want, got)


def _unproven(what: str) -> PylandscapeError:
    return PylandscapeError(
        f"align: the permuted network is not the one that it was made from: {what}; nothing was "
        "changed. Please report the model: its symmetries were read wrongly"
    )


def _module(home: Landscape, point: Tensor, state: dict[str, Tensor] | None = None) -> Any:
    """A copy of the model at a point, with the running statistics of a state."""
    with home.eager.session():
        from ..theta.snapshot import Snapshot

        model = Snapshot(home.model).model
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, tensor in {**(state or {}), **home.moved.unflatten(point)}.items():
            named[name].copy_(tensor)
    return model


class _Results(TorchDispatchMode):
    """Keeps the first result of some operations, by their number."""

    def __init__(self, wanted: set[int]) -> None:
        super().__init__()
        self.wanted, self.number = wanted, 0
        self.found: dict[int, Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name.split("::")[-1].removesuffix("_") not in COUNTED:
            return result
        if self.number in self.wanted:
            first = result[0] if isinstance(result, list | tuple) else result
            self.found[self.number] = first.detach().clone()  # an operation in place may follow
        self.number += 1
        return result


def _activation_matching(
    symmetries: Symmetries, homes: list[Landscape], points: list[Tensor]
) -> Element:
    correlations = Correlations(symmetries)
    wanted = correlations.operations
    for index in range(len(homes[0].dataset.batches)):
        found = []
        for home, point in zip(homes, points, strict=True):
            with home.eager.session(), plain_operations():
                home.eager.move(point)
                batch = home.eager.batch(index)
                with _Results(wanted) as results:
                    home.eager.outputs(batch)
            if results.number != len(symmetries.names):
                raise InvalidArgument(
                    "method: activations need a model that runs the same operations for every "
                    f"batch, got {results.number} and {len(symmetries.names)}; "
                    "method='weights' does not"
                )
            found.append(results.found)
        correlations.add(*found)
    return correlations.element()
