"""large: the torch engine on networks that nearly fill the memory, against the best plain loop.

The time a point of a small GPT and a U-Net; the peak memory of a plane over a GPT of GPT-2's shape;
directions that are not stored against stored ones; products by differences against their bound.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pylandscape as pl

from .harness import Arm, Row, interleave, rows
from .memory import child
from .networks import Encoder, SelfAttention, UNet

POINTS = 4
_CHILD = "import sys; from bench.language import plane_memory; plane_memory(*sys.argv[1:])"


class GPT(nn.Module):
    """GPT-2's shape, with its own loss of the next token and the tied head."""

    def __init__(self, layers: int, width: int, heads: int, words: int, places: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(words, width), nn.Embedding(places, width)
        attention = partial(SelfAttention, causal=True)
        self.h = nn.Sequential(*(Encoder(width, heads, attention) for _ in range(layers)))
        self.ln_f = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        x = self.wte(input_ids) + self.wpe(torch.arange(input_ids.shape[1]))
        logits = self.ln_f(self.h(x)) @ self.wte.weight.T
        return {"loss": F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())}


class OwnLoss(nn.Module):
    """A network of images with its own loss of every pixel's class."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self.net(images), labels)}


def texts(words: int, count: int, tokens: int) -> dict[str, Tensor]:
    ids = torch.randint(words, (count, tokens))
    return {"input_ids": ids, "labels": ids}


def plain_loop(model: nn.Module, batch: dict[str, Tensor], d: Tensor) -> Callable[..., Any]:
    """The best loop in plain torch: parameters are views of one vector, written in one call."""
    own = copy.deepcopy(model).eval()
    theta = nn.utils.parameters_to_vector(own.parameters()).detach()
    flat, at = theta.clone(), 0
    for p in own.parameters():
        p.data = flat[at : at + p.numel()].view(p.shape)
        at += p.numel()

    def run(c: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found = []
            for row in torch.as_tensor(c).to(theta):
                torch.addmv(theta, d.T, row, out=flat)
                found.append(float(own(**batch)["loss"]))
        return np.array(found)

    return run


def large(quick: bool, repetitions: int) -> list[Row]:
    torch.manual_seed(0)
    tokens, layers, width = (16, 2, 16) if quick else (256, 12, 128)
    images = {"images": torch.randn(2, 3, 16, 16), "labels": torch.randint(2, (2, 16, 16))}
    if not quick:
        images = {"images": torch.randn(4, 3, 64, 64), "labels": torch.randint(2, (4, 64, 64))}
    gpt = GPT(layers, width, 4, 512, tokens)
    table = _a_point(f"GPT, {layers} layers of {width}", gpt, texts(512, 1, tokens), repetitions)
    table += _a_point(
        "U-Net", OwnLoss(UNet(4 if quick else 16, classes=2, up="bilinear")), images, repetitions
    )
    table += _named(quick, repetitions)
    table += _differences()
    table.append(_peak(quick))
    return table


def _a_point(name: str, model: nn.Module, batch: dict[str, Tensor], repetitions: int) -> list[Row]:
    land = pl.Landscape(model, data=[batch])
    d = torch.stack([each.vector for each in pl.random_directions(land, 2)])
    c = 0.1 * np.random.default_rng(0).normal(size=(POINTS, 2))
    ask, loop = land.prepare(d), plain_loop(model, batch, d)
    mine = Arm("pylandscape, torch engine", lambda: ask(c)["loss"], POINTS)
    mine.check(mine.run(), loop(c), 1e-5)
    best = Arm("the best plain loop", lambda: loop(c), POINTS, 1.1, at_most=True)
    interleave([mine, best], repetitions)
    return rows(name, mine, [best], "point")


def _named(quick: bool, repetitions: int) -> list[Row]:
    side, times = (64, 1) if quick else (3_000, 400)
    model = nn.Sequential(*(nn.Linear(side, side, bias=False) for _ in range(11)))

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"loss": self.body(x).square().mean()}

    own = Own()
    land = pl.Landscape(own, data=[{"x": torch.randn(times, side)}], copy=False)
    named = land.prepare(pl.random_directions(land, 2, stored=False))
    stored = land.prepare(pl.random_directions(land, 2, stored=True))
    c = np.array([[0.1, -0.2]])
    if named(c)["loss"] != stored(c)["loss"]:
        raise AssertionError("directions that are not stored: expected the bits of stored ones")
    mine = Arm("pylandscape, directions not stored", lambda: named(c)["loss"], 1)
    other = Arm("pylandscape, stored", lambda: stored(c)["loss"], 1, 1.3, at_most=True)
    interleave([mine, other], repetitions)
    return rows(f"2 directions, n = {land.n_params:,}", mine, [other], "point")


def _differences() -> list[Row]:
    x, y = torch.randn(64, 16), torch.randint(4, (64,))
    batch = texts(64, 4, 16)
    table: list[Row] = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4)).to(dtype)
        made = (
            pl.Landscape(model, "cross_entropy", (x.to(some), y), engine="torch", dtype=wide)
            for some, wide in ((dtype, None), (torch.float64, torch.float64))
        )
        table.append(_within_bound(f"MLP 16-32-4, {dtype}", *made))
        model = GPT(2, 32, 2, 64, 32).to(dtype)
        made = (
            pl.Landscape(model, data=[batch], engine="torch", dtype=wide)
            for wide in (None, torch.float64)
        )
        table.append(_within_bound(f"GPT of width 32, {dtype}", *made))
    return table


def _within_bound(name: str, land: pl.Landscape, exact: pl.Landscape) -> Row:
    v = torch.randn(20, land.n_params)
    got, bounds = land.hvp_by_differences(v)
    errors = torch.linalg.vector_norm(got - exact.hvp(v), dim=1)
    share = float(bounds.median() / errors.median())
    return {
        "workload": f"product by differences, {name.replace('torch.', '')}, 20 vectors",
        "arm": "pylandscape, bound against error (medians)", "median_us": float("nan"),
        "iqr_us": float("nan"), "unit": "-", "ratio": share,
        "ratio_quartiles": [share, share], "at_most": True, "target": 10.0,
        "met": bool((errors <= bounds).all()) and share <= 10.0, "error": None,
        "note": f"{int((errors <= bounds).sum())} of 20 within their bound",
    }  # fmt: skip


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def plane_memory(layers: str, width: str, words: str, tokens: str, threads: str) -> None:
    """Prints the peak of a plane over that of a plain forward pass, in thetas beside the model."""
    torch.manual_seed(0)
    torch.set_num_threads(int(threads))
    tiny = GPT(1, 8, 2, 11, 8)  # what is loaded at first use
    land = pl.Landscape(tiny, data=[texts(11, 2, 8)], copy=False)
    pl.plane(land, *pl.random_directions(land, 2, stored=False), (-1, 1, 3), (-1, 1, 3),
             progress=False)  # fmt: skip
    model = GPT(int(layers), int(width), max(1, int(width) // 64), int(words), 1024).eval()
    batch = texts(int(words), 4, int(tokens))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    with torch.no_grad():
        model(**batch)
    before = _status("VmHWM")
    land = pl.Landscape(model, data=[batch], copy=False)
    pl.plane(land, *pl.random_directions(land, 2, stored=False), (-1, 1, 3), (-1, 1, 3),
             progress=False)  # fmt: skip
    print(land.n_params, (_status("VmHWM") - before) / (4 * land.n_params))


def _peak(quick: bool) -> Row:
    shape = ("2", "64", "211", "16") if quick else ("12", "768", "50257", "32")
    n, share = child(_CHILD, *shape).split()
    return {
        "workload": f"peak memory of a 3x3 plane, n = {int(n):,}",
        "arm": "pylandscape, thetas beside the model and a forward pass", "median_us": float("nan"),
        "iqr_us": float("nan"), "unit": "-", "ratio": float(share),
        "ratio_quartiles": [float(share)] * 2, "at_most": True, "target": 1.2,
        "met": quick or float(share) <= 1.2, "error": None, "note": "copy=False, stored=False",
    }  # fmt: skip
