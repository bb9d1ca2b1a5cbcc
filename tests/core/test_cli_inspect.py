"""The command mhe inspect, run as a user runs it, and the files that it takes or refuses."""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import pickle
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from mhe_core.cli import main
from mhe_core.cli.inspect import layer_table
from mhe_core.diagnostics import inspect
from mhe_core.diagnostics._torch_files import read_torch_file
from mhe_core.diagnostics.weights import load_state_dict
from support.forks import run_python
from torch import nn


def run(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "mhe_core.cli", "inspect", *arguments, status=status)


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.Linear(40, 30), nn.Linear(30, 4))
    with torch.no_grad():
        model[1].weight[3] = model[1].weight[7] + 0.001
    return model


@pytest.fixture
def file(tmp_path, network) -> Path:
    torch.save(network.state_dict(), tmp_path / "network.pt")
    return tmp_path / "network.pt"


def refused(path: Path) -> str:
    with pytest.raises(ValueError, match=str(path)) as error:
        load_state_dict(path)
    return str(error.value)


def test_the_table_has_every_layer(file, network):
    result = run(file)
    head, *rows = result.stdout.splitlines()
    columns = "layer, N, d, energy, bound, random, smallest°, mean°, near, zero"
    assert head.split() == columns.split(", ")
    assert [row.split()[:3] for row in rows] == [
        ["0", "12", "27"], ["1", "30", "40"], ["2", "4", "30"],
    ]  # fmt: skip
    for row, layer in zip(rows, inspect(network.state_dict()), strict=True):
        *figures, near, _ = row.split()[3:]
        expected = (
            layer.energy,
            layer.lower_bound,
            layer.random_energy,
            math.degrees(layer.smallest_angle),
            math.degrees(layer.mean_angle),
        )
        assert [float(figure) for figure in figures] == pytest.approx(expected, abs=0.01)
        assert int(near) == layer.near_duplicates
    assert rows[1].split()[-2:] == ["2", "0"]


def test_options_and_json(file, network, capsys):
    options = ["--s", "1", "--distance", "angular", "--half-space", "--near", "90"]
    main(["inspect", str(file), *options, "--sort", "energy", "--json"])
    layers = inspect(
        network.state_dict(), s=1, distance="angular", half_space=True, near=math.pi / 2
    )
    layers.sort(key=lambda layer: -layer.energy)
    assert json.loads(capsys.readouterr().out) == [vars(layer) for layer in layers]


def test_what_json_cannot_hold_is_null(tmp_path, capsys):
    torch.save({"weight": torch.eye(2)}, tmp_path / "tiny.pt")
    main(["inspect", str(tmp_path / "tiny.pt"), "--json"])
    (layer,) = json.loads(capsys.readouterr().out)
    assert layer["random_energy"] is None
    assert layer["energy"] == 0.5


def test_a_plot_is_drawn(file, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    for options in ([], ["--half-space"]):
        picture = tmp_path / f"angles{len(options)}.png"
        main(["inspect", str(file), "--plot", str(picture), *options])
        pixels = imread(picture)[..., :3]
        assert pixels.shape[0] > 300
        assert pixels.shape[1] > 1000
        assert pixels.std() > 0.05


def test_missing_extras_are_named(file, tmp_path, monkeypatch, capsys):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"weight": torch.eye(3)}, tmp_path / "w.safetensors")
    for module, arguments, extra in (
        ("timm", ["resnet18"], "mhe-core[timm]"),
        ("matplotlib", [str(file), "--plot", "angles.png"], "mhe-core[plots]"),
        ("safetensors", [str(tmp_path / "w.safetensors")], "mhe-core[safetensors]"),
    ):
        with monkeypatch.context() as patch:
            for name in [name for name in sys.modules if name.startswith(f"{module}.")]:
                patch.delitem(sys.modules, name)
            patch.setitem(sys.modules, module, None)  # as if it were not installed
            with pytest.raises(SystemExit):
                main(["inspect", *arguments])
        output = capsys.readouterr()
        assert extra in output.err
        assert not output.out


