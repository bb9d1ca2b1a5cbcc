"""The rules of the interface, and derivatives, for every regularizer and variant."""

import pytest
import torch
from mhe_core import NetworkRegularizer, create_regularizer, list_regularizers
from mhe_core.testing import check_regularizer, regularizer_checks
from support.variants import VARIANTS

every_variant = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=lambda x: x if isinstance(x, str) else str(x)
)


def normal(*shape, seed=0, **options):
    return torch.randn(shape, generator=torch.manual_seed(seed), **options)


@every_variant
def test_whether_lengths_matter_is_said(name, options):
    regularizer = create_regularizer(name, 8, 5, **options).double()
    neurons = normal(8, 5, dtype=torch.float64)
    lengths = torch.linspace(0.5, 2, 8, dtype=torch.float64).unsqueeze(1)
    changes = [(regularizer(k * lengths * neurons) - regularizer(k * neurons)) for k in (0.03, 1)]
    assert any(change.abs() > 1e-9 for change in changes) == regularizer.depends_on_lengths


def test_every_installed_name_is_tested():
    ours = {info.name for info in list_regularizers() if info.distribution == "mhe-uniformity"}
    assert ours == {name for name, _ in VARIANTS}


@pytest.mark.parametrize(
    ("name", "options"), [(n, o) for n, o in VARIANTS if o != {"variant": "keras"}], ids=str
)
def test_conforms(name, options):
    check_regularizer(name, **options)


@pytest.mark.parametrize(
    "check",
    regularizer_checks(
        "srip",
        variant="keras",
        expected_failures={"order": "the program's power iteration starts from uneven neurons"},
    ),
)
def test_srip_of_keras_conforms(check):
    check()


@every_variant
@pytest.mark.parametrize(("N", "d"), [(6, 4), (4, 6)])
def test_gradient_is_that_of_finite_differences(name, options, N, d):
    regularizer = create_regularizer(name, N, d, **options).double()
    neurons = normal(N, d, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(regularizer, neurons)


@every_variant
def test_second_derivative_is_that_of_finite_differences(name, options):
    regularizer = create_regularizer(name, 4, 5, **options).double()
    neurons = normal(4, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(regularizer, neurons, fast_mode=True)


@every_variant
def test_a_batch_has_the_mean_of_its_matrices(name, options):
    regularizer = create_regularizer(name, 6, 4, **options)
    batch = normal(2, 3, 6, 4)
    singly = torch.stack([regularizer(neurons) for neurons in batch.flatten(0, 1)])
    torch.testing.assert_close(regularizer(batch), singly.mean())


# What does not depend on lengths by its definition.
DIRECTIONAL = ["mhs", "mhp", "mhc", "rmhp", "mgd", "mma", "regularface", "uniformface", "koleo"]


@pytest.mark.parametrize("name", [*DIRECTIONAL, "uniformity", "hug"])
def test_lengths_do_not_count(name):
    regularizer = create_regularizer(name, 7, 5).double()
    neurons = normal(7, 5, dtype=torch.float64)
    lengths = torch.logspace(-30, 30, 7, dtype=torch.float64)[:, None]
    torch.testing.assert_close(regularizer(neurons * lengths), regularizer(neurons))
    tiny = regularizer.float()(neurons.float() * 1e-25)  # whose squares vanish in float32
    torch.testing.assert_close(tiny.double(), regularizer(neurons.float()).double())


@every_variant
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, options, dtype):
    regularizer = create_regularizer(name, 16, 8, **options)
    neurons = normal(16, 8).to(dtype).requires_grad_()
    value = regularizer(neurons)
    value.backward()
    assert value.dtype == torch.float32
    assert neurons.grad.dtype == dtype
    torch.testing.assert_close(value, regularizer(neurons.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(regularizer(neurons), value)


@pytest.mark.parametrize("name", ["hug", "uniformface"])
def test_a_backward_pass_inside_autocast_is_that_outside(name):
    regularizer = create_regularizer(name, 16, 8, variant="released")
    neurons = normal(16, 8).requires_grad_()
    (wanted,) = torch.autograd.grad(regularizer(neurons), neurons)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = torch.autograd.grad(regularizer(neurons), neurons)
    torch.testing.assert_close(found, wanted)


@every_variant
def test_a_single_neuron_has_a_finite_loss(name, options):
    regularizer = create_regularizer(name, 1, 4, **options)
    neurons = normal(1, 4).requires_grad_()
    value = regularizer(neurons)
    value.backward()
    assert value.isfinite()
    assert neurons.grad.isfinite().all()


@every_variant
def test_bad_neurons_are_refused(name, options):
    regularizer = create_regularizer(name, 4, 3, **options)
    with pytest.raises(TypeError, match=r"expected neurons as a floating-point tensor, got torch"):
        regularizer(torch.ones(4, 3, dtype=torch.int64))
    for shape in [(3,), (4, 2), (0, 3), (0, 4, 3)]:
        with pytest.raises(ValueError, match=r"expected neurons as rows, \[..., N, 3\]"):
            regularizer(torch.ones(shape))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mhs", {"variant": "relased"}, "expected variant to be one of"),
        ("so", {"variant": "released"}, "expected variant to be one of"),
        ("koleo", {"variant": "released"}, "'lightly', 'spreadingvectors'"),
        ("mhp", {"inner_steps": -1}, "expected inner_steps as an integer ≥ 0, got -1"),
        ("mhp", {"inner_weight": float("nan")}, "expected inner_weight as a finite number ≥ 0"),
        ("mhc", {"gamma": 0}, "expected gamma as a finite number > 0, got 0"),
        ("mhc", {"seed": 1.5}, "expected seed as an integer ≥ 0, got 1.5"),
        ("uniformity", {"t": -1}, "expected t as a finite number > 0, got -1"),
        ("mc", {"side": "rows"}, "expected side to be one of"),
        ("srip", {"side": "rows"}, "expected side to be one of"),
        ("srip", {"variant": "keras", "side": "dims"}, "expected no side with variant 'keras'"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_regularizer(name, 4, 3, **options)


@every_variant
def test_a_network_takes_it(name, options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3, groups=2), torch.nn.Flatten(), torch.nn.Linear(8, 5)
    )
    for layer in (model[0], model[2]):  # so long that the larger Gram matrix's norm is above 1
        layer.weight.data *= 10
    regularizer = NetworkRegularizer(
        model, hidden=name, output=name, hidden_options=options, output_options=options
    )
    regularizer.update(lr=0.1)
    regularizer().backward()
    assert set(regularizer.terms()) == {"0", "2"}
    assert model[0].weight.grad.any()
    assert model[2].weight.grad.any()


@every_variant
def test_what_is_printed_names_its_options(name, options):
    text = repr(create_regularizer(name, 4, 3, **options))
    assert "num_neurons=4, dim=3, variant=" in text
    for key, value in options.items():
        assert f"{key}={value!r}" in text


@pytest.mark.parametrize("name", sorted({name for name, _ in VARIANTS}))
def test_each_says_where_it_was_published(name):
    regularizer = create_regularizer(name, 4, 3)
    assert regularizer.paper
    assert regularizer.published_weight is None or regularizer.published_weight > 0
