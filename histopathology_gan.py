"""Train the GAN (from noise) or the RNA-GAN (from the latent of the same patient's expression).

Reproduces: RNA-GAN (doi 10.1016/j.crmeth.2023.100534), tiles of lung and brain cortex.
Reads:  tile stores and expression tables of the config; for `--loss_type wganvae` a betaVAE.
Writes: `<model_dir>.model` (rebuilds itself; at most --checkpoint_minutes old), .history.csv and
        .run.json beside it; one grid of generated tiles per epoch in `--image_dir`.
        The same command again continues a stopped run; a larger --num_epochs extends it.

    python3 histopathology_gan.py --seed 99 --config configs/gan_run_lung.json \\
        --image_dir gan_generated_images/images_rna-gan_lung \\
        --model_dir ./checkpoints/rna-gan_lung/rna-gan_lung --num_epochs 11 \\
        --gan_type dcgan --loss_type wganvae --num_patches 600
    python3 histopathology_gan.py --seed 99 --config configs/demo/gan_run_lung.json \\
        --image_dir demo/images/rna-gan_lung --model_dir demo/checkpoints/rna-gan_lung \\
        --num_epochs 4 --gan_type dcgan --loss_type wganvae --num_patches 200
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from data.expression import ExpressionTable
from data.pixels import image_grid, images_to_pixels, pixels_to_images, write_png
from data.training import TileBatches, TrainingTiles, epoch_order, read_training_tiles
from metrics.networks import find_network
from metrics.quality import QualityMeter
from models.augmentation import augmented, turned
from models.networks import GAN_TYPES, Networks
from models.profiles import ProfileEncoder
from models.r3gan import GROUP_WIDTH
from models.sampling import sample_images
from models.wgan import (
    CONDITIONAL,
    LOSS_TYPES,
    RELATIVISTIC,
    WASSERSTEIN,
    clip_weights,
    gradient_penalty,
    zero_centred_penalty,
)
from models.wgan_vae import Conditioning, critic_objective, generator_objective
from runtime.checkpoint import check_genes, check_same_recipe, load_checkpoint, save_checkpoint
from runtime.config import GANConfig, load_config, unused_keys
from runtime.device import autocast, choose_device, uses_bfloat16
from runtime.errors import UserError, run_script
from runtime.files import sha256_of, write_csv
from runtime.run import log, start_log, summary_writer, write_run_record
from runtime.seeds import numpy_generator, seed_everything, torch_generator

# Keys that may change when a run is continued.
FREE = (
    "flag", "n_workers", "device", "log_interval", "summary_path", "checkpoint_minutes",
    "path_csv", "patch_data_path", "split_path", "vae_checkpoint", "tile_cache_mb",
    "metrics_every", "metrics_tiles", "grid_every",
)  # fmt: skip
MEASURES = ("critic_loss", "generator_loss", "gradient_penalty")
SHORT_EPOCH_S = 30.0  # checkpoints are at least so far apart, however short the epochs are


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", required=True, help="JSON config")
    parser.add_argument("--seed", type=int, default=99)
    parser.add_argument("--num_epochs", type=int, required=True)
    parser.add_argument("--num_patches", type=int, default=600, help="tiles per slide, at most")
    parser.add_argument("--gan_type", choices=tuple(GAN_TYPES), default="dcgan")
    parser.add_argument(
        "--loss_type", choices=LOSS_TYPES, default="wgan", help="wganvae, relativisticvae: RNA-GAN"
    )
    parser.add_argument("--max_minutes", type=float, help="stop after so much training, saved")
    files = parser.add_argument_group("files")
    files.add_argument("--image_dir", required=True, help="folder of the epoch grids")
    files.add_argument("--model_dir", required=True, help="path prefix X of X.model")
    files.add_argument("--checkpoint", help="start from the weights of this .model")
    files.add_argument("--vae_checkpoint", help="betaVAE of the RNA-GAN")
    files.add_argument("--log", type=int, choices=(0, 1), default=0, help="1: TensorBoard events")
    mirrored = parser.add_argument_group("keys of the config")
    mirrored.add_argument("--device")
    mirrored.add_argument("--precision", choices=("auto", "float32", "bfloat16"))
    return parser


def profile_latents(
    path: Path, table: ExpressionTable, device: torch.device
) -> tuple[torch.Tensor, dict]:
    """Return mu (N, D) of every profile, and what a checkpoint keeps of the betaVAE."""
    encoder = ProfileEncoder.from_checkpoint(load_checkpoint(path, "betavae"), device)
    check_genes(encoder.genes, table.genes, "expression tables")
    origin = {"betavae_sha256": sha256_of(path), "betavae_path": str(path)}
    return encoder.mu(table.expression), origin


def epoch_grid(
    generator: nn.Module,
    conditioning: Conditioning | None,
    mu: torch.Tensor | None,
    seed: int,
    columns: int,
) -> np.ndarray:
    """Return a grid of tiles (H, W, 3) with fixed noise; for an RNA-GAN a row is a profile."""
    if conditioning is None:
        tiles = [image for _, image in sample_images(generator, seed, range(columns**2))]
    else:
        rows = [sample_images(generator, seed, range(columns), conditioning, one) for one in mu]
        tiles = [image for row in rows for _, image in row]
    return image_grid(images_to_pixels(torch.stack(tiles)).numpy(), columns)


class HeldOutQuality:
    """FID and KID of the model in training against tiles of donors it is not trained on.

    The real tiles and the noise are fixed by the seed; an RNA-GAN gets the profile of each tile's
    own slide.
    """

    def __init__(
        self, inputs: TrainingTiles, mu: torch.Tensor | None, count: int, seed: int, device
    ) -> None:
        tiles = inputs.held_out_tiles
        chosen = numpy_generator(seed, "quality").permutation(len(tiles))[:count]
        real = torch.stack([tiles[int(number)][0] for number in chosen])
        slides = [inputs.held_out[tiles.slide_numbers[number]] for number in chosen]
        self.mu = None if mu is None else mu[slides]
        self.count, self.seed = len(chosen), seed
        self.meter = QualityMeter(find_network("inception"), device, real)

    def measure(self, generator: nn.Module, conditioning: Conditioning | None) -> dict[str, float]:
        """Return `fid` and `kid` of the generator."""
        images = sample_images(generator, self.seed, range(self.count), conditioning, self.mu)
        pixels = images_to_pixels(torch.stack([image for _, image in images]))
        return self.meter.measure(pixels)._asdict()


def minimise(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """Take one step down the gradient of a scalar."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


