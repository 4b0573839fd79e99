"""Long runs: killed, interrupted, out of disk, called again; the end is the same, bit for bit."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from grid_support import child_environment, classifier, directions, quadratic, scalar_landscape
from torch import nn

from pylandscape.errors import FileFormatError, PylandscapeError, ResumeMismatch
from pylandscape.files import atomic
from pylandscape.results.loading import load
from pylandscape.runs import journal, resume
from pylandscape.runs.journal import Journal
from pylandscape.surfaces.grids import interpolate, line, plane

SIZE = 12  # of the grids' sides
ASKED = {"metrics": ("loss", "accuracy"), "progress": False}


def ask(path=None, land=None, **options):
    land = land or classifier()
    d1, d2 = directions(land, 2)
    axes = {"x": (-1, 1, SIZE), "y": (-0.5, 1, SIZE)}
    return plane(land, d1, d2, **{**axes, **ASKED, **options}, path=path)


def assert_same(a, b):
    for name in b.metrics:
        assert a.metrics[name].tobytes() == b.metrics[name].tobytes()
    assert a.info["request"] == b.info["request"]


def beside(path) -> Path:
    return path.with_name(path.name + ".journal")


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr("pylandscape.runs.chunks.CHUNK_SECONDS", 0.0)  # one point at a time


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s.h5"


class Stop(Exception):
    """Raised in the middle of a run."""


def stop_after(monkeypatch, count, error=Stop):
    """Let `count` records be appended, then raise."""
    real, left = Journal.append, [count]

    def append(self, start, block):
        if not left[0]:
            raise error
        left[0] -= 1
        real(self, start, block)

    monkeypatch.setattr(Journal, "append", append)


def interrupted(monkeypatch, path, count, error=Stop, **options):
    with monkeypatch.context() as patch:
        stop_after(patch, count, error)
        with pytest.raises(error):
            ask(path, **options)


# --- kills -------------------------------------------------------------------------------------

SCRIPT = """
import time
import pylandscape.runs.chunks
import test_resume
pylandscape.runs.chunks.CHUNK_SECONDS = 0.0
land = test_resume.classifier()
prepare = land.prepare
def slowly(*args, **options):
    evaluate = prepare(*args, **options)
    def later(coefficients):
        time.sleep({pause})
        return evaluate(coefficients)
    return later
land.prepare = slowly
print("running", flush=True)
test_resume.ask({path!r}, land)
print("done", flush=True)
"""


def start(path, pause):
    code = SCRIPT.format(path=str(path), pause=pause)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(),
    )


def wait_for_journal(path, process, size, seconds=60.0):
    """Wait until the run's journal is larger than `size` bytes."""
    until = time.monotonic() + seconds
    while not (beside(path).exists() and beside(path).stat().st_size > size):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_run_killed_again_and_again_ends_as_if_it_had_never_been(path):
    whole = ask()
    sizes = []
    for _ in range(3):
        at_least = (sizes[-1] if sizes else 0) + 400
        with start(path, pause=0.01) as process:
            wait_for_journal(path, process, at_least)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        sizes.append(beside(path).stat().st_size)
        assert not path.exists()
    assert sizes == sorted(sizes)
    resumed = ask(path)
    assert 0 < resumed.info["resumed"] < SIZE * SIZE
    assert_same(resumed, whole)
    assert_same(load(path), whole)
    assert os.listdir(path.parent) == [path.name]


def test_ctrl_c_is_heard_within_a_second_and_keeps_what_is_done(path):
    with start(path, pause=0.05) as process:
        wait_for_journal(path, process, 4000)
        before = beside(path).stat().st_size
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    record, seconds = 40, 0.05  # bytes and time of a point
    assert (beside(path).stat().st_size - before) / record * seconds <= 1.0
    assert b"KeyboardInterrupt" in said
    assert b"points are kept in " + os.fsencode(beside(path)) in said
    assert_same(ask(path), ask())


def test_a_second_process_on_the_same_path_is_refused_while_the_first_lives(path):
    if journal.fcntl is None:
        pytest.skip("no flock on this system")
    with start(path, pause=0.05) as process:
        wait_for_journal(path, process, 4000)
        with pytest.raises(PylandscapeError, match="in use by another running process"):
            ask(path)
        process.kill()
    assert_same(ask(path), ask())


