"""Every flag of sphereface-plus changes what is written, or is known not to."""

import pytest
from mhe_core.errors import UserError
from sphereface_plus import compare as compare_command
from sphereface_plus.config import FaceConfig
from sphereface_plus.test import TestConfig
from sphereface_plus.test import test as evaluate
from sphereface_plus.train import train
from support.images import noise_folder
from support.wiring import (
    SHARED,
    Changes,
    Same,
    check_all_reach_the_runs,
    check_flag,
    check_no_entry_is_left_over,
    differing,
    flags,
    planning,
    written,
)

BASE = {"model": "sfnet4", "width": 0.1, "dim": 8, "batch_size": 8, "steps": 2, "log_every": 1}
BASE |= {"eval_every": 2, "checkpoint_every": 2, "lr": 0.02, "warmup": 0.0, "device": "cpu"}
BASE |= {"image_size": "16x16"}
MHE = {"regularizer": "mhe"}
SAMPLED = {"sample_rate": 0.75}

PAIRS = "2\t1\na\t1\t2\na\t1\tb\t1\nb\t1\t2\na\t2\tb\t2\n"
OTHER_PAIRS = "2\t1\na\t3\t4\na\t3\tb\t4\nb\t3\t4\na\t4\tb\t3\n"


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    noise_folder(folder / "noise", size=16, start=1)
    for name in "ab":  # one photograph of each person, four times: no pair is told wrongly
        (folder / "alike" / name).mkdir(parents=True)
        photograph = (folder / "noise/test" / name / f"{name}_0001.png").read_bytes()
        for i in range(1, 5):
            (folder / "alike" / name / f"{name}_{i:04d}.png").write_bytes(photograph)
    (folder / "pairs.txt").write_text(PAIRS)
    (folder / "other.txt").write_text(OTHER_PAIRS)
    tested = {"test_data": folder / "noise/test", "pairs": folder / "pairs.txt"}
    train(FaceConfig(output=folder / "first", **{**BASE, "seed": 1}))
    return SHARED | {
        "data": Changes(str(folder / "noise")),
        "model": Changes("sfnet10"),
        "regularizer": Changes("mhe", "half_mhe"),
        "regularizer_options": Changes({"s": 1.0}, given=MHE),
        "rules": Changes({"*": {"weight": 0.5}}, given=MHE),
        "output_weight": Changes(3.0, given=MHE),
        "mhe_weight": Changes(3.0, given=MHE),
        "hidden_regularizer": Changes("mhe"),
        "hidden_weight": Changes(3.0, given={"hidden_regularizer": "mhe"}),
        "regularizer_start": Changes(1, given=MHE),
        "anchors": Changes("batch", "sampled", given={**MHE, **SAMPLED, "batch_size": 2}),
        "penalty_every": Changes(2, given=MHE),
        "dim": Changes(6),
        "head": Changes("sphereface2", "magface"),
        "head_options": Changes({"l_margin": 0.1}, given={"head": "magface"}),
        "variant": Changes("sphereface_r", "cosface", "arcface", "softmax"),
        "margin": Changes(2.0),
        "scale": Changes(10.0, given={"variant": "cosface"}),
        "annealing": Changes({"base": 5.0}),
        "sample_rate": Changes(0.5, given={"batch_size": 2}),
        "shard_classes": Same("in one process it is the same head, but for rounding"),
        "init": Changes(folder / "first"),
        "image_size": Changes("24x16"),
        "validation_people": Changes(2),
        "test_data": Changes(folder / "alike", given=tested, what="records"),
        "pairs": Changes(folder / "other.txt", given=tested, what="records"),
        "crop": Changes(1.0),
        "colour": Changes(1.0),
        "low_resolution": Changes(1.0),
        "erasing": Changes(1.0),
        "milestones": Changes([1]),
        "warmup": Changes(0.9),
    }


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What a run with such settings writes; each is trained once."""
    known = {}

    def run(settings):
        key = repr(sorted(settings.items()))
        if key not in known:
            output = tmp_path_factory.mktemp("run")
            train(FaceConfig(output=output, **settings))
            known[key] = written(output)
        return known[key]

    return run


def test_two_runs_with_the_same_settings_write_the_same(tmp_path, outcome):
    train(FaceConfig(output=tmp_path, **BASE))
    for part, content in written(tmp_path).items():
        assert differing(content, outcome(BASE)[part]) == []


@pytest.mark.parametrize("name", flags(FaceConfig))
def test_every_flag_of_train(name, entries, outcome):
    check_flag(FaceConfig, name, entries, outcome, BASE)


def test_compiled_steps_are_the_same_steps(tmp_path, outcome, traced_graphs):
    settings = {**BASE, **MHE}
    train(FaceConfig(**settings, compile=True, output=tmp_path))
    assert traced_graphs["SFNet"] > 0
    assert differing(written(tmp_path)["weights"], outcome(settings)["weights"]) == []
    tested = evaluate(TestConfig(run=tmp_path, device="cpu"))
    assert tested["accuracy"] == written(tmp_path)["summary"]["test_accuracy"]


def test_no_entry_is_left_over(entries):
    check_no_entry_is_left_over(FaceConfig, entries)


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """The runs that compare would start with such settings: methods and seeds."""
    return planning(monkeypatch, compare_command, tmp_path)


def test_flags_of_train_reach_every_run_of_compare(entries, planned):
    own = {"output", "regularizer", "margin", "annealing", "seed", "resume"}
    check_all_reach_the_runs(
        FaceConfig,
        entries,
        lambda settings: planned({"margins": "2", **settings})[0].values(),
        own,
    )


def test_flags_of_compare(planned):
    methods, seeds = planned({"margins": "1,3", "regularizers": "none,mhe", "seeds": "3,5"})
    found = [(config.margin, config.regularizer) for config in methods.values()]
    assert found == [(1, "none"), (1, "mhe"), (3, "none"), (3, "mhe")]
    assert seeds == [3, 5]
    methods, _ = planned({"heads": "arcface,adaface", "regularizers": "none,mhe"})
    assert list(methods) == ["arcface", "arcface-mhe", "adaface", "adaface-mhe"]
    found = [(config.variant, config.head, config.margin) for config in methods.values()]
    assert found == [("arcface", None, 0.5)] * 2 + [("a_softmax", "adaface", None)] * 2
    methods, _ = planned({"heads": "arcface", "margin": 0.3})
    assert {config.margin for config in methods.values()} == {0.3}
    with pytest.raises(UserError, match="expected --margins or --heads, got both"):
        planned({"heads": "arcface", "margins": "1,2"})
