"""Every figure of the published evaluation programs, from the embeddings that they were given."""

import logging
from pathlib import Path

import numpy as np
import pytest
from mhe_core.training.images import DataError
from sphereface_plus.insightface import evaluate_folds, x_norm
from sphereface_plus.templates import (
    identify_closed,
    identify_open,
    image_features,
    pool_templates,
    rows_of,
    tar_at_far,
)
from sphereface_plus.verification import squared_distances, ten_fold

VECTORS = Path(__file__).parent / "vectors" / "protocols"
SETS = ("p600", "p6000", "p200_separable", "p587_shuffled")
FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@pytest.fixture(scope="module")
def published():
    return np.load(VECTORS / "verification.npz")


@pytest.fixture(scope="module")
def ijb():
    return np.load(VECTORS / "ijb.npz")


def tenths(pairs):
    return np.repeat(np.arange(10), [len(part) for part in np.array_split(np.arange(pairs), 10)])


def embeddings(published, name, flip=True):
    emb = published[f"{name}/emb"].astype(np.float64)
    return emb + published[f"{name}/emb_flip"] if flip else emb


@pytest.mark.parametrize("name", SETS)
def test_ten_folds_of_insightface(published, name):
    def expected(key):
        return published[f"{name}/{key}"]

    emb, same = embeddings(published, name), expected("issame")
    left, right, fold = emb[0::2], emb[1::2], tenths(len(same))
    distances = squared_distances(left, right)
    np.testing.assert_allclose(distances, expected("dist"), atol=1e-5)
    found = evaluate_folds(distances, same, fold, fars=(1e-3, 1e-2, 1e-1))
    np.testing.assert_array_equal(found.accuracy, expected("fold_accuracy"))
    np.testing.assert_allclose(found.threshold, expected("fold_threshold"), atol=1e-12)
    np.testing.assert_allclose(found.tpr, expected("tpr"), atol=1e-12)
    np.testing.assert_allclose(found.fpr, expected("fpr"), atol=1e-12)
    val = found.val[1e-3]
    values = [expected(key) for key in ("val", "val_std", "far")]
    np.testing.assert_allclose([val.val, val.std, val.far], values, atol=1e-12)
    for far in (1e-2, 1e-1):
        val = found.val[far]
        np.testing.assert_allclose(
            [val.val, val.std, val.far], expected(f"val_at_far_{far:g}"), atol=1e-12
        )
    result = ten_fold(left, right, same, fold, protocol="insightface")
    assert result.accuracy.mean() == pytest.approx(float(expected("accuracy_mean")), abs=1e-12)
    assert result.std == pytest.approx(float(expected("accuracy_std")), abs=1e-12)
    assert result.val[1e-3].val == pytest.approx(float(expected("val")), abs=1e-12)
    both = published[f"{name}/emb"], published[f"{name}/emb_flip"]
    assert x_norm(*both) == pytest.approx(float(expected("xnorm")), rel=1e-6)


def test_ten_folds_without_mirror_images(published):
    name = "p587_shuffled"
    same = published[f"{name}/issame"]
    fold = tenths(len(same))
    emb = embeddings(published, name, flip=False)
    found = evaluate_folds(squared_distances(emb[0::2], emb[1::2]), same, fold)
    np.testing.assert_array_equal(found.accuracy, published[f"{name}/noflip_fold_accuracy"])
    assert found.val[1e-3].val == pytest.approx(float(published[f"{name}/noflip_val"]), abs=1e-12)


def pooled(ijb, norm=True, detector=True, flip=True):
    features = image_features(
        ijb["in/emb"],
        ijb["in/emb_flip"] if flip else None,
        ijb["in/score"] if detector else None,
        keep_norm=norm,
    )
    return pool_templates(features, ijb["in/template"], ijb["in/media"])


def pair_scores(ijb, **options):
    numbers, features = pooled(ijb, **options)
    first, second = (rows_of(numbers, ijb["in/pairs"][:, i]) for i in (0, 1))
    return (features[first] * features[second]).sum(1)


@pytest.mark.parametrize("case", ["111", "110", "101", "100", "011", "010", "001", "000"])
def test_one_to_one_of_ijb(ijb, case):
    norm, detector, flip = (letter == "1" for letter in case)
    scores = pair_scores(ijb, norm=norm, detector=detector, flip=flip)
    name = f"ijb11/N{case[0]}D{case[1]}F{case[2]}"
    found = tar_at_far(scores, ijb["in/pairs"][:, 2], FARS, rule="insightface")
    np.testing.assert_array_equal(list(found.values()), ijb[f"{name}/tar"])
    if f"{name}/score" in ijb.files:
        np.testing.assert_allclose(scores, ijb[f"{name}/score"], atol=3e-7)


