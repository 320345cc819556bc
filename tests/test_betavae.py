"""The betaVAE and its loss, in closed form."""

import math

import pytest
import torch

from models.betavae import BetaVAE, Reconstruction, betavae_loss


def test_full_size_network_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = BetaVAE(19198)
    assert sum(weight.numel() for weight in model.parameters()) == 303_238_046


def test_kl_is_zero_for_the_prior_and_closed_form_elsewhere():
    target = torch.zeros(3, 5)
    prior = betavae_loss(Reconstruction(target, torch.zeros(3, 4), torch.zeros(3, 4)), target, 1.0)
    assert prior.kl == 0
    mu, variance = torch.full((3, 4), 2.0), 0.25
    logvar = torch.full((3, 4), math.log(variance))
    shifted = betavae_loss(Reconstruction(target, mu, logvar), target, 1.0)
    assert shifted.kl.item() == pytest.approx(4 * 0.5 * (4 + variance - 1 - math.log(variance)))


def test_kl_agrees_with_torch_distributions():
    mu, logvar = torch.randn(6, 7), torch.randn(6, 7)
    posterior = torch.distributions.Normal(mu, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0, 1))
    loss = betavae_loss(Reconstruction(torch.zeros(6, 2), mu, logvar), torch.zeros(6, 2), 0.1)
    assert loss.kl.item() == pytest.approx(expected.sum(dim=1).mean().item(), rel=1e-5)


def test_reconstruction_is_the_mean_over_all_elements_and_total_adds_beta_times_kl():
    output = Reconstruction(torch.full((2, 3), 2.0), torch.ones(2, 4), torch.zeros(2, 4))
    loss = betavae_loss(output, torch.zeros(2, 3), beta=0.5)
    assert loss.reconstruction == 4
    assert loss.total == 4 + 0.5 * loss.kl


def test_losses_of_shares_add_up_to_that_of_the_batch():
    target, output = torch.randn(7, 3), Reconstruction(*torch.randn(3, 7, 3))
    whole = betavae_loss(output, target, 0.5)
    shares = [
        betavae_loss(Reconstruction(*(part[rows] for part in output)), target[rows], 0.5, 7)
        for rows in (slice(0, 4), slice(4, 4), slice(4, 7))
    ]
    for number in range(3):
        assert sum(share[number] for share in shares).item() == pytest.approx(whole[number].item())


def test_dropout_keeps_the_stated_share_and_the_expected_input():
    model = BetaVAE(400, (8, 8), 4, dropout=0.3)
    noise = model.draw_noise(500, torch.Generator().manual_seed(1))
    assert noise.keep.float().mean().item() == pytest.approx(0.7, abs=0.005)
    assert noise.epsilon.shape == (500, 4)
    assert noise.epsilon.std().item() == pytest.approx(1, abs=0.05)
    model.encoder, model.mu, model.logvar = (torch.nn.Identity() for _ in range(3))
    inputs, _ = model.encode(torch.ones(500, 400), noise.keep)
    assert inputs.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert inputs.mean().item() == pytest.approx(1, abs=0.01)
    share = noise.rows(slice(2, 5))
    assert torch.equal(share.keep, noise.keep[2:5])
    assert torch.equal(share.epsilon, noise.epsilon[2:5])


def test_linear_output_reaches_beyond_one_and_tanh_does_not():
    z = 50 * torch.randn(16, 4)
    for activation, beyond in (("linear", True), ("tanh", False)):
        model = BetaVAE(6, (8, 8), 4, output_activation=activation).eval()
        assert (model.decode(z).abs().max() > 1) == beyond


def test_latents_refuse_a_model_in_training_mode():
    with pytest.raises(RuntimeError, match="eval"):
        BetaVAE(6, (8, 8), 4).latents(torch.zeros(2, 6))