# --- interrupts and errors ---------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, SIZE * SIZE - 1])
def test_only_what_is_missing_is_computed(path, monkeypatch, count):
    interrupted(monkeypatch, path, count)
    land, asked = classifier(), []
    prepare = land.prepare

    def counting(*args, **options):
        evaluate = prepare(*args, **options)

        def count_points(coefficients):
            asked.append(len(coefficients))
            return evaluate(coefficients)

        return count_points

    land.prepare = counting
    resumed = ask(path, land)
    assert resumed.info["resumed"] == count
    assert sum(asked) == SIZE * SIZE - count + 1  # and one recorded point, to be sure
    assert_same(resumed, ask())
    assert not beside(path).exists()


def test_an_interrupt_says_where_the_points_are(path, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, logger="pylandscape"):
        interrupted(monkeypatch, path, 5, KeyboardInterrupt)
    assert (
        f"stopped by KeyboardInterrupt: 5 of 144 points are kept in {beside(path)}" in caplog.text
    )
    assert "the same call continues there" in caplog.text


def test_an_interrupt_without_a_path_says_nothing(monkeypatch, caplog):
    land = classifier()
    land.prepare = lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        ask(land=land)
    assert not caplog.text


def test_a_metric_that_fails_at_once_leaves_no_journal_to_be_in_the_way(path):
    def broken(outputs, targets):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask(path, metrics=[broken])
    assert not beside(path).exists()
    assert_same(ask(path), ask())


def test_a_tail_torn_anywhere_is_cut_and_computed_again(path, monkeypatch):
    interrupted(monkeypatch, path, 9)
    content = beside(path).read_bytes()
    whole = ask()
    for lost in (1, 23, 40):
        beside(path).write_bytes(content[:-lost])
        resumed = ask(path)
        assert resumed.info["resumed"] == 8
        assert_same(resumed, whole)
        path.unlink()


def test_a_flipped_bit_in_the_journal_never_reaches_the_result(path, monkeypatch):
    interrupted(monkeypatch, path, 9)
    content = beside(path).read_bytes()
    record = 40  # bytes: 24 of head, two metrics
    whole = ask()
    for at in range(len(content) - 4 * record, len(content) - 3 * record, 5):
        damaged = bytearray(content)
        damaged[at] ^= 16
        beside(path).write_bytes(damaged)
        assert_same(ask(path), whole)
        path.unlink()


def test_a_full_disk_in_the_middle_keeps_the_points_and_the_same_call_goes_on(path, monkeypatch):
    real, room = os.write, [3000]

    def full(fd, data):
        if len(data) > room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= len(data)
        return real(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "write", full)
        with pytest.raises(OSError, match=r"\d+ of 144 points are kept. Make room") as caught:
            ask(path)
    assert caught.value.errno == errno.ENOSPC
    resumed = ask(path)
    assert resumed.info["resumed"] > 0
    assert_same(resumed, ask())


