"""Child processes import the installed package, not the checkout's folder of the same name."""

import os

import pytest
import torch

os.environ["PYTHONSAFEPATH"] = "1"
os.environ.setdefault("MPLBACKEND", "agg")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
