import math
import sys
import urllib.error

import numpy as np
import pytest
import torch
import torch_fidelity
from hypothesis import given, settings
from hypothesis import strategies as st
from mhe_core.errors import UserError
from mhe_gan.scores import (
    Scorer,
    frechet_distance,
    inception_score,
    kernel_distance,
    load_extractor,
)
from support.distributions import write_distribution
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as inception


def score_by_definition(logits, splits):
    """exp(mean over images of Σ_y p(y|x) log(p(y|x) / p(y))), in plain Python."""
    order = np.random.RandomState(2020).permutation(len(logits))
    rows = [logits[i].tolist() for i in order]
    probabilities = []
    for row in rows:
        exponentials = [math.exp(x - max(row)) for x in row]
        probabilities.append([x / sum(exponentials) for x in exponentials])
    scores = []
    for part in range(splits):
        chunk = probabilities[len(rows) * part // splits : len(rows) * (part + 1) // splits]
        marginal = [sum(p[y] for p in chunk) / len(chunk) for y in range(len(chunk[0]))]
        divergences = [
            sum(p * math.log(p / q) for p, q in zip(row, marginal, strict=True) if p > 0)
            for row in chunk
        ]
        scores.append(math.exp(sum(divergences) / len(chunk)))
    mean = sum(scores) / splits
    return mean, math.sqrt(sum((s - mean) ** 2 for s in scores) / splits)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(5, 40), st.integers(2, 6), st.integers(0, 99))
def test_inception_score_equals_its_definition(splits, images, classes, seed):
    logits = 4 * torch.randn(images, classes, generator=torch.Generator().manual_seed(seed))
    assert inception_score(logits, splits) == pytest.approx(score_by_definition(logits, splits))


def test_inception_score_of_sure_and_even_predictions_is_the_number_of_classes():
    logits = 1e3 * torch.eye(5).repeat(40, 1)
    assert inception_score(logits, splits=1) == pytest.approx((5, 0))
    assert inception_score(logits.roll(1, 1), splits=1)[0] == pytest.approx(5)
    assert inception_score(logits[:1].repeat(50, 1))[0] == pytest.approx(1)


def test_inception_score_wants_an_image_for_each_split():
    with pytest.raises(ValueError, match="at least the 10 splits"):
        inception_score(torch.zeros(9, 3))


def test_frechet_distance_of_gaussians_with_diagonal_covariance():
    # for commuting covariances: ‖μ₁ − μ₂‖² + Σ (σ₁ − σ₂)²
    torch.manual_seed(0)
    x = torch.randn(200, 4, dtype=torch.float64)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).mT  # exactly white
    a, b = torch.tensor([1.0, 2, 3, 4]), torch.tensor([2.0, 2, 1, 0.5])
    expected = 4 * 0.25 + (a - b).square().sum().item()
    assert frechet_distance(x * a, x * b + 0.5) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_equals_a_loop():
    torch.manual_seed(0)
    x, y = torch.randn(12, 3), torch.randn(12, 3) + 1

    def kernel(a, b):
        return (sum(p * q for p, q in zip(a.tolist(), b.tolist(), strict=True)) / 3 + 1) ** 3

    pairs = [(i, j) for i in range(12) for j in range(12)]
    expected = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs if i != j) / 132
    expected -= 2 * sum(kernel(x[i], y[j]) for i, j in pairs) / 144
    mean, std = kernel_distance(x, y)  # twelve images: every subset is all of them
    assert mean == pytest.approx(expected, rel=1e-4)
    assert std == pytest.approx(0, abs=1e-4)


def test_features_that_do_not_fit():
    with pytest.raises(ValueError, match="expected features"):
        frechet_distance(torch.zeros(5, 3), torch.zeros(5, 4))
    with pytest.raises(ValueError, match="expected features"):
        kernel_distance(torch.zeros(1, 3), torch.zeros(5, 3))


class Colours(nn.Module):
    """Stands in for a classifier: three features, three classes."""

    def forward(self, images):
        features = images.float().mean((2, 3)) / 255
        return features, 20 * features


