"""EnergyTrainer in the Hugging Face Trainer's loop: the steps of a loop that is written by hand.

The file is also the program of two processes, see ``found``.
"""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from mhe_core import NetworkRegularizer

transformers = pytest.importorskip("transformers")
from mhe_core.integrations.transformers import EnergyTrainer  # noqa: E402
from support.forks import run_processes  # noqa: E402
from support.versions import FIRST_TORCH, fsdp2  # noqa: E402
from transformers import TrainingArguments  # noqa: E402

transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def environment():
    """As it was: TrainingArguments leave ACCELERATE_MIXED_PRECISION there, which others inherit."""
    with mock.patch.dict(os.environ):
        yield


OPTIONS = {"hidden_weight": lambda step: 0.1 * (step + 1), "output_weight": 0.5}
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 24}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def words(length: int = 5) -> torch.Tensor:
    return torch.randint(0, 20, (16, length), generator=torch.Generator().manual_seed(1))


def bert():
    config = transformers.BertConfig(vocab_size=20, num_labels=3, **SMALL, **NO_DROPOUT)
    model = transformers.BertForSequenceClassification(config)
    return model, [{"input_ids": w, "labels": k % 3} for k, w in enumerate(words())]


def vit():
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **SMALL, **NO_DROPOUT)
    model = transformers.ViTForImageClassification(config)
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return model, [{"pixel_values": x, "labels": k % 3} for k, x in enumerate(images)]


def llama():
    config = transformers.LlamaConfig(vocab_size=20, **SMALL)
    model = transformers.LlamaForCausalLM(config)
    # The first word is not predicted, but counted by the Trainer of transformers 4, where it has a
    # label: its loss is then smaller than the model's own.
    none = torch.tensor([-100])
    return model, [{"input_ids": w, "labels": torch.cat([none, w[1:]])} for w in words()]


def lora():
    peft = pytest.importorskip("peft")
    model, data = llama()
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    return peft.get_peft_model(model, config), data


def made(kind):
    torch.manual_seed(0)
    return kind()


def arguments(folder, **options):
    options = {
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
    } | options
    return TrainingArguments(
        str(folder), report_to="none", use_cpu=True, disable_tqdm=True, **options
    )


