"""Train the GAN (from noise) or the RNA-GAN (from the latent of the same patient's expression).

Reproduces: RNA-GAN (doi 10.1016/j.crmeth.2023.100534), tiles of lung and brain cortex.
Reads:  tile stores and expression tables of the config; for `--loss_type wganvae` a betaVAE.
Writes: `<model_dir>.model` (rebuilds itself; at most `checkpoint_minutes` old), the one before as
        .previous1.model, .history.csv and .run.json; one grid of tiles per epoch in `--image_dir`.
        The same command again continues a stopped run; a larger --num_epochs extends it.
        `--parallel 1` uses all GPUs of the machine; for several machines start it by torchrun.

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
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from data.expression import ExpressionTable
from data.pixels import image_grid, images_to_pixels, pixels_to_images, write_png
from data.pretrained import read_efficientnet
from data.training import (
    TileBatches,
    TrainingTiles,
    check_training_tiles,
    epoch_order,
    read_training_tiles,
)
from metrics.networks import find_network
from metrics.quality import QualityMeter
from models.adversarial_step import MEASURES, AdversarialStep
from models.draws import draw_step
from models.local_noise import local_noise_dims
from models.networks import GAN_TYPES, Networks, network_arguments
from models.profiles import ProfileEncoder
from models.r3gan import GROUP_WIDTH
from models.sampling import sample_images
from models.wgan import CONDITIONAL, LOSS_TYPES
from models.wgan_vae import Conditioning
from runtime.checkpoint import (
    check_genes,
    check_same_recipe,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from runtime.config import GANConfig, load_config, unused_keys
from runtime.device import (
    choose_device,
    return_freed_memory,
    to_device,
    use_large_pages,
    uses_bfloat16,
)
from runtime.distributed import (
    Processes,
    join_processes,
    leave_processes,
    start_on_all_devices,
)
from runtime.dry_run import (
    StepTrial,
    add_dry_run,
    dry_run_lines,
    peak_memory,
    size_text,
)
from runtime.errors import UserError, run_script
from runtime.files import sha256_of, write_csv
from runtime.progress import Progress
from runtime.recording import TRIALS
from runtime.run import log, start_log, summary_writer, write_run_record
from runtime.seeds import numpy_generator, seed_everything, torch_generator

# Keys that may change when a run is continued.
FREE = (
    "flag", "n_workers", "device", "log_interval", "summary_path", "checkpoint_minutes",
    "path_csv", "patch_data_path", "split_path", "vae_checkpoint", "tile_cache_mb",
    "metrics_every", "metrics_tiles", "grid_every", "keep_checkpoints", "cuda_graphs",
)  # fmt: skip
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
    parser.add_argument(
        "--max_minutes", type=float, help="stop after so much training in all, saved"
    )
    add_dry_run(parser)
    files = parser.add_argument_group("files")
    files.add_argument("--image_dir", required=True, help="folder of the epoch grids")
    files.add_argument("--model_dir", required=True, help="path prefix X of X.model")
    files.add_argument("--checkpoint", help="start from the weights of this .model")
    files.add_argument("--vae_checkpoint", help="betaVAE of the RNA-GAN")
    files.add_argument("--log", type=int, choices=(0, 1), default=0, help="1: TensorBoard events")
    parser.add_argument("--parallel", type=int, choices=(0, 1), default=0, help="1: all GPUs")
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


def checked_config(args: argparse.Namespace) -> GANConfig:
    """Return the config, once it is clear that config and flags go together."""
    config = load_config(GANConfig, args.config, device=args.device, precision=args.precision)
    for flag in ("num_epochs", "num_patches"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag} {getattr(args, flag)}: 1 or more is needed")
    if args.gan_type == "r3gan" and config.step_channels % GROUP_WIDTH:
        found = f"step_channels {config.step_channels}"
        raise UserError(
            f"{args.config}: {found}: --gan_type r3gan needs a multiple of {GROUP_WIDTH}"
        )
    if not config.patch_data_path:
        raise UserError(f"{args.config}: key 'patch_data_path' is missing")
    return config


class Setup(NamedTuple):
    """What a run trains on and with; `mu` (N, D) is that of all profiles of an RNA-GAN."""

    config: GANConfig
    device: torch.device
    bfloat16: bool
    inputs: TrainingTiles
    mu: torch.Tensor | None
    conditioning: Conditioning | None
    networks: Networks
    progress: Progress
    described: dict  # of a checkpoint: everything that stays as it is

    def checkpoint(self) -> dict:
        """Return the content of a checkpoint."""
        return self.networks.state_dict() | self.described | self.progress.to_checkpoint()


def main(argv: list[str] | None = None) -> None:
    """Train a GAN or an RNA-GAN."""
    use_large_pages()
    return_freed_memory()
    args = build_parser().parse_args(argv)
    if args.parallel and choose_device(checked_config(args).device).type == "cuda":
        start_on_all_devices(argv, __file__)
    processes = join_processes("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with processes.together():
            setup = prepare(args, processes)
        progress = setup.progress
        time_is_up = args.max_minutes and progress.elapsed_s > 60 * args.max_minutes
        if progress.epoch >= args.num_epochs or (progress.step and time_is_up):
            log.info("%s.model: up to date", args.model_dir)
        elif args.dry_run:
            print("\n".join(dry_run(args, setup, processes)))
        else:
            train(args, setup, processes)
    finally:
        leave_processes()


def dry_run(args: argparse.Namespace, setup: Setup, processes: Processes) -> list[str]:
    """Return what the run would need, from its first steps."""
    config, dataset = setup.config, setup.inputs.tiles
    held = min(len(dataset) * 3 * config.img_size**2, config.tile_cache_mb * 2**20)
    # A GPU's first steps of each kind choose algorithms and are recorded.
    kinds = config.penalty_interval * config.critic_steps
    warm_up = 1 if setup.device.type == "cpu" else kinds * (TRIALS + 1)
    trial = StepTrial(max(3, config.penalty_interval), warm_up)
    steps = args.num_epochs * (len(dataset) // config.tiles_per_step) - setup.progress.step
    light = config.model_copy(update={"metrics_every": 0, "tile_cache_mb": 0})
    train(args, setup._replace(config=light), processes, trial)
    generator, critic = (
        sum(value.nbytes for value in network.state_dict().values())
        for network in (setup.networks.generator, setup.networks.critic)
    )
    # Weights, Adam's two moments, and the generator's average.
    stored = (3 + (config.ema_decay > 0)) * generator + 3 * critic
    facts = {
        "tiles": f"{len(dataset)} of {len(setup.inputs.rows)} slides, {config.img_size} px",
        "profiles": f"{len(setup.inputs.table)} of {len(setup.inputs.table.genes)} genes",
        "steps": f"{steps} of {config.tiles_per_step} tiles on {setup.device}",
    }
    if setup.device.type == "cuda":
        facts["GPU memory"] = size_text(torch.cuda.max_memory_allocated(setup.device))
    copies = config.keep_checkpoints + 1 + bool(config.metrics_every)
    return dry_run_lines(
        args.model_dir, facts, steps * trial.seconds_per_step, copies * stored, peak_memory() + held
    )


def prepare(args: argparse.Namespace, processes: Processes) -> Setup:
    """Return everything a run needs, read and checked, with the progress of a stopped run."""
    # Arguments and config
    config = checked_config(args)
    model_path = Path(f"{args.model_dir}.model")

    # Run directory, log, seed, device
    start_log()
    log.setLevel(logging.INFO if processes.first else logging.ERROR)
    seed_everything(args.seed)
    device = choose_device(config.device)
    if processes.size > 1 and device.type == "cuda":
        device = choose_device(processes.local_rank)
        torch.cuda.set_device(device)

    # Data
    inputs = read_training_tiles(
        config.path_csv,
        config.patch_data_path,
        (config.split_path, config.split_seed),
        config.train_partitions,
        args.num_patches,
        config.img_size,
        write_split=not args.dry_run,
    )
    table, tiles_per_step = inputs.table, config.tiles_per_step
    check_training_tiles(inputs, config.rna_features, tiles_per_step, args.config)
    if tiles_per_step % processes.size:
        found = f"tiles_per_step {tiles_per_step} cannot be shared by {processes.size} processes"
        raise UserError(f"{args.config}: {found} alike")
    if config.metrics_every and inputs.held_out_tiles is None:
        raise UserError(f"{args.config}: metrics_every needs tiles of held-out donors")
    mu = conditioning = None
    origin: dict = {}
    extra_dims = local_noise_dims(config.img_size) if config.local_noise else 0
    if args.loss_type in CONDITIONAL:
        vae_path = Path(args.vae_checkpoint or config.vae_checkpoint)
        mu, origin = profile_latents(vae_path, table, device)
        population = mu[torch.from_numpy(inputs.training)]
        conditioning = Conditioning.fit(
            population, config.latent_noise, config.noise_dim + extra_dims, config.latent_norm
        )

    # Model and optimiser
    backbone = read_efficientnet() if config.critic_features == "pretrained" else None
    generator_args, critic_args = network_arguments(
        args.gan_type,
        {"image_px": config.img_size, "step_channels": config.step_channels},
        blocks=config.residual_blocks,
        modulation=config.generator_modulation,
        local_noise=config.local_noise,
        norm=config.critic_norm,
        output=config.critic_output,
        input_dim=conditioning.input_dim if conditioning else config.latent_dim + extra_dims,
        profile_dim=mu.shape[1] if conditioning else 0,
        conditioning=config.critic_conditioning if conditioning else "none",
        pretrained=backbone is not None,
    )
    networks = Networks(
        args.gan_type,
        generator_args,
        critic_args,
        learning_rates=(config.generator_lr, config.critic_lr),
        betas=tuple(config.adam_betas),
        device=device,
        averaged=config.ema_decay > 0,
        backbone=backbone,
    )
    if processes.size > 1:
        networks.share_batch(device.type)

    # Resume
    settings = config.model_dump() | {
        "seed": args.seed,
        "gan_type": args.gan_type,
        "loss_type": args.loss_type,
        "num_patches": args.num_patches,
        "betavae_sha256": origin.get("betavae_sha256"),
    }
    progress = Progress(MEASURES, device)
    if model_path.is_file():
        state = load_checkpoint(model_path, "gan")
        check_same_recipe(state["config"], settings, FREE, model_path)
        networks.load_state_dict(state)
        networks.load_optimizers(state)
        progress.load(state)
        log.info("%s: epoch %d, step %d", model_path, progress.epoch, progress.step)
    elif args.checkpoint:
        start = load_checkpoint(args.checkpoint, "gan")
        for key in ("generator_args", "critic_args"):
            check_same_recipe(start[key], networks.state_dict()[key], (), args.checkpoint)
        networks.load_state_dict(start)
    if processes.first and not args.dry_run:
        remove_leftovers(model_path)
        if progress.epoch < args.num_epochs:
            write_run_record(f"{args.model_dir}.run.json", settings, args.seed)
        if progress.history:  # a kill may have come between the checkpoint and its table
            write_csv(f"{args.model_dir}.history.csv", pd.DataFrame(progress.history))
    if sentence := unused_keys(config):
        log.info("%s: %s", args.config, sentence)
    described = {
        "loss_type": args.loss_type,
        "image_px": config.img_size,
        "latent_dim": networks.generator.latent_dim,
        "conditioning": conditioning.to_checkpoint() | origin if conditioning else None,
        "genes": table.genes,
        "train_slides": [table.names[row] for row in inputs.rows],
        "config": settings,
    }
    bfloat16 = uses_bfloat16(config.precision, device)
    return Setup(config, device, bfloat16, inputs, mu, conditioning, networks, progress, described)


def train(
    args: argparse.Namespace, setup: Setup, processes: Processes, trial: StepTrial | None = None
) -> None:
    """Train from where the setup stands to the last epoch, or through a trial's steps alone."""
    config, device, bfloat16, inputs, mu, conditioning, networks, progress, _ = setup
    dataset = inputs.tiles
    profiles = grid_mu = None
    if mu is not None:
        profiles = mu[inputs.rows]
        grid_mu = mu[(inputs.held_out + inputs.rows)[: config.grid_columns]]
    model_path = Path(f"{args.model_dir}.model")
    writer = summary_writer(args.log and processes.first and not trial, config.summary_path)
    batches = TileBatches(
        dataset, config.n_workers, config.tile_cache_mb, pinned=device.type == "cuda"
    )
    quality = None
    if config.metrics_every and processes.first:
        quality = HeldOutQuality(inputs, mu, config.metrics_tiles, args.seed, device)

    def save() -> None:
        progress.check_finite(str(model_path))
        if processes.first:
            save_checkpoint(model_path, "gan", setup.checkpoint(), config.keep_checkpoints)

    # Loop
    take_step = AdversarialStep(networks, config, args.loss_type, bfloat16, processes)
    steps = len(dataset) // config.tiles_per_step
    share = processes.share(config.tiles_per_step)
    slides = torch.from_numpy(dataset.slide_numbers).long()
    where = f"{device}, {'bfloat16' if bfloat16 else 'float32'}, {processes.size} process(es)"
    log.info(
        "%d tiles of %d slides, %d steps an epoch, %s", len(dataset), len(inputs.rows), steps, where
    )
    saved_at, out_of_time = progress.elapsed_s, False
    with tqdm(
        total=args.num_epochs * steps,
        initial=progress.step,
        unit="step",
        desc=model_path.stem,
        disable=not processes.first,
    ) as bar:
        while progress.epoch < args.num_epochs and not out_of_time:
            order = epoch_order(
                len(dataset), config.tiles_per_step, config.tile_order == "shuffled", args.seed,
                progress.epoch,
            )[progress.batch :]  # fmt: skip
            own = batches([numbers[share] for numbers in order])
            for numbers, (pixels, _) in zip(order, own, strict=True):
                step = progress.step
                # Drawn for the joint batch, so that the run does not depend on the processes.
                draws = draw_step(
                    torch_generator(args.seed, "step", step),
                    config.tiles_per_step,
                    config.img_size,
                    networks.generator.latent_dim,
                    conditioning,
                    None if profiles is None else profiles[slides[numbers]],
                    config.penalty_form == "per_batch",
                ).share(share, device)
                real = pixels_to_images(to_device(pixels, device))
                measures = take_step(step, real, draws)
                progress.add(measures)
                bar.update()
                if trial:
                    progress.check_finite(str(model_path))  # waits for a GPU
                    if trial.is_over():
                        return
                if progress.step % config.log_interval == 0:
                    progress.check_finite(str(model_path))
                    means = progress.means()
                    bar.set_postfix({key: f"{value:.3f}" for key, value in means.items()})
                    if writer:
                        writer.add_scalars("epoch_means", means, progress.step)
                save_now, out_of_time = processes.first_says(
                    [
                        progress.elapsed_s - saved_at > 60 * config.checkpoint_minutes,
                        bool(args.max_minutes) and progress.elapsed_s > 60 * args.max_minutes,
                    ]
                )
                if save_now:
                    save()
                    saved_at = progress.elapsed_s
                if out_of_time:
                    break
            if trial:
                return
            if progress.batch < steps:
                save()
                break

            # Epoch results
            progress.check_finite(str(model_path))
            row = progress.end_epoch(steps * config.tiles_per_step)
            last = progress.epoch == args.num_epochs or out_of_time
            if quality and (last or progress.epoch % config.metrics_every == 0):
                with networks.evaluated() as evaluated:
                    row |= quality.measure(evaluated, conditioning)
                if row["fid"] <= min(past.get("fid", row["fid"]) for past in progress.history):
                    save_checkpoint(f"{args.model_dir}.best.model", "gan", setup.checkpoint())
                if writer:
                    for key in ("fid", "kid"):
                        writer.add_scalar(key, row[key], progress.step)
            if processes.first and (last or progress.epoch % config.grid_every == 0):
                with networks.evaluated() as evaluated:
                    grid = epoch_grid(
                        evaluated, conditioning, grid_mu, args.seed, config.grid_columns
                    )
                write_png(Path(args.image_dir) / f"epoch_{progress.epoch:04d}.png", grid)
            if processes.first and (last or progress.elapsed_s - saved_at > SHORT_EPOCH_S):
                save()
                write_csv(f"{args.model_dir}.history.csv", pd.DataFrame(progress.history))
                saved_at = progress.elapsed_s
    if processes.first:
        done = f"{progress.epoch} epochs, {progress.step} steps, {progress.elapsed_s:.0f} s"
        print(f"{model_path}: {done}")


if __name__ == "__main__":
    run_script(main)
