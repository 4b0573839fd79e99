"""`train`: runs advanced side by side from record to record, streamed to one file."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..arguments import callers_level, check_landscape, integer
from ..arrays import Array, all_finite, digest, jsonable, progress_bar
from ..engines import training as compiled
from ..engines.contract import Rule, RunState, Stepper
from ..engines.eager import TorchEngine
from ..engines.eager_training import TorchStepper
from ..errors import InvalidArgument, NotLowered, PylandscapeError, ResumeMismatch
from ..files.store import target_of
from ..ranks import by_itself, current
from ..runs.checkpoint import Arrays, Checkpoint
from ..runs.chunks import next_size
from ..runs.items import by_ranks, of_ranks
from ..runs.request import build, differences, listing
from ..theta import random_source
from ..theta.checks import chosen_metrics
from ..theta.layout import ParameterLayout
from ..theta.losses import metric_name
from ..theta.running_statistics import with_statistics
from ..trajectories import log, records
from ..trajectories.several import Runs, check_is_runs, write
from .optimisers import check_optimiser, schedule_factors
from .shared_runs import SharedRuns
from .starts import count_of, points_of

if TYPE_CHECKING:
    from ..landscape import Landscape

SUFFIX = ".training"  # of the file that holds the state of unfinished runs
ENGINES = ("auto", "native", "torch")
COLUMNS = ("step", "metrics", "values", "crc")  # of a record

logger = logging.getLogger("pylandscape")


def train(
    land: Landscape,
    starts: Any,
    optimizer: Any,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    record: Any = "epoch",
    metrics: Sequence[Any] | None = None,
    seed: int | Sequence[int] = 0,
    own_order: bool = False,
    drop_last: bool = False,
    schedule: Any = None,
    clip: float | None = None,
    engine: str = "auto",
    dtype: str | None = None,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Runs:
    """Train P copies of the landscape's model side by side, and record where they go::

        runs = pl.train(land, 4, pl.Adam(lr=1e-3), epochs=20, batch_size=128, path="runs.h5")
        runs.plot(); pl.mds(runs).plot(); pl.track(runs[0], land, lr=1e-3)
        more = pl.train(land, runs, pl.SGD(lr=0.1), epochs=10, batch_size=128)  # from their ends

    The model is trained in train mode, a copy of it: batch norm normalises by the mini-batch and
    moves running statistics, dropout draws. All runs see the same mini-batches.

    Args:
        starts: points (P, n), or a sequence of vectors, modules, state dicts, checkpoints or
            trajectories (their ends), `Runs` among them; or how many runs, initialised by the
            modules' own ``reset_parameters`` with the runs' seeds. A vector has the landscape's
            running statistics, or its own after theta, (n + m,).
        optimizer: `SGD`, `Adagrad`, `RMSprop`, `Adadelta`, `Adam`, `AdamW` or `RungeKutta`; its
            state begins anew.
        epochs, steps: how long, one of them.
        batch_size: samples in a mini-batch; default all of them, in the data's order.
        record: "epoch", an integer k (each k-th step), or the steps to record. The start and the
            end are recorded as well.
        metrics: "loss", "accuracy" or callables, over the landscape's data at each record; default
            the loss, and the accuracy where the loss has one; () for none. Where bn="eval", with
            the run's own running statistics.
        seed: epoch e's order is a function of (seed, e); run p's initialisation and dropout have
            the seed ``seed + p``. A sequence gives each run its own (the order is the first's).
        own_order: each run has the order of its own seed.
        drop_last: leave out an epoch's last mini-batch where it is smaller.
        schedule: `StepDecay`, `Cosine`, `WarmUp`, a function of the step, or an array: factors of
            the learning rate.
        clip: largest norm of a step's gradient; longer ones are shortened to it.
        engine: "auto" (native where it can), "native" (or an error that says why not), "torch".
        dtype: "float64", "float32" or "float16" of the recorded numbers; default the landscape's.
        path: HDF5 file of all runs, which lie in ``path + ".recording"`` meanwhile; stopped or
            killed, the same call goes on and gives the same bits.
        progress: show a bar on stderr.

    A run that diverges is recorded as it is, the others go on, and a warning says so at the end.

    Raises:
        InvalidArgument: arguments that do not fit, starts of another model, a batch larger than
            the data, data that cannot be cut into mini-batches.
        NotDifferentiable: a loss that uses the parameters and has no derivative in them.
        NotLowered: engine="native" where there is no compiled training for this model.
        ResumeMismatch: ``path`` belongs to another request.
        OSError: a full disk; what was recorded before is safe.
    """
    check_landscape(land, "train")
    check_optimiser(optimizer)
    if engine not in ENGINES:
        raise InvalidArgument(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
    count = count_of(starts)
    seeds = _seeds(seed, count)
    plan = _planned(land, epochs, steps, batch_size, record, drop_last, seeds, own_order)
    rates = optimizer.lr * schedule_factors(schedule, plan.steps)
    rule = optimizer.rule(_clip(clip))
    layout = with_statistics(land.layout, land.model)
    theta, statistics = points_of(land, starts, layout, seeds)
    chosen = _metrics(land, metrics)
    stepper, name, reason = _stepper(land, rule, engine)
    request = build(
        land, "train", starts=[digest(theta), digest(statistics)], rule=asdict(rule),
        rates=digest(rates), plan=plan.described(), record=digest(np.array(plan.recorded)),
        metrics=[metric_name(m) for m in chosen], trained_by=name, dtype=dtype,
    )  # fmt: skip
    about = {
        "runs": count,
        "info": {"request": jsonable(request, "request"), "engine": name, "reason": reason},
    }
    header = records.make_header(
        land.layout, _statistics(layout), dtype or str(land.dtype).removeprefix("torch."),
        (*(metric_name(m) for m in chosen), "batch_loss", "lr"), about,
    )  # fmt: skip
    state = RunState(
        theta, [torch.zeros_like(theta) for _ in rule.slots], statistics, 0,
        torch.tensor(seeds, dtype=torch.int64),
    )  # fmt: skip
    evaluate = _evaluator(land, chosen, layout)
    training = _Training(stepper, plan, rates, state, header, evaluate, progress)
    whole = jsonable(request, "request")

    def part(at: np.ndarray, beat: Callable[[], None]) -> _Training:
        own = plan if len(plan.seeds) == 1 else replace(plan, seeds=tuple(seeds[i] for i in at))
        chosen = torch.as_tensor(at, device=theta.device)
        state = RunState(
            theta[chosen], [torch.zeros_like(theta[chosen]) for _ in rule.slots],
            statistics[chosen], 0, torch.tensor([seeds[i] for i in at], dtype=torch.int64),
        )  # fmt: skip
        return _Training(stepper, own, rates, state, header, evaluate, False, beat)

    def some(at: np.ndarray, beat: Callable[[], None]) -> Arrays:
        return part(at, beat).by_run()

    def logged(kept: Checkpoint, files: SharedRuns) -> Array | None:
        def work(at: np.ndarray, beat: Callable[[], None]) -> Arrays:
            part(at, beat).into(files.writer(at))
            return {"places": files.places(at)}

        found = by_ranks("train", whole, count, work, kept=kept, unit="run", progress=progress)
        return None if found is None else found["places"]

    def shared(kept: Checkpoint | None) -> Arrays | None:
        found = by_ranks("train", whole, count, some, kept=kept, unit="run", progress=progress)
        return None if found is None else {k: _by_moment(found[k]) for k in COLUMNS}

    if path is not None:
        runs = training.kept(path, whole, shared, logged)
    elif (columns := shared(None)) is not None:
        runs = Runs(header, columns)
    else:
        runs = training.in_memory()
    if bad := runs.diverged:
        warnings.warn(
            f"{len(bad)} of {count} runs diverged (their loss or parameters are not finite any "
            f"more): {', '.join(map(str, bad))}; a smaller lr or clip= may keep them",
            stacklevel=callers_level(),
        )
    return runs


@dataclass(frozen=True)
class _Plan:
    """Which samples each step sees, and which steps are recorded."""

    size: int  # samples
    batch: int | None  # None: all, in order
    per_epoch: int  # steps
    steps: int
    recorded: tuple[int, ...]
    seeds: tuple[int, ...]  # of the orders: one, or each run's own

    def described(self) -> dict[str, Any]:
        """For a request; the samples of a plan follow from it."""
        drawn = None if self.batch is None else [random_source.SOURCE, *self.seeds]
        return {
            "batch": self.batch, "per_epoch": self.per_epoch, "steps": self.steps, "order": drawn
        }  # fmt: skip

    def batches(self, first: int, last: int) -> Iterator[Tensor]:
        """Sample indices (B,) or (P, B) of the steps first .. last."""
        epoch, order = -1, torch.arange(self.size)
        for step in range(first, last):
            if self.batch is None:
                yield order
                continue
            if step // self.per_epoch != epoch:
                epoch = step // self.per_epoch
                found = [self._order(seed, epoch) for seed in self.seeds]
                order = found[0] if len(found) == 1 else torch.stack(found)
            begin = step % self.per_epoch * self.batch
            yield order[..., begin : begin + self.batch]

    def _order(self, seed: int, epoch: int) -> Tensor:
        drawn = torch.empty(self.size)
        random_source.fill(drawn, seed, random_source.ORDER, epoch)
        return torch.argsort(drawn, stable=True)


class _Training:
    """The runs on their way: state, records, and what a resume needs."""

    def __init__(
        self,
        stepper: Stepper,
        plan: _Plan,
        rates: Array,
        state: RunState,
        header: log.Header,
        evaluate: Callable[[Tensor, Tensor], Array],
        progress: bool,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._stepper, self._plan, self._state = stepper, plan, state
        self._rates = torch.from_numpy(rates)
        self._header, self._evaluate, self._progress = header, evaluate, progress
        self._beat = beat  # called after each chunk of steps
        self._count = len(state.theta)
        self._sums = np.zeros(self._count)  # of the mini-batches' losses since the last record,
        self._terms = 0  # and how many
        self._safe: dict[str, Any] | None = None  # the state before the chunk that is running

    def in_memory(self) -> Runs:
        """All records in arrays."""
        return Runs(self._header, self._columns())

    def by_run(self) -> Arrays:
        """The records' columns (P, moments, ...)."""
        shape = (len(self._plan.recorded), self._count)
        return {
            name: np.ascontiguousarray(np.moveaxis(column.reshape(*shape, *column.shape[1:]), 1, 0))
            for name, column in self._columns().items()
        }

    def into(self, writer: log.Writer) -> None:
        """All records into a new log, which is on the disk and closed then."""

        def keep(row: int, step: int, metrics: Array, values: Any) -> None:
            writer.append(step, metrics, values)

        with closing(writer):
            self._run(keep, None)
            writer.sync()

    def _columns(self) -> Arrays:
        """The records' columns (moments P, ...)."""
        kind = self._header.record()
        found = np.zeros(len(self._plan.recorded) * self._count, kind)

        def keep(row: int, step: int, metrics: Array, values: Any) -> None:
            found[row]["step"], found[row]["metrics"] = step, metrics
            found[row]["values"] = values
            found[row]["crc"] = log.crc_of(found[row])

        self._run(keep, None)
        return {k: found[k] for k in COLUMNS}

    def kept(
        self,
        path: str | os.PathLike[str],
        request: Mapping[str, Any],
        shared: Callable[[Checkpoint], Arrays | None],
        logged: Callable[[Checkpoint, SharedRuns], Array | None],
    ) -> Runs:
        """Records in a file, which a killed run goes on from.

        Several ranks keep whole runs, in logs of their own (`logged` gives their places); or, where
        they cannot write where the first one does, in memory (`shared` gives the columns). The
        first writes the result.
        """
        ranks = current()
        if ranks is None:
            target = target_of(path)
            files = self._files(target, 0)
            if not self._stands(target, request):
                self._write(target, request, shared, logged, files if files.begun else None)
            files.remove()
            return Runs.open(target)
        with ranks.call("train in a file", request) as call:
            first = call.first
            target = target_of(path) if first else Path(os.path.realpath(path))
            files = self._files(target, call.rank)
            stands, begun = False, False
            if first:
                stands = self._stands(target, request)
                begun = any(
                    target.with_name(target.name + s).exists() for s in (log.SUFFIX, SUFFIX)
                )
            stands, begun = call.from_first([np.array([stands, begun])])[0].tolist()
            if not stands and not begun:
                together = files if files.writable(call) else None
                self._write(target, request, shared, logged, together, first)
            elif not stands and first:  # what one process began, one goes on with
                self._beat = call.beat
                with by_itself():
                    self._write(target, request, shared, logged, None)
            if first:
                files.remove()
            call.meet("the file of the runs")
            runs = Runs.open(target) if first else _seen(target, request)
            if all(bool(there[0]) for there in call.exchange([np.array(runs is not None)])):
                assert runs is not None
                return runs
            columns = [] if not first or runs is None else [runs.columns[k] for k in COLUMNS]
            found = call.from_first([np.asarray(column) for column in columns])
            return runs or Runs(self._header, dict(zip(COLUMNS, found, strict=True)))

    def _files(self, target: Path, rank: int) -> SharedRuns:
        return SharedRuns(target, self._header, len(self._plan.recorded), rank)

    def _stands(self, target: Path, request: Mapping[str, Any]) -> bool:
        """Whether the file is there, of the same request."""
        if not target.exists() or target.with_name(target.name + log.SUFFIX).exists():
            return False
        _check_same(target, request)
        return True

    def _write(
        self,
        target: Path,
        request: Mapping[str, Any],
        shared: Callable[[Checkpoint], Arrays | None],
        logged: Callable[[Checkpoint, SharedRuns], Array | None],
        files: SharedRuns | None,
        owner: bool = True,
    ) -> None:
        """Train, and write the file; another rank than the owner helps."""
        beside = target.with_name(target.name + log.SUFFIX)
        state = target.with_name(target.name + SUFFIX)
        kept = Checkpoint(state if owner else None, request)
        if files is not None and not beside.exists():
            kept.beside = files.record
            if (places := logged(kept, files)) is not None:
                if owner:
                    total = self._count * len(self._plan.recorded)
                    records.write(target, self._header, files.rows(places), total)
                return
        kept.beside = state
        if not beside.exists() and (columns := shared(kept)) is not None:
            if owner:
                write(target, self._header, columns)
                for record in of_ranks(state):
                    record.unlink(missing_ok=True)
            return
        with ExitStack() as stack:
            checkpoint = stack.enter_context(Checkpoint(state, request))
            writer = log.Writer(beside, self._header)
            stack.callback(writer.close)
            before = log.read(beside)[1] if writer.steps else None

            def keep(row: int, step: int, metrics: Array, values: Any) -> None:
                if before is not None and row < len(before):
                    _check_equal(before[row], step, metrics, values, beside)
                else:
                    writer.append(step, metrics, values)

            try:
                self._run(keep, checkpoint)
            except BaseException as error:
                self._save(checkpoint)
                logger.warning(
                    "stopped by %s: %d records are kept in %s; the same call continues there",
                    type(error).__name__, len(writer.steps), beside,
                )  # fmt: skip
                raise
            writer.sync()
            header, found = log.read(beside)
            write(target, header, {k: found[k] for k in COLUMNS})
            checkpoint.remove()
            beside.unlink(missing_ok=True)

    def _run(self, keep: Callable[..., None], checkpoint: Checkpoint | None) -> None:
        """``keep(row, step, metrics, values)`` of each record that a resumed run did not have."""
        state, recorded = self._state, self._plan.recorded
        if checkpoint is not None and (found := checkpoint.load()) is not None:
            self._load(found)
        size = 1
        with progress_bar(
            self._plan.steps, "train", "step", self._progress, state.steps
        ) as bar:  # fmt: skip
            for moment, stop in enumerate(recorded):
                if stop < state.steps or (stop == state.steps and stop and not self._terms):
                    continue  # recorded before the checkpoint
                while state.steps < stop:
                    if checkpoint is not None:
                        self._safe = self._arrays()
                        if checkpoint.due:
                            self._save(checkpoint)
                    last = min(state.steps + size, stop)
                    taken, begun = last - state.steps, time.perf_counter()
                    self._advance(last)
                    self._beat()
                    size = next_size(taken, time.perf_counter() - begun)
                    bar.update(taken)
                self._record(moment, stop, keep)
                if checkpoint is not None:
                    self._safe = self._arrays()

    def _advance(self, last: int) -> None:
        first = self._state.steps
        batches = list(self._plan.batches(first, last))
        losses = self._stepper.advance(self._state, batches, self._rates[first:last])
        for column in losses.numpy().T:  # one by one: chunks do not change the sum
            self._sums += column
            self._terms += 1

    def _record(self, moment: int, step: int, keep: Callable[..., None]) -> None:
        state = self._state
        rate = float(self._rates[max(step - 1, 0)])
        dtype = getattr(torch, self._header.dtype)
        for p in range(self._count):
            mean = self._sums[p] / self._terms if self._terms else np.nan
            own = self._evaluate(state.theta[p], state.buffers[p])
            values = torch.cat([state.theta[p], state.buffers[p]]).to("cpu", dtype).numpy()
            keep(moment * self._count + p, step, np.array([*own, mean, rate]), values)
        self._sums, self._terms = np.zeros(self._count), 0

    def _arrays(self) -> dict[str, np.ndarray]:
        state = self._state
        moments = {f"moment{k}": m.cpu().numpy().copy() for k, m in enumerate(state.moments)}
        return {
            "theta": state.theta.cpu().numpy().copy(), **moments,
            "buffers": state.buffers.cpu().numpy().copy(),
            "steps": np.array(state.steps), "sums": self._sums.copy(),
            "terms": np.array(self._terms),
        }  # fmt: skip

    def _save(self, checkpoint: Checkpoint) -> None:
        if self._safe is not None:
            checkpoint.save(self._safe)

    def _load(self, found: Mapping[str, np.ndarray]) -> None:
        state = self._state
        state.theta.copy_(torch.from_numpy(found["theta"]))
        state.buffers.copy_(torch.from_numpy(found["buffers"]))
        for k, moment in enumerate(state.moments):
            moment.copy_(torch.from_numpy(found[f"moment{k}"]))
        state.steps = int(found["steps"])
        self._sums, self._terms = found["sums"].copy(), int(found["terms"])


def _by_moment(column: np.ndarray) -> np.ndarray:
    """(P, moments, ...) as a log's (moments P, ...)."""
    turned = np.moveaxis(column, 0, 1)
    return np.ascontiguousarray(turned).reshape(-1, *turned.shape[2:])


def _seeds(seed: Any, count: int) -> list[int]:
    if isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str):
        found = [integer(s, "seed") for s in seed]
        if len(found) != count:
            raise InvalidArgument(f"seed: expected one or {count}, got {len(found)}")
    else:
        found = [integer(seed, "seed") + p for p in range(count)]
    return [(s + 2**63) % 2**64 - 2**63 for s in found]


