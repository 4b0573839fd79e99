"""The program against float64 torch: values, schedules, determinism, derivatives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from core_support import DERIVATIVES, QUESTION, Mlp, make_mlp
from torch import Tensor

from pylandscape._native import core
from pylandscape.engines.cuda.program import TorchProgram

CASES = [  # dims, activation, loss, samples
    ((7, 5, 3), "tanh", "cross_entropy", 1),
    ((7, 5, 3), "relu", "cross_entropy", 33),
    ((40, 13, 2), "sigmoid", "mse", 300),
    ((3, 25, 14, 4), "relu", "mse", 511),
    ((2, 2, 1), "sigmoid", "mse", 4),  # point lanes
    ((600, 3, 2), "tanh", "cross_entropy", 50),  # deeper than one block of the product
]


def _points(mlp: Mlp, count: int, seed: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    theta = torch.randn(mlp.n, generator=g).to(mlp.dtype)
    directions = torch.randn(2, mlp.n, generator=g).to(mlp.dtype)
    c = torch.randn(count, 2, generator=g).to(mlp.dtype)
    return theta, directions, c, theta.double() + c.double() @ directions.double()


def _tolerance(mlp: Mlp) -> float:
    return 50 * torch.finfo(mlp.dtype).eps * len(mlp.dims)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[1]}-{c[3]}")
def test_losses_match_float64_on_directions_and_points(case: tuple, dtype: torch.dtype) -> None:
    mlp = make_mlp(*case, dtype)
    theta, directions, c, points = _points(mlp, 37)
    want = np.array([mlp.reference(p).item() for p in points])
    on_plane = mlp.run(mlp.ask(theta, directions), c)
    at_points = mlp.run(QUESTION[dtype](mlp.program), points)
    np.testing.assert_allclose(on_plane, want, rtol=_tolerance(mlp))
    np.testing.assert_allclose(at_points, want, rtol=_tolerance(mlp))


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[1]}-{c[3]}")
def test_bits_do_not_depend_on_threads_or_chunks(case: tuple) -> None:
    mlp = make_mlp(*case, torch.float32)
    theta, directions, c, _ = _points(mlp, 101)
    threads = torch.get_num_threads()
    try:
        results = []
        for count, chunk in ((1, 101), (2, 7), (3, 1), (2, 64)):
            torch.set_num_threads(count)
            question = mlp.ask(theta, directions)
            parts = [mlp.run(question, part, correct=True) for part in c.split(chunk)]
            results.append(np.concatenate(parts, axis=1))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_first_layer_is_combined_and_fixed_layers_are_computed_once() -> None:
    mlp = make_mlp((30, 8, 5, 3), "tanh", "cross_entropy", 64, torch.float32)
    theta, directions, c, _ = _points(mlp, 5)
    assert mlp.ask(theta, directions).describe().split()[0] == "combine"
    directions[:, : 30 * 8 + 8] = 0  # the first layer stays
    question = mlp.ask(theta, directions)
    # linear, tanh: once; the second linear sees a static input and is combined.
    assert question.describe().split()[:3] == ["static", "static", "combine"]
    points = theta.double() + c.double() @ directions.double()
    want = [mlp.reference(p).item() for p in points]
    np.testing.assert_allclose(mlp.run(question, c), want, rtol=_tolerance(mlp))


def test_a_direction_that_only_moves_biases_is_followed() -> None:
    mlp = make_mlp((30, 8, 3), "tanh", "cross_entropy", 64, torch.float64)
    theta, directions, c, _ = _points(mlp, 5)
    directions[:, : 30 * 8] = 0
    directions[:, -(8 * 3 + 3) :] = 0
    points = theta + c @ directions
    want = [mlp.reference(p).item() for p in points]
    np.testing.assert_allclose(mlp.run(mlp.ask(theta, directions), c), want, rtol=1e-12)


def test_non_finite_parameters_give_non_finite_losses() -> None:
    mlp = make_mlp((3, 4, 2), "relu", "cross_entropy", 40, torch.float32)
    theta, directions, _, _ = _points(mlp, 1)
    values = mlp.run(mlp.ask(theta, directions), torch.tensor([[0.0, 0.0], [1e38, 1e38]]))
    assert np.isfinite(values[0])
    assert not np.isfinite(values[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "case",
    [
        ((3, 4, 2), "tanh", "mse", 300),
        ((3, 5, 4, 2), "tanh", "cross_entropy", 13),
        ((4, 6, 3), "sigmoid", "cross_entropy", 600),
        ((4, 6, 6, 1), "relu", "mse", 90),
    ],
    ids=lambda c: f"{c[1]}-{c[2]}",
)
def test_gradient_and_all_second_derivatives_match_float64(case: tuple, dtype: torch.dtype) -> None:
    mlp = make_mlp(*case, dtype)
    theta = _points(mlp, 1)[0].contiguous()
    derivatives = DERIVATIVES[dtype](mlp.program, theta.data_ptr(), 2**30)
    gradient = torch.empty(mlp.n, dtype=torch.float64)
    derivatives.gradient(gradient.data_ptr())
    identity = torch.eye(mlp.n, dtype=dtype)
    hessian = torch.empty(mlp.n, mlp.n, dtype=torch.float64)
    derivatives.products(core.Matrix.hessian, mlp.n, identity.data_ptr(), hessian.data_ptr(), 1.0)

    want_gradient = torch.autograd.functional.jacobian(mlp.reference, theta.double())
    want_hessian = torch.autograd.functional.hessian(mlp.reference, theta.double())
    tolerance = 30 * torch.finfo(dtype).eps
    assert derivatives.loss == pytest.approx(mlp.reference(theta.double()).item(), rel=tolerance)
    for got, want in ((gradient, want_gradient), (hessian, want_hessian)):
        assert ((got - want).abs().max() / want.abs().max()).item() <= tolerance
    asymmetry = (hessian - hessian.T).abs().max() / hessian.abs().max()
    assert asymmetry.item() <= tolerance


@pytest.mark.parametrize(("what", "samples"), [("question", 30000), ("derivatives", 6000)])
def test_building_stops_at_a_signal(what: str, samples: int) -> None:
    mlp = make_mlp((256, 512, 512, 512, 2), "relu", "cross_entropy", samples, torch.float32)
    theta = _points(mlp, 1)[0].contiguous()
    last = torch.zeros(1, mlp.n)
    last[0, -1] = 1.0  # what comes before the last layer is the same everywhere, and computed once

    def build() -> object:
        if what == "question":
            return mlp.ask(theta, last)
        return DERIVATIVES[torch.float32](mlp.program, theta.data_ptr(), 0)

    def stopped_build() -> None:
        with pytest.raises(KeyboardInterrupt):
            build()

    whole = _seconds(build)
    old = signal.signal(signal.SIGPROF, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_PROF, 0.01)  # of CPU time, like what is compared
        stopped = _seconds(stopped_build)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
    assert stopped < 0.7 * whole
    assert np.isfinite(mlp.run(mlp.ask(theta, last), torch.zeros(1, 1)))  # the program is unharmed


def _seconds(call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def test_every_kind_of_op_has_one_name() -> None:
    assert len(core.OP_KINDS) == len(set(core.OP_KINDS))
    root = Path(__file__).parents[1] / "csrc" / "program" / "ops"
    files = {path.stem for path in root.glob("*.cpp")} - {"table"}
    assert files == set(core.OP_KINDS)
    of_gpus = set(core.OP_KINDS) - {"attention"}  # which runs there as the ops that it is made of
    assert all(callable(getattr(TorchProgram, f"_{kind}")) for kind in of_gpus)


@pytest.mark.parametrize(
    "capability",
    [
        pytest.param("default", marks=pytest.mark.ci), pytest.param("avx2", marks=pytest.mark.ci),
        pytest.param("avx512", marks=pytest.mark.ci), "nonsense",
    ],
)  # fmt: skip
def test_every_instruction_set_passes_the_same_tests(capability: str) -> None:
    env = {**os.environ, "PYLANDSCAPE_CPU_CAPABILITY": capability}
    probe = "import pylandscape._native as n; print(n.cpu_capability())"
    result = subprocess.run([sys.executable, "-c", probe], env=env, capture_output=True, text=True)
    if capability == "nonsense":
        assert "expected default, avx2 or avx512" in result.stderr
        return
    if "this CPU supports at most" in result.stderr:
        pytest.skip(f"this CPU has no {capability}")
    assert result.stdout.strip() == capability
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += [
        "-k",
        "not instruction_set",
        str(here / "test_kernels.py"),
        str(here / "test_program.py"),
    ]
    run = subprocess.run(command, env=env, capture_output=True, text=True, cwd=here.parent)
    assert run.returncode == 0, run.stdout[-3000:]
