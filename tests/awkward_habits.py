"""The habits of awkward modules: blocks (B, d) -> (B, d) that do what a capture does not see.

Each class is one habit, written as its user would write it; `awkward` composes them with stems,
tasks and wrappers. A block must not need anything but ``d``; whatever it draws while it is made
comes from torch's global generator, which the caller seeds.
"""

from __future__ import annotations

import itertools
import random
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

HABITS: dict[str, type[nn.Module]] = {}


def habit(name: str, **facts: Any) -> Callable[[type], type]:
    """Enters a class under its name. Facts, all optional:

    must: a refusal is a fault too: values and derivatives are to work.
    draws: "torch": random numbers from torch's generator, seeded at each point; "other": from
        generators that nobody seeds, so that values are only to be consistent.
    rough: the values are not smooth enough for a tight tolerance (rounded in half precision).
    """

    def enter(cls: type) -> type:
        cls.facts = {"must": False, "draws": None, "rough": 0.0, **facts}
        HABITS[name] = cls
        return cls

    return enter


class Block(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.d, self.fc = d, nn.Linear(d, d)

    def act(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x))


# State that is kept between calls.


@habit("state_attribute")
class StateAttribute(Block):
    h = 0.0

    def forward(self, x):
        self.h = (self.act(x).mean(0) + 0.5 * self.h).detach()
        return self.h + self.fc(x)


@habit("state_attribute_with_graph")
class StateWithGraph(Block):
    h = None

    def forward(self, x):
        y = self.act(x)
        out = y if self.h is None else y + 0.5 * self.h
        self.h = y.mean(0)
        return out


@habit("state_buffer_in_place")
class StateBuffer(Block):
    def __init__(self, d):
        super().__init__(d)
        self.register_buffer("b", torch.zeros(d))

    def forward(self, x):
        self.b.mul_(0.5).add_(self.fc(x).mean(0).detach())
        return self.b + self.fc(x)


@habit("state_buffer_assigned")
class StateBufferAssigned(StateBuffer):
    def forward(self, x):
        self.b = 0.5 * self.b + self.fc(x).mean(0).detach()
        return torch.sin(self.b + self.fc(x))


@habit("state_buffer_not_persistent")
class StateBufferNotPersistent(Block):
    def __init__(self, d):
        super().__init__(d)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long), persistent=False)

    def forward(self, x):
        self.calls += 1
        return self.act(x) / self.calls


@habit("state_tensor_in_place")
class StateTensor(Block):
    def __init__(self, d):
        super().__init__(d)
        self.h = torch.zeros(d)

    def forward(self, x):
        self.h.mul_(0.5).add_(self.fc(x).mean(0).detach())
        return self.h + self.act(x)


@habit("state_list_grows")
class StateList(Block):
    def __init__(self, d):
        super().__init__(d)
        self.seen = []

    def forward(self, x):
        self.seen.append(self.fc(x).mean(0).detach())
        return self.act(x) + sum(self.seen) / 3


@habit("list_grows_unused")
class ListUnused(Block):
    def __init__(self, d):
        super().__init__(d)
        self.log = []

    def forward(self, x):
        self.log.append(float(x.detach().abs().sum()))
        return self.act(x)


@habit("state_counter")
class StateCounter(Block):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.act(x) * (1 + 0.1 * self.calls)


@habit("counter_unused")
class CounterUnused(Block):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.act(x)


@habit("state_cache_in_dict")
class StateCache(Block):
    """A value that is computed at the first call and then kept."""

    def __init__(self, d):
        super().__init__(d)
        self.cache = {}

    def forward(self, x):
        if "scale" not in self.cache:
            self.cache["scale"] = float(self.fc.weight.detach().norm())
        return self.act(x) * self.cache["scale"]


@habit("state_lazy_attribute")
class StateLazy(Block):
    def forward(self, x):
        if not hasattr(self, "scale"):
            self.scale = self.fc.weight.detach().abs().sum()
        return self.act(x) / (1 + self.scale)


@habit("state_lru_cache")
class StateLru(Block):
    def __init__(self, d):
        super().__init__(d)
        self.scale = lru_cache(lambda n: float(self.fc.weight.detach().norm()))

    def forward(self, x):
        return self.act(x) * self.scale(x.shape[1])


@habit("state_closure")
class StateClosure(Block):
    def __init__(self, d):
        super().__init__(d)
        calls = []

        def count():
            calls.append(0)
            return len(calls)

        self.count = count

    def forward(self, x):
        return self.act(x) * (1 + 0.1 * self.count())


_CALLS = [0]


@habit("state_global")
class StateGlobal(Block):
    def forward(self, x):
        _CALLS[0] += 1
        return self.act(x) * (1 + 0.1 * _CALLS[0])


