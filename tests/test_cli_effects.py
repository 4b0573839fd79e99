"""No option is accepted without an effect: each is read by its command, and one that has none
beside the others is refused before any work."""

from __future__ import annotations

import argparse
import ast
from functools import cache
from pathlib import Path

import pytest

from pylandscape.cli import app, effects

CLI = Path(app.__file__).parent
MODEL = ["--model", "no:model", "--data", "no:data"]  # refused before anything is imported


@cache
def commands() -> dict[str, argparse.ArgumentParser]:
    (sub,) = (a for a in app.parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(sub.choices)


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {a.dest for a in parser._actions if a.dest != "help"}


@cache
def functions() -> dict[tuple[str, str], ast.FunctionDef]:
    """(module, name) -> every function of the command line that others may call."""
    return {
        (path.stem, node.name): node
        for path in CLI.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }


@cache
def imported(module: str) -> dict[str, tuple[str, str]]:
    """name -> (module of the command line, name there; "" for the module itself)."""
    found = {}
    for node in ast.walk(ast.parse((CLI / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            for alias in node.names:
                home = (node.module, alias.name) if node.module else (alias.name, "")
                found[alias.asname or alias.name] = home
    return found


def read_by(module: str, name: str, seen: set[tuple[str, str]] | None = None) -> set[str]:
    """Attributes and texts in a function and in those of the command line that it names."""
    seen = set() if seen is None else seen
    if (module, name) in seen or (module, name) not in functions():
        return set()
    seen.add((module, name))
    found: set[str] = set()
    for node in ast.walk(functions()[module, name]):
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name):
                found.add(node.attr)
                home, inner = imported(module).get(node.value.id, ("", "?"))
                if inner == "":
                    found |= read_by(home, node.attr, seen)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.Name):
            found |= read_by(*imported(module).get(node.id, (module, node.id)), seen)
    return found


def unread(parser: argparse.ArgumentParser) -> set[str]:
    run = parser.get_default("run")
    cells = [c.cell_contents for c in run.__closure__ or ()]
    found: set[str] = set()
    for each in (run, *(c for c in cells if callable(c))):  # one command for several checkpoints
        found |= read_by(each.__module__.rpartition(".")[2], each.__name__)
    return options_of(parser) - found - {"debug"}


def test_every_option_is_read_by_its_command():
    forgotten = {name: found for name, p in commands().items() if (found := unread(p))}
    forgotten.get("plot", set()).discard("labels")
    assert not forgotten


def test_an_option_that_nothing_reads_is_found():
    parser = commands.__wrapped__()["topology"]
    parser.add_argument("--forgotten")
    assert unread(parser) == {"forgotten"}


def test_rules_are_about_options_that_there_are():
    for name, rules in effects.RULES.items():
        there = options_of(commands()[name])
        assert {option for rule in rules for option in rule.options} <= there, name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["barriers", *MODEL, "a", "b", "--checkpoint", "c"], "--checkpoint: expected none: the"),
        (["merge", *MODEL, "a", "b", "c", "--log"], "--log: expected only with --plot"),
        (["plane", *MODEL, "--out", "s.h5", "--kind", "heat"], "--kind: expected only with --plot"),
        (["spectrum", *MODEL, "--symlog"], "--symlog: expected only with --plot"),
        (["train", *MODEL, "--steps", "1", "--runs", "2", "--start", "a"], "--runs: expected only"),
        (["flatness", *MODEL, "--measures", "trace", "--rho", "1"], "--rho: expected only with an"),
        (["classify", *MODEL, "--points", "p.npy", "--walks", "3"], "--walks: expected only"),
        (["cloud", "c.h5", "--plot", "c.png", "--rtol", "1e-3"], "--rtol: expected only without"),
        (["cloud", *MODEL, "--walk", "random", "--tie", "stay"], "--tie: expected only with"),
        (["trajectory", "r.h5", "--components", "3"], "--components: expected only with --pca"),
        (["trajectory", "r.h5", "--model", "no:m"], "--model: expected only with --data"),
        (["trajectory", "r.h5", "--bn", "batch"], "--bn: expected only with --surface"),
        (["track", *MODEL, "--trajectory", "r", "--momentum", "0"], "--momentum: expected only"),
        (["topology", "s.h5", "--kind", "tree"], "--kind: expected only with --plot"),
        (["info", "s.h5", "--data", "no:data"], "--data: expected only with --model"),
        (["info", "--model", "no:m", "--loss", "mse"], "--loss: expected only with --data"),
        (["theory", "group", "--starts", "3"], "--starts: expected only with the check xor"),
        (["reproduce", "xor_surface", "--b", "1"], "--b: expected only with table1 alone"),
        (["align", *MODEL, "a", "b", "--method", "activations", "--seed", "1"], "--seed: expected"),
    ],
)  # fmt: skip
def test_an_option_without_effect_is_refused_before_any_work(words, said, capsys):
    assert app.main(words) == 2
    assert said in capsys.readouterr().err


def test_pictures_refuse_what_they_do_not_take(tmp_path, monkeypatch, capsys):
    import numpy as np

    import pylandscape as pl

    monkeypatch.chdir(tmp_path)
    axis = np.linspace(-1.0, 1.0, 5)
    pl.Curve(axis, axis**2).save("c.h5")
    pl.Surface(axis, axis, axis[:, None] ** 2 + axis**2).save("s.h5")
    pl.Barriers(axis, np.zeros((2, 2, 5)), np.zeros((2, 2)), np.zeros((2, 2)), ["a", "b"]).save("b")
    for words, said in (
        (["c.h5", "--levels", "3"], "--levels: has no effect on the picture of curves"),
        (["s.h5", "--symlog"], "--symlog: has no effect on the picture of a surface"),
        (["s.h5", "--kind", "heat", "--levels", "3"], "--levels: has no effect"),
        (["b", "--band"], "--band: has no effect on the picture of a Barriers"),
    ):
        assert app.main(["plot", *words, "--out", "p.png"]) == 2
        assert said in capsys.readouterr().err
    assert not Path("p.png").exists()


def test_what_was_not_read_is_said_at_the_end(capsys):
    options = effects.Options(command="demo", seed=3)
    effects.begin(options, {"seed", "which_run", "debug"})
    assert options.seed == 3
    assert effects.without_effect(options) == ["--run"]
