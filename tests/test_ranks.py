"""Several processes give what one gives, end together, and lose nothing that was recorded."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rank_cases
import torch
from rank_cases import CASES, Group

import pylandscape as pl
from pylandscape.runs.items import _ends


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert "kind" not in found, found
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        got, want = np.asarray(found[name]), np.asarray(array)
        assert np.array_equal(got, want, equal_nan=want.dtype.kind == "f"), name


def failed(found: list[dict[str, object]]) -> list[str]:
    assert all("kind" in each for each in found), found
    return [f"{each['kind']}: {each['text']}" for each in found]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Group:
    """Two ranks that go through many cases; after an error they go on with the next one."""
    cases = (
        "points raising different:data different:function different:samples between files "
        "few_shared arrays hanging early"
    )
    group = Group(tmp_path_factory.mktemp("two"), cases, 2)
    group.end()
    return group


def test_two_ranks_give_the_bits_of_one_process(two: Group, tmp_path: Path) -> None:
    wanted = CASES["points"](tmp_path)
    for found in two.found("points"):
        same(found, wanted)


def test_an_exception_of_one_rank_ends_the_work_of_all_with_its_number(two: Group) -> None:
    one, other = failed(two.found("raising"))
    assert "rank 1 stopped" in one
    assert "no such score" in one
    assert "no such score" in other
    assert "rank" not in other


def test_a_rank_that_fails_between_two_inner_calls_counts_like_the_others(two: Group) -> None:
    one, other = failed(two.found("between"))
    assert "rank 1 stopped: ValueError: no use" in one
    assert other == "ValueError: no use"


def test_a_rank_that_hangs_is_noticed_in_time(two: Group) -> None:
    one, other = failed(two.found("hanging"))
    assert one.startswith("RankFailed: rank 1 did not come")
    assert other.startswith("RankFailed: rank 0 stopped: RankFailed: rank 1 did not come")


@pytest.mark.parametrize("what", ["data", "function", "samples"])
def test_ranks_that_ask_different_things_are_told_what_differs(two: Group, what: str) -> None:
    for text in failed(two.found(f"different:{what}")):
        assert text.startswith("InvalidArgument")
        assert f"\n  {'data' if what == 'samples' else what}: " in text
        assert "rank 0" in text
        assert "rank 1" in text


def test_after_errors_the_ranks_work_together_again(two: Group, tmp_path: Path) -> None:
    for found in two.found("early"):
        same(found, CASES["early"](tmp_path))


def test_arrays_of_all_sizes_are_exchanged(two: Group) -> None:
    assert not any(two.found("arrays"))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 3, 10, 40, 997])
@pytest.mark.parametrize("most", [1, 16, 1000])
def test_equal_ranks_draw_equally_much(count: int, size: int, most: int) -> None:
    pieces = np.diff(_ends(count, size, most), prepend=0)
    assert pieces.sum() == count
    assert ((pieces > 0) & (pieces <= most)).all()
    shares = [pieces[rank::size].sum() for rank in range(size)]
    assert max(shares) - min(shares) <= max(1, count // (12 * size))
    if size > 1 and count:
        assert pieces[0] <= -(-count // (2 * size))


def test_ranks_that_share_out_the_samples_give_the_bits_of_one(two: Group, tmp_path: Path) -> None:
    wanted = CASES["few_shared"](tmp_path)
    for found in two.found("few_shared"):
        same(found, wanted)
    land = pl.Landscape(rank_cases.network(), "cross_entropy", rank_cases.samples(5))
    np.testing.assert_allclose(wanted["plane"], rank_cases.surface(land, 5), rtol=1e-13)
    np.testing.assert_allclose(wanted["gradient"], land.gradient(), atol=1e-14)


@pytest.mark.ci
@pytest.mark.parametrize("size", [2, 3])
def test_shared_samples_with_weights_and_ignored_targets_are_exact(
    tmp_path: Path, size: int
) -> None:
    (own := tmp_path / "own").mkdir()
    wanted = CASES["shared_data"](own)
    for found in Group(tmp_path, "shared_data", size).end():
        same(found, wanted)
    if size == 3:  # unequal parts, which the ranks have by themselves: the sums are others
        for found in Group(tmp_path, "shared_data", size, what="parts").end():
            for name, array in wanted.items():
                np.testing.assert_allclose(found[name], array, atol=1e-13, err_msg=name)


@pytest.mark.ci
def test_a_sampler_that_repeats_samples_is_refused_where_they_would_count_twice(
    tmp_path: Path,
) -> None:
    group = Group(tmp_path, "padded_shard shared_alone", 2)
    for text in failed(group.end()):
        assert "1 of the samples stand on several ranks" in text
        assert "DistributedSampler" in text
    for text in failed(group.found("shared_alone")):
        assert "shared out among 2 processes" in text


def test_what_needs_all_samples_is_refused_where_they_are_shared_out() -> None:
    data = rank_cases.samples(5)
    land = pl.Landscape(rank_cases.network(), "cross_entropy", data, shard="data")
    d = torch.ones(land.n_params)

    def score(outputs: torch.Tensor, target: torch.Tensor) -> float:
        return 0.0

    for ask in (
        lambda: pl.classify(land, land.theta[None]),
        lambda: pl.train(land, 2, pl.SGD(lr=0.1), steps=2, batch_size=2),
        lambda: land.per_sample_gradients(),
        lambda: land.evaluate([[0.0]], d[None], metrics=(score,)),
        lambda: pl.Landscape(rank_cases.network(), "cross_entropy", data, shard="rows"),
        lambda: pl.barriers(land, [rank_cases.network(), rank_cases.network(seed=1)], points=3),
    ):
        with pytest.raises(pl.InvalidArgument, match="shard"):
            ask()


@pytest.mark.ci
def test_three_ranks_give_the_bits_of_one_process(tmp_path: Path) -> None:
    wanted = CASES["points"](tmp_path)
    for found in Group(tmp_path, "points", 3).end():
        same(found, wanted)


@pytest.mark.ci
@pytest.mark.parametrize(("size", "record"), [(2, False), (3, True)])
def test_walks_probes_runs_starts_and_products_are_shared_too(
    tmp_path: Path, size: int, record: bool
) -> None:
    (own := tmp_path / "own").mkdir()
    wanted = CASES["items"](own, record)
    for found in Group(tmp_path, "items", size, record=record).end():
        same(found, wanted)
    assert {p.name for p in tmp_path.glob("*.h5*")} == {p.name for p in own.glob("*.h5*")}


@pytest.mark.ci
@pytest.mark.parametrize(("size", "record"), [(2, True), (3, False)])
def test_flatness_tracks_alignments_and_curves_have_the_bits_of_one_process(
    tmp_path: Path, size: int, record: bool
) -> None:
    (own := tmp_path / "own").mkdir()
    wanted = CASES["solutions"](own, record)
    for found in Group(tmp_path, "solutions", size, record=record).end():
        same(found, wanted)
    names = ["a.h5", "c.h5", "p.h5", "t.h5"] if record else []
    assert sorted(p.name for p in tmp_path.glob("*.h5*")) == names


def test_torchrun_s_environment_alone_makes_a_group(tmp_path: Path) -> None:
    group = Group(tmp_path, "early ended", 2, launched=True)
    for found in group.end():
        same(found, CASES["early"](tmp_path))
    one, other = group.found("ended")  # nobody waits for a rank whose script has ended
    assert "rank 1 does not come to call 3, plane: it has left the group" in one["text"]
    assert not other


@pytest.mark.ci
@pytest.mark.parametrize("what", ["model", "theta", "arguments"])
def test_the_parts_of_a_request_are_told_apart(tmp_path: Path, what: str) -> None:
    for text in failed(Group(tmp_path, "different", 3, what=what).end()):
        assert f"\n  {what}{' (axes)' if what == 'arguments' else ''}: " in text
        assert "ranks 0, 1" in text
        assert text.count("\n  ") == 3


@pytest.mark.ci
def test_a_rank_that_comes_to_know_of_a_difference_by_another_s_failure_tells_it_in_full(
    tmp_path: Path,
) -> None:
    for text in failed(Group(tmp_path, "different", 2, what="theta", late=True).end()):
        assert "\n  theta: " in text
        assert "stopped" not in text


@pytest.mark.ci
def test_a_padded_shard_of_a_distributed_sampler_is_found(tmp_path: Path) -> None:
    for text in failed(Group(tmp_path, "different", 2, what="padded").end()):
        assert "\n  data: " in text
        assert "DistributedSampler" in text
        assert "\n  model" not in text


@pytest.mark.ci
def test_a_function_called_on_one_rank_only_is_noticed(tmp_path: Path) -> None:
    one, _other = Group(tmp_path, "different", 2, what="some").end()
    assert one["kind"] == "RankFailed"
    assert "rank 1" in one["text"]
    assert "call 2, plane" in one["text"]


@pytest.mark.ci
def test_work_of_one_rank_alone_takes_part_in_nothing(tmp_path: Path) -> None:
    assert not any(Group(tmp_path, "different", 2, what="alone").end())


def test_finished_files_are_every_rank_s_result(two: Group, tmp_path: Path) -> None:
    wanted = CASES["files"](tmp_path)
    for rank, found in enumerate(two.found("files")):
        refused = str(found.pop("refused"))
        assert "ResumeMismatch" in refused
        assert ("rank 0 stopped" in refused) == bool(rank)
        same(found, {k: v for k, v in wanted.items() if k != "refused"})
    assert sorted(p.name for p in two.folder.glob("*.h5*")) == ["e.h5", "s.h5", "w.h5"]


def begun(folder: Path, count: int, pattern: str = "s.h5.journal*") -> None:
    """Wait until so many journals are there."""
    end = time.monotonic() + 100
    while len(list(folder.glob(pattern))) < count and time.monotonic() < end:
        time.sleep(0.01)


def killed(
    folder: Path, chance: random.Random, size: int, name: str = "slow", pattern: str = "s.h5.j*"
) -> None:
    """A group of which one rank is killed at a random moment, and then the others, as torchrun
    does."""
    group = Group(folder, name, size, pause=0.02)
    begun(folder, size, pattern)
    time.sleep(chance.uniform(0.0, 1.0))
    for rank in chance.sample(range(size), size):
        group.kill(rank)
    for process in group.processes:
        process.join()


def kills(folder: Path, count: int) -> None:
    chance = random.Random(0)
    wanted = CASES["slow"](folder, path="alone.h5", pause=0.0)["plane"]
    done = 0
    for _ in range(count):
        size = chance.choice([1, 2, 3])
        killed(folder, chance, size)
        if chance.random() < 0.7 and not (folder / "s.h5").exists():
            continue
        size = chance.choice([1, 2, 3])
        for found in Group(folder, "slow", size, pause=0.0).end():
            assert np.array_equal(found["plane"], wanted), found
            done += int(found["resumed"] > 0)
        assert [p.name for p in folder.glob("s.h5*")] == ["s.h5"]
        (folder / "s.h5").unlink()
    assert done


@pytest.mark.ci
def test_killed_ranks_lose_nothing_and_any_number_of_ranks_goes_on(tmp_path: Path) -> None:
    kills(tmp_path, 10)


@pytest.mark.slow
def test_killed_ranks_that_train_leave_runs_which_any_number_of_ranks_goes_on_with(
    tmp_path: Path,
) -> None:
    train_and_kill(tmp_path, 20)


def train_and_kill(folder: Path, count: int) -> None:
    chance = random.Random(0)
    (own := folder / "own").mkdir()
    wanted = CASES["training"](own)
    for _ in range(count):
        killed(folder, chance, chance.choice([1, 2, 3]), "training", "runs.h5.recording*")
        if chance.random() < 0.6:
            continue
        for found in Group(folder, "training", chance.choice([1, 2, 3])).end():
            same(found, wanted)
        assert [p.name for p in folder.glob("runs.h5*")] == ["runs.h5"]
        (folder / "runs.h5").unlink()


@pytest.mark.slow
def test_two_hundred_kills(tmp_path: Path) -> None:
    kills(tmp_path, 200)


@pytest.mark.ci
def test_what_ranks_recorded_is_merged_by_one_process(tmp_path: Path) -> None:
    group = Group(tmp_path, "slow", 3, pause=0.2)
    begun(tmp_path, 3)
    time.sleep(3.0)
    for rank in (1, 2, 0):
        group.kill(rank)
    group.end()
    assert {p.name for p in tmp_path.glob("s.h5*")} == {
        "s.h5.journal", "s.h5.journal.rank1", "s.h5.journal.rank2"
    }  # fmt: skip
    found = CASES["slow"](tmp_path, pause=0.0)
    assert found["resumed"] > 3
    assert np.array_equal(
        found["plane"], CASES["slow"](tmp_path, path="alone.h5", pause=0.0)["plane"]
    )
    assert sorted(p.name for p in tmp_path.glob("*.h5*")) == ["alone.h5", "s.h5"]


@pytest.mark.ci
def test_runs_that_ranks_trained_are_on_the_disk_and_taken_up(tmp_path: Path) -> None:
    for text in failed(Group(tmp_path, "training", 2, fails=True).end()):
        assert "no such length" in text
    (own := tmp_path / "own").mkdir()
    wanted = CASES["training"](own)
    (other := tmp_path / "other").mkdir()
    for path in tmp_path.glob("runs.h5*"):
        (other / path.name).write_bytes(path.read_bytes())
    for found in Group(tmp_path, "training", 3).end():
        same(found, wanted)
    rank_cases.MEASURED.clear()
    same(CASES["training"](other), wanted)
    assert 0 < len(rank_cases.MEASURED) < 12 * 4  # one process trains the others alone
    (tmp_path / "runs.h5").unlink()
    for found in Group(
        tmp_path, "training", 2, apart=True
    ).end():  # the first one sends what it has
        same(found, wanted)
    for folder in (tmp_path, own, other):
        assert [path.name for path in folder.glob("runs.h5*")] == ["runs.h5"]


@pytest.mark.ci
def test_where_only_rank_0_can_write_it_keeps_the_points_of_all(tmp_path: Path) -> None:
    for found in Group(tmp_path, "folder_of_one", 3).end():
        assert np.array_equal(found["plane"], rank_cases.surface(rank_cases.landscape(), 11))
    assert [p.name for p in tmp_path.glob("s.h5*")] == ["s.h5"]


def environment(**values: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **values}


def test_a_world_size_without_a_place_to_meet_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(pl.InvalidArgument, match=r"is 2 .*MASTER_ADDR"), pl.distributed():
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(pl.InvalidArgument, match=r"WORLD_SIZE.*'two'"), pl.distributed():
        pass


def test_nobody_at_the_meeting_is_an_error_within_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = str(rank_cases.free_port())
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", port)
    with (
        pytest.raises(pl.RankFailed, match=f"rank 1 of 2 did not meet.*127.0.0.1:{port}"),
        pl.distributed(timeout=0.5),
    ):
        pass


def test_nccl_without_gpus_and_odd_time_limits_are_refused() -> None:
    for unknown in ("nccl2", "cpu:gloo,cuda:zzz", 3):
        with (
            pytest.raises(pl.InvalidArgument, match=r"backend: expected one of gloo.*, got"),
            pl.distributed(backend=unknown),
        ):
            pass
    with pytest.raises(pl.InvalidArgument, match="backend"), pl.distributed(backend="nccl"):
        pass
    for timeout in (0, -1.0, float("nan"), True, "10"):
        with pytest.raises(pl.InvalidArgument, match="timeout"), pl.distributed(timeout=timeout):
            pass


def test_one_process_is_a_group_of_one() -> None:
    with pl.distributed() as ranks:
        assert (ranks.rank, ranks.size, ranks.first) == (0, 1, True)


@pytest.mark.ci
def test_the_command_line_under_torchrun_prints_and_writes_once(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from rank_cases import network as model, samples as data\n")
    tests = Path(__file__).resolve().parent
    base = [sys.executable, "-m"]
    command = [
        "pylandscape", "plane", "--model", "mine:model", "--data", "mine:data", "--x", "-1:1:9",
        "--y", "-1:1:9", "--plot", "s.png", "--out",
    ]  # fmt: skip
    run = [*base, "torch.distributed.run", "--nproc-per-node=2", "--master-port",
           str(rank_cases.free_port()), "-m"]  # fmt: skip
    package = Path(pl.__file__).resolve().parent.parent  # installed, or built in the checkout
    env = environment(PYTHONPATH=os.pathsep.join(map(str, [package, tests, tmp_path])))
    env.pop("PYTHONSAFEPATH", None)
    found = subprocess.run(
        [*run, *command, "two.h5"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("written    two.h5") == 1
    assert found.stdout.count("engine     ") == 1
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".py") == ["s.png", "two.h5"]
    subprocess.run([*base, *command, "one.h5"], cwd=tmp_path, env=env, check=True)
    one, two = (pl.load(tmp_path / name) for name in ("one.h5", "two.h5"))
    assert np.array_equal(one.values, two.values)
