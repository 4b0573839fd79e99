"""A pane of the page: a static picture, and the scene that a script draws in its place."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

DPI = 130


@dataclass
class Pane:
    """picture: PNG in base64; scene: {"data": [...], "layout": {...}} of plotly, or None."""

    caption: str
    picture: str
    scene: dict[str, Any] | None
    name: str = ""


def pane(caption: str, draw: Callable[..., Any], scene: dict[str, Any] | None = None) -> Pane:
    """The pane of what ``draw()`` draws: it returns Axes, whose figure is closed again."""
    import matplotlib.pyplot as plt

    figure = draw().figure
    try:
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=DPI, bbox_inches="tight", metadata=NO_DATE)
    finally:
        plt.close(figure)
    return Pane(caption, base64.b64encode(content.getvalue()).decode(), scene)


NO_DATE = {"Software": None}  # the same results give the same bytes
