"""The check of a capture: the compiled program must be the module, in values and in derivatives.

Values are compared at theta, at a point near it and at one with every parameter drawn anew; there
the module is run by the torch engine, which moves the parameters as a user's own loop would.
Derivatives are autograd's: a forward pass may separate them from its values (``detach``,
``no_grad``, gradient hooks, autograd functions of its own), of which a graph of values knows
nothing. So the program's gradient and one Hessian product are compared with autograd's too, where
every parameter is drawn anew and, if that leaves a parameter out, near theta (at theta itself,
parameters that are exactly zero can put many samples on a kink, where either side's slope is
right). Where they agree and the module's own run has such a call nevertheless, derivatives are
torch's: it may show elsewhere.

The loss of this comparison is a sum of squares over a few samples, with residuals as large as the
outputs: its gradient is that of a random sum of the outputs, which no saturated loss hides. Both
sides run in float64, where rounding is far from every kink, unless the model cannot. Few samples
suffice, as samples do not depend on each other: those that do are compared by whole batches.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arrays import all_finite
from ..errors import NotLowered, out_of_memory
from ..lowering.capture import Final, first_line, restored_attributes
from ..theta.data import Batch, chosen_batches
from ..theta.losses import KnownLoss
from ..theta.running_statistics import KIND, is_variance
from .calls import Cuts, graphless, own_function
from .eager import SEEN_BATCHES, SEEN_SAMPLES, TorchEngine

if TYPE_CHECKING:
    from ..lowering.build import Data
    from ..theta.layout import ParameterEntry, ParameterLayout

_CHECKED_SAMPLES = SEEN_BATCHES * SEEN_SAMPLES
_SHARE, _FEWEST = 8, 64  # of a batch at theta: an eighth of the data, but not fewer than these
_MOVED_SAMPLES = 16  # at the moved points, and of derivatives
_STEP = 0.1  # of each parameter tensor's spread, to the point near theta
_AT_ONCE = 1 << 20  # elements of gradients compared together
_FROM_ZERO = 0.3  # the size of a parameter tensor drawn anew that is zero
_LEAST = 1e-11  # of the whole gradient: rounding in float64 of what cancels exactly


# No per-sample gradients, nor their covariance.
MIXED = "samples depend on their batch"


class Separated(Final):
    """The graph has the module's values but not its derivatives; another graph has neither."""


def check_outputs(
    engine: Any, model: nn.Module, layout: ParameterLayout, theta: Tensor, data: Data
) -> None:
    """The outputs over all ``data`` must be the module's on its first samples, at three points."""
    rows = data.inputs[:_CHECKED_SAMPLES]
    fixed = {
        name: t.detach().to(data.dtype) if t.is_floating_point() else t.detach().clone()
        for name, t in (*model.named_parameters(), *model.named_buffers())
    }
    for point in checked_points(layout, theta.detach().to("cpu", data.dtype)):
        got = engine.outputs_at(point[None])[0]
        with torch.no_grad(), restored_attributes(model):
            state = {**fixed, **layout.unflatten(point)}
            expected = torch.func.functional_call(model, state, (rows,), tie_weights=True)
        few = len(got) * len(rows) // len(data.inputs)
        _compare(got[:few].cpu(), expected, len(engine.ops))


def check_batches(
    engine: Any,
    model: nn.Module,
    loss: KnownLoss,
    layout: ParameterLayout,
    theta: Tensor,
    data: Data,
    bn: str,
) -> None:
    """The outputs over ``data`` must be the torch engine's, at three points."""
    points = torch.stack(checked_points(layout, theta.detach().to("cpu", data.dtype)))
    expected = _outputs(_reference(model, loss, layout, data, bn), points)
    for got, want in zip(engine.outputs_at(points), expected, strict=True):
        _compare(got.cpu(), want, len(engine.ops))


