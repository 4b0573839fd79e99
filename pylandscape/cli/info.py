"""The command info: what a saved result or a model is."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument
from .common import _landscape, one_checkpoint, set_threads

if TYPE_CHECKING:
    from ..results.loading import Result


FACTS = (
    "matrix", "probes", "steps", "seed", "products",
    "model_loss", "engine", "engine_reason", "computed", "seconds", "dtype", "bn", "loss",
    "n_params", "theta_norm", "direction_norms", "direction_cosine", "created", "versions",
    "instruction_set", "layout", "theta", "data", "notes",
)  # fmt: skip
DIGEST = re.compile(r"[0-9a-f]{64}")


def _info(options: argparse.Namespace) -> None:
    from ..files.store import content_of
    from ..results.loading import load

    if not options.files and not options.model:
        raise InvalidArgument("info: expected a FILE or --model, got neither")
    for path in options.files:
        if content_of(path) == "trajectory":
            print(_about_run(path))
        else:
            print(describe(load(path), path))
    if options.model:
        _print_model(options)


def describe(result: Result, path: str) -> str:
    """What a file holds, where it comes from, and the verdict."""
    from ..results.eigen_pairs import EigenPairs
    from ..results.spectra import Spectrum
    from ..results.tracks import Track
    from .trajectories import about_track
    from .words import about_pairs, about_spectrum

    facts = {**(result.info.get("request") or {}), **result.info}
    lines = [f"{path}", *(f"  {line}" for line in str(result).splitlines())]
    if isinstance(result, EigenPairs | Spectrum):
        said = about_spectrum(result) if isinstance(result, Spectrum) else about_pairs(result)
        lines += [f"  {line}" for line in said[1:]]
    if isinstance(result, Track):
        lines += [f"  {line}" for line in about_track(result)[1:]]
    for name in ("x", "y"):
        axis = getattr(result, name, None)
        if axis is not None:
            lines.append(f"  {name:<18}{axis[0]:g} to {axis[-1]:g}, {len(axis)} points")
    for key in FACTS:
        if facts.get(key) not in (None, [], {}):
            lines.append(f"  {key:<18}{_short(facts[key])}")
    for k, direction in enumerate(facts.get("directions") or []):
        shown = {n: v for n, v in direction.items() if n not in ("digest", "layout")}
        lines.append(f"  {f'direction {k + 1}':<18}{_short(shown)}")
    if check := getattr(result, "check", None):
        lines.append(str(check()))
    return "\n".join(lines)


def _about_run(path: str) -> str:
    """What a recorded run holds, after every point was compared with its checksum."""
    from ..trajectories.several import Runs, recorded
    from .trajectories import about_trajectory

    run = recorded(path)
    each = list(run) if isinstance(run, Runs) else [run]
    for one in each:
        one.verify()
    lines = [path, *([f"  {run!r}"] if isinstance(run, Runs) else [])]
    for p, one in enumerate(each):
        lines += [f"  run {p}"] if len(each) > 1 else []
        lines += [f"  {line}" for line in about_trajectory(one)]
    width = max(len(e.name) for e in run.layout.entries)
    for entry in run.layout.entries:
        shape = "x".join(map(str, entry.shape)) or "scalar"
        lines.append(f"  {entry.name:<{width}}  {shape:<18}{entry.kind:<8}{entry.numel:>12,}")
    return "\n".join(lines)


def _print_model(options: argparse.Namespace) -> None:
    from ..theta.layout import ParameterLayout
    from .inputs import load_model, parse_names

    set_threads(options)
    if options.data:
        land = _landscape(options)
        layout = land.layout
    else:
        land = None
        model = load_model(options.model, one_checkpoint(options))
        layout = ParameterLayout.of(model, parse_names(options.params) or None)
    width = max([len(e.name) for e in layout.entries] + [9])
    print(f"{'parameter':<{width}}  {'shape':<18}{'kind':<8}{'offset':>12}{'numbers':>12}")
    for entry in layout.entries:
        shape = "x".join(map(str, entry.shape)) or "scalar"
        print(
            f"{entry.name:<{width}}  {shape:<18}{entry.kind:<8}"
            f"{entry.offset:>12,}{entry.numel:>12,}"
        )
    print(f"n = {layout.n:,}")
    if land is not None:
        print(f"engine     {land.engine_report()}")
        print(f"loss       {land.loss():.6g} (the model's own: {land.model_loss():.6g})")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_short, value))
    text = str(value)
    return f"{text[:16]}..." if DIGEST.fullmatch(text) else text
