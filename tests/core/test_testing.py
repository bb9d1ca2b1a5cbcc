"""The conformance kit passes what is right, and says what is wrong with each kind of broken one."""

import random

import pytest
import torch
from mhe_core import list_regularizers, register_regularizer
from mhe_core.cli import main
from mhe_core.testing import check_regularizer, regularizer_checks
from torch import Tensor, nn

CORE = [info.name for info in list_regularizers() if info.distribution == "mhe-core"]


class Right(nn.Module):
    """Largest cosine after a random projection, redrawn by update: right in every respect."""

    def __init__(self, num_neurons: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("projection", torch.randn(dim, dim))

    def forward(self, neurons: Tensor) -> Tensor:
        projected = neurons.float() @ self.projection
        u = nn.functional.normalize(projected, dim=-1)
        return (u @ u.mT).triu(diagonal=1).amax()

    def update(self, neurons: Tensor, lr: float) -> None:
        self.projection = torch.randn_like(self.projection)


@pytest.mark.parametrize("name", CORE)
def test_core_conforms(name):
    check_regularizer(name, num_neurons=12, dim=48)  # more dimensions than CoMHE keeps


@pytest.mark.parametrize("options", [{"s": 0}, {"distance": "angular"}, {"convention": "paper"}])
def test_core_conforms_with_options(options):
    check_regularizer("half_mhe", 9, 5, **options)


def test_what_is_right_passes():
    check_regularizer(Right)
    check_regularizer(Right, num_neurons=4, dim=2)


class NotAModule:
    def __init__(self, num_neurons, dim):
        pass


class Vector(Right):
    def forward(self, neurons):
        return super().forward(neurons).expand(1)


class PythonNumber(Right):
    def forward(self, neurons):
        return super().forward(neurons).item()


class Integer(Right):
    def forward(self, neurons):
        return neurons.argmax()


class Raises(Right):
    def forward(self, neurons):
        raise RuntimeError("not today")


class Infinite(Right):
    def forward(self, neurons):
        return super().forward(neurons) / 0


class Detached(Right):
    def forward(self, neurons):
        return super().forward(neurons.detach())


class DetachedButTrained(Right):
    def __init__(self, num_neurons, dim):
        super().__init__(num_neurons, dim)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, neurons):
        return self.scale * super().forward(neurons.detach())


class Flat(Right):
    def forward(self, neurons):
        return 0 * super().forward(neurons)


class DividesByLength(Right):
    def forward(self, neurons):
        u = neurons.float() / neurons.float().norm(dim=-1, keepdim=True)
        return (u @ u.mT).mean()


class DividesByChord(Right):
    def forward(self, neurons):
        u = nn.functional.normalize(neurons.float(), dim=-1)
        return 1 / torch.pdist(u).amin()


class Arccos(Right):
    def forward(self, neurons):
        u = nn.functional.normalize(neurons.float(), dim=-1)
        return (u @ u.mT).tril(-1).acos().mean()


class DividesByChordToAntipode(Right):
    def forward(self, neurons):
        u = nn.functional.normalize(neurons.float(), dim=-1)
        return 1 / (u.unsqueeze(1) + u).norm(dim=-1).amin()


class DividesByPowerOfLength(Right):
    def forward(self, neurons):
        lengths = neurons.float().norm(dim=-1)
        return lengths[lengths > 0].pow(-12).mean()


class Overflows(Right):
    def forward(self, neurons):
        return (neurons.float() ** 10).sum()


class Draws(Right):
    def forward(self, neurons):
        self.projection = torch.randn_like(self.projection)
        return super().forward(neurons)


class DrawsUnseen(Right):
    def forward(self, neurons):
        return super().forward(neurons + torch.randn_like(neurons))


class DrawsItsOwn(Right):
    def __init__(self, num_neurons, dim):
        super().__init__(num_neurons, dim)
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, neurons):
        return super().forward(neurons + torch.randn(neurons.shape, generator=self.generator))


class Seeds(Right):
    def forward(self, neurons):
        torch.manual_seed(0)
        return super().forward(neurons + torch.randn_like(neurons))


class NormalisesInPlace(Right):
    def forward(self, neurons):
        neurons.data /= neurons.data.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        return super().forward(neurons)


class Dropout(Right):
    def __init__(self, num_neurons, dim):
        super().__init__(num_neurons, dim)
        self.calls = 0

    def forward(self, neurons):
        self.calls += 1
        return super().forward(neurons) * (1 if self.training else self.calls)


class Float32Only(Right):
    def forward(self, neurons):
        return (neurons @ self.projection).square().mean()


