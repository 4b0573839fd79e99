"""``python -m pylandscape.compat [--compat PEER=VERSION] script.py args...``

Runs a script that imports loss_landscapes, pyhessian or hessian_eigenthings, unchanged, on this
package, and says at the end (on stderr) what ran on which engine.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence

from ..errors import InvalidArgument
from ._patch import available, patched
from ._report import report


def main(arguments: Sequence[str] | None = None) -> None:
    """The script's exit status and exceptions are this function's."""
    parser = argparse.ArgumentParser(prog="python -m pylandscape.compat", description=__doc__)
    parser.add_argument(
        "--compat",
        action="append",
        default=[],
        metavar="PEER=VERSION",
        help="the numbers of that version, defects included, as loss_landscapes=3.0.6",
    )
    parser.add_argument("-m", action="store_true", dest="module", help="SCRIPT is a module's name")
    parser.add_argument("script", help="the script to run, as it is")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="its arguments")
    options = parser.parse_args(arguments)
    pairs = [item.partition("=") for item in options.compat]
    compat = {peer: version for peer, _, version in pairs}
    if not options.module and not os.path.isfile(options.script):
        parser.error(f"script: expected a file, got {options.script!r}")
    try:
        patch = patched(*available(), compat=compat)
        with patch:
            _run(options.script, options.args, options.module)
    except InvalidArgument as error:
        if not str(error).startswith("peers:"):
            raise
        parser.error(str(error))
    finally:
        print(report.summary(), file=sys.stderr)


def _run(script: str, args: Sequence[str], module: bool) -> None:
    sys.argv = [script, *args]
    if module:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