def test_a_timm_model_is_made_by_name(capsys):
    pytest.importorskip("timm")
    main(["inspect", "resnet18", "--json"])
    layers = {layer["name"]: layer for layer in json.loads(capsys.readouterr().out)}
    assert (layers["conv1"]["num_neurons"], layers["conv1"]["dim"]) == (64, 147)
    assert (layers["fc"]["num_neurons"], layers["fc"]["dim"]) == (1000, 512)
    with pytest.raises(SystemExit):
        main(["inspect", "resnet-18"])
    assert "did you mean resnet18" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent.pt",), "expected a weights file, found no absent.pt"),
        ((os.curdir,), "expected a folder with one weights file or an index"),
        (("FILE", "--pretrained"), "expected a timm model name with --pretrained"),
        (("FILE", "--key", "ema"), "expected no key, as nothing in"),
        (("FILE", "--s", "-1"), "expected s as a finite number ≥ 0, got -1.0"),
        (("FILE", "--near", "-1"), "expected near as an angle from 0 to π"),
        (("FILE", "--plot", "angles.xyz"), "xyz"),
    ],
)
def test_errors_are_one_line(file, arguments, message, capsys):
    arguments = [str(file) if argument == "FILE" else argument for argument in arguments]
    with pytest.raises(SystemExit) as exit_:
        main(["inspect", *arguments])
    output = capsys.readouterr()
    assert exit_.value.code == 2
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not output.out


