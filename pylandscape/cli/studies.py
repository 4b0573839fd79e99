"""The command `pylandscape theory`: known results, checked here and now."""

from __future__ import annotations

import argparse
import sys
import time

from ..errors import InvalidArgument
from .common import CHECK_FAILED, AddCommand

CHECKS = ("group", "xor", "linear")


def add_commands(command: AddCommand) -> None:
    """Give the parser the command; `command` makes it."""
    sub = command(
        "theory", _theory,
        "check theorems about small networks: symmetry groups, XOR, linear networks",
    )  # fmt: skip
    sub.add_argument("checks", nargs="*", metavar="CHECK", help=f"{', '.join(CHECKS)}; default all")
    sub.add_argument("--starts", type=int, default=60, help="XOR searches (default: %(default)s)")
    sub.add_argument("--descents", type=int, default=60, help="XOR descents (default: %(default)s)")
    sub.add_argument("--seed", type=int, default=0, help="default: 0")


def _theory(options: argparse.Namespace) -> int:
    """Prints the tables; the exit code says whether all checks hold."""
    from ..experiments.theorems import theory

    unknown = [name for name in options.checks if name not in CHECKS]
    if unknown:
        raise InvalidArgument(f"CHECK: expected some of {', '.join(CHECKS)}, got {unknown[0]!r}")
    failed = total = 0
    begun = time.perf_counter()
    for name in options.checks or CHECKS:
        for table in theory(
            name, starts=options.starts, descents=options.descents, seed=options.seed
        ):
            print(table, end="\n\n", flush=True)
            failed += sum(not check.ok for check in table.checks)
            total += len(table.checks)
    print(f"{total - failed} of {total} checks hold ({time.perf_counter() - begun:.1f} s)")
    if failed:
        print(f"pylandscape: {failed} of {total} checks FAILED, see above", file=sys.stderr)
    return CHECK_FAILED if failed else 0
