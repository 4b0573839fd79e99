"""The journal: what is recorded survives kills, torn tails, bit flips and full disks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from grid_support import child_environment

from pylandscape.errors import FileFormatError, InvalidArgument, PylandscapeError, ResumeMismatch
from pylandscape.runs import journal as module
from pylandscape.runs.journal import Journal

REQUEST = {"kind": "plane", "theta": "ab12", "axes": {"x": {"min": 0.1, "n": 5}}}
NAMES = ["loss", "accuracy"]
TOTAL = 12
VALUES = np.random.default_rng(0).normal(size=(TOTAL, 2))
VALUES[3, 0], VALUES[4, 1] = np.inf, -0.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s.h5.journal"


def opened(path, request=REQUEST):
    return Journal(path, request, NAMES, TOTAL)


def write(path, *ranges):
    """A journal with the given ranges, and the file's size after each of them."""
    sizes = []
    with opened(path) as journal:
        sizes.append(path.stat().st_size)
        for begin, end in ranges:
            journal.append(begin, VALUES[begin:end])
            sizes.append(path.stat().st_size)
    return sizes


def assert_holds(journal, *ranges):
    done = np.zeros(TOTAL, dtype=bool)
    for begin, end in ranges:
        done[begin:end] = True
    assert journal.done.tolist() == done.tolist()
    assert journal.values[done].tobytes() == VALUES[done].tobytes()


def test_what_is_appended_is_read_back_bit_for_bit(path):
    write(path, (0, 1), (5, 9), (1, 5))
    with opened(path) as journal:
        assert_holds(journal, (0, 9))


def test_a_nan_keeps_its_bits(path):
    payload = np.array([[0x7FF8_0000_0000_BEEF, 0xFFF8_0000_0000_0001]], dtype=np.uint64)
    with opened(path) as journal:
        journal.append(2, payload.view(np.float64))
    with opened(path) as journal:
        assert journal.values[2].tobytes() == payload.tobytes()


def test_records_can_be_appended_after_reopening(path):
    write(path, (0, 4))
    write(path, (4, 12))
    with opened(path) as journal:
        assert_holds(journal, (0, 12))


def test_a_tail_torn_at_any_byte_loses_only_the_last_record(path):
    *_, before, after = write(path, (0, 4), (4, 7), (7, 12))
    content = path.read_bytes()
    for size in range(before, after):
        path.write_bytes(content[:size])
        with opened(path) as journal:
            assert_holds(journal, (0, 7))
            assert path.stat().st_size == before
            journal.append(7, VALUES[7:])
        with opened(path) as journal:
            assert_holds(journal, (0, 12))
        assert path.read_bytes() == content


def test_a_flipped_bit_in_any_byte_of_a_record_never_gives_a_wrong_value(path):
    first, second, third, _ = write(path, (0, 4), (4, 7), (7, 12))
    content = path.read_bytes()
    head = module._HEAD.size + module._CRC.size
    for at in range(second, third):
        damaged = bytearray(content)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        with opened(path) as journal:
            if at < second + head:  # the record's length is in doubt, so is what follows
                assert_holds(journal, (0, 4))
            else:
                assert_holds(journal, (0, 4), (7, 12))
            journal.append(4, VALUES[4:7])
            journal.append(7, VALUES[7:])
        with opened(path) as journal:
            assert_holds(journal, (0, 12))
    assert first < second


def test_a_flipped_bit_in_any_byte_of_the_header_is_an_error_that_keeps_the_file(path):
    start, _ = write(path, (0, 4))
    content = path.read_bytes()
    for at in range(start):
        damaged = bytearray(content)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match="path: ") as caught:
            opened(path)
        assert str(path) in str(caught.value)
        assert path.read_bytes() == bytes(damaged)


def test_a_header_torn_at_any_byte_is_a_fresh_start(path):
    (start,) = [write(path, (0, 4))[0]]
    content = path.read_bytes()
    for size in range(start):
        path.write_bytes(content[:size])
        with opened(path) as journal:
            assert not journal.done.any()
            journal.append(0, VALUES[:4])
        assert path.read_bytes() == content


def test_another_request_is_refused_and_every_difference_is_listed(path):
    write(path, (0, 4))
    before = path.read_bytes()
    other = {"kind": "line", "theta": "ab12", "axes": {"x": {"min": 0.5, "n": 5}}, "bn": "eval"}
    with pytest.raises(ResumeMismatch) as caught:
        opened(path, other)
    said = str(caught.value)
    assert "kind: file 'plane', request 'line'" in said
    assert "axes.x.min: file 0.1, request 0.5" in said
    assert "bn: file None, request 'eval'" in said
    assert "theta" not in said
    assert path.read_bytes() == before


