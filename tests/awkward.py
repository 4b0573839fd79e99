"""Awkward modules by the seed, and the judge: each engine is right, or refuses and says why.

A plan names the parts of a module (`awkward_parts`, `awkward_habits`), its data and options; one
seed gives one plan, and a plan's text gives the same module again:

    python -m tests.awkward --seeds 0:5000         # a table of verdicts, failures shrunk
    python -m tests.awkward --plan "seed=7 stem=vectors blocks=detach task=mse"

The reference is the user's own loop. A fresh copy of the module, made anew by the same plan, has
its parameters moved in place; batches go through it in order, in eval mode, with gradients enabled
and torch's generator seeded; L is the loss of the concatenated data. The gradient is that of
``.backward()``, the Hessian product that of a second backward pass. The verdict on each question to
each engine is "right", "refused" (a package error), or a fault: "wrong", "raw" (another exception),
"changed" (the user's module, data, modes, gradients or random state).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import sys
import tempfile
import threading
import traceback
import types
import warnings
import weakref
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))

import awkward_habits
import awkward_parts
import awkward_research
from awkward_habits import HABITS, PLAIN, plain_checkpoints
from awkward_parts import NETS, STEMS, TASKS, WRAPPERS, B, Task, target_of

import pylandscape as pl
from pylandscape.errors import PylandscapeError

SEED = 0  # torch's generator at every point, as both engines seed it
LAYOUTS = ("pair", "equal", "unequal", "loader", "stream", "arrays")
OPTIONS = ("none", "double", "some", "no_memory")
# What classes note of the calls, and no value depends on: it stays as the user's code leaves it.
NOTES = {("ClassCounter", "calls"), ("ClassCache", "cache")}
FAULTS = ("wrong", "raw", "changed")

logging.getLogger("pylandscape").setLevel(logging.ERROR)  # the interrupts here are wanted


@dataclass(frozen=True)
class Plan:
    """What a module is made of; ``str(plan)`` can be given back to `parse`."""

    seed: int = 0
    stem: str = "vectors"
    blocks: tuple[str, ...] = ()
    task: str = "mse"
    wrapper: str = "none"
    layout: str = "pair"
    dtype: str = "float64"
    options: str = "none"
    mode: str = "eval"

    def __str__(self) -> str:
        facts = vars(self) | {"blocks": ",".join(self.blocks) or "-"}
        default = vars(Plan()) | {"blocks": "-"}
        shown = {k: v for k, v in facts.items() if k in ("seed", "blocks") or v != default[k]}
        return " ".join(f"{k}={v}" for k, v in shown.items())

    def simpler(self) -> Iterator[Plan]:
        """Plans with one part less."""
        for i in range(len(self.blocks)):
            yield replace(self, blocks=self.blocks[:i] + self.blocks[i + 1 :])
        for name, value in vars(Plan()).items():
            if name not in ("seed", "blocks") and getattr(self, name) != value:
                yield replace(self, **{name: value})

    @property
    def must(self) -> bool:
        """Whether every part is one of those that have to work."""
        return (
            STEMS[self.stem].must
            and TASKS[self.task].must
            and all(b in PLAIN or HABITS[b].facts["must"] for b in self.blocks)
        )

    @property
    def draws(self) -> set[str]:
        found = {HABITS[b].facts["draws"] for b in self.blocks if b in HABITS}
        return {d for d in (*found, TASKS[self.task].draws) if d}

    @property
    def rough(self) -> float:
        return max([HABITS[b].facts["rough"] for b in self.blocks if b in HABITS], default=0.0)


def parse(text: str) -> Plan:
    facts: dict[str, Any] = dict(part.split("=", 1) for part in text.split())
    if "seed" in facts:
        facts["seed"] = int(facts["seed"])
    if "blocks" in facts:
        facts["blocks"] = tuple(b for b in facts["blocks"].split(",") if b not in ("-", ""))
    return Plan(**facts)


PARTS = [
    *(("block", name) for name in HABITS),
    *(("stem", name) for name in STEMS),
    *(("task", name) for name in TASKS),
    *(("wrapper", name) for name in WRAPPERS),
]


def plan_of(seed: int) -> Plan:
    """The plan of a seed. Seeds in a row go through all parts; what goes with each is random: one
    to four blocks, often one more habit among them, of parts that fit each other."""
    rng = random.Random(seed)
    kind, name = PARTS[seed * 89 % len(PARTS)]
    stem = "vectors" if rng.random() < 0.5 else rng.choice(list(STEMS))
    task = rng.choice(("ce", "mse", "bce", "nll")) if rng.random() < 0.6 else rng.choice([*TASKS])
    wrapper = rng.choice(list(WRAPPERS)) if rng.random() < 0.06 else "none"
    blocks = [rng.choice(list(PLAIN)) for _ in range(rng.choice((0, 1, 1, 2)))]
    blocks += rng.sample(
        list(HABITS), rng.choice((0, 0, 0, 1, 1, 2) if kind == "block" else (0, 1))
    )
    if kind == "block":
        blocks.append(name)
    rng.shuffle(blocks)
    stem = name if kind == "stem" else stem
    task = name if kind == "task" else task
    wrapper = name if kind == "wrapper" else wrapper
    if TASKS[task].objective and (stem.startswith("fixed") or STEMS[stem].inputs is not _VECTORS):
        stem, task = (stem, "mse") if kind == "stem" else ("vectors", task)
    if task in ("decay_over_a_list", "loss_reads_model") and wrapper == "averaged":
        wrapper = "none"
    if task == "objective_laplacian":  # torch itself crashes: Module.to inside of jacfwd
        blocks = tuple("apply_in_forward" if b == "moves_itself" else b for b in blocks)
    if task == "objective_functional" and wrapper == "data_parallel":
        wrapper = "none"  # functional_call refuses the user's own loop
    if wrapper == "averaged" and set(blocks) & UNCOPIED:
        wrapper = "none"
    layouts = list(LAYOUTS)
    if stem.startswith("fixed"):
        layouts = [x for x in layouts if x not in ("unequal", "stream")]
    elif STEMS[stem].arity != "one":
        layouts = ["equal", "unequal", "stream"]
    return Plan(
        seed,
        stem,
        tuple(blocks),
        task,
        wrapper,
        rng.choice(layouts) if rng.random() < 0.6 else layouts[0],
        rng.choice(("float32", "float64", "float64")),
        rng.choice(OPTIONS) if rng.random() < 0.2 else "none",
        rng.choice(("train", "eval")),
    )


_VECTORS = STEMS["vectors"].inputs
UNCOPIED = {"lock", "generator_attribute", "state_iterator", "state_of_a_torch_generator"}


@dataclass
class Built:
    """A plan made: what a user would hand over."""

    model: nn.Module
    loss: Any
    objective: Any
    batches: list[tuple[Any, Tensor]]
    given: Any  # the batches in the layout of the plan
    options: dict[str, Any]
    task: Task


def build(plan: Plan, wrapped: bool = True) -> Built:
    """The module, loss and data of a plan; every call gives equal ones that share nothing."""
    task, stem = TASKS[plan.task], STEMS[plan.stem]
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, plan.dtype))
    try:
        with own_random_state(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(1 + plan.seed)
            d = 3 + plan.seed % 3
            blocks = [(PLAIN.get(name) or HABITS[name])(d) for name in plan.blocks]
            head: nn.Module = nn.Linear(d, 3)
            if task.out is not None:
                head = nn.Sequential(head, task.out())
            model: nn.Module = NETS[stem.arity](stem.module(d), blocks, head)
            if plan.wrapper != "none" and (wrapped or plan.wrapper != "compile"):
                with contextlib.suppress(RuntimeError, TypeError):  # torch's: it cannot copy it
                    model = WRAPPERS[plan.wrapper](model)
            sizes = {"pair": [B], "arrays": [B], "equal": [B, B]}.get(plan.layout, [B, 3, 2])
            if plan.stem.startswith("fixed"):
                sizes = [B] * min(len(sizes), 2)
            batches = [(stem.inputs(b, d), target_of(task.target, b)) for b in sizes]
            torch.manual_seed(2 + plan.seed)
            loss = task.loss(model)
    finally:
        torch.set_default_dtype(before)
    model.train(plan.mode == "train")
    for parameter in list(model.parameters())[::2]:
        if parameter.requires_grad and parameter.is_leaf:
            parameter.grad = torch.full_like(parameter, 0.25)
    options: dict[str, Any] = {}
    if plan.options == "double":
        options["dtype"] = torch.float64
    elif plan.options == "some":
        first = next(iter(model.named_parameters()))[0]
        options["params"] = (first, "*head*")
    elif plan.options == "no_memory":
        options["memory"] = 0
    objective = loss if task.objective else None
    given = _given(plan.layout, batches)
    return Built(model, None if task.objective else loss, objective, batches, given, options, task)


def _given(layout: str, batches: list[tuple[Any, Tensor]]) -> Any:
    if layout == "pair":
        return batches[0] if isinstance(batches[0][0], Tensor) else batches
    if layout == "arrays":
        return tuple(t.numpy() for t in batches[0])
    if layout == "loader":
        return torch.utils.data.DataLoader(batches, batch_size=None, shuffle=False)
    if layout == "stream":
        return (batch for batch in batches)
    return batches


@contextlib.contextmanager
def own_random_state() -> Iterator[None]:
    kept, also = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            np.random.set_state(kept)  # noqa: NPY002
            random.setstate(also)


@contextlib.contextmanager
def own_code() -> Iterator[None]:
    """What the habits keep in globals and class attributes, put back."""
    tables = [(code, dict(vars(code))) for code in (awkward_habits, awkward_research)]
    kinds = {k for _, t in tables for k in t.values() if isinstance(k, type)}
    tables += [(k, dict(vars(k))) for k in kinds if k.__module__.startswith("awkward")]
    held = [v for _, t in tables for n, v in t.items() if n[:2] != "__" and type(v) in (list, dict)]
    contents = [v.copy() for v in held]
    try:
        yield
    finally:
        for owner, before in tables:
            for name in [n for n in vars(owner) if n not in before]:
                delattr(owner, name)
            for name, value in before.items():
                if vars(owner)[name] is not value:
                    setattr(owner, name, value)
        for table, before in zip(held, contents, strict=True):
            if table != before:
                table.clear()
                table.extend(before) if isinstance(table, list) else table.update(before)


# The reference.


# What torch says where the way to L cannot be recorded for derivatives.
_OF_A_GRAPH = (
    "is a view and is being modified inplace",
    "can only change requires_grad flags of leaf variables",
)


@dataclass(frozen=True)
class Reference:
    """L at points theta by the user's own loop."""

    plan: Plan
    thawed: bool = False  # frozen parameters that are in theta have derivatives like the others
    parts: bool = False  # backward batch by batch
    enabled: bool = True  # gradients, while the model runs

    def chosen(self, built: Built) -> list[nn.Parameter]:
        """The parameters that make up theta."""
        named = dict(built.model.named_parameters())
        if "params" not in built.options:
            return list(named.values())
        first, _ = built.options["params"]
        return [p for name, p in named.items() if name == first or "head" in name]

    def theta(self) -> Tensor:
        built = build(self.plan, wrapped=False)
        return torch.cat([p.detach().reshape(-1).double() for p in self.chosen(built)])

    def free(self) -> Tensor:
        """1 for each element of theta that is not frozen, 0 for the others."""
        parameters = self.chosen(build(self.plan, wrapped=False))
        return _flat(torch.full_like(p, float(p.requires_grad)) for p in parameters)

    def value(self, theta: Tensor) -> float:
        try:
            with contextlib.closing(self._terms(theta)[0]) as losses:
                return float(next(losses).detach())
        except RuntimeError as error:  # of torch, where a graph is recorded: none is asked for
            if not self.enabled or not any(said in str(error) for said in _OF_A_GRAPH):
                raise
            return replace(self, enabled=False).value(theta)

    def gradient(self, theta: Tensor) -> Tensor | None:
        """None: the loss has none. Raises what ``.backward()`` raises."""
        return self._whole_or_parts(self._gradient, theta)

    def product(self, theta: Tensor, v: Tensor) -> Tensor | None:
        """H v as a second backward pass gives it; otherwise as `gradient`."""
        return self._whole_or_parts(self._product, theta, v)

    def _whole_or_parts(self, f: Callable[..., Any], theta: Tensor, *more: Tensor) -> Any:
        """Backward once for all batches or, where a later batch writes into what an earlier one
        needs, batch by batch."""
        if self.parts:
            return f(theta, *more, parts=True)
        try:
            return f(theta, *more, parts=False)
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            return f(theta, *more, parts=True)

    def _gradient(self, theta: Tensor, parts: bool) -> Tensor | None:
        terms, parameters = self._terms(theta, parts)
        for p in parameters:
            p.grad = None
        found: list[Tensor] = []
        with contextlib.closing(terms) as losses:  # also on failure: it holds modes and seeds
            for loss in losses:
                if not loss.requires_grad:
                    continue
                loss.backward(retain_graph=parts)  # a later batch may go through it again
                found.append(
                    _flat(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)
                )
                for p in parameters:  # summed here: the next batch's objective may clear them
                    p.grad = None
        return sum(found[1:], found[0]) if found else None

    def _product(self, theta: Tensor, v: Tensor, parts: bool) -> Tensor | None:
        if "once_differentiable" in self.plan.blocks:
            raise RuntimeError("torch leaves a part of it out in silence where g is no variable")
        terms, parameters = self._terms(theta, parts)
        free = [p for p in parameters if p.requires_grad]
        rows = v.to(parameters[0].dtype).split([p.numel() for p in parameters])
        rows = [
            r.view_as(p).to(p) for r, p in zip(rows, parameters, strict=True) if p.requires_grad
        ]
        found = {id(p): torch.zeros_like(p) for p in parameters}
        plain = {id(p): torch.zeros_like(p) for p in parameters}
        kw: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
        some = False
        with plain_checkpoints(), contextlib.closing(terms) as losses:
            for loss in losses:
                if not loss.requires_grad:
                    continue
                some = True
                first = torch.autograd.grad(loss, free, create_graph=True, **kw)
                for p, g in zip(free, first, strict=True):
                    plain[id(p)] += g.detach()
                total = sum((g * r).sum() for g, r in zip(first, rows, strict=True))
                if total.requires_grad:
                    for p, g in zip(
                        free,
                        torch.autograd.grad(total, free, retain_graph=parts, **kw),
                        strict=True,
                    ):
                        found[id(p)] += g
        if not some:
            return None
        own, other = self._gradient(theta, parts), _flat(plain[id(p)] for p in parameters)
        if own is None or not torch.allclose(own, other, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise RuntimeError("autograd.grad and .backward() differ")
        return _flat(found[id(p)] for p in parameters)

    def _terms(
        self, theta: Tensor, parts: bool = False
    ) -> tuple[Generator[Tensor, None, None], list[nn.Parameter]]:
        """L in one term or in one for each batch, each to be used before the next is asked for."""
        built = build(self.plan, wrapped=False)
        model, batches = built.model, built.batches
        wide = built.options.get("dtype")
        if wide is not None:
            model, batches = _widened(model, wide), _cast(batches, wide)
            for held in getattr(built.objective, "__dict__", {}).values():
                if isinstance(held, nn.Module):  # the user's objective in that dtype
                    held.to(wide)
        model.eval()
        parameters = self.chosen(built)
        for p, part in zip(parameters, theta.split([p.numel() for p in parameters]), strict=True):
            p.data.copy_(part.view_as(p))
            if self.thawed:
                p.requires_grad_(True)

        def run() -> Generator[Tensor, None, None]:
            math = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
            with own_random_state(), own_code(), torch.set_grad_enabled(self.enabled), math:
                torch.manual_seed(SEED)
                yield from _losses(built, batches, parts)

        return run(), parameters


def _losses(built: Built, batches: list[tuple[Any, Tensor]], parts: bool) -> Iterator[Tensor]:
    """The loss of the concatenated data by its own denominator; free ones by batch size."""
    spec, sizes = built.loss, [len(y) for _, y in batches]
    if _known(spec):
        f = torch.nn.functional.cross_entropy if isinstance(spec, str) else spec
        f = f.double() if isinstance(f, nn.Module) else f
        target = torch.cat([y for _, y in batches])
        target = target.double() if target.is_floating_point() else target
        outputs: list[Any] = []
        rows = target.split(sizes)
        for i, (x, _) in enumerate(batches):
            outputs.append(_call(built.model, x).double())
            if parts:  # the share of this batch: its sum over the terms' common denominator
                yield _share(f, outputs[-1], rows, i)
        if not parts:
            yield f(torch.cat(outputs), target)
        return
    total = torch.zeros((), dtype=torch.float64)
    for n, (x, y) in zip(sizes, batches, strict=True):
        if built.objective is not None:
            term = torch.as_tensor(built.objective(built.model, (x, y)))
        else:
            term = torch.as_tensor(spec(_call(built.model, x), y))
        share = term.double() * (n / sum(sizes))
        if parts:
            yield share
        total = total + share
    if not parts:
        yield total


def _share(f: Any, output: Tensor, targets: tuple[Tensor, ...], i: int) -> Tensor:
    """A batch's part of the loss of all: the others' outputs are constants, whose values do not
    matter to its derivatives, for the loss is a sum over rows."""
    others = [torch.zeros(len(t), *output.shape[1:]).to(output) for t in targets]
    others[i] = output
    return f(torch.cat(others), torch.cat(targets))


def _known(loss: Any) -> bool:
    kinds = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MSELoss, nn.BCEWithLogitsLoss)
    return isinstance(loss, (str, *kinds)) or loss is torch.nn.functional.cross_entropy


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def _cast(item: Any, dtype: torch.dtype) -> Any:
    if isinstance(item, Tensor):
        return item.to(dtype) if item.is_floating_point() else item
    if isinstance(item, Mapping):
        return {k: _cast(v, dtype) for k, v in item.items()}
    return type(item)(_cast(v, dtype) for v in item)


