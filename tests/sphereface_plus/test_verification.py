"""The protocols against a direct transcription of their definition, pair by pair."""

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sphereface_plus.verification import best_threshold, roc, ten_fold


def definition(left, right, same, fold, protocol):
    """Every threshold of the grid counted over every pair, as the protocol says it."""
    accuracies, thresholds = [], []
    for held in sorted(set(fold)):
        train = [i for i, f in enumerate(fold) if f != held]
        mean = np.zeros(left.shape[1])
        if protocol == "sphereface":
            mean = np.mean([x[i] for i in train for x in (left, right)], axis=0)
        score = []
        for a, b in zip(left - mean, right - mean, strict=True):
            a, b = (v / (np.linalg.norm(v) or 1) for v in (a, b))
            score.append(a @ b if protocol == "sphereface" else -((a - b) ** 2).sum())
        score = np.array(score)
        grid = np.array([-1 + i * 1e-4 for i in range(20001)])
        if protocol == "distance":
            grid = np.array([-i / 100 for i in range(401)])
        counts = np.zeros(len(grid), dtype=int)
        for i in train:
            counts += (score[i] > grid) if same[i] else (score[i] < grid)
        threshold = grid[counts == counts.max()].mean()
        test = [i for i, f in enumerate(fold) if f == held]
        hits = [score[i] > threshold if same[i] else score[i] < threshold for i in test]
        accuracies.append(np.mean(hits))
        thresholds.append(threshold if protocol == "sphereface" else -threshold)
    return accuracies, thresholds


def make_pairs(seed, folds=10, per_fold=12, dim=8, duplicates=0.3):
    """Pairs with repeated images, so that scores are tied, and an embedding mean far from 0."""
    rng = np.random.default_rng(seed)
    P = folds * per_fold
    people = rng.normal(size=(20, dim))
    same = np.arange(P) % per_fold < per_fold // 2
    first, second = rng.integers(20, size=P), rng.integers(20, size=P)
    second = np.where(same, first, second)
    left = people[first] + 0.8 * rng.normal(size=(P, dim)) + 2
    right = people[second] + 0.8 * rng.normal(size=(P, dim)) + 2
    source = rng.integers(P, size=P)
    again = rng.random(P) < duplicates
    left[again], right[again] = left[source[again]], right[source[again]]
    return left, right, same, np.repeat(np.arange(folds), per_fold)


@pytest.mark.parametrize("protocol", ["sphereface", "distance"])
@pytest.mark.parametrize("seed", range(4))
def test_ten_fold_is_its_definition(protocol, seed):
    left, right, same, fold = make_pairs(seed)
    shuffle = np.random.default_rng(seed).permutation(len(fold))
    left, right, same, fold = left[shuffle], right[shuffle], same[shuffle], fold[shuffle]
    result = ten_fold(left, right, same, fold, protocol=protocol)
    accuracy, threshold = definition(left, right, same, fold, protocol)
    np.testing.assert_array_equal(result.accuracy, accuracy)
    np.testing.assert_allclose(result.threshold, threshold, atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(
    levels=arrays.arrays(np.int64, 30, elements=st.integers(-4, 4)),
    same=arrays.arrays(np.bool_, 30),
)
def test_threshold_with_scores_on_the_grid_itself(levels, same):
    # Scores that equal thresholds: strict on both sides, all best thresholds averaged.
    grid = np.arange(-10, 11) / 10
    scores = levels / 5
    counts = [sum(x > t if s else x < t for x, s in zip(scores, same, strict=True)) for t in grid]
    best = [t for t, c in zip(grid, counts, strict=True) if c == max(counts)]
    assert best_threshold(scores, same, grid) == pytest.approx(np.mean(best), abs=1e-12)


def test_embeddings_far_from_the_origin_lose_no_digits():
    left, right, same, fold = make_pairs(0)
    near = ten_fold(left, right, same, fold)
    far = ten_fold(left + 1e6, right + 1e6, same, fold)
    np.testing.assert_allclose(far.scores, near.scores, atol=1e-8)
    assert np.abs(near.scores).max() <= 1 + 1e-12


def test_lfw_size_takes_under_half_a_second():
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=(6000, 1024)).astype(np.float32) for _ in range(2))
    same, fold = np.arange(6000) % 600 < 300, np.arange(6000) // 600
    seconds = []
    for _ in range(3):
        start = time.process_time()  # our own time: the machine may be busy
        ten_fold(left, right, same, fold)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.5


def test_tensors_any_fold_numbers_and_uneven_folds():
    left, right, same, fold = make_pairs(1)
    keep = np.arange(len(fold)) % 7 != 3
    left, right, same, fold = left[keep], right[keep], same[keep], fold[keep]
    expected = ten_fold(left, right, same, fold)
    tensors = (torch.tensor(x) for x in (left, right, same, 100 - 3 * fold))
    result = ten_fold(*tensors)
    np.testing.assert_array_equal(result.accuracy, expected.accuracy[::-1])


def test_same_may_be_zeros_and_ones():
    left, right, same, fold = make_pairs(1)
    found = ten_fold(left, right, same.astype(int).tolist(), fold)
    np.testing.assert_array_equal(found.accuracy, ten_fold(left, right, same, fold).accuracy)
    with pytest.raises(ValueError, match=r"fits bool_?, got int64"):
        ten_fold(left, right, 2 * same.astype(int), fold)


def test_zero_embeddings_score_zero():
    zeros = np.zeros((4, 3))
    result = ten_fold(zeros, zeros, [True, False, True, False], [0, 0, 1, 1])
    np.testing.assert_array_equal(result.scores, np.zeros(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fold": np.zeros(4, dtype=int)}, "at least two folds"),
        ({"same": np.ones(3, dtype=bool)}, "same and fold"),
        ({"same": np.ones(4)}, "float64"),
        ({"left": np.full((4, 3), np.nan)}, "finite"),
        ({"left": np.zeros((4, 2))}, "left and right"),
        ({"protocol": "lfw"}, "protocol"),
    ],
)
def test_bad_arguments_are_named(change, message):
    good = {"left": np.ones((4, 3)), "right": np.ones((4, 3)), "same": np.ones(4, dtype=bool)}
    with pytest.raises(ValueError, match=message):
        ten_fold(**{**good, "fold": np.array([0, 0, 1, 1]), **change})


def test_roc_figures_against_counting():
    rng = np.random.default_rng(0)
    same = rng.random(1000) < 0.4
    scores = np.round(rng.normal(size=1000) + 1.5 * same, 2)  # ties
    result = roc(scores, same)
    for level, tpr in result.tpr_at_fpr.items():
        thresholds = [*np.unique(scores), np.inf]
        fits = [t for t in thresholds if (scores[~same] >= t).mean() <= level]
        assert tpr == max((scores[same] >= t).mean() for t in fits)
    wins = [(a > b) + 0.5 * (a == b) for a in scores[same] for b in scores[~same]]
    assert result.auc == pytest.approx(np.mean(wins))
    # Two normal distributions 1.5 apart are told apart with an error of Φ(−0.75).
    assert result.eer == pytest.approx(0.5 * math.erfc(0.75 / math.sqrt(2)), abs=0.03)
    gap = np.abs(result.false_positive_rate - (1 - result.true_positive_rate))
    assert abs(result.eer - result.false_positive_rate[gap.argmin()]) < 0.01


def test_roc_needs_both_kinds_of_pair():
    with pytest.raises(ValueError, match="same and different"):
        roc([0.1, 0.2], [True, True])
