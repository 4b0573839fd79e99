"""The HTML report: what is in the page, and, where a browser is installed, what it shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import pylandscape as pl
from pylandscape.cli import app
from pylandscape.plots.overlay import Run
from pylandscape.reports import scenes
from pylandscape.reports.sections import section_of

AXIS = np.linspace(-1.0, 1.0, 9)
STEEP = 0.1 + 20 * (AXIS[:, None] ** 2 + AXIS**2) ** 2


def bowl(**info) -> pl.Surface:
    return pl.Surface(AXIS, AXIS, 1 + AXIS[:, None] ** 2 + 2 * AXIS**2, info=info)


def spectrum() -> pl.Spectrum:
    values = [*np.linspace(-0.1, 1.0, 60), 20.0, 90.0]
    return pl.spectrum(np.diag(values), probes=2, steps=40, vectors=2, progress=False)


def parts():
    """A landscape, two directions, and a run in their plane."""
    torch.manual_seed(0)
    x, y = torch.randn(20, 2), torch.randn(20, 1)
    land = pl.Landscape(torch.nn.Linear(2, 1), "mse", (x, y))
    d1, d2 = pl.random_directions(land, 2, seed=0, ignore=())
    states = [land.theta + 0.1 * t * d1.vector + 0.05 * t**2 * d2.vector for t in range(4)]
    return land, d1, d2, pl.trajectory([land.layout.unflatten(s) for s in states], like=land)


def setting():
    """A plane through a run, and the run."""
    land, d1, d2, run = parts()
    return pl.plane(land, d1, d2, x=(-1, 1, 7), y=(-1, 1, 7), progress=False), run


class Page(HTMLParser):
    """Ids and classes of the elements, addresses that something is fetched from, scenes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.panes: list[str] = []
        self.fetched: list[str] = []
        self.scripts = 0
        self.feed(text)
        scene = re.search(r'id="scenes">(.*?)</script>', text, re.S)
        self.scenes = json.loads(scene.group(1)) if scene else {}

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.fetched += [v for k, v in attributes if k in ("src", "href") and v[:5] != "data:"]
        if tag == "img":
            self.pictures.append(given["src"])
        if given.get("class") == "live":
            self.panes.append(given["id"])
        self.scripts += tag == "script"


def written(results, tmp_path, **options) -> tuple[Page, str]:
    path = pl.report(results, tmp_path / "r.html", **options)
    text = path.read_text()
    return Page(text), text


def test_a_plane_with_its_path_a_spectrum_and_a_run_are_one_offline_file(tmp_path):
    pytest.importorskip("plotly")
    surface, run = setting()
    before = plt.get_fignums()
    page, text = written({"plane": surface, "H": spectrum(), "run": run}, tmp_path, title="T & co")
    assert plt.get_fignums() == before
    assert len(text) < 6e6
    assert not page.fetched
    assert text.count("plotly.js v") == 1
    kinds = {name: [t["type"] for t in s["data"]] for name, s in page.scenes.items()}
    assert kinds["pane-0-0"] == ["contour", "scatter"]
    assert kinds["pane-0-1"] == ["surface", "scatter3d"]
    assert sorted(page.scenes) == sorted(page.panes)
    assert len(page.pictures) == len(page.panes) == 4  # a static picture behind each
    for part in (
        "<h1>T &amp; co</h1>", "plane (Surface)", "outliers", "eigenpairs",
        "the model&#x27;s own loss", "Where it comes from", "prefers-color-scheme",
    ):  # fmt: skip
        assert part in text, part


def test_without_plotly_the_report_is_static_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    page, text = written([bowl()], tmp_path)
    assert not page.panes
    assert page.scripts == 0
    assert len(page.pictures) == 2
    assert "plotly is not installed" in text
    _, chosen = written([pl.Curve(AXIS, AXIS)], tmp_path, interactive=False)
    assert "plotly" not in chosen


def test_the_same_results_give_the_same_bytes(tmp_path):
    one = pl.Curve(AXIS, AXIS)
    first, second = (written([one], tmp_path, interactive=False)[1] for _ in range(2))
    assert first == second


