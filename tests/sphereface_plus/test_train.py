"""Training, on digits and on small folders of faces: the run directory, resume, MHE, bad input."""

import shutil

import numpy as np
import pytest
import torch
from mhe_core import register_regularizer
from mhe_core.training.checkpoint import CheckpointError, load_checkpoint
from mhe_core.training.images import DataError
from sphereface_plus.config import FaceConfig
from sphereface_plus.embedding import FaceModel, load_run
from sphereface_plus.penalty import Penalty
from sphereface_plus.train import learning_rate, train
from support.forks import forked
from support.kills import changes, kill
from support.runs import assert_same_run, records, state

SMALL = {"model": "sfnet4", "width": 0.1, "dim": 16, "lr": 0.02, "batch_size": 64}


def config(output, **settings):
    return FaceConfig(output=output, **{**SMALL, "steps": 4, **settings})


def weights(run):
    return state(run)["model"]


def test_digits_are_learnt_and_unseen_digits_told_apart(tmp_path):
    summary = train(config(tmp_path, steps=120, width=0.25, dim=32, annealing={"gamma": 1.0}))
    assert summary["loss"] < 0.3
    assert summary["test_accuracy"] > 0.6
    assert 0 < summary["class_angle"] < 110
    assert {"config.yaml", "metrics.jsonl", "summary.json", "checkpoints"} <= {
        path.name for path in tmp_path.iterdir()
    }
    model, _, facts = load_run(tmp_path)
    assert facts["classes"] == list("0123456")
    assert model.head.iteration == 120


def test_mhe_drives_the_class_vectors_apart(tmp_path):
    options = {"steps": 40, "annealing": {"gamma": 1.0}}
    without = train(config(tmp_path / "without", **options))
    with_mhe = train(config(tmp_path / "with", regularizer="mhe", mhe_weight=10.0, **options))
    assert with_mhe["class_energy"] < without["class_energy"] - 0.005
    assert with_mhe["class_angle"] > without["class_angle"] + 3
    late = train(
        config(
            tmp_path / "late", regularizer="mhe", regularizer_start=40, mhe_weight=10.0, **options
        )
    )
    assert late["class_energy"] == without["class_energy"]


def test_penalty_is_the_energy_of_all_class_vectors_or_of_the_batchs_with_all(tmp_path):
    labels = torch.tensor([3, 3, 5, 0])
    for anchors in ("all", "batch"):
        settings = config(tmp_path, regularizer="mhe", mhe_weight=0.5, anchors=anchors)
        model = FaceModel(settings, 7, (16, 16)).double()
        w = model.head.weight.detach() / model.head.weight.detach().norm(dim=1, keepdim=True)
        chosen = range(7) if anchors == "all" else (0, 3, 5)
        terms = [1 / ((w[i] - w[j]) ** 2).sum() for i in chosen for j in range(7) if i != j]
        penalty = Penalty(settings, model)(0, model.head.weight, labels)
        assert penalty.item() == pytest.approx(0.5 * torch.stack(terms).mean().item(), rel=1e-9)
        assert list(Penalty(settings, model).parameters()) == []


def test_a_batch_of_one_class_hidden_layers_and_comhe(tmp_path):
    settings = config(tmp_path, regularizer="half_mhe", hidden_regularizer="mhe", anchors="batch")
    model = FaceModel(settings, 7, (16, 16))
    penalty = Penalty(settings, model)
    penalty(0, model.head.weight, torch.ones(5, dtype=torch.int64)).backward()
    layers = {"head.weight", "backbone.embedding.weight"} | {
        f"backbone.stages.{i}.0.weight" for i in range(4)
    }
    touched = {name for name, p in model.named_parameters() if p.grad is not None}
    assert touched == layers
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    comhe = {"regularizer": "comhe_random", "regularizer_options": {"projection_dim": 4}}
    for anchors in ("all", "batch"):
        run = tmp_path / anchors
        assert train(config(run, anchors=anchors, **comhe))["penalty"] > 0
        # The projection is redrawn at every step: the checkpoint has the seed and how often.
        state = load_checkpoint(run / "checkpoints" / "last")["state"]["penalty"]
        (seed_and_updates,) = state.values()
        steps = load_checkpoint(run / "checkpoints" / "last")["step"]
        assert seed_and_updates[1] == steps > 0


def test_a_regularizer_without_anchors_is_named(tmp_path):
    class Spread(torch.nn.Module):
        """A third party's, of the least that one needs."""

        def __init__(self, num_neurons, dim):
            super().__init__()

        def forward(self, neurons):
            return (neurons @ neurons.T).square().mean()

    register_regularizer("spread", Spread)
    assert train(config(tmp_path / "all", regularizer="spread"))["penalty"] > 0
    with pytest.raises(ValueError, match="spread has no anchors"):
        train(config(tmp_path / "batch", regularizer="spread", anchors="batch"))


@pytest.mark.parametrize("variant", ["sphereface_r", "cosface", "arcface", "softmax"])
def test_every_variant_trains(tmp_path, variant):
    summary = train(config(tmp_path, steps=30, variant=variant))
    first = records(tmp_path)[0]["loss"]
    assert summary["loss"] < first