def _planned(
    land: Landscape, epochs: Any, steps: Any, batch_size: Any, record: Any, drop_last: bool,
    seeds: Sequence[int], own_order: bool,
) -> _Plan:  # fmt: skip
    if (epochs is None) == (steps is None):
        got = "neither" if epochs is None else "both"
        raise InvalidArgument(f"epochs, steps: expected exactly one of them, got {got}")
    size = land.dataset.size
    batch = None if batch_size is None else integer(batch_size, "batch_size", 1)
    if batch is not None and batch > size:
        raise InvalidArgument(
            f"batch_size: expected at most the {size} samples of the data, got {batch}"
        )
    per_epoch = 1 if batch is None else size // batch if drop_last else -(-size // batch)
    if steps is None:
        total = integer(epochs, "epochs", 1) * per_epoch
    else:
        total = integer(steps, "steps", 1)
    own = tuple(seeds) if own_order else (seeds[0],)
    return _Plan(size, batch, per_epoch, total, _recorded(record, total, per_epoch), own)


def _recorded(record: Any, total: int, per_epoch: int) -> tuple[int, ...]:
    if isinstance(record, str):
        if record != "epoch":
            raise InvalidArgument(f"record: expected 'epoch', an integer or steps, got {record!r}")
        found = set(range(0, total + 1, per_epoch))
    elif isinstance(record, Sequence | np.ndarray):
        found = {integer(step, "record", 0, total) for step in record}
    else:
        found = set(range(0, total + 1, integer(record, "record", 1)))
    return tuple(sorted(found | {0, total}))


