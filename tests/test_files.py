"""Result files: exact round trips, atomic writing, damaged files, loss-landscape's files."""

from __future__ import annotations

import errno
import os
import pickle

import h5py
import numpy as np
import pytest

from pylandscape.errors import FileFormatError, InvalidArgument
from pylandscape.files import atomic
from pylandscape.results.curve import Curve
from pylandscape.results.loading import load
from pylandscape.results.surface import Surface

RNG = np.random.default_rng(0)


def surface(nx=4, ny=3, **options) -> Surface:
    metrics = {"loss": RNG.normal(size=(nx, ny)), "accuracy": RNG.uniform(size=(nx, ny))}
    return Surface(np.sort(RNG.normal(size=nx)), np.arange(ny), metrics=metrics, **options)


def assert_same(a, b):
    assert type(a) is type(b)
    assert a.kind == b.kind
    assert a.info == b.info
    assert list(a.metrics) == list(b.metrics)
    for name in a.metrics:
        assert a.metrics[name].shape == b.metrics[name].shape
        assert a.metrics[name].tobytes() == b.metrics[name].tobytes()
    assert a.x.tobytes() == b.x.tobytes()
    if isinstance(a, Surface):
        assert a.y.tobytes() == b.y.tobytes()


@pytest.mark.parametrize("kind", ["plane", "barycentric", "bilinear"])
@pytest.mark.parametrize("size", [(4, 3), (1, 5), (5, 1), (1, 1)])
def test_a_surface_comes_back_bit_for_bit(tmp_path, size, kind):
    before = surface(*size, kind=kind, info={"request": {"seed": 3}, "angle": 0.1, "none": None})
    before.save(tmp_path / "s.h5")
    assert_same(load(tmp_path / "s.h5"), before)


@pytest.mark.parametrize("kind", ["line", "interpolation"])
def test_a_curve_comes_back_bit_for_bit(tmp_path, kind):
    before = Curve(np.linspace(-1, 1, 7), RNG.normal(size=7), info={"notes": ["é"]}, kind=kind)
    before.save(str(tmp_path / "c.h5"))
    assert_same(load(str(tmp_path / "c.h5")), before)


def test_values_that_are_not_finite_and_odd_names_come_back_bit_for_bit(tmp_path):
    bits = np.array([0x7FF8_0000_0000_BEEF, 1, 0x8000_0000_0000_0000], dtype=np.uint64)
    loss = np.concatenate([bits.view(np.float64), [np.inf, -np.inf]])
    before = Curve(np.arange(5), metrics={"loss": loss, "a/b": loss, ".": loss, "<lambda>": loss})
    before.save(tmp_path / "c.h5")
    assert_same(load(tmp_path / "c.h5"), before)


def test_an_info_of_any_size_comes_back(tmp_path):
    before = Curve([0.0], [1.0], info={"long": "x" * 300_000})  # HDF5 attributes end at 64 KiB
    before.save(tmp_path / "c.h5")
    assert load(tmp_path / "c.h5").info == before.info


def test_an_info_that_json_cannot_hold_is_refused_before_the_file_is_touched(tmp_path):
    good = Curve([0.0], [1.0])
    good.save(tmp_path / "c.h5")
    with pytest.raises(InvalidArgument, match="info: expected what JSON can hold, got a object"):
        Curve([0.0], [2.0], info={"thing": object()}).save(tmp_path / "c.h5")
    assert_same(load(tmp_path / "c.h5"), good)


