"""The networks, data and published counts of the table that `reproduce` computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument, PylandscapeError
from ..landscape import Landscape
from ..results.curvature_classes import CLASSES

DATASETS = ("xor", "iris", "diabetes")
DEPTHS = (2, 3, 4)
RTOL = 1e-6  # the noise of float32, in which such tables are computed
STEPS, FRACTION = 100, 0.1  # the walk with long steps (Bosman, Engelbrecht, Helbig 2018)
WALKS = {"xor": 100, "iris": 300, "diabetes": 100}
PUBLISHED: dict[tuple[str, int, bool], tuple[int, int, int, int]] = {
    **{
        (name, depth, residual): (0, 0, 0, STEPS * WALKS[name])
        for name in DATASETS for depth in DEPTHS for residual in (True, False)
    },
    ("xor", 2, True): (0, 0, 103, 9897),
    ("xor", 2, False): (0, 0, 1014, 8986),
    ("iris", 2, True): (0, 0, 10, 29990),
    ("iris", 2, False): (0, 0, 957, 29043),
}  # fmt: skip
INSTALL = (
    "Iris and Diabetes come with scikit-learn: "
    'pip install "scikit-learn>=1.4", or, in the checkout, pip install ".[demo]"'
)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        dataset: "xor", "iris" or "diabetes".
        hidden: hidden layers, each as wide as the input.
        residual: with skip connections.
        b: walks start uniformly on [-b, b]^n; steps are up to 0.2 b.
        walks, steps: W T points.
        rtol, blocks: as in `classify`.
    """

    dataset: str
    hidden: int
    residual: bool
    b: float = 1.0
    walks: int = 100
    steps: int = STEPS
    rtol: float = RTOL
    blocks: bool = False
    seed: int = 0

    @property
    def name(self) -> str:
        kind = "residual" if self.residual else "plain"
        mode = "-blocks" if self.blocks else ""
        size = f"{self.walks}x{self.steps}"
        return f"b{self.b:g}-{self.dataset}-{self.hidden}-{kind}-{size}{mode}"

    @property
    def published(self) -> dict[str, int]:
        """{class: points} as printed in the paper, of as many points as it has."""
        row = PUBLISHED[self.dataset, self.hidden, self.residual]
        return dict(zip(CLASSES, row, strict=True))


@dataclass(frozen=True)
class Row:
    """What a case gave.

    Attributes:
        n: parameters.
        counts: {class: points}.
        at: {rtol as text: counts}: n eps, rtol / 10, rtol and 10 rtol.
        error: of the singular share, its standard error over the walks; None for one walk.
        kink_share: of the samples, within 1e-3 of a kink.
        matching_rtol: the tolerance at which the singular share is the published one.
        seconds: of the walk and the classification.
        versions: of pylandscape and torch.
    """

    case: Case
    n: int
    counts: dict[str, int]
    at: dict[str, dict[str, int]]
    matching_rtol: float | None
    error: float | None
    kink_share: float | None
    seconds: float
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def points(self) -> int:
        return sum(self.counts.values())

    def share(self, name: str = "singular") -> float:
        return self.counts.get(name, 0) / self.points

    def published_share(self, name: str = "singular") -> float:
        return self.case.published[name] / sum(self.case.published.values())


class EqualWidthMLP(nn.Module):
    """Hidden layers as wide as the input, ReLU, a linear output; residual: h <- h + relu(W h + c).

    Args:
        inputs, outputs: features.
        hidden: how many hidden layers.
        residual: with skip connections, after the activation, around every hidden layer.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, residual: bool) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(inputs, inputs) for _ in range(hidden))
        self.output = nn.Linear(inputs, outputs)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            z = torch.relu(layer(x))
            x = x + z if self.residual else z
        found: Tensor = self.output(x)
        return found


def dataset(name: str) -> tuple[Tensor, Tensor]:
    """Inputs (N, d) and targets (N, o), float64.

    XOR: 0 and 1 as they are. Iris: standardised features, one-hot classes. Diabetes (scikit-learn's
    regression set of 10 features): standardised features and target.

    Raises:
        InvalidArgument: another name.
        PylandscapeError: scikit-learn is not installed.
    """
    if name == "xor":
        x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
        return x, torch.tensor([[0.0], [1.0], [1.0], [0.0]], dtype=torch.float64)
    if name not in DATASETS:
        raise InvalidArgument(f"dataset: expected one of {', '.join(DATASETS)}, got {name!r}")
    try:
        from sklearn.datasets import load_diabetes, load_iris
    except ImportError as error:
        raise PylandscapeError(INSTALL) from error
    x, y = (load_iris if name == "iris" else load_diabetes)(return_X_y=True)
    inputs, raw = _standardised(torch.as_tensor(x)), torch.as_tensor(y)
    if name == "iris":
        return inputs, nn.functional.one_hot(raw.long(), 3).double()
    return inputs, _standardised(raw[:, None])


def landscape(case: Case) -> Landscape:
    """The mean squared error of a case's network over its data, float64."""
    x, y = dataset(case.dataset)
    with torch.random.fork_rng(devices=[]):
        model = EqualWidthMLP(x.shape[1], case.hidden, y.shape[1], case.residual)
    return Landscape(model.double(), nn.MSELoss(), (x, y))


def cases(
    bounds: Sequence[float] = (1.0,),
    points: int | None = None,
    datasets: Sequence[str] = DATASETS,
    depths: Sequence[int] = DEPTHS,
    **options: Any,
) -> Iterator[Case]:
    """The rows in the paper's order, for every b; `points` limits each."""
    for b in bounds:
        for name in datasets:
            walks, steps = WALKS[name], STEPS
            if points is not None:
                walks, steps = min(walks, max(1, points // steps)), min(steps, points)
            for hidden in depths:
                for residual in (True, False):
                    yield Case(name, hidden, residual, b, walks, steps, **options)


def _standardised(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0, correction=0)