@habit("state_iterator")
class StateIterator(Block):
    def __init__(self, d):
        super().__init__(d)
        self.steps = itertools.cycle([1.0, 2.0, 3.0])

    def forward(self, x):
        return self.act(x) * next(self.steps)


@habit("state_deque")
class StateDeque(Block):
    def __init__(self, d):
        super().__init__(d)
        self.last = deque(maxlen=2)

    def forward(self, x):
        y = self.act(x)
        self.last.append(y.detach().mean(0))
        return y + sum(self.last)


@habit("state_numpy_in_place")
class StateNumpy(Block):
    def __init__(self, d):
        super().__init__(d)
        self.a = np.zeros(d)

    def forward(self, x):
        self.a += 1.0
        return self.act(x) + torch.as_tensor(self.a).to(x)


class _Meter:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, value: float) -> float:
        self.total, self.count = self.total + value, self.count + 1
        return self.total / self.count


@habit("state_of_an_object")
class StateObject(Block):
    def __init__(self, d):
        super().__init__(d)
        self.meter = _Meter()

    def forward(self, x):
        y = self.act(x)
        return y + self.meter.update(float(y.detach().mean()))


@habit("object_state_unused")
class ObjectUnused(Block):
    def __init__(self, d):
        super().__init__(d)
        self.meter = _Meter()

    def forward(self, x):
        y = self.act(x)
        self.meter.update(float(y.detach().mean()))
        return y


@habit("state_of_a_torch_generator")
class StateGenerator(Block):
    def __init__(self, d):
        super().__init__(d)
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x):
        return self.act(x) + 0.1 * torch.randn(self.d, generator=self.generator).to(x)


@habit("state_of_a_numpy_generator")
class StateNumpyGenerator(Block):
    def __init__(self, d):
        super().__init__(d)
        self.rng = np.random.default_rng(3)

    def forward(self, x):
        return self.act(x) + torch.as_tensor(self.rng.standard_normal(self.d)).to(x)


@habit("state_observer")
class StateObserver(Block):
    """Quantisation-aware training: ranges that are observed as data pass."""

    def __init__(self, d):
        super().__init__(d)
        self.register_buffer("most", torch.zeros(()))

    def forward(self, x):
        y = self.fc(x)
        self.most.copy_(torch.maximum(self.most, y.detach().abs().max()))
        step = self.most / 8
        return y + ((y / step).round() * step - y).detach()


@habit("state_momentum_encoder")
class StateMomentum(Block):
    def __init__(self, d):
        super().__init__(d)
        self.slow = nn.Linear(d, d).requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            self.slow.weight.mul_(0.9).add_(0.1 * self.fc.weight)
            target = self.slow(x)
        return self.act(x) - target


@habit("module_list_grows")
class ModuleGrows(Block):
    def forward(self, x):
        self.extra = nn.Identity()
        return self.act(self.extra(x))


# In-place writes.


@habit("in_place_input")
class InPlaceInput(Block):
    def forward(self, x):
        x -= 1.0
        return self.act(x)


@habit("in_place_leaky")
class InPlaceLeaky(Block):
    def forward(self, x):
        return self.fc(F.leaky_relu_(x, 0.3))


@habit("in_place_item")
class InPlaceItem(Block):
    def forward(self, x):
        x[:, 0] = x[:, 0] * 2 + 1
        return self.act(x)


@habit("in_place_mask")
class InPlaceMask(Block):
    def forward(self, x):
        x[x.detach() < 0] *= 0.5
        return self.act(x)


@habit("in_place_data")
class InPlaceData(Block):
    def forward(self, x):
        x.data.clamp_(-0.7, 0.7)
        return self.act(x)


@habit("in_place_relu_module")
class InPlaceRelu(Block):
    def __init__(self, d):
        super().__init__(d)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.fc(self.relu(x)) + x


@habit("in_place_shape")
class InPlaceShape(Block):
    def forward(self, x):
        x = x.detach().clone().unsqueeze_(1) + x.unsqueeze(1)
        return self.act(x.squeeze(1))


@habit("in_place_activation")
class InPlaceActivation(Block):
    def forward(self, x):
        h = self.fc(x)
        h += 1.0
        h[:, 0] *= 2.0
        return h.tanh_()


@habit("in_place_view")
class InPlaceView(Block):
    def forward(self, x):
        h = self.fc(x)
        first = h[:, :1]
        first.mul_(2.0)
        return torch.tanh(h)


@habit("in_place_alias")
class InPlaceAlias(Block):
    def forward(self, x):
        h = self.fc(x)
        kept = h
        h += 1
        return torch.sin(kept) + h


