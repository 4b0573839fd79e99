"""Curves of low loss between two models (Garipov et al. 2018, "Loss surfaces, mode connectivity,
and fast ensembling of DNNs").

The free points C_i of phi(t) = sum_i w_i(t) V_i are trained on E_{t ~ U[0, 1]} L(phi(t)), whose
gradient is E w_i(t) grad L(phi(t)). The t of a step are one from each of equal parts of [0, 1].
"""

from __future__ import annotations

import os
import time
import warnings
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..arguments import callers_level, check_landscape, integer
from ..arrays import Array, digest, progress_bar
from ..engines.contract import Rule
from ..engines.training import CurveSlopes
from ..engines.update_rules import apply
from ..errors import InvalidArgument, NotLowered
from ..ranks import by_itself, current, in_step, owns_files
from ..results.mode_connection import KINDS, ModeConnection, curve_weights
from ..results.surface import Surface
from ..runs.checkpoint import Checkpoint
from ..runs.chunks import evaluate_in_chunks
from ..runs.request import build
from ..runs.resume import resumable
from ..surfaces.grids import plane
from ..theta import running_statistics

if TYPE_CHECKING:
    from ..landscape import Landscape

_ADAM = Rule("adam")
_MARGIN = 0.2  # of a plane around what lies in it
_DRAWN = 101  # points of a drawn curve


