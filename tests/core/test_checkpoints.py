"""Checkpoints in the forms that people have them: shards, folders, adapters, prefixes."""

from __future__ import annotations

import copy
import enum
import json
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from mhe_core.cli import main
from mhe_core.diagnostics import inspect
from mhe_core.diagnostics.weights import load_state_dict
from support.forks import run_processes
from torch import nn


@pytest.fixture
def state():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(3, 3)).state_dict()


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in other)


def sharded(folder, state, save, suffix, index):
    folder.mkdir()
    places = {}
    for k, key in enumerate(state):
        places[key] = f"model-{k % 2}.{suffix}"
    for place in set(places.values()):
        save({key: state[key] for key in state if places[key] == place}, folder / place)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


class TestShards:
    @pytest.mark.parametrize("kind", ["safetensors", "torch"])
    def test_are_read_by_their_index_or_folder(self, tmp_path, state, kind, capsys):
        if kind == "torch":
            save, suffix, index = torch.save, "bin", "pytorch_model.bin.index.json"
        else:
            save = pytest.importorskip("safetensors.torch").save_file
            suffix, index = "safetensors", "model.safetensors.index.json"
        folder = sharded(tmp_path / "model", state, save, suffix, index)
        assert same(load_state_dict(folder), state)
        assert same(load_state_dict(folder / index), state)
        main(["inspect", str(folder), "--json"])
        rows = json.loads(capsys.readouterr().out)
        assert [row["energy"] for row in rows] == [layer.energy for layer in inspect(state)]

    def test_a_missing_shard_and_one_elsewhere_are_refused(self, tmp_path, state):
        folder = sharded(tmp_path / "model", state, torch.save, "bin", "model.bin.index.json")
        (folder / "model-1.bin").rename(folder / "other.bin")
        with pytest.raises(ValueError, match=r"beside it, not found: model-1\.bin"):
            load_state_dict(folder)
        (folder / "model.bin.index.json").write_text('{"weight_map": {"a": "../secret.bin"}}')
        with pytest.raises(ValueError, match=r"not found: \.\./secret\.bin"):
            load_state_dict(folder)
        (folder / "model.bin.index.json").write_text("[]")
        with pytest.raises(ValueError, match="index with a weight_map"):
            load_state_dict(folder)

    def test_a_folder_with_one_file_or_too_many(self, tmp_path, state):
        torch.save(state, tmp_path / "weights.pt")
        assert same(load_state_dict(tmp_path), state)
        torch.save(state, tmp_path / "more.pt")
        with pytest.raises(ValueError, match=r"got \['more.pt', 'weights.pt'\]"):
            load_state_dict(tmp_path)


@pytest.mark.parametrize("legacy", [False, True])
def test_prefixes_of_wrappers_are_stripped(tmp_path, state, legacy):
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        wrapped = {prefix + key: tensor for key, tensor in state.items()}
        path = tmp_path / "wrapped.pt"
        torch.save({"model": wrapped}, path, _use_new_zipfile_serialization=not legacy)
        assert same(load_state_dict(path), state)
    inner = {key.replace("0.", "0._orig_mod."): tensor for key, tensor in state.items()}
    torch.save(inner, tmp_path / "inner.pt")
    assert same(load_state_dict(tmp_path / "inner.pt"), state)
    partly = {"module.a.weight": torch.ones(2, 2), "b.weight": torch.ones(2, 2)}
    torch.save(partly, tmp_path / "partly.pt")
    assert same(load_state_dict(tmp_path / "partly.pt"), partly)


def test_gguf_is_refused_by_name(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ValueError, match="is GGUF, whose weights are quantized"):
        load_state_dict(tmp_path / "model.gguf")


def test_a_tensor_saved_under_two_names_is_inspected_once(tmp_path, state):
    torch.save(state | {"tied.weight": state["0.weight"]}, tmp_path / "tied.pt")
    loaded = load_state_dict(tmp_path / "tied.pt")
    assert torch.equal(loaded["tied.weight"], loaded["0.weight"])
    assert [layer.name for layer in inspect(loaded)] == ["0", "1", "2"]


