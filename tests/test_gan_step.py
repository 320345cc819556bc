"""The training script's steps against a slow, plain float64 implementation of the method."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F

import betaVAE_training
import histopathology_gan
from data.training import epoch_order
from runtime.checkpoint import load_checkpoint
from runtime.seeds import torch_generator

SEED, STEPS, N, PX, NOISE_DIM, RATES = 7, 7, 4, 32, 3, (1e-4, 4e-4)
LAMBDA, GAMMA, REGRESSION, DECAY = 10.0, 1.0, 0.2, 0.999


def generator_of(weights, latents):
    features = (latents @ weights["project.weight"].T).view(len(latents), -1, 4, 4)
    norms = [("project_norm.0", None)] + [
        (f"blocks.{3 * k + 1}", f"blocks.{3 * k}") for k in (0, 1)
    ]
    for norm, layer in norms:
        if layer:
            features = F.conv_transpose2d(features, weights[f"{layer}.weight"], None, 2, 1)
        mean = features.mean(dim=(0, 2, 3), keepdim=True)
        variance = features.var(dim=(0, 2, 3), keepdim=True, unbiased=False)
        features = (features - mean) / (variance + 1e-5).sqrt()
        features = features * weights[f"{norm}.weight"].view(1, -1, 1, 1)
        features = F.leaky_relu(features + weights[f"{norm}.bias"].view(1, -1, 1, 1), 0.2)
    last = F.conv_transpose2d(features, weights["to_rgb.weight"], weights["to_rgb.bias"], 2, 1)
    return torch.tanh(last)


def make_even(weights):
    """Have the sums of the taps of the four kinds of output pixels equal, in every kernel."""
    for name in ("blocks.0.weight", "blocks.3.weight", "to_rgb.weight"):
        for kernel in (kernel for row in weights[name].detach() for kernel in row):
            excess = {
                (row, column): kernel[row::2, column::2].sum() - kernel.sum() / 4
                for row in (0, 1)
                for column in (0, 1)
            }
            for row in range(4):
                for column in range(4):
                    kernel[row, column] -= excess[row % 2, column % 2] / 4


def features_of(weights, image):
    """Return the features (F,) of one image."""
    features = F.conv2d(image[None], weights["blocks.0.weight"], weights["blocks.0.bias"], 2, 1)
    features = F.leaky_relu(features, 0.2)
    for number in (2, 5):
        features = F.conv2d(features, weights[f"blocks.{number}.weight"], None, 2, 1)
        norm = (weights[f"blocks.{number + 1}.weight"], weights[f"blocks.{number + 1}.bias"])
        features = F.leaky_relu(F.group_norm(features, 8, *norm), 0.2)
    return features.flatten()


def pooled(features):
    """Return the sum (C,) of features (C * 16,) over the places of the last map."""
    return features.view(-1, 16).sum(dim=1) / 4


def score_of(weights, image, profile):
    features = features_of(weights, image)
    score = features @ weights["score.weight"][0] + weights["score.bias"][0]
    if profile is not None:
        score = score + weights["embed.weight"] @ profile @ pooled(features)
    return score


def regression_of(weights, image, profile):
    features = pooled(features_of(weights, image))
    predicted = weights["regress.weight"] @ features + weights["regress.bias"]
    return (predicted - profile).square().mean()


def adam(weights, loss, memory, rate):
    names = [name for name, weight in weights.items() if weight.requires_grad]
    gradients = torch.autograd.grad(loss, [weights[name] for name in names])
    memory["t"] = memory.get("t", 0) + 1
    for name, gradient in zip(names, gradients, strict=True):
        first, second = memory.get(name, (0.0, 0.0))
        first = 0.5 * first + 0.5 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        memory[name] = (first, second)
        mean, square = first / (1 - 0.5 ** memory["t"]), second / (1 - 0.999 ** memory["t"])
        with torch.no_grad():
            weights[name] -= rate * mean / (square.sqrt() + 1e-8)


def plain_training(start, batches, conditioning, relativistic):
    """Return generator, average and critic weights after the steps, a sample at a time.

    Args:
        start: state dicts `generator` and `critic`.
        batches: real images (N, 3, S, S) and mu (N, D) or None of each step.
        conditioning: mean and variance of mu, or None.
        relativistic: the loss; else Wasserstein.
    """
    generator, critic = (
        {name: value.double().requires_grad_("running" not in name and "num" not in name)
         for name, value in start[part].items()}
        for part in ("generator", "critic")
    )  # fmt: skip
    average = {name: value.detach().clone() for name, value in generator.items()}
    memories = ({}, {})
    for step, (real, mu) in enumerate(batches):
        draw = torch_generator(SEED, "step", step)
        epsilon = torch.rand(N, 1, 1, 1, generator=draw).double()
        if mu is None:
            latents, profiles, wrong = torch.randn(N, 6, generator=draw).double(), [None] * N, None
        else:
            mean, variance = conditioning
            uniform = torch.rand(N, 6, generator=draw).double() * 2 - 1
            extra = torch.randn(N, NOISE_DIM, generator=draw).double()
            scale = (variance + 0.3**2 / 3).sqrt()
            latents = torch.cat([(mu + 0.3 * uniform - mean) / scale, extra], dim=1)
            profiles = list((mu - mean) / scale)
            wrong = [profiles[-1], *profiles[:-1]]
        fake = generator_of(generator, latents)

        terms = []
        for k in range(N):
            on_real = score_of(critic, real[k], profiles[k])
            against = [score_of(critic, fake[k].detach(), profiles[k])]
            if mu is not None:
                against.append(score_of(critic, real[k], wrong[k]))
            margins = [F.softplus(s - on_real) if relativistic else s - on_real for s in against]
            terms.append(sum(margins) / len(margins))
            if mu is not None:
                terms[-1] = terms[-1] + REGRESSION * regression_of(critic, real[k], profiles[k])
            points = [epsilon[k] * real[k] + (1 - epsilon[k]) * fake[k].detach()]
            if relativistic:
                points = [real[k], fake[k].detach()]
            for point in points:
                point = point.detach().requires_grad_(True)
                score = score_of(critic, point, profiles[k])
                (gradient,) = torch.autograd.grad(score, point, create_graph=True)
                squared = gradient.square().sum()
                terms[-1] = terms[-1] + (
                    GAMMA * squared / 2 if relativistic else LAMBDA * (squared.sqrt() - 1) ** 2
                )
        adam(critic, sum(terms) / N, memories[1], RATES[1])

        terms = []
        for k in range(N):
            on_fake = score_of(critic, fake[k], profiles[k])
            terms.append(-on_fake)
            if relativistic:
                terms[-1] = F.softplus(score_of(critic, real[k], profiles[k]).detach() - on_fake)
            if mu is not None:
                terms[-1] = terms[-1] + REGRESSION * regression_of(critic, fake[k], profiles[k])
        adam(generator, sum(terms) / N, memories[0], RATES[0])
        make_even(generator)
        decay = min(DECAY, (1 + step) / (10 + step))
        for name, weight in generator.items():
            average[name] = decay * average[name] + (1 - decay) * weight.detach()
    return {"generator": generator, "generator_ema": average, "critic": critic}


@pytest.mark.parametrize("loss_type", ["wgan", "wganvae", "relativistic", "relativisticvae"])
def test_steps_are_those_of_a_plain_implementation(cohort, monkeypatch, loss_type):
    keys = json.loads((cohort / "gan_lung.json").read_text())
    keys |= {"augment": "none", "critic_conditioning": "both"}
    (cohort / "gan_lung.json").write_text(json.dumps(keys))
    conditional = loss_type.endswith("vae")
    if conditional:
        betaVAE_training.main(["--config", "betavae.json"])
    start, seen = {}, {}
    build, read = histopathology_gan.Networks, histopathology_gan.read_training_tiles
    latents = histopathology_gan.profile_latents

    def remember(store, key, function):
        def wrapped(*given, **named):
            store[key] = function(*given, **named)
            return store[key]

        return wrapped

    def kept_networks(*given, **named):
        networks = build(*given, **named)
        start.update(copy.deepcopy(networks.state_dict()))
        return networks

    monkeypatch.setattr(histopathology_gan, "Networks", kept_networks)
    monkeypatch.setattr(histopathology_gan, "read_training_tiles", remember(seen, "inputs", read))
    monkeypatch.setattr(histopathology_gan, "profile_latents", remember(seen, "mu", latents))
    histopathology_gan.main(
        ["--config", "gan_lung.json", "--seed", str(SEED), "--loss_type", loss_type]
        + ["--num_epochs", "1", "--num_patches", "5", "--image_dir", "i", "--model_dir", "m/x"]
    )
    done = load_checkpoint("m/x.model", "gan")
    assert done["counters"]["step"] == STEPS

    inputs, batches, conditioning = seen["inputs"], [], None
    if conditional:
        mu = seen["mu"][0].double()
        training = mu[torch.from_numpy(inputs.training)]
        conditioning = (training.mean(dim=0), training.var(dim=0, unbiased=False))
    for numbers in epoch_order(len(inputs.tiles), N, True, SEED, 0):
        tiles = [inputs.tiles[number] for number in numbers]
        real = torch.stack([pixels for pixels, _ in tiles]).permute(0, 3, 1, 2).double()
        profiles = mu[[inputs.rows[slide] for _, slide in tiles]] if conditional else None
        batches.append((real / 127.5 - 1, profiles))
    expected = plain_training(start, batches, conditioning, loss_type.startswith("relativistic"))
    for part, weights in expected.items():
        begun = start["generator" if part == "generator_ema" else part]
        for name, weight in weights.items():
            # No loss here but the regression's depends on the score's bias.
            if "running" in name or "num" in name or name == "score.bias":
                continue
            moved = (weight.detach() - begun[name]).norm()
            missed = (done[part][name] - weight.detach()).norm()
            assert moved > 0
            assert missed < 2e-3 * moved, (part, name)