def test_a_full_disk_at_the_very_end_keeps_all_points(path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", full)
        with pytest.raises(OSError, match="all of its points are kept in") as caught:
            ask(path)
    assert str(path) in str(caught.value)
    assert not path.exists()
    resumed = ask(path)
    assert resumed.info["resumed"] == SIZE * SIZE
    assert_same(resumed, ask())
    assert os.listdir(path.parent) == [path.name]


# --- the same path again -----------------------------------------------------------------------


def never(*_, **__):
    raise AssertionError("computed again")


def test_a_finished_result_is_loaded_without_computing(path):
    made = ask(path)
    land = classifier()
    land.prepare = never
    again = ask(path, land)
    assert again.info == made.info
    assert_same(again, made)


def test_a_finished_curve_and_interpolation_are_loaded_too(path):
    land = classifier()
    d = directions(land, 2)
    for call in (
        lambda: line(land, d[0], (-1, 1, 4), path=path, progress=False),
        lambda: interpolate(land, list(d), (0, 1, 3), path=path, progress=False),
    ):
        made, again = call(), call()
        assert again.values.tobytes() == made.values.tobytes()
        assert again.info == made.info
        path.unlink()


def test_a_direction_is_known_by_its_numbers(path):
    land = classifier()
    d = directions(land, 1)[0]
    made = line(land, d, (-1, 1, 4), path=path, progress=False)
    again = line(land, d.numpy().copy(), (-1, 1, 4), path=path, progress=False)
    assert again.info == made.info


def test_a_process_killed_between_rename_and_clean_up_leaves_nothing_wrong(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", Journal.close)
        made = ask(path)
    assert beside(path).exists()
    assert_same(ask(path), made)
    assert os.listdir(path.parent) == [path.name]


def test_a_result_finished_by_another_process_meanwhile_is_taken(path, monkeypatch):
    made = ask(path)
    real, first = resume.finished, [None]

    def not_yet(*args):
        return first.pop() if first else real(*args)

    monkeypatch.setattr(resume, "finished", not_yet)
    land = classifier()
    land.prepare = never
    assert ask(path, land).info == made.info
    assert not beside(path).exists()


OTHERS = {
    "axes.x.n": {"x": (-1, 1, SIZE + 1)},
    "axes.y.max": {"y": (-0.5, 2, SIZE)},
    "metrics": {"metrics": ("loss",)},
    "theta": {"theta": torch.zeros(51)},
}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("field", OTHERS)
def test_another_request_is_refused_with_both_sides(path, monkeypatch, finished, field):
    if finished:
        ask(path)
    else:
        interrupted(monkeypatch, path, 9)
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    with pytest.raises(ResumeMismatch, match=rf"\n  {field}: file .*, request ") as caught:
        ask(path, **OTHERS[field])
    assert str(path) in str(caught.value)
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_either_engine_goes_on_with_its_own_run_only(path, monkeypatch, engine):
    land = classifier(engine=engine)
    interrupted(monkeypatch, path, 9, land=land)
    other = classifier(engine="torch" if engine == "native" else "native")
    with pytest.raises(ResumeMismatch, match=r"\n  engine: file '.*', request '"):
        ask(path, other)
    assert_same(ask(path, classifier(engine=engine)), ask(land=land))


def test_a_model_of_the_same_shape_with_other_units_is_noticed(path):
    ask(path)
    with pytest.raises(
        ResumeMismatch, match=r"\n  model: module '.': file .*Tanh.*, request .*ReLU"
    ):
        ask(path, classifier(unit=nn.ReLU))


def test_what_a_request_cannot_tell_shows_at_a_recorded_point(path, monkeypatch, caplog):
    def curve(factor):
        monkeypatch.setenv("FACTOR", str(factor))  # which no record of the loss can see
        land = scalar_landscape(
            lambda t: float(os.environ["FACTOR"]) * (1 + (t * t).sum()), np.ones(2)
        )
        return line(land, np.ones(2), (-1, 1, 9), path=path, progress=False)

    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stop):
            curve(1.0)
    before = beside(path).read_bytes()
    caplog.clear()
    with pytest.raises(ResumeMismatch, match=r"records a loss of .* where it is"):
        curve(2.0)
    assert beside(path).read_bytes() == before
    assert not caplog.text
    assert curve(1.0).info["resumed"] == 3


@pytest.mark.parametrize("what", ["model", "data", "loss", "direction", "kind", "axis values"])
def test_whatever_changes_the_numbers_is_noticed(path, what):
    land = classifier()
    d1, d2 = directions(land, 2)
    axis = np.array([-1.0, 0.0, 1.0])
    plane(land, d1, d2, axis, axis, path=path, progress=False)
    if what == "model":
        with torch.no_grad():
            next(land.model.parameters()).mul_(1.5)
    x, y = land.dataset.batches[0].inputs, land.dataset.batches[0].target
    loss = nn.CrossEntropyLoss(label_smoothing=0.1 if what == "loss" else 0.0)
    data = (x * 2 if what == "data" else x, y)
    other = type(land)(land.model, loss, data, engine=land.engine)
    x = np.array([-1.0, 1e-9, 1.0]) if what == "axis values" else axis
    d = d1 * (2 if what == "direction" else 1)
    ask_again = (
        partial(line, other, d1, axis) if what == "kind" else partial(plane, other, d, d2, x, axis)
    )
    with pytest.raises(ResumeMismatch, match="What differs:\n"):
        ask_again(path=path, progress=False)


def test_other_versions_are_noticed(path, monkeypatch):
    ask(path)
    land = classifier()
    about = land.describe()
    land.describe = lambda: {**about, "versions": {**about["versions"], "torch": "1.0"}}
    with pytest.raises(ResumeMismatch, match=r"versions\.torch: file '.*', request '1\.0'"):
        ask(path, land)


@pytest.mark.parametrize("content", [b"", b"notes", b"\x89HDF\r\n\x1a\n and no more"])
def test_a_file_of_another_kind_is_never_written_over(path, content):
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="it is left alone") as caught:
        ask(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


def test_a_result_that_was_saved_by_hand_belongs_to_its_request(path):
    made = ask()
    made.save(path)
    assert ask(path).info == made.info
    made.info.clear()
    made.save(path)
    with pytest.raises(ResumeMismatch, match="unknown origin"):
        ask(path)


def test_the_landscape_is_the_same_with_and_without_a_path(path):
    land = quadratic([1.0, 2.0])
    without = line(land, np.ones(2), (-1, 1, 5), progress=False)
    assert_same(line(land, np.ones(2), (-1, 1, 5), path=path, progress=False), without)
