"""Table 1: its networks and data, the shares it gives, files, resumed runs, the report."""

from __future__ import annotations

import csv
import functools
import json

import numpy as np
import pytest
import torch

from pylandscape.clouds.walks import gradient_walk
from pylandscape.critical.classification import classify
from pylandscape.errors import InvalidArgument
from pylandscape.experiments import table1 as reproduce
from pylandscape.experiments.table1 import table1
from pylandscape.experiments.table1_cases import (
    PUBLISHED,
    Case,
    EqualWidthMLP,
    Row,
    cases,
    dataset,
    landscape,
)
from pylandscape.experiments.table1_report import markdown

QUIET = {"progress": False}
SMALL = {"datasets": ["xor"], "depths": [2], "points": 60, "progress": False}
SIZES = {"xor": (15, 21, 27), "iris": (55, 75, 95), "diabetes": (231, 341, 451)}


@functools.cache
def walked(name, hidden, b, walks, steps):
    land = landscape(Case(name, hidden, False, b, walks, steps))
    return land, gradient_walk(land, walks, steps, b, 0.1, **QUIET).flat()


@functools.cache
def sample(name, hidden, b, walks, steps=100, rtol=1e-6, blocks=False):
    land, points = walked(name, hidden, b, walks, steps)
    return classify(land, points, rtol=rtol, blocks=blocks, **QUIET)


def row(hidden=2, residual=True, saddle=10, singular=90, **more) -> Row:
    counts = {"convex": 0, "concave": 0, "saddle": saddle, "singular": singular}
    fields = {"matching_rtol": 3e-3, "error": 0.01, "kink_share": 0.004, **more}
    levels = {f"{r:g}": counts for r in (1e-15, 1e-7, 1e-6, 1e-5)}
    return Row(Case("xor", hidden, residual), 15, counts, levels, seconds=1.0, **fields)


@pytest.mark.parametrize("name", SIZES)
def test_the_networks_have_the_sizes_of_the_paper(name):
    if name != "xor":
        pytest.importorskip("sklearn")
    sizes = [landscape(Case(name, hidden, True)).n_params for hidden in (2, 3, 4)]
    assert tuple(sizes) == SIZES[name]


def test_a_skip_adds_the_layers_input_after_the_activation():
    model = EqualWidthMLP(3, 2, 1, residual=True)
    x = torch.randn(5, 3)
    h = x
    for layer in model.hidden:
        h = h + torch.relu(layer(h))
    assert torch.equal(model(x), model.output(h))
    model.residual = False
    plain = model.output(torch.relu(model.hidden[1](torch.relu(model.hidden[0](x)))))
    assert torch.equal(model(x), plain)


def test_there_are_as_many_points_as_published():
    every = list(cases())
    assert len(every) == len(PUBLISHED) == 18
    for case in every:
        assert case.walks * case.steps == sum(case.published.values())
    assert [c.walks * c.steps for c in cases(points=250, datasets=["xor"], depths=[2])] == [200] * 2
    assert [c.walks * c.steps for c in cases(points=7, datasets=["xor"], depths=[2])] == [7] * 2


@pytest.mark.parametrize(("name", "shape"), [("iris", (150, 4, 3)), ("diabetes", (442, 10, 1))])
def test_data_are_standardised(name, shape):
    pytest.importorskip("sklearn")
    x, y = dataset(name)
    assert (*x.shape, y.shape[1]) == shape
    assert x.mean(0).numpy() == pytest.approx(np.zeros(shape[1]), abs=1e-13)
    assert (x**2).mean(0).numpy() == pytest.approx(np.ones(shape[1]), rel=1e-12)
    if name == "iris":
        assert y.sum(1).tolist() == [1.0] * 150


@pytest.mark.parametrize(("b", "least"), [(1.0, 0.85), (10.0, 0.95)])
def test_most_points_of_xor_are_singular_and_none_convex_or_concave(b, least):
    found = sample("xor", 2, b, walks=15)
    counts = found.counts()
    assert counts["convex"] == counts["concave"] == 0
    assert counts["singular"] >= least * len(found)


def test_the_singular_share_of_xor_rises_with_depth():
    shares = [sample("xor", hidden, 1.0, walks=15).counts()["singular"] for hidden in (2, 4)]
    assert shares[0] < shares[1]


@pytest.mark.parametrize(
    ("name", "b", "walks", "steps", "least"),
    [("iris", 10.0, 8, 25, 0.90), ("diabetes", 1.0, 4, 5, 0.97)],
)
def test_most_points_of_iris_and_diabetes_are_singular(name, b, walks, steps, least):
    pytest.importorskip("sklearn")
    found = sample(name, 2, b, walks, steps)
    counts = found.counts()
    assert counts["convex"] == counts["concave"] == 0
    assert counts["singular"] >= least * len(found)