def test_templates_of_ijb(ijb):
    numbers, features = pooled(ijb)
    np.testing.assert_array_equal(numbers, ijb["ijb11/unique_templates"])
    np.testing.assert_allclose(features, ijb["ijb11/N1D1F1/template_feats"], atol=3e-7)
    with pytest.raises(DataError, match="images of template 99999, got none"):
        rows_of(numbers, [numbers[0], 99999])


def test_one_to_one_of_opensphere(ijb):
    scores = pair_scores(ijb, detector=False)
    found = tar_at_far(scores, ijb["in/pairs"][:, 2], FARS, rule="opensphere")
    np.testing.assert_allclose(
        100 * np.array(list(found.values())), ijb["opensphere/tpr_percent"], atol=1e-5
    )


def test_the_strict_rule_never_reads_above_its_far_and_says_where_pairs_are_few(ijb, caplog):
    scores, same = pair_scores(ijb), ijb["in/pairs"][:, 2].astype(bool)
    with caplog.at_level(logging.WARNING):
        strict = tar_at_far(scores, same, FARS, rule="strict")
    assert "19,300 different pairs are fewer than 1/FAR for FAR 1e-06, 1e-05" in caplog.text
    for far, tar in strict.items():
        allowed = np.sort(scores[~same])[::-1][int(far * (~same).sum())]  # that many may be above
        assert tar == (scores[same] > allowed).mean()
    near = tar_at_far(scores, same, FARS, rule="insightface")
    assert any(near[far] > strict[far] for far in FARS)
    with pytest.raises(ValueError, match="expected rule to be one of"):
        tar_at_far(scores, same, rule="nearest")
    with pytest.raises(ValueError, match="got 3 and 0"):
        tar_at_far(scores[:3], [1, 1, 1])


def similarity(ijb, galleries, probe, **options):
    """Probes against the joined galleries, and each probe's row there or −1."""
    numbers, features = pooled(ijb, **options)
    gallery = np.concatenate([ijb[f"in/{name}"] for name in galleries])
    found = features[rows_of(numbers, probe[:, 0])] @ features[rows_of(numbers, gallery[:, 0])].T
    same = probe[:, 1:] == gallery[:, 1]
    return found, np.where(same.any(1), same.argmax(1), -1)


def test_one_to_n_in_a_closed_set(ijb):
    probe = ijb["in/probe"]
    found = identify_closed(*similarity(ijb, ("gallery1", "gallery2"), probe))
    np.testing.assert_allclose(list(found.rank.values()), ijb["ijb1n_single/top1_5_10"])
    for far, tpir, threshold in ijb["ijb1n_single/far_tpir_threshold"]:
        assert found.tpir[far] == pytest.approx(tpir, abs=1e-9)  # as printed
        assert found.threshold[far] == pytest.approx(threshold, abs=3e-7)
    found = identify_closed(*similarity(ijb, ("gallery1", "gallery2"), probe, detector=False))
    np.testing.assert_allclose(
        100 * np.array(list(found.rank.values())), ijb["opensphere/topk_percent"], atol=1e-5
    )
    np.testing.assert_allclose(
        100 * np.array(list(found.tpir.values())), ijb["opensphere/tpir_percent"], atol=1e-5
    )


def test_one_to_n_in_an_open_set(ijb):
    points = ijb["ijb1n_open/far_points"].tolist()
    tpirs = []
    for name, gallery in (("G1", "gallery1"), ("G2", "gallery2")):
        scores, mate = similarity(ijb, (gallery,), ijb["in/probe"])
        found = identify_open(scores, mate)
        counts = [round(share * found.mated) for share in found.rank.values()]
        assert counts == ijb[f"ijb1n_open/{name}/top_counts"].tolist()
        for key, values in (("threshold", found.threshold), ("tpir", found.tpir)):
            np.testing.assert_allclose(
                list(values.values()),
                ijb[f"ijb1n_open/{name}/{key}_at_1e-3_1e-2_1e-1_1"],
                atol=3e-7,
            )
        tpirs.append(list(identify_open(scores, mate, points).tpir.values()))
    np.testing.assert_allclose(np.mean(tpirs, axis=0), ijb["ijb1n_open/mean_tpir"], atol=1e-12)
    with pytest.raises(DataError, match="with and without their person"):
        identify_open(scores, np.abs(mate))