def checked_part(data: Data) -> Data:
    """The samples on which a program is compared with the module at theta."""
    samples = min(SEEN_SAMPLES, max(_FEWEST, len(data.inputs) // _SHARE))
    return data.first(SEEN_BATCHES, samples)[0]


def seen_of(seen: Mapping[int, Tensor], data: Data, few: Data) -> Tensor | None:
    """Of outputs that are known of the batches' first samples, by batch, those of ``few`` of the
    data; None where they are not known."""
    found = []
    chosen = chosen_batches(data.sizes, SEEN_BATCHES)
    for index, samples in zip(chosen, few.sizes, strict=True):
        outputs = seen.get(index)
        if outputs is None:
            return None
        known = min(SEEN_SAMPLES, data.sizes[index])
        found.append(outputs[: len(outputs) // known * samples])
    return torch.cat(found)


def check_capture(
    engine: Any,
    engine_of: Callable[[Data, KnownLoss], Any],
    model: nn.Module,
    loss: KnownLoss,
    layout: ParameterLayout,
    theta: Tensor,
    few: Data,
    bn: str,
    known: Tensor | None = None,
) -> str | None:
    """Values and derivatives of ``engine_of(data, loss)``; raises NotLowered where they differ.

    ``engine`` is that of ``few``; the model is at theta, and in the mode that it is captured in.
    ``known``: its outputs there, in the whole batches, if it has run over them; then it runs over
    fewer once more, with gradients enabled. Gives what `check_derivatives` does. Fewer samples
    serve at the moved points, unless a sample's outputs depend on the others.
    """
    points = torch.stack(checked_points(layout, theta.detach().to("cpu", few.dtype)))
    together = engine.mixes or bn == "recompute"
    fewer, samples = few.first(SEEN_BATCHES, _MOVED_SAMPLES // SEEN_BATCHES)
    again = known is not None and not together
    own, cut = _watched(model, layout, fewer if again else few)
    expected = [own if known is None else known]
    if together:
        expected = _outputs(_reference(model, loss, layout, few, bn), points)
    found = engine.outputs_at(points[: len(expected)])
    for got, want in zip(found, expected, strict=True):
        _compare(got, want, len(engine.ops))
    per_sample = len(found[0]) // max(1, len(few.inputs))
    rows = (samples[:, None] * per_sample + torch.arange(per_sample)).reshape(-1)
    if again:
        _compare(found[0][rows], own, len(engine.ops))
    values = None if together else loss
    problem = check_derivatives(
        engine_of, model, layout, points[1:], fewer, found[0][rows], bn, values
    )
    return problem or cut


def _watched(model: nn.Module, layout: ParameterLayout, data: Data) -> tuple[Tensor, str | None]:
    """The module's outputs at theta; and what there takes values out of autograd's graph, which
    a graph of values does not know, and a comparison at some points need not show."""
    chosen = set(layout.aliases)
    free = [
        p
        for name, p in model.named_parameters()
        if name in chosen and p.is_leaf and not p.requires_grad and p.is_floating_point()
    ]
    try:
        with restored_attributes(model), graphless(), Cuts() as cuts:
            for p in free:
                p.requires_grad_(True)
            outputs = torch.cat([model(x) for x, _ in data.batches()])
        own = own_function(outputs)
        said = f"an autograd function of its own, {own}" if own else cuts.found
        return outputs.detach(), said and f"values are separated from their derivatives by {said}"
    except Exception as error:  # code that wants a graph, or none
        if out_of_memory(error):
            raise
    finally:
        for p in free:
            p.requires_grad_(False)
    with torch.no_grad(), restored_attributes(model):
        return torch.cat([model(x) for x, _ in data.batches()]), None


def check_derivatives(
    engine_of: Callable[[Data, KnownLoss], Any],
    model: nn.Module,
    layout: ParameterLayout,
    points: Tensor,
    few: Data,
    outputs: Tensor,
    bn: str,
    loss: KnownLoss | None = None,
) -> str | None:
    """A gradient and a Hessian product must be autograd's; raises Separated where they are not.

    ``points`` are the moved ones; ``outputs`` those at theta. With a ``loss``, whatever it is,
    the values at the points are compared too. Gives the reason why derivatives must be left to
    torch: the program has none, or autograd fails (and shall do so for the user).
    """
    generator = torch.Generator().manual_seed(1)
    at = torch.nan_to_num(outputs.double(), 0.0, 0.0, 0.0)
    scale = float(at.abs().max()) if at.numel() else 0.0
    residuals = (scale or 1.0) * torch.randn(at.shape, generator=generator, dtype=at.dtype)
    own = torch.finfo(few.dtype).eps
    problem: Exception | None = None
    for dtype in dict.fromkeys((torch.float64, few.dtype)):
        # torch's batch norm has wrong gradients for some batches of a single sample.
        data = few.in_dtype(dtype, at + residuals).with_lone_samples_twice()
        moved = points.to(dtype)
        # In float32, samples within rounding of a kink have either slope.
        tolerance = own**0.5 * (1 if dtype == torch.float64 else 30)
        noise = 100 * torch.finfo(dtype).eps * float(torch.linalg.vector_norm(residuals))
        try:
            engine = engine_of(data, _SQUARES)
            reference = _reference(model, _SQUARES, layout, data, bn)
            slope, last = _slope(reference, moved[-1])
            expected = []
            if loss is not None:
                expected = _outputs(reference, moved if last is None else moved[:-1])
                expected += [] if last is None else [last]
        except NotLowered as refusal:
            if loss is not None:
                reference = _reference(model, loss, layout, few, bn)
                _compare_all(engine_of(few, loss), points, _outputs(reference, points), own)
            return refusal.reason
        except Exception as error:  # the model cannot run in float64
            if out_of_memory(error) or (loss is not None and dtype == few.dtype):
                raise
            problem = error
            continue
        if loss is not None:
            _compare_all(engine, moved, expected, own)
            loss = None  # no values are left to compare
        try:
            compare = _Comparison(layout, tolerance, noise)
            point = _agreeing(engine, reference, compare, moved, slope)
        except NotLowered as refusal:
            if isinstance(refusal, Separated):
                raise
            return refusal.reason  # no derivatives in the program
        except Exception as error:  # the model has no derivatives, in this dtype
            if out_of_memory(error):
                raise
            problem = error
            continue
        if _own_functions():
            _check_product(engine, reference, compare, point)
        return None
    assert problem is not None
    return f"autograd gives none: {first_line(problem)}"


def _compare_all(engine: Any, points: Tensor, expected: Sequence[Any], eps: float) -> None:
    for got, want in zip(engine.outputs_at(points), expected, strict=True):
        _compare(got, want, len(engine.ops), eps)


def checked_points(layout: ParameterLayout, theta: Tensor) -> list[Tensor]:
    """theta, a point near it, and one with every parameter drawn anew.

    There no unit is dead, nor is a branch zero, because training or its start has made it so.
    Tensors keep their size, and stay positive where they are.
    """
    generator = torch.Generator().manual_seed(0)
    near, anew = theta.clone(), theta.clone()
    for entry in layout.entries:
        for point in (near, anew):
            part = point[entry.offset : entry.offset + entry.numel]
            if not len(part):
                continue
            drawn = torch.randn(part.shape, generator=generator, dtype=point.dtype)
            if point is near:
                spread = part.std() if part.numel() > 1 else part.abs().sum()
                part += _STEP * (float(spread) + 1e-3) * drawn
            elif bool((part > 0).all()):  # a width, say, or a temperature
                part.copy_(_size(part) * (0.5 + 0.5 * drawn.abs()))
            else:
                part.copy_((_size(part) or _FROM_ZERO) * drawn)
            if is_variance(entry):
                part.abs_()
    return [theta, near, anew]


def _size(part: Tensor) -> float:
    return float(torch.linalg.vector_norm(part)) / len(part) ** 0.5


_SQUARES = KnownLoss("mse", "sum")


def _reference(
    model: nn.Module, loss: KnownLoss, layout: ParameterLayout, data: Data, bn: str
) -> TorchEngine:
    batches = [Batch((x, y), x, y, len(x)) for x, y in data.batches()]
    reference = TorchEngine(
        model, loss, batches, layout, dtype=data.dtype, device=torch.device("cpu"), bn=bn
    )
    reference.assume_ordinary()  # the landscape's own engine has looked
    return reference


def _outputs(reference: TorchEngine, points: Tensor) -> list[Any]:
    """The module's outputs at each of the points (p, n)."""
    found: list[Any] = []

    def outputs(of: Tensor, target: Any) -> float:
        found.append(of)
        return 0.0

    reference.prepare_points((outputs,))(points)
    return found


def _slope(reference: TorchEngine, point: Tensor) -> tuple[Tensor | Exception, Tensor | None]:
    """The gradient at the point, or why there is none, and the outputs that it came from."""
    try:
        slope, outputs = reference.gradient_and_outputs(point)
    except Exception as error:
        if out_of_memory(error):
            raise
        return error, None
    return slope, torch.cat(outputs) if all(isinstance(o, Tensor) for o in outputs) else None


def _agreeing(
    engine: Any,
    reference: TorchEngine,
    compare: _Comparison,
    points: Tensor,
    slope: Tensor | Exception,
) -> Tensor:
    """A point at which the gradients agree: the last, where autograd's is ``slope``, or one before
    it too where that does not tell of every parameter. Raises Separated where they differ, in
    float32 where they do at all points.
    """
    agreeing: Tensor | None = None
    worst, where = -1.0, ""
    if isinstance(slope, Exception):
        raise slope
    for i, point in enumerate(points.flip(0)):
        want = slope if i == 0 else reference.gradient(point)
        gap, name = compare(engine.gradient(point), want)
        if gap <= compare.tolerance:
            if compare.tells(want):
                return point
            agreeing = point
            continue
        worst, where = max((worst, where), (gap, name))
        if points.dtype == torch.float64:
            agreeing = None
            break
    if agreeing is not None:
        return agreeing
    raise Separated(
        "the forward pass separates values from derivatives: the program's gradient in "
        f"{where!r} differs from autograd's by {_percent(worst)}"
    )


def _check_product(
    engine: Any, reference: TorchEngine, compare: _Comparison, point: Tensor
) -> None:
    generator = torch.Generator().manual_seed(2)
    v = torch.randn(1, len(point), generator=generator, dtype=point.dtype)
    for entry in compare.layout.entries:
        if entry.kind == KIND:
            v[:, entry.offset : entry.offset + entry.numel] = 0.0
    try:
        got = engine.product("hessian", point, v)[0]
        with warnings.catch_warnings():  # of kernels that are replaced
            warnings.simplefilter("ignore")
            want = reference.product("hessian", point, v)[0]
    except Exception as error:  # the program or torch has no second derivative of an op
        if out_of_memory(error):
            raise
        return
    if not all_finite(got):  # torch is asked then
        return
    gap, where = compare(got, want)
    if gap > compare.tolerance:
        raise Separated(
            "the forward pass separates values from derivatives: the program's product with the "
            f"Hessian differs from autograd's in {where!r} by {_percent(gap)}"
        )


def _own_functions(of: Any = torch.autograd.Function) -> bool:
    """Whether there are autograd functions that are neither torch's nor ours."""
    waiting = of.__subclasses__()
    while waiting:
        kind = waiting.pop()
        if not kind.__module__.startswith(("torch.", "pylandscape.")):
            return True
        waiting += kind.__subclasses__()
    return False


class _Comparison:
    """(got, want) -> the largest relative difference in a parameter tensor, and its name.

    ``noise``: absolute rounding; what is also below rounding of the whole vector counts as equal.
    """

    def __init__(self, layout: ParameterLayout, tolerance: float, noise: float) -> None:
        self.layout = layout
        self.entries = [e for e in layout.entries if e.kind != KIND and e.numel]
        self.tolerance, self.noise = tolerance, noise
        self._groups: list[list[ParameterEntry]] = []  # of neighbours, compared at once
        for e in self.entries:
            group = self._groups[-1] if self._groups else []
            if group and e.offset + e.numel - group[0].offset <= _AT_ONCE:
                group.append(e)
            else:
                self._groups.append([e])

    def tells(self, want: Tensor) -> bool:
        """Whether it is finite, and not zero in any parameter tensor."""
        return all_finite(want) and bool(self._each(np.logical_or, want.numpy() != 0).all())

    def __call__(self, got: Tensor, want: Tensor) -> tuple[float, str]:
        a, b = got.double().cpu().numpy(), want.double().cpu().numpy()
        known = np.isfinite(b)
        other = self._each(np.logical_or, np.isfinite(a) != known)
        if other.any():
            return float("inf"), self.entries[int(other.argmax())].name
        whole = float(np.linalg.norm(b if known.all() else b[known]))
        least = max(_LEAST, 100 * self.tolerance**2) * whole + self.noise
        with np.errstate(over="ignore", invalid="ignore"):
            off = self._norms(known, a, b)
            size = np.maximum(self._norms(known, a), self._norms(known, b))
            gaps = np.where(off > least, off / np.where(size > 0, size, 1.0), 0.0)
        return float(gaps.max()), self.entries[int(gaps.argmax())].name

    def _norms(self, known: np.ndarray, a: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
        """Of a, or of a - b, in each parameter tensor, over the elements that are known."""
        found = []
        for where, starts in self._places():
            x = a[where] if b is None else a[where] - b[where]
            found.append(np.add.reduceat(np.where(known[where], x, 0.0) ** 2, starts))
        return np.sqrt(np.concatenate(found))

    def _each(self, f: np.ufunc, values: np.ndarray) -> np.ndarray:
        """f over each parameter tensor's values."""
        found = [f.reduceat(values[where], starts) for where, starts in self._places()]
        return np.concatenate(found)

    def _places(self) -> Iterator[tuple[slice, list[int]]]:
        """Of each group: where it lies, and where its tensors begin in it."""
        for group in self._groups:
            first, last = group[0].offset, group[-1]
            yield slice(first, last.offset + last.numel), [e.offset - first for e in group]


def _percent(gap: float) -> str:
    return f"{100 * gap:.0f} %" if gap > 0.1 else f"{100 * gap:.2g} %"


def _compare(got: Tensor, expected: Any, ops: int, eps: float | None = None) -> None:
    """Raises NotLowered where the program's outputs are not the module's, to rounding in a dtype
    with such ``eps``, by default their own."""
    if not isinstance(expected, Tensor) or expected.shape != got.shape:
        raise NotLowered("the program's outputs have another shape than the module's")
    tolerance = (eps or torch.finfo(got.dtype).eps) * 500 * (2 + ops)
    scale = error = 0.0
    same = True  # places of what is not finite
    if not all_finite(expected):
        finite = torch.isfinite(expected)
        same = bool((torch.isfinite(got) == finite).all())
        got, expected = got[finite], expected[finite]
    if expected.numel():
        scale, error = float(expected.abs().max()), float((got - expected).abs().max())
    if not (same and error <= tolerance * scale):
        raise NotLowered(
            f"the program's outputs differ from the module's by {error:.3g} "
            f"(scale {scale:.3g}): the captured graph does not describe the module"
        )
