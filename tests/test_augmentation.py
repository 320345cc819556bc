"""Augmentation: orientations are exact, changes are differentiable and drawn from a generator."""

import torch

from models.augmentation import augmented, draw_changes, draw_turns, turned


def draw(seed=1):
    return torch.Generator().manual_seed(seed)


def test_every_orientation_occurs_and_no_pixel_is_lost():
    image = torch.arange(48.0).view(1, 3, 4, 4)
    turns = turned(image.expand(400, -1, -1, -1), draw_turns(400, draw()))
    assert len({tuple(one.flatten().tolist()) for one in turns}) == 8
    assert all((one.flatten(1).sort().values == image[0].flatten(1)).all() for one in turns)


def test_augmentation_moves_pixels_and_stain_of_each_image_by_itself():
    images = torch.randn(1, 3, 16, 16).expand(6, -1, -1, -1)
    changed = augmented(images, draw_changes(6, 16, draw()))
    assert changed.shape == images.shape
    assert all((changed[0] != other).any() for other in changed[1:])
    assert torch.equal(changed, augmented(images, draw_changes(6, 16, draw())))
    assert not torch.equal(changed, augmented(images, draw_changes(6, 16, draw(2))))


def test_a_constant_image_stays_constant_but_for_a_square_that_is_mid_grey():
    changes = draw_changes(50, 16, draw())._replace(hole=torch.tensor([[5], [9]]).expand(2, 50))
    changed = augmented(torch.full((50, 3, 16, 16), 0.4), changes)
    expected = torch.ones(16, 16, dtype=torch.bool)
    expected[2:9, 6:13] = False
    assert (changed[:, :, ~expected] == 0).all()
    seen = changed[:, :, expected]
    assert seen.flatten(1).std(dim=1).max() < 1e-5
    assert seen.mean(dim=(1, 2)).std() > 0.01


def test_at_most_a_quarter_of_an_image_is_hidden():
    changed = augmented(torch.full((200, 3, 32, 32), 0.4), draw_changes(200, 32, draw()))
    hidden = (changed[:, 0] == 0).float().mean(dim=(1, 2))
    assert hidden.max() <= 0.25
    assert hidden.min() > 0.04


def test_gradient_reaches_the_images():
    images = torch.randn(3, 3, 16, 16, requires_grad=True)
    augmented(images, draw_changes(3, 16, draw())).square().sum().backward()
    assert (images.grad != 0).float().mean() > 0.7


def test_some_rows_of_the_changes_change_some_images_alike():
    images = torch.randn(6, 3, 16, 16)
    changes = draw_changes(6, 16, draw())
    whole = augmented(images, changes)
    assert torch.equal(augmented(images[2:5], changes.rows(slice(2, 5))), whole[2:5])
