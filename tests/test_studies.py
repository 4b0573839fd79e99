"""Published studies: their frame, their data, and each of them at a size of seconds."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import pylandscape as pl
from pylandscape.cli import app
from pylandscape.errors import FileFormatError, InvalidArgument, PylandscapeError
from pylandscape.experiments import datasets, networks, registry
from pylandscape.experiments.lab import Lab, Study
from pylandscape.experiments.measured import Difference, Measured
from pylandscape.experiments.methods import METHODS
from pylandscape.experiments.page import Page, verdict_of
from pylandscape.experiments.perturbations import average, perturbed

# Studies that take more than a second at toy size: left to CI.
SLOW = {
    "asymmetric-valleys", "basin-models", "batch-norm", "batch-norm-spectra", "convexity-maps",
    "depth-and-shortcuts", "descent-branches", "end-points", "exact-density", "exotic-starts",
    "four-corners", "gradient-covariance", "hessian-clouds", "learning-trajectories",
    "linear-surfaces", "loss-patterns", "optimiser-pairs-text", "over-parametrisation",
    "perturb-retrain", "polynomial-networks", "restarts", "runge-kutta", "second-basin",
    "sgd-stages", "spectra-in-training", "switching", "wide-networks", "xor-surface",
}  # fmt: skip


def quiet(line: str) -> None:
    """For `say`."""


def idx(array: np.ndarray) -> bytes:
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def mnist_like(folder: Path, zipped: bool = False, train: int = 90) -> None:
    draw = np.random.default_rng(0)
    for stem, count in (("train", train), ("t10k", 80)):
        parts = {"images-idx3": draw.integers(0, 256, (count, 9, 9)), "labels-idx1": None}
        parts["labels-idx1"] = draw.integers(0, 10, count)
        for kind, array in parts.items():
            content = idx(array)
            name = f"{stem}-{kind}-ubyte" + (".gz" if zipped else "")
            (folder / name).write_bytes(gzip.compress(content) if zipped else content)


@pytest.fixture
def only(monkeypatch):
    """Put studies in the place of all."""

    def put(**found):
        known = {
            k: Study(f"study {k}", "A paper", "figure 1", 1.0, run) for k, run in found.items()
        }
        monkeypatch.setattr(registry, "studies", lambda: known)
        return known

    return put


def fair_coin(lab: Lab) -> None:
    """Whether a coin is fair: its claims follow from what it draws."""
    found = lab.kept("draws", lambda: {"x": np.random.default_rng(lab.seed).normal(size=50) + 2})
    mean = Measured(found["x"])
    lab.page.did("50 numbers were drawn.")
    lab.page.claim("the mean is positive", str(mean), mean.above(0.0))
    lab.page.claim("the mean | is negative", str(mean), mean.below(0.0))
    _, axes = plt.subplots()
    axes.plot(found["x"])
    lab.page.picture(axes, "the numbers")
    lab.page.table(("a", "b"), [(1.23456, "x")])
    lab.page.why("It is another coin.")


def test_a_page_says_what_was_done_found_and_whether_they_agree(only, tmp_path):
    only(coin=fair_coin)
    (facts,) = registry.reproduce(["coin"], tmp_path, say=quiet)
    assert facts["verdict"].startswith("Agrees with the paper in part")
    text = (tmp_path / "coin.md").read_text()
    for part in ("50 numbers were drawn", "| the mean is positive |", "| yes |", "| **no** |",
                 "is negative |", "pictures/coin-1.png", "| 1.23 | x |", "- It is another coin.",
                 "pylandscape reproduce coin --scale small --out FOLDER"):  # fmt: skip
        assert part in text
    assert (tmp_path / "pictures/coin-1.png").stat().st_size < 100_000
    index = (tmp_path / "README.md").read_text()
    assert "[study coin](coin.md)" in index
    assert "in part" in index


def test_a_finished_page_is_not_computed_again_and_another_request_is(only, tmp_path):
    calls = []
    only(coin=lambda lab: (calls.append(lab.seed), fair_coin(lab)))
    registry.reproduce(["coin"], tmp_path, say=quiet)
    registry.reproduce(["coin"], tmp_path, say=quiet)
    assert calls == [0]
    registry.reproduce(["coin"], tmp_path, seed=3, say=quiet)
    (tmp_path / "pictures/coin-1.png").unlink()  # a page without its picture is not whole
    registry.reproduce(["coin"], tmp_path, seed=3, say=quiet)
    assert calls == [0, 3, 3]


def test_a_study_that_was_stopped_goes_on_from_its_parts(only, tmp_path):
    drawn = []

    def stopped(lab):
        lab.kept("first", lambda: drawn.append(1) or {"x": 1.0})
        if len(drawn) == 1 and drawn.append(2) is None:
            raise KeyboardInterrupt
        lab.page.claim("x is 1", "it is", lab.kept("first", dict)["x"] == 1.0)

    only(stopped=stopped)
    with pytest.raises(KeyboardInterrupt):
        registry.reproduce(["stopped"], tmp_path, say=quiet)
    assert not (tmp_path / "stopped.md").exists()
    (facts,) = registry.reproduce(["stopped"], tmp_path, say=quiet)
    assert drawn == [1, 2]
    assert [claim["agrees"] for claim in facts["claims"]] == [True]


def test_one_study_that_fails_does_not_stop_the_others(only, tmp_path):
    def broken(lab):
        raise InvalidArgument("nothing: to see here")

    only(broken=broken, coin=fair_coin)
    with pytest.raises(PylandscapeError, match="1 of 2 studies failed: broken: nothing"):
        registry.reproduce(["all"], tmp_path, say=quiet)
    assert (tmp_path / "coin.md").exists()
    assert not (tmp_path / "broken.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["coins"]}, "did you mean coin"),
        ({"names": ["coin"], "scale": "huge"}, "scale"),
        ({"names": ["coin"], "data": ["cifar10"]}, "data: expected"),
        ({"names": ["coin"], "data": ["mnist:here"]}, "data: expected"),
    ],
)
def test_bad_requests_are_named(only, tmp_path, arguments, message):
    only(coin=fair_coin)
    with pytest.raises(InvalidArgument, match=message):
        registry.reproduce(out=tmp_path, say=quiet, **arguments)


def test_a_claim_is_decided_by_data_or_open(tmp_path):
    page = Page("p", tmp_path)
    with pytest.raises(InvalidArgument, match="agrees"):
        page.claim("a", "b", "yes")
    page.claim("a", "b", np.bool_(False))
    assert page.verdict.startswith("Does not agree")
    assert verdict_of([True, True]).startswith("Agrees with the paper: of 2")
    assert verdict_of([None]).startswith("Not decided")
    assert verdict_of([]) == "Nothing was compared"


def test_intervals_decide_only_what_they_exclude():
    few = Measured([1.0, 2.0, 3.0])  # 2 +- 4.303 / sqrt(3)
    assert few.half == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4)
    assert few.above(0.0) is None
    assert few.above(-1.0) is True
    assert few.above(5.0) is False
    assert few.below(5.0) is True
    assert few.within(-1, 5) is True
    assert few.within(6, 9) is False
    assert few.within(0, 5) is None
    assert Measured([1.0]).above(0.0) is None  # one value has no interval
    with pytest.raises(InvalidArgument):
        Measured([np.nan, 1.0])


def test_differences_have_welchs_interval():
    from scipy.stats import ttest_ind

    a, b = np.array([1.0, 2.0, 4.0, 3.5]), np.array([0.0, 0.5, 0.2])
    found = Difference(a, b)
    low, high = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert found.above(0.0) is True
    assert Difference([1.0], [0.0, 0.1]).above(0.0) is None


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_are_read_zipped_or_not(tmp_path, zipped):
    mnist_like(tmp_path, zipped)
    data = datasets.images(f"fashion-mnist:{tmp_path}", train=50)
    assert data.x.shape == (50, 1, 9, 9)
    assert data.x_test.shape == (80, 1, 9, 9)
    assert float(data.x.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(data.x.std()) == pytest.approx(1.0, abs=1e-3)
    assert data.classes == 10


def test_idx_files_of_all_types_have_their_numbers(tmp_path):
    values = np.arange(6, dtype=">f8").reshape(2, 3)
    file = tmp_path / "f"
    file.write_bytes(struct.pack(">HBBII", 0, 14, 2, 2, 3) + values.tobytes())
    assert np.array_equal(datasets.read_idx(file), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX"),
        (b"\x01\x02\x08\x01", "not an IDX"),
        (b"\x00\x00\x08\x01\x00", "header"),
        (idx(np.zeros((3, 2)))[:-1], "only 5 of"),
        (b"\x00\x00\x08\x01\xff\xff\xff\xff", "ends before"),
        (idx(np.zeros((3, 2))) + b"x", "more than"),
        (gzip.compress(idx(np.zeros((3, 2)))[:-1], mtime=0), "only 5 of"),
        (gzip.compress(idx(np.zeros((3, 2))), mtime=0)[:-9], "damaged"),
        (gzip.compress(b"\x00\x00\x08\x01\xff\xff\xff\xff", mtime=0), "only 0 of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_idx_files_are_refused(tmp_path, content, message):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        datasets.read_idx(tmp_path / "f")


def test_binary_cifar_files_are_read(tmp_path):
    draw = np.random.default_rng(0)
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        records = draw.integers(0, 256, (20, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        records.tofile(tmp_path / f"{name}.bin")
    data = datasets.images(f"cifar10:{tmp_path}")
    assert data.x.shape == (40, 3, 32, 32)
    raw = records[0, 1:].reshape(3, 32, 32).astype(float)
    ours = data.x_test[0].double().numpy()
    assert np.corrcoef(raw[1].ravel(), ours[1].ravel())[0, 1] == pytest.approx(1.0, abs=1e-6)
    assert datasets.images(f"cifar10:{tmp_path}", side=8).x.shape == (40, 3, 8, 8)
    (tmp_path / "test_batch.bin").write_bytes(b"short")
    with pytest.raises(FileFormatError, match="3073"):
        datasets.images(f"cifar10:{tmp_path}")
    with pytest.raises(InvalidArgument, match="no data_batch_1"):
        datasets.images("cifar10:nowhere")


def test_missing_fashion_mnist_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(datasets, "DEBIAN", "/nowhere")
    with pytest.raises(InvalidArgument, match="dataset-fashion-mnist"):
        datasets.images("fashion-mnist")


def test_text_windows_predict_the_next_word(tmp_path):
    (tmp_path / "t").write_text("The cat, the dog. " * 40)
    found = datasets.text(f"text:{tmp_path / 't'}", 4, 10, 5)
    assert found.words == ("<unk>", ",", ".", "cat", "dog", "the")
    assert torch.equal(found.x.flatten()[1:], found.y.flatten()[:-1])
    assert found.x_test.shape == (5, 4)
    with pytest.raises(InvalidArgument, match="at least"):
        datasets.text(f"text:{tmp_path / 't'}", 4, 1000, 5)
    generated = datasets.text()
    assert torch.equal(generated.x, datasets.text().x)
    assert "cat" in generated.words


def test_networks_have_the_papers_sizes_and_leave_the_random_state():
    data = datasets.Images("c", torch.zeros(2, 3, 32, 32), torch.tensor([0, 9]),
                           torch.zeros(1, 3, 32, 32), torch.tensor([3]))  # fmt: skip
    before = torch.get_rng_state()
    model = networks.dcnn(data)
    assert sum(p.numel() for p in model.parameters()) == 188_810
    for build in (networks.nin, networks.vgg, networks.fc2):
        assert build(data)(data.x).shape == (2, 10)
    words = datasets.text(length=5, train=4, test=2)
    assert networks.lstm(words)(words.x).shape == (4, len(words.words), 5)
    assert torch.equal(before, torch.get_rng_state())


def test_the_command_lists_and_runs_studies(capsys, tmp_path, only):
    assert app.main(["reproduce", "--list"]) == 0
    said = capsys.readouterr().out
    for name in registry.studies():
        assert name in said
    only(coin=fair_coin)
    out = str(tmp_path / "o")
    assert app.main(["reproduce", "coin", "--out", out, "--seed", "1", "--no-progress"]) == 0
    assert "1 of 1: study coin" in capsys.readouterr().out
    assert json.loads((tmp_path / "o/coin.json").read_text())["request"]["seed"] == 1
    assert app.main(["reproduce", "coin", "--b", "1", "--out", out]) == 2
    with pytest.raises(SystemExit):
        app.main(["reproduce"])


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.ci] * (name in SLOW)) for name in registry.studies()],
)
def test_every_study_runs_and_compares_with_its_paper(name, tmp_path):
    (facts,) = registry.reproduce([name], tmp_path, scale="toy", progress=False, say=quiet)
    assert facts["claims"]
    text = (tmp_path / f"{name}.md").read_text()
    assert "## What was done\n\n\n" not in text
    assert "- " in text.partition("## Why they may not agree")[2].partition("##")[0]
    assert facts["minutes"] <= 4
    script = Path(registry.studies()[name].run.__code__.co_filename).read_text()
    assert len(script.splitlines()) <= 115


def test_noise_has_the_deviation_that_is_asked_for_in_every_tensor():
    draw = torch.Generator().manual_seed(0)
    state = {
        "a.weight": 3 * torch.randn(200, 100, generator=draw) + 1,
        "a.bias": torch.randn(4000, generator=draw),
        "n.running_mean": torch.ones(9),
        "n.num_batches_tracked": torch.tensor(7),
    }
    before = {name: value.clone() for name, value in state.items()}
    for of, scale in (("deviation", torch.std), ("size", lambda t: t.abs().mean())):
        found = perturbed(state, 0.1, 5, of)
        for name in ("a.weight", "a.bias"):
            ratio = float((found[name] - state[name]).std() / scale(state[name]))
            assert ratio == pytest.approx(0.1, rel=0.05)
        assert torch.equal(found["n.running_mean"], state["n.running_mean"])
        assert found["n.num_batches_tracked"] == 7
    assert all(torch.equal(before[name], state[name]) for name in state)
    assert torch.equal(perturbed(state, 0.1, 5)["a.bias"], perturbed(state, 0.1, 5)["a.bias"])
    assert not torch.equal(perturbed(state, 0.1, 5)["a.bias"], perturbed(state, 0.1, 6)["a.bias"])
    with pytest.raises(InvalidArgument, match="of"):
        perturbed(state, 0.1, 5, "norm")


def test_full_batch_branches_without_noise_keep_the_bits_of_the_main_path():
    data = datasets.images(side=8, train=40, test=8)
    land = pl.Landscape(networks.fc2(data, 6), torch.nn.CrossEntropyLoss(), data.train)
    main = pl.train(land, 1, pl.SGD(lr=0.1), steps=8, record=1, progress=False)[0]
    start = perturbed(main[3], 0.0, 1)
    branch = pl.train(land, [start], pl.SGD(lr=0.1), steps=5, record=1, progress=False)[0]
    assert torch.equal(branch.vector(-1), main.vector(-1))
    half = average(main[-1], branch[-1])
    assert all(torch.equal(value, main[-1][name]) for name, value in half.items())


def test_noise_at_a_point_of_a_bowl_lowers_the_loss_as_often_as_theory_says():
    """n = 100, r = 1, sigma = 0.05: Phi(-sigma n / 2 r) = 0.0062."""
    draw = np.random.default_rng(0)
    point = draw.normal(size=100)
    point /= np.linalg.norm(point)
    moved = np.linalg.norm(point + 0.05 * draw.normal(size=(20_000, 100)), axis=1)
    assert (moved < 1).mean() == pytest.approx(0.0062, abs=0.002)


def test_optimisers_have_the_forms_of_the_paper():
    assert METHODS["SGDM"].dampening == METHODS["SGDM"].momentum
    assert METHODS["SGDM"].from_zero
    for name, base in (("RK2", "SGD"), ("Adam&RK2", "Adam")):
        assert METHODS[name].lr == 2 * METHODS[base].lr  # a step costs two gradients
