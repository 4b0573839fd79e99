"""The names of direction and surface files, made of what was asked for."""

from __future__ import annotations

from os.path import commonprefix, exists
from typing import Any

from ...errors import InvalidArgument


def name_direction_file(args: Any) -> str:
    """``{model_file}[_{model_file2}]_{dir_type}[_xignore=..][_xnorm=..][_y..][_idx=N].h5``.

    The original's names, but in three cases: model files without a folder count as of one folder,
    and what else would put a folder into the middle of the name has "_" for "/" (such names made
    the original fail).

    Raises:
        InvalidArgument: ``dir_file``, ``model_file2`` or ``model_file3`` do not exist.
    """
    if args.dir_file:
        return _existing(args.dir_file, "--dir_file")
    first = args.model_file
    name = first
    if args.model_file2:
        name = _pair(first, _existing(args.model_file2, "--model_file2"))
    name += f"_{args.dir_type}"
    name += _settings(args, "x")
    if args.y and args.model_file3:
        third = _existing(args.model_file3, "--model_file3")
        folder, base = _split(third)
        same = folder == _split(first)[0]
        name += "_" + (base if same else f"{folder}_{base}".strip("/").replace("/", "_"))
    elif args.y:
        name += _settings(args, "y") + ("_same_dir" if args.same_dir else "")
    return name + (f"_idx={args.idx}" if args.idx > 0 else "") + ".h5"


def name_surface_file(args: Any, dir_file: str) -> str:
    """``{dir_file}_[xmin,xmax,xnum][x[ymin,ymax,ynum]].h5``, or ``args.surf_file``."""
    if args.surf_file:
        return str(args.surf_file)
    name = f"{dir_file}_[{args.xmin!s},{args.xmax!s},{int(args.xnum)}]"
    if args.y:
        name += f"x[{args.ymin!s},{args.ymax!s},{int(args.ynum)}]"
    if args.raw_data:
        name += "_rawdata"
    if args.data_split > 1:
        name += f"_datasplit={args.data_split}_splitidx={args.split_idx}"
    return name + ".h5"


def _pair(first: str, second: str) -> str:
    """Both model files: of one folder "a/m_n", else the second's folder from where they part."""
    (folder, base), (other, last) = _split(first), _split(second)
    if folder == other:
        return f"{first}_{last}"
    shared = commonprefix([first, second]).rpartition("/")[0]  # noqa: RUF071 - cut at a "/" here
    rest = other[len(shared) + 1 :].replace("/", "_")
    start = f"{folder}_{base}" if folder else base
    return f"{start}_{rest}_{last}"


def _settings(args: Any, axis: str) -> str:
    texts = [(word, getattr(args, axis + word)) for word in ("ignore", "norm")]
    return "".join(f"_{axis}{word}={text}" for word, text in texts if text)


def _split(path: str) -> tuple[str, str]:
    folder, _, base = path.rpartition("/")
    return folder, base


def _existing(path: str, option: str) -> str:
    if not exists(path):
        raise InvalidArgument(f"{option}: expected a file, got {path!r}, which does not exist")
    return path
