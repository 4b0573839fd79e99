"""The store: older files, streaming, temporary files of killed runs, damaged and foreign files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from grid_support import child_environment, classifier

import pylandscape as pl
from pylandscape.curvature import spectra
from pylandscape.curvature.symmetric_operator import SymmetricOperator
from pylandscape.errors import FileFormatError, ResumeMismatch
from pylandscape.files import atomic, store
from pylandscape.surfaces.grids import line

OLD = Path(__file__).parent / "data" / "format1.zip"  # written by the code of 2026-11-28
CLASSES = {
    "curve": pl.Curve, "surface": pl.Surface, "spectrum": pl.Spectrum, "walks": pl.Walks,
    "eigenpairs": pl.EigenPairs, "classes": pl.CriticalPoints, "critical": pl.CriticalSet,
    "cloud": pl.Cloud,
}  # fmt: skip


def old(tmp_path: Path, name: str) -> Path:
    with zipfile.ZipFile(OLD) as archive:
        return Path(archive.extract(f"{name}.h5", tmp_path))


def numbers(path: Path) -> dict[str, np.ndarray]:
    """What is in the file, texts as indices, without what is told by `about`."""
    with h5py.File(path, locking=False) as file:
        group = file["pylandscape"]
        return {name: group[name][()] for name in group if name != "about"}


@pytest.mark.parametrize("name", CLASSES)
def test_a_file_of_the_older_layout_loads_and_is_saved_with_the_same_numbers(tmp_path, name):
    path = old(tmp_path, name)
    result = pl.load(path)
    assert type(result) is CLASSES[name]
    assert result.info
    before = numbers(path)
    result.save(tmp_path / "new.h5")
    after = numbers(tmp_path / "new.h5")
    assert sorted(after) == sorted(before)
    for each, found in before.items():
        assert after[each].tobytes() == found.tobytes()
        assert after[each].dtype == found.dtype
    again = pl.load(tmp_path / "new.h5")
    assert again.info == result.info
    assert repr(again) == repr(result)


@pytest.mark.parametrize("name", CLASSES)
def test_a_flipped_bit_in_an_older_file_is_noticed(tmp_path, name):
    path = old(tmp_path, name)
    with h5py.File(path, "r+", locking=False) as file:
        group = file["pylandscape"]
        first = next(n for n in group if n != "about")
        raw = group[first][()]
        raw.reshape(-1).view(np.uint8)[0] ^= 1
        group[first][...] = raw
    with pytest.raises(FileFormatError, match="do not match their checksum"):
        pl.load(path)


def test_an_older_file_is_not_taken_for_a_new_request(tmp_path):
    path = old(tmp_path, "curve")
    land = classifier()
    with pytest.raises(ResumeMismatch, match=r"another version of this package.*still reads"):
        line(land, np.ones(land.n_params), (-1, 1, 3), path=path, progress=False)


def test_a_file_whose_kind_is_unknown_says_so(tmp_path):
    pl.Curve([0.0], [1.0]).save(tmp_path / "c.h5")
    with h5py.File(tmp_path / "c.h5", "r+", locking=False) as file:
        file["pylandscape"].attrs["content"] = "tea"
    with pytest.raises(FileFormatError, match=r"expected one of .*curve.*, got the content 'tea'"):
        pl.load(tmp_path / "c.h5")


@pytest.mark.parametrize("content", [b"no result", b"\x89HDF\r\n\x1a\n and no more"])
@pytest.mark.parametrize("beside", [False, True])
def test_garbage_at_the_path_of_a_spectrum_is_named_and_left_alone(tmp_path, content, beside):
    path = tmp_path / ("s.h5.lanczos" if beside else "s.h5")
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=str(path)):
        pl.spectrum(np.eye(4), 1, 2, path=tmp_path / "s.h5", progress=False)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == [path.name]


# --- temporary files -----------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from pylandscape.files import atomic
with atomic.replacing(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    print(temporary, flush=True)
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


def writer(path: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), how], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, env=child_environment(),
    )  # fmt: skip


def test_what_a_killed_run_left_is_removed_by_the_next_one_and_nothing_else(tmp_path):
    path = tmp_path / "s.h5"
    with writer(path, "kill") as dead:
        assert dead.wait() == -signal.SIGKILL
    with writer(path, "wait") as alive:
        assert alive.stdout is not None
        living = Path(alive.stdout.readline().strip())
        others = [".s.h5.notours.tmp", ".t.h5.0123abcd.tmp", "s.h5.0123abcd.tmp"]
        for name in others:
            (tmp_path / name).write_bytes(b"")
        pl.Curve([0.0], [1.0]).save(path)
        assert sorted(os.listdir(tmp_path)) == sorted([living.name, path.name, *others])
        alive.communicate()
    assert path.read_bytes() == b"half"  # the last one to finish


def test_a_run_removes_what_is_left_before_it_computes(tmp_path):
    for name in (".s.h5.0123abcd.tmp", ".s.h5.lanczos.0123abcd.tmp"):
        (tmp_path / name).write_bytes(b"left")
    seen = []

    def product(v):
        seen.extend(os.listdir(tmp_path))
        return v * 2.0

    op = SymmetricOperator(4, product, about={"known by": "name"})
    pl.spectrum(op, 1, 2, path=tmp_path / "s.h5", progress=False)
    assert seen == []
    assert os.listdir(tmp_path) == ["s.h5"]


def test_a_name_of_255_bytes_can_be_replaced(tmp_path):
    target = tmp_path / ("n" * 252 + ".h5")
    pl.Curve([0.0], [1.0]).save(target)
    (target.with_name(f".{atomic._stem(target)}.0123abcd.tmp")).write_bytes(b"left")
    pl.Curve([0.0], [2.0]).save(target)
    assert os.listdir(tmp_path) == [target.name]


def test_without_locks_only_old_leftovers_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_lock", lambda fd: None)
    new, ancient = (tmp_path / f".c.h5.{digits}.tmp" for digits in ("01234567", "89abcdef"))
    for path in (new, ancient):
        path.write_bytes(b"left")
    os.utime(ancient, (0, 0))
    pl.Curve([0.0], [1.0]).save(tmp_path / "c.h5")
    assert sorted(os.listdir(tmp_path)) == [new.name, "c.h5"]


def test_a_result_is_not_held_in_memory_as_a_file(tmp_path):
    """Saving 16 MiB of vectors needs no second copy of them."""
    vectors = torch.zeros(2, 1 << 20, dtype=torch.float64)
    pairs = pl.EigenPairs(np.ones(2), vectors, np.zeros(2), np.ones(2, dtype=bool))
    import tracemalloc

    tracemalloc.start()
    pairs.save(tmp_path / "e.h5")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "e.h5").stat().st_size > 16 << 20
    assert peak < 4 << 20


# --- bases that do not fit -----------------------------------------------------------------------


def stopping(stop: int) -> SymmetricOperator:
    values, calls = torch.linspace(0.0, 1.0, 40, dtype=torch.float64), 0

    def product(v: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return v * values

    return SymmetricOperator(40, product, about={"known by": "name"})


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3), (3, 0)])
def test_another_size_of_group_does_not_lose_the_group_that_was_running(
    tmp_path, monkeypatch, before, after
):
    ask = {"probes": 3, "steps": 8, "seed": 1, "progress": False}
    whole = pl.spectrum(stopping(-1), **ask)
    for size, stop in ((before, 6), (after, -1)):
        monkeypatch.setattr(spectra._Quadrature, "_together", lambda self, size=size: size)
        op = stopping(stop)
        try:
            found = pl.spectrum(op, path=tmp_path / "s.h5", **ask)
        except KeyboardInterrupt:
            assert op.products == 5 * before
    np.testing.assert_array_equal(found.nodes, whole.nodes)
    np.testing.assert_array_equal(found.weights, whole.weights)
    assert found.info["products"] == whole.info["products"]
    assert os.listdir(tmp_path) == ["s.h5"]


def test_a_basis_that_does_not_fit_lies_beside_the_result(tmp_path, monkeypatch):
    monkeypatch.setattr(spectra, "MEMORY_SHARE", 0.0)
    seen = set()

    def product(v):
        seen.update(os.listdir(tmp_path))
        return v * torch.arange(1.0, 5.0, dtype=torch.float64)

    op = SymmetricOperator(4, product, about={"known by": "name"})
    pl.spectrum(op, 1, 3, path=tmp_path / "s.h5", progress=False)
    assert len(seen) == 1
    assert next(iter(seen)).startswith(".s.h5.lanczos.")
    assert os.listdir(tmp_path) == ["s.h5"]


def test_a_full_disk_is_told_before_a_basis_is_laid_out_there(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spectra, "MEMORY_SHARE", 0.0)
    monkeypatch.setattr(spectra.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        pl.spectrum(np.eye(4), 1, 3, path=tmp_path / "s.h5", progress=False)
    assert os.listdir(tmp_path) == []


def test_the_store_knows_no_result_class():
    source = Path(store.__file__).read_text()
    for name in CLASSES.values():
        assert f"import {name.__name__}" not in source
    assert "results" not in [word for line in source.splitlines() if "import" in line
                             for word in line.split()]  # fmt: skip