def test_results_of_different_models_are_said(tmp_path):
    two = [pl.Curve(AXIS, AXIS, info={"request": {"layout": k, "loss": "mse"}}) for k in "ab"]
    _, text = written(two, tmp_path, interactive=False)
    assert "These results are not of the same parameters." in text
    _, text = written([two[0], two[0]], tmp_path, interactive=False)
    assert "not of the same" not in text


def test_text_of_a_result_cannot_become_markup(tmp_path):
    bad = "</script><script>alert(1)</script>"
    curve = pl.Curve(AXIS, AXIS, info={"engine": bad, "notes": [bad]})
    page, text = written({bad: curve}, tmp_path, title=bad)
    assert "alert(1)</script>" not in text
    assert page.scripts == (3 if page.scenes else 0)


@pytest.mark.ci
def test_every_kind_of_result_has_a_section():
    x = np.arange(5.0)
    two = np.zeros((2, 2))
    losses = np.array([0.3, 0.2, 0.5, 0.1, 0.4])
    kinds = np.array(["saddle", "convex", "saddle", "convex", "singular"])
    cases = {
        "Curve": pl.Curve(x, x, {"loss": x, "accuracy": x / 5}),
        "Spectrum": spectrum(),
        "EigenPairs": spectrum().pairs,
        "Cloud": pl.Cloud(losses, losses**2, kinds=kinds),
        "solid Cloud": pl.Cloud(losses, losses, kinds=kinds, ruggedness=x, height="ruggedness"),
        "Track": pl.Track(x, two[:1].repeat(5, 0), x[:, None], x[:, None] > 2, x, threshold=x),
        "Topology": bowl().topology(),
        "Projection": pl.Projection(np.stack([x, x**2], 1), x, x + 1, x),
        "Barriers": pl.Barriers(np.arange(3) / 2, np.ones((2, 2, 3)), two, two, ["a", "b"]),
        "Walks": pl.Walks(np.zeros((2, 9, 4)), np.ones((2, 9)), np.ones((2, 9))),
        "triangle": pl.Surface(x / 4, x / 4, np.ones((5, 5)) + x, kind="barycentric"),
        "thin": pl.Surface(np.zeros(1), x, np.ones((1, 5)) + x),
    }
    live = {"Curve", "Spectrum", "Cloud", "solid Cloud", "Track", "Projection", "triangle"}
    for name, result in cases.items():
        section = section_of(result, "label", [], 0, True)
        assert section.heading.startswith("label (")
        assert section.panes or section.tables, name
        assert any(p.scene is not None for p in section.panes) == (name in live), name
        for each in section.panes:
            json.dumps(each.scene, allow_nan=False)
    plt.close("all")


def test_the_pointer_shows_the_loss_in_its_own_units_on_a_logarithmic_scale():
    surface = pl.Surface(AXIS, AXIS, STEEP)
    surface.values[0, 1] = np.nan
    for make in (scenes.contour, scenes.surface):
        drawn = make(surface, [], True)["data"][0]
        assert drawn["text"][2][3] == f"loss {surface.values[3, 2]:.5g}"  # rows are y
        assert drawn["z"][2][3] == pytest.approx(np.log10(surface.values[3, 2]), rel=1e-4)
        assert drawn["z"][1][0] is None
        texts = [float(t) for t in drawn["colorbar"]["ticktext"]]
        assert texts[-1] == pytest.approx(STEEP.max(), rel=1e-2)
        assert np.allclose(np.log10(texts), drawn["colorbar"]["tickvals"], atol=0.01)


def test_a_path_lies_a_little_above_its_surface():
    points = np.array([[0.5, 0.1], [0.0, 0.4], [-0.3, 2.0]])  # the last one is outside
    surface = pl.Surface(AXIS, AXIS, np.broadcast_to(3 + AXIS[:, None], (9, 9)))
    run = Run(points, np.array([0.0, 0.25, 0.5]), [0, 10, 20])
    path = scenes.surface(surface, [run], False)["data"][1]
    assert path["z"] == [pytest.approx(3.52), pytest.approx(3.02), None]
    assert (path["x"], path["y"]) == ([0.5, 0.0, -0.3], [0.1, 0.4, 2.0])
    assert path["text"][1] == "step 10, 25 % off the plane"


