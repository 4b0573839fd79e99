"""What curves and surfaces share."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays import Array
from ..errors import InvalidArgument, PylandscapeError
from ..files import store

if TYPE_CHECKING:
    from .sanity import Verdict


class Tabular:
    """A result that is also a table."""

    def table_columns(self) -> dict[str, Any]:
        """{name: column} of `to_dataframe`, all of one length."""
        raise InvalidArgument(f"to_dataframe: expected a table, got a {type(self).__name__}")

    def to_dataframe(self) -> Any:
        """A pandas DataFrame: a row for each point (of a surface: x, y and its metrics), probe's
        node, eigenvalue, model pair or training step.

        Raises:
            PylandscapeError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise PylandscapeError(
                "to_dataframe: needs pandas, which is not installed: pip install pandas"
            ) from error
        return pandas.DataFrame(self.table_columns())


class Pictured(Tabular):
    """A result that a notebook shows as a short table and its picture, where matplotlib can draw
    it."""

    def facts(self) -> list[tuple[str, str]]:
        """(name, text): what a notebook or a report says beside the picture."""
        name, _, rest = repr(self).partition("(")
        return [(name, rest.removesuffix(")"))]

    def _repr_html_(self) -> str:
        """The facts as a table, and the default picture."""
        picture = self._repr_png_()
        found = html_table(self.facts())
        if picture is not None:
            code = base64.b64encode(picture).decode()
            found += f'<img style="max-width: 100%" src="data:image/png;base64,{code}">'
        return found

    def _repr_png_(self) -> bytes | None:
        """The default picture as PNG; None without matplotlib or with nothing to draw, where the
        notebook shows the text."""
        try:
            import matplotlib.pyplot as plt

            axes = draw(self)
        except (ImportError, PylandscapeError):
            return None
        figure = axes.figure
        try:
            content = io.BytesIO()
            figure.savefig(content, format="png", bbox_inches="tight")
        finally:
            plt.close(figure)
        return content.getvalue()


