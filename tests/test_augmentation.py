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


def test_a_constant_image_stays_constant():
    changed = augmented(torch.full((5, 3, 16, 16), 0.4), draw_changes(5, 16, draw()))
    assert changed.flatten(1).std(dim=1).max() < 1e-5
    assert changed.mean(dim=(1, 2, 3)).std() > 0.01


def test_gradient_reaches_the_images():
    images = torch.randn(3, 3, 16, 16, requires_grad=True)
    augmented(images, draw_changes(3, 16, draw())).square().sum().backward()
    assert (images.grad != 0).float().mean() > 0.7


def test_some_rows_of_the_changes_change_some_images_alike():
    images = torch.randn(6, 3, 16, 16)
    changes = draw_changes(6, 16, draw())
    whole = augmented(images, changes)
    assert torch.equal(augmented(images[2:5], changes.rows(slice(2, 5))), whole[2:5])