class TestDistributedCheckpoints:
    @pytest.fixture
    def folder(self, tmp_path, state):
        checkpoint = pytest.importorskip("torch.distributed.checkpoint")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a single process
            checkpoint.save({"model": state, "step": 3}, checkpoint_id=tmp_path / "saved")
        return tmp_path / "saved"

    def test_are_read_whole(self, folder, state):
        assert same(load_state_dict(folder, "model"), state)
        whole = load_state_dict(folder)
        assert same(whole, {f"model.{key}": tensor for key, tensor in state.items()})
        with pytest.raises(ValueError, match=r"key to be one of \['model'\], got 'ema'"):
            load_state_dict(folder, "ema")

    def test_are_read_as_the_first_releases_of_python_3_11_wrote_them(self, folder, state):
        """They pickled an enumeration's member as getattr(its class, its name)."""

        class Pickler(pickle._Pickler):
            def save(self, thing, *arguments, **options):
                if isinstance(thing, enum.Enum):
                    reduced = getattr, (type(thing), thing.name)
                    return self.save_reduce(*reduced, obj=thing)
                return super().save(thing, *arguments, **options)

        metadata = pickle.loads((folder / ".metadata").read_bytes())
        with open(folder / ".metadata", "wb") as file:
            Pickler(file).dump(metadata)
        assert b"getattr" in (folder / ".metadata").read_bytes()
        assert same(load_state_dict(folder, "model"), state)

    def test_of_several_processes_are_put_together(self, tmp_path):
        script = tmp_path / "save.py"
        script.write_text(SAVE_SHARDED)
        run_processes(2, script, tmp_path)
        want = torch.load(tmp_path / "whole.pt")
        assert same(load_state_dict(tmp_path / "saved"), want)

    def test_hostile_metadata_are_refused_and_run_nothing(self, folder, tmp_path):
        for target in (b"cos\nmkdir\n", b"ctorch.distributed.checkpoint.filesystem\nos.mkdir\n"):
            content = b"\x80\x02" + target + f"(V{tmp_path / 'ran'}\ntR.".encode()
            (folder / ".metadata").write_bytes(content)
            with pytest.raises(ValueError, match="refused to read"):
                load_state_dict(folder)
        stem = b"ctorch\nSize\n"
        (folder / ".metadata").write_bytes(b"\x80\x02cbuiltins\ngetattr\n(" + stem + b"Vcount\ntR.")
        with pytest.raises(ValueError, match="refused to read"):
            load_state_dict(folder)
        (folder / ".metadata").write_bytes(pickle.dumps({"a": 1}))
        with pytest.raises(ValueError, match="refused to read"):
            load_state_dict(folder)
        assert not (tmp_path / "ran").exists()


SAVE_SHARDED = """
import sys
import torch
import torch.distributed.checkpoint as checkpoint
from torch import nn
from torch.distributed.fsdp import fully_shard

torch.distributed.init_process_group("gloo")
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
if torch.distributed.get_rank() == 0:
    torch.save(model.state_dict(), f"{sys.argv[1]}/whole.pt")
fully_shard(model)
checkpoint.save(model.state_dict(), checkpoint_id=f"{sys.argv[1]}/saved")
torch.distributed.destroy_process_group()
"""