class Bait:
    """Would make a folder if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_that_would_run_code_is_refused(tmp_path, network):
    path, trace = tmp_path / "weights.pt", tmp_path / "ran"
    content = {"state_dict": network.state_dict(), "bait": Bait(trace)}
    torch.save(content, path)
    result = run(path, status=2)
    assert result.stderr.startswith(f"mhe: error: refused to read {path}: it has more than")
    assert "mkdir" in result.stderr
    assert result.stderr.count("\n") == 1
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert "mkdir" in refused(path)
    path.write_bytes(pickle.dumps(Bait(trace)))
    assert "refused" in refused(path)
    assert not trace.exists()


def test_whole_modules_and_torchscript_are_refused(tmp_path, network):
    torch.save(network, tmp_path / "module.pt")
    assert "Sequential" in refused(tmp_path / "module.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out
        script = torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3))
        script.save(str(tmp_path / "script.pt"))
    assert "TorchScript" in refused(tmp_path / "script.pt")


def test_other_and_damaged_files_are_refused(tmp_path, file):
    (tmp_path / "text.pt").write_text("not weights")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "half.pt").write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for name in ("text.pt", "empty.pt", "half.pt"):
        assert "expected safetensors or a file written by torch.save" in refused(tmp_path / name)
    header = (1000).to_bytes(8, "little") + b"{" + b" " * 999
    (tmp_path / "damaged.safetensors").write_bytes(header)
    assert "damaged safetensors" in refused(tmp_path / "damaged.safetensors")


@pytest.mark.parametrize("legacy", [False, True])
def test_the_content_decides_not_the_suffix(tmp_path, network, legacy):
    safetensors = pytest.importorskip("safetensors.torch")
    state = network.state_dict()
    safetensors.save_file(state, tmp_path / "safe.pt")
    torch.save(state, tmp_path / "torch.safetensors", _use_new_zipfile_serialization=not legacy)
    for name in ("safe.pt", "torch.safetensors"):
        loaded = load_state_dict(tmp_path / name)
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_nested_checkpoints(tmp_path, network, capsys):
    path, state = tmp_path / "checkpoint.pt", network.state_dict()
    optimizer = torch.optim.Adam(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    other = {key: value + 1 for key, value in state.items()}
    rest = {"epoch": 3, "optimizer": optimizer.state_dict(), "scores": torch.ones(3)}
    for nested in (
        {"state_dict": state},
        {"anything": state},
        {"run": {"state": {"model": state, "ema": other}}},
        {"model": state, "model_ema": other},
    ):
        torch.save(nested | rest, path)
        loaded = load_state_dict(path)
        assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert torch.equal(load_state_dict(path, "model_ema")["0.weight"], other["0.weight"])

    torch.save({"generator": state, "discriminator": other} | rest, path)
    assert "one of ['discriminator', 'generator']" in refused(path)
    with pytest.raises(ValueError, match=r"key to be one of .*, got 'ema': .*checkpoint.pt"):
        load_state_dict(path, "ema")
    main(["inspect", str(path), "--key", "generator"])
    assert capsys.readouterr().out == layer_table(inspect(state)) + "\n"
    torch.save(rest, path)
    assert "found no weights of two dimensions" in refused(path)


def test_a_layer_that_is_not_a_number_is_sorted_first(tmp_path, capsys):
    state = {f"{k}.weight": torch.randn(5, 4) for k in range(4)}
    state["2.weight"][1, 1] = math.nan
    torch.save(state, tmp_path / "weights.pt")
    for key in ("energy", "excess", "angle", "near", "zero"):
        main(["inspect", str(tmp_path / "weights.pt"), "--sort", key, "--json"])
        rows = json.loads(capsys.readouterr().out)
        assert rows[0]["name"] == "2"
        assert rows[0]["energy"] is None
    main(["inspect", str(tmp_path / "weights.pt"), "--plot", str(tmp_path / "angles.png")])


class TestWhatTrainingProgramsSave:
    def test_plain_settings_beside_the_weights_are_read(self, tmp_path, network):
        numpy = pytest.importorskip("numpy")
        state = network.state_dict()
        nested = collections.defaultdict(list, {"loss": [1.0]})
        checkpoint = {
            "state_dict": state,
            "args": argparse.Namespace(lr=0.1, output=tmp_path, decay=[1, 2], more=nested),
            "metric": numpy.float64(0.5),
            "others": [numpy.float32(1), numpy.int64(3), numpy.bool_(True)],
            "order": collections.OrderedDict(a=1),
            "generator": numpy.random.default_rng(0).integers(9, size=4),
        }
        before = set(torch.serialization.get_safe_globals())  # whose order is that of addresses
        for legacy in (False, True):
            path = tmp_path / f"checkpoint{legacy}.pth.tar"
            torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
            loaded = load_state_dict(path)
            assert all(torch.equal(loaded[key], state[key]) for key in state)
            assert set(torch.serialization.get_safe_globals()) == before

    def test_numbers_are_what_they_were(self, tmp_path):
        numpy = pytest.importorskip("numpy")
        values = [numpy.float64(-0.1), numpy.float16(2.5), numpy.uint8(200), numpy.int32(-7)]
        values.append(numpy.dtype(">f4").type(3))
        torch.save({"values": values}, tmp_path / "values.pt")
        assert read_torch_file(tmp_path / "values.pt")["values"] == [v.item() for v in values]

    def test_timms_checkpoints_are_read(self, tmp_path):
        utils = pytest.importorskip("timm.utils")
        model = nn.Linear(3, 4)
        saver = utils.CheckpointSaver(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            args=argparse.Namespace(model="linear", output=tmp_path),
            checkpoint_dir=str(tmp_path),
        )
        saver.save_checkpoint(0, metric=0.5)
        loaded = load_state_dict(tmp_path / "last.pth.tar")
        assert torch.equal(loaded["weight"], model.weight)


def hostile(trace: Path) -> dict[str, bytes]:
    """Pickles that would make a folder, in protocol 0, by what is allowed and what is not."""
    made = f"(V{trace}\ntR."
    return {
        "a function": f"cos\nmkdir\n{made}".encode(),
        "through getattr": f"cbuiltins\ngetattr\n(cos\nmkdir\nV__call__\ntR{made}".encode(),
        "an instance of a namespace": f"cargparse\nNamespace\n(cos\nmkdir\n{made}".encode(),
        "eval": f"cbuiltins\neval\n(V__import__('os').mkdir('{trace}')\ntR.".encode(),
        "a dotted name": f"cpathlib\nPath.cwd.__globals__\n{made}".encode(),
        "numpy's own loader": f"cnumpy\nload\n{made}".encode(),
    }


@pytest.mark.parametrize("kind", hostile(Path()))
def test_hostile_pickles_are_refused_and_run_nothing(tmp_path, kind):
    trace = tmp_path / "ran"
    content = hostile(trace)[kind]
    (tmp_path / "plain.pt").write_bytes(b"\x80\x02" + content)
    with zipfile.ZipFile(tmp_path / "zipped.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + content)
        archive.writestr("archive/version", b"3\n")
    for name in ("plain.pt", "zipped.pt"):
        refused(tmp_path / name)
    assert not trace.exists()


def test_torchscript_is_known_by_its_content_whatever_torch_would_do(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3)).save(str(tmp_path / "script.pt"))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("handed to torch"))
    assert "it is TorchScript" in refused(tmp_path / "script.pt")


def test_a_tar_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / "old.pt", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    assert "tar archive" in refused(tmp_path / "old.pt")
