"""What several commands share: options of the model and of pictures, the landscape."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import InvalidArgument
from .effects import given

if TYPE_CHECKING:
    from ..landscape import Landscape


CHECK_FAILED = 1  # exit code: what was computed is not what it claims to be; bad input is 2
KINDS = ("contour", "filled", "heat", "surface", "line")
NORMALIZATIONS = ("filter", "layer", "model", "weight", "dfilter", "dlayer", "none")


def model_options(sub: argparse.ArgumentParser, required: bool) -> None:
    sub.add_argument(
        "--model", required=required, metavar="PKG.MOD:FACTORY", help="returns the Module"
    )
    sub.add_argument(
        "--checkpoint", metavar="FILE", action="append",
        help="state_dict, read without pickle; line, plane, spectrum and convexity take several: "
        "repeated, a folder or a pattern",
    )  # fmt: skip
    sub.add_argument("--data", required=required, metavar="PKG.MOD:FACTORY",
                     help="returns (x, y), a DataLoader or an iterable of batches")  # fmt: skip
    what = sub.add_mutually_exclusive_group()
    what.add_argument(
        "--loss", default=None, metavar="NAME|PKG.MOD:FN",
        help="cross_entropy (default), mse, bce_with_logits, nll, a function, or own: the model's",
    )  # fmt: skip
    what.add_argument("--objective", metavar="PKG.MOD:FN", help="fn(model, batch) -> scalar")
    sub.add_argument(
        "--params", action="append", metavar="PATTERNS", help="names, such as layer1.*,fc.*"
    )
    sub.add_argument("--bn", default="eval", help="eval (default), recompute, batch or interpolate")
    sub.add_argument("--max-batches", type=int, metavar="N", help="of the data; default: all")
    sub.add_argument("--engine", choices=("auto", "native", "torch"), default="auto")
    sub.add_argument(
        "--subset", type=int, metavar="N", help="a random subset of N samples of the data (seed 0)"
    )
    sub.add_argument("--dtype", choices=("float32", "float64"), help="default: the model's")
    sub.add_argument("--device", help="default: the model's")
    sub.add_argument("--threads", type=int, help="default: torch's")


def _picture_options(sub: argparse.ArgumentParser, kinds: Sequence[str] = KINDS) -> None:
    spectral = "; lines and evolution are of spectra" if "lines" in kinds else ""
    sub.add_argument("--kind", choices=kinds, help=f"surface is 3-D{spectral}")
    sub.add_argument("--log", action="store_true", help="logarithmic loss")
    sub.add_argument("--vmin", type=float)
    sub.add_argument("--vmax", type=float)


def _landscape(options: argparse.Namespace) -> Landscape:
    import torch

    from ..landscape import Landscape
    from .inputs import call, find, load_model, named, parse_names

    rest = getattr(options, "rest", False)
    model = load_model(options.model, one_checkpoint(options), rest)
    data = call(options.data, "--data")
    what: dict[str, Any] = {}
    if options.objective:
        what["objective"] = find(options.objective, "--objective")
    elif options.loss != "own":
        what["loss"] = named(options.loss or "cross_entropy", "--loss")
    return Landscape(
        model, data=data, params=parse_names(options.params) or None, bn=options.bn,
        device=options.device, dtype=getattr(torch, options.dtype) if options.dtype else None,
        engine=options.engine, max_batches=options.max_batches, samples=options.subset, **what,
    )  # fmt: skip


def prepare(options: argparse.Namespace) -> Landscape:
    """The landscape; complains about targets that cannot be written before it computes."""
    if options.out:
        check_folder(options.out)
    for path in options.plot or []:
        check_target(path)
    set_threads(options)
    land = _landscape(options)
    print(f"engine     {land.engine_report()}", flush=True)
    return land


def check_rest(options: argparse.Namespace, land: Landscape, where: str) -> None:
    """Raises InvalidArgument for a --checkpoint of which nothing is used: all parameters are of
    other points, and the model has no buffers."""
    if (
        given(options, "checkpoint")
        and not options.params
        and not any(True for _ in land.model.buffers())
    ):
        raise InvalidArgument(f"--checkpoint: has no effect with {where}: no number of it is used")


def check_folder(path: str) -> None:
    """Raises InvalidArgument where the file's folder is not there, or nothing can be written in
    it."""
    folder = Path(path).resolve().parent
    if not folder.is_dir():
        raise InvalidArgument(f"{path}: no such folder {str(Path(path).parent)!r}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidArgument(f"{path}: the folder {str(folder)!r} cannot be written")


def check_target(path: str) -> None:
    """Raises InvalidArgument for a picture that cannot be written there."""
    from ..plots.style import check_suffix

    check_folder(path)
    check_suffix(path)


def normalization(options: argparse.Namespace) -> dict[str, Any]:
    from .inputs import parse_names

    normalize = None if options.normalize == "none" else options.normalize
    ignore = ("bias", "norm") if options.ignore is None else parse_names(options.ignore)
    return {"normalize": normalize, "ignore": ignore}


def axis_of(options: argparse.Namespace, name: str) -> tuple[float, float, int]:
    from .inputs import parse_axis

    return parse_axis(getattr(options, name), f"--{name}")


def _picture(options: argparse.Namespace) -> dict[str, Any]:
    metric = {"metric": options.metric} if hasattr(options, "metric") else {}
    return {"log": options.log, "vmin": options.vmin, "vmax": options.vmax, **metric}


def scale_options(sub: argparse.ArgumentParser) -> None:
    """The axis of eigenvalues."""
    scale = sub.add_mutually_exclusive_group()
    scale.add_argument(
        "--symlog", action="store_true",
        help="eigenvalues linear near 0, logarithmic beyond (default where the range asks for it)",
    )  # fmt: skip
    scale.add_argument("--linear", action="store_true", help="a linear axis of eigenvalues")


def set_threads(options: argparse.Namespace) -> None:
    import torch

    if options.threads is not None:
        if options.threads < 1:
            raise InvalidArgument(f"--threads: expected at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)


def one_checkpoint(options: argparse.Namespace) -> str | None:
    """The file of --checkpoint, of which this command takes one."""
    given = options.checkpoint
    if isinstance(given, list):
        if len(given) > 1:
            raise InvalidArgument(
                f"--checkpoint: expected one with {options.command}, got {len(given)}"
            )
        return str(given[0])
    return given if given is None else str(given)


def written(options: argparse.Namespace, path: str | Path | None, how: str = "plot") -> None:
    """Says which file has the result, and how to draw it where nobody has asked for a picture."""
    if not path:
        return
    print(f"written    {path}")
    if not options.plot and not getattr(options, "drawn_together", False):
        picture = Path(path).with_suffix(".png").name
        target = "--out" if how == "plot" else "--plot"
        print(f"to draw    pylandscape {how} {shlex.quote(str(path))} {target} {picture}")


class AddCommand(Protocol):
    def __call__(
        self, name: str, run: Callable[[Any], int | None], text: str, /
    ) -> argparse.ArgumentParser: ...
