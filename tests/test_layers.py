"""The house: an import goes only to an earlier floor, no files import each other in a circle, and
nothing outside a package touches its private names. Imports in functions and under TYPE_CHECKING
count like all others."""

from __future__ import annotations

import ast
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import FrameType

import torch

import pylandscape

ROOT = Path(pylandscape.__file__).parent

# From the ground up. A file may import from its own package and from the floors before it.
FLOORS = (
    ("_version", "errors", "ranks", "arguments", "progress", "arrays", "_native"),
    ("theta",),
    ("lowering",),
    ("engines",),
    ("files",),
    ("results",),
    ("landscape",),
    ("runs",),
    ("plots",),
    ("topology",),
    ("curvature",),
    ("trajectories",),
    ("training",),
    ("optim",),
    ("surfaces",),
    ("connectivity",),
    ("critical",),
    ("clouds",),
    ("experiments",),
    ("interop", "plotting"),
    ("reports",),
    ("cli",),
    ("compat",),
    ("", "__main__"),  # "" is the facade, __init__.py
)
# Files of one package that must not know each other's neighbours, in their order.
INNER = {
    "engines": (
        "contract",
        "eager",
        "capture_check",
        "native",
        "recompute",
        "cuda",
        "points",
        "choose",
    )
}

# Private names of torch's that our classes have too.
TORCHS = {"_base", "_parameters", "_buffers", "_modules", "_version"}

# Lazy imports that go up, all of them: what a result is drawn by, and its topology.
DISPATCHES = {("results.base", "plots"), ("results.base", "topology")}

# Published studies, which read as examples: the facade, and what `experiments` gives to them.
EXAMPLES = "experiments.studies."
FRAME = {
    "", "lab", "networks", "datasets", "page", "measured", "methods", "perturbations", "table1",
    "table1_cases", "table1_report", "basins", "global_search", "patterns", "polynomial",
    "residual", "theorems",
}  # fmt: skip


