"""Rotated neurons: every angle stays, and the network learns."""

import copy

import pytest
import torch
from mhe_core import neuron_matrix
from mhe_uniformity.orthogonal import Rotation, assert_energy_preserved, rotate_neurons
from sklearn.datasets import load_digits
from timm.layers import Conv2dSame, StdConv2d
from torch import nn
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

LAYERS = {
    "linear": lambda: nn.Linear(10, 6),
    "conv1d": lambda: nn.Conv1d(4, 6, 3),
    "conv2d": lambda: nn.Conv2d(3, 6, 3),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3),
    "grouped transposed": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
}


def turned(layer, **options):
    """The layer after a rotation by large angles, and its neurons before."""
    before = neuron_matrix(layer).detach().clone()
    rotate_neurons(layer, **options)
    nn.init.normal_(layer.parametrizations.weight[0].angles)
    return before, neuron_matrix(layer).detach()


@pytest.mark.parametrize("map", ["cayley", "matrix_exp"])
@pytest.mark.parametrize("block_size", [None, 4, 1])
@pytest.mark.parametrize("kind", LAYERS)
def test_products_of_neurons_stay(kind, map, block_size):
    torch.manual_seed(0)
    before, after = turned(LAYERS[kind]().double(), map=map, block_size=block_size)
    torch.testing.assert_close(after @ after.mT, before @ before.mT, rtol=1e-12, atol=1e-12)
    assert torch.equal(after, before) == (block_size == 1)  # which leaves nothing to turn


@pytest.mark.parametrize("kind", LAYERS)
def test_neurons_are_those_of_core(kind):
    """Each neuron is turned by the same matrix, whatever the layer's layout."""
    torch.manual_seed(0)
    layer = LAYERS[kind]().double()
    before, after = turned(layer)
    (rotation,) = layer.parametrizations.weight[0].rotations().detach()
    torch.testing.assert_close(after, before @ rotation.mT)


@pytest.mark.parametrize("map", ["cayley", "matrix_exp"])
def test_blocks_are_rotations_by_their_formula(map):
    torch.manual_seed(0)
    rotation = Rotation(torch.empty(3, 10, dtype=torch.float64), map=map, block_size=4)
    nn.init.normal_(rotation.angles)
    blocks = rotation.rotations().detach()
    identity = torch.eye(4, dtype=torch.float64)
    for k, R in enumerate(blocks):
        torch.testing.assert_close(R @ R.mT, identity)
        assert torch.linalg.det(R) > 0
        above = torch.zeros(4, 4, dtype=torch.float64)
        above[tuple(torch.triu_indices(4, 4, 1))] = rotation.angles[k].detach()
        if k == 2:  # the last block has two dimensions only
            above[:, 2:] = 0
        A = above - above.T
        wanted = torch.linalg.inv(identity - A) @ (identity + A)
        if map == "matrix_exp":
            power, wanted = identity, identity.clone()
            for n in range(1, 60):
                power = power @ A / n
                wanted += power
        torch.testing.assert_close(R, wanted)