def _flat(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([p.detach().reshape(-1).double() for p in parts])


# What must not change.


def frozen(item: Any, seen: dict[int, Any] | None = None) -> Any:
    """What can be compared: the bits and flags of all that is reached from an object."""
    seen = {} if seen is None else seen
    if isinstance(item, Tensor):
        dense = item.detach().to_dense() if item.layout != torch.strided else item.detach()
        grad = None if item.grad is None or not item.is_leaf else frozen(item.grad)
        try:
            bits: Any = dense.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        except RuntimeError:  # a tensor of torch.func or of a tracer that was left behind
            bits = "no plain tensor"
        return ("tensor", item.dtype, tuple(item.shape), item.requires_grad, bits, grad)
    if isinstance(item, np.ndarray):
        return ("array", item.shape, item.tobytes())
    if item is None or isinstance(item, int | float | str | bool | complex | torch.dtype):
        return repr(item)
    if id(item) in seen:
        return ("again", seen[id(item)])
    seen[id(item)] = len(seen)
    if isinstance(item, torch.Generator):
        return ("generator", item.get_state().numpy().tobytes())
    if isinstance(item, np.random.Generator):
        return ("generator", repr(item.bit_generator.state))
    if isinstance(item, Mapping):
        return tuple((repr(k)[:80], frozen(v, seen)) for k, v in item.items())
    if isinstance(item, list | tuple | deque | set):
        return tuple(frozen(v, seen) for v in item)
    if isinstance(item, types.FunctionType):
        cells = [c.cell_contents for c in item.__closure__ or ()]
        rest = (*cells, item.__defaults__, item.__kwdefaults__, item.__dict__)
        return ("function", id(item), *[frozen(x, seen) for x in rest])
    if hasattr(item, "cache_info"):
        return repr(item.cache_info())
    if isinstance(item, weakref.ref) or not hasattr(item, "__dict__"):
        return type(item).__name__
    if isinstance(item, type | types.ModuleType):
        return repr(item)
    return (type(item).__name__, frozen(vars(item), seen))


def state_of(built: Built) -> dict[str, Any]:
    return {
        # torch.compile's wrapper holds settings of torch's own, which change when these are loaded.
        "module": frozen(getattr(built.model, "_orig_mod", built.model)),
        "data": frozen(built.batches),
        "loss": frozen(built.loss if built.objective is None else built.objective),
        "code": _of_code(),
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "numpy's random state": repr(np.random.get_state()),  # noqa: NPY002
        "python's random state": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "torch's stack of transforms": _transforms(),
    }


def _of_code() -> Any:
    """What the globals and classes of the parts hold."""
    values = {
        f"{code.__name__}.{name}": value
        for code in (awkward_habits, awkward_parts, awkward_research)
        for name, value in vars(code).items()
        if name[:2] != "__" and name not in ("HABITS", "STEMS", "TASKS")
    }
    plain = {k: v for k, v in values.items() if not isinstance(v, type | types.FunctionType)}
    attributes = {
        f"{kind.__module__}.{kind.__name__}": {
            k: v
            for k, v in vars(kind).items()
            if k[:2] != "__" and not callable(v) and (kind.__name__, k) not in NOTES
        }
        for kind in values.values()
        if isinstance(kind, type) and kind.__module__.startswith("awkward")
    }
    return frozen((plain, attributes))


def _transforms(drop: bool = False) -> int:
    """How many of torch.func's transforms are at work; with ``drop``, none are afterwards."""
    stack = torch._C._functorch.get_interpreter_stack() or []
    for _ in stack if drop else ():
        torch._C._functorch.pop_dynamic_layer_stack()
    return len(stack)


# The judge.


@dataclass(frozen=True)
class Verdict:
    engine: str
    question: str
    kind: str  # "right", "refused" or one of FAULTS
    detail: str = ""


@dataclass
class Judgement:
    plan: Plan
    verdicts: list[Verdict] = field(default_factory=list)
    engine: str = ""  # what "auto" chose

    @property
    def faults(self) -> list[Verdict]:
        return [v for v in self.verdicts if v.kind in FAULTS]

    @property
    def refused(self) -> list[Verdict]:
        return [v for v in self.verdicts if v.kind == "refused"]

    def __str__(self) -> str:
        lines = [f'--plan "{self.plan}"  (auto: {self.engine or "refused"})']
        lines += [f"    {v.engine}: {v.question}: {v.kind}: {v.detail}" for v in self.faults]
        return "\n".join(lines)


class _Case:
    """One plan's reference values; the judge of each engine."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.reference = plan, Reference(plan)
        self.theta = self.reference.theta()
        generator = torch.Generator().manual_seed(plan.seed)
        n = self.theta.numel()
        self.dtype = torch.float64 if "double" in (plan.options,) else getattr(torch, plan.dtype)
        steps = torch.randn(3, n, generator=generator, dtype=torch.float64)
        self.points = torch.cat([self.theta[None], self.theta + 0.4 * steps]).to(self.dtype)
        self.direction = 0.4 * torch.randn(n, generator=generator, dtype=torch.float64)
        self.v = torch.randn(n, generator=generator, dtype=torch.float64).to(self.dtype)
        self.direction = self.direction.to(self.dtype)
        self.x = np.linspace(-1.0, 1.0, 5)
        self.line = [(self.points[0] + float(x) * self.direction).double() for x in self.x]
        self.eps = torch.finfo(getattr(torch, plan.dtype)).eps  # also of what no cast reaches
        self.loose = plan.draws != set() and plan.draws != {"torch"}
        self.cannot: str | None = None  # why the user's own loop fails
        try:
            self.values = [self.reference.value(p) for p in self.points.double()]
            self.line_values = [self.reference.value(p) for p in self.line]
        except Exception as error:
            self.cannot = f"{type(error).__name__}: {error}"
            return
        self.gradients = [_tried(self.reference.gradient, p) for p in self.points[:3].double()]
        self.products = [
            _tried(self.reference.product, p, self.v.double()) for p in self.points[:2].double()
        ]

    def near(
        self, got: Any, want: Any, again: Callable[[Tensor], Any], at: Tensor, rtol: float = 0.0
    ) -> str:
        """Empty, or how far off. Where the plain tolerance does not do, the rounding of theta
        itself tells how much noise the question has."""
        got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
        if got.shape != want.shape:
            return f"shape {got.shape}, expected {want.shape}"
        known = ~np.isnan(want)
        if np.array_equal(np.isnan(got), ~known):  # also NaN is the user's own
            got, want = np.where(known, got, 0.0), np.where(known, want, 0.0)
        scale = max(1.0, float(np.linalg.norm(want)))
        error = float(np.linalg.norm(got - want))
        if error <= max(500 * self.eps, self.plan.rough, rtol) * scale:
            return ""
        generator = torch.Generator().manual_seed(1)
        for _ in range(16):  # a tie may be broken in some of them only
            step = self.eps * (torch.rand(at.shape, generator=generator) * 2 - 1).double()
            try:
                found = np.asarray(again(at.double() * (1 + step)), dtype=np.float64)
            except Exception:
                break
            if error <= 30 * float(np.linalg.norm(found - want)):
                return ""
        return f"{_short(got)}, expected {_short(want)} (off by {error / scale:.2g} of {scale:.3g})"


def _same(one: Any, other: Any) -> bool:
    return np.array_equal(one, other, equal_nan=True)


def _widened(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module in another dtype; tensors of one storage stay so, which ``model.to`` forgets."""
    held = [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers(), *held)}.values()
    before = [(t, t.data) for t in tensors if t.layout == torch.strided]
    model.to(dtype)
    for module in list(model.modules()):  # those in lists, which the model's own `to` passes by
        for value in vars(module).values():
            for hidden in value if type(value) is list else ():
                if isinstance(hidden, nn.Module):
                    hidden.to(dtype)
    wide: dict[int, Tensor] = {}
    for t, old in before:
        key = old.untyped_storage().data_ptr()
        if sum(key == other.untyped_storage().data_ptr() for _, other in before) > 1:
            whole = torch.empty(0, dtype=old.dtype).set_(old.untyped_storage())
            wide.setdefault(key, whole.to(dtype))
            t.data = wide[key].as_strided(old.shape, old.stride(), old.storage_offset())
    return model


