"""Stochastic Lanczos quadrature: the spectrum of a Hessian from a few hundred products.

For a random unit vector v, m Lanczos steps give T = U diag(l) U^T; the nodes l_i with the weights
w_i = U[0, i]^2 integrate polynomials of degree 2m - 1 against v's spectral measure exactly
(Ghorbani, Krishnan, Xiao 2019, section 3; Golub and Meurant 2010). The mean over probes estimates
(1/n) sum_i delta(t - lambda_i).

The way goes on in lanczos.py; where the matrix comes from, in operators.py.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..arguments import check_landscape, integer
from ..arrays import Path, digest
from ..errors import InvalidArgument
from ..files.atomic import scratch
from ..results.eigen_pairs import EigenPairs
from ..results.spectra import Spectrum, check_sigma2
from ..runs.checkpoint import Arrays, Checkpoint
from ..runs.items import by_ranks
from ..runs.request import build
from ..runs.resume import resumable
from ..theta.checks import free_memory
from ..theta.random_source import SOURCE
from .lanczos import RECHECK, REORTHOGONALIZE, Lanczos, outcome_of, random_starts, watched
from .operators import Balanced, as_operator
from .symmetric_operator import SymmetricOperator

if TYPE_CHECKING:
    from ..landscape import Landscape
    from ..theta.layout import ParameterLayout

MEMORY_SHARE = 0.5  # of the free memory that bases may take
PAIRS_TOL = 1e-6  # of the eigenpairs
TOGETHER = 16  # probes at most whose products are one block


def spectrum(
    a: Any,
    probes: int = 10,
    steps: int = 90,
    *,
    sigma2: float = 1e-5,
    relative_sigma2: bool = False,
    matrix: str = "hessian",
    theta: Any = None,
    params: Sequence[str] | None = None,
    vectors: int = 0,
    seed: int = 0,
    starts: Any = None,
    dtype: torch.dtype | None = None,
    reorthogonalize: str = "full",
    path: Path | None = None,
    progress: bool = True,
) -> Spectrum:
    """The spectral density of a landscape's Hessian, or of any symmetric matrix.

    Args:
        a: a Landscape, SymmetricOperator, scipy LinearOperator or sparse matrix, dense array.
        probes, steps: random vectors k, Lanczos steps m of each; k m products. Defaults: Ghorbani
            et al., section 3. Steps beyond n are not made.
        sigma2: variance of the kernel of densities; times max(1, width of the spectrum) with
            `relative_sigma2`. Both can be chosen again later: `density(sigma2=...)`. Pictures have
            a kernel relative to what they show unless another sigma2 than the default is chosen.
        matrix, theta, params: see `as_operator`.
        vectors: also the largest `vectors` eigenpairs that the first probe found, with residuals
            (one product); as `spectrum.pairs`.
        seed: of the probes, standard normal, the same on every device; `starts` (k, n) replaces
            them.
        dtype: of the Lanczos basis, torch.float32 or float64; default the operator's. T and all
            sums are float64.
        reorthogonalize: "full", "partial" or "none"; see `Lanczos`.
        path: HDF5 file for the result; a run that was stopped goes on from what lies beside it.
        progress: show a bar on stderr.

    Returns:
        A Spectrum. A probe whose Krylov space is exhausted ("breakdown", "exhausted") is exact.
        One whose product is not finite keeps the steps before.

    Memory: probes (steps + 1) n numbers where the operator is, in groups of probes where that is
    more than half of the free memory, in a file where one probe is: beside that of `path`, without
    one in $TMPDIR or /var/tmp.

    Raises:
        InvalidArgument: an argument that does not fit; no finite product at all.
        ResumeMismatch: `path` belongs to another request.
    """
    op = as_operator(a, matrix, theta, params)
    probes, steps = integer(probes, "probes", 1), integer(steps, "steps", 1)
    vectors, seed = integer(vectors, "vectors", 0), integer(seed, "seed", 0)
    steps = min(steps, op.n)
    if vectors > steps:
        raise InvalidArgument(f"vectors: expected at most {steps} (the steps), got {vectors}")
    if reorthogonalize not in REORTHOGONALIZE:
        raise InvalidArgument(
            f"reorthogonalize: expected one of {', '.join(REORTHOGONALIZE)}, "
            f"got {reorthogonalize!r}"
        )
    if dtype is not None and dtype not in (torch.float32, torch.float64):
        raise InvalidArgument(f"dtype: expected torch.float32 or torch.float64, got {dtype!r}")
    sigma2 = check_sigma2(sigma2)
    dtype = dtype or op.dtype
    if starts is None:
        given = random_starts(op.n, probes, seed, dtype, op.device)
    else:
        given = _starts(starts, op)
    request = build(
        op, "spectrum", path is not None, probes=len(given), steps=steps, sigma2=sigma2,
        relative_sigma2=relative_sigma2, vectors=vectors,
        seed=seed if starts is None else None, basis=str(dtype).removeprefix("torch."),
        reorthogonalize=reorthogonalize, starts=None if starts is None else digest(given),
        random=SOURCE,  # of the probes
    )  # fmt: skip

    def run(checkpoint: Checkpoint) -> Spectrum:
        quadrature = _Quadrature(op, given, steps, dtype, reorthogonalize, vectors, checkpoint)
        started = time.perf_counter()
        quadrature.run(progress)
        info = {
            "request": checkpoint.request, "seconds": time.perf_counter() - started,
            "products": quadrature.products, "notes": [*quadrature.notes, *op.notes()],
        }  # fmt: skip
        return Spectrum(
            quadrature.nodes, quadrature.weights, quadrature.bounds, op.n, sigma2, relative_sigma2,
            tuple(quadrature.outcomes), info, quadrature.pairs,
        )  # fmt: skip

    return resumable(path, request, run)


def layer_spectra(
    land: Landscape,
    *args: Any,
    blocks: Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    **options: Any,
) -> dict[str, Spectrum]:
    """The spectrum of every layer's diagonal block of the Hessian, {module name: Spectrum}.

    A layer is a module with parameters of its own (weight and bias together); each parameter of
    the model itself, which is in no module, is one too. The arguments are
    those of `spectrum`; `params` chooses among the layers; `path` is not taken.

    Args:
        blocks: instead of layers: name patterns, each of which makes a block of the parameters that
            agree in what it matches up to its last star: "h.*.attn.*" gives "h.0.attn", "h.1.attn",
            ... A mapping {name: pattern or patterns} makes one block of all that these match.

    Raises:
        InvalidArgument: a pattern that matches no parameter; both ``blocks`` and ``params``.
    """
    check_landscape(land, "layer_spectra")
    if options.pop("path", None) is not None:
        raise InvalidArgument("path: expected none; save each layer's Spectrum")
    chosen = options.pop("params", None)
    if blocks is not None and chosen is not None:
        raise InvalidArgument("blocks, params: expected at most one of them, got both")
    if blocks is not None:
        layers = _blocks(land.layout, blocks)
    else:
        layers = {}
        layout = land.layout if chosen is None else land.layout.select(chosen)
        for entry in layout.entries:
            layers.setdefault(entry.name.rpartition(".")[0] or entry.name, []).append(entry.name)
    return {
        layer: spectrum(land, *args, params=[_literal(n) for n in names], **options)
        for layer, names in layers.items()
    }


def _blocks(
    layout: ParameterLayout, given: Sequence[str] | Mapping[str, str | Sequence[str]]
) -> dict[str, list[str]]:
    """{block: names of its parameters}, see `layer_spectra`."""
    if isinstance(given, Mapping):
        return {
            name: [e.name for e in layout.select(patterns).entries]
            for name, patterns in given.items()
        }
    found: dict[str, list[str]] = {}
    for pattern in (given,) if isinstance(given, str) else given:
        before, star, after = pattern.rpartition("*")
        head = before.rstrip(".") if star and not after else pattern
        # A star between dots stands for one part of a name where the whole pattern can match so.
        ways = [re.compile(part.join(map(re.escape, head.split("*")))) for part in ("[^.]*", ".*")]
        for entry in layout.select(pattern).entries:
            match = next((m for m in (way.match(entry.name) for way in ways) if m), None)
            block = entry.name if match is None else match[0]
            found.setdefault(block, []).append(entry.name)
    return found


class _Quadrature:
    """Nodes and weights of all probes, group by group."""

    def __init__(
        self,
        op: SymmetricOperator,
        starts: torch.Tensor,
        steps: int,
        dtype: torch.dtype,
        reorthogonalize: str,
        vectors: int,
        checkpoint: Checkpoint,
    ) -> None:
        self.found = checkpoint.load()
        op = Balanced(op, None if self.found is None else self.found["exponent"])
        self.op, self.starts, self.steps, self.dtype = op, starts, steps, dtype
        self.reorthogonalize, self.vectors, self.checkpoint = reorthogonalize, vectors, checkpoint
        shape = (len(starts), steps)
        self.nodes, self.bounds = np.full(shape, np.nan), np.full(shape, np.nan)
        self.weights = np.zeros(shape)
        self.outcomes = ["stopped"] * len(starts)
        self.pairs: EigenPairs | None = None
        self.notes: list[str] = []
        self.done = 0  # probes
        self.before = op.products
        if self.found is not None:
            self._take_up(self.found)

    @property
    def products(self) -> int:
        return self.op.products - self.before

    def run(self, progress: bool) -> None:
        count = len(self.starts)
        together = self._together()
        if self.shared_out(progress):
            return
        with watched(count * self.steps, "spectrum", progress) as show:
            while self.done < count:
                size = max(1, together)
                if self.found is not None and "basis" in self.found:  # the group that was running
                    size = len(self.found["basis"])
                group = range(self.done, min(self.done + size, count))
                with self._workspace(len(group)) if size > together else nullcontext() as file:
                    lanczos = Lanczos(
                        self.op, self.starts[group.start : group.stop], self.steps,
                        dtype=self.dtype, reorthogonalize=self.reorthogonalize, workspace=file,
                    )  # fmt: skip
                    self._group(lanczos, group, show)

    def shared_out(self, progress: bool) -> bool:
        """Whether several ranks did it together: each some of the probes, all of them the one that
        eigenpairs come from."""
        first = 1 if self.vectors else 0  # probes that all make
        names = ("nodes", "weights", "bounds")

        def work(at: np.ndarray, beat: Any) -> Arrays:
            probes = at + first
            before = self.products
            lanczos = self._lanczos(torch.as_tensor(probes))
            self._run(lanczos, lambda _: beat())
            for i, probe in enumerate(probes):
                self._record(lanczos, i, int(probe))
            products = np.zeros(len(at), dtype=np.int64)
            products[0] = self.products - before
            outcomes = np.array([_NAMES.index(self.outcomes[probe]) for probe in probes])
            own = {name: getattr(self, name)[probes] for name in names}
            return own | {"outcomes": outcomes, "products": products}

        kept, count = self.checkpoint, len(self.starts)
        if count - first < 2 or self._together() < 1:
            return False
        found = by_ranks(
            "spectrum", kept.request, count - first, work, kept=kept, most=self._together(),
            unit="probe", progress=progress,
        )  # fmt: skip
        if found is None:
            return False
        for name in names:
            getattr(self, name)[first:] = found[name]
        self.outcomes[first:] = [_NAMES[i] for i in found["outcomes"]]
        self.notes = [
            _note(probe, int(np.isfinite(self.nodes[probe]).sum()))
            for probe in range(first, count) if self.outcomes[probe] == "not finite"
        ]  # fmt: skip
        self.before = self.op.products - int(found["products"].sum())
        if first:
            lanczos = self._lanczos(torch.arange(1))
            self._run(lanczos, lambda _: None)
            self._record(lanczos, 0, 0)
            self.pairs = self._pairs(lanczos)
        if not np.isfinite(self.nodes).any():
            raise InvalidArgument("operator: expected finite products, the first one is not")
        return True

    def _lanczos(self, probes: torch.Tensor) -> Lanczos:
        return Lanczos(
            self.op, self.starts[probes.to(self.starts.device)], self.steps, dtype=self.dtype,
            reorthogonalize=self.reorthogonalize,
        )  # fmt: skip

    def _run(self, lanczos: Lanczos, show: Any) -> None:
        while any(lanczos.running(i) for i in range(lanczos.count)):
            lanczos.run(max(lanczos.steps(i) for i in range(lanczos.count)) + 1)
            show(self.products)

    def _group(self, lanczos: Lanczos, group: range, show: Any) -> None:
        if self.found is not None and "basis" in self.found:
            self._load(lanczos, self.found)
        self.found = None

        def told(products: int) -> None:
            show(products)
            if self.checkpoint.due:
                self.checkpoint.save(self._arrays(lanczos))

        try:
            self._run(lanczos, told)
        except BaseException:
            if self.checkpoint.path is not None:
                self.checkpoint.save(self._arrays(lanczos))
            raise
        for i, probe in enumerate(group):
            self._record(lanczos, i, probe)
        self.done = group.stop
        if group.start == 0 and self.vectors:
            self.pairs = self._pairs(lanczos)
        if not np.isfinite(self.nodes[: self.done]).any():
            raise InvalidArgument("operator: expected finite products, the first one is not")

    def _record(self, lanczos: Lanczos, i: int, probe: int) -> None:
        values, first, bounds = lanczos.nodes(i)
        m = len(values)
        self.outcomes[probe] = lanczos.outcome(i)
        if lanczos.outcome(i) == "not finite":
            note = _note(probe, m)
            self.notes.append(note)
            warnings.warn(f"Lanczos stopped: {note}", stacklevel=7)
        if not m:
            return
        weights = first**2
        self.nodes[probe, :m] = self.op.restored(values)
        self.bounds[probe, :m] = self.op.restored(bounds)
        self.weights[probe, :m] = weights / weights.sum()

    def _pairs(self, lanczos: Lanczos) -> EigenPairs:
        from .eigen import pairs_of

        return pairs_of(lanczos, self.vectors, "LA", PAIRS_TOL)

    @contextmanager
    def _workspace(self, probes: int) -> Iterator[FilePath]:
        """A file for the group's basis, with room on the disk: beside the result, or where
        temporary files are that are no memory."""
        beside = self.checkpoint.path
        with scratch(disk_folder() / "pylandscape-basis" if beside is None else beside) as file:
            size = probes * (self.steps + 1) * self.op.n * torch.finfo(self.dtype).bits // 8
            if hasattr(os, "posix_fallocate"):  # a full disk now, not a crash later
                fd = os.open(file, os.O_RDWR)
                try:
                    os.posix_fallocate(fd, 0, size)
                finally:
                    os.close(fd)
            yield file

    def _together(self) -> int:
        """Probes whose bases fit into the free memory; 0: not even one."""
        one = (self.steps + 1) * self.op.n * torch.finfo(self.dtype).bits // 8
        return int(min(TOGETHER, MEMORY_SHARE * _free_memory(self.op.device) // one))

    def _arrays(self, lanczos: Lanczos) -> Arrays:
        states = [lanczos.state(i) for i in range(lanczos.count)]
        most = max(len(state[0]) for state in states)
        t = np.full((2, lanczos.count, most), np.nan)
        for i, (alpha, beta, _, _) in enumerate(states):
            t[0, i, : len(alpha)], t[1, i, : len(beta)] = alpha, beta
        arrays = {
            "nodes": self.nodes, "weights": self.weights, "bounds": self.bounds, "tridiagonal": t,
            "basis": lanczos.rows(most + 1), "exponent": self.op.known(),
            "counts": np.array([self.done, self.products]),
            "outcomes": np.array([int(state[3]) for state in states]),
            "finished": np.array([_NAMES.index(o) for o in self.outcomes]),
        }  # fmt: skip
        if self.pairs is not None:
            arrays |= {
                "pair_values": self.pairs.values, "pair_vectors": self.pairs.vectors.numpy(),
                "pair_residuals": self.pairs.residuals,
                "pair_converged": self.pairs.converged.astype(np.int64),
            }  # fmt: skip
        return arrays

    def _take_up(self, found: Arrays) -> None:
        self.nodes, self.weights, self.bounds = (
            found[name] for name in ("nodes", "weights", "bounds")
        )
        self.done = int(found["counts"][0])
        self.before = self.op.products - int(found["counts"][1])
        self.outcomes = [_NAMES[i] for i in found["finished"]]
        if "pair_values" in found:
            self.pairs = EigenPairs(
                found["pair_values"], torch.as_tensor(found["pair_vectors"]),
                found["pair_residuals"], found["pair_converged"] != 0, products=1, tol=PAIRS_TOL,
            )  # fmt: skip

    def _load(self, lanczos: Lanczos, found: Arrays) -> None:
        """The state of the group that was running."""
        basis = torch.as_tensor(found["basis"])
        lanczos.basis[:, : basis.shape[1]] = basis
        for i, (alpha, beta) in enumerate(zip(*found["tridiagonal"], strict=True)):
            alpha, beta = alpha[~np.isnan(alpha)], beta[~np.isnan(beta)]
            if i == 0:
                lanczos.recheck(i, alpha, 0, RECHECK)
                self.before += 1  # the check's product
            lanczos.load(i, alpha, beta, outcome=outcome_of(int(found["outcomes"][i])))


def _note(probe: int, steps: int) -> str:
    return f"probe {probe}: the product of step {steps + 1} is not finite"


_NAMES = ["complete", "breakdown", "exhausted", "not finite", "stopped"]


def _free_memory(device: torch.device) -> int:
    """Bytes that a basis there may take part of."""
    if device.type == "cuda":
        return free_memory(device)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not on this system
        return 4 << 30


def disk_folder() -> FilePath:
    """For large temporary files: $TMPDIR, or /var/tmp, since /tmp may be memory."""
    lasting = FilePath("/var/tmp")
    if "TMPDIR" not in os.environ and os.access(lasting, os.W_OK | os.X_OK):
        return lasting
    return FilePath(tempfile.gettempdir())


def _starts(starts: Any, op: SymmetricOperator) -> torch.Tensor:
    n = op.n
    try:
        given = torch.as_tensor(starts).detach().to(op.device, torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgument(f"starts: expected numbers of shape (k, {n}): {error}") from error
    if given.dim() != 2 or given.shape[1] != n or not len(given):
        raise InvalidArgument(f"starts: expected shape (k, {n}), got {tuple(given.shape)}")
    return given


def _literal(name: str) -> str:
    """A parameter's name as a pattern that matches it alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
