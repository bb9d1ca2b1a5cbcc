"""The energy of everything that a training run may come across, and of bad arguments."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from mhe_core import hyperspherical_energy
from torch import Tensor

LAYER = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LENGTHS = torch.tensor([1e-15, 1e15, 1.0, 1e-3, 1e15, 1e-15], dtype=torch.float64).unsqueeze(1)
ANY_RANGE = {
    "duplicates": torch.cat([LAYER, LAYER[:2], 3 * LAYER[:1]]),
    "antipodes": torch.cat([LAYER, -LAYER[:2]]),
    "zero rows": torch.cat([LAYER, torch.zeros(2, 4, dtype=torch.float64)]),
    "only zeros": torch.zeros(3, 4, dtype=torch.float64),
    "one neuron": LAYER[:1],
    "one dimension": torch.tensor([[1.0], [2.0], [-3.0], [0.0]], dtype=torch.float64),
    "parallel": LAYER[:1] * torch.arange(1, 6, dtype=torch.float64).unsqueeze(1),
    "nearly parallel": LAYER[:1] + 1e-9 * LAYER,
}
WIDE_RANGE = {
    "tiny": LAYER * 1e-15,
    "huge": LAYER * 1e15,
    "of any length": LAYER * LENGTHS,
    "duplicates of any length": torch.cat([LAYER * LENGTHS, LAYER]),
    "next to nothing": LAYER * 1e-40,
    "next to infinity": LAYER / LAYER.abs().max() * 3e38,
    "entries of any size": LAYER * LENGTHS @ torch.diag(LENGTHS[:4, 0]),
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def assert_finite(neurons: Tensor, s: float, **options: object) -> Tensor:
    """The energy, after a look at it and its gradient."""
    neurons = neurons.clone().requires_grad_()
    energy = hyperspherical_energy(neurons, s=s, **options)
    (gradient,) = torch.autograd.grad(energy, neurons)
    assert torch.isfinite(energy)
    assert torch.isfinite(gradient).all()
    zero = (neurons == 0).all(-1)
    assert (gradient[zero] == 0).all() or options["convention"] == "released_code"
    return energy


@pytest.mark.parametrize("s", [0, 0.5, 1, 2, 3.7, 8, 50, 1e4])
@pytest.mark.parametrize("name", [*ANY_RANGE, *WIDE_RANGE])
def test_value_and_gradient_are_finite(name, s):
    options = (("euclidean", "angular"), (False, True), ("paper", "released_code"), DTYPES)
    for distance, half_space, convention, dtype in itertools.product(*options):
        neurons = (ANY_RANGE | WIDE_RANGE)[name].to(dtype)
        energy = assert_finite(
            neurons, s, distance=distance, half_space=half_space, convention=convention
        )
        assert energy.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("s", [0, 0.5, 1, 2])
@pytest.mark.parametrize("name", ANY_RANGE)
def test_value_and_gradient_are_finite_in_float16(name, s):
    options = (("euclidean", "angular"), (False, True), ("paper", "released_code"))
    for distance, half_space, convention in itertools.product(*options):
        for length in (1, 1e-6, 1e3):
            neurons = (length * ANY_RANGE[name]).half()
            energy = assert_finite(
                neurons, s, distance=distance, half_space=half_space, convention=convention
            )
            assert energy.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_neurons_have_the_energy_of_their_values(dtype):
    neurons = LAYER.to(dtype)
    energy = hyperspherical_energy(neurons)
    torch.testing.assert_close(energy, hyperspherical_energy(neurons.float()))
    assert hyperspherical_energy(neurons.requires_grad_()).requires_grad


@pytest.mark.parametrize("convention", ["paper", "released_code"])
@pytest.mark.parametrize("length", [1e-300, 1e-200, 1e200, 1e300])
def test_value_and_gradient_are_finite_to_the_ends_of_float64(length, convention):
    energy = assert_finite(length * LAYER, s=2, convention=convention)
    if convention == "paper" or length > 1:
        torch.testing.assert_close(energy, hyperspherical_energy(LAYER))


@pytest.mark.parametrize("half_space", [False, True], ids=["full", "half"])
@pytest.mark.parametrize("distance", ["euclidean", "angular"])
@pytest.mark.parametrize("s", [0, 1, 2])
def test_lengths_of_any_size_do_not_matter(s, distance, half_space):
    options = {"s": s, "distance": distance, "half_space": half_space}
    want = hyperspherical_energy(LAYER, **options)
    for name in ("tiny", "huge", "of any length"):
        torch.testing.assert_close(hyperspherical_energy(WIDE_RANGE[name], **options), want)
        single = hyperspherical_energy(WIDE_RANGE[name].float(), **options)
        torch.testing.assert_close(single, want.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("half_space", [False, True], ids=["full", "half"])
@pytest.mark.parametrize("distance", ["euclidean", "angular"])
@pytest.mark.parametrize("s", [0, 1, 2])
def test_a_zero_row_is_orthogonal_to_all(s, distance, half_space):
    options = {"s": s, "distance": distance, "half_space": half_space}
    with_zero = torch.cat([LAYER, torch.zeros(1, 4, dtype=LAYER.dtype)])
    with_axis = torch.block_diag(LAYER, torch.ones(1, 1, dtype=LAYER.dtype))
    torch.testing.assert_close(
        hyperspherical_energy(with_zero, **options), hyperspherical_energy(with_axis, **options)
    )


@pytest.mark.parametrize("distance", ["euclidean", "angular"])
@pytest.mark.parametrize("s", [0, 1, 2])
def test_a_single_neuron(s, distance):
    neuron = LAYER[:1].clone().requires_grad_()
    energy = hyperspherical_energy(neuron, s=s, distance=distance)
    assert energy.item() == 0
    assert torch.autograd.grad(energy, neuron)[0].eq(0).all()
    # In half space it meets its own antipode.
    antipodes = torch.cat([LAYER[:1], -LAYER[:1]])
    torch.testing.assert_close(
        hyperspherical_energy(neuron.detach(), s=s, distance=distance, half_space=True),
        hyperspherical_energy(antipodes, s=s, distance=distance),
    )


def pairs_and_gradients(
    chord: float, sign: int, **options: object
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Float32 pairs of u and about ``sign`` · u, and their gradients in float32 and float64."""
    generator = torch.Generator().manual_seed(3)
    for d in (2, 8, 100):
        u, v = torch.randn(2, d, generator=generator, dtype=torch.float64)
        v = v - (u @ v) / (u @ u) * u
        pair = torch.stack([u / u.norm(), sign * (u / u.norm() + chord * v / v.norm())]).float()
        exact = pair.double()
        gradients = [
            torch.autograd.grad(hyperspherical_energy(w.requires_grad_(), **options), w)[0]
            for w in (pair, exact)
        ]
        yield pair.detach(), *gradients