class TestAdapters:
    def adapted(self, tmp_path, kind):
        peft = pytest.importorskip("peft")
        transformers = pytest.importorskip("transformers.pytorch_utils")
        torch.manual_seed(0)
        model = nn.Sequential()
        model.add_module("words", nn.Embedding(9, 6))
        model.add_module("up", transformers.Conv1D(8, 6) if "Conv1D" in kind else nn.Linear(6, 8))
        model.add_module("mix", nn.Conv2d(2, 3, 2))
        model.add_module("head", nn.Linear(8, 2))
        configs = {
            "LoRA": {"r": 2, "target_modules": ["words", "up", "mix"]},
            "rsLoRA": {"r": 4, "use_rslora": True, "target_modules": ["up"]},
            "DoRA": {"r": 2, "use_dora": True, "target_modules": ["up", "mix"]},
            "patterns": {
                "r": 2,
                "target_modules": ["up", "mix"],
                "alpha_pattern": {"up": 5},
                "rank_pattern": {"mix": 1},
                "modules_to_save": ["head"],
            },
            "Conv1D": {"r": 2, "target_modules": ["up"], "fan_in_fan_out": True},
        }
        torch.save(model.state_dict(), tmp_path / "base.pt")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == "IA3":
                modules = {"target_modules": ["up", "mix"], "feedforward_modules": ["mix"]}
                config = peft.IA3Config(**modules)
            elif kind == "OFT":
                config = peft.OFTConfig(target_modules=["up"], oft_block_size=2)
            else:
                config = peft.LoraConfig(**configs[kind])
            model = peft.get_peft_model(model, config)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data.add_(0.2 * torch.randn_like(parameter))
            model.save_pretrained(tmp_path / "adapter")
        return copy.deepcopy(model).merge_and_unload().state_dict()

    @pytest.mark.parametrize("kind", ["LoRA", "rsLoRA", "DoRA", "patterns", "Conv1D", "IA3"])
    def test_beside_their_base_are_the_merged_weights(self, tmp_path, kind):
        merged = self.adapted(tmp_path, kind)
        base = load_state_dict(tmp_path / "base.pt")
        loaded = load_state_dict(tmp_path / "adapter", base=base)
        assert set(loaded) == set(merged)
        assert not torch.equal(loaded["up.weight"], base["up.weight"])
        for name, tensor in loaded.items():
            if tensor.ndim >= 2:
                torch.testing.assert_close(tensor, merged[name], rtol=1e-5, atol=1e-5)

    def test_the_commands_take_them(self, tmp_path, capsys):
        merged = self.adapted(tmp_path, "LoRA")
        adapter, base = str(tmp_path / "adapter"), str(tmp_path / "base.pt")
        main(["inspect", adapter, "--base", base, "--json"])
        rows = json.loads(capsys.readouterr().out)
        want = [layer.energy for layer in inspect(merged)]
        assert [row["energy"] for row in rows] == pytest.approx(want, rel=1e-4)
        main(["diff", base, adapter, "--json"])
        (found,) = json.loads(capsys.readouterr().out)
        changed = {row["name"]: row["cosine_rms"] > 1e-3 for row in found["layers"]}
        assert changed == {"words": True, "up": True, "mix": True, "head": False}

    def test_without_their_base_or_of_another_kind_are_refused(self, tmp_path):
        self.adapted(tmp_path, "LoRA")
        with pytest.raises(ValueError, match="give its base"):
            load_state_dict(tmp_path / "adapter")
        with pytest.raises(ValueError, match=r"which has no (words|up|mix)\.weight; it has other"):
            load_state_dict(tmp_path / "adapter", base={"other.weight": torch.ones(2, 2)})
        settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        settings["base_model_name_or_path"] = str(tmp_path / "base.pt")
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
        assert "up.weight" in load_state_dict(tmp_path / "adapter")
        self.adapted(tmp_path, "OFT")
        with pytest.raises(ValueError, match=r"got OFT: merge .* \(merge_and_unload\)"):
            load_state_dict(tmp_path / "adapter", base=load_state_dict(tmp_path / "base.pt"))

    @pytest.mark.parametrize(
        "settings",
        [
            {"kasa_config": {"r": 2}},
            {"use_bdlora": {"nblocks": 2}},
            {"alora_invocation_tokens": [1]},
            {"trainable_token_indices": {"words": [1]}},
            {"init_lora_weights": "pissa_niter_4"},
        ],
    )
    def test_variants_that_are_more_than_a_product_are_refused(self, tmp_path, settings):
        self.adapted(tmp_path, "LoRA")
        file = tmp_path / "adapter" / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        with pytest.raises(ValueError, match=f"got LORA with {next(iter(settings))}.*: merge "):
            load_state_dict(tmp_path / "adapter", base=load_state_dict(tmp_path / "base.pt"))


MEMORY = """
import sys, psutil, torch
from mhe_core.diagnostics.weights import load_state_dict
own = psutil.Process()
start, most = own.memory_info().rss, 0
for name, tensor in load_state_dict(sys.argv[1]).items():
    float(tensor.sum())
    most = max(most, own.memory_info().rss - start)
print(most // 2**20)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_a_large_checkpoint_is_streamed(tmp_path, kind):
    """Eight tensors of 128 MiB: one, and a mapped file's margin, are in memory at a time."""
    state = {f"{k}.weight": torch.full((2**14, 2**11), float(k)) for k in range(8)}
    path = tmp_path / "large"
    if kind == "torch":
        torch.save(state, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(state, path)
    command = [sys.executable, "-c", MEMORY, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    assert int(result.stdout) < 128 + 300
