"""Whether every flag of a command does something, or is known to do nothing.

A package's test_flags.py has one entry for each field of each command's dataclass:

- ``Changes(value, …)``: a short run with that value must differ from the run without it. Without
  values, a bool is turned round, and of a Literal every choice must differ from every other.
  ``given`` are other settings that it takes to matter, ``what`` the part of the run in which
  the difference must be seen.
- ``Same("why", value)``: the run must be the same with that value; without a value, nothing is run.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from mhe_core.training.checkpoint import load_checkpoint

from support.runs import flat, records, state

__all__ = [
    "SHARED",
    "USE",
    "Changes",
    "Same",
    "check_all_reach_the_runs",
    "check_flag",
    "check_no_entry_is_left_over",
    "differing",
    "figures",
    "flags",
    "planning",
    "written",
]

Outcome = Mapping[str, Mapping[str, Any]]

# What a summary says of the run itself.
ABOUT = {"seed", "steps", "seconds", "step_seconds", "device"}


@dataclass(frozen=True)
class Changes:
    """A flag that must change what is written."""

    values: tuple[Any, ...]
    given: Mapping[str, Any]
    what: str

    def __init__(self, *values: Any, given: Mapping[str, Any] | None = None, what: str = "weights"):
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "given", given or {})
        object.__setattr__(self, "what", what)


@dataclass(frozen=True)
class Same:
    """A flag that must not change what is written, and why."""

    why: str
    value: Any = None
    given: Mapping[str, Any] = field(default_factory=dict)


# What the three train commands share; a package's own entries stand in for these.
SHARED: dict[str, Changes | Same] = {
    "output": Same("where a run is does not change it: every run here has another"),
    "data_dir": Same("digits are not read from there", Path("elsewhere")),
    "download": Same("digits are not downloaded", True),
    "width": Changes(0.2),
    "steps": Changes(3),
    "epochs": Changes(2, given={"steps": None, "batch_size": 512, "epochs": 1}),
    "batch_size": Changes(12),
    "lr": Changes(0.011),
    "clip_grad": Changes(0.001),
    "seed": Changes(1),
    "log_every": Changes(2, what="records"),
    "checkpoint_every": Same("only what a kill would lose depends on it", 1),
    "tracker": Changes("tensorboard", what="files"),
    "workers": Same("they read the images; the batches are the same", 1),
    "device": Same("on another device figures differ by rounding"),
    "amp": Changes("bf16"),
    "compile": Same("the same steps, but for rounding: each package has a test of its own"),
    "resume": Same("there is nothing to resume", True),
    "extended_at": Same("a run notes it itself"),
    "optimizer": Changes("adamw"),
    "momentum": Changes(0.5),
    "weight_decay": Changes(0.1),
    "flip": Changes(True),
    "eval_every": Changes(1, what="records"),
}


# What commands share that use a trained run. There, "other" is a checkpoint of another run's.
USE: dict[str, Changes | Same] = {
    "checkpoint": Changes("other", what="figures"),
    "output": Same("where it is written: what is compared was read from there"),
    "batch_size": Same("how many images at a time: figures differ by rounding"),
    "workers": Same("they read the images, which are the same", 1),
    "device": Same("on another device figures differ by rounding"),
}


def figures(report: Any, without: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """A command's report as an outcome, without what repeats its settings."""
    return {"figures": {k: v for k, v in flat(report).items() if not any(w in k for w in without)}}


def flags(config_class: type) -> list[str]:
    """The fields of a command's settings."""
    return [one.name for one in dataclasses.fields(config_class) if one.init]


def check_flag(
    config_class: type,
    name: str,
    entries: Mapping[str, Changes | Same],
    outcome: Callable[[dict[str, Any]], Outcome],
    base: Mapping[str, Any],
) -> None:
    """Run what the flag's entry says.

    Args:
        config_class: the command's settings.
        name: of the field.
        entries: those of the package.
        outcome: what is written with such settings, in named parts.
        base: the settings of every run.
    """
    flag = "--" + name.replace("_", "-")
    assert name in entries, (
        f"{flag} of {config_class.__name__} has no entry: add "
        f'"{name}": Changes(VALUE, given={{…}}) if something else must be written with VALUE '
        f'(the settings given make it matter), or "{name}": Same("why", VALUE) if it must not'
    )
    entry = entries[name]
    given = {**base, **entry.given}
    default = given.get(name, _default(config_class, name))
    if isinstance(entry, Same):
        assert entry.why
        if entry.value is not None:
            assert entry.value != default, f"{flag} {default!r} is no change"
            plain, changed = outcome(given), outcome({**given, name: entry.value})
            found = [part for part in plain if differing(plain[part], changed[part])]
            assert found == [], f"{flag} {entry.value} changed the {', '.join(found)}"
        return
    values = entry.values or [v for v in _choices(config_class, name) if v != default]
    assert values, f"{flag} has no choices: give Changes a value"
    assert default not in values, f"{flag} {default!r} is no change"
    runs = {repr(default): outcome(given)}
    runs |= {repr(value): outcome({**given, name: value}) for value in values}
    for (a, first), (b, second) in itertools.combinations(runs.items(), 2):
        assert differing(first[entry.what], second[entry.what]), (
            f"{flag} {a} and {flag} {b} wrote the same {entry.what}: is the flag wired?"
        )


