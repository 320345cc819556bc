"""Convert a GAN or RNA-GAN that the published code trained with torchgan.

Reads:  a torchgan `.model` (weights beside pickled objects; nothing of it is run) and the config of
        its tissue, whose tables name the slides it may have been trained on; for an RNA-GAN the
        betaVAE that shall encode profiles.
Writes: `--output`, a checkpoint that fid.py, generate_tissue_images.py and
        `histopathology_gan.py --checkpoint` read like their own.

    python3 convert_gan.py --input old/gan_lung.model \\
        --config configs/published/gan_run_lung.json --output checkpoints/gan_lung.model
    python3 convert_gan.py --input old/rna-gan_lung.model \\
        --config configs/published/rna-gan_run_lung.json \\
        --vae_checkpoint checkpoints/betavae_training_tissues/model_dict_best.pt \\
        --output checkpoints/rna-gan_lung.model
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from data.expression import read_cohort
from data.published_models import read_published_model
from models.networks import GAN_TYPES
from models.profiles import ProfileEncoder
from models.published_dcgan import from_torchgan
from models.wgan_vae import Conditioning
from runtime.checkpoint import check_genes, load_checkpoint, save_checkpoint
from runtime.config import GANConfig, load_config
from runtime.dry_run import add_dry_run, dry_run_lines
from runtime.errors import UserError, run_script
from runtime.files import sha256_of
from runtime.run import log, start_log


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--input", required=True, help="torchgan's .model")
    parser.add_argument("--config", required=True, help="JSON config of its tissue")
    parser.add_argument("--output", required=True, help="checkpoint to write")
    parser.add_argument("--vae_checkpoint", help="makes it an RNA-GAN: betaVAE of the profiles")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    add_dry_run(parser)
    return parser


def read_networks(path: str) -> tuple[dict[str, Any], int]:
    """Return the networks of a published model and its number of epochs."""
    content = read_published_model(path)
    states = []
    for part in ("generator", "discriminator"):
        state = content.get(part) if isinstance(content, dict) else None
        tensors = isinstance(state, dict) and {
            name: value for name, value in dict.items(state) if torch.is_tensor(value)
        }
        if not tensors or len(tensors) < len(state):
            raise UserError(f"{path}: holds no state dict {part!r}: not a model of torchgan")
        states.append(tensors)
    try:
        networks = from_torchgan(*states)
        for part, make in zip(("generator", "critic"), GAN_TYPES["dcgan"], strict=True):
            with torch.device("meta"):
                empty = make(**networks[f"{part}_args"])
            empty.load_state_dict(networks[part], assign=True)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: {reason[:200]}") from error
    epoch = content.get("epoch")
    return networks, epoch if isinstance(epoch, int) else 0


def main(argv: list[str] | None = None) -> None:
    """Convert a published model."""
    # Arguments and config
    began = time.perf_counter()
    args = build_parser().parse_args(argv)
    start_log()
    config = load_config(GANConfig, args.config, vae_checkpoint=args.vae_checkpoint)
    if Path(args.output).exists() and not args.overwrite:
        raise UserError(f"{args.output}: exists; name another output or add --overwrite")

    # Data
    networks, epoch = read_networks(args.input)
    table = read_cohort(config.path_csv)
    image_px = networks["generator_args"]["image_px"]
    latent_dim = networks["generator_args"]["latent_dim"]
    conditioning = None
    if args.vae_checkpoint:
        device = torch.device("cpu")
        encoder = ProfileEncoder.from_checkpoint(
            load_checkpoint(args.vae_checkpoint, "betavae"), device
        )
        check_genes(encoder.genes, table.genes, "expression tables")
        mu = encoder.mu(table.expression)
        if mu.shape[1] != latent_dim:
            found = f"{latent_dim} latent dimensions, the betaVAE has {mu.shape[1]}"
            raise UserError(f"{args.input}: {found}")
        fitted = Conditioning.fit(mu, config.latent_noise, 0, "batch")
        conditioning = fitted.to_checkpoint() | {
            "betavae_sha256": sha256_of(args.vae_checkpoint),
            "betavae_path": args.vae_checkpoint,
        }

    kind = "RNA-GAN" if conditioning else "GAN"
    if args.dry_run:
        weights = [*networks["generator"].values(), *networks["critic"].values()]
        size = sum(value.nbytes for value in weights)
        facts = {"model": f"{kind}, {image_px} px, latents of {latent_dim}", "slides": len(table)}
        print("\n".join(dry_run_lines(args.output, facts, time.perf_counter() - began, size)))
        return

    # Results
    origin = {"converted_from": str(args.input), "converted_sha256": sha256_of(args.input)}
    content = {
        **networks,
        "gan_type": "dcgan",
        "generator_ema": networks["generator"],
        "loss_type": "wganvae" if conditioning else "wgan",
        "image_px": image_px,
        "latent_dim": latent_dim,
        "conditioning": conditioning,
        "genes": table.genes,
        # The published split was not kept: any of them may have been trained on.
        "train_slides": list(table.names),
        "config": config.model_dump() | origin,
        "counters": {"epoch": epoch, "batch": 0, "step": 0, "elapsed_s": 0.0},
        "history": [],
    }
    save_checkpoint(args.output, "gan", content)
    log.info("%s: %s, %d px, latents of %d", args.output, kind, image_px, latent_dim)
    if conditioning:
        log.info("latents are standardised over the batch as published: the profile cancels there")


if __name__ == "__main__":
    run_script(main)
