"""The CUDA kernels wherever they can run: on a GPU, and on the CPU by emulation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from emulation_support import SHARED_LIMIT, emulated_ops
from torch import Tensor

import pylandscape as pl
from pylandscape._native import cuda_problem, ops
from pylandscape.engines.cuda import engine as engine_cuda
from pylandscape.engines.cuda.engine import CudaEngine

PROBLEM = cuda_problem()
on_gpu = pytest.mark.skipif(PROBLEM is not None, reason=PROBLEM or "")
emulated = pytest.param("emulated", id="emulated")
BACKENDS = (emulated, pytest.param("cuda", marks=on_gpu, id="cuda"))


@dataclass(frozen=True)
class Backend:
    """Ops that take tensors on ``device``."""

    ops: Any
    device: torch.device

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def engine(
        self,
        model: torch.nn.Module,
        land: pl.Landscape,
        *,
        bn: str = "eval",
        shared_limit: int = SHARED_LIMIT,
        memory: int = 1 << 30,
    ) -> CudaEngine:
        """The CUDA engine for the model of a landscape on the CPU."""
        return engine_cuda.lower(
            model,
            land.loss_spec,
            land.dataset,
            land.moved,
            land.origin,
            dtype=land.dtype,
            memory=memory,
            bn=bn,
            device=self.device,
            kernels=self.ops,
            shared_limit=shared_limit,
            instruction_set="emulated",
        )


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread: small ops on the CPU wait for each other's threads otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=BACKENDS)
def backend(request: Any) -> Backend:
    if request.param == "cuda":
        return Backend(ops, torch.device("cuda"))
    return Backend(emulated_ops(), torch.device("cpu"))


class PlainOps:
    """The ops of a Lanczos step by torch on the CPU, for what is built on them: an emulated launch
    takes milliseconds."""

    @staticmethod
    def basis_pass_(q: Tensor, source: Tensor, c: Tensor, w: Tensor) -> Tensor:
        last = q[:, q.shape[1] - c.shape[1] :].double()
        w.copy_(source.double() - torch.einsum("sk,skn->sn", c, last))
        inner = torch.einsum("smn,sn->sm", q.double(), w.double())
        return torch.cat([inner, w.double().norm(dim=1, keepdim=True)], 1)

    @staticmethod
    def row_dots(rows: Tensor, others: Tensor) -> Tensor:
        return (rows.double() * others.double()).sum(1)

    @staticmethod
    def scale_rows_(rows: Tensor, factors: Tensor) -> Tensor:
        return rows.copy_(rows.double() * factors[:, None])

    gaussian = staticmethod(ops.gaussian)
