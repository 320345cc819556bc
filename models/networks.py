"""The networks of an adversarial run as one thing to step, save and load."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from models.adam import Adam
from models.dcgan import Critic, Generator
from models.pretrained_critic import PretrainedCritic
from models.r3gan import ResidualCritic, ResidualGenerator
from runtime.errors import UserError

GAN_TYPES = {"dcgan": (Generator, Critic), "r3gan": (ResidualGenerator, ResidualCritic)}


def load_generator(content: dict[str, Any], device: torch.device) -> nn.Module:
    """Return the averaged generator of a GAN checkpoint's content, in eval mode on `device`."""
    generator = GAN_TYPES[content["gan_type"]][0](**content["generator_args"])
    generator.load_state_dict(content["generator_ema"])
    layout = {"device": device, "memory_format": torch.channels_last}
    return generator.to(**layout).eval().requires_grad_(False)


def network_arguments(
    gan_type: str,
    shape: dict[str, int],
    *,
    blocks: int,
    modulation: bool,
    local_noise: bool,
    norm: str,
    output: str,
    input_dim: int,
    profile_dim: int,
    conditioning: str,
    pretrained: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of a GAN type's generator and critic.

    Args:
        gan_type: a key of GAN_TYPES.
        shape: `image_px` and `step_channels` of both.
        blocks: of r3gan alone. modulation, norm: of dcgan alone.
        local_noise: of the generator.
        output: of the critic's score.
        input_dim: D of the generator's input.
        profile_dim, conditioning: what the critic sees of the profile; 0 and "none" for a GAN.
        pretrained: the critic is a PretrainedCritic.
    """
    seen = {"output": output, "latent_dim": profile_dim, "conditioning": conditioning}
    # Switched off they are left out, so that older checkpoints are the same recipe.
    noisy = {"local_noise": True} if local_noise else {}
    own = {"blocks": blocks} if gan_type == "r3gan" else {"norm": norm}
    critic_args = {**shape, **({} if pretrained else own), **seen}
    if gan_type == "r3gan":
        return {"latent_dim": input_dim, **shape, **own, **noisy}, critic_args
    modulated = {"modulation": True} if modulation else {}
    return {"latent_dim": input_dim, **shape, **noisy, **modulated}, critic_args


class Networks:
    """Generator, its running average, critic and their Adam optimisers.

    Args:
        gan_type: a key of GAN_TYPES.
        generator_args, critic_args: of its generator and critic; kept, so that a checkpoint
            rebuilds them.
        learning_rates: of generator and critic.
        betas: of Adam.
        device: where they live.
        averaged: keep a running average; without one the generator stands in its place, in
            checkpoints too.
        backbone: weights of EfficientNetLite; the critic then is a PretrainedCritic.
    """

    def __init__(
        self,
        gan_type: str,
        generator_args: dict[str, Any],
        critic_args: dict[str, Any],
        learning_rates: tuple[float, float],
        betas: tuple[float, float],
        device: torch.device,
        averaged: bool = True,
        backbone: dict[str, torch.Tensor] | None = None,
    ) -> None:
        self.gan_type = gan_type
        self.generator_args, self.critic_args = generator_args, critic_args
        make_generator, make_critic = GAN_TYPES[gan_type]
        layout = {"device": device, "memory_format": torch.channels_last}
        self.generator = make_generator(**generator_args).to(**layout)
        if backbone is not None:
            make_critic = PretrainedCritic
        self.critic = make_critic(**critic_args)
        if backbone is not None:
            self.critic.backbone.load_published(backbone)
        self.critic.to(**layout)
        self.average = self.generator
        if averaged:
            self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.generator_optimizer, self.critic_optimizer = (
            Adam(network.parameters(), rate, betas)
            for network, rate in zip((self.generator, self.critic), learning_rates, strict=True)
        )

    def share_batch(self, device_type: str) -> None:
        """Prepare for batches that are split over processes: on GPUs the generator's batch
        normalisation takes the statistics of the joint batch.

        torch has no such layer for CPUs; there every process normalises its own share. The critic's
        batch normalisation, which is only in the published recipe, stays with the share: the joint
        one has no second derivative, which the penalty needs.
        """
        if device_type == "cuda":
            self.generator = nn.SyncBatchNorm.convert_sync_batchnorm(self.generator)

    def running_statistics(self) -> list[torch.Tensor]:
        """Return the running statistics of generator and critic, which processes must average."""
        both = (*self.generator.buffers(), *self.critic.buffers())
        return [buffer for buffer in both if buffer.is_floating_point()]

    @torch.no_grad()
    def update_average(self, decay: float, step: int) -> None:
        """Move the average towards the generator; the decay rises from 0.1 to `decay`."""
        if self.average is self.generator:
            return
        decay = min(decay, (1 + step) / (10 + step))
        states = (self.average.state_dict(), self.generator.state_dict())
        averages, currents = (
            [value for value in state.values() if value.is_floating_point()] for state in states
        )
        get_ema_multi_avg_fn(decay)(averages, currents, None)

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """Yield the average, or the generator in its place, in eval mode."""
        training = self.average.training
        try:
            yield self.average.eval()
        finally:
            self.average.train(training)

    def state_dict(self) -> dict[str, Any]:
        """Return arguments, weights and optimiser states for a checkpoint."""
        return {
            "gan_type": self.gan_type,
            "generator_args": self.generator_args,
            "critic_args": self.critic_args,
            "generator": self.generator.state_dict(),
            "generator_ema": self.average.state_dict(),
            "critic": self.critic.state_dict(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the weights of a checkpoint with the same arguments.

        Raises:
            UserError: the weights have other names or shapes, as those of an older version may.
        """
        try:
            self.generator.load_state_dict(state["generator"])
            if self.average is not self.generator:
                self.average.load_state_dict(state["generator_ema"])
            self.critic.load_state_dict(state["critic"])
        except RuntimeError as error:
            where = str(error).splitlines()[-1].strip()
            raise UserError(f"the checkpoint is of an older version: {where}") from error

    def load_optimizers(self, state: dict[str, Any]) -> None:
        """Load the optimiser states of a checkpoint, to continue its run exactly."""
        for name in ("generator_optimizer", "critic_optimizer"):
            getattr(self, name).load_state_dict(state[name])
