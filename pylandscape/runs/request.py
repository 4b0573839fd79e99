"""What was asked: the record of everything that determines the numbers of a result.

A request is a JSON-able dict. Equal requests give bit-identical values, so a file that holds a
request can be resumed or taken as it is by an equal one, and by no other.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from ..arrays import OPAQUE, digest, jsonable, to_json
from ..errors import InvalidArgument

__all__ = ["FORMAT", "Metric", "build", "differences", "digest", "jsonable", "listing", "to_json"]

FORMAT = 2  # of requests: 1 knew the model by its printed form, free losses by their names

Metric = str | Callable[..., Any]


class Described(Protocol):
    """A Landscape or a SymmetricOperator."""

    def describe(self) -> dict[str, Any]:
        """What determines the numbers, JSON-able."""


def build(of: Described, kind: str, whole: bool = True, **asked: Any) -> dict[str, Any]:
    """The request for a result of this kind: of whom (see `identity`), and what was asked.

    The model's own theta is not part of it: what depends on a theta says so in `asked`. `whole`:
    see `SymmetricOperator.describe`; a request that is not cannot be compared with others.

    Raises:
        InvalidArgument: something asked has no JSON form.
    """
    operator: Any = of if hasattr(of, "multiply") else None
    about = of.describe() if operator is None else {"operator": operator.describe(whole)}
    about = {name: value for name, value in about.items() if name != "model_theta"}
    return dict(jsonable({**about, "format": FORMAT, "kind": kind, **asked}, "request"))


def with_loss(
    metrics: str | Metric | Sequence[Metric],
) -> tuple[tuple[Metric, ...], tuple[str, ...]]:
    """The metrics, with the loss first (always computed), and the names of their arrays."""
    from ..theta.losses import metric_name

    one = isinstance(metrics, str) or callable(metrics)
    given: list[Any] = [metrics] if one or not isinstance(metrics, Iterable) else list(metrics)
    for metric in given:
        if not isinstance(metric, str) and not callable(metric):
            raise InvalidArgument(
                f"metrics: expected 'loss', 'accuracy' or callables, got {metric!r}"
            )
    found: list[Metric] = ["loss"]
    found += [metric for metric in given if metric != "loss"]
    names = [metric_name(metric) for metric in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidArgument(f"metrics: expected different names, got {', '.join(twice)} twice")
    return tuple(found), tuple(names)


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(field, found, wanted) where two requests differ; nested fields are written
    "directions[0].seed", those with a text of their own "model: code of f".

    Directions of equal digests are equal, however they were described. Numbers that stand for what
    cannot be looked into are compared within the tolerance that the request gives.
    """
    return list(_walk("", found, wanted))


def _walk(at: str, found: Any, wanted: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        if at.startswith("directions[") and found.get("digest") == wanted.get("digest"):
            return []
        if at.rpartition(".")[2] == OPAQUE and _equal_within(found, wanted):
            return []
        out: list[tuple[str, Any, Any]] = []
        for key in dict.fromkeys([*found, *wanted]):
            field = f"{at}{': ' if ' ' in key else '.'}{key}" if at else key
            out += _walk(field, found.get(key), wanted.get(key))
        return out
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = enumerate(zip(found, wanted, strict=True))
        return [line for i, (a, b) in pairs for line in _walk(f"{at}[{i}]", a, b)]
    return [] if json.dumps(found) == json.dumps(wanted) else [(at, found, wanted)]


def _equal_within(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    pairs = [*zip(found.get("numbers", []), wanted.get("numbers", []), strict=False)]
    tolerance = wanted.get("tolerance", 0.0)
    return (
        bool(pairs)
        and found.get("what") == wanted.get("what")
        and all(
            (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=tolerance)
            for a, b in pairs
        )
    )


def listing(rows: Sequence[tuple[str, Any, Any]]) -> str:
    """Differences as lines of an error message; of a digest, its first digits."""

    def shown(value: Any) -> str:
        if isinstance(value, str):
            return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1...", repr(value))
        return repr(value)

    lines = [f"\n  {field}: file {shown(a)}, request {shown(b)}" for field, a, b in rows]
    fields = {field for field, _, _ in rows}
    if "format" in fields:
        lines.append(
            "\n  The file is of another version of this package, which recorded other things of "
            "the model and the loss; pylandscape.load still reads a finished one."
        )
    if fields & {"data", "operator.data"}:
        lines.append(
            "\n  The data differ: does the loader shuffle? Batches are read in the loader's order; "
            "give it shuffle=False, or a generator with a fixed seed."
        )
    return "".join(lines)
