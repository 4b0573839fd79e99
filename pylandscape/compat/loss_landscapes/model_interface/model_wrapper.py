"""What the metrics see of a model: something with modules, whose parameters move, and a forward."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from ....errors import InvalidArgument
from .model_parameters import ModelParameters


class ModelWrapper(abc.ABC):
    """The base of wrappers of the user's own: ``modules``, whose parameters are the point."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules

    def get_modules(self) -> list[nn.Module]:
        return self.modules

    def get_module_parameters(self) -> ModelParameters:
        """The live parameters: what is done to them in place is done to the model."""
        return ModelParameters(list(self.parameters()))

    def train(self, mode: bool = True) -> ModelWrapper:
        for module in self.modules:
            module.train(mode)
        return self

    def eval(self) -> ModelWrapper:
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> ModelWrapper:
        for module in self.modules:
            module.requires_grad_(requires_grad)
        return self

    def zero_grad(self) -> ModelWrapper:
        for p in self.parameters():
            if p.grad is not None:
                p.grad.detach_()
                p.grad.zero_()
        return self

    def parameters(self) -> Iterator[nn.Parameter]:
        """Each parameter once, also where modules share it."""
        return (p for _, p in self.named_parameters())

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name within its module, parameter), each parameter once."""
        seen: set[int] = set()
        for module in self.modules:
            for name, p in module.named_parameters():
                if id(p) not in seen:
                    seen.add(id(p))
                    yield name, p

    @abc.abstractmethod
    def forward(self, x: Any) -> Any:
        """The outputs for inputs x."""


class SimpleModelWrapper(ModelWrapper):
    """A module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__([model])

    def forward(self, x: Any) -> Any:
        return self.modules[0](x)


class GeneralModelWrapper(ModelWrapper):
    """Anything: ``forward_fn(model, x)`` gives the outputs, ``modules`` hold the parameters."""

    def __init__(
        self, model: Any, modules: list[nn.Module], forward_fn: Callable[[Any, Any], Tensor]
    ) -> None:
        super().__init__(modules)
        self.model = model
        self.forward_fn = forward_fn

    def forward(self, x: Any) -> Any:
        return self.forward_fn(self.model, x)


def wrap_model(model: Any) -> Any:
    """A wrapper of a module; a wrapper itself. Its parameters no longer require grad.

    Raises:
        InvalidArgument (a ValueError): for anything else.
    """
    if isinstance(model, nn.Module):
        model = SimpleModelWrapper(model)
    elif not is_wrapper(model):
        raise InvalidArgument(
            f"model: expected a torch.nn.Module or a ModelWrapper, got {type(model).__name__}"
        )
    return model.requires_grad_(False)


def is_wrapper(model: Any) -> bool:
    """A ModelWrapper, of ours or of the original."""
    names = ("modules", "get_module_parameters", "requires_grad_", "forward")
    return isinstance(model, ModelWrapper) or (
        not isinstance(model, nn.Module | type) and all(hasattr(model, n) for n in names)
    )
