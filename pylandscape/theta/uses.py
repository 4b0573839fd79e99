"""Which names code changes, and from which of them values reach what it computes.

A counter that only counts and a list that only grows are notes. A counter that decides on something
(``if n > 2``) is read, from whichever call on the decision shows. The syntax tree of the functions
tells these apart without running them: values flow along assignments, through expressions and from
conditions to what stands under them; what is returned, raised or handed to code that is not known
here counts as read. A name stands for all variables, attributes and keys of that name, so a note
may be taken for something that is read, and not the other way round.
"""

from __future__ import annotations

import ast
import builtins
import dis
import functools
import random
import types
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch

from .source_code import codes_in, node_of

Label = Any  # a name; (code, name) of a local variable; _Binding of one of them

_FILLS = frozenset({  # of containers, meters and files: takes its arguments and gives nothing
    "append", "appendleft", "extend", "extendleft", "insert", "add", "update", "setdefault",
    "clear", "discard", "remove", "pop", "popleft", "sort", "reverse", "write", "writelines",
    "put", "flush", "add_scalar", "add_scalars", "frombytes", "set",
})  # fmt: skip
_PLAIN_METHODS = frozenset({
    "item", "detach", "clone", "cpu", "numpy", "tolist", "float", "double", "long", "int", "mean",
    "sum", "norm", "abs", "max", "min", "keys", "values", "items", "copy", "format", "join",
    "count", "index", "size", "dim", "numel",
})  # fmt: skip
_PLAIN_CALLS = frozenset({
    "abs", "bool", "complex", "dict", "divmod", "enumerate", "float", "format", "frozenset", "int",
    "isinstance", "issubclass", "len", "list", "max", "min", "pow", "range", "repr", "reversed",
    "round", "set", "sorted", "str", "sum", "tuple", "type", "zip", "id",
})  # fmt: skip
_OF_CONTAINERS = frozenset(
    name
    for kind in (dict, list, set, deque, str, random.Random, torch.Tensor)
    for name in dir(kind)
)
_SAYS = frozenset({"print"})
_LOGS = frozenset({"debug", "info", "warning", "warn", "error", "critical", "exception", "log"})
_UNSEEN = frozenset({"globals", "locals", "eval", "exec", "__import__"})
_INLINE = frozenset({"<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>"})  # in the tree around
_MAKES = frozenset({"__init__", "__new__", "__post_init__", "__setstate__", "__set_name__"})


class _Binding(tuple[Label]):
    """That a name leads to this object, without what the object holds."""


def binding(label: Label) -> Label:
    return label if isinstance(label, _Binding) else _Binding((label,))


class Uses:
    """Of a set of functions' code.

    ``read``: labels whose values reach something beside notes; ``written``: labels that are
    changed. ``everything``: whether code reaches names that its text does not show.
    """

    def __init__(self, codes: Iterable[types.CodeType]) -> None:
        own = [
            code
            for each in dict.fromkeys(codes)
            for code in codes_in(each)
            if code.co_name not in _INLINE
        ]
        self.everything = False
        self.functions = {code.co_name for code in own}
        self.written: set[Label] = set()
        self._into: dict[Label, set[Label]] = {}  # {label: what flows into it}
        self._aliases: dict[Label, set[Label]] = {}  # {another name: what it is a name of}
        self._sinks: set[Label] = set()
        for code in own:
            node = node_of(code)
            if node is None:
                self._unknown(code)
            else:
                _Function(self, code, node).look()
        self.read = _closure(self._sinks, self._into)
        self.written = _closure(self.written, self._aliases)

    def _unknown(self, code: types.CodeType) -> None:
        for each in codes_in(code):
            named = {*each.co_names, *each.co_freevars, *each.co_cellvars}
            self._sinks |= named
            self.written |= named

    def flow(self, sources: Iterable[Label], target: Label) -> None:
        self._into.setdefault(target, set()).update(sources)

    def alias(self, source: Label, target: Label) -> None:
        self._aliases.setdefault(target, set()).add(source)

    def sink(self, labels: Iterable[Label]) -> None:
        self._sinks.update(labels)

    def handed_out(self, labels: Iterable[Label]) -> None:
        """To code that may keep, change or return it."""
        labels = set(labels)
        self._sinks |= labels
        self.written |= {x for x in labels if not isinstance(x, _Binding)}

    def reads(self, label: Label) -> bool:
        """Whether the contents of what bears the name reach anything."""
        return self.everything or label in self.read

    def reads_binding(self, label: Label) -> bool:
        """Whether it matters what the name is bound to."""
        return self.reads(label) or binding(label) in self.read

    def writes(self, label: Label) -> bool:
        return self.everything or label in self.written


