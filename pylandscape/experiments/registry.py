"""`pylandscape reproduce`: which studies there are, and how they run.

A study is a module of `studies/` with a `STUDY`; its name is the module's, with dashes. What one
computes lies in OUT/parts/NAME and is not computed again; the page is OUT/NAME.md, the index of all
pages OUT/README.md.
"""

from __future__ import annotations

import inspect
import os
import pkgutil
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..arguments import near
from ..arrays import digest_of_all
from ..errors import InvalidArgument, PylandscapeError
from ..plots.style import own_style
from ..theta.identity import own_version
from . import page as pages
from . import studies as scripts
from .datasets import DEBIAN, IMAGES
from .lab import SCALES, Lab, Study
from .page import Page

DEFAULT_DATA = ("digits", "generated")


@cache
def studies() -> dict[str, Study]:
    """{name: study}, in the order of papers and names."""
    found = {}
    for module in pkgutil.iter_modules(scripts.__path__):
        study = import_module(f"{scripts.__name__}.{module.name}").STUDY
        found[module.name.replace("_", "-")] = study
    return dict(sorted(found.items(), key=lambda item: (item[1].paper, item[0])))


def listing() -> str:
    """All studies by paper: name, figure, minutes on two cores, title."""
    lines: list[str] = []
    for paper in dict.fromkeys(study.paper for study in studies().values()):
        lines += ["", paper] if lines else [paper]
        for name, study in studies().items():
            if study.paper == paper:
                time_ = f"{study.minutes:g} min"
                lines.append(f"  {name:<26} {study.figure:<22} {time_:>8}  {study.title}")
    total = sum(study.minutes for study in studies().values())
    return "\n".join([*lines, "", f"{len(studies())} studies, {total:.0f} minutes on two cores"])


def reproduce(
    names: Sequence[str],
    out: str | os.PathLike[str],
    *,
    data: Sequence[str] = (),
    scale: str = "small",
    seed: int = 0,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Run studies and write their pages.

    Args:
        names: of studies; "all" for every one.
        out: folder of the pages. A page that is there, of the same request, is not computed again;
            a study that was stopped goes on from its parts.
        data: "digits", "fashion-mnist[:FOLDER]" or "cifar10:FOLDER" for images, "text:FILE" for a
            text; default digits and generated text.
        scale: "small" (minutes), "paper" (the paper's sizes) or "toy" (seconds, without meaning).
        say: called with each line of the report.

    Returns:
        The facts of each page: "name", "verdict", "claims", "seconds", ...

    Raises:
        InvalidArgument: an unknown study, data or scale.
        PylandscapeError: studies failed (all others ran); it says which and why.
    """
    chosen = check_names(names)
    if scale not in SCALES:
        raise InvalidArgument(f"scale: expected small or paper, got {scale!r}")
    kinds = _data(data)
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InvalidArgument(f"out: expected a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    found, failed = [], []
    for k, name in enumerate(chosen):
        say(f"study      {name}, {k + 1} of {len(chosen)}: {studies()[name].title}")
        try:
            facts, there = _page(name, folder, kinds, scale, seed, progress, say)
        except (PylandscapeError, OSError) as error:
            if len(chosen) == 1:
                raise
            failed.append(f"{name}: {' '.join(str(error).split())}")
            say(f"failed     {failed[-1]}")
            continue
        say(f"{'was there' if there else 'done':<10} {facts['verdict']} "
            f"({facts['seconds']:.0f} s): {folder / name}.md")  # fmt: skip
        found.append(facts)
        pages.write_index(folder, list(studies()))
    if failed:
        raise PylandscapeError(
            f"{len(failed)} of {len(chosen)} studies failed: {'; '.join(failed)}"
        )
    return found


def check_names(names: Sequence[str]) -> list[str]:
    """The names of studies, "all" spelled out. Raises InvalidArgument for one that is not known."""
    known = list(studies())
    for name in names:
        if name not in known and name != "all":
            raise InvalidArgument(
                f"study: expected all or one of {', '.join(known)}, got {name!r}"
                f"{near(name, known, 0.4)}"
            )
    return known if "all" in names else list(dict.fromkeys(names))


def _page(
    name: str, folder: Path, data: tuple[str, str], scale: str, seed: int, progress: bool,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], bool]:  # fmt: skip
    """The facts of a study's page, and whether it was there."""
    study = studies()[name]
    request = _request(name, study, data, scale, seed)
    there = pages.kept(folder, name)
    if there is not None and there.get("request") == request:
        return there, True
    same = {key: value for key, value in request.items() if key != "script"}
    parts = folder / "parts" / f"{name}-{digest_of_all([same])[:8]}"
    started = time.perf_counter()
    page = Page(name, folder / pages.PICTURES)
    lab = Lab(name, parts, page, scale, data, seed, progress, say, request["script"])
    with own_style(True):
        study.run(lab)
    seconds = time.perf_counter() - started
    facts = _facts(name, study, lab, request, seconds)
    page.write(folder, facts)
    written = pages.kept(folder, name)
    assert written is not None
    return written, False


def _facts(
    name: str, study: Study, lab: Lab, request: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    given = [d for d, default in zip(lab.data, DEFAULT_DATA, strict=True) if d != default]
    options = [word for d in given for word in ("--data", d)]
    options += ["--seed", str(lab.seed)] if lab.seed else []
    words = ["pylandscape", "reproduce", name, "--scale", lab.scale, *options, "--out", "FOLDER"]
    about = [f"Data: {text}." for text in lab.used.values()]
    about += [
        f"Scale {lab.scale}, seed {lab.seed}; {seconds:.0f} s with {torch.get_num_threads()} "
        f"threads; pylandscape {own_version()}, torch {torch.__version__}."
    ]
    return {
        "title": study.title, "paper": study.paper, "figure": study.figure,
        "minutes": study.minutes,
        "source": f"{study.paper}, {study.figure}.", "command": shlex.join(words), "about": about,
        "seconds": round(seconds, 1), "request": dict(request),
    }  # fmt: skip


def _request(
    name: str, study: Study, data: tuple[str, str], scale: str, seed: int
) -> dict[str, Any]:
    """What determines a page."""
    script = inspect.getsource(import_module(study.run.__module__))
    taken = {"images": [data[0]], "text": [data[1]], "none": []}.get(study.data, list(data))
    return {
        "study": name, "data": [_stamped(each) for each in taken], "scale": scale, "seed": seed,
        "script": digest_of_all([script]),
        "versions": {"pylandscape": own_version(), "torch": torch.__version__},
    }  # fmt: skip


def _stamped(data: str) -> list[Any]:
    """The name of data with sizes and times of its files: others are other data."""
    where = data.partition(":")[2] or (DEBIAN if data == "fashion-mnist" else None)
    if where is None:
        return [data]
    path = Path(where)
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return [data, *([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files)]


def _data(given: Sequence[str]) -> tuple[str, str]:
    """(images, text) of the values of ``--data``."""
    images, text = DEFAULT_DATA
    for value in given:
        kind, _, where = value.partition(":")
        if kind in IMAGES and (kind != "cifar10" or where):
            images = value
        elif kind == "text" and where:
            text = value
        else:
            raise InvalidArgument(
                "data: expected digits, fashion-mnist[:FOLDER], cifar10:FOLDER or text:FILE, got "
                f"{value!r}"
            )
    return images, text
