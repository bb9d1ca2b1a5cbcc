"""Heads by name: in a run, from other distributions, and in several processes."""

import sys

import pytest
import torch
from mhe_core.errors import UserError
from sphereface_plus import create_head, list_heads
from sphereface_plus.config import FaceConfig
from sphereface_plus.embedding import load_run
from sphereface_plus.heads.sphereface import MARGINS
from sphereface_plus.train import train
from support.distributions import write_distribution
from support.forks import run_processes

SMALL = {"model": "sfnet4_bn", "width": 0.1, "dim": 8, "lr": 0.02, "batch_size": 32, "steps": 2}
STATEFUL = ("adaface", "curricularface")


@pytest.mark.parametrize("head", [name for name in list_heads() if name not in MARGINS])
def test_a_head_trains_with_mhe_and_is_loaded_with_its_state(tmp_path, head):
    summary = train(FaceConfig(output=tmp_path, head=head, regularizer="mhe", **SMALL))
    assert 0 < summary["class_angle"] < 180
    model, _, _ = load_run(tmp_path)
    state = model.head.state_dict()
    assert state["weight"].shape == (7, 8)
    if head == "adaface":
        assert state["batch_mean"] != 20
    if head == "curricularface":
        assert state["t"] != 0


def test_the_published_heads_are_installed():
    assert {"sphereface_r", "sphereface2", "combined", "adaface", "magface"} <= set(list_heads())
    assert {"curricularface", *MARGINS} <= set(list_heads())


def test_todays_variants_are_heads_with_their_flags(tmp_path):
    by_name = FaceConfig(output=tmp_path, head="cosface", scale=64.0, **SMALL)
    assert (
        by_name.all_head_options()
        == FaceConfig(output=tmp_path, variant="cosface", scale=64.0, **SMALL).all_head_options()
    )
    assert (by_name.margin, by_name.scale) == (0.35, 64.0)
    assert FaceConfig(output=tmp_path, **SMALL).scale == 30.0


def test_margin_scale_and_options_reach_the_head(command, tmp_path):
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
    command(
        "sphereface-plus", "train", "--output", tmp_path, *flags, "--head", "adaface",
        "--margin", "0.3", "--head-options", "h=0.2", "t_alpha=0.5",
    )  # fmt: skip
    model, config, _ = load_run(tmp_path)
    assert (config.head, model.head.m, model.head.h, model.head.t_alpha) == (
        "adaface", 0.3, 0.2, 0.5,
    )  # fmt: skip
    assert model.head.scale == 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "adafac"}, "did you mean .adaface"),
        ({"head": "magface", "margin": 0.5}, "head magface: .*'m'"),
        ({"head": "adaface", "head_options": {"power": 2}}, "head adaface: .*'power'"),
        ({"head": "adaface", "shard_classes": True}, "--shard-classes goes with --variant"),
    ],
)
def test_bad_heads_are_named(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        train(FaceConfig(output=tmp_path, **SMALL, **settings))


PLUGIN = """
import torch
class Prototypes(torch.nn.Module):
    def __init__(self, dim, num_classes, power=2):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(num_classes, dim))
        self.power = power
    def forward(self, features, labels):
        return (features - self.weight[labels]).norm(dim=1).pow(self.power).mean()
class NoHead(torch.nn.Identity):
    pass
"""


def test_another_distributions_head_is_used_by_name(tmp_path, monkeypatch):
    targets = {"prototypes": "prototype_heads:Prototypes", "none": "prototype_heads:NoHead"}
    targets |= {"gone": "prototype_heads:Gone"}
    site = write_distribution(
        tmp_path / "site",
        "prototypes",
        {"sphereface_plus.heads": targets.items()},
        {"prototype_heads.py": PLUGIN},
    )
    monkeypatch.syspath_prepend(str(site))
    assert "prototypes" in list_heads()
    settings = {"head": "prototypes", "head_options": {"power": 1}, "regularizer": "mhe"}
    summary = train(FaceConfig(output=tmp_path / "run", **SMALL, **settings))
    assert summary["loss"] > 0
    with pytest.raises(UserError, match=r"expected a module with weight \[3, 4\]"):
        create_head("none", 4, 3)
    with pytest.raises(
        UserError, match=r"'gone' of prototypes 1.0 .*cannot be imported: AttributeError"
    ):
        create_head("gone", 4, 3)
    sys.modules.pop("prototype_heads", None)


def two_batches(name):
    """The head after two batches of eight: of all images, or of this process's in each."""
    torch.manual_seed(0)
    head = create_head(name, 6, 5).double()
    features, labels = 9 * torch.randn(2, 8, 6).double(), torch.randint(5, (2, 8))
    if torch.distributed.is_initialized():
        rank = torch.distributed.get_rank()
        features, labels = features[:, rank::2], labels[:, rank::2]
    for x, y in zip(features, labels, strict=True):
        head(x, y)
    return head.state_dict()


def test_state_is_that_of_all_processes_images_and_the_same_in_each(tmp_path):
    run_processes(2, __file__, tmp_path)
    for name in STATEFUL:
        ranks = [torch.load(tmp_path / f"{rank}.pt")[name] for rank in range(2)]
        expected = two_batches(name)
        for key, value in expected.items():
            assert torch.equal(ranks[0][key], ranks[1][key])
            torch.testing.assert_close(ranks[0][key], value, rtol=1e-12, atol=1e-12)


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    found = {name: two_batches(name) for name in STATEFUL}
    torch.save(found, f"{sys.argv[1]}/{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
