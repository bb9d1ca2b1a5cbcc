import pytest
import torch
from mhe_gan.augment import AUGMENTATIONS, augment
from mhe_gan.penalties import LeCam, gradient_penalty
from torch import nn


def images(count=200, size=32, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_color_keeps_the_order_of_pixels_and_changes_each_image_by_its_own_draw():
    torch.manual_seed(0)
    x = images(500)
    y = augment(x, ["color"])
    shift = y.mean((1, 2, 3)) - x.mean((1, 2, 3))
    assert shift.min() > -0.5001
    assert shift.max() < 0.5001
    assert shift.std() == pytest.approx(12**-0.5, rel=0.1)  # of a uniform draw of width 1
    grey = x.mean(1, keepdim=True)
    contrast = (y.mean(1) - y.mean((1, 2, 3))[:, None, None]).std((1, 2)) / grey[:, 0].std((1, 2))
    assert contrast.min() > 0.4999
    assert contrast.max() < 1.5001


def test_translation_moves_whole_images_by_up_to_an_eighth():
    torch.manual_seed(0)
    x = torch.zeros(400, 1, 32, 32)
    x[:, :, 16, 16] = 1
    y = augment(x, ["translation"])
    _, _, rows, columns = y.nonzero(as_tuple=True)
    assert len(rows) == 400  # the pixel is in each image, once
    for places in (rows, columns):
        assert places.unique().tolist() == list(range(12, 21))
    torch.testing.assert_close(y.amax((1, 2, 3)), torch.ones(400))


def test_translation_fills_with_black():
    torch.manual_seed(0)
    y = augment(torch.ones(50, 3, 16, 16), ["translation"])
    assert set(y.unique().tolist()) == {0.0, 1.0}
    kept = y[:, 0].sum((1, 2))
    assert kept.min() >= 14 * 14


def test_cutout_blackens_a_square_of_half_the_size():
    torch.manual_seed(0)
    y = augment(torch.ones(300, 3, 32, 32), ["cutout"])
    cut = (y == 0)[:, 0]
    assert cut.sum((1, 2)).max() == 16 * 16
    assert cut.sum((1, 2)).min() >= 8 * 8
    for one in cut:
        rows, columns = one.any(1), one.any(0)
        assert torch.equal(one, rows[:, None] & columns)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_gradients_go_through_and_the_seed_decides(name):
    x = images(8).requires_grad_()
    torch.manual_seed(3)
    y = augment(x, [name])
    torch.manual_seed(3)
    torch.testing.assert_close(augment(x, [name]), y)
    assert not torch.equal(augment(x, [name]), y)
    y.sum().backward()
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()


def test_an_unknown_augmentation_is_named():
    with pytest.raises(ValueError, match="expected augmentations of"):
        augment(images(1), ["colour"])


def test_gradient_penalty_is_the_mean_squared_norm_of_the_gradient():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 1), nn.Flatten(0)
    )
    network.double()
    x = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda z: network(z), x)
    norms = [float(jacobian[i, i].square().sum()) for i in range(6)]
    penalty = gradient_penalty(network, x)
    assert float(penalty.detach()) == pytest.approx(sum(norms) / 6)
    penalty.backward()  # by the weights, through the gradient
    weight, step = network[1].weight, 1e-6
    slope = weight.grad[0, 0].item()
    with torch.no_grad():
        weight[0, 0] += step
    after = float(gradient_penalty(network, x).detach())
    assert (after - float(penalty.detach())) / step == pytest.approx(slope, rel=1e-3)


def test_lecam_is_its_definition_and_its_state_comes_back():
    generator = torch.Generator().manual_seed(0)
    lecam = LeCam(decay=0.9)
    of_real = of_fake = None
    for step in range(5):
        real, fake = torch.randn(2, 16, generator=generator) + torch.tensor([[1.0], [-1.0]])
        of_real = real.mean() if of_real is None else 0.9 * of_real + 0.1 * real.mean()
        of_fake = fake.mean() if of_fake is None else 0.9 * of_fake + 0.1 * fake.mean()
        expected = (real - of_fake).clamp(min=0).square().mean()
        expected += (of_real - fake).clamp(min=0).square().mean()
        torch.testing.assert_close(lecam(real, fake), expected)
        if step == 2:
            again = LeCam(decay=0.9)
            again.load_state_dict(lecam.state_dict())
        elif step > 2:
            torch.testing.assert_close(again(real, fake), expected)
