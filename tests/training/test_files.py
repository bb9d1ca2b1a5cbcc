"""Files on file systems that lack a call or two, and on full disks."""

import errno
import os
from pathlib import Path

import pytest
import torch
from mhe_core.training.checkpoint import load_checkpoint, save_checkpoint
from mhe_core.training.command import run_command
from mhe_core.training.files import replacing, write_atomically
from support.tiny import TinyConfig, train


@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("link", errno.EPERM),
        ("link", errno.ENOTSUP),
        ("chmod", errno.EPERM),
        ("fsync", errno.EINVAL),
    ],
)
def test_a_run_needs_no_links_no_modes_and_no_sync(tmp_path, monkeypatch, call, number):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refused)
    config = TinyConfig(output=tmp_path, steps=4, checkpoint_every=2, eval_every=9, batch_size=16)
    train(config)
    steps = {
        name: load_checkpoint(tmp_path / "checkpoints" / name)["step"]
        for name in ("previous", "last", "best")
    }
    assert steps == {"previous": 2, "last": 4, "best": 4}
    assert not list(tmp_path.rglob(".*.writing"))


def test_a_failed_sync_is_not_taken_for_a_refused_one(tmp_path, monkeypatch):
    write_atomically(tmp_path / "file", "old")

    def failed(descriptor):
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, "fsync", failed)
    with pytest.raises(OSError, match="broken"):
        write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_raises_in_the_middle_leaves_the_old_file(tmp_path):
    write_atomically(tmp_path / "file", "old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "file") as stream:
        stream.write(f"half {1 / 0}")
    assert (tmp_path / "file").read_text() == "old"


def test_new_files_have_the_modes_that_the_user_has_set(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(tmp_path, capsys):
    last = tmp_path / "last"
    for step in (1, 2):
        save_checkpoint(last, {"step": step}, keep_previous=True)
    (tmp_path / ".last.writing").symlink_to("/dev/full")

    def command(arguments):
        save_checkpoint(last, {"step": 3, "w": torch.zeros(10**6)}, keep_previous=True)

    assert run_command("prog", command, []) == 2
    message = capsys.readouterr().err
    assert message.startswith("prog: error:")
    assert "No space left on device" in message
    assert "last" in message
    assert message.count("\n") == 1
    assert load_checkpoint(last)["step"] == 2
    assert load_checkpoint(tmp_path / "previous")["step"] == 1