def test_another_number_of_points_or_other_metrics_are_refused(path):
    write(path, (0, 4))
    with pytest.raises(ResumeMismatch, match="total: file 12, request 13"):
        Journal(path, REQUEST, NAMES, TOTAL + 1)
    with pytest.raises(ResumeMismatch, match="metrics"):
        Journal(path, REQUEST, ["loss"], TOTAL)


def test_directions_are_compared_by_their_digest(path):
    def described(seed, digest):
        return {"directions": [{"seed": seed, "digest": digest}]}

    with opened(path, described(0, "aa")) as journal:
        journal.append(0, VALUES[:1])
    with opened(path, described(None, "aa")) as journal:
        assert journal.done.sum() == 1
    with pytest.raises(ResumeMismatch, match=r"directions\[0\]\.seed: file 0, request 1"):
        opened(path, described(1, "bb"))


def test_a_journal_without_points_binds_nobody(path):
    with opened(path) as journal:
        assert path.exists()
        assert not journal.done.any()
    assert not path.exists()
    with opened(path):
        kept = path.read_bytes()
    path.write_bytes(kept)  # as a process leaves it that is killed before its first point
    with opened(path, {"kind": "line"}) as journal:
        journal.append(0, VALUES[:1])
    with opened(path, {"kind": "line"}) as journal:
        assert_holds(journal, (0, 1))


def test_another_file_in_its_place_is_left_alone(path):
    path.write_bytes(b"my precious notes")
    with pytest.raises(FileFormatError, match="got another file; move it away"):
        opened(path)
    assert path.read_bytes() == b"my precious notes"


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InvalidArgument, match="path: expected a place where files can be written"):
        opened(tmp_path / "nowhere" / "s.journal")


@pytest.mark.parametrize("room", [0, 1, 23, 24, 40, 100])
def test_a_full_disk_loses_nothing_that_was_written_and_says_so(path, monkeypatch, room):
    write(path, (0, 4))
    before = path.read_bytes()
    left = [room]

    def full(fd, data):
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = bytes(data)[: left[0]]
        left[0] -= len(part)
        return real(fd, part)

    real = os.write
    with opened(path) as journal:
        monkeypatch.setattr(module.os, "write", full)
        with pytest.raises(OSError, match="4 of 12 points are kept") as caught:
            journal.append(4, VALUES[4:])
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    monkeypatch.undo()
    with opened(path) as journal:
        assert_holds(journal, (0, 4))


def test_a_disk_that_is_full_from_the_start_leaves_no_file(path, monkeypatch):
    def full(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "write", full)
    with pytest.raises(OSError, match="0 of 12 points are kept"):
        opened(path)
    assert not path.exists()


def test_a_full_disk_that_shows_only_on_sync_is_told_alike(path, monkeypatch):
    def full(fd):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with opened(path) as journal:
        journal.append(0, VALUES[:4])
        monkeypatch.setattr(module.os, "fsync", full)
        with pytest.raises(OSError, match="4 of 12 points are kept"):
            journal.sync()


def test_a_long_run_reaches_the_disk_now_and_then(path, monkeypatch):
    synced = []
    monkeypatch.setattr(module.os, "fsync", synced.append)
    monkeypatch.setattr(module, "SYNC_SECONDS", 0.0)
    with opened(path) as journal:
        journal.append(0, VALUES[:1])
        journal.append(1, VALUES[1:2])
    assert len(synced) == 2


needs_locks = pytest.mark.skipif(module.fcntl is None, reason="no flock on this system")


@needs_locks
def test_a_path_in_use_by_a_live_process_is_refused(path):
    code = (
        "import sys; from pylandscape.runs.journal import Journal\n"
        f"j = Journal({str(path)!r}, {REQUEST!r}, {NAMES!r}, {TOTAL})\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
    ) as other:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(PylandscapeError, match="in use by another running process"):
            opened(path)
        assert path.exists()
        other.kill()
        other.communicate()
    with opened(path) as journal:  # a dead process holds no lock
        assert not journal.done.any()


@needs_locks
def test_a_journal_removed_between_open_and_lock_is_not_used(path, monkeypatch):
    real, calls = module._lock, []

    def removed_at_first(fd, where):
        real(fd, where)
        calls.append(fd)
        if len(calls) == 1:
            where.unlink()

    monkeypatch.setattr(module, "_lock", removed_at_first)
    with opened(path) as journal:
        journal.append(0, VALUES[:2])
    assert len(calls) == 2
    with opened(path) as journal:
        assert_holds(journal, (0, 2))


def test_a_file_system_without_locks_works(path, monkeypatch):
    if module.fcntl is not None:

        def unsupported(fd, flags):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(module.fcntl, "flock", unsupported)
    write(path, (0, 12))
    with opened(path) as journal:
        assert_holds(journal, (0, 12))
        journal.remove()
    assert not path.exists()
