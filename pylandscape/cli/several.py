"""One command for several checkpoints: a file for each, one picture of all."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidArgument
from .common import _picture, check_target

Run = Callable[[Any], int | None]


def each_checkpoint(run: Run) -> Run:
    """The command for each file that --checkpoint names, one after another.

    The exit code is the largest of theirs; the picture is of all results on one scale.
    """

    def several(options: argparse.Namespace) -> int:
        files = checkpoints(options)
        if len(files) < 2:
            options.checkpoint = files[0] if files else None
            return int(run(options) or 0)
        if not options.out:
            raise InvalidArgument(
                f"--out: expected a FILE.h5 with {len(files)} checkpoints: each gets a file of its "
                "own, FILE-name.h5"
            )
        if getattr(options, "layers", False):
            raise InvalidArgument(f"--layers: expected with one checkpoint, got {len(files)}")
        for path in options.plot or []:
            check_target(path)
        labels = labels_of(files)
        outs = [str(_beside(options.out, label)) for label in labels]
        code = 0
        for file, out in zip(files, outs, strict=True):
            one = copy.copy(options)
            one.checkpoint, one.out, one.plot = file, out, None
            one.drawn_together = bool(options.plot)
            print(f"checkpoint {file}")
            code = max(code, int(run(one) or 0))
        if options.plot:
            _together(outs, labels, options)
        return code

    return several


def checkpoints(options: argparse.Namespace) -> list[str]:
    """The files of all --checkpoint: each a file, a folder or a pattern."""
    found: list[str] = []
    for word in options.checkpoint or []:
        pattern = not Path(word).exists() and set(word) & set("*?[")
        if Path(word).is_dir() or pattern:
            from ..theta.checkpoints import series  # imports torch

            found += map(str, series(word, "--checkpoint"))
        else:
            found.append(word)
    return found


def labels_of(files: Sequence[str]) -> list[str]:
    """The files' stems; with the folders where those are not enough to tell them apart."""
    stems = [Path(file).stem for file in files]
    if len(set(stems)) == len(stems):
        return stems
    names = ["-".join(Path(file).with_suffix("").parts[-2:]) for file in files]
    if len(set(names)) < len(names):
        raise InvalidArgument(f"--checkpoint: expected different files, got {', '.join(files)}")
    return names


def _beside(path: str, label: str) -> Path:
    target = Path(path)
    return target.with_name(f"{target.stem}-{label}{target.suffix}")


def _together(outs: Sequence[str], labels: Sequence[str], options: argparse.Namespace) -> None:
    from ..plots.side_by_side import compare
    from ..results.loading import load
    from ..results.spectra import Spectrum
    from .trajectories import save_to

    results: list[Any] = [load(out) for out in outs]
    chosen: dict[str, Any] = {}
    if isinstance(results[0], Spectrum):
        if options.symlog or options.linear:
            chosen["xscale"] = "symlog" if options.symlog else "linear"
    else:
        chosen = _picture(options)
        if hasattr(results[0], "y"):
            chosen["kind"] = options.kind
    save_to(compare(results, labels=labels, **chosen)[0], options.plot)