def coloured(strength, count=60):
    generator = torch.Generator().manual_seed(int(strength))
    images = torch.randint(0, 40, (count, 3, 8, 8), generator=generator)
    images[torch.arange(count), torch.arange(count) % 3] += int(strength)
    return images.to(torch.uint8)


def test_scorer_prefers_what_resembles_the_reference():
    scorer = Scorer(Colours(), coloured(200).split(7))
    near, far = scorer(coloured(190).split(7)), scorer([coloured(20)])
    assert near["inception_score"] > far["inception_score"]
    assert near["fid"] < far["fid"]
    assert near["kid"] < far["kid"]
    assert 1 < far["inception_score"] < near["inception_score"] < 3.0001
    assert scorer.real_score == pytest.approx(near["inception_score"], rel=0.1)


def test_scorer_takes_uint8_only():
    with pytest.raises(TypeError, match="expected images as uint8"):
        Scorer(Colours(), [torch.rand(20, 3, 8, 8)])


def write_inception_weights(path, monkeypatch):
    """Random weights in the format of torch-fidelity's file, from its own network."""
    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *a: None)
        network = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["logits_unbiased"])
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    nn.init.normal_(network.fc.weight, std=0.3)
    torch.save(network.state_dict(), path)


class Dataset(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def test_inception_scores_are_those_of_torch_fidelity(tmp_path, monkeypatch):
    weights = tmp_path / "inception.pth"
    write_inception_weights(weights, monkeypatch)
    real, fake = coloured(100, 12), coloured(60, 10)
    scores = Scorer(load_extractor(weights=weights), real.split(4))([fake], splits=2)
    theirs = torch_fidelity.calculate_metrics(
        input1=Dataset(fake), input2=Dataset(real), isc=True, fid=True, kid=True, cuda=False,
        feature_extractor_weights_path=str(weights), isc_splits=2, kid_subset_size=10,
        batch_size=5, save_cpu_ram=True, cache=False, verbose=False,
    )  # fmt: skip
    assert scores["inception_score"] > 1.001  # the random network does tell images apart
    assert scores["inception_score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert scores["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert scores["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)


def test_weights_that_are_not_there_or_not_inception(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected Inception weights at"):
        load_extractor(weights=tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("weights")
    with pytest.raises(ValueError, match="does not hold tensors only"):
        load_extractor(weights=tmp_path / "text.pth")
    torch.save({"conv": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="are not torch-fidelity's InceptionV3"):
        load_extractor(weights=tmp_path / "other.pth")


def test_without_network_the_error_says_how_to_give_the_file(monkeypatch):
    def no_network(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(inception, "load_state_dict_from_url", no_network)
    with pytest.raises(ConnectionError, match="--weights PATH"):
        load_extractor()


CODE = """
import torch

def load(run):
    class Mean(torch.nn.Module):
        def forward(self, images):
            features = images.float().mean((2, 3))
            return features, features * float((run / "gain").read_text())
    return Mean()
"""


def install(site, name, monkeypatch):
    """Make a distribution that reads classifiers the only ones that are installed."""
    targets = {"mhe_gan.feature_extractors": [("classifier", f"{name}:load")]}
    write_distribution(site, name, targets, {f"{name}.py": CODE})
    monkeypatch.setattr(sys, "path", [str(site)])


def test_a_classifier_comes_from_the_package_that_registers_one(tmp_path, monkeypatch):
    run = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match="expected the run directory of a classifier"):
        load_extractor(run)
    run.mkdir()
    (run / "gain").write_text("0.5")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [])
        with pytest.raises(UserError, match="pip install mhe-classification"):
            load_extractor(run)
    with monkeypatch.context() as patch:
        install(tmp_path / "site", "one_reader", patch)
        extractor = load_extractor(run)
        features, logits = extractor(coloured(100, 4))
        torch.testing.assert_close(logits, 0.5 * features)
        install(tmp_path / "site", "second_reader", patch)
        with pytest.raises(UserError, match=r"classifier. of .* and .*classifier. of .*NAME:"):
            load_extractor(run)
    with pytest.raises(ValueError, match="got both"):
        load_extractor(run, weights=run)