def test_exact_zeros_of_parameter_blocks_give_convex_points_and_many_saddles():
    found = sample("xor", 2, 1.0, walks=15, blocks=True, rtol=0.0)
    shares = {name: count / len(found) for name, count in found.counts().items()}
    assert 0.02 <= shares["convex"] <= 0.11  # methods: 200 to 1,100 of 10,000
    assert 0.15 <= shares["saddle"] <= 0.40


def test_the_table_is_written_and_not_computed_twice(tmp_path, monkeypatch):
    said: list[str] = []
    rows = table1(tmp_path / "t", say=said.append, **SMALL)
    names = {p.name for p in (tmp_path / "t").iterdir()}
    assert {"table1.json", "table1.csv", "table1.md"} <= names
    assert "b1-xor-2-plain-1x60.h5" in names
    assert [r.points for r in rows] == [60, 60]
    assert len(json.loads((tmp_path / "t/table1.json").read_text())["rows"]) == 2
    with open(tmp_path / "t/table1.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(line["singular"]) for line in table] == [r.counts["singular"] for r in rows]
    assert [int(line["published_saddle"]) for line in table] == [103, 1014]
    assert (tmp_path / "t/table1.md").read_text() in "\n".join(said) + "\n"
    monkeypatch.setattr(reproduce, "classify", None)
    assert table1(tmp_path / "t", say=said.append, **SMALL) == rows
    assert "(was there)" in said[-6]


def test_another_size_of_table_lives_in_the_same_folder(tmp_path):
    first = table1(tmp_path, say=lambda line: None, **SMALL)
    other = table1(tmp_path, say=lambda line: None, **{**SMALL, "points": 40})
    assert [r.points for r in other] == [40, 40]
    assert table1(tmp_path, say=lambda line: None, **SMALL) == first
    assert len(json.loads((tmp_path / "table1.json").read_text())["rows"]) == 4


def test_an_interrupted_table_keeps_its_rows_and_the_one_that_was_running(tmp_path, monkeypatch):
    honest, calls = reproduce.classify, []

    def interrupted(*args, **options):
        calls.append(options["path"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return honest(*args, **options)

    monkeypatch.setattr(reproduce, "classify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        table1(tmp_path, say=lambda line: None, **SMALL)
    assert len(json.loads((tmp_path / "table1.json").read_text())["rows"]) == 1
    rows = table1(tmp_path, say=lambda line: None, **SMALL)
    assert len(rows) == 2
    assert calls[1] == calls[2] != calls[0]


def test_a_table_that_cannot_be_read_is_computed_again(tmp_path):
    (tmp_path / "table1.json").write_text("{")
    assert len(table1(tmp_path, say=lambda line: None, **SMALL)) == 2


def test_the_matching_tolerance_gives_the_published_share():
    case = Case("xor", 2, False, walks=15)
    found = sample("xor", 2, 1.0, walks=15)
    rtol = reproduce._matching_rtol(case, found)
    share = found.counts(rtol)["singular"] / len(found)
    assert share >= 0.8986
    assert found.counts(rtol * 0.99)["singular"] / len(found) <= 0.8986 + 1 / len(found)


def test_the_report_says_where_it_differs_and_what_the_tolerance_would_have_to_be():
    text = markdown([row(), row(residual=False, saddle=6, singular=94)])
    assert "xor 2 with: 90 +- 1 % singular, published 98.97 %" in text
    assert "rtol would have to be 0.003, which is no rounding" in text
    assert "residual networks have fewer singular points here (90 % with, 94 % without)" in text
    assert "0.4 % of the samples" in text
    assert "## b = 1" in text


def test_the_report_agrees_where_the_counts_do():
    text = markdown([row(hidden=3, saddle=0, singular=100)])
    assert "1 of 1 rows agree" in text
    assert "xor 3 with:" not in text


def test_the_report_says_where_no_tolerance_helps():
    text = markdown([row(residual=False, saddle=0, singular=100, matching_rtol=1e-18, error=None)])
    assert "100 % singular, published 89.86 %; no tolerance above rounding" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bounds": ()}, "b: expected"),
        ({"bounds": (0.0,)}, "b: expected"),
        ({"points": 0}, "points"),
        ({"datasets": ["mnist"]}, "datasets"),
        ({"depths": [5]}, "depths"),
        ({"rtol": 1.5}, "rtol"),
    ],
)
def test_bad_input_is_named(arguments, message, tmp_path):
    with pytest.raises(InvalidArgument, match=message):
        table1(tmp_path, say=lambda line: None, **{**SMALL, **arguments})


def test_a_file_in_the_folders_place_is_left_alone(tmp_path):
    (tmp_path / "t").write_text("mine")
    with pytest.raises(InvalidArgument, match="out: expected a folder"):
        table1(tmp_path / "t", **SMALL)
    with pytest.raises(InvalidArgument, match="dataset"):
        dataset("mnist")
