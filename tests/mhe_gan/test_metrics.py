from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mhe_gan.features import FeatureSet, StatisticsError, extract
from mhe_gan.frechet import FrechetReference, extrapolated_frechet
from mhe_gan.metrics import METRICS, find_metric, jackknife_error, measure
from torch import nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

prdc = pytest.importorskip("prdc")


def images(count, dim=8, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, dim, generator=generator) + shift
    return FeatureSet(features, 3 * features[:, :4])


GENERATED, REAL = images(300, seed=1, shift=0.3), images(400, seed=2)


def value(name, generated=GENERATED, real=REAL):
    return METRICS[name].value(generated, real)


def test_fid_and_kid_are_those_of_torch_fidelity():
    x, y = GENERATED.features, REAL.features
    statistics = [fid_features_to_statistics(part.double()) for part in (x, y)]
    theirs = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    assert value("fid") == pytest.approx(theirs, rel=1e-6)
    theirs = kid_features_to_metric(x, y, kid_subset_size=300, rng_seed=2020, verbose=False)
    assert value("kid") == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)


@settings(deadline=None, max_examples=5)
@given(st.integers(7, 60), st.integers(7, 60), st.integers(1, 5), st.integers(0, 9))
def test_neighbourhoods_are_those_of_torch_fidelity_and_prdc(n, m, dim, seed):
    fake, real = images(n, dim, seed, 0.5), images(m, dim, seed + 10)
    theirs = prc_features_to_metric(fake.features, real.features, verbose=False)
    for name in ("precision", "recall"):
        assert value(name, fake, real) == pytest.approx(theirs[name], abs=1e-6)
    theirs = prdc.compute_prdc(real.features.numpy(), fake.features.numpy(), nearest_k=5)
    for name in ("density", "coverage"):
        assert value(name, fake, real) == pytest.approx(theirs[name], abs=1e-6)


@pytest.mark.parametrize("name", ["fid", "kid", "precision", "density"])
def test_intervals_are_of_the_jackknife(name):
    """Of the metric without each image in turn: its variance is (N − 1)/N times their squares."""
    fake, real = images(30, 3, 1, 0.3), images(30, 3, 2)
    without = np.array([
        value(name, FeatureSet(torch.cat([fake.features[:i], fake.features[i + 1 :]])), real)
        for i in range(30)
    ])  # fmt: skip
    error = np.sqrt(29 / 30 * ((without - without.mean()) ** 2).sum())
    found = measure(replace(METRICS[name], bounds=(-np.inf, np.inf)), fake, real, 30)
    tolerance = 0.05 if name == "kid" else 1e-4  # torch-fidelity's takes random subsets
    assert found.high - found.value == pytest.approx(1.959964 * error, rel=tolerance)


