"""The commands about curvature: `pylandscape spectrum | eigen | convexity`."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .errors import InvalidArgument
from .operators import MATRICES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .arrays import Array
    from .spectral_results import EigenPairs, Spectrum

CONVEX = 0.01  # |lambda_min / lambda_max| below which a point looks convex


class AddCommand(Protocol):
    def __call__(
        self, name: str, run: Callable[[Any], None], text: str, /
    ) -> argparse.ArgumentParser: ...


def add_commands(command: AddCommand) -> None:
    """Give the parser the three commands; `command` makes one."""
    from .cli import NORMALIZATIONS, model_options
    from .spectral_results import WHICH

    spectrum = command(
        "spectrum", _spectrum, "eigenvalue density and trace of the Hessian, or another matrix"
    )
    eigen = command("eigen", _eigen, "extreme eigenvalues and eigenvectors")
    convexity = command(
        "convexity", _convexity, "|lambda_min / lambda_max| of the Hessian over two directions"
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
    spectrum.add_argument(
        "--symlog", action="store_true", help="eigenvalues linear near 0, logarithmic beyond"
    )

    eigen.add_argument("-k", type=int, default=1, help="how many (default: %(default)s)")
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
    from . import cli
    from .spectra import layer_spectra, spectrum

    land = cli.prepare(options)
    chosen = {
        "probes": options.probes, "steps": options.steps, "sigma2": options.sigma2,
        "relative_sigma2": options.relative_sigma2, "matrix": options.matrix,
        "vectors": options.vectors, "seed": options.seed, "progress": not options.no_progress,
    }  # fmt: skip
    if not options.layers:
        found, said = _timed(options, lambda: spectrum(land, path=options.out, **chosen))
        print("\n".join([*about_spectrum(found), said]))
        _keep(found, options.out)
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
    from . import cli
    from .eigen import eigenpairs

    land = cli.prepare(options)
    found, said = _timed(
        options,
        lambda: eigenpairs(
            land, options.k, options.which, tol=options.tol, matrix=options.matrix,
            seed=options.seed, path=options.out, progress=not options.no_progress,
        ),
    )  # fmt: skip
    print("\n".join([*about_pairs(found), said]))
    _keep(found, options.out)
    _draw_to(options, [found], [])


def _convexity(options: argparse.Namespace) -> None:
    from . import cli
    from .convexity import convexity
    from .directions import random_directions

    x, y = cli.axis_of(options, "x"), cli.axis_of(options, "y")
    if not options.out and not options.plot:
        raise InvalidArgument("expected --out FILE.h5 or --plot FILE.png (or both), got neither")
    land = cli.prepare(options)
    d1, d2 = random_directions(land, 2, seed=options.seed, **cli.normalization(options))
    cli.finish(
        options, land,
        lambda: convexity(
            land, d1, d2, x=x, y=y, tol=options.tol, path=options.out,
            progress=not options.no_progress,
        ),
    )  # fmt: skip


def about_spectrum(spectrum: Spectrum) -> list[str]:
    """What a spectrum says: extremes, trace, error of the density; its eigenpairs."""
    lines = [f"result     {spectrum!r}"]
    if np.isnan(spectrum.nodes).all():
        return lines
    low, high = np.nanargmin(spectrum.nodes), np.nanargmax(spectrum.nodes)
    ends = [f"{spectrum.nodes.flat[i]:.6g} ({spectrum.bounds.flat[i]:.1g})" for i in (low, high)]
    lines.append(f"extremes   {ends[0]} to {ends[1]}; in brackets how far an eigenvalue can be")
    lines.append(f"trace      {_with_error(*spectrum.trace)}")
    distance = spectrum.expected_distance()
    if np.isfinite(distance):
        lines.append(f"density    off by about {distance:.2g} in L1, for so many probes")
    if spectrum.pairs is not None:
        lines += _table(spectrum.pairs)
    return lines


def about_layers(layers: Mapping[str, Spectrum]) -> list[str]:
    width = max(len("layer"), *map(len, layers))
    lines = [f"{'layer':<{width}}{'numbers':>12}{'lowest':>13}{'highest':>13}  trace"]
    for name, each in layers.items():
        low, high = each.extremes
        lines.append(
            f"{name:<{width}}{each.n:>12,}{low:>13.5g}{high:>13.5g}  {_with_error(*each.trace)}"
        )
    return lines


def about_pairs(pairs: EigenPairs) -> list[str]:
    """The eigenvalues with their residuals, and a mark at those that did not converge."""
    lost = int((~pairs.converged).sum())
    lines = [f"result     {pairs!r}", *_table(pairs)]
    if lost:
        lines.append(
            f"warning    {lost} of {len(pairs.values)} did not converge: an eigenvalue is within "
            "the residual, but maybe not this one; a larger --tol accepts them"
        )
    return lines


def about_convexity(metrics: Mapping[str, Array], info: Mapping[str, Any]) -> str:
    """How far from convex a convexity map is."""
    ratio, top = metrics["ratio"], metrics["lambda_max"]
    finite = ratio[np.isfinite(ratio)]
    if not finite.size:
        return "convexity  no point with finite eigenvalues"
    flagged = int((top <= 0.0).sum())
    more = f"; lambda_max <= 0 at {flagged} points" if flagged else ""
    if info.get("not_converged"):
        more += f"; NOT CONVERGED at {info['not_converged']} points"
    return (
        f"convexity  |lambda_min / lambda_max| {finite.min():.3g} to {finite.max():.3g}, below "
        f"{CONVEX:g} at {100 * np.mean(finite < CONVEX):.0f} % of the points{more}"
    )


def draw(results: Sequence[Any], options: argparse.Namespace, labels: Sequence[str] = ()) -> Axes:
    """One picture of spectra, or of one set of eigenpairs.

    Raises:
        InvalidArgument: several eigenpairs, or spectra beside something else.
    """
    from .plot_spectra import plot_pairs, plot_spectra
    from .spectral_results import EigenPairs, Spectrum

    title, kind = {"title": getattr(options, "title", None)}, getattr(options, "kind", None)
    if kind not in (None, "lines", "evolution"):
        raise InvalidArgument(f"--kind: expected lines or evolution for spectra, got {kind!r}")
    if len(results) == 1 and isinstance(results[0], EigenPairs):
        return plot_pairs(results[0], log=getattr(options, "log", False), **title)
    if not all(isinstance(r, Spectrum) for r in results):
        raise InvalidArgument(
            f"FILE: expected spectra, or one set of eigenpairs, got {len(results)} files with "
            f"{', '.join(sorted({type(r).__name__ for r in results}))}"
        )
    chosen: dict[str, Any] = {
        "vmin": getattr(options, "vmin", None),
        "vmax": getattr(options, "vmax", None),
        "xscale": "symlog" if options.symlog else "linear",
        **title,
    }
    if len(results) == 1 and not labels and kind != "evolution":
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


def _keep(result: Any, path: str | None) -> None:
    if path:
        if not Path(path).exists():
            result.save(path)
        print(f"written    {path}")


def _draw_to(options: argparse.Namespace, results: Sequence[Any], labels: Sequence[str]) -> None:
    from . import plotting

    for path in options.plot or []:
        axes = draw(results, options, labels)
        print(f"written    {plotting.save(axes, path)}")
        plotting.close(axes)


def _table(pairs: EigenPairs) -> list[str]:
    lines = [f"{'':>5}  {'eigenvalue':>15}  {'residual':>9}"]
    rows = zip(pairs.values, pairs.residuals, pairs.converged, strict=True)
    for i, (value, residual, good) in enumerate(rows, 1):
        mark = "" if good else "  NOT CONVERGED"
        lines.append(f"{i:>5}  {value:>15.8g}  {residual:>9.2g}{mark}")
    return lines


def _with_error(value: float, error: float) -> str:
    if not np.isfinite(error):
        return f"{value:.6g} (one probe: error unknown)"
    return f"{value:.6g} +- {error:.2g}"
