"""The residual networks, the relativistic loss and its penalties, in closed form."""

import math

import pytest
import torch
from torch import nn

from models.local_noise import local_noise_dims
from models.networks import GAN_TYPES, Networks, load_generator
from models.r3gan import ResidualBlock, ResidualCritic, ResidualGenerator, stage_widths
from models.wgan import critic_loss, generator_loss, zero_centred_penalty
from models.wgan_vae import critic_objective, generator_objective


@pytest.mark.parametrize("px", [32, 64])
def test_shapes_are_those_of_the_dcgan(px):
    generator, critic = ResidualGenerator(7, px, 16), ResidualCritic(px, 16, 1, latent_dim=5)
    images = generator(torch.randn(3, 7))
    assert images.shape == (3, 3, px, px)
    assert critic(images).score.shape == (3,)


def test_local_noise_moves_single_places_once_it_has_strength():
    dims = local_noise_dims(32)
    generator = ResidualGenerator(7 + dims, 32, 16, 1, local_noise=True)
    plain = ResidualGenerator(7, 32, 16, 1)
    generator.load_state_dict(plain.state_dict(), strict=False)
    z = torch.randn(2, 7 + dims)
    torch.testing.assert_close(generator(z), plain(z[:, :7]))
    generator.local_noise.strengths["16"].data.fill_(1.0)
    other = z.clone()
    other[:, 7 + 8**2 :] += torch.eye(16).flatten()
    changed = (generator(z) - generator(other)).abs().sum(dim=(0, 1)) > 1e-6
    assert changed.diagonal().all()
    assert not changed[0, 16:].any()


def test_widths_double_with_every_halving_up_to_eight_times():
    assert stage_widths(256, 32) == [256, 256, 256, 128, 64, 32]
    with pytest.raises(ValueError, match="power of two"):
        stage_widths(48, 32)
    with pytest.raises(ValueError, match="multiple of 16"):
        stage_widths(64, 24)


def test_a_new_block_is_the_identity_whatever_comes_in():
    features = torch.randn(2, 32, 8, 8)
    torch.testing.assert_close(ResidualBlock(32, depth=8)(features), features)


def test_first_signals_neither_vanish_nor_explode():
    images = ResidualGenerator(64, 64, 32)(torch.randn(16, 64))
    assert 0.2 < images.std().item() < 3
    score = ResidualCritic(64, 32)(torch.randn(64, 3, 64, 64)).score
    assert 0.01 < score.std().item() < 10


def test_critic_keeps_samples_apart():
    critic, images = ResidualCritic(32, 16, 1), torch.randn(4, 3, 32, 32)
    alone = torch.cat([critic(image[None]).score for image in images])
    torch.testing.assert_close(critic(images).score, alone, rtol=1e-4, atol=1e-5)


def test_relativistic_losses_are_softplus_of_paired_differences():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0])
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(3))) / 2
    assert critic_loss("relativistic", real, fake).item() == pytest.approx(expected)
    expected = (math.log1p(math.exp(1)) + math.log1p(math.exp(-3))) / 2
    assert generator_loss("relativisticvae", fake, real).item() == pytest.approx(expected)
    twice = critic_loss("relativistic", real, torch.cat([fake, fake]))
    assert twice.item() == pytest.approx(critic_loss("relativistic", real, fake).item())


def test_relativistic_losses_do_not_change_when_all_scores_move():
    real, fake = torch.randn(5), torch.randn(5)
    moved = critic_loss("relativistic", real + 7, fake + 7)
    torch.testing.assert_close(moved, critic_loss("relativistic", real, fake))


def test_zero_centred_penalty_of_a_quadratic_score_is_closed_form():
    images = torch.randn(4, 3, 8, 8)
    value = zero_centred_penalty(lambda x, _: x.square().sum(dim=(1, 2, 3)) / 2, images)
    assert value.item() == pytest.approx(images.flatten(1).square().sum(1).mean().item(), rel=1e-5)


def test_zero_centred_penalty_reaches_the_weights():
    critic = ResidualCritic(32, 16, 1, latent_dim=3, conditioning="both")
    for block in critic.modules():
        if isinstance(block, ResidualBlock):
            nn.init.normal_(block.narrow.weight, std=0.1)
    images, condition = torch.randn(2, 3, 32, 32), torch.randn(2, 3)
    penalty = zero_centred_penalty(lambda *given: critic(*given).score, images, condition)
    penalty.backward()
    assert all(weight.grad.abs().sum() > 0 for weight in (critic.score.weight, critic.embed.weight))


@pytest.mark.parametrize("gan_type", GAN_TYPES)
def test_objectives_and_checkpoints_work_for_every_kind(gan_type):
    shape = {"image_px": 32, "step_channels": 16}
    critic_args = {**shape, "latent_dim": 5, "conditioning": "both"}
    generator_args = {"latent_dim": 7, **shape}
    cpu = torch.device("cpu")
    networks = Networks(gan_type, generator_args, critic_args, (1e-3, 1e-3), (0.5, 0.9), cpu)
    real, condition = torch.randn(4, 3, 32, 32), torch.randn(4, 5)
    fake = networks.generator(torch.randn(4, 7))
    given = ("relativisticvae", real)
    critic_objective(networks.critic, *given, fake.detach(), condition, 0.2).backward()
    generator_objective(networks.critic, *given, fake, condition, 0.2).backward()
    gradients = [weight.grad for weight in networks.generator.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    again = load_generator(networks.state_dict(), cpu)
    latents = torch.randn(2, 7)
    torch.testing.assert_close(again(latents), networks.average(latents))
