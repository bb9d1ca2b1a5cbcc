"""What poles and start vectors do over updates: as published, resumed to the bit, on all ranks."""

import copy
import io
import sys
from pathlib import Path

import pytest
import torch
from mhe_core import create_regularizer
from support.forks import run_processes

N, D = 12, 6
STATEFUL = [
    ("mhp", {}),
    ("mhp", {"variant": "released"}),
    ("mhc", {}),
    ("mhc", {"variant": "released"}),
    ("srip", {"variant": "imagenet"}),
    ("srip", {"variant": "wideresnet"}),
]
every_stateful = pytest.mark.parametrize(("name", "options"), STATEFUL)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.manual_seed(seed))


def state_of(regularizer):
    return [*regularizer.buffers(), regularizer.get_extra_state()]


def trained(regularizer, steps):
    """Train neurons that start from the same values, and return them."""
    neurons = normal(N, D).requires_grad_()
    optimizer = torch.optim.SGD([neurons], lr=0.01)
    for _ in range(steps):
        regularizer.update(neurons, lr=0.01)
        optimizer.zero_grad()
        regularizer(neurons).backward()
        optimizer.step()
    return neurons.detach()


@every_stateful
def test_a_resumed_run_continues_to_the_bit(name, options):
    whole = create_regularizer(name, N, D, **options)
    first = copy.deepcopy(whole)
    trained(whole, 6)
    trained(first, 3)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = create_regularizer(name, N, D, **options)
    second.load_state_dict(torch.load(file, weights_only=True))
    neurons = normal(N, D).requires_grad_()
    straight = copy.deepcopy(first)
    for regularizer in (straight, second):
        for _ in range(3):
            regularizer.update(neurons, lr=0.01)
    for a, b in zip(state_of(straight), state_of(second), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(straight(neurons), second(neurons))


@every_stateful
def test_each_update_changes_the_state_as_the_seed_says(name, options):
    one, same, other = (create_regularizer(name, N, D, **options, seed=s) for s in (1, 1, 2))
    neurons = normal(N, D)
    states = []
    for _ in range(3):
        states.append(next(one.buffers()).clone())
        for regularizer in (one, same, other):
            regularizer.update(neurons, lr=0.1)
    assert not any(torch.equal(states[0], later) for later in states[1:])
    assert torch.equal(*(next(r.buffers()) for r in (one, same)))
    assert not torch.equal(*(next(r.buffers()) for r in (one, other)))


def test_kerass_start_vector_is_drawn_once():
    regularizer = create_regularizer("srip", N, D, variant="keras")
    before = regularizer.start.clone()
    regularizer.update(normal(N, D), lr=0.1)
    assert torch.equal(regularizer.start, before)


def test_the_momentum_of_a_pole_outlasts_updates():
    """Two updates of one step are one of two, and the second step is longer than the first."""
    options = {"variant": "released", "seed": 0}
    twice = create_regularizer("mhp", N, D, inner_steps=1, **options)
    once = create_regularizer("mhp", N, D, inner_steps=2, **options)
    start = once.poles.clone()
    neurons = normal(N, D)
    once.update(neurons, lr=0.01)
    twice.update(neurons, lr=0.01)
    first = (twice.poles - start).norm()
    between = twice.poles.clone()
    twice.update(neurons, lr=0.01)
    assert torch.equal(once.poles, twice.poles)
    assert (twice.poles - between).norm() > 1.5 * first


@pytest.mark.parametrize("half_space", [True, False])
@pytest.mark.parametrize(("name", "sign"), [("mhp", 1), ("mhc", -1)])
def test_pole_and_network_play_against_each_other(name, sign, half_space):
    """The pole raises the loss that the network lowers, and stays on the sphere."""
    regularizer = create_regularizer(name, N, D, half_space=half_space, inner_weight=1.0, seed=0)
    neurons = normal(N, D)
    before = regularizer(neurons)
    for _ in range(20):
        regularizer.update(neurons, lr=0.01)
    assert regularizer(neurons) > before + 0.01
    assert regularizer.poles.norm().item() == pytest.approx(1)


@every_stateful
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_state_is_not_cast_to_half_precision(name, options, dtype):
    """A step of 1e-4 would be rounded away there."""
    regularizer = create_regularizer(name, N, D, **options, seed=0)
    before = [buffer.clone() for buffer in regularizer.buffers()]
    regularizer.to(dtype)
    for buffer, as_made in zip(regularizer.buffers(), before, strict=True):
        assert torch.equal(buffer, as_made)
    neurons = normal(N, D).to(dtype)
    regularizer.update(neurons, lr=1e-4)
    assert not torch.equal(next(regularizer.buffers()), before[0])
    assert regularizer(neurons).isfinite()
    assert next(regularizer.double().buffers()).dtype == torch.float64


@every_stateful
def test_what_is_made_without_memory_is_drawn_when_it_has_some(name, options):
    made = create_regularizer(name, N, D, **options, seed=5)
    with torch.device("meta"):
        regularizer = create_regularizer(name, N, D, **options, seed=5)
        regularizer.update(torch.empty(N, D), lr=0.1)
        assert regularizer(torch.empty(N, D)).is_meta
        regularizer.updates = 0
    assert all(buffer.is_meta for buffer in regularizer.buffers())
    regularizer.to_empty(device="cpu")
    for drawn, wanted in zip(regularizer.buffers(), made.buffers(), strict=True):
        assert torch.equal(drawn, wanted)


@every_stateful
def test_an_update_in_inference_mode_is_that_outside(name, options):
    neurons = normal(N, D)
    within, without = (create_regularizer(name, N, D, **options, seed=3) for _ in range(2))
    without.update(neurons, lr=0.1)
    with torch.inference_mode():
        within.update(neurons * 1, lr=0.1)
    for a, b in zip(within.buffers(), without.buffers(), strict=True):
        assert torch.equal(a, b)
    trained(within, 1)  # and it can be trained on


@every_stateful
def test_the_state_outlives_neurons_that_are_not_finite(name, options):
    regularizer = create_regularizer(name, N, D, **options, seed=3)
    trained(regularizer, 1)
    poles = next(regularizer.buffers()).clone()
    neurons = normal(N, D)
    neurons[1, 2] = torch.nan
    regularizer.update(neurons, lr=0.1)
    assert regularizer(neurons).isnan()
    if name != "srip":  # whose start vector depends on no neurons
        assert torch.equal(regularizer.poles, poles)
    regularizer.update(normal(N, D), lr=0.1)
    assert all(buffer.isfinite().all() for buffer in regularizer.buffers())
    assert regularizer(normal(N, D)).isfinite()


def test_nothing_is_sent_where_nothing_is_drawn(monkeypatch):
    """A backend such as NCCL takes no tensors of the CPU, which a seed alone would be."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda *_, **__: pytest.fail("sent"))
    create_regularizer("srip", N, D).update(normal(N, D), lr=0.1)


@pytest.mark.parametrize("half_space", [True, False])
@pytest.mark.parametrize("name", ["mhp", "mhc"])
def test_a_pole_takes_steps_of_momentum_along_the_losss_gradient(name, half_space):
    """Steps by differences in float64, in place of the cosines that it takes them by."""
    regularizer = create_regularizer(name, N, D, half_space=half_space, seed=0, inner_weight=2.0)
    neurons = normal(N, D)
    u = torch.nn.functional.normalize(neurons.double())
    ends = torch.cat([u, -u]) if half_space else u
    pole, momentum = regularizer.poles[0].double(), torch.zeros(D, dtype=torch.float64)
    for _ in range(regularizer.inner_steps):
        pole.requires_grad_()
        chords = (torch.nn.functional.normalize(pole, dim=0) - ends).square().sum(1)
        soft = -(-10 * chords).exp().mean().log() / 10
        loss = -chords.reciprocal().mean() if name == "mhp" else soft
        (slope,) = torch.autograd.grad(-2.0 * loss, pole)
        momentum = 0.9 * momentum + slope
        pole = torch.nn.functional.normalize(pole.detach() - 0.01 * momentum, dim=0)
    regularizer.update(neurons, lr=0.01)
    torch.testing.assert_close(regularizer.poles[0], pole.float(), rtol=1e-5, atol=1e-6)


def test_all_ranks_have_the_same_state(tmp_path):
    run_processes(2, Path(__file__), tmp_path)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for seed in ("drawn", "given"):
        assert (one[seed]["before"] == two[seed]["before"]) == (seed == "given")
        for a, b in zip(one[seed]["after"], two[seed]["after"], strict=True):
            assert torch.equal(a, b)


def updated(seed):
    before, after = [], []
    for name, options in STATEFUL:
        regularizer = create_regularizer(name, N, D, **options, seed=seed)
        before.append(next(regularizer.buffers()).tolist())
        for _ in range(2):
            regularizer.update(normal(N, D), lr=0.1)
        after += state_of(regularizer)
    return {"before": before, "after": after}


def on_one_rank(folder):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(rank)
    torch.save({"drawn": updated(None), "given": updated(3)}, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    on_one_rank(sys.argv[1])
