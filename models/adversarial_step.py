"""One step of adversarial training: the critic's loss and penalty, then the generator's loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.augmentation import augmented, turned
from models.draws import StepDraws
from models.networks import Networks
from models.wgan import RELATIVISTIC, WASSERSTEIN, clip_weights
from models.wgan_vae import critic_objective, critic_penalty, generator_objective
from runtime.config import GANConfig
from runtime.device import autocast, bfloat16_products
from runtime.distributed import Processes
from runtime.recording import Recorded

MEASURES = ("critic_loss", "generator_loss", "gradient_penalty")


class AdversarialStep:
    """Trains the networks on a batch of tiles and what was drawn for it.

    On one GPU the step is recorded and replayed: it is hundreds of short kernels, which Python
    starts more slowly than the GPU works through them.

    Args:
        networks: are changed by every call.
        config: of the run.
        loss_type: one of models.wgan.LOSS_TYPES.
        bfloat16: autocast.
        processes: that share the batch.
    """

    def __init__(
        self,
        networks: Networks,
        config: GANConfig,
        loss_type: str,
        bfloat16: bool,
        processes: Processes,
    ) -> None:
        self.networks, self.config, self.loss_type = networks, config, loss_type
        self.processes, self.bfloat16 = processes, bfloat16
        self.device = next(networks.generator.parameters()).device
        self.penalty_weight = config.penalty_interval * (
            (loss_type in WASSERSTEIN) * config.gradient_penalty
            + (loss_type in RELATIVISTIC) * config.zero_centred_penalty
        )
        self._train = self.train
        if self.device.type == "cuda":
            # Every step has the same shapes, so that trying cuDNN's algorithms pays.
            torch.backends.cudnn.benchmark = True
            if processes.size == 1 and config.cuda_graphs:
                self._train = Recorded(self.train)

    def __call__(self, step: int, real: Tensor, draws: StepDraws) -> Tensor:
        """Take step number `step`; return its MEASURES, float32 (3,).

        Args:
            step: from 0.
            real: this process's images (N, 3, H, W) in [-1, 1].
            draws: for them, on the device.
        """
        config = self.config
        penalised = self.penalty_weight > 0 and step % config.penalty_interval == 0
        of_generator = (step + 1) % config.critic_steps == 0
        with bfloat16_products(self.bfloat16 and self.device.type == "cpu"):
            measures = self._train(real, draws, penalised, of_generator)
        self.processes.average([measures, *self.networks.running_statistics()])
        if of_generator:
            self.networks.update_average(config.ema_decay, step)
        return measures

    def train(self, real: Tensor, draws: StepDraws, penalised: bool, of_generator: bool) -> Tensor:
        """Return the measures of a step with or without penalty and generator's part."""
        config, networks, loss_type = self.config, self.networks, self.loss_type
        generator, critic, condition = networks.generator, networks.critic, draws.condition
        with self._autocast():
            fake = generator(draws.latents).float()
        if config.augment != "none":
            real = turned(real, draws.turns)
        if config.augment == "full":
            real = augmented(real, draws.real_changes)
            fake = augmented(fake, draws.fake_changes)

        # Critic: one graph at a time, and first the penalty's, while there are no gradients yet
        given = (critic, loss_type, real, fake.detach(), condition)
        own_step = config.penalty_form == "per_batch" and loss_type in WASSERSTEIN
        penalty = torch.zeros((), device=real.device)
        if penalised and not own_step:
            penalty = self._penalty(given, draws)
            (self.penalty_weight * penalty).backward()
        with self._autocast():
            loss = critic_objective(*given, config.regression_weight, draws.wrong)
        self._minimise(networks.critic_optimizer, loss, critic)
        if penalised and own_step:
            penalty = self._penalty(given, draws, per_batch=True)
            self._minimise(networks.critic_optimizer, self.penalty_weight * penalty, critic)
        if config.critic_clip:
            clip_weights(critic, config.critic_clip)

        # Generator: the same images, judged by the critic as it is now
        generator_value = torch.zeros_like(loss)
        if of_generator:
            critic.requires_grad_(False)
            with self._autocast():
                generator_value = generator_objective(
                    critic, loss_type, real, fake, condition, config.regression_weight
                )
            self._minimise(networks.generator_optimizer, generator_value, generator)
            critic.requires_grad_(True)
        return torch.stack([loss, generator_value, penalty]).detach().float()

    def _penalty(self, given: tuple, draws: StepDraws, per_batch: bool = False) -> Tensor:
        with self._autocast():
            return critic_penalty(*given, draws.epsilon, per_batch)

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, self.bfloat16)

    def _minimise(self, optimizer: torch.optim.Optimizer, loss: Tensor, network: nn.Module) -> None:
        """Take one step down the loss's gradient, averaged over the processes; keep no gradient."""
        loss.backward()
        self.processes.average_gradients(network.parameters())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