@pytest.mark.ci
def test_a_path_is_drawn_on_the_plane_of_its_own_components_from_files(tmp_path):
    land, _, _, path = parts()
    directions = pl.pca_directions(path)
    ranges = {"x": (-1, 1, 5), "y": (-1, 1, 5), "progress": False}
    pl.plane(land, *directions, theta=path[-1], **ranges).save(tmp_path / "s.h5")
    path.save(tmp_path / "t.h5")
    read = [pl.load(tmp_path / "s.h5"), pl.trajectory(tmp_path / "t.h5")]
    section = section_of(read[0], "", read[1:], 0, True)
    assert section.notes == []
    assert [t["type"] for t in section.panes[0].scene["data"]] == ["contour", "scatter"]
    assert read[0].frame is None


@pytest.mark.ci
def test_a_path_whose_plane_is_not_known_is_said_and_shown_alone(tmp_path):
    surface, run = setting()
    surface.save(tmp_path / "s.h5")
    run.save(tmp_path / "t.h5")
    files = [tmp_path / "s.h5", tmp_path / "t.h5"]
    page, text = written(files, tmp_path, interactive=False)
    assert "is not drawn: its directions are not known" in text
    assert len(page.pictures) == 3
    assert "t.h5 (Trajectory)" in text


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([], {}, "results: expected at least one to report on, got none"),
        ({}, {}, "results: expected at least one to report on, got none"),
        ([3], {}, r"results\[0\]: expected a result or the file of one, got int"),
        (None, {}, r"results\[0\]: expected a result or the file of one, got NoneType"),
        ([bowl()], {"labels": ["a", "b"]}, "labels: expected 1, got 2"),
        ([bowl()], {"path": "r.pdf"}, "path: expected a name ending in .html, got 'r.pdf'"),
        ([bowl()], {"path": "none/r.html"}, "path: expected an existing folder, got none"),
    ],
)
def test_bad_input_is_one_error_and_writes_nothing(given, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pl.InvalidArgument, match=message):
        pl.report(given, **options)
    assert not list(tmp_path.iterdir())


def test_the_command_line_reports_files(tmp_path, capsys):
    pl.Curve(AXIS, AXIS).save(tmp_path / "s.h5")
    out = tmp_path / "r.html"
    assert app.main(["report", str(tmp_path / "s.h5"), "--out", str(out), "--static"]) == 0
    assert capsys.readouterr().out == f"written    {out}\n"
    assert "s.h5 (Curve)" in out.read_text()
    assert app.main(["report", str(tmp_path / "no.h5"), "--out", str(out)]) == 2


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
HINT = "Canvas2D: Multiple readback"  # advice on speed, to plotly's authors
WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")


def opened(path, folder, *options: str) -> tuple[str, list[str]]:
    """The page after its scripts, and what its console said, in a browser without network."""
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--proxy-server=127.0.0.1:9",
            "--enable-logging=stderr", f"--user-data-dir={folder}", "--window-size=1200,900",
            "--virtual-time-budget=15000", *options, "--dump-dom", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    console = [k for k in done.stderr.splitlines() if ":CONSOLE:" in k and HINT not in k]
    return done.stdout, console


@pytest.mark.ci
@pytest.mark.skipif(not BROWSER, reason="no browser: apt-get install chromium")
def test_a_browser_shows_every_pane_without_a_word_on_the_console(tmp_path):
    pytest.importorskip("plotly")
    surface, run = setting()
    path = pl.report([surface, spectrum(), run], tmp_path / "r.html")
    page, console = opened(path, tmp_path / "profile", *WEBGL)
    assert console == []
    names = re.findall(r'<div class="live[^"]*" id="(pane-[^"]+)"', page)
    assert len(names) == 4
    assert page.count('<figure class="on">') == 4
    assert page.count('class="main-svg"') >= 4
    assert "gl-container" in page
    assert "colorbar" in page
    page, console = opened(path, tmp_path / "profile", "--disable-3d-apis")
    assert page.count('<figure class="on">') == 3  # the surface is its static picture
    assert not [line for line in console if "Uncaught" in line or "Refused" in line]
