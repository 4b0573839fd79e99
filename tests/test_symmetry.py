"""The equioutput group: orders, outputs, isometry, canonical form, alignment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pylandscape as pl
from pylandscape.critical.mlp_structure import GroupElement
from pylandscape.critical.symmetry import EquioutputGroup

EPS = np.finfo(np.float64).eps
SHAPES = {
    "2-2-1": [(2, 2), (2, 1)],
    "3-3-2": [(3, 3), (3, 2)],
    "2-3-2-2": [(2, 3), (3, 2), (2, 2)],
    "2-3-4-3-1": [(2, 3), (3, 4), (4, 3), (3, 1)],
}


def mlp(sizes, activation=nn.Tanh, bias=True) -> nn.Sequential:
    parts: list[nn.Module] = []
    for inputs, out in sizes:
        parts += [nn.Linear(inputs, out, bias=bias, dtype=torch.float64), activation()]
    return nn.Sequential(*parts[:-1])


def outputs(model: nn.Module, thetas: np.ndarray, x: torch.Tensor) -> np.ndarray:
    rows = []
    for theta in torch.as_tensor(thetas):
        nn.utils.vector_to_parameters(theta, model.parameters())
        rows.append(model(x).detach().numpy())
    return np.stack(rows)


def draw(group: EquioutputGroup, count: int | None = None, seed: int = 0) -> np.ndarray:
    shape = (group.n,) if count is None else (count, group.n)
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize(("units", "order"), [(2, 8), (3, 48), (10, 3_715_891_200)])
def test_order_is_that_of_signed_permutations(units, order):
    assert EquioutputGroup([(4, units), (units, 1)]).order == order


def test_order_of_several_layers_is_the_product():
    assert EquioutputGroup([(4, 2), (2, 3), (3, 1)]).order == 8 * 48
    assert EquioutputGroup([(4, 1)]).order == 1


def test_relu_and_sigmoid_have_permutations_only():
    for activation in (nn.ReLU, nn.Sigmoid):
        group = EquioutputGroup(mlp([(2, 3), (3, 1)], activation))
        assert group.order == 6
        assert group.flips == (False,)


@pytest.mark.parametrize("name", ["ReLU", "sigmoid"])
def test_flips_of_other_activations_are_refused_with_the_reason(name):
    with pytest.raises(pl.InvalidArgument, match="flips: expected odd activations"):
        EquioutputGroup([(2, 2), (2, 1)], activation=name, flips=True)


def test_flips_are_all_or_none_and_never_a_number():
    with pytest.raises(pl.InvalidArgument, match="flips: expected True, False or None, got 3"):
        EquioutputGroup([(2, 2), (2, 1)], activation="tanh", flips=3)


def test_each_layer_flips_where_its_own_activation_is_odd():
    group = EquioutputGroup([(2, 2), (2, 2), (2, 1)], activation=("tanh", "relu"))
    assert group.flips == (True, False)
    assert group.order == 8 * 2


@pytest.mark.parametrize("name", ["2-2-1", "3-3-2", "2-3-2-2"])
def test_images_are_distinct_have_equal_outputs_and_equal_norms(name):
    model = mlp(SHAPES[name])
    group = EquioutputGroup(model)
    theta, x = draw(group), torch.randn(7, SHAPES[name][0][0], dtype=torch.float64)

    images = group.images(theta)

    assert len(np.unique(images, axis=0)) == group.order
    np.testing.assert_array_equal(images[0], theta)
    given = outputs(model, images, x)
    np.testing.assert_allclose(given, np.broadcast_to(given[0], given.shape), atol=1e-12, rtol=0)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), np.linalg.norm(theta), rtol=8 * EPS)


def test_random_elements_keep_the_outputs_of_a_deep_network():
    model = mlp(SHAPES["2-3-4-3-1"])
    group = EquioutputGroup(model)
    theta, x = draw(group), torch.randn(7, 2, dtype=torch.float64)
    images = np.stack([theta, *(group.apply(g, theta) for g in group.random_elements(50))])

    given = outputs(model, images, x)

    np.testing.assert_allclose(given, np.broadcast_to(given[0], given.shape), atol=1e-12, rtol=0)
    assert len(np.unique(images, axis=0)) > 45


def test_landscapes_are_constant_on_orbits():
    model = mlp([(2, 3), (3, 1)])
    x, y = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    land = pl.Landscape(model, "mse", (x, y))
    group = EquioutputGroup(land)

    losses = land.losses(points=torch.as_tensor(group.images(land.theta)))

    np.testing.assert_allclose(losses, land.loss(), rtol=1e-12)


def test_elements_form_a_group_that_does_not_commute():
    group = EquioutputGroup(SHAPES["2-2-1"])
    elements = list(group.elements())
    assert len(set(elements)) == group.order == 8
    assert {a.after(b) for a in elements for b in elements} == set(elements)
    assert all(g.after(g.inverse()) == group.identity() for g in elements)
    assert any(a.after(b) != b.after(a) for a in elements for b in elements)
    assert not group.abelian
    assert EquioutputGroup([(2, 1), (1, 1)]).abelian


def test_composition_is_that_of_the_maps():
    group = EquioutputGroup(SHAPES["2-3-4-3-1"])
    theta = draw(group)
    a, b = group.random_elements(2, seed=3)

    np.testing.assert_array_equal(
        group.apply(a.after(b), theta), group.apply(a, group.apply(b, theta))
    )
    np.testing.assert_array_equal(group.apply(a.inverse(), group.apply(a, theta)), theta)


def test_flip_and_swap_move_by_the_published_distances():
    group = EquioutputGroup(SHAPES["3-3-2"])
    theta = draw(group)
    unit = [np.r_[theta[group.layers.incoming(0)[i]], theta[group.layers.outgoing(0)[i]]]
            for i in range(3)]  # fmt: skip
    flip = GroupElement((np.arange(3),), (np.array([-1.0, 1.0, 1.0]),))
    swap = GroupElement((np.array([1, 0, 2]),), (np.ones(3),))

    flipped = np.linalg.norm(group.apply(flip, theta) - theta)
    swapped = np.linalg.norm(group.apply(swap, theta) - theta)

    assert flipped == pytest.approx(2 * np.linalg.norm(unit[0]), rel=8 * EPS)
    assert swapped == pytest.approx(np.sqrt(2) * np.linalg.norm(unit[0] - unit[1]), rel=8 * EPS)


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("flips", [None, False])
def test_canonical_form_is_constant_on_orbits_and_idempotent_bit_for_bit(name, flips):
    group = EquioutputGroup(SHAPES[name], flips=flips)
    theta = draw(group)
    images = np.stack([group.apply(g, theta) for g in group.random_elements(40)])

    forms = group.canonical(images)

    assert len(np.unique(forms, axis=0)) == 1
    np.testing.assert_array_equal(group.canonical(forms), forms)
    np.testing.assert_array_equal(group.canonical(theta), forms[0])
    assert group.in_wedge(forms).all()


@pytest.mark.parametrize("name", list(SHAPES))
def test_canonical_form_is_an_image(name):
    group = EquioutputGroup(SHAPES[name])
    theta = draw(group)
    found = group.align(theta, group.canonical(theta))
    assert found.distance == 0.0
    assert found.exact


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("name", list(SHAPES))
def test_ties_are_broken_alike_on_the_whole_orbit(name, levels):
    # Few distinct numbers, zeros among them: equal units, zero units, equal biases.
    group = EquioutputGroup(SHAPES[name])
    rng = np.random.default_rng(levels)
    for _ in range(10):
        theta = rng.integers(0, levels + 1, group.n) * rng.choice([-1.0, 1.0], group.n)
        images = np.stack([group.apply(g, theta) for g in group.random_elements(20)])
        forms = group.canonical(images)
        assert len(np.unique(forms, axis=0)) == 1
        np.testing.assert_array_equal(group.canonical(forms), forms)


def test_canonical_form_of_networks_without_biases_goes_by_the_weights():
    group = EquioutputGroup([(3, 4), (4, 2)], bias=False)
    theta = draw(group)
    images = np.stack([group.apply(g, theta) for g in group.random_elements(30)])
    assert len(np.unique(group.canonical(images), axis=0)) == 1


def test_canonical_form_has_no_negative_zeros():
    group = EquioutputGroup(SHAPES["2-2-1"])
    assert not np.signbit(group.canonical(-np.zeros((3, group.n)))).any()


@pytest.mark.parametrize("flips", [True, False])
def test_gaussian_biases_fall_into_the_wedge_with_probability_one_in_the_order(flips):
    group = EquioutputGroup([(2, 3), (3, 1)], flips=flips)
    count, p = 200_000, 1.0 / group.order

    share = group.in_wedge(draw(group, count)).mean()

    assert abs(share - p) < 4.0 * np.sqrt(p * (1.0 - p) / count)


def test_cone_is_the_wedge_turned_by_the_first_output_bias():
    group = EquioutputGroup(SHAPES["2-2-1"])
    theta = group.canonical(draw(group))
    theta[-1] = 2.0
    assert group.in_wedge(theta)
    assert group.in_cone(theta)
    theta[-1] = -2.0
    assert not group.in_cone(theta)
    theta[group.layers.biases(0)] *= -1.0
    assert group.in_cone(theta)


@pytest.mark.parametrize("name", ["2-2-1", "3-3-2", "2-3-2-2"])
@pytest.mark.parametrize("flips", [None, False])
def test_distance_is_the_least_over_all_images(name, flips):
    group = EquioutputGroup(SHAPES[name], flips=flips)
    a, b = draw(group, 2)

    found = group.align(a, b)

    least = np.linalg.norm(group.images(a) - b, axis=1).min()
    assert found.exact
    assert found.distance == pytest.approx(least, rel=8 * EPS)
    assert group.distance(b, a) == pytest.approx(least, rel=32 * EPS)
    np.testing.assert_array_equal(found.theta, group.apply(found.element, a))


def test_alignment_of_a_large_group_finds_the_image_again():
    group = EquioutputGroup([(3, 12), (12, 9), (9, 2)])
    theta = draw(group)
    (g,) = group.random_elements(1, seed=5)
    noise = 1e-3 * draw(group, seed=7)

    exactly = group.align(group.apply(g, theta), theta)
    nearly = group.align(group.apply(g, theta) + noise, theta)

    assert exactly.distance == 0.0
    assert exactly.exact
    assert nearly.distance == pytest.approx(np.linalg.norm(noise), rel=1e-9)
    assert not nearly.exact


def test_alignment_is_never_farther_than_the_points_themselves():
    group = EquioutputGroup([(3, 6), (6, 6), (6, 2)])
    a, b = draw(group, 2)
    assert group.distance(a, b) < np.linalg.norm(a - b)


def test_points_of_another_length_are_refused():
    group = EquioutputGroup(SHAPES["2-2-1"])
    for call in (group.canonical, group.in_wedge, group.images):
        with pytest.raises(pl.InvalidArgument, match="theta: expected shape"):
            call(np.zeros(8))
    with pytest.raises(pl.InvalidArgument, match="finite"):
        group.distance(np.full(9, np.nan), np.zeros(9))


def test_too_many_images_are_refused_with_what_to_do():
    group = EquioutputGroup([(2, 10), (10, 1)])
    with pytest.raises(pl.InvalidArgument, match="random_elements"):
        group.images(np.zeros(group.n))


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (nn.Sequential(nn.Conv2d(1, 1, 1)), "Linear layer first"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)), "got BatchNorm1d"),
        (nn.Sequential(nn.Tanh()), "Linear layer first"),
        ([(2, 3), (4, 1)], "each layer to take what the one before gives"),
        ([(2, 0)], "sizes of 1 or more"),
        ([2, 3], "sizes"),
        ("mlp", "sizes"),
    ],
)
def test_other_models_are_refused(model, match):
    with pytest.raises(pl.InvalidArgument, match=match):
        EquioutputGroup(model)


def test_shared_layers_and_parts_of_a_model_are_refused():
    shared = nn.Linear(2, 2)
    with pytest.raises(pl.InvalidArgument, match="shared"):
        EquioutputGroup(nn.Sequential(shared, nn.Tanh(), shared))
    model = mlp([(2, 2), (2, 1)])
    data = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    with pytest.raises(pl.InvalidArgument, match="all 9 parameters"):
        EquioutputGroup(pl.Landscape(model, "mse", data, params=["0.*"]))
