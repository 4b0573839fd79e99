"""0.0.2's function; the package's docstring says where it differs from the original."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...curvature.eigen import eigenpairs
from ...curvature.operators import as_operator
from ...curvature.symmetric_operator import SymmetricOperator
from ...errors import InvalidArgument
from ...landscape import Landscape
from .. import _current as current
from .operators.base import sizes_differ
from .param_utils import select_parameters

VERSIONS = ("0.0.2",)
OPTIONS: dict[str, dict[str, Any]] = {  # what the original's modes take, with their defaults
    "power_iter": {
        "power_iter_steps": 20, "power_iter_err_threshold": 1e-4, "momentum": 0.0,
        "init_vec": None, "to_numpy": True,
    },
    "lanczos": {
        "which": "LM", "max_steps": 20, "tol": 1e-6, "num_lanczos_vectors": None,
        "init_vec": None,
    },
}  # fmt: skip


def compute_hessian_eigenthings(
    model: nn.Module,
    dataloader: Iterable[Any],
    loss: Any,
    num_eigenthings: int = 10,
    full_dataset: bool = True,
    mode: str = "power_iter",
    use_gpu: bool = True,
    fp16: bool = False,
    max_possible_gpu_samples: int = 2**16,
    *,
    compat: str | None = None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Eigenvalues (k,) and eigenvectors (k, n) of the Hessian of ``loss(model(x), y)``.

    Args:
        full_dataset: False: the first batch alone.
        mode: "power_iter": by falling magnitude, to `power_iter_err_threshold`; "lanczos": those
            that `which` says ("LM", "LA", "SA", "BE"), ascending, to `tol`.
        use_gpu: compute on the current CUDA device; the CPU, with a warning, where there is none.
        fp16: not taken: half precision has no place in second derivatives here.
        max_possible_gpu_samples: not needed; batches are cut as memory asks for.
        compat: "0.0.2" for the original's deflated power iteration and mean over batches.
        kwargs: the mode's own, as in the original (to_numpy=False gives tensors).
            power_iter_steps, or max_steps and num_lanczos_vectors, bound the products where they
            are given.

    Raises:
        InvalidArgument (a ValueError): an unknown mode or option, k beyond 1 .. n.
    """
    compat = current.version("hessian_eigenthings", compat, VERSIONS)
    given = _options(mode, kwargs)
    if fp16:
        raise InvalidArgument("fp16: expected False (products are at least float32), got True")
    place = current.chosen_device(use_gpu, "use_gpu")
    names = list(select_parameters(model))
    whole = len(names) == len(list(model.parameters()))
    params = None if whole else current.literal(names)
    batches = list(dataloader)
    if not batches:
        raise InvalidArgument("dataloader: expected at least one batch, got none")
    mean_of_batches = bool(compat) and full_dataset and sizes_differ(batches)

    def landscape(some: list[Any]) -> Landscape:
        if not mean_of_batches:
            return Landscape(model, loss, some, params=params, device=place)
        return Landscape(
            model, objective=lambda m, b: loss(m(b[0]), b[1]), data=some,
            weight=[1.0] * len(some), params=params, device=place,
        )  # fmt: skip

    land = landscape(batches if full_dataset else batches[:1])
    op = as_operator(land)
    name = "hessian_eigenthings.compute_hessian_eigenthings"
    if compat and mode == "power_iter":
        if not full_dataset:
            turns = cycle([as_operator(landscape([batch])) for batch in batches])
            op = SymmetricOperator(op.n, lambda v: next(turns)(v), dtype=op.dtype)
        values, vectors = _power_iterations(op, num_eigenthings, given)
    else:
        values, vectors = _converged(name, op, mode, num_eigenthings, given, kwargs)
    current.count(name, land, op.products)
    if not given.get("to_numpy", True):
        return torch.as_tensor(values), torch.as_tensor(vectors)
    return values, vectors


def _options(mode: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    if mode not in OPTIONS:
        raise InvalidArgument(f"mode: expected 'power_iter' or 'lanczos', got {mode!r}")
    for option in kwargs:
        if option not in OPTIONS[mode]:
            known = ", ".join(OPTIONS[mode])
            raise InvalidArgument(f"{option}: expected for mode {mode!r} one of {known}")
    return {**OPTIONS[mode], **kwargs}


def _converged(
    name: str, op: SymmetricOperator, mode: str, k: int, given: dict[str, Any], kwargs: Any
) -> tuple[np.ndarray, np.ndarray]:
    which, tol = "LM", given.get("power_iter_err_threshold", 0.0)
    most = None
    if mode == "lanczos":
        which, tol = given["which"], given["tol"]
        if "max_steps" in kwargs:
            most = given["max_steps"] * (given["num_lanczos_vectors"] or 2 * k)
    elif "power_iter_steps" in kwargs:
        most = given["power_iter_steps"] * k
    start = given["init_vec"]
    pairs = eigenpairs(
        op, k, which, tol=tol, max_products=most, seed=current.drawn_seed(), start=start,
        progress=False,
    )  # fmt: skip
    current.warn_of_residuals(name, pairs, pairs.tol)
    order = np.argsort(pairs.values) if mode == "lanczos" else slice(None)
    return pairs.values[order], pairs.vectors.numpy()[order]


def _power_iterations(
    op: SymmetricOperator, k: int, given: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """The original's: uniform start, then from the vector before; residuals are not looked at."""
    values: list[float] = []
    vectors: list[Tensor] = []
    start = given["init_vec"]
    v = torch.rand(op.n).to(op.dtype) if start is None else torch.as_tensor(start).to(op.dtype)
    for _ in range(k):
        last, value, before = 0.0, 0.0, torch.zeros_like(v)
        for _ in range(given["power_iter_steps"]):
            hv = op(v[None])[0].to(v)
            for known, vector in zip(values, vectors, strict=True):
                hv = hv - known * (vector @ v) * vector
            hv = hv - given["momentum"] * before
            before = v / (float(torch.linalg.vector_norm(v)) + 1e-6)
            value = float(v @ hv)
            v = hv / torch.linalg.vector_norm(hv)
            if value == 0.0 or abs((value - last) / value) < given["power_iter_err_threshold"]:
                break
            last = value
        values.append(value)
        vectors.append(v)
    return np.array(values), torch.stack(vectors).numpy()
