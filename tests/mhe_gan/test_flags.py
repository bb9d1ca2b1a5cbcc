"""Every flag of mhe-gan changes what is written, or is known not to."""

import pytest
from mhe_core.errors import UserError
from mhe_gan import compare as compare_command
from mhe_gan.compare import MODELS
from mhe_gan.config import GANConfig
from mhe_gan.train import train
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

BASE = {"width": 0.0625, "batch_size": 8, "steps": 2, "log_every": 1, "sample_every": 2}
BASE |= {"checkpoint_every": 2, "lr": 0.02, "ema": 0.0, "device": "cpu"}
MHE = {"hidden_weight": 1.0}  # the published weights are too small to be seen in two steps


@pytest.fixture(scope="module")
def entries(tmp_path_factory, classifiers):
    scored = {"score_every": 1, "feature_extractor": classifiers[0], "num_samples": 20}
    shared = {k: v for k, v in SHARED.items() if k in flags(GANConfig)}
    return shared | {
        "data": Changes(str(noise_folder(tmp_path_factory.mktemp("noise"), size=32))),
        "model": Changes("resnet"),
        "conditional": Changes(True),
        "channels": Changes(1),
        "spectral_norm": Changes(False),
        "loss": Changes("hinge"),
        "regularizer": Changes("none", "mhe-core:half_mhe", given=MHE),
        "regularizer_options": Changes({"s": 1.0}, given=MHE),
        "rules": Changes({"*": {"weight": 0.5}}, given=MHE),
        "hidden_weight": Changes(1.0),
        "output_weight": Same("the discriminator's output layer has one neuron", 3.0),
        "generator_weight": Changes(1.0),
        "penalty_every": Changes(2, given=MHE),
        "beta1": Changes(0.9),
        "beta2": Changes(0.9),
        "n_dis": Changes(2),
        "ema": Changes(0.01, given={"ema": 0.05}),
        "image_size": Changes(48),
        "r1": Changes(1.0),
        "r1_every": Changes(2, given={"r1": 1.0, "r1_every": 1}),
        "lecam": Changes(0.3),
        "augment": Changes("color"),
        "sample_every": Changes(1, what="files"),
        "score_every": Changes(2, given=scored, what="records"),
        "stop_on_collapse": Changes(True, what="records"),
        "best_by": Changes(
            "fid", "coverage", given=scored, what="records"
        ),  # the best: test_commands
        "num_samples": Changes(30, given=scored, what="records"),
        "feature_extractor": Changes(classifiers[1], given=scored, what="records"),
        "reference": Changes("test", given=scored, what="records"),
        "weights": Same("those of Inception, which no test downloads"),
    }


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What a run with such settings writes; each is trained once."""
    known = {}

    def run(settings):
        key = repr(sorted(settings.items()))
        if key not in known:
            output = tmp_path_factory.mktemp("run")
            train(GANConfig(output=output, **settings))
            known[key] = written(output)
        return known[key]

    return run


def test_two_runs_with_the_same_settings_write_the_same(tmp_path, outcome):
    train(GANConfig(output=tmp_path, **BASE))
    for part, content in written(tmp_path).items():
        assert differing(content, outcome(BASE)[part]) == []


@pytest.mark.parametrize("name", flags(GANConfig))
def test_every_flag_of_train(name, entries, outcome):
    check_flag(GANConfig, name, entries, outcome, BASE)


@pytest.mark.parametrize("conditional", [False, True])
def test_compiled_steps_are_the_same_steps(tmp_path, outcome, traced_graphs, conditional):
    settings = {**BASE, **MHE, "ema": 0.05, "r1": 1.0, "r1_every": 1, "conditional": conditional}
    train(GANConfig(**settings, compile=True, output=tmp_path))
    assert {"DCGANGenerator", "SNDCGANDiscriminator"} <= set(traced_graphs)
    assert differing(written(tmp_path)["weights"], outcome(settings)["weights"]) == []


def test_no_entry_is_left_over(entries):
    check_no_entry_is_left_over(GANConfig, entries)


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """The runs that compare would start with such settings: methods and seeds."""
    monkeypatch.setattr(compare_command, "build_scorer", lambda *arguments, **more: None)
    return planning(monkeypatch, compare_command, tmp_path)


def test_flags_of_train_reach_every_run_of_compare(entries, planned):
    own = {"output", "regularizer", "spectral_norm", "seed", "resume"}
    check_all_reach_the_runs(
        GANConfig,
        entries,
        lambda settings: planned({"models": "mhe,mhe+sn", **settings})[0].values(),
        own,
    )


def test_flags_of_compare(planned):
    methods, seeds = planned({"models": "sn,mhe", "seeds": "3,5"})
    assert list(methods) == ["sn", "mhe"]
    for name, config in methods.items():
        assert {key: getattr(config, key) for key in MODELS[name]} == MODELS[name]
    assert seeds == [3, 5]


def test_weights_of_compare(planned):
    settings = {"models": "sn,mhe,mhe+sn", "hidden_weights": "0.001,1", "seeds": "0"}
    methods, _ = planned(settings)
    with_energy = ["mhe, weight 0.001", "mhe, weight 1", "mhe+sn, weight 0.001", "mhe+sn, weight 1"]
    assert list(methods) == ["sn", *with_energy]
    assert [methods[label].hidden_weight for label in with_energy] == [0.001, 1, 0.001, 1]
    assert [methods[label].spectral_norm for label in methods] == [True, False, False, True, True]
    assert methods["sn"] == planned({"models": "sn"})[0]["sn"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_weights": "1,one"}, "expected --hidden-weights as different positive numbers"),
        ({"hidden_weights": "1e-3,0.001"}, "expected --hidden-weights as different positive"),
        ({"hidden_weights": "0,1"}, "expected --hidden-weights as different positive numbers"),
        ({"hidden_weights": "1", "hidden_weight": 1.0}, "--hidden-weights, got both"),
        ({"hidden_weights": "1", "models": "baseline,sn"}, "expected --models with MHE"),
        ({"hidden_weights": "1", "regularizer": "none"}, "got .* --regularizer none"),
    ],
)
def test_weights_that_compare_does_not_take(settings, message):
    with pytest.raises(UserError, match=message):
        compare_command.CompareConfig(**settings)
