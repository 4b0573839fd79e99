"""The commands `pylandscape theory` and `pylandscape reproduce`: what is known, and what was
published, checked here and now."""

from __future__ import annotations

import argparse
import sys
import time

from ..errors import InvalidArgument
from .common import CHECK_FAILED, AddCommand

CHECKS = ("group", "xor", "linear")


def add_commands(command: AddCommand) -> None:
    """Give the parser the two commands; `command` makes one."""
    sub = command(
        "theory", _theory,
        "check theorems about small networks: symmetry groups, XOR, linear networks",
    )  # fmt: skip
    sub.add_argument("checks", nargs="*", metavar="CHECK", help=f"{', '.join(CHECKS)}; default all")
    sub.add_argument("--starts", type=int, default=60, help="XOR searches (default: %(default)s)")
    sub.add_argument("--descents", type=int, default=60, help="XOR descents (default: %(default)s)")
    sub.add_argument("--seed", type=int, default=0, help="default: 0")

    again = command(
        "reproduce", _reproduce, "published studies, computed anew, each with a page that compares"
    )
    again.add_argument(
        "studies", nargs="*", metavar="NAME",
        help="of studies (--list), or all; table1 without --scale is the whole table at once",
    )  # fmt: skip
    again.add_argument("--list", action="store_true", help="name every study, and stop")
    again.add_argument(
        "--scale", choices=("small", "paper"), help="minutes on two cores (default), or the paper's"
    )
    again.add_argument(
        "--data", action="append", metavar="DATA",
        help="digits (default), fashion-mnist[:FOLDER of IDX files], cifar10:FOLDER of .bin files; "
        "text:FILE for language models (default: generated text); may be repeated",
    )  # fmt: skip
    again.add_argument("--seed", type=int, default=0, help="default: 0")
    again.add_argument("--threads", type=int, help="default: torch's")
    again.add_argument(
        "--out", metavar="FOLDER",
        help="the same command goes on there (default: pylandscape-studies; for table1 alone "
        "pylandscape-table1)",
    )  # fmt: skip
    again.add_argument("--no-progress", action="store_true")
    table = again.add_argument_group("of table1 without --scale")
    table.add_argument(
        "--b", type=float, action="append", metavar="B",
        help="starts are uniform on [-b, b]; may be repeated (default: 1)",
    )  # fmt: skip
    table.add_argument("--points", type=int, metavar="P", help="of each row, for a quick look")
    table.add_argument(
        "--datasets", action="append", metavar="NAMES", help="xor,iris,diabetes (default: all)"
    )
    table.add_argument("--depths", action="append", metavar="N", help="2,3,4 (default: all)")
    table.add_argument("--rtol", type=float, help="default: 1e-6")
    table.add_argument(
        "--blocks", action="store_true", help="blocks of parameter tensors, zeros only exact"
    )


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


def _reproduce(options: argparse.Namespace) -> None:
    from ..experiments import registry
    from . import common

    if options.list:
        print(registry.listing())
        return
    if not options.studies:
        options.parser.error("expected NAME of a study, all, or --list")
    try:
        registry.check_names(options.studies)
    except InvalidArgument as error:
        options.parser.error(str(error))
    common.set_threads(options)
    start = time.perf_counter()
    if options.studies == ["table1"] and options.scale is None and not options.data:
        _table1(options)
    else:
        options.out = options.out or "pylandscape-studies"
        registry.reproduce(
            options.studies, options.out, data=options.data or (), seed=options.seed,
            scale=options.scale or "small", progress=not options.no_progress,
            say=lambda text: print(text, flush=True),
        )  # fmt: skip
    print(f"time       {time.perf_counter() - start:.1f} s")


def _table1(options: argparse.Namespace) -> None:
    """The whole table with its own options."""
    from ..experiments.table1 import table1
    from ..experiments.table1_cases import DATASETS, DEPTHS, RTOL
    from .inputs import parse_names

    depths: tuple[int, ...] = DEPTHS
    if options.depths:
        try:
            depths = tuple(int(text) for text in parse_names(options.depths))
        except ValueError as error:
            raise InvalidArgument(f"--depths: expected 2, 3 or 4: {error}") from error
    options.out = options.out or "pylandscape-table1"
    table1(
        options.out, bounds=tuple(options.b or (1.0,)), points=options.points,
        datasets=parse_names(options.datasets) or DATASETS, depths=depths,
        rtol=RTOL if options.rtol is None else options.rtol, blocks=options.blocks,
        seed=options.seed, progress=not options.no_progress,
    )  # fmt: skip