@pytest.mark.parametrize("distance", ["euclidean", "angular"])
@pytest.mark.parametrize("s", [0, 1, 2])
@pytest.mark.parametrize("sign", [1, -1], ids=["neighbours", "near antipodes in half space"])
def test_a_pair_a_chord_of_1e_4_apart_is_separated(sign, s, distance):
    options = {"s": s, "distance": distance, "half_space": sign == -1}
    for pair, gradient, exact in pairs_and_gradients(1e-4, sign, **options):
        torch.testing.assert_close(gradient.double(), exact, rtol=0, atol=1e-3 * exact.abs().max())
        step = 1e-5 * gradient / gradient.norm()
        u, v = (torch.nn.functional.normalize(w.double(), dim=-1) for w in (pair, pair - step))
        assert (v[0] - sign * v[1]).norm() > 1.05 * (u[0] - sign * u[1]).norm()


@pytest.mark.parametrize("s", [0, 1, 2])
def test_the_angle_keeps_its_gradient_near_antipodes(s):
    for _, gradient, exact in pairs_and_gradients(1e-3, -1, s=s, distance="angular"):
        assert exact.norm() > 0.01
        torch.testing.assert_close(gradient.double(), exact, rtol=0, atol=1e-3 * exact.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", ["euclidean", "angular"])
@pytest.mark.parametrize("s", [0, 2, 8, 50, 1e3, 1e4])
def test_steep_potentials_fall_and_stay_finite_at_every_chord(s, distance, dtype):
    angles = 2 * torch.linspace(0, 1, 20001, dtype=torch.float64).asin()
    pairs = torch.stack(
        [torch.stack([angles.cos(), angles.sin()], -1), torch.eye(2)[0].expand(20001, 2)], 1
    )
    pairs = pairs.to(dtype).requires_grad_()
    energy = hyperspherical_energy(pairs, s=s, distance=distance)
    (gradient,) = torch.autograd.grad(energy.sum(), pairs)
    assert torch.isfinite(energy).all()
    assert torch.isfinite(gradient).all()
    assert (energy.diff() <= 1e-4 * energy[1:].abs() + 1e-6).all()
    assert energy[0] == energy.max() > energy[-1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_round_it(dtype):
    neurons = LAYER.float().requires_grad_()
    want = hyperspherical_energy(neurons)
    with torch.autocast("cpu", dtype=dtype):
        energy = hyperspherical_energy(neurons)
        of_halves = hyperspherical_energy(neurons @ torch.eye(4))  # rounded before, not in it
    assert energy.dtype == of_halves.dtype == torch.float32
    assert energy == want
    torch.testing.assert_close(
        torch.autograd.grad(energy, neurons), torch.autograd.grad(want, neurons), rtol=0, atol=0
    )


def test_reads_its_input_only():
    neurons = torch.nn.Parameter(LAYER.float())
    kept = neurons.detach().clone()
    with torch.no_grad():
        assert not hyperspherical_energy(neurons).requires_grad
    with torch.inference_mode():
        value = hyperspherical_energy(neurons)
    energy = hyperspherical_energy(neurons)
    energy.backward()
    assert torch.equal(neurons.detach(), kept)
    assert value == energy
    twice = neurons.grad.clone()
    hyperspherical_energy(neurons).backward()
    assert torch.equal(neurons.grad, 2 * twice)


def test_any_layout_of_the_input_will_do():
    want = hyperspherical_energy(LAYER)
    torch.testing.assert_close(hyperspherical_energy(LAYER.T.contiguous().T), want)
    wide = torch.zeros(12, 8, dtype=LAYER.dtype)
    wide[::2, ::2] = LAYER
    torch.testing.assert_close(hyperspherical_energy(wide[::2, ::2]), want)
    batch = hyperspherical_energy(LAYER.expand(2, 3, -1, -1))
    torch.testing.assert_close(batch, want.expand(2, 3))
    assert hyperspherical_energy(LAYER.expand(0, 3, 6, 4)).shape == (0, 3)


def test_repeated_anchors_count_as_often():
    once, twice = (
        hyperspherical_energy(LAYER, anchors=torch.tensor(indices))
        for indices in ([0, 1], [0, 1, 1, 0])
    )
    torch.testing.assert_close(once, twice)


BAD = [
    ({"neurons": LAYER.long()}, TypeError, "floating-point tensor, got torch.int64"),
    ({"neurons": LAYER.bool()}, TypeError, "floating-point tensor, got torch.bool"),
    ({"neurons": LAYER.tolist()}, TypeError, "floating-point tensor, got list"),
    ({"neurons": LAYER[0]}, ValueError, r"\[..., N, d\].*got \[4\]"),
    ({"neurons": LAYER[:0]}, ValueError, r"\[..., N, d\].*got \[0, 4\]"),
    ({"neurons": LAYER[:, :0]}, ValueError, r"\[..., N, d\].*got \[6, 0\]"),
    ({"s": -1}, ValueError, "s as a finite number ≥ 0, got -1"),
    ({"s": float("inf")}, ValueError, "s as a finite number ≥ 0, got inf"),
    ({"s": float("nan")}, ValueError, "s as a finite number ≥ 0, got nan"),
    ({"s": "2"}, TypeError, "s as a number, got str"),
    ({"s": True}, TypeError, "s as a number, got bool"),
    ({"distance": "cosine"}, ValueError, "distance.*euclidean.*angular.*got 'cosine'"),
    ({"convention": "code"}, ValueError, "convention.*paper.*released_code.*got 'code'"),
    ({"anchors": [0]}, TypeError, "anchors as a tensor of int64 indices, got list"),
    ({"anchors": torch.tensor([0.0])}, TypeError, "int64 indices, got torch.float32"),
    ({"anchors": torch.ones(6, dtype=torch.bool)}, TypeError, "int64 indices, got torch.bool"),
    ({"anchors": torch.tensor([[0]])}, ValueError, r"anchors as \[M\].*got \[1, 1\]"),
    ({"anchors": torch.tensor([], dtype=torch.int64)}, ValueError, r"M at least 1, got \[0\]"),
    ({"anchors": torch.tensor([0, 6])}, ValueError, "between 0 and 5 for 6 neurons, got 0 to 6"),
    ({"anchors": torch.tensor([-1])}, ValueError, "between 0 and 5 for 6 neurons, got -1 to -1"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[case[2] for case in BAD])
def test_bad_arguments_are_refused(arguments, error, message):
    arguments = {"neurons": LAYER, **arguments}
    with pytest.raises(error, match=message):
        hyperspherical_energy(arguments.pop("neurons"), **arguments)
