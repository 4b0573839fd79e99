"""Arms measured side by side: interleaved repetitions, medians, spreads, paired ratios."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass
class Arm:
    """One way to do the work: ``run()`` does ``units`` of it and returns the answer."""

    name: str
    run: Callable[[], Any]
    units: float = 1.0
    target: float | None = None  # how many times slower than ours it must be
    note: str = ""
    seconds: list[float] = field(default_factory=list)

    @property
    def per_unit(self) -> np.ndarray:
        return np.array(self.seconds) / self.units


def interleave(arms: Sequence[Arm], repetitions: int) -> None:
    """Times every arm in turn, ``repetitions`` times over, after one round to warm up."""
    for arm in arms:
        arm.run()
    for _ in range(repetitions):
        for arm in arms:
            start = time.perf_counter()
            arm.run()
            arm.seconds.append(time.perf_counter() - start)


def rows(
    workload: str, ours: Arm, others: Sequence[Arm], unit: str, ours_at_most: bool = False
) -> list[dict[str, Any]]:
    """One row per arm. ratio: median over the repetitions of other / ours (paired).

    With ``ours_at_most`` the target bounds ours / other from above instead.
    """
    table = []
    for arm in (ours, *others):
        low, median, high = np.percentile(arm.per_unit, [25, 50, 75])
        ratio = float(np.median(arm.per_unit / ours.per_unit))
        met = None
        if arm.target is not None:
            met = (1 / ratio <= arm.target) if ours_at_most else (ratio >= arm.target)
        table.append(
            {
                "workload": workload,
                "arm": arm.name,
                "unit": unit,
                "median_us": median * 1e6,
                "iqr_us": (high - low) * 1e6,
                "ratio": None if arm is ours else ratio,
                "target": arm.target,
                "at_most": ours_at_most,
                "met": met,
                "note": arm.note,
            }
        )
    return table


def agree(name: str, got: Any, want: Any, rtol: float) -> None:
    """An answer is believed only when it is right."""
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=rtol, err_msg=name)


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


def as_markdown(table: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| workload | arm | median | spread (IQR) | against ours | target | met | note |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table:
        target = met = ratio = ""
        if row["ratio"] is not None:
            ratio = f"{1 / row['ratio']:.2f}" if row["at_most"] else f"{row['ratio']:.1f}x"
        if row["target"] is not None:
            sign = "<=" if row["at_most"] else ">="
            target, met = f"{sign} {row['target']:g}", "yes" if row["met"] else "no"
        lines.append(
            f"| {row['workload']} | {row['arm']} | {row['median_us']:,.3g} us/{row['unit']} | "
            f"{row['iqr_us']:.2g} | {ratio} | {target} | {met} | {row['note']} |"
        )
    return "\n".join(lines)