def test_loss_landscape_tools_find_their_datasets(tmp_path):
    s = surface(4, 3)
    s.save(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5") as file:
        # as its plot_2D.py reads: Z[row, column] over meshgrid(x, y)
        x, y, z = (file[k][:] for k in ("xcoordinates", "ycoordinates", "train_loss"))
        mesh_x, mesh_y = np.meshgrid(x, y)
        assert z.shape == mesh_x.shape == mesh_y.shape == (3, 4)
        assert z[2, 1] == s.values[1, 2]
        assert np.array_equal(file["train_acc"][:], 100 * s.metrics["accuracy"].T)
    Curve([0, 1], [2, 3]).save(tmp_path / "c.h5")
    with h5py.File(tmp_path / "c.h5") as file:
        assert file["train_loss"].shape == file["xcoordinates"].shape == (2,)
        assert "ycoordinates" not in file
        assert "train_acc" not in file


def test_our_file_read_as_a_foreign_one_gives_the_same_surface(tmp_path):
    s = surface(4, 3)
    s.save(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "a") as file:
        del file["pylandscape"]
        del file.attrs["pylandscape"]
    read = load(tmp_path / "s.h5")
    assert np.array_equal(read.values, s.values)
    assert np.allclose(read.metrics["accuracy"], s.metrics["accuracy"], rtol=4e-16)


def test_saving_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path):
    surface(30, 30).save(tmp_path / "s.h5")
    after = surface(2, 2)
    after.save(tmp_path / "s.h5")
    assert_same(load(tmp_path / "s.h5"), after)
    assert os.listdir(tmp_path) == ["s.h5"]


def test_saving_through_a_link_keeps_the_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "s.h5").symlink_to(tmp_path / "real" / "t.h5")
    s = surface()
    s.save(tmp_path / "s.h5")
    assert (tmp_path / "s.h5").is_symlink()
    assert_same(load(tmp_path / "real" / "t.h5"), s)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_while_saving_leaves_the_old_file(tmp_path, monkeypatch, step):
    before = surface()
    before.save(tmp_path / "s.h5")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, step, full)
    with pytest.raises(OSError, match="No space left"):
        surface().save(tmp_path / "s.h5")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["s.h5"]
    assert_same(load(tmp_path / "s.h5"), before)


@pytest.mark.parametrize("path", [None, 3])
def test_a_path_of_another_type_is_named(path):
    with pytest.raises(InvalidArgument, match="path: expected a path, got"):
        surface().save(path)
    with pytest.raises(InvalidArgument, match="path: expected a path, got"):
        load(path)


def test_a_path_that_cannot_be_a_file_is_named(tmp_path):
    with pytest.raises(InvalidArgument, match="path: expected a file, got the folder"):
        surface().save(tmp_path)
    with pytest.raises(InvalidArgument, match="path: expected an existing folder"):
        surface().save(tmp_path / "no" / "s.h5")
    with pytest.raises(FileFormatError, match="path: expected a file, got the folder"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"does not exist$"):
        load(tmp_path / "no.h5")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
def test_a_device_or_a_pipe_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for write in (surface().save, lambda path: atomic.write_bytes(path, b"1")):
        with pytest.raises(InvalidArgument, match=r"path: expected a file, got .*pipe, a device"):
            write(pipe)
    assert pipe.is_fifo()


def test_a_missing_file_with_a_journal_says_how_to_go_on(tmp_path):
    (tmp_path / "s.h5.journal").write_bytes(b"PYLSJRN1")
    with pytest.raises(FileNotFoundError, match=r"s\.h5\.journal holds an unfinished run"):
        load(tmp_path / "s.h5")
    with pytest.raises(FileFormatError, match="is the journal of an unfinished run"):
        load(tmp_path / "s.h5.journal")


# --- damage ------------------------------------------------------------------------------------


def test_a_file_truncated_anywhere_is_named_with_what_to_do(tmp_path):
    surface().save(tmp_path / "s.h5")
    content = (tmp_path / "s.h5").read_bytes()
    for size in [*range(0, 64), *range(64, len(content), 97), len(content) - 1]:
        (tmp_path / "cut.h5").write_bytes(content[:size])
        with pytest.raises(FileFormatError) as caught:
            load(tmp_path / "cut.h5")
        assert str(tmp_path / "cut.h5") in str(caught.value)
        if size >= 8:
            assert "compute it again" in str(caught.value)