class InOrder(EnergyTrainer):
    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trained(folder, kind, energy=OPTIONS, *, resume=None, log_layers=False, **options):
    model, data = made(kind)
    trainer = InOrder(
        model,
        arguments(folder, **options),
        train_dataset=data,
        energy=energy,
        log_layers=log_layers,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def by_hand(kind, energy=OPTIONS, *, steps=3, dtype=None, batch_size=8):
    """The same as a loop: the model, and each step's loss and penalty."""
    model, data = made(kind)
    regularizer = NetworkRegularizer(model, **energy)
    collate = transformers.default_data_collator
    batches = [collate(data[k : k + batch_size]) for k in range(0, 16, batch_size)]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses, penalties = [], []
    for step in range(steps):
        regularizer.update(0.1)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = model(**batches[step % len(batches)]).loss
        penalty = regularizer()
        optimizer.zero_grad()
        (loss + penalty).backward()
        optimizer.step()
        losses.append((loss + penalty).item())
        penalties.append(penalty.item())
    return model, losses, penalties


def check(model, want, **tolerances):
    state = dict(want.named_parameters())
    for name, got in model.named_parameters():
        torch.testing.assert_close(
            got, state[name], **tolerances, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("kind", [bert, vit, llama, lora])
def test_the_steps_are_those_of_a_loop_by_hand(kind, tmp_path):
    trainer = trained(tmp_path, kind, log_layers=True)
    model, losses, penalties = by_hand(kind)
    check(trainer.model, model)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["penalty"] for entry in logs] == pytest.approx(penalties, rel=1e-5)
    assert [entry["loss"] for entry in logs] == pytest.approx(losses, rel=1e-3)
    for entry in logs:
        terms = [value for name, value in entry.items() if name.startswith("penalty/")]
        assert sum(terms) == pytest.approx(entry["penalty"], rel=1e-5)
        # Of the model with adapters, those that carry one.
        assert len(terms) == (2 if kind is lora else len(trainer.regularizer.layers))
    assert trainer.regularizer.step == 2


def test_adapters_are_trained_and_the_base_is_not():
    model, _ = made(lora)
    before = copy.deepcopy(dict(model.named_parameters()))
    after, _, _ = by_hand(lora)
    moved = {n for n, p in after.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all("lora_" in name for name in moved)


# Not BERT's classifier, whose loss the Trainer itself counts once a batch and not once a step.
@pytest.mark.parametrize("kind", [vit, llama])
def test_accumulated_batches_have_one_penalty(kind, tmp_path):
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    trainer = trained(tmp_path, kind, **options)
    check(trainer.model, by_hand(kind)[0])


def test_mixed_precision_leaves_the_penalty_exact(tmp_path):
    trainer = trained(tmp_path, bert, bf16=True, max_steps=1)
    model, _, (penalty,) = by_hand(bert, dtype=torch.bfloat16, steps=1)
    check(trainer.model, model)
    assert trainer.state.log_history[0]["penalty"] == pytest.approx(penalty, rel=1e-6)


def test_a_resumed_run_goes_on_with_the_projections_and_the_step(tmp_path):
    drawn = {"projection_dim": 3, "num_projections": 2, "redraw_interval": 1000}
    energy = {**OPTIONS, "hidden": "comhe_random", "hidden_options": drawn}
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = trained(tmp_path / "whole", bert, energy, **options)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert (checkpoint / "energy.pt").exists()
    resumed = trained(tmp_path / "other", bert, energy, resume=str(checkpoint), **options)
    check(resumed.model, whole.model)
    assert resumed.regularizer.step == 3


def bert_with_dropout():
    config = transformers.BertConfig(vocab_size=20, num_labels=3, **SMALL)
    model = transformers.BertForSequenceClassification(config)
    return model, [{"input_ids": w, "labels": k % 3} for k, w in enumerate(words())]


# Those that draw from the global generators when they are made, or later, or have a state.
STATEFUL = ["mhp", "mhc", "srip", "comhe_random", "comhe_group", "comhe_angle", "comhe_adversarial"]


@pytest.mark.parametrize("name", STATEFUL)
def test_a_resumed_run_is_the_straight_one_to_the_bit(name, tmp_path):
    pytest.importorskip("mhe_uniformity")
    energy = {"hidden": name, "output_weight": 0.5}
    if name.startswith("comhe"):
        energy["hidden_options"] = {"group_dim": 3} if "group" in name else {"projection_dim": 3}
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "optim": "adamw_torch"}
    whole = trained(tmp_path / "whole", bert_with_dropout, energy, **options)
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    resumed = trained(tmp_path / "other", bert_with_dropout, energy, resume=checkpoint, **options)
    state = whole.model.state_dict()
    for key, value in resumed.model.state_dict().items():
        assert torch.equal(value, state[key]), key
    state = whole.regularizer.state_dict()
    assert state
    for key, value in resumed.regularizer.state_dict().items():
        assert value == state[key] if not torch.is_tensor(value) else torch.equal(value, state[key])


@pytest.mark.parametrize("name", ["mhp", "comhe_random"])
def test_the_penalty_takes_no_numbers_from_the_dropout(name, tmp_path):
    """With weight 0, the run is that without a penalty."""
    pytest.importorskip("mhe_uniformity")
    energy = {"hidden": name, "output": None, "hidden_weight": 0.0}
    with_penalty = trained(tmp_path, bert_with_dropout, energy)
    without = trained(tmp_path, bert_with_dropout, {"hidden": None, "output": None})
    check(with_penalty.model, without.model, rtol=0.0, atol=0.0)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two processes found, for which this file is the program."""
    folder = tmp_path_factory.mktemp("processes")
    run_processes(2, __file__, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", ["ddp", "accumulated", pytest.param("fsdp2", marks=fsdp2)])
def test_two_processes_take_the_steps_of_one(kind, found):
    model, _, _ = by_hand(vit)
    for each in found:
        assert each[kind].keys() == dict(model.named_parameters()).keys()
        for name, wanted in model.named_parameters():
            torch.testing.assert_close(each[kind][name], wanted, rtol=1e-5, atol=1e-6)


def main(folder: Path) -> None:
    """Each process takes half of each batch."""
    result = {}
    for kind, options in (
        ("ddp", {"per_device_train_batch_size": 4}),
        ("accumulated", {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
        (
            "fsdp2",
            {
                "per_device_train_batch_size": 4,
                "fsdp": "full_shard",
                "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["ViTLayer"]},
            },
        ),
    ):
        if kind == "fsdp2" and FIRST_TORCH:
            continue
        trainer = trained(folder / kind, vit, **options)
        model = trainer.accelerator.unwrap_model(trainer.model)
        result[kind] = {
            name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach()
            for name, p in model.named_parameters()
        }
    torch.save(result, folder / f"{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
