"""Arms measured side by side: interleaved repetitions, medians, spreads, paired ratios."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import torch

Run = Callable[[], Any]
Row = dict[str, Any]

QUIET = 0.05  # of the processors' time at most by others, for timings to be quoted
SETTLE_SECONDS = 0.03  # between two timings: threads of another library may still spin
MIN_SECONDS = 0.02  # of one timing; a faster arm runs several times and the time is divided


@dataclass
class Arm:
    """One way to do the work: ``run()`` does ``units`` of it and returns the answer."""

    name: str
    run: Run
    units: float = 1.0
    target: float | None = None  # how many times slower than ours it must be at least
    at_most: bool = False  # instead: ours takes at most `target` times as long as it
    note: str = ""
    error: float | None = None  # largest relative error against float64, on a sample
    seconds: list[float] = field(default_factory=list)  # of one run(), one per repetition

    @property
    def per_unit(self) -> np.ndarray:
        return np.array(self.seconds) / self.units

    def check(self, got: Any, want: Any, rtol: float) -> None:
        """Raises AssertionError unless ``got`` is ``want`` (not zero) to ``rtol``."""
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        np.testing.assert_allclose(got, want, rtol=rtol, err_msg=self.name)
        self.error = float(np.max(np.abs(got - want) / np.abs(want)))


def interleave(arms: Sequence[Arm], repetitions: int) -> None:
    """Times every arm in turn, ``repetitions`` times over; each round starts with another arm."""
    calls = []
    for arm in arms:
        arm.run()
        calls.append(max(1, math.ceil(MIN_SECONDS / max(timed(arm.run), 1e-6))))
    order = list(zip(arms, calls, strict=True))
    for _ in range(repetitions):
        for arm, count in order:
            time.sleep(SETTLE_SECONDS)
            arm.seconds.append(timed(arm.run, count))
        order = order[1:] + order[:1]


def sgemm_arms(size: int) -> list[Arm]:
    """(size, size) float32 products by torch and by NumPy, which may have another library; the
    faster is the peak. Both use torch's number of threads. One unit is a floating-point operation.
    """
    a, b, c = (torch.randn(size, size) for _ in range(3))
    x, y, z = a.numpy(), b.numpy(), np.empty((size, size), np.float32)
    threadpoolctl = import_module("threadpoolctl")  # comes with scikit-learn
    threadpoolctl.threadpool_limits(torch.get_num_threads(), user_api="blas")
    flops = 2.0 * size**3
    arms = [
        Arm(f"sgemm: torch.mm {size}", lambda: torch.mm(a, b, out=c), flops),
        Arm(f"sgemm: numpy.matmul {size}", lambda: np.matmul(x, y, out=z), flops),
    ]
    for arm in arms:
        arm.run()
    np.testing.assert_allclose(c.numpy(), z, rtol=0, atol=1e-5 * size)
    return arms


def timed(run: Run, count: int = 1) -> float:
    """Seconds of one of ``count`` runs in a row."""
    start = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - start) / count


def fastest(
    forms: Mapping[str, Callable[[], Run]],
    trials: int = 3,
    seconds: dict[str, float] | None = None,
) -> tuple[Run, str]:
    """The form whose best of ``trials`` runs is the shortest, and its name.

    Forms that fail are left out; if all do, the last one's exception is raised. ``seconds`` gets
    the time of each form that ran.
    """
    best: tuple[float, Run, str] | None = None
    failure: Exception | None = None
    for name, make in forms.items():
        try:
            run = make()
            run()
        except Exception as error:
            failure = error
            continue
        taken = min(timed(run) for _ in range(trials))
        if seconds is not None:
            seconds[name] = taken
        if best is None or taken < best[0]:
            best = (taken, run, name)
    if best is None:
        raise failure or ValueError("forms: expected at least one")
    return best[1], best[2]


def rows(workload: str, ours: Arm, others: Sequence[Arm], unit: str) -> list[Row]:
    """One row per arm. ratio: other / ours, median over the repetitions (each paired)."""
    table = []
    for arm in (ours, *others):
        low, median, high = np.percentile(arm.per_unit, [25, 50, 75])
        paired = arm.per_unit / ours.per_unit
        if arm.at_most:
            paired = 1 / paired
        ratio = [float(q) for q in np.percentile(paired, [25, 50, 75])]
        row: Row = {
            "workload": workload,
            "arm": arm.name,
            "unit": unit,
            "median_us": median * 1e6,
            "iqr_us": (high - low) * 1e6,
            "ratio": None if arm is ours else ratio[1],
            "ratio_quartiles": None if arm is ours else [ratio[0], ratio[2]],
            "target": arm.target,
            "at_most": arm.at_most,
            "met": None,
            "error": arm.error,
            "repetitions": len(arm.seconds),
            "note": arm.note,
        }
        if arm.target is not None:
            row["met"] = ratio[1] <= arm.target if arm.at_most else ratio[1] >= arm.target
        table.append(row)
    return table


def shares(
    workload: str, ours: Arm, flops: float, products: Sequence[Arm], target: float | None
) -> list[Row]:
    """Rows of `sgemm_arms`: the share of their speed that ours reaches at ``flops`` a unit.

    The target is that of the fastest, which is the peak.
    """
    table = []
    reached = flops / ours.per_unit
    best = min(products, key=lambda arm: float(np.median(arm.per_unit)))
    for arm in products:
        (row,) = rows(workload, arm, [], "call")
        share = np.percentile(reached * arm.per_unit, [25, 50, 75])
        row |= {
            "median_us": row["median_us"] * arm.units,
            "iqr_us": row["iqr_us"] * arm.units,
            "share": True,
            "ratio": float(share[1]),
            "ratio_quartiles": [float(share[0]), float(share[2])],
            "note": f"{1e-9 / np.median(arm.per_unit):.0f} GFLOP/s",
        }
        if arm is best:
            met = None if target is None else bool(share[1] >= target)
            row |= {"target": target, "met": met}
            row["note"] += f", the peak; ours {np.median(reached) / 1e9:.0f}"
        table.append(row)
    return table


def absent(workload: str, arm: str, reason: str) -> Row:
    """The row of an arm that could not run."""
    return {"workload": workload, "arm": arm, "median_us": None, "met": None, "note": reason}


def environment() -> dict[str, Any]:
    """Versions and the processor's model; no names of hosts or users."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as info:
            names = [line.split(":")[1].strip() for line in info if line.startswith("model name")]
        model = names[0] if names else model
    except OSError:
        pass
    import pylandscape

    return {
        "cpu": model,
        "threads": torch.get_num_threads(),
        "instruction_set": pylandscape.cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pylandscape": pylandscape.__version__,
    }