def test_a_flipped_bit_in_the_numbers_is_noticed(tmp_path):
    s = surface()
    s.save(tmp_path / "s.h5")
    content = bytearray((tmp_path / "s.h5").read_bytes())
    metrics = np.stack(list(s.metrics.values())).tobytes()
    at = content.index(metrics) + 5
    content[at] ^= 4
    (tmp_path / "s.h5").write_bytes(content)
    with pytest.raises(FileFormatError, match="do not match their checksum"):
        load(tmp_path / "s.h5")


def test_flipped_bits_anywhere_give_the_same_surface_or_an_error(tmp_path):
    before = surface()
    before.save(tmp_path / "s.h5")
    content = (tmp_path / "s.h5").read_bytes()
    refused = 0
    for at in np.random.default_rng(1).integers(0, len(content), 100):
        damaged = bytearray(content)
        damaged[at] ^= 1 << (at % 8)
        (tmp_path / "s.h5").write_bytes(damaged)
        try:
            assert_same(load(tmp_path / "s.h5"), before)
        except FileFormatError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "got an empty one"),
        (pickle.dumps({"loss": 1}), "got another format"),
        (b"PK\x03\x04 a torch checkpoint", "got another format"),
    ],
)
def test_other_formats_are_refused_unread(tmp_path, content, said):
    (tmp_path / "f.h5").write_bytes(content)
    with pytest.raises(FileFormatError, match=said):
        load(tmp_path / "f.h5")


