"""The three applications on a GPU: trained, stopped, continued, in every precision, and used."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from mhe_core.training.loop import Loop
from support.runs import flat, records, state

pytestmark = pytest.mark.cuda

DEVICE = "cuda"
TRAIN = {
    "mhe-classification": "--width 0.0625 --image-size 8 --lr 0.01 --ema 0.9 "
    "--regularizer comhe_random --projection-dim 4 --num-projections 3",
    "sphereface-plus": "--model sfnet4 --width 0.125 --dim 16 --lr 0.01 --regularizer mhe",
    "mhe-gan": "--width 0.0625 --lr 1e-4 --regularizer mhe",
}
USE = {
    "mhe-classification": ["test"],
    "sphereface-plus": ["test"],
    "mhe-gan": ["sample", "--output", "samples.png", "--num", "4"],
}


def flags(name: str, **more: object) -> list[str]:
    text = f"{TRAIN[name]} --batch-size 32 --log-every 2 --device {DEVICE}"
    return text.split() + [str(x) for k, v in more.items() for x in (f"--{k}", v)]


def assert_alike(run, other) -> None:
    """Up to what a GPU's sums differ by, as their order does."""
    ours, theirs = flat(state(run)), flat(state(other))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, theirs[key], rtol=2e-2, atol=2e-3, msg=key)


@pytest.mark.parametrize("amp", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("name", TRAIN)
def test_a_run_that_was_stopped_is_the_run_that_was_not(command, tmp_path, monkeypatch, name, amp):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    command(name, "train", *flags(name, output=whole, amp=amp, steps=8))

    record = Loop._record

    def interrupt(self, taken, *arguments):
        if taken == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return record(self, taken, *arguments)

    again = [*flags(name, output=stopped, amp=amp, steps=8), "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_record", interrupt)
        command(name, "train", *again, status=128 + signal.SIGINT)
    command(name, "train", *again)
    assert [r["step"] for r in records(whole)] == [r["step"] for r in records(stopped)]
    assert_alike(whole, stopped)
    monkeypatch.chdir(tmp_path)
    command(name, *USE[name], whole, "--device", DEVICE)


@pytest.mark.parametrize("name", TRAIN)
def test_compiled_steps_are_the_same_steps(command, tmp_path, name):
    for flag in ("--no-compile", "--compile"):
        command(name, "train", *flags(name, output=tmp_path / flag, steps=3), flag)
    assert_alike(tmp_path / "--no-compile", tmp_path / "--compile")
