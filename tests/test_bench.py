"""Every benchmark runs at toy size, so that none rots; the harness computes what it says."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # behind an installed package, which the checkout must not hide

from bench import (  # noqa: E402
    gpu_check,
    gpu_curvature,
    gpu_hessians,
    gpu_networks,
    gpu_products,
    gpu_programs,
    networks,
    skip_connections,
    workloads,
)
from bench.curvature import Field, Problem, check_rows  # noqa: E402
from bench.curvature_peers import torch_lanczos  # noqa: E402
from bench.harness import Arm, absent, as_markdown, fastest, interleave, rows  # noqa: E402
from bench.headline import dense_hessian, eigenvalues, l1_distance, trained  # noqa: E402

ARMS = {
    "W1": {"pylandscape", "torch loop", "torch.func.vmap", "torch.compile", "loss-landscapes"},
    "W2": {"pylandscape", "torch loop", "torch.func.vmap"},
    "W3": {"pylandscape", "torch loop", "sgemm"},
    "W5": {"pylandscape", "torch.add", "per-filter loop", "vectorised torch", "torch normal_"},
    "HVP": {"pylandscape", "torch autograd", "torch.func", "curvlinops"},
    "NETS": {"pylandscape", "default user code", "best plain torch", "sgemm"},
    "HVPNET": {"pylandscape", "torch autograd"},
    "SLQ": {"pylandscape", "torch Lanczos", "PyHessian", "hessian-eigenthings"},
    "reorth": {"pylandscape", "torch CGS2", "read"},
    "eigen": {"pylandscape", "scipy eigsh", "PyHessian"},
    "dropin": {"pylandscape.compat", "loss-landscapes"},
    "walks": {"pylandscape", "torch.func.vmap"},
    "connectivity": {"pylandscape", "torch loop", "loss-landscapes", "rebasin"},
    "hessians": {"pylandscape", "torch vmap", "torch, point by point"},
    "trajectories": {"pylandscape", "read", "torch svd", "peak memory"},
    "training": {"pylandscape", "torch loop", "torch.func.vmap"},
    "training_norms": {"pylandscape", "torch loop", "torch autograd"},
    "topology": {"pylandscape", "gudhi"},
    "errors": {"pylandscape plane() with", "pylandscape plane() without"},
    "large": {"pylandscape, torch engine", "the best plain loop", "pylandscape, stored"},
    "FAMILIES": {"pylandscape plane", "pylandscape gradient", "pylandscape hvp", "pylandscape, "},
    "headline": {"pylandscape", "torch Lanczos"},
    "memory": set(),
    "kernels": {"sgemm", "linear", "tanh", "cross_entropy", "gaussian", "normalize_direction"},
}

OURS = {
    "SLQ": "pylandscape:spectrum",
    "reorth": "pylandscape._C:orthogonalize_f32",
    "eigen": "pylandscape:eigenpairs",
    "headline": "pylandscape:spectrum",
}


@pytest.mark.parametrize("shared_limit", [64, 163 << 10])
def test_programs_of_the_gpu_check_are_right_at_toy_size(shared_limit: int) -> None:
    from cuda_support import Backend
    from emulation_support import emulated_ops

    on_cpu = Backend(emulated_ops(), torch.device("cpu"))
    case = gpu_programs.Case("toy", (7, 5, 3), "cross_entropy", 40, 6)
    row, question, _ = gpu_programs.check(
        case, lambda model, land: on_cpu.engine(model, land, shared_limit=shared_limit)
    )
    assert row.how == ("wide" if question.reason else "resident")
    assert row.how == ("wide" if shared_limit == 64 else "resident")
    assert row.error < 1e-5
    assert case.multiply_adds() == 2 * 5 + 5 * 3


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_hessians_of_the_gpu_check_are_right_at_toy_size() -> None:
    from emulation_support import SHARED_LIMIT, emulated_ops

    case = gpu_hessians.Case("toy", (2, 3, 2), 6, 3, 2, (1, 2))
    question = gpu_hessians.Question(case, torch.device("cpu"), emulated_ops(), SHARED_LIMIT)
    assert question.error() < gpu_hessians.TOLERANCE
    assert case.n == question.kernels.n == 17
    assert case.multiply_adds(False) == 6 * (3 * 12 + 17)
    plain = gpu_hessians._best(
        question, lambda run, *_: float(run(0).abs().max()), eigenvalues=True
    )
    largest = question.spectra()[2][: case.others].abs().max()
    assert abs(plain / float(largest) - 1) < gpu_hessians.TOLERANCE


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # of torch.func.jvp
def test_products_of_the_gpu_check_are_right_at_toy_size() -> None:
    from cuda_support import Backend
    from emulation_support import emulated_ops

    backend = Backend(emulated_ops(), torch.device("cpu"))
    case = gpu_products.Case("toy", (7, 5, 3), 40, 2)
    error, _, theta, v = gpu_products.check(case, backend.engine)
    assert error <= gpu_products.ALLOWED
    torch.manual_seed(0)
    model, (x, y) = case.model(), case.data()
    assert torch.equal(torch.cat([p.detach().flatten() for p in model.parameters()]), theta)
    first, *others = [ask(v) for ask in gpu_products.ways(model, x, y).values()]
    assert first.shape == v.shape
    for other in others:
        torch.testing.assert_close(other, first)


def test_networks_of_the_gpu_check_are_right_at_toy_size() -> None:
    from cuda_support import Backend
    from emulation_support import emulated_ops

    on_cpu = Backend(emulated_ops(), torch.device("cpu"))
    toy = gpu_networks.Network("toy", lambda: networks.ResNet(8, 4), (3, 8, 8), 9, 2)
    error, engine, land, d, c, _ = gpu_networks.check(toy, on_cpu.engine)
    assert error < 1e-4
    model, x, y = toy.member()
    assert gpu_networks.multiply_adds(model, x) > 9 * 3 * 4 * 64
    engine.torch_program.way = gpu_networks.forced("grouped", engine.torch_program.way)
    assert torch.isfinite(engine.ask(land.theta, d).sums(c)).all()
    merged = gpu_networks.folded(model)
    assert sum(isinstance(m, gpu_networks.Folded) for m in merged.modules()) == 7
    for form in (model, merged):
        loss, theta = gpu_networks.loss_of(form, x, y, batch=5)
        want = torch.nn.functional.cross_entropy(model(x), y)
        torch.testing.assert_close(loss(theta), want)


SOON = ("W1", "W5", "reorth", "errors")  # the other benchmarks run in CI


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in SOON else pytest.mark.ci) for n in ARMS]
)
def test_benchmark_runs_at_toy_size(name: str) -> None:
    table = _bench(name)
    arms = [row.get("arm", "") for row in table]
    for arm in ARMS[name]:
        assert any(found.startswith(arm) for found in arms), (arm, arms)
    for row in table:
        assert row.get("median_us", 0) is not None or row["note"]


@pytest.mark.skipif(
    find_spec("loss_landscapes") is None,
    reason="the peer is not installed: pip install --no-deps loss-landscapes==3.0.6",
)
def test_the_peer_runs_at_toy_size() -> None:
    (row,) = [r for r in _bench("W1") if r["arm"].startswith("loss-landscapes")]
    assert row["median_us"] > 0
    assert row["error"] < 1e-4


@pytest.mark.parametrize("name", ["HVP", "SLQ", "reorth", "eigen", "headline"])
def test_curvature_by_torch_and_scipy_runs_at_toy_size(name: str) -> None:
    """These arms need nothing that is not installed: none may be a row that says why not."""
    for row in _bench(name):
        if row["arm"].startswith(("torch", "scipy", "read")):
            assert row.get("median_us", row.get("mean")) is not None, row


@pytest.mark.parametrize(("name", "part"), list(OURS.items()))
def test_our_curvature_runs_at_toy_size(name: str, part: str) -> None:
    module, attribute = part.split(":")
    found = find_spec(module) and getattr(import_module(module), attribute, None)
    if not found:
        pytest.skip(f"not in this build: {part}")
    rows = [r for r in _bench(name) if r["arm"].startswith("pylandscape")]
    assert rows[0].get("median_us", rows[0].get("mean")) is not None, rows


@pytest.mark.parametrize(
    ("module", "name", "count"),
    [
        ("curvlinops", "HVP", 3),
        ("pyhessian", "SLQ", 1),
        ("pyhessian", "eigen", 1),
        ("hessian_eigenthings", "SLQ", 1),
    ],
)
def test_the_peers_of_curvature_run_at_toy_size(module: str, name: str, count: int) -> None:
    if find_spec(module) is None:
        pytest.skip(f"the peer is not installed: pyproject.toml, extra bench, says how ({module})")
    start = module.replace("_", "-")
    found = [r for r in _bench(name) if r["arm"].lower().startswith(start)]
    assert len(found) == count
    for row in found:
        assert row["median_us"] is not None, row
        assert row["error"] < 1e-4


def test_wrong_rows_are_not_timed() -> None:
    arm, want = Arm("ours", lambda: None), torch.ones(2, 3)
    check_rows(arm, want * (1 + 1e-6), want, 1e-5)
    assert arm.error == pytest.approx(1e-6, rel=0.1)
    for wrong in (torch.tensor([[1.0, 1, 1], [1, 1, 1.1]]), want * torch.nan):
        with pytest.raises(AssertionError, match="ours"):
            check_rows(arm, wrong, want, 1e-5)


def test_arms_without_ours_have_no_ratio_and_an_absent_peer_says_so() -> None:
    field = Field("W", "call")
    field.add("torch", {"": lambda: lambda: 1}, lambda arm, got: arm.check(got, 1, 0), target=2)
    field.add("peer", {"": partial(import_module, "no_such_peer")}, lambda arm, got: None)
    field.measure(2)
    torch_row, peer_row = field.rows()
    assert (torch_row["ratio"], torch_row["target"], torch_row["met"]) == (None, None, None)
    assert (peer_row["median_us"], peer_row["note"]) == (None, "not installed: no_such_peer")


def test_lanczos_by_plain_torch_finds_the_moments_and_the_largest_eigenvalue() -> None:
    problem, _ = trained(quick=True)
    small = Problem(problem.model, problem.x[:300], problem.y[:300])
    dense = dense_hessian(small)
    run = torch_lanczos(small.double(), steps=40)
    got = run(3)
    v = (got.probe / got.probe.norm()).numpy()
    for power in range(4):
        want = v @ np.linalg.matrix_power(dense, power) @ v
        assert got.weights @ got.nodes**power == pytest.approx(want, rel=1e-9)
    values = eigenvalues(dense)
    assert got.nodes.max() == pytest.approx(values[-1], rel=1e-9)
    assert got.nodes.min() == pytest.approx(values[0], rel=1e-3)


def test_l1_distance_of_a_spectrum_to_itself_is_zero_and_to_another_two() -> None:
    exact = np.array([-1.0, 0.0, 0.5])
    third = np.full(3, 1 / 3)
    assert l1_distance((exact, third), exact) == 0
    assert l1_distance((exact + 3, third), exact) == pytest.approx(2, rel=1e-6)
    assert l1_distance((exact, np.array([1.0, 0, 0])), exact) == pytest.approx(4 / 3, rel=1e-6)


def test_ratio_is_the_median_of_paired_repetitions() -> None:
    ours = Arm("ours", lambda: None, units=2, seconds=[2.0, 4.0, 2.0])
    other = Arm("other", lambda: None, target=25, seconds=[10.0, 40.0, 1000.0])
    first, second = rows("W", ours, [other], "point")
    assert (first["median_us"], first["ratio"], first["met"]) == (1e6, None, None)
    assert (second["ratio"], second["met"]) == (20.0, False)
    assert "20.0x" in as_markdown([first, second])


def test_target_from_above_bounds_our_time_over_theirs() -> None:
    ours = Arm("ours", lambda: None, seconds=[1.1, 1.1])
    add = Arm("add", lambda: None, target=1.2, at_most=True, seconds=[1.0, 1.0])
    row = rows("W", ours, [add], "call")[1]
    assert row["ratio"] == pytest.approx(1.1)
    assert row["met"]


def test_repetitions_are_interleaved_and_start_in_turn() -> None:
    order: list[str] = []
    arms = [Arm(n, lambda n=n: order.append(n)) for n in "abc"]  # type: ignore[misc]
    interleave(arms, 3)
    blocks = [a for a, before in zip(order, ["", *order], strict=False) if a != before]
    assert "".join(blocks) == "abc" + "abc" + "bca" + "cab"  # the first is the warm-up
    assert [len(arm.seconds) for arm in arms] == [3, 3, 3]


def test_wrong_answer_is_not_timed() -> None:
    arm = Arm("ours", lambda: None)
    with pytest.raises(AssertionError, match="ours"):
        arm.check([1.0, 2.0], [1.0, 2.1], 1e-4)
    arm.check([1.0, 2.0], [1.0, 2.0 + 2e-5], 1e-4)
    assert arm.error == pytest.approx(1e-5, rel=1e-3)


def test_fastest_form_wins_and_failing_forms_are_left_out() -> None:
    def broken() -> Any:
        raise RuntimeError("no compiler")

    def form(size: int) -> Any:
        return lambda: lambda: np.ones(size).cumsum()

    assert fastest({"broken": broken, "slow": form(10**6), "quick": form(1)})[1] == "quick"
    with pytest.raises(RuntimeError, match="no compiler"):
        fastest({"broken": broken})


def test_arm_that_cannot_run_says_why() -> None:
    assert "did not run" in as_markdown([absent("W1", "peer", "not installed")])
    assert "not installed" in as_markdown([absent("W1", "peer", "not installed")])


def test_the_skip_connection_picture_is_drawn_at_toy_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "picture.png"
    sizes = {"depth": 8, "width": 2, "epochs": 1, "points": 5, "images": 40}
    options = [f"--{name}={size}" for name, size in sizes.items()]
    assert skip_connections.main([*options, f"--out={out}"]) == 0
    assert out.stat().st_size > 2000
    said = capsys.readouterr().out
    for words in ("ResNet-8 with shortcuts", "ResNet-8 without shortcuts", "picture.png in"):
        assert words in said


@cache
def _bench(name: str) -> list[dict[str, Any]]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    command = [sys.executable, "-W", "error::DeprecationWarning:bench", "-m", "bench", "--quick"]
    with TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        run = subprocess.run(
            [*command, "--only", name, "--json", str(out)],
            env=env,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        report = json.loads(out.read_text())
    assert set(report) == {"environment", "quick", "others", name}
    table: list[dict[str, Any]] = report[name]
    return table


def test_a_part_of_the_gpu_check_that_fails_is_told_and_loses_nothing(tmp_path: Path) -> None:
    options = argparse.Namespace(width=8, compile=False)
    found = gpu_check.run_part("kernels", options, tmp_path / "tree", 60)  # without a GPU
    assert found["rows"] == []
    assert "error" in found["failure"]
    assert "longer" in gpu_check.run_part("kernels", options, tmp_path / "tree", 0.1)["failure"]
    row = gpu_check._program(gpu_programs.ProgramRow("W1", "wide", 2.0, None, {"loop": 8.0}, 1e-7))
    assert "4.0x  loop 8.00 ms" in row["text"]


def test_the_quadrature_of_the_gpu_check_agrees_with_plain_torch_at_toy_size() -> None:
    def small() -> torch.nn.Module:
        return workloads.mlp(5, 4, 3)

    toy = gpu_curvature.Spectrum("toy", small, (5,), 20, 3, probes=2, steps=8, repetitions=1)
    for spectrum in (toy, gpu_curvature.SPECTRA[0]):
        assert spectrum.make()(torch.randn(2, *spectrum.shape)).shape == (2, spectrum.classes)
    rows = list(gpu_curvature.quadrature(torch.device("cpu"), toy, 1e6))
    for name, took, floor, _, _, error in rows:
        assert error <= gpu_curvature.ALLOWED[name]
        assert floor > 0
        assert took > 0