class LosesDigits(Right):
    def forward(self, neurons):
        small = 1e-3 * neurons.square().mean()
        return ((1 + small) - 1) * 1e3


class UpdateRaises(Right):
    def update(self, neurons, lr):
        raise RuntimeError("no update")


class UpdateTakesNothing(Right):
    def update(self):
        pass


class UpdateMovesNeurons(Right):
    def update(self, neurons, lr):
        neurons.data *= 1 - lr


class UpdateLeavesAGradient(Right):
    def update(self, neurons, lr):
        if neurons.requires_grad:
            self(neurons).backward()


class UpdateBreaks(Right):
    def update(self, neurons, lr):
        self.projection = self.projection * torch.nan


class HiddenState(Right):
    def __init__(self, num_neurons, dim):
        super().__init__(num_neurons, dim)
        projection = self.projection
        del self.projection
        self.projection = projection  # an attribute, not a buffer


class HiddenCounter(Right):
    def __init__(self, num_neurons, dim):
        super().__init__(num_neurons, dim)
        self.steps = 0

    def update(self, neurons, lr):
        self.steps += 1
        if self.steps % 4 == 0:
            super().update(neurons, lr)


class LateBuffer(Right):
    def update(self, neurons, lr):
        self.register_buffer("late", torch.ones(1))


class StateIsAnObject(Right):
    def get_extra_state(self):
        return Right

    def set_extra_state(self, state):
        pass


class HalfTheGradient(Right):
    def forward(self, neurons):
        u = nn.functional.normalize(neurons.float(), dim=-1)
        return (u @ u.detach().mT).square().mean()


class CountsByIndex(Right):
    def forward(self, neurons):
        u = nn.functional.normalize(neurons.float(), dim=-1)
        return (u[1:] * u[:-1]).sum(-1).mean()


class CountsLengths(Right):
    depends_on_lengths = False

    def forward(self, neurons):
        return (neurons.float() @ neurons.float().mT).mean()


class HoldsAFunction(Right):
    def __init__(self, num_neurons, dim):
        super().__init__(num_neurons, dim)
        self.function = lambda x: x


class HoldsAGenerator(Right):
    def __init__(self, num_neurons, dim):
        super().__init__(num_neurons, dim)
        self.drawn = (k for k in range(9))


class SharesItsStateWithItsCopy(Right):
    def __deepcopy__(self, memo):
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def update(self, neurons, lr):
        self.projection.mul_(0.5)


class DrawsFromPython(Right):
    def update(self, neurons, lr):
        self.projection = self.projection * random.random()


class StartsDifferently(Right):
    def __init__(self, num_neurons, dim):
        super().__init__(num_neurons, dim)
        self.projection = self.projection + random.random()


BROKEN = [
    (NotAModule, "expected an nn.Module, got <"),
    (Vector, r"forward: expected a scalar tensor, got shape \[1\]"),
    (PythonNumber, r"forward: expected a scalar tensor, got -?\d"),
    (Integer, "forward: expected floating point, got torch.int64"),
    (Raises, "forward: expected a value, got RuntimeError: not today"),
    (Infinite, "forward: expected a finite value, got -?inf"),
    (Detached, "forward: expected a value with a gradient to the neurons"),
    (DetachedButTrained, "forward: backward: got RuntimeError"),
    (Flat, "gradient: expected it to reach the neurons, got zero"),
    (DividesByLength, "forward with a zero neuron: expected a finite value, got nan"),
    (DividesByChord, "forward with two equal neurons: expected a finite value, got inf"),
    (Arccos, "forward with all neurons on one axis: expected a finite gradient, got 128 of 128"),
    (DividesByChordToAntipode, "forward with two opposite neurons: expected a finite value"),
    (DividesByPowerOfLength, "forward with neurons of length about 1e-4: expected a finite value"),
    (Overflows, "forward with neurons of length about 1e4: expected a finite value, got inf"),
    (Draws, "forward: expected it to leave its state alone"),
    (DrawsUnseen, "forward: expected it to leave torch's random state alone"),
    (DrawsItsOwn, "forward: expected the same value twice, got .* and "),
    (Seeds, "forward: expected it to leave torch's random state alone"),
    (NormalisesInPlace, "forward: expected it to leave the neurons alone"),
    (Dropout, "forward: expected the same value twice, got .* and "),
    (Float32Only, "forward in bfloat16: expected a value, got RuntimeError"),
    (LosesDigits, "forward in bfloat16: expected about .*; compute it in float32"),
    (UpdateRaises, r"update: expected update\(neurons, lr\) to run, got RuntimeError: no update"),
    (UpdateTakesNothing, r"update: expected update\(neurons, lr\) to run, got TypeError"),
    (UpdateMovesNeurons, "update: expected it to leave the neurons alone"),
    (UpdateLeavesAGradient, "update: expected no gradient left on the neurons"),
    (UpdateBreaks, "forward: expected a finite value, got nan"),
    (HiddenState, "state dict: expected the same value after loading, got .* must be a buffer"),
    (HiddenCounter, "state dict: expected the same value one update later"),
    (LateBuffer, "state dict: expected it to load, got RuntimeError: .*Unexpected key"),
    (StateIsAnObject, "state dict: expected it to load, got UnpicklingError"),
    (HalfTheGradient, "gradient: expected .* as finite differences have it, got "),
    (CountsByIndex, "order: expected .* whatever the neurons' order, got "),
    (CountsLengths, "lengths: expected .* as depends_on_lengths is False, got "),
    (HoldsAFunction, "pickle: expected one, got "),
    (HoldsAGenerator, "deep copy: expected one, got TypeError"),
    (SharesItsStateWithItsCopy, "deep copy: expected its update to leave the original alone"),
    (StartsDifferently, "ranks: expected equal states .* draw from torch's generators alone"),
]