@habit("in_place_out")
class InPlaceOut(Block):
    def forward(self, x):
        y = self.act(x)
        with torch.no_grad():
            out = torch.empty_like(y)
            torch.mul(y, 0.5, out=out)
        return y + out


@habit("clamps_its_weights")
class ClampsWeights(Block):
    def forward(self, x):
        with torch.no_grad():
            self.fc.weight.clamp_(-0.3, 0.3)
        return self.act(x)


@habit("normalises_its_weights")
class NormalisesWeights(Block):
    def forward(self, x):
        self.fc.weight.data /= 1e-3 + self.fc.weight.data.norm()
        return self.act(x)


# Value and derivative part ways.


@habit("detach")
class Detach(Block):
    def forward(self, x):
        h = self.act(x)
        return h - h.mean(1, keepdim=True).detach()


@habit("detach_all")
class DetachAll(Block):
    def forward(self, x):
        return self.fc(torch.sin(self.fc(x)).detach())


@habit("detach_data")
class DetachData(Block):
    def forward(self, x):
        return self.fc(self.act(x).data) + x


@habit("detach_weight")
class DetachWeight(Block):
    def forward(self, x):
        return F.linear(torch.tanh(x), self.fc.weight.detach()) + self.fc(x)


@habit("no_grad_block")
class NoGradBlock(Block):
    def forward(self, x):
        with torch.no_grad():
            scale = self.act(x)
        return self.fc(x) * scale


@habit("no_grad_decorator")
class NoGradDecorator(Block):
    @torch.no_grad()
    def frozen(self, x):
        return self.act(x)

    def forward(self, x):
        return self.fc(self.frozen(x)) + x


@habit("set_grad_enabled")
class SetGradEnabled(Block):
    def forward(self, x):
        with torch.set_grad_enabled(False):
            h = self.act(x)
        return h + self.fc(x)


@habit("inference_block")
class InferenceBlock(Block):
    def forward(self, x):
        with torch.inference_mode():
            h = torch.tanh(x.detach() * 2)
        return self.act(x + h.clone())


@habit("item")
class Item(Block):
    def forward(self, x):
        y = self.fc(x)
        return y / (1 + y.abs().max().item())


@habit("through_numpy")
class ThroughNumpy(Block):
    def forward(self, x):
        y = self.fc(x)
        return torch.sin(y) + torch.as_tensor(np.tanh(y.detach().cpu().numpy()))


@habit("hook_on_activation")
class HookActivation(Block):
    def forward(self, x):
        h = self.act(x)
        if h.requires_grad:
            h.register_hook(lambda g: 0.1 * g)
        return self.fc(h)


@habit("hook_on_parameter")
class HookParameter(Block):
    def __init__(self, d):
        super().__init__(d)
        self.fc.weight.register_hook(lambda g: 0.5 * g)

    def forward(self, x):
        return self.act(x)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -g


class _RoundThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(4 * x) / 4

    @staticmethod
    def backward(ctx, g):
        return g


class _ClippedThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (x.abs() < 1).to(g)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g


@habit("gradient_reversal")
class GradientReversal(Block):
    def forward(self, x):
        return self.fc(_Reverse.apply(self.act(x)))


@habit("straight_through_function")
class StraightThroughFunction(Block):
    def forward(self, x):
        return self.fc(_RoundThrough.apply(self.act(x)))


@habit("straight_through_clipped")
class StraightThroughClipped(Block):
    def forward(self, x):
        return F.linear(self.act(x), _ClippedThrough.apply(self.fc.weight))


@habit("straight_through_detach")
class StraightThroughDetach(Block):
    def forward(self, x):
        h = self.act(x)
        return self.fc(h + (torch.round(4 * h) / 4 - h).detach())


@habit("once_differentiable")
class OnceDifferentiable(Block):
    def forward(self, x):
        return _Once.apply(self.act(x))


@habit("grad_mode_branch")
class GradModeBranch(Block):
    def forward(self, x):
        y = self.act(x)
        return y if torch.is_grad_enabled() else 1.5 * y


@habit("requires_grad_branch")
class RequiresGradBranch(Block):
    def forward(self, x):
        y = self.act(x)
        return torch.sin(y) if y.requires_grad else y


@habit("weight_requires_grad_branch")
class WeightRequiresGradBranch(Block):
    def forward(self, x):
        return self.act(x) if self.fc.weight.requires_grad else self.fc(x)


@habit("is_leaf_branch")
class LeafBranch(Block):
    def forward(self, x):
        return self.act(x) if self.fc.weight.is_leaf else self.fc(x)