class _Result(Pictured):
    """What curves and surfaces share."""

    kind: str
    values: Array
    metrics: dict[str, Array]
    info: dict[str, Any]

    @property
    def nonfinite(self) -> int:
        """Number of points where the loss is NaN or infinite."""
        return int((~np.isfinite(self.values)).sum())

    def facts(self) -> list[tuple[str, str]]:
        """Its kind and size, the values, the engine, and the verdict of `check`."""
        size = " x ".join(str(n) for n in self.values.shape)
        found = [(type(self).__name__, f"{self.kind}, {size} points")]
        for name, values in self.metrics.items():
            finite = values[np.isfinite(values)]
            span = f"{finite.min():.4g} to {finite.max():.4g}" if finite.size else "none finite"
            found.append((name, span))
        if self.nonfinite:
            found.append(("not finite", f"{self.nonfinite} points"))
        engine = self.info.get("engine")
        seconds = self.info.get("seconds")
        if engine is not None:
            took = f", {seconds:.3g} s" if isinstance(seconds, int | float) else ""
            found.append(("engine", f"{engine}{took}"))
        verdict = self.check()
        said = [f.message for f in verdict.findings if f.level in ("error", "warning")]
        found.append(("check", "; ".join(said) if said else "nothing to object to"))
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """The loss, for `np.asarray(result)`: the result's own array unless a copy is needed."""
        found: Array = np.asarray(self.values, dtype=dtype)
        if copy is False and not np.shares_memory(found, self.values):
            raise ValueError(f"copy: expected a copy to be allowed for dtype {dtype}, got False")
        return found.copy() if copy and found is self.values else found

    def check(self) -> Verdict:
        """Answer "is my plot right?": a verdict with one line per check (see sanity.py)."""
        from .sanity import check

        return check(self)

    def significant(
        self, other: Any = None, *, errors: float = 2.0, of: str = "population"
    ) -> NDArray[np.bool_]:
        """Where the loss differs beyond the noise of the data: a mask of the values' shape.

        It takes the metrics "standard_error" and "difference_standard_error" (theta/sampling.py).

        Args:
            other: None: the loss at the centre, or between solutions the mixture of their losses;
                the samples' own differences decide. A result at the same steps: of the same data
                by a bound (the sum of both errors, or of both to a common centre), of other data
                as independent samples. A number: that loss.
            errors: how many standard errors a difference must exceed; 2 holds for about 95 % of the
                points that do not differ, one by one, not for the most extreme of many.
            of: "population": would other samples from where these come from say so too? "data":
                would all of the data that a subset (`samples=`) was drawn from?

        Points that are not finite are False.

        Raises:
            InvalidArgument: the errors are not among the metrics, other axes, a value that names
                the argument.
        """
        from .data_noise import significant

        return significant(self, other, errors, of)

    def topology(self, metric: str = "loss") -> Any:
        """A `Topology`: merge trees and persistence pairs of a metric (topology/trees.py)."""
        from ..topology.trees import topology_of

        return topology_of(self, metric)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an HDF5 file, atomically; one that is there is replaced. `pylandscape.load` reads
        it back bit for bit, and loss-landscape's tools read its root datasets.

        Raises:
            OSError: the file cannot be written (what was there before is untouched).
        """
        store.save(self, path)

    def __repr__(self) -> str:
        finite = self.values[np.isfinite(self.values)]
        span = f"loss {finite.min():.4g} to {finite.max():.4g}" if finite.size else "no finite loss"
        bad = f", {self.nonfinite} not finite" if self.nonfinite else ""
        others = [name for name in self.metrics if name != "loss"]
        more = f", also {', '.join(others)}" if others else ""
        size = " x ".join(str(n) for n in self.values.shape)
        return f"{type(self).__name__}({self.kind}, {size}, {span}{bad}{more})"


def html_table(rows: Sequence[Sequence[Any]], head: Sequence[str] = ()) -> str:
    """Rows of texts and numbers as HTML; the first column is in bold without a head."""

    def line(cells: Sequence[Any], tags: Sequence[str]) -> str:
        done = (
            f'<{t} style="text-align: left">{html.escape(str(c))}</{t}>'
            for c, t in zip(cells, tags, strict=True)
        )
        return f"<tr>{''.join(done)}</tr>"

    top = [line(head, ["th"] * len(head))] if head else []
    first = "td" if head else "th"
    lines = [line(cells, [first, *["td"] * (len(cells) - 1)]) for cells in rows]
    return f"<table>{''.join([*top, *lines])}</table>"


def check_axis(axis: ArrayLike, name: str) -> Array:
    """A copy of the axis, (n,) float64, n >= 1, finite and increasing, or InvalidArgument."""
    expected = "expected an increasing 1-D array of finite numbers"
    try:
        found = np.asarray(axis)
        numbers = found.astype(np.float64) if found.dtype.kind in "fiu" else None
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgument(f"{name}: {expected}, got {axis!r}") from error
    if numbers is None or numbers.ndim != 1 or numbers.size == 0:
        raise InvalidArgument(
            f"{name}: {expected}, got shape {found.shape} and dtype {found.dtype}"
        )
    if not np.isfinite(numbers).all():
        raise InvalidArgument(
            f"{name}: {expected}, got {(~np.isfinite(numbers)).sum()} that are not"
        )
    falls = np.flatnonzero(~(np.diff(numbers) > 0))
    if falls.size:
        i = int(falls[0])
        raise InvalidArgument(
            f"{name}: {expected}, got {numbers[i]!r} before {numbers[i + 1]!r} (index {i})"
        )
    return numbers


def _check_metrics(
    values: ArrayLike | None, metrics: Mapping[str, ArrayLike] | None, shape: tuple[int, ...]
) -> dict[str, Array]:
    """Metrics as float64 arrays of the given shape, "loss" first; `values` stands for the loss."""
    given = dict(metrics or {})
    twice = values is not None and "loss" in given
    if values is not None:
        given.setdefault("loss", values)
    if "loss" not in given:
        raise InvalidArgument(f"metrics: expected 'loss' among them, got {sorted(given)}")
    found = {}
    for name in ("loss", *(name for name in given if name != "loss")):
        numbers = np.asarray(given[name])
        if numbers.shape != shape or numbers.dtype.kind not in "fiub":
            raise InvalidArgument(
                f"metrics[{name!r}]: expected numbers of shape {shape}, got shape {numbers.shape} "
                f"and dtype {numbers.dtype}"
            )
        found[name] = numbers.astype(np.float64)
    if twice and not np.array_equal(found["loss"], np.asarray(values), equal_nan=True):
        raise InvalidArgument("values: expected the same numbers as metrics['loss'], got others")
    return found


def draw(result: Any, *arguments: Any, **options: Any) -> Any:
    """The picture of a result, by its class's function in plots/pictures.py.

    The only way from results to plots, taken when a picture is asked for.
    """
    from ..plots.pictures import DRAWN_BY

    return DRAWN_BY[type(result).__name__](result, *arguments, **options)
