"""Batches and augmentation are functions of (seed, step)."""

from itertools import chain, islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mhe_core.training.augment import normalize, random_crop, random_flip
from mhe_core.training.batches import StepSampler, training_batches, whole_set
from mhe_core.training.images import load_images


@given(
    batch=st.integers(1, 7), extra=st.integers(0, 20), start=st.integers(0, 30), seed=st.integers(0)
)
def test_a_sampler_started_later_continues_the_same_sequence(batch, extra, start, seed):
    seed %= 2**30
    images = batch + extra
    whole = list(islice(StepSampler(images, batch, seed), start + 5))
    assert list(islice(StepSampler(images, batch, seed, start), 5)) == whole[start:]


@given(batch=st.integers(1, 6), batches=st.integers(1, 5))
def test_an_epoch_shows_every_image_once(batch, batches):
    epoch = list(islice(StepSampler(batch * batches, batch, 0), batches))
    assert sorted(chain(*epoch)) == list(range(batch * batches))


def test_processes_share_a_batch_without_overlap():
    whole = list(islice(StepSampler(50, 12, 3), 6))
    parts = [list(islice(StepSampler(50, 12, 3, rank=r, num_processes=3), 6)) for r in range(3)]
    for step, indices in enumerate(whole):
        assert sorted(chain(*(part[step] for part in parts))) == sorted(indices)


@pytest.mark.parametrize("batch", [0, 11])
def test_a_batch_that_does_not_fit_is_refused(batch):
    with pytest.raises(ValueError, match=f"got {batch}"):
        StepSampler(10, batch, 0)


def test_batches_hold_the_sampled_images():
    images = load_images("digits", "test")
    pixels, labels = next(training_batches(images, 16, seed=1, start=2))
    indices = next(iter(StepSampler(len(images), 16, 1, 2)))
    assert torch.equal(pixels, images.pixels[indices])
    assert torch.equal(labels, images.labels[indices])


def test_the_whole_set_is_every_image_once_over_all_processes():
    images = load_images("digits", "test")
    parts = [
        torch.cat([labels for _, labels in whole_set(images, 50, rank=r, num_processes=2)])
        for r in range(2)
    ]
    assert torch.equal(torch.cat(parts).sort().values, images.labels.sort().values)


def test_crop_is_a_window_of_the_mirrored_image():
    images = torch.arange(2 * 3 * 6 * 6).reshape(2, 3, 6, 6)
    rows = [*range(3, -1, -1), *range(6), *range(5, 1, -1)]
    padded = images[:, :, rows][..., rows]
    torch.manual_seed(0)
    seen = set()
    for _ in range(200):
        for image, source in zip(random_crop(images), padded, strict=True):
            places = [
                (top, left)
                for top in range(9)
                for left in range(9)
                if torch.equal(image, source[:, top : top + 6, left : left + 6])
            ]
            assert len(places) == 1
            seen.update(places)
    assert len(seen) == 81


def test_flip_mirrors_about_half_of_the_images():
    images = torch.randn(1000, 1, 2, 2)
    torch.manual_seed(0)
    flipped = random_flip(images)
    mirrored = (flipped == images.flip(-1)).all(dim=(1, 2, 3))
    assert torch.equal(flipped[~mirrored], images[~mirrored])
    assert 430 < mirrored.sum() < 570


def test_normalize_is_the_published_scaling():
    pixels = torch.tensor([0, 255], dtype=torch.uint8)
    assert normalize(pixels).tolist() == [-127.5 / 128, 127.5 / 128]
