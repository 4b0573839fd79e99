"""Checkpoint files: the tensors of a model by name, and series of such files.

Read without executing anything in them: torch's files by ``torch.load(weights_only=True)``,
``.safetensors`` by the safetensors package.
"""

from __future__ import annotations

import glob
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument

STATE_KEYS = ("state_dict", "model_state_dict", "model", "net")  # where a checkpoint has its state
PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
SHOWN = 5  # names in a message

MODELS = (
    nn.Module,
    Mapping,
    str,
    os.PathLike,
)  # what may stand for a model: paths of checkpoints too


def tensors_of(value: Any, name: str) -> Any:
    """The tensors by name of a module, a state dict, a checkpoint or its path; the rest as it is.

    Raises:
        InvalidArgument: as `read_state`.
    """
    if isinstance(value, nn.Module):
        parameters = dict(value.named_parameters(remove_duplicate=False))
        return {**parameters, **dict(value.named_buffers(remove_duplicate=False))}
    if isinstance(value, str | os.PathLike):
        return read_state(value, name, mapped=True)
    return state_in(value)


def read_state(
    path: str | os.PathLike[str], name: str = "path", *, mapped: bool = False
) -> dict[str, Tensor]:
    """The tensors in a checkpoint file by name, on the CPU.

    Accepts a state dict, or a dict that has one under "state_dict", "model_state_dict", "model" or
    "net". A prefix "module." or "_orig_mod." that every name has is taken off.

    Args:
        name: the argument that errors name.
        mapped: read the numbers from the file when they are used, not now (where the file's format
            allows it).

    Raises:
        InvalidArgument: no such file, not a checkpoint, one that would have to run code, or a
            safetensors file without the package of that name.
    """
    if not Path(path).is_file():
        raise InvalidArgument(f"{name}: no file {str(path)!r}")
    if Path(path).suffix == ".safetensors":
        return without_prefix(_safetensors(path, name))
    found = _torch_file(path, name, mapped)
    state = state_in(found)
    if not _is_state(state):
        got = type(found).__name__
        if isinstance(found, Mapping):
            got = f"a dict with {some(list(map(str, found)))}"
        raise InvalidArgument(
            f"{name}: expected a state dict, or a dict with one under {', '.join(STATE_KEYS)}, "
            f"in {path}, got {got}"
        )
    return without_prefix({k: v for k, v in state.items() if isinstance(v, Tensor)})


def state_in(found: Any) -> Any:
    """The state dict in a checkpoint, as `torch.load` gives it; anything else as it is."""
    if not isinstance(found, Mapping):
        return found
    return next((found[k] for k in STATE_KEYS if _is_state(found.get(k))), found)


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state without the prefixes of wrappers that all of its names have."""
    found = dict(state)
    for prefix in ("module.", "_orig_mod.") * 2:  # a wrapper may be in another
        if found and all(k.startswith(prefix) for k in found):
            found = {k.removeprefix(prefix): v for k, v in found.items()}
    return found


def fitted(state: Mapping[str, Any], wanted: Iterable[str]) -> dict[str, Any]:
    """The state under the names that fit most wanted ones: its own, those without what
    DataParallel and torch.compile put in them, around the model or a part of it, or these without a
    prefix: one of PREFIXES, or the only one under which all wanted names are (of the part that a
    larger module holds)."""
    names = set(wanted)
    found = dict(state_in(state))
    if names <= found.keys():
        return found
    bare = {without_wrappers(str(k)): v for k, v in found.items()}
    deep = {".".join(p for p in k.split(".") if p != "module"): v for k, v in bare.items()}
    choices = [found, bare, deep]
    prefixes = [*PREFIXES, *_parts_with(names, bare)]
    choices += [{k.removeprefix(prefix): v for k, v in bare.items()} for prefix in prefixes]
    return max(choices, key=lambda s: len(names & s.keys()))  # the first of equals


def _parts_with(wanted: set[str], names: Iterable[str]) -> list[str]:
    """The prefix ("net.") under which all wanted names are, if there is exactly one."""
    there = set(names)
    one = min(wanted, default="")
    prefixes = [name.removesuffix(one) for name in there if one and name.endswith("." + one)]
    found = [p for p in prefixes if all(p + name in there for name in wanted)]
    return found if len(found) == 1 else []


def without_wrappers(name: str) -> str:
    """A parameter's name without what DataParallel and torch.compile put in it."""
    parts = name.split(".")
    while parts and parts[0] == "module":
        parts = parts[1:]
    return ".".join(part for part in parts if part != "_orig_mod") or name


def series(where: str | os.PathLike[str], name: str = "path") -> list[Path]:
    """The checkpoint files of a folder or pattern ("runs/*.pt"), numbers in their names in order.

    Raises:
        InvalidArgument: nothing there, or a folder without checkpoint files.
    """
    path = Path(where)
    if path.is_dir():
        found = [p for p in path.iterdir() if p.suffix in SUFFIXES]
        what = f"files ending in {', '.join(SUFFIXES)} in the folder {str(path)!r}"
    else:
        found = [Path(p) for p in glob.glob(str(where), recursive=True) if Path(p).is_file()]
        what = f"files that match {str(where)!r}"
    if not found:
        raise InvalidArgument(f"{name}: expected {what}, found none")
    return sorted(found, key=lambda p: _natural(str(p)))


def step_of(path: Path) -> int | None:
    """The last number in a file's name, which most series mean as step or epoch."""
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers else None


def some(names: list[str]) -> str:
    """A few names of a list, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _natural(text: str) -> list[Any]:
    parts = re.split(r"(\d+)", text)
    return [(1, int(p), "") if p.isdigit() else (0, 0, p) for p in parts]


def _torch_file(path: str | os.PathLike[str], name: str, mapped: bool) -> Any:
    try:
        with warnings.catch_warnings():  # about the pickle protocol of a file that is refused
            warnings.simplefilter("ignore")
            lazily = mapped and zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except pickle.UnpicklingError as error:
        if not _is_pickle(path):
            raise InvalidArgument(f"{name}: {path} is not a torch checkpoint") from error
        raise InvalidArgument(
            f"{name}: {path} needs pickle: it holds more than tensors, and reading it would run "
            'code that it brings. Where you trust it, save its tensors: python -c "import torch; '
            f"m = torch.load({str(path)!r}, weights_only=False); "
            "torch.save(m.state_dict() if hasattr(m, 'state_dict') else next(m[k] for k in "
            f"{STATE_KEYS} if k in m), 'state.pt')\""
        ) from error
    except Exception as error:  # whatever reading of any bytes as a pickle raises
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidArgument(f"{name}: {path} is not a torch checkpoint: {text}") from error


def _safetensors(path: str | os.PathLike[str], name: str) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise InvalidArgument(
            f"{name}: {path} needs the package safetensors: pip install safetensors"
        ) from error
    try:
        found: dict[str, Tensor] = load_file(path)  # maps the file into memory
    except Exception as error:  # the package has an error class of its own
        raise InvalidArgument(f"{name}: {path} is not a safetensors file: {error}") from error
    return found


def _is_pickle(path: str | os.PathLike[str]) -> bool:
    """Whether a file looks like torch.save's (a zip) or like a plain pickle (protocol 2 and up)."""
    with open(path, "rb") as file:
        return zipfile.is_zipfile(path) or file.read(1) == b"\x80"


def _is_state(found: Any) -> bool:
    return isinstance(found, Mapping) and any(isinstance(v, Tensor) for v in found.values())