@habit("parameter_class_branch")
class ParameterClassBranch(Block):
    def forward(self, x):
        return self.act(x) if isinstance(self.fc.weight, nn.Parameter) else self.fc(x)


@habit("sets_requires_grad")
class SetsRequiresGrad(Block):
    def forward(self, x):
        self.fc.bias.requires_grad_(False)
        return self.act(x)


@habit("checkpoint", must=True)
class Checkpoint(Block):
    def forward(self, x):
        return self.fc(checkpoint(self.act, x, use_reentrant=False))


_REENTRANT = [True]


@contextmanager
def plain_checkpoints() -> Iterator[None]:
    """Checkpoints that torch differentiates twice, for the reference; may be nested."""
    before, _REENTRANT[0] = _REENTRANT[0], False
    try:
        yield
    finally:
        _REENTRANT[0] = before


@habit("checkpoint_reentrant")
class CheckpointReentrant(Block):
    def forward(self, x):
        x = x if x.requires_grad or not torch.is_grad_enabled() else x.clone().requires_grad_()
        return self.fc(checkpoint(self.act, x, use_reentrant=_REENTRANT[0]))


@habit("inner_gradient", must=True)
class InnerGradient(Block):
    """A force: minus the gradient of an energy in the input."""

    def forward(self, x):
        x = x.detach().requires_grad_(True)
        energy = torch.log(torch.cosh(self.fc(x))).sum()
        return -torch.autograd.grad(energy, x, create_graph=True)[0] + self.fc(x)


@habit("inner_gradient_of_activation", must=True)
class InnerGradientActivation(Block):
    def forward(self, x):
        h = self.fc(x)
        return torch.autograd.grad(torch.sin(h).pow(2).sum(), h, create_graph=True)[0]


@habit("inner_gradient_of_weight", must=True)
class InnerGradientWeight(Block):
    """One step of an inner optimiser (MAML)."""

    def forward(self, x):
        inner = self.act(x).pow(2).mean()
        (g,) = torch.autograd.grad(inner, self.fc.weight, create_graph=True)
        return F.linear(x, self.fc.weight - 0.1 * g, self.fc.bias)


@habit("inner_backward")
class InnerBackward(Block):
    def forward(self, x):
        with torch.enable_grad():
            z = x.detach().clone().requires_grad_(True)
            torch.sin(z).sum().backward()
        return self.act(x) + z.grad


@habit("input_requires_grad")
class InputRequiresGrad(Block):
    def forward(self, x):
        if x.is_leaf:
            x.requires_grad_(True)
        with torch.enable_grad():
            (g,) = torch.autograd.grad(self.act(x).sum(), x, create_graph=True)
        return g + self.fc(x)


@habit("func_jacobian", must=True)
class FuncJacobian(Block):
    def forward(self, x):
        return torch.func.vmap(torch.func.jacrev(lambda s: torch.tanh(self.fc(s)).sum()))(x)


@habit("func_laplacian")
class FuncLaplacian(Block):
    def forward(self, x):
        one = torch.func.jacfwd(torch.func.jacrev(lambda s: torch.tanh(self.fc(s)).sum()))
        return torch.func.vmap(one)(x).sum(1) + self.fc(x)


@habit("func_jvp")
class FuncJvp(Block):
    def forward(self, x):
        return torch.func.jvp(self.act, (x,), (torch.ones_like(x),))[1] + self.fc(x)


@habit("func_call_inside")
class FuncCall(Block):
    def forward(self, x):
        moved = {k: 0.9 * v for k, v in self.fc.named_parameters()}
        return torch.tanh(torch.func.functional_call(self.fc, moved, (x,)))


@habit("vmap_inside", must=True)
class VmapInside(Block):
    def forward(self, x):
        return torch.func.vmap(lambda s: torch.tanh(self.fc(s)))(x)


# Hooks of modules.


@habit("forward_hook")
class ForwardHook(Block):
    def __init__(self, d):
        super().__init__(d)
        self.fc.register_forward_hook(lambda m, a, out: torch.sin(out))

    def forward(self, x):
        return self.fc(x)


@habit("forward_hook_that_keeps")
class ForwardHookKeeps(Block):
    def __init__(self, d):
        super().__init__(d)
        self.kept = {}
        self.fc.register_forward_hook(lambda m, a, out: self.kept.update(h=out))

    def forward(self, x):
        self.fc(x)
        return torch.tanh(self.kept["h"])


@habit("forward_pre_hook")
class ForwardPreHook(Block):
    def __init__(self, d):
        super().__init__(d)
        self.fc.register_forward_pre_hook(lambda m, a: (2 * a[0],))

    def forward(self, x):
        return self.act(x)