@cache
def modules() -> dict[str, Path]:
    """{"theta.layout": its file}; a package stands for its __init__.py, "" for the facade."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text())


@cache
def imports_of(name: str) -> list[tuple[str, str, int]]:
    """(module, name taken from it, line) of every import of this package, wherever it stands."""
    return list(found_imports(name))


def found_imports(name: str) -> Iterator[tuple[str, str, int]]:
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top, _, rest = alias.name.partition(".")
                if top == "pylandscape":
                    yield rest, "", node.lineno
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                own = name.split(".") if name else []
                if modules()[name].name != "__init__.py":
                    own = own[:-1]
                base = own[: len(own) - node.level + 1]
                target = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            elif (node.module or "").split(".")[0] == "pylandscape":
                target = (node.module or "").partition(".")[2]
            else:
                continue
            for alias in node.names:
                inner = f"{target}.{alias.name}".strip(".")
                yield (inner, "", node.lineno) if inner in modules() else (
                    target, alias.name, node.lineno
                )  # fmt: skip


def package_of(name: str) -> str:
    return name.split(".")[0]


def floor_of(name: str) -> int:
    for floor, packages in enumerate(FLOORS):
        if package_of(name) in packages:
            return floor
    raise AssertionError(f"{name or 'the facade'} is on no floor: add its package to FLOORS")


def dispatched(source: str, target: str) -> bool:
    if source.startswith(EXAMPLES) and target == "":
        return True  # `import pylandscape as pl`, as a reader would
    return any(source == s and package_of(target) == t for s, t in DISPATCHES)


def test_an_import_goes_only_to_an_earlier_floor():
    up = [
        f"{modules()[source].relative_to(ROOT)}:{line} imports {target or 'the facade'}"
        for source in modules()
        for target, _, line in imports_of(source)
        if package_of(source) != package_of(target)
        and floor_of(target) >= floor_of(source)
        and not (floor_of(target) == floor_of(source) == 0)  # the ground: no circles, see below
        and not dispatched(source, target)
    ]
    assert not up, "\n".join(up)


def test_studies_use_public_names_only():
    for name in modules():
        if not name.startswith(EXAMPLES):
            continue
        for target, taken, line in imports_of(name):
            own = target.removeprefix("experiments").lstrip(".")
            assert target == "" or own in FRAME, f"{name}:{line} {target}"
            assert not taken.startswith("_"), f"{name}:{line} {taken}"


def test_every_dispatch_that_is_allowed_is_there_and_lazy():
    for source, target in DISPATCHES:
        lazy = [
            node
            for function in ast.walk(tree_of(source))
            if isinstance(function, ast.FunctionDef)
            for node in ast.walk(function)
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        assert lazy, f"{source} no longer imports {target} in a function: strike it from DISPATCHES"
        taken = {package_of(t) for t, _, _ in imports_of(source)}
        assert target in taken
        top = [n for n in tree_of(source).body if isinstance(n, ast.Import | ast.ImportFrom)]
        assert not any(target in ast.unparse(n).split() for n in top)


def test_no_files_import_each_other_in_a_circle():
    graph = {
        name: {
            target
            for target, _, _ in imports_of(name)
            if target in modules() and target != name and not dispatched(name, target)
        }
        for name in modules()
    }
    circles = [c for c in strongly_connected(graph) if len(c) > 1]
    assert not circles, "\n".join(" <-> ".join(sorted(c)) for c in circles)


def test_engines_know_only_those_before_them():
    for package, order in INNER.items():
        for name in modules():
            if package_of(name) != package or name == package:
                continue
            mine = name.split(".")[1]
            for target, _, line in imports_of(name):
                if package_of(target) != package or target == package:
                    continue
                theirs = target.split(".")[1]
                if mine in order and theirs in order:
                    assert order.index(theirs) <= order.index(mine), f"{name}:{line} {target}"


def test_private_names_stay_in_their_package():
    """Names with a leading underscore are neither imported nor read from another package."""
    own: dict[str, set[str]] = {}  # package -> private attributes that its classes and files define
    for name in modules():
        own.setdefault(package_of(name), set()).update(private_definitions(tree_of(name)))
    everywhere = set().union(*own.values())
    crossings = []
    for name in modules():
        package, path = package_of(name), modules()[name].relative_to(ROOT)
        for target, taken, line in imports_of(name):
            parts = [*target.split("."), taken]
            private = any(p.startswith("_") and not p.startswith("__") for p in parts[1:])
            if private and package_of(target) != package:
                crossings.append(f"{path}:{line} imports {target}.{taken}")
        for node in ast.walk(tree_of(name)):
            if not isinstance(node, ast.Attribute) or not is_private(node.attr):
                continue
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                continue
            if node.attr in everywhere - TORCHS and node.attr not in own[package]:
                crossings.append(f"{path}:{node.lineno} reads {ast.unparse(node)}")
    assert not crossings, "\n".join(crossings)


def test_the_root_holds_the_facade_the_ground_and_packages():
    files = {name for name in modules() if "." not in name and modules()[name].parent == ROOT}
    assert files == {"", "__main__", "landscape", "interop", "plotting", *FLOORS[0]}
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders == {p for floor in FLOORS for p in floor} - files


def test_every_package_says_what_it_holds():
    for name, path in modules().items():
        if path.name == "__init__.py" and package_of(name) != "compat":
            assert ast.get_docstring(tree_of(name)), name


def test_no_public_function_has_the_name_of_a_module():
    stems = {name.rsplit(".", 1)[-1] for name in modules() if package_of(name) != "compat"}
    assert not stems & set(pylandscape.__all__)


def test_a_surface_reaches_the_core_through_four_files_and_each_names_the_next():
    ways: list[list[Path]] = []

    def metric(outputs: torch.Tensor, target: torch.Tensor) -> float:  # called beside the kernel
        frames = [Path(f.filename) for f in traceback.extract_stack()]
        ways.append([*dict.fromkeys(f for f in frames if f.is_relative_to(ROOT))])
        return 0.0

    data = torch.randn(5, 3), torch.randn(5, 2)
    land = pylandscape.Landscape(torch.nn.Linear(3, 2), "mse", data, engine="native")
    d = pylandscape.random_directions(land, 2, seed=0)
    land.evaluate([[0.5, 0.0]], d, metrics=("loss", metric))
    x = y = (0.5, 0.5, 1)
    pylandscape.plane(land, *d, x=x, y=y, metrics=("loss", metric), progress=False)
    for way, most in zip(ways, (2, 4), strict=True):
        assert len(way) <= most, way
        tops = [ast.get_docstring(ast.parse(f.read_text())) or "" for f in way]
        for top, after in pairwise([*zip(tops, way, strict=True), ("", Path("csrc/question"))]):
            assert after[1].name in top[0], f"{top[1]} does not say that {after[1].name} is next"


def files_on_the_way(call: Callable[[], object], last: str) -> set[str]:
    """Our files on the stack whenever a function of the file `last` is called."""
    found: set[str] = set()

    def look(frame: FrameType | None, event: str, _: object) -> None:
        if frame is None or event != "call" or not frame.f_code.co_filename.endswith(last):
            return
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            found.update({str(path.relative_to(ROOT))} if path.is_relative_to(ROOT) else ())
            frame = frame.f_back

    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def test_a_probe_reaches_the_core_through_three_files_and_a_point_through_four():
    data = torch.randn(5, 3), torch.randn(5, 2)
    wide = torch.nn.Sequential(torch.nn.Linear(3, 40), torch.nn.Tanh(), torch.nn.Linear(40, 2))
    land = pylandscape.Landscape(wide, "mse", data, engine="native")
    spectrum = pylandscape.spectrum  # imported now, not on the way
    way = files_on_the_way(
        lambda: spectrum(land, 1, 3, seed=0, progress=False), "curvature/lanczos.py"
    )
    assert way == {"curvature/spectra.py", "curvature/lanczos.py", "runs/resume.py"}
    small = pylandscape.Landscape(torch.nn.Linear(3, 2), "mse", data, engine="native")
    points = small.theta[None].double().numpy()
    pylandscape.classify(small, points, progress=False)  # its program in float64 is made once
    way = files_on_the_way(
        lambda: pylandscape.classify(small, points, progress=False), "points/native.py"
    )
    assert way == {
        "critical/classification.py", "runs/chunks.py", "engines/points/evaluator.py",
        "engines/points/native.py",
    }  # fmt: skip


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_definitions(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and is_private(node.name):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            of_own = isinstance(node.value, ast.Name) and node.value.id in (
                "self",
                "cls",
            )
            if of_own and is_private(node.attr):
                yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and is_private(node.id):
            yield node.id


def strongly_connected(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components (Tarjan 1972), without recursion."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []
    for root in graph:
        if root in number:
            continue
        work = [(root, iter(sorted(graph[root])))]
        number[root] = low[root] = len(number)
        stack.append(root)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in number:
                    number[target] = low[target] = len(number)
                    stack.append(target)
                    work.append((target, iter(sorted(graph[target]))))
                    break
                if target in stack:
                    low[node] = min(low[node], number[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == number[node]:
                    component = []
                    while not component or component[-1] != node:
                        component.append(stack.pop())
                    found.append(component)
    return found
