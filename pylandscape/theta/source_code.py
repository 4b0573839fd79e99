"""What a function's code is and names: by its source, or by its bytecode where there is none.

The source counts as its syntax tree: comments, layout and docstrings do not matter.
"""

from __future__ import annotations

import ast
import dis
import functools
import linecache
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from ..arrays import text_digest

_CHANGING = frozenset({"append", "extend", "insert", "add", "update", "appendleft", "setdefault"})


class Names:
    """What a code object and those inside it name.

    `written`: variables that it rebinds (`nonlocal`, `global`) or fills, such as counters and
    histories: what they hold is left by earlier calls, and no part of what is computed.
    """

    def __init__(self, code: types.CodeType) -> None:
        found: dict[str, dict[str, None]] = {"globals": {}, "attributes": {}, "imports": {}}
        written = set()
        for each in codes_in(code):
            before = None
            for step in dis.get_instructions(each):
                if step.opname in ("STORE_DEREF", "STORE_GLOBAL"):
                    written.add(step.argval)
                elif step.argval in _CHANGING and before is not None:
                    written.add(before)
                named = step.opname in ("LOAD_DEREF", "LOAD_GLOBAL")
                before = step.argval if named else None
                kind = {
                    "LOAD_GLOBAL": "globals", "LOAD_NAME": "globals", "LOAD_ATTR": "attributes",
                    "LOAD_METHOD": "attributes", "LOAD_SUPER_ATTR": "attributes",
                    "IMPORT_FROM": "attributes", "IMPORT_NAME": "imports",
                }.get(step.opname)  # fmt: skip
                if kind is not None and isinstance(step.argval, str):
                    found[kind][step.argval] = None
        self.globals = tuple(found["globals"])
        self.attributes = tuple(found["attributes"])
        self.imports = tuple(found["imports"])
        self.written = frozenset(written)


@functools.lru_cache(maxsize=4096)
def names_in(code: types.CodeType) -> Names:
    return Names(code)


def codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from codes_in(each)


def named_code(code: types.CodeType) -> str:
    """ "source DIGEST", or "bytecode (Python 3.x) DIGEST" where the source is not at hand."""
    node = node_of(code)
    if node is not None:
        return f"source {text_digest(_tree(node))}"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"bytecode (Python {version}) {text_digest(_bytecode(code))}"


def node_of(code: types.CodeType) -> ast.AST | None:
    """The syntax tree of a function, if its file still holds what runs."""
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename)
    if not lines:
        return None
    nodes = _parsed("".join(lines), code.co_filename).get(code)
    return nodes[0] if nodes is not None and len({_tree(n) for n in nodes}) == 1 else None


@functools.lru_cache(maxsize=64)
def _parsed(source: str, filename: str) -> dict[types.CodeType, list[ast.AST]]:
    """{code: its nodes} of all functions of a file: several where the positions cannot tell.

    Equal code objects have the same name, first line, instructions and constants, so that a file
    edited since it was imported is not taken for what runs.
    """
    try:
        tree = ast.parse(source)
        whole = compile(source, filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return {}
    at: dict[tuple[str, int], list[ast.AST]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            line = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            at.setdefault((node.name, line), []).append(node)
        elif isinstance(node, ast.Lambda):
            at.setdefault(("<lambda>", node.lineno), []).append(node)
    found: dict[types.CodeType, list[ast.AST]] = {}
    for code in codes_in(whole):
        nodes = at.get((code.co_name, code.co_firstlineno), [])
        found.setdefault(code, []).extend(_at_place_of(code, nodes))
    return found


def _at_place_of(code: types.CodeType, nodes: list[ast.AST]) -> list[ast.AST]:
    """Of several nodes of one line, the smallest around the code's columns (Python 3.11 on)."""
    positions: Callable[[], Any] | None = getattr(code, "co_positions", None)
    if len(nodes) < 2 or positions is None:
        return nodes
    places = [
        (first, begin) for first, _, begin, end in positions()
        if first is not None and begin is not None and end  # not those that only begin a function
    ]  # fmt: skip
    around: list[tuple[int, ast.AST]] = []
    for node in nodes:
        assert isinstance(node, ast.Lambda | ast.FunctionDef | ast.AsyncFunctionDef)
        start = (node.lineno, node.col_offset)
        stop = (node.end_lineno or 0, node.end_col_offset or 0)
        if places and all(start <= place <= stop for place in places):
            around.append((len(ast.dump(node)), node))
    return [min(around, key=lambda pair: pair[0])[1]] if around else nodes


def _tree(node: Any) -> str:
    """A syntax tree as a text: no positions, no docstrings, the same in all versions of Python."""
    if isinstance(node, list):
        return f"[{' '.join(_tree(each) for each in node)}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if name in ("ctx", "kind", "type_comment", "annotation", "returns", "type_params"):
            continue
        if name == "body" and isinstance(value, list) and _is_docstring(node, value):
            value = value[1:]
        if value is None and name == "value" and isinstance(node, ast.Constant):
            fields.append("value=None")
        elif value is not None and value != []:
            fields.append(f"{name}={_tree(value)}")
    return f"{type(node).__name__}({' '.join(fields)})"


def _is_docstring(node: ast.AST, body: list[Any]) -> bool:
    return (
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and bool(body)
        and isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
        and isinstance(body[0].value.value, str)
    )


def _bytecode(code: types.CodeType) -> str:
    def constant(value: Any) -> str:
        if isinstance(value, types.CodeType):
            return _bytecode(value)
        if isinstance(value, frozenset):
            return f"{{{', '.join(sorted(map(repr, value)))}}}"
        if isinstance(value, tuple):
            return f"({', '.join(map(constant, value))})"
        return repr(value)

    parts = [
        code.co_name, code.co_argcount, code.co_kwonlyargcount, code.co_posonlyargcount,
        code.co_flags, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars,
    ]  # fmt: skip
    handlers = getattr(code, "co_exceptiontable", b"")
    inside = ", ".join(map(constant, code.co_consts))
    return f"{parts} {code.co_code.hex()} {handlers.hex()} [{inside}]"
