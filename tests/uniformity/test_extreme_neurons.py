"""Neurons of every kind and length: values are finite where they can be, and have their digits."""

import pytest
import torch
from mhe_core import NetworkRegularizer, create_regularizer
from support.variants import VARIANTS
from torch import nn
from torch.nn.functional import normalize

N, D = 12, 6
SEEDED = ("mhp", "mhc", "srip")
# Of each name the first variant, and of each program that sums pairs or draws vectors its own.
COMPILED = list({name: (name, options) for name, options in reversed(VARIANTS)}.values())
COMPILED += [(name, {"variant": "released"}) for name in ("hug", "uniformface", "mhp")]
COMPILED += [("srip", {"variant": "imagenet"})]
every_variant = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.manual_seed(seed))


def made(name, options, dtype=torch.float32):
    seed = {"seed": 0} if name in SEEDED else {}
    regularizer = create_regularizer(name, N, D, **options, **seed)
    return regularizer.double() if dtype == torch.float64 else regularizer


ROWS = normal(N, D)
EXTREMES = {
    "zeros among them": torch.where(torch.arange(N).unsqueeze(1) % 5 == 3, 0.0, ROWS),
    "all zeros": torch.zeros(N, D),
    "all the same": ROWS[:1].expand(N, D),
    "some the same": torch.cat([ROWS[:-2], ROWS[:1], 2 * ROWS[:1]]),
    "opposite": torch.cat([ROWS[:-2], -ROWS[:1], -3 * ROWS[:1]]),
    "nearly the same": ROWS[:1] + 1e-7 * ROWS,
    "axes": torch.cat([torch.eye(D), -torch.eye(D)]),
    "one very short": torch.cat([ROWS[:-1], 1e-38 * ROWS[-1:]]),
    "subnormal": 1e-42 * ROWS,
    "long": 1e6 * ROWS,
}
BEYOND = {  # what only lengths make extreme
    "of all lengths": ROWS * torch.logspace(-30, 30, N).unsqueeze(1),
    "very long": 1e38 * normalize(ROWS),
    "as long as there are": torch.where(ROWS > 0, 3.4e38, -3.4e38),
}


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_value_and_gradient_are_finite(name, options, dtype):
    regularizer = made(name, options, dtype)
    cases = EXTREMES if regularizer.depends_on_lengths else {**EXTREMES, **BEYOND}
    for kind, rows in cases.items():
        neurons = rows.to(dtype).clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
        neurons.requires_grad_()
        value = regularizer(neurons)
        (gradient,) = torch.autograd.grad(value, neurons)
        assert value.isfinite(), kind
        assert gradient.isfinite().all(), kind


@every_variant
@pytest.mark.parametrize("entry", [torch.nan, torch.inf])
def test_neurons_that_are_not_finite_have_no_finite_value(name, options, entry):
    """Not a value of the others, which a training loop would take for a good one."""
    neurons = ROWS.clone()
    neurons[2, 1] = entry
    assert not made(name, options)(neurons).isfinite()


@every_variant
def test_neurons_without_values_have_a_loss_without_one(name, options):
    """As where the layers of a network that does not fit are looked through on the meta device."""
    neurons = torch.empty(2, N, D, device="meta", requires_grad=True)
    with torch.device("meta"):
        regularizer = made(name, options)
    regularizer.update(neurons, 0.1)
    value = regularizer(neurons)
    (gradient,) = torch.autograd.grad(value, neurons)
    assert (value.is_meta, value.shape, value.dtype) == (True, (), torch.float32)
    assert (gradient.is_meta, gradient.shape) == (True, neurons.shape)


@every_variant
@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e20, 1e36])
def test_a_common_factor_does_not_count(name, options, scale):
    regularizer = made(name, options)
    if regularizer.depends_on_lengths:
        pytest.skip("lengths count")
    torch.testing.assert_close(regularizer(scale * ROWS), regularizer(ROWS), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-6])
@every_variant
def test_near_neighbours_have_their_digits_in_float32(name, options, apart):
    near = torch.cat([ROWS[:-1], ROWS[:1] + apart * normal(1, D, seed=9)]).requires_grad_()
    exact = near.detach().double().requires_grad_()
    value, wanted = made(name, options)(near), made(name, options, torch.float64)(exact)
    (gradient,) = torch.autograd.grad(value, near)
    (slope,) = torch.autograd.grad(wanted, exact)
    torch.testing.assert_close(value.double(), wanted, rtol=1e-4, atol=1e-5)
    assert (gradient.double() - slope).norm() <= 2e-3 * slope.norm()


@pytest.mark.parametrize("t", [0.1, 2, 20, 20.5, 60, 170])
@pytest.mark.parametrize("rows", ["random", "axes"])
def test_uniformity_of_a_narrow_gaussian(t, rows):
    """The definition in float64; two opposite axes alone have e⁻⁴ᵗ, 1e-296 at t = 170."""
    neurons = {"random": ROWS, "axes": torch.tensor([[1.0, 0.0], [-1.0, 0.0]])}[rows]
    regularizer = create_regularizer("uniformity", *neurons.shape, t=t)
    exact = neurons.double().requires_grad_()
    u = normalize(exact)
    i, j = torch.triu_indices(len(u), len(u), 1)
    wanted = torch.logsumexp(-t * (u[i] - u[j]).square().sum(1), 0) - torch.tensor(len(i)).log()
    (slope,) = torch.autograd.grad(wanted, exact)
    value = regularizer(neurons.requires_grad_())
    (gradient,) = torch.autograd.grad(value, neurons)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-3, atol=1e-4 * t)


@pytest.mark.parametrize("t", [170.5, 1000])
def test_uniformity_says_what_it_cannot_hold(t):
    with pytest.raises(ValueError, match=f"expected t as a number up to 170, got {t}"):
        create_regularizer("uniformity", N, D, t=t)


@pytest.mark.parametrize("name", ["mhe", "hug"])
def test_what_cannot_be_spread_is_left_out_whatever_the_energys_name(name):
    """With s = 2 the energy of 16 neurons in 3 dimensions has no finite mean."""
    model = nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 16), nn.Linear(16, 2))
    assert list(NetworkRegularizer(model, name, None).terms()) == ["1"]


@pytest.mark.parametrize(("name", "options"), COMPILED, ids=str)
def test_a_compiled_network_has_the_same_penalty(name, options):
    """In one piece, or with the break that ``compiles`` announces."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 8))
    regularizer = NetworkRegularizer(model, name, None, hidden_options=options)
    regularizer.update(0.1)
    whole = all(one.compiles for one in regularizer.regularizers.values())
    if not whole:
        with pytest.raises(torch._dynamo.exc.Unsupported):
            torch.compile(regularizer, backend="eager", fullgraph=True)()
    compiled = torch.compile(regularizer, backend="eager", fullgraph=whole)
    torch.testing.assert_close(compiled(), regularizer())