def _clip(clip: Any) -> float | None:
    if clip is None:
        return None
    if isinstance(clip, bool) or not isinstance(clip, int | float) or not 0 < clip < np.inf:
        raise InvalidArgument(f"clip: expected a positive number, got {clip!r}")
    return float(clip)


def _metrics(land: Landscape, metrics: Any) -> tuple[Any, ...]:
    if metrics is None:
        with_accuracy = getattr(land.loss_spec, "classifies", False)
        return ("loss", "accuracy") if with_accuracy else ("loss",)
    given = (metrics,) if isinstance(metrics, str) or callable(metrics) else tuple(metrics)
    if not given:
        return ()
    found = tuple(chosen_metrics(given, land.loss_spec))
    names = [metric_name(m) for m in found]
    if taken := {"batch_loss", "lr"} & set(names):
        raise InvalidArgument(f"metrics: expected other names than {sorted(taken)}")
    return found


def _evaluator(
    land: Landscape, metrics: Sequence[Any], layout: ParameterLayout
) -> Callable[[Tensor, Tensor], Array]:
    """(theta (n,), statistics (m,)) -> the metrics over the data; NaN where a point is not
    finite."""
    names = [metric_name(m) for m in metrics]
    nothing = np.full(len(names), np.nan)
    moving = layout.n > land.n_params and land.bn == "eval"
    ask: Callable[[Tensor], Mapping[str, np.ndarray]]
    if moving:  # with the run's own statistics, which are no part of the landscape's points
        engine = TorchEngine(
            land.model, land.loss_spec, land.eager.batches, layout,
            dtype=None, device=land.device, bn="eval", autocast=land.autocast,
        )  # fmt: skip
        points = engine.prepare_points(metrics)

        def ask(point: Tensor) -> Mapping[str, np.ndarray]:
            return points(point[None])
    else:
        nowhere = torch.zeros(1, land.n_params, dtype=land.dtype, device=land.device)
        whole = land.moved.n > land.n_params

        def ask(point: Tensor) -> Mapping[str, np.ndarray]:
            theta = point if whole else point[: land.n_params]
            return land.prepare(nowhere, metrics=metrics, theta=theta)(np.zeros((1, 1)))

    def evaluate(theta: Tensor, statistics: Tensor) -> Array:
        point = torch.cat([theta, statistics])
        if not names or not all_finite(point):
            return nothing
        found = ask(point)
        return np.array([float(found[name][0]) for name in names])

    return evaluate