def connect(
    land: Landscape,
    a: Any,
    b: Any,
    *,
    kind: str = "bezier",
    bends: int = 1,
    steps: int = 500,
    lr: float = 0.01,
    samples: int = 4,
    points: int = 25,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> ModeConnection:
    """Train a curve of low loss from model a to model b, and compare it with the straight line.

    The whole data of the landscape are used in every step; for mini-batches, train on a landscape
    of a part of the data and ask `land.losses` along the curve. With bn="recompute" the running
    statistics are found anew at every t, in training and in the result; gradients hold them fixed.

    Args:
        a, b: the ends: modules, state dicts, checkpoints or vectors (n,). They stay bitwise.
        kind: "bezier", of degree bends + 1, or "polychain", of bends + 1 straight segments.
        bends: trained points, which start evenly on the straight line; at least 1.
        steps: of Adam, at a rate that falls to 0 along half a cosine from ``lr``; 0 trains nothing
            and gives the straight line.
        samples: how many t a step averages over.
        points: at which the result has the loss, ends included; at least 3.
        seed: of the t.
        path: HDF5 file for the result; a run that was stopped goes on from what lies beside it.
        progress: show a bar on stderr.

    Raises:
        InvalidArgument: an unknown kind, bends < 1, models of another layout (which names differ),
            other running statistics where they stay.
        NotDifferentiable: a loss without derivatives.
        ResumeMismatch: `path` belongs to another call.

    Warns where a and b are equal (there is nothing to train and both barriers are 0), and where
    bn="recompute" finds no batch norm.
    """
    check_landscape(land, "connect")
    if kind not in KINDS:
        raise InvalidArgument(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    bends, steps = integer(bends, "bends", 1), integer(steps, "steps", 0)
    samples, points = integer(samples, "samples", 1), integer(points, "points", 3)
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not 0.0 < lr < np.inf:
        raise InvalidArgument(f"lr: expected a positive number, got {lr!r}")
    seed = integer(seed, "seed", 0)
    first, last = (
        running_statistics.point(land, model, name, needed=True)
        for model, name in ((a, "a"), (b, "b"))
    )
    equal = torch.equal(first, last)
    notes = running_statistics.nothing_recomputed(land)
    if equal:
        notes.append("a and b are equal: the barrier is 0 and there is nothing to train")
    for note in notes:
        warnings.warn(note, stacklevel=callers_level())
    if steps == 0:
        notes.append("steps=0 trains nothing: the curve is the straight line from a to b")
    request = build(
        land, "connect", path is not None, a=digest(first), b=digest(last), curve=kind,
        bends=bends, steps=steps, lr=float(lr), samples=samples, points=points, seed=seed,
    )  # fmt: skip

    def run(kept: Checkpoint) -> ModeConnection:
        started = time.perf_counter()
        training = _Training(land, first, last, kind, bends, in_step(request))
        history = training.run(0 if equal else steps, lr, samples, seed, kept, progress)
        t = np.linspace(0.0, 1.0, points)
        vertices = torch.stack([first, *training.free.to(first), last])

        def losses(of: Tensor, weights: Array) -> Array:
            return evaluate_in_chunks(
                weights, ("loss",), lambda: land.prepare(of, theta=torch.zeros_like(first)),
                progress=False, label="connect", request=request,
            )[:, 0]  # fmt: skip

        values = losses(vertices, curve_weights(kind, bends, t))
        line = losses(torch.stack([first, last]), curve_weights("polychain", 0, t))
        line[[0, -1]] = values[[0, -1]]
        if equal:  # one point: what differs is the rounding of its weights
            values[:] = line[:] = values[0]
        info = {"request": request, "notes": notes, "seconds": time.perf_counter() - started}
        return ModeConnection(
            vertices.cpu().numpy(), t, values, line, history, kind, land.n_params, info
        )

    found = resumable(path, request, run)
    found.planes = partial(connection_plane, land)  # type: ignore[misc]
    return found


class _Training:
    """Adam on the free points, in float64."""

    def __init__(
        self, land: Landscape, first: Tensor, last: Tensor, kind: str, bends: int,
        together: bool = False,
    ) -> None:  # fmt: skip
        """together: every gradient is of all ranks, which share out the samples."""
        self.land, self.kind, self.bends, self.together = land, kind, bends, together
        self.ends = torch.stack([first, last]).double()
        share = torch.arange(1, bends + 1, dtype=torch.float64, device=first.device)[:, None]
        share = share / (bends + 1)
        self.free = (1.0 - share) * self.ends[0] + share * self.ends[1]
        self.mean, self.square = torch.zeros_like(self.free), torch.zeros_like(self.free)
        self.slopes: CurveSlopes | None = None  # losses and gradients of all t at once
        if land.moved.n == land.n_params:
            with suppress(NotLowered):
                self.slopes = CurveSlopes(land, self.ends)

    def run(
        self, steps: int, lr: float, samples: int, seed: int, kept: Checkpoint, progress: bool
    ) -> Array:
        """(steps,) mean losses; takes up what is kept."""
        history, done = np.full(steps, np.nan), 0
        if (before := kept.load()) is not None:
            history, done = before["history"], int(before["done"])
            for name in ("free", "mean", "square"):
                getattr(self, name).copy_(torch.from_numpy(before[name]))

        def save() -> None:
            arrays = {name: getattr(self, name) for name in ("free", "mean", "square")}
            numbers = {name: value.cpu().numpy() for name, value in arrays.items()}
            kept.save({**numbers, "history": history, "done": np.array(done)})

        with progress_bar(steps, "connect", "step", progress, done) as bar:
            try:
                for k in range(done, steps):
                    u = np.random.default_rng([seed, k]).random(samples)
                    t = (np.arange(samples) + u) / samples
                    history[k], slope = self._slope(t)
                    rate = 0.5 * lr * (1.0 + np.cos(np.pi * k / steps))
                    apply(_ADAM, self.free, slope, (self.mean, self.square), k + 1, rate)
                    done = k + 1
                    bar.update()
                    if kept.due:
                        save()
            except BaseException:
                if done:
                    save()
                raise
        return history

    def _slope(self, t: Array) -> tuple[float, Tensor]:
        """The mean of L over t, and its gradient in the free points (bends, n)."""
        weights = torch.from_numpy(curve_weights(self.kind, self.bends, t)).to(self.free)
        if self.slopes is not None:
            values, slope = self.slopes(weights, self.free)
            return float(values.mean()), slope / len(t)
        vertices = torch.cat([self.ends[:1], self.free, self.ends[1:]])
        losses, gradients = self._at((weights @ vertices).to(self.land.dtype))
        slope = torch.zeros_like(self.free)
        slope[:, : self.land.n_params] = weights[:, 1:-1].T @ gradients.to(slope) / len(t)
        return float(losses.mean()), slope

    def _at(self, rows: Tensor) -> tuple[Array, Tensor]:
        """Losses (p,) and gradients (p, n) at points; each rank takes every size-th one."""
        ranks = None if self.together or len(rows) == 1 else current()
        if ranks is None:
            gradients = torch.stack([self.land.gradient(row) for row in rows])
            return np.asarray(self.land.losses(points=rows)), gradients
        with ranks.call("a step of connect", {}) as call:
            own = rows[ranks.rank :: ranks.size]
            found = [np.empty(0), np.empty((0, self.land.n_params))]
            if len(own):
                with by_itself():
                    slopes = torch.stack([self.land.gradient(row) for row in own])
                    found = [np.asarray(self.land.losses(points=own)), slopes.cpu().numpy()]
            losses, whole = np.empty(len(rows)), np.empty((len(rows), self.land.n_params))
            for rank, (values, part) in enumerate(call.exchange(found)):
                losses[rank :: ranks.size], whole[rank :: ranks.size] = values, part
        return losses, torch.from_numpy(whole).to(rows.device)


def connection_plane(
    land: Landscape,
    connection: ModeConnection,
    points: int = 41,
    *,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Surface:
    """L in the plane through a, b and the middle bend, with curve and straight line drawn on it.

    The first axis points from a to b; both have norm 1, so that distances are those of parameter
    space. A curve of one bend lies in this plane; of others the picture shows the projection.

    Raises:
        InvalidArgument: another model's connection; one whose bends lie on its line.
    """
    check_landscape(land, "connection_plane")
    if connection.vertices.shape[1] != land.moved.n:
        raise InvalidArgument(
            f"connection: expected one of {land.moved.n} numbers a point, got "
            f"{connection.vertices.shape[1]}"
        )
    vertices = torch.from_numpy(connection.vertices).double()
    steps = vertices - vertices[0]
    n = land.n_params
    right = steps[-1] / steps[-1, :n].norm()
    bend = steps[len(steps) // 2]
    up = bend - (bend[:n] @ right[:n]) * right
    size = float(up[:n].norm())
    if not size > 1e-6 * float(bend[:n].norm()):
        raise InvalidArgument(
            "connection: expected bends off the straight line, got none (equal ends, or no training"
            " step)"
        )
    up = up / size
    flat = (steps[:, :n] @ torch.stack([right[:n], up[:n]]).T).numpy()
    curve = curve_weights(connection.kind, len(flat) - 2, np.linspace(0, 1, _DRAWN)) @ flat
    axes = []
    for values in np.concatenate([flat, curve]).T:
        room = _MARGIN * max(np.ptp(values), 0.25 * np.ptp(flat[:, 0]))
        axes.append((values.min() - room, values.max() + room, points))
    surface = plane(
        land, right, up, *axes, theta=vertices[0].to(land.dtype), path=path, progress=progress
    )
    names = ["a", *(f"bend {i}" for i in range(1, len(flat) - 1)), "b"]
    if len(flat) == 3:
        names[1] = "bend"
    surface.info["marks"] = {"names": names, "points": flat.tolist()}
    surface.info["paths"] = {"curve": curve.tolist(), "line": flat[[0, -1]].tolist()}
    if path is not None and owns_files():
        surface.save(path)
    return surface