@habit("hook_on_itself")
class HookOnItself(Block):
    def __init__(self, d):
        super().__init__(d)
        self.register_forward_hook(lambda m, a, out: out * m.fc.bias)

    def forward(self, x):
        return self.act(x)


@habit("backward_hook")
class BackwardHook(Block):
    def __init__(self, d):
        super().__init__(d)
        self.fc.register_full_backward_hook(
            lambda m, gi, go: tuple(g if g is None else 2 * g for g in gi)
        )

    def forward(self, x):
        return self.fc(torch.tanh(x))


@habit("backward_pre_hook")
class BackwardPreHook(Block):
    def __init__(self, d):
        super().__init__(d)
        self.fc.register_full_backward_pre_hook(lambda m, go: (0.5 * go[0],))

    def forward(self, x):
        return self.act(x)


# Parametrisations.


class Parametrised(Block):
    old = None

    def __init__(self, d):
        super().__init__(d)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.fc = self.change(self.fc)
        self.fc.eval()

    def forward(self, x):
        return self.act(x)


@habit("weight_norm_old")
class WeightNormOld(Parametrised):
    def change(self, fc):
        return nn.utils.weight_norm(fc)


@habit("weight_norm")
class WeightNorm(Parametrised):
    def change(self, fc):
        return nn.utils.parametrizations.weight_norm(fc)


@habit("spectral_norm_old")
class SpectralNormOld(Parametrised):
    def change(self, fc):
        return nn.utils.spectral_norm(fc)


@habit("spectral_norm")
class SpectralNorm(Parametrised):
    def change(self, fc):
        return nn.utils.parametrizations.spectral_norm(fc)


@habit("orthogonal")
class Orthogonal(Parametrised):
    def change(self, fc):
        return nn.utils.parametrizations.orthogonal(fc, orthogonal_map="cayley")


@habit("pruned")
class Pruned(Parametrised):
    def change(self, fc):
        return prune.l1_unstructured(fc, "weight", 0.5)


class _Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).T


@habit("parametrised")
class OwnParametrisation(Parametrised):
    def change(self, fc):
        return nn.utils.parametrize.register_parametrization(fc, "weight", _Symmetric())


