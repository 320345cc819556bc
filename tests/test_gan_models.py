"""Networks, losses, conditioning and sampling, in closed form and against torchgan."""

import math
import warnings

import pytest
import torch
from torch import nn

from models.dcgan import Critic, Generator
from models.local_noise import local_noise_dims
from models.networks import Networks
from models.sampling import sample_images
from models.wgan import critic_loss, generator_loss, gradient_penalty
from models.wgan_vae import Conditioning, critic_objective, mismatched
from runtime.errors import UserError

with warnings.catch_warnings():  # torchgan imports optional packages and warns
    warnings.simplefilter("ignore")
    from torchgan.models import DCGANDiscriminator, DCGANGenerator


def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Copy weights layer by layer; a 4 x 4 layer at the 1 x 1 end becomes the linear one it is."""
    mine, theirs = target.state_dict(), source.state_dict()
    for (name, weight), other in zip(mine.items(), theirs.values(), strict=True):
        if name == "project.weight":  # (D, C, 4, 4) to (C * 16, D)
            other = other.flatten(1).T
        weight.copy_(other.reshape(weight.shape))


def test_networks_have_the_published_number_of_parameters():
    with torch.device("meta"):
        generator, critic = Generator(), Critic(norm="batch")
    assert sum(weight.numel() for weight in generator.parameters()) == 111_815_555
    assert sum(weight.numel() for weight in critic.parameters()) == 44_739_392


@pytest.mark.parametrize("px", [32, 64])
def test_generator_gives_torchgans_output_with_its_weights(px):
    theirs = DCGANGenerator(encoding_dims=10, out_size=px, step_channels=4)
    mine = Generator(10, px, 4)
    copy_in_order(theirs, mine)
    z = torch.randn(5, 10)
    torch.testing.assert_close(mine(z), theirs(z), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine.eval()(z), theirs.eval()(z), rtol=1e-4, atol=1e-5)


def test_switched_off_modulation_and_local_noise_leave_the_dcgan():
    plain, more = Generator(10, 32, 4), Generator(10 + 8**2 + 16**2, 32, 4, True, True)
    missing, unknown = more.load_state_dict(plain.state_dict(), strict=False)
    assert not unknown
    assert all(name.startswith(("styles.", "local_noise.")) for name in missing)
    for weight in (*more.styles.parameters(), *more.local_noise.parameters()):
        nn.init.zeros_(weight)
    z = torch.randn(3, more.latent_dim)
    torch.testing.assert_close(more.eval()(z), plain.eval()(z[:, :10]))


def test_a_map_is_scaled_and_shifted_by_the_latents_where_the_dcgan_is_not():
    generator = Generator(10, 16, 4, modulation=True).eval()
    for style in generator.styles:
        nn.init.zeros_(style.weight)
    style = generator.styles[0]
    style.bias.data[:4], style.bias.data[4:] = 1.0, 0.25  # scale and shift of the only map
    z = torch.randn(3, 10)
    first = generator.project_norm(generator.project(z).unflatten(1, (8, 4, 4)))
    features = generator.blocks[1](generator.blocks[0](first)) * 2 + 0.25
    expected = torch.tanh(generator.to_rgb(generator.blocks[2](features)))
    torch.testing.assert_close(generator(z), expected)


def test_local_noise_changes_its_surroundings_alone():
    dims = local_noise_dims(64)
    assert dims == 8**2 + 16**2 + 32**2
    generator = Generator(10 + dims, 64, 4, local_noise=True).eval()
    for strength in generator.local_noise.strengths.values():
        nn.init.ones_(strength)
    z = torch.randn(1, 10 + dims)
    other = z.clone()
    other[0, 10 + 64 + 256 + 5 * 32 + 7] += 1  # pixel (5, 7) of the 32 x 32 map
    changed = (generator(z) - generator(other)).abs().sum(dim=1)[0] > 0
    rows, columns = changed.nonzero().T
    assert (rows.min(), rows.max()) == (9, 12)
    assert (columns.min(), columns.max()) == (13, 16)


def test_new_layers_upsample_bilinearly_and_keep_the_variance():
    generator = Generator(10, 32, 32)
    layer = generator.blocks[0]
    level = torch.randn(1, 128, 1, 1).expand(1, 128, 8, 8)
    inside = layer(level)[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(inside, inside[:, :, :1, :1].expand_as(inside))  # no raster
    ramp = torch.arange(8.0).expand(1, 128, 8, 8)
    slopes = layer(ramp).diff(dim=3)[:, :, 2:-2, 2:-2]
    torch.testing.assert_close(slopes, slopes[..., :1].expand_as(slopes), rtol=1e-3, atol=1e-4)
    assert layer(torch.randn(16, 128, 8, 8)).std().item() == pytest.approx(1, rel=0.1)


def test_new_local_noise_is_as_strong_as_the_normalised_features():
    generator = Generator(10 + local_noise_dims(64), 64, 32, local_noise=True)
    strengths = torch.cat(list(generator.local_noise.parameters()))
    assert strengths.std().item() == pytest.approx(1, rel=0.3)


@pytest.mark.parametrize("px", [32, 64])
def test_published_critic_gives_torchgans_output_with_its_weights(px):
    theirs = DCGANDiscriminator(in_size=px, step_channels=4)
    mine = Critic(px, 4, norm="batch", output="leaky_relu")
    state = theirs.state_dict()  # torchgan lists the last layer first
    last = state.pop("disc.0.weight")
    for weight, other in zip(list(mine.state_dict().values())[:-1], state.values(), strict=True):
        weight.copy_(other)
    mine.score.weight.data.copy_(last.flatten(1))
    images = torch.randn(6, 3, px, px)
    expected = theirs(images).reshape(-1)
    torch.testing.assert_close(mine(images).score, expected, rtol=1e-4, atol=1e-5)


def test_losses_are_those_of_the_papers():
    real, fake = torch.tensor([2.0, 4.0]), torch.tensor([1.0, -1.0])
    assert critic_loss("wgan", real, fake) == -3
    assert generator_loss("wganvae", fake) == 0
    assert critic_loss("lsgan", real, fake) == pytest.approx(0.5 * ((1 + 9) / 2 + 1))
    assert generator_loss("lsgan", fake) == pytest.approx(0.5 * (0 + 4) / 2)
    cross_entropy = nn.BCEWithLogitsLoss()
    expected = cross_entropy(real, torch.ones(2)) + cross_entropy(fake, torch.zeros(2))
    assert critic_loss("minimax", real, fake).item() == pytest.approx(expected.item())
    with pytest.raises(ValueError, match="loss_type"):
        critic_loss("hinge", real, fake)


def test_penalty_of_a_linear_score_is_closed_form_per_sample_and_per_batch():
    direction = torch.randn(3, 8, 8)
    norm = direction.norm().item()

    def score(images):
        return (images * direction).sum(dim=(1, 2, 3))

    real, fake = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    value = gradient_penalty(score, real, fake, torch.rand(4, 1, 1, 1))
    assert value.item() == pytest.approx((norm - 1) ** 2, rel=1e-4)
    whole = gradient_penalty(score, real, fake, torch.rand(1, 1, 1, 1), per_batch=True)
    assert whole.item() == pytest.approx((math.sqrt(4) * norm - 1) ** 2, rel=1e-4)


def test_penalty_equals_one_sample_at_a_time_when_the_critic_keeps_samples_apart():
    critic = Critic(32, 4)
    real, fake, epsilon = (
        torch.randn(3, 3, 32, 32),
        torch.randn(3, 3, 32, 32),
        torch.rand(3, 1, 1, 1),
    )

    def score(images):
        return critic(images).score

    together = gradient_penalty(score, real, fake, epsilon)
    apart = [
        gradient_penalty(score, real[i : i + 1], fake[i : i + 1], epsilon[i : i + 1])
        for i in range(3)
    ]
    assert together.item() == pytest.approx(torch.stack(apart).mean().item(), rel=1e-4)


def test_population_norm_standardises_mu_plus_noise_over_the_population():
    mu = 3 + 2 * torch.randn(20000, 3)
    conditioning = Conditioning.fit(mu, noise=0.3, noise_dim=2)
    latents = conditioning.latents(mu, conditioning.draw(len(mu), torch.Generator().manual_seed(1)))
    assert latents.shape == (20000, 5)
    torch.testing.assert_close(latents.mean(dim=0), torch.zeros(5), atol=0.03, rtol=0)
    torch.testing.assert_close(latents.std(dim=0), torch.ones(5), atol=0.03, rtol=0)


@pytest.mark.parametrize(("norm", "reaches"), [("population", True), ("batch", False)])
def test_profile_survives_a_one_donor_batch_unless_normalised_as_published(norm, reaches):
    generator = Generator(6, 32, 4).eval()
    conditioning = Conditioning.fit(torch.randn(50, 6), latent_norm=norm)
    profiles = torch.randn(2, 6)
    noise = conditioning.draw(8, torch.Generator().manual_seed(3))
    one, other = (
        generator(conditioning.latents(profile.expand(8, -1), noise)) for profile in profiles
    )
    change = (one - other).abs().max().item()
    assert (change > 0.05) if reaches else (change < 1e-4)


def test_conditioning_survives_a_checkpoint():
    conditioning = Conditioning.fit(torch.randn(9, 4), 0.2, 3, "batch")
    again = Conditioning.from_checkpoint(conditioning.to_checkpoint() | {"betavae_path": "x"})
    assert again.input_dim == 7
    torch.testing.assert_close(again.scale, conditioning.scale)


@pytest.mark.parametrize("conditional", [False, True])
def test_sample_k_is_the_same_tile_whatever_else_is_asked_for(conditional):
    generator = Generator(6, 32, 4).eval()
    conditioning = Conditioning.fit(torch.randn(9, 6)) if conditional else None
    mu = torch.randn(6) if conditional else None
    whole = dict(sample_images(generator, 5, range(40), conditioning, mu))
    part = dict(sample_images(generator, 5, [38, 3, 17], conditioning, mu))
    assert sorted(part) == [3, 17, 38]
    assert all(torch.equal(whole[index], image) for index, image in part.items())
    other = dict(sample_images(generator, 6, [3], conditioning, mu))
    assert not torch.equal(other[3], whole[3])


def test_sampling_refuses_training_mode_repeats_and_half_a_condition():
    generator = Generator(6, 32, 4)
    with pytest.raises(RuntimeError, match="eval"):
        next(sample_images(generator, 1, [0]))
    generator.eval()
    with pytest.raises(ValueError, match="repeated"):
        next(sample_images(generator, 1, [0, 0]))
    with pytest.raises(ValueError, match="conditioning"):
        next(sample_images(generator, 1, [0], mu=torch.zeros(6)))


@pytest.mark.parametrize("kind", ["none", "projection", "regression", "both"])
def test_conditional_critic_sees_the_profile_exactly_when_asked_to(kind):
    critic = Critic(32, 4, latent_dim=5, conditioning=kind)
    images, condition = torch.randn(4, 3, 32, 32), torch.randn(4, 5)
    own, wrong = critic(images, condition), critic(images, mismatched(condition))
    assert (own.score != wrong.score).any() == (kind in ("projection", "both"))
    assert (own.predicted_latents is not None) == (kind in ("regression", "both"))
    loss = critic_objective(critic, "wgan", images, torch.randn_like(images), condition, 0.2)
    assert loss.isfinite()


def test_average_follows_the_generator_and_starts_fast():
    arguments = {"latent_dim": 4, "image_px": 32, "step_channels": 4}
    critic = {"image_px": 32, "step_channels": 4}
    networks = Networks("dcgan", arguments, critic, (1e-3, 1e-3), (0.5, 0.9), torch.device("cpu"))
    with torch.no_grad():
        networks.generator.to_rgb.bias.fill_(1.0)
    networks.update_average(0.999, step=0)
    torch.testing.assert_close(networks.average.to_rgb.bias, torch.full((3,), 0.9))
    networks.update_average(0.0, step=5)
    torch.testing.assert_close(networks.average.to_rgb.bias, torch.ones(3))


def test_without_an_average_the_generator_stands_in_its_place():
    arguments = {"latent_dim": 4, "image_px": 32, "step_channels": 4}
    shape = {"image_px": 32, "step_channels": 4}
    networks = Networks(
        "dcgan", arguments, shape, (1e-3, 1e-3), (0.5, 0.9), torch.device("cpu"), averaged=False
    )
    bias = networks.generator.to_rgb.bias.detach().clone()
    networks.update_average(0.9, step=3)
    torch.testing.assert_close(networks.generator.to_rgb.bias, bias)
    with networks.evaluated() as generator:
        assert generator is networks.generator
        assert not generator.training
    assert networks.generator.training
    assert networks.generator.to_rgb.bias.requires_grad
    state = networks.state_dict()
    for name, value in state["generator"].items():
        assert state["generator_ema"][name].data_ptr() == value.data_ptr()
    averaged = Networks("dcgan", arguments, shape, (1e-3, 1e-3), (0.5, 0.9), torch.device("cpu"))
    with torch.no_grad():
        averaged.generator.to_rgb.bias.fill_(2.0)
    networks.load_state_dict(averaged.state_dict())
    torch.testing.assert_close(networks.generator.to_rgb.bias, torch.full((3,), 2.0))


def test_weights_of_other_shapes_are_an_older_versions():
    arguments = {"latent_dim": 4, "image_px": 16, "step_channels": 2}
    critic = {"image_px": 16, "step_channels": 2}
    networks = Networks("dcgan", arguments, critic, (1e-3, 1e-3), (0.5, 0.9), torch.device("cpu"))
    state = networks.state_dict()
    state["critic"] = state["critic"] | {"score.weight": torch.zeros(1, 3)}
    with pytest.raises(UserError, match=r"older version: .*score\.weight"):
        networks.load_state_dict(state)