def test_the_network_is_at_first_the_same_and_removal_leaves_plain_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4))
    images = torch.randn(2, 3, 3, 3)
    before = model(images)
    assert rotate_neurons(model, exclude=["3"]) == ["0"]
    torch.testing.assert_close(model(images), before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    angles = "0.parametrizations.weight.0.angles"
    assert trained == {"0.bias", angles, "3.weight", "3.bias"}
    nn.init.normal_(model.get_parameter(angles), std=0.1)
    turned = model(images)
    remove_parametrizations(model[0], "weight")
    torch.testing.assert_close(model(images), turned)


@pytest.mark.parametrize(
    ("map", "block_size"), [("cayley", None), ("matrix_exp", None), ("cayley", 16)]
)
def test_digits_are_learnt_and_no_energy_changes(map, block_size):
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    layers = (0, 2, 5)
    for k in layers:
        nn.init.kaiming_normal_(model[k].weight)
    before = copy.deepcopy(model)
    assert rotate_neurons(model, map=map, block_size=block_size) == ["0", "2", "5"]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(60):
        batch = torch.randint(1500, (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = (model(images[1500:]).argmax(1) == labels[1500:]).float().mean().item()
    assert accuracy > 0.75  # 0.83 to 0.87 were seen; chance is 0.1
    for k in layers:
        change = model[k].weight - before[k].weight
        assert change.norm() > 0.1 * before[k].weight.norm()
    assert_energy_preserved(before, model, tolerance=1e-5)


def test_a_changed_energy_is_reported():
    torch.manual_seed(0)
    before = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    after = copy.deepcopy(before)
    with torch.no_grad():
        after[1].weight[0, 0] += 0.01
    with pytest.raises(AssertionError, match=r"expected the energies to stay, got '1', full space"):
        assert_energy_preserved(before, after)
    assert_energy_preserved(before, after, exclude=["1"])
    assert_energy_preserved(before, after, tolerance=0.5)
    with pytest.raises(AssertionError, match="expected the same layers"):
        assert_energy_preserved(before, before[:1])


def test_energies_are_compared_where_neurons_can_be_rotated():
    """A network's embedding and attention are trained as before, and may change."""

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(9, 8)
            self.attention = nn.MultiheadAttention(8, 2)
            self.head = nn.Linear(8, 4)

    before = Reader()
    after = copy.deepcopy(before)
    assert set(rotate_neurons(after)) == {"attention.out_proj", "head"}
    for parameter in after.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    assert_energy_preserved(before, after)
    with pytest.raises(ValueError, match="expected a Linear or convolution layer to compare"):
        assert_energy_preserved(before.embedding, after.embedding)
    with pytest.raises(ValueError, match="expected a Linear or convolution layer to compare"):
        assert_energy_preserved(before, after, exclude="*")


@pytest.mark.parametrize("block_size", [None, 4])
def test_a_rotation_made_without_memory_is_as_any_other(block_size):
    with torch.device("meta"):
        layer = nn.Linear(10, 6)
    rotate_neurons(layer, block_size=block_size)
    layer.to_empty(device="cpu")
    torch.manual_seed(0)
    nn.init.normal_(layer.parametrizations.weight.original)
    nn.init.normal_(layer.parametrizations.weight[0].angles)
    neurons, stored = layer.weight, layer.parametrizations.weight.original
    torch.testing.assert_close(neurons @ neurons.mT, stored @ stored.mT)


def test_weights_that_forward_changes_are_refused():
    """Standardized after the rotation, the neurons would have other angles."""
    torch.manual_seed(0)
    model = nn.Sequential(StdConv2d(3, 8, 3))
    message = "expected layers that use their weight as it is, got .* StdConv2d, in '0'"
    with pytest.raises(ValueError, match=message):
        rotate_neurons(model)
    assert model[0].weight.requires_grad
    assert rotate_neurons(nn.Sequential(Conv2dSame(3, 8, 3))) == ["0"]  # changes the images alone


def test_what_cannot_be_rotated_is_refused():
    shared = nn.Linear(4, 4)
    twin = nn.Linear(4, 4)
    twin.weight = shared.weight
    with pytest.raises(ValueError, match=r"of their own, one is '0\.weight' and '1\.weight'"):
        rotate_neurons(nn.Sequential(shared, twin))
    tied = nn.Sequential(nn.Embedding(4, 4), twin)
    tied[0].weight = twin.weight
    with pytest.raises(ValueError, match=r"of their own, one is '0\.weight' and '1\.weight'"):
        rotate_neurons(tied)
    assert twin.weight.requires_grad
    assert rotate_neurons(nn.Sequential(alone := nn.Linear(4, 4), alone)) == ["0"]  # a module twice
    with pytest.raises(ValueError, match="expected a plain weight, got a parametrized one in '0'"):
        rotate_neurons(nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4))))
    parametrized = nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="expected a plain weight, got a parametrized one in '0'"):
        rotate_neurons(parametrized)
    with pytest.raises(ValueError, match="expected at least one Linear or convolution layer"):
        rotate_neurons(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="expected exclude to fit one of"):
        rotate_neurons(nn.Sequential(nn.Linear(4, 4)), exclude=["head"])
    for options, message in [
        ({"map": "householder"}, "expected map to be one of"),
        ({"block_size": 0}, "expected block_size as an integer ≥ 1, got 0"),
    ]:
        model = nn.Sequential(nn.Linear(4, 4))
        with pytest.raises(ValueError, match=message):
            rotate_neurons(model, **options)
        assert model[0].weight.requires_grad  # nothing was changed
    layer = nn.Linear(4, 4)
    register_parametrization(layer, "weight", Rotation(layer.weight))
    assert layer.weight.shape == (4, 4)