def _tried(f: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return f(*arguments)
    except Exception as error:
        return error


def _short(a: np.ndarray) -> str:
    flat = a.reshape(-1)
    text = ", ".join(f"{v:.6g}" for v in flat[:4])
    return f"[{text}{', ...' if flat.size > 4 else ''}]" if flat.size > 1 else text


def judge(plan: Plan, engines: Iterable[str] = ("auto", "torch")) -> Judgement:
    """Every question to every engine."""
    judgement = Judgement(plan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = _Case(plan)
        said = case.cannot or " ".join(map(str, (*case.gradients, *case.products)))
        if "use_reentrant" in said:  # what such a checkpoint stands for
            with plain_checkpoints():
                case = _Case(plan)
        for engine in engines:
            _judge_engine(case, engine, judgement)
        if judgement.engine == "native":  # the same program when it is asked for by name
            _judge_engine(case, "native", judgement, short=True)
    return judgement


def _judge_engine(case: _Case, engine: str, judgement: Judgement, short: bool = False) -> None:
    plan = case.plan
    built = build(plan)
    with own_random_state():
        torch.manual_seed(99)
        before = state_of(built)

        def ask(question: str, f: Callable[[], str | None]) -> bool:
            """Whether it was answered, rightly or not."""
            verdict = _answered(case, engine, question, f)
            judgement.verdicts.append(verdict)
            return verdict.kind in ("right", "wrong")

        made: list[Any] = []

        def make() -> None:
            land = pl.Landscape(
                built.model,
                built.loss,
                built.given,
                objective=built.objective,
                engine=engine,
                **built.options,
            )
            made.append(land)

        ask("landscape", make)
        if made:
            land = made[0]
            if engine == "auto":
                judgement.engine = land.engine
            _Questions(case, built, land).ask(ask, short)
        after = state_of(built)
        _transforms(drop=True)
        for what, state in before.items():
            if state != after[what]:
                detail = f"the user's {what} is not what it was{_where(built, state, after[what])}"
                judgement.verdicts.append(Verdict(engine, "untouched", "changed", detail))
        if made and not short and plan.draws != {"other"}:
            ask("live module", lambda: _live(built, made[0]))


def _where(built: Built, before: Any, after: Any) -> str:
    """The first place where two frozen states part."""
    path = []
    while isinstance(before, tuple) and isinstance(after, tuple) and len(before) == len(after):
        place = next((i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b), 0)
        before, after = before[place], after[place]
        if isinstance(before, tuple) and before and isinstance(before[0], str):
            path.append(before[0])
    shown = [p for p in path if p not in ("tensor", "again")]
    return f" (at {'.'.join(shown[:12])})" if shown else ""


def _answered(case: _Case, engine: str, question: str, f: Callable[[], str | None]) -> Verdict:
    try:
        wrong = f()
    except PylandscapeError as error:
        text = " ".join(str(error).split())
        if len(text) < 20:
            return Verdict(engine, question, "raw", f"an error that names no cause: {text!r}")
        torchs = "use forward AD with _scaled_dot_product" in text  # its loop fails, too
        if case.plan.must and case.cannot is None and not torchs and question not in _allowed(case):
            return Verdict(engine, question, "wrong", f"refused though it has to work: {text}")
        return Verdict(engine, question, "refused", text)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        text = " ".join(str(error).split())[:200]
        return Verdict(engine, question, "raw", f"{type(error).__name__}: {text} ({where})")
    if wrong:
        return Verdict(engine, question, "wrong", wrong)
    return Verdict(engine, question, "right")


def _allowed(case: _Case) -> set[str]:
    """Questions that may be refused though every part has to work."""
    bad: set[str] = set()
    if any(not isinstance(g, Tensor) for g in case.gradients):
        bad |= {"gradient", "product", "threads"}
    if any(not isinstance(p, Tensor) for p in case.products):
        bad |= {"product"}
    return bad


class _Questions:
    def __init__(self, case: _Case, built: Built, land: Any) -> None:
        self.case, self.built, self.land = case, built, land

    def ask(self, ask: Callable[[str, Callable[[], str | None]], bool], short: bool) -> None:
        valued = ask("losses", self.losses)
        if not short:
            if valued and self.case.cannot is None:
                ask("chunks", self.chunks)
                ask("line", self.on_a_line)
                ask("resume", self.resumed)
            sloped = ask("gradient", self.gradient)
            ask("product", self.product)
            if valued:
                ask("threads", lambda: self.threads(sloped))
                ask("losses again", self.losses)

    def losses(self) -> str | None:
        case = self.case
        if case.cannot is not None:
            got = self.land.losses(points=case.points)
            return f"{_short(got)}, where the user's own loop fails ({case.cannot})"
        got = self.land.losses(points=case.points)
        if case.loose:
            again = self.land.losses(points=case.points)
            return None if _same(got, again) else f"{_short(got)} and then {_short(again)}"
        for value, want, at in zip(got, case.values, case.points, strict=True):
            wrong = case.near(value, want, case.reference.value, at)
            if wrong:
                return wrong
        own = case.near(self.land.model_loss(), case.values[0], case.reference.value, case.theta)
        return f"model_loss() {own}" if own else None

    def chunks(self) -> str | None:
        points = self.case.points
        whole = self.land.losses(points=points)
        order = [2, 0, 3, 0]
        for parts in ([[0], [1, 2], [3]], [[3, 2, 1, 0]], [order]):
            for rows in parts:
                got = self.land.losses(points=points[rows])
                if not _same(got, whole[rows]):
                    return f"points {rows}: {_short(got)}, together {_short(whole[rows])}"
        return None

    def on_a_line(self) -> str | None:
        case = self.case
        curve = pl.line(self.land, case.direction, x=case.x, progress=False)
        if case.loose:
            return None
        for value, want, at in zip(curve.values, case.line_values, case.line, strict=True):
            wrong = case.near(value, want, case.reference.value, at)
            if wrong:
                return wrong
        d = case.direction[None]
        got = self.land.losses(case.x[:, None], d)
        return None if _same(got, curve.values) else f"losses() {_short(got)}"

    def resumed(self) -> str | None:
        case, land = self.case, self.land
        whole = pl.line(land, case.direction, x=case.x, progress=False).values
        own = land.prepare

        def prepare(*a: Any, **k: Any) -> Any:
            evaluate, calls = own(*a, **k), []

            def once(c: np.ndarray) -> Any:
                if calls:
                    raise KeyboardInterrupt
                calls.append(c)
                return evaluate(c)

            return once

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "line.h5"
            land.prepare = prepare
            try:
                pl.line(land, case.direction, x=case.x, progress=False, path=path)
                return "the interrupt was not heard"
            except KeyboardInterrupt:
                pass
            finally:
                del land.prepare
            values = pl.line(land, case.direction, x=case.x, progress=False, path=path).values
            found = pl.line(land, case.direction, x=case.x, progress=False, path=path).values
        for name, got in (("resumed", values), ("finished file", found)):
            if not _same(got, whole):
                return f"{name} {_short(got)}, in one go {_short(whole)}"
        return None

    def gradient(self) -> str | None:
        case = self.case
        for at, want in zip(case.points, case.gradients if not case.cannot else [], strict=False):
            got = self.land.gradient(at)
            wrong = self._derivative(got, want, case.reference.gradient, at)
            if wrong and not self._otherwise(got, "gradient", at):
                return wrong
        if case.cannot:
            return self._derivative(self.land.gradient(), Exception(case.cannot), None, case.theta)
        return None

    def product(self) -> str | None:
        case = self.case
        if case.cannot:
            return self._derivative(self.land.hvp(case.v), Exception(case.cannot), None, case.theta)

        def again(at: Tensor) -> Any:
            return case.reference.product(at, case.v.double())

        for at, want in zip(case.points, case.products, strict=False):
            got = self.land.hvp(case.v, at)
            if isinstance(want, Exception) and "hardsigmoid" in str(want):
                with patch.object(F, "hardsigmoid", lambda x: F.relu6(x + 3) / 6):
                    want = _tried(again, at.double())
            if isinstance(want, Exception):  # differences of gradients, where torch has no product
                for share in (1, 4, 16, 64):  # a kink between the ends is in the long ones alone
                    found = _difference(case, at, want, share)
                    wrong = self._derivative(got, found, again, at, 1e-2)
                    if not wrong:
                        break
            else:
                wrong = self._derivative(got, want, again, at)
            if wrong and not self._otherwise(got, "product", at):
                return wrong
        return None

    def _derivative(
        self, got: Any, want: Any, again: Any, at: Tensor, rtol: float = 0.0
    ) -> str | None:
        if want is None:
            return f"{_short(got.numpy())}, where the loss has no derivative"
        if isinstance(want, Exception):
            text = " ".join(str(want).split())[:160]
            return f"{_short(got.numpy())}, where torch fails ({text})"
        return None if self.case.loose else self.case.near(got, want, again, at, rtol)

    def _otherwise(self, got: Any, question: str, at: Tensor) -> bool:
        """Whether it is the derivative that also counts frozen parameters, which are in theta, or
        that of batch by batch where a later one changes ``.data`` that an earlier one needs."""
        plan, own = self.case.plan, self.case.reference
        thawed = Reference(plan, thawed=True)
        if isinstance(self._by(thawed, question, at), Exception):  # torch has none to compare with
            free = own.free()
            got = got * free
            return self._is_that_of(own, got, question, at, free)
        others = [thawed, Reference(plan, parts=True)]
        return any(self._is_that_of(other, got, question, at) for other in others)

    def _by(self, reference: Reference, question: str, at: Tensor) -> Any:
        more = () if question == "gradient" else (self.case.v.double(),)
        return _tried(getattr(reference, question), at.double(), *more)

    def _is_that_of(
        self, other: Reference, got: Any, question: str, at: Tensor, free: Any = 1.0
    ) -> bool:
        def again(t: Tensor) -> Any:
            return self._by(other, question, t) * free

        want = self._by(other, question, at)
        return isinstance(want, Tensor) and not self.case.near(got, want * free, again, at)

    def threads(self, sloped: bool) -> str | None:
        """Two threads at different points: what each gets alone."""
        case, land = self.case, self.land
        points = case.points
        alone = land.losses(points=points)
        slopes = [np.asarray(land.gradient(p)) for p in points[:2]] if sloped else []
        seen: list[str] = []

        def run(i: int) -> None:
            try:
                for _ in range(4):
                    rows = [i, 2 + i]
                    if not _same(land.losses(points=points[rows]), alone[rows]):
                        seen.append("losses differ")
                    if sloped:
                        g = np.asarray(land.gradient(points[i]))
                        if not np.allclose(g, slopes[i], rtol=0, atol=1e3 * case.eps):
                            seen.append("gradients differ")
            except Exception as error:
                seen.append(f"{type(error).__name__}: {error}")

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            both = [threading.Thread(target=run, args=(i,)) for i in (0, 1)]
            for thread in both:
                thread.start()
            for thread in both:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        return None if case.loose or not seen else "; ".join(sorted(set(seen)))[:300]


def _difference(case: _Case, at: Tensor, failed: Exception, share: int = 1) -> Any:
    """(g(theta + h v) - g(theta - h v)) / 2h, where torch cannot differentiate twice."""
    h = case.eps ** (1 / 3) / share
    ends = [_tried(case.reference.gradient, at.double() + s * h * case.v.double()) for s in (1, -1)]
    if not all(isinstance(e, Tensor) for e in ends):
        return failed
    return (ends[0] - ends[1]) / (2 * h)


def _live(built: Built, land: Any) -> str | None:
    """Changes of the module after the landscape was made do not reach it."""
    before = land.loss()
    with torch.no_grad():
        for p in (*built.model.parameters(), *built.model.buffers()):
            if p.layout == torch.strided and p.is_floating_point():
                p.add_(1.0)
    after = land.loss()
    same = _same(before, after)
    return None if same else f"{after:.6g} after the module changed, before {before:.6g}"


# Many plans.


def shrunk(judgement: Judgement) -> Judgement:
    """The smallest plan that still has one of the faults (the same kind at the same question)."""
    wanted = {(v.engine, v.question, v.kind) for v in judgement.faults[:1]}
    best = judgement
    changed = True
    while changed:
        changed = False
        for plan in best.plan.simpler():
            try:
                tried = judge(plan)
            except Exception:
                continue
            if wanted & {(v.engine, v.question, v.kind) for v in tried.faults}:
                best, changed = tried, True
                break
    return best


def cause(text: str) -> str:
    """A refusal without what is different in each: names and numbers."""
    words = []
    for word in text.split(";")[0].split("(")[0].split():
        words.append("..." if any(c.isdigit() or c in "'\"_[" for c in word) else word)
    return " ".join(words)[:110]


def summary(judgements: list[Judgement]) -> str:
    """How many are right, refused and by what cause, or at fault."""
    right = sum(not j.faults and not j.refused for j in judgements)
    partly = [j for j in judgements if not j.faults and j.refused]
    refused = [j for j in partly if any(v.question == "landscape" for v in j.refused)]
    at_fault = [j for j in judgements if j.faults]
    values = [j for j in partly if j not in refused]
    engines = Counter(j.engine or "none" for j in judgements)
    lines = [
        f"{len(judgements)} modules: {right} right in everything, {len(values)} right or refused "
        f"by the question, {len(refused)} refused, {len(at_fault)} at fault; engine of auto: "
        + ", ".join(f"{k} {n}" for k, n in engines.most_common())
    ]
    asked = Counter(v.question for j in judgements for v in j.verdicts if v.engine == "auto")
    said = Counter(v.question for j in judgements for v in j.refused if v.engine == "auto")
    lines.append("refused of asked: " + ", ".join(f"{q} {said[q]}/{asked[q]}" for q in asked))
    causes = Counter()
    for j in judgements:
        causes.update({(v.question, cause(v.detail)) for v in j.refused if v.engine == "auto"})
    lines += [f"  {n:5d}  {question}: {text}" for (question, text), n in causes.most_common(40)]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", help="FIRST:END")
    parser.add_argument("--plan", help="a plan's text; with --seeds, only its seed is exchanged")
    parser.add_argument("--habits", action="store_true", help="every habit, stem and task alone")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--refused", action="store_true", help="show what is refused, too")
    options = parser.parse_args(arguments)
    if options.plan and not options.seeds:
        judgement = judge(parse(options.plan))
        print(judgement)
        for v in judgement.verdicts:
            print(f"  {v.engine:7s}{v.question:14s}{v.kind:9s}{v.detail}")
        return int(bool(judgement.faults))
    if options.habits:
        plans = alone()
    else:
        first, end = map(int, (options.seeds or "0:228").split(":"))
        plans = [plan_of(seed) for seed in range(first, end)]
    found, seen = [], set()
    for i, plan in enumerate(plans):
        judgement = judge(plan)
        found.append(judgement)
        if judgement.faults:
            small = judgement if options.no_shrink or options.habits else shrunk(judgement)
            key = str(replace(small.plan, seed=0))
            if key not in seen:
                seen.add(key)
                print(small, flush=True)
        elif judgement.refused and options.refused:
            v = judgement.refused[0]
            print(f'refused "{plan}": {v.engine}: {v.question}: {v.detail}', flush=True)
        if i % 100 == 99:
            print(f"... {i + 1} of {len(plans)}", file=sys.stderr, flush=True)
    faults = [j for j in found if j.faults]
    print(summary(found))
    return int(bool(faults))


def alone(dtype: str = "float32") -> list[Plan]:
    """Every habit, stem, task and wrapper once, with nothing else that is awkward."""
    base = Plan(seed=5, stem="vectors", blocks=("linear_tanh",), dtype=dtype, layout="equal")
    plans = [replace(base, blocks=(name,)) for name in HABITS]
    plans += [replace(base, stem=name) for name in STEMS]
    plans += [replace(base, task=name) for name in TASKS]
    plans += [replace(base, wrapper=name) for name in WRAPPERS]
    plans += [replace(base, options=name) for name in OPTIONS]
    plans += [replace(base, layout=name) for name in LAYOUTS]
    return plans


if __name__ == "__main__":
    raise SystemExit(main())