class Draws(NamedTuple):
    """A step's generator input and condition (N, D) and the penalty's epsilon (N or 1, 1, 1, 1)."""

    latents: torch.Tensor
    condition: torch.Tensor | None
    epsilon: torch.Tensor


def draw_step(
    draw: torch.Generator,
    profile: torch.Tensor | None,
    conditioning: Conditioning | None,
    count: int,
    latent_dim: int,
    per_batch: bool,
) -> Draws:
    """Return the random parts of a step from its generator; `profile` is mu (N, D) of its tiles."""
    epsilon = torch.rand(1 if per_batch else count, 1, 1, 1, generator=draw)
    if conditioning is None:
        return Draws(torch.randn(count, latent_dim, generator=draw), None, epsilon)
    noise = conditioning.draw(count, draw)
    return Draws(conditioning.latents(profile, noise), conditioning.condition(profile), epsilon)


def main(argv: list[str] | None = None) -> None:
    # Arguments and config
    args = build_parser().parse_args(argv)
    config = load_config(GANConfig, args.config, device=args.device, precision=args.precision)
    for flag in ("num_epochs", "num_patches"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag} {getattr(args, flag)}: 1 or more is needed")
    if args.gan_type == "r3gan" and config.step_channels % GROUP_WIDTH:
        found = f"step_channels {config.step_channels}"
        raise UserError(
            f"{args.config}: {found}: --gan_type r3gan needs a multiple of {GROUP_WIDTH}"
        )
    conditional = args.loss_type in CONDITIONAL
    model_path = Path(f"{args.model_dir}.model")

    # Run directory, log, seed, device
    start_log()
    seed_everything(args.seed)
    device = choose_device(config.device)
    bfloat16 = uses_bfloat16(config.precision, device)

    # Data
    if not config.patch_data_path:
        raise UserError(f"{args.config}: key 'patch_data_path' is missing")
    inputs = read_training_tiles(
        config.path_csv,
        config.patch_data_path,
        (config.split_path, config.split_seed),
        config.train_partitions,
        args.num_patches,
        config.img_size,
    )
    table, rows, dataset = inputs.table, inputs.rows, inputs.tiles
    if len(table.genes) != config.rna_features:
        found = f"the tables hold {len(table.genes)} genes"
        raise UserError(f"{args.config}: rna_features is {config.rna_features}, {found}")
    if len(dataset) < config.tiles_per_step:
        found = f"{len(dataset)} tiles, a step needs {config.tiles_per_step}"
        raise UserError(f"{args.config}: {found}")
    if config.metrics_every and inputs.held_out_tiles is None:
        raise UserError(f"{args.config}: metrics_every needs tiles of held-out donors")
    mu = conditioning = profiles = grid_mu = None
    origin: dict = {}
    if conditional:
        vae_path = Path(args.vae_checkpoint or config.vae_checkpoint)
        mu, origin = profile_latents(vae_path, table, device)
        population = mu[torch.from_numpy(inputs.training)]
        conditioning = Conditioning.fit(
            population, config.latent_noise, config.noise_dim, config.latent_norm
        )
        shown = (inputs.held_out + rows)[: config.grid_columns]
        profiles, grid_mu = mu[rows], mu[shown]

    # Model and optimiser
    latent_dim = conditioning.input_dim if conditional else config.latent_dim
    shape = {"image_px": config.img_size, "step_channels": config.step_channels}
    if args.gan_type == "r3gan":
        shape["blocks"] = config.residual_blocks
    networks = Networks(
        args.gan_type,
        generator_args={"latent_dim": latent_dim, **shape},
        critic_args={
            **shape,
            **({"norm": config.critic_norm} if args.gan_type == "dcgan" else {}),
            "output": config.critic_output,
            "latent_dim": mu.shape[1] if conditional else 0,
            "conditioning": config.critic_conditioning if conditional else "none",
        },
        learning_rates=(config.generator_lr, config.critic_lr),
        betas=tuple(config.adam_betas),
        device=device,
    )
    generator, critic = networks.generator, networks.critic

    # Resume
    settings = config.model_dump() | {
        "seed": args.seed,
        "gan_type": args.gan_type,
        "loss_type": args.loss_type,
        "num_patches": args.num_patches,
        "betavae_sha256": origin.get("betavae_sha256"),
    }
    counters = {"epoch": 0, "batch": 0, "step": 0, "elapsed_s": 0.0}
    sums, history = torch.zeros(len(MEASURES), device=device), []
    if model_path.is_file():
        state = load_checkpoint(model_path, "gan")
        check_same_recipe(state["config"], settings, FREE, model_path)
        networks.load_state_dict(state)
        networks.load_optimizers(state)
        counters, history, sums = state["counters"], state["history"], state["sums"].to(device)
        log.info("%s: epoch %d, step %d", model_path, counters["epoch"], counters["step"])
        if counters["epoch"] >= args.num_epochs:
            log.info("%s: up to date", model_path)
            return
    elif args.checkpoint:
        start = load_checkpoint(args.checkpoint, "gan")
        for key in ("generator_args", "critic_args"):
            check_same_recipe(start[key], networks.state_dict()[key], (), args.checkpoint)
        networks.load_state_dict(start)
    write_run_record(f"{args.model_dir}.run.json", settings, args.seed)
    if sentence := unused_keys(config):
        log.info("%s: %s", args.config, sentence)
    writer = summary_writer(args.log, config.summary_path)
    batches = TileBatches(
        dataset, config.n_workers, config.tile_cache_mb, pinned=device.type == "cuda"
    )
    quality = None
    if config.metrics_every:
        quality = HeldOutQuality(inputs, mu, config.metrics_tiles, args.seed, device)
    began, saved = time.monotonic() - counters["elapsed_s"], time.monotonic()

    def check_finite() -> None:
        if not sums.isfinite().all():
            raise UserError(
                f"{model_path}: loss not finite before step {counters['step']}; the last good"
                " checkpoint is kept; lower the learning rates or set precision to float32"
            )

    def save(path: Path = model_path) -> None:
        counters["elapsed_s"] = time.monotonic() - began
        content = {
            "loss_type": args.loss_type,
            "image_px": config.img_size,
            "latent_dim": generator.latent_dim,
            "conditioning": conditioning.to_checkpoint() | origin if conditional else None,
            "genes": table.genes,
            "train_slides": [table.names[row] for row in rows],
            "config": settings,
            "counters": counters,
            "history": history,
            "sums": sums.cpu(),
        }
        save_checkpoint(path, "gan", networks.state_dict() | content)

    own_step = config.penalty_form == "per_batch" and args.loss_type in WASSERSTEIN
    weights = dict.fromkeys(WASSERSTEIN, config.gradient_penalty)
    weights |= dict.fromkeys(RELATIVISTIC, config.zero_centred_penalty)
    penalty_weight = weights.get(args.loss_type, 0.0) * config.penalty_interval

    def penalty_of(real, fake, condition, epsilon) -> torch.Tensor:
        if args.loss_type in RELATIVISTIC:
            twice = None if condition is None else torch.cat([condition, condition])
            both = torch.cat([real, fake])
            return zero_centred_penalty(lambda *given: critic(*given).score, both, twice)
        return gradient_penalty(
            lambda images: critic(images, condition).score, real, fake, epsilon, own_step
        )

    # Loop
    steps = len(dataset) // config.tiles_per_step
    where = f"{device}, {'bfloat16' if bfloat16 else 'float32'}"
    log.info("%d tiles of %d slides, %d steps an epoch, %s", len(dataset), len(rows), steps, where)
    bar = tqdm(
        total=args.num_epochs * steps, initial=counters["step"], unit="step", desc=model_path.stem
    )
    out_of_time = False
    while counters["epoch"] < args.num_epochs and not out_of_time:
        shuffled = config.tile_order == "shuffled"
        order = epoch_order(
            len(dataset), config.tiles_per_step, shuffled, args.seed, counters["epoch"]
        )
        for pixels, slides in batches(order[counters["batch"] :]):
            step = counters["step"]
            draw = torch_generator(args.seed, "step", step)
            latents, condition, epsilon = (
                None if part is None else part.to(device)
                for part in draw_step(
                    draw,
                    profiles[slides] if conditional else None,
                    conditioning,
                    len(pixels),
                    latent_dim,
                    config.penalty_form == "per_batch",
                )
            )
            penalised = penalty_weight > 0 and step % config.penalty_interval == 0
            real = pixels_to_images(pixels.to(device, non_blocking=True))
            with autocast(device, bfloat16):
                fake = generator(latents).float()
            if config.augment != "none":
                real = turned(real, draw)
            if config.augment == "full":
                real, fake = augmented(real, draw), augmented(fake, draw)

            # Critic
            with autocast(device, bfloat16):
                loss = critic_objective(
                    critic, args.loss_type, real, fake.detach(), condition, config.regression_weight
                )
                penalty = torch.zeros_like(loss)
                if penalised and not own_step:
                    penalty = penalty_of(real, fake.detach(), condition, epsilon)
            minimise(networks.critic_optimizer, loss + penalty_weight * penalty)
            if penalised and own_step:
                with autocast(device, bfloat16):
                    penalty = penalty_of(real, fake.detach(), condition, epsilon)
                minimise(networks.critic_optimizer, penalty_weight * penalty)
            if config.critic_clip:
                clip_weights(critic, config.critic_clip)

            # Generator: the same images, judged by the critic as it is now
            generator_value = torch.zeros_like(loss)
            if (step + 1) % config.critic_steps == 0:
                critic.requires_grad_(False)
                with autocast(device, bfloat16):
                    generator_value = generator_objective(
                        critic, args.loss_type, real, fake, condition, config.regression_weight
                    )
                minimise(networks.generator_optimizer, generator_value)
                critic.requires_grad_(True)
                networks.update_average(config.ema_decay, step)

            sums += torch.stack([loss, generator_value, penalty]).detach().float()
            counters["step"], counters["batch"] = step + 1, counters["batch"] + 1
            bar.update()
            if counters["step"] % config.log_interval == 0:
                check_finite()
                means = dict(zip(MEASURES, (sums / counters["batch"]).tolist(), strict=True))
                bar.set_postfix({key: f"{value:.3f}" for key, value in means.items()})
                if writer:
                    writer.add_scalars("epoch_means", means, counters["step"])
            if time.monotonic() - saved > 60 * config.checkpoint_minutes:
                check_finite()
                save()
                saved = time.monotonic()
            if args.max_minutes and time.monotonic() - began > 60 * args.max_minutes:
                out_of_time = True
                break
        if out_of_time and counters["batch"] < steps:
            check_finite()
            save()
            break

        # Epoch results
        check_finite()
        elapsed = time.monotonic() - began
        before = history[-1]["elapsed_s"] if history else 0.0
        row = dict(zip(MEASURES, (sums / counters["batch"]).tolist(), strict=True))
        row["images_per_s"] = steps * config.tiles_per_step / (elapsed - before)
        counters["epoch"] += 1
        counters["batch"] = 0
        sums.zero_()
        row = {"epoch": counters["epoch"], "step": counters["step"], **row, "elapsed_s": elapsed}
        last = counters["epoch"] == args.num_epochs or out_of_time
        history.append(row)
        if quality and (last or counters["epoch"] % config.metrics_every == 0):
            row |= quality.measure(networks.average, conditioning)
            if row["fid"] <= min(past.get("fid", row["fid"]) for past in history):
                save(Path(f"{args.model_dir}.best.model"))
            if writer:
                for key in ("fid", "kid"):
                    writer.add_scalar(key, row[key], counters["step"])
        if last or counters["epoch"] % config.grid_every == 0:
            grid = epoch_grid(
                networks.average, conditioning, grid_mu, args.seed, config.grid_columns
            )
            write_png(Path(args.image_dir) / f"epoch_{counters['epoch']:04d}.png", grid)
        if last or time.monotonic() - saved > SHORT_EPOCH_S:
            save()
            write_csv(f"{args.model_dir}.history.csv", pd.DataFrame(history))
            saved = time.monotonic()
    bar.close()
    elapsed = time.monotonic() - began
    print(f"{model_path}: {counters['epoch']} epochs, {counters['step']} steps, {elapsed:.0f} s")


if __name__ == "__main__":
    run_script(main)
