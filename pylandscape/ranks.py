"""Several processes that answer as one: the ranks of a torch.distributed group.

Every rank runs the same script and calls the same functions. Long work is cut into items; ranks
draw them from a counter in the group's store, compute them alone, and exchange what they found, so
every rank ends with the whole result and with the bits of one process. Where: runs/chunks.py
(points), runs/items.py (walks, probes, runs of training), runs/resume.py (files).

All waiting goes through the store and has a time limit: ranks compare what they ask before they
start, look for failures of others between items and while they wait, and notice a rank that gives
no sign of life. Arrays go through a gloo group of our own, whatever the user's backend is; they are
numbers with a shape, never pickled objects. Small ones, and those of `Call.send`, go through the
store.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import numpy as np

from .errors import InvalidArgument, RankFailed

TIMEOUT = 1800.0  # seconds without a sign of life after which a rank counts as lost
GRACE = 2.0  # seconds in which the other ranks may say what they ask, once one differs
LEAVING = 5.0  # seconds that rank 0, which may hold the store, waits for the others at the end
LISTEN = 1.0  # seconds between two looks at the signs of life
SAID = 60.0  # seconds of waiting after which the log says for whom
SMALL = 1 << 16  # bytes that go through the store; more go through gloo
PIECE = 1 << 28  # bytes of one broadcast
OWNER = "PYLANDSCAPE_RANK_PROCESS"  # environment: the process that is the rank; children are not

log = logging.getLogger("pylandscape")

# Which part of a request a field belongs to; all others are arguments.
PARTS = {
    "model": ("model", "model_state", "layout", "n_params", "dtype", "bn", "has_batchnorm", "loss"),
    "theta": ("theta", "model_theta"),
    "data": ("data", "batches", "subset"),
    "arithmetic": ("engine", "instruction_set", "arithmetic", "versions"),
}
HINTS = {
    "data": "every rank needs the same samples in the same order: does the loader shuffle, or has "
    "it a DistributedSampler (whose shards differ, and are padded with duplicates)? Give every "
    "rank all of the data; Landscape(..., shard='data') shares out their samples by itself",
    "model": "load the same checkpoint on all ranks, or broadcast rank 0's",
    "theta": "load the same checkpoint on all ranks, make the model behind the same "
    "torch.manual_seed, or broadcast rank 0's",
    "arithmetic": "ranks need the same versions, kind of processor or GPU, and number of threads "
    "for the bits of one process",
    "function": "every rank must make the same calls in the same order",
    "arguments": "every rank must give the same arguments, seeds included",
}


class Ranks:
    """The group as this process sees it.

    Attributes:
        rank, size: this process's number among how many.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._store = store
        # Ranks that end an outermost call at different calls within it still count alike.
        self._calls = self._inner = 0
        self._depth = 0  # calls that we are in; the outermost is number _calls - 1
        self._posted = -1  # the outermost call whose failure we told
        self._failures: list[dict[str, Any]] = []
        self._old: list[str] = []  # our keys of calls that have ended
        self._gloo: Any = None
        self._generation = 0  # of the gloo group: another one after a failure

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which owns files and speaks."""
        return self.rank == 0

    @property
    def timeout(self) -> float:
        """Seconds without a sign of life after which a rank counts as lost."""
        return _state.timeout or TIMEOUT

    def __repr__(self) -> str:
        return f"<rank {self.rank} of {self.size}>"

    @contextmanager
    def call(self, function: str, request: Mapping[str, Any]) -> Iterator[Call]:
        """One piece of work of all ranks, begun together; an exception in it ends it on all.

        Raises:
            InvalidArgument: the ranks ask different things.
            RankFailed: another rank failed or is lost.
        """
        if self._depth:
            self._inner += 1
        else:
            self._calls, self._inner = self._calls + 1, 0
        call = Call(self, self._calls - 1, self._inner)
        self._depth += 1
        try:
            call.agree(function, request)
            for key in self._old:
                with suppress(Exception):
                    self._store.delete_key(key)
            self._old = []
            yield call
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._depth -= 1
            self._old += call.keys

    def beat(self) -> None:
        """A sign of life, and a look for failures of others."""
        self.add(f"beat/{self.rank}", 1)
        self.check()

    def check(self) -> None:
        """Raises RankFailed where another rank failed in the call that we are in."""
        count = self._ask(lambda: self._store.add("failures", 0))
        for i in range(len(self._failures), count):
            told = self.get(f"failure/{i}")
            if told is None:  # counted, not yet written
                break
            self._failures.append(json.loads(told))
        if not self._depth:
            return
        for failure in self._failures:
            if failure["call"] == self._calls - 1 and failure["rank"] != self.rank:
                raise RankFailed(f"rank {failure['rank']} stopped: {failure['text']}", told=True)

    def put(self, key: str, value: str | bytes) -> None:
        self._ask(lambda: self._store.set(key, value))

    def get(self, key: str) -> bytes | None:
        """What is there, or None; waits for nothing."""
        if not self._ask(lambda: self._store.check([key])):
            return None
        found: bytes = self._ask(lambda: self._store.get(key))
        return found

    def add(self, key: str, count: int) -> int:
        return int(self._ask(lambda: self._store.add(key, count)))

    def wait(
        self,
        ranks: Sequence[int],
        there: Callable[[int], bool],
        what: str,
        meanwhile: Callable[[], None] | None = None,
        enough: Callable[[], bool] | None = None,
    ) -> None:
        """Wait until `there` holds for all of the ranks, or until it is `enough`.

        Raises:
            RankFailed: one failed, has left, or gave no sign of life for `timeout` seconds, and
                not all are there.
        """
        left, delay, begun, said = list(ranks), 1e-3, time.monotonic(), False
        heard = dict.fromkeys(left, (b"", begun))
        listened = begun
        while left := [r for r in left if not there(r)]:
            try:
                self.check()
            except RankFailed:
                if [r for r in left if not there(r)]:
                    raise
                return
            if enough is not None and enough():
                return
            now = time.monotonic()
            if not said and now - begun > SAID:
                said = True
                log.warning("rank %d waits for %s to come to %s", self.rank, _ranks(left), what)
            if now - listened > min(LISTEN, self.timeout / 4):
                listened = now
                for r in left:
                    self._listen(r, heard, now, what)
            if meanwhile is not None:
                meanwhile()
            time.sleep(delay)
            delay = min(1.5 * delay, 0.05)

    def leave(self, error: BaseException | None) -> None:
        """Tell the others that this rank takes part in nothing more."""
        text = "it has left the group" if error is None else _told(error)
        with suppress(Exception):
            self._store.set(f"left/{self.rank}", text)
            if self.first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                end = time.monotonic() + LEAVING
                others = [f"left/{r}" for r in range(1, self.size)]
                while not self._store.check(others) and time.monotonic() < end:
                    time.sleep(0.01)

    def broadcast(self, buffer: np.ndarray, source: int) -> None:
        """The bytes of rank `source` into the others' buffer (b,) uint8, by gloo."""
        import torch
        import torch.distributed as dist

        try:
            if self._gloo is None:
                self._gloo = dist.ProcessGroupGloo(
                    dist.PrefixStore(f"gloo/{self._generation}", self._store), self.rank,
                    self.size, timedelta(seconds=self.timeout),
                )  # fmt: skip
            options = dist.BroadcastOptions()
            options.rootRank, options.rootTensor = source, 0
            for begin in range(0, buffer.size, PIECE):
                piece = buffer[begin : begin + PIECE]
                part = torch.from_numpy(piece if piece.flags.writeable else piece.copy())
                work, delay = self._gloo.broadcast([part], options), 1e-4
                while not work.is_completed():
                    self.check()
                    time.sleep(delay)
                    delay = min(1.5 * delay, 0.01)
                work.wait()
        except RankFailed:
            raise
        except Exception as error:
            raise RankFailed(
                f"the ranks lost each other while arrays of rank {source} were sent: {error}"
            ) from error

    def _listen(
        self, rank: int, heard: dict[int, tuple[bytes, float]], now: float, what: str
    ) -> None:
        gone = self.get(f"left/{rank}")
        if gone is not None:
            raise RankFailed(f"rank {rank} does not come to {what}: {gone.decode()}")
        beat = self.get(f"beat/{rank}") or b""
        if beat != heard[rank][0]:
            heard[rank] = beat, now
        silent = now - heard[rank][1]
        if silent > self.timeout:
            raise RankFailed(
                f"rank {rank} did not come to {what} and gave no sign of life for "
                f"{silent:.0f} s: it ended, hangs, or does not make this call (every rank must; "
                "with pl.distributed(alone=True): is for work of one rank). "
                "pl.distributed(timeout=...) sets the limit"
            )

    def _fail(self, error: BaseException) -> None:
        """Tell the others, once for each outermost call."""
        self._gloo = None  # some may be in the middle of it
        self._generation += 1
        told_by_another = isinstance(error, RankFailed) and error.told
        if told_by_another or self._posted == self._calls - 1:
            return
        self._posted = self._calls - 1
        told = {"rank": self.rank, "call": self._calls - 1, "text": _told(error)}
        with suppress(Exception):
            number = self._store.add("failures", 1) - 1
            self._store.set(f"failure/{number}", json.dumps(told))

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except Exception as error:
            raise RankFailed(
                f"the store of the group does not answer; the process that holds it (rank 0, or "
                f"torchrun) ended: {error}"
            ) from error