@habit("weight_property")
class WeightProperty(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.raw = nn.Parameter(0.5 * torch.randn(d, d))

    @property
    def weight(self):
        return torch.tanh(self.raw)

    def forward(self, x):
        return F.linear(x, self.weight)


# Parameters that are reached by other ways than attributes.


@habit("parameter_in_list")
class ParameterInList(Block):
    def __init__(self, d):
        super().__init__(d)
        self.ws = [self.fc.weight]

    def forward(self, x):
        return self.act(x) + x @ self.ws[0].T


@habit("parameter_in_dict")
class ParameterInDict(Block):
    def __init__(self, d):
        super().__init__(d)
        self.ws = {"w": (self.fc.weight, self.fc.bias)}

    def forward(self, x):
        w, b = self.ws["w"]
        return torch.tanh(F.linear(x, w, b))


@habit("parameter_in_closure")
class ParameterInClosure(Block):
    def __init__(self, d):
        super().__init__(d)
        w = self.fc.weight
        self.f = lambda x: x @ w.T

    def forward(self, x):
        return self.act(x) + self.f(x)


@habit("parameter_in_partial")
class ParameterInPartial(Block):
    def __init__(self, d):
        super().__init__(d)
        self.f = partial(F.linear, weight=self.fc.weight)

    def forward(self, x):
        return torch.tanh(self.f(x)) + self.fc(x)


@habit("parameter_view")
class ParameterView(Block):
    def __init__(self, d):
        super().__init__(d)
        self.wt = self.fc.weight.T

    def forward(self, x):
        return torch.tanh(x @ self.wt) + self.fc(x)


@habit("parameter_data_view")
class ParameterDataView(Block):
    def __init__(self, d):
        super().__init__(d)
        self.row = self.fc.weight.data[0]

    def forward(self, x):
        return self.act(x) * self.row


@habit("parameter_numpy_view")
class ParameterNumpyView(Block):
    def __init__(self, d):
        super().__init__(d)
        self.a = self.fc.bias.detach().numpy()

    def forward(self, x):
        return self.act(x) + torch.as_tensor(self.a).to(x)


@habit("buffer_is_a_view")
class BufferIsView(Block):
    def __init__(self, d):
        super().__init__(d)
        self.register_buffer("copy", self.fc.weight.detach())

    def forward(self, x):
        return self.act(x) + x @ self.copy.T


@habit("parameters_share_storage")
class ParametersShareStorage(nn.Module):
    def __init__(self, d):
        super().__init__()
        both = torch.randn(d, d)
        self.a, self.b = nn.Parameter(both), nn.Parameter(both.T)

    def forward(self, x):
        return torch.tanh(x @ self.a) @ self.b


@habit("hidden_module")
class HiddenModule(Block):
    """A layer in a plain list: it is no part of theta, but its weight is one of theta's."""

    def __init__(self, d):
        super().__init__(d)
        self.layers = [nn.Linear(d, d), nn.Linear(d, d)]
        self.layers[0].weight = self.fc.weight
        for layer in self.layers:
            layer.requires_grad_(layer is self.layers[0])

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x + self.fc(x)


@habit("hidden_batch_norm")
class HiddenBatchNorm(Block):
    """Batch norm in a plain list: it stays in training mode, and tracks."""

    def __init__(self, d):
        super().__init__(d)
        self.norms = [nn.BatchNorm1d(d, affine=False)]

    def forward(self, x):
        return self.norms[0](self.act(x))


@habit("parent_link")
class ParentLink(Block):
    def __init__(self, d):
        super().__init__(d)
        self.child = nn.Module()
        object.__setattr__(self.child, "parent", self)

    def forward(self, x):
        return torch.tanh(self.child.parent.fc(x))


@habit("tied", must=True)
class Tied(Block):
    def __init__(self, d):
        super().__init__(d)
        self.again = nn.Linear(d, d)
        self.again.weight = self.fc.weight

    def forward(self, x):
        return self.again(self.act(x))


@habit("tied_transposed", must=True)
class TiedTransposed(Block):
    def forward(self, x):
        return F.linear(self.act(x), self.fc.weight.t())


@habit("shared_module", must=True)
class SharedModule(Block):
    def __init__(self, d):
        super().__init__(d)
        self.again = self.fc

    def forward(self, x):
        return self.again(self.act(x))


@habit("frozen")
class Frozen(Block):
    def __init__(self, d):
        super().__init__(d)
        self.fc.requires_grad_(False)
        self.out = nn.Linear(d, d)

    def forward(self, x):
        return self.out(self.act(x))


@habit("unused_parameter", must=True)
class Unused(Block):
    def __init__(self, d):
        super().__init__(d)
        self.spare = nn.Linear(2, 3)
        self.scalar = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return self.act(x) * self.scalar


@habit("empty_parameter")
class EmptyParameter(Block):
    def __init__(self, d):
        super().__init__(d)
        self.nothing = nn.Parameter(torch.zeros(0, d))

    def forward(self, x):
        return torch.tanh(F.linear(x, torch.cat([self.nothing, self.fc.weight])))


@habit("parameter_containers")
class ParameterContainers(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.ws = nn.ParameterList(0.5 * torch.randn(d, d) for _ in range(2))
        self.more = nn.ParameterDict({"b": nn.Parameter(torch.randn(d))})

    def forward(self, x):
        for w in self.ws:
            x = torch.tanh(x @ w)
        return x + self.more["b"]


@habit("odd_names")
class OddNames(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.layers = nn.ModuleDict({"model": nn.Linear(d, d), "weight": nn.Linear(d, d)})

    def forward(self, x):
        return self.layers["weight"](torch.tanh(self.layers["model"](x)))


# Train and eval, random numbers.


@habit("dropout", must=True)
class Dropout(Block):
    def __init__(self, d):
        super().__init__(d)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.act(x))


@habit("own_training_branch", must=True)
class TrainingBranch(Block):
    def forward(self, x):
        return self.fc(x) + 1 if self.training else self.act(x)


@habit("batch_norm", must=True)
class BatchNorm(Block):
    def __init__(self, d):
        super().__init__(d)
        self.bn = nn.BatchNorm1d(d)
        self.bn.running_mean.normal_()
        self.bn.running_var.uniform_(0.5, 2.0)

    def forward(self, x):
        return F.relu(self.bn(self.fc(x))) + 0.1 * x


@habit("batch_norm_untracked")
class BatchNormUntracked(Block):
    def __init__(self, d):
        super().__init__(d)
        self.bn = nn.BatchNorm1d(d, track_running_stats=False)

    def forward(self, x):
        return self.bn(self.fc(x))


@habit("frozen_batch_norm")
class FrozenBatchNorm(Block):
    """Statistics that the forward pass updates in its own way."""

    def __init__(self, d):
        super().__init__(d)
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("var", torch.ones(d))

    def forward(self, x):
        return F.batch_norm(self.fc(x), self.mean, self.var, training=True)


@habit("dropout_always", draws="torch")
class DropoutAlways(Block):
    def forward(self, x):
        return F.dropout(self.act(x), 0.3)


@habit("noise", draws="torch")
class Noise(Block):
    def forward(self, x):
        y = self.act(x)
        return y + 0.1 * torch.randn_like(y)


@habit("reparametrised_sample", draws="torch")
class Reparametrised(Block):
    def forward(self, x):
        mean, spread = self.fc(x), torch.exp(0.1 * self.act(x))
        return torch.distributions.Normal(mean, spread).rsample()


@habit("numpy_noise", draws="other")
class NumpyNoise(Block):
    def forward(self, x):
        return self.act(x) * float(np.random.rand())  # noqa: NPY002


@habit("python_noise", draws="other")
class PythonNoise(Block):
    def forward(self, x):
        return self.act(x) * (1 + random.random())


@habit("seeds_the_generator")
class SeedsGenerator(Block):
    def forward(self, x):
        torch.manual_seed(7)
        y = self.act(x)
        return y + 0.1 * torch.rand(self.d).to(y)


# Branches and loops on values.


@habit("branch_on_input")
class BranchOnInput(Block):
    def forward(self, x):
        return self.act(x) if x.sum() > 0 else -self.fc(x)


@habit("branch_on_parameter")
class BranchOnParameter(Block):
    def forward(self, x):
        return self.act(x) if self.fc.weight[0, 0] > 0.1 else self.fc(x)


@habit("branch_on_activation")
class BranchOnActivation(Block):
    def forward(self, x):
        y = self.fc(x)
        return torch.tanh(y) if y.mean() > 0 else torch.sin(y)


@habit("loop_on_values")
class LoopOnValues(Block):
    def forward(self, x):
        y = self.act(x)
        for _ in range(5):
            if float(y.detach().norm()) < 0.7:
                break
            y = 0.6 * torch.tanh(self.fc(y))
        return y


@habit("branch_on_batch_size")
class BranchOnBatch(Block):
    def forward(self, x):
        return self.act(x) * len(x) if len(x) != 3 else self.fc(x)


@habit("mean_over_batch", must=True)
class MeanOverBatch(Block):
    def forward(self, x):
        y = self.fc(x)
        return torch.tanh(y - y.mean(0))


@habit("sort", must=True)
class Sort(Block):
    def forward(self, x):
        return torch.sort(self.act(x), dim=1).values


@habit("boolean_index")
class BooleanIndex(Block):
    def forward(self, x):
        y = self.fc(x)
        chosen = y.detach() > 0
        out = torch.zeros_like(y)
        out[chosen] = torch.sin(y[chosen])
        return out + 0.1 * y


@habit("top_experts")
class TopExperts(Block):
    def __init__(self, d):
        super().__init__(d)
        self.experts = nn.ModuleList(nn.Linear(d, d) for _ in range(2))

    def forward(self, x):
        which = self.fc(x)[:, :2].argmax(1)
        out = torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            rows = which == k
            if rows.any():
                out[rows] = expert(x[rows])
        return out + self.act(x)


@habit("python_scalar_of_parameter")
class PythonScalar(Block):
    def forward(self, x):
        return self.act(x) * (1 + self.fc.bias.tolist()[0])


@habit("copy_of_a_parameter_made_at_first")
class CopyAtInit(Block):
    def __init__(self, d):
        super().__init__(d)
        self.start = self.fc.weight.detach().clone()

    def forward(self, x):
        return self.act(x) + x @ (self.fc.weight - self.start).T


# Numbers of several kinds.


@habit("double_inside", must=True)
class DoubleInside(Block):
    def forward(self, x):
        return torch.logsumexp(self.fc(x).double(), 1, keepdim=True).to(x.dtype) + self.act(x)


@habit("half_buffer")
class HalfBuffer(Block):
    def __init__(self, d):
        super().__init__(d)
        self.register_buffer("scale", torch.rand(d).half())

    def forward(self, x):
        return self.act(x) * self.scale


@habit("autocast", rough=2e-2)
class Autocast(Block):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.fc(x)
        return torch.tanh(y.to(x.dtype))


@habit("fourier")
class Fourier(Block):
    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(self.act(x)), n=self.d) * 2


@habit("integers_inside")
class IntegersInside(Block):
    def forward(self, x):
        codes = (self.fc(x).detach() * 3).long().clamp(0, self.d - 1)
        return torch.gather(self.act(x), 1, codes)


@habit("default_dtype_tensor")
class DefaultTensor(Block):
    def forward(self, x):
        return self.act(x) * torch.tensor([0.5]) + torch.arange(self.d)


@habit("numpy_constant")
class NumpyConstant(Block):
    def __init__(self, d):
        super().__init__(d)
        self.c = np.linspace(0, 1, d)

    def forward(self, x):
        return self.act(x) + torch.from_numpy(self.c).to(x)


# Attributes that are no tensors; layers with kernels of their own.


@habit("lock")
class Lock(Block):
    def __init__(self, d):
        super().__init__(d)
        self.lock = threading.Lock()

    def forward(self, x):
        with self.lock:
            return self.act(x)


@habit("lambda_attribute")
class Lambda(Block):
    def __init__(self, d):
        super().__init__(d)
        self.f = lambda t: torch.sin(t) + 0.1 * t

    def forward(self, x):
        return self.f(self.fc(x))


@habit("generator_attribute")
class GeneratorAttribute(Block):
    def __init__(self, d):
        super().__init__(d)
        self.stream = (i for i in range(10**6))

    def forward(self, x):
        return self.act(x)


@habit("own_getattr")
class OwnGetattr(Block):
    def __getattr__(self, name):
        if name == "gain":
            return 1.0 + super().__getattr__("fc").bias[0]
        return super().__getattr__(name)

    def forward(self, x):
        return self.act(x) * self.gain


@habit("own_call")
class OwnCall(Block):
    def __call__(self, x):
        return super().__call__(x) + 0.5 * x

    def forward(self, x):
        return self.act(x)


@habit("forward_is_replaced")
class ForwardReplaced(Block):
    def __init__(self, d):
        super().__init__(d)
        own = self.fc.forward
        self.fc.forward = lambda x: torch.sin(own(x))

    def forward(self, x):
        return self.fc(x)


@habit("hardsigmoid", rough=5e-8)  # its slope in torch is a sixth in float32, whatever the dtype
class Hardsigmoid(Block):
    def forward(self, x):
        return F.hardsigmoid(self.fc(x)) + self.fc(x)


@habit("hardswish")
class Hardswish(Block):
    def forward(self, x):
        return F.hardswish(self.fc(x))


@habit("sparse_buffer")
class SparseBuffer(Block):
    def __init__(self, d):
        super().__init__(d)
        self.register_buffer("mix", (torch.rand(d, d) * (torch.rand(d, d) > 0.4)).to_sparse())

    def forward(self, x):
        return torch.sparse.mm(self.mix, self.act(x).T).T


@habit("sparse_csr_buffer")
class SparseCsrBuffer(Block):
    def __init__(self, d):
        super().__init__(d)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.register_buffer("mix", (torch.eye(d) + torch.ones(d, d).tril()).to_sparse_csr())

    def forward(self, x):
        return (self.mix @ self.act(x).T).T


@habit("prelu", must=True)
class Prelu(Block):
    def __init__(self, d):
        super().__init__(d)
        self.slope = nn.PReLU()

    def forward(self, x):
        return self.slope(self.fc(x))


@habit("bilinear", must=True)
class Bilinear(Block):
    def __init__(self, d):
        super().__init__(d)
        self.mix = nn.Bilinear(d, d, d)

    def forward(self, x):
        return self.mix(x, self.act(x))


@habit("layer_norm", must=True)
class LayerNorm(Block):
    def __init__(self, d):
        super().__init__(d)
        self.ln = nn.LayerNorm(d)

    def forward(self, x):
        return self.ln(self.act(x) + x)


@habit("einsum", must=True)
class Einsum(Block):
    def forward(self, x):
        return torch.einsum("bi,oi,bi->bo", x, self.fc.weight, torch.sigmoid(x))


@habit("attention_over_batch", must=True)
class AttentionOverBatch(Block):
    def __init__(self, d):
        super().__init__(d)
        self.mha = nn.MultiheadAttention(d, 1, batch_first=True)

    def forward(self, x):
        y = self.fc(x)[:, None]
        return self.mha(y, y, y, need_weights=False)[0][:, 0] + x


@habit("solve")
class Solve(Block):
    def forward(self, x):
        a = torch.eye(self.d).to(x) * 3 + self.fc.weight @ self.fc.weight.T
        return torch.linalg.solve(a, self.act(x).T).T


PLAIN: dict[str, Callable[[int], nn.Module]] = {
    "linear_tanh": lambda d: nn.Sequential(nn.Linear(d, d), nn.Tanh()),
    "linear_gelu": lambda d: nn.Sequential(nn.Linear(d, d), nn.GELU()),
    "linear_sigmoid": lambda d: nn.Sequential(nn.Linear(d, d), nn.Sigmoid()),
    "linear_softplus": lambda d: nn.Sequential(nn.Linear(d, d), nn.Softplus()),
    "linear_silu": lambda d: nn.Sequential(nn.Linear(d, d), nn.SiLU()),
    "linear_elu": lambda d: nn.Sequential(nn.Linear(d, d), nn.ELU()),
    "linear": lambda d: nn.Linear(d, d),
}
