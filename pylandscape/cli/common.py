"""What several commands share: options of the model and of pictures, the landscape."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import InvalidArgument

if TYPE_CHECKING:
    from ..landscape import Landscape


KINDS = ("contour", "filled", "heat", "surface", "line")
NORMALIZATIONS = ("filter", "layer", "model", "weight", "dfilter", "dlayer", "none")


def model_options(sub: argparse.ArgumentParser, required: bool) -> None:
    sub.add_argument(
        "--model", required=required, metavar="PKG.MOD:FACTORY", help="returns the Module"
    )
    sub.add_argument("--checkpoint", metavar="FILE", help="state_dict, read without pickle")
    sub.add_argument("--data", required=required, metavar="PKG.MOD:FACTORY",
                     help="returns (x, y), a DataLoader or an iterable of batches")  # fmt: skip
    what = sub.add_mutually_exclusive_group()
    what.add_argument(
        "--loss", default=None, metavar="NAME|PKG.MOD:FN",
        help="cross_entropy (default), mse, bce_with_logits, nll, or a function",
    )  # fmt: skip
    what.add_argument("--objective", metavar="PKG.MOD:FN", help="fn(model, batch) -> scalar")
    sub.add_argument(
        "--params", action="append", metavar="PATTERNS", help="names, such as layer1.*,fc.*"
    )
    sub.add_argument("--bn", default="eval", help="eval (default), recompute, batch or interpolate")
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

    model = load_model(options.model, options.checkpoint)
    data = call(options.data, "--data")
    what: dict[str, Any] = (
        {"objective": find(options.objective, "--objective")}
        if options.objective
        else {"loss": named(options.loss or "cross_entropy", "--loss")}
    )
    return Landscape(
        model, data=data, params=parse_names(options.params) or None, bn=options.bn,
        device=options.device, dtype=getattr(torch, options.dtype) if options.dtype else None,
        engine=options.engine, samples=options.subset, **what,
    )  # fmt: skip


def prepare(options: argparse.Namespace) -> Landscape:
    """The landscape; complains about targets that cannot be written before it computes."""
    from ..plots.style import check_suffix

    for path in [options.out, *(options.plot or [])]:
        if path and not Path(path).resolve().parent.is_dir():
            raise InvalidArgument(f"{path}: no such folder {str(Path(path).parent)!r}")
    for path in options.plot or []:
        check_suffix(path)
    set_threads(options)
    land = _landscape(options)
    print(f"engine     {land.engine_report()}", flush=True)
    return land


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


def set_threads(options: argparse.Namespace) -> None:
    import torch

    if options.threads is not None:
        if options.threads < 1:
            raise InvalidArgument(f"--threads: expected at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)


class AddCommand(Protocol):
    def __call__(
        self, name: str, run: Callable[[Any], int | None], text: str, /
    ) -> argparse.ArgumentParser: ...
