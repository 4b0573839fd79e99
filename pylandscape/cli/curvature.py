"""The commands about curvature: `pylandscape spectrum | eigen | convexity`."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument
from ..ranks import owns_files
from .common import AddCommand, scale_options, written
from .several import each_checkpoint
from .words import about_layers, about_pairs, about_spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def add_commands(command: AddCommand) -> None:
    """Give the parser the three commands; `command` makes one."""
    from ..results.eigen_pairs import WHICH
    from ..results.spectra import MATRICES
    from .common import NORMALIZATIONS, model_options

    spectrum = command(
        "spectrum",
        each_checkpoint(_spectrum),
        "eigenvalue density and trace of the Hessian, or another matrix",
    )
    eigen = command("eigen", _eigen, "extreme eigenvalues and eigenvectors")
    convexity = command(
        "convexity",
        each_checkpoint(_convexity),
        "|lambda_min / lambda_max| of the Hessian over two directions",
    )
    for sub in (spectrum, eigen, convexity):
        model_options(sub, required=True)
        sub.add_argument("--seed", type=int, default=0, help="default: 0")
        sub.add_argument("--out", metavar="FILE.h5", help="the result; the same command resumes it")
        sub.add_argument(
            "--plot", action="append", metavar="FILE", help=".png, .pdf, .svg; may be repeated"
        )
        sub.add_argument("--no-progress", action="store_true")
    for sub in (spectrum, eigen):
        sub.add_argument(
            "--matrix", choices=MATRICES, default="hessian", help="default: %(default)s"
        )

    spectrum.add_argument("--probes", type=int, default=10, help="default: %(default)s")
    spectrum.add_argument(
        "--steps", type=int, default=90, help="of Lanczos, for each probe (default: %(default)s)"
    )
    spectrum.add_argument(
        "--sigma2", type=float, default=1e-5, help="variance of the kernel (default: %(default)s)"
    )
    spectrum.add_argument(
        "--relative-sigma2", action="store_true", help="times max(1, width of the spectrum)"
    )
    spectrum.add_argument(
        "--vectors", type=int, default=0, metavar="K", help="K eigenpairs from the same run"
    )
    spectrum.add_argument(
        "--layers", action="store_true", help="one spectrum, and one file, for each layer"
    )
    scale_options(spectrum)

    eigen.add_argument("--k", "-k", type=int, default=1, help="how many (default: %(default)s)")
    eigen.add_argument(
        "--which", choices=WHICH, default="LA",
        help="largest (default), smallest, largest in magnitude, both ends",
    )  # fmt: skip
    eigen.add_argument(
        "--tol", type=float, default=1e-6, help="relative residual (default: %(default)s)"
    )

    convexity.add_argument("--normalize", choices=NORMALIZATIONS, default="filter")
    convexity.add_argument(
        "--ignore", action="append", metavar="KINDS",
        help="parameters that do not move: bias,norm (default), one of them, or none",
    )  # fmt: skip
    for axis in ("--x", "--y"):
        convexity.add_argument(
            axis, default="-1:1:21", metavar="MIN:MAX:N", help="default: %(default)s"
        )
    convexity.add_argument(
        "--tol", type=float, default=1e-3, help="of eigenvalues, relative (default: %(default)s)"
    )
    convexity.set_defaults(kind="heat", log=True, vmin=None, vmax=None, metric="ratio")


def _spectrum(options: argparse.Namespace) -> None:
    from ..curvature.spectra import layer_spectra, spectrum
    from . import common

    land = common.prepare(options)
    chosen = {
        "probes": options.probes, "steps": options.steps, "sigma2": options.sigma2,
        "relative_sigma2": options.relative_sigma2, "matrix": options.matrix,
        "vectors": options.vectors, "seed": options.seed, "progress": not options.no_progress,
    }  # fmt: skip
    if not options.layers:
        found, said = _timed(options, lambda: spectrum(land, path=options.out, **chosen))
        print("\n".join([*about_spectrum(found), said]))
        _keep(found, options)
        _draw_to(options, [found], [])
        return
    layers, said = _timed(options, lambda: layer_spectra(land, **chosen))
    print("\n".join([*about_layers(layers), said]))
    if options.out:
        for name, each in layers.items():
            target = layer_file(options.out, name)
            each.save(target)
            print(f"written    {target}")
    _draw_to(options, list(layers.values()), list(layers))


def _eigen(options: argparse.Namespace) -> None:
    from ..curvature.eigen import eigenpairs
    from . import common

    land = common.prepare(options)
    found, said = _timed(
        options,
        lambda: eigenpairs(
            land, options.k, options.which, tol=options.tol, matrix=options.matrix,
            seed=options.seed, path=options.out, progress=not options.no_progress,
        ),
    )  # fmt: skip
    print("\n".join([*about_pairs(found), said]))
    _keep(found, options)
    _draw_to(options, [found], [])


def _convexity(options: argparse.Namespace) -> int:
    from ..surfaces.convexity_map import convexity
    from ..theta.directions import random_directions
    from . import common, surfaces

    x, y = common.axis_of(options, "x"), common.axis_of(options, "y")
    if not options.out and not options.plot:
        raise InvalidArgument("expected --out FILE.h5 or --plot FILE.png (or both), got neither")
    land = common.prepare(options)
    d1, d2 = random_directions(land, 2, seed=options.seed, **common.normalization(options))
    found = surfaces.finish(
        options, land,
        lambda: convexity(
            land, d1, d2, x=x, y=y, tol=options.tol, path=options.out,
            progress=not options.no_progress,
        ),
    )  # fmt: skip
    return surfaces.judged(found)


def draw(results: Sequence[Any], options: argparse.Namespace, labels: Sequence[str] = ()) -> Axes:
    """One picture of spectra, or of one set of eigenpairs.

    Raises:
        InvalidArgument: several eigenpairs, or spectra beside something else.
    """
    from ..plots.spectra import KINDS, plot_pairs, plot_spectra
    from ..results.eigen_pairs import EigenPairs
    from ..results.spectra import Spectrum
    from .effects import picture_options

    title, kind = {"title": getattr(options, "title", None)}, getattr(options, "kind", None)
    if kind not in (None, *KINDS):
        raise InvalidArgument(
            f"--kind: expected one of {', '.join(KINDS)} for spectra, got {kind!r}"
        )
    if len(results) == 1 and isinstance(results[0], EigenPairs):
        picture_options(options, plot_pairs, "eigenpairs")
        return plot_pairs(results[0], log=getattr(options, "log", False), **title)
    if not all(isinstance(r, Spectrum) for r in results):
        raise InvalidArgument(
            f"FILE: expected spectra, or one set of eigenpairs, got {len(results)} files with "
            f"{', '.join(sorted({type(r).__name__ for r in results}))}"
        )
    scale = () if kind == "top" else ("symlog", "linear", "vmin", "vmax")
    what = f"spectra ({kind})" if kind else "spectra"
    picture_options(options, ("title", "kind", "labels", *scale), what)
    chosen: dict[str, Any] = {
        "vmin": getattr(options, "vmin", None),
        "vmax": getattr(options, "vmax", None),
        "xscale": "symlog" if options.symlog else "linear" if options.linear else None,
        **title,
    }
    if len(results) == 1 and not labels and kind is None:
        return results[0].plot(**chosen)
    return plot_spectra(results, labels=labels or None, kind=kind, **chosen)


def layer_file(path: str, layer: str) -> Path:
    """The file of one layer: s.h5 and layer1.0 give s-layer1.0.h5."""
    target, plain = Path(path), re.sub(r"[^\w.-]", "_", layer)
    return target.with_name(f"{target.stem}-{plain}{target.suffix}")


def _timed(options: argparse.Namespace, compute: Callable[[], Any]) -> tuple[Any, str]:
    """The result, and what it cost."""
    there = bool(options.out) and Path(options.out).exists() and not getattr(options, "layers", 0)
    start = time.perf_counter()
    found = compute()
    seconds = time.perf_counter() - start
    if there:
        return found, f"time       none: {options.out} held the answer to this very request"
    results = list(found.values()) if isinstance(found, dict) else [found]
    products = sum(each.products for each in results)
    each = 1e3 * seconds / max(products, 1)
    return found, f"time       {seconds:.2f} s for {products:,} products, {each:.3g} ms each"


def _keep(result: Any, options: argparse.Namespace) -> None:
    path = options.out
    if path:
        if not Path(path).exists() and owns_files():
            result.save(path)
        written(options, path)


def _draw_to(options: argparse.Namespace, results: Sequence[Any], labels: Sequence[str]) -> None:
    from ..plots import surface

    for path in options.plot or []:
        axes = draw(results, options, labels)
        print(f"written    {surface.save(axes, path)}")
        surface.close(axes)
