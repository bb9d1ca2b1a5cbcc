"""Losses over a sample of the classes: as PartialFC has them, alone and in several processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mhe_core import hyperspherical_energy
from mhe_core.errors import UserError
from mhe_core.training.checkpoint import load_checkpoint
from sphereface_plus.config import FaceConfig
from sphereface_plus.embedding import FaceModel, load_run
from sphereface_plus.heads import create_head, list_heads
from sphereface_plus.penalty import Penalty
from sphereface_plus.sampling import sample_classes, sampled_loss
from sphereface_plus.train import train
from support.forks import run_processes
from support.kills import kill_again_and_again
from support.runs import assert_same_run, records

VECTORS = Path(__file__).parent / "vectors" / "heads"
TINY = {"model": "sfnet4", "width": 0.1, "dim": 8, "lr": 0.05, "batch_size": 4, "steps": 6}
TINY |= {"checkpoint_every": 1, "eval_every": 6, "log_every": 1, "device": "cpu"}
SAMPLED = {"head": "cosface", "sample_rate": 0.6, "regularizer": "mhe", "mhe_weight": 3.0}


@pytest.mark.parametrize("case", [0, 1, 2])
def test_loss_and_gradients_are_those_of_the_published_program(case):
    content = json.loads((VECTORS / "heads.json").read_text())[f"partialfc/{case}"]
    with np.load(VECTORS / "heads.npz") as arrays:
        v = {
            name.rpartition("/")[2]: torch.from_numpy(np.asarray(arrays[name]))
            for name in arrays.files
            if name.startswith(f"partialfc/{case}/")
        }
    sizes = {"dim": v["w"].shape[1], "num_classes": len(v["w"])}
    head = create_head("combined", **sizes, m2=0.0, m3=content["m3"], scale=content["s"]).double()
    with torch.no_grad():
        head.weight.copy_(v["w"])
    x = v["x"].clone().requires_grad_()
    loss = sampled_loss(head, head.weight, x, v["y"], v["index"])
    loss.backward()
    for found, expected in ((loss, v["loss"]), (x.grad, v["dx"]), (head.weight.grad, v["dw"])):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    # The recorded sample has the size of ours, and the labels.
    ours = sample_classes(v["y"], len(v["w"]), content["sample_rate"], seed=0, step=0)
    assert len(ours) == len(v["index"])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.floats(0.01, 1), st.integers(0, 9), st.integers(0, 2**40), st.data())
def test_a_sample_has_the_labels_and_others(number, rate, step, seed, data):
    labels = torch.tensor(data.draw(st.lists(st.integers(-5, number + 5), max_size=12))).long()
    own = {y for y in labels.tolist() if 0 <= y < number}
    found = sample_classes(labels, number, rate, seed, step)
    assert found.tolist() == sorted(set(found.tolist()))
    assert own <= set(found.tolist()) <= set(range(number))
    assert len(found) == max(int(rate * number), len(own))
    assert torch.equal(found, sample_classes(labels, number, rate, seed, step))


def test_the_others_are_drawn_alike_and_anew_in_each_step_and_shard():
    counts = torch.zeros(20)
    for step in range(2000):
        counts[sample_classes(torch.tensor([3, 3, 7]), 20, 0.5, seed=1, step=step)] += 1
    assert counts[3] == counts[7] == 2000
    others = torch.cat([counts[:3], counts[4:7], counts[8:]]) / 2000
    assert (others - 8 / 18).abs().max() < 4 * (8 / 18 * 10 / 18 / 2000) ** 0.5
    empty = torch.zeros(0, dtype=torch.int64)
    draws = [sample_classes(empty, 1000, 0.1, 0, *where) for where in ((0, 0), (1, 0), (0, 1))]
    assert len({tuple(draw.tolist()) for draw in draws}) == 3


@pytest.mark.parametrize("name", list_heads())
def test_with_all_classes_it_is_the_loss_itself(name):
    torch.manual_seed(0)
    head = create_head(name, dim=6, num_classes=9).double().eval()
    features, labels = torch.randn(5, 6, dtype=torch.float64), torch.tensor([0, 8, 3, 3, 1])
    if not head.may_sample_classes:
        assert name in {"sphereface2", "sphereface_r"} or name.startswith("opensphere")
        return
    expected = head(features, labels)
    found = sampled_loss(head, head.weight, features, labels, torch.arange(9))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_a_head_that_writes_its_class_vectors_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--sample-rate goes with a head .*got --head sphereface2"):
        train(FaceConfig(output=tmp_path, head="sphereface2", sample_rate=0.5, **TINY))
    assert not tmp_path.joinpath("config.yaml").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_rate": 0.0}, "--sample-rate above 0 and at most 1, got 0.0"),
        ({"sample_rate": 1.5}, "--sample-rate above 0 and at most 1, got 1.5"),
        ({"anchors": "sampled"}, "--sample-rate below 1 with --anchors sampled"),
        ({"penalty_every": 0}, "--penalty-every above 0, got 0"),
    ],
)
def test_settings_out_of_range(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        FaceConfig(output=tmp_path, **changes)


def test_the_penalty_is_of_all_classes_or_of_the_sampled_ones(tmp_path):
    classes, labels = torch.tensor([1, 4, 6]), torch.tensor([4, 1])
    for anchors, rows in (("all", slice(None)), ("sampled", classes)):
        options = {**TINY, **SAMPLED, "anchors": anchors}
        config = FaceConfig(output=tmp_path, **options)
        model = FaceModel(config, 7, (8, 8))
        penalty = Penalty(config, model)(0, model.class_vectors, labels, classes)
        expected = 3.0 * hyperspherical_energy(model.class_vectors[rows])
        torch.testing.assert_close(penalty, expected)


def test_a_penalty_of_every_third_step_counts_three_times(tmp_path):
    settings = {**TINY, "regularizer": "mhe", "regularizer_start": 2}
    penalties = {}
    for every in (1, 3):
        config = FaceConfig(output=tmp_path, penalty_every=every, **settings)
        torch.manual_seed(0)
        model = FaceModel(config, 7, (8, 8))
        penalty = Penalty(config, model)
        labels = torch.tensor([1, 2])
        penalties[every] = [penalty(k, model.class_vectors, labels).item() for k in range(9)]
    one = penalties[1][2]
    assert penalties[1] == pytest.approx([0, 0, *[one] * 7])
    assert penalties[3] == pytest.approx([0, 0, 3 * one, 0, 0, 3 * one, 0, 0, 3 * one])


def test_a_killed_run_draws_the_same_classes(tmp_path):
    settings = {**TINY, **SAMPLED, "anchors": "sampled", "resume": True}
    train(FaceConfig(output=tmp_path / "whole", **settings))
    kill_again_and_again(train, FaceConfig(output=tmp_path / "killed", **settings), kills=1)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_two_processes_sample_as_one_does(tmp_path):
    train(FaceConfig(output=tmp_path / "start", **{**TINY, **SAMPLED, "steps": 1}))
    config = {**TINY, **SAMPLED, "anchors": "sampled", "init": tmp_path / "start"}
    train(FaceConfig(output=tmp_path / "one", **config))
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in config.items()]
    run_processes(2, "-m", "sphereface_plus.train", *flags, "--output", tmp_path / "two")
    one, two = (load_checkpoint(tmp_path / run / "checkpoints/last") for run in ("one", "two"))
    torch.testing.assert_close(one["state"]["model"], two["state"]["model"], rtol=1e-3, atol=2e-5)
    losses = [[r["margin_loss"] for r in records(tmp_path / run)] for run in ("one", "two")]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)


SHARDED = """
import torch, torch.distributed as dist
from sphereface_plus.heads import create_head
from sphereface_plus.sampling import sampled_loss
from sphereface_plus.sharded import ShardedSphereFaceHead, loss_parallel