class Call:
    """One call of all ranks; see `Ranks.call`. All make the same exchanges in the same order."""

    def __init__(self, ranks: Ranks, number: int, inner: int) -> None:
        self.ranks, self.number, self._inner = ranks, number, inner
        self.rank, self.size, self.first = ranks.rank, ranks.size, ranks.first
        self.keys: list[str] = []  # that this rank wrote
        self._steps = 0
        self._sent = 0
        self._received = [0] * ranks.size

    def agree(self, function: str, request: Mapping[str, Any]) -> None:
        """Compare with the other ranks; see `Ranks.call`."""
        own = {"function": function, **_parts(request)}
        fields = {name: _digest(value) for name, value in _arguments(request).items()}
        mine = json.dumps({"asked": own, "fields": fields, "gloo": self.ranks._generation})
        self._put(f"asked/{self.rank}", mine)
        told = {self.rank: mine.encode()}
        found: dict[int, Any] = {}

        def differs() -> bool:
            for rank in told.keys() - found.keys():
                found[rank] = json.loads(told[rank])
            return any(each["asked"] != own for each in found.values())

        end = math.inf

        def enough() -> bool:
            nonlocal end
            if differs():
                end = min(end, time.monotonic() + GRACE)
            return time.monotonic() > end

        try:
            self._hear("asked", told, f"call {self.number + 1}, {function}", enough=enough)
        except RankFailed:
            if not differs():
                raise  # else each rank tells the difference itself, in full
        if differs():
            asked = {rank: found[rank]["asked"] for rank in sorted(found)}
            each = [found[rank]["fields"] for rank in asked]
            names = [n for n in dict.fromkeys(n for f in each for n in f) if _differ(each, n)]
            raise InvalidArgument(_difference(self.number, asked, names))
        newest = max(each["gloo"] for each in found.values())
        if newest > self.ranks._generation:
            self.ranks._generation, self.ranks._gloo = newest, None

    def draw(self, count: int) -> int:
        """The first of `count` numbers that no other rank gets: 0, 1, 2, ..."""
        key = self._key("next")
        at = self.ranks.add(key, count) - count
        if at == 0:
            self.keys.append(key)
        return at

    def beat(self) -> None:
        self.ranks.beat()

    def meet(self, what: str, meanwhile: Callable[[], None] | None = None) -> None:
        """Wait until all ranks are here."""
        name = self._step()
        self._put(f"{name}/{self.rank}", "1")
        self._hear(name, {self.rank: b"1"}, what, meanwhile)

    def exchange(self, arrays: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """Every rank's arrays, of numbers, on all ranks; only to be read, as the own ones are not
        copied."""
        given = [np.asarray(a, order="C") for a in arrays]
        name = self._step()
        self._put(f"{name}/{self.rank}", _packed(given, SMALL))
        told: dict[int, bytes] = {}
        self._hear(name, told, "the exchange of results")
        found = []
        for rank in range(self.size):
            theirs = _unpacked(told[rank], SMALL, given if rank == self.rank else None)
            for array in theirs:
                if array.nbytes > SMALL:
                    self.ranks.broadcast(array.reshape(-1).view(np.uint8), rank)
            found.append(theirs)
        return found

    def from_first(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Rank 0's arrays; those of others are not looked at."""
        return self.exchange(arrays if self.first else [])[0]

    def send(self, *arrays: np.ndarray) -> None:
        """Arrays to rank 0, which gets them by `received` whenever it looks."""
        self.ranks.put(self._key(f"sent/{self.rank}/{self._sent}"), _packed(arrays))
        self._sent += 1

    def received(self) -> Iterator[list[np.ndarray]]:
        """What others have sent since the last look."""
        for rank in range(1, self.size):
            while True:
                key = self._key(f"sent/{rank}/{self._received[rank]}")
                told = self.ranks.get(key)
                if told is None:
                    break
                self._received[rank] += 1
                self.keys.append(key)
                yield _unpacked(told)

    def _hear(
        self,
        name: str,
        told: dict[int, bytes],
        what: str,
        meanwhile: Callable[[], None] | None = None,
        enough: Callable[[], bool] | None = None,
    ) -> None:
        """Puts into `told` what each rank that is not there yet says under a name, as they come."""

        def there(rank: int) -> bool:
            found = self.ranks.get(self._key(f"{name}/{rank}"))
            if found is not None:
                told[rank] = found
            return found is not None

        left = [rank for rank in range(self.size) if rank not in told]
        self.ranks.wait(left, there, what, meanwhile, enough)

    def _step(self) -> str:
        self._steps += 1
        return f"step{self._steps}"

    def _key(self, name: str) -> str:
        return f"{self.number}.{self._inner}/{name}"

    def _put(self, name: str, value: str | bytes) -> None:
        self.keys.append(self._key(name))
        self.ranks.put(self._key(name), value)


class _Alone(threading.local):
    depth = 0


class _State:
    """Of this process: the group, and what `distributed` asked for."""

    ranks: Ranks | None = None
    of: Any = None  # what `ranks` is of: the torch group, or "torchrun"
    timeout: float | None = None


_alone = _Alone()
_state = _State()


def current() -> Ranks | None:
    """The ranks that share the work; None where this process works alone."""
    if _alone.depth:
        return None
    dist: Any = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        if dist.get_world_size() == 1:
            return None
        world = dist.group.WORLD
        if _state.ranks is None or _state.of is not world:
            store = dist.distributed_c10d._get_default_store()
            _join(store, dist.get_rank(), dist.get_world_size(), world)
        return _state.ranks
    if not _launched():
        return None
    if _state.ranks is None or not isinstance(_state.of, str):
        import torch.distributed as dist

        if not dist.is_available():
            return None
        store, rank, size = _rendezvous(dist)
        _join(store, rank, size, "torchrun")
    return _state.ranks


def in_step(request: Mapping[str, Any]) -> bool:
    """Whether the ranks answer this one together, each for its own samples (shard="data")."""
    return request.get("operator", request).get("shard") == "data"


def speaks() -> bool:
    """Whether this process shows progress and prints: one that is alone, or rank 0."""
    if _state.ranks is not None:
        return _state.ranks.first
    dist: Any = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        return bool(dist.get_rank() == 0)
    return not _launched() or os.environ.get("RANK", "0") == "0"


def owns_files() -> bool:
    """Whether this process writes results: one that works alone, or rank 0."""
    ranks = current()
    return ranks is None or ranks.first


@contextmanager
def by_itself() -> Iterator[None]:
    """A block in which this process works by itself: an item, or work of one rank."""
    _alone.depth += 1
    try:
        yield
    finally:
        _alone.depth -= 1


def _check_backend(dist: Any, backend: Any, gpus: bool) -> None:
    """Raises InvalidArgument for a backend that torch does not have here; "cpu:gloo,cuda:nccl" is
    one for each kind of device."""
    if not dist.is_available():
        return
    known = [name for name in dist.Backend.backend_list if name not in ("undefined", "fake")]
    there = [name for name in known if getattr(dist, f"is_{name}_available", lambda: True)()]
    parts = backend.lower().split(",") if isinstance(backend, str) else [""]
    for part in parts:
        name = part.rpartition(":")[2].strip()
        if name not in known:
            raise InvalidArgument(f"backend: expected one of {', '.join(there)}, got {backend!r}")
        if name == "nccl" and not gpus:
            raise InvalidArgument(
                f"backend: expected 'gloo' on a machine without GPUs, got {backend!r}"
            )
        if name not in there:
            raise InvalidArgument(
                f"backend: expected one that this torch was built with ({', '.join(there)}), got "
                f"{backend!r}"
            )


@contextmanager
def distributed(
    timeout: float | timedelta | None = None, backend: str | None = None, *, alone: bool = False
) -> Iterator[Any]:
    """Share the work of a block among the processes that torchrun started::

        with pl.distributed() as ranks:  # torchrun --nproc-per-node=4 script.py
            surface = pl.plane(land, *directions, path="surface.h5")
        if ranks.rank == 0:
            surface.plot().figure.savefig("surface.png")

    Every rank makes the same calls and gets the same results, with the bits of one process. Under
    torchrun that is so without this block, too; it also makes torch's default group, with which
    the script may go on, and destroys it at the end. A group that exists (Accelerate, Lightning,
    ``init_process_group``) is used as it is. In one process nothing changes.

    Args:
        timeout: seconds without a sign of life (each finished item is one) after which a rank
            counts as lost, and of meeting the others at the start; default 1,800.
        backend: of the group that is made; default gloo, and NCCL for tensors on GPUs where every
            process of this machine has one.
        alone: the opposite: a block in which this process works by itself, for what not all ranks
            call.

    Gives an object with ``rank``, ``size`` and ``first``.

    Raises:
        InvalidArgument: a world size above 1 in the environment without an address to meet at, a
            backend that torch does not have here, NCCL without GPUs, a timeout that is no positive
            number.
        RankFailed: the ranks do not meet in time.
    """
    limit = _seconds(timeout)
    if alone:
        with by_itself():
            yield _One()
        return
    import torch
    import torch.distributed as dist

    if backend is not None:
        _check_backend(dist, backend, torch.cuda.is_available())
    made = dist.is_available() and not dist.is_initialized() and _world_size() > 1
    device = torch.cuda.current_device() if made and torch.cuda.is_available() else None
    before, _state.timeout = _state.timeout, limit or _state.timeout
    ended: BaseException | None = None
    try:
        if made:
            _make(dist, torch, backend)
        yield current() or _One()
    except BaseException as error:
        ended = error
        raise
    finally:
        if made:
            if _state.ranks is not None:
                _state.ranks.leave(ended)
            _state.ranks = _state.of = None
            if dist.is_initialized():
                dist.destroy_process_group()
            if device is not None:
                torch.cuda.set_device(device)
        _state.timeout = before


class _One:
    """A process that is alone, as `Ranks`."""

    rank, size, first = 0, 1, True

    def __repr__(self) -> str:
        return "<rank 0 of 1>"


def _make(dist: Any, torch: Any, backend: str | None) -> None:
    """torch's default group, from torchrun's environment."""
    missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
    if missing:
        raise InvalidArgument(
            f"distributed: WORLD_SIZE is {os.environ['WORLD_SIZE']} in the environment, but "
            f"{', '.join(missing)} is not: start the script by torchrun, make the group "
            "(torch.distributed.init_process_group), or unset WORLD_SIZE"
        )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if backend is None:
        enough = torch.cuda.is_available() and torch.cuda.device_count() >= here
        backend = "cpu:gloo,cuda:nccl" if enough and dist.is_nccl_available() else "gloo"
    if "nccl" in backend:
        torch.cuda.set_device(local)
    limit = timedelta(seconds=_state.timeout or TIMEOUT)
    try:
        with _saying_where():
            dist.init_process_group(backend, timeout=limit)
    except Exception as error:
        raise RankFailed(_no_meeting(error)) from error


def _rendezvous(dist: Any) -> tuple[Any, int, int]:
    try:
        limit = timedelta(seconds=_state.timeout or TIMEOUT)
        with _saying_where():
            found: tuple[Any, int, int] = next(iter(dist.rendezvous("env://", timeout=limit)))
    except Exception as error:
        raise RankFailed(_no_meeting(error)) from error
    return found


@contextmanager
def _saying_where() -> Iterator[None]:
    """The log says where this rank waits for the others, if the meeting takes long."""
    waiting = "rank %s of %s waits for the others at %s"
    about = (os.environ.get("RANK"), os.environ.get("WORLD_SIZE"), _place())
    timer = threading.Timer(SAID, log.warning, (waiting, *about))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _place() -> str:
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


def _no_meeting(error: Exception) -> str:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"rank {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')} did not meet the others "
        f"at {_place()}: {first}"
    )


def _join(store: Any, rank: int, size: int, of: Any) -> None:
    import torch.distributed as dist

    store = dist.PrefixStore("pylandscape", store)
    # The n-th group that a rank joins is the n-th of all: what an earlier one left is not read.
    turn = store.add(f"joined/{rank}", 1)
    _state.ranks = Ranks(dist.PrefixStore(str(turn), store), rank, size)
    _state.of = of
    os.environ[OWNER] = str(os.getpid())
    atexit.unregister(_ended)
    atexit.register(_ended, os.getpid())


def _ended(process: int) -> None:
    """At the end of a script that was in a group without a block of `distributed`: the others need
    not wait for it."""
    if _state.ranks is not None and os.getpid() == process:
        _state.ranks.leave(None)


def _launched() -> bool:
    """Whether torchrun started this very process as one of several."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    return os.environ.get(OWNER, str(os.getpid())) == str(os.getpid())


def _world_size() -> int:
    text = os.environ.get("WORLD_SIZE", "1")
    if os.environ.get(OWNER, str(os.getpid())) != str(os.getpid()):
        return 1  # a child of a rank
    if not text.isdecimal() or int(text) < 1:
        raise InvalidArgument(
            f"distributed: expected a positive WORLD_SIZE in the environment, got {text!r}"
        )
    return int(text)


def _seconds(timeout: Any) -> float | None:
    if timeout is None:
        return None
    found = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    number = isinstance(found, int | float) and not isinstance(found, bool)
    if not number or not 0.0 < found < math.inf:
        raise InvalidArgument(f"timeout: expected a positive number of seconds, got {timeout!r}")
    return float(found)


def _parts(request: Mapping[str, Any]) -> dict[str, str]:
    """Digests of a request's parts."""
    flat = _flat(request)
    found = {
        part: _digest({name: flat[name] for name in flat if name in fields})
        for part, fields in PARTS.items()
    }
    return {**found, "arguments": _digest(_arguments(request))}


def _arguments(request: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request that belong to no other part."""
    others = {field for fields in PARTS.values() for field in fields}
    return {name: value for name, value in _flat(request).items() if name not in others}


def _flat(request: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: value for name, value in request.items() if name != "operator"}
    return {**request.get("operator", {}), **own}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _differ(each: Sequence[Mapping[str, str]], name: str) -> bool:
    return len({fields.get(name) for fields in each}) > 1


def _difference(
    number: int, asked: Mapping[int, Mapping[str, str]], arguments: Sequence[str]
) -> str:
    """What an error says; ``arguments``: the names of those that differ."""
    lines: list[str] = []
    hints: list[str] = []
    for part in ("function", *PARTS, "arguments"):
        groups: dict[str, list[int]] = {}
        for rank in sorted(asked):
            groups.setdefault(asked[rank][part], []).append(rank)
        if len(groups) > 1:
            each = ", ".join(f"{value} on {_ranks(who)}" for value, who in groups.items())
            names = f" ({', '.join(arguments)})" if part == "arguments" and arguments else ""
            lines.append(f"\n  {part}{names}: {each}")
            if (hint := f"\n  {HINTS[part]}") not in hints:
                hints.append(hint)
        if lines and part in ("function", "arithmetic"):  # digests of arguments follow from these
            break
    hints.append("\n  with pl.distributed(alone=True): is for work that a rank does by itself")
    return f"call {number + 1}: the ranks ask different things.{''.join(lines)}{''.join(hints)}"


def _ranks(numbers: Sequence[int]) -> str:
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split())[:2000]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _packed(arrays: Sequence[np.ndarray], most: int | None = None) -> bytes:
    """What arrays are, with the length of that before it, and their numbers; where there is a
    limit, those of arrays of at most so many bytes."""
    given = [np.asarray(a, order="C") for a in arrays]
    header = json.dumps([[a.dtype.str, list(a.shape)] for a in given]).encode()
    inside = [a.tobytes() for a in given if most is None or a.nbytes <= most]
    return b"".join([len(header).to_bytes(8, "little"), header, *inside])


def _unpacked(
    told: bytes, most: int | None = None, own: Sequence[np.ndarray] | None = None
) -> list[np.ndarray]:
    """The arrays, with room for the numbers that are not inside; or ``own``, which are theirs."""
    end = 8 + int.from_bytes(told[:8], "little")
    kinds = [(np.dtype(text), tuple(shape)) for text, shape in json.loads(told[8:end])]
    odd = next((dtype for dtype, _ in kinds if dtype.kind not in "biuf"), None)
    if odd is not None:
        raise RankFailed(f"the ranks exchange numbers, got an array of {odd}")
    if own is not None:
        return list(own)
    found = []
    for dtype, shape in kinds:
        size = dtype.itemsize * math.prod(shape)
        if most is not None and size > most:
            found.append(np.empty(shape, dtype))
            continue
        found.append(np.frombuffer(told[end : end + size], dtype).reshape(shape).copy())
        end += size
    return found