def _stepper(land: Landscape, rule: Rule, engine: str) -> tuple[Stepper, str, str | None]:
    """What advances the runs, its name, and why it is not the compiled one."""
    reason: str | None = "engine='torch' was asked for"
    if engine != "torch":
        reason = None
        if land.engine == "torch":
            reason = f"the landscape runs on torch: {land.engine_report()}"
        else:
            try:
                return compiled.build(land, rule), "native", None
            except NotLowered as error:
                reason = str(error)
        if engine == "native":
            raise NotLowered(f"engine='native': {reason}")
    return TorchStepper(land, rule), "torch", reason


def _statistics(layout: ParameterLayout) -> dict[str, Tensor]:
    return {
        e.name: torch.empty(e.shape, dtype=e.dtype) for e in layout.entries if e.kind == "statistic"
    }


def _check_same(target: Path, request: Mapping[str, Any]) -> None:
    there = Runs.open(target)
    check_is_runs(there.header, target)
    rows = differences(there.info.get("request") or {}, jsonable(request, "request"))
    if rows:
        raise ResumeMismatch(
            f"path: {target} holds the runs of another request; remove it or use another path. "
            f"What differs:{listing(rows)}"
        )


def _seen(target: Path, request: Mapping[str, Any]) -> Runs | None:
    """The file that the first rank wrote, where this one sees it."""
    try:
        _check_same(target, request)
        return Runs.open(target)
    except (PylandscapeError, OSError):
        return None


def _check_equal(before: Any, step: int, metrics: Array, values: Any, path: Path) -> None:
    record = np.zeros((), before.dtype)
    record["step"], record["metrics"], record["values"] = step, metrics, values
    if log.crc_of(record) != int(before["crc"]):
        raise ResumeMismatch(
            f"path: {path} records another point at step {step} than the same call computes now: "
            "the model's code, the data or the machine's arithmetic changed; remove it to restart"
        )
