"""What a study is, and what it is handed when it runs: sizes, data, files, its page."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import InvalidArgument
from ..files.atomic import replacing
from . import datasets
from .datasets import Images, Text
from .page import Page

T = TypeVar("T")
SCALES = ("small", "paper", "toy")  # toy: seconds, what the tests run

EMPIRICAL = "An empirical analysis of deep network loss surfaces (Im, Tao, Branson 2016)"
CATALOGUE = "A catalogue of loss surfaces"
THEORY_II = "Theory of deep learning II: landscape of the empirical risk (Zhang, Liao et al.)"
BUMPINESS = "Visual analysis of the bumpiness and ruggedness of residual neural network landscapes"


@dataclass(frozen=True)
class Study:
    """A published study as one script.

    Attributes:
        title: one line;  paper, figure: where it was published.
        minutes: at the small scale, on two cores.
        run: computes and fills ``lab.page``.
        data: "images", "text" or "none": what of ``--data`` it takes.
    """

    title: str
    paper: str
    figure: str
    minutes: float
    run: Callable[[Lab], None]
    data: str = "images"


@dataclass
class Lab:
    """What a study works with.

    Attributes:
        name: of the study;  folder: for its files (``lab.path``), which a stopped run goes on from.
        scale: "small", "paper" or "toy";  seed: of everything that is drawn.
        progress: for the functions that show a bar;  say: called with lines of text.
        page: what it writes down;  script: digest of the study's own text.
    """

    name: str
    folder: Path
    page: Page
    scale: str = "small"
    data: tuple[str, ...] = ("digits", "generated")
    seed: int = 0
    progress: bool = True
    say: Callable[[str], None] = print
    script: str = ""
    used: dict[str, str] = field(default_factory=dict)

    def size(self, *, toy: T, small: T, paper: T) -> T:
        """The value that belongs to the scale."""
        return {"toy": toy, "small": small, "paper": paper}[self.scale]

    def path(self, name: str) -> Path:
        """A file of this study."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def images(self, side: int | None = 12, train: int = 1024, test: int = 512) -> Images:
        """The images that ``--data`` names: at the small scale at most so many, ``side`` wide; at
        the paper's all, as they are; 64 and 64 for the tests."""
        named = self.data[0]
        if self.scale == "paper":
            found = datasets.images(named)
        elif self.scale == "toy":
            found = datasets.images(named, 8, min(train, 64), min(test, 64))
        else:
            found = datasets.images(named, side, train, test)
        self.used["images"] = str(found)
        return found

    def text(self, length: int = 12, train: int = 256, test: int = 64) -> Text:
        """The text that ``--data`` names, cut into windows of ``length`` words."""
        if self.scale == "toy":
            length, train, test = 5, 32, 8
        elif self.scale == "paper":
            length, train, test = 35, 4 * train, 4 * test
        found = datasets.text(self.data[1], length, train, test)
        self.used["text"] = str(found)
        return found

    def kept(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Arrays of ``compute``, asked once: a file keeps them while the study's text is the same.

        For numbers of a loop; results that have a ``path=`` keep themselves.
        """
        path = self.path(f"{name}-{self.script[:8]}.npz")
        try:
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            pass
        found = {key: np.asarray(value) for key, value in compute().items()}
        if any(array.dtype == object for array in found.values()):
            raise InvalidArgument(f"compute: expected numbers or texts, got objects in {name!r}")
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **found)  # type: ignore[arg-type]
        return found
