"""More habits of awkward modules: what the models of research code do. See `awkward_habits`."""

from __future__ import annotations

import copy
import math
import os
import threading
import warnings
import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from awkward_habits import Block, habit
from awkward_parts import TASKS, Task
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

# Copies, adapters and weights that are computed.


@habit("target_network")
class TargetNetwork(Block):
    """A frozen copy of the layer gives the target (BYOL, DQN)."""

    def __init__(self, d):
        super().__init__(d)
        self.target = copy.deepcopy(self.fc).requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            target = self.target(x)
        return self.act(x) - 0.3 * target


@habit("target_follows")
class TargetFollows(TargetNetwork):
    """The copy is an average that moves with every forward pass."""

    def forward(self, x):
        with torch.no_grad():
            for a, b in zip(self.target.parameters(), self.fc.parameters(), strict=True):
                a.mul_(0.9).add_(b, alpha=0.1)
        return super().forward(x)


@habit("low_rank_adapter", must=True)
class LowRank(Block):
    def __init__(self, d):
        super().__init__(d)
        self.fc.weight.requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(2, d)), nn.Parameter(torch.zeros(d, 2))

    def forward(self, x):
        return torch.tanh(self.fc(x) + x @ self.a.T @ self.b.T * 0.5)


@habit("hypernetwork")
class Hypernetwork(Block):
    def __init__(self, d):
        super().__init__(d)
        self.weights = nn.Linear(d, d * d)

    def forward(self, x):
        w = self.weights(torch.tanh(x)).view(-1, self.d, self.d)
        return torch.bmm(w, self.act(x)[:, :, None]).squeeze(-1)


@habit("hypernetwork_of_a_code")
class HypernetworkOfCode(Block):
    def __init__(self, d):
        super().__init__(d)
        self.code, self.weights = nn.Parameter(torch.randn(2)), nn.Linear(2, d * d)

    def forward(self, x):
        return F.linear(torch.tanh(x), self.weights(self.code).view(self.d, self.d), self.fc.bias)


@habit("standardised_weight", must=True)
class StandardisedWeight(Block):
    def forward(self, x):
        w = self.fc.weight
        w = (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True) + 1e-5)
        return torch.tanh(F.linear(x, w, self.fc.bias))


@habit("demodulated_weight")
class DemodulatedWeight(Block):
    """Weights scaled by the sample and brought back to length one (StyleGAN 2)."""

    def forward(self, x):
        w = self.fc.weight[None] * (1 + torch.tanh(x))[:, None]
        w = w * torch.rsqrt(w.pow(2).sum(2, keepdim=True) + 1e-6)
        return torch.einsum("boi,bi->bo", w, x)


@habit("ensemble_by_vmap")
class EnsembleByVmap(Block):
    def __init__(self, d):
        super().__init__(d)
        self.members = nn.ModuleList(nn.Linear(d, d) for _ in range(2))

    def forward(self, x):
        weights, buffers = torch.func.stack_module_state(list(self.members))

        def one(w, b):
            return torch.func.functional_call(self.members[0], (w, b), (x,))

        return torch.tanh(torch.vmap(one)(weights, buffers).mean(0))


@habit("cached_parametrisation")
class CachedParametrisation(Block):
    def __init__(self, d):
        super().__init__(d)
        parametrize.register_parametrization(self.fc, "weight", _Symmetric())

    def forward(self, x):
        with parametrize.cached():
            return torch.tanh(self.fc(x)) + self.fc(torch.sin(x))


class _Symmetric(nn.Module):
    def forward(self, w):
        return (w + w.T) / 2


@habit("cached_property_of_weights")
class CachedProperty(Block):
    @cached_property
    def doubled(self):
        return self.fc.weight * 2

    def forward(self, x):
        return torch.tanh(x @ self.doubled.T)


