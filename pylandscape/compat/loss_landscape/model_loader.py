"""Models by factory instead of by name: any model, without editing the source."""

from __future__ import annotations

from torch import nn

from ...cli.inputs import load_model
from ...errors import InvalidArgument


def load(
    dataset: str, model_name: str, model_file: str | None, data_parallel: bool = False
) -> nn.Module:
    """The model of the factory ``model_name`` ("package.module:factory") with a checkpoint's state.

    Args:
        dataset: not used; the original's lists models by data set.
        model_file: a state_dict, or a dict with one, as the original's ``.t7`` files; "" or None
            for the factory's own parameters.
        data_parallel: not used: "module." is taken off the names in any case.

    Raises:
        InvalidArgument: the factory or the file is not of that form, or not of one another.
    """
    try:
        return load_model(model_name, model_file or None)
    except InvalidArgument as error:
        raise InvalidArgument(str(error).replace("--checkpoint:", "--model_file:")) from error
