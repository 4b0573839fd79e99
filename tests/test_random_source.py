"""One source of random numbers: by seed, kind and index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spectral_support import process

from pylandscape import eigenpairs, spectrum
from pylandscape.curvature import eigen, spectra
from pylandscape.curvature.lanczos import random_starts
from pylandscape.curvature.symmetric_operator import SymmetricOperator
from pylandscape.errors import ResumeMismatch
from pylandscape.theta import random_source
from pylandscape.theta.directions import gaussian


def test_a_probe_of_a_seed_is_none_of_the_next_seed() -> None:
    probes = [random_starts(50, 8, seed, torch.float64) for seed in (-1, 0, 1, 2, 2**64 - 2)]
    rows = torch.cat(probes)
    together = (rows @ rows.T - torch.diag((rows * rows).sum(1))).abs() / 50
    assert float(together.max()) < 0.7


def test_kinds_of_one_seed_and_its_directions_have_no_number_in_common() -> None:
    kinds = (
        random_source.STARTS, random_source.TEST_VECTORS, random_source.NOISE, random_source.SINGLE
    )  # fmt: skip
    rows = [random_source.fill(torch.empty(100), 3, kind) for kind in kinds]
    rows.append(gaussian(3, 0, 0, 100))
    for i, row in enumerate(rows):
        assert all(len(np.intersect1d(row, other)) < 3 for other in rows[:i])


def test_a_probe_depends_on_its_index_alone_and_has_the_same_numbers_in_every_dtype() -> None:
    few, many = random_starts(70, 2, 5, torch.float64), random_starts(70, 4, 5, torch.float32)
    assert torch.equal(few.float(), many[:2])
    counter = (random_source.STARTS << 56) | 1
    assert torch.equal(many[1], gaussian(5, counter, 0, 70))


def test_fresh_rows_are_the_streams_that_python_lists() -> None:
    lanczos = process(np.diag([2.0] * 6), 3, seed=4, fresh=True)  # each row is fresh
    drawn = random_source.fill(
        torch.empty(6, dtype=torch.float64), 0, random_source.FRESH_ROWS, 1 << 8
    )
    first = lanczos.basis[0, 0]
    left = drawn - (first @ drawn) * first
    torch.testing.assert_close(lanczos.basis[0, 1], left / left.norm())


@pytest.mark.parametrize(("question", "module"), [(eigenpairs, eigen), (spectrum, spectra)])
def test_an_unfinished_run_of_other_draws_is_refused(
    question: Any, module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diagonal, done = torch.arange(1.0, 41.0, dtype=torch.float64), [0]

    def product(v: torch.Tensor) -> torch.Tensor:
        done[0] += 1
        if done[0] == 5:
            raise KeyboardInterrupt
        return v * diagonal

    op = SymmetricOperator(40, product)
    with monkeypatch.context() as before:
        before.setattr(module, "SOURCE", "torch")
        with pytest.raises(KeyboardInterrupt):
            question(op, 2, path=tmp_path / "run.h5", progress=False)
    with pytest.raises(ResumeMismatch, match="random"):
        question(op, 2, path=tmp_path / "run.h5", progress=False)