def test_a_newer_format_says_so(tmp_path):
    surface().save(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file["pylandscape"].attrs["format"] = 2
    with pytest.raises(FileFormatError, match="expected a file of format 1, got format 2"):
        load(tmp_path / "s.h5")


@pytest.mark.parametrize("name", ["x", "metrics", "about", ""])
def test_our_group_without_one_of_its_members_is_refused(tmp_path, name):
    surface().save(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "a") as file:
        del file[f"pylandscape/{name}"]
    with pytest.raises(FileFormatError, match=rf"expected '{name or 'pylandscape'}'|checksum"):
        load(tmp_path / "s.h5")


# --- loss-landscape's files --------------------------------------------------------------------


def foreign(path, x=(-1.0, 0.0, 1.0), y=(-1.0, 1.0), **datasets):
    """A surface file as loss-landscape writes it; train_loss [y, x] counts up unless given."""
    with h5py.File(path, "w") as file:
        file["xcoordinates"] = np.array(x)
        shape: tuple[int, ...] = (len(x),)
        if y is not None:
            file["ycoordinates"] = np.array(y)
            shape = (len(y), len(x))
        if "train_loss" not in datasets:
            datasets["train_loss"] = 1.0 + np.arange(np.prod(shape)).reshape(shape)
        for name, value in datasets.items():
            if value is not None:
                file[name] = value
    return path


def test_a_foreign_surface_is_read_with_x_first(tmp_path):
    loss = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    path = foreign(tmp_path / "t.h5", train_loss=loss, train_acc=10 * loss, dir_file="m_weights.h5")
    read = load(path)
    assert isinstance(read, Surface)
    assert read.kind == "plane"
    assert read.values.tolist() == loss.T.tolist()
    assert np.allclose(read.metrics["accuracy"], 0.1 * loss.T)
    assert read.info["dir_file"] == "m_weights.h5"
    assert read.info["unfilled"] == read.info["nonfinite"] == 0


def test_a_foreign_curve_is_read(tmp_path):
    path = foreign(tmp_path / "t.h5", y=None, test_loss=[4.0, 5, 6], test_acc=[50.0, 60, 70])
    read = load(path)
    assert isinstance(read, Curve)
    assert read.values.tolist() == [1, 2, 3]
    assert read.metrics["test_accuracy"].tolist() == [0.5, 0.6, 0.7]


def test_points_never_computed_become_nan_and_are_counted(tmp_path):
    loss = [[1.0, -1.0, 3.0], [-1.0, -1.0, np.nan]]
    acc = [[90.0, -1.0, 70.0], [50.0, -1.0, 10.0]]
    read = load(foreign(tmp_path / "t.h5", train_loss=loss, train_acc=acc))
    # a loss of -1 beside an accuracy was computed
    wanted = [[1.0, -1.0], [np.nan, np.nan], [3.0, np.nan]]
    assert np.array_equal(read.values, wanted, equal_nan=True)
    assert read.info["unfilled"] == 2
    assert read.info["nonfinite"] == 3
    assert np.isnan(read.metrics["accuracy"]).sum() == 2


def test_eigenvalues_come_along(tmp_path):
    low, high = np.full((2, 3), 1.0), np.full((2, 3), -1.0)
    low[0, 0], high[0, 0] = -2.0, 9.0
    read = load(foreign(tmp_path / "t.h5", min_eig=low, max_eig=high))
    assert read.metrics["min_eig"][0, 0] == -2.0
    assert np.isnan(read.metrics["max_eig"]).sum() == 5


def test_a_grid_that_loss_landscape_scrambled_is_put_in_order(tmp_path):
    x, y = np.array([-1.0, 0.0, 1.0]), np.array([-1.0, 1.0])

    def loss(a, b):
        return 2 + 10 * a + b

    # its scheduler walks the raveled (nx, ny) array beside the raveled [y, x] mesh
    mesh_x, mesh_y = np.meshgrid(x, y)
    stored = -np.ones((3, 2))
    stored.ravel()[:] = loss(mesh_x, mesh_y).ravel()
    read = load(foreign(tmp_path / "t.h5", train_loss=stored))
    assert np.array_equal(read.values, loss(x[:, None], y[None]))
    assert "put in order" in read.info["notes"][0]


def test_a_falling_axis_is_turned_round_with_its_values(tmp_path):
    read = load(foreign(tmp_path / "t.h5", x=(1.0, 0.0, -1.0), y=(2.0, 1.0)))
    assert read.x.tolist() == [-1, 0, 1]
    assert read.y.tolist() == [1, 2]
    assert read.values.tolist() == [[6, 3], [5, 2], [4, 1]]


@pytest.mark.parametrize(
    ("datasets", "said"),
    [
        ({"train_loss": np.zeros((4, 4))}, r"'train_loss' of shape \(2, 3\).* got \(4, 4\)"),
        ({"train_loss": np.zeros(6)}, r"got \(6,\)"),
        ({"train_loss": None}, "expected a surface file with 'xcoordinates' and 'train_loss'"),
        ({"train_loss": np.array([[b"a"] * 3] * 2)}, "expected numbers in 'train_loss'"),
        ({"x": (0.0, 0.0, 1.0)}, "different finite numbers"),
        ({"x": (0.0, np.nan, 1.0)}, "different finite numbers"),
        ({"dir_file": 3.0}, "expected a text 'dir_file'"),
    ],
)
def test_a_surface_file_that_makes_no_sense_is_refused(tmp_path, datasets, said):
    with pytest.raises(FileFormatError, match=said) as caught:
        load(foreign(tmp_path / "t.h5", **datasets))
    assert str(tmp_path / "t.h5") in str(caught.value)


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ("xdirection/0", "a direction file"),
        ("proj_xcoord", "a projection file"),
        ("weights", "'weights'"),
    ],
)
def test_files_that_are_no_surfaces_are_named_for_what_they_are(tmp_path, member, said):
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file[member] = np.zeros(3)
    with pytest.raises(FileFormatError, match=f"expected a surface file .* got {said}"):
        load(tmp_path / "d.h5")


