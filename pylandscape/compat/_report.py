"""How many evaluations of which peer's function ran on which engine."""

from __future__ import annotations

from collections import Counter
from threading import Lock


class Report:
    """Counts of evaluations by (name, engine), and why some were not accelerated.

    Names are the peer's own ("loss_landscapes.random_plane"), engines "native", "torch" or
    "python" (a user's own code, called as the original calls it).
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._reasons: dict[tuple[str, str], str] = {}
        self._lock = Lock()

    def add(self, name: str, engine: str, count: int, reason: str | None = None) -> None:
        """Count evaluations; ``reason``: why the engine is not the native one."""
        with self._lock:
            self._counts[name, engine] += count
            if reason is not None:
                self._reasons[name, engine] = reason

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._counts.clear()
            self._reasons.clear()

    def counts(self) -> dict[tuple[str, str], int]:
        """{(name, engine): evaluations}, in the order of the first calls."""
        with self._lock:
            return dict(self._counts)

    def summary(self) -> str:
        """One line per name and engine; says so if there is none."""
        counts = self.counts()
        if not counts:
            return "pylandscape.compat: nothing was evaluated"
        lines = []
        for (name, engine), count in counts.items():
            reason = self._reasons.get((name, engine))
            why = f" ({reason})" if reason else ""
            plural = "" if count == 1 else "s"
            lines.append(f"  {name}: {count} evaluation{plural} on {engine}{why}")
        return "\n".join(["pylandscape.compat:", *lines])


report = Report()