dist.init_process_group("gloo")
rank = dist.get_rank()
head = ShardedSphereFaceHead(6, 11, variant="cosface").double()
torch.manual_seed(1)
weight = torch.randn(11, 6, dtype=torch.float64)
features, labels = torch.randn(4, 6, dtype=torch.float64), torch.tensor([0, 2, 5, 9])
with torch.no_grad():
    head.weight.copy_(weight[head.rows])
classes = [torch.tensor([0, 1, 2, 5]), torch.tensor([1, 3])][rank]  # 0 1 2 5, and 7 9 of 6 to 10
own = features[2 * rank : 2 * rank + 2].clone().requires_grad_()
with loss_parallel():
    loss = head(own, labels[2 * rank : 2 * rank + 2], classes)
    loss.backward()

whole = create_head("cosface", 6, 11).double()
with torch.no_grad():
    whole.weight.copy_(weight)
x = features.clone().requires_grad_()
expected = sampled_loss(whole, whole.weight, x, labels, torch.tensor([0, 1, 2, 5, 7, 9]))
expected.backward()
torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
torch.testing.assert_close(own.grad, x.grad[2 * rank : 2 * rank + 2], rtol=1e-10, atol=1e-12)
torch.testing.assert_close(head.weight.grad, whole.weight.grad[head.rows], rtol=1e-10, atol=1e-12)
print("the same")
dist.destroy_process_group()
"""


RECORDED = """
import sys
import numpy as np, torch, torch.distributed as dist
from sphereface_plus.sharded import ShardedSphereFaceHead, loss_parallel

