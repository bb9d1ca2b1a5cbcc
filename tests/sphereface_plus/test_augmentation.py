"""Augmentation: what it changes, what it leaves, and that it is off by default."""

import pytest
import torch
from sphereface_plus.augmentation import AUGMENTATIONS, augment
from sphereface_plus.config import FaceConfig


def faces(count=64):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(1, 256, (count, 3, 7, 6), generator=generator, dtype=torch.uint8)
    return coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)


def test_it_is_off_by_default_and_a_wrong_probability_is_named(tmp_path):
    assert set(FaceConfig(output=tmp_path).augmentations().values()) == {0.0}
    images = faces()
    assert torch.equal(augment(images, {}), images)
    with pytest.raises(ValueError, match=r"--low-resolution as a probability, got 1.5"):
        FaceConfig(output=tmp_path, low_resolution=1.5)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_images_are_changed_as_often_as_asked_and_the_given_ones_kept(name):
    torch.manual_seed(1)
    images = faces(400)
    before = images.clone()
    changed = augment(images, {name: 0.3})
    assert torch.equal(images, before)
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    share = (changed != images).flatten(1).any(1).float().mean()
    assert 0.2 < share < 0.4


def test_a_crop_leaves_a_rectangle_in_place():
    torch.manual_seed(2)
    images = faces()
    cropped = AUGMENTATIONS["crop"](images)
    kept = (cropped > 0).all(1)
    assert torch.equal(torch.where(kept[:, None], images, 0), cropped)
    areas = []
    for mask in kept:
        rows, columns = mask.any(1), mask.any(0)
        assert mask.sum() == rows.sum() * columns.sum()  # a rectangle
        areas.append(mask.float().mean())
    assert 0.15 < min(areas) < max(areas) <= 1


def test_erasing_touches_at_most_a_third():
    torch.manual_seed(3)
    images = faces()
    touched = (AUGMENTATIONS["erasing"](images) != images).any(1).flatten(1).float().mean(1)
    assert touched.min() > 0
    assert touched.max() < 0.4


def test_low_resolution_keeps_the_mean_and_loses_detail():
    torch.manual_seed(4)
    images = faces()
    low = AUGMENTATIONS["low_resolution"](images).float()
    torch.testing.assert_close(low.mean((2, 3)), images.float().mean((2, 3)), atol=12, rtol=0)
    assert low.std((2, 3)).mean() < images.float().std((2, 3)).mean()