@pytest.mark.parametrize("parts", [7, 20, 50])
def test_parts_may_differ_in_size(parts):
    """Of a mean, whose standard error is s/√N, to the chance of which images make a part."""
    x = torch.randn(101, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    sizes = [len(part) for part in np.array_split(x, parts)]
    errors = []
    for seed in range(200):
        split = np.array_split(np.random.default_rng(seed).permutation(x), parts)
        without = [(x.sum() - part.sum()) / (len(x) - len(part)) for part in split]
        errors.append(jackknife_error(x.mean(), without, sizes))
    assert np.mean(np.square(errors)) == pytest.approx(x.var(ddof=1) / len(x), rel=0.1)


@pytest.mark.parametrize(
    ("name", "dim", "count", "scale", "low", "high"),
    [
        ("fid", 32, 40, 1.0, 0.95, 1.5),
        ("recall", 8, 300, 0.8, 0.93, 1.25),
        ("precision", 8, 300, 1.2, 0.85, 1.15),
    ],
)
def test_intervals_are_about_as_wide_as_the_figures_spread(name, dim, count, scale, low, high):
    """With the bootstrap: FID 2.5 times, recall 0.72 times."""

    def scaled(seed):
        return FeatureSet(scale * images(count, dim, seed).features)

    real = images(count, dim, 0)
    found = [measure(METRICS[name], scaled(seed), real, 30) for seed in range(1, 121)]
    values = np.array([one.value for one in found])
    widths = np.array([(one.high - one.low) / (2 * 1.959964) for one in found])
    assert low < widths.mean() / values.std(ddof=1) < high
    inside = [one.low <= values.mean() <= one.high for one in found]
    assert np.mean(inside) > 0.9


def test_without_a_part_too_few_may_remain_for_an_interval():
    two = images(2, 3, 1)
    assert measure(METRICS["fid"], two, images(9, 3, 2)).low is None


def test_blocks_change_no_figure(monkeypatch):
    names = ("precision", "recall", "density", "coverage", "kid")
    whole = {name: measure(METRICS[name], GENERATED, REAL) for name in names}
    monkeypatch.setattr("mhe_gan.neighbours.BLOCK", 7 * 300)
    for name in names:
        score, expected = measure(METRICS[name], GENERATED, REAL), whole[name]
        assert (score.value, score.low, score.high) == pytest.approx(
            (expected.value, expected.low, expected.high)
        )


@pytest.mark.parametrize("name", METRICS)
def test_a_resample_is_the_metric_of_the_repeated_images(name):
    counts = torch.tensor([[2.0] * 20 + [1.0] * 40 + [0.0] * 40] * 2)
    generated = images(100, seed=1, shift=0.3)
    found = METRICS[name].resampled(generated, REAL, counts)
    rows = torch.arange(100).repeat_interleave(counts[0].long())
    repeated = FeatureSet(generated.features[rows], generated.logits[rows])
    if name == "inception_score":
        p = repeated.logits.double().softmax(1)
        expected = float((p * (p / p.mean(0)).log()).sum(1).mean().exp())
    elif name == "fid":
        expected = value("fid", repeated)
    elif name == "kid":
        x, y = repeated.features.double(), REAL.features.double()
        same = rows[:, None] == rows
        kernel = lambda a, b: (a @ b.T / 8 + 1) ** 3  # noqa: E731
        expected = float(kernel(x, x)[~same].mean() - 2 * kernel(x, y).mean())
    elif name in ("precision", "density"):
        expected = value(name, repeated)  # these depend on the real neighbourhoods alone
    elif name == "coverage":
        expected = value("coverage", repeated)
    else:
        reach = torch.cdist(generated.features, generated.features).kthvalue(4).values
        inside = torch.cdist(REAL.features, generated.features) <= reach
        expected = float(inside[:, rows.unique()].any(1).float().mean())
    assert found.tolist() == pytest.approx([expected] * 2, rel=1e-5)


@pytest.mark.parametrize("name", METRICS)
def test_intervals_hold_what_other_images_of_the_generator_score(name):
    score = measure(METRICS[name], images(300, seed=1, shift=0.3), REAL)
    once = torch.ones(1, 300)
    drawn = [images(300, seed=seed, shift=0.3) for seed in range(20, 80)]
    others = [float(METRICS[name].resampled(other, REAL, once)) for other in drawn]
    assert score.low < score.value < score.high
    assert (score.high - score.low) / 3.92 == pytest.approx(np.std(others), rel=0.6)


def test_frechet_of_fewer_images_than_dimensions():
    generated, real = images(20, 50, 1), images(60, 50, 2)
    found = FrechetReference(*real.gaussian).distance(generated.features)
    assert found == pytest.approx(value("fid", generated, real), rel=1e-6)


def test_extrapolated_fid_is_nearer_to_the_truth():
    # two standard normal distributions, of one of which mean and covariance are known: FID 0
    truth = FeatureSet(None, moments=(np.zeros(16), np.eye(16)))
    few = images(400, 16)
    fid = value("fid", few, truth)
    found, error = extrapolated_frechet(few, truth)
    assert abs(found) < 0.2 * fid
    assert 0 < error < fid
    with pytest.raises(ValueError, match="at least 100 images"):
        extrapolated_frechet(images(99), truth)


def test_statistics_come_back_from_a_file(tmp_path):
    GENERATED.save(tmp_path / "a.npz")
    again = FeatureSet.load(tmp_path / "a.npz")
    torch.testing.assert_close(again.features, GENERATED.features)
    torch.testing.assert_close(again.logits, GENERATED.logits)
    mu, sigma = REAL.gaussian
    np.savez(tmp_path / "theirs.npz", mu=mu, sigma=sigma)  # as other programs keep them
    theirs = FeatureSet.load(tmp_path / "theirs.npz")
    assert theirs.num_images is None
    assert value("fid", GENERATED, theirs) == pytest.approx(value("fid"), rel=1e-9)
    assert "mean and covariance" in METRICS["kid"].missing(GENERATED, theirs)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [({"mu": np.zeros(3)}, "mu and sigma"), ({"mu": np.zeros(3), "sigma": np.eye(4)}, "got")],
)
def test_damaged_statistics_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(StatisticsError, match=message):
        FeatureSet.load(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_text("not numpy's")
    with pytest.raises(StatisticsError, match=r"cannot read statistics from .*a\.npz"):
        FeatureSet.load(tmp_path / "a.npz")


def test_extraction_wants_images():
    with pytest.raises(ValueError, match="got none"):
        extract(nn.Identity(), [])
    with pytest.raises(TypeError, match="uint8"):
        extract(nn.Identity(), [torch.zeros(1, 3, 4, 4)])


def test_unknown_metrics_are_named():
    with pytest.raises(ValueError, match="expected the metric to be one of inception_score, fid"):
        [find_metric(name) for name in ("fid", "fidd")]
