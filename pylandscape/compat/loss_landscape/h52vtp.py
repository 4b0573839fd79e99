"""Surface files to ParaView: ``python -m pylandscape.compat.loss_landscape.h52vtp -f FILE.h5``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ...errors import InvalidArgument
from ...results.surface import Surface
from ...results.vtp import save_vtp
from ._program import run
from ._read import named


def h5_to_vtp(
    surf_file: str,
    surf_name: str = "train_loss",
    log: bool = False,
    zmax: float = -1,
    interp: int = -1,
) -> str:
    """Write ``{surf_file}_{surf_name}[_zmax=..][_log].vtp``; returns its name.

    Args:
        surf_file: of loss-landscape or of pylandscape; any nx, ny. Points never computed are left
            out.
        surf_name: train_loss, train_acc, train_err, test_..., min_eig, max_eig, or a metric.
        log: z is ln(value + 0.1).
        zmax: cut larger values to it; <= 0 for not at all.
        interp: interpolate to this many points of each axis; <= 0 for not at all.

    Raises:
        InvalidArgument: a curve, a name that is not there; see `pylandscape.results.vtp.save_vtp`.
    """
    surface, metric = named(surf_file, surf_name)
    if not isinstance(surface, Surface):
        raise InvalidArgument(f"surf_file: expected a surface, got a curve: {surf_file}")
    vtp_file = f"{surf_file}_{surf_name}"
    vtp_file += f"_zmax={zmax}" if zmax > 0 else ""
    vtp_file += ("_log" if log else "") + ".vtp"
    save_vtp(
        surface,
        vtp_file,
        metric=metric,
        log=log,
        zmax=zmax if zmax > 0 else None,
        interp=interp if interp > 0 else None,
    )
    return vtp_file


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description="A surface file as .vtp, for ParaView")
    add = parser.add_argument
    add("--file", "--surf_file", "-f", required=True, help="the .h5 file")
    add("--surf_name", default="train_loss", help="train_loss, test_loss, train_acc, train_err ...")
    add("--zmax", default=-1, type=float, help="cut larger values")
    add("--interp", default=-1, type=int, help="points of each axis, by interpolation")
    add("--log", action="store_true", help="ln(value + 0.1)")
    args = parser.parse_args(argv)
    return run(
        "h52vtp",
        lambda: print(h5_to_vtp(args.file, args.surf_name, args.log, args.zmax, args.interp)),
    )


if __name__ == "__main__":
    sys.exit(main())
