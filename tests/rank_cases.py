"""What the ranks of `test_ranks.py` do; imported once by the server that forks them."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pylandscape as pl
from pylandscape import ranks
from pylandscape.ranks import current

CASES: dict[str, Callable[..., Any]] = {}
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(  # what every rank needs
    [__name__, "h5py", "pylandscape.landscape", "pylandscape.surfaces.grids"]
)
LIMIT = 300.0  # seconds for a group to end, on a machine with other work
MEASURED: list[int] = []  # a number for each call of the metric of `training`
WAITING = 200.0  # seconds of `pl.distributed(timeout=)` where no case sets it


def case(function: Callable[..., Any]) -> Callable[..., Any]:
    CASES[function.__name__] = function
    return function


def network(dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    return net.to(dtype)


def samples(count: int = 37, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=made, dtype=torch.float64)
    return x, torch.randint(0, 3, (count,), generator=made)


def landscape(**options: Any) -> pl.Landscape:
    return pl.Landscape(network(), "cross_entropy", samples(), **options)


def surface(land: pl.Landscape, n: int = 21, **options: Any) -> np.ndarray:
    d = pl.random_directions(land, 2, seed=0)
    found = pl.plane(land, *d, x=(-1, 1, n), y=(-1, 1, n), progress=False, **options)
    return found.values


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])


def run(rank: int, size: int, port: int, name: str, folder: str, options: dict[str, Any]) -> None:
    """One rank: what each of its cases gives goes to "<case>.<rank>.npz", an error to ".json"."""
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(size),
    }  # fmt: skip
    torch.set_num_threads(1)
    if options.pop("launched", False):  # by torchrun, without a group
        os.environ["TORCHELASTIC_RUN_ID"] = "test"
        group: Any = contextlib.nullcontext()
    else:
        group = pl.distributed(timeout=WAITING)
    with group:
        for each in name.split():
            own, _, what = each.partition(":")
            out = f"{each}.{rank}"
            try:
                more = {"what": what} if what else {}
                np.savez(Path(folder) / f"{out}.npz", **CASES[own](Path(folder), **options, **more))
            except Exception as error:
                told = {"kind": type(error).__name__, "text": str(error)}
                (Path(folder) / f"{out}.json").write_text(json.dumps(told))


class Group:
    """Ranks that run one case, or several, one after the other: "case" or "case:what"."""

    def __init__(self, folder: Path, name: str, size: int, **options: Any) -> None:
        self.folder, self.size, self.name = folder, size, name
        for old in (*folder.glob("*.npz"), *folder.glob("*.json")):
            old.unlink()
        port = free_port()
        self.processes = [
            CONTEXT.Process(target=run, args=(r, size, port, name, str(folder), dict(options)))
            for r in range(size)
        ]
        for process in self.processes:
            process.start()

    def kill(self, rank: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(self.processes[rank].pid, signal.SIGKILL)

    def end(self) -> list[dict[str, Any]]:
        """What each rank found: arrays, or the error; {} of a killed one."""
        end = time.monotonic() + LIMIT
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        hanging = [r for r, process in enumerate(self.processes) if process.is_alive()]
        for rank in hanging:
            self.kill(rank)
        assert not hanging, f"ranks {hanging} did not end"
        return self.found(self.name.split()[0])

    def found(self, name: str) -> list[dict[str, Any]]:
        """The same of one of several cases."""
        return [self._of(f"{name}.{rank}") for rank in range(self.size)]

    def _of(self, name: str) -> dict[str, Any]:
        out, error = self.folder / f"{name}.npz", self.folder / f"{name}.json"
        if error.exists():
            return dict(json.loads(error.read_text()))
        return dict(np.load(out)) if out.exists() else {}


@case
def plane(folder: Path, path: str | None = None, **options: Any) -> dict[str, Any]:
    at = None if path is None else folder / path
    return {"plane": surface(landscape(), path=at, **options)}


@case
def points(folder: Path) -> dict[str, Any]:
    """What goes through evaluate_in_chunks."""
    land = landscape()
    other = pl.Landscape(network(seed=3), "cross_entropy", samples())
    classes = torch.tensor([1.0, 0.3, 2.0], dtype=torch.float64)
    x, y = samples()
    y = torch.where(torch.arange(len(y)) % 5 == 0, -100, y)
    weighted = pl.Landscape(
        network(), torch.nn.CrossEntropyLoss(weight=classes), [(x[:20], y[:20]), (x[20:], y[20:])]
    )
    thetas = np.random.default_rng(0).normal(size=(41, land.n_params))
    found = pl.classify(land, thetas, progress=False)
    between = pl.interpolate(land, [land.theta, other.theta], (0, 1, 9), progress=False)
    d = pl.random_directions(land, 3, seed=0)
    three = pl.grid(land, d, [(-1, 1, 5)] * 3, progress=False)
    matrix = pl.barriers(land, [network(seed=s) for s in range(3)], points=5, progress=False)
    errors = ("loss", "accuracy", "standard_error")
    line = pl.line(weighted, d[0], x=(-1, 1, 33), metrics=errors, progress=False)
    curved = pl.convexity(land, *d[:2], x=(-1, 1, 5), y=(-1, 1, 5), progress=False)
    sides = pl.asymmetry(land, "random", r=1.0, points=6, progress=False)
    fitness = pl.fitness_distance(land, points=50, progress=False)
    return {
        "plane": surface(land), "kinds": found.kinds, "eigenvalues": found.eigenvalues,
        "interpolation": between.values, "grid": three.values, "barriers": matrix.values,
        **{f"line {name}": line.metrics[name] for name in errors}, "ratio": curved.metrics["ratio"],
        "torch": surface(landscape(engine="torch"), n=7),
        "asymmetry": sides.values, "fitness": fitness.losses,
    }  # fmt: skip


@case
def solutions(folder: Path, record: bool = False) -> dict[str, Any]:
    """Functions of whole solutions and of paths; with files where they are recorded."""
    land = landscape()

    def at(name: str) -> Path | None:
        return folder / name if record else None

    other = network(seed=3)
    measures = ("average_filter", "worst_l2", "worst_linf_element", "lambda_max", "trace")
    flat = pl.flatness(land, measures, rho=(0.05, 0.1), draws=40, steps=4, products=40)
    thetas = land.theta.numpy() + 0.05 * np.random.default_rng(0).normal(size=(19, land.n_params))
    track = pl.track(pl.trajectory(thetas, land), land, 2, path=at("t.h5"), progress=False)
    options: dict[str, Any] = {"steps": 3, "points": 7, "progress": False}
    curve = pl.connect(land, network(), other, path=at("c.h5"), **options)
    slow = pl.connect(landscape(engine="torch"), network(), other, **options)
    picture = curve.plane(points=5, path=at("p.h5"), progress=False)
    aligned = {}
    if record:  # which imports much
        found = pl.align(land, network(), other, points=9, path=at("a.h5"), progress=False)
        aligned = {"aligned": found.theta, "lines": np.stack([found.line_before, found.line])}
    return {
        **aligned, "flatness": np.array([[row.value, row.standard_error] for row in flat.rows]),
        "track": track.values, "products": track.products, "curve": curve.vertices,
        "losses": curve.values, "straight": curve.line,
        "slow": slow.vertices, "history": slow.history, "picture": picture.values,
    }  # fmt: skip


@case
def raising(folder: Path, rank: int = 1) -> dict[str, Any]:
    def metric(outputs: torch.Tensor, target: torch.Tensor) -> float:
        if os.environ["RANK"] == str(rank):
            raise ValueError("no such score")
        time.sleep(0.005)
        return 0.0

    land = landscape()
    d = pl.random_directions(land, 2, seed=0)
    pl.plane(land, *d, x=(-1, 1, 21), y=(-1, 1, 21), metrics=("loss", metric), progress=False)
    return {}


@case
def between(folder: Path) -> dict[str, Any]:
    """Rank 1 fails between two calls within one, where rank 0 has begun the next."""
    group = current()
    assert group is not None
    with group.call("outer", {}):
        if group.rank == 1:
            raise ValueError("no use")
        with group.call("inner", {}):
            pass
    return {}


@case
def arrays(folder: Path) -> dict[str, Any]:
    """Small and large ones, of several kinds, of which rank 1's are read-only."""
    group = current()
    assert group is not None

    def of(rank: int) -> list[np.ndarray]:
        large = np.arange(60_000 + rank, dtype=np.float32).reshape(-1, 1) * (rank + 1)
        return [large, np.empty((0, 3)), np.array(rank), large[::2] > 7, large.T.astype(np.int64)]

    mine = of(group.rank)
    for array in mine:
        array.flags.writeable = group.rank != 1
    with group.call("arrays", {}) as call:
        found = call.exchange(mine)
        first = call.from_first(mine)
    for rank, theirs in enumerate([*found, first]):
        for got, want in zip(theirs, of(rank % 2), strict=True):
            assert got.dtype == want.dtype
            assert np.array_equal(got, want)
    return {}