@pytest.mark.parametrize("link", ["soft", "external", "storage", "virtual"])
def test_what_lies_outside_the_file_is_not_read(tmp_path, link):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["train_loss"] = np.zeros((2, 3))
    path = foreign(tmp_path / "t.h5", train_loss=None)
    with h5py.File(path, "a") as file:
        if link == "soft":
            file["elsewhere"] = np.zeros((2, 3))
            file["train_loss"] = h5py.SoftLink("/elsewhere")
        elif link == "external":
            file["train_loss"] = h5py.ExternalLink("secret.h5", "train_loss")
        elif link == "storage":
            file.create_dataset("train_loss", (2, 3), "f8", external=str(secret))
        else:
            layout = h5py.VirtualLayout((2, 3), "f8")
            layout[:] = h5py.VirtualSource(str(secret), "train_loss", (2, 3))
            file.create_virtual_dataset("train_loss", layout)
    with pytest.raises(FileFormatError, match=r"expected no links|stored elsewhere"):
        load(path)


def test_an_enormous_dataset_is_refused_before_it_is_read(tmp_path):
    path = foreign(tmp_path / "t.h5", train_loss=None)
    with h5py.File(path, "a") as file:
        file.create_dataset("train_loss", (1 << 20, 1 << 20), "f8", chunks=(1024, 1024))
    with pytest.raises(FileFormatError, match="expected at most"):
        load(path)


def direction_file(path, second=True):
    with h5py.File(path, "w") as file:
        file["xdirection/0"], file["xdirection/1"] = np.array([[3.0, 0.0]]), np.array([4.0])
        if second:
            file["ydirection/0"], file["ydirection/1"] = np.array([[0.0, 2.0]]), np.array([1.0])
    return path


def test_directions_beside_the_surface_give_lengths_and_cosine(tmp_path):
    direction_file(tmp_path / "d.h5")
    read = load(foreign(tmp_path / "t.h5", dir_file="/somewhere/else/d.h5"))
    assert read.info["direction_norms"] == pytest.approx([5.0, 5**0.5])
    assert read.info["direction_cosine"] == pytest.approx(4 / (5 * 5**0.5))


def test_directions_elsewhere_are_opened_only_if_given(tmp_path):
    (tmp_path / "other").mkdir()
    elsewhere = direction_file(tmp_path / "other" / "d.h5", second=False)
    path = foreign(tmp_path / "t.h5", y=None, dir_file=str(elsewhere))
    assert "direction_norms" not in load(path).info
    read = load(path, dir_file=elsewhere)
    assert read.info["direction_norms"] == [5.0]
    assert read.info["direction_cosine"] is None


def test_a_name_that_leads_to_another_folder_is_not_followed(tmp_path):
    (tmp_path / "in").mkdir()
    direction_file(tmp_path / "d.h5")
    for name in ("../d.h5", "..\\d.h5", "..", ""):
        assert "direction_norms" not in load(foreign(tmp_path / "in" / "t.h5", dir_file=name)).info


def test_a_broken_direction_file_is_a_note_beside_the_surface_and_an_error_if_given(tmp_path):
    (tmp_path / "d.h5").write_bytes(b"nothing")
    path = foreign(tmp_path / "t.h5", dir_file="d.h5")
    assert "was not used" in load(path).info["notes"][0]
    with pytest.raises(FileFormatError, match="dir_file: expected an HDF5 file"):
        load(path, dir_file=tmp_path / "d.h5")
    with pytest.raises(FileFormatError, match="expected a direction file"):
        load(path, dir_file=path)
    with pytest.raises(FileNotFoundError, match="dir_file: "):
        load(path, dir_file=tmp_path / "none.h5")


def test_a_direction_file_is_no_argument_for_our_own_files(tmp_path):
    surface().save(tmp_path / "s.h5")
    with pytest.raises(InvalidArgument, match="dir_file: expected none"):
        load(tmp_path / "s.h5", dir_file=tmp_path / "d.h5")
