"""Long work says first how long it will take."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pylandscape as pl
from pylandscape import progress


def land(wait: float = 0.0) -> pl.Landscape:
    def slow(model: nn.Module, batch: Tensor) -> Tensor:
        time.sleep(wait)
        out: Tensor = model(batch).square().mean()
        return out

    return pl.Landscape(nn.Linear(3, 2), objective=slow, data=torch.ones(4, 3))


def test_a_long_line_says_seconds_a_point_and_in_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LONG", 0.3)
    of = land(0.004)
    d = torch.ones(of.n_params)
    pl.line(of, d, (-1, 1, 250))
    said = re.search(
        r"line: (\d+) points, ([\d.]+) ms each \(measured\): about ([\d.]+) (ms|s); .* of memory",
        capsys.readouterr().err,
    )
    assert said is not None
    points, each, whole, unit = said.groups()
    assert 4.0 <= float(each) < 40.0
    seconds = float(whole) * (1e-3 if unit == "ms" else 1)
    assert seconds == pytest.approx(int(points) * float(each) / 1e3, rel=0.2)
    pl.line(of, d, (-1, 1, 250), progress=False)
    assert capsys.readouterr().err == ""


def test_slow_points_are_estimated_before_the_first_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    of = land(0.02)
    assert of.point_seconds >= 0.02
    monkeypatch.setattr(progress, "SLOW", 0.01)
    monkeypatch.setattr(progress, "LONG", 0.05)
    monkeypatch.setattr(of, "prepare", _stopped)
    with pytest.raises(KeyboardInterrupt):
        pl.plane(of, *torch.ones(2, of.n_params), (-1, 1, 5), (-1, 1, 5))
    said = capsys.readouterr().err
    assert "plane: 25 points" in said
    assert "each (at most, as the model's first run took): about" in said
    with pytest.raises(KeyboardInterrupt):
        pl.plane(of, *torch.ones(2, of.n_params), (-1, 1, 5), (-1, 1, 5), progress=False)
    assert capsys.readouterr().err == ""


def _stopped(*args: Any, **options: Any) -> Any:
    raise KeyboardInterrupt


def test_a_plane_of_four_million_points_is_estimated_within_its_first_points(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 10))
    of = pl.Landscape(model, "cross_entropy", (torch.randn(500, 20), torch.arange(500) % 10))
    say = progress.Bar._say

    def stop(bar: progress.Bar, each: float, how: str) -> None:
        say(bar, each, how)
        assert bar.n < 1_000_000
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.Bar, "_say", stop)
    axis = (-1, 1, 2001)
    with pytest.raises(KeyboardInterrupt):
        pl.plane(of, *torch.randn(2, of.n_params), axis, axis)
    said = capsys.readouterr().err
    assert re.search(
        r"plane: [34],\d{3},\d{3} points, .* each \(measured\): about .* (min|h|s)", said
    )
    assert "91.6 MiB of memory" in said


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2e-5, "20 us"), (0.0123, "12 ms"), (0.98, "980 ms"), (3.21, "3.2 s"), (61, "61 s"),
     (240, "4 min"), (5400, "1 h 30 min"), (7 * 86400, "7 d 0 h")],
)  # fmt: skip
def test_durations_are_short(seconds: float, text: str) -> None:
    assert progress._duration(seconds) == text
