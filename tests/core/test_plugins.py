import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from mhe_core import (
    MHE,
    NetworkRegularizer,
    PluginError,
    create_regularizer,
    list_regularizers,
    register_regularizer,
)
from mhe_core import registry as plugins_module
from mhe_core.registry import HyperparameterError, RegularizerNameError
from support.forks import run_python
from torch import nn

GOOD = '''
from torch import nn

class Good(nn.Module):
    """A good regularizer."""

    def __init__(self, num_neurons, dim, *, scale=1.0, **others):
        super().__init__()
        self.scale = scale

    def forward(self, neurons):
        return self.scale * neurons.sum()
'''


@pytest.fixture
def install(tmp_path, monkeypatch, write_distribution):
    """Install a distribution in a folder of its own on this process's path."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def install(name, targets, modules=None, *, scan=True, **metadata):
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        write_distribution(folder, name, targets, modules, **metadata)
        sys.path.insert(0, str(folder))
        if scan:
            list_regularizers()
        return folder

    yield install
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    plugins_module._installed.cache_clear()


@pytest.fixture
def clean_register(monkeypatch):
    monkeypatch.setattr(plugins_module, "_registered", {})


def listed(name):
    return [info for info in list_regularizers() if info.name == name]


def in_subprocess(code, path):
    environment = {"PYTHONPATH": str(path)}
    return run_python("-c", code, env=environment).stdout.strip()


# What is found


def test_core_registers_its_own_through_entry_points():
    (info,) = listed("mhe")
    assert (info.distribution, info.target) == ("mhe-core", "mhe_core.regularizers.mhe:MHE")
    assert info.version == entry_points(group=plugins_module.GROUP)["mhe"].dist.version
    assert type(create_regularizer("mhe", 3, 2, s=1)) is MHE


def test_an_installed_distribution_needs_no_change_here(example_plugin):
    code = """
import torch
from mhe_core import NetworkRegularizer, list_regularizers
print([(i.distribution, i.version) for i in list_regularizers() if i.name == "minimal_angle"])
model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
penalty = NetworkRegularizer(model, hidden="minimal_angle", output="minimal_angle")()
penalty.backward()
print(all(bool(layer.weight.grad.any()) for layer in model))
"""
    assert in_subprocess(code, example_plugin) == "[('mhe-example-plugin', '0.1.0')]\nTrue"


def test_the_example_passes_its_own_tests(example_plugin):
    folder = Path(__file__).parents[1] / "example_plugin"
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", folder)
    run = run_python(*command, env={"PYTHONPATH": str(example_plugin)})
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout


def test_listing_and_creating_others_import_nothing(tmp_path, write_distribution):
    modules = {"heavy/__init__.py": "print('imported')", "heavy/inner.py": GOOD}
    write_distribution(tmp_path, "heavy", [("heavy", "heavy.inner:Good")], modules)
    code = """