@habit("complex_parameter")
class ComplexParameter(Block):
    def __init__(self, d):
        super().__init__(d)
        self.gate = nn.Parameter(torch.randn(d // 2 + 1, 2))

    def forward(self, x):
        z = torch.fft.rfft(self.act(x)) * torch.view_as_complex(self.gate)
        return torch.fft.irfft(z, n=self.d)


@habit("phases")
class Phases(Block):
    def forward(self, x):
        z = torch.polar(torch.ones_like(x), self.fc(x))
        return (z * z.conj().roll(1, 1)).real + z.imag.abs()


# What is made late, or lies elsewhere.


@habit("buffer_made_in_forward")
class BufferMadeInForward(Block):
    def forward(self, x):
        if not hasattr(self, "positions"):
            self.register_buffer("positions", torch.linspace(0, 1, self.d).to(x), persistent=False)
        return self.act(x) + self.positions


@habit("class_counter")
class ClassCounter(Block):
    """State of the class, which all instances share."""

    calls = 0

    def forward(self, x):
        type(self).calls += 1
        return self.act(x) + 0.0 * type(self).calls


@habit("class_counter_used")
class ClassCounterUsed(ClassCounter):
    calls = 0

    def forward(self, x):
        return super().forward(x) * (1 + type(self).calls % 5)


@habit("class_cache_by_shape")
class ClassCache(Block):
    cache: dict[Any, Tensor] = {}  # noqa: RUF012

    def forward(self, x):
        key = (x.shape[1], x.dtype)
        if key not in self.cache:
            self.cache[key] = torch.linspace(-1, 1, x.shape[1]).to(x)
        return self.act(x) * self.cache[key]


SETTINGS = {"slope": 0.3, "bend": True}


@habit("global_settings")
class GlobalSettings(Block):
    def forward(self, x):
        y = self.fc(x)
        return torch.where(y > 0, y, SETTINGS["slope"] * y) if SETTINGS["bend"] else y


@habit("default_argument")
class DefaultArgument(Block):
    def forward(self, x, cache={}):  # noqa: B006
        if "ones" not in cache:
            cache["ones"] = torch.ones(())
        return self.act(x) * cache["ones"].to(x)


@habit("thread_local_state")
class ThreadLocal(Block):
    def __init__(self, d):
        super().__init__(d)
        self.own = threading.local()

    def forward(self, x):
        self.own.last = self.act(x)
        return self.own.last + self.fc(x)


@habit("environment")
class Environment(Block):
    def forward(self, x):
        return self.act(x) * float(os.environ.get("PYLANDSCAPE_AWKWARD", "0.5"))


@habit("weak_reference")
class WeakReference(Block):
    def __init__(self, d):
        super().__init__(d)
        self.owner = weakref.ref(self.fc)

    def forward(self, x):
        return torch.tanh(self.owner()(x))


@habit("registry_by_id")
class RegistryById(Block):
    def __init__(self, d):
        super().__init__(d)
        self.gains = {id(self.fc): 1.5}

    def forward(self, x):
        return self.act(x) * self.gains.get(id(self.fc), 1.0)


@habit("one_parameter_two_names", must=True)
class TwoNames(Block):
    def __init__(self, d):
        super().__init__(d)
        self.again = self.fc
        self.gain = self.fc.bias

    def forward(self, x):
        return torch.tanh(self.again(x)) * self.gain


@habit("absent_parameters")
class Absent(Block):
    def __init__(self, d):
        super().__init__(d)
        self.register_parameter("scale", None)
        self.register_buffer("shift", None)

    def forward(self, x):
        y = self.act(x)
        return y if self.scale is None else y * self.scale


@habit("scripted_part")
class ScriptedPart(Block):
    def forward(self, x):
        return _scripted(self.fc(x))


def _curve(x: Tensor) -> Tensor:
    if x.size(0) > 100:
        return x
    return torch.tanh(x) * x


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.jit is old, and in use
    _scripted = torch.jit.script(_curve)


@habit("compiled_part")
class CompiledPart(Block):
    def __init__(self, d):
        super().__init__(d)
        self.part = torch.compile(nn.Sequential(nn.Linear(d, d), nn.Tanh()), backend="eager")

    def forward(self, x):
        return self.part(x) + x


# In-place work on what the pass itself made; gradients of branches that are not taken.


@habit("residual_in_place", must=True)
class ResidualInPlace(Block):
    def forward(self, x):
        x = self.fc(x)
        x += torch.tanh(x)
        x *= 0.5
        return x


@habit("written_rows")
class WrittenRows(Block):
    def forward(self, x):
        out = x.new_zeros(x.shape)
        for i in range(self.d):
            out[:, i] = torch.tanh(self.fc(x)[:, i]) * (i + 1)
        return out


@habit("mask_filled", must=True)
class MaskFilled(Block):
    def __init__(self, d):
        super().__init__(d)
        self.register_buffer("hidden", torch.ones(d, d).triu(1).bool())

    def forward(self, x):
        scores = x[:, :, None] * self.fc(x)[:, None, :]
        share = scores.masked_fill(self.hidden, -math.inf).softmax(-1)
        return (share @ x[:, :, None]).squeeze(-1)


@habit("where_safe")
class WhereSafe(Block):
    def forward(self, x):
        y = self.fc(x)
        safe = torch.where(y > 0, y, torch.ones_like(y))
        return torch.where(y > 0, safe.log(), y)


@habit("where_with_nan_branch")
class WhereUnsafe(Block):
    """The branch that is not taken is NaN: the values are fine, the gradient is not."""

    def forward(self, x):
        y = self.fc(x)
        return torch.where(y > 0, y.abs().sqrt(), y)


@habit("variable_lengths")
class VariableLengths(Block):
    def forward(self, x):
        lengths = (x > 0).sum(1, keepdim=True)
        mask = torch.arange(self.d).expand(len(x), -1) < lengths
        y = self.act(x).masked_fill(~mask, 0)
        return y / lengths.clamp(min=1) + x


@habit("cumulative")
class Cumulative(Block):
    def forward(self, x):
        return torch.tanh(self.fc(x)).cumsum(1) - x.cummax(1).values


@habit("scattered")
class Scattered(Block):
    def __init__(self, d):
        super().__init__(d)
        self.register_buffer("places", torch.randint(0, d, (d,)))

    def forward(self, x):
        y = self.act(x)
        out = torch.zeros_like(y).index_add(1, self.places, y)
        return out.scatter_add(1, self.places.expand_as(y), torch.sin(y))


@habit("deformable")
class Deformable(Block):
    """Sampling at learned places (spatial transformers, deformable convolution)."""

    def forward(self, x):
        image = x[:, None, None, :].expand(-1, 1, 2, -1)
        at = torch.tanh(self.fc(x))
        grid = torch.stack([at, torch.zeros_like(at)], -1)[:, None]
        return F.grid_sample(image, grid, align_corners=False).reshape(len(x), -1) + x


@habit("routed_experts")
class RoutedExperts(Block):
    """Top-2 routing with dispatch by index_add (mixture of experts)."""

    def __init__(self, d):
        super().__init__(d)
        self.experts = nn.ModuleList(nn.Linear(d, d) for _ in range(3))
        self.router = nn.Linear(d, 3)

    def forward(self, x):
        share, chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows, slot = torch.where(chosen == e)
            out.index_add_(0, rows, expert(x[rows]) * share[rows, slot][:, None])
        return torch.tanh(out) + self.fc(x)


@habit("vector_quantised")
class VectorQuantised(Block):
    """The nearest of a codebook, straight through; its commitment loss is left out."""

    def __init__(self, d):
        super().__init__(d)
        self.codes = nn.Embedding(4, d)

    def forward(self, x):
        z = self.act(x)
        nearest = torch.cdist(z.detach(), self.codes.weight.detach()).argmin(1)
        q = self.codes(nearest)
        return z + (q - z).detach() + 0.1 * (q - z.detach())


@habit("codebook_follows")
class CodebookFollows(Block):
    """The codebook is a buffer that moves to what it is used for, in eval mode too."""

    def __init__(self, d):
        super().__init__(d)
        self.register_buffer("codes", torch.randn(4, d))
        self.register_buffer("used", torch.zeros(4))

    def forward(self, x):
        z = self.act(x)
        nearest = torch.cdist(z.detach(), self.codes).argmin(1)
        one_hot = F.one_hot(nearest, 4).to(z)
        q = self.codes[nearest]
        self.used.mul_(0.9).add_(one_hot.sum(0), alpha=0.1)
        self.codes.mul_(0.99).add_(one_hot.T @ z.detach(), alpha=0.01)
        return z + (q - z).detach()


# Solvers and loops.


@habit("equilibrium")
class Equilibrium(Block):
    """The fixed point without a graph, then one step with one (deep equilibrium models)."""

    def forward(self, x):
        z = torch.zeros_like(x)
        with torch.no_grad():
            for _ in range(6):
                z = torch.tanh(0.5 * self.fc(z) + x)
        return torch.tanh(0.5 * self.fc(z) + x)


@habit("equilibrium_with_hook")
class EquilibriumWithHook(Equilibrium):
    """Its gradient is that of the implicit function, by a hook."""

    def forward(self, x):
        z = super().forward(x)
        if z.requires_grad:
            z.register_hook(lambda g: 1.5 * g)
        return z


@habit("euler_steps", must=True)
class EulerSteps(Block):
    def forward(self, x):
        for _ in range(3):
            x = x + 0.1 * self.act(x)
        return x


@habit("unrolled_optimisation")
class Unrolled(Block):
    """Two steps of gradient descent on an inner loss, with their graph (MAML)."""

    def forward(self, x):
        z = torch.zeros_like(x).requires_grad_(True)
        with torch.enable_grad():
            for _ in range(2):
                inner = (self.fc(z) - x).pow(2).sum()
                (g,) = torch.autograd.grad(inner, z, create_graph=True)
                z = z - 0.1 * g
        return z


@habit("energy")
class Energy(Block):
    """Forces are minus the gradient of an energy."""

    def forward(self, x):
        with torch.enable_grad():
            q = x.detach().requires_grad_(True)
            energy = self.act(q).pow(2).sum()
            return -torch.autograd.grad(energy, q, create_graph=True)[0] + self.fc(x)


@habit("checkpoint_sequential")
class CheckpointSequential(Block):
    def __init__(self, d):
        super().__init__(d)
        self.parts = nn.Sequential(nn.Linear(d, d), nn.Tanh(), nn.Linear(d, d), nn.Sigmoid())

    def forward(self, x):
        return checkpoint_sequential(self.parts, 2, self.fc(x), use_reentrant=False)


@habit("checkpoint_with_dropout")
class CheckpointWithDropout(Block):
    def forward(self, x):
        return checkpoint(lambda t: F.dropout(self.act(t), 0.3, self.training), x,
                          use_reentrant=False)  # fmt: skip


# Modes.


@habit("train_keeps_norm_in_eval", must=True)
class TrainOverridden(Block):
    """Batch norm stays in eval mode (detection, fine-tuning)."""

    def __init__(self, d):
        super().__init__(d)
        self.bn = nn.BatchNorm1d(d)
        self.bn.running_mean.normal_()
        self.train()

    def train(self, mode=True):
        super().train(mode)
        self.bn.eval()
        return self

    def forward(self, x):
        return self.bn(self.act(x))


@habit("train_folds_weights")
class TrainFolds(Block):
    """train() and eval() fold a factor into the weights and back (RepVGG, merged LoRA)."""

    folded = False

    def train(self, mode=True):
        if not mode and not self.folded:
            self.fc.weight.data.mul_(2.0)
            self.folded = True
        elif mode and self.folded:
            self.fc.weight.data.div_(2.0)
            self.folded = False
        return super().train(mode)

    def forward(self, x):
        y = self.fc(x) if self.folded else F.linear(x, 2.0 * self.fc.weight, self.fc.bias)
        return torch.tanh(y)


@habit("mode_switched_in_forward")
class ModeSwitched(Block):
    def __init__(self, d):
        super().__init__(d)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        before = self.drop.training
        self.drop.eval()
        y = self.drop(self.act(x))
        self.drop.train(before)
        return y


@habit("dropout_of_nothing", must=True)
class DropoutOfNothing(Block):
    def forward(self, x):
        return F.dropout(self.act(x), p=0.0, training=True)


@habit("stochastic_depth", must=True)
class StochasticDepth(Block):
    def forward(self, x):
        y = self.act(x)
        if self.training:
            y = y * torch.bernoulli(torch.full((len(x), 1), 0.8).to(x)) / 0.8
        return x + y


@habit("statistics_of_the_instance", must=True)
class InstanceStatistics(Block):
    """Normalised, and brought back by what was kept (RevIN)."""

    def forward(self, x):
        self.mean, self.spread = x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
        y = self.act((x - self.mean) / self.spread)
        return y * self.spread + self.mean


@habit("quantised_at_rest")
class QuantisedAtRest(Block):
    """Fake quantisation with torch's own op: a step function with a slope of its own."""

    def forward(self, x):
        return torch.fake_quantize_per_tensor_affine(self.fc(x), 0.1, 0, -128, 127)


@habit("rounds_to_bfloat16", rough=2e-2)
class RoundsToBfloat(Block):
    def forward(self, x):
        return self.act(x).bfloat16().to(x.dtype) + x


@habit("whole_number_result")
class WholeNumbers(Block):
    def forward(self, x):
        return self.act(x) + (self.fc(x) > 0).to(x.dtype) + self.fc(x).sign() * 0.5


@habit("gumbel", draws="torch")
class Gumbel(Block):
    def forward(self, x):
        return F.gumbel_softmax(self.fc(x), tau=0.7, hard=False)


@habit("mask_of_own_generator")
class OwnGenerator(Block):
    def forward(self, x):
        g = torch.Generator().manual_seed(3)
        return self.act(x) * (torch.rand(self.d, generator=g) > 0.4).to(x)


@habit("apply_in_forward")
class ApplyInForward(Block):
    def forward(self, x):
        self.apply(lambda m: setattr(m, "seen", True))
        return self.act(x)


@habit("moves_itself")
class MovesItself(Block):
    def forward(self, x):
        self.to(x.device)
        return self.act(x)


# Outputs and losses.


@dataclass
class Output:
    prediction: Tensor
    penalty: Tensor


class AsDataclass(nn.Module):
    def forward(self, y):
        return Output(y, y.abs().mean())


class AsList(nn.Module):
    def forward(self, y):
        return [y, 0.5 * torch.tanh(y)]


def _two_heads(o, t):
    return sum(w * F.mse_loss(part, t) for w, part in zip((1.0, 0.4), o, strict=True))


def _none_then_mean(o, t):
    each = F.cross_entropy(o, t, reduction="none")
    return (each * (each.detach() > each.detach().median())).mean()


def _focal(o, t):
    log = F.log_softmax(o, 1).gather(1, t[:, None])
    return (-(1 - log.exp()).pow(2) * log).mean()


def _contrastive(o, t):
    z = F.normalize(o, dim=1)
    same = (t[:, None] == t[None]).to(o) - torch.eye(len(o)).to(o)
    return -(same * (z @ z.T / 0.5).log_softmax(1)).sum() / same.sum().clamp(min=1)


class _Adversary:
    """A discriminator that is no part of the model."""

    def __init__(self, model: nn.Module) -> None:
        self.judge = nn.Linear(3, 1).to(next(model.parameters()).dtype)

    def __call__(self, m, b):
        return F.softplus(-self.judge(m(b[0]))).mean() + 0.1 * F.mse_loss(m(b[0]), b[1])


def _leaves_gradients(m, b):
    """Backward inside, as closures of optimisers do."""
    m.zero_grad()
    loss = F.mse_loss(m(b[0]), b[1])
    if loss.requires_grad:
        loss.backward(retain_graph=True)
        m.zero_grad()
    return loss


def _virtual_adversarial(m, b):
    d = torch.ones_like(b[0]).requires_grad_(True)
    with torch.enable_grad():
        far = F.mse_loss(m(b[0] + 0.1 * d), m(b[0]).detach())
        g = torch.autograd.grad(far, d)[0]
    return F.mse_loss(m(b[0] + 0.1 * F.normalize(g, dim=1)), b[1])


TASKS |= {
    "dataclass_out": Task(
        lambda m: lambda o, t: F.mse_loss(o.prediction, t) + o.penalty, out=AsDataclass
    ),
    "list_out": Task(lambda m: _two_heads, out=AsList),
    "gaussian_nll": Task(lambda m: lambda o, t: F.gaussian_nll_loss(o, t, o.detach() ** 2 + 1)),
    "hard_examples": Task(lambda m: _none_then_mean, "class", must=False),
    "focal": Task(lambda m: _focal, "class"),
    "margin": Task(lambda m: nn.MultiMarginLoss(), "class", must=False),
    "contrastive": Task(lambda m: _contrastive, "class"),
    "objective_adversary": Task(lambda m: _Adversary(m), objective=True, must=False),
    "objective_backward": Task(lambda m: _leaves_gradients, objective=True, must=False),
    "objective_vat": Task(lambda m: _virtual_adversarial, objective=True, must=False),
}