def check_no_entry_is_left_over(config_class: type, entries: Mapping[str, Any]) -> None:
    """Every entry is of a flag that exists."""
    assert set(entries) - set(flags(config_class)) == set()


def check_all_reach_the_runs(
    train_class: type,
    entries: Mapping[str, Changes | Same],
    methods: Callable[[dict[str, Any]], Iterable[Any]],
    own: set[str],
) -> None:
    """The flags that compare takes over from train arrive in each of its runs.

    Args:
        train_class: the settings of one run.
        entries: of train.
        methods: the settings of the runs that compare would start with such settings.
        own: what compare sets itself.
    """
    lost = []
    for name in set(flags(train_class)) - own:
        entry = entries[name]
        values = entry.values if isinstance(entry, Changes) else (entry.value,)
        value = next(iter(values), None)
        if value is None:
            value = next(
                (v for v in _choices(train_class, name) if v != _default(train_class, name)), None
            )
        if value is None:
            continue
        found = [getattr(one, name) for one in methods({**entry.given, name: value})]
        assert found
        if any(one != value for one in found):
            lost.append(name)
    assert lost == []


def count_calls(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> list[Any]:
    """What the module's function is called with from now on, call by call."""
    called, function = [], getattr(module, name)

    def counted(*arguments: Any) -> Any:
        called.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(module, name, counted)
    return called


class Planned(Exception):
    """Compare would now train."""


def planning(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, output: Path
) -> Callable[[dict[str, Any]], tuple[Mapping[str, Any], Sequence[int]]]:
    """What an application's compare would train, with such settings: methods and seeds."""

    def stop(train: Any, methods: Any, seeds: Any, output: Any, **options: Any) -> None:
        raise Planned(methods, seeds)

    monkeypatch.setattr(module, "compare_runs", stop)

    def plan(settings: dict[str, Any]) -> tuple[Mapping[str, Any], Sequence[int]]:
        with pytest.raises(Planned) as found:
            module.compare(module.CompareConfig(output=output, **settings))
        return found.value.args

    return plan


def written(run: Path) -> dict[str, dict[str, Any]]:
    """What a run directory holds, in parts: weights, records, summary, best, files."""
    training = ("optimizer", "scaler", "regularizer", "schedule")
    files = [
        file for file in run.rglob("*") if file.is_file() and file.parent.name != "checkpoints"
    ]
    networks = {k: v for k, v in state(run).items() if not any(word in k for word in training)}
    summary = json.loads((run / "summary.json").read_text())
    best = load_checkpoint(run / "checkpoints" / "best")
    versions = {name for name in summary if isinstance(summary[name], str)}
    return {
        "weights": flat(networks),
        "records": flat(records(run)),
        "summary": {k: v for k, v in summary.items() if k not in ABOUT | versions},
        "best": {k: v for k, v in best.items() if k in ("step", "lowest")},
        "files": {str(file.relative_to(run)): True for file in files},
    }


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """The names whose values differ, or that one of the two does not have."""
    return [
        name
        for name in {**first, **second}
        if name not in first or name not in second or not _equal(first[name], second[name])
    ]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and a == b


def _default(config_class: type, name: str) -> Any:
    (one,) = (one for one in dataclasses.fields(config_class) if one.name == name)
    if one.default_factory is not dataclasses.MISSING:
        return one.default_factory()
    return None if one.default is dataclasses.MISSING else one.default


def _choices(config_class: type, name: str) -> tuple[Any, ...]:
    hint = typing.get_type_hints(config_class)[name]
    if hint is bool:
        return (False, True)
    for part in (hint, *typing.get_args(hint)):
        if typing.get_origin(part) is typing.Literal:
            return typing.get_args(part)
    return ()
