"""Loss, gradient and Hessian of many points by torch alone, in float64: works for every model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...errors import out_of_memory, wrapping
from ...theta.running_statistics import KIND
from ..eager import TorchEngine

if TYPE_CHECKING:
    from ..contract import Answered, Losses

_BYTES = 256 << 20  # of the Hessians of the points that are vectorised together
_MAX_POINTS = 512
_AGREEMENT = 1e-9  # of the largest element: torch.func against the module moved in place
_ASYMMETRY = 1e-9  # of a Hessian's largest entry, beyond which torch.func is wrong


class _NotSymmetricError(Exception):
    pass


class TorchPoints:
    """A `PointEngine` of every landscape, by a float64 copy of its model.

    Points are vectorised by torch.func where the model allows it, otherwise they run one by one
    through double backward. Batch norm as in ``Landscape.gradient``. A model that keeps to its own
    precision is computed in that; tensors that its code makes are float64 (``torch.zeros``).
    """

    reason: str | None = None

    def __init__(self, land: Answered) -> None:
        self.n, self.device = land.n_params, land.device
        bn = land.bn if land.has_batchnorm else "eval"

        def made(dtype: torch.dtype | None) -> TorchEngine:
            return TorchEngine(
                land.model,
                land.loss_spec,
                land.dataset.batches,
                land.layout,
                dtype=dtype,
                device=land.device,
                bn="eval" if bn == "interpolate" else bn,
                autocast=land.autocast,
            )

        assert all(entry.kind != KIND for entry in land.layout.entries)
        self._engine, self._wide = made(torch.float64), True
        self.vectorised = bn in ("eval", "interpolate")
        try:
            with self._precision():
                self._engine.first_loss()
        except Exception as error:
            if out_of_memory(error):
                raise
            self._engine, self._wide, self.vectorised = made(None), False, False
            self.reason = f"it does not run in float64 ({type(error).__name__}: {error})"
        self._compared: set[int] = set()  # widths whose first point agreed with the engine's

    def gradients(self, points: np.ndarray) -> tuple[Losses, np.ndarray]:
        """Losses (p,) and gradients (p, n) of points (p, n)."""
        with self._precision():
            return self._gradients(points)

    def _gradients(self, points: np.ndarray) -> tuple[Losses, np.ndarray]:
        value = torch.func.grad_and_value(self._engine.functional_loss)

        def both(p: Tensor) -> tuple[Tensor, ...]:
            gradient, loss = torch.func.vmap(value)(p)
            return loss, gradient

        losses, rows = _marked(points, self._each(points, 1, both, self._gradient))
        return losses, rows

    def hessians(self, points: np.ndarray) -> tuple[Losses, np.ndarray, np.ndarray]:
        """The same, and Hessians (p, n, n), exactly symmetric."""
        with self._precision():
            return self._hessians(points)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Tensors that code makes without a dtype are float64, where the copy is."""
        before = torch.get_default_dtype()
        try:
            if self._wide:
                torch.set_default_dtype(torch.float64)
            yield
        finally:
            torch.set_default_dtype(before)

    def _hessians(self, points: np.ndarray) -> tuple[Losses, np.ndarray, np.ndarray]:
        value = torch.func.grad_and_value(self._engine.functional_loss)
        # Backward twice, as `_hessian` and users take it: forward mode differs at some kinks.
        hessian = torch.func.jacrev(torch.func.jacrev(self._engine.functional_loss))

        def all_three(p: Tensor) -> tuple[Tensor, ...]:
            gradient, loss = torch.func.vmap(value)(p)
            matrices = torch.func.vmap(hessian)(p)
            apart = (matrices - matrices.mT).abs().amax((1, 2))
            if bool((apart > _ASYMMETRY * matrices.abs().amax((1, 2))).any()):
                raise _NotSymmetricError
            return loss, gradient, matrices

        losses, rows, matrices = self._each(points, self.n, all_three, self._hessian)
        found = losses, rows, (matrices + matrices.mT) / 2
        losses_, rows_, matrices_ = _marked(points, found)
        return losses_, rows_, matrices_

    def spectra(self, points: np.ndarray) -> None:
        """None: the Hessians must be asked for."""

    def _each(
        self,
        points: np.ndarray,
        width: int,
        vectorised: Callable[[Tensor], tuple[Tensor, ...]],
        single: Callable[[Tensor], tuple[Tensor, ...]],
    ) -> tuple[Tensor, ...]:
        """The results of chunks of points, concatenated."""
        p = torch.from_numpy(points).to(self.device)
        size = max(1, min(_MAX_POINTS, _BYTES // (16 * self.n * width)))
        parts: list[tuple[Tensor, ...]] = []
        for chunk in p.split(size) if len(p) else (p[:0],):
            if self.vectorised and len(chunk):
                try:
                    found = self._vectorise(chunk, vectorised)
                    if width in self._compared or _agree(found, single(chunk[0])):
                        self._compared.add(width)
                        parts.append(found)
                        continue
                except Exception as error:  # what torch.func cannot follow runs point by point
                    if out_of_memory(error):
                        raise wrapping(
                            error,
                            f"points: not enough memory for {len(chunk)} of them at once; ask for "
                            f"fewer points ({type(error).__name__}: {error})",
                        ) from error
                self.vectorised = False
            rows = [single(point) for point in chunk]
            shapes = ((), (self.n,), (self.n, self.n))[: 2 + (width > 1)]
            parts.append(
                tuple(torch.stack(column).cpu() for column in zip(*rows, strict=True))
                if rows
                else tuple(torch.empty(0, *s, dtype=torch.float64) for s in shapes)
            )
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def _vectorise(
        self, chunk: Tensor, vectorised: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        with self._engine.session():
            self._engine.move(chunk[0])
            with torch.enable_grad():
                return tuple(t.detach().cpu() for t in vectorised(chunk))

    def _gradient(self, point: Tensor) -> tuple[Tensor, ...]:
        loss = self._engine.prepare_points(("loss",))(point[None])["loss"]
        return torch.tensor(loss[0], dtype=torch.float64), self._engine.gradient(point).double()

    def _hessian(self, point: Tensor) -> tuple[Tensor, ...]:
        identity = torch.eye(self.n, dtype=self._engine.dtype, device=self.device)
        return *self._gradient(point), self._engine.product("hessian", point, identity).double()


def _marked(points: np.ndarray, found: tuple[Tensor, ...]) -> list[np.ndarray]:
    """The results as arrays, with NaN where a point or its loss is not finite."""
    arrays = [t.numpy() for t in found]
    bad = ~(np.isfinite(points).all(axis=1) & np.isfinite(arrays[0]))
    arrays[0][np.isnan(points).any(axis=1)] = np.nan
    for result in arrays[1:]:
        result[bad] = np.nan
    return arrays


def _agree(found: tuple[Tensor, ...], point: tuple[Tensor, ...]) -> bool:
    """Whether the first of the vectorised points is what the module itself gives there."""
    for rows, want in zip(found, point, strict=True):
        want = want.cpu()
        scale = max(float(want.abs().max()), 1e-300) if want.numel() else 1.0
        if not torch.allclose(rows[0], want, rtol=0, atol=_AGREEMENT * scale, equal_nan=True):
            return False
    return True