dist.init_process_group("gloo")
rank, (file, case) = dist.get_rank(), sys.argv[1:]
v = {name: torch.from_numpy(np.asarray(array)) for name, array in np.load(file).items()}
x, y, w = (v[f"{case}/{name}"] for name in "xyw")
_, m, rate = v[f"{case}/m2_m3_rate"].tolist()
of_rank = {name: v[f"{case}/world2_rank{rank}/{name}"] for name in ("loss", "dx", "dw", "index")}
head = ShardedSphereFaceHead(x.shape[1], len(w), variant="cosface", m=m, scale=64.0).double()
assert head.start == v[f"{case}/world2_rank{rank}/class_start"]
with torch.no_grad():
    head.weight.copy_(w[head.rows])
half = len(x) // 2
own = x[rank * half : (rank + 1) * half].clone().requires_grad_()
with loss_parallel():
    classes = of_rank["index"] if rate < 1 else None
    loss = head(own, y[rank * half : (rank + 1) * half], classes)
    loss.backward()
# The published one's is twice the loss's, for DistributedDataParallel to average.
for found, name in ((loss, "loss"), (2 * own.grad, "dx"), (head.weight.grad, "dw")):
    torch.testing.assert_close(found, of_rank[name], rtol=1e-9, atol=1e-9)
print("as recorded")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("case", ["cos_full", "cos_sampled"])
def test_two_processes_have_the_published_programs_loss_and_gradients(case):
    file = VECTORS / "partialfc_two_ranks.npz"
    for done in run_processes(2, "-c", RECORDED, file, case):
        assert done.stdout == "as recorded\n"


def test_shards_with_unequal_samples_have_the_loss_of_the_whole():
    for done in run_processes(2, "-c", SHARDED):
        assert done.stdout == "the same\n"


def test_sharded_class_vectors_are_sampled_and_trained(tmp_path):
    config = {**TINY, "batch_size": 16, "steps": 40, "sample_rate": 0.6, "variant": "cosface"}
    config |= {"regularizer": "mhe", "anchors": "sampled", "penalty_every": 2}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in config.items()]
    command = ["-m", "sphereface_plus.train", *flags, "--shard-classes", "--output", tmp_path]
    run_processes(2, *command)
    found = records(tmp_path)
    assert [record["penalty"] > 0 for record in found] == [True, False] * 20
    losses = [record["margin_loss"] for record in found]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_a_run_goes_on_with_another_number_of_processes_and_is_used_by_one(tmp_path):
    config = {**TINY, "lr": 0.005, "batch_size": 12, "variant": "cosface", "regularizer": "mhe"}
    train(FaceConfig(output=tmp_path / "start", **{**config, "steps": 1}))
    config |= {"init": tmp_path / "start", "milestones": "[100]", "warmup": 0.0}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in config.items()]
    command = ["-m", "sphereface_plus.train", *flags, "--shard-classes"]
    run_processes(2, *command, "--output", tmp_path / "two", "--steps", 3)
    run_processes(3, *command, "--output", tmp_path / "two", "--steps", 6, "--resume")
    train(FaceConfig(output=tmp_path / "one", **{**config, "milestones": [100]}))
    models = [load_run(tmp_path / run, "last")[0].state_dict() for run in ("one", "two")]
    torch.testing.assert_close(*models, rtol=1e-3, atol=2e-5)
