"""What only a GPU can show: where the host waits, mixed precision, the real compiler, memory."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from mhe_core import NetworkRegularizer, create_regularizer, hyperspherical_energy
from torch import Tensor, nn

pytestmark = pytest.mark.cuda

REGULARIZERS = {
    "mhe": {},
    "half_mhe": {},
    "comhe_random": {"projection_dim": 38, "num_projections": 5, "seed": 0},
    "comhe_angle": {"projection_dim": 38, "seed": 0},
    "comhe_adversarial": {"projection_dim": 38, "seed": 0},
    "comhe_group": {"num_groups": 3, "group_dim": 38, "seed": 0},
}
EVERY_REGULARIZER = pytest.mark.parametrize("name", REGULARIZERS)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for k in range(5):
        layers += [nn.Linear(40 + k, 41 + k), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(45, 7))


def regularized(model: nn.Module, name: str) -> NetworkRegularizer:
    return NetworkRegularizer(model, name, "mhe", hidden_options=REGULARIZERS[name])


def waits(action) -> tuple[object, int]:
    """What an action returns, and how often the host waited for the GPU in it."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            result = action()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return result, sum("called a synchronizing" in str(warning.message) for warning in caught)


@EVERY_REGULARIZER
def test_the_host_waits_once_in_forward_and_never_in_backward_or_update(name):
    model = network().cuda()
    regularizer = regularized(model, name).cuda()
    regularizer.update(0.1)
    regularizer().backward()  # constants are read once in a process
    # The adversary brings neurons together: for each of the layers is asked once whether it did.
    assert waits(lambda: regularizer.update(0.1))[1] <= (5 if name == "comhe_adversarial" else 0)
    value, forward = waits(regularizer)
    if name != "comhe_adversarial":
        assert forward == 1
    assert waits(value.backward)[1] == 0


@EVERY_REGULARIZER
def test_value_and_gradient_are_those_of_the_cpu(name):
    neurons = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    on_gpu = create_regularizer(name, 50, 40, **REGULARIZERS[name]).cuda()
    for _ in range(3):
        on_gpu.update(neurons.cuda(), 0.1)
    on_cpu = pickle.loads(pickle.dumps(copy.deepcopy(on_gpu).cpu()))
    if name == "comhe_random":  # what is drawn is not saved, and another device draws others
        on_cpu.projection.copy_(on_gpu.projection)
    found = []
    for regularizer, w in ((on_gpu, neurons.cuda()), (on_cpu, neurons.double())):
        w.requires_grad_()
        value = regularizer(w)
        (gradient,) = torch.autograd.grad(value, w)
        found.append([x.detach().double().cpu() for x in (value, gradient)])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)


def test_what_is_drawn_does_not_touch_the_generators_and_is_drawn_again_alike():
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state()
    first, second = (
        create_regularizer("comhe_random", 50, 40, **REGULARIZERS["comhe_random"]).cuda()
        for _ in range(2)
    )
    neurons = torch.randn(50, 40).cuda()
    for _ in range(2):
        first.update(neurons, 0.1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.projection, second.projection)
    assert torch.equal(before, torch.cuda.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@EVERY_REGULARIZER
def test_mixed_precision_changes_neither_value_nor_unscaled_gradient(name, dtype):
    model = network().cuda()
    regularizer = regularized(model, name).cuda()
    regularizer.update(0.1)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**14)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    value = regularizer()
    value.backward()
    want = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype):
        model(torch.randn(3, 40, device="cuda"))
        again = regularizer()
    scaler.scale(again).backward()
    scaler.unscale_(optimizer)
    assert again.dtype == torch.float32
    assert torch.equal(value, again)
    torch.testing.assert_close(
        [p.grad for p in model.parameters() if p.grad is not None], want, rtol=1e-5, atol=1e-9
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("name", ["half_mhe", "comhe_random"])
def test_steps_by_the_real_compiler(name, mode):
    """Twice a step, as CUDA graphs are recorded in the first ones."""
    torch._dynamo.reset()
    model = network().cuda()
    regularizer = regularized(model, name).cuda()
    x = torch.randn(3, 40, device="cuda")

    def step() -> Tensor:
        return model(x).square().mean() + regularizer()

    found = []
    for function in (step, torch.compile(step, mode=mode)):
        for _ in range(4):
            model.zero_grad()
            loss = function()
            loss.backward()
        found.append([loss.detach().clone(), *(p.grad.clone() for p in model.parameters())])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_memory_is_that_of_a_few_tiles():
    """Of 40,000 neurons: their cosines would take 6 GiB, a tile takes 64 MiB."""
    neurons = torch.randn(40_000, 64, device="cuda", requires_grad=True)
    hyperspherical_energy(neurons[:100], half_space=True).backward()
    neurons.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    hyperspherical_energy(neurons, half_space=True).backward()
    extra = torch.cuda.max_memory_allocated() - before - neurons.nbytes
    assert extra < 512 * 2**20


def test_near_and_coincident_neurons_are_done_with_care():
    neurons = torch.randn(60, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    neurons[1] = neurons[0] * (1 + 1e-12)
    neurons[3] = -neurons[2] + 1e-6 * neurons[4]
    neurons[5] = 0
    for scale in (1.0, 1e-200, 1e200):
        found = []
        for device in ("cpu", "cuda"):
            w = (neurons * scale).to(device).requires_grad_()
            value = hyperspherical_energy(w, half_space=True)
            (gradient,) = torch.autograd.grad(value, w)
            found.append([value.detach().cpu(), (gradient * scale).cpu()])
        torch.testing.assert_close(*found, rtol=1e-6, atol=0)


def test_tensor_float_32_has_the_digits_that_are_stated():
    """See hyperspherical_energy: where the user allows it for all products, it is used here too."""
    neurons = torch.randn(512, 576, device="cuda", requires_grad=True)
    exact = neurons.detach().double().requires_grad_()
    before = torch.get_float32_matmul_precision()
    errors = {}
    try:
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            value = hyperspherical_energy(neurons, half_space=True)
            want = hyperspherical_energy(exact, half_space=True)
            (slope,) = torch.autograd.grad(value, neurons)
            (right,) = torch.autograd.grad(want, exact)
            errors[precision] = [
                ((x - y).norm() / y.norm()).item() for x, y in ((value, want), (slope, right))
            ]
    finally:
        torch.set_float32_matmul_precision(before)
    print(errors)
    assert errors["highest"][0] < 1e-6
    assert errors["highest"][1] < 1e-4
    assert errors["high"][0] < 1e-4
    assert errors["high"][1] < 2e-2