@pytest.mark.parametrize(
    ("factory", "message"), BROKEN, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_broken_one_is_caught(factory, message):
    with pytest.raises(AssertionError, match=f"(?s)^{message}"):
        check_regularizer(factory)


def test_state_drawn_from_other_generators_is_caught():
    """Of Python's state, each call takes its own: which rule finds it first does not matter."""
    with pytest.raises(AssertionError, match=r"expected the same value|ranks: expected equal"):
        check_regularizer(DrawsFromPython)


@pytest.mark.parametrize("check", regularizer_checks("half_mhe", 6, 4))
def test_each_rule_is_a_case(check):
    check()


@pytest.mark.parametrize(
    "check", regularizer_checks(CountsByIndex, expected_failures={"order": "it goes by index"})
)
def test_a_failure_can_be_expected(check):
    check()


def test_an_expected_failure_is_of_a_rule():
    with pytest.raises(ValueError, match=r"expected failures of rules among .*, got \['ordre'\]"):
        regularizer_checks("mhe", expected_failures={"ordre": "typing"})


def test_the_command_prints_each_rule_and_their_number(capsys, monkeypatch):
    monkeypatch.setattr("mhe_core.registry._registered", {})
    register_regularizer("by_index", CountsByIndex)
    main(["check", "mhe", "s=1", "distance=angular"])
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"{len(lines)} rules, 0 broken"
    assert len(lines) == len(regularizer_checks("mhe"))
    assert all(line.startswith("passed  ") for line in lines)
    with pytest.raises(SystemExit, match="1"):
        main(["check", "by_index"])
    text = capsys.readouterr().out
    assert "FAILED  order: The order" in text
    assert text.endswith(" rules, 1 broken\n")
    for wrong in (["mhf"], ["mhe", "s"], ["mhe", "--dim", "1"]):
        with pytest.raises(SystemExit, match="2"):
            main(["check", *wrong])


class ChangesOnTheWay(Right):
    def _apply(self, fn, recurse=True):
        self.projection = torch.zeros_like(self.projection)
        return super()._apply(fn, recurse)


def test_devices(monkeypatch):
    """With the CPU in the place of another device."""
    monkeypatch.setattr("mhe_core.testing._rules.other_devices", lambda: ["cpu"])
    check_regularizer(Right)
    with pytest.raises(AssertionError, match=r"^forward on cpu: expected .*, as on the CPU, got 0"):
        check_regularizer(ChangesOnTheWay)


def test_a_name_that_cannot_be_had_fails_the_test(monkeypatch):
    monkeypatch.setattr("mhe_core.registry._registered", {})
    register_regularizer("wrong", NotAModule)
    with pytest.raises(AssertionError, match=r"regularizer 'wrong' of in-process .*nn.Module, got"):
        check_regularizer("wrong")
    with pytest.raises(AssertionError, match="unknown regularizer 'half_mhf'; did you mean"):
        check_regularizer("half_mhf")
    with pytest.raises(AssertionError, match="unexpected keyword argument 'z'"):
        check_regularizer("mhe", z=1)


def test_random_state_is_left_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    check_regularizer(Right)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sizes", [(3, 8), (16, 1)])
def test_sizes_too_small_for_the_checks(sizes):
    with pytest.raises(ValueError, match=r"expected num_neurons ≥ 4 and dim ≥ 2, got"):
        check_regularizer("mhe", *sizes)
