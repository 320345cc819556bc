"""One step of adversarial training: the critic's loss and penalty, then the generator's loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.adam import Adam
from models.augmentation import augmented, turned
from models.dcgan import make_even
from models.draws import StepDraws
from models.networks import Networks
from models.wgan import RELATIVISTIC, WASSERSTEIN, clip_weights
from models.wgan_vae import critic_objective, critic_penalty, generator_objective
from runtime.config import GANConfig
from runtime.device import autocast, bfloat16_products
from runtime.distributed import Processes
from runtime.recording import Recorded

# In float32 halves save 0.1 GB of 3.8 at full size, and a CPU is as busy with them.
FLOAT32_PARTS = 2
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
        critic.begin_step()
        with self._autocast():
            fake = generator(draws.latents).float()
        if config.augment != "none":
            real = turned(real, draws.turns)
        if config.augment == "full":
            real = augmented(real, draws.real_changes)
            fake = augmented(fake, draws.fake_changes)

        # Critic: a part of the batch after the other, each with one graph at a time
        own_step = config.penalty_form == "per_batch" and loss_type in WASSERSTEIN
        loss = torch.zeros((), device=real.device)
        penalty = torch.zeros_like(loss)
        for rows, share in self._parts(len(real)):
            parts = (real, fake.detach(), condition, draws.wrong, draws.epsilon)
            *of_part, wrong, epsilon = (None if whole is None else whole[rows] for whole in parts)
            given = (critic, loss_type, *of_part)
            if penalised and not own_step:
                penalty = penalty + share * self._learn_penalty(given, epsilon, share)
            with self._autocast():
                value = critic_objective(*given, config.regression_weight, wrong)
            (share * value).backward()
            loss = loss + share * value.detach()
        self._take(networks.critic_optimizer, critic)
        if penalised and own_step:
            penalty = self._learn_penalty(given, epsilon, per_batch=True)
            self._take(networks.critic_optimizer, critic)
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
            generator_value.backward()
            self._take(networks.generator_optimizer, generator)
            if config.even_upsampling:
                make_even(generator)
            critic.requires_grad_(True)
        return torch.stack([loss, generator_value, penalty]).detach().float()

    def _parts(self, count: int) -> list[tuple[slice, float]]:
        """Return rows of a batch of `count`, and their share of it; all where samples depend on
        each other."""
        config, parts = self.config, self.config.critic_parts
        if parts is None:
            halves = self.device.type == "cpu" and not self.bfloat16
            parts = FLOAT32_PARTS if halves else 1
        if config.penalty_form == "per_batch" or not self.networks.critic.samples_apart:
            parts = 1
        rows = torch.arange(count).tensor_split(min(parts, count))
        return [(slice(int(part[0]), int(part[-1]) + 1), len(part) / count) for part in rows]

    def _learn_penalty(
        self, given: tuple, epsilon: Tensor, share: float = 1.0, per_batch: bool = False
    ) -> Tensor:
        """Return the penalty, once its gradient is added to the critic's."""
        with self._autocast():
            penalty = critic_penalty(*given, epsilon, per_batch)
        (share * self.penalty_weight * penalty).backward()
        return penalty.detach()

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, self.bfloat16)

    def _take(self, optimizer: Adam, network: nn.Module) -> None:
        """Take one step down the gradients, averaged over the processes; keep none."""
        self.processes.average_gradients(network.parameters())
        optimizer.step()
        optimizer.zero_grad()