class Quiet:
    """How much of the processors' time others took since the start: above QUIET, do not quote."""

    def __init__(self) -> None:
        self._start = self._now()

    def others(self) -> float | None:
        """Share (0 to 1) of all processors' time that went elsewhere; None without /proc/stat."""
        start, now = self._start, self._now()
        if start is None or now is None or now[0] <= start[0]:
            return None
        total, busy, own = (b - a for a, b in zip(start, now, strict=True))
        return max(0.0, min(1.0, (busy - own) / total))

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Seconds: of all processors, of them busy or stolen, of this process and its children."""
        try:
            with open("/proc/stat") as stat:
                ticks = [float(t) for t in stat.readline().split()[1:9]]
        except OSError:
            return None
        idle = ticks[3] + ticks[4]
        own = sum(os.times()[:4])
        second = os.sysconf("SC_CLK_TCK")
        return sum(ticks) / second, (sum(ticks) - idle) / second, own


def as_markdown(table: Sequence[Row]) -> str:
    """A table; "against ours" is other / ours, or ours / other where the target bounds that."""
    lines = [
        "| workload | arm | median | IQR | against ours | target | met | error | note |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table:
        cells = [row["workload"], row["arm"]]
        if row["median_us"] is None:
            cells += ["did not run", "", "", "", "", "", row["note"]]
        else:
            cells += [f"{_short(row['median_us'])} us/{row['unit']}", _short(row["iqr_us"])]
            cells += [_ratio(row), *_verdict(row)]
            cells += ["" if row["error"] is None else f"{row['error']:.0e}", row["note"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(row: Row) -> str:
    if row["ratio"] is None:
        return ""
    if row.get("share"):
        return f"{row['ratio']:.0%} of it"
    (low, high), digits = row["ratio_quartiles"], 2 if row["ratio"] < 3 else 1
    sign = "ours / it " if row["at_most"] else ""
    return f"{sign}{row['ratio']:.{digits}f}x ({low:.{digits}f}-{high:.{digits}f})"


def _verdict(row: Row) -> list[str]:
    if row["target"] is None:
        return ["", ""]
    bound = f"{row['target']:.0%}" if row.get("share") else f"{row['target']:g}x"
    return [f"{'<=' if row['at_most'] else '>='} {bound}", "yes" if row["met"] else "no"]


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