@case
def hanging(folder: Path, rank: int = 1) -> dict[str, Any]:
    def metric(outputs: torch.Tensor, target: torch.Tensor) -> float:
        # The others leave it time to come and take a point.
        time.sleep(4.0 if os.environ["RANK"] == str(rank) else 0.06)
        return 0.0

    land = landscape()
    surface(land, 3)  # both are there
    d = pl.random_directions(land, 2, seed=0)
    with pl.distributed(timeout=1.0):
        pl.plane(land, *d, x=(-1, 1, 4), y=(-1, 1, 4), metrics=("loss", metric), progress=False)
    return {}


@case
def ended(folder: Path) -> dict[str, Any]:
    """Rank 1's script is at its end, rank 0 asks for more."""
    surface(landscape(), 3)
    if os.environ["RANK"] == "1":
        ranks._ended(os.getpid())
        return {}
    return {"plane": surface(landscape(), 3)}


@case
def early(folder: Path) -> dict[str, Any]:
    """The least that a group does."""
    return {"plane": surface(landscape(), 9)}


@case
def different(folder: Path, what: str, late: bool = False) -> dict[str, Any]:
    mine = int(os.environ["RANK"])
    size = int(os.environ["WORLD_SIZE"])
    odd = mine == size - 1
    if late and odd:  # it looks for failures when the others have failed already
        check = ranks.Ranks.check
        ranks.Ranks.check = lambda self: (time.sleep(2.0), check(self))[1]  # type: ignore[method-assign]
    elif late:
        time.sleep(1.0)
    x, y = samples(36)
    if what == "data":
        land = pl.Landscape(network(), "cross_entropy", (x, y.flip(0) if odd else y))
    elif what == "padded":
        data = torch.utils.data.TensorDataset(*samples())
        sampler = torch.utils.data.DistributedSampler(data, size, mine, shuffle=False)
        loader = torch.utils.data.DataLoader(data, 8, sampler=sampler)
        land = pl.Landscape(network(), "cross_entropy", loader)
    elif what == "model":
        made = network()
        if odd:
            made[1] = torch.nn.Sigmoid()
        land = pl.Landscape(made, "cross_entropy", (x, y))
    else:
        land = pl.Landscape(network(seed=int(odd and what == "theta")), "cross_entropy", (x, y))
    if what == "function" and odd:
        pl.classify(land, land.theta[None], progress=False)
    elif what == "samples":  # of what every rank computes for itself
        pl.eigenpairs(
            pl.Landscape(network(), "cross_entropy", samples(36 + odd)), 1, progress=False
        )
    elif what == "some":
        surface(land)
        if mine == 0:
            with pl.distributed(timeout=2.0):
                surface(land)
        else:
            time.sleep(6.0)
    elif what == "alone":
        if mine == 0:
            with pl.distributed(alone=True):
                surface(land)
        surface(land)
    else:
        surface(land, 5 if what == "arguments" and odd else 7)
    return {}


