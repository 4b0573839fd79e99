"""A table of flatness measures at one point."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ..errors import InvalidArgument
from ..files.store import Content, register, save
from .base import Pictured, draw


@dataclass(frozen=True)
class FlatnessRow:
    """One measure.

    Attributes:
        name: of the measure.
        value: small is flat; in units of the loss, for ``lambda_max``, ``trace``, ``frobenius`` and
            ``critical`` of loss per squared unit of the parameters.
        standard_error: of the value over random draws; 0 where there are none, NaN where the value
            is a bound.
        rho: the radius, None where there is none.
        bound: "lower" where the value is a lower bound, else None.
        invariant: what leaves the value as it is.
    """

    name: str
    value: float
    standard_error: float
    rho: float | None
    bound: str | None
    invariant: str

    @property
    def meaning(self) -> str:
        """What rho is of: "sigma of each weight", "norm of the step"; "" where there is none."""
        if self.rho is None:
            return ""
        case, _, rest = self.name.partition("_")
        unit = {"element": ", in units of |weight|", "filter": ", in units of the filter's norm"}
        if case == "average":
            return "sigma of each weight" + unit.get(rest, "")
        norm, _, scaled = rest.partition("_")
        whole = "norm of the whole step" if norm == "l2" else "largest change of a weight"
        return whole + unit.get(scaled, "")


@dataclass(eq=False, repr=False)
class Flatness(Pictured):
    """Measures of how flat L is around a point; its text is the table.

    ``table["trace"]`` is a row; measures with a radius are under (name, rho), or under the name
    alone where there is one radius.
    """

    rows: tuple[FlatnessRow, ...]
    loss: float
    info: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: str | tuple[str, float]) -> FlatnessRow:
        name, rho = (key, None) if isinstance(key, str) else key
        found = [r for r in self.rows if r.name == name and (rho is None or r.rho == rho)]
        if len(found) != 1:
            names = ", ".join(dict.fromkeys(r.name for r in self.rows))
            problem = "names no row" if not found else "names several rows; give (name, rho)"
            raise InvalidArgument(f"measure: {key!r} {problem}; expected one of {names}")
        return found[0]

    def facts(self) -> list[tuple[str, str]]:
        """The loss, and how many measures there are."""
        return [("Flatness", f"{len(self.rows)} measures at loss {self.loss:.6g}")]

    def table_columns(self) -> dict[str, Any]:
        names = [f.name for f in fields(FlatnessRow)]
        columns = {name: [getattr(row, name) for row in self.rows] for name in names}
        return {**columns, "rho_is": [row.meaning for row in self.rows]}

    def __iter__(self) -> Iterator[FlatnessRow]:
        return iter(self.rows)

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """The values with their errors on a logarithmic axis; ``beside=[other, ...]`` draws further
        tables with it, named by ``labels``. Returns the Axes.

        Options: beside, labels, title;
        figsize (width, height) of a figure of its own, in inches.
        """
        return draw(self, ax, **options)

    def save(self, path: Any) -> None:
        """Write an HDF5 file, atomically; `pylandscape.load` reads it back bit for bit."""
        save(self, path)

    def __repr__(self) -> str:
        lines = [f"Flatness at loss {self.loss:.6g}"]
        for r in self.rows:
            error = "" if not r.standard_error > 0 else f" +- {r.standard_error:.2g}"
            least = ">= " if r.bound == "lower" else ""
            radius = "" if r.rho is None else f" (rho {r.rho:g})"
            value = f"{least}{r.value:.4g}{error}"
            lines.append(f"  {r.name + radius:<32} {value:<26} invariant to {r.invariant}")
        meanings = {r.name: r.meaning for r in self.rows if r.rho is not None}
        lines += [f"  rho of {name}: {text}" for name, text in meanings.items()]
        return "\n".join(lines)


def _apart(result: Flatness) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    rows = result.rows
    arrays = {
        "value": np.array([r.value for r in rows]),
        "standard_error": np.array([r.standard_error for r in rows]),
        "rho": np.array([np.nan if r.rho is None else r.rho for r in rows]),
        "loss": np.array([result.loss]),
    }
    texts = [[r.name, r.bound, r.invariant] for r in rows]
    return arrays, {"rows": texts, "info": result.info}


def _together(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> Flatness:
    numbers = (arrays[name].tolist() for name in ("value", "standard_error", "rho"))
    rows = [
        FlatnessRow(name, value, error, None if np.isnan(rho) else rho, bound, invariant)
        for (name, bound, invariant), value, error, rho in zip(facts["rows"], *numbers, strict=True)
    ]
    return Flatness(tuple(rows), float(arrays["loss"][0]), facts["info"])


register(Flatness, Content("flatness", _apart, _together))
