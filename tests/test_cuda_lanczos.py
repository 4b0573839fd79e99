"""Lanczos with everything on the device: on a GPU where one is, by emulation everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuda_support import Backend, backend  # noqa: F401
from spectral_support import hilbert, loss_of_orthogonality, process, with_spectrum

import pylandscape as pl
from pylandscape import device_passes
from pylandscape.device_passes import DevicePasses
from pylandscape.errors import InvalidArgument
from pylandscape.lanczos import Lanczos, random_starts
from pylandscape.operators import SymmetricOperator

ORTHOGONAL = 50  # eps, methods.md 10
CPU = torch.device("cpu")


@dataclass(frozen=True)
class There:
    """The device under test."""

    backend: Backend

    @property
    def device(self) -> torch.device:
        return self.backend.device

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Its tensors are taken for a GPU's."""
        own = device_passes.device_kernels
        with pytest.MonkeyPatch.context() as patch:
            if not self.backend.is_gpu:
                patch.setattr(device_passes, "device_kernels", lambda _: self.backend.ops)
            yield
        assert device_passes.device_kernels is own

    def operator(self, matrix: np.ndarray, dtype: torch.dtype = torch.float64) -> SymmetricOperator:
        """Of a dense matrix; products in float64 of vectors in dtype."""
        a = torch.as_tensor(matrix, device=self.device)
        return SymmetricOperator(len(a), lambda v: v.double() @ a, dtype=dtype, device=self.device)

    def lanczos(
        self,
        matrix: np.ndarray,
        steps: int,
        *,
        starts: int = 1,
        dtype: torch.dtype = torch.float64,
        **options: Any,
    ) -> Lanczos:
        """As `spectral_support.process`, from the same starts."""
        given = random_starts(len(matrix), starts, 0, dtype)
        with self.in_use():
            lanczos = Lanczos(self.operator(matrix, dtype), given, steps, **options)
            lanczos.run()
        assert lanczos._passes is not None
        return lanczos


@pytest.fixture
def there(backend: Backend) -> There:  # noqa: F811
    return There(backend)


def lost(lanczos: Lanczos, start: int = 0) -> float:
    """||Q Q^T - I|| in eps of the basis' dtype."""
    lanczos.basis = lanczos.basis.cpu()
    return loss_of_orthogonality(lanczos, start)


MATRICES = {
    "random": lambda: (lambda a: a + a.T)(np.random.default_rng(1).standard_normal((90, 90))),
    "hilbert": lambda: hilbert(12),
    "decaying": lambda: with_spectrum(np.logspace(-12, 0, 60)),
    "one": lambda: np.array([[4.0]]),
}


@pytest.mark.parametrize("mode", ["full", "partial", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MATRICES)
def test_alpha_and_beta_are_the_cpu_drivers(
    there: There, name: str, dtype: torch.dtype, mode: str
) -> None:
    """To rounding for as many steps as rounding does not grow, then by what T is for."""
    matrix = MATRICES[name]()
    options: dict[str, Any] = {"starts": 2, "dtype": dtype, "reorthogonalize": mode}
    want = process(matrix, len(matrix), **options)
    got = there.lanczos(matrix, len(matrix), **options)
    eps, scale = torch.finfo(dtype).eps, np.linalg.norm(matrix, 2)
    for i in range(2):
        assert got.outcome(i) == want.outcome(i)
        assert got.steps(i) == want.steps(i)
        for mine, other in zip(got.state(i)[:2], want.state(i)[:2], strict=True):
            np.testing.assert_allclose(mine[:4], other[:4], atol=20 * eps * scale)
        if mode == "full":
            assert lost(got, i) <= ORTHOGONAL
            exact = np.linalg.eigvalsh(matrix)
            assert np.abs(got.ritz(i)[0] - exact).max() <= 50 * eps * scale