@case
def slow(folder: Path, path: str = "s.h5", pause: float = 0.01, n: int = 11) -> dict[str, Any]:
    """A surface of which each point takes a while; "begun" says that points are recorded."""

    os.environ["PAUSE"] = str(pause)  # no part of what is asked

    def pausing(outputs: torch.Tensor, target: torch.Tensor) -> float:
        time.sleep(float(os.environ["PAUSE"]))
        return float(outputs.sum())

    land = landscape()
    d = pl.random_directions(land, 2, seed=0)
    found = pl.plane(
        land, *d, x=(-1, 1, n), y=(-1, 1, n), metrics=("loss", pausing), path=folder / path,
        progress=False,
    )  # fmt: skip
    return {"plane": found.values, "resumed": np.array(found.info["resumed"])}


@case
def folder_of_one(folder: Path) -> dict[str, Any]:
    """Only rank 0 can make files beside the result; whoever dies then, its points are there."""
    from pylandscape.runs import journal

    if os.environ["RANK"] != "0":
        open_locked = journal._open_locked

        def refuse(path: Path) -> int:
            if path.parent == folder:
                raise journal.InvalidArgument("path: expected a place where files can be written")
            return open_locked(path)

        journal._open_locked = refuse
    return slow(folder)


@case
def files(folder: Path) -> dict[str, Any]:
    """Finished files, taken as they are; a file of another request; results of checkpoints."""
    land = landscape()
    first = surface(land, path=folder / "s.h5")
    again = surface(land, path=folder / "s.h5")
    refused = ""
    try:
        surface(land, 5, path=folder / "s.h5")
    except pl.PylandscapeError as error:
        refused = f"{type(error).__name__}: {error}"
    pairs = pl.eigenpairs(land, 3, path=folder / "e.h5", progress=False)
    walks = pl.gradient_walk(land, 4, 9, path=folder / "w.h5", progress=False)
    return {
        "first": first, "again": again, "refused": np.array(refused), "pairs": pairs.values,
        "walks": walks.points,
    }  # fmt: skip


