"""A step's draws: shares of the joint batch put together are the joint batch."""

import pytest
import torch

from models.draws import draw_step
from models.wgan_vae import Conditioning, mismatched

CPU = torch.device("cpu")


@pytest.mark.parametrize("latent_norm", ["population", "batch"])
def test_shares_put_together_are_the_joint_draws(latent_norm):
    profile = torch.randn(6, 4)
    conditioning = Conditioning.fit(torch.randn(20, 4), 0.3, 2, latent_norm)
    draws = draw_step(torch.Generator().manual_seed(1), 6, 32, 0, conditioning, profile)
    parts = [draws.share(slice(start, start + 2), CPU) for start in (0, 2, 4)]
    for name in ("latents", "condition", "wrong", "epsilon", "turns"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(draws, name))
    for name in ("real_changes", "fake_changes"):
        shifts = torch.cat([getattr(part, name).shift for part in parts], dim=1)
        assert torch.equal(shifts, getattr(draws, name).shift)
    assert torch.equal(draws.wrong, mismatched(conditioning.condition(profile)))
    assert not torch.equal(draws.real_changes.stain, draws.fake_changes.stain)


def test_a_plain_gan_draws_noise_and_one_epsilon_where_asked_for():
    draws = draw_step(torch.Generator().manual_seed(1), 6, 32, 5, one_epsilon=True)
    assert draws.latents.shape == (6, 5)
    assert draws.condition is None
    assert draws.epsilon.shape == draws.share(slice(0, 3), CPU).epsilon.shape == (1, 1, 1, 1)
    again = draw_step(torch.Generator().manual_seed(1), 6, 32, 5, one_epsilon=True)
    assert torch.equal(draws.latents, again.latents)
