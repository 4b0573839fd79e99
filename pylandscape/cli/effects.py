"""Options that have an effect only beside others. One that would have none is refused before any
work: RULES says beside what, and `picture_options` which ones a picture takes."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidArgument

HARMLESS = {"no_progress", "debug", "threads"}  # never refused


class Options(argparse.Namespace):
    """Parsed words, with which options the user wrote and which of them the command has read."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("_") and "_read" in self.__dict__:
            self.__dict__["_read"].add(name)
        return found


def written_by_user(parser: argparse.ArgumentParser, words: Sequence[str]) -> set[str]:
    """The options that stand in the words; a fresh parser, whose defaults are taken away."""
    for each in _parsers(parser):
        each._defaults.clear()
        for action in each._actions:
            action.default = argparse.SUPPRESS
    return set(vars(parser.parse_known_args(words)[0])) - {"command"}


def _parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += action.choices.values()
    return found


def begin(options: Options, given: set[str]) -> None:
    """Refuses what has no effect, and begins to note what is read.

    Raises:
        InvalidArgument: an option without what it needs beside it.
    """
    options._in_words = given
    for rule in RULES.get(options.command, ()):
        wrong = [name for name in rule.options if name in given]
        if wrong and not rule.holds(options):
            raise InvalidArgument(f"{word_of(wrong[0])}: {rule.text}")
    options._read = set()


def without_effect(options: Options) -> list[str]:
    """Options that the user wrote and the command never read."""
    return [word_of(n) for n in sorted(options._in_words - options._read - HARMLESS)]


def word_of(name: str) -> str:
    """As it is written: "plane_points" is --plane-points."""
    name = {"which_run": "run"}.get(name, name)
    return name.upper() if name in ("files", "checkpoints") else f"--{name.replace('_', '-')}"


def given(options: argparse.Namespace, name: str) -> bool:
    """Whether the user wrote this option."""
    return name in getattr(options, "_in_words", ())


def picture_options(
    options: argparse.Namespace, draws: Callable[..., Any] | Collection[str], what: str
) -> dict[str, Any]:
    """The picture's options that the user wrote, for a function that draws (or their names).

    Raises:
        InvalidArgument: one that the picture does not take.
    """
    takes = set(draws if isinstance(draws, Collection) else inspect.signature(draws).parameters)
    found = {}
    for name in PICTURE:
        if given(options, name):
            if name not in takes:
                raise InvalidArgument(f"{word_of(name)}: has no effect on the picture of {what}")
            found[name] = getattr(options, name)
    return found


@dataclass(frozen=True)
class Rule:
    """The options have an effect where ``holds``; the text says otherwise what was expected."""

    options: tuple[str, ...]
    holds: Callable[[Any], Any]
    text: str


def beside(options: Sequence[str], what: str, *names: str) -> Rule:
    """They need one of the options ``names``."""
    return Rule(
        tuple(options),
        lambda o: any(getattr(o, n) for n in names),
        f"expected only with {what}, without which it has no effect",
    )


PICTURE = (
    "kind", "log", "vmin", "vmax", "symlog", "linear", "metric", "levels", "title", "trajectory",
    "band", "labels",
)  # fmt: skip
DRAWN = ("kind", "log", "vmin", "vmax")
ASKED = ("loss", "objective", "bn", "max_batches", "engine", "subset", "dtype", "device")
MODELS = (
    "expected none: the models are CHECKPOINTS, the first of which also gives what --params leaves "
    "out, and buffers"
)
WALK = ("walks", "steps", "bound", "fraction")
TABLE1 = ("b", "points", "datasets", "depths", "rtol", "blocks")


def _path_of_components(options: Any) -> bool:
    return options.pca or (options.plot and not (options.surface or options.mds))


def _measured(*names: str) -> Callable[[Any], bool]:
    """Whether flatness is asked for one of these measures."""

    def holds(options: Any) -> bool:
        from .inputs import parse_names

        chosen = parse_names(options.measures)
        return not chosen or any(c.startswith(names) for c in chosen)

    return holds


_plotted = beside(DRAWN, "--plot", "plot")
RULES: dict[str, tuple[Rule, ...]] = {
    "line": (_plotted,),
    "plane": (_plotted,),
    "interpolate": (_plotted,),
    "spectrum": (beside(("symlog", "linear"), "--plot", "plot"),),
    "barriers": (Rule(("checkpoint",), lambda o: False, MODELS),),
    "align": (
        Rule(("checkpoint",), lambda o: False, MODELS),
        Rule(
            ("orders", "seed"),
            lambda o: o.method == "weights",
            "expected only with --method weights, without which it has no effect",
        ),
    ),
    "connect": (
        Rule(("checkpoint",), lambda o: False, MODELS),
        beside(("plane_points",), "--plane", "plane"),
    ),
    "flatness": (
        Rule(("checkpoint",), lambda o: not o.checkpoints, MODELS),
        Rule(
            ("products",),
            _measured("trace", "frobenius"),
            "expected only with trace or frobenius among --measures",
        ),
        Rule(("draws",), _measured("average"), "expected only with an average among --measures"),
        Rule(
            ("steps", "starts"),
            _measured("worst"),
            "expected only with a worst case among --measures",
        ),
        Rule(
            ("rho",),
            _measured("average", "worst"),
            "expected only with an average or a worst case among --measures",
        ),
    ),
    "merge": (Rule(("checkpoint",), lambda o: False, MODELS), _plotted),
    "classify": (
        Rule(WALK, lambda o: not o.points, "expected only without --points, which are the points"),
    ),
    "cloud": (
        Rule(
            ("checkpoint", "data", "params", *ASKED, "walk", *WALK, "bounded", "tie", "seed",
             "rtol", "height"),
            lambda o: not o.files, "expected only without FILE.h5, whose clouds are there already",
        ),
        Rule(("tie",), lambda o: o.walk == "gradient", "expected only with --walk gradient"),
        beside(("log", "box", "zoom", "xlim", "ylim", "zlim", "title"), "--plot", "plot"),
    ),
    "theory": (
        Rule(
            ("starts", "descents"),
            lambda o: not o.checks or "xor" in o.checks,
            "expected only with the check xor",
        ),
    ),
    "reproduce": (
        Rule(
            ("studies", "scale", "data", "seed", "out", *TABLE1),
            lambda o: not o.list, "expected only without --list, which only names the studies",
        ),
        Rule(
            TABLE1,
            lambda o: o.studies == ["table1"] and o.scale is None and not o.data,
            "expected only with table1 alone, without --scale and --data",
        ),
    ),
    "train": (
        Rule(("runs",), lambda o: not o.start, "expected only without --start: one run for each"),
    ),
    "trajectory": (
        beside(("data",), "--model", "model"),
        beside(("model",), "--data", "data"),
        beside((*ASKED, "checkpoint", "points"), "--surface", "surface"),
        beside(("layer", "distance"), "--mds", "mds"),
        Rule(("components", "centre"), _path_of_components, "expected only with --pca"),
        Rule(
            ("params",), lambda o: o.model or _path_of_components(o),
            "expected only with --pca or --model",
        ),
        Rule(
            DRAWN, lambda o: o.surface and o.plot, "expected only with --surface and --plot",
        ),
    ),
    "track": (beside(("rule", "momentum"), "--lr", "lr"),),
    "topology": (beside(("kind",), "--plot", "plot"),),
    "info": (
        beside(("data", "checkpoint", "params"), "--model", "model"),
        beside(ASKED, "--data", "data"),
    ),
}  # fmt: skip