@case
def items(folder: Path, record: bool = False) -> dict[str, Any]:
    """What goes through by_ranks; with files where they are recorded."""
    land = landscape()

    def at(name: str) -> Path | None:
        return folder / name if record else None

    spectrum = pl.spectrum(land, 5, 12, path=at("spectrum.h5"), progress=False)
    pairs = pl.spectrum(land, 4, 12, vectors=2, progress=False)
    walks = pl.gradient_walk(land, 7, 15, tie="random", path=at("walks.h5"), progress=False)
    random = pl.progressive_random_walk(land, 5, 8, progress=False)
    runs = pl.train(
        land, 5, pl.Adam(lr=0.01), epochs=3, batch_size=8, own_order=True, path=at("runs.h5"),
        progress=False,
    )  # fmt: skip
    slow = pl.train(
        landscape(engine="torch"), 3, pl.SGD(lr=0.1), steps=4, batch_size=8, progress=False
    )
    starts = 0.3 * np.random.default_rng(0).normal(size=(6, land.n_params))
    found = pl.find_critical_points(land, starts, max_iter=30, path=at("found.h5"), progress=False)
    thetas = np.random.default_rng(1).normal(size=(300, land.n_params))
    exact = pl.hessians(land, thetas[:31])
    searched = search(land, path=at("search.h5"))
    dense = torch.randn(90, 90, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return {
        "nodes": spectrum.nodes, "weights": spectrum.weights, "bounds": spectrum.bounds,
        "nodes with pairs": pairs.nodes, "pairs": pairs.pairs.vectors.numpy(),
        "products": np.array([spectrum.info["products"], pairs.info["products"]]),
        "walks": walks.points, "walks' losses": walks.losses, "random": random.points,
        "runs": runs.ends().numpy(), "runs' loss": runs.metrics["loss"],
        "slow": slow.ends().numpy(),
        "found": found.points, "outcomes": found.outcomes, "starts": found.starts,
        "hessians": exact.matrices, "gradients": pl.gradients(land, thetas).gradients,
        "searched": searched.best,
        "trace": np.array([pl.trace(land, 40).value, pl.trace(dense + dense.T, 40).value]),
        "diagonal": pl.diagonal(land, 40).value,
        "norm": np.array(pl.frobenius_norm(dense + dense.T, 40, "hutch++").value),
    }  # fmt: skip


@case
def training(
    folder: Path, fails: bool = False, apart: bool = False, pause: float = 0.0
) -> dict[str, Any]:
    """Runs in a file; rank 1 may fail in its second set of them, or see no file of others."""
    os.environ |= {"FAILS": str(int(fails)), "PAUSE": str(pause)}  # no part of what is asked
    if apart:
        from pylandscape.training import advance, shared_runs

        shared_runs.SharedRuns.writable = lambda self, call: False
        advance._seen = lambda target, request: None

    def length(outputs: torch.Tensor, target: torch.Tensor) -> float:
        MEASURED.append(1)
        time.sleep(float(os.environ["PAUSE"]))
        if os.environ["FAILS"] == "1":
            time.sleep(0.002)
            if os.environ["RANK"] == "1" and len(list(folder.glob("*.recording.rank1.*"))) > 1:
                raise ValueError("no such length")
        return float(outputs.norm())

    runs = pl.train(
        landscape(engine="torch"), 12, pl.SGD(lr=0.1), steps=3, batch_size=8, record=1,
        metrics=("loss", length), path=folder / "runs.h5", progress=False,
    )  # fmt: skip
    return {"ends": runs.ends().numpy(), **runs.metrics}


def search(land: pl.Landscape, **options: Any) -> Any:
    from pylandscape.experiments.global_search import global_search

    return global_search(land, runs=2, evaluations=400, progress=False, **options)


@case
def shared_data(folder: Path, what: str = "rows") -> dict[str, Any]:
    """The samples shared out; the same data on all ranks, or each rank its own part."""
    mine, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    x, y = samples(61)
    classes = torch.tensor([1.0, 0.3, 2.0], dtype=torch.float64)
    y = torch.where(torch.arange(len(y)) < 6, -100, y)  # a chunk of ignored targets alone
    loss = torch.nn.CrossEntropyLoss(weight=classes)
    cuts = [0, 7, 30, 61] if size > 1 else [0, 61]
    data: Any = [(x[:40], y[:40]), (x[40:], y[40:])]
    if what == "parts":
        end = len(x) if mine == size - 1 else cuts[mine + 1]
        data = (x[cuts[mine] : end], y[cuts[mine] : end])
    land = pl.Landscape(network(), loss, data, shard="data")
    torched = pl.Landscape(network(), "mse", (x, x[:, :3]), shard="data", engine="torch")
    summed = pl.Landscape(network(), torch.nn.CrossEntropyLoss(reduction="sum"),
                          samples(20), shard="data")  # fmt: skip
    free = pl.Landscape(network(), data=[(x[:30],), (x[30:],)], shard="data",
                        objective=lambda net, batch: net(batch[0]).square().mean())  # fmt: skip
    v = torch.randn(
        3, land.n_params, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    pairs = pl.eigenpairs(land, 2, path=folder / f"pairs-{what}.h5", progress=False)
    line = pl.line(land, pl.random_directions(land, 1, seed=0)[0], x=(-1, 1, 41),
                   metrics=("loss", "accuracy"), progress=False)  # fmt: skip
    found = {
        "plane": surface(land, 9, path=folder / f"plane-{what}.h5"),
        "accuracy": line.metrics["accuracy"],
        "gradient": land.gradient().numpy(), "pairs": pairs.values,
        "nodes": pl.spectrum(land, 2, 8, progress=False).nodes,
        "trace": np.array(pl.trace(land, 20).value),
        "loss": np.array([land.loss(), land.model_loss(), free.loss(), summed.loss()]),
        "torch": torched.hvp(v).numpy(), "free": free.hvp(v).numpy(),
    }  # fmt: skip
    for matrix in ("hvp", "gauss_newton_product", "covariance_product"):
        found[matrix] = getattr(land, matrix)(v).numpy()
    for name in ("gradient", "hvp"):
        found[f"sum {name}"] = getattr(summed, name)(*([v] if name == "hvp" else [])).numpy()
    return found


@case
def few_shared(folder: Path) -> dict[str, Any]:
    land = pl.Landscape(network(), "cross_entropy", samples(5), shard="data")
    v = torch.linspace(-1, 1, land.n_params)
    return {
        "plane": surface(land, 5), "gradient": land.gradient().numpy(),
        "product": land.hvp(v).numpy(),
    }  # fmt: skip


@case
def padded_shard(folder: Path) -> dict[str, Any]:
    """Each rank's own part by a sampler that repeats samples."""
    data = torch.utils.data.TensorDataset(*samples(37))
    size, mine = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    sampler = torch.utils.data.DistributedSampler(data, size, mine, shuffle=False)
    loader = torch.utils.data.DataLoader(data, 8, sampler=sampler)
    pl.Landscape(network(), "cross_entropy", loader, shard="data")
    return {}


@case
def shared_alone(folder: Path) -> dict[str, Any]:
    """One rank alone cannot answer for the samples of all."""
    land = pl.Landscape(network(), "cross_entropy", samples(5), shard="data")
    with pl.distributed(alone=True):
        land.loss()
    return {}