def _closure(start: Iterable[Label], edges: dict[Label, set[Label]]) -> set[Label]:
    found: set[Label] = set()
    waiting = list(start)
    while waiting:
        label = waiting.pop()
        if label not in found:
            found.add(label)
            waiting.extend(edges.get(label, ()))
            if isinstance(label, _Binding):  # whatever it was assigned from
                waiting.extend(edges.get(label[0], ()))
    return found


class _Run(tuple[str]):
    """That a function of this name runs: what decides on it reaches what the function changes."""


def _gives(body: list[Any]) -> bool:
    """Whether statements return a value, or are those of a generator."""
    waiting: list[Any] = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Yield | ast.YieldFrom):
            return True
        if isinstance(node, ast.Return) and node.value is not None:
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(node))
    return False


class _Function:
    """What one function does with names."""

    def __init__(self, uses: Uses, code: types.CodeType, node: Any) -> None:
        self.uses, self.code, self.node = uses, code, node
        self._local = set(code.co_varnames) - set(code.co_cellvars)
        made = code.co_name in _MAKES and bool(code.co_varnames)
        self._new = code.co_varnames[0] if made else None  # the object that it makes
        self._run = _Run((code.co_name,))
        self._under: set[Label] = set()  # labels that decide whether what is looked at runs
        self._gives = isinstance(node, ast.Lambda) or _gives(node.body)

    def look(self) -> None:
        if isinstance(self.node, ast.Lambda):
            self.uses.sink(self._value(self.node.body))
        else:
            self._block(self.node.body)

    def _label(self, name: str) -> Label:
        return (self.code, name) if name in self._local else name

    # Statements.

    def _block(self, body: list[Any]) -> None:
        for statement in body:
            self._statement(statement)

    def _statement(self, s: Any) -> None:
        if isinstance(s, ast.Expr):
            self._discarded(s.value)
        elif isinstance(s, ast.Assign):
            flows = self._value(s.value)
            for target in s.targets:
                self._write(target, flows, s.value)
        elif isinstance(s, ast.AnnAssign):
            if s.value is not None:
                self._write(s.target, self._value(s.value), s.value)
        elif isinstance(s, ast.AugAssign):
            self._write(s.target, self._value(s.value), None)
        elif isinstance(s, ast.If | ast.While):
            self._branches(self._value(s.test), s.body, s.orelse)
        elif isinstance(s, ast.For | ast.AsyncFor):
            over = self._value(s.iter)
            self._write(s.target, over, s.iter)
            self._branches(over, s.body, s.orelse)
        elif isinstance(s, ast.With | ast.AsyncWith):
            for item in s.items:
                flows = self._value(item.context_expr)
                self._leaves(flows)
                if item.optional_vars is not None:
                    self._write(item.optional_vars, flows, item.context_expr)
            self._block(s.body)
        elif isinstance(s, ast.Try) or type(s).__name__ == "TryStar":
            self._block(s.body)
            tried = self._named(s.body)
            self._branches(tried, s.orelse, *(handler.body for handler in s.handlers))
            self._block(s.finalbody)
        elif isinstance(s, ast.Return):
            flows = set() if s.value is None else self._value(s.value)
            if self._gives:
                self.uses.sink(flows | self._under)
            else:
                self.uses.flow(self._under, self._run)
        elif isinstance(s, ast.Break | ast.Continue):
            self._leaves(set())
        elif isinstance(s, ast.Delete):
            for target in s.targets:
                self._write(target, set(), None)
        elif isinstance(s, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self._definition(s)
        elif not isinstance(s, ast.Pass | ast.Global | ast.Nonlocal | ast.Import | ast.ImportFrom):
            for child in ast.iter_child_nodes(s):  # raise, assert, match
                self._inside(child)

    def _inside(self, node: Any) -> None:
        if isinstance(node, ast.stmt):
            self._statement(node)
        elif isinstance(node, ast.expr):
            self._leaves(self._value(node))
        else:
            for child in ast.iter_child_nodes(node):
                self._inside(child)

    def _definition(self, s: Any) -> None:
        """Of a function inside, whose body is looked at as its own code."""
        kept = list(s.decorator_list)
        if isinstance(s, ast.ClassDef):
            kept += s.bases
        else:
            kept += [*s.args.defaults, *(d for d in s.args.kw_defaults if d is not None)]
        for node in kept:
            self._leaves(self._value(node))

    def _branches(self, test: set[Label], *bodies: list[Any]) -> None:
        before = self._under
        self._under = before | test
        for body in bodies:
            self._block(body)
        self._under = before

    def _named(self, body: list[Any]) -> set[Label]:
        """All that statements name."""
        found: set[Label] = set()
        for node in (each for statement in body for each in ast.walk(statement)):
            if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
                found.update(self._chain(node)[0])
        return found

    def _leaves(self, labels: set[Label]) -> None:
        self.uses.sink(labels | self._under | {self._run})

    def _runs(self, name: str, labels: set[Label]) -> None:
        self.uses.flow(labels | self._under | {self._run}, _Run((name,)))

    def _write(self, target: Any, flows: set[Label], value: Any) -> None:
        """``value``: what the target is another name of, where it is one."""
        if isinstance(target, ast.Tuple | ast.List):
            for part in target.elts:
                self._write(part, flows, value)
            return
        if isinstance(target, ast.Starred):
            self._write(target.value, flows, value)
            return
        chain, indices = self._chain(target)
        if not chain:
            self._leaves(flows | indices)
            return
        last = chain[-1]
        if value is not None:
            named, _ = self._chain(value)
            if named:
                self.uses.alias(named[-1], last)
        flows = flows | indices | {binding(x) for x in chain[:-1]} | self._under | {self._run}
        self.uses.flow(flows, last)
        called = (last, "__setitem__") if isinstance(target, ast.Subscript) else (last, "__set__")
        if any(name in self.uses.functions for name in called):  # code that takes the value
            self.uses.handed_out(flows)
            self.uses.written.update(chain)
        of_new = isinstance(target, ast.Attribute) and self._is_new(target.value)
        if not of_new:
            self.uses.written.add(last)

    def _is_new(self, node: Any) -> bool:
        return isinstance(node, ast.Name) and node.id == self._new

    def _discarded(self, e: Any) -> None:
        """An expression whose value nothing takes."""
        if isinstance(e, ast.Call) and isinstance(e.func, ast.Attribute):
            method = e.func.attr
            fills = method in _FILLS or (method[-1:] == "_" and method[-2:] != "__")
            if fills:
                given = self._given(e)
                if method in self.uses.functions:  # it may be one of these instead
                    self.uses.handed_out(given)
                    self._runs(method, {binding(x) for x in self._chain(e.func.value)[0]})
                if self._chain(e.func.value)[0]:
                    self._write(e.func.value, given, None)
                else:
                    self._leaves(given | self._value(e.func.value))
                return
            if method in _LOGS and method not in self.uses.functions:
                self._given(e)
                return
        self._value(e)

    # Expressions.

    def _chain(self, e: Any) -> tuple[list[Label], set[Label]]:
        """The labels of a.b["c"][i], and what flows into indices; no labels for other forms."""
        if isinstance(e, ast.Name):
            return [self._label(e.id)], set()
        if isinstance(e, ast.Attribute):
            chain, indices = self._chain(e.value)
            if e.attr in ("data", "grad", "__dict__"):
                return chain, indices
            if not chain:
                return [e.attr], indices | self._value(e.value)
            return [*chain, e.attr], indices
        if isinstance(e, ast.Subscript):
            chain, indices = self._chain(e.value)
            if isinstance(e.slice, ast.Constant) and isinstance(e.slice.value, str):
                return ([*chain, e.slice.value] if chain else [e.slice.value]), indices
            return chain, indices | self._value(e.slice)
        return [], set()

    def _value(self, e: Any) -> set[Label]:
        """The labels whose values flow into that of the expression."""
        if isinstance(e, ast.Name | ast.Attribute | ast.Subscript):
            chain, indices = self._chain(e)
            if isinstance(e, ast.Attribute) and e.attr == "__dict__":
                self.uses.handed_out(self._value(e.value))
            if not chain and not isinstance(e, ast.Name):
                return indices | self._value(e.value)
            return {chain[-1], *(binding(x) for x in chain[:-1])} | indices
        if isinstance(e, ast.Call):
            return self._call(e)
        if isinstance(e, ast.NamedExpr):
            flows = self._value(e.value)
            self._write(e.target, flows, e.value)
            return flows
        if isinstance(e, ast.Yield | ast.YieldFrom | ast.Await):
            flows = set() if e.value is None else self._value(e.value)
            self._leaves(flows)
            return flows
        if isinstance(e, ast.Lambda):
            for node in [*e.args.defaults, *(d for d in e.args.kw_defaults if d is not None)]:
                self._leaves(self._value(node))
            return set()
        if isinstance(e, ast.BoolOp | ast.IfExp):  # some parts run only after others
            parts = e.values if isinstance(e, ast.BoolOp) else [e.test, e.body, e.orelse]
            before, found = self._under, set[Label]()
            for part in parts:
                found |= self._value(part)
                self._under = self._under | found
            self._under = before
            return found
        found = set()
        for child in ast.iter_child_nodes(e):
            if isinstance(child, ast.expr):
                found |= self._value(child)
            elif isinstance(child, ast.comprehension):
                found |= self._value(child.iter)
                for test in child.ifs:
                    found |= self._value(test)
        return found

    def _given(self, e: ast.Call) -> set[Label]:
        found: set[Label] = set()
        for argument in [*e.args, *(keyword.value for keyword in e.keywords)]:
            found |= self._value(argument)
        return found

    def _call(self, e: ast.Call) -> set[Label]:
        given, f = self._given(e), e.func
        if isinstance(f, ast.Name):
            if f.id not in self.uses.functions and hasattr(builtins, f.id):
                if f.id in _SAYS:
                    return set()
                if f.id in _PLAIN_CALLS:
                    return given
                if f.id == "next" and e.args:
                    self._write(e.args[0], set(), None)
                    return given
                if f.id in ("getattr", "setattr", "delattr", "hasattr"):
                    return self._by_name(f.id, e, given)
                unseen = f.id in _UNSEEN or (f.id in ("vars", "dir") and not e.args)
                self.uses.everything |= unseen
            self.uses.handed_out(given)
            bound = {binding(self._label(f.id))}
            if f.id in self.uses.functions:  # whose code is looked at, too
                self._runs(f.id, bound)
            else:
                self._leaves(bound)
            return bound
        if not isinstance(f, ast.Attribute):
            found = self._value(f) | given
            self.uses.handed_out(found)
            self.uses.sink(self._under)
            return found
        chain, indices = self._chain(f.value)
        of = self._value(f.value)
        if f.attr in self.uses.functions:
            self.uses.handed_out(given)
            bound = {binding(x) for x in (*chain, f.attr)} | indices | (set() if chain else of)
            self._runs(f.attr, bound)
            if f.attr not in _OF_CONTAINERS:
                return bound
        if f.attr in _PLAIN_METHODS:
            return of | given
        self.uses.handed_out(of | given)
        self._leaves({binding(f.attr)})
        return of | given

    def _by_name(self, how: str, e: ast.Call, given: set[Label]) -> set[Label]:
        """getattr and its like."""
        name = e.args[1] if len(e.args) > 1 else None
        if not (isinstance(name, ast.Constant) and isinstance(name.value, str)):
            self.uses.handed_out(given)  # all of the object
            self._leaves(given)
            return given
        place = ast.Attribute(e.args[0], name.value, ast.Load())
        if how in ("getattr", "hasattr"):
            return given | self._value(place)
        self._write(place, given, None)
        return set()


@functools.lru_cache(maxsize=4096)
def may_write(code: types.CodeType) -> bool:
    """Whether code may change anything beside its own variables, told without its source."""
    for step in dis.get_instructions(code):
        if step.opname in _STORES:
            return True
        name = step.argval
        called = step.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(name, str)
        if called and (name in _FILLS or (name[-1:] == "_" and name[-2:] != "__")):
            return True
    return False


_STORES = frozenset({
    "STORE_GLOBAL", "STORE_DEREF", "STORE_ATTR", "STORE_SUBSCR", "STORE_SLICE", "DELETE_GLOBAL",
    "DELETE_DEREF", "DELETE_ATTR", "DELETE_SUBSCR",
})  # fmt: skip
