"""Every flag of the command ``mhe`` changes what it prints or writes."""

import itertools
import json
import re
import sys
from collections import OrderedDict

import pytest
import timm
import torch
from mhe_core import register_regularizer
from mhe_core.cli import main
from mhe_core.errors import UserError
from torch import nn

ON = (None, "")
# The values of each flag, of which every two must give another result. None: without the flag;
# "": it takes no value.
FLAGS = {
    "list": {"--json": ON, "--traceback": ON},
    "info": {"--json": ON, "--traceback": ON},
    "check": {"--num-neurons": (None, "9"), "--dim": (None, "5"), "--traceback": ON},
    "inspect": {
        "--pretrained": ON,
        "--key": ("first", "second"),
        "--base": ("first.pt", "second.pt"),
        "--s": (None, "1"),
        "--distance": ("euclidean", "angular"),
        "--half-space": ON,
        "--near": (None, "80"),
        "--sort": (None, "energy", "excess", "angle", "near", "zero"),
        "--json": ON,
        "--plot": (None, "picture.png"),
        "--traceback": ON,
    },
    "diff": {
        "--pretrained": ON,
        "--key": ("first", "second"),
        "--s": (None, "1"),
        "--distance": ("euclidean", "angular"),
        "--half-space": ON,
        "--reduction": ("mean", "sum"),
        "--max-rows": (None, "8"),
        "--seed": (None, "1"),
        "--sort": (None, "change", "cosine", "defect", "norm"),
        "--json": ON,
        "--plot": (None, "picture.png"),
        "--traceback": ON,
    },
}
# What a command is given beside its flag, and where a flag matters with other arguments only.
GIVEN = {
    "list": [],
    "info": ["half_mhe"],
    "check": ["picky"],
    "inspect": ["first.pt"],
    "diff": ["first.pt", "second.pt"],
    "inspect --pretrained": ["resnet18"],
    "inspect --key": ["both.pt"],
    "inspect --base": ["adapter"],
    "diff --pretrained": ["resnet18", "first.pt"],
    "diff --key": ["both.pt", "again.pt"],
    "diff --seed": ["first.pt", "second.pt", "--max-rows", "8"],
    "info --traceback": ["no_such"],
    "check --traceback": ["no_such"],
    "inspect --traceback": ["absent.pt"],
    "diff --traceback": ["absent.pt", "first.pt"],
}


def network(seed):
    """Layers of which each is the worst in another way."""
    torch.manual_seed(seed)
    sizes = {"far": (12, 40), "zero": (12, 20), "near": (12, 20), "full": (60, 6), "close": (4, 9)}
    layers = {name: nn.Linear(d, N, bias=False) for name, (N, d) in sizes.items()}
    with torch.no_grad():
        layers["zero"].weight[:4] = 0
        rows = layers["near"].weight
        rows[4:] = rows[:4].repeat(2, 1) + 0.01 * torch.randn(8, 20)
        rows = layers["close"].weight
        rows[0] = rows[1] + 1e-3 * torch.randn(9)
    return nn.Sequential(OrderedDict(layers))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two networks, a file that holds both, an adapter, and a third party's regularizer."""
    first, second = network(0).state_dict(), {}
    for (name, rows), noise in zip(first.items(), (0.06, 0.04, 0.03, 0.01, 0), strict=True):
        second[name] = rows * (1.5 - noise) + noise * torch.randn_like(rows)
    second["full.weight"][0] *= -1
    second["zero.weight"][1:4] = 0
    torch.save(first, tmp_path / "first.pt")
    torch.save(second, tmp_path / "second.pt")
    torch.save({"first": first, "second": second}, tmp_path / "both.pt")
    torch.save({"first": first, "second": first}, tmp_path / "again.pt")
    (tmp_path / "adapter").mkdir()
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["full"]}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(settings))
    factors = {"lora_A": torch.ones(1, 6), "lora_B": torch.ones(60, 1)}
    low_rank = {f"base_model.model.full.{name}.weight": value for name, value in factors.items()}
    torch.save(low_rank, tmp_path / "adapter/adapter_model.bin")
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: network(int(pretrained)))
    monkeypatch.setattr(sys.modules[register_regularizer.__module__], "_registered", {})
    register_regularizer("picky", Picky)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Picky(nn.Module):
    """Refuses some sizes."""

    def __init__(self, num_neurons, dim):
        super().__init__()
        if num_neurons == 9 or dim == 5:
            raise ValueError(f"not {num_neurons} of {dim}")

    def forward(self, neurons):
        return neurons.square().sum()


@pytest.fixture
def result(files, capsys):
    """What a command printed and wrote."""

    def run(*arguments):
        (files / "picture.png").unlink(missing_ok=True)
        status = 0
        try:
            main(arguments)
        except SystemExit as stop:
            status = stop.code
        except Exception as error:  # what --traceback asks for, or a plug-in's own
            status = repr(error)
        printed = capsys.readouterr()
        return status, printed.out, printed.err, (files / "picture.png").exists()

    return run


def refuse():
    raise UserError("nothing that a user can give makes mhe list fail")


@pytest.mark.parametrize(("command", "flag"), [(c, flag) for c in FLAGS for flag in FLAGS[c]])
def test_every_flag_changes_what_comes_of_it(command, flag, result, monkeypatch):
    if (command, flag) == ("list", "--traceback"):
        monkeypatch.setattr("mhe_core.cli.list.list_regularizers", refuse)
    given = GIVEN.get(f"{command} {flag}", GIVEN[command])
    found = {}
    for value in FLAGS[command][flag]:
        changed = [] if value is None else [flag, value] if value else [flag]
        found[value] = result(command, *given, *changed)
        refused = flag == "--traceback" or (command == "check" and value is not None)
        assert refused == (found[value][0] != 0), found[value]
    for a, b in itertools.combinations(found, 2):
        assert found[a] != found[b], f"{command} {flag}: {a} and {b} give the same"


@pytest.mark.parametrize("command", FLAGS)
def test_every_flag_is_here(command, result):
    _, text, _, _ = result(command, "--help")
    shown = set(re.findall(r"^  (--[a-z-]+)", text, flags=re.MULTILINE))
    assert shown == set(FLAGS[command])