import sys
from mhe_core import create_regularizer, list_regularizers
print([i.summary for i in list_regularizers() if i.name == "heavy"])
create_regularizer("mhe", 3, 2)
print([m for m in sys.modules if "heavy" in m])
create_regularizer("heavy", 3, 2)
"""
    assert in_subprocess(code, tmp_path) == "['A good regularizer.']\n[]\nimported"


def test_what_is_installed_while_the_process_runs_is_found(install):
    with pytest.raises(PluginError):
        create_regularizer("late", 3, 2)
    install("late", [("late", "late_module:Good")], {"late_module.py": GOOD}, scan=False)
    assert create_regularizer("late", 3, 2, scale=2.0)(torch.ones(3, 2)) == 12


@pytest.mark.parametrize("where", ["in one file", "in two folders"])
def test_identical_pairs_are_folded(install, where):
    target = ("twice", "twice_module:Good")
    install("twice", [target] * (2 if where == "in one file" else 1), {"twice_module.py": GOOD})
    if where == "in two folders":
        install("twice", [target])
    assert len(listed("twice")) == 1
    create_regularizer("twice", 3, 2)


# Names


def test_a_name_claimed_twice_names_both_and_either_can_be_picked(install):
    first = GOOD.replace("self.scale * ", "")
    install("Dist.One", [("both", "one_module:Good")], {"one_module.py": first}, version="1.1")
    install("dist-two", [("both", "two_module:Good")], {"two_module.py": GOOD}, version="2.2")
    with pytest.raises(RegularizerNameError) as caught:
        create_regularizer("both", 3, 2)
    for part in ("'both'", "Dist.One 1.1", "dist-two 2.2", "'Dist.One:both'", "'dist-two:both'"):
        assert part in str(caught.value)
    assert create_regularizer("dist-one:both", 3, 2, scale=5)(torch.ones(3, 2)) == 6
    assert create_regularizer("Dist_Two:both", 3, 2, scale=5)(torch.ones(3, 2)) == 30
    assert len(listed("both")) == 2


def test_a_third_party_cannot_silently_take_the_place_of_core(install):
    install("usurper", [("mhe", "usurper_module:Good")], {"usurper_module.py": GOOD})
    with pytest.raises(PluginError, match=r"claimed by .*usurper:mhe"):
        create_regularizer("mhe", 3, 2)
    assert type(create_regularizer("mhe-core:mhe", 3, 2)) is MHE
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    with pytest.raises(PluginError, match="claimed"):
        NetworkRegularizer(model, hidden="mhe")
    assert type(NetworkRegularizer(model).regularizers["/1"]) is MHE  # its defaults are core's


def test_a_name_with_a_colon_is_found(install):
    install("colon", [("a:b", "colon_module:Good")], {"colon_module.py": GOOD})
    create_regularizer("a:b", 3, 2)
    create_regularizer("colon:a:b", 3, 2)


@pytest.mark.parametrize("name", ["half_mhr", "HALF_MHE", "half-mhe", "nobody:half_mhe"])
def test_an_unknown_name_suggests_near_ones(name):
    with pytest.raises(RegularizerNameError, match=r"did you mean 'half_mhe'.*known: ") as caught:
        create_regularizer(name, 3, 2)
    assert repr(name) in str(caught.value)
    assert isinstance(caught.value, LookupError)
    assert isinstance(caught.value, ValueError)


def test_a_far_name_suggests_none_and_lists_all():
    with pytest.raises(PluginError, match=r"^unknown regularizer 'zzz'; known: .*half_mhe.*mhe"):
        create_regularizer("zzz", 3, 2)


@pytest.mark.parametrize("name", [None, 3, b"mhe"])
def test_a_name_is_a_string(name):
    with pytest.raises(TypeError, match="expected the regularizer's name as a string, got"):
        create_regularizer(name, 3, 2)


# Broken plug-ins

BROKEN = {
    "import": ("import absent_dependency", "ModuleNotFoundError: No module named 'absent_dep"),
    "raises": ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
    "exits": ("import sys; sys.exit('bye')", "SystemExit: bye"),
    "syntax": ("def Factory(:", "SyntaxError"),
    "attribute": ("Other = 1", "AttributeError: .*Factory"),
    "object": ("Factory = 3", "expected a callable, got 3"),
    "sizes": ("def Factory(size): pass", r"expected it to take \(num_neurons, dim, .*got \(size\)"),
    "number": ("def Factory(n, d): return 7", "expected it to return an nn.Module, got 7"),
    "class": ("class Factory:\n    def __init__(self, n, d): pass", "return an nn.Module, got <"),
    "none": ("def Factory(n, d): pass", "expected it to return an nn.Module, got None"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_says_whose_it_is_and_breaks_no_other(install, kind):
    source, cause = BROKEN[kind]
    install("broken-dist", [("broken", "broken_mod:Factory")], {"broken_mod.py": source})
    install("good-dist", [("good", "good_mod:Good")], {"good_mod.py": GOOD})
    for _ in range(2):
        with pytest.raises(PluginError, match=cause) as caught:
            create_regularizer("broken", 3, 2)
        assert str(caught.value).startswith(
            "regularizer 'broken' of broken-dist 1.0 (broken_mod:Factory): "
        )
        create_regularizer("good", 3, 2)
        create_regularizer("mhe", 3, 2)
        assert len(listed("broken")) == len(listed("good")) == 1


def test_the_cause_is_chained(install):
    install("chain", [("chain", "chain_mod:Factory")], {"chain_mod.py": "1 / 0"})
    with pytest.raises(PluginError) as caught:
        create_regularizer("chain", 3, 2)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("target", ["not a target", "torch", "torch:", "torch:nn.Linear:x"])
def test_a_malformed_target_says_so(install, target):
    install("lost", [("lost", target)])
    with pytest.raises(PluginError, match=r"'lost' of lost 1\.0 .* of the form module:object, got"):
        create_regularizer("lost", 3, 2)
    (info,) = listed("lost")
    assert info.target == target


def test_an_absent_module_says_so(install):
    install("lost", [("lost", "no_such_module:Factory [some, extras]")])
    with pytest.raises(PluginError, match="ModuleNotFoundError: No module named 'no_such_module'"):
        create_regularizer("lost", 3, 2)


def test_a_distribution_without_metadata_breaks_nothing(install):
    folder = install("bare", [("bare", "bare_mod:Good")], {"bare_mod.py": GOOD}, scan=False)
    next(folder.glob("*.dist-info/METADATA")).unlink()
    assert listed("bare")
    create_regularizer("bare", 3, 2)


def test_a_failure_is_not_cached(install):
    folder = install("mend", [("mend", "mend_mod:Good")], {"mend_mod.py": "import absent_one"})
    with pytest.raises(PluginError, match="absent_one"):
        create_regularizer("mend", 3, 2)
    (folder / "absent_one.py").write_text("")
    with pytest.raises(PluginError, match="AttributeError"):
        create_regularizer("mend", 3, 2)
    sys.modules.pop("mend_mod")
    (folder / "mend_mod.py").write_text(GOOD)
    assert create_regularizer("mend", 3, 2)(torch.ones(3, 2)) == 6


def test_a_failure_is_not_cached_where_the_target_was_wrong(install):
    folder = install("moved", [("moved", "old_place:Good")], {"new_place.py": GOOD})
    with pytest.raises(PluginError, match="old_place"):
        create_regularizer("moved", 3, 2)
    metadata = next(folder.glob("*.dist-info/entry_points.txt"))
    metadata.write_text(metadata.read_text().replace("old_place", "new_place"))
    create_regularizer("moved", 3, 2)


# Hyperparameters


@pytest.mark.parametrize("options", [{"z": 1}, {"half_space": True}, {"s": 1, "z": 2}])
def test_unknown_hyperparameters_name_those_there_are(options):
    unknown = list(options)[-1]
    with pytest.raises(
        HyperparameterError,
        match=rf"'mhe' of mhe-core .*'{unknown}'; expected hyperparameters: s=2.0, distance='eu",
    ) as caught:
        create_regularizer("mhe", 3, 2, **options)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, PluginError)


@pytest.mark.usefixtures("clean_register")
def test_a_missing_hyperparameter_is_named():
    register_regularizer("groups", lambda num_neurons, dim, *, num_groups, seed=None: nn.Identity())
    with pytest.raises(
        HyperparameterError, match=r"'num_groups'; expected .*: num_groups, seed=No"
    ):
        create_regularizer("groups", 3, 2)
    create_regularizer("groups", 3, 2, num_groups=2)


@pytest.mark.usefixtures("clean_register")
@pytest.mark.parametrize("error", [TypeError("inner"), ValueError("inner"), KeyError("inner")])
def test_errors_of_the_factory_are_its_own(error):
    def factory(num_neurons, dim):
        raise error

    register_regularizer("raising", factory)
    with pytest.raises(type(error)) as caught:
        create_regularizer("raising", 3, 2)
    assert caught.value is error


def test_a_factory_may_take_any_hyperparameters(install):
    install("open", [("open", "open_mod:Good")], {"open_mod.py": GOOD})
    create_regularizer("open", 3, 2, anything="goes")


# In-process


@pytest.mark.usefixtures("clean_register")
def test_registered_in_process():
    class Local(nn.Module):
        """A local one.

        More.
        """

        def __init__(self, num_neurons, dim):
            super().__init__()

    register_regularizer("local", nn.Identity)
    register_regularizer("local", Local)  # as when a notebook's cell is run again
    assert type(create_regularizer("local", 3, 2)) is Local
    (info,) = listed("local")
    assert (info.distribution, info.version, info.summary) == ("in-process", "", "A local one.")
    assert info.target.endswith("Local")


@pytest.mark.usefixtures("clean_register")
def test_registered_in_process_clashes_like_any_other():
    register_regularizer("mhe", lambda num_neurons, dim: nn.Identity())
    with pytest.raises(RegularizerNameError, match=r"in-process.*'in-process:mhe'"):
        create_regularizer("mhe", 3, 2)
    assert type(create_regularizer("in-process:mhe", 3, 2)) is nn.Identity


@pytest.mark.usefixtures("clean_register")
@pytest.mark.parametrize(
    ("name", "factory", "error"),
    [("", MHE, ValueError), ("a:b", MHE, ValueError), (None, MHE, TypeError), ("a", 3, TypeError)],
)
def test_registering_says_what_is_wrong(name, factory, error):
    with pytest.raises(error, match=r"expected .*, got "):
        register_regularizer(name, factory)


# Summaries

SOURCES = {
    "class": ("class F:\n    'Of the class.\\n\\n    More.'", "Of the class."),
    "function": ("def F(n, d):\n    'Of the function.'", "Of the function."),
    "redefined": ("def F(n):\n    'Old.'\ndef F(n, d):\n    'New.'", "New."),
    "imported": ("from elsewhere import F", "Its summary."),
    "undocumented": ("class F: pass", "Its summary."),
    "syntax": ("x = 1\nclass F(:", "broken: package.place, line 2: "),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_summaries_are_read_without_importing(install, kind):
    source, expected = SOURCES[kind]
    modules = {"package/__init__.py": "raise RuntimeError", "package/place.py": source}
    install("summed", [("summed", "package.place:F")], modules)
    (info,) = listed("summed")
    assert info.summary == expected or (kind == "syntax" and info.summary.startswith(expected))
    assert "package" not in sys.modules


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("absent_package:F", "broken: no module named 'absent_package'"),
        ("absent_package.inner:F", "broken: no module named 'absent_package.inner'"),
        ("torch.absent:F", "broken: no module named 'torch.absent'"),
        ("json.decoder.absent:F", "broken: no module named 'json.decoder.absent'"),
        ("a target", "broken: expected a target of the form module:object, got 'a target'"),
        ("math:sqrt", "Its summary."),
    ],
)
def test_a_summary_says_what_is_known_to_be_broken(install, target, expected):
    install("summed", [("summed", target)])
    (info,) = listed("summed")
    assert info.summary == expected


def test_a_name_with_its_distribution_is_the_same_regularizer(monkeypatch):
    monkeypatch.setattr(plugins_module, "_registered", {})
    same = {plugins_module.canonical_name(name) for name in ("mhe", "mhe-core:mhe", "mhe_core:mhe")}
    assert same == {"mhe"}
    register_regularizer("mhe", torch.nn.Identity)
    assert plugins_module.canonical_name("in-process:mhe") == "in-process:mhe"
    assert plugins_module.canonical_name("mhe-core:mhe") == "mhe"
