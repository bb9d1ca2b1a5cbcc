"""What a CoMHE regularizer keeps: in checkpoints, on the meta device, without updates."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
from mhe_core import NetworkRegularizer, create_regularizer, list_regularizers
from mhe_core.regularizers.comhe import FORWARDS_WITHOUT_UPDATE
from torch import Tensor, nn

SMALL = {
    "comhe_random": {"projection_dim": 4, "num_projections": 3},
    "comhe_angle": {"projection_dim": 4},
    "comhe_adversarial": {"projection_dim": 4},
    "comhe_group": {"num_groups": 3, "group_dim": 4},
}
N, D = 6, 12


def made(name: str) -> nn.Module:
    return create_regularizer(name, N, D, seed=3, **SMALL[name])


@pytest.fixture
def neurons() -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(0), requires_grad=True)


def test_random_projections_are_neither_saved_nor_broadcast():
    model = nn.Sequential(nn.Linear(256, 8), nn.Linear(8, 4))
    regularizer = NetworkRegularizer(model, "comhe_random")
    (drawn,) = [r.projection for r in regularizer.regularizers.values() if hasattr(r, "projection")]
    assert drawn.numel() > 100_000
    file = io.BytesIO()
    torch.save(regularizer.state_dict(), file)
    assert file.tell() < 10_000
    assert list(regularizer.buffers()) == []  # DistributedDataParallel broadcasts buffers


def test_state_dicts_that_have_the_projections_still_load(neurons):
    regularizer = made("comhe_random")
    regularizer.update(neurons, 0.1)
    old = {**regularizer.state_dict(), "projection": torch.zeros(3, 4, D)}
    other = create_regularizer("comhe_random", N, D, seed=4, **SMALL["comhe_random"])
    other.load_state_dict(old)
    assert torch.equal(other(neurons), regularizer(neurons))


@pytest.mark.parametrize("name", SMALL)
def test_what_was_made_on_the_meta_device_is_as_made_on_the_cpu(name, neurons):
    with torch.device("meta"):
        empty = made(name)
    torch.testing.assert_close(empty.to_empty(device="cpu")(neurons), made(name)(neurons))
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(D, N), nn.Linear(N, 4))
    regularizer = NetworkRegularizer(model, name, hidden_options={"seed": 3, **SMALL[name]})
    model.to_empty(device="cpu")
    regularizer.to_empty(device="cpu")
    with torch.no_grad():
        model[0].weight.copy_(neurons)
    torch.testing.assert_close(regularizer.terms()["0"], made(name)(neurons))


UPDATED = [(info.distribution, info.name, {}) for info in list_regularizers()]
UPDATED += [("mhe-core", name, {"convention": "released_code"}) for name in SMALL]
UPDATED += [("mhe-core", "comhe_angle", {"second_order": False})]


@pytest.mark.parametrize(("distribution", "name", "options"), UPDATED)
@pytest.mark.parametrize("in_network", [False, True])
def test_an_update_may_come_before_the_backward_pass(distribution, name, options, in_network):
    """As where the losses of several batches are added up; each has its own state's gradient."""
    torch.manual_seed(0)
    options = {**SMALL.get(name, {}), **options}
    made = create_regularizer(f"{distribution}:{name}", N, D, **options)
    model = nn.Sequential(nn.Linear(D, N), nn.Linear(N, 4))
    weight = model[0].weight
    regularizer = NetworkRegularizer(model, made, output=None) if in_network else made
    given = () if in_network else (weight,)

    def loss() -> Tensor:
        regularizer.update(*(x.detach() for x in given), 0.1)
        return regularizer(*given)

    first = loss()
    twin = copy.deepcopy(made)
    wanted = torch.autograd.grad(first, weight, retain_graph=True)[0]
    second = loss()
    if name in ("comhe_random", "comhe_angle", "comhe_adversarial"):
        assert not torch.equal(twin(weight), made(weight))  # there is a state that went on
    wanted = wanted + torch.autograd.grad(second, weight, retain_graph=True)[0]
    (first + second).backward()
    torch.testing.assert_close(weight.grad, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_reset_parameters_is_the_beginning(name, neurons):
    regularizer = made(name)
    for _ in range(3):
        regularizer.update(neurons, 0.1)
    regularizer.reset_parameters()
    assert torch.equal(regularizer(neurons), made(name)(neurons))


@pytest.mark.parametrize("name", ["comhe_random", "comhe_angle", "comhe_adversarial"])
def test_training_that_never_updates_it_is_told_once(name, neurons, recwarn):
    regularizer = made(name)
    for _ in range(3 * FORWARDS_WITHOUT_UPDATE):
        regularizer(neurons)
    (warned,) = [str(warning.message) for warning in recwarn]
    assert "never updated" in warned
    assert "call update once per training step" in warned


@pytest.mark.parametrize("name", SMALL)
def test_training_that_updates_it_and_reports_are_not(name, neurons):
    updated, reported = made(name), made(name)
    updated.update(neurons, 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2 * FORWARDS_WITHOUT_UPDATE):
            updated(neurons)
            with torch.no_grad():
                reported(neurons)


@pytest.mark.parametrize("call", ["forward", "update"])
def test_an_error_at_call_time_names_the_layer(call):
    model = nn.Sequential(nn.Linear(D, N), nn.Linear(N, 4))
    regularizer = NetworkRegularizer(model, "comhe_random", hidden_options=SMALL["comhe_random"])
    model[0] = nn.Linear(D + 1, N)
    with pytest.raises(ValueError, match=r"layer '0': expected neurons as rows, \[\.\.\., N, 12\]"):
        regularizer() if call == "forward" else regularizer.update(0.1)


@pytest.mark.parametrize("name", ["comhe_angle", "comhe_adversarial"])
def test_a_trained_projection_outlives_neurons_that_are_not_finite(name, neurons):
    regularizer = made(name)
    regularizer.update(neurons, 0.1)
    before = regularizer.projection.clone()
    broken = neurons.detach().clone()
    broken[1, 2] = torch.nan
    regularizer.update(broken, 0.1)
    assert regularizer(broken).isnan()
    assert torch.equal(regularizer.projection, before)
    regularizer.update(neurons, 0.1)
    assert not torch.equal(regularizer.projection, before)
    assert regularizer(neurons).isfinite()


@pytest.mark.parametrize("second_order", [True, False])  # which trained projections alone have
@pytest.mark.parametrize("name", SMALL)
def test_an_update_in_inference_mode_is_that_outside(name, second_order, neurons):
    within, without = made(name), made(name)
    for regularizer in (within, without):
        regularizer.second_order = second_order
    without.update(neurons, 0.1)
    with torch.inference_mode():
        within.update(neurons * 1, 0.1)
    assert torch.equal(within(neurons), without(neurons))
    within.update(neurons, 0.1)
    within(neurons).backward()


@pytest.mark.parametrize("name", ["comhe_random", "mhp", "srip"])
@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 1.5, True, "1"])
def test_a_seed_is_an_integer_of_63_bits(name, seed):
    with pytest.raises(ValueError, match=r"expected seed as an integer .*, got "):
        create_regularizer(name, N, D, seed=seed)
    create_regularizer(name, N, D, seed=2**63 - 1).update(torch.ones(N, D), 0.1)


@pytest.mark.parametrize("name", ["comhe_random", "comhe_angle", "mhp", "srip"])
@pytest.mark.parametrize("lr", [-0.1, float("nan"), float("inf"), True, "0.1", None])
def test_a_learning_rate_is_a_finite_number(name, lr):
    regularizer = create_regularizer(name, N, D, **SMALL.get(name, {}))
    with pytest.raises(ValueError, match=r"expected lr as a finite number ≥ 0, got "):
        regularizer.update(torch.ones(N, D), lr)
    with pytest.raises(ValueError, match=r"expected lr as a number, got a tensor of shape \[2\]"):
        regularizer.update(torch.ones(N, D), torch.ones(2))
    regularizer.update(
        torch.randn(N, D), torch.tensor(0.1)
    )  # as optimizers hold it that are compiled