def test_mixed_precision_trains_nearly_alike(tmp_path):
    losses = [
        train(config(tmp_path / amp, amp=amp, steps=20, lr=0.01))["loss"] for amp in ("no", "bf16")
    ]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_a_killed_run_resumes_to_the_bit(tmp_path):
    options = {"steps": 60, "checkpoint_every": 7, "log_every": 5, "eval_every": 20}
    options |= {"regularizer": "comhe_random", "regularizer_options": {"projection_dim": 4}}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(config(whole, **options))
    last = killed / "checkpoints" / "last"
    with forked(train, config(killed, **options)) as process:
        kill(process, changes(last, times=1))
    assert not (killed / "summary.json").exists()
    train(config(killed, resume=True, **options))
    assert_same_run(killed, whole)
    assert weights(killed)["head.iteration"] == 60


def test_fine_tuning_starts_from_the_weights_of_another_run(tmp_path):
    train(config(tmp_path / "first"))
    tuned = config(tmp_path / "tuned", init=tmp_path / "first", lr=0.0, regularizer="mhe")
    train(tuned)
    first, second = weights(tmp_path / "first"), weights(tmp_path / "tuned")
    assert all(torch.equal(first[name], second[name]) for name in first if "iteration" not in name)
    assert (first["head.iteration"], second["head.iteration"]) == (4, 8)
    with pytest.raises(CheckpointError, match="do not fit"):
        train(config(tmp_path / "other", init=tmp_path / "first", dim=8))


@pytest.fixture
def people(orl, tmp_path):
    """Four people's photographs, cropped as they are: alignment has tests of its own."""
    for person in ("orl_s01", "orl_s02", "orl_s03", "orl_s04"):
        shutil.copytree(orl / "train" / person, tmp_path / "people" / person)
    return tmp_path / "people"


def test_a_folder_of_faces_with_people_held_out(people, tmp_path):
    run = tmp_path / "run"
    summary = train(config(run, data=str(people), batch_size=8, validation_people=2))
    assert 0 <= summary["validation_accuracy"] <= 1
    assert len(load_checkpoint(run / "checkpoints" / "best")["facts"]["classes"]) == 2
    assert "test_accuracy" not in summary


def test_images_decoded_by_workers_and_in_memory_train_alike(people, tmp_path, monkeypatch):
    runs = []
    for limit, workers in ((2**31, 0), (0, 2)):
        monkeypatch.setattr("mhe_core.training.images.loading.IN_MEMORY", limit)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        from mhe_core.training.images import load_folder

        load_folder.cache_clear()
        run = tmp_path / str(workers)
        train(config(run, data=str(people), batch_size=8, image_size="32x24", workers=workers))
        runs.append(weights(run))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"data": "nowhere"}, DataError, "digits, a folder of aligned faces, a pack"),
        ({"image_size": "112"}, ValueError, "such as 112x96, got '112'"),
        ({"margin": 2.5}, ValueError, "whole number"),
        ({"pairs": "pairs.txt"}, ValueError, "--test-data and --pairs together"),
        ({"mhe_weight": -1.0}, ValueError, "--mhe-weight at least 0"),
        ({"validation_people": 9}, DataError, "from 1 to 5 of 7 people, got 9"),
        ({"regularizer": "mhee"}, ValueError, "mhee"),
        ({"model": "sfnet21"}, ValueError, "sfnet20"),
        ({"batch_size": 5000}, ValueError, "at most"),
    ],
)
def test_bad_settings_are_named_before_training(tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        train(config(tmp_path / "run", **settings))


def test_an_unreadable_face_is_named(people, tmp_path):
    (people / "orl_s02" / "orl_s02_0003.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"orl_s02_0003\.jpg"):
        train(config(tmp_path / "run", data=str(people), batch_size=8))


def test_networks_without_batch_norm_start_slowly_unless_told_otherwise(tmp_path):
    def first(model, **given):
        settings = FaceConfig(output=tmp_path, model=model, steps=100, **given)
        return settings.lr, settings.warmup

    assert first("sfnet20") == (0.02, 0.1)
    assert first("sfnet20_bn") == first("resnet18") == (0.1, 0.0)
    assert first("sfnet4", lr=0.1, warmup=0.0) == (0.1, 0.0)  # the published rate


def test_learning_rate_warms_up_and_falls(tmp_path):
    cosine = config(tmp_path, steps=100, lr=0.1, warmup=0.1)
    rates = np.array([learning_rate(cosine, step, 100) for step in range(100)])
    assert rates.argmax() in (9, 10)
    assert rates.max() == pytest.approx(0.1)
    assert (np.diff(rates[:10]) > 0).all()
    assert (np.diff(rates[10:]) < 0).all()
    steps = config(tmp_path, steps=100, lr=0.1, milestones=[40, 60])
    assert [learning_rate(steps, t, 100) for t in (39, 40, 60)] == pytest.approx([0.1, 0.01, 1e-3])
