"""cold: a script that prints the ten largest eigenvalues of 784-20-10, from its start to its end.

Whole processes, so that imports, compilers and everything made at first use count. All of them read
compiled Python (.pyc), as installed packages do: a checkout may have none.
"""

from __future__ import annotations

import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent

import numpy as np
import torch

from .curvature import w
from .harness import Arm, Row, absent, rows, timed
from .memory import child

RTOL = 1e-3  # of an eigenvalue: the packages' own tolerances are looser than ours
TOP = 10

_BEGIN = """
import numpy as np, torch
from torch import nn
data = np.load({data!r})
x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
sizes = data["sizes"].tolist()
model = nn.Sequential(nn.Linear(*sizes[:2]), nn.ReLU(), nn.Linear(*sizes[1:]))
nn.utils.vector_to_parameters(torch.from_numpy(data["theta"]), model.parameters())
loss = nn.CrossEntropyLoss()
"""
SCRIPTS = {
    "pylandscape": """
        import pylandscape as pl
        land = pl.Landscape(model, loss, (x, y))
        print(*pl.eigenpairs(land, {k}, tol={tol}, progress=False).values.tolist())
    """,
    "curvlinops": """
        from curvlinops import HessianLinearOperator
        from scipy.sparse.linalg import eigsh
        parameters = list(model.parameters())
        hessian = HessianLinearOperator(model, loss, parameters, [(x, y)]).to_scipy()
        found = eigsh(hessian, k={k}, which="LA", tol={tol}, return_eigenvectors=False)
        print(*found.tolist())
    """,
    "hessian_eigenthings": """
        from hessian_eigenthings import HessianOperator, lanczos, supervised_loss
        hessian = HessianOperator(model, [(x, y)], supervised_loss(loss))
        found = lanczos(
            hessian, k={k}, tol={tol}, max_iter=60, reorthogonalize=True, which="LA", seed=0)
        print(*found.eigenvalues.tolist())
    """,
}


def printed(script: str, compiled: Path) -> np.ndarray:
    """The numbers that a script prints, descending, by a process of its own, which reads compiled
    Python from a folder, or writes it there."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(compiled)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    said = child(script, environment=environment)
    return np.sort(np.array(said.split(), dtype=np.float64))[::-1]


def cold(quick: bool, repetitions: int) -> list[Row]:
    problem = w(quick)
    name = f"cold script, {TOP} eigenvalues, 784-20-10, {len(problem.x):,} images"
    with TemporaryDirectory() as folder:
        data = str(Path(folder) / "data.npz")
        theta = torch.nn.utils.parameters_to_vector(problem.model.parameters()).detach()
        np.savez(data, x=problem.x, y=problem.y, theta=theta, sizes=[784, 20, 10])
        arms, missing = [], []
        compiled = Path(folder) / "compiled"  # by the runs that are checked, which are not timed
        for package, text in SCRIPTS.items():
            if find_spec(package) is None:
                missing.append(absent(name, package, "not installed"))
                continue
            script = (_BEGIN + dedent(text)).format(data=data, k=TOP, tol=1e-4)
            run = partial(printed, script, compiled)
            arms.append(Arm(f"{package}, whole script", run, target=1.0))
        arms[0].target = None
        want = arms[0].run()
        for arm in arms[1:]:
            arm.check(arm.run(), want, RTOL)
        turn = arms
        for _ in range(1 if quick else repetitions):
            for arm in turn:
                arm.seconds.append(timed(arm.run))
            turn = turn[1:] + turn[:1]
    return rows(name, arms[0], arms[1:], "script") + missing
